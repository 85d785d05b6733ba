"""Classification <-> Avro: our own schema in three envelopes, and ELAsTiCC's message. Knows no Kafka and no model.

Envelopes of schema classification/v1:
    container    `encode`: Avro object container, self-describing; what the topic carries by default
    wire         `encode_wire`: Confluent's 0, schema id (4 bytes, big-endian), datum; where a registry is set
    single       `encode_single`: Avro's C3 01, fingerprint (8 bytes), datum; small, for our own store
Two workers that answer the same revision write the same bytes but for `classified_ms`: the container's sync marker
is fixed, too.
"""

import functools
import hashlib
import io
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from importlib.resources import files
from typing import Any

import fastavro
import numpy as np
from fastavro.schema import parse_schema, to_parsing_canonical_form
from numpy.typing import NDArray

from skyheed.broker.errors import StreamError
from skyheed.broker.observation import BANDS
from skyheed.broker.registry.client import RegistryClient
from skyheed.broker.registry.client import register as register_schema
from skyheed.broker.results import foreign
from skyheed.classifier.names import printable
from skyheed.classifier.prediction import Declined as Declined
from skyheed.classifier.prediction import Status as Status

SCHEMA_VERSION = "1.1"
BROKER_NAME = "skyheed"
NOT_CLASSIFIED_ID = 300  # ELAsTiCC taxonomy: NotClassified
_TIMES = ("survey_ms", "kafka_ms", "ingest_ms", "classified_ms")
_CONTAINER, _WIRE, _SINGLE = b"Obj\x01", b"\x00", b"\xc3\x01"
# TAI - UTC in seconds from each MJD (UTC) on: IERS Bulletin C, https://hpiers.obspm.fr/iers/bul/bulc/Leap_Second.dat
_LEAP_MJD = np.array([0, 51179, 53736, 54832, 56109, 57204, 57754])
_LEAP_S = np.array([31, 32, 33, 34, 35, 36, 37])
_UNIX_MJD = 40587.0
_DAY_MS = 86_400_000

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """One class of the answer; `taxonomy_id` is ELAsTiCC's."""

    name: str
    taxonomy_id: int
    probability: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A further number of the model, with its 1-sigma error."""

    name: str
    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made the answer."""

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
    """One record of schemas/classification/v1, where every field has its meaning and unit."""

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
            model: its name among those that classify the survey's objects.
            estimates: further numbers, name -> (value, 1-sigma error).
        """
        answer = _normalised(probabilities)
        if probabilities is not None and not answer:
            reason = Declined.NOT_FINITE
        top = max(answer, key=lambda c: c.probability, default=None)
        newest, trigger = header[-1], header[_last_ingested(header)]
        bands, counts = np.unique(header["band"], return_counts=True)
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
            ra=float(newest["ra"]),
            dec=float(newest["dec"]),
            n_stamps=len(header),
            stamps_per_band={BANDS[b]: int(n) for b, n in zip(bands, counts, strict=True)},
            first_mjd=float(header[0]["mjd"]),
            last_mjd=float(newest["mjd"]),
            days_since_first=float(newest["mjd"] - header[0]["mjd"]),
            flags=int(np.bitwise_or.reduce(header["flags"])),
            sources=tuple(header["source_id"].tolist()),
            triggering_source_id=int(trigger["source_id"]),
            provenance=provenance,
            survey_ms=utc_ms(float(newest["mjd"])),
            # kept by a release that took Kafka's "no time" for one
            kafka_ms=int(trigger["kafka_ms"] if trigger["kafka_ms"] >= 0 else trigger["ingest_ms"]),
            ingest_ms=int(trigger["ingest_ms"]),
            classified_ms=classified_ms,
            model=model,
            estimates=tuple(Estimate(name, *numbers) for name, numbers in (estimates or {}).items()),
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Classification":
        """From a decoded record; fields that this version does not know are left out."""
        known = {name: record[name] for name in _FIELDS if name in record}
        known |= {name: _ms(record[name]) for name in _TIMES}
        known["status"] = Status(record["status"])
        known["probabilities"] = tuple(ClassProbability(**p) for p in record["probabilities"])
        known["sources"] = tuple(record["sources"])
        known["estimates"] = tuple(Estimate(**e) for e in record.get("estimates", ()))
        known["provenance"] = Provenance(**record["provenance"])
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as Avro and JSON take them."""
        plain = {name: getattr(self, name) for name in _FIELDS}
        plain["probabilities"] = [
            {"name": p.name, "taxonomy_id": p.taxonomy_id, "probability": p.probability} for p in self.probabilities
        ]
        plain["sources"] = list(self.sources)
        plain["estimates"] = [{"name": e.name, "value": e.value, "error": e.error} for e in self.estimates]
        plain["provenance"] = asdict(self.provenance)
        return plain

    def to_json(self) -> dict[str, Any]:
        """Values that JSON takes; the status as its text."""
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
        return json.dumps(line, separators=(",", ":"))

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


