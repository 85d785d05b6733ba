"""Scores of probabilities against the truth, with bootstrap intervals over objects. Numpy only."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of equal mass, for the calibration error (15 as in Guo et al.); fewer if they would contain under IN_BIN
IN_BIN = 10  # objects
CALIBRATED_DRAWS = 100
DRAWS = 400
INTERVAL = (16, 84)  # per cent: 68 % of the draws
Truth = NDArray[np.int64]
Probabilities = NDArray[np.floating[Any]]


def confusion(truth: Truth, answer: Truth, classes: int) -> NDArray[np.int64]:
    """[truth, predicted] counts."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (truth, answer), 1)
    return matrix


def accuracy(matrix: NDArray[np.int64]) -> float:
    """Fraction of correct classifications."""
    return float(np.trace(matrix) / matrix.sum())


def balanced_accuracy(matrix: NDArray[np.int64]) -> float:
    """Mean recall of the classes that occur in the truth."""
    occurring = matrix.sum(1) > 0
    return float((np.diag(matrix)[occurring] / matrix.sum(1)[occurring]).mean())


def macro_f1(matrix: NDArray[np.int64]) -> float:
    """Mean F1 of the classes that occur in the truth."""
    occurring = matrix.sum(1) > 0
    return float((2 * np.diag(matrix) / np.maximum(matrix.sum(0) + matrix.sum(1), 1))[occurring].mean())


def log_loss(truth: Truth, p: Probabilities) -> float:
    """Mean negative logarithm of the probability of the true class."""
    return float(-np.log(p[np.arange(len(truth)), truth] + 1e-9).mean())


def brier(truth: Truth, p: Probabilities) -> float:
    """Mean over objects of the summed squared error over classes."""
    return float(((p - np.eye(p.shape[1])[truth]) ** 2).sum(1).mean())


def calibration_bins(truth: Truth, p: Probabilities) -> list[tuple[float, float, int]]:
    """(confidence, accuracy, objects) of bins of equal mass in the probability of the top class.

    Objects with equal probability all get their mean accuracy, so that their order does not matter, even if a bin edge
    falls among them.
    """
    top = p.max(1)
    order = np.argsort(top)
    right = _shared(top[order], (p.argmax(1) == truth)[order].astype(float))
    bins = np.array_split(np.arange(len(top)), _bins(len(top)))
    return [(float(top[order[b]].mean()), float(right[b].mean()), len(b)) for b in bins if len(b)]


def _bins(objects: int) -> int:
    return min(BINS, max(objects // IN_BIN, 1))


def _shared(top: Probabilities, right: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., n] averaged over objects of equal probability; `top` [n] is sorted."""
    first = np.flatnonzero(np.diff(top, prepend=-1))
    counts = np.diff(first, append=len(top))
    return np.repeat(np.add.reduceat(right, first, axis=-1) / counts, counts, axis=-1)


def calibration_error(truth: Truth, p: Probabilities) -> float:
    """Expected calibration error of the top class (Guo et al. 2017, arXiv 1706.04599), bins of equal mass."""
    return sum(abs(c - a) * n for c, a, n in calibration_bins(truth, p)) / len(truth)


def calibrated_error(p: Probabilities, seed: int = 0) -> float:
    """The mean `calibration_error` of perfectly calibrated probabilities: with labels drawn from them.

    It is the error expected by chance for so many objects (0.12 for 100 uncertain classifications, 0.05 for 935);
    only the excess of a calibration error over it says something about a model.
    """
    top = np.sort(p.max(1)).astype(float)  # for a label only whether it is the top class matters
    right = _shared(top, (np.random.default_rng(seed).random((CALIBRATED_DRAWS, len(top))) < top).astype(float))
    first = [int(b[0]) for b in np.array_split(np.arange(len(top)), _bins(len(top)))]
    return float(np.abs(np.add.reduceat(right - top, first, axis=1)).sum(1).mean() / len(top))


def per_class(matrix: NDArray[np.int64], classes: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and the number of objects of every class; NaN where the denominator is 0."""
    found = {}
    for c, name in enumerate(classes):
        hit, true, said = int(matrix[c, c]), int(matrix[c].sum()), int(matrix[:, c].sum())
        found[name] = {
            "objects": true,
            "precision": round(hit / said, 4) if said else float("nan"),
            "recall": round(hit / true, 4) if true else float("nan"),
            "f1": round(2 * hit / (said + true), 4) if said + true else float("nan"),
        }
    return found


_OF_MATRIX: dict[str, Callable[[NDArray[np.int64]], float]] = {
    "accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "macro_f1": macro_f1,
}  # fmt: skip
_OF_PROBABILITIES: dict[str, Callable[[Truth, Probabilities], float]] = {
    "log_loss": log_loss, "brier": brier, "ece": calibration_error,
}  # fmt: skip


def scores(truth: Truth, p: Probabilities) -> dict[str, float]:
    """Every score for one set of probabilities; with `ece`, its expectation if calibrated, `ece_expected`."""
    matrix = confusion(truth, p.argmax(1), p.shape[1])
    found: dict[str, float] = {"objects": len(truth)}
    found |= {name: round(score(matrix), 4) for name, score in _OF_MATRIX.items()}
    found |= {name: round(score(truth, p), 4) for name, score in _OF_PROBABILITIES.items()}
    return found | {"ece_expected": round(calibrated_error(p), 4)}


def with_intervals(truth: Truth, p: Probabilities, seed: int = 0) -> dict[str, Any]:
    """`scores`, and with each `<name>_68`: the central 68 % of bootstrap draws of the objects.

    The calibration error has no interval: resampling biases it upwards. `ece_expected` shows how far to trust it.
    """
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(truth), size=(DRAWS, len(truth)))
    answer, count = p.argmax(1), p.shape[1]
    matrices = [confusion(truth[d], answer[d], count) for d in draws]
    found: dict[str, Any] = dict(scores(truth, p))
    for name, of_matrix in _OF_MATRIX.items():
        found[f"{name}_68"] = _interval([of_matrix(m) for m in matrices])
    for name in ("log_loss", "brier"):
        found[f"{name}_68"] = _interval([_OF_PROBABILITIES[name](truth[d], p[d]) for d in draws])
    return found


def _interval(values: list[float]) -> list[float]:
    return [round(float(v), 4) for v in np.percentile(values, INTERVAL)]


def without_nan(found: Any) -> Any:
    """The same with None for every number that JSON cannot represent (NaN, infinities)."""
    if isinstance(found, Mapping):
        return {key: without_nan(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [without_nan(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found
