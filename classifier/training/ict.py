"""ICT-ConvEntion's objective: two views of each object, drawn together and towards their class, and classified.

The papers print L = L_MSE + L_CE + L_MSE + L_KL, with an online branch and a slowly following target branch, and state
that the MSEs lower the variance within classes. Which tensors the MSEs compare is not published. The default
interpretation is that of SupBYOL (Oh & Lee 2024, arXiv 2406.10815), after BYOL (Grill et al. 2020): one MSE to the
other view of the object, one to the class mean, computed from a separate queue for each class so that rare and frequent
classes count equally. In a toy problem the two interpretations that use the class (this one, and `class`) lower the
variance within classes of what is projected, compared with cross-entropy alone, and the two that do not (`view`,
`levels`) raise it (tests).

The target is the exponential mean of the network, in evaluation mode; it is also what is served.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from skyheed.classifier import value_checks
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models.base import Batch, Network
from skyheed.classifier.training.averaging import follow, warmed
from skyheed.classifier.training.objectives import Objective, Setting, Views, prefixes

HIDDEN, WIDTH = 512, 128  # of projector and predictor
COLLAPSED = 0.5 / math.sqrt(WIDTH)  # half the scatter of vectors that are uniform on the sphere
SETTLED = 100  # before this step the target has no batch statistics and its projections are all the same
MOMENTUM = 0.99  # initial momentum of the target's projector
TERMS = ("mse1", "mse2", "ce", "kl")


@dataclass(frozen=True)
class Settings:
    """Settings of the objective.

    Attributes:
        positives: what the two MSEs compare. view+class: the other view, and the class mean; view: the other view,
            in both directions; class: another object of the class, in both directions; levels: the other view, as
            representation and as projection.
        kl: between the classifications of both views, or between whole views and their beginnings.
        queue: vectors of each class from which its mean is computed.
        temperature: temperature of the target's probabilities.
        momentum: initial momentum of the target's projector; it rises to 1.
        target_bn: batch norms of the target use the mean statistics, as those that are served, or those of the batch.
        weights: of the terms mse1, mse2, ce and kl, 1 unless given; without mse2, ce and kl no label is used.
    """

    positives: Literal["view+class", "view", "class", "levels"] = "view+class"
    kl: Literal["views", "early"] = "views"
    queue: int = 64
    temperature: float = 1.0
    momentum: float = MOMENTUM
    target_bn: Literal["mean", "batch"] = "mean"
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("positives", "kl", "target_bn"):
            kind = next(f.type for f in fields(self) if f.name == key)
            value_checks.choice(key, getattr(self, key), get_args(kind))
        value_checks.count("queue", self.queue, 1)
        value_checks.positive("temperature", self.temperature)
        value_checks.number("momentum", self.momentum, 0, 1)
        if not isinstance(self.weights, Mapping) or set(self.weights) - set(TERMS):
            raise ModelError(f"weights is {value_checks.shown(self.weights)}: give numbers for {', '.join(TERMS)}")
        for name, weight in self.weights.items():
            value_checks.number(f"the weight of {name}", weight)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Settings":
        """Settings from plain values.

        Raises:
            ModelError: an unknown key, or an invalid value.
        """
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ModelError(f"the objective ict has no setting {unknown[0]}: known are {', '.join(known)}")
        return cls(**values)


def distance(p: Tensor, z: Tensor) -> Tensor:
    """Squared distance [b] of vectors [b, d] on the unit sphere, 2 - 2 cos, from 0 to 4."""
    return 2 - 2 * functional.cosine_similarity(p, z, dim=-1, eps=1e-12)


def divergence(target: Tensor, online: Tensor) -> Tensor:
    """KL(target || online) [b] of logits [b, classes]."""
    log_target, log_online = target.log_softmax(-1), online.log_softmax(-1)
    return (log_target.exp() * (log_target - log_online)).sum(-1)


def momentum(step: int, steps: int, first: float = MOMENTUM) -> float:
    """Momentum of the target after some of all steps: from `first` to 1."""
    share = min(step / max(steps, 1), 1.0)
    return 1 - (1 - first) * (math.cos(math.pi * share) + 1) / 2


def projector(inputs: int) -> nn.Sequential:
    """linear - batch norm - ReLU - linear."""
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH, bias=False)
    )


def extra_parameters(width: int) -> int:
    """Number of trainable parameters in projector and predictor; none of them are served."""
    return sum(n * HIDDEN + 2 * HIDDEN + HIDDEN * WIDTH for n in (width, WIDTH))


class Queue(nn.Module):
    """A ring of vectors for every class; it never receives gradients.

    Args:
        classes: how many.
        size: vectors of each.
    """

    vectors: Tensor
    count: Tensor

    def __init__(self, classes: int, size: int, width: int = WIDTH) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(classes, size, width))
        self.register_buffer("count", torch.zeros(classes, dtype=torch.int64))  # total number added so far

    @torch.no_grad()
    def put(self, z: Tensor, labels: Tensor) -> None:
        """Add vectors [b, width] with their labels [b]; the oldest of their class are removed."""
        size = self.vectors.shape[1]
        for label in torch.unique(labels).tolist():
            own = z.detach()[labels == label][-size:]
            at = (self.count[label] + torch.arange(len(own), device=z.device)) % size
            self.vectors[label, at] = own.to(self.vectors.dtype)
            self.count[label] += len(own)

    @torch.no_grad()
    def means(self, labels: Tensor, otherwise: Tensor) -> Tensor:
        """Mean vectors [b, width] of the classes [b]; `otherwise` [b, width] for classes without vectors."""
        filled = self.count.clamp(max=self.vectors.shape[1])
        means = self.vectors.sum(1) / filled.clamp(min=1)[:, None]
        return torch.where((filled[labels] > 0)[:, None], means[labels], otherwise)


@dataclass(frozen=True)
class Branch:
    """One view through one branch.

    Attributes:
        h: [b, width] representations. z: [b, 128] projections, normalised in the target. logits: [b, classes].
        p: [b, 128] predictions, only in the online branch.
        early, rows: logits [k, classes] of beginnings and the whole, and their rows in the batch, only in the online
            branch.
    """

    h: Tensor
    z: Tensor
    logits: Tensor
    p: Tensor | None = None
    early: Tensor | None = None
    rows: Tensor | None = None


def joined(
    online: Sequence[Branch], target: Sequence[Branch], labels: Tensor, queue: Queue, settings: Settings
) -> dict[str, Tensor]:
    """The four terms of the loss, from two views, each passed through the online and the target branch."""
    (a, b), (c, d) = online, target
    assert a.p is not None
    assert b.p is not None
    if settings.positives == "view+class":
        first = (distance(a.p, d.z) + distance(b.p, c.z)) / 2
        second = (distance(a.p, queue.means(labels, d.z)) + distance(b.p, queue.means(labels, c.z))) / 2
    elif settings.positives == "view":
        first, second = distance(a.p, d.z), distance(b.p, c.z)
    elif settings.positives == "class":
        other = others(labels)
        first, second = distance(a.p, d.z[other]), distance(b.p, c.z[other])
    else:
        first = (distance(a.h, d.h) + distance(b.h, c.h)) / 2
        second = (distance(a.p, d.z) + distance(b.p, c.z)) / 2
    return {
        "mse1": first.mean(), "mse2": second.mean(),
        "ce": (_classified(a, labels) + _classified(b, labels)) / 2, "kl": _agreement(online, target, settings),
    }  # fmt: skip


def others(labels: Tensor) -> Tensor:
    """For each label [b], the index of the next one of the same class (cyclic); its own if there is no other."""
    found = torch.arange(len(labels), device=labels.device)
    for label in torch.unique(labels):
        own = (labels == label).nonzero()[:, 0]
        found[own] = own.roll(-1)
    return found


def _classified(branch: Branch, labels: Tensor) -> Tensor:
    if branch.early is None or branch.rows is None:
        return functional.cross_entropy(branch.logits, labels)
    return functional.cross_entropy(branch.early, labels[branch.rows])


def _agreement(online: Sequence[Branch], target: Sequence[Branch], settings: Settings) -> Tensor:
    (a, b), (c, d) = online, target
    if settings.kl == "views":
        pairs = ((d.logits, a.logits), (c.logits, b.logits))
    else:  # the beginning of a view should match the target's classification of the whole
        pairs = tuple(
            (t.logits, o.logits) if o.early is None or o.rows is None else (t.logits[o.rows], o.early)
            for o, t in zip(online, target, strict=True)
        )  # type: ignore[assignment]
    return sum(divergence(t / settings.temperature, o).mean() for t, o in pairs) / 2  # type: ignore[return-value]


class Ict(Objective):
    """See the module.

    Attributes:
        projector, predictor: of the online branch; discarded after training.
        target: the projector of the target branch, which follows.
    """

    views = 2
    steps: Tensor

    def __init__(self, setting: Setting, **settings: Any) -> None:
        super().__init__(setting)
        self.settings = Settings.of(settings)
        width, device = setting.network.width, setting.device
        self.projector, self.predictor = projector(width).to(device), projector(WIDTH).to(device)
        self.target = copy.deepcopy(self.projector).eval().requires_grad_(False)
        self.queue = Queue(len(setting.protocol.classes), self.settings.queue).to(device)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        self._log: dict[str, float] = {}

    def loss(self, views: Sequence[Views], generator: np.random.Generator) -> Tensor:
        """See `Objective.loss`."""
        keep = self._follow()
        labels = self.setting.target(views[0].labels)
        batches = [self.setting.batch(v.histories) for v in views]
        with torch.autocast(self.setting.device.type, torch.bfloat16, enabled=self.setting.autocast):
            online = [self._online(batch, generator) for batch in batches]
            target = [self._target(batch) for batch in batches]
        terms = joined(online, target, labels, self.queue, self.settings)
        z = torch.cat([t.z for t in target])
        twice = labels.repeat(2)
        self.queue.put(z, twice)
        self._log = {name: float(term.detach()) for name, term in terms.items()}
        self._log |= {"momentum": keep, "z_std": scatter(z), "within_between": within_between(z, twice)}
        self._log["within_between_h"] = within_between(torch.cat([t.h for t in target]), twice)
        self._log["collapsed"] = float(self._log["z_std"] < COLLAPSED)
        weighted = (self.settings.weights.get(name, 1.0) * term for name, term in terms.items())
        total: Tensor = sum(weighted, self.setting.network.regularisation())
        return total

    def _follow(self) -> float:
        """Update the target's projector from the previous step; the trainer updates the mean of the network."""
        p = self.setting.protocol
        steps = int(self.steps)
        keep = momentum(steps, p.short_steps + p.steps + p.fine_steps, self.settings.momentum)
        keep = warmed(keep, steps)  # as the mean of the network: otherwise the target projects at random for long
        self.steps += 1
        follow(self.target, self.projector, keep)
        return keep

    def _online(self, batch: Batch, generator: np.random.Generator) -> Branch:
        network = self.setting.network
        encoded, rows, whole = representations(network, batch, self.setting.protocol.prefixes, generator)
        encoded = encoded.float()
        early = network.classify(encoded)
        h = encoded[whole]
        z = self.projector(h)
        return Branch(h, z, early[whole], self.predictor(z), early, rows)

    @torch.no_grad()
    def _target(self, batch: Batch) -> Branch:
        mean = self.setting.mean
        self.target.eval()
        with of_batches(mean, self.target) if self.settings.target_bn == "batch" else nullcontext():
            h = mean.encode(batch).float()
            return Branch(h, functional.normalize(self.target(h), dim=1), mean.classify(h))

    def log(self) -> dict[str, float]:
        """Each term, the momentum, the scatter of normalised projections, whether they collapsed, and the variance
        within classes divided by that between them, of projections and (`_h`) of representations."""
        return self._log

    def alarm(self) -> str:
        """Warns when all projections have become the same; those of the first steps always are."""
        if not self._log.get("collapsed") or int(self.steps) < SETTLED:
            return ""
        return (
            f"projections have collapsed: their scatter is {self._log['z_std']:.4f}, below {COLLAPSED:.4f}; lower the "
            "learning rate or use another reading (positives)"
        )


