"""Semi-real objects: simulated sources injected into real template stamps, with the packet's PSF width, noise, position
on the sky and catalogues. The variable source is simulated; everything constant is real.

A scene is one packet of an archive of real packets (`skyheed archive build-packets`). Objects injected into it are in
the split of the packet's object, so that no template is in more than one split.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from skyheed.classifier.archives.extras import Extras
from skyheed.classifier.archives.reader import Archive, split_of, stamp_rows
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.sky.image_statistics import FWHM, sky_noise, star_width
from skyheed.classifier.sky.objects import Observed, expected_error, stated_error
from skyheed.classifier.sky.packets import chosen, photometry, seasons_past
from skyheed.classifier.sky.render import point_images
from skyheed.classifier.sky.spectra import Array, magnitude_to_njy, njy_to_magnitude
from skyheed.classifier.sky.surveys import Survey
from skyheed.classifier.sky.targets import DETECTION
from skyheed.classifier.stamp import STAMP_SIZE

BLANK = 0.15  # fraction of pixels above which a template counts as cut by the edge of its chip
NEAR = 1.2  # arcsec within which a catalogue source is the variable source itself
HOST = 12.0  # arcsec within which a galaxy may be the host of a supernova
STAR, GALAXY = 0.8, 0.4  # star scores above and below which a source is taken to be a star or a galaxy
NOISE_NIGHT = 0.25  # scatter of nightly noise about the packet's (ln)
TEMPLATE_FWHM = 2.2  # pixels; science stamps are never sharper than this
TRIES = 60
OWN = ("detections", "visits", "age_days", "magnitude_over_reference")  # context determined by the injected source
Image = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """One real packet.

    Attributes:
        template: [32, 32] nJy per pixel, finite; the packet's source in pixel [16, 16].
        fwhm: pixels; noise: nJy per pixel, both of the science stamp.
        context: from the packet.
        kinds: classes whose sources may be injected there.
    """

    object_id: str
    band: str
    template: Image
    fwhm: float
    noise: float
    ra: float
    dec: float
    context: Mapping[str, float]
    kinds: frozenset[str]

    @property
    def split(self) -> str:
        return split_of(self.object_id)


def scenes_of(path: str | Path, survey: Survey) -> list[Scene]:
    """The scenes of an archive of real packets, one per object.

    Raises:
        ArchiveError: it is not such an archive, is of another survey, or has no usable template.
    """
    archive = Archive(path)
    if not archive.normalised or "template" not in archive.kinds:
        raise ArchiveError(f"{path} is not an archive of packets with templates: make one with `archive build-packets`")
    if archive.card["surveys"] != [survey.name]:
        raise ArchiveError(f"the packets of {path} are of {', '.join(archive.card['surveys'])}, not of {survey.name}")
    found = [scene for name in archive.object_ids if (scene := _scene(archive, name, survey)) is not None]
    if not found:
        raise ArchiveError(f"{path} has no packet whose template can be painted on")
    return found


def _scene(archive: Archive, name: str, survey: Survey) -> Scene | None:
    extras, thing = archive.extras(name), archive.object(name)
    row = archive.stamps(name, kinds=("stamp", "template"))[0]
    template = row["template"].astype(np.float32)
    noise = float(row["sky_noise"])
    blank = (template == 0)[_covered(survey)].mean()
    usable = np.isfinite(template).all() and blank < BLANK and str(row["band"]) in survey.bands
    if extras is None or not usable or not sky_noise(template) < noise:
        return None
    width = star_width(row["stamp"], sky_noise(row["stamp"]))
    fwhm = width if np.isfinite(width) else survey.bands[str(row["band"])].seeing / survey.pixel
    place = (thing["ra"], thing["dec"])
    kinds = suits(extras.context[0])
    return Scene(name, str(row["band"]), template, max(fwhm, TEMPLATE_FWHM), noise, *place, extras.context[0], kinds)


def _covered(survey: Survey) -> NDArray[np.bool_]:
    """The pixels of a stamp that the survey's images cover at any angle; corners of turned small ones are blank."""
    if not survey.turns:
        return np.ones((STAMP_SIZE, STAMP_SIZE), bool)
    y, x = np.indices((STAMP_SIZE, STAMP_SIZE)) - STAMP_SIZE // 2
    return np.asarray(np.hypot(x, y) < survey.size / 2 - 1)


