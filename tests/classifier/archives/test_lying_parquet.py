"""Archives whose Parquet lies about its pages, values and lists, or unpacks to more than its bytes are worth."""

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cramjam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_tools import (
    COLUMNS,
    DATA_PAGE,
    GROUP_ROWS,
    I32,
    I64,
    LIST,
    PACKED,
    PAGE_CHECKSUM,
    PAGE_PACKED,
    PAGE_UNPACKED,
    PAGE_VALUES,
    ROW_GROUPS,
    ROWS,
    STRUCT,
    UNPACKED,
    VALUES,
    Struct,
    chunks,
    decode,
    encode,
    footer,
    lie_in_footer,
    name_of,
    rewrite_chunks,
    with_footer,
)
from test_extras import sent, write

from skyheed.classifier.archives.damage import BoundedFile
from skyheed.classifier.archives.format import OBJECT_SCHEMA, part_path
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.sources import tables

MOST_MIB = 64  # above what a sound archive takes
READ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) // 1024
def read(path):
    archive = Archive(path)
    [history_of(archive, name) for name in archive.object_ids]
read(sys.argv[1])
begin = peak()
for path in sys.argv[2:]:
    open("/proc/self/clear_refs", "w").write("5")
    try:
        said = read(path) or ""
    except ArchiveError as error:
        said = str(error)
    print(peak() - begin, said, sep="\\t")
"""


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write(tmp_path / "sound", sent()).path


def outcomes(sound: Path, liars: Iterable[Path]) -> list[tuple[int, str]]:
    """MiB beyond what a sound archive takes, and the sentence (empty: read), of each, all in one process."""
    words = [sys.executable, "-c", READ, str(sound), *map(str, liars)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-1000:]
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [(int(mib), said) for mib, said in rows]


def said_of(column: str, **said: int) -> Callable[[Path], None]:
    """The file's end says so of a column."""
    fields = {"values": VALUES, "unpacked": UNPACKED, "packed": PACKED}

    def change(facts: Struct) -> None:
        for chunk in chunks(facts):
            if name_of(chunk).split(".")[0] == column:
                chunk.update({fields[name]: (I64, value) for name, value in said.items()})

    return lambda path: lie_in_footer(path, change)


def rows(count: int) -> Callable[[Path], None]:
    def change(facts: Struct) -> None:
        facts[ROWS] = I64, count
        for group in facts[ROW_GROUPS][1][1]:
            group[GROUP_ROWS] = I64, count

    return lambda path: lie_in_footer(path, change)


def pages(column: str, change: Callable[[Struct, bytes], tuple[Struct, bytes]]) -> Callable[[Path], None]:
    """The pages of a column, header and packed bytes, with others in their place."""

    def changed(chunk: Struct, data: bytes) -> bytes:
        if name_of(chunk).split(".")[0] != column:
            return data
        out, at = bytearray(), 0
        while at < len(data):
            header, begin = decode(data, at)
            at = begin + header[PAGE_PACKED][1]
            header.pop(PAGE_CHECKSUM, None)
            header, body = change(header, data[begin:at])
            out += encode(header) + body
        return bytes(out)

    return lambda path: rewrite_chunks(path, changed)


def page_says(column: str, **said: int) -> Callable[[Path], None]:
    """The headers of a column's pages say so."""
    fields = {"unpacked": PAGE_UNPACKED, "packed": PAGE_PACKED}

    def change(header: Struct, body: bytes) -> tuple[Struct, bytes]:
        for name, value in said.items():
            inner = header[next(key for key in (DATA_PAGE, 7, 8) if key in header)][1]
            (inner if name == "values" else header)[PAGE_VALUES if name == "values" else fields[name]] = I32, value
        return header, body

    return pages(column, change)


