"""Active galactic nuclei: a quasar spectrum whose brightness is a damped random walk."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# log f = A + B log(lambda_rest / 4000 A) + C (M_i + 23) + D log(M_BH / 1e9 Msun): MacLeod et al. 2010, ApJ 721, 1014,
# table 1 (SF_infinity in mag, tau in rest-frame days).
STRUCTURE = (-0.51, -0.479, 0.131, 0.18)
TIMESCALE = (2.4, 0.17, 0.03, 0.21)
TIMESCALE_SCATTER, STRUCTURE_SCATTER = 0.35, 0.12  # dex, about these relations (ibid., section 4)
# log(M_BH / Msun) against M_i: mean 2.0 - 0.27 M_i, scatter 0.38 (ibid., section 3.1, after Shen et al. 2008).
MASS = (2.0, -0.27, 0.38)
# Fraction of the fluctuation, in amplitude, that is independent in each band; the rest is common.
OWN_SHARE = 0.15

# Composite quasar: f_nu ~ nu^-0.44 below 5000 A, nu^-2.45... in the red mostly host light, which is added separately:
# Vanden Berk et al. 2001, AJ 122, 549. Lines: rest wavelength, equivalent width, Gaussian sigma, Angstrom.
SLOPE = -0.44
LINES = (
    (1216, 93, 20), (1549, 24, 14), (1909, 21, 23), (2800, 32, 35), (3000, 40, 250), (4102, 5, 19), (4341, 13, 20),
    (4570, 20, 90), (4861, 46, 40), (5007, 13, 6), (5250, 20, 100), (5876, 5, 25), (6563, 195, 47),
)  # fmt: skip


@dataclass(frozen=True)
class Nucleus:
    """One AGN.

    Attributes:
        magnitude: absolute M_i, K-corrected to z = 2 as in the relations above (shift of 0.6 mag from z = 0).
        mass: log10 of the black hole's mass, solar.
        redness: mag of A(V) in the host.
    """

    redshift: float
    magnitude: float
    mass: float
    redness: float


def draw_nucleus(rng: np.random.Generator, redshift: float, magnitude: float) -> Nucleus:
    """An AGN of given luminosity with a random mass and reddening."""
    mass = MASS[0] + MASS[1] * magnitude + rng.normal(0, MASS[2])
    return Nucleus(redshift, magnitude, float(mass), float(min(rng.exponential(0.10), 1.0)))


def spectrum(wavelength: Array) -> Array:
    """Relative flux per frequency at rest wavelengths (Angstrom)."""
    continuum = (wavelength / 4000) ** -SLOPE
    lines = sum(
        width / (sigma * np.sqrt(2 * np.pi)) * np.exp(-0.5 * ((wavelength - centre) / sigma) ** 2)
        for centre, width, sigma in LINES
    )
    # Mean absorption by intergalactic neutral hydrogen, blueward of Lyman alpha.
    absorbed = np.where(wavelength < 1216, 0.7, 1.0) * np.where(wavelength < 912, 0.1, 1.0)
    return np.asarray(continuum * (1 + lines) * absorbed)


def relation(law: tuple[float, float, float, float], nucleus: Nucleus, wavelength: float) -> float:
    """One of the two relations above at a rest wavelength."""
    a, b, c, d = law
    return float(10 ** (a + b * np.log10(wavelength / 4000) + c * (nucleus.magnitude + 23) + d * (nucleus.mass - 9)))


def damped_random_walk(rng: np.random.Generator, times: Array, timescale: float, walks: int) -> Array:
    """Unit-variance damped random walks [walks, n] at increasing times; exact at any spacing (Kelly et al. 2009)."""
    kicks = rng.standard_normal((walks, len(times)))
    keep = np.exp(-np.diff(times) / timescale)
    spread = np.sqrt(1 - keep**2)
    walk = kicks.copy()
    for step in range(1, len(times)):
        walk[:, step] = keep[step - 1] * walk[:, step - 1] + spread[step - 1] * kicks[:, step]
    return walk


def light_curves(
    rng: np.random.Generator, nucleus: Nucleus, times: Array, wavelengths: Array
) -> tuple[Array, float, Array]:
    """Magnitudes about the mean [band, n], observed timescale (d) and rms per band (mag).

    Args:
        times: observer's days, increasing.
        wavelengths: observed, Angstrom, one per band.
    """
    rest = wavelengths / (1 + nucleus.redshift)
    timescale = relation(TIMESCALE, nucleus, float(np.median(rest))) * 10 ** rng.normal(0, TIMESCALE_SCATTER)
    timescale = float(np.clip(timescale * (1 + nucleus.redshift), 10, 1e4))
    shift = 10 ** rng.normal(0, STRUCTURE_SCATTER)
    rms = np.array([relation(STRUCTURE, nucleus, float(w)) for w in rest]) * shift / np.sqrt(2)
    rms = np.minimum(rms, 0.8)
    walks = damped_random_walk(rng, times, timescale, len(wavelengths) + 1)
    mixed = np.sqrt(1 - OWN_SHARE**2) * walks[0] + OWN_SHARE * walks[1:]
    return rms[:, None] * mixed, timescale, rms
