"""Variable stars: magnitudes in every band as a function of time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.sky import irregular

Array = NDArray[np.float64]

# Wavelengths at which colours are given: u g r i z of SDSS; other bands are interpolated.
NODES = np.array([3551.0, 4686.0, 6166.0, 7480.0, 8932.0])

# Relative frequency of each kind. The survey's own label is only "varies over several seasons" (Sako et al. 2018, PASP
# 130, 064002), so the mixture is our choice: halo pulsators and binaries as in Stripe 82 (Sesar et al. 2007, AJ 134,
# 2236), flares and red giants rarer.
MIXTURE = MappingProxyType(
    {"RRab": 0.32, "RRc": 0.12, "DSCT": 0.12, "EA": 0.12, "EW": 0.16, "LPV": 0.06, "flare": 0.10}
)


# RR Lyrae and delta Scuti: magnitudes are A Re sum_k c_k exp(2 pi i k phase), c_1 = 1. The RR Lyrae numbers are those
# of Fourier fits, made for this project, to the 483 ugriz light curves of Sesar et al. 2010 (ApJ 708, 717).
@dataclass(frozen=True)
class Pulsation:
    """A kind of pulsating star.

    Attributes:
        period: mean and scatter, days.
        amplitude: natural log of A in g: mean, slope with the period's deviation (per day), scatter, at the mean.
        ratio: A of u g r i z relative to g.
        harmonics: c_k in g for k > 1.
        steeper: change of c_k with ln A.
        lag: phase of c_1 in u g r i z relative to g; the higher harmonics are not shifted.
        scatter: of c_k for k > 1, in each part.
    """

    period: tuple[float, float]
    amplitude: tuple[float, float, float]
    ratio: tuple[float, ...]
    harmonics: tuple[complex, ...]
    steeper: tuple[complex, ...]
    lag: tuple[float, ...]
    scatter: float


RATIO_SCATTER = 0.015
LARGEST = -0.75  # ln A; hotter stars pulsate no more strongly
BLUER = 0.07  # g - r by which a star is bluer per unit of ln A, and r - i by half of that
# Amplitudes grow and shrink (the Blazhko effect, and less regular changes): exponential mean, and period in days.
MODULATION, MODULATION_PERIOD = 0.05, (20.0, 120.0)
PULSATIONS: Mapping[str, Pulsation] = MappingProxyType(
    {
        "RRab": Pulsation(
            (0.579, 0.065),
            (-1.01, -3.3, 0.19),
            (0.945, 1.0, 0.710, 0.560, 0.500),
            (-0.362 - 0.288j, -0.044 + 0.318j, 0.172 - 0.057j, -0.070 - 0.067j, -0.007 + 0.044j),
            (-0.18 + 0.06j, 0.02 + 0.18j, 0.20 - 0.12j, -0.20 - 0.05j, 0.02 + 0.10j),
            (0.06, 0.0, -0.10, -0.23, -0.31),
            0.038,
        ),
        "RRc": Pulsation(
            (0.343, 0.041),
            (-1.36, 0.0, 0.18),
            (0.879, 1.0, 0.710, 0.546, 0.484),
            (0.007 - 0.120j, -0.069 - 0.008j),
            (-0.077 - 0.122j, -0.095 + 0.046j),
            (0.06, 0.0, -0.03, -0.07, -0.14),
            0.040,
        ),
        # SX Phoenicis stars of the halo: McNamara 2011, AJ 142, 110.
        "DSCT": Pulsation(
            (0.065, 0.02),
            (-2.0, 0.0, 0.45),
            (0.93, 1.0, 0.71, 0.55, 0.48),
            (-0.13 - 0.18j, -0.03 + 0.07j),
            (0, 0),
            (0.05, 0.0, -0.05, -0.10, -0.15),
            0.05,
        ),
    }
)
# Mean colours u-g, g-r, r-i, i-z, and their scatter. RR Lyrae: from the light curves named above; the others are our
# round numbers near the stellar locus (Covey et al. 2007, AJ 134, 2398).
COLOURS: Mapping[str, tuple[float, float, float, float, float]] = MappingProxyType(
    {
        "RRab": (1.215, 0.25, 0.085, 0.035, 0.045),
        "RRc": (1.25, 0.155, 0.045, 0.02, 0.070),
        "DSCT": (1.05, 0.00, -0.08, -0.06, 0.06),
        "EA": (1.35, 0.45, 0.16, 0.08, 0.25),
        "EW": (1.45, 0.55, 0.20, 0.10, 0.20),
        "LPV": (2.6, 1.45, 1.10, 0.60, 0.25),
        "flare": (2.5, 1.45, 1.35, 0.75, 0.15),
        "Mira": (3.2, 1.60, 1.45, 0.85, 0.40),
        "YSO": (1.8, 1.10, 0.75, 0.50, 0.30),
        "CV": (0.1, 0.15, 0.10, 0.08, 0.20),
        "spots": (1.9, 0.95, 0.45, 0.25, 0.30),
    }
)  # fmt: skip
# Bright and faint limits in apparent r between which stars are drawn, with N(m) ~ 10^(slope m): RR Lyrae over the range
# of the light curves named above, the others our choice.
BRIGHTNESS = {
    "RRab": (14.2, 20.7, 0.02), "RRc": (14.0, 20.0, 0.02), "DSCT": (15.0, 21.0, 0.15), "EA": (15.0, 21.0, 0.25),
    "EW": (15.0, 21.0, 0.25), "LPV": (14.0, 18.5, 0.1), "flare": (17.0, 22.5, 0.35),
    "Mira": (13.0, 18.0, 0.1), "YSO": (13.5, 19.5, 0.2), "CV": (16.5, 22.0, 0.15), "spots": (13.0, 19.0, 0.2),
}  # fmt: skip


@dataclass(frozen=True)
class Star:
    """One variable star.

    Attributes:
        magnitudes: mean AB magnitude at `NODES`.
        change: (mjd [n], index of the node) -> magnitudes to add [n]; negative is brighter.
        facts: numbers for the archive.
    """

    type: str
    magnitudes: Array
    change: Callable[[Array, Array], Array]
    facts: dict[str, Any] = field(default_factory=dict)


def draw_kind(rng: np.random.Generator, mixture: Mapping[str, float] = MIXTURE) -> str:
    """One of the kinds of a mixture, drawn by frequency."""
    return str(rng.choice(list(mixture), p=np.array(list(mixture.values())) / sum(mixture.values())))


def draw_star(rng: np.random.Generator, kind: str, within: tuple[float, float, float] | None = None) -> Star:
    """A variable star of a kind in `COLOURS`.

    Args:
        within: brightest and faintest mean r and the log-slope between; `BRIGHTNESS` by default, and for dwarf novae
            and flares, which are found far above their mean brightness.
    """
    makers = {
        "EA": _detached, "EW": _contact, "LPV": _long_period, "flare": _flares, "YSO": irregular.young,
        "CV": irregular.cataclysmic, "spots": irregular.spotted, "Mira": irregular.mira,
    }  # fmt: skip
    change, facts = makers.get(kind, _pulsator)(rng, kind)
    magnitudes = _mean_magnitudes(rng, kind, BRIGHTNESS[kind] if within is None or kind in ("CV", "flare") else within)
    if kind in PULSATIONS:
        hotter = BLUER * (np.log(facts["amplitude_g"]) - PULSATIONS[kind].amplitude[0])
        magnitudes += hotter * np.array([-1.0, -1.0, 0.0, 0.5, 0.5])
    return Star(kind, magnitudes, change, facts)


def _mean_magnitudes(rng: np.random.Generator, kind: str, within: tuple[float, float, float]) -> Array:
    bright, faint, slope = within
    share = rng.random() * (10 ** (slope * (faint - bright)) - 1) + 1
    r = bright + np.log10(share) / slope
    *means, scatter = COLOURS[kind]
    # Colours change together with temperature, most in the blue.
    ug, gr, ri, iz = np.array(means) + rng.normal(0, scatter) * np.array([0.8, 1.0, 0.5, 0.3]) + rng.normal(0, 0.012, 4)
    return np.array([r + gr + ug, r + gr, r, r - ri, r - ri - iz])


Change = tuple[Callable[[Array, Array], Array], dict[str, Any]]


def _pulsator(rng: np.random.Generator, kind: str) -> Change:
    law = PULSATIONS[kind]
    period = max(rng.normal(*law.period), law.period[0] / 2)
    mean, slope, scatter = law.amplitude
    log_amplitude = min(mean + slope * (period - law.period[0]) + rng.normal(0, scatter), LARGEST)
    amplitude, steeper = float(np.exp(log_amplitude)), float(np.clip(log_amplitude - mean, -0.6, 0.5))
    ratio = amplitude * np.array(law.ratio) * rng.normal(1, RATIO_SCATTER, len(law.ratio))
    higher = np.array(law.harmonics) + steeper * np.array(law.steeper)
    wobble = rng.normal(0, law.scatter, (2, len(higher)))
    shape = np.concatenate([[1.0], higher + wobble[0] + 1j * wobble[1]])
    orders = np.arange(1, len(shape) + 1)
    start, lag = rng.random(), np.array(law.lag)
    swing, long, phase = rng.exponential(MODULATION), rng.uniform(*MODULATION_PERIOD), rng.uniform(0, 2 * np.pi)

    def change(mjd: Array, node: Array) -> Array:
        angle = orders * (2 * np.pi * (mjd / period + start))[:, None]
        angle[:, 0] += lag[node]
        wave = (shape * np.exp(1j * angle)).real.sum(1)
        return np.asarray(ratio[node] * wave * (1 + swing * np.sin(2 * np.pi * mjd / long + phase)))

    return change, {"period": period, "amplitude_g": amplitude}


def _detached(rng: np.random.Generator, kind: str) -> Change:
    """Detached binaries: two eclipses, deeper in the blue; periods as from Kepler (Kirk et al. 2016, AJ 151, 68)."""
    period = float(np.clip(10 ** rng.normal(0.25, 0.35), 0.4, 20))
    depth = rng.uniform(0.2, 1.2)
    second = depth * rng.uniform(0.1, 0.9)
    width = rng.uniform(0.015, 0.05) * min(1.5, 2 / period**0.5)  # width as a fraction of the cycle
    start, blue = rng.random(), np.array([1.10, 1.04, 1.0, 0.97, 0.95])

    def change(mjd: Array, node: Array) -> Array:
        cycle = (mjd / period + start) % 1
        first = depth * np.exp(-0.5 * (np.minimum(cycle, 1 - cycle) / width) ** 4)
        other = second * np.exp(-0.5 * (np.abs(cycle - 0.5) / width) ** 4)
        return np.asarray(first * blue[node] + other)

    return change, {"period": period, "depth": depth}


def _contact(rng: np.random.Generator, kind: str) -> Change:
    """W UMa binaries: period and amplitude of Rucinski 2001 (AJ 122, 1007); nearly the same in all bands."""
    period, amplitude = float(np.clip(rng.normal(0.34, 0.07), 0.22, 0.8)), rng.uniform(0.15, 0.8)
    start, unequal = rng.random(), rng.normal(0, 0.04)

    def change(mjd: Array, node: Array) -> Array:
        angle = 2 * np.pi * (mjd / period + start)
        dip = (1 - np.abs(np.sin(angle)) ** 0.8) * amplitude
        return np.asarray(dip + unequal * np.cos(angle) - 0.36 * amplitude)

    return change, {"period": period, "amplitude": amplitude}


def _long_period(rng: np.random.Generator, kind: str) -> Change:
    """Semi-regular and Mira variables: slow, with large amplitudes in the blue (Soszynski et al. 2009, AcA 59, 239)."""
    period, amplitude = 10 ** rng.uniform(1.8, 2.7), 10 ** rng.uniform(-0.6, 0.4)
    ratio = np.array([1.2, 1.0, 0.75, 0.45, 0.35])
    phases = rng.uniform(0, 2 * np.pi, 3)
    periods = period * np.array([1.0, rng.uniform(0.45, 0.7), rng.uniform(1.5, 3.0)])
    weights = np.array([0.40, 0.12, 0.15]) * amplitude

    def change(mjd: Array, node: Array) -> Array:
        waves = (weights * np.sin(2 * np.pi * mjd[:, None] / periods + phases)).sum(1)
        return np.asarray(waves * ratio[node])

    return change, {"period": period, "amplitude_g": amplitude}


# A flare is a 9000 K black body; its flux relative to an M dwarf's in r, at `NODES` (Kowalski et al. 2013, ApJS 207,
# 15). Shape: Davenport et al. 2014, ApJ 797, 122. Sizes: dN/dE ~ E^-1.8 (Hilton et al. 2010, AJ 140, 1402).
FLARE_COLOUR = np.array([1.05, 1.20, 1.00, 0.83, 0.68])


def _flares(rng: np.random.Generator, kind: str) -> Change:
    """An M dwarf with a few flares per season; the search selects stars observed during a flare."""
    rate = rng.uniform(0.05, 0.4)  # flares per day of the sizes below

    def change(mjd: Array, node: Array) -> Array:
        extra = np.zeros(len(mjd))
        for night in np.unique(np.floor(mjd)):
            local = np.random.default_rng([seed, int(night)])
            here = np.floor(mjd) == night
            for _ in range(local.poisson(rate)):
                peak = night + local.random()
                extra[here] += _one_flare(local, mjd[here] - peak)
        colours = _M_DWARF[node]
        return np.asarray(-2.5 * np.log10(1 + extra * FLARE_COLOUR[node] / colours))

    seed = int(rng.integers(2**31))
    return change, {"rate": rate}


# Quiet M dwarf relative to its r flux, from COLOURS above.
_M_DWARF = 10 ** (-0.4 * np.array([2.5 + 1.45, 1.45, 0.0, -1.35, -1.35 - 0.75]))


def _one_flare(rng: np.random.Generator, days: Array) -> Array:
    """Flare flux relative to the quiet star's r flux; `days` from its peak."""
    height = min(0.03 * (1 - rng.random()) ** (-1 / 1.1), 30.0)
    width = 0.004 * (height / 0.03) ** 0.4 * 10 ** rng.normal(0, 0.2)  # days, full width at half maximum
    t = days / width
    rise = np.clip(1 + t, 0, 1) ** 2
    decay = 0.689 * np.exp(-1.6 * np.maximum(t, 0)) + 0.303 * np.exp(-0.278 * np.maximum(t, 0))
    return np.asarray(height * np.where(t < 0, rise, decay))