def bomb(column: str, honest: bool = False) -> Callable[[Path], None]:
    """Pages of a column that really unpack to 1 GiB of zeros, from 32 kB; `honest`: the file's end says so."""
    body = bytes(cramjam.zstd.compress(bytes(2**30)))

    def change(header: Struct, _: bytes) -> tuple[Struct, bytes]:
        return header | {PAGE_UNPACKED: (I32, 2**30), PAGE_PACKED: (I32, len(body))}, body

    def whole(path: Path) -> None:
        pages(column, change)(path)
        if honest:
            said_of(column, unpacked=2**31)(path)

    return whole


def many_points(path: Path) -> None:
    """A hundred million points with the first stamp, of which the file's end says a hundred."""
    count = 100_000_000
    kinds = {"mjd": "f8", "band": "u1", "flux": "f4", "flux_error": "f4", "kind": "u1"}
    points = pa.StructArray.from_arrays([pa.array(np.ones(count, kind)) for kind in kinds.values()], list(kinds))
    lists = pa.ListArray.from_arrays(pa.array([0, *[count] * 4], pa.int32()), points)
    table = pq.read_table(path)
    place = table.column_names.index("photometry")
    pq.write_table(table.set_column(place, "photometry", lists), path, compression="zstd")
    said_of("photometry", values=100, unpacked=1000)(path)


def texts(column: str, kind: pa.DataType) -> Callable[[Path], None]:
    """The same long text in each of two thousand rows, as a type that is not kept in its dictionary by itself."""

    def change(path: Path) -> None:
        table = pq.read_table(path).slice(0, 1)
        value: Any = "x" * 2**20 if pa.types.is_large_string(kind) else b"x" * 2**20
        table = table.set_column(table.column_names.index(column), column, pa.array([value], kind))
        one = [pa.DictionaryArray.from_arrays(pa.array(np.zeros(2000, np.int32)), c.combine_chunks()) for c in table]
        made = pa.table(dict(zip(table.column_names, one, strict=True)))
        pq.write_table(made, path, compression="zstd", store_schema=False)

    return change


def list_of_lists(path: Path) -> None:
    """An end of 400 bytes that claims a million row groups, the first of a million columns."""
    data = path.read_bytes()
    facts, start = footer(data)
    head = encode({key: facts[key] for key in (1, 2, 3)})[:-1]
    claim = b"\x19\xfc" + b"\xbf\x84\x3d"
    said = head + claim + claim
    path.write_bytes(data[:start] + said + len(said).to_bytes(4, "little") + b"PAR1")


def empty_pages(path: Path) -> None:
    """A million pages without values."""

    def change(header: Struct, body: bytes) -> tuple[Struct, bytes]:
        none = {**header, PAGE_UNPACKED: (I32, 0), PAGE_PACKED: (I32, 0)}
        none[DATA_PAGE] = STRUCT, {**header[DATA_PAGE][1], PAGE_VALUES: (I32, 0)}
        return header, body + encode(none) * 1_000_000 if DATA_PAGE in header else body

    pages("mjd", change)(path)
    said_of("mjd", unpacked=2**30)(path)


