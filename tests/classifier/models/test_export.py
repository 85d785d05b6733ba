"""Checkpoints in other systems' forms."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from model_tools import sequence

from skyheed.broker.cli import skyheed
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models.checkpoint import read_info, shipped_names
from skyheed.classifier.models.export import to_hugging_face
from skyheed.classifier.serving import load_model


@pytest.mark.parametrize("name", shipped_names())
def test_a_hugging_face_folder_is_a_checkpoint_with_a_card(name: str, tmp_path: Path) -> None:
    folder = to_hugging_face(name, tmp_path / "out")
    info = read_info(name)
    assert read_info(folder).digest == info.digest
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(front)
    assert (header["library_name"], header["license"]) == ("skyheed", "bsd-3-clause")
    assert set(info.surveys) <= set(header["tags"])
    assert all(name in text for name in info.classes)
    config = json.loads((folder / "config.json").read_text())
    assert list(config["id2label"].values()) == list(info.classes)


def test_what_was_learned_from_a_simulation_says_so(tmp_path: Path) -> None:
    text = (to_hugging_face("sdss/convention", tmp_path) / "README.md").read_text()
    assert "**Simulated data**" in text
    assert yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"][0]["dataset"]["name"].startswith(
        "sdss, simulated"
    )


def test_the_folder_says_the_same_as_the_weights(tmp_path: Path) -> None:
    ran = CliRunner().invoke(skyheed, ["model", "export", "sdss/convention", "--to", "hf", "-o", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.output
    histories = [sequence(6, seed) for seed in (1, 2)]
    ours, theirs = (
        load_model(name, device="cpu", precision="float32").predict(histories)
        for name in ("sdss/convention", str(tmp_path / "out"))
    )
    assert all(np.array_equal(a.probabilities, b.probabilities) for a, b in zip(ours, theirs, strict=True))


def test_a_checkpoint_is_not_written_over_itself(tmp_path: Path) -> None:
    folder = to_hugging_face("sdss/convention", tmp_path)
    with pytest.raises(ModelError, match="choose another folder"):
        to_hugging_face(str(folder), folder)
