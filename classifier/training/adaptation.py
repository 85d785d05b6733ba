"""The objective `adapt`: learn from a labelled source, with features shared by an unlabelled target.

Representations of single stamps are aligned, one per object and step, because entire sequences from the two skies also
differ in length; the layers that follow learn from the source alone. `adaptation_losses` describes the methods and
their limits.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from skyheed.classifier import value_checks
from skyheed.classifier.errors import ModelError
from skyheed.classifier.history import History
from skyheed.classifier.models.base import Batch, Model
from skyheed.classifier.training import adaptation_losses, adaptation_scores
from skyheed.classifier.training.dataset import Augmentation, Dataset
from skyheed.classifier.training.objectives import Objective, Setting, Views

METHODS = ("none", "adabn", "dann", "dann-class", "cdan", "coral", "dan", "jdot")
DOMAINS = ("apart", "together")
TASKS = ("class", "multitask")
MOST_OFTEN = 16.0  # upper limit of the balanced domain weight, relative to the supervised one (SIDDA: b >= a / 4)
FOR_STATISTICS = 512  # objects from which the target's batch statistics are computed
BATCH = 32
ONE = Augmentation(longest=1, whole=0.0, truncate=0.0, most=1, late=1.0, drop=0.0, dense=1.0)


class Adaptation(Objective):
    """See the module.

    Args:
        method: `none` learns from the source alone; `adabn` also takes batch statistics from the target at the end; all
            others align.
        target: an archive. If some of its objects have no label, those are the target; otherwise the objects of its
            training split are. Its labels are never used for training.
        weight: final weight of the alignment loss; it rises to this from 0.
        silent: share of the steps before it starts to rise.
        domains: `apart` computes source and target batches separately, each with its own batch statistics, and serves
            those of the target; `together` computes them as one batch.
        classes: source classes that dann-class aligns with the target, such as those that dominate a stream.
        shares: expected class shares in the target: dann-class weights the source by them.
        inject: the fraction of a target batch that dann-class replaces by source samples of classes not in `classes`,
            so that both sides contain them.
        alpha, beta: parameters of jdot (`adaptation_losses.jdot`).
        tasks: what is learned from the source: the class alone, or all tasks of `multitask`, balanced among themselves.
        balance_domain: also learn the weight of the alignment loss (Kendall et al. 2018), limited to 16 times that of
            the source loss (SIDDA: arXiv 2501.14048); otherwise it follows its own schedule.
        measure_on: further archives on which the finished model is measured.

    Raises:
        ModelError: an invalid setting.
    """

    steps: Tensor

    def __init__(
        self, setting: Setting, method: str = "dann", target: str = "", weight: float = 1.0, silent: float = 0.2,
        domains: str = "apart", classes: Sequence[str] = (), shares: Sequence[float] = (), inject: float = 0.0,
        alpha: float = 0.1, beta: float = 0.1, tasks: str = "class", balance_domain: bool = False,
        measure_on: Sequence[str] = (), **unknown: Any,
    ) -> None:  # fmt: skip
        super().__init__(setting)
        if unknown:
            raise ModelError(f"the objective adapt has no setting {min(unknown)}: see its page in docs/real-sky.md")
        for name, value, known in (("method", method, METHODS), ("domains", domains, DOMAINS), ("tasks", tasks, TASKS)):
            value_checks.choice(name, value, known)
        for name, number in (("weight", weight), ("silent", silent), ("inject", inject)):
            value_checks.number(name, number, 0, 100 if name == "weight" else 0.99)
        if method != "none" and not target:
            raise ModelError(f"the method {method} needs a target: name an archive")
        p = setting.protocol
        self.method, self.weight, self.silent, self.domains = method, weight, silent, domains
        self.alpha, self.beta, self.inject = alpha, beta, inject
        self.every = max(p.short_steps + p.steps + p.fine_steps, 1)
        self.chosen = self._classes(classes)
        self.shares = self._shares(shares)
        self.measured = tuple(dict.fromkeys([*([target] if target else []), *measure_on]))
        self.target: Dataset | None = None
        self.members: NDArray[np.int64] = np.empty(0, np.int64)
        if method != "none":
            self.target, self.members = adaptation_scores.target_of(target, p.bands, "adapt to")
        self.supervised = _supervised(setting, tasks)
        self.head = self._head().to(setting.device)
        self.balance = Pair().to(setting.device) if balance_domain else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=setting.device))
        self._log: dict[str, float] = {}

    def _classes(self, names: Sequence[str]) -> list[int]:
        known = self.setting.protocol.classes
        if strange := sorted(set(names) - set(known)):
            raise ModelError(f"classes holds {strange[0]}: the run tells {', '.join(known)} apart")
        return [known.index(name) for name in names]

    def _shares(self, shares: Sequence[float]) -> Tensor | None:
        """Class weights on the source side, with mean 1 if classes are drawn equally often."""
        if not shares:
            return None
        if len(shares) != len(self.setting.protocol.classes) or min(shares) < 0 or not sum(shares) > 0:
            raise ModelError("shares of the objective adapt: give one number that is not negative for each class")
        made = torch.tensor([float(s) for s in shares], device=self.setting.device)
        return made / made.mean()

    def _head(self) -> nn.Module:
        width = self.setting.network.width
        if self.method == "cdan":
            return adaptation_losses.DomainHead(width * len(self.setting.protocol.classes))
        return adaptation_losses.DomainHead(width) if self.method.startswith("dann") else nn.Identity()

    def loss(self, views: Sequence[Views], generator: np.random.Generator) -> Tensor:
        """See `Objective.loss`."""
        supervised = self.supervised.loss(views, generator)
        by = self.weight * adaptation_losses.strength(int(self.steps), self.every, self.silent)
        self.steps += 1
        self._log = {**self.supervised.log(), "supervised": float(supervised.detach()), "strength": by}
        if self.method in ("none", "adabn") or not by:
            return supervised
        loss = self._aligned(views[0], by, generator)
        self._log["domain"] = float(loss.detach())
        if self.balance is None:
            return supervised + loss
        balanced: Tensor = self.balance(supervised, loss)
        self._log |= self.balance.log()
        return balanced

    def _aligned(self, seen: Views, by: float, generator: np.random.Generator) -> Tensor:
        """The alignment loss for single stamps of source and target."""
        others = self._drawn(len(seen.histories), generator)
        own = [_one(h, int(o.band[0]), generator) for h, o in zip(seen.histories, others, strict=True)]
        source, target = self._encoded(own, others)
        labels = self.setting.target(seen.labels)
        if self.method in ("dann", "dann-class"):
            return self._adversarial(source, target, labels, by, generator)
        logits = [self.setting.network.classify(f).float() for f in (source, target)]
        if self.method == "cdan":
            one, other = (adaptation_losses.conditioned(f, z) for f, z in zip((source, target), logits, strict=True))
            return self._told(one, other, by, adaptation_losses.certainty(torch.cat(logits)))
        if self.method == "coral":
            return by * adaptation_losses.coral(source, target)
        if self.method == "dan":
            return by * (adaptation_losses.mkmmd(source, target) + adaptation_losses.mkmmd(logits[0], logits[1]))
        unit = [functional.normalize(f, dim=1) for f in (source, target)]
        return by * adaptation_losses.jdot(unit[0], labels, unit[1], logits[1], self.alpha, self.beta)

    def _adversarial(
        self, source: Tensor, target: Tensor, labels: Tensor, by: float, generator: np.random.Generator
    ) -> Tensor:
        if self.method == "dann":
            return self._told(source, target, by)
        if self.inject and self.chosen:
            target = self._injected(source, target, labels, generator)
        weights = torch.ones(len(source) + len(target), device=source.device)
        if self.shares is not None:
            weights[: len(source)] = self.shares[labels]
        elif self.chosen and not self.inject:
            weights = adaptation_losses.of_classes(labels, self.chosen, len(target))
        return self._told(source, target, by, weights)

    def _told(self, source: Tensor, target: Tensor, by: float, weights: Tensor | None = None) -> Tensor:
        """The loss of the domain head, whose accuracy is noted."""
        self._log["domain_accuracy"] = adaptation_losses.domain_accuracy(self.head, source, target, weights)
        return adaptation_losses.domain_loss(self.head, source, target, by, weights)

    def _injected(self, source: Tensor, target: Tensor, labels: Tensor, generator: np.random.Generator) -> Tensor:
        """The target, with a fraction replaced by source samples of the classes that it lacks."""
        others = (~torch.isin(labels, torch.tensor(self.chosen, device=labels.device))).nonzero()[:, 0]
        count = round(self.inject * len(target))
        if not len(others) or not count:
            return target
        rows = others[torch.from_numpy(generator.integers(len(others), size=count)).to(others.device)]
        return torch.cat([target[count:], source[rows]])

    def _drawn(self, count: int, generator: np.random.Generator) -> list[History]:
        """One stamp from each of this many target objects."""
        assert self.target is not None
        rows = generator.choice(self.members, count, replace=count > len(self.members))
        return [ONE.view(self.target, int(i), generator)[0] for i in rows]

    def _encoded(self, own: Sequence[History], others: Sequence[History]) -> tuple[Tensor, Tensor]:
        network = self.setting.network
        with torch.autocast(self.setting.device.type, torch.bfloat16, enabled=self.setting.autocast):
            if self.domains == "together":
                both = network.encode(self.setting.batch([*own, *others])).float()
                return both[: len(own)], both[len(own) :]
            source = network.encode(self.setting.batch(own))
            with _statistics_kept(network):
                target = network.encode(self.setting.batch(others))
        return source.float(), target.float()

    def log(self) -> dict[str, float]:
        """Losses, the alignment strength, and how well a domain head tells the domains apart (0.5: not at all)."""
        return self._log

    def finish(self) -> None:
        """Take batch statistics from the target if those are the ones to be served."""
        if self.target is not None and (self.method == "adabn" or self.domains == "apart"):
            self.setting.mean.load_state_dict(
                adaptation_losses.adapt_batch_norm(self.setting.mean, self._for_statistics()).state_dict()
            )

    def _for_statistics(self) -> list[Batch]:
        rng = np.random.default_rng(self.setting.protocol.seed)
        drawn = self._drawn(min(FOR_STATISTICS, len(self.members)), rng)
        batches = [drawn[at : at + BATCH] for at in range(0, len(drawn), BATCH)]
        return [self.setting.batch(own) for own in batches if len(own) == BATCH or len(batches) == 1]

    def measure(self, model: Model) -> dict[str, Any]:
        """See `Objective.measure`: `adaptation_scores.measure` on the target and all other archives; domain distances
        are for the target only, or for all archives if there is no target."""
        apart = self.measured[:1] if self.target else self.measured
        return {
            "measured": [adaptation_scores.measure(self.setting, model, name, name in apart) for name in self.measured]
        }


class Pair(nn.Module):
    """Learned weights of the supervised and the domain loss, 1 / (2 a^2) and 1 / (2 b^2), with b >= a / 4 (SIDDA)."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.zeros(2))  # logarithms of a^2 and b^2

    def forward(self, supervised: Tensor, domain: Tensor) -> Tensor:
        """The balanced loss."""
        a, b = self._bounded()
        return ((-a).exp() * supervised + (-b).exp() * domain + a + b) / 2

    def _bounded(self) -> tuple[Tensor, Tensor]:
        """The bounded logarithms; gradients pass through the bound, so that a value at the bound can return."""
        a = self.logs[0] + (self.logs[0].clamp(-3, 6) - self.logs[0]).detach()
        low = (a - math.log(MOST_OFTEN)).detach()
        return a, self.logs[1] + (torch.maximum(self.logs[1], low) - self.logs[1]).detach()

    def log(self) -> dict[str, float]:
        """Both logarithms."""
        a, b = self._bounded()
        return {"s_supervised": float(a.detach()), "s_domain": float(b.detach())}


@contextlib.contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    """Let batch norm use the statistics of its batch without updating its running statistics."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _one(history: History, band: int, generator: np.random.Generator) -> History:
    """One stamp of a history, in this band if there is one."""
    alike = np.flatnonzero(history.band == band)
    return history.take(np.array([generator.choice(alike if len(alike) else len(history))]))


def _supervised(setting: Setting, tasks: str) -> Objective:
    if tasks == "multitask":
        from skyheed.classifier.training.multitask_objective import MultiTask

        return MultiTask(setting)
    from skyheed.classifier.training.objectives import cross_entropy

    return cross_entropy(setting)
