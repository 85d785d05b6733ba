"""Class priors: parsing them, and models whose probabilities assume a different one. Numpy only."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from skyheed.classifier.errors import ModelError

if TYPE_CHECKING:
    from skyheed.classifier.models.checkpoint import Info

PRIOR = "+prior."  # in a version: followed by a class prior other than the checkpoint's own


def class_prior(text: str, classes: Sequence[str]) -> tuple[float, ...]:
    """Relative class frequencies from numbers in the order of the classes, such as 906,1988,3225,2130.

    Raises:
        ModelError: not one positive number for each class.
    """
    counts = tuple(_number(part) for part in text.split(","))
    if len(counts) != len(classes) or not all(0 < count < math.inf for count in counts):
        example = ",".join("1" * len(classes))
        raise ModelError(
            f"the prior {text} does not give each of {', '.join(classes)} a positive number: write them as {example}"
        )
    return counts


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def assuming(info: "Info", counts: Sequence[float]) -> "Info":
    """The same model with probabilities for another class prior, which is recorded in the version.

    Args:
        counts: frequency of each class, in any unit.

    Returns:
        Version "5" becomes "5+prior.906-1988-3225-2130" (build metadata in semantic versioning).

    Raises:
        ModelError: the model was trained at natural class frequencies, so another prior would count them twice.
    """
    if info.training.get("protocol", {}).get("balanced") is False:
        raise ModelError(
            f"the model {info.name} was trained at the natural class frequencies (balanced = false), so "
            "another prior would count them twice: leave the prior out, or train with balanced = true"
        )
    relative = tuple(count * len(counts) / sum(counts) for count in counts)
    version = f"{info.version.partition(PRIOR)[0]}{PRIOR}{'-'.join(f'{count:g}' for count in counts)}"
    return replace(info, version=version, calibration=replace(info.calibration, prior=relative))
