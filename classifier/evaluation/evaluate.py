"""Evaluates a model at early and late times: after given numbers of stamps and days, and with gaps.

A sequence is cut as in a stream: a prefix, and of it the latest stamps up to the number that the model accepts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier import taxonomy
from skyheed.classifier.errors import ModelError
from skyheed.classifier.evaluation import scores, shares
from skyheed.classifier.history import History
from skyheed.classifier.models import priors
from skyheed.classifier.models.base import Model
from skyheed.classifier.models.checkpoint import Info, read_info
from skyheed.classifier.prediction import Needs
from skyheed.classifier.progress import progress_bar
from skyheed.classifier.serving import load
from skyheed.classifier.training import dataset
from skyheed.classifier.training.dataset import Dataset

STAMPS = (1, 2, 3, 5, 6, 8, 12, 13, 20, 30, 50, 99)
DAYS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
MISSING = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
SURE = 0.75  # probability that the true class has to reach and keep (ELAsTiCC's list of metrics)
LOOK = 3  # stamps between two evaluations of a growing history
ENOUGH = 20  # minimum number of objects for a cut-off to be reported
Indices = NDArray[np.int64]
Probabilities = NDArray[np.float32]


def loaded(name: str, survey: str, device: str, precision: str) -> Model:
    """A checkpoint ready for evaluation, as it is served.

    Raises:
        ModelError: it cannot be used.
    """
    return load(name, survey=survey, device=device, precision=precision)


def class_prior(text: str, data: Dataset, confirmed: bool, info: Info) -> tuple[float, ...]:
    """Class frequencies: as given, or those of the training objects (with confirmed labels) for "train".

    Raises:
        ModelError: not one positive number for each class.
    """
    if text != "train":
        return priors.class_prior(text, info.classes)
    chosen = data.choose("train", True if confirmed else None)
    numbers = _numbers([data.label[i] for i in chosen], [data.kind[i] for i in chosen], info)
    counts = np.bincount(numbers, minlength=len(info.classes))
    return priors.class_prior(",".join(str(count) for count in counts), info.classes)


def answers(
    model: Model, data: Dataset, indices: Indices, cuts: Sequence[Sequence[int]], batch: int = 32
) -> list[Probabilities]:
    """Probabilities for every object after its first n stamps, for each n of its own cuts; tokens are reused.

    Returns:
        For every object, [cuts, classes].
    """
    found: list[Probabilities] = []
    for at in progress_bar(range(0, len(indices), batch), "classifying", unit=f"{batch} objects", leave=False, delay=2):
        rows = range(at, min(at + batch, len(indices)))
        known: dict[tuple[int, int], Probabilities] = {}
        kept: dict[int, dict[int, bytes]] = {row: {} for row in rows}
        for n in sorted({n for row in rows for n in cuts[row]}):
            own = [row for row in rows if n in cuts[row]]
            histories = [_cut(data, int(indices[row]), n, kept[row], model.needs) for row in own]
            for row, found_now in zip(own, model.classify(histories), strict=True):
                known[row, n] = found_now.probabilities
                if n <= model.needs.most:
                    kept[row] |= found_now.keep
        found += [np.array([known[row, n] for n in cuts[row]], np.float32) for row in rows]
    return found


def _cut(data: Dataset, index: int, n: int, kept: Mapping[int, bytes], needs: Needs) -> History:
    """The first n epochs, or the latest of them that the model accepts. Cached values need the first epoch."""
    first, span = max(n - needs.most, 0), max(needs.span, 1)
    usable = {} if first else {at: token for at, token in kept.items() if span * (at + 1) <= n}
    whole = data.history(index, first, n)
    if not usable:
        return whole
    shown = np.array([step for step in range(len(whole)) if step // span not in usable], np.int64)
    images = {kind: np.asarray(pixels)[shown] for kind, pixels in whole.images.items()}
    return replace(whole, images=images, shown=shown, kept=usable)


def after_stamps(
    model: Model, data: Dataset, indices: Indices, stamps: Sequence[int]
) -> dict[int, tuple[Indices, Probabilities]]:
    """For every n, the rows of `indices` with at least n stamps, and the probabilities after n."""
    cuts = [[n for n in stamps if n <= data.length(int(i))] for i in indices]
    found = answers(model, data, indices, cuts)
    classes = len(model.info.classes)
    kept = {n: np.array([row for row, own in enumerate(cuts) if n in own], np.int64) for n in stamps}
    return {
        n: (rows, np.array([found[row][cuts[row].index(n)] for row in rows], np.float32).reshape(-1, classes))
        for n, rows in kept.items()
    }


def at_the_end(model: Model, data: Dataset, indices: Indices) -> Probabilities:
    """Probabilities for whole sequences."""
    return np.concatenate(answers(model, data, indices, [[data.length(int(i))] for i in indices]))


def truth_of(data: Dataset, indices: Indices, info: Info) -> Indices:
    """The true class of each object, as an index into the model's classes.

    Raises:
        ModelError: there is no object, or one has a class unknown to the model.
    """
    if not len(indices):
        raise ModelError("there are no objects to evaluate: choose another split or other labels, or a larger archive")
    return _numbers([data.true_class[i] or data.label[i] for i in indices], [data.kind[i] for i in indices], info)


def _numbers(labels: Iterable[str], kinds: Iterable[str], info: Info) -> Indices:
    classes, known = info.classes, taxonomy.Taxonomy(info.taxonomy, info.class_ids, info.members)
    own = [known.class_of(label, kind, classes) for label, kind in zip(labels, kinds, strict=True)]
    if unknown := sorted(set(own) - set(classes)):
        names = ", ".join(name or "none of its own" for name in unknown)
        raise ModelError(
            f"there are objects of class {names}, but the model knows {', '.join(classes)}: leave them out of "
            "the archive, or take a model that was trained on their class"
        )
    return np.array([classes.index(name) for name in own], np.int64)


def report(model: Model, data: Dataset, indices: Indices) -> dict[str, Any]:
    """Scores after given numbers of stamps and at the end, as stored in a checkpoint. None for undefined scores.

    Raises:
        ModelError: there is no object, or one has a class unknown to the model.
    """
    truth = truth_of(data, indices, model.info)
    found: dict[str, Any] = scores.without_nan(_report(model, data, indices, truth, at_the_end(model, data, indices)))
    return found


def _report(model: Model, data: Dataset, indices: Indices, truth: Indices, whole: Probabilities) -> dict[str, Any]:
    classes = tuple(model.info.classes)
    matrix = scores.confusion(truth, whole.argmax(1), len(classes))
    return {
        "model": f"{model.info.name} {model.info.version}",
        "data": _called(data, indices),
        "classes": list(classes),
        "at_the_end": scores.with_intervals(truth, whole),
        "per_class": scores.per_class(matrix, classes),
        "confusion": matrix.tolist(),
        "after_stamps": _early(model, data, indices, truth),
    }


def _early(model: Model, data: Dataset, indices: Indices, truth: Indices) -> dict[str, Any]:
    found = after_stamps(model, data, indices, STAMPS)
    return _series({n: (truth[rows], p) for n, (rows, p) in found.items()}, tuple(model.info.classes))


def _series(cuts: Mapping[int, tuple[Indices, Probabilities]], classes: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for cut, (truth, p) in cuts.items():
        if len(truth) >= ENOUGH:
            matrix = scores.confusion(truth, p.argmax(1), len(classes))
            found[str(cut)] = scores.with_intervals(truth, p) | {
                "per_class": scores.per_class(matrix, classes), "confusion": matrix.tolist()
            }  # fmt: skip
    return found


def _called(data: Dataset, indices: Indices) -> str:
    """A description of the data that states what they are."""
    origins = sorted({data.origin[i] for i in indices})
    return f"{data.survey}, {' and '.join(origins)}, {len(indices)} objects"


def full_report(model: Model, data: Dataset, indices: Indices) -> dict[str, Any]:
    """`report`, and scores after given numbers of days, the time until the classification is stable, and with gaps.

    Raises:
        ModelError: there is no object, or one has a class unknown to the model.
    """
    classes = tuple(model.info.classes)
    truth = truth_of(data, indices, model.info)
    whole = at_the_end(model, data, indices)
    days = after_days(model, data, indices, DAYS)
    found: dict[str, Any] = scores.without_nan(_report(model, data, indices, truth, whole) | {
        "after_days": _series({day: (truth, p) for day, p in days.items()}, classes),
        "until_sure": until_sure(model, data, indices, truth),
        "missing": missing(model, data, indices, truth),
        "calibration": scores.calibration_bins(truth, whole),
        "worst": _worst(data, indices, classes, truth, whole),
    })  # fmt: skip
    return found


def _worst(
    data: Dataset, indices: Indices, classes: Sequence[str], truth: Indices, p: Probabilities
) -> list[dict[str, Any]]:
    """The objects with the lowest probability of the true class."""
    wrong = np.flatnonzero(p.argmax(1) != truth)
    return [
        {"object_id": data.object_ids[indices[w]], "truth": classes[truth[w]], "answer": classes[p[w].argmax()],
         "probability": round(float(p[w].max()), 3), "stamps": data.length(int(indices[w]))}
        for w in wrong[np.argsort(p[wrong, truth[wrong]])][:12]
    ]  # fmt: skip


def after_days(model: Model, data: Dataset, indices: Indices, days: Iterable[float]) -> dict[int, Probabilities]:
    """Probabilities for every object from the data within each number of days after the first stamp."""
    days = list(days)
    cuts = []
    for index in indices:
        mjd = data.history(int(index)).mjd
        cuts.append(np.searchsorted(mjd, mjd[0] + np.array(days), "right").tolist())
    found = answers(model, data, indices, cuts)
    return {int(day): np.array([p[k] for p in found]) for k, day in enumerate(days)}


def until_sure(model: Model, data: Dataset, indices: Indices, truth: Indices) -> dict[str, Any]:
    """Days and stamps until the probability of the true class exceeds 0.75 and stays above it, among the first stamps.

    Probabilities are evaluated after the first, every third and the last stamp, up to the number the model accepts.
    """
    ends = [min(data.length(int(i)), model.needs.most) for i in indices]
    steps = [sorted({1, *range(LOOK, end, LOOK), end}) for end in ends]
    found: dict[str, Any] = {}
    days, stamps, sure = [], [], []
    for row, p in enumerate(answers(model, data, indices, steps)):
        right = p[:, truth[row]] > SURE
        held = len(right) - int(np.argmin(right[::-1])) if not right.all() else 0
        sure.append(bool(right[-1]))
        if right[-1]:
            n = steps[row][held]
            mjd = data.history(int(indices[row])).mjd
            stamps.append(n)
            days.append(float(mjd[n - 1] - mjd[0]))
    found["all"] = _median_times(days, stamps, sure)
    of = truth[np.array(sure, bool)]
    for c, name in enumerate(model.info.classes):
        mine = np.flatnonzero(of == c)
        found[name] = _median_times(
            [days[k] for k in mine], [stamps[k] for k in mine], [s for s, t in zip(sure, truth, strict=True) if t == c]
        )
    return found


def _median_times(days: Sequence[float], stamps: Sequence[int], sure: Sequence[bool]) -> dict[str, float]:
    if not sure:
        return {"objects": 0}
    found: dict[str, float] = {"objects": len(sure), "share_sure": round(float(np.mean(sure)), 4)}
    if days:
        found |= {"median_days": round(float(np.median(days)), 2), "median_stamps": float(np.median(stamps))}
    return found


def missing(
    model: Model, data: Dataset, indices: Indices, truth: Indices, fractions: Sequence[float] = MISSING
) -> dict[str, Any]:
    """Scores when a fraction of each sequence's stamps is removed at random (the study in the authors' slides).

    The removed stamps are the same for all models with equal `max_stamps`; larger fractions include the smaller ones.
    """
    found = {}
    for fraction in fractions:
        rng = np.random.default_rng(7)
        parts = []
        for at in progress_bar(
            range(0, len(indices), 32), f"{fraction:.0%} missing", unit="32 objects", leave=False, delay=2
        ):
            views = [_thinned(data, int(i), fraction, model.needs.most, rng) for i in indices[at : at + 32]]
            parts += [answer.probabilities for answer in model.classify(views)]
        found[f"{fraction:.1f}"] = scores.with_intervals(truth, np.array(parts))
    return found


def _thinned(data: Dataset, index: int, fraction: float, longest: int, rng: np.random.Generator) -> History:
    whole = data.history(index)
    n = min(len(whole), longest)
    return whole.take(np.sort(rng.permutation(n)[: max(round(n * (1 - fraction)), 1)]) + len(whole) - n)


@dataclass(frozen=True)
class Entry:
    """A model to evaluate, the archive in its bands, its label in comparisons, and how it is computed."""

    label: str
    model: Model
    data: Dataset
    how: str


def entries(names: Sequence[str], archive: str | Path, device: str, precision: str) -> list[Entry]:
    """Checkpoints to be compared on an archive.

    Raises:
        ModelError: one of them cannot be used, is given twice, or has different classes from the first.
    """
    infos = [read_info(name) for name in names]
    for name, info in zip(names, infos, strict=True):
        if info.classes != infos[0].classes:
            raise ModelError(
                f"{name} knows {', '.join(info.classes)} and {names[0]} {', '.join(infos[0].classes)}: compare "
                "models of the same classes in the same order"
            )
    data = {bands: dataset.load(archive, bands=bands) for bands in {info.bands for info in infos}}
    found = []
    for name, label, info in zip(names, _labels(names, infos), infos, strict=True):
        model = loaded(name, data[info.bands].survey, device, precision)
        found.append(Entry(label, model, data[info.bands], model.chosen))
    return found


def _labels(names: Sequence[str], infos: Sequence[Info]) -> list[str]:
    """Name, version and ConvEntion's time encoding; plus the checkpoint's own name if that is not unique."""
    found = [f"{info.name} {info.version}" + _time(info) for info in infos]
    found = [a if found.count(a) == 1 else f"{a} ({name})" for a, name in zip(found, names, strict=True)]
    if len(set(found)) < len(found):
        raise ModelError(f"a checkpoint is given twice among {', '.join(names)}: give each one once")
    return found


def _time(info: Info) -> str:
    return f", time {info.config.get('time', 'both')}" if info.family == "convention" else ""


def common(found: Sequence[Entry], split: str, confirmed: bool) -> Indices:
    """Objects of a split that have stamps in the bands of every model; all labels, or only confirmed ones.

    Raises:
        ModelError: there is none.
    """
    own = [entry.data.choose(split, True if confirmed else None) for entry in found]
    chosen: Indices = reduce(np.intersect1d, own)
    if not len(chosen):
        kind = "confirmed object" if confirmed else "object"
        raise ModelError(
            f"the archive has no {kind} with stamps in its split {split}: choose another with --split"
            + (", or take --all-labels" if confirmed else "")
        )
    return chosen


def any_label(entry: Entry, split: str) -> bool:
    """Whether any object of a split has a label; real packets often have none."""
    return any(entry.data.true_class[i] or entry.data.label[i] for i in entry.data.choose(split))


def estimated_shares(entry: Entry, split: str) -> dict[str, Any]:
    """Class shares of a split's objects, estimated from the model's probabilities without using labels.

    Probabilities keep the prior that they assume now; the model's own confusion matrix is used if it was computed with
    that prior.

    Raises:
        ModelError: there are too few objects.
    """
    model, data = entry.model, entry.data
    indices = data.choose(split)
    p = at_the_end(model, data, indices) if len(indices) else np.empty((0, len(model.info.classes)), np.float32)
    named = [data.true_class[i] or data.label[i] for i in indices]
    truth = truth_of(data, indices, model.info) if named and all(named) else None
    confusion = shares.confusion_of(model.info)
    return shares.estimate(p, model.info.classes, model.info.calibration.prior, confusion, truth)


def may_be_in_sample(entry: Entry, indices: Indices) -> bool:
    """Whether a model was fitted to labelled real objects, and some of these objects are real."""
    return "few_shot" in entry.model.info.training and any(entry.data.origin[i] == "real" for i in indices)


def compare(found: Sequence[Entry], indices: Indices) -> dict[str, Any]:
    """`full_report` for the first model; for the others, scores after numbers of stamps and with the same gaps."""
    first, *others = found
    made = full_report(first.model, first.data, indices)
    if others:
        made |= {"label": first.label, "against": {e.label: _beside(e.model, e.data, indices) for e in others}}
    return made


def _beside(model: Model, data: Dataset, indices: Indices) -> dict[str, Any]:
    truth = truth_of(data, indices, model.info)
    found: dict[str, Any] = scores.without_nan(
        {"after_stamps": _early(model, data, indices, truth), "missing": missing(model, data, indices, truth)}
    )
    return found
