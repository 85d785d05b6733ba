"""Small training data without an archive."""

from collections.abc import Sequence

import numpy as np

from skyheed.classifier import taxonomy
from skyheed.classifier.training.dataset import Dataset


def made(lengths: Sequence[int], seed: int = 0) -> Dataset:
    """Objects with this many stamps; their class sets how bright they are, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    count, total = len(lengths), sum(lengths)
    start = np.concatenate([[0], np.cumsum(lengths)])
    owner = np.repeat(np.arange(count), lengths)
    label = [taxonomy.CLASSES[i % 4] for i in range(count)]
    y, x = np.mgrid[-16:16, -16:16]
    brightness = 30.0 * (owner % 4)
    stamps = rng.normal(0, 1, (total, 32, 32)) + brightness[:, None, None] * np.exp(-(x**2 + y**2) / 6)
    mjd = np.concatenate([59000 + np.sort(rng.uniform(0, 60, n)) for n in lengths])
    flux = np.stack([brightness + rng.normal(0, 1, total), brightness], 1).astype(np.float32)
    flux[::5, 1] = np.nan  # unknown, as in real images
    split = ["train", "train", "validation", "test"]
    return Dataset(
        [f"object-{i}" for i in range(count)], label, label, [split[i // 4 % 4] for i in range(count)],
        ["simulated"] * count, np.arange(count) % 8 < 6, start, mjd, rng.integers(0, 5, total).astype(np.uint8),
        stamps.astype(np.float16), flux, "sdss", np.ones(total, np.float32),
        [f"type-{i % 8}" for i in range(count)],
    )  # fmt: skip
