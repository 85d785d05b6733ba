"""What a Parquet file's page headers say, compared with its footer before pyarrow believes either.

pyarrow makes room for as many bytes and values as a header claims, and the footer, whose sizes our readers check, can
say less than the pages unpack to. So the footer and the headers of the pages that will be read are read here first;
nothing is unpacked.

https://parquet.apache.org/docs/file-format/data-pages/
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from skyheed.classifier.archives.thrift import I32, I64, Compact

MOST_FOOTER = 2**24  # bytes; a part of 32 objects has 60 kB
MOST_PAGES = 10_000  # of one column in one row group; of 2 GiB, pages of 1 MiB are 2,048
MOST_PAGE_HEADER = 2**16  # bytes; statistics of long texts are in it
_USUAL_HEADER = 256  # bytes read at first
_WIDTH = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12, "BYTE_ARRAY": 4}  # in memory
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # types of pages
_DETAILS = {5: 2, 7: 2, 8: 4}  # structs of a page's header that say more: where the encoding is in each
_CHUNK = {5: I64, 6: I64, 7: I64, 9: I64, 11: I64}
# plain, dictionaries, run lengths, byte streams, differences of numbers; differences of texts unpack without bound
_ENCODINGS = frozenset((0, 2, 3, 5, 8, 9))


@dataclass(frozen=True, slots=True)
class Chunk:
    """What the footer says of a column in a row group: its values, bytes unpacked and packed, and where it begins."""

    values: int
    unpacked: int
    packed: int
    begin: int


@dataclass(frozen=True, slots=True)
class Group:
    """A row group: its rows, and its columns in the order of the schema's leaves."""

    rows: int
    chunks: list[Chunk]


@dataclass(frozen=True, slots=True)
class _Page:
    kind: int
    unpacked: int
    packed: int
    values: int
    encoding: int


def footer_size(source: pa.NativeFile) -> int:
    """Bytes of the footer; raises ValueError for more than a file of this size, or any of ours, has."""
    size = source.size()
    said = int.from_bytes(source.read_at(4, size - 8), "little") if size > 12 else 0
    if not 0 < said <= min(MOST_FOOTER, size - 12):
        raise ValueError(f"no Parquet file, or one with an end of {said} bytes in {size}")
    return said


def groups_of(source: pa.NativeFile) -> list[Group]:
    """What the footer says of every row group.

    Raises:
        ValueError, IndexError: it is damaged.
    """
    size = footer_size(source)
    compact = Compact(source.read_at(size, source.size() - 8 - size))
    groups: list[Group] = []
    compact.numbers({}, {4: lambda: groups.extend(_group(compact) for _ in compact.structs())})
    return groups


def _group(compact: Compact) -> Group:
    chunks: list[Chunk] = []

    def columns() -> None:
        for _ in compact.structs():
            compact.numbers({}, {3: lambda: chunks.append(_chunk(compact))})

    return Group(compact.numbers({3: I64}, {1: columns}).get(3, -1), chunks)


def _chunk(compact: Compact) -> Chunk:
    said = compact.numbers(_CHUNK)
    data, dictionary = said.get(9, -1), said.get(11, 0)
    return Chunk(said.get(5, -1), said.get(6, -1), said.get(7, -1), dictionary if 0 < dictionary < data else data)


def check_chunk(source: pa.NativeFile, chunk: Chunk, rows: int, column: pq.ColumnSchema) -> int:
    """The bytes that a column of a row group takes in memory, at most.

    Raises:
        ValueError: its pages unpack to more bytes or hold more values than the footer says, or cannot be read.
    """
    width = column.length if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else _WIDTH[column.physical_type]
    if chunk.values < 0 or (not column.max_repetition_level and chunk.values != rows):
        raise ValueError(f"a column of {chunk.values} values in {rows} rows")
    unpacked = values = 0
    for page, header in _pages(source, chunk):
        if page.encoding not in _ENCODINGS:
            raise ValueError(f"values in Parquet's encoding {page.encoding}: write the file again without it")
        if page.values < 0 or (page.kind == _DICTIONARY and page.values * max(width, 1) > page.unpacked):
            raise ValueError(f"a page of {page.values} values in {page.unpacked} bytes")
        values += 0 if page.kind == _DICTIONARY else page.values
        unpacked += header + page.unpacked
    if unpacked > chunk.unpacked or values > chunk.values:
        raise ValueError(
            f"pages of {values} values in {unpacked} bytes, where the footer says {chunk.values} in {chunk.unpacked}"
        )
    return max(unpacked, chunk.values * width)


def _pages(source: pa.NativeFile, chunk: Chunk) -> Iterator[tuple[_Page, int]]:
    """The pages of a column, each with the size of its header."""
    at, end = chunk.begin, chunk.begin + chunk.packed
    if not 4 <= at <= end <= source.size():
        raise ValueError(f"a column from byte {at} to {end} in a file of {source.size()}")
    for _ in range(MOST_PAGES):
        if at >= end:
            return
        page, size = _page(source, at, end)
        at += size + page.packed
        if page.unpacked < 0 or page.packed < 0 or at > end:
            raise ValueError(f"a page of {page.unpacked} bytes, packed {page.packed}, that ends behind its column")
        yield page, size
    raise ValueError(f"more than {MOST_PAGES} pages in a column of a row group")


def _page(source: pa.NativeFile, at: int, end: int) -> tuple[_Page, int]:
    for most in (_USUAL_HEADER, MOST_PAGE_HEADER):
        try:
            return _page_in(source.read_at(min(most, end - at), at))
        except IndexError:  # it goes on behind what was read
            continue
    raise ValueError("a page's header without end")


def _page_in(data: bytes) -> tuple[_Page, int]:
    compact = Compact(data)
    found: dict[int, int] = {}

    def details(field: int) -> None:
        found.update(compact.numbers({1: I32, _DETAILS[field]: I32}))

    inner = {field: (lambda field=field: details(field)) for field in _DETAILS}
    said = compact.numbers({1: I32, 2: I32, 3: I32}, inner)
    kind = said.get(1, -1)
    if kind not in (_DATA, _DICTIONARY, _DATA_V2):
        raise ValueError(f"a page of type {kind}")
    encoding = found.get(4 if kind == _DATA_V2 else 2, -1)
    return _Page(kind, said.get(2, -1), said.get(3, -1), found.get(1, -1), encoding), compact.at
