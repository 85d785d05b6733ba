"""Type Ia supernovae: our own standard light curves, with the observed distributions of stretch, colour and scatter.

Other spectral templates can take the place of the standard light curves (`templates.load_template`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from skyheed.classifier.sky.spectra import Array, extinction_law
from skyheed.classifier.sky.supernovae import Supernova

B_WAVELENGTH = 4400.0  # Angstrom
MAG = 0.4 * float(np.log(10))  # change of a flux's natural log by a magnitude

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
IA_FIRST_DAY = -20.0  # rest days; no flux before
# SALT2 standardisation, M = IA_MAGNITUDE - alpha x1 + beta c: Betoule et al. 2014, A&A 568, A22.
# The magnitude is our choice, in the AB system and for the light curves above, so that SNe Ia of z < 0.12 are as bright
# as the 24 of the SDSS-II survey in SALT3.K21 (-19.1 in r).
IA_MAGNITUDE, IA_ALPHA, IA_BETA = -19.23, 0.141, 3.10
# Magnitudes to add to the template at IA_CORRECTION_DAYS (rows) and IA_CORRECTION_WAVELENGTHS: mean residuals of the
# 101 SDSS-II SNe Ia of SALT3.K21 (Kenworthy et al. 2021, ApJ 923, 265) after a fit of time, magnitude, stretch and
# colour to each, smoothed. Constant beyond the edges of the grid.
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
# Rise and fall have separate stretches about the common one: Hayden et al. 2010, ApJ 712, 350.
IA_RISE_SCATTER, IA_FALL_SCATTER = 0.06, 0.06
# Populations (mode, lower, upper sigma): Scolnic & Kessler 2016, ApJ 822, L35 (SDSS, G10), with the bright side of x1
# and both sides of c widened until fits to simulated light curves scatter like those to the real 101.
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
class IaTemplate:
    """A standard SN Ia.

    Attributes:
        nodes: rest wavelengths, Angstrom, increasing.
        log_flux: (days from B maximum [n], x1) -> natural log of the flux per frequency [n, node], 0 in B at maximum.
        stretches: x1 stretches the time axis; false if `log_flux` changes with x1 itself.
    """

    name: str
    nodes: Array
    log_flux: Callable[[Array, float], Array]
    stretches: bool


STANDARD = IaTemplate(
    "parametric", IA_LIGHT_CURVES[:, 0], lambda day, x1: ia_light_curves(day) - MAG * ia_correction(day), True
)


def two_sided(rng: np.random.Generator, mode: float, lower: float, upper: float) -> float:
    """A draw from two half-Gaussians joined at the mode."""
    left = rng.random() < lower / (lower + upper)
    return float(mode - abs(rng.normal(0, lower)) if left else mode + abs(rng.normal(0, upper)))


def draw_ia(rng: np.random.Generator, template: IaTemplate = STANDARD) -> Supernova:
    """A normal SN Ia."""
    x1 = float(np.clip(two_sided(rng, *IA_STRETCH), -4, 4))
    colour = two_sided(rng, *IA_COLOUR)
    stretch = stretch_of(x1) if template.stretches else 1.0
    # Drawn at the same wavelengths whatever the template.
    wiggle = rng.normal(0, IA_COLOUR_SCATTER, (1, len(IA_LIGHT_CURVES)))
    scatter = interpolate_wavelength(wiggle, IA_LIGHT_CURVES[:, 0], template.nodes)
    rise, fall = stretch * (1 + rng.normal(0, IA_RISE_SCATTER)), stretch * (1 + rng.normal(0, IA_FALL_SCATTER))

    def surface(phase: Array, wavelength: Array) -> Array:
        day = np.maximum(phase / np.where(phase < 0, rise, fall), IA_FIRST_DAY)
        log_flux = template.log_flux(day, x1) - MAG * scatter
        flux = np.exp(interpolate_wavelength(log_flux, template.nodes, wavelength))
        young = np.clip((day - IA_FIRST_DAY) / 3, 0, 1)[:, None]
        return np.asarray(flux * young * 10 ** (-0.4 * colour * colour_law(wavelength)))

    magnitude = IA_MAGNITUDE - IA_ALPHA * x1 + IA_BETA * colour + rng.normal(0, IA_SCATTER)
    facts = {"x1": x1, "c": colour}
    return Supernova("Ia", magnitude, surface, IA_FIRST_DAY * rise, 200, 0.0, facts)
