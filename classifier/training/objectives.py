"""What training minimises. An objective maps random views of histories to a loss and works with every architecture.

An objective is a module: parameters of its own, such as a projector, are discarded after training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from skyheed.classifier.errors import ModelError
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.models.base import Batch, Model, Network

if TYPE_CHECKING:
    from skyheed.classifier.training.dataset import Dataset
    from skyheed.classifier.training.protocol import Protocol

QUICKER = 20.0  # learning rate of an objective's few quick parameters, over that of the others


@dataclass(frozen=True)
class Views:
    """Random views of some objects.

    Attributes:
        histories: one view of each.
        rows: the data set's epochs that each view contains.
        labels: int64 [b], the classes.
    """

    histories: Sequence[History]
    rows: Sequence[NDArray[np.int64]]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """What an objective has access to.

    Attributes:
        network: in training.
        mean: the exponential mean of the network, which is what will be served; in evaluation mode.
        data: the source of the views.
        autocast: use bfloat16 where it is native.
    """

    network: Network
    mean: Network
    data: "Dataset"
    scaling: Scaling
    protocol: "Protocol"
    autocast: bool

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return next(self.network.parameters()).device

    def batch(self, histories: Sequence[History]) -> Batch:
        """Histories as inputs of the network."""
        arrays = self.network.collate(histories, self.scaling)
        return {key: torch.from_numpy(array).to(self.device) for key, array in arrays.items()}

    def target(self, labels: NDArray[np.int64]) -> Tensor:
        """Labels on the network's device."""
        return torch.from_numpy(labels).to(self.device)


class Objective(nn.Module):
    """What is minimised.

    Attributes:
        views: number of views of each object that a step needs.
    """

    views = 1

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        object.__setattr__(self, "setting", setting)  # not a submodule: the objective must not save the networks

    setting: Setting

    def loss(self, views: Sequence[Views], generator: np.random.Generator) -> Tensor:
        """The loss of one step, from `views` views of the same objects."""
        raise NotImplementedError

    def log(self) -> dict[str, float]:
        """Metrics of the last step for the log."""
        return {}

    def report(self, indices: NDArray[np.int64]) -> dict[str, Any]:
        """Measurements on these objects at the end of training, in addition to the classification scores."""
        return {}

    def finish(self) -> None:
        """Change the mean network a last time before it is calibrated and measured; most objectives do not."""

    def measure(self, model: Model) -> dict[str, Any]:
        """Measurements on the calibrated model, in addition to the classification scores; added to the report."""
        return {}

    def alarm(self) -> str:
        """A description of what is wrong with the last step; "" if nothing is."""
        return ""

    def quick(self) -> Sequence[nn.Parameter]:
        """Its parameters that learn `QUICKER` times as fast as all others, and do not decay."""
        return ()


def groups(network: Network, objective: Objective) -> list[dict[str, Any]]:
    """All parameters that are learned, in groups for an optimiser; `speed` multiplies the rate of a group."""
    quick = {id(p): p for p in objective.quick()}
    others = [p for p in (*network.parameters(), *objective.parameters()) if id(p) not in quick]
    fast = {"params": list(quick.values()), "speed": QUICKER, "weight_decay": 0.0}
    return [{"params": others, "speed": 1.0}, *([fast] if quick else [])]


class CrossEntropy(Objective):
    """Cross-entropy of the views and of their beginnings, plus the network's own regularisation."""

    def loss(self, views: Sequence[Views], generator: np.random.Generator) -> Tensor:
        """See `Objective.loss`."""
        network, (seen,) = self.setting.network, views
        with torch.autocast(self.setting.device.type, torch.bfloat16, enabled=self.setting.autocast):
            logits, rows = network.beginnings(self.setting.batch(seen.histories), generator)
        target = self.setting.target(seen.labels[rows])
        return functional.cross_entropy(logits.float(), target) + network.regularisation()


