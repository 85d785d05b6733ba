"""Cross-entropy after pre-training without labels: SITS-BERT denoises nights, ViT predicts hidden patches."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skyheed.classifier import value_checks
from skyheed.classifier.errors import ModelError
from skyheed.classifier.history import History
from skyheed.classifier.models.base import Batch, Model, Network
from skyheed.classifier.models.mae import MaskedAutoencoder
from skyheed.classifier.models.sits_bert import Mending, SitsBert
from skyheed.classifier.models.transformers import Vit
from skyheed.classifier.training import adaptation_scores
from skyheed.classifier.training.dataset import Augmentation
from skyheed.classifier.training.objectives import CrossEntropy, Setting, Views

STAMPS = 64  # stamps per step whose patches are hidden
HIDES = ("patches", "tubes")
TARGETS = ("pixels", "signal", "normalised")


class Pretrained(CrossEntropy):
    """See the module.

    Args:
        share: the fraction of all end-to-end steps in which the network is pre-trained.
        also: further archives, for example of unlabelled real packets. Each step draws as many objects from each of
            them as from the training archive; labelled objects reserved for measurement
            (`adaptation_scores.members_of`) are left out.
        measure_on: archives on which the finished model is measured, as by the objective `adapt`.
        settings: of the masked auto-encoder, `target` (pixels, signal or normalised) and `hide`: patches of every stamp
            by themselves, or tubes, the same patches of all stamps of an object.

    Raises:
        ModelError: the network has no pre-training, or a setting is invalid.
    """

    steps: Tensor

    def __init__(
        self, setting: Setting, share: float = 0.3, also: Sequence[str] = (), measure_on: Sequence[str] = (),
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(setting)
        value_checks.number("share", share, 0, 1)
        p = setting.protocol
        self.until = round(share * (p.short_steps + p.steps + p.fine_steps))
        self.task, self._of = task(setting.network, **settings)
        self.task.to(setting.device)
        self.measured = tuple(measure_on)
        self.others = [adaptation_scores.target_of(path, p.bands, "pre-train on") for path in also]
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=setting.device))
        self._log: dict[str, float] = {}

    def loss(self, views: Sequence[Views], generator: np.random.Generator) -> Tensor:
        """See `Objective.loss`."""
        self.steps += 1
        if int(self.steps) > self.until:
            self._log = {}
            return super().loss(views, generator)
        histories = [*views[0].histories, *self._drawn(len(views[0].histories), generator)]
        made: Tensor = self.task(**self._of(self.setting.batch(histories)))
        self._log = {"pretraining": float(made.detach())}
        return made

    def _drawn(self, count: int, generator: np.random.Generator) -> list[History]:
        """A random view of this many objects from each of the other archives."""
        p = self.setting.protocol
        view = Augmentation(p.longest, p.whole, p.truncate, p.stamps, drop=p.drop).view if self.others else None
        return [
            view(data, int(i), generator)[0]
            for data, members in self.others
            if view
            for i in generator.choice(members, count)
        ]

    def measure(self, model: Model) -> dict[str, Any]:
        """See `Objective.measure`."""
        made = [adaptation_scores.measure(self.setting, model, name) for name in self.measured]
        return {"measured": made} if made else {}

    def log(self) -> dict[str, float]:
        """The pre-training loss, while pre-training lasts."""
        return self._log


def task(network: Network, **settings: Any) -> tuple[nn.Module, Callable[[Batch], dict[str, Any]]]:
    """A network's pre-training task, and a function that extracts its arguments from a batch.

    Raises:
        ModelError: it has none, or the setting is unknown.
    """
    known = set() if isinstance(network, SitsBert) else {"target", "hide"}
    if unknown := sorted(set(settings) - known):
        raise ModelError(f"pre-training has no setting {unknown[0]} here: leave it out")
    if isinstance(network, SitsBert):
        return Mending(network), lambda batch: {"batch": batch}
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, Vit) or encoder.embed.in_channels != 1:
        raise ModelError("only sits-bert, and vector with the encoder vit on science stamps, can be pre-trained")
    target, hide = settings.get("target", TARGETS[0]), settings.get("hide", HIDES[0])
    value_checks.choice("target", target, TARGETS)
    value_checks.choice("hide", hide, HIDES)
    return MaskedAutoencoder(encoder, target), some_tubes if hide == "tubes" else some_stamps


def some_stamps(batch: Batch) -> dict[str, Tensor]:
    """A sample of the stamps in a batch of histories, `images` [m, 1, 32, 32]."""
    return {"images": some_tubes(batch)["images"]}


def some_tubes(batch: Batch) -> dict[str, Tensor]:
    """The same, and `owners` [m], the history that each is of."""
    images, owners = batch["images"][batch["valid"]], batch["valid"].nonzero()[:, 0]
    chosen = torch.randperm(len(images), device=images.device)[:STAMPS]
    return {"images": images[chosen], "owners": owners[chosen]}
