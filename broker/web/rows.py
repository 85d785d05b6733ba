"""One classification as a row of a list, of the live page or of the index; plain values."""

import math
from collections.abc import Mapping
from typing import Any

from skyheed.broker.observation import Flag
from skyheed.broker.results.record import Classification
from skyheed.broker.web.object_ids import path_key
from skyheed.classifier.prediction import Declined

# What a decline means, in words; readers must expect codes they do not know.
REASONS = {
    Declined.TOO_FEW_STAMPS: "too few stamps so far",
    Declined.BANDS_UNKNOWN: "has stamps in a band that the model does not know",
    Declined.NOT_FINITE: "the model's output was not finite",
    Declined.IMAGES_NOT_KEPT: "images that the model has not seen are not kept any more",
}
PREFIX = "/api/v1"
DECLINED = "declined"  # what a decline is called where other rows show their class


def row_of(record: Classification, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The row of a classification.

    Args:
        before: the row of the same model's previous classification of the object.
    """
    probabilities = {p.name: round(p.probability, 6) for p in record.probabilities}
    return {
        "object_id": record.object_id, "path": path_key(record.object_id), "model": record.model,
        "revision": record.revision, "classification_id": record.classification_id,
        "status": str(record.status), "reason": record.reason, "reason_text": reason_text(record.reason),
        "top_class": record.top_class, "top_probability": probabilities.get(record.top_class or ""),
        "probabilities": probabilities, **_change(record.top_class, probabilities, before),
        "n_stamps": record.n_stamps, "stamps_per_band": record.stamps_per_band,
        "days": round(record.days_since_first, 4), "ra": record.ra, "dec": record.dec,
        "first_mjd": record.first_mjd, "last_mjd": record.last_mjd, "flags": flag_names(record.flags),
        "kafka_ms": record.kafka_ms, "classified_ms": record.classified_ms,
        "strip": f"{PREFIX}/objects/{path_key(record.object_id)}/strip.png?revision={record.revision}",
    }  # fmt: skip


def _change(top: str | None, now: Mapping[str, float], before: Mapping[str, Any] | None) -> dict[str, Any]:
    if before is None:
        return {"change": None, "previous_class": None}
    earlier = before["probabilities"]
    change = round(now[top] - earlier[top], 6) if top and top in earlier else None
    return {"change": change, "previous_class": before["top_class"] or DECLINED}


def reason_text(reason: str | None) -> str | None:
    """A decline's code in words."""
    return None if reason is None else REASONS.get(reason, reason.replace("_", " "))  # type: ignore[call-overload]


def flag_names(flags: int) -> list[str]:
    """What happened to the stamps, by the names of `Flag`; unknown bits as numbers."""
    known = [flag.name.lower() for flag in Flag if flags & flag and flag.name]
    unknown = flags & ~sum(Flag)
    return known + [f"bit_{n}" for n in range(16) if unknown >> n & 1]


def night_of(mjd: float) -> int:
    """The night of an epoch: its whole MJD, which changes in the afternoon at observatories in the Americas."""
    return math.floor(mjd) if math.isfinite(mjd) else 0
