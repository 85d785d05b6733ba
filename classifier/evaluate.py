"""How good a model is, early and late: scores after so many stamps and so many days, with bootstrap intervals."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import taxonomy
from .dataset import Dataset
from .predictor import Predictor
from .sequence import GROUP, StampSequence

STAMPS = (1, 2, 3, 5, 8, 13, 20, 30, 50, 99)
DAYS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
BOOTSTRAP = 200
BINS = 15
Answers = tuple[NDArray[np.int64], NDArray[np.float32]]  # rows of the objects that have as many stamps, probabilities


def answers(
    predictor: Predictor, data: Dataset, indices: NDArray[np.int64], stamps: Sequence[int], batch: int = 32
) -> dict[int, Answers]:
    """Probabilities of the first n stamps of every object that has as many, for every n; tokens are reused."""
    found: dict[int, list[tuple[int, NDArray[np.float32]]]] = {n: [] for n in stamps}
    for at in range(0, len(indices), batch):
        rows = range(at, min(at + batch, len(indices)))
        tokens: dict[int, dict[int, Any]] = {row: {} for row in rows}
        for n in sorted(stamps):
            kept = [row for row in rows if data.length(int(indices[row])) >= n]
            sequences = [_cut(data, int(indices[row]), n, tokens[row]) for row in kept]
            for row, answer in zip(kept, predictor.classify(sequences), strict=True):
                tokens[row] |= answer.tokens
                found[n].append((row, answer.probabilities))
    classes = len(predictor.info.classes)
    return {
        n: (np.array([r for r, _ in pairs], np.int64), np.array([p for _, p in pairs], np.float32).reshape(-1, classes))
        for n, pairs in found.items()
    }


def _cut(data: Dataset, index: int, n: int, tokens: dict[int, Any]) -> StampSequence:
    whole = data.sequence(index, 0, n)
    usable = {group: token for group, token in tokens.items() if GROUP * group + GROUP <= n}
    keep = np.ones(n, bool)
    for group in usable:
        keep[GROUP * group : GROUP * group + GROUP] = False
    return StampSequence(whole.mjd, whole.band, np.asarray(whole.stamps[keep]), usable)


def after_days(
    predictor: Predictor, data: Dataset, indices: NDArray[np.int64], days: Sequence[float], batch: int = 32
) -> dict[float, NDArray[np.float32]]:
    """Probabilities of what was seen within so many days of the first stamp, for every object."""
    found = {}
    for limit in days:
        parts = []
        for at in range(0, len(indices), batch):
            chunk = [int(i) for i in indices[at : at + batch]]
            lengths = [_stamps_within(data, i, limit, predictor.info.max_stamps) for i in chunk]
            sequences = [data.sequence(i, 0, n) for i, n in zip(chunk, lengths, strict=True)]
            parts += [a.probabilities for a in predictor.classify(sequences)]
        found[limit] = np.array(parts, np.float32)
    return found


def _stamps_within(data: Dataset, index: int, days: float, longest: int) -> int:
    mjd = data.sequence(index).mjd
    return min(int(np.searchsorted(mjd, mjd[0] + days, "right")), longest)


def macro_f1(truth: NDArray[np.int64], answer: NDArray[np.int64]) -> float:
    """The mean F1 over the classes that occur in the truth."""
    occurring = np.unique(truth)
    scores = []
    for c in occurring:
        hit = ((truth == c) & (answer == c)).sum()
        scores.append(2 * hit / max((truth == c).sum() + (answer == c).sum(), 1))
    return float(np.mean(scores)) if len(scores) else float("nan")


def expected_calibration_error(truth: NDArray[np.int64], p: NDArray[np.float32]) -> float:
    """Of the top class, in bins of equal mass."""
    top, right = p.max(1), p.argmax(1) == truth
    order = np.argsort(top)
    bins = np.array_split(order, min(BINS, max(len(order) // 10, 1)))
    return float(sum(abs(top[b].mean() - right[b].mean()) * len(b) for b in bins if len(b)) / len(truth))


def scores(truth: NDArray[np.int64], p: NDArray[np.float32]) -> dict[str, float]:
    """Every score of one set of answers."""
    answer = p.argmax(1)
    one_hot = np.eye(p.shape[1])[truth]
    recall = [float((answer[truth == c] == c).mean()) for c in np.unique(truth)]
    return {
        "objects": len(truth),
        "accuracy": float((answer == truth).mean()),
        "balanced_accuracy": float(np.mean(recall)),
        "macro_f1": macro_f1(truth, answer),
        "log_loss": float(-np.log(p[np.arange(len(truth)), truth] + 1e-9).mean()),
        "brier": float(((p - one_hot) ** 2).sum(1).mean()),
        "ece": expected_calibration_error(truth, p),
    }


def with_intervals(truth: NDArray[np.int64], p: NDArray[np.float32], seed: int = 0) -> dict[str, Any]:
    """The scores, and 68 % bootstrap intervals over objects of accuracy and macro-F1."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {key: round(value, 4) for key, value in scores(truth, p).items()}
    draws = rng.integers(len(truth), size=(BOOTSTRAP, len(truth)))
    answer = p.argmax(1)
    for name, values in (
        ("accuracy", [(answer[d] == truth[d]).mean() for d in draws]),
        ("macro_f1", [macro_f1(truth[d], answer[d]) for d in draws]),
    ):
        found[f"{name}_68"] = [round(float(v), 4) for v in np.percentile(values, [16, 84])]
    return found


