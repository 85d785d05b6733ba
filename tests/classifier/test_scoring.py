"""`skyheed score`: whole archives, a part at a time."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from stream_tools import save_checkpoint
from test_archive import make

from skyheed.broker.cli import skyheed
from skyheed.classifier import scoring
from skyheed.classifier.archives.convert import convert
from skyheed.classifier.archives.format import part_path
from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import Archive, ArchiveWriter
from skyheed.classifier.errors import ArchiveError, ModelError
from skyheed.classifier.models.base import Model
from skyheed.classifier.serving import load
from skyheed.classifier.sky import simulate

OBJECTS = 33  # two parts


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    path = tmp_path_factory.mktemp("sky") / "ztf"
    simulate("ztf", OBJECTS, 5, path, seasons=1, balanced=True, processes=1, progress=False)
    return Archive(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model"), "ztf")


@pytest.fixture
def model(checkpoint: Path) -> Model:
    return load(checkpoint, survey="ztf", device="cpu", precision="float32", threads=1)


def run(*words: object) -> str:
    ran = CliRunner().invoke(skyheed, ["score", *map(str, words)], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.output


def rows_of(folder: Path) -> dict[tuple[str, int], dict[str, object]]:
    rows = [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {(row["object_id"], row["n_stamps"]): row for row in rows}


def test_shards_together_are_the_whole_and_each_row_is_what_the_model_says(
    archive: Archive, checkpoint: Path, model: Model, tmp_path: Path
) -> None:
    words = (archive.path, "--model", checkpoint, "--epochs", "1,4,last", "--precision", "float32", "--threads", 1)
    run(*words, "--out", tmp_path / "whole")
    for number in (2, 1):
        run(*words, "--out", tmp_path / "shared", "--shard", f"{number}/2")
    whole = rows_of(tmp_path / "whole")
    assert whole == rows_of(tmp_path / "shared")
    histories = {name: history_of(archive, name) for name in {name for name, _ in whole}}
    assert set(whole) == {(name, n) for name, h in histories.items() for n in {1, 4, len(h)} if n <= len(h)}
    for (name, n), row in whole.items():
        [said] = model.predict([histories[name].until(epochs=n)])
        assert (row["status"], row["reason"]) == (str(said.status), None if said.reason is None else str(said.reason))
        own = [row[f"p_{kind}"] for kind in model.classes]
        wanted = said.probabilities.tolist() if said.reason is None else [None] * len(own)
        assert own == (pytest.approx(wanted, abs=1e-5) if said.reason is None else wanted)
        assert row["last_mjd"] == histories[name].mjd[n - 1]
    assert "every part" in run(archive.path, "--out", tmp_path / "shared", "--check")


def test_finished_parts_stay_and_a_torn_one_is_made_again(archive: Archive, model: Model, tmp_path: Path) -> None:
    scorer = scoring.Scorer(model)
    assert scoring.score(archive, tmp_path, scorer) > 0
    first, second = (scoring.score_path(tmp_path, n) for n in (0, 1))
    before, kept = pq.read_table(second), first.stat().st_mtime_ns
    second.unlink()
    (tmp_path / f".{second.name}.partial-1").write_bytes(b"PAR1 torn")
    assert scoring.check(archive, tmp_path) == [
        "part-00001.parquet is missing: run `skyheed score` again with the same --out"
    ]
    assert scoring.score(archive, tmp_path, scorer) == before.num_rows
    assert pq.read_table(second).equals(before)
    assert first.stat().st_mtime_ns == kept
    assert scoring.score(archive, tmp_path, scorer) == 0


def test_a_folder_belongs_to_one_model_prior_and_choice_of_epochs(
    archive: Archive, checkpoint: Path, model: Model, tmp_path: Path
) -> None:
    scoring.score(archive, tmp_path, scoring.Scorer(model))
    with pytest.raises(ModelError, match=r"epochs last, not 1,last: choose another --out"):
        scoring.score(archive, tmp_path, scoring.Scorer(model, "1,last"))
    other = load(checkpoint, survey="ztf", device="cpu", precision="float32", threads=1, prior="1,2,3,4")
    with pytest.raises(ModelError, match=r"choose another --out"):
        scoring.score(archive, tmp_path, scoring.Scorer(other))
    assert json.loads((tmp_path / scoring.MANIFEST).read_text())["epochs"] == "last"


def test_a_damaged_part_is_found(archive: Archive, model: Model, tmp_path: Path) -> None:
    scoring.score(archive, tmp_path, scoring.Scorer(model))
    path = scoring.score_path(tmp_path, 0)
    pq.write_table(pq.read_table(path).slice(0, 3), path)
    [problem] = scoring.check(archive, tmp_path)
    assert "does not fit" in problem
    ran = CliRunner().invoke(skyheed, ["score", str(archive.path), "--out", str(tmp_path), "--check"])
    assert (ran.exit_code, problem in ran.output) == (1, True)


def test_a_scorer_takes_rows_of_a_part_in_any_order(archive: Archive, model: Model) -> None:
    table = pq.read_table(part_path(archive.path, 1))
    scorer = scoring.Scorer(model, "last")
    shuffled = table.take(pa.array(np.random.default_rng(3).permutation(table.num_rows)))
    found = {row["object_id"]: row for row in scorer(shuffled).to_pylist()}
    assert found == {row["object_id"]: row for row in scorer(table).to_pylist()}
    assert found == {row["object_id"]: row for row in scorer(table.replace_schema_metadata({})).to_pylist()}
    name = next(iter(found))
    [said] = model.predict([history_of(archive, name)])
    assert said.reason is None or found[name]["reason"] == str(said.reason)


@pytest.fixture(scope="module")
def catalogue(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive in HATS, in several partitions."""
    pytest.importorskip("hats", reason="needs hats: pip install 'skyheed[hats]'")
    out = tmp_path_factory.mktemp("catalogue") / "sky"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skyheed.classifier.archives.hats.BYTES_PER_PARTITION", 2**20)
        convert(archive.path, out, "hats", progress=False)
    assert len(partitions_of(out)) > 2
    return out


