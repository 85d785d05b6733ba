"""An archive as a HATS catalogue and with Croissant metadata: the readers of both formats take them."""

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from test_archive import make, write
from test_extras import sent
from test_extras import write as write_extras

from skyheed.classifier.archives import cli as archive_cli
from skyheed.classifier.archives.convert import convert
from skyheed.classifier.archives.croissant import croissant
from skyheed.classifier.archives.hats import HIGHEST_ORDER, INDEX_ORDER, partition_path, partitions
from skyheed.classifier.archives.reader import Archive, ArchiveWriter
from skyheed.classifier.errors import ArchiveError

# what hats, pandas and mlcroissant say of each other is not ours
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def hats_of(archive: Path, out: Path, **options: Any) -> Any:
    """The archive as a catalogue, as hats reads it."""
    hats = pytest.importorskip("hats", reason="needs hats: pip install 'skyheed[hats]'")
    convert(archive, out, "hats", progress=False, **options)
    return hats.read_hats(out)


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    files = sorted(out.glob("dataset/Norder=*/Dir=*/Npix=*.parquet"))
    return {row["object_id"]: row for file in files for row in pq.ParquetFile(file).read().to_pylist()}


def test_a_hats_catalogue_is_valid_and_says_the_same_as_the_archive(tmp_path: Path, caplog: Any) -> None:
    archive = Archive(write(tmp_path / "a", 40))
    found = hats_of(tmp_path / "a", tmp_path / "h")
    from hats.io.validation import is_valid_catalog

    with caplog.at_level(logging.WARNING):
        assert is_valid_catalog(tmp_path / "h", strict=True), caplog.text
    assert found.catalog_info.total_rows == 40
    rows = rows_of(tmp_path / "h")
    assert set(rows) == set(archive.object_ids)
    for name in ("obj0", "obj39"):
        stamps, row = archive.stamps(name), rows[name]
        assert (row["class"], row["ra"], row["n_stamps"]) == ("SNIa", archive.object(name)["ra"], len(stamps))
        epochs = row["epochs"]
        assert epochs["source_id"] == stamps["source_id"].tolist()
        assert epochs["mjd"] == stamps["mjd"].tolist()
        pixels = [np.frombuffer(packed, "<f2").astype(np.float32).reshape(64, 64) for packed in epochs["stamp"]]
        units = np.float32(epochs["stamp_unit"])[:, None, None]
        np.testing.assert_array_equal(np.stack(pixels) * units, stamps["stamp"])


def test_every_object_lies_in_the_pixel_of_its_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", 60)
    monkeypatch.setattr("skyheed.classifier.archives.hats.BYTES_PER_PARTITION", 6 * 64 * 64 * 2 * 4)  # four objects
    found = hats_of(tmp_path / "a", tmp_path / "h")
    from hats.pixel_math import compute_spatial_index

    assert len(found.get_healpix_pixels()) >= 15
    assert found.partition_info.get_highest_order() > 2
    for pixel in found.get_healpix_pixels():
        table = pq.read_table(partition_path(tmp_path / "h", (pixel.order, pixel.pixel)), partitioning=None)
        assert 1 <= table.num_rows <= 4
        index = np.array(compute_spatial_index(table["ra"].to_pylist(), table["dec"].to_pylist()))
        assert table["_healpix_29"].to_pylist() == index.tolist() == sorted(index.tolist())
        assert (index >> 2 * (INDEX_ORDER - pixel.order) == pixel.pixel).all()


def test_photometry_and_context_come_along(tmp_path: Path) -> None:
    archive = write_extras(tmp_path / "a", sent(), sent(name="b", backwards=True))
    hats_of(tmp_path / "a", tmp_path / "h")
    rows = rows_of(tmp_path / "h")
    for name in archive.object_ids:
        extras = archive.extras(name)
        assert extras is not None
        points = rows[name]["photometry"]
        assert points["mjd"] == [mjd for points in extras.photometry for mjd in points.mjd.tolist()]
        assert len({len(values) for values in points.values()}) == 1
        said = {key for context in extras.context for key in context}
        for key in said:
            wanted = [context.get(key) for context in extras.context]
            got = rows[name]["epochs"][f"context_{key}"]
            assert [value is None for value in got] == [value is None for value in wanted]
            assert [v for v in got if v is not None] == pytest.approx([v for v in wanted if v is not None])