class ConvEntionObjective(Objective):
    """Cross-entropy of views and beginnings from tokens computed once, and a loss for predicting fluxes from tokens.

    Tokens are costly but do not change, so every view is also classified at earlier stages, at no cost.
    """

    def __init__(self, setting: Setting) -> None:
        from skyheed.classifier.training.dataset import flux_unit

        super().__init__(setting)
        config = setting.network.config
        self.paper = config.variant == "paper"
        self.flux_unit = flux_unit(setting.data)
        self.photometer = nn.Linear(config.channels * config.map**2, 2 * config.group).to(setting.device)

    def loss(self, views: Sequence[Views], generator: np.random.Generator) -> Tensor:
        """See `Objective.loss`."""
        network: Any = self.setting.network
        (seen,) = views
        batch = self.setting.batch(seen.histories)
        valid, days, present = batch["valid"], batch["days"], batch["present"]
        with torch.autocast(self.setting.device.type, torch.bfloat16, enabled=self.setting.autocast):
            tokens = network.tokens(batch["pixels"], batch["bands"], valid)
        tokens = tokens.float()
        loss = self._photometry(tokens, present, seen.rows)
        if self.paper:
            logits = network.logits(tokens, None, days, present)
            return loss + functional.cross_entropy(logits, self.setting.target(seen.labels))
        count = self.setting.protocol.prefixes
        shown = prefixes(valid, count, generator)
        again = [t.repeat(1 + count, *[1] * (t.dim() - 1)) for t in (tokens, days, present)]
        logits = network.logits(again[0], shown, again[1], again[2])
        return loss + functional.cross_entropy(logits, self.setting.target(np.tile(seen.labels, 1 + count)))

    def _photometry(self, tokens: Tensor, present: Tensor, rows: Sequence[NDArray[np.int64]]) -> Tensor:
        """The loss of a linear map from tokens to fluxes; the map is discarded after training."""
        weight, data = self.setting.protocol.photometry, self.setting.data
        if not weight:
            return torch.zeros((), device=tokens.device)
        where = np.concatenate(rows)  # every stamp, in the order of `present`
        unit = self.flux_unit[data.band[where]].astype(np.float32)
        target = torch.from_numpy(np.arcsinh(data.flux[where] / unit[:, None])).to(tokens.device)
        found = self.photometer(tokens.flatten(2)).unflatten(2, (-1, 2))[present]
        known = target.isfinite()
        return weight * functional.smooth_l1_loss(found[known], target[known])


def prefixes(valid: Tensor, count: int, generator: np.random.Generator) -> Tensor:
    """Which tokens are visible in the views and in `count` beginnings of each, bool [(1 + count) b, n]."""
    whole = valid.sum(1).cpu().numpy()
    shorter = np.exp(generator.uniform(0, np.log(whole + 1), (count, len(whole)))).astype(np.int64)
    limit = torch.from_numpy(np.concatenate([whole, shorter.ravel()])).to(valid.device)
    return torch.arange(valid.shape[1], device=valid.device) < limit[:, None]


def cross_entropy(setting: Setting, **settings: Any) -> Objective:
    """The objective for classification alone.

    Raises:
        ModelError: it has no settings.
    """
    if settings:
        raise ModelError(f"the objective cross-entropy has no setting {min(settings)}: leave it out")
    if setting.protocol.family.name == "convention":
        return ConvEntionObjective(setting)
    return CrossEntropy(setting)


def _ict(setting: Setting, **settings: Any) -> Objective:
    from skyheed.classifier.training.ict import Ict

    return Ict(setting, **settings)


def _pretrained(setting: Setting, **settings: Any) -> Objective:
    from skyheed.classifier.training.pretrain import Pretrained

    return Pretrained(setting, **settings)


def _multitask(setting: Setting, **settings: Any) -> Objective:
    from skyheed.classifier.training.multitask_objective import MultiTask

    return MultiTask(setting, **settings)


def _adapt(setting: Setting, **settings: Any) -> Objective:
    from skyheed.classifier.training.adaptation import Adaptation

    return Adaptation(setting, **settings)


OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "cross-entropy": cross_entropy, "ict": _ict, "pretrained": _pretrained,
    "multitask": _multitask, "adapt": _adapt,
}  # fmt: skip


# Parameters that an objective learns in addition to the network: name -> (network, settings) -> how many.
EXTRA: dict[str, Callable[..., int]] = {
    "ict": lambda network, **_: _ict_parameters(network), "multitask": lambda network, **_: _task_parameters(network)
}  # fmt: skip


def _ict_parameters(network: Network) -> int:
    from skyheed.classifier.training.ict import extra_parameters

    return extra_parameters(network.width)


def _task_parameters(network: Network) -> int:
    from skyheed.classifier.training.multitask import Heads

    return sum(p.numel() for p in Heads(network.width).parameters())


def extra_parameters(asked: Mapping[str, Any], network: Network) -> int:
    """Number of parameters of an objective, discarded after training, not counting ConvEntion's photometer."""
    settings = {key: value for key, value in asked.items() if key != "name"}
    count = EXTRA.get(str(asked.get("name", "")))
    return count(network, **settings) if count else 0


def make(setting: Setting) -> Objective:
    """The objective requested by a protocol.

    Raises:
        ModelError: there is none of that name, or it has no such setting.
    """
    asked = dict(setting.protocol.minimised())
    name = asked.pop("name")
    if name not in OBJECTIVES:
        raise ModelError(f"no objective {name}: known are {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name](setting, **asked)
