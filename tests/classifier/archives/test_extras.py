"""Photometry, context and further images in archives: what goes in comes back, as the history of any epoch."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyheed.classifier.archives.check import validate
from skyheed.classifier.archives.convert import convert
from skyheed.classifier.archives.extras import Extras, joined, no_points
from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import UNLABELLED, Archive, ArchiveObject, ArchiveWriter, stamp_rows
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.history import DETECTION, UPPER_LIMIT, Photometry
from skyheed.classifier.stamp import normalise
from skyheed.classifier.training import dataset, input_sample

TIMES = np.array([59_000.0, 59_003.0, 59_007.0, 59_040.0])


def points(*times: float, kind: int = DETECTION) -> Photometry:
    n = len(times)
    return Photometry(
        np.array(times), np.full(n, 1, np.uint8), np.full(n, 900, np.float32), np.full(n, 90, np.float32),
        np.full(n, kind, np.uint8),
    )  # fmt: skip


def images(seed: int, n: int = 4, size: int = 63) -> np.ndarray:
    image = np.random.default_rng(seed).normal(200, 50, (n, size, size)).astype(np.float32)
    image[:, size // 2, size // 2] += 4000
    return image


def sent(label: str = "AGN", name: str = "a", backwards: bool = False) -> tuple[ArchiveObject, np.ndarray, Extras]:
    """Four epochs, of which the third is no alert; the second has no template."""
    template = images(2)
    template[1] = np.nan
    order = np.arange(4)[::-1] if backwards else np.arange(4)
    columns = {
        "source_id": order + 1, "mjd": TIMES[order], "band": np.array(list("grgr"))[order],
        "detected": np.array([1, 1, 0, 1], bool)[order], "alert": np.array([1, 1, 0, 1], bool)[order],
        "flux": np.array([900.0, 950, 10, 800])[order], "flux_error": np.full(4, 90.0), "sky_noise": np.full(4, 50.0),
        "psf_fwhm": np.full(4, 2.0), "zero_point": np.full(4, 26.0),
    }  # fmt: skip
    pixels = {"stamp": images(1), "template": template, "difference": images(3) - 200}
    rows = stamp_rows({kind: image[order] for kind, image in pixels.items()}, columns)
    photometry = [points(58_990.0, 59_000.0), points(59_003.0), points(59_007.0), points(59_039.0, 59_040.0)]
    context = [{"detections": 1.0}, {"detections": 2.0, "catalogue_1_star": 0.25}, {"detections": 3.0}, {}]
    thing = ArchiveObject(name, label, "x", True, np.nan, 10, 20, 59_000, "simulated", "ztf")
    return thing, rows, Extras([photometry[i] for i in order], [context[i] for i in order])


def write(path: Path, *things: tuple[ArchiveObject, np.ndarray, Extras | None]) -> Archive:
    with ArchiveWriter(path, {"command": "test", "pixel": 1.01}) as writer:
        for thing in things:
            writer.add(*thing)
    return Archive(path)


@pytest.mark.parametrize("backwards", [False, True])
def test_extras_come_back_with_their_epochs(tmp_path: Path, backwards: bool) -> None:
    archive = write(tmp_path / "a", sent(backwards=backwards))
    found = archive.extras("a")
    assert found is not None
    assert [p.mjd.tolist() for p in found.photometry] == [[58_990, 59_000], [59_003], [59_007], [59_039, 59_040]]
    assert found.context == [{"detections": 1}, {"detections": 2, "catalogue_1_star": 0.25}, {"detections": 3}, {}]
    assert found.photometry[0].flux.dtype == np.float32
    assert validate(archive.path) == []


def test_points_of_what_is_no_alert_come_with_the_next_one(tmp_path: Path) -> None:
    found = write(tmp_path / "a", sent()).extras("a", alerts_only=True)
    assert found is not None
    assert [p.mjd.tolist() for p in found.photometry] == [[58_990, 59_000], [59_003], [59_007, 59_039, 59_040]]
    assert found.context[-1] == {}
    assert len(found.take(np.zeros(3, bool))) == 0
    assert found.take(np.array([2, 0])).context == [{}, {"detections": 1}]


@pytest.mark.parametrize(("epochs", "detections", "known"), [(1, 1, 2), (2, 2, 3), (None, None, 6)])
def test_history_is_what_was_known_then(tmp_path: Path, epochs: int | None, detections: int | None, known: int) -> None:
    history = history_of(write(tmp_path / "a", sent()), "a", epochs=epochs)
    history.check(99)
    assert history.context.get("detections") == detections
    assert history.photometry is not None
    assert len(history.photometry) == known
    assert history.mjd.tolist() == TIMES[[0, 1, 3]][:epochs].tolist()
    assert set(history.images) == {"science", "difference", "template"}
    again = normalise(images(1)[0], 1.0)[0].astype(float)
    assert np.abs(history.images["science"][0].astype(float) - again).max() < 0.15  # an eighth of the noise, 50 nJy


def test_missing_image_of_an_epoch_is_zero(tmp_path: Path) -> None:
    history = history_of(write(tmp_path / "a", sent()), "a")
    assert not history.images["template"][1].any()
    assert history.images["template"][[0, 2]].any(axis=(1, 2)).all()


def test_model_ready_stamps_are_left_as_they_are(tmp_path: Path) -> None:
    """Their borders are the middle of a larger image, and have no background to take off."""
    thing, rows, extras = sent()
    small = stamp_rows(
        {"stamp": np.linspace(0, 5000, 4 * 32 * 32, dtype=np.float32).reshape(4, 32, 32)},
        {name: rows[name] for name in rows.dtype.names if name not in ("stamp", "template", "difference")},
    )
    with ArchiveWriter(tmp_path / "n", {"command": "test"}, normalised=True) as writer:
        writer.add(thing, small, extras)
    archive = Archive(tmp_path / "n")
    assert archive.normalised
    shown = history_of(archive, "a", alerts_only=False).images["science"]
    assert np.abs(shown.astype(float) * 100 - small["stamp"]).max() < 20
    assert np.abs(dataset.load(archive.path, cache=tmp_path / "c").stamps[0].astype(float) - shown[0]).max() == 0
    convert(archive.path, tmp_path / "part", "archive", progress=False)
    assert Archive(tmp_path / "part").normalised


def test_parts_and_numpy_files_keep_the_extras(tmp_path: Path) -> None:
    archive = write(tmp_path / "a", sent())
    convert(archive.path, tmp_path / "part", "archive", alerts_only=True, progress=False)
    part, whole = (Archive(p).extras("a", alerts_only=True) for p in (tmp_path / "part", archive.path))
    assert part is not None
    assert whole is not None
    assert part.context == whole.context
    assert joined(part.photometry).mjd.tolist() == joined(whole.photometry).mjd.tolist()
    convert(archive.path, tmp_path / "npz", "npz", progress=False)
    with np.load(tmp_path / "npz" / "a.npz") as arrays:
        assert arrays["photometry_epoch"].tolist() == [0, 0, 1, 2, 3, 3]
        assert arrays["context_detections"][:3].tolist() == [1, 2, 3]
        assert np.isnan(arrays["context_detections"][3])


def test_archives_without_extras_are_read_as_before(tmp_path: Path) -> None:
    thing, rows, _ = sent()
    archive = write(tmp_path / "a", (thing, rows, None))
    assert archive.extras("a") is None
    history = history_of(archive, "a")
    assert history.photometry is None
    assert history.context == {}
    assert not archive.normalised


def test_all_objects_have_extras_or_none(tmp_path: Path) -> None:
    thing, rows, _ = sent(name="b")
    with pytest.raises(ArchiveError, match="different columns"):
        write(tmp_path / "a", sent(), (thing, rows, None))


def test_what_no_context_can_be_is_refused(tmp_path: Path) -> None:
    thing, rows, extras = sent()
    for wrong in ({"right_ascension": 3.0}, {"detections": -999.0}):
        with pytest.raises(ArchiveError, match="context"):
            write(tmp_path / "a", (thing, rows, Extras(extras.photometry, [wrong] * 4)))


def test_unlabelled_objects_are_sound_and_other_classes_are_not(tmp_path: Path) -> None:
    assert validate(write(tmp_path / "a", sent(UNLABELLED)).path) == []
    assert "class 'Star'" in validate(write(tmp_path / "b", sent("Star")).path)[0]


def test_photometry_from_the_future_is_found(tmp_path: Path) -> None:
    thing, rows, extras = sent()
    late = [points(60_000.0, kind=UPPER_LIMIT), *(no_points() for _ in range(3))]
    assert (
        "later than the packet" in validate(write(tmp_path / "a", (thing, rows, Extras(late, extras.context))).path)[0]
    )


def damage(path: Path, column: str, values: pa.Array) -> None:
    part = next((path / "stamps").glob("*.parquet"))
    table = pq.read_table(part)
    pq.write_table(table.set_column(table.column_names.index(column), column, values), part)


def test_damaged_photometry_is_said_in_one_sentence(tmp_path: Path) -> None:
    archive = write(tmp_path / "a", sent())
    good = {"mjd": 59_000.0, "band": 1, "flux": 1.0, "flux_error": 1.0, "kind": 0}
    for wrong in ([None] * 4, [[good | {"band": 9}]] * 4, [[good | {"kind": 7}]] * 4, [[None]] * 4, ["text"] * 4):
        damage(archive.path, "photometry", pa.array(wrong))
        with pytest.raises(ArchiveError, match="damaged"):
            Archive(archive.path).extras("a")


def test_what_training_saw_is_said_of_its_split_alone(tmp_path: Path) -> None:
    archive = write(tmp_path / "a", *(sent(name=f"o{n}") for n in range(12)))
    train = [name for name in archive.object_ids if archive.object(name)["split"] == "train"]
    found = input_sample.of_archive(archive.path)
    assert found["objects"] == len(train) < 12
    assert {band: numbers["n"] for band, numbers in found["bands"].items()} == {"g": len(train), "r": 2 * len(train)}
    assert found["of"] == f"{3 * len(train)} stamps of {len(train)} objects from: test"
    assert input_sample.of_archive(archive.path, most=2)["objects"] == 2
    assert input_sample.of_archive(tmp_path / "none") == {}
