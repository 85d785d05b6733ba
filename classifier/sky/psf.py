"""The point-spread function: its shape, its transfer functions, and its effect on noise.

Everything is computed in Fourier space, where this PSF and a sub-pixel shift are exact products.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, optimize

from skyheed.classifier.sky.surveys import Survey

Array = NDArray[np.float64]
Image = NDArray[np.float32]

# SDSS's PSF (psField of run 1000, all bands): two Gaussians and a power-law wing (1 + r^2 / 3 s^2)^-1.5, whose Fourier
# transform is exactly exp(-2 pi k sqrt(3) s).
SECOND_SIZE = 2.0  # width of the second Gaussian relative to the first; `optics` relies on the 2
SECOND_FLUX = 0.37
WING_FLUX = 0.028
WING_SIZE = 1.65  # sqrt(3) s, in units of the FWHM
# Ellipticity of the PSF, scatter per component; like the numbers below, our choice.
ELLIPTICITY = 0.03
MARGIN = 6  # FWHM by which the transform's period exceeds the stamp, so that wings hardly wrap around


@lru_cache(1)
def core_width() -> float:
    """Width (sigma) of the first Gaussian for a PSF of FWHM 1, wings included."""

    def excess(sigma: float) -> float:
        def light(r: float) -> float:
            second, wing = SECOND_SIZE * sigma, WING_SIZE
            gaussians = (1 - SECOND_FLUX) / sigma**2 * np.exp(-0.5 * (r / sigma) ** 2)
            gaussians += SECOND_FLUX / second**2 * np.exp(-0.5 * (r / second) ** 2)
            return float((1 - WING_FLUX) * gaussians + WING_FLUX / wing**2 * (1 + (r / wing) ** 2) ** -1.5)

        return light(0.5) - 0.5 * light(0.0)

    return float(optimize.brentq(excess, 0.2, 0.6))


def noise_area(fwhm: Array | float, pixel: float) -> Array:
    """Pixels of sky noise in the PSF flux of a faint source, 1 / sum(P^2) of this PSF, for FWHM in arcsec."""
    sigma = core_width() * np.asarray(fwhm) / pixel
    a, b, s = 1 - SECOND_FLUX, SECOND_FLUX, SECOND_SIZE
    inverse = (a**2 + b**2 / s**2 + 4 * a * b / (1 + s**2)) / (4 * np.pi * sigma**2)
    return np.asarray(1 / (inverse * (1 - WING_FLUX) ** 2))


@lru_cache(8)
def frequencies(survey: Survey) -> tuple[Image, Image, int]:
    """Cycles per arcsec along x [1, K] and y [G, 1] of the image, and the grid's side G."""
    wide = survey.size + MARGIN * max(band.seeing for band in survey.bands.values()) / survey.pixel
    side = 4 * fft.next_fast_len(int(wide / 4 + 1), real=True) * survey.oversample
    step = survey.pixel / survey.oversample
    kx = np.fft.rfftfreq(side, step)[None, :]
    ky = np.fft.fftfreq(side, step)[:, None]
    return kx.astype(np.float32), ky.astype(np.float32), side


def optics(survey: Survey, fwhm: Array, e1: Array, e2: Array) -> Image:
    """Transfer functions [n, G, K] of elliptical PSFs."""
    kx, ky, _ = frequencies(survey)
    stretched = (
        (1 + e1)[:, None, None].astype(np.float32) * kx**2
        + (1 - e1)[:, None, None].astype(np.float32) * ky**2
        + 2 * e2[:, None, None].astype(np.float32) * (kx * ky)
    )
    sigma = (core_width() * fwhm).astype(np.float32)[:, None, None]
    core = np.exp(-2 * np.pi**2 * sigma**2 * stretched)
    second = np.square(np.square(core))  # twice as wide: the fourth power
    wing = np.exp(-2 * np.pi * WING_SIZE * fwhm.astype(np.float32)[:, None, None] * np.sqrt(stretched))
    result = np.float32(1 - WING_FLUX) * (np.float32(1 - SECOND_FLUX) * core + np.float32(SECOND_FLUX) * second)
    return np.asarray(result + np.float32(WING_FLUX) * wing, np.float32)


def shift(survey: Survey, x: Array, y: Array) -> NDArray[np.complex64]:
    """Phases [n, G, K] that put a source at (x, y) arcsec from pixel [0, 0]."""
    kx, ky, _ = frequencies(survey)
    along = np.exp(-2j * np.pi * kx * x[:, None]).astype(np.complex64)
    up = np.exp(-2j * np.pi * ky[:, 0] * y[:, None]).astype(np.complex64)
    return np.asarray(up[:, :, None] * along[:, None, :])
