"""Checkpoints: what is written is read, and what is damaged stops with one clear sentence."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_tools import info, lively, write

from skyheed.classifier.errors import ModelError
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.models import checkpoint, priors
from skyheed.classifier.models.checkpoint import CARD_DIGEST, MODEL, SHIPPED, WEIGHTS, Calibration
from skyheed.classifier.models.convention.network import Config


def edited(directory: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The checkpoint with its JSON changed, and the digest of the JSON left out as in checkpoints of before."""
    given = json.loads((directory / MODEL).read_text())
    del given[CARD_DIGEST]
    change(given)
    (directory / MODEL).write_text(json.dumps(given))
    return directory


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


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("classes", ["AGN", "SNIa", "Variable"], "4 values for 3 classes"),
        ("classes", ["AGN", "SNIa", "Variable", "Kilonova"], "classes has 'Kilonova': known are"),
        ("classes", ["AGN", "AGN", "Variable", "SNIa"], "each once"), ("classes", "AGN", "classes is not a list"),
        ("classes", [["AGN"], "SNIa", "Variable", "SN"], "classes has"), ("classes", [], "give two or more"),
        ("surveys", "sdss", "surveys is not a list"), ("surveys", [3], "surveys is 3"),
        ("bands", "gx", "bands is 'gx'"), ("bands", ["g"], "bands is"), ("bands", "", "bands is ''"),
        ("bands", "gg", "each once"), ("name", 3, "name is 3"), ("version", None, "version is None"),
        ("taxonomy", 4, "taxonomy is 4"), ("preprocessing", None, "preprocessing is None"),
        ("training", [], "training is"), ("metrics", "good", "metrics is"), ("config", [], "config is"),
        ("config.classes", 3, "config has 3 classes"), ("config.variant", "fast", "variant is 'fast'"),
        ("config.channels", 9, "channels is 9"), ("config.colour", 1, "colour"), ("config.stamps", 50, "99, but"),
        ("max_stamps", 100, "max_stamps is 100, but config takes 99"), ("max_stamps", 0, "max_stamps is 0"),
        ("max_stamps", 9.5, "max_stamps is 9.5"), ("max_stamps", "99", "max_stamps is '99'"),
        ("scaling", [1, 2], "cannot be read"), ("scaling.softening", [1.0] * 5, "softening has 5 values"),
        ("scaling.softening", [1.0] * 5 + [0], "softening has 0"), ("scaling.softening", 3, "softening is not a list"),
        ("scaling.softening", [float("nan")] * 6, "softening has nan"), ("scaling.softening", ["1"] * 6, "has '1'"),
        ("scaling.gain", -1, "gain has -1"), ("scaling.gain", float("inf"), "gain has inf"),
        ("scaling.gain", None, "gain has None"), ("calibration", [], "cannot be read"),
        ("calibration.stamps", [1.0], "2 temperatures for 1 stamps"), ("calibration.stamps", [10, 1], "rising order"),
        ("calibration.stamps", [1.0, 1.0], "rising order"), ("calibration.stamps", [0, 1], "calibration.stamps has 0"),
        ("calibration.stamps", [], "for 0 stamps"), ("calibration.temperatures", [], "has 0 temperatures"),
        ("calibration.temperatures", [1.0, -1.0], "temperatures has -1.0"),
        ("calibration.temperatures", [1.0, float("nan")], "temperatures has nan"),
        ("calibration.temperatures", "12", "temperatures is not a list"),
        ("calibration.prior", [1.0] * 3, "prior has 3 values for 4 classes"),
        ("calibration.prior", [1, 1, 1, 0], "prior has 0"), ("calibration.prior", [1, 1, 1, 10**400], "prior has 1000"),
        ("calibration.colour", [1], "colour"), ("digest", 3, "does not match"),
    ],
)  # fmt: skip
def test_a_description_whose_parts_do_not_fit_is_refused(tmp_path: Path, path: str, value: Any, message: str) -> None:
    def change(given: dict[str, Any]) -> None:
        *inside, key = path.split(".")
        for part in inside:
            given = given[part]
        given[key] = value

    with pytest.raises(ModelError, match=message) as error:
        checkpoint.read_info(edited(write(tmp_path), change))
    assert str(tmp_path) in str(error.value)
    one_sentence(error)


