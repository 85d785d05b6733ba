"""Catalogue entries around an object: the survey's own reference sources, and a deeper catalogue of stars and
galaxies, with realistic errors, confusion and gaps. Names as in `classifier.context`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from skyheed.classifier.context import CATALOGUE, QUANTITIES, known
from skyheed.classifier.sky.scene import Content
from skyheed.classifier.sky.spectra import Array
from skyheed.classifier.sky.surveys import AB_ZERO, Survey
from skyheed.classifier.sky.targets import Target

REFERENCE_LIMIT = (22.4, 0.4)  # r magnitude limit of reference sources, and its scatter from field to field
CATALOGUE_LIMIT, CATALOGUE_EDGE = 22.3, 0.5  # r magnitude of half completeness, and the width of the decline
RADIUS = 30.0  # arcsec, within which the catalogue's sources are listed
ALERT_ERROR, CATALOGUE_ERROR = 0.19, 0.16  # arcsec, each coordinate
REFERENCE_FWHM, SHARP_FWHM = 2.2, 1.3  # arcsec: seeing of ZTF's reference images and of Pan-STARRS
BLEND = 1.5  # arcsec within which a catalogue blends sources into one
# Of 1,069 catalogue sources in 443 real ZTF packets, 8 to 19 % have the score 0.5 that means "unknown"; of the others,
# 7 in 8 have a score above 0.7 at r = 15 to 17, and 1 in 4 at r = 21 to 22.
NO_SCORE = 0.14
SHARP, CONFUSED = 4.8, 0.55  # logit of a star's score when bright, and at r = 22.5
SCORE_SCATTER = 1.6
NO_COLOUR = 0.08  # probability that a band of a source is missing; for fragments of a galaxy `RAGGED`
RAGGED = 0.4
SHREDS = 0.45  # fragments of a galaxy in the catalogue, per arcsec of its half-light radius
GALAXY_SHAPE = 0.62  # reference shape of a galaxy much larger than the PSF


@dataclass(frozen=True)
class Entry:
    """A source as listed in a catalogue.

    Attributes:
        west, north: arcsec from the true position of the variable source.
        magnitudes: g, r and i, AB; NaN where unknown.
        star: score, 0 galaxy to 1 star.
        shape: as measured in the reference image.
    """

    west: float
    north: float
    magnitudes: Array
    star: float
    shape: float


@dataclass(frozen=True)
class Field:
    """Entries of both catalogues around one object; the reference's magnitudes are in every band of the survey."""

    reference: Sequence[tuple[Entry, Array]]
    catalogue: Sequence[Entry]


def observe_field(
    rng: np.random.Generator, survey: Survey, target: Target, band: np.ndarray, contents: Sequence[Content]
) -> Field:
    """The catalogues of a field, with the variable source at its mean flux.

    Args:
        band: [n], of the exposures that `target.reference` belongs to.
    """
    own = _own(survey, target, band)
    things = [_thing(rng, survey, own, content) for content in _with_own(own, contents, target)]
    things += [shred for content in contents if content.galaxy for shred in _shreds(rng, survey, content)]
    limit = rng.normal(*REFERENCE_LIMIT)
    red = list(survey.bands).index("r")
    apart = _blended(things)
    reference = [(entry, fluxes) for entry, fluxes in apart if _magnitude(fluxes)[red] < limit]
    complete = [entry for entry, fluxes in apart if _is_catalogued(rng, entry, _magnitude(fluxes)[red])]
    says = rng.random(2) < (survey.referenced, survey.catalogued)
    return Field(reference if says[0] else [], complete if says[1] else [])


def _is_catalogued(rng: np.random.Generator, entry: Entry, magnitude: float) -> bool:
    chance = 1 / (1 + np.exp((magnitude - CATALOGUE_LIMIT) / CATALOGUE_EDGE * 2))
    return bool(rng.random() < chance and np.hypot(entry.west, entry.north) < RADIUS)


def _own(survey: Survey, target: Target, band: np.ndarray) -> Array:
    """Mean flux of the variable source, by band; for unobserved bands, that of the neighbouring wavelength."""
    seen = np.array(
        [target.reference[band == i].mean() if (band == i).any() else np.nan for i in range(len(survey.bands))]
    )
    known_bands = np.flatnonzero(np.isfinite(seen))
    return np.asarray(np.interp(np.arange(len(seen)), known_bands, seen[known_bands]))


def _with_own(own: Array, contents: Sequence[Content], target: Target) -> list[Content]:
    """The field with the variable source in it, if the template shows it and no host is listed there already."""
    if not own.any() or target.host is not None:
        return list(contents)
    return [Content(0.0, 0.0, own), *contents]


Thing = tuple[Entry, Array]  # as listed in the catalogue, and its PSF fluxes by band in the reference image


def _thing(rng: np.random.Generator, survey: Survey, own: Array, content: Content) -> Thing:
    """One source as both catalogues list it; an AGN's nucleus and its host are one source."""
    fluxes, nucleus = content.fluxes, 0.0
    if content.galaxy is not None and content.west == content.north == 0 and own.any():
        fluxes = fluxes + own
        nucleus = float(own[list(survey.bands).index("r")] / fluxes[list(survey.bands).index("r")])
    magnitude = float(_magnitude(fluxes)[list(survey.bands).index("r")])
    width = _width(content)
    extended = (1 - nucleus) * width**2 / (width**2 + survey.bands["r"].seeing ** 2 / 4)
    shape = GALAXY_SHAPE * extended + rng.normal(0, 0.025 + 0.12 * 10 ** (0.2 * (magnitude - 22)))
    west, north = content.west + rng.normal(0, CATALOGUE_ERROR), content.north + rng.normal(0, CATALOGUE_ERROR)
    # PSF flux: all light of a point source; for a galaxy the part within the PSF
    point, host = (own, content.fluxes) if nucleus else (np.zeros(len(own)), content.fluxes)
    reference, sharp = (point + host * _inside(width, fwhm) for fwhm in (REFERENCE_FWHM, SHARP_FWHM))
    score = _score(rng, content, nucleus, width, magnitude)
    return Entry(west, north, _measured(rng, survey, sharp, NO_COLOUR), score, shape), reference


