"""Supernovae: how bright, which colour, how fast. Every number has its source beside it.

A supernova is a `Surface`: flux density per frequency over (rest days from maximum, rest wavelength), 1 at maximum in
the band in which its absolute magnitude is known: B for type Ia, R for the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .spectra import black_body, extinction_law

Array = NDArray[np.float64]
Surface = Callable[[Array, Array], Array]

B_WAVELENGTH, R_WAVELENGTH = 4400.0, 6400.0  # Angstrom

# --- type Ia --------------------------------------------------------------------------------------------------------

# Light curves of a stretch-1 SN Ia in narrow rest-frame bands, fitted for this project to the spectral template of
# Hsiao et al. 2007, ApJ 663, 1187 (release 3) between -17 and +80 d; residuals 0.015-0.03 mag from 3500 to 6300 A,
# up to 0.1 mag outside. Flux relative to B at maximum:
#   exp(a - (t-t1)^2 / 2 s^2), s = s_rise before t1 and s_fall after it
#   + exp(b - (t-t2)^2 / 2 s2^2)                         the second maximum
#   + exp(c - t/tau) / (1 + exp(-(t-5)/4))               the tail
# wavelength (Angstrom), a, t1, s_rise, s_fall, b, t2, s2, c, tau
IA_LIGHT_CURVES = np.array(
    [
        [2500, -3.201, -4.588, 4.870, 8.739, -8.374, 45.000, 5.365, -5.842, 48.945],
        [3000, -1.137, -5.077, 4.870, 9.256, -6.228, 33.234, 4.000, -4.537, 85.051],
        [3500, -0.441, -3.210, 5.428, 8.741, -3.571, 12.000, 8.729, -3.378, 56.627],
        [3900, -0.073, -2.491, 5.939, 10.759, -5.870, 45.000, 20.00, -2.501, 61.379],
        [4300, -0.044, -1.137, 6.151, 9.777, -3.618, 23.544, 8.131, -2.557, 77.026],
        [4800, -0.254, -1.669, 5.895, 13.126, -3.853, 30.899, 4.343, -2.008, 81.738],
        [5300, -0.347, -1.898, 6.012, 10.588, -1.605, 14.431, 10.789, -1.343, 51.015],
        [5800, -0.218, -0.703, 6.396, 8.341, -2.447, 24.772, 5.046, -0.578, 33.611],
        [6300, -0.439, -1.761, 6.204, 8.670, -2.036, 23.910, 6.519, -0.756, 34.930],
        [6900, -0.625, -2.955, 5.695, 8.611, -2.177, 26.745, 6.478, -1.044, 30.768],
        [7600, -0.872, -3.796, 5.304, 6.806, -1.914, 29.277, 7.116, -1.047, 39.897],
        [8400, -0.908, -3.070, 5.821, 6.315, -2.174, 26.986, 8.470, -0.710, 25.034],
        [9300, -0.937, -3.189, 5.566, 5.810, -1.774, 27.690, 7.436, -0.809, 33.719],
        [10500, -1.144, -3.695, 5.483, 7.210, -1.512, 31.971, 14.23, -2.650, 127.119],
    ]
)  # fmt: skip
IA_FIRST_DAY = -20.0  # rest days; nothing shines before
# SALT2 standardisation, M = IA_MAGNITUDE - alpha x1 + beta c: Betoule et al. 2014, A&A 568, A22.
# The magnitude is ours, in the AB system and against the light curves above, so that SNe Ia of z < 0.12 come out as
# bright as the 24 of the SDSS-II survey in SALT3.K21 (-19.1 in r).
IA_MAGNITUDE, IA_ALPHA, IA_BETA = -19.23, 0.141, 3.10
# Magnitudes to add to the template at IA_CORRECTION_DAYS (rows) and IA_CORRECTION_WAVELENGTHS: mean residuals of the
# 101 SDSS-II SNe Ia of SALT3.K21 (Kenworthy et al. 2021, ApJ 923, 265) after a fit of time, magnitude, stretch and
# colour to each, smoothed. Beyond the grid its rim holds.
IA_CORRECTION_DAYS = np.array([-12.0, -6, 0, 6, 12, 18, 25, 35, 50])
IA_CORRECTION_WAVELENGTHS = np.array([2800.0, 3300, 3900, 4500, 5200, 5900, 6500, 7200, 8000])
IA_CORRECTION = np.array(
    [
        [0.50, 0.55, 0.12, 0.01, -0.07, -0.01, -0.18, -0.12, -0.05],
        [0.30, 0.20, 0.03, 0.00, 0.00, -0.01, -0.08, -0.04, -0.01],
        [0.30, 0.20, 0.01, 0.01, 0.05, -0.02, 0.00, 0.05, -0.01],
        [0.45, 0.42, -0.01, -0.01, 0.04, -0.03, -0.09, -0.03, -0.04],
        [0.50, 0.46, -0.01, 0.02, 0.08, 0.02, -0.04, 0.07, 0.06],
        [0.40, 0.36, 0.01, 0.01, 0.08, -0.02, -0.13, 0.04, 0.11],
        [0.25, 0.26, 0.02, 0.01, 0.01, -0.04, -0.11, -0.04, 0.08],
        [0.20, 0.20, 0.03, 0.05, -0.02, -0.06, -0.05, -0.01, 0.05],
        [0.15, 0.15, 0.01, 0.01, -0.07, -0.14, -0.13, -0.08, 0.01],
    ]
)
# Rise and fall have stretches of their own about the common one: Hayden et al. 2010, ApJ 712, 350.
IA_RISE_SCATTER, IA_FALL_SCATTER = 0.06, 0.06
# Populations (mode, lower, upper sigma): Scolnic & Kessler 2016, ApJ 822, L35 (SDSS, G10), with the bright side of x1
# and both sides of c widened until fits to simulated light curves scatter as those to the real 101 do.
IA_STRETCH = (1.14, 1.653, 0.35)
IA_COLOUR = (-0.05, 0.065, 0.10)
IA_SCATTER = 0.12  # mag, common to all bands: Guy et al. 2010, A&A 523, A7
IA_COLOUR_SCATTER = 0.06  # mag, independent at each of the wavelengths above
# Volumetric rate ~ (1+z)^1.5: Dilday et al. 2008, ApJ 682, 262.
IA_RATE_POWER = 1.5


def stretch_of(x1: float) -> float:
    """Stretch of the time axis for a SALT2 x1: Guy et al. 2007, A&A 466, 11."""
    return 0.98 + 0.091 * x1 + 0.003 * x1**2 - 0.00075 * x1**3


def ia_light_curves(phase: Array) -> Array:
    """Log flux [phase, wavelength] of the standard SN Ia at the wavelengths of the table."""
    t = phase[:, None]
    _, a, t1, rise, fall, b, t2, s2, c, tau = IA_LIGHT_CURVES.T
    first = np.exp(a - 0.5 * ((t - t1) / np.where(t < t1, rise, fall)) ** 2)
    second = np.exp(b - 0.5 * ((t - t2) / s2) ** 2)
    tail = np.exp(c - t / tau) / (1 + np.exp(np.minimum(-(t - 5) / 4, 50)))
    return np.asarray(np.log(first + second + tail))


def ia_correction(day: Array) -> Array:
    """Magnitudes [day, wavelength] to add to the standard SN Ia at the wavelengths of its table."""
    table = interpolate_wavelength(IA_CORRECTION, IA_CORRECTION_WAVELENGTHS, IA_LIGHT_CURVES[:, 0])
    return interpolate_wavelength(table.T, IA_CORRECTION_DAYS, day).T


def interpolate_wavelength(table: Array, nodes: Array, wavelength: Array) -> Array:
    """Linear interpolation of table [phase, node] at wavelength [...], extrapolated flat; returns [phase, ...]."""
    place = np.clip(np.searchsorted(nodes, wavelength) - 1, 0, len(nodes) - 2)
    share = np.clip((wavelength - nodes[place]) / (nodes[place + 1] - nodes[place]), 0, 1)
    return np.asarray(table[:, place] * (1 - share) + table[:, place + 1] * share)


def colour_law(wavelength: Array) -> Array:
    """Magnitudes per unit of SALT2 colour relative to B: dust of R_B = beta, close to SALT2's own law."""
    relative = extinction_law(wavelength) / extinction_law(np.array(B_WAVELENGTH))
    return np.asarray(IA_BETA * 1.05 * (relative - 1))


