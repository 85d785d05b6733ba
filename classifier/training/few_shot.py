"""Few labelled real objects: linear heads on the outputs of a network trained on simulations.

Heads predict groups of classes (all supernovae are one), which real labels give reliably and few objects suffice to
learn; how a group divides into its classes is left to the network. There is one head for each combination of images,
light curve and surroundings, so that missing inputs do no harm. Strengths and temperatures come from grouped
cross-validation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skyheed.classifier.errors import ModelError
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.models.fusion.features import NUMBERS, SURROUNDINGS
from skyheed.classifier.models.fusion.light_curves import CURVE
from skyheed.classifier.models.fusion.linear_heads import COMBINATIONS, MODALITIES, WIDEST
from skyheed.classifier.models.fusion.network import Fusion
from skyheed.classifier.models.fusion.novelty import WIDEST as FARTHEST

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
FOLDS = 5
FEWEST = 3  # objects per group
FAMILIAR_SHARE = 0.99  # of held-out objects, accepted by the limit of `Familiar`
MARGIN = 1.25  # factor on that limit, which few objects determine poorly; declining too little is preferred
SHRINKAGE = 0.3  # of the covariance towards its diagonal
TEMPERATURES = np.exp(np.linspace(np.log(0.3), np.log(3), 60))


@dataclass(frozen=True)
class Views:
    """Network outputs for views of real objects: first alerts and whole sequences.

    Attributes:
        inputs: float64 [n, inputs] of `Fusion.inputs_of_fitted`, NaN where unknown.
        kinds: bool [n, MODALITIES], which are known.
        logits: float64 [n, classes] of the network.
        group: int [n], labels; -1 where unknown.
        objects: int [n], equal for views of the same object.
    """

    inputs: Floats
    kinds: NDArray[np.bool_]
    logits: Floats
    group: Indices
    objects: Indices

    def rows(self, chosen: Any) -> "Views":
        """Some of the views."""
        return Views(*(getattr(self, name)[chosen] for name in ("inputs", "kinds", "logits", "group", "objects")))

    def seen(self, combination: int) -> "Views":
        """The same views with only some kinds known."""
        allowed = np.array([bool(combination >> bit & 1) for bit in range(len(MODALITIES))])
        kinds = self.kinds & allowed
        inputs = np.where(columns(kinds, self.inputs.shape[1]), self.inputs, np.nan)
        return Views(inputs, kinds, self.logits, self.group, self.objects)


def columns(kinds: NDArray[np.bool_], inputs: int) -> NDArray[np.bool_]:
    """Which inputs [n, inputs] belong to known kinds [n, MODALITIES]."""
    n = len(SURROUNDINGS)
    parts = [np.repeat(kinds[:, [kind]], count, 1) for kind, count in ((2, n), (1, len(CURVE)))]
    return np.concatenate([*parts, np.repeat(kinds[:, [0]], inputs - len(NUMBERS), 1)], 1)


@torch.inference_mode()
def look(network: Fusion, scaling: Scaling, histories: Sequence[History], group: Indices, objects: Indices) -> Views:
    """The network's outputs for histories."""
    made: dict[str, list[NDArray[Any]]] = {"inputs": [], "kinds": [], "logits": []}
    network.eval()
    for at in range(0, len(histories), 32):
        arrays = network.collate(histories[at : at + 32], scaling)
        encoded = network.encode({name: torch.from_numpy(a) for name, a in arrays.items()})
        seen, kinds = network.inputs_of_fitted(encoded)
        for name, value in (("inputs", seen), ("kinds", kinds), ("logits", network.simulated(encoded))):
            made[name].append(value.numpy())
    joined = {name: np.concatenate(values) for name, values in made.items()}
    inputs, logits = joined["inputs"].astype(float), joined["logits"].astype(float)
    return Views(inputs, joined["kinds"], logits, np.asarray(group), np.asarray(objects))


