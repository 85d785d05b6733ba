"""The report on real and simulated ZTF packets: its measurements on images of known width, place and noise."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from real_data import real_data
from test_surveys import ztf_packet

from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.sky import simulate

SOURCE = Path(__file__).resolve().parents[3] / "benchmarks" / "sky_gap.py"


@pytest.fixture(scope="module")
def gap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sky_gap", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sky_gap"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def star(x: float, y: float, fwhm: float, height: float, noise: float = 10.0, seed: int = 0) -> np.ndarray:
    """[63, 63]: a round Gaussian so far from the middle pixel, on a level, in noise."""
    v, u = np.indices((63, 63)) - 31.0
    image = 150 + np.random.default_rng(seed).normal(0, noise, (63, 63))
    return (image + height * np.exp(-0.5 * ((u - x) ** 2 + (v - y) ** 2) / (fwhm / 2.3548) ** 2)).astype(np.float32)


@pytest.mark.parametrize("noise", [3.0, 30.0])
def test_sky_noise_is_that_of_the_sky(gap: ModuleType, noise: float) -> None:
    slope = np.linspace(0, 5 * noise, 63)[None, :]
    image = (star(0, 0, 2.5, 5000.0, noise) + slope).astype(np.float32)
    image[:3] = np.nan
    assert gap.sky_noise(image) == pytest.approx(noise, rel=0.08)
    assert math.isnan(gap.sky_noise(np.full((63, 63), np.nan, np.float32)))


@pytest.mark.parametrize("fwhm", [2.0, 2.7, 4.0])
def test_width_is_that_of_the_sharpest_star(gap: ModuleType, fwhm: float) -> None:
    image = star(0, 0, 1.5 * fwhm, 3000.0) + star(15.3, -12.4, fwhm, 2000.0, seed=1)
    assert gap.star_width(image, gap.sky_noise(image)) == pytest.approx(fwhm, rel=0.05)
    assert math.isnan(gap.star_width(star(0, 0, fwhm, 20.0), 10.0))


@pytest.mark.parametrize("place", [(0.0, 0.0), (0.4, -0.3), (-0.5, 0.45)])
def test_place_in_the_pixel(gap: ModuleType, place: tuple[float, float]) -> None:
    assert gap.place_in_pixel(star(*place, 2.4, 1000.0)) == pytest.approx(place, abs=0.05)
    assert np.isnan(gap.place_in_pixel(star(*place, 2.4, 50.0))).all()


def test_packets_are_read_once_and_labelled_by_object(gap: ModuleType, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.avro").write_bytes(ztf_packet(candid=7 + number // 2))
    (tmp_path / "index.csv").write_text("objectId,coarse\nZTF20abfcszi,\nZTF20abfcszi,SNother\n")
    alerts = list(gap.real_alerts([tmp_path], 6))
    assert [(a.object_id, a.label, a.band, a.magnitude) for a in alerts] == [("ZTF20abfcszi", "SN", "r", 20.0)] * 2
    assert alerts[0].njy == pytest.approx(114.82, rel=1e-3)
    assert math.isnan(alerts[0].limit)
    assert len(list(gap.real_alerts([tmp_path], 1))) == 1


def test_report_without_real_packets(
    gap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = simulate("ztf", 4, 3, tmp_path / "a", seasons=1, balanced=True, processes=1, progress=False)
    sent = {source for _, rows in Archive(path).each(kinds=(), alerts_only=True) for source in rows["source_id"]}
    assert 0 < len(list(gap.simulated_alerts(Archive(path), 3))) <= min(12, len(sent))
    arguments = ["sky_gap.py", str(path), "--each", "3", "--real", str(tmp_path / "none"), "--plot", "gap.png"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.chdir(tmp_path)
    gap.main()
    said = capsys.readouterr().out
    assert "no real packets" in said
    assert "| limiting magnitude, 5 sigma | r | all | none |" in said
    assert "| detections in 30 days | AGN | none |" in said
    assert "| noise of the template over that of the science stamp | Variable | none | 0." in said
    assert (tmp_path / "gap.png").stat().st_size > 10_000


def test_real_packets_are_measured(gap: ModuleType, tmp_path: Path) -> None:
    """The published median seeing of ZTF is 2 arcsec of 1.01 arcsec a pixel; sources lie anywhere in their pixel."""
    real = gap.measure(gap.real_alerts([real_data("ztf")], 3))
    assert len(real.band) > 150
    said = gap.said(gap.packets_archive([real_data("ztf")], tmp_path / "real"))
    assert {label: len(said["galactic_latitude"][label]) for label in ("AGN", "SN", "Variable")} == {
        "AGN": 13, "SN": 14, "Variable": 33,
    }  # fmt: skip
    assert np.median(said["catalogue_1_star"]["Variable"]) > 0.9 > np.median(said["catalogue_1_star"]["SN"])
    assert set(real.label) == {"", "AGN", "SN", "Variable"}
    assert 1.8 < np.median(np.concatenate([real.of("fwhm", band, "all") for band in "gr"])) < 3.5
    places = np.concatenate([real.of("phase", band, "all") for band in "gr"])
    assert np.sqrt(np.mean(places**2)) == pytest.approx(0.29, abs=0.04)
    assert 19 < np.median(np.concatenate([real.of("limit", band, "all") for band in "gr"])) < 21.5
