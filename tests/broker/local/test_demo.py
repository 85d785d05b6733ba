"""The demo with several models at once."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from skyheed.broker import cli
from skyheed.broker.errors import ConfigError
from skyheed.broker.local import demo
from skyheed.classifier.models import checkpoint


def test_every_model_is_asked_with_classes_that_occur_equally_often(tmp_path: Path) -> None:
    file = demo._configuration(tmp_path, ("convention", "vector", "supernnova"))
    found = tomllib.loads(file.read_text())["work"]["models"]
    assert [one["model"] for one in found] == ["convention", "vector", "supernnova"]
    assert {one["prior"] for one in found} == {"1,1,1,1"}


def test_a_model_of_fewer_kinds_of_supernovae_is_scored_by_its_own_classes_and_of_others_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = checkpoint.read_info("sdss/vector")
    monkeypatch.setattr(checkpoint, "read_info", lambda _: replace(info, classes=("AGN", "SN", "Variable")))
    (one,) = tomllib.loads(demo._configuration(tmp_path, ("vector",)).read_text())["work"]["models"]
    assert one["prior"] == "1,1,1"
    assert demo._called({"a": "SNIa", "b": "AGN"}, ("AGN", "SN", "Variable")) == {"a": "SN", "b": "AGN"}
    monkeypatch.setattr(checkpoint, "read_info", lambda _: replace(info, classes=("Even", "Odd")))
    with pytest.raises(ConfigError, match="vector knows Even, Odd, the demo's sky holds AGN, SNIa"):
        demo._configuration(tmp_path, ("vector",))


@pytest.mark.parametrize(
    "models",
    [
        pytest.param(("vector", "supernnova"), id="two"),
        pytest.param(("convention", "vector", "supernnova"), marks=pytest.mark.long, id="three"),
    ],
)
def test_models_are_served_at_once_and_scored_in_one_table(models: tuple[str, ...], tmp_path: Path) -> None:
    words = [word for name in models for word in ("--model", name)]
    objects = str(4 * len(models))
    result = CliRunner().invoke(
        cli.skyheed, ["demo", "--objects", objects, "--rate", "500", "-o", str(tmp_path / "demo.png"), *words]
    )
    assert result.exit_code == 0, result.output[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["balanced"]
    assert found["classified"] == len(models) * int(objects)
    assert set(found["models"]) == set(models)
    assert found["models"][models[0]] == {"accuracy": found["accuracy"], "macro_f1": found["macro_f1"]}
    lines = result.stdout.splitlines()
    table = lines[next(n for n, line in enumerate(lines) if line.split() == HEAD) :]
    assert [line.split()[0] for line in table[1 : 1 + 5 * len(models)]] == [m for m in models for _ in range(5)]
    assert (tmp_path / "demo.png").stat().st_size > 5000


HEAD = ["model", "after", "objects", "accuracy", "macro-F1"]


@pytest.mark.parametrize("rate", [0.0, -4.0, float("nan")])
def test_a_rate_that_is_none_is_refused_before_anything_is_simulated(rate: float) -> None:
    with pytest.raises(ConfigError, match="--rate must be above 0"):
        demo.run(200, rate, 1, "demo.png")