@dataclass(frozen=True)
class Supernova:
    """One supernova before distance and dust.

    Attributes:
        magnitude: absolute AB magnitude at maximum, before the host's dust.
        surface: relative flux per frequency of (rest days [n], rest wavelength [m]) -> [n, m], 1 at maximum.
        first_day, last_day: rest days from maximum between which it shines.
        dust: A(V) in the host.
        facts: numbers for the archive.
    """

    type: str
    magnitude: float
    surface: Surface
    first_day: float
    last_day: float
    dust: float
    facts: dict[str, Any] = field(default_factory=dict)


def two_sided(rng: np.random.Generator, mode: float, lower: float, upper: float) -> float:
    """A draw from two half-Gaussians joined at the mode."""
    left = rng.random() < lower / (lower + upper)
    return float(mode - abs(rng.normal(0, lower)) if left else mode + abs(rng.normal(0, upper)))


def draw_ia(rng: np.random.Generator) -> Supernova:
    """A normal SN Ia."""
    x1 = float(np.clip(two_sided(rng, *IA_STRETCH), -4, 4))
    colour = two_sided(rng, *IA_COLOUR)
    stretch = stretch_of(x1)
    wiggle = rng.normal(0, IA_COLOUR_SCATTER, len(IA_LIGHT_CURVES))
    rise, fall = stretch * (1 + rng.normal(0, IA_RISE_SCATTER)), stretch * (1 + rng.normal(0, IA_FALL_SCATTER))
    nodes = IA_LIGHT_CURVES[:, 0]

    def surface(phase: Array, wavelength: Array) -> Array:
        day = np.maximum(phase / np.where(phase < 0, rise, fall), IA_FIRST_DAY)
        log_flux = ia_light_curves(day) - 0.921 * (ia_correction(day) + wiggle)
        flux = np.exp(interpolate_wavelength(log_flux, nodes, wavelength))
        young = np.clip((day - IA_FIRST_DAY) / 3, 0, 1)[:, None]
        return np.asarray(flux * young * 10 ** (-0.4 * colour * colour_law(wavelength)))

    magnitude = IA_MAGNITUDE - IA_ALPHA * x1 + IA_BETA * colour + rng.normal(0, IA_SCATTER)
    facts = {"x1": x1, "c": colour}
    return Supernova("Ia", magnitude, surface, IA_FIRST_DAY * rise, 200, 0.0, facts)


