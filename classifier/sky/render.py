"""Stamps: a scene of galaxies, stars and one changing point source, seen through the air and the camera.

Images are made in Fourier space, where a Sersic profile, a point source, a sub-pixel shift and a PSF with wings are all
exact products; one inverse transform makes each stamp. All images of one object are made together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, optimize

from skyheed.classifier.sky.conditions import Visits
from skyheed.classifier.sky.galaxies import Profile
from skyheed.classifier.sky.surveys import AB_ZERO, Survey

Array = NDArray[np.float64]
Image = NDArray[np.float32]

# SDSS's PSF (psField of run 1000, all bands): two Gaussians and a power-law wing (1 + r^2 / 3 s^2)^-1.5, of which the
# Fourier transform is exp(-2 pi k sqrt(3) s) exactly.
SECOND_SIZE = 2.0  # width of the second Gaussian relative to the first; `_optics` relies on the 2
SECOND_FLUX = 0.37
WING_FLUX = 0.028
WING_SIZE = 1.65  # sqrt(3) s, in units of the FWHM
# Of the PSF, scatter per component; like the numbers below, our choice.
ELLIPTICITY = 0.03
WORST_SKY = 2.0  # noise of a night that is still used, relative to a typical one
MARGIN = 6  # FWHM by which the transform's period exceeds the stamp, so that wings hardly come back on the other side

# Defects, chance per 64 x 64 pixels: cosmic rays that were not cleaned, bad columns, the edge of a chip.
COSMIC_RAY, BAD_COLUMN, CHIP_EDGE = 0.03, 0.004, 0.006
CLEAR = 6  # pixels about the source that defects leave free: the survey would have flagged the measurement


@dataclass(frozen=True)
class Source:
    """Something that does not change: a component of a galaxy, or a star (no profile).

    Attributes:
        west, north: arcsec from the changing source.
        fluxes: nJy, by band of the survey.
    """

    west: float
    north: float
    fluxes: Array
    profile: Profile | None = None


@dataclass(frozen=True)
class Rendered:
    """Images [n, size, size] in nJy per pixel, and the photometry of them, nJy [n].

    `psf` is the point source of flux 1; `clean` the science image without noise, defects or calibration error.
    """

    science: Image
    template: Image | None
    difference: Image | None
    clean: Image
    psf: Image
    flux: Array
    flux_error: Array

    def take(self, keep: NDArray[np.bool_]) -> "Rendered":
        """Some of the exposures."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return replace(self, **{name: value[keep] for name, value in values.items() if value is not None})


@lru_cache(1)
def _core_width() -> float:
    """Width (sigma) of the first Gaussian for a PSF of FWHM 1, wings included."""

    def excess(sigma: float) -> float:
        def light(r: float) -> float:
            second, wing = SECOND_SIZE * sigma, WING_SIZE
            gaussians = (1 - SECOND_FLUX) / sigma**2 * np.exp(-0.5 * (r / sigma) ** 2)
            gaussians += SECOND_FLUX / second**2 * np.exp(-0.5 * (r / second) ** 2)
            return float((1 - WING_FLUX) * gaussians + WING_FLUX / wing**2 * (1 + (r / wing) ** 2) ** -1.5)

        return light(0.5) - 0.5 * light(0.0)

    return float(optimize.brentq(excess, 0.2, 0.6))


def noise_area(fwhm: Array | float, pixel: float) -> Array:
    """Pixels of sky noise in the PSF flux of a faint source, 1 / sum(P^2) of this PSF, for FWHM in arcsec."""
    sigma = _core_width() * np.asarray(fwhm) / pixel
    a, b, s = 1 - SECOND_FLUX, SECOND_FLUX, SECOND_SIZE
    inverse = (a**2 + b**2 / s**2 + 4 * a * b / (1 + s**2)) / (4 * np.pi * sigma**2)
    return np.asarray(1 / (inverse * (1 - WING_FLUX) ** 2))


@lru_cache(8)
def _frequencies(survey: Survey) -> tuple[Image, Image, int]:
    """Cycles per arcsec along x [1, K] and y [G, 1] of the image, and the grid's side G."""
    wide = survey.size + MARGIN * max(band.seeing for band in survey.bands.values()) / survey.pixel
    side = 4 * fft.next_fast_len(int(wide / 4 + 1), real=True) * survey.oversample
    step = survey.pixel / survey.oversample
    kx = np.fft.rfftfreq(side, step)[None, :]
    ky = np.fft.fftfreq(side, step)[:, None]
    return kx.astype(np.float32), ky.astype(np.float32), side


