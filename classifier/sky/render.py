"""Stamps: a scene of galaxies, stars and one variable point source, as seen through the atmosphere and the camera.

Images are computed in Fourier space, where a Sersic profile, a point source, a sub-pixel shift and a PSF with wings are
all exact products; one inverse transform makes each stamp. All images of one object are computed together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from skyheed.classifier.sky.conditions import Visits
from skyheed.classifier.sky.defects import add_defects
from skyheed.classifier.sky.galaxies import Profile
from skyheed.classifier.sky.psf import ELLIPTICITY, Array, Image, core_width, frequencies, optics, shift
from skyheed.classifier.sky.surveys import Survey

WORST_SKY = 2.0  # noise of the worst nights still used, relative to a typical one


@dataclass(frozen=True)
class Source:
    """A constant source: a component of a galaxy, or a star (no profile).

    Attributes:
        west, north: arcsec from the variable source.
        fluxes: nJy, by band of the survey.
    """

    west: float
    north: float
    fluxes: Array
    profile: Profile | None = None


@dataclass(frozen=True)
class Rendered:
    """Images [n, size, size] in nJy per pixel, and their photometry, nJy [n].

    `psf` is a point source with flux 1; `clean` the science image without noise, defects or calibration error.
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


def _sky_frequencies(survey: Survey, rotation: float) -> tuple[Array, Array]:
    """Frequencies towards west and north for an image whose +y axis points `rotation` degrees east of north."""
    kx, ky, _ = frequencies(survey)
    cos, sin = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    return np.asarray(cos * kx - sin * ky, float), np.asarray(sin * kx + cos * ky, float)


def _scene(survey: Survey, sources: Sequence[Source], rotation: float) -> NDArray[np.complex64]:
    """Transforms [band, G, K] of all constant sources, relative to the variable source."""
    kx, ky, _ = frequencies(survey)
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

    Pixels keep flux per coarse pixel, because a quarter of the pixels contain the sum of four aliases.
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
    """Noise-free camera images [n, size, size], the transforms they came from, and the position of the source in its
    stamps, [2, n] arcsec from pixel [0, 0]."""

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
    beam = optics(survey, visits.seeing, e1, e2) * shift(survey, *place)
    scenes = _scenes(survey, sources, visits)
    return _Exposures(_images(survey, beam), _images(survey, beam * scenes), beam, scenes, place)


def point_images(rng: np.random.Generator, survey: Survey, fwhm: Array, offset: Array) -> Image:
    """Point sources with flux 1, [n, size, size].

    Args:
        fwhm: [n] arcsec.
        offset: [2, n] arcsec, (x, y) from the central pixel.
    """
    e1, e2 = rng.normal(0, ELLIPTICITY, (2, len(fwhm)))
    place = (survey.size // 2) * survey.pixel + offset
    return _images(survey, optics(survey, fwhm, e1, e2) * shift(survey, *place))


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
        perfect: no defects, astrometric or calibration errors (for tests); noise remains.
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
    """Stamps whose PSF photometry **equals** a given light curve, in flux and error.

    The noise of each stamp is scaled so that its PSF flux has the measured error (as far as a bad night can explain it;
    the rest is calibration and cannot be seen in one stamp), and its projection on the PSF is removed, because the
    measured flux already contains its own noise.

    Args:
        flux, error: [n] nJy, as measured.
        reference: [n] nJy, the part of `flux` that is in the template.

    Returns:
        the images, and their sky noise, [n] nJy per pixel.
    """
    seen = _expose(rng, survey, visits, sources, 1.0)
    photons = np.maximum(seen.still + _column(np.maximum(flux, 0)) * seen.psf, 0) / _electrons(survey, visits)
    weight = seen.psf / np.einsum("nyx,nyx->n", seen.psf, seen.psf)[:, None, None]
    from_photons = np.einsum("nyx,nyx->n", weight**2, photons, dtype=float)
    per_sky = np.einsum("nyx,nyx->n", weight, weight, dtype=float)
    # At least a fifth of the variance is sky noise; where photons alone explain the error they are scaled down.
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
    """Flux and error [n] of a point source of known position and PSF, unweighted; NaN pixels are left out."""
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
    """Template stamps, sharper and deeper than the visits, and the residuals that their subtraction leaves.

    A registration error of (dx, dy) and a relative PSF error m leave, to first order,
    (dx d/dx + dy d/dy) - m FWHM d/dFWHM of the scene: products with the frequency in Fourier space.
    """
    bands = list(survey.bands.values())
    everything = seen.scenes + _column(reference)
    quiet = np.array([band.sky_noise for band in bands])[visits.band] / np.sqrt(survey.template_visits)
    first = _first_of_each(visits)
    grain = _column(quiet[first]) * _grain(rng, survey, len(first))
    which = np.searchsorted(_template_of(visits)[first], _template_of(visits))
    # one image for all epochs of a band, unless the survey cuts every exposure and its template at whole pixels
    drawn, index = (np.arange(len(visits)), slice(None)) if survey.whole_pixels else (first, which)
    template = (_sharp(survey, visits, seen, everything, drawn) + grain[which[drawn]])[index]
    # The subtracted template is convolved to the visit's PSF, which smooths its noise.
    blurred = 0.5 * _column(quiet) * rng.standard_normal(template.shape, dtype=np.float32)
    dx, dy = rng.normal(0, survey.registration * survey.pixel, (2, len(visits))) * amount
    wider = rng.normal(0, survey.match, len(visits)) * amount
    kx, ky, _ = frequencies(survey)
    width = _column(wider * (2 * np.pi * core_width() * visits.seeing) ** 2)
    moved = 2j * np.pi * (_column(dx) * kx + _column(dy) * ky) + width * (kx**2 + ky**2)
    residual = _images(survey, (seen.beam * everything * moved).astype(np.complex64))
    return template, residual - blurred


def _sharp(
    survey: Survey, visits: Visits, seen: _Exposures, everything: NDArray[np.complex64], drawn: NDArray[np.intp]
) -> Image:
    """Noise-free template stamps for some exposures, with better seeing than the median of their band."""
    sharp = np.array([0.92 * band.seeing for band in survey.bands.values()])[visits.band[drawn]]
    middle = np.full((2, len(drawn)), (survey.size // 2) * survey.pixel)
    none = np.zeros(len(drawn))
    place = seen.place[:, drawn] if survey.whole_pixels else middle
    return _images(survey, optics(survey, sharp, none, none) * shift(survey, *place) * everything[drawn])


def _grain(rng: np.random.Generator, survey: Survey, n: int) -> Image:
    """Noise of unit variance, [n, size, size], correlated between neighbours as resampling makes it."""
    white = rng.standard_normal((n, survey.size, survey.size), dtype=np.float32)
    if not survey.grain[1]:
        return white
    share = np.float32(rng.uniform(*survey.grain))
    for axis in (1, 2):
        white = white + share * (np.roll(white, 1, axis) + np.roll(white, -1, axis))
    return np.asarray(white / (1 + 2 * share**2), np.float32)


def _template_of(visits: Visits) -> NDArray[np.int64]:
    """Index of the template cut-out for each exposure: one per band, or one per exposure if the camera rotates."""
    return np.arange(len(visits)) if np.any(visits.rotation) else visits.band


def _first_of_each(visits: Visits) -> NDArray[np.intp]:
    return np.unique(_template_of(visits), return_index=True)[1]
