"""`skyheed few-shot`: a `fusion` checkpoint trained on simulations, fitted to labelled real objects and measured.

The first alert and the whole sequence of each object are its views. All reported results come from heads not trained
on the object (grouped cross-validation), with intervals from resampling objects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier import taxonomy
from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import UNLABELLED, Archive
from skyheed.classifier.errors import ArchiveError, ModelError
from skyheed.classifier.evaluation import scores
from skyheed.classifier.history import History
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.checkpoint import Calibration, Info
from skyheed.classifier.models.fusion.linear_heads import COMBINATIONS, MODALITIES
from skyheed.classifier.models.fusion.network import Fusion
from skyheed.classifier.serving import load_network
from skyheed.classifier.training import few_shot, learning_curve
from skyheed.classifier.training.few_shot import Floats, Heads, Indices, Views

STRENGTHS = (0.03, 0.1, 0.3)
SEEDS = 5  # divisions into folds, over which held-out log-probabilities are averaged
DRAWS = 1000
EVERYTHING = COMBINATIONS - 1
# Approximate class shares of supernovae in a magnitude-limited survey (ZTF's: Fremling et al. 2020, ApJ 895, 32).
WITHIN = {"SNIa": 0.72, "SNOther": 0.28}


def run(name: str, archive: str | Path, output: str | Path, command: str = "", version: str = "") -> Info:
    """Fit, measure, write a checkpoint.

    Args:
        name: name of the checkpoint trained on simulations.
        archive: of real packets, some of them with a class.

    Raises:
        ModelError: the checkpoint is of another family, or there are too few labelled objects.
    """
    info = checkpoint.read_info(name)
    network = load_network(name, info)
    if not isinstance(network, Fusion):
        raise ModelError(f"{name} is of the family {info.family}: give a checkpoint of the family fusion")
    groups, of_class = groups_of(info.classes)
    check_labels(Archive(archive), groups)
    views, first = views_of(network, info, Archive(archive), groups)
    labelled = views.rows(views.group >= 0)
    few_shot.check(labelled, groups)
    runs = {strength: _held_out(labelled, len(groups), strength) for strength in STRENGTHS}
    said, strength = chosen(runs, labelled, len(groups))
    heads = few_shot.fit(labelled, len(groups), strength)
    heads.temperature = np.array([few_shot.temperature(said[c], labelled, len(groups)) for c in range(COMBINATIONS)])
    few_shot.install(network, heads, of_class, 1 / float(np.mean(info.calibration.temperatures)))
    beyond = few_shot.install_familiar(network, labelled, views.rows(views.group < 0), len(groups))
    found = {
        "groups": list(groups), "strength": strength, "strengths_tried": len(STRENGTHS),
        "temperatures": heads.temperature.round(3).tolist(),
        "unlabelled_unlike_training": round(beyond, 4),
        "archive": {key: Archive(archive).card.get(key) for key in ("objects", "stamps", "date")},
        "objects": _counts(labelled, groups), "held_out": report(said, labelled, first[views.group >= 0], heads)
        | {"single_divisions_first_alert": single_divisions(runs, labelled, first[views.group >= 0])}
        | {"learning_curve": learning_curve.curve(labelled, first[views.group >= 0], of_class)},
    }  # fmt: skip
    made = replace(
        info, version=version or f"{info.version}-real", calibration=Calibration(prior=prior_of(info.classes, groups)),
        training={**info.training, "few_shot": found | {"command": command}},
        metrics={**info.metrics, "real": found["held_out"]},
    )  # fmt: skip
    return checkpoint.save(output, network.state_dict(), made)


def check_labels(archive: Archive, groups: Sequence[str]) -> None:
    """Refuse an archive with too few labelled objects before its stamps are read.

    Raises:
        ModelError
    """
    labels = [
        taxonomy.merge_supernovae(row["class"]) for row in archive.objects.to_pylist() if row["class"] != UNLABELLED
    ]
    few_shot.check_counts({group: labels.count(group) for group in groups})


def groups_of(classes: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """Groups of classes that real labels distinguish, and the group of every class."""
    names = tuple(dict.fromkeys(map(taxonomy.merge_supernovae, classes)))
    return names, [names.index(taxonomy.merge_supernovae(c)) for c in classes]


def prior_of(classes: Sequence[str], groups: Sequence[str]) -> tuple[float, ...]:
    """Equal groups, with supernovae divided as a survey finds them; relative to equal classes."""
    shares = [WITHIN.get(c, 1.0) for c in classes]
    whole = {
        g: sum(s for c, s in zip(classes, shares, strict=True) if taxonomy.merge_supernovae(c) == g) for g in groups
    }
    made = [s / whole[taxonomy.merge_supernovae(c)] / len(groups) for c, s in zip(classes, shares, strict=True)]
    return tuple(round(m * len(classes), 6) for m in made)


def views_of(network: Fusion, info: Info, archive: Archive, groups: Sequence[str]) -> tuple[Views, NDArray[np.bool_]]:
    """First alerts and whole sequences of an archive's objects, and which of the views are first alerts."""
    histories, group, objects, first = list[History](), list[int](), list[int](), list[bool]()
    for number, name in enumerate(archive.object_ids):
        label = archive.object(name)["class"]
        known = groups.index(taxonomy.merge_supernovae(label)) if label != UNLABELLED else -1
        for history, early in _views(archive, name):
            histories.append(history)
            group.append(known)
            objects.append(number)
            first.append(early)
    found = few_shot.look(network, info.scaling, histories, np.array(group), np.array(objects))
    return found, np.array(first)