def suits(context: Mapping[str, float]) -> frozenset[str]:
    """The classes whose sources can occur at such a position: variables on stars, AGN and supernovae in galaxies, and
    supernovae where no source is near."""
    distance = context.get("catalogue_1_distance", np.inf)
    score = context.get("catalogue_1_star", 0.5)
    near = context.get("reference_distance", np.inf) < NEAR
    if near and distance < NEAR and score > STAR:
        return frozenset({"Variable"})
    if score < GALAXY and distance < HOST:
        return frozenset({"AGN", "SNIa", "SNOther"} if near and distance < NEAR else {"SNIa", "SNOther"})
    return frozenset({"SNIa", "SNOther"}) if not near and distance > NEAR else frozenset()


def suited(rng: np.random.Generator, scenes: Sequence[Scene], label: str) -> Scene:
    """A scene for an object of a class.

    Raises:
        ArchiveError: no scene is suitable.
    """
    possible = [scene for scene in scenes if label in scene.kinds]
    if not possible:
        kinds = sorted(set().union(*(scene.kinds for scene in scenes)))
        there = {"AGN": "a galaxy", "Variable": "a star"}.get(label, "a galaxy or nothing")
        raise ArchiveError(
            f"none of the {len(scenes)} scenes suits the class {label}; they suit {', '.join(kinds) or 'none'}. Add "
            f"packets whose catalogue has {there} at the object's position (not every survey's name one), or leave "
            "the class out with --mixture"
        )
    return possible[int(rng.integers(len(possible)))]


def name_in(split: str, name: str) -> str:
    """The name with the first suffix that puts it into the split."""
    return next(name + ending for ending in _endings() if split_of(name + ending) == split)


def _endings() -> Iterator[str]:
    yield ""
    for number in range(10_000):
        yield f"-{number}"


def scaled(seen: Observed, scene: Scene, survey: Survey) -> Observed | None:
    """The object scaled to the brightness that the template shows; None if the template cannot constrain it.

    The template already contains the mean flux of a variable or a nucleus: the packet's reference magnitude. A
    supernova is unchanged.
    """
    target = seen.target
    if target.label.startswith("SN"):
        return replace(seen, ra=scene.ra, dec=scene.dec)
    magnitude = scene.context.get("reference_magnitude")
    here = seen.visits.band == list(survey.bands).index(scene.band)
    if magnitude is None or not here.any():
        return None
    mean = float(target.reference[here].mean())
    scale = float(magnitude_to_njy(magnitude)) / mean if mean > 0 else np.nan
    if not np.isfinite(scale):
        return None
    target = replace(target, flux=target.flux * scale, reference=target.reference * scale)
    return replace(seen, target=target, ra=scene.ra, dec=scene.dec)


