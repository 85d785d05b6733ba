"""One simulated object: what it is, where, how bright in every exposure, and what is around it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from . import agn, galaxies, stars, supernovae
from .conditions import Visits, fields_at, visits_at
from .render import Source, noise_area
from .spectra import (
    Array,
    bandpass,
    comoving_distance,
    distance_modulus,
    extinction_law,
    magnitude_to_njy,
    njy_to_magnitude,
)
from .surveys import Survey

DETECTION = 5.0  # standard deviations
ATTEMPTS = 4000  # draws until one would have been found by the search
# Milky-Way dust over the high-latitude sky, E(B-V): median and scatter (dex) of the SDSS candidates.
DUST = (0.045, 0.22)
# Number of neighbours brighter than r = 23 per square arcmin, and the slope of log N(m) (Yasuda et al. 2001, AJ 122,
# 1104: galaxies; stars at high latitude added), and the share of stars among them.
NEIGHBOURS, COUNT_SLOPE, STAR_SHARE = 14.0, 0.30, 0.35
BRIGHTEST = 12.0
NOT_LATER = 2  # visits that must follow the first detection
# Chance of a spectrum against magnitude at peak: one half at this r, over this width (shape after Sako et al. 2018).
SPECTRUM = (20.6, 0.45)


@dataclass(frozen=True)
class Target:
    """A simulated object before it is observed.

    Attributes:
        flux: visits -> nJy of the point source; reference: visits -> its flux in the template.
        host: galaxy and its place (west, north) in arcsec, if there is one.
        bright: r magnitude at its brightest, which decides about spectra.
    """

    label: str
    type: str
    redshift: float
    peak_mjd: float
    flux: Callable[[Visits], Array]
    reference: Callable[[Visits], Array]
    host: tuple[galaxies.Galaxy, float, float] | None
    bright: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class Observed:
    """An object with its exposures: fluxes [n] in nJy, and the scene around it."""

    target: Target
    ra: float
    dec: float
    visits: Visits
    flux: Array
    reference: Array
    sources: list[Source]


@dataclass(frozen=True)
class Wish:
    """What the archive needs: a label, the truth behind it, and whether a spectrum confirms it."""

    label: str
    truth: str
    confirmed: bool


def observe(rng: np.random.Generator, survey: Survey, seed: int, season: int, wish: Wish) -> Observed:
    """Draw objects until one of them would have been found in that season."""
    place = _place(rng, survey)
    visits = visits_at(rng, survey, season, seed, place[0], fields_at(rng, survey))
    dust = DUST[0] * 10 ** rng.normal(0, DUST[1])
    for _ in range(ATTEMPTS):
        target = MAKERS[wish.truth](rng, survey, visits, dust)
        if target is None or not _spectrum_as_wished(rng, target, wish):
            continue
        flux, reference = target.flux(visits), target.reference(visits)
        if is_found(survey, visits, flux, reference):
            return Observed(target, *place, visits, flux, reference, surroundings(rng, survey, target, dust))
    raise RuntimeError(f"no {wish.truth} that {survey.name} would find in {ATTEMPTS} draws")


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


def is_found(survey: Survey, visits: Visits, flux: Array, reference: Array) -> bool:
    """Would the search have made a candidate: a detection in two visits, not only at the season's very end."""
    searched = np.isin(visits.band, [i for i, name in enumerate(survey.bands) if name in survey.search])
    high = np.abs(flux - reference) > 1.2 * DETECTION * expected_error(survey, visits, flux)
    seen = np.unique(visits.visit[searched & high])
    every = np.unique(visits.visit)
    return len(seen) >= 2 and int(np.searchsorted(every, seen[0])) + NOT_LATER < len(every)


def band_transmission(survey: Survey, dust: float) -> Array:
    """What Milky-Way dust lets through, by band."""
    return np.asarray(10 ** (-0.4 * dust * np.array([band.extinction for band in survey.bands.values()])))


# --- supernovae -----------------------------------------------------------------------------------------------------


def supernova_flux(
    supernova: supernovae.Supernova, survey: Survey, visits: Visits, redshift: float, peak: float, dust: float
) -> Array:
    """nJy in each exposure."""
    scale = magnitude_to_njy(supernova.magnitude + distance_modulus(redshift)) * (1 + redshift)
    phase = (visits.mjd - peak) / (1 + redshift)
    result = np.zeros(len(visits))
    through = band_transmission(survey, dust)
    shines = (phase > supernova.first_day) & (phase < supernova.last_day)
    for index, band in enumerate(survey.bands):
        now = shines & (visits.band == index)
        if now.any():
            wavelength, weight = bandpass(survey, band)
            rest = wavelength / (1 + redshift)
            light = supernova.surface(phase[now], rest) * 10 ** (-0.4 * supernova.dust * extinction_law(rest))
            result[now] = scale * through[index] * (light @ weight)
    return result