@contextmanager
def of_batches(*networks: nn.Module) -> Iterator[None]:
    """Let the batch norms of networks in evaluation mode use statistics of the batch, and leave their own unchanged."""
    norms = [m for n in networks for m in n.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.track_running_stats, norm.training = False, True
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats, norm.training = True, False


def representations(
    network: Network, batch: Batch, count: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Representations [k, width] of histories and beginnings, their rows int64 [k], and those [b] of the wholes."""
    if _has_tokens(network):
        encoded, rows = _of_tokens(network, batch, count, generator)
        whole = np.arange(len(batch["valid"]))
    else:
        encoded, rows = network.representations(batch, generator)
        whole = len(rows) - 1 - np.unique(rows[::-1], return_index=True)[1]
    return encoded, torch.from_numpy(rows).to(encoded.device), torch.from_numpy(whole).to(encoded.device)


def _has_tokens(network: Any) -> bool:
    return hasattr(network, "tokens") and getattr(network.config, "variant", "") == "stream"


def _of_tokens(
    network: Any, batch: Batch, count: int, generator: np.random.Generator
) -> tuple[Tensor, NDArray[np.int64]]:
    """For ConvEntion, whose tokens are costly and do not change: the wholes first, then `count` beginnings of each."""
    tokens = network.tokens(batch["pixels"], batch["bands"], batch["valid"])
    shown = prefixes(batch["valid"], count, generator)
    again = [t.repeat(1 + count, *[1] * (t.dim() - 1)) for t in (tokens, batch["days"], batch["present"])]
    encoded: Tensor = network.encoded(again[0], shown, again[1], again[2])
    return encoded, np.tile(np.arange(len(tokens)), 1 + count)


def scatter(z: Tensor) -> float:
    """Scatter of normalised vectors [n, d], averaged over dimensions; 0 if all are equal, 1 / sqrt(d) at most."""
    return float(functional.normalize(z.detach(), dim=1).std(0).mean())


def within_between(z: Tensor, labels: Tensor) -> float:
    """Variance within classes divided by that between them, for vectors [n, d] with labels [n]."""
    z = z.detach()
    groups = [z[labels == label] for label in torch.unique(labels)]
    centre = z.mean(0)
    within = sum(float((g - g.mean(0)).square().sum()) for g in groups)
    between = sum(len(g) * float((g.mean(0) - centre).square().sum()) for g in groups)
    return within / max(between, 1e-12)
