"""The model's architecture and its valid settings; without torch, so that a checkpoint is checked quickly."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from skyheed.classifier import value_checks
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models.convention.groups import GROUP
from skyheed.classifier.stamp import STAMP_SIZE

SMALLEST = 15  # smallest stamp size in pixels for which the 3D-CNN leaves one


@dataclass(frozen=True)
class Config:
    """The model's architecture; the defaults with variant="paper" are the published one (`published`).

    Attributes:
        band_embedding: an image for every band, learned or of constant brightness, or none.
        cnn: 3d, or 2d: every stamp becomes a token by itself.
        time: how tokens are placed in time: by position in the sequence, days since the first stamp, or both; the paper
            variant uses the position only.
        attention_hidden: channels between the two layers of the mlp attention.
        size: pixels of a stamp on a side.
        stamps: number of stamps in the longest sequence.
        bands: the largest band id; there are always at least the published 10 rows of embeddings.

    Raises:
        ModelError: an unknown or impossible value.
    """

    classes: int = 4
    variant: Literal["paper", "stream"] = "stream"
    attention: Literal["linear", "mlp"] = "linear"
    band_embedding: Literal["learned", "fixed", "none"] = "learned"
    cnn: Literal["3d", "2d"] = "3d"
    time: Literal["both", "position", "days"] = "both"
    channels: int = 8
    heads: int = 4
    layers: int = 2
    hidden: int = 256
    dropout: float = 0.3
    attention_hidden: int = 16
    size: int = STAMP_SIZE
    stamps: int = 99
    bands: int = 9

    def __post_init__(self) -> None:
        for key in fields(self):
            value = getattr(self, key.name)
            if key.type is int:
                value_checks.size(key.name, value)
            elif key.type is float:
                value_checks.number(key.name, value, 0, 0.99)
            else:
                value_checks.choice(key.name, value, get_args(key.type))
        if self.channels % self.heads:
            raise ModelError(f"channels is {self.channels}: give a multiple of heads, which is {self.heads}")
        if self.map < 1:
            raise ModelError(f"size is {self.size}: give {SMALLEST} or more, smaller images vanish in the 3D-CNN")

    @property
    def group(self) -> int:
        """Stamps of a token."""
        return GROUP if self.cnn == "3d" else 1

    @property
    def tokens(self) -> int:
        """Tokens of the longest sequence."""
        return -(-self.stamps // GROUP) * GROUP // self.group

    @property
    def map(self) -> int:
        """Pixels of a token on a side: conv1 has stride 2, conv3 and conv4 are not padded."""
        return (self.size + 4 - 11) // 2 + 1 - 4

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