# --- core collapse --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CoreCollapse:
    """One kind of core-collapse supernova.

    Attributes:
        share: of core-collapse supernovae in a volume, Smith et al. 2011, MNRAS 412, 1522.
        magnitude: mean and scatter in R at maximum, dimmed by the host's dust: Li et al. 2011, MNRAS 412, 1441, table 6,
            from H0 = 73 to 70; the scatter of IIn without superluminous ones.
        rise: days from explosion to maximum, mean and scatter.
        temperature: K at maximum, then what it tends to, and the days it takes (e-fold).
        blanketing: magnitudes lost at 3000 A once cool, growing below 4200 A.
    """

    share: float
    magnitude: tuple[float, float]
    rise: tuple[float, float]
    temperature: tuple[float, float, float]
    blanketing: float


# Rises: II-P, II-L Gonzalez-Gaitan et al. 2015, MNRAS 451, 2212; IIn Nyholm et al. 2020, A&A 637, A73; stripped
# envelopes Taddia et al. 2015, A&A 574, A60. Temperatures: II Faran et al. 2018, MNRAS 473, 513; stripped envelopes
# Taddia et al. 2018, A&A 609, A136; IIn Taddia et al. 2013, A&A 555, A10.
CORE_COLLAPSE = {
    "II-P": CoreCollapse(0.482, (-15.75, 1.23), (8, 2), (13000, 5600, 14), 2.0),
    "II-L": CoreCollapse(0.064, (-17.53, 0.64), (11, 3), (12500, 6000, 15), 1.5),
    "IIn": CoreCollapse(0.088, (-16.95, 1.20), (20, 8), (12000, 7500, 40), 0.4),
    "IIb": CoreCollapse(0.106, (-16.74, 1.30), (20, 3), (8000, 5200, 14), 2.5),
    "Ib": CoreCollapse(0.071, (-16.60, 1.00), (20, 3), (8000, 5200, 15), 2.5),
    "Ic": CoreCollapse(0.149, (-16.18, 1.24), (16, 4), (7600, 5000, 15), 2.5),
}
# Host extinction A(V) of core-collapse supernovae: exponential of this mean (after Hatano, Branch & Deaton 1998).
CORE_COLLAPSE_DUST = 0.3
MOST_LUMINOUS = -19.6  # superluminous supernovae are left out: the survey labelled three (Sako et al. 2018)
CORE_COLLAPSE_RATE_POWER = 3.6  # (1+z)^3.6 with star formation: Dahlen et al. 2012, ApJ 757, 70
COBALT = 0.98  # mag / 100 d, radioactive tail with full trapping


