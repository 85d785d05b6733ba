"""Checkpoints: what is written is read, and what is damaged stops with one clear sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from model_tools import info, lively, write

from classifier import checkpoint
from classifier.checkpoint import MODEL, SHIPPED, WEIGHTS, Calibration
from classifier.convention import Config
from classifier.errors import ModelError


def one_sentence(error: pytest.ExceptionInfo[ModelError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def test_what_is_written_is_read(tmp_path: Path) -> None:
    model = lively(Config())
    saved = checkpoint.save(tmp_path / "a", model.state_dict(), info(Config(), training={"command": "x"}))
    found = checkpoint.read_info(tmp_path / "a")
    assert found == saved
    assert found.training == {"command": "x"}
    assert found.scaling.softening == info(Config()).scaling.softening
    assert len(found.digest) == 64
    for name, tensor in checkpoint.load_state(tmp_path / "a").items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    assert sorted(p.name for p in write(tmp_path).iterdir()) == [MODEL, WEIGHTS]
    json.loads((tmp_path / MODEL).read_text())


@pytest.mark.parametrize("at", [8, 5000, -1])
def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path, at: int) -> None:
    weights = write(tmp_path) / WEIGHTS
    raw = bytearray(weights.read_bytes())
    raw[at] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(ModelError) as error:
        checkpoint.read_info(tmp_path)
    assert "get the checkpoint again" in one_sentence(error)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"name": "x"}', '{"format": 99}', "\x00\xff"],
)  # fmt: skip
def test_a_damaged_description_is_noticed(tmp_path: Path, text: str) -> None:
    write(tmp_path)
    (tmp_path / MODEL).write_text(text)
    with pytest.raises(ModelError) as error:
        checkpoint.read_info(tmp_path)
    assert str(tmp_path) in one_sentence(error)


def test_missing_weights_are_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelError) as error:
        checkpoint.read_info(tmp_path)
    one_sentence(error)


def test_weights_of_another_model_are_noticed(tmp_path: Path) -> None:
    write(tmp_path / "a")
    checkpoint.save(tmp_path / "b", lively(Config(), seed=2).state_dict(), info(Config()))
    (tmp_path / "a" / WEIGHTS).write_bytes((tmp_path / "b" / WEIGHTS).read_bytes())
    with pytest.raises(ModelError) as error:
        checkpoint.read_info(tmp_path / "a")
    one_sentence(error)


def test_an_unknown_name_lists_the_shipped_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model nowhere") as error:
        checkpoint.read_info("nowhere")
    for path in SHIPPED.glob(f"*/{MODEL}"):
        assert path.parent.name in str(error.value)


def test_describe_refuses_another_survey(tmp_path: Path) -> None:
    write(tmp_path)
    assert "bands ugriz" in checkpoint.describe(tmp_path, "sdss")
    with pytest.raises(ModelError, match="not for lsst"):
        checkpoint.describe(tmp_path, "lsst")


def test_calibration_is_temperature_by_stamps_then_prior() -> None:
    calibration = Calibration((1.0, 100.0), (2.0, 1.0), (3.0, 1.0))
    logits = np.log([[0.8, 0.2]] * 3)
    p = calibration(logits, np.array([1, 10, 500]))
    for row, t in enumerate((2.0, 1.5, 1.0)):
        odds = 4 ** (1 / t) * 3
        assert p[row, 0] == pytest.approx(odds / (1 + odds), rel=1e-5)
    assert p.sum(1) == pytest.approx(1)


def test_calibration_of_extreme_logits_is_finite() -> None:
    p = Calibration()(np.array([[1e4, -1e4, 0.0]]), np.array([3]))
    assert p.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("path", sorted(SHIPPED.glob(f"*/{MODEL}")), ids=lambda p: p.parent.name)
def test_shipped_weights_are_sound_small_and_say_how_they_were_made(path: Path) -> None:
    found = checkpoint.read_info(path.parent.name)
    checkpoint.check_survey(found, path.parent.name)
    assert path.with_name(WEIGHTS).stat().st_size < 8e6
    assert found.training["command"].startswith("skyheed ")
    assert f"skyheed archive simulate --survey {path.parent.name} " in found.training["archive"]["command"]
    assert found.metrics["at_the_end"]["objects"] > 50
    assert "/work" not in path.read_text()
