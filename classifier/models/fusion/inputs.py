"""Configuration of `fusion`, and its inputs in addition to stamps and points. Numpy only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from skyheed.classifier.errors import ModelError
from skyheed.classifier.history import History
from skyheed.classifier.models import vector_inputs
from skyheed.classifier.models.fusion.features import table
from skyheed.classifier.models.vector_inputs import Arrays, Inputs


@dataclass(frozen=True)
class Config(vector_inputs.Config):
    """Configuration of the network; see `vector_inputs.Config` for the part that takes stamps and points.

    Attributes:
        hidden: hidden width of each small network.
        screen: decline histories whose difference stamps look like artefacts (`fusion.screen`).
    """

    encoder: Literal["small", "repvgg", "physnet", "vit", "swin"] = "small"
    images: Literal["science", "all"] = "all"
    width: int = 64
    photometry: bool = True
    context: bool = True
    hidden: int = 32
    screen: bool = False

    @property
    def per_stamp(self) -> int:
        """See `vector_inputs.Config.per_stamp`."""
        return self.width + self.screen

    @property
    def keeps(self) -> int:
        """See `vector_inputs.Config.keeps`."""
        return self.per_stamp

    def check(self) -> None:
        """See `base.Config.check`."""
        super().check()
        if not (self.photometry and self.context):
            raise ModelError("photometry and context are what fusion joins: leave both true, or use the model vector")
        if self.screen and self.images != "all":
            raise ModelError("screen looks at difference stamps: set images to all, or leave it out")


class FusionInputs(Inputs):
    """See the module."""

    options: ClassVar[type[vector_inputs.Config]] = Config

    def beside(self, histories: Sequence[History]) -> Arrays:
        """The hand-chosen numbers [b, NUMBERS], NaN where unknown, and whether there are images [b, 1]."""
        shown = [[float(any(len(h.images[k]) for k in h.images) or bool(h.kept))] for h in histories]
        return {"numbers": table(histories), "imaged": np.array(shown, np.float32)}