def test_only_alerts_of_a_class_and_nothing_left_when_nothing_is_written(tmp_path: Path) -> None:
    write(tmp_path / "a")
    found = hats_of(tmp_path / "a", tmp_path / "h", alerts_only=True, objects=("obj1",))
    assert found.catalog_info.total_rows == 1
    assert rows_of(tmp_path / "h")["obj1"]["n_stamps"] == 4
    thing, stamps = make(0)
    stamps["alert"] = stamps["detected"] = False
    with ArchiveWriter(tmp_path / "quiet", {}) as writer:
        writer.add(thing, stamps)
    with pytest.raises(ArchiveError, match="no object of the archive has a stamp"):
        convert(tmp_path / "quiet", tmp_path / "none", "hats", alerts_only=True, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "h", "quiet"]


def test_without_hats_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    write(tmp_path / "a", 1)
    monkeypatch.setitem(sys.modules, "hats.pixel_math", None)
    monkeypatch.setitem(sys.modules, "hats", None)
    with pytest.raises(ArchiveError, match=r"pip install 'skyheed\[hats\]'"):
        convert(tmp_path / "a", tmp_path / "h", "hats", progress=False)


def test_partitions_hold_every_object_once_and_end_at_the_smallest_pixel() -> None:
    rng = np.random.default_rng(1)
    index = rng.integers(0, 12 << 2 * INDEX_ORDER, 500)
    index[:40] = index[0]  # more at one place than a partition holds
    found = partitions(index, 7)
    assert sorted(itertools.chain(*(members.tolist() for members in found.values()))) == list(range(500))
    large = [pixel for pixel, members in found.items() if len(members) > 7]
    assert [order for order, _ in large] == [HIGHEST_ORDER]


# --- Croissant ------------------------------------------------------------------------------------------------------


def test_croissant_is_valid_and_reads_the_archive(tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="needs mlcroissant: pip install mlcroissant")
    archive = Archive(write(tmp_path / "a", 40, license="CC-BY-4.0", cite_as="us", made="Of noise.\n"))
    found = mlcroissant.Dataset(jsonld=str(tmp_path / "a" / "croissant.json"))
    assert not found.metadata.ctx.issues.errors
    assert not found.metadata.ctx.issues.warnings
    objects = list(found.records("objects"))
    assert [row["objects/object_id"].decode() for row in objects] == archive.object_ids
    assert objects[3]["objects/ra"] == archive.object("obj3")["ra"]
    stamps = list(found.records("stamps"))
    assert len(stamps) == archive.card["stamps"]
    assert {row["stamps/band"] for row in stamps} <= {b"u", b"g", b"r", b"i", b"z"}


def test_croissant_names_every_column_with_its_meaning_and_the_digest_of_the_table(tmp_path: Path) -> None:
    import hashlib

    archive = Archive(write(tmp_path / "a"))
    said = croissant(archive.card, archive.path)
    assert json.loads((tmp_path / "a" / "croissant.json").read_text()) == said
    ran = CliRunner().invoke(archive_cli.archive, ["info", str(tmp_path / "a"), "--croissant"])
    assert json.loads(ran.stdout) == said
    whole = (tmp_path / "a" / "objects.parquet").read_bytes()
    assert said["distribution"][0]["sha256"] == hashlib.sha256(whole).hexdigest()
    for records, file in zip(said["recordSet"], ("objects.parquet", "stamps/part-00000.parquet"), strict=True):
        columns = pq.read_schema(tmp_path / "a" / file).names
        named = [field["name"] for field in records["field"]]
        assert set(named) | {"stamp"} == set(columns) | {"stamp"}
        assert all(len(field["description"]) > 3 for field in records["field"])
