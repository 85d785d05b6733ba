"""The objects that each survey finds: magnitudes and redshifts, kinds of stars, and positions."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from skyheed.classifier.sky.stars import MIXTURE
from skyheed.classifier.sky.surveys import Survey

# Coordinates of the north galactic pole (ICRS) and longitude of the celestial pole: J. Liu et al. 2011, A&A 526, A16.
POLE_RA, POLE_DEC, POLE_LONGITUDE = 192.85948, 27.12825, 122.93192
DISC = 14.0  # degrees: mean galactic latitude of stars of the disc (exponential)
HALO = frozenset({"RRab", "RRc", "DSCT"})
OBSCURED = 8.0  # degrees of latitude below which Galactic dust hides extragalactic sources
ATTEMPTS = 10_000


@dataclass(frozen=True)
class Population:
    """The objects that one survey finds.

    Attributes:
        quasars: redshift of AGN: median and scatter (ln), nearest.
        nuclei: i magnitudes of nuclei, brightest and faintest, and log-slope; None: down to the survey's limit.
        seyferts: fraction of AGN that are nearby; the median and scatter (ln) of their redshifts are in `nearby`.
        limits: r magnitude at maximum that a supernova must reach, least and most (drawn for each object); None: the
            survey's limit.
        spectrum: r magnitude at which half of the supernovae get a spectrum, and the width of that step.
        stars: how often each kind of variable star is drawn.
        star_range: brightest and faintest r of variable stars and the log-slope between them, in place of
            `stars.BRIGHTNESS`; only for kinds without a range of their own in `faint_kinds`.
        swing: factor by which AGN noticed by the survey vary more (ln: mean, scatter).
        template_age: days before the season's start in which the template was taken, least and most.
        latitude: stars are concentrated towards the Galactic plane, as are neighbours of all objects.
    """

    quasars: tuple[float, float, float]
    nuclei: tuple[float, float, float] | None
    seyferts: float
    nearby: tuple[float, float]
    limits: tuple[float, float] | None
    spectrum: tuple[float, float]
    stars: Mapping[str, float]
    star_range: tuple[float, float, float] | None
    swing: tuple[float, float]
    template_age: tuple[float, float]
    latitude: bool


# SDSS: redshifts are log-normal, chosen so that the objects found have the redshifts of the SDSS candidates (median
# 0.5, 5 % below 0.19, 5 % above 2); spectra after Sako et al. 2018.
_SDSS = Population(
    quasars=(0.58, 0.85, 0.03), nuclei=None, seyferts=0.0, nearby=(0.08, 0.6), limits=None, spectrum=(20.6, 0.45),
    stars=MIXTURE, star_range=None, swing=(0.0, 0.0), template_age=(300.0, 365.0), latitude=False,
)  # fmt: skip
# ZTF: matched to packets with a class (334 real objects, of them 60 with one; benchmarks/sky_gap.py): Seyferts and
# quasars of 16.5 to 19, supernovae as in the Bright Transient Survey (half with a spectrum at 18.5: Fremling et al.
# 2020, ApJ 895, 32) and fainter ones, variables of 13 to 18 down to the Galactic plane. Kinds of stars: our choice,
# based on the classes of variables in ZTF's periodic catalogue (Chen et al. 2020, ApJS 249, 18), with irregular ones
# (young stars, dwarf novae, spotted stars) added.
_ZTF = Population(
    quasars=(0.55, 0.75, 0.05), nuclei=(14.9, 18.3, 0.20), seyferts=0.55, nearby=(0.13, 0.6), limits=(16.4, 19.8),
    spectrum=(18.7, 0.5),
    stars=MappingProxyType({
        "RRab": 0.15, "RRc": 0.05, "DSCT": 0.04, "EA": 0.12, "EW": 0.14, "LPV": 0.12, "Mira": 0.10, "YSO": 0.10,
        "CV": 0.06, "spots": 0.10, "flare": 0.02,
    }),
    star_range=(12.4, 16.3, 0.01), swing=(0.45, 0.35), template_age=(100.0, 1500.0), latitude=True,
)  # fmt: skip
# LSST's first alerts use templates taken months before (Rubin SMTN-002 for the depth); they have not been counted yet.
_LSST = Population(
    quasars=(0.9, 0.75, 0.03), nuclei=(17.0, 23.5, 0.35), seyferts=0.2, nearby=(0.15, 0.6), limits=(19.5, 24.2),
    spectrum=(21.5, 0.7),
    stars=MappingProxyType({
        "RRab": 0.18, "RRc": 0.07, "DSCT": 0.10, "EA": 0.14, "EW": 0.18, "LPV": 0.04, "Mira": 0.03, "YSO": 0.06,
        "CV": 0.06, "spots": 0.09, "flare": 0.05,
    }),
    star_range=(16.6, 23.0, 0.15), swing=(0.2, 0.3), template_age=(60.0, 500.0), latitude=True,
)  # fmt: skip
POPULATIONS: Mapping[str, Population] = MappingProxyType({"sdss": _SDSS, "ztf": _ZTF, "lsst": _LSST})


def population_of(survey: Survey) -> Population:
    """The population of a survey."""
    return POPULATIONS[survey.name]


def place(rng: np.random.Generator, survey: Survey, kind: str) -> tuple[float, float, float]:
    """The position of an object: right ascension, declination and absolute galactic latitude, degrees.

    Args:
        kind: kind of variable star; empty for extragalactic objects.
    """
    if not population_of(survey).latitude:
        low, high = np.sin(np.radians(survey.dec))
        ra, dec = rng.uniform(*survey.ra) % 360, np.degrees(np.arcsin(rng.uniform(low, high)))
        return float(ra), float(dec), latitude(float(ra), float(dec))
    for _ in range(ATTEMPTS):
        b = _latitude(rng, kind)
        ra, dec = equatorial(rng.uniform(0, 360), b)
        if survey.dec[0] <= dec <= survey.dec[1]:
            return ra, dec, abs(b)
    raise RuntimeError(f"{survey.name} sees no part of the sky")


def _latitude(rng: np.random.Generator, kind: str) -> float:
    """Galactic latitude, degrees: exponential for disc stars, otherwise uniform on the sphere."""
    sign = rng.choice((-1, 1))
    if kind and kind not in HALO:
        return float(sign * min(rng.exponential(DISC), 89.0))
    least = 3.0 if kind else OBSCURED
    return float(sign * np.degrees(np.arcsin(rng.uniform(np.sin(np.radians(least)), 1))))


def equatorial(longitude: float, b: float) -> tuple[float, float]:
    """Galactic to equatorial coordinates (ICRS), degrees."""
    longitude, b, pole = np.radians(POLE_LONGITUDE - longitude), np.radians(b), np.radians(POLE_DEC)
    dec = np.arcsin(np.sin(b) * np.sin(pole) + np.cos(b) * np.cos(pole) * np.cos(longitude))
    east = np.cos(b) * np.sin(longitude)
    north = np.sin(b) * np.cos(pole) - np.cos(b) * np.sin(pole) * np.cos(longitude)
    return float((POLE_RA + np.degrees(np.arctan2(east, north))) % 360), float(np.degrees(dec))


def latitude(ra: float, dec: float) -> float:
    """Absolute galactic latitude, degrees."""
    from skyheed.classifier.context import galactic_latitude

    return galactic_latitude(ra, dec)


def star_density(b: float) -> float:
    """Star density at a galactic latitude relative to that at 60 degrees: about 14 times higher in the plane.

    Our formula, through star counts at r < 20: 1,700 per square degree at the poles, 30,000 near the plane away from
    the centre (Ivezic et al. 2008, ApJ 684, 287, figures 7 and 8, for the slope at high latitude).
    """
    return float((0.95 / (np.sin(np.radians(b)) + 0.08)) ** 1.3)


def dust(rng: np.random.Generator, survey: Survey, b: float, kind: str) -> float:
    """Galactic E(B-V) at a latitude; disc stars are behind only part of the dust."""
    median, scatter = DUST
    if not population_of(survey).latitude:
        return float(median * 10 ** rng.normal(0, scatter))
    column = 0.75 * median / (np.sin(np.radians(b)) + 0.03) * 10 ** rng.normal(0, scatter)
    share = rng.uniform(0.1, 1.0) if kind else 1.0
    return float(min(column * share, 1.0))


# Milky-Way dust over the high-latitude sky, E(B-V): median and scatter (dex) near those of the SDSS-II candidates,
# 0.041 and 0.24 in the table (MWEBV; Sako et al. 2018, PASP 130, 064002).
DUST = (0.045, 0.22)
