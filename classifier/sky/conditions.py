"""When a survey observes a position, and under which conditions: the same nights for all objects of a simulation."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.sky.surveys import Survey

# Scatter (log-normal) of the seeing between bands of one night; nights differ more (`Survey.seeing_night`).
SEEING_BAND = 0.05
# Sky noise against the Moon: factor at full Moon, by wavelength (Krisciunas & Schaefer 1991, PASP 103, 1033).
MOON_BLUE, MOON_RED = 1.6, 1.15
SYNODIC_MONTH, NEW_MOON = 29.530589, 51550.76  # days; MJD of a new Moon
MIDNIGHT, NIGHT = 0.3, (0.1, 0.5)  # of the day (UT) in the American time zones
AGAIN = 0.03  # days between the exposures of a field that is observed more than once a night
SAME_VISIT = 0.02  # days between exposures of one visit, at most


@dataclass(frozen=True)
class Visits:
    """The exposures of one position, band by band, in time order; every field [n].

    Attributes:
        visit: number of the visit, shared by the bands taken together.
        band: index into the survey's bands.
        seeing: arcsec; noise: sky, nJy per pixel; depth: electrons per nJy relative to a typical visit.
        rotation: degrees.
    """

    mjd: NDArray[np.float64]
    visit: NDArray[np.int64]
    band: NDArray[np.int64]
    seeing: NDArray[np.float64]
    noise: NDArray[np.float64]
    depth: NDArray[np.float64]
    rotation: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.mjd)

    def __getitem__(self, keep: NDArray[np.bool_] | NDArray[np.intp]) -> "Visits":
        return Visits(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Season:
    """The clear nights of one season and which of the survey's fields each of them images: visits in time order."""

    night: NDArray[np.int64]
    field: NDArray[np.int64]  # block * strips + strip
    seeing: NDArray[np.float64]
    sky: NDArray[np.float64]
    cloud: NDArray[np.float64]
    group: tuple[str, ...]


@lru_cache(16)
def season(survey: Survey, number: int, seed: int) -> Season:
    """The weather and the schedule of one season; the same for all objects of a simulation with that seed."""
    rng = np.random.default_rng([seed, number, 1])
    start, end = survey.cadence.seasons[number]
    nights = np.arange(int(start), int(end))[_weather(rng, survey, int(end) - int(start))]
    pairs = sorted(
        (night, field) for block in range(survey.cadence.blocks) for night, field in _turns(rng, survey, nights, block)
    )
    night, fields = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    names, weights = list(survey.cadence.filters), np.array(list(survey.cadence.filters.values()))
    by_night = {
        n: (rng.normal(0, survey.seeing_night), rng.normal(0, survey.sky_night), rng.exponential(survey.cloud))
        for n in nights
    }
    seeing, sky, cloud = (np.array([by_night[n][i] for n in night]) for i in range(3))
    group = tuple(rng.choice(names, size=len(night), p=weights / weights.sum()))
    return Season(night, fields, seeing, sky, cloud, group)


def _weather(rng: np.random.Generator, survey: Survey, nights: int) -> NDArray[np.bool_]:
    """Clear or not, night by night: a two-state chain, because bad weather lasts."""
    clear, memory = survey.cadence.clear, survey.cadence.memory
    draws, state, result = rng.random(nights), True, np.zeros(nights, bool)
    for night in range(nights):
        state = bool(draws[night] < clear * (1 - memory) + memory * state)
        result[night] = state
    return result


def _turns(
    rng: np.random.Generator, survey: Survey, nights: NDArray[np.int64], block: int
) -> Iterator[tuple[int, int]]:
    """(night, field) of one block: the strip that has waited longest is observed first."""
    waiting = list(rng.permutation(survey.cadence.strips))
    for night in nights:
        chances = [survey.cadence.visits] + [survey.cadence.again] * (len(waiting) - 1)
        done = [strip for strip, chance in zip(waiting, chances, strict=True) if rng.random() < chance]
        yield from ((int(night), block * survey.cadence.strips + int(strip)) for strip in done)
        waiting = [strip for strip in waiting if strip not in done] + done


