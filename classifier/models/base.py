"""What every model family has in common: a network that takes histories, and how it is configured, trained and served.

A family is one file or folder here (or in a package of someone else's) and one line in the entry-point group
`skyheed.models`. Training, calibration, evaluation, the worker and the page know this interface only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import checks
from ..errors import ModelError
from ..history import LONGEST, History
from ..prediction import Needs, Prediction
from ..scaling import Scaling

GROUP = "skyheed.models"
Arrays = dict[str, NDArray[Any]]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Config:
    """What configures a network; a family adds its own fields, all with defaults, of type int, float, bool or Literal.

    Attributes:
        classes: how many.
        stamps: epochs of the longest history.
    """

    classes: int = 4
    stamps: int = LONGEST

    def __post_init__(self) -> None:
        for key in fields(self):
            value = getattr(self, key.name)
            if key.type is int:
                checks.count(key.name, value, 1)
            elif key.type is float:
                checks.number(key.name, value, 0, 1)
            elif key.type is bool:
                checks.switch(key.name, value)
            else:
                checks.choice(key.name, value, get_args(key.type))
        self.check()

    def check(self) -> None:
        """Refuse values that do not fit together.

        Raises:
            ModelError: in one sentence that names the key.
        """

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Network(nn.Module):
    """A network that classifies batches of histories.

    `encode` gives the representation that objectives such as domain adaptation or two views work on; `classify` is all
    that comes behind it.

    Attributes:
        config: of the family.
        width: numbers in the representation of a history.
    """

    config: Any
    width: int

    def fit_inputs(self, histories: Sequence[History], scaling: Scaling) -> None:
        """Take statistics of the inputs from training histories, once, into buffers; most networks need none."""

    def collate(self, histories: Sequence[History], scaling: Scaling) -> Arrays:
        """A padded batch as `encode` takes it; what stands in the padding must not change an answer."""
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

    def beginnings(self, batch: Batch, generator: np.random.Generator) -> tuple[Tensor, NDArray[np.int64]]:
        """Logits of the histories and, where that costs little, of some of their beginnings, for training.

        Returns:
            Logits [k, classes], and for each the history's row in the batch.
        """
        logits = self(batch)
        return logits, np.arange(len(logits))

    def predictive(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Logits [b, classes] for serving, and the spread [b] of probabilities where a network knows one."""
        return self(batch), None

    def regularisation(self) -> Tensor:
        """What the objective adds to the loss of a batch, such as a KL divergence of weights; 0 for most."""
        return torch.zeros((), device=next(self.parameters()).device)


class Model(Protocol):
    """A checkpoint ready to serve.

    Attributes:
        info: its card (`checkpoint.Info`).
        needs: what it reads of a history.
        classes: their names, in the order of the probabilities.
        chosen: a sentence that says on what it computes, and why.
    """

    info: Any
    needs: Needs
    classes: tuple[str, ...]
    chosen: str

    def predict(self, histories: Sequence[History]) -> list[Prediction]:
        """What it says of each history; each alone and in any company the same."""


class Family:
    """One kind of network.

    Attributes:
        name: in `model.json` and in training configurations.
        config: its `Config`.
        network: its `Network`; takes the config alone.
        presets: name for `skyheed model list` -> what it sets in the config.
        summary: one sentence for `skyheed model list`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    config: ClassVar[type[Any]]
    network: ClassVar[type[Any]]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]

    def configure(self, values: Mapping[str, Any]) -> Any:
        """A config from plain values.

        Raises:
            ModelError: an unknown key, or a value that cannot be.
        """
        known = {field.name for field in fields(self.config)}
        if unknown := sorted(set(values) - known):
            raise ModelError(
                f"the family {self.name} does not know the key {unknown[0]}; it knows {', '.join(sorted(known))}"
            )
        return self.config(**values)

    def needs(self, config: Any) -> Needs:
        """What such a network reads of a history."""
        raise NotImplementedError

    def build(self, config: Any) -> Network:
        """A network with random weights."""
        made: Network = self.network(config)
        return made

    def operations(self, config: Any, stamps: int) -> int:
        """Multiply-adds of one update of a history that has come to so many epochs, with what is kept."""
        raise NotImplementedError


@cache
def families() -> Mapping[str, Family]:
    """Every family that is installed, by name."""
    return {point.name: point.load()() for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def family(name: str) -> Family:
    """The family of a name.

    Raises:
        ModelError: there is none.
    """
    known = {point.name for point in entry_points(group=GROUP)}
    if name not in known:
        raise ModelError(f"no model family {name}: known are {', '.join(sorted(known))}; install the package it is in")
    return families()[name]


def parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(p.numel() for p in module.parameters())
