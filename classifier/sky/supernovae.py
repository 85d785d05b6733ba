"""Supernovae before distance: the parts common to all types, and core-collapse types. Every number has its source.

A supernova is a `Surface`: flux density per frequency over (rest days from maximum, rest wavelength), 1 at maximum in
the band of its absolute magnitude: B for type Ia (`type_ia`), R for the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skyheed.classifier.sky.spectra import Array, black_body, extinction_law

Surface = Callable[[Array, Array], Array]

R_WAVELENGTH = 6400.0  # Angstrom


@dataclass(frozen=True)
class Supernova:
    """One supernova before distance and dust.

    Attributes:
        magnitude: absolute AB magnitude at maximum, before the host's dust.
        surface: relative flux per frequency of (rest days [n], rest wavelength [m]) -> [n, m], 1 at maximum.
        first_day, last_day: rest days from maximum between which it has flux.
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


@dataclass(frozen=True)
class CoreCollapse:
    """One kind of core-collapse supernova.

    Attributes:
        share: fraction of core-collapse supernovae per volume, Smith et al. 2011, MNRAS 412, 1522.
        magnitude: mean and scatter in R (Vega system) at maximum, dimmed by dust: Li et al. 2011, MNRAS 412, 1441,
            table 6, from H0 = 73 to 70; the scatter of IIn without superluminous ones.
        rise: days from explosion to maximum, mean and scatter.
        temperature: K at maximum, then its asymptotic value, and the e-folding time in days.
        blanketing: magnitudes lost at 3000 A once cool, growing below 4200 A.
    """

    share: float
    magnitude: tuple[float, float]
    rise: tuple[float, float]
    temperature: tuple[float, float, float]
    blanketing: float


# R in the AB system minus R in the Vega system: a star of R = 0 has 3080 Jy (Bessell 1979, PASP 91, 589), one of AB
# magnitude 0 has 3631 Jy. Li et al. give Vega magnitudes, the surveys here use AB.
R_AB_LESS_VEGA = 0.18
# Rises: II-P, II-L Gonzalez-Gaitan et al. 2015, MNRAS 451, 2212; IIn Nyholm et al. 2020, A&A 637, A73; stripped
# envelopes Taddia et al. 2015, A&A 574, A60. Temperatures: II Faran et al. 2018, MNRAS 473, 513; stripped envelopes
# Taddia et al. 2018, A&A 609, A136; IIn Taddia et al. 2013, A&A 555, A10.
# The magnitudes of Ib and Ic have not been checked against their source.
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
MOST_LUMINOUS = -19.6  # AB; superluminous supernovae are left out: the survey labelled three (Sako et al. 2018)
CORE_COLLAPSE_RATE_POWER = 3.6  # (1+z)^3.6 with star formation: Dahlen et al. 2012, ApJ 757, 70
COBALT = 0.98  # mag / 100 d, radioactive tail with full trapping


def draw_core_collapse(rng: np.random.Generator, kind: str | None = None) -> Supernova:
    """A supernova that is not of type Ia; `kind` in `CORE_COLLAPSE`, drawn by its volumetric share if not given."""
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
    dimmed = max(rng.normal(*law.magnitude) + R_AB_LESS_VEGA, MOST_LUMINOUS)
    magnitude = dimmed - dust * float(extinction_law(np.array(R_WAVELENGTH)))
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
    share = 0.5 if slow else 0.35  # fraction of the flux at maximum in the tail
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
        # `fade` applies to V and R; the spectrum extends it to other wavelengths.
        relative = spectrum(phase, wavelength) / spectrum(phase, np.array([R_WAVELENGTH]))
        level = 10 ** (-0.4 * fade(phase)) * _brightening(phase, rise)
        return np.asarray(relative * level[:, None])

    return surface


def _brightening(phase: Array, rise: float) -> Array:
    """From explosion to maximum: an expanding photosphere, flux ~ t^2 at first, then levelling off at maximum."""
    share = np.clip(1 + phase / rise, 0, 1)
    return np.asarray(share**1.6 * (2.6 - 1.6 * share))