def draw_core_collapse(rng: np.random.Generator, kind: str | None = None) -> Supernova:
    """A supernova that is not a Ia; `kind` of `CORE_COLLAPSE`, by its share of a volume if not given."""
    names = list(CORE_COLLAPSE)
    shares = np.array([CORE_COLLAPSE[name].share for name in names])
    kind = kind or str(rng.choice(names, p=shares / shares.sum()))
    law = CORE_COLLAPSE[kind]
    rise = max(rng.normal(*law.rise), law.rise[0] / 2)
    fade = _plateau(rng, kind) if kind.startswith("II-") else _bump(rng, kind)
    warm, cool, days = law.temperature
    warm, cool = warm * rng.normal(1, 0.1), cool * rng.normal(1, 0.05)
    facts = {"rise": rise}
    surface = _hot_surface(fade, rise, (warm, cool, days), law.blanketing)
    dust = float(min(rng.exponential(CORE_COLLAPSE_DUST), 2.0))
    magnitude = max(rng.normal(*law.magnitude), MOST_LUMINOUS) - dust * float(extinction_law(np.array(R_WAVELENGTH)))
    return Supernova(kind, magnitude, surface, -rise, 250, dust, facts)


def _plateau(rng: np.random.Generator, kind: str) -> Callable[[Array], Array]:
    """V magnitudes below maximum of a hydrogen-rich SN: Anderson et al. 2014, ApJ 786, 67 (s2, OPTd, drop)."""
    linear = kind == "II-L"
    slope = max(rng.normal(3.0, 0.7) if linear else rng.normal(1.0, 0.6), 0.0)
    length = max(rng.normal(80, 12) if linear else rng.normal(100, 15), 45)
    drop = max(rng.normal(1.2 if linear else 2.1, 0.4), 0.3)

    def fade(phase: Array) -> Array:
        step = drop / (1 + np.exp(-(phase - length) / 5))
        return np.asarray(slope * np.clip(phase, 0, length) / 100 + COBALT * np.maximum(phase - length, 0) / 100 + step)

    return fade


def _bump(rng: np.random.Generator, kind: str) -> Callable[[Array], Array]:
    """V magnitudes below maximum of an SN without plateau: Drout et al. 2011, ApJ 741, 97; IIn Nyholm et al. 2020."""
    slow = kind == "IIn"
    fifteen = max(rng.normal(0.35, 0.15) if slow else rng.normal(0.75, 0.15), 0.2)  # decline in 15 d
    tail = rng.uniform(0.8, 2.5) if slow else rng.normal(1.9, 0.25)  # mag / 100 d
    share = 0.5 if slow else 0.35  # of the flux at maximum that belongs to the tail
    left = 10 ** (-0.4 * fifteen) - share * 10 ** (-0.4 * tail * 0.15)
    width = 15 / np.sqrt(-2 * np.log(np.clip(left / (1 - share), 0.02, 0.98)))

    def fade(phase: Array) -> Array:
        t = np.maximum(phase, 0)
        bump = (1 - share) * np.exp(-0.5 * (t / width) ** 2)
        return np.asarray(-2.5 * np.log10(bump + share * 10 ** (-0.4 * tail * t / 100)))

    return fade


def _hot_surface(
    fade: Callable[[Array], Array], rise: float, temperature: tuple[float, float, float], blanketing: float
) -> Surface:
    warm, cool, days = temperature

    def spectrum(phase: Array, wavelength: Array) -> Array:
        heat = cool + (warm - cool) * np.exp(-np.clip(phase, -rise * 0.7, None) / days)
        lost = np.clip((4200 - wavelength) / 1200, 0, 2.5) * np.clip((11000 - heat) / 4500, 0, 1)[:, None]
        return np.asarray(black_body(wavelength, heat[:, None]) * 10 ** (-0.4 * blanketing * lost))

    def surface(phase: Array, wavelength: Array) -> Array:
        # `fade` holds in V and R; the spectrum carries it to other wavelengths.
        relative = spectrum(phase, wavelength) / spectrum(phase, np.array([R_WAVELENGTH]))
        level = 10 ** (-0.4 * fade(phase)) * _brightening(phase, rise)
        return np.asarray(relative * level[:, None])

    return surface


def _brightening(phase: Array, rise: float) -> Array:
    """From explosion to maximum: an expanding photosphere, flux ~ t^2 at first and level at maximum."""
    share = np.clip(1 + phase / rise, 0, 1)
    return np.asarray(share**1.6 * (2.6 - 1.6 * share))
