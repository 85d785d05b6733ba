"""Output paths are checked before the work, and paths may have anything in their names."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_frames import season
from test_safe_names import archive_with

from skyheed.broker import cli, record_writers
from skyheed.broker.errors import ConfigError, SkyheedError
from skyheed.classifier import output_paths
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError, ClassifierError

ODD = 'a folder\'s "é ñ" [1]* $x %20 日本 ?&;'


def run(*arguments: object) -> str:
    """What a command prints; its error is raised."""
    result = CliRunner().invoke(cli.skyheed, ["-q", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(cli.skyheed, ["-q", *map(str, arguments)])
    if isinstance(result.exception, ClassifierError | SkyheedError):
        return str(result.exception)
    assert result.exit_code == 2, result.exception or result.output  # click's own words
    return str(result.output)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that takes long or connects to servers fails the test."""

    def never(*_arguments: object, **_options: object) -> None:
        raise AssertionError("the work began")

    for place in (
        "skyheed.classifier.sources.candidates.read_candidates",
        "skyheed.classifier.sources.lightcurves.read_light_curve",
        "skyheed.classifier.training.grid.run",
        "skyheed.classifier.evaluation.evaluate.entries",
        "skyheed.classifier.archives.convert.Archive",
        "skyheed.broker.local.demo.run",
        "skyheed.broker.subscribe.Subscriber",
        "skyheed.broker.packets.index.PacketIndex",
        "skyheed.classifier.sky.simulation._each",
        "skyheed.classifier.training.protocol.read",
    ):  # fmt: skip
        monkeypatch.setattr(place, never)


COMMANDS: dict[str, Callable[[Path], list[object]]] = {
    "simulate": lambda out: ["archive", "simulate", "--objects", 2, "-o", out],
    "build-sdss": lambda out: ["archive", "build-sdss", "--candidates", "t.csv", "--frames", "f", "-o", out],
    "build-lightcurves": lambda out: ["archive", "build-lightcurves", "SNIa=x", "-o", out],
    "convert": lambda out: ["archive", "convert", "a", "--to", "npz", "-o", out],
    "convert to archive": lambda out: ["archive", "convert", "a", "--to", "archive", "-o", out],
    "train": lambda out: ["train", "c.toml", "-o", out],
    "evaluate": lambda out: ["evaluate", "sdss", "a", "-o", out],
}
FILES: dict[str, Callable[[Path], list[object]]] = {
    "demo": lambda out: ["demo", "-o", out.with_suffix(".png")],
    "subscribe": lambda out: ["subscribe", "--topic", "t", "--format", "csv", "-o", out.with_suffix(".png")],
    "replay": lambda out: ["replay", "sdss", "/", "--state", out.with_suffix(".png")],
    "missing": lambda out: ["archive", "build-sdss", "--candidates", "t", "--frames", "f", "--fields", "f",
                            "--missing", out.with_suffix(".png"), "-o", out.parent.parent / "new"],
}  # fmt: skip


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_is_said_before_the_work(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300), tmp_path / ("x" * 250)):
        sentence = refused(*COMMANDS[command](out))
        assert str(out) in sentence
        assert out.name != "file" or "a folder is needed" in sentence
        assert "\n" not in sentence
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", FILES)
def test_a_file_that_cannot_be_is_said_before_the_work(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for out in (tmp_path / "folder", tmp_path / "no" / "such", tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        assert out.name[:50] in refused(*FILES[command](out))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", ["picture", "picture.xyz", "picture.csv"])
def test_a_picture_must_be_named_like_one(tmp_path: Path, name: str) -> None:
    assert ".png" in refused("demo", "-o", tmp_path / name)


@pytest.mark.usefixtures("no_work")
def test_names_that_are_taken(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for command in ("simulate", "build-sdss", "build-lightcurves", "convert"):
        assert "exists" in refused(*COMMANDS[command](tmp_path / "there"))


def test_folders_that_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere: the trial itself is refused here as the kernel would refuse it."""

    def denied(*_arguments: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    for check in (output_paths.check_folder, output_paths.check_file):
        with pytest.raises(ArchiveError, match=r"new: cannot be written.*Permission denied"):
            check(tmp_path / "new")
    with pytest.raises(ConfigError, match="Permission denied"):
        record_writers.write([], "json", tmp_path / "new")


def test_files_that_are_there_stay_as_they_are_until_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    output_paths.check_file(tmp_path / "a.json")
    output_paths.check_file("/dev/null")
    assert (tmp_path / "a.json").read_text() == "old"
    output_paths.check_folder(tmp_path / "new" / "er")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


# --- odd names -----------------------------------------------------------------------------------------------------


def test_every_file_command_takes_any_path(tmp_path: Path) -> None:
    here = tmp_path / ODD
    here.mkdir()
    run("archive", "simulate", "--objects", 3, "--seasons", 1, "--processes", 1, "-o", here / "sky 'é'")
    assert "stamp sequences" in run("archive", "info", here / "sky 'é'")
    assert "sound" in run("archive", "validate", here / "sky 'é'")
    for form in ("npz", "fits", "archive"):
        run("archive", "convert", here / "sky 'é'", "--to", form, "-o", here / f"{form} of it")
        assert len(list((here / f"{form} of it").iterdir())) >= 3
    run("archive", "simulate", "--objects", 2, "--seasons", 1, "--processes", 1, "--overwrite", "-o", here / "sky 'é'")
    lines = [f"{53000 + n},20.0,0.1,r" for n in range(8)]
    (here / "star é.csv").write_text("\n".join(["mjd,mag,magerr,band", *lines]))
    run("archive", "build-lightcurves", f"Variable={here / 'star é.csv'}", "-o", here / "curves")
    assert Archive(here / "curves").object_ids == ["star é"]
    (here / "frames").mkdir()
    table = season(here / "frames")
    run("archive", "build-sdss", "--candidates", table, "--frames", here / "frames", "-o", here / "below" / "real")
    assert len(Archive(here / "below" / "real")) == 2
    assert not [p for p in here.rglob(".*")]


def test_leavings_of_another_archive_are_not_swept(tmp_path: Path) -> None:
    """The name is no pattern: `*` would match the unfinished archives of all others."""
    other = tmp_path / ".other.partial-999999999"
    other.mkdir()
    archive_with(["a"], tmp_path / "*")
    archive_with(["a"], tmp_path / "[a-z]ther")
    assert other.is_dir()


def test_output_of_a_subscriber_with_an_odd_name(tmp_path: Path) -> None:
    from test_subscribe import record

    here = tmp_path / ODD
    here.mkdir()
    for form in ("json", "csv", "table", "parquet"):
        assert record_writers.write([record(1)], form, here / f"it's {form} é.{form}") == 1
    assert len(os.listdir(here)) == 4
    np.testing.assert_equal(sorted(p.suffix for p in here.iterdir()), [".csv", ".json", ".parquet", ".table"])