def report(predictor: Predictor, data: Dataset, indices: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """Scores of the chosen objects after so many stamps, and after all of them."""
    names = [data.true_class[i] or data.label[i] for i in indices]
    truth = np.array([classes.index(n if n in classes else taxonomy.merge_supernovae(n)) for n in names])
    found = answers(predictor, data, indices, STAMPS)
    whole = after_days(predictor, data, indices, (np.inf,))[np.inf]
    matrix = np.zeros((len(classes), len(classes)), int)
    np.add.at(matrix, (truth, whole.argmax(1)), 1)
    return {
        "data": f"{'simulated' if data.survey else ''} {data.survey}, test objects with confirmed labels".strip(),
        "after_stamps": {str(n): with_intervals(truth[k], p) for n, (k, p) in found.items() if len(k) >= 20},
        "at_the_end": with_intervals(truth, whole),
        "confusion": matrix.tolist(),
        "classes": list(classes),
    }


def write(found: dict[str, Any], folder: Path) -> None:
    """The report as JSON, as a page of text, and as a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "README.md").write_text(text(found))
    _plot(found, folder / "report.png")


def text(found: dict[str, Any]) -> str:
    """A table that a person reads."""
    lines = [
        f"# Scores on {found['data']}",
        "",
        "| stamps | objects | accuracy | macro-F1 | log-loss | ECE |",
        "|---|---|---|---|---|---|",
    ]
    for n, s in [*found["after_stamps"].items(), ("all", found["at_the_end"])]:
        low, high = s["macro_f1_68"]
        lines.append(
            f"| {n} | {s['objects']} | {s['accuracy']:.3f} | {s['macro_f1']:.3f} ({low:.3f} to {high:.3f}) "
            f"| {s['log_loss']:.3f} | {s['ece']:.3f} |"
        )
    lines += [
        "",
        "Confusion at the end (rows: truth)",
        "",
        "| | " + " | ".join(found["classes"]) + " |",
        "|---" * (len(found["classes"]) + 1) + "|",
    ]
    lines += [
        f"| {name} | " + " | ".join(map(str, row)) + " |"
        for name, row in zip(found["classes"], found["confusion"], strict=True)
    ]
    return "\n".join(lines) + "\n"


def _plot(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    stamps = [int(n) for n in found["after_stamps"]]
    for name in ("accuracy", "macro_f1"):
        middle = [found["after_stamps"][str(n)][name] for n in stamps]
        low, high = zip(*(found["after_stamps"][str(n)][f"{name}_68"] for n in stamps), strict=True)
        left.plot(stamps, middle, ".-", label=name)
        left.fill_between(stamps, low, high, alpha=0.2)
    left.set(xscale="log", xlabel="stamps", ylim=(0, 1), title=found["data"])
    left.legend()
    matrix = np.array(found["confusion"], float)
    fractions = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    right.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for (y, x), value in np.ndenumerate(matrix):
        right.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if fractions[y, x] > 0.5 else "black")
    ticks = range(len(found["classes"]))
    right.set_xticks(ticks, found["classes"])
    right.set_yticks(ticks, found["classes"])
    right.set(xlabel="answer", ylabel="truth", title="all stamps")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
