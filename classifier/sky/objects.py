"""One simulated object as the survey's search would have found it."""

from dataclasses import dataclass

import numpy as np

from skyheed.classifier.sky.conditions import Visits, fields_at, visits_at
from skyheed.classifier.sky.makers import MAKERS
from skyheed.classifier.sky.render import Source, noise_area
from skyheed.classifier.sky.scene import surroundings
from skyheed.classifier.sky.spectra import Array
from skyheed.classifier.sky.stars import draw_kind
from skyheed.classifier.sky.surveys import Survey
from skyheed.classifier.sky.targets import DETECTION, DUST, Sight, Target, depth
from skyheed.classifier.sky.type_ia import STANDARD, IaTemplate

ATTEMPTS = 4000  # draws until one would have been found by the search
VISITS, FLARE_VISITS = 2, 1  # with a detection, that make a candidate
NOT_LATER = 2  # visits that must follow the first detection
# Chance of a spectrum against magnitude at peak: one half at this r, over this width (shape after Sako et al. 2018).
SPECTRUM = (20.6, 0.45)


@dataclass(frozen=True)
class Observed:
    """An object with its exposures and the scene around it."""

    target: Target
    ra: float
    dec: float
    visits: Visits
    sources: list[Source]


@dataclass(frozen=True)
class Wish:
    """What the archive needs: a label, the truth behind it, and whether a spectrum confirms it."""

    label: str
    truth: str
    confirmed: bool


def observe(
    rng: np.random.Generator, survey: Survey, seed: int, season: int, wish: Wish, template: IaTemplate = STANDARD
) -> Observed:
    """Draw objects until one of them would have been found in that season."""
    place = _place(rng, survey)
    visits = visits_at(rng, survey, season, seed, place[0], fields_at(rng, survey))
    # The kind of star is drawn once: kinds that are hard to find shall not be rare for it.
    kind = draw_kind(rng) if wish.truth == "Variable" else ""
    sight = Sight(survey, visits, DUST[0] * 10 ** rng.normal(0, DUST[1]), _limit(survey, wish), template, kind)
    for _ in range(ATTEMPTS):
        target = MAKERS[wish.truth](rng, sight)
        if target is None or not _spectrum_as_wished(rng, target, wish):
            continue
        if is_found(survey, visits, target.flux, target.reference, FLARE_VISITS if kind == "flare" else VISITS):
            return Observed(target, *place, visits, surroundings(rng, survey, target, sight.dust))
    raise RuntimeError(f"no {wish.truth} that {survey.name} would find in {ATTEMPTS} draws")


def _limit(survey: Survey, wish: Wish) -> float:
    """Nothing fainter than the survey sees, and for a spectrum nothing that hardly ever got one."""
    supernova = wish.truth in ("SNIa", "SNOther")
    return min(depth(survey), SPECTRUM[0] + 4 * SPECTRUM[1] if supernova and wish.confirmed else np.inf)


def _place(rng: np.random.Generator, survey: Survey) -> tuple[float, float]:
    low, high = np.sin(np.radians(survey.dec))
    return float(rng.uniform(*survey.ra) % 360), float(np.degrees(np.arcsin(rng.uniform(low, high))))


def _spectrum_as_wished(rng: np.random.Generator, target: Target, wish: Wish) -> bool:
    if wish.truth not in ("SNIa", "SNOther"):
        return True
    middle, width = SPECTRUM
    taken = bool(rng.random() < 1 / (1 + np.exp(np.clip((target.bright - middle) / width, -50, 50))))
    return taken == wish.confirmed


def expected_error(survey: Survey, visits: Visits, flux: Array) -> Array:
    """Error of a PSF flux, nJy, without the host's photons."""
    electrons = np.array([band.electrons for band in survey.bands.values()])[visits.band] * visits.depth
    area = noise_area(visits.seeing, survey.pixel)
    return np.asarray(np.sqrt(visits.noise**2 * area + np.maximum(flux, 0) / electrons))


def is_found(survey: Survey, visits: Visits, flux: Array, reference: Array, needed: int) -> bool:
    """Would the search have made a candidate: detections in so many visits, not only at the season's very end."""
    searched = np.isin(visits.band, [i for i, name in enumerate(survey.bands) if name in survey.search])
    high = np.abs(flux - reference) > 1.2 * DETECTION * expected_error(survey, visits, flux)
    seen = np.unique(visits.visit[searched & high])
    every = np.unique(visits.visit)
    return len(seen) >= needed and int(np.searchsorted(every, seen[0])) + NOT_LATER < len(every)
