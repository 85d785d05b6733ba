"""Parquet files that lie: footer and headers of pages (Thrift's compact protocol), read and written again.

A struct is a dict, field id -> (type, value); a list is (type of its items, items). Only what Parquet uses.
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md,
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from packet_tools import zigzag

Struct = dict[int, tuple[int, Any]]
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
# fields of FileMetaData, RowGroup, ColumnChunk, ColumnMetaData, PageHeader and DataPageHeader
ROWS, ROW_GROUPS, COLUMNS, TOTAL_BYTES, GROUP_ROWS, META = 3, 4, 1, 2, 3, 3
VALUES, UNPACKED, PACKED, DATA_OFFSET, DICTIONARY_OFFSET, STATISTICS = 5, 6, 7, 9, 11, 12
PAGE_UNPACKED, PAGE_PACKED, PAGE_CHECKSUM, DATA_PAGE, DICTIONARY_PAGE, PAGE_VALUES = 2, 3, 4, 5, 7, 1


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7

    def signed(self) -> int:
        number = self.varint()
        return (number >> 1) ^ -(number & 1)

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def value(self, kind: int) -> Any:
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind in (I16, I32, I64):
            return self.signed()
        if kind == BINARY:
            return self.take(self.varint())
        if kind == STRUCT:
            return self.struct()
        if kind in (LIST, SET):
            head = self.take(1)[0]
            size, inner = (head >> 4 if head >> 4 < 15 else self.varint()), head & 15
            # a list's booleans are whole bytes
            return inner, [self.take(1) if inner in (TRUE, FALSE) else self.value(inner) for _ in range(size)]
        return self.take({BYTE: 1, DOUBLE: 8}[kind])

    def struct(self) -> Struct:
        found: Struct = {}
        number = 0
        while head := self.take(1)[0]:
            number = number + (head >> 4) if head >> 4 else self.signed()
            found[number] = head & 15, self.value(head & 15)
        return found


def _unsigned(number: int) -> bytes:
    return zigzag(number >> 1 if number % 2 == 0 else -(number >> 1) - 1)


def _written(kind: int, value: Any) -> bytes:
    if kind in (I16, I32, I64):
        return zigzag(value)
    if kind == BINARY:
        return _unsigned(len(value)) + value
    if kind == STRUCT:
        return encode(value)
    if kind in (LIST, SET):
        inner, items = value
        size = len(items)
        head = bytes([size << 4 | inner]) if size < 15 else bytes([0xF0 | inner]) + _unsigned(size)
        return head + b"".join(item if inner in (TRUE, FALSE) else _written(inner, item) for item in items)
    return bytes(value)


def encode(struct: Struct) -> bytes:
    """A struct's bytes."""
    out, before = bytearray(), 0
    for number, (kind, value) in sorted(struct.items()):
        kind = (TRUE if value else FALSE) if kind in (TRUE, FALSE) else kind
        step = number - before
        out += bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + zigzag(number)
        out += b"" if kind in (TRUE, FALSE) else _written(kind, value)
        before = number
    return bytes(out) + b"\0"


def decode(data: bytes, at: int = 0) -> tuple[Struct, int]:
    """The struct that begins there, and where it ends."""
    reader = _Reader(data, at)
    return reader.struct(), reader.at


def footer(data: bytes) -> tuple[Struct, int]:
    """What a file's end says, and where that begins."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return decode(data, start)[0], start


def with_footer(body: bytes, facts: Struct) -> bytes:
    """A file of these pages, with this footer."""
    said = encode(facts)
    return body + said + len(said).to_bytes(4, "little") + b"PAR1"


def lie_in_footer(path: Path, change: Callable[[Struct], object]) -> None:
    """Change what a file's footer says."""
    data = path.read_bytes()
    facts, start = footer(data)
    change(facts)
    path.write_bytes(with_footer(data[:start], facts))


def chunks(facts: Struct) -> list[Struct]:
    """What the footer says of every column of every row group (ColumnMetaData)."""
    groups = facts[ROW_GROUPS][1][1]
    return [chunk[META][1] for group in groups for chunk in group[COLUMNS][1][1]]


def name_of(chunk: Struct) -> str:
    """A column's path, its parts joined by dots."""
    return b".".join(chunk[3][1][1]).decode()


def rewrite_chunks(path: Path, change: Callable[[Struct, bytes], bytes]) -> None:
    """Write a file again with other pages.

    Args:
        change: from a column's part of the footer and its pages to its new pages; the footer's offsets follow.
    """
    data = path.read_bytes()
    facts, _ = footer(data)
    body = bytearray(b"PAR1")
    for chunk in chunks(facts):
        first = min(chunk[key][1] for key in (DATA_OFFSET, DICTIONARY_OFFSET) if key in chunk)
        pages = change(chunk, data[first : first + chunk[PACKED][1]])
        moved = len(body) - first
        for key in (DATA_OFFSET, DICTIONARY_OFFSET):
            if key in chunk:
                chunk[key] = chunk[key][0], chunk[key][1] + moved
        chunk[PACKED] = I64, len(pages)
        body += pages
    path.write_bytes(with_footer(bytes(body), facts))