def _views(archive: Archive, name: str) -> list[tuple[History, bool]]:
    try:
        whole = history_of(archive, name)
    except ArchiveError:  # no alert of it has a usable stamp: the stream skips it, too
        return []
    if len(whole) == 1:
        return [(whole, True)]
    return [(history_of(archive, name, epochs=1), True), (whole, False)]


Runs = Mapping[float, Sequence[Mapping[int, Floats]]]  # strength -> held-out log-probabilities of every division


def _held_out(views: Views, groups: int, strength: float) -> list[dict[int, Floats]]:
    return [few_shot.held_out(views, groups, strength, seed) for seed in range(SEEDS)]


def chosen(runs: Runs, views: Views, groups: int) -> tuple[dict[int, Floats], float]:
    """Held-out log-probabilities for every combination of kinds, averaged over divisions, and the strength of the
    lowest loss."""
    found = {s: {c: np.mean([one[c] for one in own], 0) for c in range(COMBINATIONS)} for s, own in runs.items()}
    best = min(found, key=lambda strength: _best_loss(found[strength][EVERYTHING], views, groups)[0])
    return found[best], best


def _best_loss(said: Floats, views: Views, groups: int) -> tuple[float, float]:
    """The lowest loss that a temperature gives, and the temperature."""
    divisor = few_shot.temperature(said, views, groups)
    said = few_shot.normalised(said / divisor)
    loss = -float((few_shot.weights_of(views, groups) * said[np.arange(len(said)), views.group]).sum())
    return loss, divisor


