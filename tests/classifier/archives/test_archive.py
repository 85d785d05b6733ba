"""Archives: what is written is read back; nothing half-written ever stands; damage is found."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from click.testing import CliRunner

from skyheed.classifier.archives import cli as archive_cli
from skyheed.classifier.archives.check import validate
from skyheed.classifier.archives.convert import convert
from skyheed.classifier.archives.reader import (
    SPLITS,
    STAMP_COLUMNS,
    Archive,
    ArchiveObject,
    ArchiveWriter,
    split_of,
    stamp_rows,
    write_part,
)
from skyheed.classifier.errors import ArchiveError


def make(number: int, *, n: int = 6, start: float = 53000.0, size: int = 64) -> tuple[ArchiveObject, Any]:
    """An object with n stamps of noise and a bright middle; the noise level differs from stamp to stamp."""
    rng = np.random.default_rng(number)
    noise = rng.uniform(80, 900, n)
    pixels = rng.normal(0, noise[:, None, None], (n, size, size)).astype(np.float32)
    pixels[:, size // 2, size // 2] += 1e5
    columns = {
        "source_id": number * 1000 + np.arange(n),
        "mjd": start + np.arange(n) * 2.5 + number * 0.01,
        "band": np.array(list("ugriz" * n)[:n]),
        "detected": np.arange(n) >= 2,
        "alert": np.arange(n) >= 2,
        "flux": rng.normal(1e4, 100, n),
        "flux_error": np.full(n, 100.0),
        "psf_fwhm": np.full(n, 1.3),
        "sky_noise": noise,
        "zero_point": np.full(n, 24.0),
    }
    thing = ArchiveObject(f"obj{number}", "SNIa", "Ia", True, 0.1, 10.0 + number, 0.5, start, "simulated", "sdss")
    return thing, stamp_rows({"stamp": pixels}, columns)


def write(path: Path, count: int = 3, **card: Any) -> Path:
    with ArchiveWriter(path, {"command": "test", "seed": 1, **card}) as writer:
        for number in range(count):
            writer.add(*make(number))
    return path


def add(path: Path, *numbers: int, fail: type[BaseException] | None = None, **options: Any) -> None:
    """Write the objects of these numbers, and fail before the end if so asked."""
    with ArchiveWriter(path, {}, **options) as writer:
        for number in numbers:
            writer.add(*make(number))
        assert fail is None or options or not path.exists()
        if fail:
            raise fail


def test_stamps_come_back_within_an_eighth_of_the_noise(tmp_path: Path) -> None:
    thing, rows = make(4)
    archive = Archive(write(tmp_path / "a", 6))
    back = archive.stamps(thing.object_id)
    step = rows["sky_noise"][:, None, None] / 4
    # Above 2048 steps float16 itself is coarser than a step.
    allowed = np.maximum(step / 2, np.abs(rows["stamp"]) * 2.0**-11) * 1.001
    assert (np.abs(back["stamp"] - rows["stamp"]) <= allowed).all()
    for name in STAMP_COLUMNS:
        np.testing.assert_array_equal(back[name], rows[name])


def test_object_row_keeps_what_was_given(tmp_path: Path) -> None:
    row = Archive(write(tmp_path / "a")).object("obj2")
    assert (row["class"], row["type"], row["confirmed"], row["ra"]) == ("SNIa", "Ia", True, 12.0)
    assert row["first_alert_mjd"] == pytest.approx(53005.02)
    assert row["stamps"] == 6


def test_rows_are_stored_in_time_order(tmp_path: Path) -> None:
    thing, rows = make(0)
    with ArchiveWriter(tmp_path / "a", {}) as writer:
        writer.add(thing, rows[::-1])
    back = Archive(tmp_path / "a").stamps("obj0")
    assert (np.diff(back["mjd"]) > 0).all()
    np.testing.assert_array_equal(back["source_id"], rows["source_id"])


def test_alerts_only_starts_at_the_first_detection(tmp_path: Path) -> None:
    archive = Archive(write(tmp_path / "a"))
    assert len(archive.stamps("obj1", alerts_only=True)) == 4
    assert archive.stamps("obj1", alerts_only=True)["mjd"].min() == archive.object("obj1")["first_alert_mjd"]


def test_photometry_is_read_without_pixels(tmp_path: Path) -> None:
    rows = Archive(write(tmp_path / "a")).stamps("obj0", kinds=())
    assert rows.dtype.names == STAMP_COLUMNS


def test_missing_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no 'difference' images"):
        Archive(write(tmp_path / "a")).stamps("obj0", kinds=("difference",))


def test_nan_and_bright_pixels_survive(tmp_path: Path) -> None:
    thing, rows = make(0)
    rows["stamp"][0, :5] = np.nan
    rows["stamp"][0, 40, 40] = 1e9
    with ArchiveWriter(tmp_path / "a", {}) as writer:
        writer.add(thing, rows)
    back = Archive(tmp_path / "a").stamps("obj0")["stamp"][0]
    assert np.isnan(back[:5]).all()
    assert np.isfinite(back[5:]).all()
    assert back[40, 40] == back[5:].max()


def test_archive_appears_only_when_complete(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        add(tmp_path / "a", 0, fail=KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == []


def test_failed_overwrite_keeps_the_old_archive(tmp_path: Path) -> None:
    write(tmp_path / "a", 2)
    with pytest.raises(RuntimeError):
        add(tmp_path / "a", 7, fail=RuntimeError, overwrite=True)
    assert Archive(tmp_path / "a").object_ids == ["obj0", "obj1"]
    add(tmp_path / "a", 7, overwrite=True)
    assert Archive(tmp_path / "a").object_ids == ["obj7"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_leavings_of_a_killed_writer_are_swept_but_not_those_of_a_living_one(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, alive = tmp_path / f".a.partial-{gone.pid}", tmp_path / f".a.partial-{os.getppid()}"
    for left in (dead, alive):
        (left / "stamps").mkdir(parents=True)
    write(tmp_path / "a")
    assert not dead.exists()
    assert alive.exists()


def test_old_archive_of_a_killed_overwrite_is_swept_only_when_it_is_not_the_last(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    old = write(tmp_path / f".a.old-{gone.pid}")
    write(tmp_path / "a")
    assert old.exists()
    add(tmp_path / "a", 7, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_archive_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    rename, synchronise = os.rename, os.fsync

    def noted_rename(source: Path, target: Path) -> None:
        events.append("rename")
        rename(source, target)

    def noted_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        synchronise(descriptor)

    monkeypatch.setattr(os, "rename", noted_rename)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    write(tmp_path / "a", 40)
    before = events[: events.index("rename")]
    expected = {"card.json", "README.md", "objects.parquet", "stamps", "part-00000.parquet", "part-00001.parquet"}
    assert expected < set(before)
    assert events[-1] == tmp_path.name


def test_existing_path_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with pytest.raises(ArchiveError, match="exists"):
        ArchiveWriter(tmp_path / "a", {})


def test_overwrite_refuses_what_is_not_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArchiveError, match="not an archive"):
        ArchiveWriter(tmp_path / "a", {}, overwrite=True)


def test_same_object_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="obj0 was added twice"):
        add(tmp_path / "a", 0, 0)
    assert not (tmp_path / "a").exists()


def test_object_without_stamps_or_noise_is_refused(tmp_path: Path) -> None:
    thing, rows = make(0)
    (tmp_path / "stamps").mkdir()
    with pytest.raises(ArchiveError, match="no stamps"):
        write_part(tmp_path, 0, [(thing, rows[:0])])
    rows["sky_noise"][3] = 0
    with pytest.raises(ArchiveError, match="without sky noise"):
        write_part(tmp_path, 1, [(thing, rows)])


@pytest.mark.parametrize("victim", ["card.json", "objects.parquet"])
def test_incomplete_archive_is_refused(tmp_path: Path, victim: str) -> None:
    (write(tmp_path / "a") / victim).unlink()
    with pytest.raises(ArchiveError, match="not a complete archive"):
        Archive(tmp_path / "a")


def test_missing_archive_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="skyheed archive simulate"):
        Archive(tmp_path / "nothing")


def test_future_format_is_refused(tmp_path: Path) -> None:
    card = write(tmp_path / "a") / "card.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "format": 99}))
    with pytest.raises(ArchiveError, match="format 99"):
        Archive(tmp_path / "a")


def test_card_counts_what_is_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a", 50, made="## How\n\nBy hand.")
    card = Archive(path).card
    assert (card["objects"], card["stamps"], card["seed"]) == (50, 300, 1)
    assert sum(row["objects"] for row in card["counts"]) == 50
    text = (path / "README.md").read_text()
    assert "By hand." in text
    assert "50 objects, 300 stamps" in text


def test_split_depends_on_the_name_alone_and_has_the_right_shares() -> None:
    names = [split_of(f"o{i}") for i in range(20_000)]
    for split, share in SPLITS.items():
        assert names.count(split) / 200 == pytest.approx(share, abs=1)
    assert split_of("o17") == names[17]


def test_sound_archive_has_no_problems(tmp_path: Path) -> None:
    assert validate(write(tmp_path / "a", 40)) == []


def damage_stamps(path: Path) -> None:
    file = path / "stamps" / "part-00000.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0x10  # one bit
    file.write_bytes(bytes(data))


def lose_a_part(path: Path) -> None:
    (path / "stamps" / "part-00000.parquet").unlink()


def forget_an_object(path: Path) -> None:
    table = pq.read_table(path / "objects.parquet")
    pq.write_table(table.slice(1), path / "objects.parquet")


@pytest.mark.parametrize("harm", [damage_stamps, lose_a_part, forget_an_object])
def test_damage_is_found(tmp_path: Path, harm: Any) -> None:
    path = write(tmp_path / "a")
    harm(path)
    assert validate(path)


def test_wrong_contents_are_found(tmp_path: Path) -> None:
    thing, rows = make(0)
    rows["band"][1] = "q"
    rows["flux_error"][2] = -1
    rows["source_id"][3] = rows["source_id"][4]
    rows["stamp"][5] = np.nan
    rows["alert"][4] = False
    with ArchiveWriter(tmp_path / "a", {}) as writer:
        writer.add(thing, rows)
    problems = "\n".join(validate(tmp_path / "a"))
    for word in ("band", "flux_error", "twice", "no finite pixel", "not marked as an alert"):
        assert word in problems


def test_command_line_info_and_validate(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    runner = CliRunner()
    assert "3 objects" in runner.invoke(archive_cli.archive, ["info", str(path)]).output
    card = runner.invoke(archive_cli.archive, ["info", "--json", str(path)]).output
    assert json.loads(card)["objects"] == 3
    assert runner.invoke(archive_cli.archive, ["validate", str(path)]).exit_code == 0
    lose_a_part(path)
    result = runner.invoke(archive_cli.archive, ["validate", str(path)])
    assert result.exit_code == 1
    assert "part-00000" in result.output


# --- other forms ------------------------------------------------------------------------------------------------------


def test_part_of_an_archive_is_an_archive(tmp_path: Path) -> None:
    source = write(tmp_path / "a", 12, pixel=0.396)
    test = [name for name in Archive(source).object_ids if split_of(name) == "test"]
    assert convert(source, tmp_path / "b", "archive", split="test", alerts_only=True, progress=False) == len(test)
    assert validate(tmp_path / "b") == []
    part = Archive(tmp_path / "b")
    assert part.card["command"] == "test | skyheed archive convert --to archive --split test --alerts-only"
    assert part.object_ids == test
    np.testing.assert_array_equal(
        part.stamps(test[0])["stamp"], Archive(source).stamps(test[0], alerts_only=True)["stamp"]
    )


def test_fits_files_know_where_the_source_is(tmp_path: Path) -> None:
    source = write(tmp_path / "a", 2, pixel=0.396)
    convert(source, tmp_path / "b", "fits", objects=("obj1",), progress=False)
    with fits.open(tmp_path / "b" / "obj1.fits") as parts:
        assert len(parts) == 7
        x, y = WCS(parts[1].header).all_world2pix(11.0, 0.5 + 4 * 0.396 / 3600, 0)
        assert (x, y) == (pytest.approx(32, abs=0.01), pytest.approx(36, abs=0.01))
        np.testing.assert_array_equal(parts[1].data, Archive(source).stamps("obj1")["stamp"][0])


def test_numpy_files_hold_every_column(tmp_path: Path) -> None:
    source = write(tmp_path / "a", 2, pixel=0.396)
    convert(source, tmp_path / "b", "npz", progress=False)
    with np.load(tmp_path / "b" / "obj0.npz") as found:
        assert set(STAMP_COLUMNS) | {"stamp", "label", "ra", "dec"} == set(found)
        assert str(found["label"]) == "SNIa"


def test_nothing_chosen_and_names_taken_are_said(tmp_path: Path) -> None:
    source = write(tmp_path / "a", 2, pixel=0.396)
    with pytest.raises(ArchiveError, match="class and split"):
        convert(source, tmp_path / "b", "npz", labels=("AGN",), progress=False)
    with pytest.raises(ArchiveError, match="has no object 'x'"):
        convert(source, tmp_path / "b", "npz", objects=("x",), progress=False)
    with pytest.raises(ArchiveError, match="exists"):
        convert(source, source, "npz", progress=False)


def test_command_line_converts(tmp_path: Path) -> None:
    source, out = str(write(tmp_path / "a", 3, pixel=0.396)), str(tmp_path / "b")
    result = CliRunner().invoke(archive_cli.archive, ["convert", source, "--to", "npz", "--class", "SNIa", "-o", out])
    assert result.exit_code == 0, result.output
    assert "3 objects" in result.output