def classification_id(
    survey: str, object_id: str, source_ids: NDArray[Any], provenance: Provenance, model: str = ""
) -> str:
    """32 hex digits of what was asked (an object, its set of sources) and of which model; nothing else goes in."""
    names = [survey, object_id, model, provenance.model_version, provenance.weights_digest, provenance.preprocessing]
    sources = np.sort(np.asarray(source_ids, "<u8"))
    return hashlib.sha256(json.dumps(names).encode() + b"\n" + sources.tobytes()).hexdigest()[:32]


def utc_ms(mjd_tai: float) -> int:
    """Unix milliseconds UTC of an MJD TAI."""
    leap = int(_LEAP_S[np.searchsorted(_LEAP_MJD, mjd_tai, "right") - 1])
    return round((mjd_tai - _UNIX_MJD) * _DAY_MS) - leap * 1000


def _normalised(probabilities: Sequence[tuple[str, int, float]] | None) -> tuple[ClassProbability, ...]:
    total = sum(p for _, _, p in probabilities or ())
    if not (np.isfinite(total) and total > 0):
        return ()
    # rounded to what Avro's float keeps, so that a record comes back equal
    return tuple(
        ClassProbability(name, number, float(np.float32(p / total))) for name, number, p in probabilities or ()
    )


def _last_ingested(header: NDArray[Any]) -> int:
    # of several that came in one batch the newest stamp
    return len(header) - 1 - int(np.argmax(header["ingest_ms"][::-1]))


def _ms(value: int | datetime) -> int:
    return round(value.timestamp() * 1000) if isinstance(value, datetime) else value


# --- Avro ---


@dataclass(frozen=True, slots=True)
class Form:
    """How a classification is published.

    Attributes:
        encode: the message's value, from a record and its datum.
        container: the value is an Avro object container.
    """

    encode: Callable[[Classification, bytes], bytes]
    container: bool


def load_schema(*place: str) -> Schema:
    """A schema of the `schemas` package as JSON data, such as ("classification", "v1", "classification.avsc")."""
    schema: Schema = json.loads(files("skyheed.schemas").joinpath(*place).read_text())
    return schema


def schema_text() -> str:
    """schemas/classification/v1 without its docs: what goes into containers and registries."""
    return json.dumps(_bare(load_schema("classification", "v1", "classification.avsc")), separators=(",", ":"))


def datum_of(single: bytes) -> bytes:
    """The datum in what `encode_single` made: all envelopes hold the same one, which need not be encoded again."""
    return single[len(_SINGLE) + len(_fingerprint()) :]


def encode(record: Classification, datum: bytes | None = None) -> bytes:
    """As a self-describing container of one record; `datum` if it was encoded before."""
    datum = datum or _datum(record)
    header, sync = _header()
    return b"".join((header, b"\x02", _zigzag(len(datum)), datum, sync))


def encode_wire(record: Classification, schema_id: int, datum: bytes | None = None) -> bytes:
    """As Confluent wire; `schema_id` as `register` returned it, `datum` if it was encoded before."""
    return _WIRE + struct.pack(">I", schema_id) + (datum or _datum(record))


def encode_single(record: Classification) -> bytes:
    """As Avro single-object encoding: 10 bytes in front of the datum, for a store that holds millions."""
    return _SINGLE + _fingerprint() + _datum(record)


def encode_elasticc(record: Classification, _datum: bytes | None = None) -> bytes:
    """As ELAsTiCC's message: bare Avro, the reader must know the schema (as LSSTDESC/elasticc's own clients do)."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, elasticc_schema(), record.to_elasticc())
    return out.getvalue()


def decode(payload: bytes, writer_schema: Callable[[int], Schema] | None = None) -> Classification:
    """A record from any of the three envelopes, also of a later minor version of the schema.

    Args:
        writer_schema: schema by registry id, for the wire form; without it the record must be of our own version.

    Raises:
        StreamError: the payload is no classification, or larger than any.
    """
    if len(payload) > foreign.MAX_MESSAGE_BYTES:
        raise StreamError(f"not a classification: {len(payload)} bytes, more than {foreign.MAX_MESSAGE_BYTES}")
    try:
        return Classification.from_dict(_decode(payload, writer_schema))
    except StreamError as error:
        raise StreamError(f"not a classification: {error}") from error
    # fastavro lets many kinds of error through for bytes that are not what the schema says
    except Exception as error:
        raise StreamError(f"not a classification: {type(error).__name__}: {printable(error, 200)}") from error


def register(url: str, subject: str, user: str = "", password: str = "", ca_file: str = "") -> int:
    """Register the classification schema under `subject` and return its id; safe to repeat.

    Raises:
        ConfigError: a URL that cannot work or holds a password.
        ServiceError: the registry refuses (user, certificate, or a schema that is not compatible).
        ServiceUnavailable: the registry does not answer.
    """
    client = RegistryClient(url, user, password, ca_file, "registry.output_url")
    return register_schema(client, subject, schema_text())


@functools.cache
def elasticc_schema() -> Schema:
    """The parsed schema of ELAsTiCC's brokerClassification."""
    return _parse(load_schema("elasticc", "v0_9_1", "brokerClassification.avsc"))