def _draw_redshift(rng: np.random.Generator, nearest: float, farthest: float, power: float) -> float:
    """A redshift by comoving volume and rate ~ (1+z)^power; the sky's clock slows by (1+z)."""
    z = np.linspace(nearest, farthest, 400)
    weight = comoving_distance(z) ** 2 * np.gradient(comoving_distance(z), z) * (1 + z) ** (power - 1)
    cumulative = np.cumsum(weight)
    return float(np.interp(rng.random() * cumulative[-1], cumulative, z))


def _depth(survey: Survey) -> float:
    """r magnitude of a point source at the detection limit of a typical visit."""
    band = survey.bands["r"]
    error = band.sky_noise * float(np.sqrt(noise_area(band.seeing, survey.pixel)))
    return float(njy_to_magnitude(DETECTION * error))


def _horizon(survey: Survey, magnitude: float) -> float:
    """Redshift beyond which a source of that absolute magnitude is not found."""
    z = np.linspace(0.002, 1.5, 1500)
    return float(z[np.searchsorted(distance_modulus(z), _depth(survey) - magnitude).clip(1, len(z) - 1)])


def _supernova(rng: np.random.Generator, survey: Survey, visits: Visits, dust: float, truth: str) -> Target | None:
    is_ia = truth == "SNIa"
    brightest, power = (-20.0, supernovae.IA_RATE_POWER) if is_ia else (-19.5, supernovae.CORE_COLLAPSE_RATE_POWER)
    redshift = _draw_redshift(rng, 0.004, _horizon(survey, brightest), power)
    supernova = supernovae.draw_ia(rng) if is_ia else supernovae.draw_core_collapse(rng)
    faintest = _depth(survey) + 0.7
    if supernova.magnitude + supernova.dust + float(distance_modulus(redshift)) > faintest:
        return None
    peak = float(rng.uniform(visits.mjd.min() - 25, visits.mjd.max() + 8))
    population = "Ia" if is_ia else "core collapse"
    host = galaxies.draw_host(rng, survey, population, redshift)
    west, north = host.place(rng)

    def flux(visits: Visits) -> Array:
        return supernova_flux(supernova, survey, visits, redshift, peak, dust)

    seen = flux(visits)
    red = visits.band == list(survey.bands).index("r")
    bright = float(njy_to_magnitude(seen[red].max(initial=1e-3)))
    facts = {"absolute_magnitude": supernova.magnitude, "host_dust": supernova.dust, **supernova.facts}
    return Target(
        truth,
        supernova.type,
        redshift,
        peak,
        flux,
        lambda visits: np.zeros(len(visits)),
        (host, -west, -north),
        bright,
        facts,
    )


def _ia(rng: np.random.Generator, survey: Survey, visits: Visits, dust: float) -> Target | None:
    return _supernova(rng, survey, visits, dust, "SNIa")


def _other(rng: np.random.Generator, survey: Survey, visits: Visits, dust: float) -> Target | None:
    return _supernova(rng, survey, visits, dust, "SNOther")


# --- nuclei and stars -----------------------------------------------------------------------------------------------

# AGN candidates of the SDSS search: log-normal in redshift (median 0.5, 5 % below 0.19, 5 % above 2).
AGN_REDSHIFT = (0.50, 0.72)
TEMPLATE_AGE = (300.0, 365.0)  # days before the season's start, when the template was taken


def _brightness(rng: np.random.Generator, bright: float, faint: float, slope: float) -> float:
    return float(bright + np.log10(rng.random() * (10 ** (slope * (faint - bright)) - 1) + 1) / slope)


def _agn(rng: np.random.Generator, survey: Survey, visits: Visits, dust: float) -> Target | None:
    redshift = float(np.clip(AGN_REDSHIFT[0] * np.exp(rng.normal(0, AGN_REDSHIFT[1])), 0.03, 4.0))
    limit = _depth(survey)
    apparent = _brightness(rng, limit - 6, limit - 0.8, 0.35)  # i
    k_correction = -1.4 * np.log10(1 + redshift)
    nucleus = agn.draw_nucleus(rng, redshift, apparent - float(distance_modulus(redshift)) - k_correction - 0.6)
    shape = []
    for band in survey.bands:
        wavelength, weight = bandpass(survey, band)
        rest = wavelength / (1 + redshift)
        shape.append(np.sum(weight * agn.spectrum(rest) * 10 ** (-0.4 * nucleus.redness * extinction_law(rest))))
    fluxes = np.array(shape) / shape[list(survey.bands).index("i")]
    mean = magnitude_to_njy(apparent) * fluxes * band_transmission(survey, dust)
    epochs, which = np.unique(visits.visit, return_inverse=True)
    times = np.array([visits.mjd[which == i].min() for i in range(len(epochs))])
    past = np.sort(times[0] - rng.uniform(*TEMPLATE_AGE, 4))
    wavelengths = np.array([band.wavelength for band in survey.bands.values()])
    change, timescale, rms = agn.light_curves(rng, nucleus, np.concatenate([past, times]), wavelengths)
    level = mean[:, None] * 10 ** (-0.4 * change)
    now, before = level[visits.band, which + 4], level[:, :4].mean(1)[visits.band]
    host = galaxies.draw_host(rng, survey, "AGN", redshift)
    facts = {"tau": timescale, "rms_r": float(rms[list(survey.bands).index("r")]), "log_mass": nucleus.mass}
    facts["absolute_magnitude"] = nucleus.magnitude
    return Target(
        "AGN",
        "AGN",
        redshift,
        _brightest(visits, now),
        lambda _: now,
        lambda _: before,
        (host, 0.0, 0.0),
        apparent,
        facts,
    )


