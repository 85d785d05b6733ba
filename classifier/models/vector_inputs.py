"""Configuration and inputs of `vector` and `fusion`, as arrays. Numpy only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.errors import ModelError
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import IMAGE_KINDS, History
from skyheed.classifier.models import family
from skyheed.classifier.models.fusion.points import context_numbers, merged, point_features
from skyheed.classifier.nights import padded
from skyheed.classifier.stamp import STAMP_SIZE

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Config(family.Config):
    """Configuration of the network.

    Attributes:
        encoder: name of the stamp encoder.
        norm: of the encoder small: over groups of channels, or over batches (for adaptation; other encoders have
            a fixed norm).
        images: science stamps alone, or all kinds as channels of one image.
        band: how a stamp's band is encoded: added to its vector, by scales and shifts of the first layer, or as
            a second image.
        pooling: how outputs of all epochs are combined: their mean, or a mean weighted by a learned score.
        width, heads, layers: of the Transformer blocks.
        photometry: use photometric points as additional tokens, the latest `points` of them.
        context: use context numbers.
        missing: in training, the probability that a kind of image, all points, a kind of point or the context is
            withheld.
        kept: precision of cached values; newly computed ones are rounded in the same way.
    """

    encoder: Literal["repvgg", "physnet", "vit", "swin", "small"] = "repvgg"
    norm: Literal["group", "batch"] = "group"
    images: Literal["science", "all"] = "science"
    band: Literal["embedding", "film", "image"] = "embedding"
    pooling: Literal["mean", "attention"] = "mean"
    width: int = 128
    heads: int = 4
    layers: int = 2
    dropout: float = 0.1
    photometry: bool = False
    points: int = 64
    context: bool = False
    missing: float = 0.3
    kept: Literal["float32", "float16"] = "float32"

    def check(self) -> None:
        """See `family.Config.check`."""
        if self.width % self.heads:
            raise ModelError(f"width is {self.width}: give a multiple of heads, which is {self.heads}")
        if self.band == "film" and self.encoder != "repvgg":
            raise ModelError(f"band is film, which the encoder {self.encoder} does not know: use embedding or image")

        if self.norm == "batch" and self.encoder != "small":
            raise ModelError(f"norm is batch, which the encoder {self.encoder} does not know: leave it out")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of images, in the order of the channels."""
        return ("science",) if self.images == "science" else IMAGE_KINDS

    @property
    def channels(self) -> int:
        """Number of image channels of the encoder."""
        return len(self.kinds) + (self.band == "image")

    @property
    def keeps(self) -> int:
        """Numbers cached per epoch: its vector and, if stamps are the only tokens, keys, values and the output."""
        return self.width * (1 if self.photometry else 2 + 2 * self.layers)

    @property
    def per_stamp(self) -> int:
        """How many of them come from the stamp alone."""
        return self.width


class Inputs:
    """Converts histories to inputs of a network."""

    options: ClassVar[type[Config]] = Config

    def __init__(self, config: Config) -> None:
        self.config = config

    def collate(self, histories: Sequence[History], scaling: Scaling) -> Arrays:
        """A padded batch of whole histories; images of all epochs must be available.

        Returns:
            images: float32 [b, n, kinds, 32, 32] scaled; 0 where a kind is missing. band: int64 [b, n].
            times: float32 [b, n, 3]. valid: bool [b, n]. Further arrays if photometry or context is switched on.
        """
        everything = self.pixels(histories, [np.arange(len(h)) for h in histories], scaling)
        ends = np.cumsum([len(h) for h in histories])[:-1]
        return {"images": padded(np.split(everything, ends)), **self.without_images(histories, scaling)}

    def without_images(self, histories: Sequence[History], scaling: Scaling) -> Arrays:
        """The same without the images."""
        points = self._points(histories, scaling) if self.config.photometry else {}
        return layout(histories) | points | self.beside(histories)

    def pixels(
        self, histories: Sequence[History], epochs: Sequence[NDArray[np.int64]], scaling: Scaling
    ) -> NDArray[np.float32]:
        """Scaled images of some epochs of each history, one after the other: float32 [m, kinds, 32, 32].

        Raises:
            ValueError: the images of an epoch are not available.
        """
        wanted = [(h, _places(h, e)) for h, e in zip(histories, epochs, strict=True) if len(e)]
        band = np.concatenate([h.band[e] for h, e in zip(histories, epochs, strict=True)])
        made = np.zeros((len(band), len(self.config.kinds), STAMP_SIZE, STAMP_SIZE), np.float32)
        for n, kind in enumerate(self.config.kinds):
            if any(kind in h.images for h, _ in wanted):
                made[:, n] = scaling(np.concatenate([_images(h, kind, places) for h, places in wanted]), band)
        return made

    def beside(self, histories: Sequence[History]) -> Arrays:
        """Arrays for photometry and context of histories."""
        return {"context": context_numbers(histories)} if self.config.context else {}

    @staticmethod
    def beside_of(arrays: Arrays) -> Arrays:
        """The arrays of `beside` in a batch."""
        return {name: arrays[name] for name in ("context", "numbers", "imaged") if name in arrays}

    def _points(self, histories: Sequence[History], scaling: Scaling) -> Arrays:
        numbers, bands, times = point_features(histories, scaling, self.config.points)
        counts = np.array([len(mjd) for mjd in times])
        return {
            "points": padded(numbers),
            "point_band": padded(bands).astype(np.int64),
            "points_valid": np.arange(counts.max()) < counts[:, None],
            **merged(histories, times, max(map(len, histories))),
        }


def _places(history: History, epochs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the images of these epochs are."""
    shown = history.shown
    places = np.searchsorted(shown, epochs)
    if places[-1] >= len(shown) or (shown[places] != epochs).any():  # both are in ascending order
        raise ValueError("the images of some of these epochs are missing: fetch the whole history")
    return places


def _images(history: History, kind: str, places: NDArray[np.int64]) -> NDArray[np.float16]:
    """Images of one kind, zeros if the history has none of it."""
    if kind not in history.images:
        return np.zeros((len(places), STAMP_SIZE, STAMP_SIZE), np.float16)
    images = history.images[kind]
    return images if len(images) == len(places) else images[places]


def layout(histories: Sequence[History]) -> Arrays:
    """Bands int64 [b, n], times float32 [b, n, 3] and valid bool [b, n] of histories.

    Times: days since the first and since the previous epoch, both as log(1 + days), and days since the first / 100.
    """
    lengths = np.array([len(h) for h in histories])
    starts = np.cumsum(lengths) - lengths
    mjd = np.concatenate([h.mjd for h in histories])
    days = mjd - np.repeat(mjd[starts], lengths)
    since = np.diff(days, prepend=0)
    since[starts] = 0
    valid = np.arange(lengths.max()) < lengths[:, None]
    band, times = np.zeros(valid.shape, np.int64), np.zeros((*valid.shape, 3), np.float32)
    band[valid] = np.concatenate([h.band for h in histories])
    times[valid] = np.stack([np.log1p(days), np.log1p(since), days / 100], 1)
    return {"band": band, "times": times, "valid": valid}
