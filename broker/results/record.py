"""A classification: what is published for one object. Independent of Kafka, models and encodings (`formats`)."""

import functools
import hashlib
import json
import math
import operator
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.broker.errors import ConfigError
from skyheed.broker.observation import BANDS
from skyheed.classifier.prediction import Declined as Declined
from skyheed.classifier.prediction import Status as Status

SCHEMA_VERSION = "1.1"
BROKER_NAME = "skyheed"
NOT_CLASSIFIED_ID = 300  # ELAsTiCC taxonomy: NotClassified
_ID = re.compile(r"[0-9a-f]{32}")
_COLUMNS = ("mjd", "band", "flags", "ra", "dec", "kafka_ms", "ingest_ms", "source_id")
_TIMES = ("survey_ms", "kafka_ms", "ingest_ms", "classified_ms")
# TAI - UTC in seconds, from each MJD (UTC): IERS Bulletin C, https://hpiers.obspm.fr/iers/bul/bulc/Leap_Second.dat
_LEAP_MJD = (0, 51179, 53736, 54832, 56109, 57204, 57754)
_LEAP_S = (31, 32, 33, 34, 35, 36, 37)
_UNIX_MJD = 40587.0
_DAY_MS = 86_400_000
_COMPACT = json.JSONEncoder(separators=(",", ":"))  # `json.dumps` would make one for every line


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """One class of the classification; `taxonomy_id` is ELAsTiCC's."""

    name: str
    taxonomy_id: int
    probability: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A further output of the model, with its 1-sigma error."""

    name: str
    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made the classification."""

    skyheed_version: str
    model_name: str
    model_version: str
    weights_digest: str
    preprocessing: str
    taxonomy: str
    device: str
    schema_version: str = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Classification:
    """One record of schemas/classification/v1, which documents every field and unit."""

    classification_id: str
    survey: str
    object_id: str
    revision: int
    status: Status
    reason: str | None
    probabilities: tuple[ClassProbability, ...]
    top_class: str | None
    top_probability: float | None
    ra: float
    dec: float
    n_stamps: int
    stamps_per_band: dict[str, int]
    first_mjd: float
    last_mjd: float
    days_since_first: float
    flags: int
    sources: tuple[int, ...]
    triggering_source_id: int
    provenance: Provenance
    survey_ms: int
    kafka_ms: int
    ingest_ms: int
    classified_ms: int
    model: str = ""
    estimates: tuple[Estimate, ...] = ()

    @classmethod
    def of(
        cls,
        survey: str,
        object_id: str,
        revision: int,
        header: NDArray[Any],
        probabilities: Sequence[tuple[str, int, float]] | None,
        reason: str | None,
        provenance: Provenance,
        classified_ms: int,
        model: str = "",
        estimates: Mapping[str, tuple[float, float]] | None = None,
    ) -> "Classification":
        """The record for one object.

        Args:
            header: structured array [n >= 1] in the order of (mjd, source id) with the fields mjd (days TAI), band
                (index into `BANDS`), flags, ra, dec (degrees), kafka_ms, ingest_ms, source_id.
            probabilities: (class, ELAsTiCC id, probability) of every class, or None if the object is declined.
            reason: why it is declined.
            model: its name within the survey.
            estimates: further outputs, name -> (value, 1-sigma error).
        """
        answer = _normalised(probabilities)
        if probabilities is not None and not answer:
            reason = Declined.NOT_FINITE
        top = max(answer, key=lambda c: c.probability, default=None)
        rows = {name: header[name].tolist() for name in _COLUMNS}  # numpy takes longer for each single number
        trigger = _last(rows["ingest_ms"])
        bands, mjd, sources = Counter(rows["band"]), rows["mjd"], rows["source_id"]
        kafka_ms, ingest_ms = rows["kafka_ms"][trigger], rows["ingest_ms"][trigger]
        return cls(
            classification_id=classification_id(survey, object_id, header["source_id"], provenance, model),
            survey=survey,
            object_id=object_id,
            revision=int(revision),
            status=Status.CLASSIFIED if answer else Status.NOT_CLASSIFIED,
            reason=None if answer else str(reason),
            probabilities=answer,
            top_class=top.name if top else None,
            top_probability=top.probability if top else None,
            ra=rows["ra"][-1],
            dec=rows["dec"][-1],
            n_stamps=len(mjd),
            stamps_per_band={BANDS[b]: bands[b] for b in sorted(bands)},
            first_mjd=mjd[0],
            last_mjd=mjd[-1],
            days_since_first=mjd[-1] - mjd[0],
            flags=functools.reduce(operator.or_, rows["flags"]),
            sources=tuple(sources),
            triggering_source_id=sources[trigger],
            provenance=provenance,
            survey_ms=utc_ms(mjd[-1]),
            # stored by a release that took Kafka's "no timestamp" for a time
            kafka_ms=kafka_ms if kafka_ms >= 0 else ingest_ms,
            ingest_ms=ingest_ms,
            classified_ms=classified_ms,
            model=model,
            estimates=_finite(Estimate(name, *numbers) for name, numbers in (estimates or {}).items()),
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Classification":
        """From a decoded record; fields unknown to this version, and estimates that are not numbers, are dropped.

        Raises:
            ValueError, TypeError, KeyError: not what a worker publishes (`check`).
        """
        known = {name: record[name] for name in _FIELDS if name in record}
        known |= {name: _ms(record[name]) for name in _TIMES}
        known["status"] = Status(record["status"])
        known["probabilities"] = tuple(ClassProbability(**p) for p in record["probabilities"])
        known["sources"] = tuple(record["sources"])
        known["estimates"] = _finite(Estimate(**e) for e in record.get("estimates", ()))
        known["provenance"] = Provenance(**record["provenance"])
        found = cls(**known)
        found.check()
        return found

    def check(self) -> None:
        """Refuse what no worker publishes: readers round and print the numbers, and put the id into headers and URLs.

        Raises:
            ValueError
        """
        if not self.survey or not self.object_id:
            raise ValueError("a record without a survey or an object")
        if not self.object_id.isprintable():  # ingest sets such alerts aside
            raise ValueError(f"an object {self.object_id!a}, which cannot be printed")
        if not _ID.fullmatch(self.classification_id):
            raise ValueError("a classification_id that is not 32 hexadecimal digits")
        if not (self.top_class is None) == (self.top_probability is None) == (not self.probabilities):
            raise ValueError("some of top_class, top_probability and probabilities, but not all three")
        numbers = [self.ra, self.dec, self.first_mjd, self.last_mjd, self.days_since_first, self.top_probability or 0]
        if not all(map(math.isfinite, [*numbers, *(p.probability for p in self.probabilities)])):
            raise ValueError("a position, time or probability that is not a number")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for Avro and JSON."""
        plain = {name: getattr(self, name) for name in _FIELDS}
        plain["probabilities"] = [
            {"name": p.name, "taxonomy_id": p.taxonomy_id, "probability": p.probability} for p in self.probabilities
        ]
        plain["sources"] = list(self.sources)
        plain["estimates"] = [{"name": e.name, "value": e.value, "error": e.error} for e in self.estimates]
        plain["provenance"] = {name: getattr(self.provenance, name) for name in _PROVENANCE}
        return plain

    def to_json(self) -> dict[str, Any]:
        """Values for JSON; the status as text."""
        return self.to_dict() | {"status": str(self.status)}

    @property
    def probability_of(self) -> dict[str, float]:
        """Probability by class name."""
        return {p.name: p.probability for p in self.probabilities}

    def to_history(self) -> str:
        """One line of the object's history as JSON: probability against time and number of stamps."""
        line = {
            "id": self.classification_id,
            "revision": self.revision,
            "n_stamps": self.n_stamps,
            "mjd": self.last_mjd,
            "days": round(self.days_since_first, 4),
            "classified_ms": self.classified_ms,
            "reason": self.reason,
            "probabilities": {p.name: round(p.probability, 5) for p in self.probabilities},
        }
        return _COMPACT.encode(line)

    def headers(self, container: bool = True) -> list[tuple[str, bytes]]:
        """Kafka headers; `_format` tells hop-client that the value is an Avro container."""
        mark = [("_format", b"avro")] if container else []
        return [*mark, ("skyheed-classification-id", self.classification_id.encode())]

    def to_elasticc(self) -> dict[str, Any]:
        """ELAsTiCC's brokerClassification; a declined object is NotClassified with probability 1."""
        answer = [{"classId": p.taxonomy_id, "probability": p.probability} for p in self.probabilities]
        params = {
            "objectId": self.object_id,
            "classificationId": self.classification_id,
            "stamps": self.n_stamps,
            "daysSinceFirst": round(self.days_since_first, 4),
            "weights": self.provenance.weights_digest,
            "reason": self.reason,
        }
        return {
            "alertId": self.triggering_source_id,
            "diaSourceId": self.triggering_source_id,
            "elasticcPublishTimestamp": self.kafka_ms,
            "brokerIngestTimestamp": self.ingest_ms,
            "brokerName": BROKER_NAME,
            "brokerVersion": self.provenance.skyheed_version,
            "classifierName": f"{self.provenance.model_name} {self.provenance.model_version}",
            "classifierParams": json.dumps(params, separators=(",", ":")),
            "classifications": answer or [{"classId": NOT_CLASSIFIED_ID, "probability": 1.0}],
        }


_FIELDS = tuple(f.name for f in fields(Classification))
_PROVENANCE = tuple(f.name for f in fields(Provenance))


@dataclass(frozen=True)
class Wanted:
    """Which classifications a reader wants.

    Attributes:
        classes: only these top classes; all if empty.
        models: only these models of the survey; all if empty.
        min_probability: of the top class.

    Raises:
        ConfigError: no probability can be that large.
    """

    classes: Collection[str] = ()
    models: Collection[str] = ()
    min_probability: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_probability <= 1:
            raise ConfigError(f"min_probability must be 0 to 1, not {self.min_probability:g}")

    def __contains__(self, record: Classification) -> bool:
        if self.classes and record.top_class not in self.classes:
            return False
        if self.models and record.model not in self.models:
            return False
        return self.min_probability <= 0 or (record.top_probability or 0.0) >= self.min_probability


def classification_id(
    survey: str, object_id: str, source_ids: NDArray[Any], provenance: Provenance, model: str = ""
) -> str:
    """32 hex digits that identify the object, its set of sources and the model; nothing else enters."""
    names = [survey, object_id, model, provenance.model_version, provenance.weights_digest, provenance.preprocessing]
    sources = np.sort(np.asarray(source_ids, "<u8"))
    return hashlib.sha256(json.dumps(names).encode() + b"\n" + sources.tobytes()).hexdigest()[:32]


def utc_ms(mjd_tai: float) -> int:
    """Unix milliseconds UTC of an MJD TAI."""
    leap = _LEAP_S[bisect_right(_LEAP_MJD, mjd_tai) - 1]
    return round((mjd_tai - _UNIX_MJD) * _DAY_MS) - leap * 1000


def _normalised(probabilities: Sequence[tuple[str, int, float]] | None) -> tuple[ClassProbability, ...]:
    total = sum(p for _, _, p in probabilities or ())
    if not (math.isfinite(total) and total > 0):
        return ()
    # rounded to Avro's float, so that a record is equal after decoding
    rounded = (np.array([p for _, _, p in probabilities or ()]) / total).astype(np.float32).tolist()
    return tuple(
        ClassProbability(name, number, p) for (name, number, _), p in zip(probabilities or (), rounded, strict=True)
    )


def _finite(estimates: Iterable[Estimate]) -> tuple[Estimate, ...]:
    return tuple(e for e in estimates if math.isfinite(e.value) and math.isfinite(e.error))


def _last(times: Sequence[int]) -> int:
    """The place of the latest time; of several the last: the newest stamp of those that came in one batch."""
    return len(times) - 1 - times[::-1].index(max(times))


def _ms(value: int | datetime) -> int:
    return round(value.timestamp() * 1000) if isinstance(value, datetime) else value
