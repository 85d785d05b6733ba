"""Reads classification records written by others, or by another release, within bounds.

Anyone who may write to a classification topic controls the bytes and, in an Avro container, the schema. Both are
checked before fastavro sees them: it would unpack a block of any size, read zero-byte items as often as a count says,
and follow a recursive type as deep as the bytes go.
"""

import functools
import json
import zlib
from collections.abc import Iterator
from typing import Any

from fastavro.schema import parse_schema

from skyheed.broker.errors import PacketError, StreamError
from skyheed.broker.packets.avro_schema import Schema as Measured
from skyheed.broker.packets.avro_schema import Type

MAX_MESSAGE_BYTES = 2**20  # of a message, and of its unpacked record; one with 99 sources takes 3 kB
MAX_SCHEMA_BYTES = 2**15  # ours is 2 kB
MAX_VALUES = 10_000  # in a record, not counting items; ours has 60
VALUES_A_BYTE = 8  # in an item, at its smallest; real ones have up to 3
MAGIC = b"Obj\x01"
_SYNC_BYTES = 16
_MAX_ENTRIES = 100  # entries in a container's header
_CODECS = ("null", "deflate")
_SCHEMAS = 16  # remembered

Schema = dict[str, Any]


def only_record(payload: bytes) -> tuple[Schema, bytes]:
    """The writer schema and the datum of a container that holds one record.

    Raises:
        StreamError: it is not such a container, or larger or more complex than any classification.
    """
    cursor = _Cursor(payload, len(MAGIC))
    metadata = _metadata(cursor)
    sync = cursor.take(_SYNC_BYTES)
    codec = metadata.get(b"avro.codec", b"null").decode("ascii", "replace")
    if codec not in _CODECS:
        raise StreamError(f"a container packed with {codec[:20]!r}: {' and '.join(_CODECS)} are read")
    blocks = list(_blocks(cursor, sync))
    if (records := sum(count for count, _ in blocks)) != 1:
        raise StreamError(f"a message holds one classification, not {records}")
    (body,) = (body for count, body in blocks if count)
    return writer_schema(metadata.get(b"avro.schema", b"")), _unpacked(body) if codec == "deflate" else body


@functools.lru_cache(_SCHEMAS)
def writer_schema(text: bytes) -> Schema:
    """A writer schema for fastavro, without logical types, after checking the cost of reading with it.

    Raises:
        StreamError: it is not a record schema, is too large, or lets few bytes encode many values.
    """
    if len(text) > MAX_SCHEMA_BYTES:
        raise StreamError(f"a schema of {len(text)} bytes, more than {MAX_SCHEMA_BYTES}")
    try:
        measured = Measured(text)
    except PacketError as error:
        raise StreamError(str(error)) from error
    if measured.recursive or measured.root.nodes > MAX_VALUES or not _items_weigh(measured.root):
        raise StreamError("a schema with a recursive type, or one that lets few bytes encode many values")
    parsed = parse_schema(without(json.loads(text), "doc", "logicalType"), named_schemas={})
    if not isinstance(parsed, dict):
        raise StreamError("a schema that is not a record")
    return parsed


def without(node: Any, *names: str) -> Any:
    """A schema without these attributes."""
    if isinstance(node, dict):
        return {key: without(value, *names) for key, value in node.items() if key not in names}
    return [without(item, *names) for item in node] if isinstance(node, list) else node


def _items_weigh(root: Type) -> bool:
    """Whether items of all arrays and maps take bytes in proportion to their values."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if each.kind in ("array", "map"):
            item = each.branches[0]
            if item.nodes > VALUES_A_BYTE * (item.least + (each.kind == "map")):  # a map's item has a key
                return False
        waiting += [*each.branches, *(part for _, part in each.fields)]
    return True


class _Cursor:
    """A read position in a container; every length is checked against what is left."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def long(self) -> int:
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return (number >> 1) ^ -(number & 1)
            if shift > 63:
                raise StreamError("a container with a number of more than ten bytes")

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.data) - self.at:
            raise StreamError("a container that is cut short")
        self.at += size
        return self.data[self.at - size : self.at]


def _metadata(cursor: _Cursor) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    entries = 0
    while count := cursor.long():
        if count < 0:
            count = -count
            cursor.long()  # bytes of the entries
        entries += count
        if entries > _MAX_ENTRIES:
            raise StreamError(f"a container whose header has {entries} entries, more than {_MAX_ENTRIES}")
        for _ in range(count):
            key = cursor.take(cursor.long())
            found[key] = cursor.take(cursor.long())
    return found


def _blocks(cursor: _Cursor, sync: bytes) -> Iterator[tuple[int, bytes]]:
    """Number of records and packed bytes of each block."""
    while cursor.at < len(cursor.data):
        count = cursor.long()
        if count < 0:
            raise StreamError(f"a container with a block of {count} records")
        body = cursor.take(cursor.long())
        if cursor.take(_SYNC_BYTES) != sync:
            raise StreamError("a container with a block that does not end with its sync marker")
        yield count, body


def _unpacked(body: bytes) -> bytes:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = unpacker.decompress(body, MAX_MESSAGE_BYTES + 1)
    except zlib.error as error:
        raise StreamError(f"a deflate block that is damaged ({error})") from error
    if len(found) > MAX_MESSAGE_BYTES:
        raise StreamError(f"a record that unpacks to more than {MAX_MESSAGE_BYTES} bytes")
    if not unpacker.eof:
        raise StreamError("a deflate block that is cut short")
    return found