def _optics(survey: Survey, fwhm: Array, e1: Array, e2: Array) -> Image:
    """Transfer functions [n, G, K] of elliptical PSFs."""
    kx, ky, _ = _frequencies(survey)
    stretched = (
        (1 + e1)[:, None, None].astype(np.float32) * kx**2
        + (1 - e1)[:, None, None].astype(np.float32) * ky**2
        + 2 * e2[:, None, None].astype(np.float32) * (kx * ky)
    )
    sigma = (_core_width() * fwhm).astype(np.float32)[:, None, None]
    core = np.exp(-2 * np.pi**2 * sigma**2 * stretched)
    second = np.square(np.square(core))  # twice as wide: the fourth power
    wing = np.exp(-2 * np.pi * WING_SIZE * fwhm.astype(np.float32)[:, None, None] * np.sqrt(stretched))
    result = np.float32(1 - WING_FLUX) * (np.float32(1 - SECOND_FLUX) * core + np.float32(SECOND_FLUX) * second)
    return np.asarray(result + np.float32(WING_FLUX) * wing, np.float32)


def _shift(survey: Survey, x: Array, y: Array) -> NDArray[np.complex64]:
    """Phases [n, G, K] that put a source at (x, y) arcsec from pixel [0, 0]."""
    kx, ky, _ = _frequencies(survey)
    along = np.exp(-2j * np.pi * kx * x[:, None]).astype(np.complex64)
    up = np.exp(-2j * np.pi * ky[:, 0] * y[:, None]).astype(np.complex64)
    return np.asarray(up[:, :, None] * along[:, None, :])


def _sky_frequencies(survey: Survey, rotation: float) -> tuple[Array, Array]:
    """Frequencies towards west and north for an image whose +y axis points `rotation` degrees east of north."""
    kx, ky, _ = _frequencies(survey)
    cos, sin = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    return np.asarray(cos * kx - sin * ky, float), np.asarray(sin * kx + cos * ky, float)


def _scene(survey: Survey, sources: Sequence[Source], rotation: float) -> NDArray[np.complex64]:
    """Transforms [band, G, K] of everything that does not change, about the changing source."""
    kx, ky, _ = _frequencies(survey)
    west, north = _sky_frequencies(survey, rotation)
    cos, sin = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    total = np.zeros((len(survey.bands), *west.shape), np.complex64)
    for source in sources:
        # A shift is a product of one factor per axis.
        x, y = cos * source.west + sin * source.north, cos * source.north - sin * source.west
        wave = np.exp(-2j * np.pi * y * ky).astype(np.complex64) * np.exp(-2j * np.pi * x * kx).astype(np.complex64)
        if source.profile is not None:
            wave *= source.profile.transform(west, north).astype(np.float32)
        total += source.fluxes[:, None, None].astype(np.float32) * wave
    return total


def _scenes(survey: Survey, sources: Sequence[Source], visits: Visits) -> NDArray[np.complex64]:
    """Transforms [n, G, K] for every exposure."""
    if not survey.turns:
        return np.asarray(_scene(survey, sources, 0.0)[visits.band])
    by_angle = {angle: _scene(survey, sources, angle) for angle in np.unique(visits.rotation)}
    return np.stack([by_angle[angle][band] for angle, band in zip(visits.rotation, visits.band, strict=True)])


def _images(survey: Survey, transforms: NDArray[np.complex64]) -> Image:
    """Stamps [n, size, size] from transforms."""
    side = transforms.shape[1]
    if survey.oversample == 2:
        transforms, side = _fold(transforms), side // 2
    elif survey.oversample != 1:
        raise NotImplementedError("images are drawn on the stamp's grid or on one twice as fine")
    return np.asarray(fft.irfft2(transforms, s=(side, side))[:, : survey.size, : survey.size])