@functools.cache
def _schema() -> Schema:
    # without logical types: times stay integers, which is faster both ways; the bytes are the same
    return _parse(_bare(load_schema("classification", "v1", "classification.avsc"), logical=False))


def _parse(schema: Schema) -> Schema:
    parsed = parse_schema(schema, named_schemas={})
    assert isinstance(parsed, dict)
    return parsed


def _bare(schema: Schema, logical: bool = True) -> Any:
    """The schema without docs and, unless `logical`, without logical types."""
    return foreign.without(schema, "doc", *(() if logical else ("logicalType",)))


@functools.cache
def _header() -> tuple[bytes, bytes]:
    """Container header and sync marker, the same in every process."""
    sync = hashlib.sha256(schema_text().encode()).digest()[:16]
    meta = {"avro.codec": b"null", "avro.schema": schema_text().encode()}
    entries = [_text(k.encode()) + _text(v) for k, v in meta.items()]
    return b"".join([_CONTAINER, _zigzag(len(entries)), *entries, b"\x00", sync]), sync


@functools.cache
def _fingerprint() -> bytes:
    return _fingerprint_of(_schema())


def _fingerprint_of(schema: Schema) -> bytes:
    # Avro specification, "Single object encoding": CRC-64-AVRO of the canonical form, little-endian
    return bytes.fromhex(fastavro.schema.fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))


@functools.cache
def _released() -> dict[bytes, Schema]:
    """Earlier minor versions by their fingerprint: what an earlier release left in Redis."""
    folder = files("skyheed.schemas").joinpath("classification", "v1", "released")
    texts = [path.read_text() for path in folder.iterdir() if path.name.endswith(".avsc")]
    schemas = [_parse(_bare(json.loads(text), logical=False)) for text in texts]
    return {_fingerprint_of(schema): schema for schema in schemas}


def _text(data: bytes) -> bytes:
    return _zigzag(len(data)) + data


def _zigzag(number: int) -> bytes:
    """A non-negative Avro long."""
    value, out = number << 1, bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _datum(record: Classification) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, _schema(), record.to_dict())
    return out.getvalue()


def _decode(payload: bytes, writer_schema: Callable[[int], Schema] | None) -> Mapping[str, Any]:
    if payload.startswith(_SINGLE + _fingerprint()):
        return _read(payload[10:], _schema())
    if payload.startswith(_SINGLE) and (released := _released().get(payload[2:10])):
        return _read(payload[10:], released)
    if payload.startswith(_WIRE) and len(payload) > 5:
        found = _measured(writer_schema(struct.unpack(">I", payload[1:5])[0])) if writer_schema else _schema()
        return _read(payload[5:], found)
    datum = _own_datum(payload)
    if datum is not None:
        return _read(datum, _schema())
    if payload.startswith(_CONTAINER):
        writer, foreign_datum = foreign.only_record(payload)
        return _read(foreign_datum, writer)
    raise StreamError(f"{len(payload)} bytes that begin with {payload[:6].hex(' ')}")


def _own_datum(payload: bytes) -> bytes | None:
    """The datum of a container that `encode` of this very version wrote; None for any other."""
    header, sync = _header()
    if not payload.startswith(header + b"\x02") or not payload.endswith(sync):
        return None
    body = payload[len(header) + 1 : -len(sync)]
    for width in (1, 2, 3):  # of the length in front of the datum
        if body.startswith(_zigzag(max(0, len(body) - width))) and len(_zigzag(len(body) - width)) == width:
            return body[width:]
    return None


def _read(datum: bytes, writer: Schema) -> Mapping[str, Any]:
    stream = io.BytesIO(datum)
    record = fastavro.schemaless_reader(stream, writer, _schema() if writer is not _schema() else None)
    if stream.tell() != len(datum):
        raise StreamError(f"{len(datum) - stream.tell()} bytes left over after the record")
    assert isinstance(record, dict)
    return record


def _measured(schema: Schema) -> Schema:
    """A registry's schema, measured unless its giver has had fastavro parse it."""
    return schema if "__fastavro_parsed__" in schema else foreign.writer_schema(json.dumps(schema).encode())
