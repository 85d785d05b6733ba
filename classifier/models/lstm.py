"""A plain LSTM over the nights of a light curve: the smallest baseline, with as many parameters as published (60 K)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.models import base, light_curves
from skyheed.classifier.models.base import Arrays, Batch, Network
from skyheed.classifier.prediction import Needs


@dataclass(frozen=True)
class Config(light_curves.Config):
    """Configuration of the network.

    Attributes:
        hidden: size of the cell's state.
    """

    hidden: int = 116


class Lstm(Network):
    """One layer; the output at the last night is used."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.width = config, config.hidden
        self.rnn = nn.LSTM(2 * len(config.bands) + 1, config.hidden, batch_first=True)
        self.head = nn.Linear(config.hidden, config.classes)

    def collate(self, histories: Sequence[History], scaling: Scaling) -> Arrays:
        """See `Network.collate` and `light_curves.table`."""
        return light_curves.table(histories, self.config, scaling)

    def encode(self, batch: Batch) -> Tensor:
        """See `Network.encode`."""
        last = batch["valid"].sum(1) - 1
        out: Tensor = self.rnn(batch["nights"])[0][torch.arange(len(last), device=last.device), last]
        return out

    def classify(self, encoded: Tensor) -> Tensor:
        """See `Network.classify`."""
        out: Tensor = self.head(encoded)
        return out

    def representations(self, batch: Batch, generator: np.random.Generator) -> tuple[Tensor, NDArray[np.int64]]:
        """Representations after every night, at no additional cost."""
        valid = batch["valid"]
        return self.rnn(batch["nights"])[0][valid], valid.nonzero()[:, 0].cpu().numpy()


class LstmFamily(base.Family):
    """A plain LSTM over light curves."""

    name = "lstm"
    summary = "one LSTM layer over the nights of a light curve, the smallest baseline"
    config = Config
    network = Lstm
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"lstm": {}}

    def needs(self, config: Config) -> Needs:
        """See `Family.needs`."""
        return Needs(images=(), photometry=config.photometry, most=config.stamps)

    def operations(self, config: Config, stamps: int) -> int:
        """See `Family.operations`; all nights are recomputed."""
        night = 4 * config.hidden * (2 * len(config.bands) + 1 + config.hidden)
        return light_curves.expected_rows(config, stamps) * night + config.hidden * config.classes