def visits_at(
    rng: np.random.Generator, survey: Survey, number: int, seed: int, ra: float, fields: tuple[int, ...]
) -> Visits:
    """All exposures of one position in one season.

    Args:
        rng: the object's own; used for lost bands and small differences within a night.
        number: number of the season.
        seed: seed of the simulation.
        ra: degrees; sets the time of night.
        fields: numbers of the survey's fields that contain the position.
    """
    plan = season(survey, number, seed)
    here = np.flatnonzero(np.isin(plan.field, fields))
    names = list(survey.bands)
    taken = [(which, names.index(band)) for which in here for band in plan.group[which]]
    visit, band = (np.array(column, dtype=np.int64) for column in zip(*taken, strict=True))
    kept = rng.random(len(visit)) >= survey.cadence.lost
    visit, band, again = _repeated(rng, survey, visit[kept], band[kept])
    bands = [survey.bands[name] for name in names]
    delay = np.array([each.delay for each in bands])[band]
    mjd = plan.night[visit] + _clock(survey, number, plan.night[visit], ra) + delay / 86400 + again * AGAIN
    seeing = np.array([each.seeing for each in bands])[band]
    jitter = rng.normal(0, SEEING_BAND, len(visit))
    seeing = seeing * np.minimum(np.exp(plan.seeing[visit] + jitter), survey.worst_seeing)
    moon = _moon(mjd, np.array([each.wavelength for each in bands])[band])
    dim = 10 ** (-0.4 * plan.cloud[visit])
    noise = np.array([each.sky_noise for each in bands])[band] * moon * np.exp(plan.sky[visit]) / np.sqrt(dim)
    rotation = _rotation(survey, seed, number, visit)
    found = Visits(mjd, visit, band, seeing, noise, dim, rotation)
    return found[np.argsort(mjd, kind="stable")]


def _repeated(
    rng: np.random.Generator, survey: Survey, visit: NDArray[np.int64], band: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Visits and bands including those of a field that is observed more often, and which time of the night each has."""
    if rng.random() >= survey.cadence.often if survey.cadence.often else True:
        return visit, band, np.zeros(len(visit), np.int64)
    times = 1 + rng.integers(0, survey.cadence.repeats + 1, len(visit))
    again = np.concatenate([np.arange(n) for n in times])
    return np.repeat(visit, times), np.repeat(band, times), again


def fields_at(rng: np.random.Generator, survey: Survey) -> tuple[int, ...]:
    """The field of a random position, or two of them."""
    strips = survey.cadence.strips
    first, block = int(rng.integers(strips)), int(rng.integers(survey.cadence.blocks))
    if rng.random() >= survey.cadence.overlap:
        return (block * strips + first,)
    return block * strips + first, block * strips + (first + 1) % strips


def visits_of(rng: np.random.Generator, survey: Survey, mjd: NDArray[np.float64], band: NDArray[np.int64]) -> Visits:
    """Exposures at given times (increasing) in given bands; typical seeing, the same camera angle all night."""
    visit = np.concatenate([[0], np.cumsum(np.diff(mjd) > SAME_VISIT)]).astype(np.int64)
    bands = list(survey.bands.values())
    nightly = rng.normal(0, survey.seeing_night, visit[-1] + 1)[visit]
    worse = np.minimum(np.exp(nightly + rng.normal(0, SEEING_BAND, len(mjd))), survey.worst_seeing)
    turn = rng.uniform(0, 360, visit[-1] + 1) if survey.turns else np.zeros(visit[-1] + 1)
    return Visits(
        mjd,
        visit,
        band,
        np.array([each.seeing for each in bands])[band] * worse,
        np.array([each.sky_noise for each in bands])[band],
        np.ones(len(mjd)),
        turn[visit],
    )


def _clock(survey: Survey, number: int, night: NDArray[np.int64], ra: float) -> NDArray[np.float64]:
    """Time of day (days) at which the position passes the meridian, four minutes earlier each night.

    In the middle of the season the centre of the area passes the meridian at local midnight, MJD x.3 in the American
    time zones; daylight transits are observed at the edge of night. An all-sky survey chooses what is high.
    """
    start, end = survey.cadence.seasons[number]
    low, high = survey.ra
    middle = (low + high) / 2 if high - low < 180 else ra
    late = ((ra - middle + 180) % 360 - 180) / 360
    return np.asarray(np.clip(MIDNIGHT + late - (night - (start + end) / 2) / 365.25, *NIGHT))


def _moon(mjd: NDArray[np.float64], wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    lit = 0.5 * (1 - np.cos(2 * np.pi * (mjd - NEW_MOON) / SYNODIC_MONTH))
    blue = np.clip((7500 - wavelength) / 4000, 0, 1)
    return np.asarray(1 + lit**2 * ((MOON_RED - 1) + (MOON_BLUE - MOON_RED) * blue))


def _rotation(survey: Survey, seed: int, number: int, visit: NDArray[np.int64]) -> NDArray[np.float64]:
    if not survey.turns:
        return np.zeros(len(visit))
    table = np.random.default_rng([seed, number, 2]).uniform(0, 360, int(visit.max()) + 1)
    return np.asarray(table[visit])