PART: dict[str, Callable[[Path], None]] = {
    **{f"end: mjd has {n} values": said_of("mjd", values=n) for n in (-1, 2**31, 2**40, 2**62)},
    "end: pixels have 2^18 values": said_of("stamp", values=2**18),
    "end: photometry has 3e7 values": said_of("photometry", values=3 * 10**7),
    **{f"end: mjd has {n} bytes": said_of("mjd", packed=n) for n in (-1, 2**40)},
    "end: 100,000 rows": rows(100_000),
    "end: a million lists of a million": list_of_lists,
    **{f"page: {n} bytes unpacked": page_says("mjd", unpacked=n) for n in (-5, 2**30, 2**31 - 1)},
    **{f"page: {n} bytes packed": page_says("mjd", packed=n) for n in (-5, 2**31 - 1)},
    **{f"page: {n} values": page_says("mjd", values=n) for n in (-5, 2**20, 2**31 - 1)},
    "page: 2^31 bands": page_says("band", values=2**31 - 1),
    "a page of 1 GiB": bomb("mjd"),
    "a page of 1 GiB of bands": bomb("band"),
    "a page of 1 GiB, as is said": bomb("mjd", honest=True),
    "more points than are said": many_points,
    "a million empty pages": empty_pages,
}
OBJECTS: dict[str, Callable[[Path], None]] = {
    "end: 2^32 names": said_of("object_id", values=2**32),
    "end: 2^29 positions": said_of("ra", values=2**29),
    "end: 4,900,000 rows": rows(4_900_000),
    "page: 2^31 bytes unpacked": page_says("object_id", unpacked=2**31 - 1),
    "page: 2^31 names": page_says("object_id", values=2**31 - 1),
    "a page of 1 GiB": bomb("ra"),
    "a page of 1 GiB of names": bomb("object_id"),
    "a page of 1 GiB, as is said": bomb("dec", honest=True),
    **{f"{name} is {kind}": texts(name, kind) for name in ("part", "ra", "class", "object_id")
       for kind in (pa.large_string(), pa.large_binary())},
}  # fmt: skip


@pytest.mark.parametrize("table", ["part", "objects"])
def test_what_lies_is_refused_in_a_sentence_and_little_memory(sound: Path, tmp_path: Path, table: str) -> None:
    lies = PART if table == "part" else OBJECTS
    liars = []
    for number, lie in enumerate(lies.values()):
        liars.append(Path(shutil.copytree(sound, tmp_path / str(number))))
        lie(part_path(liars[-1], 0) if table == "part" else liars[-1] / "objects.parquet")
    found = dict(zip(lies, outcomes(sound, liars), strict=True))
    assert not {lie: said for lie, (mib, said) in found.items() if not said or mib > MOST_MIB}
    assert all(len(said) < 500 and said.isprintable() for _, said in found.values())


def numbers_of(struct: Struct) -> list[tuple[Struct, int]]:
    """Every number in a struct and those within it, as (struct, field)."""
    found = []
    for key, (kind, value) in struct.items():
        if kind in (I32, I64):
            found.append((struct, key))
        elif kind == STRUCT:
            found += numbers_of(value)
        elif kind == LIST and value[0] == STRUCT:
            found += [number for item in value[1] for number in numbers_of(item)]
    return found


def twisted(path: Path, rng: random.Random) -> None:
    """Change one number of the file's end, or of a page's header, to one that is wrong."""

    def twist(struct: Struct) -> None:
        holder, key = rng.choice(numbers_of(struct))
        kind, value = holder[key]
        others = [0, -1, 1, 7, 2**15, 2**24, 2**31 - 1, -(2**31), value + 1, value - 1, value * 2]
        holder[key] = kind, rng.choice(others if kind == I32 else [*others, 2**32, 2**40, 2**63 - 1])

    def change(header: Struct, body: bytes) -> tuple[Struct, bytes]:
        twist(header)
        return header, body

    if rng.random() < 0.5:
        lie_in_footer(path, twist)
    else:
        chosen = rng.choice(sorted({name_of(chunk).split(".")[0] for chunk in chunks(footer(path.read_bytes())[0])}))
        pages(chosen, change)(path)


@pytest.mark.parametrize("table", ["part", "objects"])
def test_any_number_that_is_wrong_costs_little_memory(sound: Path, tmp_path: Path, table: str) -> None:
    liars = []
    for seed in range(120):
        liars.append(Path(shutil.copytree(sound, tmp_path / str(seed))))
        twisted(part_path(liars[-1], 0) if table == "part" else liars[-1] / "objects.parquet", random.Random(seed))
    found = outcomes(sound, liars)
    assert not {seed: said for seed, said in enumerate(found) if said[0] > MOST_MIB}
    # others changed what nobody reads, such as encodings listed twice
    assert sum(bool(said) for _, said in found) > 40


