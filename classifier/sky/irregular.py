"""Irregular variable stars: young stars, dwarf novae, spotted stars, and Miras."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Change = tuple[Callable[[Array, Array], Array], dict[str, Any]]

# Magnitudes at the nodes u g r i z relative to r.
_YOUNG, _SPOTS = np.array([1.7, 1.35, 1.0, 0.8, 0.7]), np.array([1.15, 1.1, 1.0, 0.85, 0.8])
_GIANT = np.array([1.25, 1.15, 1.0, 0.75, 0.65])
_STEP = 0.25  # days between points of a random walk


def young(rng: np.random.Generator, kind: str) -> Change:
    """T Tauri stars: accretion flickers for days, on top of spots and slow trends (Cody et al. 2014, AJ 147, 82)."""
    rms, timescale = 10 ** rng.uniform(-1.3, -0.35), 10 ** rng.uniform(0.0, 1.6)
    period, spots = 10 ** rng.uniform(0.2, 1.1), rng.exponential(0.06)
    trend, years = rng.normal(0, 0.25), rng.uniform(150, 900)
    seed, phase = int(rng.integers(2**31)), rng.uniform(0, 2 * np.pi)

    def change(mjd: Array, node: Array) -> Array:
        slow = trend * np.sin(2 * np.pi * mjd / years + phase) + spots * np.sin(2 * np.pi * mjd / period)
        return np.asarray((rms * _walk(seed, mjd, timescale) + slow) * _YOUNG[node])

    return change, {"rms": float(rms), "tau": float(timescale)}


def _walk(seed: int, mjd: Array, timescale: float) -> Array:
    """A damped random walk of unit variance that is reproducible at any given time.

    The walk is drawn in independent blocks of 60 days, each with its own random stream.
    """
    block = 60.0
    result = np.zeros(len(mjd))
    keep = np.exp(-_STEP / timescale)
    for number in np.unique(np.floor(mjd / block)):
        local = np.random.default_rng([seed, int(number)])
        kicks = local.standard_normal(int(block / _STEP) + 1)
        walk = np.empty_like(kicks)
        walk[0] = kicks[0]
        for i in range(1, len(kicks)):
            walk[i] = keep * walk[i - 1] + np.sqrt(1 - keep**2) * kicks[i]
        here = np.floor(mjd / block) == number
        result[here] = np.interp(mjd[here] - number * block, np.arange(len(kicks)) * _STEP, walk)
    return result


def cataclysmic(rng: np.random.Generator, kind: str) -> Change:
    """Dwarf novae: outbursts of 2 to 5 mag that rise in a day and last for days (Otulakowska-Hypka et al. 2016, MNRAS
    460, 2526), and flickering."""
    height, wait = rng.uniform(1.8, 5.0), 10 ** rng.uniform(1.1, 2.3)
    width, flicker = rng.uniform(3, 12), rng.exponential(0.08)
    seed = int(rng.integers(2**31))

    def change(mjd: Array, node: Array) -> Array:
        cycle = np.floor(mjd / wait)
        start = np.array([np.random.default_rng([seed, int(c)]).uniform(0, wait) for c in np.unique(cycle)])
        after = np.concatenate([mjd - c * wait - s for c, s in zip(np.unique(cycle), start, strict=True)])
        after = after.reshape(len(start), -1)[np.searchsorted(np.unique(cycle), cycle), np.arange(len(mjd))]
        bright = np.clip(1 + after, 0, 1) * (1 / (1 + np.exp((after - width) / 1.2)))
        return np.asarray(-height * bright * np.where(node < 2, 1.05, 0.95) + flicker * _walk(seed, mjd, 0.3))

    return change, {"outburst": float(height), "recurrence": float(wait)}


def spotted(rng: np.random.Generator, kind: str) -> Change:
    """Rotating stars with spots (BY Draconis, RS Canum Venaticorum): Chen et al. 2020, ApJS 249, 18."""
    period, amplitude = 10 ** rng.uniform(-0.4, 1.3), 10 ** rng.uniform(-1.1, -0.35)
    second, phase, life = rng.uniform(0, 0.5), rng.uniform(0, 2 * np.pi, 3), rng.uniform(60, 400)

    def change(mjd: Array, node: Array) -> Array:
        turn = 2 * np.pi * mjd / period
        swing = 1 + 0.4 * np.sin(2 * np.pi * mjd / life + phase[2])
        wave = np.sin(turn + phase[0]) + second * np.sin(2 * turn + phase[1])
        return np.asarray(amplitude * swing * wave * _SPOTS[node])

    return change, {"period": float(period), "amplitude": float(amplitude)}


def mira(rng: np.random.Generator, kind: str) -> Change:
    """Miras: 2 to 6 mag in the blue, 100 to 500 d (Soszynski et al. 2009, AcA 59, 239)."""
    period, amplitude = rng.uniform(110, 520), rng.uniform(1.0, 3.0)
    phase, second, wobble = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.3), rng.uniform(0, 2 * np.pi)

    def change(mjd: Array, node: Array) -> Array:
        turn = 2 * np.pi * mjd / period + phase
        wave = np.sin(turn) + second * np.sin(2 * turn + wobble) + 0.15 * np.sin(turn / 2.7 + wobble)
        return np.asarray(amplitude * wave * _GIANT[node])

    return change, {"period": float(period), "amplitude_r": float(amplitude)}
