"""Defects of images: saturation, cosmic rays, bad columns and chip edges."""

import numpy as np

from skyheed.classifier.sky.conditions import Visits
from skyheed.classifier.sky.psf import SECOND_FLUX, SECOND_SIZE, Image, core_width
from skyheed.classifier.sky.surveys import AB_ZERO, Survey

# Probability of defects per 64 x 64 pixels: uncleaned cosmic rays, bad columns, the edge of a chip.
COSMIC_RAY, BAD_COLUMN, CHIP_EDGE = 0.03, 0.004, 0.006
CLEAR = 6  # pixels around the source without defects: otherwise the survey would have flagged the measurement


def add_defects(rng: np.random.Generator, survey: Survey, visits: Visits, images: Image) -> None:
    """Saturation, cosmic rays, bad columns and chip edges, in place."""
    n = len(images)
    along_x = abs(survey.column_angle - 90) < 45
    area = survey.size**2 / 64**2
    _saturate(survey, visits, images, along_x)
    for at in np.flatnonzero(rng.random(n) < COSMIC_RAY * area):
        _cosmic_ray(rng, images[at], float(visits.noise[at]))
    for at in np.flatnonzero(rng.random(n) < BAD_COLUMN * area):
        line, level = _away_from_source(rng, survey), rng.normal(0, 8) * visits.noise[at]
        (images[at].T if not along_x else images[at])[line] += np.float32(level)
    for at in np.flatnonzero(rng.random(n) < CHIP_EDGE * area):
        width = int(rng.integers(1, survey.size // 2 - CLEAR))
        view = images[at].T if rng.random() < 0.5 else images[at]
        beyond = slice(None, width) if rng.random() < 0.5 else slice(-width, None)
        view[beyond] = np.nan if rng.random() < 0.5 else 0


def _away_from_source(rng: np.random.Generator, survey: Survey) -> int:
    """A row or column of pixels that avoids the source."""
    line = int(rng.integers(survey.size - 2 * CLEAR))
    return line if line < survey.size // 2 - CLEAR else line + 2 * CLEAR


def _saturate(survey: Survey, visits: Visits, images: Image, along_x: bool) -> None:
    """Clip at the full well and let the charge bleed along the columns."""
    bands = list(survey.bands.values())
    full = np.array([_full_well(survey, band.seeing) for band in bands])[visits.band].astype(np.float32)
    for at in np.flatnonzero(images.max(axis=(1, 2)) > full):
        view = images[at] if along_x else images[at].T
        for line in np.flatnonzero((view > full[at]).any(1)):
            row = view[line]
            over = row > full[at]
            spilled = float((row[over] - full[at]).sum() / full[at])
            middle = float(np.flatnonzero(over).mean())
            reach = (over.sum() + min(spilled, 4 * len(row))) / 2
            row[np.abs(np.arange(len(row)) - middle) <= reach] = full[at]


def _full_well(survey: Survey, seeing: float) -> float:
    """nJy in the central pixel of a star that just saturates."""
    sigma = core_width() * seeing / survey.pixel
    peak = (1 - SECOND_FLUX + SECOND_FLUX / SECOND_SIZE**2) / (2 * np.pi * sigma**2)
    return float(10 ** (0.4 * (AB_ZERO - survey.saturation)) * min(peak, 0.7))


def _cosmic_ray(rng: np.random.Generator, image: Image, noise: float) -> None:
    """A straight track of sharp pixels, except at the source."""
    length, angle = rng.integers(1, 9), rng.uniform(0, 2 * np.pi)
    steps = np.arange(length)
    x = np.rint(rng.uniform(0, image.shape[1]) + steps * np.cos(angle)).astype(int)
    y = np.rint(rng.uniform(0, image.shape[0]) + steps * np.sin(angle)).astype(int)
    inside = (x >= 0) & (x < image.shape[1]) & (y >= 0) & (y < image.shape[0])
    inside &= np.hypot(x - image.shape[1] // 2, y - image.shape[0] // 2) > CLEAR
    image[y[inside], x[inside]] += np.float32(noise * 10 ** rng.uniform(1, 2.3)) * rng.uniform(0.5, 1, inside.sum())
