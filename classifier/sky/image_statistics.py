"""Statistics measured on an image: sky noise, and the width and position of its sources."""

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

Values = NDArray[np.float64]
FWHM = 2.3548  # FWHM of a Gaussian with sigma 1
SNR = 15.0  # of the brightest pixel, over the sky, for sources whose width and position are measured
NARROWEST, WIDEST = 1.2, 8.0  # FWHM of a star, pixels: cosmic rays are narrower
EDGE = 6  # pixels from the border within which no source is measured


def sky_noise(image: NDArray[np.float32]) -> float:
    """Standard deviation of the sky, from differences of nearby pixels, which gradients and hosts hardly affect."""
    known = image[np.isfinite(image)]
    if known.size < image.size // 2:
        return math.nan
    apart = image[:, 2:] - image[:, :-2]  # two pixels: resampling correlates neighbours
    apart = apart[np.isfinite(apart)]
    return float(1.4826 * np.median(np.abs(apart - np.median(apart))) / math.sqrt(2))


def gaussian(cut: NDArray[np.float32], noise: float) -> tuple[float, float, float] | None:
    """(x, y, FWHM) of a round Gaussian plus constant, fitted around the centre of an odd square; None if it fails."""
    middle = cut.shape[0] // 2
    v, u = np.indices(cut.shape) - float(middle)
    known = np.isfinite(cut)
    if not known.all() or cut[middle, middle] - np.median(cut) < SNR / 3 * noise:
        return None

    def model(_: Any, height: float, x: float, y: float, sigma: float, level: float) -> Values:
        return np.asarray((height * np.exp(-0.5 * ((u - x) ** 2 + (v - y) ** 2) / sigma**2) + level).ravel())

    start = (float(cut.max() - np.median(cut)), 0.0, 0.0, 1.0, float(np.median(cut)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)
            fit, _ = optimize.curve_fit(model, 0, cut.ravel().astype(float), p0=start, maxfev=300)
    except RuntimeError:
        return None
    width = abs(float(fit[3])) * FWHM
    return (
        (float(fit[1]), float(fit[2]), width)
        if NARROWEST < width < WIDEST and max(abs(fit[1]), abs(fit[2])) < 2
        else None
    )


def peaks(image: NDArray[np.float32], noise: float, height: float = SNR) -> list[tuple[int, int]]:
    """(y, x) of the sources that stand out by this many standard deviations."""
    smooth = ndimage.gaussian_filter(np.nan_to_num(image - np.float32(np.nanmedian(image))), 1.0)
    found = (smooth == ndimage.maximum_filter(smooth, 9)) & (smooth > height * noise)
    found[:EDGE], found[-EDGE:], found[:, :EDGE], found[:, -EDGE:] = False, False, False, False
    return [(int(y), int(x)) for y, x in zip(*np.nonzero(found), strict=True)]


def star_width(image: NDArray[np.float32], noise: float) -> float:
    """FWHM (pixels) of the sharpest bright source; NaN if there is none: galaxies are wider than nearby stars."""
    found = (gaussian(image[y - 4 : y + 5, x - 4 : x + 5], noise) for y, x in peaks(image, noise))
    return min((fit[2] for fit in found if fit), default=math.nan)
