"""Galaxies: colours, sizes and shapes of hosts and neighbours."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, j0

from skyheed.classifier.sky.spectra import (
    Array,
    bandpass,
    distance_modulus,
    kpc_per_arcsec,
    magnitude_to_njy,
)
from skyheed.classifier.sky.surveys import Survey

# Spectra of four kinds at these rest wavelengths (Angstrom), flux per frequency relative to 6166 A: colours at z = 0
# of Fukugita, Shimasaku & Ichikawa 1995, PASP 107, 945 (E, Sbc, Scd, Im), ultraviolet after Coleman, Wu & Weedman 1980.
WAVELENGTHS = np.array([1500, 2500, 3300, 3700, 4000, 4300, 4686, 5500, 6166, 7480, 8932, 11000.0])
SPECTRA = {
    "E": (0.004, 0.012, 0.060, 0.095, 0.190, 0.360, 0.48, 0.77, 1.0, 1.45, 1.90, 2.30),
    "Sbc": (0.040, 0.060, 0.130, 0.180, 0.280, 0.460, 0.57, 0.81, 1.0, 1.35, 1.66, 1.95),
    "Scd": (0.100, 0.140, 0.210, 0.260, 0.390, 0.560, 0.68, 0.87, 1.0, 1.22, 1.41, 1.55),
    "Im": (0.220, 0.260, 0.320, 0.380, 0.540, 0.700, 0.79, 0.92, 1.0, 1.08, 1.11, 1.15),
}
# Absolute r magnitude: mean and scatter of the hosts of a class, and fractions of galaxy types among them; below, the
# bulge-to-total ratio by type. Our round numbers: SNe Ia near M* (-21.2 in r, Blanton et al. 2003, ApJ 592, 819, for
# H0 = 70), core collapse in fainter galaxies without ellipticals, AGN in brighter ones.
HOSTS = {
    "Ia": ((-21.2, 1.0), (0.35, 0.35, 0.22, 0.08)),
    "core collapse": ((-20.4, 1.2), (0.0, 0.40, 0.40, 0.20)),
    "AGN": ((-21.8, 0.7), (0.45, 0.40, 0.15, 0.0)),
}
BULGE = {"E": (0.75, 0.15), "Sbc": (0.30, 0.12), "Scd": (0.10, 0.07), "Im": (0.02, 0.02)}
NEAREST = 0.003  # redshift


@dataclass(frozen=True)
class Profile:
    """A Sersic profile on the sky: half-light radius (arcsec), axis ratio, position angle (rad, east of north)."""

    index: float
    radius: float
    axis_ratio: float
    angle: float

    def transform(self, kx: Array, ky: Array) -> Array:
        """Fourier transform at frequencies in cycles per arcsec; x to the west, y to the north; 1 at zero."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        # The major axis points to (west, north) = (-sin, cos) of the position angle.
        major = -sin * kx + cos * ky
        minor = cos * kx + sin * ky
        k = np.hypot(major, minor * self.axis_ratio) * self.radius
        grid, values = _sersic_transform(self.index)
        return np.asarray(np.interp(k, grid, values))

    def place(self, rng: np.random.Generator) -> tuple[float, float]:
        """A position drawn from the light profile, arcsec (west, north) of the centre."""
        radius = self.radius * float(_sersic_radius(self.index, rng.random()))
        turn = rng.uniform(0, 2 * np.pi)
        along, across = radius * np.cos(turn), radius * np.sin(turn) * self.axis_ratio
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return float(-sin * along + cos * across), float(cos * along + sin * across)


@dataclass(frozen=True)
class Galaxy:
    """A bulge and a disc; `fluxes` by band (nJy) and `bulge`, the bulge's fraction of them."""

    kind: str
    fluxes: NDArray[np.float64]
    bulge: float
    profiles: tuple[Profile, Profile]

    def place(self, rng: np.random.Generator) -> tuple[float, float]:
        """A position drawn from the light profile."""
        return self.profiles[0 if rng.random() < self.bulge else 1].place(rng)


@lru_cache(8)
def _sersic_transform(index: float) -> tuple[Array, Array]:
    """Hankel transform of a Sersic profile of half-light radius 1, on a grid of cycles per radius."""
    scale = gammaincinv(2 * index, 0.5)
    radius = np.concatenate([[0.0], np.geomspace(1e-4, 60, 4000)])
    light = np.exp(-scale * radius ** (1 / index)) * radius
    k = np.concatenate([[0.0], np.geomspace(1e-3, 60, 600)])
    values = np.array([np.trapezoid(light * j0(2 * np.pi * each * radius), radius) for each in k])
    return k, values / values[0]


def _sersic_radius(index: float, share: float) -> float:
    """Radius that contains a fraction of the light, in half-light radii, truncated at 4."""
    scale = gammaincinv(2 * index, 0.5)
    return float(min((gammaincinv(2 * index, min(share, 0.9999)) / scale) ** index, 4.0))


def band_fluxes(survey: Survey, kind: str, redshift: float) -> Array:
    """Relative fluxes of a galaxy in every band, 1 in rest-frame r seen at z = 0."""
    log = np.log(SPECTRA[kind])
    means = []
    for band in survey.bands:
        wavelength, weight = bandpass(survey, band)
        rest = np.interp(wavelength / (1 + redshift), WAVELENGTHS, log)
        means.append(np.sum(weight * np.exp(rest)))
    return np.array(means)


def half_light_kpc(rng: np.random.Generator, kind: str, magnitude: float) -> float:
    """Half-light radius from M_r: Shen et al. 2003, MNRAS 343, 978, equations 14-16 and table 1."""
    if kind == "E":
        log_radius = -0.4 * 0.60 * magnitude - 4.63
    else:
        log_radius = -0.4 * 0.26 * magnitude + 0.25 * np.log10(1 + 10 ** (-0.4 * (magnitude + 20.91))) - 1.71
    bright = 10 ** (-0.8 * (magnitude + 20.52))
    scatter = 0.34 + 0.14 / (1 + bright)
    return float(10**log_radius * np.exp(rng.normal(0, scatter)))


def draw_host(rng: np.random.Generator, survey: Survey, population: str, redshift: float) -> Galaxy:
    """The host of a supernova or a nucleus."""
    (mean, scatter), shares = HOSTS[population]
    kind = str(rng.choice(list(SPECTRA), p=shares))
    return make_galaxy(rng, survey, kind, redshift, float(np.clip(rng.normal(mean, scatter), -23.5, -15)))


def make_galaxy(rng: np.random.Generator, survey: Survey, kind: str, redshift: float, magnitude: float) -> Galaxy:
    """A galaxy of given type and absolute r magnitude, with random orientation."""
    redshift = max(redshift, NEAREST)
    fluxes = magnitude_to_njy(magnitude + distance_modulus(redshift)) * band_fluxes(survey, kind, redshift)
    fluxes = fluxes * (1 + redshift)
    radius = half_light_kpc(rng, kind, magnitude) / float(kpc_per_arcsec(redshift))
    angle, tilt = rng.uniform(0, np.pi), rng.random()
    disc = float(np.sqrt(tilt**2 + (1 - tilt**2) * 0.2**2))  # a disc of intrinsic thickness 0.2, cos i uniform
    bulge = float(np.clip(rng.normal(*BULGE[kind]), 0, 1))
    return Galaxy(
        kind,
        fluxes,
        bulge,
        (
            Profile(4.0, max(radius * 0.6, 0.05), float(rng.uniform(0.6, 1)), angle),
            Profile(1.0, max(radius, 0.08), disc, angle),
        ),
    )
