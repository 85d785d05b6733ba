"""Classification <-> Avro: our own schema in three envelopes, and ELAsTiCC's message. Independent of Kafka and models.

Envelopes of schema classification/v1:
    container    `encode`: Avro object container, self-describing; the topic's default
    wire         `encode_wire`: Confluent's 0, schema id (4 bytes, big-endian), datum; where a registry is set
    single       `encode_single`: Avro's C3 01, fingerprint (8 bytes), datum; compact, for our own store
Two workers that classify the same revision write the same bytes except for `classified_ms`; even the container's sync
marker is fixed.
"""

import functools
import hashlib
import io
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import fastavro
from fastavro.schema import parse_schema, to_parsing_canonical_form

from skyheed.broker.errors import StreamError
from skyheed.broker.packets.avro_numbers import sized, zigzag
from skyheed.broker.registry.client import RegistryClient
from skyheed.broker.registry.client import register as register_schema
from skyheed.broker.results import foreign
from skyheed.broker.results.datum import datum as written
from skyheed.broker.results.record import Classification
from skyheed.classifier.safe_names import printable

_CONTAINER, _WIRE, _SINGLE = b"Obj\x01", b"\x00", b"\xc3\x01"
Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """How a classification is published.

    Attributes:
        encode: makes the message's value from a record and its datum.
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
    """The datum in the output of `encode_single`: all envelopes hold the same one, which need not be encoded again."""
    return single[len(_SINGLE) + len(_fingerprint()) :]


def encode(record: Classification, datum: bytes | None = None) -> bytes:
    """As a self-describing container of one record; `datum` if already encoded."""
    datum = datum or written(record)
    header, sync = _header()
    return b"".join((header, b"\x02", sized(datum), sync))


def encode_wire(record: Classification, schema_id: int, datum: bytes | None = None) -> bytes:
    """In Confluent wire format; `schema_id` from `register`, `datum` if already encoded."""
    return _WIRE + struct.pack(">I", schema_id) + (datum or written(record))


def encode_single(record: Classification) -> bytes:
    """As Avro single-object encoding: 10 bytes in front of the datum, for a store that holds millions."""
    return _SINGLE + _fingerprint() + written(record)


def encode_elasticc(record: Classification, _datum: bytes | None = None) -> bytes:
    """As ELAsTiCC's message: bare Avro, the reader must know the schema (as LSSTDESC/elasticc's own clients do)."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, elasticc_schema(), record.to_elasticc())
    return out.getvalue()


FORMATS: Mapping[str, Form] = {"avro": Form(encode, True), "elasticc": Form(encode_elasticc, False)}


def decode(payload: bytes, writer_schema: Callable[[int], Schema] | None = None) -> Classification:
    """A record from any of the three envelopes, even of a later minor version of the schema.

    Args:
        writer_schema: schema by registry id, for the wire form; without it the record must be of this version.

    Raises:
        StreamError: the payload is not a classification, or larger than any.
    """
    if len(payload) > foreign.MAX_MESSAGE_BYTES:
        raise StreamError(f"not a classification: {len(payload)} bytes, more than {foreign.MAX_MESSAGE_BYTES}")
    try:
        return Classification.from_dict(_decode(payload, writer_schema))
    except StreamError as error:
        raise StreamError(f"not a classification: {error}") from error
    # fastavro raises many kinds of error for bytes that do not match the schema
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
    # without logical types: times stay integers, faster both ways; the bytes are the same
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
    entries = [sized(k.encode()) + sized(v) for k, v in meta.items()]
    return b"".join([_CONTAINER, zigzag(len(entries)), *entries, b"\x00", sync]), sync


@functools.cache
def _fingerprint() -> bytes:
    return _fingerprint_of(_schema())


def _fingerprint_of(schema: Schema) -> bytes:
    # Avro specification, "Single object encoding": CRC-64-AVRO of the canonical form, little-endian
    return bytes.fromhex(fastavro.schema.fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))


@functools.cache
def _released() -> dict[bytes, Schema]:
    """Earlier minor versions by fingerprint, for records that an earlier release left in Redis."""
    folder = files("skyheed.schemas").joinpath("classification", "v1", "released")
    texts = [path.read_text() for path in folder.iterdir() if path.name.endswith(".avsc")]
    schemas = [_parse(_bare(json.loads(text), logical=False)) for text in texts]
    return {_fingerprint_of(schema): schema for schema in schemas}


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
    """The datum of a container written by `encode` of this version; None for any other."""
    header, sync = _header()
    if not payload.startswith(header + b"\x02") or not payload.endswith(sync):
        return None
    body = payload[len(header) + 1 : -len(sync)]
    for width in (1, 2, 3):  # the length field before the datum
        if body.startswith(zigzag(max(0, len(body) - width))) and len(zigzag(len(body) - width)) == width:
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
    """A registry's schema, checked unless fastavro has already parsed it."""
    return schema if "__fastavro_parsed__" in schema else foreign.writer_schema(json.dumps(schema).encode())
