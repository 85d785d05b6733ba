"""ICT-ConvEntion's objective: two views of each object, drawn together and towards their class, and classified.

The seeds print L = L_MSE + L_CE + L_MSE + L_KL, an online and a slowly following target branch, and that the MSEs lower
the variance within classes. Which tensors they join is not published. The default reading is that of SupBYOL (Oh & Lee
2024, arXiv 2406.10815), after BYOL (Grill et al. 2020): one MSE to the other view of the object, one to the mean of the
class, each class from a queue of its own, so that a rare one counts as much as a frequent one. It is the only reading
that lowers the variance within classes in a toy (tests).

The target is the exponential mean of the network, which is what is served, in evaluation mode.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from skyheed.classifier import checks
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models.base import Batch, Network
from skyheed.classifier.training.objectives import Objective, Setting, Views, prefixes

HIDDEN, WIDTH = 512, 128  # of projector and predictor
COLLAPSED = 0.5 / math.sqrt(WIDTH)  # half the scatter of a number of vectors that are even on the sphere
SETTLED = 100  # steps before which the target knows no batch statistics and its projections are all alike
MOMENTUM = 0.99  # with which the target's projector begins to follow


@dataclass(frozen=True)
class Settings:
    """What the objective can be told.

    Attributes:
        positives: what the two MSEs draw together. view+class: the other view, and the class; view: the other view,
            both ways; class: another object of the class, both ways; levels: the other view, as representation and as
            projection.
        kl: between classifications of both views, or from those of whole views to those of their beginnings.
        queue: vectors of each class that make its mean.
        temperature: of the target's probabilities.
    """

    positives: Literal["view+class", "view", "class", "levels"] = "view+class"
    kl: Literal["views", "early"] = "views"
    queue: int = 64
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for key in ("positives", "kl"):
            kind = next(f.type for f in fields(self) if f.name == key)
            checks.choice(key, getattr(self, key), get_args(kind))
        checks.count("queue", self.queue, 1)
        checks.positive("temperature", self.temperature)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Settings":
        """Settings from plain values.

        Raises:
            ModelError: an unknown key, or a value that cannot be.
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
    """How slowly a target follows after some of all steps: from `first` to 1."""
    share = min(step / max(steps, 1), 1.0)
    return 1 - (1 - first) * (math.cos(math.pi * share) + 1) / 2


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, keep: float) -> None:
    """target = keep * target + (1 - keep) * online, of weights and of batch statistics."""
    for old, new in zip(target.state_dict().values(), online.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - keep)


def projector(inputs: int) -> nn.Sequential:
    """linear - batch norm - ReLU - linear."""
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH, bias=False)
    )


def extra_parameters(width: int) -> int:
    """What projector and predictor learn; none of it is served."""
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
        self.register_buffer("count", torch.zeros(classes, dtype=torch.int64))  # put in so far

    @torch.no_grad()
    def put(self, z: Tensor, labels: Tensor) -> None:
        """Add vectors [b, width] with their labels [b]; the oldest of their class go."""
        size = self.vectors.shape[1]
        for label in torch.unique(labels).tolist():
            own = z.detach()[labels == label][-size:]
            at = (self.count[label] + torch.arange(len(own), device=z.device)) % size
            self.vectors[label, at] = own.to(self.vectors.dtype)
            self.count[label] += len(own)

    @torch.no_grad()
    def means(self, labels: Tensor, otherwise: Tensor) -> Tensor:
        """Mean vectors [b, width] of the classes [b]; `otherwise` [b, width] where a class has none yet."""
        filled = self.count.clamp(max=self.vectors.shape[1])
        means = self.vectors.sum(1) / filled.clamp(min=1)[:, None]
        return torch.where((filled[labels] > 0)[:, None], means[labels], otherwise)


@dataclass(frozen=True)
class Branch:
    """One view through one branch.

    Attributes:
        h: [b, width] representations. z: [b, 128] projections, normalised in the target. logits: [b, classes].
        p: [b, 128] predictions, of the online branch.
        early, rows: logits [k, classes] of beginnings and the whole, and whose they are, of the online branch.
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
    """The four terms of the loss of two views each through the online and the target branch."""
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
    """For each of the labels [b] the next index of the same label, round in a ring; its own if there is no other."""
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
    else:  # what the beginning of a view should say is what the target says of the whole of it
        pairs = tuple(
            (t.logits, o.logits) if o.early is None or o.rows is None else (t.logits[o.rows], o.early)
            for o, t in zip(online, target, strict=True)
        )  # type: ignore[assignment]
    return sum(divergence(t / settings.temperature, o).mean() for t, o in pairs) / 2  # type: ignore[return-value]


class Ict(Objective):
    """See the module.

    Attributes:
        projector, predictor: online; thrown away after training.
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
        self._log["collapsed"] = float(self._log["z_std"] < COLLAPSED)
        total: Tensor = sum(terms.values(), self.setting.network.regularisation())
        return total

    def _follow(self) -> float:
        """The target's projector after the step before; the mean of the network is the trainer's."""
        p = self.setting.protocol
        keep = momentum(int(self.steps), p.short_steps + p.steps + p.fine_steps)
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
        h = mean.encode(batch).float()
        return Branch(h, functional.normalize(self.target(h), dim=1), mean.classify(h))

    def log(self) -> dict[str, float]:
        """Each term, the momentum, the scatter of normalised projections, whether they collapsed, and the variance
        within classes over that between them."""
        return self._log

    def alarm(self) -> str:
        """Rings when all projections have become one, which those of the first steps are."""
        if not self._log.get("collapsed") or int(self.steps) < SETTLED:
            return ""
        return (
            f"projections have collapsed: their scatter is {self._log['z_std']:.4f}, below {COLLAPSED:.4f}; lower the "
            "learning rate or use another reading (positives)"
        )


def representations(
    network: Network, batch: Batch, count: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Representations [k, width] of histories and beginnings, int64 [k] whose they are, and [b] which are of wholes."""
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
    """ConvEntion's, whose tokens are the work and do not change: the wholes first, then `count` beginnings of each."""
    tokens = network.tokens(batch["pixels"], batch["bands"], batch["valid"])
    shown = prefixes(batch["valid"], count, generator)
    again = [t.repeat(1 + count, *[1] * (t.dim() - 1)) for t in (tokens, batch["days"], batch["present"])]
    encoded: Tensor = network.encoded(again[0], shown, again[1], again[2])
    return encoded, np.tile(np.arange(len(tokens)), 1 + count)


def scatter(z: Tensor) -> float:
    """Mean over dimensions of the scatter of normalised vectors [n, d]; 0 where all are one, 1 / sqrt(d) at most."""
    return float(functional.normalize(z.detach(), dim=1).std(0).mean())


def within_between(z: Tensor, labels: Tensor) -> float:
    """Variance within classes over that between them, of vectors [n, d] with labels [n]."""
    z = z.detach()
    groups = [z[labels == label] for label in torch.unique(labels)]
    centre = z.mean(0)
    within = sum(float((g - g.mean(0)).square().sum()) for g in groups)
    between = sum(len(g) * float((g.mean(0) - centre).square().sum()) for g in groups)
    return within / max(between, 1e-12)
