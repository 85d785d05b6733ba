"""What is learnt of an archive before training: the noise that pixels are divided by."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_tools import made

from skyheed.classifier.archives.reader import Archive, ArchiveObject, ArchiveWriter, stamp_rows
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.history import BANDS
from skyheed.classifier.models import light_curves
from skyheed.classifier.stamp import normalise, turned
from skyheed.classifier.training import dataset


def noisy(side: int, turn: float, noise: float, count: int = 40) -> np.ndarray:
    """Normalised stamps [count, 32, 32] of noise alone (in 100 nJy), from images of that side and orientation."""
    rng = np.random.default_rng(4)
    to_sky = turned(turn)
    return np.stack(
        [
            normalise(rng.normal(0, 100 * noise, (side, side)).astype(np.float32), 1.0, to_sky=to_sky)[0]
            for _ in range(count)
        ]
    ).astype(np.float32)


@pytest.mark.parametrize(("side", "turn"), [(64, 0), (63, 0), (30, 0)])
def test_sky_noise_of_every_survey(side: int, turn: float) -> None:
    assert dataset.sky_noise(noisy(side, turn, 2.5)) == pytest.approx(2.5, rel=0.05)


@pytest.mark.parametrize("turn", [10, 45, 200])
def test_sky_noise_of_turned_stamps_is_not_that_of_their_empty_corners(turn: float) -> None:
    found = dataset.sky_noise(noisy(30, turn, 2.5))
    assert 1.2 < found < 2.6  # interpolation smooths it


def test_a_neighbour_does_not_count() -> None:
    stamps = noisy(64, 0, 1.0)
    stamps[:15, 3:8, 14:20] += 500
    assert dataset.sky_noise(stamps) == pytest.approx(1.0, rel=0.1)


def test_every_band_has_its_own_noise() -> None:
    data = made([8] * 20)
    data = replace(data, stamps=np.where((data.band == 2)[:, None, None], 3 * data.stamps, data.stamps))
    scaling = dataset.fit_scaling(data, range(20))
    assert scaling.softening[2] / scaling.softening[1] == pytest.approx(3, rel=0.1)
    assert scaling.softening[5] == 1.0


def test_stamps_without_noise_are_refused() -> None:
    data = made([8] * 4)
    empty = replace(data, stamps=np.zeros_like(data.stamps))
    with pytest.raises(ArchiveError, match=f"stamps in {BANDS[data.band.min()]} have no sky noise"):
        dataset.fit_scaling(empty, range(4))
    with pytest.raises(ArchiveError, match="no objects"):
        dataset.fit_scaling(data, [])


def test_all_bands_cost_no_copy() -> None:
    data = made([4] * 3)
    assert dataset.only(data, BANDS).stamps is data.stamps
    assert set(dataset.only(data, "gr").band) <= {1, 2}


def visited(visits: int, alerts: Sequence[int]) -> np.ndarray:
    """Rows of one object of an archive: a visit a day, of which these are alerts."""
    days = np.arange(visits)
    return stamp_rows(
        {"stamp": np.random.default_rng(visits).normal(0, 100, (visits, 40, 40)).astype(np.float32)},
        {
            "source_id": days + 1, "mjd": 59_000.0 + days, "band": np.resize(["g", "r"], visits),
            "detected": np.isin(days, alerts), "alert": np.isin(days, alerts),
            "flux": np.where(days == 3, np.nan, 100.0 * days), "flux_error": np.full(visits, 10.0),
            "source_flux": np.full(visits, np.nan), "psf_fwhm": np.full(visits, 1.0),
            "sky_noise": np.full(visits, 100.0), "zero_point": np.full(visits, 22.5), "rotation": np.zeros(visits),
        },
    )  # fmt: skip


def test_all_epochs_are_every_visit_up_to_the_last_alert_shown(tmp_path: Path) -> None:
    made_from = {"a": visited(9, [4, 6, 7]), "b": visited(6, [1, 2])}
    place = {"ra": 1.0, "dec": 1.0, "redshift": np.nan, "peak_mjd": np.nan}
    with ArchiveWriter(tmp_path / "sky", {"command": "test"}) as writer:
        for name, rows in made_from.items():
            writer.add(ArchiveObject(name, "AGN", "AGN", True, origin="simulated", survey="sdss", **place), rows)
    plain, data = (dataset.load(tmp_path / "sky", visits=visits) for visits in (False, True))
    assert plain.history(0).photometry is None
    np.testing.assert_array_equal(plain.stamps, data.stamps)
    for history, seen in ((data.history(0, 0, 2), [0, 1, 2, 4, 5, 6]), (data.history(0, 1, 3), [0, 1, 2, 4, 5, 6, 7])):
        assert history.photometry is not None
        np.testing.assert_allclose(history.photometry.mjd, 59_000 + np.array(seen))  # that of day 3 has no flux
        np.testing.assert_allclose(history.photometry.flux, 100 * np.array(seen))
    curve = light_curves.rows(data.history(0, 0, 1), light_curves.Config(bands="gr", photometry=True))
    assert curve.days.tolist() == [0, 1, 2, 4]
    first = data.history(1).photometry
    assert first is not None
    assert first.mjd.tolist() == [59_000, 59_001, 59_002]
    with pytest.raises(ArchiveError, match="have photometry: leave epochs out"):
        dataset._with_visits(data, Archive(tmp_path / "sky"))
