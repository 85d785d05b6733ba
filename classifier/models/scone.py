"""SCONE: a small CNN on an image of the light curve, flux against time and wavelength (Qu et al. 2021, AJ 162, 67).

Written from the papers alone. Deviation: the window begins 20 days before the first alert and ends with the last one,
and later bins are zero; the published one is placed around the peak, which is unknown at early times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from skyheed.classifier.errors import ModelError
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.models import base, gaussian_process, light_curves
from skyheed.classifier.models.base import Arrays, Batch, Network
from skyheed.classifier.prediction import Needs

WAVELENGTHS = np.linspace(3000, 10_100, 32)  # Angstrom, of the image's rows
BEFORE_D = 20  # days by which the window starts before the first epoch
FILTERS = (32, 16)
CACHED = 1024  # images, 46 kB each


@dataclass(frozen=True)
class Config(light_curves.Config):
    """Configuration of the network.

    Attributes:
        bins: length of the window in days; 22,540 parameters with 180, 22,284 with 176.
    """

    bins: int = 180
    dropout: float = 0.5
    late_dropout: float = 0.3

    def check(self) -> None:
        """See `base.Config.check`."""
        super().check()
        if self.bins < 4:
            raise ModelError(f"bins is {self.bins}: give 4 or more days")


class Scone(Network):
    """See the module."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.width = config, 32
        rows, bins = len(WAVELENGTHS), config.bins
        self.layers, inputs = nn.ModuleList(), 2
        for filters in FILTERS:
            self.layers += [Columns(inputs, filters, rows), Columns(1, filters, rows)]
            rows, bins, inputs = rows // 2, bins // 2, 1
        self.dropout, self.dense = nn.Dropout(config.dropout), nn.Linear(rows * bins, self.width)
        self.late, self.head = nn.Dropout(config.late_dropout), nn.Linear(self.width, config.classes)

    def collate(self, histories: Sequence[History], scaling: Scaling) -> Arrays:
        """See `Network.collate`.

        Returns:
            image: float32 [b, 2, 32, bins], flux and its error, in units of the largest flux.
        """
        return {"image": np.stack([image(h, self.config) for h in histories])}

    def encode(self, batch: Batch) -> Tensor:
        """See `Network.encode`."""
        x = batch["image"]
        for n, layer in enumerate(self.layers):
            x = layer(x)
            if n % 2:
                x = functional.max_pool2d(x, 2)
        return functional.relu(self.dense(self.dropout(x.flatten(1))))

    def classify(self, encoded: Tensor) -> Tensor:
        """See `Network.classify`."""
        out: Tensor = self.head(self.late(encoded))
        return out


class Columns(nn.Module):
    """Filters as high as the image and three days wide; their outputs form the rows of the next image."""

    def __init__(self, inputs: int, filters: int, rows: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, filters, (rows, 3), padding=(0, 1))
        self.norm = nn.BatchNorm2d(1, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, rows, bins] -> [b, 1, filters, bins]."""
        out: Tensor = self.norm(functional.elu(self.conv(x)).transpose(1, 2))
        return out


def image(history: History, config: Config) -> NDArray[np.float32]:
    """Flux and error [2, 32, bins] from the data of an object; nothing after its last epoch enters."""
    if config.photometry:
        history = light_curves.with_photometry(history)
    known = np.isin(history.band, config.codes) & np.isfinite(history.flux) & np.isfinite(history.flux_error)
    columns = (history.mjd[known], history.band[known], history.flux[known], history.flux_error[known])
    begin, end = float(history.mjd[0]), float(history.mjd[-1])
    return _image(begin, end, config.bins, *(np.ascontiguousarray(c).tobytes() for c in columns))


@lru_cache(maxsize=CACHED)  # nearly all of the cost, and training uses the same images repeatedly
def _image(
    begin: float, end: float, bins: int, mjd: bytes, band: bytes, flux: bytes, error: bytes
) -> NDArray[np.float32]:
    made = np.zeros((2, len(WAVELENGTHS), bins), np.float32)
    if mjd:
        days = np.frombuffer(mjd, np.float64) - begin
        wavelength = gaussian_process.WAVELENGTHS[np.frombuffer(band, np.uint8)]
        measured = (np.frombuffer(f, np.float32).astype(np.float64) for f in (flux, error))
        process = gaussian_process.fit(days, wavelength, *measured)
        # for an object older than the window, its most recent days are shown
        first = max(-BEFORE_D, int(np.ceil(end - begin)) - bins + 1)
        shown = np.arange(first, first + bins)
        shown = shown[shown <= end - begin]
        grid = np.meshgrid(WAVELENGTHS, shown.astype(np.float64), indexing="ij")
        for n, values in enumerate(process(grid[1].ravel(), grid[0].ravel())):
            made[n, :, : len(shown)] = values.reshape(grid[0].shape)
        made /= max(float(np.abs(made[0]).max()), 1e-12)
    made.setflags(write=False)
    return made


class SconeFamily(base.Family):
    """SCONE."""

    name = "scone"
    summary = "a small CNN on a Gaussian process of the light curve (Qu et al. 2021, AJ 162, 67)"
    config = Config
    network = Scone
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"scone": {}}

    def needs(self, config: Config) -> Needs:
        """See `Family.needs`."""
        return Needs(images=(), photometry=config.photometry, most=config.stamps)

    def operations(self, config: Config, stamps: int) -> int:
        """See `Family.operations`; of the CNN and of the Gaussian process at the image's pixels."""
        rows, bins = len(WAVELENGTHS), config.bins
        pixels = rows * bins
        total, inputs = pixels * (stamps + stamps * stamps), 2
        for filters in FILTERS:
            total += bins * 3 * rows * filters * (inputs + 1)
            rows, bins, inputs = rows // 2, bins // 2, 1
        return int(total + rows * bins * 32 + 32 * config.classes)
