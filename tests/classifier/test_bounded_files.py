"""What other people's files may claim: each reader has a bound, and refuses in one sentence."""

import gzip
import json
import os
import shutil
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_safe_names import archive_with

from skyheed.classifier import bounded_files
from skyheed.classifier.archives import format as archive_format
from skyheed.classifier.archives import reader as archive
from skyheed.classifier.archives.format import part_path
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.bounded_files import check_lines, gunzip, open_regular, read_file, within
from skyheed.classifier.errors import ArchiveError, ModelError
from skyheed.classifier.models import checkpoint
from skyheed.classifier.sources import tables
from skyheed.classifier.training import protocol


def test_files_are_read_up_to_their_bound(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    with pytest.raises(ArchiveError, match="the most that is read"):
        read_file(path, 4)
    with pytest.raises(ModelError, match="cannot be read"):
        read_file(tmp_path / "b", 4, ModelError)
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ArchiveError, match="not an ordinary file"):
            open_regular(odd)


def test_training_configurations_are_bounded(tmp_path: Path) -> None:
    with (tmp_path / "large.toml").open("wb") as sparse:
        sparse.truncate(2**40)
    os.mkfifo(tmp_path / "pipe.toml")
    deep = tmp_path / "deep.toml"
    deep.write_text("a = " + "[" * 100_000)
    for path in (tmp_path / "large.toml", tmp_path / "pipe.toml", deep, Path("/dev/zero")):
        with pytest.raises(ModelError, match=path.name):
            protocol.load(path)


def test_gzip_without_end() -> None:
    path = Path("a.gz")
    assert gunzip(gzip.compress(b"a" * 100), 100, path) == b"a" * 100
    assert gunzip(gzip.compress(b"a") + gzip.compress(b"b") + bytes(20), 100, path) == b"ab"
    assert gunzip(gzip.compress(b"ab" * 10_000) * 3, 2**20, path) == b"ab" * 30_000
    bomb = gzip.compress(bytes(50 * 2**20))
    for late in (bomb, gzip.compress(bytes(2**20))):
        with pytest.raises(ArchiveError, match=r"a\.gz unpacks to more than 1 MiB"):
            gunzip(gzip.compress(b"a") + late, 2**20, path)
    with pytest.raises(ArchiveError, match="does not unpack"):
        gunzip(gzip.compress(b"a") + b"behind", 100, path)
    with pytest.raises(ArchiveError, match="cut short"):
        gunzip(gzip.compress(b"a") + gzip.compress(b"b")[:-1], 100, path)
    with pytest.raises(ArchiveError, match=r"a\.gz unpacks to more than 1 MiB"):
        gunzip(bomb, 2**20, path)
    with pytest.raises(ArchiveError, match="cut short"):
        gunzip(bomb[:-9], 2**30, path)
    with pytest.raises(ArchiveError, match=r"cut short|does not unpack"):
        gunzip(b"\x1f\x8b", 2**30, path)
    with pytest.raises(ArchiveError, match="does not unpack"):
        gunzip(gzip.compress(b"a" * 100)[:-8] + b"12345678", 2**30, path)


def test_a_flood_of_gzip_members_ends_soon() -> None:
    """Each costs little; what follows one must not be copied for each."""
    flood = gzip.compress(b"", mtime=0) * 1_000_000  # 20 MB
    began = time.process_time()
    with pytest.raises(ArchiveError, match=f"a.gz has more than {bounded_files.MOST_MEMBERS} gzip members"):
        gunzip(flood, 2**20, Path("a.gz"))
    assert time.process_time() - began < 10


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_line_without_end_is_refused_before_it_is_copied(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "t.csv"
    check_lines(b"a,b" + end + (b"x" * 1000 + end) * 5000, path)
    check_lines(b"x" * bounded_files.MOST_LINE + end + b"x" * bounded_files.MOST_LINE, path)
    rows = b"objectId,class" + end + b"ZTF1,SNIa" + end
    path.write_bytes(rows + b"x" * (100 * 2**20))
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=r"t\.csv, line \d: more than 1 MiB: is it the right file"):
            tables.read(path, (("objectid",), ("class",)))
        assert tracemalloc.get_traced_memory()[1] < tables.MOST_BYTES + 20 * 2**20  # the room that is made to read
    finally:
        tracemalloc.stop()


