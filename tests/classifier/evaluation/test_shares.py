"""`skyheed evaluate --estimate-prior`: class shares of an archive, with labels or without, reported and not applied."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from data_tools import made
from model_tools import info, write

from skyheed.classifier import cli
from skyheed.classifier.errors import ModelError
from skyheed.classifier.evaluation import evaluate, shares
from skyheed.classifier.models.convention.network import Config
from skyheed.classifier.training import dataset

CLASSES = ("AGN", "SNIa", "Variable", "SNOther")
DATA = made([3] * 160)


def evaluated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Any, *more: str, **card: object) -> Any:
    write(tmp_path / "model", Config(variant="stream", cnn="2d"), **card)
    monkeypatch.setattr(dataset, "load", lambda *_, **__: data)
    monkeypatch.setattr(evaluate, "full_report", lambda model, data, indices: evaluate.report(model, data, indices))
    arguments = [str(tmp_path / "model"), "archive", "-o", str(tmp_path / "out"), "--estimate-prior", *more]
    return CliRunner().invoke(cli.evaluate, arguments, catch_exceptions=False)


def test_it_is_printed_and_in_the_report_and_changes_no_probability(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = evaluated(monkeypatch, tmp_path, DATA, "--split", "all")
    assert done.exit_code == 0
    assert shares.TITLE in done.output
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["shares"]["true"] == [0.25] * 4
    assert sum(found["shares"]["em"]["shares"]) == pytest.approx(1, abs=1e-3)
    assert "Nothing was changed" in (tmp_path / "out" / "README.md").read_text()
    (plain,) = evaluate.entries((str(tmp_path / "model"),), "archive", "cpu", "float32")
    assert found["at_the_end"]["log_loss"] == pytest.approx(
        evaluate.report(plain.model, DATA, DATA.choose("all", True))["at_the_end"]["log_loss"], abs=1e-3
    )


def test_without_any_label_there_are_shares_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nameless = replace(DATA, label=[""] * 160, true_class=[""] * 160)
    done = evaluated(monkeypatch, tmp_path, nameless, "--split", "test")
    assert done.exit_code == 0
    found = json.loads((tmp_path / "out" / "shares.json").read_text())
    assert found["objects"] == 40
    assert "true" not in found
    assert not (tmp_path / "out" / "report.json").exists()


def test_too_few_objects_for_shares_are_scored_nevertheless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = made([3] * 80)
    done = evaluated(monkeypatch, tmp_path, few, "--split", "test")
    assert done.exit_code == 0
    assert "no class shares: there are 20 objects, too few" in done.output
    assert "--split all takes every object" in done.output
    assert "shares" not in json.loads((tmp_path / "out" / "report.json").read_text())
    nameless = replace(few, label=[""] * 80, true_class=[""] * 80)
    with pytest.raises(ModelError, match=r"too few.*--split all"):
        evaluated(monkeypatch, tmp_path / "b", nameless, "--split", "test")


def test_scores_on_what_a_model_may_have_been_fitted_to_are_marked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = replace(DATA, origin=["real"] * 160)
    words = "if these are among them, its scores here are too good"
    assert words not in evaluated(monkeypatch, tmp_path / "a", real).output
    for data, marked in ((real, True), (DATA, False)):
        done = evaluated(monkeypatch, tmp_path / str(marked), data, training={"few_shot": {}})
        assert (words in done.output) == marked


def test_intervals_hold_the_shares_and_shrink_with_objects() -> None:
    rng = np.random.default_rng(3)
    wanted = np.array([0.5, 0.1, 0.3, 0.1])

    def found(n: int) -> dict[str, Any]:
        truth = rng.choice(4, n, p=wanted)
        x = np.eye(4)[truth] * 2 + rng.normal(0, 1, (n, 4))
        p = np.exp(2 * x)
        return shares.estimate(p / p.sum(1, keepdims=True), CLASSES, (), None, truth)

    many, few = found(4000), found(200)
    np.testing.assert_allclose(many["em"]["shares"], wanted, atol=0.04)
    widths = [np.mean(np.array(f["em"]["high"]) - np.array(f["em"]["low"])) for f in (many, few)]
    assert widths[1] > 3 * widths[0]
    assert any("0.500" in line or "BBSE" not in line for line in shares.lines(many))


def test_too_few_objects_are_refused() -> None:
    with pytest.raises(ModelError, match="too few"):
        shares.estimate(np.full((5, 4), 0.25), CLASSES, (), None)


def test_a_confusion_that_is_not_of_these_answers_is_not_used() -> None:
    own = replace(info(Config()), metrics={"confusion": [[1]]})
    assert shares.confusion_of(own) == [[1]]
    assert shares.confusion_of(replace(own, training={"few_shot": {}})) is None
    assert shares.confusion_of(replace(own, version="1+prior.1-1-1-3")) is None