def _brightest(visits: Visits, flux: Array) -> float:
    return float(visits.mjd[np.argmax(flux)])


def _star(rng: np.random.Generator, survey: Survey, visits: Visits, dust: float) -> Target | None:
    star = stars.draw_star(rng)
    wavelengths = np.array([band.wavelength for band in survey.bands.values()])
    mean = np.interp(wavelengths, stars.NODES, star.magnitudes)
    flux = magnitude_to_njy(mean) * band_transmission(survey, dust)
    node = np.abs(stars.NODES - wavelengths[:, None]).argmin(1)[visits.band]
    now = flux[visits.band] * 10 ** (-0.4 * star.change(visits.mjd, node))
    past = [star.change(visits.mjd - rng.uniform(*TEMPLATE_AGE), node) for _ in range(6)]
    before = flux[visits.band] * _band_means(visits.band, 10 ** (-0.4 * np.array(past)).mean(0))
    magnitude = float(mean[list(survey.bands).index("r")])
    return Target(
        "Variable",
        star.type,
        float("nan"),
        _brightest(visits, now),
        lambda _: now,
        lambda _: before,
        None,
        magnitude,
        star.facts,
    )


def _band_means(band: np.ndarray[Any, np.dtype[np.int64]], values: Array) -> Array:
    """Each value replaced by the mean of its band: a template is one image per band."""
    means = np.bincount(band, values) / np.maximum(np.bincount(band), 1)
    return np.asarray(means[band])


Maker = Callable[[np.random.Generator, Survey, Visits, float], Target | None]
MAKERS: Mapping[str, Maker] = MappingProxyType({"SNIa": _ia, "SNOther": _other, "AGN": _agn, "Variable": _star})


# --- what else is in the stamp --------------------------------------------------------------------------------------


def surroundings(rng: np.random.Generator, survey: Survey, target: Target, dust: float) -> list[Source]:
    """The host, and neighbours near enough to shed light into the stamp."""
    through = band_transmission(survey, dust)
    sources: list[Source] = []
    if target.host is not None:
        sources += galaxy_sources(*target.host, through)
    side = survey.size * survey.pixel * 1.25 / 60
    for _ in range(rng.poisson(NEIGHBOURS * side**2)):
        west, north = rng.uniform(-0.5, 0.5, 2) * side * 60
        magnitude = _brightness(rng, BRIGHTEST, 23.0, COUNT_SLOPE)
        sources += _neighbour(rng, survey, float(west), float(north), magnitude, through)
    return sources


def galaxy_sources(galaxy: galaxies.Galaxy, west: float, north: float, through: Array) -> list[Source]:
    """Bulge and disc of a galaxy as sources."""
    shares = (galaxy.bulge, 1 - galaxy.bulge)
    return [
        Source(west, north, galaxy.fluxes * through * share, profile)
        for share, profile in zip(shares, galaxy.profiles, strict=True)
        if share > 0.01
    ]


def _neighbour(
    rng: np.random.Generator, survey: Survey, west: float, north: float, magnitude: float, through: Array
) -> list[Source]:
    red = list(survey.bands).index("r")
    if magnitude < 17 or rng.random() < STAR_SHARE:
        colour = np.clip(rng.normal(0.8, 0.4), 0.2, 1.5)
        wavelengths = np.array([band.wavelength for band in survey.bands.values()])
        nodes = magnitude + np.array([colour * 2.4 + 0.2, colour, 0.0, -0.45 * colour, -0.65 * colour])
        return [Source(west, north, magnitude_to_njy(np.interp(wavelengths, stars.NODES, nodes)))]
    redshift = float(np.clip(0.09 * 10 ** (0.15 * (magnitude - 17)) * np.exp(rng.normal(0, 0.3)), 0.01, 1.0))
    kind = str(rng.choice(list(galaxies.SPECTRA), p=(0.2, 0.35, 0.35, 0.1)))
    absolute = magnitude - float(distance_modulus(redshift))
    galaxy = galaxies.make_galaxy(rng, survey, kind, redshift, float(np.clip(absolute, -23, -14)))
    scale = float(magnitude_to_njy(magnitude)) / galaxy.fluxes[red]
    return [Source(s.west, s.north, s.fluxes * scale, s.profile) for s in galaxy_sources(galaxy, west, north, through)]