def _inside(width: float, fwhm: float) -> float:
    """Fraction of the light of a galaxy with that half-light radius in its PSF flux (both in arcsec)."""
    return float((1 + (1.4 * width / fwhm) ** 2) ** -0.7)


def _width(content: Content) -> float:
    """Half-light radius, arcsec."""
    return content.galaxy.profiles[1].radius if content.galaxy else 0.0


def _score(rng: np.random.Generator, content: Content, nucleus: float, width: float, magnitude: float) -> float:
    """The star score: reliable when bright, confused when faint; compact galaxies look like stars, as do quasars."""
    if rng.random() < NO_SCORE:
        return 0.5
    sure = float(np.interp(magnitude, (16.5, 22.5), (SHARP, CONFUSED)))
    side = 1.0 if content.galaxy is None else np.clip(2.2 * (nucleus - 0.45), -1, 1)
    if content.galaxy is not None and nucleus < 0.2:
        side = -0.8 * np.clip(width / 0.6, 0.1, 1)
    return float(1 / (1 + np.exp(-sure * side + rng.normal(0, SCORE_SCATTER) * (1 - 0.6 * (sure > 3)))))


def _measured(rng: np.random.Generator, survey: Survey, fluxes: Array, missing: float) -> Array:
    """g, r and i with their errors; NaN if missing in the catalogue."""
    bands = list(survey.bands)
    true = _magnitude(fluxes)[[bands.index(name) for name in "gri"]]
    error = 0.03 + 0.06 * 10 ** (0.3 * (np.clip(true, 12, 24) - 21.5))
    return np.where(rng.random(3) < missing, np.nan, true + rng.normal(0, 1, 3) * error)


def _shreds(rng: np.random.Generator, survey: Survey, content: Content) -> list[Thing]:
    """Fragments into which a catalogue splits a large galaxy."""
    assert content.galaxy is not None
    found = []
    for _ in range(min(rng.poisson(SHREDS * _width(content)), 6)):
        west, north = content.galaxy.place(rng)
        fluxes = content.fluxes * 10 ** (-0.4 * rng.uniform(1.5, 5.0))
        magnitudes = _measured(rng, survey, fluxes, RAGGED) + rng.normal(0, 0.5, 3)
        score = 0.5 if rng.random() < 0.3 else float(rng.beta(0.6, 1.5))
        place = (content.west + west, content.north + north)
        found.append((Entry(*place, magnitudes, score, float(rng.normal(0.1, 0.35))), fluxes))
    return found


def _blended(things: Sequence[Thing]) -> list[Thing]:
    """Of sources closer than `BLEND`, only the brightest."""
    kept: list[Thing] = []
    for thing in sorted(things, key=lambda t: -float(t[1].sum())):
        if all(np.hypot(thing[0].west - k[0].west, thing[0].north - k[0].north) > BLEND for k in kept):
            kept.append(thing)
    return kept


def _magnitude(fluxes: Array) -> Array:
    return np.asarray(AB_ZERO - 2.5 * np.log10(np.maximum(fluxes, 1e-9)))


def context_of(
    rng: np.random.Generator,
    survey: Survey,
    field: Field,
    band: int,
    magnitude: float,
    others: Mapping[str, float],
) -> dict[str, float]:
    """The context in one alert's packet, as far as the survey's packets contain it.

    Args:
        band: index into the survey's bands.
        magnitude: magnitude of the absolute difference flux.
        others: values that are already known.
    """
    west, north = rng.normal(0, ALERT_ERROR, 2)
    said: dict[str, float | None] = dict(others)
    nearest = sorted((float(np.hypot(e.west - west, e.north - north)), i) for i, (e, _) in enumerate(field.reference))
    if nearest:
        distance, index = nearest[0]
        entry, fluxes = field.reference[index]
        faint = float(_magnitude(fluxes)[band]) + rng.normal(0, 0.04)
        said |= {"reference_distance": distance, "reference_magnitude": faint, "reference_shape": entry.shape}
        said["magnitude_over_reference"] = magnitude - faint
    distances = sorted((float(np.hypot(e.west - west, e.north - north)), i) for i, e in enumerate(field.catalogue))
    for k, (distance, index) in enumerate(distances[:CATALOGUE], 1):
        said |= _catalogued(k, distance, field.catalogue[index])
    return known({name: value for name, value in said.items() if name in told_by(survey.name)})


@lru_cache(8)
def told_by(survey: str) -> frozenset[str]:
    """The names of the values that a survey's packets contain."""
    return frozenset(quantity.name for quantity in QUANTITIES if survey in quantity.fields)


def _catalogued(k: int, distance: float, entry: Entry) -> dict[str, float]:
    g, r, i = (float(m) for m in entry.magnitudes)
    name = f"catalogue_{k}"
    return {
        f"{name}_distance": distance, f"{name}_star": entry.star, f"{name}_magnitude": r,
        f"{name}_gr": g - r, f"{name}_ri": r - i,
    }  # fmt: skip
