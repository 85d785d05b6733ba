"""Stamps of several archives alongside each other, to be looked at: real, simulated, painted.

    skyheed archive build-packets ztf ../shared/data/ztf --labels ../shared/data/ztf/index.csv -o real
    python benchmarks/sky_alongside.py wall.png real sky/ztf painted [--each 6] [--seed 0]

A row is one class of one archive; of each object the science, template and difference stamp of one epoch, as a model
sees them. Grey is asinh of the pixel over the image's own noise. Stamps of real packets are not ours to publish.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.history import History
from skyheed.classifier.taxonomy import THREE_CLASSES

KINDS = ("science", "template", "difference")


def examples(archive: Archive, label: str, count: int, seed: int) -> Iterator[History]:
    """Some objects of a class by chance, each up to the middle of its sequence."""
    rows = [row for row in archive.objects.to_pylist() if (row["true_class"] or row["class"]).startswith(label)]
    for at in np.random.default_rng(seed).permutation(len(rows))[:count]:
        whole = history_of(archive, rows[at]["object_id"])
        yield whole.until(epochs=1 + len(whole) // 2)


def draw(axis: Any, image: np.ndarray) -> None:
    pixels = image.astype(float)
    noise = 1.4826 * np.median(np.abs(pixels - np.median(pixels))) or 1.0
    axis.imshow(np.arcsinh(pixels / noise), origin="lower", cmap="gray", vmin=-3, vmax=6, interpolation="nearest")


def wall(archives: list[Archive], each: int, seed: int) -> plt.Figure:
    """Rows by class, then by archive."""
    rows = [(label, archive) for label in THREE_CLASSES for archive in archives]
    figure, axes = plt.subplots(len(rows), 3 * each, figsize=(3 * each, 1.05 * len(rows)), dpi=80, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for line, (label, archive) in zip(axes, rows, strict=True):
        line[0].set_title(f"{label}, {archive.path.name}", fontsize=7, loc="left")
        for column, history in enumerate(examples(archive, label, each, seed)):
            for axis, kind in zip(line[3 * column :], KINDS, strict=False):
                draw(axis, history.images[kind][-1])
    figure.subplots_adjust(0, 0, 1, 0.97, 0.02, 0.1)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("archives", type=Path, nargs="+")
    parser.add_argument("--each", type=int, default=6, help="objects of a class from each archive")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wall([Archive(path) for path in given.archives], given.each, given.seed).savefig(given.output)


if __name__ == "__main__":
    main()
