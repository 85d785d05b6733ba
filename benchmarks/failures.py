"""What a model says of the labelled objects of an archive, alongside their images: the wrong ones, or all.

    skyheed archive build-packets ztf ../shared/data/ztf --labels ../shared/data/ztf/index.csv -o real
    python benchmarks/failures.py wall.png real --model ztf/fusion [--epochs 1] [--all] [--without context]

A row is one object after so many alerts: science, template and difference stamp as the model sees them, its photometry
so far, and its probabilities; the label is marked. Types of supernovae count as one class. `--without` leaves out
images, photometry or context, as an object would be that has none. Prints the recall of every class. Weights that were
fitted to the same objects are right more often than on others. Stamps of real packets are not ours to publish.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sky_alongside import KINDS, draw

from skyheed.classifier import serving
from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.history import BANDS, UPPER_LIMIT, History
from skyheed.classifier.prediction import Prediction
from skyheed.classifier.taxonomy import THREE_CLASSES, among

LEFT_OUT = {
    "images": lambda h: replace(h, images={kind: np.zeros_like(stamps) for kind, stamps in h.images.items()}),
    "photometry": lambda h: replace(h, photometry=None),
    "context": lambda h: replace(h, context={}, contexts=()),
}
COLOURS = {"g": "#2a7f3f", "r": "#b3403a", "i": "#7a4b9a"}


def labelled(archive: Archive, epochs: int | None, without: Sequence[str]) -> list[tuple[str, History]]:
    """Label, one of `THREE_CLASSES`, and history of each object that has one."""
    found = []
    for row in archive.objects.to_pylist():
        label = among(row["class"], THREE_CLASSES)
        if label:
            history = history_of(archive, row["object_id"], epochs=epochs)
            for part in without:
                history = LEFT_OUT[part](history)
            found.append((label, history))
    return found


def together(classes: Sequence[str], said: Prediction) -> dict[str, float]:
    """Probabilities of `THREE_CLASSES`; none if the model declines."""
    if said.reason is not None:
        return {}
    found: Counter[str] = Counter()
    for name, probability in zip(classes, said.probabilities.tolist(), strict=True):
        found[among(name, THREE_CLASSES)] += probability
    return dict(found)


def points(axis: Any, history: History) -> None:
    """Photometry so far; upper limits as triangles."""
    known = history.photometry
    if known is None or not len(known):
        axis.axis("off")
        return
    days = known.mjd - history.mjd[-1]
    for band in np.unique(known.band):
        for limits, mark in ((False, "o"), (True, "v")):
            own = (known.band == band) & ((known.kind == UPPER_LIMIT) == limits)
            axis.plot(days[own], known.flux[own] / 1e3, mark, ms=2.5, color=COLOURS.get(BANDS[band], "0.4"))
    axis.tick_params(labelsize=5, pad=1)
    axis.set_xlabel("days; flux in uJy", fontsize=5, labelpad=1)


def bars(axis: Any, label: str, said: dict[str, float], reason: str) -> None:
    """Probabilities, the label's in blue."""
    axis.set_xlim(0, 1)
    axis.set_yticks(range(len(THREE_CLASSES)), THREE_CLASSES, fontsize=6)
    axis.tick_params(labelsize=5, pad=1)
    if not said:
        axis.text(0.02, 1, reason, fontsize=6)
    colours = ["#33658a" if name == label else "0.75" for name in THREE_CLASSES]
    axis.barh(range(len(THREE_CLASSES)), [said.get(name, 0.0) for name in THREE_CLASSES], color=colours)


def wall(shown: Sequence[tuple[str, History, dict[str, float], str]]) -> plt.Figure:
    """One row for each object."""
    figure, axes = plt.subplots(
        len(shown), 5, figsize=(7.2, 1.25 * len(shown)), dpi=90, squeeze=False, layout="constrained",
        width_ratios=[1, 1, 1, 1.6, 1.4],
    )  # fmt: skip
    for line, (label, history, said, reason) in zip(axes, shown, strict=True):
        for axis, kind in zip(line, KINDS, strict=False):
            axis.axis("off")
            if kind in history.images:
                draw(axis, history.images[kind][-1])
                axis.set_title(kind, fontsize=6, pad=1)
        points(line[3], history)
        line[3].set_title(f"{history.object_id}, after {len(history)}", fontsize=6, pad=1)
        bars(line[4], label, said, reason)
    return figure


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--model", default="ztf/fusion")
    parser.add_argument("--epochs", type=int, help="alerts; by default all")
    parser.add_argument("--all", action="store_true", help="draw the right ones, too")
    parser.add_argument("--without", choices=sorted(LEFT_OUT), action="append", default=[])
    given = parser.parse_args()
    archive = Archive(given.archive)
    model = serving.load(given.model, survey=archive.card["surveys"][0], device="cpu")
    objects = labelled(archive, given.epochs, given.without)
    if not objects:
        raise SystemExit(f"{given.archive} has no object with a label: build it with --labels")
    said = model.predict([history for _, history in objects])
    every = [
        (label, history, together(model.classes, one), str(one.reason or ""))
        for (label, history), one in zip(objects, said, strict=True)
    ]
    wrong = [one for one in every if not one[2] or max(one[2], key=one[2].__getitem__) != one[0]]
    for name in THREE_CLASSES:
        own = [one for one in every if one[0] == name]
        print(f"{name}: {len(own) - sum(one[0] == name for one in wrong)} of {len(own)} right")
    if shown := every if given.all else wrong:
        wall(shown).savefig(given.output)
        print(f"{given.output}: {len(shown)} objects")


if __name__ == "__main__":
    main()
