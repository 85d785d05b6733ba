"""Hand-chosen features of an alert in addition to its images: its surroundings, and its light curve so far.

They are few and the same for all surveys, so that a few dozen labelled objects suffice to fit heads on them. Unknown
values are NaN. Numpy only.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.history import History
from skyheed.classifier.models.fusion.light_curves import CURVE, curves

Values = dict[str, float]

NEAR = 1.5  # arcsec: a catalogue source this close is taken to be the object itself, or the core of its host

SURROUNDINGS = (
    "reference_distance", "reference_magnitude", "reference_shape", "over_reference", "catalogue_distance", "on_star",
    "on_galaxy", "catalogue_magnitude", "catalogue_gr", "catalogue_ri", "second_distance", "latitude", "detections",
    "age", "detected_visits",
)  # fmt: skip
NUMBERS = SURROUNDINGS + CURVE


def surroundings(context: Mapping[str, float]) -> Values:
    """The `SURROUNDINGS` that are known, from a history's context (`classifier.context`)."""

    def known(name: str, low: float = -math.inf, high: float = math.inf) -> float:
        return min(max(float(context.get(name, math.nan)), low), high)  # NaN stays NaN in this order

    star, distance = known("catalogue_1_star"), known("catalogue_1_distance")
    near = math.exp(-((distance / NEAR) ** 2))
    detections, visits = known("detections"), known("visits")
    return {
        "reference_distance": math.log1p(known("reference_distance", 0, 60)),
        "reference_magnitude": known("reference_magnitude", 12, 23), "reference_shape": known("reference_shape", -1, 1),
        "over_reference": known("magnitude_over_reference", -5, 4),
        "catalogue_distance": math.log1p(known("catalogue_1_distance", 0, 60)),
        "on_star": star * near, "on_galaxy": (1 - star) * near,
        "catalogue_magnitude": known("catalogue_1_magnitude", 12, 23),
        "catalogue_gr": known("catalogue_1_gr", -1, 2.5), "catalogue_ri": known("catalogue_1_ri", -1, 2.5),
        "second_distance": math.log1p(known("catalogue_2_distance", 0, 60)),
        "latitude": known("galactic_latitude", 0, 60),  # above this, the density of Galactic stars hardly decreases
        "detections": np.log1p(detections), "age": math.log1p(known("age_days", 0)),
        "detected_visits": np.log((detections + 0.5) / (visits + 1)),
    }  # fmt: skip


def table(histories: Sequence[History]) -> NDArray[np.float32]:
    """The `NUMBERS` of histories, float32 [b, NUMBERS]; NaN where unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):  # fluxes that are all 0 are unknown, like missing ones
        around = [surroundings(h.context) for h in histories]
        of_curves = curves(histories)
    return np.concatenate([[[a[name] for name in SURROUNDINGS] for a in around], of_curves], 1).astype(np.float32)
