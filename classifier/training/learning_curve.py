"""The value of a few labelled real objects: heads fitted to 1, 3, 10 of each group, measured on all others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.evaluation import scores
from skyheed.classifier.models.fusion.linear_heads import COMBINATIONS, MODALITIES
from skyheed.classifier.training import few_shot
from skyheed.classifier.training.few_shot import Floats, Indices, Views

COUNTS = (1, 3, 10)
DRAWS = 30
STRENGTH = 0.1  # of the ridge, for every count, so that no choice depends on the measured objects
LEAST = 3  # objects of each group that must be left for measurement
SHOWN = (1, COMBINATIONS - 1)  # combinations of kinds: images alone, and everything


def curve(views: Views, first: NDArray[np.bool_], of_class: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """Balanced accuracy at the first alert, by inputs and objects per group; 0 is the network before fitting.

    Args:
        views: labelled ones.
        first: [n], which of them are first alerts.
        of_class: the group of every class of the network.

    Returns:
        name of the combination -> count -> mean, scatter over draws (16 to 84 %), and number of objects measured.
    """
    groups = max(of_class) + 1
    found: dict[str, Any] = {"network": {"0": _balanced(_before(views, of_class), views.group, first)}}
    objects, at = np.unique(views.objects, return_index=True)
    group = views.group[at]
    smallest = int(np.bincount(group, minlength=groups).min())
    for combination in SHOWN:
        seen = views.seen(combination)
        name = " + ".join(kind for bit, kind in enumerate(MODALITIES) if combination >> bit & 1)
        found[name] = {
            str(count): _drawn(seen, first, objects, group, count, seed)
            for count in COUNTS
            if smallest - count >= LEAST
        }
    return found


def _drawn(
    views: Views, first: NDArray[np.bool_], objects: Indices, group: Indices, count: int, seed: int
) -> dict[str, Any]:
    rng = np.random.default_rng([seed, count])
    groups, values, measured = int(group.max()) + 1, [], 0
    for _ in range(DRAWS):
        chosen = np.concatenate([rng.choice(objects[group == g], count, replace=False) for g in range(groups)])
        taught = np.isin(views.objects, chosen)
        heads = few_shot.fit(views.rows(taught), groups, STRENGTH)
        others = first & ~taught
        values.append(_balanced(heads(views), views.group, others))
        measured = int(others.sum())
    low, high = np.percentile(values, (16, 84))
    return {
        "mean": round(float(np.mean(values)), 4), "draws_68": [round(float(low), 4), round(float(high), 4)],
        "draws": DRAWS, "objects_left": measured,
    }  # fmt: skip


def _before(views: Views, of_class: Sequence[int]) -> Floats:
    """Log-probabilities [n, groups] of the network trained on simulations alone."""
    p = np.exp(views.logits - np.logaddexp.reduce(views.logits, axis=1, keepdims=True))
    joined = np.stack([p[:, np.array(of_class) == g].sum(1) for g in range(max(of_class) + 1)], 1)
    return np.log(joined + 1e-12)


def _balanced(said: Floats, group: Indices, rows: NDArray[np.bool_]) -> float:
    matrix = scores.confusion(group[rows], said[rows].argmax(1), said.shape[1])
    return round(scores.balanced_accuracy(matrix), 4)