def fits_table(width: int, rows: int, forms: tuple[str, ...], data: bytes) -> bytes:
    """A FITS file of one binary table; its header says what it is told."""

    def block(*cards: tuple[str, object]) -> bytes:
        text = "".join(f"{key:8}= {value!s:>20}".ljust(80) for key, value in cards) + "END".ljust(80)
        return text.ljust(-(-len(text) // 2880) * 2880).encode()

    names = ("objectId", "class", "c", "d")
    columns = [(f"{key}{n}", f"'{word}'") for n, pair in enumerate(zip(names, forms, strict=False), 1)
               for key, word in zip(("TTYPE", "TFORM"), pair, strict=True)]  # fmt: skip
    said = (("XTENSION", "'BINTABLE'"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", width), ("NAXIS2", rows))
    more = (("PCOUNT", 0), ("GCOUNT", 1), ("TFIELDS", len(forms)))
    first = block(("SIMPLE", "T"), ("BITPIX", 8), ("NAXIS", 0))
    return first + block(*said, *more, *columns) + data.ljust(-(-len(data) // 2880) * 2880, b"\0")


@pytest.mark.parametrize(
    ("width", "rows", "forms", "sentence"),
    [
        (0, 30_000_000, ("0A", "0A"), "30000000 rows of 0 bytes"), (0, 10**12, ("0J", "0J"), "rows of 0 bytes"),
        (8, 10**9, ("4A", "4A"), "rows of 8 bytes|truncated"), (10**12, 2, ("4A", "4A"), "2 rows of|truncated"),
        (8, 2, ("4A", "4A", "1PJ(9)"), "columns of lists"), (8, -5, ("4A", "4A"), r"t\.fits"),
        (8, 2, ("1000000000A", "4A"), "not a valid FITS table"),
    ],
)  # fmt: skip
def test_a_fits_table_has_no_more_rows_than_bytes(
    tmp_path: Path, width: int, rows: int, forms: tuple[str, ...], sentence: str
) -> None:
    path = tmp_path / "t.fits"
    wanted = (("objectid",), ("class",))
    path.write_bytes(fits_table(8, 2, ("4A", "4A"), b"abcdSNIaefghAGN "))
    assert tables.read(path, wanted).column(["objectid"]).cells == ["abcd", "efgh"]
    path.write_bytes(fits_table(width, rows, forms, b"abcdSNIa" * 4 if width else b""))
    began = time.process_time()
    with pytest.raises(ArchiveError, match=sentence):
        tables.read(path, wanted)
    assert time.process_time() - began < 5


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "up").symlink_to("..")
    assert not within(tmp_path / "up", tmp_path)
    assert not within(tmp_path / "loop", tmp_path)
    assert within(tmp_path / "x", tmp_path)
    assert bounded_files.within(tmp_path / "x", tmp_path)


# --- archives ------------------------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], **options: object) -> None:
    table = pq.read_table(path)
    pq.write_table(change(table), path, **options)


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.rename(path.parents[2] / "elsewhere.parquet" if path.parent.name == "stamps" else path.parent.parent / "x")
    path.symlink_to(path.parents[2] / "elsewhere.parquet")


def repeated(text: str, rows: int) -> Callable[[pa.Table], pa.Table]:
    """Many rows of one long text: a small file that unpacks to any size."""

    def change(table: pa.Table) -> pa.Table:
        one = table.slice(0, 1).set_column(2, "type", pa.array([text]))
        return pa.concat_tables([one] * rows)

    return change


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "card is a pipe": (lambda a: a_fifo(a / "card.json"), "ordinary file"),
    "card is huge": (lambda a: os.truncate(a / "card.json", 2**34), "the most that is read"),
    "card is deep": (lambda a: (a / "card.json").write_text("[" * 10**6), "not a complete archive"),
    "card is a list": (lambda a: (a / "card.json").write_text("[]"), "no keys"),
    "objects are a pipe": (lambda a: a_fifo(a / "objects.parquet"), "ordinary file"),
    "objects lack a column": (
        lambda a: rewrite(a / "objects.parquet", lambda t: t.drop_columns(["class"])), "no column class",
    ),
    "objects without a name": (
        lambda a: rewrite(a / "objects.parquet", lambda t: t.set_column(0, "object_id", pa.nulls(2, pa.string()))),
        "without object_id",
    ),
    "a part that is a text": (
        lambda a: rewrite(a / "objects.parquet", lambda t: t.set_column(15, "part", pa.array(["../../x"] * 2))),
        "not a complete archive",
    ),
    "long texts, repeated": (
        lambda a: rewrite(a / "objects.parquet", repeated("x" * 2**20, 3000)), "more than are read",
    ),
    "a part that is a pipe": (lambda a: a_fifo(part_path(a, 0)), "ordinary file"),
    "a part that leads out": (lambda a: a_link(part_path(a, 0)), "leads out"),
    "a part that is not there": (
        lambda a: rewrite(a / "objects.parquet", lambda t: t.set_column(15, "part", pa.array([7, 7], pa.int32()))),
        "part-00007",
    ),
    "a group that is not there": (
        lambda a: rewrite(a / "objects.parquet", lambda t: t.set_column(16, "row_group", pa.array([9, 9], pa.int32()))),
        "damaged",
    ),
    "a shape of a million": (
        lambda a: rewrite(part_path(a, 0), lambda t: t.replace_schema_metadata({"stamp_shape": "1000000,1000000"})),
        "pixels, more than are read",
    ),
    "a shape that its bytes have not": (
        lambda a: rewrite(part_path(a, 0), lambda t: t.replace_schema_metadata({"stamp_shape": "64,63"})), "float16",
    ),
    "no shape": (lambda a: rewrite(part_path(a, 0), lambda t: t.replace_schema_metadata({})), "damaged"),
    "a stamp without a time": (
        lambda a: rewrite(part_path(a, 0), lambda t: t.set_column(2, "mjd", pa.nulls(len(t), pa.float64()))), "mjd",
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_archives_that_claim_too_much(tmp_path: Path, harm: str) -> None:
    path = archive_with(["a", "b"], tmp_path / "archive")
    assert [len(stamps) for _, stamps in Archive(path).each()] == [2, 2]
    change, words = HARMS[harm]
    change(path)
    with pytest.raises(ArchiveError) as refused:
        [stamps for _, stamps in Archive(path).each()]
    assert words in str(refused.value), refused.value
    assert str(refused.value).isprintable()


def test_rows_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive_with(["a", "b"], tmp_path / "archive")
    monkeypatch.setattr(archive, "MOST_OBJECTS", 1)
    with pytest.raises(ArchiveError, match="2 rows"):
        Archive(path)
    monkeypatch.undo()
    monkeypatch.setattr(archive_format, "MOST_STAMPS", 1)
    with pytest.raises(ArchiveError, match="2 stamps of 64 x 64"):
        Archive(path).stamps("a")


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint.resolve("sdss"), tmp_path / "model"))


@pytest.mark.parametrize(
    "harm",
    [
        lambda m: a_fifo(m / "model.json"),
        lambda m: a_fifo(m / "weights.safetensors"),
        lambda m: os.truncate(m / "model.json", 2**34),
        lambda m: (m / "model.json").write_text("[" * 10**6),
        lambda m: (m / "model.json").write_text('{"format": 1, "x": ' + "9" * 10**5 + "}"),
        lambda m: os.truncate(m / "weights.safetensors", 2**35),
        lambda m: (m / "weights.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}"),
        lambda m: (m / "weights.safetensors").write_bytes(struct.pack("<Q", 50 * 2**20) + b" " * 60 * 2**20),
        lambda m: (m / "weights.safetensors").write_bytes(b"abc"),
        lambda m: (m / "weights.safetensors").write_bytes(b""),
    ],
)
def test_checkpoints_that_claim_too_much(weights: Path, harm: Callable[[Path], object]) -> None:
    assert checkpoint.read_info(weights).name
    harm(weights)
    with pytest.raises(ModelError) as refused:
        checkpoint.read_info(weights)
    assert str(weights) in str(refused.value) or "no model" in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_weights_that_are_what_the_card_says_but_hold_no_tensors(weights: Path) -> None:
    """The digest can be anybody's; what safetensors refuses is a sentence, too."""
    import hashlib

    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(64)
    (weights / "weights.safetensors").write_bytes(data)
    card = json.loads((weights / "model.json").read_text())
    card["digest"] = hashlib.sha256(data).hexdigest()
    card.pop(checkpoint.CARD_DIGEST, None)
    (weights / "model.json").write_text(json.dumps(card))
    assert checkpoint.read_info(weights).digest == card["digest"]
    with pytest.raises(ModelError, match="cannot be read"):
        checkpoint.load_state(weights)
    assert np.isfinite(len(data))
