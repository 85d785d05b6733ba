"""Kafka message -> records, of which only the wanted fields are read.

Three wire forms: the Avro object container (schema inside, one or more records; ZTF), Confluent's (byte 0 and the
schema's id, or byte 1 and its GUID, either in front of the record or in a Kafka header; Rubin), and Fink Livestream's
(a bare record, and the schema's JSON as the message's key; fink-client 12.3.0, consumer.py). A damaged or hostile
message ends in a `PacketError`, never in another exception, an unbounded loop or unbounded memory: sizes, counts,
sync markers, checksums and the end of every record are checked, even if the cut is in a field that is not read.

Container: https://avro.apache.org/docs/1.11.1/specification/#object-container-files
Confluent: https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn
from uuid import UUID

import cramjam

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.packets.avro import PlainReader, Schema, Steps
from skyheed.broker.packets.avro_fast import RecordReader
from skyheed.broker.packets.avro_numbers import sized, zigzag
from skyheed.broker.packets.avro_readers import Readers
from skyheed.broker.packets.avro_schema import MAX_SCHEMA_BYTES
from skyheed.broker.packets.inflate import RAW, InflateError, TooLong, inflate
from skyheed.broker.registry.schemas import SchemaId, SchemaSource

__all__ = ["Decoder", "SchemaSource", "split_container", "with_key"]

MAGIC = b"Obj\x01"
MAX_PACKET_BYTES = 4 * 2**20  # a Rubin packet with a year of history is under 1 MB
MAX_BLOCK_BYTES = 8 * 2**20  # for one decompressed block
MAX_RECORDS = 10_000  # in one message
_SYNC_BYTES = 16
MAX_MESSAGE_BYTES = 4 * MAX_BLOCK_BYTES  # for all blocks of a message together, decompressed
_HEADERS = 16  # remembered: a topic has only a few schemas at a time
_MAX_ENTRIES = 100  # in a container's header
_MAX_HEADER_BYTES = 2 * MAX_SCHEMA_BYTES
_PREFIXES = {0: 5, 1: 17}  # Confluent's first byte -> length of the prefix: schema id, or its GUID
SCHEMA_HEADER = "__value_schema_id"  # holds what would otherwise be the prefix
SCHEMA_KEY = "skyheed-schema-key"  # skyheed's own (`with_key`): the message's key, if it is a schema

Headers = Iterable[tuple[str, bytes | None]]


class Decoder:
    """Turns messages into dicts of the fields that the reader schema names.

    Args:
        reader_schema: Avro schema (dict or JSON text) of the wanted fields; all of them need defaults, because
            producers leave fields out. Fields are matched by name; the names of the records do not matter.
        schemas: where the schemas of Confluent messages come from.
        max_packet_bytes: longer messages are refused without being read.
        max_block_bytes: a block may not be larger than this when decompressed.
    """

    def __init__(
        self,
        reader_schema: Mapping[str, Any] | str,
        *,
        schemas: SchemaSource | None = None,
        max_packet_bytes: int = MAX_PACKET_BYTES,
        max_block_bytes: int = MAX_BLOCK_BYTES,
    ) -> None:
        self._readers = Readers(Schema(reader_schema))
        self._schemas = schemas
        self._max_packet_bytes = max_packet_bytes
        self._max_block_bytes = max_block_bytes
        self._containers = _Containers(self._readers)

    def decode(self, payload: bytes, headers: Headers | None = None) -> list[dict[str, Any]]:
        """The records of one message, wanted fields only.

        Args:
            headers: the message's Kafka headers (`with_key`); `__value_schema_id` says that the value is one bare
                record.

        Raises:
            PacketError: EMPTY, OVERSIZED, BAD_MAGIC, TRUNCATED, TRAILING_BYTES, BAD_SYNC, BAD_BLOCK, BAD_SCHEMA,
                UNKNOWN_SCHEMA, REGISTRY_UNAVAILABLE, WRONG_TYPE or BOMB.
            ServiceError: the registry refuses our password.
        """
        if not payload:
            _fail(Reason.EMPTY, "the message has no bytes")
        if len(payload) > self._max_packet_bytes:
            _fail(Reason.OVERSIZED, f"{len(payload)} bytes, more than {self._max_packet_bytes}")
        self._readers.credit.earn()
        named = [value for name, value in headers or () if name == SCHEMA_HEADER]
        if named:
            return [self._bare(payload, 0, _schema_in_header(named[-1] or b""))]
        if payload.startswith(MAGIC):
            return self._container(payload)
        if keys := [value for name, value in headers or () if name == SCHEMA_KEY and value]:
            return [_whole(self._readers.of_text(keys[-1]), payload, 0)]
        if payload[0] in _PREFIXES:
            return [self._bare(payload, *_schema_in_front(payload))]
        _fail(Reason.BAD_MAGIC, f"begins with {payload[:4]!r}: neither an Avro container nor Confluent wire")

    def _container(self, payload: bytes) -> list[dict[str, Any]]:
        header, sync = self._containers.header(payload)
        records: list[dict[str, Any]] = []
        steps, total = Steps(), 0
        for count, block in _blocks(payload, header, sync, self._max_block_bytes):
            total += len(block)
            if len(records) + count > MAX_RECORDS or total > MAX_MESSAGE_BYTES:
                _fail(Reason.BOMB, f"more than {MAX_RECORDS} records or {MAX_MESSAGE_BYTES} bytes in one message")
            position = 0
            for _ in range(count):
                record, position = header.reader(block, position, len(block), steps)
                records.append(record)
            if position != len(block):
                _fail(Reason.TRAILING_BYTES, f"{len(block) - position} bytes after a block's last record")
        return records

    def _bare(self, payload: bytes, start: int, schema_id: SchemaId) -> dict[str, Any]:
        """One record without a container, starting at byte `start`."""
        if self._schemas is None:
            _fail(Reason.UNKNOWN_SCHEMA, f"schema {schema_id}, and no source of schemas is set")
        reader = self._readers.of_schema(schema_id, self._schemas.get(schema_id))
        return _whole(reader, payload, start)


def with_key(headers: Headers, key: bytes | None) -> Headers:
    """A message's headers, with its key among them if the key is an Avro schema of a record."""
    if key is None or not key.startswith(b"{") or b'"fields"' not in key or len(key) > MAX_SCHEMA_BYTES:
        return headers
    return [*headers, (SCHEMA_KEY, key)]