@dataclass
class Heads:
    """Standardisation and weights, as stored in `models.fusion.linear_heads.Fitted`; groups are weighted equally."""

    mean: Floats
    scatter: Floats
    weight: Floats
    bias: Floats
    strength: float
    temperature: Floats = field(default_factory=lambda: np.ones(COMBINATIONS))

    def standardised(self, inputs: Floats) -> Floats:
        """See `Fitted.standardised`."""
        return np.nan_to_num(np.clip((inputs - self.mean) / self.scatter, -WIDEST, WIDEST))

    def __call__(self, views: Views) -> Floats:
        """Log-probabilities [n, groups]."""
        row = views.kinds @ (1 << np.arange(len(MODALITIES)))
        logits = (self.weight[row] * self.standardised(views.inputs)[:, None]).sum(2) + self.bias[row]
        return normalised(logits / self.temperature[row][:, None])


def normalised(logits: Floats) -> Floats:
    """Log-probabilities of logits [n, groups]."""
    found: Floats = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return found


def weights_of(views: Views, groups: int) -> Floats:
    """Weights of views: all objects of a group count equally, and all groups count equally."""
    each = 1 / np.bincount(views.objects, minlength=views.objects.max() + 1)[views.objects]
    of_group = np.bincount(views.group, each, groups)
    found: Floats = each / of_group[views.group]
    return found * len(np.unique(views.objects)) / groups


def fit(views: Views, groups: int, strength: float) -> Heads:
    """Fit a ridge-regularised head of this inverse strength for every combination of kinds.

    Args:
        views: labelled ones.
        strength: scikit-learn's C.
    """
    from sklearn.linear_model import LogisticRegression

    weight = weights_of(views, groups)
    mean, scatter = _moments(views.inputs, weight)
    heads = Heads(
        mean, scatter, np.zeros((COMBINATIONS, groups, len(mean))), np.zeros((COMBINATIONS, groups)), strength
    )
    for combination in range(1, COMBINATIONS):
        x = heads.standardised(views.seen(combination).inputs)
        ridge = LogisticRegression(C=strength, max_iter=2000).fit(x, views.group, weight)
        if groups == 2:
            heads.weight[combination, 1], heads.bias[combination, 1] = ridge.coef_[0], ridge.intercept_[0]
        else:
            heads.weight[combination], heads.bias[combination] = ridge.coef_, ridge.intercept_
    return heads