@pytest.mark.parametrize(
    "change",
    [
        lambda given: given["calibration"]["temperatures"].__setitem__(0, 1.3),
        lambda given: given["metrics"].update(accuracy=0.99),
        lambda given: given.update(version="2"),
        lambda given: given.update(classes=given["classes"][::-1]),
        lambda given: given.update(note="looks better now"),
        lambda given: given.update({CARD_DIGEST: None}),
    ],
)
def test_a_description_that_was_changed_by_hand_is_noticed(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    given = json.loads((write(tmp_path) / MODEL).read_text())
    change(given)
    (tmp_path / MODEL).write_text(json.dumps(given, indent=1))
    with pytest.raises(ModelError, match="was changed after it was written: get the checkpoint again") as error:
        checkpoint.read_info(tmp_path)
    one_sentence(error)


def test_the_layout_of_the_description_does_not_matter(tmp_path: Path) -> None:
    numbers = {"small": 1e-300, "third": 1 / 3, "unknown": float("nan"), "text": "3 µJy", "by_stamps": {5: 1}}
    found = checkpoint.read_info(write(tmp_path, metrics=numbers))
    given = json.loads((tmp_path / MODEL).read_text())
    (tmp_path / MODEL).write_text(json.dumps(dict(reversed(given.items()))))
    assert checkpoint.read_info(tmp_path).calibration == found.calibration


def test_descriptions_from_before_the_second_digest_are_read(tmp_path: Path) -> None:
    found = checkpoint.read_info(write(tmp_path))
    assert checkpoint.read_info(edited(tmp_path, lambda given: None)) == found


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ModelError, match="softening has 1 values"):
        write(tmp_path, scaling=Scaling((1.0,), 1.0))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["sdss", "ztf", "lsst", "sdss/convention"])
def test_a_checkpoint_is_described_without_torch(name: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from skyheed.classifier.models import checkpoint; checkpoint.describe('{name}', '{name[:4].rstrip('/')}')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


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
    for path in SHIPPED.glob(f"*/*/{MODEL}"):
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


@pytest.mark.parametrize("path", sorted(SHIPPED.glob(f"*/*/{MODEL}")), ids=lambda p: p.parent.parent.name)
def test_shipped_weights_are_sound_small_and_say_how_they_were_made(path: Path) -> None:
    survey = path.parent.parent.name
    found = checkpoint.read_info(f"{survey}/{path.parent.name}")
    checkpoint.check_survey(found, survey)
    assert path.with_name(WEIGHTS).stat().st_size < 8e6
    assert found.training["command"].startswith("skyheed ")
    assert f"skyheed archive simulate --survey {survey} " in found.training["archive"]["command"]
    assert found.metrics["at_the_end"]["objects"] > 50
    assert "/work" not in path.read_text()
    assert CARD_DIGEST in json.loads(path.read_text())


def test_another_prior_stands_in_the_version(tmp_path: Path) -> None:
    known = info(Config(), calibration=Calibration())
    other = priors.assuming(known, (906, 1988, 3225, 2130))
    assert other.version == f"{known.version}+prior.906-1988-3225-2130"
    np.testing.assert_allclose(np.array(other.calibration.prior) * 8249 / 4, [906, 1988, 3225, 2130])
    assert priors.assuming(other, (1, 1, 1, 0.5)).version == f"{known.version}+prior.1-1-1-0.5"
    assert known.calibration.prior == ()
    write(tmp_path)
    assert "+prior.1-1-1-2," in checkpoint.describe(tmp_path, "sdss", "1,1,1,2")


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,x", "1,2,3,0", "1,2,3,inf", "", "1;2;3;4"])
def test_a_prior_is_one_positive_number_for_each_class(text: str) -> None:
    with pytest.raises(ModelError, match="does not give each of AGN, SNIa, Variable, SNOther a positive number"):
        priors.class_prior(text, info(Config()).classes)


def test_a_prior_is_not_counted_twice() -> None:
    for balanced in (True, None):
        trained = {} if balanced is None else {"protocol": {"balanced": balanced}}
        priors.assuming(info(Config(), training=trained), (1, 1, 1, 1))
    with pytest.raises(ModelError, match=r"balanced = false.*leave the prior out"):
        priors.assuming(info(Config(), training={"protocol": {"balanced": False}}), (1, 1, 1, 1))


def test_weights_are_named_by_survey_and_model() -> None:
    assert checkpoint.resolve("ztf") == SHIPPED / "ztf" / "fusion" == checkpoint.resolve("ztf/fusion")
    assert checkpoint.resolve("sdss") == SHIPPED / "sdss" / "fusion" == checkpoint.resolve("sdss/fusion")
    assert checkpoint.resolve("convention", "lsst") == SHIPPED / "lsst" / "convention"
    assert set(checkpoint.shipped_names()) >= {"lsst/convention", "sdss/convention", "ztf/convention", "ztf/fusion"}
    assert checkpoint.default("sdss") in {name.partition("/")[2] for name in checkpoint.shipped_names()}


def test_a_model_without_weights_is_refused_in_a_sentence() -> None:
    with pytest.raises(ModelError, match=r"no weights of convention-paper for ztf: train them .* ztf/convention"):
        checkpoint.resolve("convention-paper", "ztf")
    with pytest.raises(ModelError, match="no model nonsense: give"):
        checkpoint.resolve("nonsense", "ztf")
