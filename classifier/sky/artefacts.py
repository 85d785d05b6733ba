"""Artefacts of image subtraction, for telling them from sources: what surveys alert on by mistake.

Dipoles (a star that is not registered), rings (a PSF that is not matched), cosmic rays, and peaks of noise, painted on
noise as deep as that of simulated difference stamps, in the middle, where a detection is.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

KINDS = ("dipole", "ring", "cosmic ray", "noise")
FAINTEST, BRIGHTEST = 5.0, 100.0  # signal-to-noise ratio of a detection
BRIGHT_STAR = 10.0  # sigma of the brightest pixel of a star that leaves a dipole or a ring
RECENTRED = 3  # pixels: within this of the middle, the largest deviation is moved there
_PSF = 1.0  # sigma of the detection filter, pixels
_NORM = np.sqrt(4 * np.pi)  # of that filter: its response to white noise has unit variance

Images = NDArray[np.float32]
Image = NDArray[np.float64]


def artefacts(rng: np.random.Generator, difference: Images, template: Images) -> tuple[Images, NDArray[np.int64]]:
    """Difference stamps of artefacts, and their kinds (indices of `KINDS`).

    Args:
        difference: [m, n, n], any linear unit, of simulated alerts: give the noise.
        template: [m, n, n] in the same unit: the stars whose subtraction fails. Those without a bright one leave
            cosmic rays and noise alone.

    Returns:
        float32 [k, n, n], k <= m.
    """
    made, kinds = [], []
    for own, reference in zip(difference.astype(float), template.astype(float), strict=True):
        kind = int(rng.integers(len(KINDS)))
        noise, star = spread(own), reference - np.median(reference)
        if not noise > 0 or (kind < 2 and _middle(star, 2).max() < BRIGHT_STAR * noise):
            continue
        pattern = (_dipole, _ring, _cosmic_ray, _peak)[kind](rng, star)
        height = np.abs(_middle(_filtered(pattern), 2)).max()
        if height > 0:
            made.append(_centred(_noise(rng, own.shape, noise) + pattern * (_signal(rng, kind) * noise / height)))
            kinds.append(kind)
    return np.array(made, np.float32).reshape(-1, *difference.shape[1:]), np.array(kinds, np.int64)


def spread(image: Image) -> float:
    """Standard deviation of the noise, from the pixels away from the middle."""
    v, u = np.indices(image.shape) - image.shape[0] // 2
    around = image[np.hypot(u, v) > image.shape[0] / 4]
    return float(1.4826 * np.median(np.abs(around - np.median(around))))


def _signal(rng: np.random.Generator, kind: int) -> float:
    most = 1.6 * FAINTEST if KINDS[kind] == "noise" else BRIGHTEST
    return float(np.exp(rng.uniform(np.log(FAINTEST), np.log(most))))


def _dipole(rng: np.random.Generator, star: Image) -> Image:
    """A shift of the star, and a little of itself."""
    angle = rng.uniform(0, 2 * np.pi)
    dy, dx = np.gradient(star)
    return np.asarray(np.cos(angle) * dx + np.sin(angle) * dy + rng.normal(0, 0.1) * star)


def _ring(rng: np.random.Generator, star: Image) -> Image:
    """A wider or narrower star, and a little of itself and of a shift."""
    dy, dx = np.gradient(star)
    curved = np.gradient(dy)[0] + np.gradient(dx)[1]
    return np.asarray(rng.choice([-1.0, 1.0]) * curved + rng.normal(0, 0.5) * dx + rng.normal(0, 0.1) * star)


def _cosmic_ray(rng: np.random.Generator, star: Image) -> Image:
    """A track of sharp pixels; one in four is in the template and therefore negative."""
    made, length, angle = np.zeros_like(star), int(rng.integers(1, 6)), rng.uniform(0, 2 * np.pi)
    middle = star.shape[0] // 2
    for step in range(-(length // 2), length - length // 2):
        y, x = round(middle + step * np.sin(angle)), round(middle + step * np.cos(angle))
        made[y, x] += rng.uniform(0.5, 1)
    return made * (-1 if rng.random() < 0.25 else 1)


def _peak(rng: np.random.Generator, star: Image) -> Image:
    """A pixel or two that are higher than their neighbours."""
    made = np.zeros_like(star)
    made[star.shape[0] // 2, star.shape[1] // 2] = 1
    return np.asarray(ndimage.gaussian_filter(made, rng.uniform(0.3, 0.6)))


def _noise(rng: np.random.Generator, shape: tuple[int, ...], noise: float) -> Image:
    """Noise, a little correlated between neighbours, as resampling makes it."""
    white = rng.normal(0, noise, shape)
    return np.asarray(white + 0.3 * ndimage.gaussian_filter(white, 0.7))


def _filtered(image: Image) -> Image:
    return np.asarray(ndimage.gaussian_filter(image, _PSF) * _NORM)


def _middle(image: Image, reach: int) -> Image:
    middle = image.shape[0] // 2
    return image[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]


def _centred(image: Image) -> Image:
    """The largest deviation near the middle in the middle, as a detection is."""
    near = np.abs(_middle(_filtered(image), RECENTRED))
    y, x = np.unravel_index(int(near.argmax()), near.shape)
    return np.roll(image, (RECENTRED - int(y), RECENTRED - int(x)), (0, 1))