def painted(
    rng: np.random.Generator, survey: Survey, seen: Observed, scene: Scene, first_id: int, most: int
) -> tuple[NDArray[np.void], Extras] | None:
    """The alerts of an object injected into a scene, model-ready; None if it is not detected in the scene's band."""
    visits, change = seen.visits, seen.target.flux - seen.target.reference
    error = stated_error(rng, survey, visits, seen.target.flux, change)
    flux = change + expected_error(survey, visits, seen.target.flux) * rng.standard_normal(len(visits))
    here = visits.band == list(survey.bands).index(scene.band)
    detected = np.abs(flux) > DETECTION * error
    sent = chosen(rng, np.flatnonzero(detected & here), most)
    if not len(sent):
        return None
    noise = scene.noise * np.exp(rng.normal(0, NOISE_NIGHT, len(sent)))
    width = np.maximum(scene.fwhm * np.exp(rng.normal(0, survey.seeing_night / 2, len(sent))), TEMPLATE_FWHM)
    pixels = _paint(rng, survey, scene, flux[sent], width, noise)
    rows = stamp_rows(
        pixels,
        {
            "source_id": first_id + sent, "mjd": visits.mjd[sent], "band": np.full(len(sent), scene.band),
            "detected": np.ones(len(sent), bool), "alert": np.ones(len(sent), bool), "flux": flux[sent],
            "flux_error": error[sent], "source_flux": seen.target.flux[sent], "psf_fwhm": width * survey.pixel,
            "sky_noise": noise, "zero_point": np.full(len(sent), np.nan),
        },
    )  # fmt: skip
    points = photometry(rng, survey, visits, (flux, error, detected), sent)
    return rows, Extras(points, _contexts(rng, survey, seen, scene, (flux, error), sent))


def _paint(
    rng: np.random.Generator, survey: Survey, scene: Scene, flux: Array, width: Array, noise: Array
) -> dict[str, Image]:
    """Science, template and difference, [n, 32, 32] nJy; all are turned and flipped in the same way."""
    template = turned_about_the_source(scene.template, int(rng.integers(4)), bool(rng.random() < 0.5))
    place = rng.uniform(-0.5, 0.5, (2, len(flux))) if survey.whole_pixels else np.zeros((2, len(flux)))
    source = _framed(point_images(rng, survey, width * survey.pixel, place * survey.pixel))
    source = source * flux.astype(np.float32)[:, None, None]
    wider = np.sqrt(np.maximum(width**2 - TEMPLATE_FWHM**2, 0)) / FWHM
    still = np.stack([ndimage.gaussian_filter(template, sigma, mode="nearest") for sigma in wider])
    grain = noise.astype(np.float32)[:, None, None] * rng.standard_normal(source.shape, dtype=np.float32)
    change = np.where(template == 0, 0, source + grain)  # what the template does not cover, no image of its camera does
    return {
        "stamp": np.where(template == 0, 0, still) + change, "template": np.repeat(template[None], len(flux), 0),
        "difference": change,
    }  # fmt: skip


def _framed(images: Image) -> Image:
    """Square images [n, size, size] cut to a stamp's pixels, or with a blank border, their centre in pixel [16, 16]."""
    size = images.shape[1]
    first = size // 2 - STAMP_SIZE // 2
    if first >= 0:
        return images[:, first : first + STAMP_SIZE, first : first + STAMP_SIZE]
    border = -first, STAMP_SIZE - size + first
    return np.pad(images, ((0, 0), border, border))


def turned_about_the_source(image: Image, quarters: int, flipped: bool) -> Image:
    """A stamp of even side rotated by quarter turns and flipped, with the source still in pixel [n // 2, n // 2]."""
    odd = np.pad(image, ((0, 1), (0, 1)), mode="edge")
    odd = np.rot90(odd, quarters)
    return np.ascontiguousarray((odd[:, ::-1] if flipped else odd)[:-1, :-1])


def _contexts(
    rng: np.random.Generator, survey: Survey, seen: Observed, scene: Scene, measured: tuple[Array, Array],
    sent: NDArray[np.intp],
) -> list[dict[str, float]]:  # fmt: skip
    """The scene's own context, with the history and brightness of the injected source."""
    kept = {name: value for name, value in scene.context.items() if name not in OWN}
    found = []
    for at, past in zip(sent, seasons_past(rng, survey, seen, measured, sent), strict=True):
        own: dict[str, float] = dict(past)
        if "reference_magnitude" in kept:
            magnitude = float(njy_to_magnitude(abs(measured[0][at])))
            own["magnitude_over_reference"] = magnitude - kept["reference_magnitude"]
        found.append({**kept, **own})
    return found
