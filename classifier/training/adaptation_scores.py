"""Evaluation of an adapted model on an archive: scores, remaining domain distance, class shares of a target.

Scores use labels of objects that were not adapted to; criteria for choosing between models use no labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skyheed.classifier.archives.reader import UNLABELLED
from skyheed.classifier.errors import ModelError
from skyheed.classifier.evaluation import evaluate, scores
from skyheed.classifier.history import History
from skyheed.classifier.models.base import Model
from skyheed.classifier.training import adaptation_losses, dataset, label_shift
from skyheed.classifier.training.dataset import Dataset
from skyheed.classifier.training.objectives import Setting

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
MOST = 300  # objects whose features are compared
FEWEST = 10  # objects of a class needed to measure the distance between its domains
SEEDS = 3
SHARP = 0.05  # temperature of the similarities
BATCH = 64


def members_of(data: Dataset) -> tuple[Indices, Indices]:
    """Objects of a target used for adaptation, and labelled objects held out for measurement."""
    every = data.choose("all")
    labelled = np.array([data.label[i] != UNLABELLED for i in every], bool)
    if not labelled.all():
        return every[~labelled], every[labelled]
    return data.choose("train"), np.concatenate([data.choose("validation"), data.choose("test")])


def target_of(path: str, bands: str, purpose: str) -> tuple[Dataset, Indices]:
    """The archive of a target, and its objects that are used without their labels.

    Args:
        purpose: what they are for, in the message.

    Raises:
        ModelError: it has none.
    """
    data = dataset.load(path, bands=bands)
    members, _ = members_of(data)
    if not len(members):
        raise ModelError(f"{path} has no objects to {purpose}, in its split train or without a label: make it larger")
    return data, members


def measure(setting: Setting, model: Model, path: str, apart: bool = True) -> dict[str, Any]:
    """Measure a finished model on an archive.

    Args:
        apart: also measure how far its features are from the source's, which takes most of the time.

    Returns:
        `real`, whether the objects are; objects, truth, and the probabilities after the `first` alert and for the
        `whole` sequence, for labelled objects that were not adapted to; `a_distance` (all, by class, control);
        `unsupervised`, scores of the objects adapted to; the `prior` that probabilities assume, and the class `shares`
        inferred from them.
    """
    data = dataset.load(path, bands=model.info.bands)
    members, held = members_of(data)
    truth = evaluate.truth_of(data, held, model.info)
    _, first = evaluate.after_stamps(model, data, held, [1])[1]
    _, others = evaluate.after_stamps(model, data, members, [1])[1]
    prior = np.array(model.info.calibration.prior or np.ones(len(model.info.classes)), np.float64)
    real = any(data.origin[i] == "real" for i in held)
    return {
        "archive": Path(path).name, "survey": data.survey, "real": real,
        "classes": list(model.info.classes),
        "objects": [data.object_ids[i] for i in held], "truth": truth.tolist(),
        "first": first.round(5).tolist(), "whole": evaluate.at_the_end(model, data, held).round(5).tolist(),
        "a_distance": a_distances(setting, data, held, truth, real) if apart else {},
        "unsupervised": unsupervised(others, features(setting, data, members[:MOST])),
        "adapted_to": len(members), "prior": (prior / prior.sum()).round(5).tolist(),
        "shares": label_shift.expectation_maximisation(others, prior / prior.sum()).round(4).tolist(),
    }  # fmt: skip


@torch.inference_mode()
def features(setting: Setting, data: Dataset, indices: Indices) -> Floats:
    """Representations [n, width] of the first alerts of some objects, computed by the network that is served."""
    network = setting.mean.eval()
    histories: list[History] = [data.history(int(i), 0, 1) for i in indices]
    parts = [histories[at : at + BATCH] for at in range(0, len(histories), BATCH)]
    made = [network.encode(setting.batch(part)).float().cpu().numpy() for part in parts]
    return np.concatenate(made).astype(np.float64) if made else np.empty((0, network.width))


def a_distances(
    setting: Setting, data: Dataset, held: Indices, truth: Indices, grouped: bool
) -> dict[str, list[float]]:
    """A-distance and 1-sigma error between source and target: over all objects, within each class, and for a control.

    Over all objects it also includes the difference of class shares. The control compares the source with itself, using
    the same number of objects; it should be 0 within its error.

    Args:
        grouped: within AGN, supernovae and variables instead of within classes.
    """
    classes = setting.protocol.classes
    names, of = groups_of(classes) if grouped else (list(classes), list(range(len(classes))))
    source = setting.data.choose("test")[:MOST]
    own, target = features(setting, setting.data, source), features(setting, data, held[:MOST])
    labels = np.array([of[classes.index(_class(setting, i))] for i in source])
    found = {"all": mean_distance(own, target)}
    for number, name in enumerate(names):
        one, other = own[labels == number], target[np.array(of)[truth[:MOST]] == number]
        if min(len(one), len(other)) >= FEWEST:
            found[name] = mean_distance(one, other)
    half = min(len(own), 2 * len(target)) // 2
    return {**found, "control": mean_distance(own[:half], own[half : 2 * half])}


def _class(setting: Setting, index: int) -> str:
    from skyheed.classifier.training import selection

    return selection.label(setting.data, index, setting.protocol)


def mean_distance(one: Floats, other: Floats) -> list[float]:
    """The mean over seeds, and the larger of its scatter and its binomial error."""
    runs = [adaptation_losses.a_distance(one, other, seed) for seed in range(SEEDS)]
    values = [value for value, _ in runs]
    return [round(float(np.mean(values)), 3), round(float(max(np.std(values), np.mean([e for _, e in runs]))), 3)]


def unsupervised(probabilities: NDArray[np.floating[Any]], found: Floats) -> dict[str, float]:
    """Scores that need no labels, for choosing between models.

    Mean entropy of the probabilities rewards a collapse to one class; soft neighbourhood density (Saito et al. 2021,
    ICCV), the entropy of similarities between features, is larger if objects lie in dense clusters.
    """
    p = np.clip(np.asarray(probabilities, np.float64), 1e-9, 1)
    return {
        "entropy": round(float(-(p * np.log(p)).sum(1).mean()), 4),
        "neighbourhood_density": round(neighbourhood_density(found), 4),
    }


def neighbourhood_density(found: Floats) -> float:
    """Mean entropy of each object's similarities to all others, from features [n, d]."""
    unit = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    similar = unit @ unit.T / SHARP
    np.fill_diagonal(similar, -1e9)  # an object is not its own neighbour
    log_p = similar - np.logaddexp.reduce(similar, axis=1, keepdims=True)
    return float(-(np.exp(log_p) * log_p).sum(1).mean())


def groups_of(classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """AGN, supernovae and variables, the groups that real labels give reliably, and the group of every class."""
    from skyheed.classifier import taxonomy

    names = list(dict.fromkeys(map(taxonomy.merge_supernovae, classes)))
    return names, [names.index(taxonomy.merge_supernovae(c)) for c in classes]


def summary(measured: dict[str, Any], when: str, grouped: bool) -> tuple[Indices, Floats]:
    """Truth [n] and probabilities [n, classes] from the result of `measure`, for classes or groups."""
    truth, p = np.array(measured["truth"], np.int64), np.array(measured[when], np.float64)
    if not grouped:
        return truth, p
    names, of = groups_of(measured["classes"])
    joined = np.stack([p[:, np.array(of) == g].sum(1) for g in range(len(names))], 1)
    return np.array(of)[truth], joined


def balanced_accuracy(truth: Indices, p: Floats) -> float:
    """Mean recall of the classes that occur."""
    return scores.balanced_accuracy(scores.confusion(truth, p.argmax(1), p.shape[1]))
