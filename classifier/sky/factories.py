"""Draws objects of each class: a supernova, a nucleus or a star at a given position, with its fluxes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from skyheed.classifier.sky import agn, galaxies, stars, supernovae, type_ia
from skyheed.classifier.sky.populations import Population, population_of
from skyheed.classifier.sky.spectra import (
    Array,
    bandpass,
    comoving_distance,
    distance_modulus,
    extinction_law,
    magnitude_to_njy,
    njy_to_magnitude,
)
from skyheed.classifier.sky.surveys import Survey
from skyheed.classifier.sky.targets import Sight, Target, draw_magnitude

MARGIN = 0.5  # mag by which a star must be fainter than the saturation limit
MOST_SWING = 0.9  # mag, rms of an AGN
SAME_TIME = 0.1  # days within which an AGN is taken to be constant
NEAREST = 0.004  # redshift


def supernova_flux(supernova: supernovae.Supernova, sight: Sight, redshift: float, peak: float) -> Array:
    """nJy in each exposure."""
    visits = sight.visits
    scale = magnitude_to_njy(supernova.magnitude + distance_modulus(redshift)) * (1 + redshift)
    phase = (visits.mjd - peak) / (1 + redshift)
    result = np.zeros(len(visits))
    shines = (phase > supernova.first_day) & (phase < supernova.last_day)
    for index, band in enumerate(sight.survey.bands):
        now = shines & (visits.band == index)
        if now.any():
            wavelength, weight = bandpass(sight.survey, band)
            rest = wavelength / (1 + redshift)
            light = supernova.surface(phase[now], rest) * 10 ** (-0.4 * supernova.dust * extinction_law(rest))
            result[now] = scale * sight.through[index] * (light @ weight)
    return result


def _draw_redshift(rng: np.random.Generator, nearest: float, farthest: float, power: float) -> float:
    """A redshift by comoving volume and rate ~ (1+z)^power, including time dilation by (1+z)."""
    z = np.linspace(nearest, farthest, 400)
    weight = comoving_distance(z) ** 2 * np.gradient(comoving_distance(z), z) * (1 + z) ** (power - 1)
    cumulative = np.cumsum(weight)
    return float(np.interp(rng.random() * cumulative[-1], cumulative, z))


def _horizon(limit: float, magnitude: float) -> float:
    """Redshift beyond which a source of that absolute magnitude is fainter than the limit."""
    z = np.linspace(0.002, 1.5, 1500)
    return float(z[np.searchsorted(distance_modulus(z), limit - magnitude).clip(1, len(z) - 1)])


def _supernova(
    rng: np.random.Generator, sight: Sight, label: str, population: str, redshift: float, drawn: supernovae.Supernova
) -> Target | None:
    if drawn.magnitude + drawn.dust + float(distance_modulus(redshift)) > sight.limit + 0.7:
        return None
    visits = sight.visits
    peak = float(rng.uniform(visits.mjd.min() - 25, visits.mjd.max() + 8))
    host = galaxies.draw_host(rng, sight.survey, population, redshift)
    west, north = host.place(rng)
    flux = supernova_flux(drawn, sight, redshift, peak)
    red = visits.band == list(sight.survey.bands).index("r")
    bright = float(njy_to_magnitude(flux[red].max(initial=1e-3)))
    facts = {"absolute_magnitude": drawn.magnitude, "host_dust": drawn.dust, **drawn.facts}
    place = (host, -west, -north)
    return Target(label, drawn.type, redshift, peak, flux, np.zeros(len(visits)), place, bright, facts)


def _ia(rng: np.random.Generator, sight: Sight) -> Target | None:
    redshift = _draw_redshift(rng, NEAREST, _horizon(sight.limit, -20.0), type_ia.IA_RATE_POWER)
    return _supernova(rng, sight, "SNIa", "Ia", redshift, type_ia.draw_ia(rng, sight.template))


def _other(rng: np.random.Generator, sight: Sight) -> Target | None:
    power = supernovae.CORE_COLLAPSE_RATE_POWER
    redshift = _draw_redshift(rng, NEAREST, _horizon(sight.limit, supernovae.MOST_LUMINOUS), power)
    drawn = supernovae.draw_core_collapse(rng)
    return _supernova(rng, sight, "SNOther", "core collapse", redshift, drawn)


def _agn(rng: np.random.Generator, sight: Sight) -> Target | None:
    visits, red = sight.visits, list(sight.survey.bands).index("r")
    finds = population_of(sight.survey)
    redshift = _agn_redshift(rng, finds)
    apparent = draw_magnitude(rng, *(finds.nuclei or (sight.limit - 6, sight.limit - 0.8, 0.35)))  # i
    k_correction = -1.4 * np.log10(1 + redshift)
    nucleus = agn.draw_nucleus(rng, redshift, apparent - float(distance_modulus(redshift)) - k_correction - 0.6)
    mean = magnitude_to_njy(apparent) * _agn_colours(sight.survey, nucleus) * sight.through
    # It is constant within a visit; where strips overlap, two visits can be in one night.
    times, which = np.unique(np.floor(visits.mjd / SAME_TIME), return_inverse=True)
    times *= SAME_TIME
    past = np.sort(times[0] - rng.uniform(*finds.template_age, 4))
    change, timescale, rms = agn.light_curves(rng, nucleus, np.concatenate([past, times]), sight.wavelengths)
    if finds.swing[1]:
        swing = min(float(np.exp(rng.normal(*finds.swing))), MOST_SWING / float(rms.max()))
        change, rms = change * swing, rms * swing
    level = mean[:, None] * 10 ** (-0.4 * change)
    now, before = level[visits.band, which + 4], level[:, :4].mean(1)[visits.band]
    host = (galaxies.draw_host(rng, sight.survey, "AGN", redshift), 0.0, 0.0)
    facts = {"tau": timescale, "rms_r": float(rms[red]), "log_mass": nucleus.mass}
    facts["absolute_magnitude"] = nucleus.magnitude
    peak = float(visits.mjd[np.argmax(now)])
    return Target("AGN", "AGN", redshift, peak, now, before, host, apparent, facts)


def _agn_redshift(rng: np.random.Generator, finds: Population) -> float:
    middle, scatter, nearest = finds.quasars
    if finds.seyferts and rng.random() < finds.seyferts:
        (middle, scatter), nearest = finds.nearby, 0.01
    return float(np.clip(middle * np.exp(rng.normal(0, scatter)), nearest, 4.0))


def _agn_colours(survey: Survey, nucleus: agn.Nucleus) -> Array:
    """Fluxes by band relative to i."""
    shape = []
    for band in survey.bands:
        wavelength, weight = bandpass(survey, band)
        rest = wavelength / (1 + nucleus.redshift)
        shape.append(np.sum(weight * agn.spectrum(rest) * 10 ** (-0.4 * nucleus.redness * extinction_law(rest))))
    return np.array(shape) / shape[list(survey.bands).index("i")]


def _star(rng: np.random.Generator, sight: Sight) -> Target | None:
    finds, visits = population_of(sight.survey), sight.visits
    star = stars.draw_star(rng, sight.kind, finds.star_range)
    mean = np.interp(sight.wavelengths, stars.NODES, star.magnitudes)
    flux = (magnitude_to_njy(mean) * sight.through)[visits.band]
    node = np.abs(stars.NODES - sight.wavelengths[:, None]).argmin(1)[visits.band]
    if star.magnitudes.min() < sight.survey.saturation + MARGIN:
        return None
    now = flux * 10 ** (-0.4 * star.change(visits.mjd, node))
    past = [star.change(visits.mjd - rng.uniform(*finds.template_age), node) for _ in range(6)]
    before = flux * _band_means(visits.band, 10 ** (-0.4 * np.array(past)).mean(0))
    magnitude = float(mean[list(sight.survey.bands).index("r")])
    peak = float(visits.mjd[np.argmax(now / flux)])
    return Target("Variable", star.type, float("nan"), peak, now, before, None, magnitude, star.facts)


def _band_means(band: np.ndarray[Any, np.dtype[np.int64]], values: Array) -> Array:
    """Each value replaced by the mean of its band, as a template is one image per band."""
    means = np.bincount(band, values) / np.maximum(np.bincount(band), 1)
    return np.asarray(means[band])


# None: too faint; draw again.
Maker = Callable[[np.random.Generator, Sight], Target | None]
MAKERS: Mapping[str, Maker] = MappingProxyType({"SNIa": _ia, "SNOther": _other, "AGN": _agn, "Variable": _star})
