"""The numbers that describe stamps: right for stamps whose noise and width are known."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from skyheed.classifier import input_statistics
from skyheed.classifier.history import History
from skyheed.classifier.models import checkpoint


def stamps(count: int, sigma: float, noise: float, peak: float = 500.0) -> np.ndarray:
    """Round sources in the middle of noise."""
    y, x = np.mgrid[:32, :32] - 16
    source = peak * np.exp(-(x**2 + y**2) / (2 * sigma**2))
    return (source + np.random.default_rng(3).normal(0, noise, (count, 32, 32))).astype(np.float16)


def history(sigma: float = 2.0, noise: float = 5.0) -> History:
    n = 60
    return History(
        60000 + np.arange(n) / 20, np.arange(n, dtype=np.uint8) % 2, {"science": stamps(n, sigma, noise)},
        flux=np.full(n, 1e4, np.float32),
    )  # fmt: skip


def test_noise_width_and_flux_are_those_of_the_stamps() -> None:
    found = input_statistics.summary(input_statistics.gather([history()]))
    assert list(found) == ["u", "g"]
    for numbers in found.values():
        assert numbers["n"] == 30
        assert numbers["background"]["p50"] == pytest.approx(5.0, rel=0.05)
        assert numbers["width"] == pytest.approx(2 * 2.0 * np.sqrt(2 * np.log(2)), rel=0.1)
        assert numbers["flux"] == {"p16": 1e4, "p50": 1e4, "p84": 1e4}


def test_padding_is_no_quiet_sky() -> None:
    padded = stamps(20, 2.0, 5.0).astype(np.float32)
    for edge in (np.s_[:, :2], np.s_[:, -2:], np.s_[:, :, :2], np.s_[:, :, -2:]):
        padded[edge] = 0
    assert np.median(input_statistics.noise(padded)) == pytest.approx(5.0, rel=0.05)


def test_only_the_night_that_is_asked_for() -> None:
    found = input_statistics.gather([history()], 60001)
    assert sum(map(len, found.values())) == 20
    assert input_statistics.summary(input_statistics.gather([history()], 1)) == {}
    assert input_statistics.gather([History(np.arange(3.0), np.zeros(3, np.uint8))]) == {}, "a history without images"


def test_a_card_learns_of_its_training_data_and_keeps_its_weights(tmp_path: Path) -> None:
    shutil.copytree(checkpoint.resolve("sdss/vector"), tmp_path / "model")
    before = checkpoint.read_info(tmp_path / "model")
    after = checkpoint.describe_training(tmp_path / "model", inputs={"bands": {}})
    assert after.training == {**before.training, "inputs": {"bands": {}}}
    assert (after.digest, after.metrics) == (before.digest, before.metrics)


@pytest.mark.parametrize("survey", ["sdss", "ztf", "lsst"])
def test_the_default_models_say_what_they_were_trained_on(survey: str) -> None:
    info = checkpoint.read_info(survey)
    said = info.training["inputs"]
    assert set(said["bands"]) == set(info.bands)
    for numbers in said["bands"].values():
        assert numbers["width"] > 1
        for name in ("flux", "background"):
            assert numbers[name]["p16"] < numbers[name]["p50"] < numbers[name]["p84"]
        assert numbers["background"]["p16"] > 0