def _fold(transforms: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Transforms of every second pixel, twice along each axis: frequencies beyond the coarser limit alias into it.

    Pixels keep flux per coarse pixel, because a quarter of the pixels hold the sum of four aliases.
    """
    side = transforms.shape[1]
    rows = transforms[:, : side // 2] + transforms[:, side // 2 :]
    quarter = side // 4
    low = rows[:, :, : quarter + 1].copy()
    # The real image has F(-k) = F(k)*; after the rows were folded, -ky is the row side/2 - ky.
    mirrored = np.roll(rows[:, ::-1, quarter:], 1, axis=1)[:, :, ::-1]
    low += np.conj(mirrored)
    return low


@dataclass(frozen=True)
class _Exposures:
    """What the camera would record without noise: images [n, size, size], the transforms they came from, and the place
    of the source in its stamps, [2, n] arcsec from pixel [0, 0]."""

    psf: Image
    still: Image
    beam: NDArray[np.complex64]
    scenes: NDArray[np.complex64]
    place: Array


def _expose(
    rng: np.random.Generator, survey: Survey, visits: Visits, sources: Sequence[Source], amount: float
) -> _Exposures:
    e1, e2 = rng.normal(0, ELLIPTICITY, (2, len(visits)))
    jitter = rng.normal(0, survey.astrometric_error, (2, len(visits))) * amount
    if survey.whole_pixels:
        jitter += rng.uniform(-0.5, 0.5, jitter.shape) * survey.pixel * amount
    place = (survey.size // 2) * survey.pixel + jitter
    beam = _optics(survey, visits.seeing, e1, e2) * _shift(survey, *place)
    scenes = _scenes(survey, sources, visits)
    return _Exposures(_images(survey, beam), _images(survey, beam * scenes), beam, scenes, place)


def point_images(rng: np.random.Generator, survey: Survey, fwhm: Array, offset: Array) -> Image:
    """Point sources of flux 1, [n, size, size].

    Args:
        fwhm: [n] arcsec.
        offset: [2, n] arcsec, (x, y) from the middle pixel.
    """
    e1, e2 = rng.normal(0, ELLIPTICITY, (2, len(fwhm)))
    place = (survey.size // 2) * survey.pixel + offset
    return _images(survey, _optics(survey, fwhm, e1, e2) * _shift(survey, *place))


def _column(values: Array) -> Image:
    """[n] -> float32 [n, 1, 1]."""
    return np.asarray(values, np.float32)[:, None, None]


def render(
    rng: np.random.Generator,
    survey: Survey,
    visits: Visits,
    sources: Sequence[Source],
    flux: Array,
    reference: Array,
    *,
    perfect: bool = False,
) -> Rendered:
    """The stamps of one object and their PSF photometry.

    Args:
        visits: n exposures.
        sources: the constant scene.
        flux: [n] nJy, of the point source in each exposure.
        reference: [n] nJy, its flux in the template.
        perfect: no defects, astrometric or calibration errors (for tests); noise stays.
    """
    amount = 0.0 if perfect else 1.0
    seen = _expose(rng, survey, visits, sources, amount)
    clean = seen.still + _column(flux) * seen.psf
    gain = _column(1 + rng.normal(0, survey.calibration_error, len(visits)) * amount)
    noise: Image = np.sqrt(_column(visits.noise) ** 2 + np.maximum(clean, 0) / _electrons(survey, visits))
    science: Image = gain * clean + noise * rng.standard_normal(clean.shape, dtype=np.float32)
    if not perfect:
        add_defects(rng, survey, visits, science)
    template = difference = None
    unlike: Image = science - gain * (seen.still + _column(reference) * seen.psf)
    if survey.template_visits:
        template, mismatch = _template(rng, survey, visits, seen, reference, amount)
        unlike = difference = unlike + mismatch
        # Where the camera has no pixel there is nothing to subtract a template from.
        difference[science == 0] = 0
    measured, error = psf_photometry(unlike, seen.psf, noise)
    error = np.hypot(error, survey.calibration_error * amount * np.abs(measured))
    return Rendered(science, template, difference, clean, seen.psf, measured, error)


def render_measured(
    rng: np.random.Generator,
    survey: Survey,
    visits: Visits,
    sources: Sequence[Source],
    flux: Array,
    error: Array,
    reference: Array,
) -> tuple[Rendered, Array]:
    """Stamps whose PSF photometry **is** a given light curve: flux and error of a measurement come out as they went in.

    The noise of each stamp is scaled so that its PSF flux has the measured error (as far as a bad night explains it;
    the rest is calibration and cannot be seen in one stamp), and its projection on the PSF is taken out, because the
    measured flux holds its own noise already.

    Args:
        flux, error: [n] nJy, as measured.
        reference: [n] nJy, the part of `flux` that is in the template.

    Returns:
        the images, and the sky noise they have, [n] nJy per pixel.
    """
    seen = _expose(rng, survey, visits, sources, 1.0)
    photons = np.maximum(seen.still + _column(np.maximum(flux, 0)) * seen.psf, 0) / _electrons(survey, visits)
    weight = seen.psf / np.einsum("nyx,nyx->n", seen.psf, seen.psf)[:, None, None]
    from_photons = np.einsum("nyx,nyx->n", weight**2, photons, dtype=float)
    per_sky = np.einsum("nyx,nyx->n", weight, weight, dtype=float)
    # At least a fifth of the variance is the sky's; where photons alone explain the error they are scaled down.
    share = np.minimum(1, 0.8 * error**2 / np.maximum(from_photons, 1e-9))
    sky = np.minimum(np.sqrt((error**2 - share * from_photons) / per_sky), WORST_SKY * visits.noise)
    noise: Image = np.sqrt(_column(sky) ** 2 + _column(share) * photons)
    grain = noise * rng.standard_normal(noise.shape, dtype=np.float32)
    grain -= np.einsum("nyx,nyx->n", weight, grain)[:, None, None] * seen.psf
    clean = seen.still + _column(flux) * seen.psf
    science: Image = clean + grain
    unlike: Image = science - seen.still - _column(reference) * seen.psf
    template = difference = None
    if survey.template_visits:
        template, _ = _template(rng, survey, visits, seen, reference, 0.0)
        difference = unlike
    measured, _ = psf_photometry(unlike, seen.psf, noise)
    return Rendered(science, template, difference, clean, seen.psf, measured, error), sky


def psf_photometry(images: Image, psf: Image, noise: Image) -> tuple[Array, Array]:
    """Flux and error [n] of a point source of known place and PSF, unweighted; NaN pixels are left out."""
    known = np.isfinite(images)
    p = np.where(known, psf, 0)
    norm = np.einsum("nyx,nyx->n", p, p, dtype=float)
    flux = np.einsum("nyx,nyx->n", p, np.where(known, images, 0), dtype=float) / norm
    error = np.sqrt(np.einsum("nyx,nyx->n", p**2, noise**2, dtype=float)) / norm
    return flux, error


def _electrons(survey: Survey, visits: Visits) -> Image:
    each = np.array([band.electrons for band in survey.bands.values()])[visits.band]
    return np.asarray((each * visits.depth)[:, None, None], np.float32)


def _template(
    rng: np.random.Generator,
    survey: Survey,
    visits: Visits,
    seen: _Exposures,
    reference: Array,
    amount: float,
) -> tuple[Image, Image]:
    """Template stamps, sharper and deeper than the visits, and what they leave behind when they are subtracted.

    A registration error of (dx, dy) and a relative PSF error m leave, to first order,
    (dx d/dx + dy d/dy) - m FWHM d/dFWHM of the scene: products with the frequency in Fourier space.
    """
    bands = list(survey.bands.values())
    everything = seen.scenes + _column(reference)
    quiet = np.array([band.sky_noise for band in bands])[visits.band] / np.sqrt(survey.template_visits)
    first = _first_of_each(visits)
    grain = _column(quiet[first]) * _grain(rng, survey, len(first))
    which = np.searchsorted(_template_of(visits)[first], _template_of(visits))
    # one image for all epochs of a band, but where the survey cuts every exposure, and its template, at whole pixels
    drawn, index = (np.arange(len(visits)), slice(None)) if survey.whole_pixels else (first, which)
    template = (_sharp(survey, visits, seen, everything, drawn) + grain[which[drawn]])[index]
    # The subtracted template is convolved to the visit's PSF, which evens its noise out.
    blurred = 0.5 * _column(quiet) * rng.standard_normal(template.shape, dtype=np.float32)
    dx, dy = rng.normal(0, survey.registration * survey.pixel, (2, len(visits))) * amount
    wider = rng.normal(0, survey.match, len(visits)) * amount
    kx, ky, _ = _frequencies(survey)
    width = _column(wider * (2 * np.pi * _core_width() * visits.seeing) ** 2)
    moved = 2j * np.pi * (_column(dx) * kx + _column(dy) * ky) + width * (kx**2 + ky**2)
    residual = _images(survey, (seen.beam * everything * moved).astype(np.complex64))
    return template, residual - blurred


def _sharp(
    survey: Survey, visits: Visits, seen: _Exposures, everything: NDArray[np.complex64], drawn: NDArray[np.intp]
) -> Image:
    """Template stamps without noise, of some exposures; in better seeing than the median of their band."""
    sharp = np.array([0.92 * band.seeing for band in survey.bands.values()])[visits.band[drawn]]
    middle = np.full((2, len(drawn)), (survey.size // 2) * survey.pixel)
    none = np.zeros(len(drawn))
    place = seen.place[:, drawn] if survey.whole_pixels else middle
    return _images(survey, _optics(survey, sharp, none, none) * _shift(survey, *place) * everything[drawn])


def _grain(rng: np.random.Generator, survey: Survey, n: int) -> Image:
    """Noise of unit variance, [n, size, size], that neighbours share as far as resampling made them."""
    white = rng.standard_normal((n, survey.size, survey.size), dtype=np.float32)
    if not survey.grain[1]:
        return white
    share = np.float32(rng.uniform(*survey.grain))
    for axis in (1, 2):
        white = white + share * (np.roll(white, 1, axis) + np.roll(white, -1, axis))
    return np.asarray(white / (1 + 2 * share**2), np.float32)


def _template_of(visits: Visits) -> NDArray[np.int64]:
    """Number of the template cut-out of each exposure: one per band, or one per exposure where the camera turns."""
    return np.arange(len(visits)) if np.any(visits.rotation) else visits.band


def _first_of_each(visits: Visits) -> NDArray[np.intp]:
    return np.unique(_template_of(visits), return_index=True)[1]


def add_defects(rng: np.random.Generator, survey: Survey, visits: Visits, images: Image) -> None:
    """Saturation, cosmic rays, bad columns and chip edges, in place."""
    n = len(images)
    along_x = abs(survey.column_angle - 90) < 45
    area = survey.size**2 / 64**2
    _saturate(survey, visits, images, along_x)
    for at in np.flatnonzero(rng.random(n) < COSMIC_RAY * area):
        _cosmic_ray(rng, images[at], float(visits.noise[at]))
    for at in np.flatnonzero(rng.random(n) < BAD_COLUMN * area):
        line, level = _away_from_source(rng, survey), rng.normal(0, 8) * visits.noise[at]
        (images[at].T if not along_x else images[at])[line] += np.float32(level)
    for at in np.flatnonzero(rng.random(n) < CHIP_EDGE * area):
        width = int(rng.integers(1, survey.size // 2 - CLEAR))
        view = images[at].T if rng.random() < 0.5 else images[at]
        beyond = slice(None, width) if rng.random() < 0.5 else slice(-width, None)
        view[beyond] = np.nan if rng.random() < 0.5 else 0


def _away_from_source(rng: np.random.Generator, survey: Survey) -> int:
    """A line of pixels that leaves the source free."""
    line = int(rng.integers(survey.size - 2 * CLEAR))
    return line if line < survey.size // 2 - CLEAR else line + 2 * CLEAR


def _saturate(survey: Survey, visits: Visits, images: Image, along_x: bool) -> None:
    """Clip at the full well and let the charge bleed along the columns."""
    bands = list(survey.bands.values())
    full = np.array([_full_well(survey, band.seeing) for band in bands])[visits.band].astype(np.float32)
    for at in np.flatnonzero(images.max(axis=(1, 2)) > full):
        view = images[at] if along_x else images[at].T
        for line in np.flatnonzero((view > full[at]).any(1)):
            row = view[line]
            over = row > full[at]
            spilled = float((row[over] - full[at]).sum() / full[at])
            middle = float(np.flatnonzero(over).mean())
            reach = (over.sum() + min(spilled, 4 * len(row))) / 2
            row[np.abs(np.arange(len(row)) - middle) <= reach] = full[at]


def _full_well(survey: Survey, seeing: float) -> float:
    """nJy in the middle pixel of a star that just saturates."""
    sigma = _core_width() * seeing / survey.pixel
    peak = (1 - SECOND_FLUX + SECOND_FLUX / SECOND_SIZE**2) / (2 * np.pi * sigma**2)
    return float(10 ** (0.4 * (AB_ZERO - survey.saturation)) * min(peak, 0.7))


def _cosmic_ray(rng: np.random.Generator, image: Image, noise: float) -> None:
    """A straight track of sharp pixels, without those at the source."""
    length, angle = rng.integers(1, 9), rng.uniform(0, 2 * np.pi)
    steps = np.arange(length)
    x = np.rint(rng.uniform(0, image.shape[1]) + steps * np.cos(angle)).astype(int)
    y = np.rint(rng.uniform(0, image.shape[0]) + steps * np.sin(angle)).astype(int)
    inside = (x >= 0) & (x < image.shape[1]) & (y >= 0) & (y < image.shape[0])
    inside &= np.hypot(x - image.shape[1] // 2, y - image.shape[0] // 2) > CLEAR
    image[y[inside], x[inside]] += np.float32(noise * 10 ** rng.uniform(1, 2.3)) * rng.uniform(0.5, 1, inside.sum())
