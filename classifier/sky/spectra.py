"""Flux as a function of wavelength: bandpasses, dust, black bodies, and cosmological distances.

A spectrum here is a flux density per frequency in arbitrary units, as a function of rest wavelength in Angstrom.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.sky.surveys import AB_ZERO, Survey

Array = NDArray[np.float64]

# Flat Lambda-CDM, with the values for which absolute magnitudes of supernovae are quoted.
HUBBLE = 70.0  # km/s/Mpc
MATTER = 0.3
LIGHT = 299_792.458  # km/s

NODES = 7  # wavelengths at which a bandpass is sampled
_HC_K = 1.438_776_9e8  # h c / k, Angstrom K


def magnitude_to_njy(magnitude: Array | float) -> Array:
    """AB magnitude -> nJy."""
    return np.asarray(10 ** (0.4 * (AB_ZERO - np.asarray(magnitude))))


def njy_to_magnitude(flux: Array | float) -> Array:
    """nJy -> AB magnitude; NaN below zero."""
    flux = np.asarray(flux, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(AB_ZERO - 2.5 * np.log10(np.where(flux > 0, flux, np.nan)))


@lru_cache(1)
def _distance_table() -> tuple[Array, Array]:
    redshift = np.linspace(0, 6, 6001)
    inverse = 1 / np.sqrt(MATTER * (1 + redshift) ** 3 + 1 - MATTER)
    steps = np.diff(redshift) * (inverse[1:] + inverse[:-1]) / 2
    return redshift, LIGHT / HUBBLE * np.concatenate([[0.0], np.cumsum(steps)])


def comoving_distance(redshift: Array | float) -> Array:
    """Mpc, for redshifts up to 6."""
    return np.asarray(np.interp(redshift, *_distance_table()))


def distance_modulus(redshift: Array | float) -> Array:
    """Magnitudes."""
    redshift = np.maximum(redshift, 1e-5)
    return np.asarray(5 * np.log10(comoving_distance(redshift) * (1 + redshift)) + 25)


def kpc_per_arcsec(redshift: Array | float) -> Array:
    """Proper transverse size."""
    return np.asarray(comoving_distance(redshift) / (1 + np.asarray(redshift)) * 1000 * np.pi / 648_000)


@lru_cache(8)
def bandpass(survey: Survey, band: str) -> tuple[Array, Array]:
    """Wavelengths [NODES] (Angstrom) and weights that sum to 1 of a filter with sloping flanks.

    The weighted mean of a flux density per frequency is its AB flux (photon counting: weights T dlambda / lambda).
    """
    middle, width = survey.bands[band].wavelength, survey.bands[band].width
    offsets = np.linspace(-0.6, 0.6, NODES)
    wavelength = middle + offsets * width
    # The flanks fall over a fifth of the width, like those of the SDSS and LSST filters.
    weight = np.clip((0.6 - np.abs(offsets)) / 0.2, 0.15, 1) / wavelength
    return wavelength, weight / weight.sum()


def extinction_law(wavelength: Array) -> Array:
    """A(lambda) / A(V) of Milky-Way dust, R_V = 3.1: Cardelli, Clayton & Mathis 1989, ApJ 345, 245, 1000-33000 A."""
    x = 1e4 / np.asarray(wavelength, float)
    y = x - 1.82
    a_optical = np.polyval([0.32999, -0.77530, 0.01979, 0.72085, -0.02427, -0.50447, 0.17699, 1.0], y)
    b_optical = np.polyval([-2.09002, 5.30260, -0.62251, -5.38434, 1.07233, 2.28305, 1.41338, 0.0], y)
    a_ultraviolet = 1.752 - 0.316 * x - 0.104 / ((x - 4.67) ** 2 + 0.341)
    b_ultraviolet = -3.090 + 1.825 * x + 1.206 / ((x - 4.62) ** 2 + 0.263)
    a = np.where(x < 1.1, 0.574 * x**1.61, np.where(x < 3.3, a_optical, a_ultraviolet))
    b = np.where(x < 1.1, -0.527 * x**1.61, np.where(x < 3.3, b_optical, b_ultraviolet))
    return np.asarray(a + b / 3.1)


def black_body(wavelength: Array, temperature: Array) -> Array:
    """Planck's law per frequency, up to a constant; wavelength in Angstrom, temperature in K."""
    exponent = np.minimum(_HC_K / (wavelength * temperature), 300)
    return np.asarray((5500 / wavelength) ** 3 / np.expm1(exponent))
