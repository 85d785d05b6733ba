"""A Gaussian process over time and wavelength, which turns a light curve into an image. Numpy and scipy.

Kernel: Matern 3/2 in sqrt((days / length)^2 + (wavelength / 6000 A)^2). Amplitude and time scale are fitted by maximum
marginal likelihood, the wavelength scale is fixed (Boone 2019, AJ 158, 257; Qu et al. 2021, AJ 162, 67).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

# Effective wavelengths in Angstrom of SDSS ugriz (Fukugita et al. 1996, AJ 111, 1748) and of Rubin y, in the order of
# `history.BANDS`; the image's pixels are 230 wide, so those of other surveys differ by less than one pixel.
WAVELENGTHS = np.array([3551, 4686, 6166, 7480, 8932, 9710.0])
LENGTH_A = 6000.0
FIRST_LENGTH_D = 20.0
_ROOT = np.sqrt(3)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Process:
    """A fitted process.

    Attributes:
        days, wavelength: [k], of the observations.
        amplitude: amplitude of the kernel, in squared units of flux.
        length: days.
        lower: Cholesky factor [k, k] of the covariance of the observations.
        weights: [k], the inverse of that covariance times the fluxes.
    """

    days: Floats
    wavelength: Floats
    amplitude: float
    length: float
    lower: Floats
    weights: Floats

    def __call__(self, days: Floats, wavelength: Floats) -> tuple[Floats, Floats]:
        """Mean and 1-sigma error of the flux at points [p] in time and wavelength, [p] each."""
        cross = kernel(days, wavelength, self.days, self.wavelength, self.amplitude, self.length)
        known = solve_triangular(self.lower, cross.T, lower=True)
        variance = self.amplitude - (known**2).sum(0)
        return cross @ self.weights, np.sqrt(np.clip(variance, 0, None))


def kernel(
    days: Floats, wavelength: Floats, other_days: Floats, other_wavelength: Floats, amplitude: float, length: float
) -> Floats:
    """Covariance of the flux at points [p] and others [q], [p, q]."""
    r = _ROOT * np.hypot(
        (days[:, None] - other_days) / length, (wavelength[:, None] - other_wavelength) / LENGTH_A
    )  # fmt: skip
    found: Floats = amplitude * (1 + r) * np.exp(-r)
    return found


def fit(days: Floats, wavelength: Floats, flux: Floats, error: Floats) -> Process:
    """The process with maximum likelihood for the observations [k]; the search starts at half the most precise flux."""
    error = np.maximum(error, 1e-6 * np.abs(flux).max() + 1e-12)
    scale = max(abs(float(flux[np.argmax(np.abs(flux) / error)])), 1e-12)
    start = np.log([(0.5 * scale) ** 2, FIRST_LENGTH_D])

    def minus_log_likelihood(logs: Floats) -> float:
        lower, weights = _solved(days, wavelength, flux, error, *np.exp(logs))
        return float(flux @ weights / 2 + np.log(np.diag(lower)).sum())

    ranges = [(start[0] - 8, start[0] + 8), (np.log(0.5), np.log(1000))]
    best = minimize(minus_log_likelihood, start, method="L-BFGS-B", bounds=ranges).x
    amplitude, length = np.exp(best)
    return Process(
        days, wavelength, float(amplitude), float(length), *_solved(days, wavelength, flux, error, amplitude, length)
    )


def _solved(
    days: Floats, wavelength: Floats, flux: Floats, error: Floats, amplitude: float, length: float
) -> tuple[Floats, Floats]:
    """The Cholesky factor of the observations' covariance, and its inverse times the fluxes."""
    covariance = kernel(days, wavelength, days, wavelength, amplitude, length)
    covariance[np.diag_indices(len(days))] += error**2 + 1e-10 * amplitude
    factor, lower = cho_factor(covariance, lower=True)
    return np.tril(factor), cho_solve((factor, lower), flux)
