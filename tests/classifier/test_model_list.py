"""Every model by name: what `skyheed model list` and `skyheed model describe` say of it."""

import json

import pytest
from click.testing import CliRunner

from skyheed.classifier import cli

# name -> parameters as trained and as served, 4 classes, bands ugriz
COUNTS = {
    "convention": (1_087_276, 1_087_276), "convention-2d": (489_996, 489_996),
    "convention-paper": (1_253_108, 1_253_108), "ict-convention": (1_087_276 + 329_728, 1_087_276),
    "cnn-gru": (1_993_140, 1_993_140), "cnn-lstm": (2_190_260, 2_190_260), "supernnova": (44_804, 44_804),
    "supernnova-bayes": (89_604, 89_604), "sits-bert": (596_036, 596_036), "scone": (22_540, 22_540),
    "lstm": (60_324, 60_324), "physnet": (767_774, 767_774), "vit": (1_211_268, 1_211_268),
    "swin": (548_464, 548_464), "vector": (683_660, 660_076),
}  # fmt: skip
ENCODERS = {"physnet": 296_338, "swin": 134_892, "vit": 795_648}


@pytest.mark.parametrize("name", COUNTS)
def test_a_model_is_described_with_its_parameters(name: str) -> None:
    result = CliRunner().invoke(cli.model, ["describe", name, "--classes", "4", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert (found["parameters"], found["parameters_served"]) == COUNTS[name]
    if name in ENCODERS:
        assert found["parameters_encoder"] == ENCODERS[name]
    assert set(found["updates"]) == {"3", "12", "48", "99"}
    assert all(cost > 0 for cost in found["updates"].values())


def test_the_list_says_needs_costs_and_where_weights_were_trained() -> None:
    runner = CliRunner()
    found = {row["name"]: row for row in json.loads(runner.invoke(cli.model, ["list", "--json"]).output)}
    assert set(found) >= set(COUNTS)
    for name, row in found.items():
        assert row["needs"]
        assert name not in COUNTS or (row["parameters"], row["parameters_served"]) == COUNTS[name]
    assert "sdss" in found["vector"]["weights"]
    said = found["vector"]["trained"]["sdss"]
    assert "objects of `skyheed archive simulate --survey sdss" in said
    text = runner.invoke(cli.model, ["list"]).output
    assert f"sdss: {said}" in text
    assert "M multiply-adds an update at 3/12/48/99" in text
