"""What the demo shows at its end: scores, a text summary and a picture. Independent of servers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.evaluation.scores import accuracy, macro_f1
from skyheed.classifier.evaluation.scores import confusion as counts
from skyheed.classifier.safe_names import caption, printable

CUTOFFS = (3, 6, 12, 24)
COLOURS = {"AGN": "#7b3294", "SNIa": "#d7301f", "Variable": "#238b45", "SNOther": "#fdae61"}


@dataclass(frozen=True)
class Score:
    """Scores of a set of objects; `label` says after how many stamps."""

    label: str
    objects: int
    accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class Track:
    """One object's classifications over time and some of its stamps, for the picture."""

    object_id: str
    truth: str
    days: Sequence[float]
    probabilities: NDArray[np.float32]  # [classifications, classes]
    stamps: NDArray[np.float32]  # [k, 32, 32]
    captions: Sequence[str]  # band and day of each stamp


def confusion(truth: Sequence[str], answer: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Counts [truth, answer]."""
    index = {name: i for i, name in enumerate(classes)}
    rows, columns = (np.array([index[name] for name in names], np.int64) for names in (truth, answer))
    return counts(rows, columns, len(classes))


def score(label: str, matrix: NDArray[np.int64]) -> Score:
    """Accuracy and the unweighted mean F1 over the classes that occur."""
    if not (total := int(matrix.sum())):
        return Score(label, 0, float("nan"), float("nan"))
    return Score(label, total, accuracy(matrix), macro_f1(matrix))


def latency(milliseconds: Sequence[int]) -> dict[str, float]:
    """p50 and p99 of the alert-to-classification times."""
    if not milliseconds:
        return {"p50": float("nan"), "p99": float("nan")}
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}


def text(models: Mapping[str, Sequence[Score]]) -> str:
    """The scores of every model in one table; a single model needs no name."""
    width = max(len(printable(name)) for name in models) + 2 if len(models) > 1 else 0
    lines = [f"  {'model' if width else '':<{width}}after           objects  accuracy  macro-F1"]
    for name, scores in models.items():
        first = f"  {printable(name) if width else '':<{width}}"
        lines += [f"{first}{s.label:<15} {s.objects:7d}  {s.accuracy:8.1%}  {s.macro_f1:8.1%}" for s in scores]
    return "\n".join(lines)


def matrix_text(matrix: NDArray[np.int64], classes: Sequence[str], name: str = "") -> str:
    """A confusion matrix, with the model's name if there are several."""
    classes = [printable(c) for c in classes]
    width = max(len(c) for c in classes) + 2
    lines = [f"  {printable(name)}"] if name else []
    lines += ["  truth \\ answer" + "".join(c.rjust(width) for c in classes)]
    lines += [f"  {c:<14}" + "".join(str(n).rjust(width) for n in row) for c, row in zip(classes, matrix, strict=True)]
    return "\n".join(lines)


def summary(scores: Sequence[Score]) -> dict[str, float]:
    """The last of these scores, for the line of JSON."""
    return {"accuracy": round(scores[-1].accuracy, 4), "macro_f1": round(scores[-1].macro_f1, 4)}


def plot(path: Path, tracks: Sequence[Track], matrix: NDArray[np.int64], classes: Sequence[str], title: str) -> None:
    """Write the picture: some objects with probabilities against days and their stamps, and the confusion matrix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = max(len(tracks), 1)
    figure = pyplot.figure(figsize=(15, 1.9 * rows + 0.9), layout="constrained")
    grid = figure.add_gridspec(rows, 3, width_ratios=[5, 5, 4])
    for row, track in enumerate(tracks):
        _probabilities(figure.add_subplot(grid[row, 0]), track, classes, row == rows - 1)
        _stamps(figure.add_subplot(grid[row, 1]), track)
    _matrix(figure.add_subplot(grid[: max(rows // 2 + 1, 1), 2]), matrix, classes)
    figure.suptitle(caption(title, 0), fontsize=12)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _probabilities(axes: Any, track: Track, classes: Sequence[str], last: bool) -> None:
    for index, name in enumerate(classes):
        axes.plot(track.days, track.probabilities[:, index], ".-", color=COLOURS.get(name), label=caption(name), lw=1.5)
    axes.set(ylim=(-0.03, 1.03), ylabel="probability")
    axes.set_title(f"{caption(track.object_id)}, truth: {caption(track.truth)}", fontsize=9, loc="left")
    axes.legend(fontsize=7, ncols=len(classes), loc="upper right", framealpha=0.6)
    if last:
        axes.set_xlabel("days since the first stamp")


def _stamps(axes: Any, track: Track) -> None:
    """The stamps side by side, on one grey scale per stamp."""
    axes.set_axis_off()
    if not len(track.stamps):
        return
    low = np.percentile(track.stamps, 2, axis=(1, 2), keepdims=True)
    high = np.percentile(track.stamps, 99.7, axis=(1, 2), keepdims=True)
    shown = np.clip((track.stamps - low) / np.maximum(high - low, 1e-6), 0, 1) ** 0.7
    size = shown.shape[1]
    strip = np.concatenate([np.pad(s, ((0, 0), (0, 2)), constant_values=1.0) for s in shown], axis=1)
    # rows run south to north: the origin is at the bottom left
    axes.imshow(strip, cmap="gray", origin="lower", interpolation="nearest")
    for index, words in enumerate(track.captions):
        axes.text(index * (size + 2) + size / 2, size + 1, words, fontsize=7, ha="center", va="bottom")


def _matrix(axes: Any, matrix: NDArray[np.int64], classes: Sequence[str]) -> None:
    fractions = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for (y, x), count in np.ndenumerate(matrix):
        colour = "white" if fractions[y, x] > 0.5 else "black"
        axes.text(x, y, f"{count}\n{fractions[y, x]:.0%}", ha="center", va="center", fontsize=8, color=colour)
    axes.set(xticks=range(len(classes)), yticks=range(len(classes)), xlabel="classification at the end", ylabel="truth")
    names = [caption(name) for name in classes]
    axes.set_xticklabels(names, fontsize=8)
    axes.set_yticklabels(names, fontsize=8)
    axes.set_title("confusion matrix", fontsize=9)
