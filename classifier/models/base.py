"""The common basis of all model families: a network that takes histories, its configuration, training and serving.

A family is one file or folder here (or in another package) and one line in the entry-point group `skyheed.models`.
Training, calibration, evaluation, the worker and the page know only this interface.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.models.family import Config as Config
from skyheed.classifier.models.family import Family as Family
from skyheed.classifier.models.family import family as family
from skyheed.classifier.prediction import Needs, Prediction

Arrays = dict[str, NDArray[Any]]
Batch = dict[str, Tensor]


class Network(nn.Module):
    """A network that classifies batches of histories.

    `encode` returns the representation used by objectives such as domain adaptation or two views; `classify` is
    everything after it.

    Attributes:
        config: configuration of the family.
        width: numbers in the representation of a history.
        objects: number of training objects, as the trainer sets it.
    """

    config: Any
    width: int
    objects = 1

    def fit_inputs(self, histories: Sequence[History], scaling: Scaling) -> None:
        """Take statistics of the inputs from some training histories, once, into buffers; most networks need none."""

    def collate(self, histories: Sequence[History], scaling: Scaling) -> Arrays:
        """A padded batch as `encode` takes it; the content of the padding must not change a prediction."""
        raise NotImplementedError

    def encode(self, batch: Batch) -> Tensor:
        """The representation [b, width] of each history."""
        raise NotImplementedError

    def classify(self, encoded: Tensor) -> Tensor:
        """Logits [b, classes] of representations [b, width]."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor:
        """Logits [b, classes]."""
        return self.classify(self.encode(batch))

    def representations(self, batch: Batch, generator: np.random.Generator) -> tuple[Tensor, NDArray[np.int64]]:
        """Representations of the histories and, if that costs little, of some of their beginnings.

        Returns:
            Representations [k, width], and for each the history's row in the batch; a row's last one is of the whole.
        """
        encoded = self.encode(batch)
        return encoded, np.arange(len(encoded))

    def beginnings(self, batch: Batch, generator: np.random.Generator) -> tuple[Tensor, NDArray[np.int64]]:
        """Logits of the histories and, if that costs little, of some of their beginnings, for training.

        Returns:
            Logits [k, classes], and for each the history's row in the batch.
        """
        encoded, rows = self.representations(batch, generator)
        return self.classify(encoded), rows

    def predictive(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Logits [b, classes] for serving, and the spread [b] of probabilities if the network provides one."""
        return self(batch), None

    def regularisation(self) -> Tensor:
        """A term added to the loss of a batch, such as a KL divergence of weights; 0 for most networks."""
        return torch.zeros((), device=next(self.parameters()).device)


class Model(Protocol):
    """A checkpoint ready to serve.

    Attributes:
        info: its card (`checkpoint.Info`).
        needs: the parts of a history that it reads.
        classes: their names, in the order of the probabilities.
        chosen: a sentence that states on which hardware it computes, and why.
        kept_as: changes with everything that affects its cached values; "" if it caches nothing.
    """

    info: Any
    needs: Needs
    classes: tuple[str, ...]
    chosen: str
    kept_as: str

    def predict(self, histories: Sequence[History]) -> list[Prediction]:
        """A prediction for each history, or the reason for declining; independent of the rest of the batch."""

    def classify(self, histories: Sequence[History]) -> list[Prediction]:
        """Probabilities for each history, however short it is, for evaluation."""

    def warm_up(self, batch_size: int = 64) -> None:
        """Compute once in the usual batch shapes."""


def parameters(module: nn.Module) -> int:
    """Number of trainable parameters in a module."""
    return sum(p.numel() for p in module.parameters())
