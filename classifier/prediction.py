"""What a model needs from a history, and its prediction. Numpy only, so that readers need no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.history import LONGEST


class Status(StrEnum):
    """Whether there are probabilities."""

    CLASSIFIED = "CLASSIFIED"
    NOT_CLASSIFIED = "NOT_CLASSIFIED"


class Declined(StrEnum):
    """Why an object was not classified; readers must expect codes that they do not know."""

    TOO_FEW_STAMPS = "too_few_stamps"
    BANDS_UNKNOWN = "bands_unknown"  # it has epochs in a band that the model was not trained on
    NOT_FINITE = "not_finite"  # a probability is not a number
    UNLIKE_TRAINING = "unlike_training"  # it is unlike anything in the model's training data
    IMAGES_NOT_KEPT = "images_not_kept"  # Redis dropped images that the model has not seen (redis.keep_pixels)


@dataclass(frozen=True)
class Needs:
    """What a model reads of a history.

    Attributes:
        images: kinds of stamps; none for a light-curve model.
        photometry: points without images.
        context: numbers about the surroundings.
        fewest, most: epochs; an object with fewer is declined, of one with more the newest are used.
        span: neighbouring epochs covered by one cached value; 0: nothing is cached.
    """

    images: tuple[str, ...] = ("science",)
    photometry: bool = False
    context: bool = False
    fewest: int = 1
    most: int = LONGEST
    span: int = 0


@dataclass(frozen=True)
class Estimate:
    """A further output of a model, such as a phase, with its 1-sigma error."""

    value: float
    error: float


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one history.

    Attributes:
        probabilities: float32 [classes], calibrated, with sum 1; empty if it declines.
        reason: why it declines, or None.
        estimates: further heads, by name.
        keep: index of a span of epochs -> what to cache for it; it never changes.
    """

    probabilities: NDArray[np.float32]
    reason: Declined | None = None
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    keep: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """CLASSIFIED, or NOT_CLASSIFIED with a reason."""
        return Status.CLASSIFIED if self.reason is None else Status.NOT_CLASSIFIED

    @classmethod
    def declined(cls, reason: Declined) -> "Prediction":
        """No probabilities, and why."""
        return cls(np.empty(0, np.float32), reason)
