"""Parts of archives as a stranger could write them: what reads archives ends in one sentence, with bounded memory."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from stream_tools import save_checkpoint
from test_extras import sent, write

from skyheed.broker.cli import skyheed
from skyheed.classifier import scoring
from skyheed.classifier.archives.check import validate
from skyheed.classifier.archives.format import STAMP_COLUMNS, part_path
from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.scoring import Scorer
from skyheed.classifier.serving import load

Change = Callable[[pa.Table], pa.Table]
POINT = ("mjd", "band", "flux", "flux_error", "kind")
READ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
try:
    archive = Archive(sys.argv[1])
    [history_of(archive, name) for name in archive.object_ids]
except ArchiveError as error:
    print(error)
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak) // 1024)  # not ru_maxrss, which begins with the parent's
"""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """One object of four epochs with images of every kind, photometry and context."""
    return write(tmp_path / "archive", sent()).path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model"), "ztf")


def rewrite(path: Path, change: Change, **options: Any) -> None:
    pq.write_table(change(pq.read_table(path)), path, **options)


def with_column(name: str, values: Any) -> Change:
    """The table with another column of that name; `values` make an array of so many rows."""

    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, values(table.num_rows))

    return change


def of(*values: Any, type_: pa.DataType | None = None) -> Callable[[int], pa.Array]:
    return lambda rows: pa.array([values[n % len(values)] for n in range(rows)], type_)


def sentence_of(read: Callable[[], object]) -> str:
    """What a reader refuses with; empty where it reads. Any other error than ours ends the test."""
    try:
        read()
    except ArchiveError as error:
        assert str(error).isprintable(), error  # noqa: PT017
        return str(error)
    return ""


def read_all(path: Path) -> None:
    found = Archive(path)
    for name in found.object_ids:
        history_of(found, name)
    validate(path)


HARMS: dict[str, Change] = {
    **{f"no {name}": (lambda t, name=name: t.drop_columns([name])) for name in (*STAMP_COLUMNS, "stamp_unit")},
    **{f"{name} is text": with_column(name, of("many")) for name in (*STAMP_COLUMNS, "stamp_unit", "stamp")},
    **{f"{name} is a list": with_column(name, of([1.0])) for name in (*STAMP_COLUMNS, "stamp", "photometry")},
    **{f"{name} is a record": with_column(name, of({"a": 1})) for name in ("mjd", "band", "stamp_unit", "stamp")},
    **{f"{name} is missing once": with_column(name, of(None, 1.0)) for name in ("mjd", "flux", "stamp_unit")},
    "mjd is no number": with_column("mjd", of(59_000.0, float("nan"))),
    "mjd is without end": with_column("mjd", of(float("inf"))),
    "a band that there is not": with_column("band", of("g", "Q")),
    "a band without a name": with_column("band", of("")),
    "two bands": with_column("band", of("gr")),
    "bytes as a band": with_column("band", of(b"g")),
    "stamps of another size": with_column("stamp", of(bytes(8), type_=pa.binary(8))),
    "stamps of any size": with_column("stamp", of(bytes(63 * 63 * 2))),
    "photometry is null": with_column("photometry", of(None, type_=pa.list_(pa.struct([("mjd", pa.float64())])))),
    "photometry lacks its fields": with_column("photometry", of([{"mjd": 1.0}])),
    "photometry of texts": with_column("photometry", of([dict.fromkeys(POINT, "x")])),
    "photometry of a band that there is not": with_column(
        "photometry", of([dict.fromkeys(POINT, 1.0) | {"band": 77, "kind": 0}])
    ),
    "context is text": with_column("context_detections", of("many")),
    "no stamps": lambda t: t.slice(0, 0),
    "no metadata": lambda t: t.replace_schema_metadata(None),
    "a shape in words": lambda t: t.replace_schema_metadata({"stamp_shape": "sixty"}),
    "a shape below nothing": lambda t: t.replace_schema_metadata({"stamp_shape": "-63,-63"}),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_part_that_is_not_one_is_one_sentence_wherever_it_is_read(
    archive: Path, harm: str, checkpoint: Path, tmp_path: Path
) -> None:
    rewrite(part_path(archive, 0), HARMS[harm])
    assert 10 < len(sentence_of(lambda: history_of(Archive(archive), "a"))) < 400
    words = ["score", str(archive), "--out", str(tmp_path / "o"), "--model", str(checkpoint), "--threads", "1"]
    ran = CliRunner().invoke(skyheed, words)
    usable = harm in ("no stamps",)  # of an object without any, there is nothing to score
    assert usable or isinstance(ran.exception, ArchiveError), ran.exception


@pytest.mark.parametrize("harm", HARMS)
def test_rows_that_are_not_an_archives_are_one_sentence(archive: Path, harm: str, checkpoint: Path) -> None:
    """`Scorer`, which takes tables of anybody's."""
    scorer = Scorer(load(checkpoint, survey="ztf", device="cpu", precision="float32", threads=1))
    table = pq.read_table(part_path(archive, 0))
    assert scorer(table).num_rows == 1
    readable = ("no stamps", "no metadata", "bytes as a band", "stamps of any size")
    assert sentence_of(lambda: scorer(HARMS[harm](table))) or harm in readable


def bomb_of_texts(path: Path, name: str) -> None:
    """A hundred thousand stamps of one pixel, each with the same text of 1 MiB, which takes a few kB in the file."""
    rows = 100_000
    table = pq.read_table(path)
    columns = {field.name: pa.nulls(rows, field.type) for field in table.schema}
    columns |= {n: pa.array(np.ones(rows)).cast(table.schema.field(n).type) for n in STAMP_COLUMNS if n != "band"}
    columns["stamp_unit"] = pa.array(np.ones(rows, np.float32))
    columns |= {n: pa.array(["g"] * rows) for n in ("object_id", "band")}
    columns |= {n: pa.array([b"\0\0"] * rows, pa.binary(2)) for n in ("stamp", "template", "difference")}
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * 2**20]))
    made = pa.table({**columns, name: text}).replace_schema_metadata({"stamp_shape": "1,1"})
    pq.write_table(made, path, compression="zstd", row_group_size=rows)