def _whole(reader: RecordReader, payload: bytes, start: int) -> dict[str, Any]:
    """The record that begins at `start` and ends with the message."""
    record, position = reader(payload, start, len(payload))
    if position != len(payload):
        _fail(Reason.TRAILING_BYTES, f"{len(payload) - position} bytes after the record")
    return dict(record)


def _schema_in_front(payload: bytes) -> tuple[int, SchemaId]:
    """Where the record begins, and its schema."""
    size = _PREFIXES[payload[0]]
    if len(payload) < size:
        if payload[0]:
            _fail(Reason.BAD_MAGIC, f"begins with {payload[:4]!r}: shorter than a schema's GUID")
        _fail(Reason.TRUNCATED, f"{len(payload)} bytes, shorter than the Confluent prefix")
    return size, _schema_id(payload[:size])


def _schema_in_header(value: bytes) -> SchemaId:
    if not value or _PREFIXES.get(value[0]) != len(value):
        _fail(Reason.BAD_MAGIC, f"header {SCHEMA_HEADER} holds {value[:20]!r}: neither a schema id nor a GUID")
    return _schema_id(value)


def _schema_id(prefix: bytes) -> SchemaId:
    return UUID(bytes=prefix[1:]) if prefix[0] else int.from_bytes(prefix[1:], "big")


def split_container(data: bytes, *, max_block_bytes: int = 2**30) -> list[bytes]:
    """The records of an Avro file as containers of one record each, uncompressed; values are not decoded.

    A file of a single record is returned unchanged.

    Raises:
        PacketError: as `Decoder.decode`, except for size and number of records.
    """
    if not data.startswith(MAGIC):
        _fail(Reason.BAD_MAGIC, f"begins with {data[:4]!r}: not an Avro container")
    header, sync = _skippers().header(data)
    bodies: list[bytes] = []
    for count, block in _blocks(data, header, sync, max_block_bytes):
        position = 0
        for _ in range(count):
            start = position
            _, position = header.reader(block, start, len(block))
            bodies.append(block[start:position])
        if position != len(block):
            _fail(Reason.TRAILING_BYTES, f"{len(block) - position} bytes after a block's last record")
    if len(bodies) == 1:
        return [data]
    prefix = container_header(header.schema, sync)
    return [prefix + container_block(body, sync) for body in bodies]


def container_header(schema: bytes, sync: bytes) -> bytes:
    """The beginning of an uncompressed container.

    Args:
        schema: JSON text.
        sync: 16 bytes that end the header and every block.
    """
    entries = {b"avro.schema": schema, b"avro.codec": b"null"}
    metadata = b"".join(sized(key) + sized(value) for key, value in entries.items())
    return MAGIC + zigzag(len(entries)) + metadata + b"\x00" + sync


def container_block(body: bytes, sync: bytes) -> bytes:
    """One record (Avro binary encoding) as a block of a container."""
    return zigzag(1) + sized(body) + sync


@lru_cache(1)
def _skippers() -> "_Containers":
    return _Containers(Readers(None))


# --- container headers -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Header:
    reader: RecordReader
    schema: bytes
    codec: str
    end: int  # where the sync marker begins