def partitions_of(catalogue: Path) -> list[Path]:
    return sorted(catalogue.glob("dataset/Norder=*/Dir=*/Npix=*.parquet"))


def said(rows: Iterable[dict[str, object]]) -> dict[tuple[object, object], dict[str, object]]:
    """Rows by object and number of epochs; probabilities as far as they do not depend on what shares a batch."""
    return {
        (row["object_id"], row["n_stamps"]): {
            key: pytest.approx(value, abs=1e-5) if key.startswith("p_") and value is not None else value
            for key, value in row.items()
        }
        for row in rows
    }


def scores(archive: Archive, folder: Path, model: Model) -> list[dict[str, object]]:
    """What `skyheed score` writes."""
    scoring.score(archive, folder, scoring.Scorer(model, "1,last"))
    return list(rows_of(folder).values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_objects_of_a_hats_catalogue_are_scored_as_the_archive_is(
    archive: Archive, catalogue: Path, model: Model, tmp_path: Path
) -> None:
    scorer = scoring.Scorer(model, "1,last")
    tables = [pq.ParquetFile(path).read() for path in partitions_of(catalogue)]
    found = {(row["object_id"], row["n_stamps"]): row for table in tables for row in scorer(table).to_pylist()}
    wanted = said(scores(archive, tmp_path, model))
    assert found == wanted
    # tools differ in what they make of nested columns: no metadata, lists of structs, other orders of the rows
    whole = pa.concat_tables(tables).replace_schema_metadata({}).take(pa.array(range(OBJECTS)[::-1]))
    rows = whole["epochs"].to_pylist()
    listed = [[dict(zip(row, values, strict=True)) for values in zip(*row.values(), strict=True)] for row in rows]
    kind = pa.list_(pa.struct([pa.field(f.name, f.type.value_type) for f in whole["epochs"].type]))
    other = whole.set_column(whole.column_names.index("epochs"), "epochs", pa.array(listed, kind))
    for table in (whole, other):
        assert {(row["object_id"], row["n_stamps"]): row for row in scorer(table).to_pylist()} == wanted


def test_model_ready_stamps_stay_as_they_are_without_a_tables_metadata(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("hats", reason="needs hats: pip install 'skyheed[hats]'")
    thing, rows = make(1, size=32)
    rows["stamp"] += 500.0  # a background: a survey's stamp loses it, a model-ready one has none to lose
    with ArchiveWriter(tmp_path / "a", {}, normalised=True) as writer:
        writer.add(thing, rows)
    convert(tmp_path / "a", tmp_path / "h", "hats", progress=False)
    (path,) = partitions_of(tmp_path / "h")
    [history] = scoring._histories(pq.ParquetFile(path).read().replace_schema_metadata({}), "ztf")
    wanted = history_of(Archive(tmp_path / "a"), thing.object_id)
    assert np.array_equal(history.images["science"], wanted.images["science"])
    assert float(np.median(history.images["science"].astype(np.float32))) > 4


def test_other_nested_tables_are_refused(catalogue: Path, model: Model) -> None:
    table = pq.ParquetFile(partitions_of(catalogue)[0]).read()
    short = pa.table({"object_id": ["a"], "epochs": pa.array([{"mjd": [1.0, 2.0], "band": ["r"]}])})
    unnamed = table.drop_columns(["object_id"])
    forms = table.set_column(0, "stamp_form", pa.array([str(n) for n in range(table.num_rows)]))
    for bad in (short, unnamed, forms if table.num_rows > 1 else short):
        with pytest.raises(ArchiveError, match="archive convert --to hats"):
            scoring.Scorer(model)(bad)


@pytest.mark.filterwarnings("ignore")
def test_lsdb_maps_the_partitions(archive: Archive, catalogue: Path, model: Model, tmp_path: Path) -> None:
    """The lines of docs/tutorials/score-an-archive.md."""
    lsdb = pytest.importorskip("lsdb", reason="needs LSDB: pip install 'skyheed[lsdb]'")
    dask = pytest.importorskip("dask")
    scorer = scoring.Scorer(model, "1,last")

    def classify(objects: Any) -> Any:
        return scorer(pa.Table.from_pandas(objects, preserve_index=False)).to_pandas()

    sky = lsdb.open_catalog(catalogue, columns="all")
    with dask.config.set(scheduler="synchronous"):
        found = sky.map_partitions(classify).compute().replace({np.nan: None})
    got = {(row["object_id"], row["n_stamps"]): row for row in found.to_dict("records")}
    assert got == said(scores(archive, tmp_path, model))


@pytest.mark.parametrize("text", ["", "0", "first", "1;2", "-1", "1,,2"])
def test_epochs_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match="epochs must be"):
        scoring.Epochs.parse(text)


@pytest.mark.parametrize(
    ("text", "length", "wanted"),
    [("last", 5, [5]), ("1,3,6", 5, [1, 3]), ("1,3,6,last", 5, [1, 3, 5]), ("all", 3, [1, 2, 3])],
)
def test_epochs(text: str, length: int, wanted: list[int]) -> None:
    assert scoring.Epochs.parse(text).of(length) == wanted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
def test_ray_maps_the_parts(archive: Archive, checkpoint: Path, model: Model) -> None:
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'skyheed[ray]'")

    class Served:
        def __init__(self) -> None:
            self.scorer = scoring.Scorer(load(checkpoint, survey="ztf", device="cpu", precision="float32", threads=1))

        def __call__(self, table: pa.Table) -> pa.Table:
            return self.scorer(table)

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", object_store_memory=200 * 2**20)
    try:
        paths = [str(part_path(archive.path, n)) for n in (0, 1)]
        parts = ray.data.read_parquet(paths, override_num_blocks=2)
        found = parts.map_batches(Served, batch_format="pyarrow", batch_size=None, concurrency=1).take_all()
    finally:
        ray.shutdown()
    wanted = [
        row for n in (0, 1) for row in scoring.Scorer(model)(pq.read_table(part_path(archive.path, n))).to_pylist()
    ]
    assert {row["object_id"] for row in found} == {row["object_id"] for row in wanted}
    assert len(found) == len(wanted)