def bomb_of_points(path: Path) -> None:
    """Ten million equal points of photometry with every stamp."""
    table = pq.read_table(path)
    count = 10_000_000
    values = [
        np.full(count, 59_000.0),
        *(np.ones(count, kind) for kind in (np.uint8, np.float32, np.float32, np.uint8)),
    ]
    names = ["mjd", "band", "flux", "flux_error", "kind"]
    points = pa.StructArray.from_arrays([pa.array(v) for v in values], names)
    ends = pa.array([0, count, count, count, count], pa.int32())
    lists = pa.ListArray.from_arrays(ends, points)
    rewrite(path, lambda t: t.set_column(t.column_names.index("photometry"), "photometry", lists), compression="zstd")
    assert table.num_rows == 4
    assert path.stat().st_size < 2**20


@pytest.mark.parametrize(
    "harm",
    [
        lambda part: bomb_of_texts(part, "band"), lambda part: bomb_of_texts(part, "mjd"), bomb_of_points,
        lambda part: rewrite(part, lambda t: pa.concat_tables([t] * 30_000), row_group_size=10**6),
    ],
    ids=["texts as bands", "texts as times", "points", "a huge row group"],
)  # fmt: skip
def test_a_bomb_takes_little_memory_and_time(archive: Path, harm: Callable[[Path], None]) -> None:
    harm(part_path(archive, 0))
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", READ, str(archive)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    sentence, peak = done.stdout.splitlines()
    assert "more than" in sentence or "not" in sentence or "a band of" in sentence
    assert int(peak) < 700, sentence  # numpy, pyarrow, scipy and ours: 200
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("name", ["stamps/part-00000.parquet", "objects.parquet", "card.json"])
def test_files_that_are_cut_or_damaged_anywhere_are_read_or_refused(archive: Path, name: str) -> None:
    path, rng = archive / name, random.Random(name)
    data = path.read_bytes()
    outcomes = set()
    for n in range(120):
        harmed = bytearray(data[: rng.randrange(len(data))] if n % 4 == 0 else data)
        for _ in range(rng.choice((1, 1, 3)) if n % 4 and harmed else 0):
            # most of a part is pixels, guarded by checksums: its footer is where damage is not noticed
            place = rng.randrange(len(harmed)) if n % 2 else -1 - rng.randrange(min(len(harmed), 4000))
            harmed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(harmed)
        outcomes.add(bool(sentence_of(lambda: read_all(archive))))
    assert True in outcomes


@pytest.mark.parametrize(
    "change",
    [
        {"surveys": "ztf"}, {"surveys": [1]}, {"surveys": None}, {"objects": "many"}, {"stamps": -1},
        {"stamps": None}, {"objects": [1]}, {"surveys": {"ztf": 1}},
    ],
)  # fmt: skip
def test_a_card_whose_values_are_of_another_kind_is_one_sentence(archive: Path, change: dict[str, Any]) -> None:
    card = json.loads((archive / "card.json").read_text())
    (archive / "card.json").write_text(json.dumps(card | change))
    with pytest.raises(ArchiveError, match=f"{next(iter(change))} of card.json"):
        Archive(archive)


# --- scores, which `score --check` reads again ----------------------------------------------------------------------


def scores_of(archive: Path, checkpoint: Path, out: Path) -> Path:
    model = load(checkpoint, survey="ztf", device="cpu", precision="float32", threads=1)
    scoring.score(Archive(archive), out, Scorer(model))
    assert scoring.check(Archive(archive), out) == []
    return scoring.score_path(out, 0)


def a_pipe(path: Path) -> None:
    import os

    path.unlink()
    os.mkfifo(path)


def long_texts(path: Path) -> None:
    facts = pq.read_schema(path).metadata
    rows = 3_000_000
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * 2**16]))
    table = pa.table({"object_id": text, "weights_digest": text})
    pq.write_table(table.replace_schema_metadata({**facts, b"skyheed_rows": str(rows)}), path)


SCORE_HARMS: dict[str, Callable[[Path], object]] = {
    "a pipe": a_pipe,
    "a folder": lambda p: (p.unlink(), p.mkdir()),
    "nothing": lambda p: p.write_bytes(b""),
    "cut short": lambda p: p.write_bytes(p.read_bytes()[:-100]),
    "no object_id": lambda p: rewrite(p, lambda t: t.drop_columns(["object_id"])),
    "object_id is a number": lambda p: rewrite(p, with_column("object_id", of(7))),
    "object_id is null": lambda p: rewrite(p, with_column("object_id", of(None, type_=pa.string()))),
    "another object": lambda p: rewrite(p, with_column("object_id", of("b"))),
    "counts in words": lambda p: rewrite(
        p, lambda t: t.replace_schema_metadata({"skyheed_rows": "many", "skyheed_objects": b"\xff"})
    ),
    "long texts, repeated": long_texts,
}


@pytest.mark.parametrize("harm", SCORE_HARMS)
def test_scores_that_are_not_ours_are_found(archive: Path, checkpoint: Path, tmp_path: Path, harm: str) -> None:
    path = scores_of(archive, checkpoint, tmp_path / "scores")
    SCORE_HARMS[harm](path)
    began = time.monotonic()
    [problem] = scoring.check(Archive(archive), tmp_path / "scores")
    assert "does not fit" in problem
    assert time.monotonic() - began < 20