class _Containers:
    """Recognises headers seen before by their bytes (without the sync marker, which differs in every file)."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._seen: dict[bytes, _Header] = {}
        self._last = b"\xff"

    def header(self, data: bytes) -> tuple[_Header, bytes]:
        """The header at the beginning of `data`, and the file's sync marker."""
        if not data.startswith(self._last):
            self._last = self._learn(data)
        header = self._seen[self._last]
        sync = data[header.end : header.end + _SYNC_BYTES]
        if len(sync) < _SYNC_BYTES:
            _fail(Reason.TRUNCATED, "the container ends inside its header")
        return header, sync

    def _learn(self, data: bytes) -> bytes:
        metadata, end = _read_metadata(data)
        if data[:end] in self._seen:
            return data[:end]
        schema = metadata.get(b"avro.schema")
        if schema is None:
            _fail(Reason.BAD_SCHEMA, "the container has no schema")
        codec = metadata.get(b"avro.codec", b"null").decode("ascii", "replace")
        if codec not in _CODECS:
            _fail(Reason.BAD_BLOCK, f"compressed with {codec[:40]!r}; known are {', '.join(_CODECS)}")
        reader = self._readers.of_text(schema)
        while len(self._seen) >= _HEADERS:
            self._seen.pop(next(iter(self._seen)))
        self._seen[data[:end]] = _Header(reader, schema, codec, end)
        return data[:end]


def _read_metadata(data: bytes) -> tuple[dict[bytes, bytes], int]:
    reader = PlainReader(data, len(MAGIC), len(data))
    metadata: dict[bytes, bytes] = {}
    entries = 0
    while count := reader.long():
        if count < 0:
            count = -count
            reader.length()
        entries += count
        if entries > _MAX_ENTRIES:
            _fail(Reason.WRONG_TYPE, f"a header of {entries} entries, more than {_MAX_ENTRIES}")
        for _ in range(count):
            key = reader.bytes()
            metadata[key] = reader.bytes()
    if reader.position > _MAX_HEADER_BYTES:
        _fail(Reason.BAD_SCHEMA, f"a header of {reader.position} bytes, more than {_MAX_HEADER_BYTES}")
    return metadata, reader.position


# --- blocks ------------------------------------------------------------------------------------------------


def _blocks(data: bytes, header: _Header, sync: bytes, max_block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Number of records and uncompressed bytes of each block."""
    decompress = _CODECS[header.codec]
    reader = PlainReader(data, header.end + _SYNC_BYTES, len(data))
    while reader.position < len(data):
        count, size = reader.long(), reader.length()
        start, end = reader.position, reader.position + size
        marker = data[end : end + _SYNC_BYTES]
        if len(marker) < _SYNC_BYTES:
            _fail(Reason.TRUNCATED, f"the container ends inside a block (byte {len(data)})")
        if marker != sync:
            _fail(Reason.BAD_SYNC, f"the block before byte {end} does not end with the file's sync marker")
        block = decompress(data[start:end], max_block_bytes)
        if not 0 <= count * max(header.reader.least, 1) <= max(len(block), 1):
            _fail(Reason.BAD_BLOCK, f"a block of {count} records in {len(block)} bytes")
        yield count, block
        reader.position = end + _SYNC_BYTES


def _plain(block: bytes, limit: int) -> bytes:
    return block


def _deflate(block: bytes, limit: int) -> bytes:
    try:
        return inflate(block, limit, RAW)
    except InflateError as error:
        raise PacketError(Reason.BAD_BLOCK, f"a deflate block: {error}") from error
    except TooLong:
        _bomb(limit)


def _snappy(block: bytes, limit: int) -> bytes:
    """Decompress Snappy's block form, which is followed by the big-endian CRC-32 of the uncompressed bytes."""
    body, checksum = block[:-4], block[-4:]
    try:
        if cramjam.snappy.decompress_raw_len(body) > limit:
            _bomb(limit)
        out = bytes(cramjam.snappy.decompress_raw(body))
    except cramjam.DecompressionError as error:
        raise PacketError(Reason.BAD_BLOCK, f"a snappy block: {error}") from error
    if zlib.crc32(out).to_bytes(4, "big") != checksum:
        _fail(Reason.BAD_BLOCK, "a snappy block with a wrong checksum")
    return out


def _zstandard(block: bytes, limit: int) -> bytes:
    # The frame need not state its length, so the buffer grows until it fits or the limit is reached.
    room = min(limit, max(8 * len(block), 1 << 16))
    while True:
        out = bytearray(room)
        try:
            return bytes(memoryview(out)[: cramjam.zstd.decompress_into(block, out)])
        except cramjam.DecompressionError as error:
            if "whole buffer" not in str(error):
                raise PacketError(Reason.BAD_BLOCK, f"a zstandard block: {error}") from error
        if room >= limit:
            _bomb(limit)
        room = min(4 * room, limit)


_CODECS: dict[str, Callable[[bytes, int], bytes]] = {
    "null": _plain,
    "deflate": _deflate,
    "snappy": _snappy,
    "zstandard": _zstandard,
}


def _bomb(limit: int) -> NoReturn:
    _fail(Reason.BOMB, f"a block becomes longer than {limit} bytes")


def _fail(reason: Reason, detail: str) -> NoReturn:
    raise PacketError(reason, detail)