def single_divisions(runs: Runs, views: Views, first: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Scores of first alerts with everything, of each division by itself: nothing is averaged, and strength and
    temperature are chosen for each fold without its objects."""
    groups, found = int(views.group.max()) + 1, []
    for seed in range(SEEDS):
        fold = few_shot.folds(views.group, views.objects, few_shot.FOLDS, seed)
        said = np.empty((len(fold), groups))
        for n in range(few_shot.FOLDS):
            own, others = fold == n, views.rows(fold != n)
            losses = {s: _best_loss(made[seed][EVERYTHING][~own], others, groups) for s, made in runs.items()}
            strength = min(losses, key=lambda s: losses[s][0])
            said[own] = runs[strength][seed][EVERYTHING][own] / losses[strength][1]
        found.append(_scores(said[first], views.rows(first)))
    return found


def _counts(views: Views, groups: Sequence[str]) -> dict[str, int]:
    first = np.unique(views.objects, return_index=True)[1]
    return {g: int((views.group[first] == n).sum()) for n, g in enumerate(groups)}


def report(said: dict[int, Floats], views: Views, first: NDArray[np.bool_], heads: Heads) -> dict[str, Any]:
    """Scores of first alerts and of whole sequences, for every combination of kinds."""
    last = np.zeros(len(views.objects), bool)
    last[[int(np.flatnonzero(views.objects == o)[-1]) for o in np.unique(views.objects)]] = True
    found: dict[str, Any] = {}
    for when, rows in (("first_alert", first), ("whole_sequence", last)):
        found[when] = {
            _named(c): _scores(values[rows] / heads.temperature[c], views.rows(rows)) for c, values in said.items() if c
        }
    full, without = (said[c][first] / heads.temperature[c] for c in (EVERYTHING, EVERYTHING - 1))
    found["gain_of_images_first_alert"] = paired(full, without, views.group[first])
    return found


def _named(combination: int) -> str:
    return " + ".join(name for bit, name in enumerate(MODALITIES) if combination >> bit & 1)


def _scores(said: Floats, views: Views) -> dict[str, Any]:
    p, truth = np.exp(few_shot.normalised(said)), views.group
    recall = [round(float((p.argmax(1)[truth == g] == g).mean()), 4) for g in range(p.shape[1])]
    draws = [_balanced(p[rows], truth[rows]) for rows in drawn(truth)]
    return {
        "objects": len(truth), "balanced_accuracy": round(_balanced(p, truth), 4),
        "balanced_accuracy_95": [round(float(q), 4) for q in np.percentile(draws, (2.5, 97.5))],
        "recall": recall, "log_loss": round(scores.log_loss(truth, p), 4),
        "ece": round(scores.calibration_error(truth, p), 4), "ece_by_chance": round(scores.calibrated_error(p), 4),
    }  # fmt: skip


def _balanced(p: Floats, truth: Indices) -> float:
    return scores.balanced_accuracy(scores.confusion(truth, p.argmax(1), p.shape[1]))


def drawn(truth: Indices, seed: int = 0) -> list[Indices]:
    """Bootstrap samples of objects within each group, DRAWS of them."""
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(truth == g) for g in np.unique(truth)]
    return [np.concatenate([rng.choice(r, len(r)) for r in rows]) for _ in range(DRAWS)]


def paired(one: Floats, other: Floats, truth: Indices) -> dict[str, Any]:
    """How much better one is on the same objects, with 95 % intervals: differences of balanced accuracies, and of
    log-losses, which tell probabilities apart where no classification changes."""
    samples = drawn(truth)
    draws = [_balanced(one[r], truth[r]) - _balanced(other[r], truth[r]) for r in samples]
    each = (few_shot.normalised(one) - few_shot.normalised(other))[np.arange(len(truth)), truth]
    return {
        "difference": round(_balanced(one, truth) - _balanced(other, truth), 4),
        "difference_95": [round(float(q), 4) for q in np.percentile(draws, (2.5, 97.5))],
        "log_loss_less": round(float(each.mean()), 4),
        "log_loss_less_95": [round(float(q), 4) for q in np.percentile([each[r].mean() for r in samples], (2.5, 97.5))],
    }


def text(found: Mapping[str, Any], groups: Sequence[str]) -> str:
    """The scores of `report` as tables in Markdown."""
    columns = f"known | balanced accuracy [95 %] | recall {' / '.join(groups)} | log-loss | ECE (by chance)"
    lines = []
    for when in ("first_alert", "whole_sequence"):
        rows = [_line(what, own) for what, own in found[when].items()]
        lines += [
            f"{when.replace('_', ' ').capitalize()}, held-out objects",
            f"| {columns} |",
            "|---" * 5 + "|",
            *rows,
            "",
        ]
    single = [own["balanced_accuracy"] for own in found["single_divisions_first_alert"]]
    gain = found["gain_of_images_first_alert"]
    low, high = gain["difference_95"]
    said = f"images add {gain['difference']:+.2f} [{low:+.2f}, {high:+.2f}] to all else at the first alert"
    return "\n".join([*lines, f"Single divisions: {min(single):.2f} to {max(single):.2f}; {said}."])


def _line(what: str, own: Mapping[str, Any]) -> str:
    low, high = own["balanced_accuracy_95"]
    recall = " / ".join(f"{value:.2f}" for value in own["recall"])
    scores_of = f"{own['balanced_accuracy']:.2f} [{low:.2f}, {high:.2f}]"
    return (
        f"| {what} | {scores_of} | {recall} | {own['log_loss']:.2f} | {own['ece']:.3f} ({own['ece_by_chance']:.3f}) |"
    )
