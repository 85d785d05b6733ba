"""CNN+GRU and CNN+LSTM: a CNN on a frame with all bands of a night, and a recurrent cell over the nights.

After Carrasco-Davis et al. 2019 (PASP 131, 108006) and Gomez et al. 2020 (MNRAS 499, 3130). Their layers are not
published; these are the simplest ones with the published numbers of parameters: 1.993 million (GRU) and 2.190 million
(LSTM) with five bands, 1.992 and 2.189 million with one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.models import base, light_curves
from skyheed.classifier.models.base import Arrays, Batch, Network
from skyheed.classifier.nights import nights, padded
from skyheed.classifier.prediction import Needs
from skyheed.classifier.stamp import STAMP_SIZE

MAPS = (16, 32, 64, 256)  # channels of the four pairs of convolutions
FRAME, HIDDEN = 512, 256  # width of a frame's features and of the cell's state


@dataclass(frozen=True)
class Config(light_curves.Config):
    """Configuration of the network.

    Attributes:
        cell: type of recurrent cell.
        times: also give the cell the days since the first and the previous night, and which bands were observed.
    """

    cell: Literal["gru", "lstm"] = "gru"
    times: bool = False
    dropout: float = 0.3


class FrameRnn(Network):
    """See the module; the output at the last night is used."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.width = config, HIDDEN
        layers: list[nn.Module] = []
        last = len(config.bands)
        for maps in MAPS:
            layers += [nn.Conv2d(last, maps, 3, padding=1), nn.ReLU(), nn.Conv2d(maps, maps, 3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            last = maps
        flat = last * (STAMP_SIZE >> len(MAPS)) ** 2
        for layer in layers:
            if isinstance(layer, nn.Conv2d):  # with torch's default weights the signal would vanish over eight layers
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.cnn = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, FRAME), nn.ReLU())
        cell = nn.GRU if config.cell == "gru" else nn.LSTM
        self.rnn = cell(FRAME + (2 + len(config.bands)) * config.times, HIDDEN, batch_first=True)
        self.head = nn.Sequential(
            nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(HIDDEN, config.classes)
        )

    def collate(self, histories: Sequence[History], scaling: Scaling) -> Arrays:
        """See `Network.collate`.

        Returns:
            frames: float32 [b, n, bands, 32, 32] scaled; 0 where a band was not observed that night.
            times: float32 [b, n, 2 + bands]. valid: bool [b, n].
        """
        found = [_frames(h, self.config, scaling) for h in histories]
        lengths = np.array([len(times) for _, times in found])
        return {
            "frames": padded([frames for frames, _ in found]), "times": padded([times for _, times in found]),
            "valid": np.arange(lengths.max()) < lengths[:, None],
        }  # fmt: skip

    def outputs(self, batch: Batch) -> Tensor:
        """Outputs of the cell at every night, [b, n, 256]."""
        valid = batch["valid"]
        made = self.cnn(batch["frames"][valid])  # padding is never computed
        x = made.new_zeros(*valid.shape, FRAME).index_put((valid,), made)
        if self.config.times:
            x = torch.cat([x, batch["times"].to(x.dtype)], 2)
        out: Tensor = self.rnn(x)[0]
        return out

    def encode(self, batch: Batch) -> Tensor:
        """See `Network.encode`."""
        last = batch["valid"].sum(1) - 1
        return self.outputs(batch)[torch.arange(len(last), device=last.device), last]

    def classify(self, encoded: Tensor) -> Tensor:
        """See `Network.classify`."""
        out: Tensor = self.head(encoded)
        return out

    def representations(self, batch: Batch, generator: np.random.Generator) -> tuple[Tensor, NDArray[np.int64]]:
        """Representations after every night, at no additional cost."""
        valid = batch["valid"]
        return self.outputs(batch)[valid], valid.nonzero()[:, 0].cpu().numpy()


def _frames(history: History, config: Config, scaling: Scaling) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Frames [k, bands, 32, 32] and times [k, 2 + bands] of the nights with at least one of the bands."""
    found = nights(history)
    epoch = found.epoch[:, config.codes]
    kept = np.flatnonzero((epoch >= 0).any(1)) if (epoch >= 0).any() else np.array([0])
    epoch, mjd = epoch[kept], found.mjd[kept]
    night, column = np.nonzero(epoch >= 0)
    chosen = epoch[night, column]
    if not np.isin(chosen, history.shown).all():
        raise ValueError("the images of some of these epochs are missing: fetch the whole history")
    frames = np.zeros((len(kept), len(config.bands), STAMP_SIZE, STAMP_SIZE), np.float32)
    frames[night, column] = scaling(history.pixels("science", chosen), history.band[chosen])
    days = mjd - mjd[0]
    times = np.concatenate([np.log1p(days)[:, None], np.log1p(np.diff(days, prepend=0))[:, None], epoch >= 0], 1)
    return frames, times.astype(np.float32)


class Recurrent(base.Family):
    """CNN+GRU and CNN+LSTM."""

    name = "recurrent"
    summary = "a CNN on a frame of all bands a night, and a recurrent cell (after Carrasco-Davis et al. 2019)"
    config = Config
    network = FrameRnn
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cnn-gru": {"cell": "gru"}, "cnn-lstm": {"cell": "lstm"}}

    def needs(self, config: Config) -> Needs:
        """See `Family.needs`."""
        return Needs(most=config.stamps)

    def operations(self, config: Config, stamps: int) -> int:
        """See `Family.operations`; all nights are recomputed, each with all bands."""
        total, last = 0, len(config.bands)
        for n, maps in enumerate(MAPS):
            total += (STAMP_SIZE >> n) ** 2 * 9 * (last * maps + maps * maps)
            last = maps
        gates = 3 if config.cell == "gru" else 4
        inputs = FRAME + (2 + len(config.bands)) * config.times
        night = total + 4 * last * FRAME + gates * HIDDEN * (inputs + HIDDEN)
        return light_curves.expected_rows(config, stamps) * night + HIDDEN * (HIDDEN + config.classes)
