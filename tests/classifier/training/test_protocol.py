"""A training run that cannot be, or would not do what its file says, is refused before anything is computed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skyheed.classifier import taxonomy
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models.convention.network import Config
from skyheed.classifier.training import protocol
from skyheed.classifier.training.protocol import Protocol

GOOD: dict[str, Any] = {"archive": "sky", "steps": 10}
PRIOR = [1, 2.5, 3.0, 4]


def refused(error: pytest.ExceptionInfo[ModelError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 300
    return text


@pytest.mark.parametrize(
    "more",
    [
        {}, {"classes": ["AGN", "SN", "Variable"]}, {"prior": PRIOR}, {"bands": "gi"}, {"bands": ""}, {"rate": 1},
        {"objects": 4, "validation": 4}, {"objects": 0}, {"blocks": 2, "models": 3}, {"balanced": False},
        {"variant": "paper", "time": "position"}, {"cnn": "2d", "fine_steps": 3}, {"steps": 0, "head_steps": 1},
        {"classes": taxonomy.CLASSES}, {"patience": 0, "prefixes": 0, "seed": 0},
    ],
)  # fmt: skip
def test_what_can_be_trained_is_taken(more: dict[str, Any]) -> None:
    made = protocol.from_mapping(GOOD | more, "x")
    for key, value in more.items():
        assert getattr(made, key) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("steps", "10", "a whole number"), ("steps", 10.0, "a whole number"), ("steps", True, "a whole number"),
        ("rate", "fast", "a number"), ("rate", True, "a number"), ("balanced", 1, "true or false"),
        ("name", 3, "text"), ("archive", ["a"], "text"), ("classes", "AGN", "a list of texts"),
        ("classes", ["AGN", 3], "a list of texts"), ("classes", 4, "a list of texts"), ("prior", 1.0, "a list"),
        ("prior", ["1", "2", "3", "4"], "a list of numbers"), ("variant", 3, "text"), ("bands", ["g"], "text"),
    ],
)  # fmt: skip
def test_a_key_of_another_type_is_refused(key: str, value: Any, wanted: str) -> None:
    with pytest.raises(ModelError, match=rf"^run\.toml: {key} is .*: give {wanted}") as error:
        protocol.from_mapping(GOOD | {key: value}, "run.toml")
    refused(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps is -1: give a whole number, 0 or more"), ({"every": 0}, "every is 0: .* 1 or more"),
        ({"batch": 0}, "batch is 0"), ({"short_batch": 0}, "short_batch"), ({"head_batch": 0}, "head_batch"),
        ({"blocks": -1}, "blocks is -1"), ({"blocks": 1}, "no objects to learn from"), ({"models": -1}, "models is -1"),
        ({"models": 0}, "models is 0"), ({"seed": -1}, "seed is -1"), ({"longest": 0}, "longest is 0"),
        ({"bank_views": 0}, "bank_views is 0"), ({"patience": -1}, "patience is -1"), ({"stamps": 0}, "stamps is 0"),
        ({"rate": 0.0}, "rate has 0.0"), ({"rate": float("nan")}, "rate has nan"), ({"head_rate": -1}, "head_rate"),
        ({"rate": float("inf")}, "rate has inf"), ({"photometry": -0.1}, "photometry is -0.1"),
        ({"whole": 1.5}, "whole is 1.5: give a number, between 0 and 1"), ({"drop": -0.1}, "drop is -0.1"),
        ({"average": float("nan")}, "average is nan"), ({"dropout": 1.0}, "dropout is 1.0"),
        ({"archive": ""}, "archive is ''"),
        ({"classes": ["AGN", "SNIa", "SNIa"]}, "each once"), ({"classes": ["AGN"]}, "classes is AGN: give two or more"),
        ({"classes": []}, "classes is empty: give two or more"),
        ({"classes": ["AGN", "Kilonova"]}, "classes has 'Kilonova': known are .*AGN"),
        ({"classes": ["AGN", "SN", "SNIa"]}, "SN and SNIa, which is a part of it"),
        ({"bands": "gx"}, "bands is 'gx': give letters of ugrizy"), ({"bands": "gg"}, "bands is 'gg'.* each once"),
        ({"prior": [1, 2]}, "2 values for 4 classes"), ({"prior": [1, 2, 3, 0]}, "prior has 0: give finite"),
        ({"prior": [1, 2, 3, -1.0]}, "prior has -1.0"), ({"prior": [1, 2, 3, float("nan")]}, "prior has nan"),
        ({"prior": [1, 2, 3, float("inf")]}, "prior has inf"),
        ({"prior": [1, 2, 3, 10**400]}, "prior has 1000"),
        ({"prior": PRIOR, "balanced": False}, "prior would be ignored, as balanced is false"),
        ({"steps": 0}, "short_steps, .* are all 0, so nothing would be trained"),
        ({"head_steps": 1, "variant": "paper"}, "head_steps is 1, but convention keeps no tokens"),
        ({"model": "nothing"}, "no model nothing: known are .*convention"),
        ({"network": {"depth": 3}}, "does not know the key depth"),
            ({"network": 3}, "network is 3: give keys and values"),
        ({"objects": 3}, "objects is 3, fewer than the classes: give 4"), ({"validation": 1}, "validation is 1"),
        ({"variant": "fast"}, "variant is 'fast': use paper or stream"), ({"attention": ""}, "use linear or mlp"),
        ({"band_embedding": "None"}, "use learned or fixed or none"), ({"cnn": "1d"}, "use 3d or 2d"),
        ({"time": "hours"}, "use both or position or days"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=rf"^run\.toml: .*{message}") as error:
        protocol.from_mapping(GOOD | changes, "run.toml")
    refused(error)


def test_a_protocol_can_be_put_together_without_the_checks() -> None:
    unusual = replace(Protocol(archive=""), steps=0)
    with pytest.raises(ModelError, match="here: archive is ''"):
        protocol.check(unusual, "here")


def test_changes_are_checked_as_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('archive = "x"\nsteps = 5\n')
    assert protocol.read(tmp_path / "c.toml", {"archive": "y"}).archive == "y"
    with pytest.raises(ModelError, match=r"c\.toml: steps is -5"):
        protocol.read(tmp_path / "c.toml", {"steps": -5})


def test_the_keys_that_are_shared_are_keys_of_both() -> None:
    made, config = Protocol(archive="x"), Config()
    for key in protocol.SHARED:
        assert getattr(made, key) == getattr(config, key)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "Paper"}, "variant is 'Paper': use paper or stream"), ({"attention": None}, "attention is None"),
        ({"band_embedding": "fix"}, "band_embedding"), ({"cnn": "3D"}, "cnn"), ({"time": ["both"]}, "time"),
        ({"channels": 9}, "channels is 9: give a multiple of heads, which is 4"), ({"heads": 0}, "heads is 0"),
        ({"size": 14}, "size is 14: give 15 or more"), ({"size": 0}, "size is 0"), ({"stamps": 0}, "stamps is 0"),
        ({"stamps": "99"}, "stamps is '99'"), ({"classes": 0}, "classes is 0"), ({"bands": 0}, "bands is 0"),
        ({"layers": -1}, "layers"), ({"hidden": 0}, "hidden"), ({"attention_hidden": 2.5}, "attention_hidden"),
        ({"dropout": -0.1}, "dropout is -0.1"), ({"dropout": float("nan")}, "dropout is nan"),
        ({"dropout": "0.3"}, "dropout is '0.3'"), ({"classes": True}, "classes is True"),
    ],
)  # fmt: skip
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        Config(**changes)
    refused(error)


def test_the_smallest_stamps_leave_one_pixel() -> None:
    assert Config(size=15).map == 1