def test_what_is_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    """The tools of this file change nothing but what they are told."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(1000), "t": ["x"] * 1000, "l": [[1]] * 1000}), path, compression="zstd")
    before = path.read_bytes()
    facts, start = footer(before)
    assert with_footer(before[:start], facts) == before
    rewrite_chunks(path, lambda _, data: data)
    pages("n", lambda header, body: (header, body))(path)
    assert pq.read_table(path).to_pydict() == {"n": list(range(1000)), "t": ["x"] * 1000, "l": [[1]] * 1000}
    assert COLUMNS in facts[ROW_GROUPS][1][1][0]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
def test_files_of_other_writers_are_read(tmp_path: Path, codec: str, version: Any) -> None:
    """Both forms of pages, several of them, every codec, statistics, indices of pages."""
    rng, rows_ = np.random.default_rng(1), 20_000
    columns = {
        "i": pa.array(rng.integers(0, 2**40, rows_)), "f": pa.array(rng.normal(size=rows_).astype("f4")),
        "b": pa.array(rng.integers(0, 2, rows_).astype(bool)), "t": pa.array([f"text {n % 97}" for n in range(rows_)]),
        "none": pa.nulls(rows_, pa.float64()), "long": pa.array([f"{'x' * 300}{n}" for n in range(rows_)]),
        "list": pa.array([[n] * (n % 3) for n in range(rows_)]), "fixed": pa.array([b"ab"] * rows_, pa.binary(2)),
        "when": pa.array(rng.integers(0, 2**40, rows_), pa.timestamp("us")),
    }  # fmt: skip
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table(columns), path, compression=codec, data_page_version=version, data_page_size=4096,
        row_group_size=7000, write_page_checksum=True, write_page_index=True,
    )  # fmt: skip
    with BoundedFile(path) as file:
        assert {name: column.to_pylist() for name, column in zip(columns, file.read(), strict=True)} == {
            name: column.to_pylist() for name, column in columns.items()
        }


def test_texts_written_as_differences_are_refused(tmp_path: Path) -> None:
    """A text of 20 kB in each of 90,000 rows takes 60 kB like that, without a dictionary."""
    path = tmp_path / "a.parquet"
    table = pa.table({"t": pa.array(["x" * 20_000] * 2_000)})
    for encoding in ("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"):
        pq.write_table(table, path, use_dictionary=False, column_encoding=encoding, compression="zstd")
        with BoundedFile(path) as file, pytest.raises(ValueError, match="write the file again without it"):
            file.read()


def test_a_table_of_candidates_is_bounded_too(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"objectId": ["a", "b"], "class": ["SNIa", "AGN"], "list": [[1], [2]]})
    wanted = (("objectid",), ("class",))
    pq.write_table(table, path)
    assert tables.read(path, wanted).column(["class"]).cells == ["SNIa", "AGN"]
    for lie in (page_says("class", unpacked=2**31 - 1), said_of("class", values=2**40), bomb("class"), list_of_lists):
        pq.write_table(table, path, compression="zstd")
        lie(path)
        with pytest.raises(ArchiveError, match=r"t\.parquet is not a valid Parquet file"):
            tables.read(path, wanted)
    one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2000, np.int32)), pa.array(["x" * 2**20]))
    pq.write_table(pa.table({"objectId": one, "class": one}), path)
    with pytest.raises(ArchiveError, match="texts that are too long"):
        tables.read(path, wanted)


def test_columns_that_are_no_table_of_objects_are_named(sound: Path) -> None:
    path = sound / "objects.parquet"
    table = pq.read_table(path)
    for name in OBJECT_SCHEMA.names:
        pq.write_table(table.set_column(table.column_names.index(name), name, pa.array([[1.0]])), path)
        with pytest.raises(ArchiveError, match=rf"column {name} of objects\.parquet is list"):
            Archive(sound)