def _moments(inputs: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Weighted means and scatters of the known inputs."""
    known = np.isfinite(inputs)
    w = known * weight[:, None]
    total = np.maximum(w.sum(0), 1e-9)
    mean = np.where(known, inputs, 0.0).T.__mul__(w.T).sum(1) / total
    scatter = np.sqrt((np.where(known, inputs - mean, 0.0) ** 2 * w).sum(0) / total)
    return mean, np.maximum(scatter, 1e-2)


def folds(group: Indices, objects: Indices, count: int, seed: int) -> Indices:
    """A fold for every view: all views of an object are in one fold, and groups are spread evenly."""
    rng = np.random.default_rng(seed)
    names, first = np.unique(objects, return_index=True)
    order = rng.permutation(len(names))
    order = order[np.argsort(group[first][order], kind="stable")]
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % count
    return fold[np.searchsorted(names, objects)]


def held_out(views: Views, groups: int, strength: float, seed: int = 0, count: int = FOLDS) -> dict[int, Floats]:
    """Log-probabilities of every view from heads not trained on its object, for every combination of kinds."""
    fold = folds(views.group, views.objects, count, seed)
    found = {c: np.empty((len(views.group), groups)) for c in range(COMBINATIONS)}
    for n in range(count):
        heads = fit(views.rows(fold != n), groups, strength)
        for c, said in found.items():
            said[fold == n] = heads(views.rows(fold == n).seen(c))
    return found


def temperature(said: Floats, views: Views, groups: int) -> float:
    """The divisor of the logits, from held-out log-probabilities."""
    weight = weights_of(views, groups)

    def loss(t: float) -> float:
        scaled = normalised(said / t)
        return -float((weight * scaled[np.arange(len(scaled)), views.group]).sum())

    return float(min(TEMPERATURES, key=loss))


def check(views: Views, groups: Sequence[str]) -> None:
    """Refuse too few labelled objects.

    Raises:
        ModelError
    """
    first = np.unique(views.objects, return_index=True)[1]
    counts = np.bincount(views.group[first], minlength=len(groups))
    check_counts(dict(zip(groups, counts.tolist(), strict=True)))


def check_counts(objects: Mapping[str, int]) -> None:
    """Refuse too few labelled objects of a group.

    Raises:
        ModelError
    """
    if few := [f"{count} of {group}" for group, count in objects.items() if count < FEWEST]:
        raise ModelError(f"labelled objects that can be used: {', '.join(few)}; give {FEWEST} or more of each group")


def install(network: Fusion, heads: Heads, group_of_class: Sequence[int], sharpness: float = 1.0) -> None:
    """Put heads into a network; the class prior that they assume is uniform over classes, as in training.

    Args:
        sharpness: the factor by which calibration on the simulation multiplies the network's logits.
    """
    fitted, groups = network.fitted, heads.bias.shape[1]
    members = np.bincount(group_of_class, minlength=groups)
    with torch.no_grad():
        fitted.group.copy_(torch.tensor(list(group_of_class)))
        fitted.mean.copy_(torch.from_numpy(heads.mean))
        fitted.scatter.copy_(torch.from_numpy(heads.scatter))
        fitted.weight.zero_()
        fitted.weight[:, :groups] = torch.from_numpy(heads.weight / heads.temperature[:, None, None]).float()
        fitted.bias.zero_()
        fitted.bias[:, :groups] = torch.from_numpy(heads.bias / heads.temperature[:, None] + np.log(members)).float()
        fitted.sharpness.fill_(sharpness)
        fitted.on.fill_(1)


def install_familiar(network: Fusion, labelled: Views, others: Views, groups: int, seed: int = 0) -> float:
    """Install centres of the groups and a limit that accepts nearly all held-out objects.

    Args:
        labelled: for the centres, the covariance within groups and (held out) the limit.
        others: unlabelled objects.

    Returns:
        The fraction of the others beyond the limit.
    """
    fold = folds(labelled.group, labelled.objects, FOLDS, seed)
    held = np.empty(len(fold))
    for n in range(FOLDS):
        held[fold == n] = _distance(labelled.inputs[fold == n], _familiar(labelled.rows(fold != n), groups))
    limit = float(np.quantile(held, FAMILIAR_SHARE)) * MARGIN
    parts = _familiar(labelled, groups)
    target = network.familiar
    mean, scatter, centre, precision = map(torch.from_numpy, parts)
    with torch.no_grad():
        for name, value in (("mean", mean), ("scatter", scatter), ("precision", precision)):
            getattr(target, name).copy_(value)
        target.centre.copy_(centre[-1:])  # one centre per class; the surplus ones repeat the last group's
        target.centre[:groups] = centre.float()
        target.limit.fill_(limit)
    return float((_distance(others.inputs, parts) > limit).mean()) if len(others.group) else 0.0


def _familiar(views: Views, groups: int) -> tuple[Floats, Floats, Floats, Floats]:
    inputs, weight = views.inputs[:, : len(NUMBERS)], weights_of(views, groups)
    mean, scatter = _moments(inputs, weight)
    z = (inputs - mean) / scatter
    centre = np.stack([_mean(z[views.group == g]) for g in range(groups)])
    away = np.clip(np.nan_to_num(z - centre[views.group]), -FARTHEST, FARTHEST)
    covariance = (away * weight[:, None]).T @ away / weight.sum()
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance)) + 0.05 * np.eye(len(mean))
    return mean, scatter, centre, np.linalg.inv(shrunk)


def _mean(z: Floats) -> Floats:
    """Mean of the known values; 0 if there are none."""
    found: Floats = np.nansum(z, 0) / np.maximum(np.isfinite(z).sum(0), 1)
    return found


def _distance(inputs: Floats, parts: tuple[Floats, Floats, Floats, Floats]) -> Floats:
    mean, scatter, centre, precision = parts
    z = (inputs[:, : len(NUMBERS)] - mean) / scatter
    away = np.clip(np.nan_to_num(z[:, None] - centre), -FARTHEST, FARTHEST)
    found: Floats = ((away @ precision) * away).sum(2).min(1)
    return found
