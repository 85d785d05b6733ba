"""One simulated object that the survey's search would have found."""

from dataclasses import dataclass

import numpy as np

from skyheed.classifier.sky.conditions import Visits, fields_at, visits_at
from skyheed.classifier.sky.factories import MAKERS
from skyheed.classifier.sky.populations import dust, place, population_of
from skyheed.classifier.sky.psf import noise_area
from skyheed.classifier.sky.render import Source
from skyheed.classifier.sky.scene import Content, contents, drawn
from skyheed.classifier.sky.spectra import Array, njy_to_magnitude
from skyheed.classifier.sky.stars import draw_kind
from skyheed.classifier.sky.surveys import Survey
from skyheed.classifier.sky.targets import DETECTION, Sight, Target, depth
from skyheed.classifier.sky.type_ia import STANDARD, IaTemplate

ATTEMPTS = 4000  # maximum number of draws until the search finds one
VISITS, FLARE_VISITS = 2, 1  # number of visits with a detection needed for a candidate
NOT_LATER = 2  # visits that must follow the first detection
# Stated errors of bright sources include a fraction of the flux: `Survey.bright_error` at this magnitude of the
# difference, falling to a fifth of it 5 mag brighter. From 338 real ZTF packets: 0.025 mag at 14, 0.07 at 17.
BRIGHT_FROM, BRIGHT_RISE, BRIGHT_SCATTER = 17.0, 3.0, 0.35


@dataclass(frozen=True)
class Observed:
    """An object with its exposures and the scene around it; `b` is its absolute galactic latitude, degrees."""

    target: Target
    ra: float
    dec: float
    b: float
    visits: Visits
    sources: list[Source]
    contents: list[Content]


@dataclass(frozen=True)
class Wish:
    """What the archive needs: a label, the true class, and whether a spectrum confirms it."""

    label: str
    truth: str
    confirmed: bool


def observe(
    rng: np.random.Generator, survey: Survey, seed: int, season: int, wish: Wish, template: IaTemplate = STANDARD
) -> Observed:
    """Draw objects until one of them would have been found in that season."""
    finds = population_of(survey)
    # The kind of star is drawn once, so that kinds that are hard to find do not become rare.
    kind = draw_kind(rng, finds.stars) if finds.latitude and wish.truth == "Variable" else ""
    ra, dec, b = place(rng, survey, kind)
    visits = visits_at(rng, survey, season, seed, ra, fields_at(rng, survey))
    if not finds.latitude and wish.truth == "Variable":
        kind = draw_kind(rng, finds.stars)
    reddening = dust(rng, survey, b, kind)
    sight = Sight(survey, visits, reddening, _limit(rng, survey, wish), template, kind, b)
    needed = FLARE_VISITS if kind == "flare" else VISITS
    for _ in range(ATTEMPTS):
        target = MAKERS[wish.truth](rng, sight)
        if target is None or not _spectrum_as_wished(rng, survey, target, wish):
            continue
        if is_found(survey, visits, target.flux, target.reference, needed):
            field = contents(rng, survey, target, reddening, b)
            return Observed(target, ra, dec, b, visits, drawn(survey, field), field)
    raise RuntimeError(f"no {wish.truth} that {survey.name} would find in {ATTEMPTS} draws")


def _limit(rng: np.random.Generator, survey: Survey, wish: Wish) -> float:
    """The faintest magnitude worth drawing: the survey's limit; with a spectrum, where hardly any get one."""
    finds, supernova = population_of(survey), wish.truth in ("SNIa", "SNOther")
    limit = depth(survey)
    if finds.limits is not None and supernova:
        limit = float(rng.uniform(*finds.limits))
    middle, width = finds.spectrum
    return min(limit, middle + 4 * width if supernova and wish.confirmed else np.inf)


def _spectrum_as_wished(rng: np.random.Generator, survey: Survey, target: Target, wish: Wish) -> bool:
    if wish.truth not in ("SNIa", "SNOther"):
        return True
    middle, width = population_of(survey).spectrum
    taken = bool(rng.random() < 1 / (1 + np.exp(np.clip((target.bright - middle) / width, -50, 50))))
    return taken == wish.confirmed


def expected_error(survey: Survey, visits: Visits, flux: Array) -> Array:
    """Error of a PSF flux, nJy, without the host's photons."""
    electrons = np.array([band.electrons for band in survey.bands.values()])[visits.band] * visits.depth
    area = noise_area(visits.seeing, survey.pixel)
    return np.asarray(np.sqrt(visits.noise**2 * area + np.maximum(flux, 0) / electrons))


def stated_error(rng: np.random.Generator, survey: Survey, visits: Visits, flux: Array, change: Array) -> Array:
    """Error of a difference flux as stated by the survey, nJy: larger than the pixel noise alone implies."""
    noise = survey.error_scale * expected_error(survey, visits, flux)
    magnitude = np.nan_to_num(njy_to_magnitude(np.abs(change)), nan=99.0)
    share = survey.bright_error * np.clip((magnitude - BRIGHT_FROM) / (2 * BRIGHT_RISE) + 1, 0.2, 1.1)
    share = share * np.exp(rng.normal(0, BRIGHT_SCATTER, len(visits)))
    return np.asarray(np.hypot(noise, share * np.abs(change)))


def is_found(survey: Survey, visits: Visits, flux: Array, reference: Array, needed: int) -> bool:
    """Whether the search would have made a candidate: enough visits with detections, not only at the season's end."""
    searched = np.isin(visits.band, [i for i, name in enumerate(survey.bands) if name in survey.search])
    high = np.abs(flux - reference) > 1.2 * DETECTION * survey.error_scale * expected_error(survey, visits, flux)
    seen = np.unique(visits.visit[searched & high])
    every = np.unique(visits.visit)
    return len(seen) >= needed and int(np.searchsorted(every, seen[0])) + NOT_LATER < len(every)
