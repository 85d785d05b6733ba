"""The objective multitask in a run: what it wants of views, what it learns, and its curves."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_tools import made

from skyheed.classifier.errors import ModelError
from skyheed.classifier.training import multitask, multitask_objective, objectives, train
from skyheed.classifier.training.protocol import Protocol

RUN = Protocol(
    "none", model="lstm", objective={"name": "multitask"}, steps=6, batch=8, every=3, longest=6, threads=1,
    autocast=False,
)  # fmt: skip
DATA = made([4 + n % 5 for n in range(32)])


@pytest.fixture(autouse=True)
def archive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second object has a peak in the middle of its stamps and a redshift; in another order than the data."""
    first = DATA.mjd[DATA.start[:-1]]
    table = {
        "object_id": DATA.object_ids[::-1],
        "peak_mjd": [first[i] + 10 if i % 2 else math.nan for i in range(32)][::-1],
        "redshift": [0.01 * i if i % 2 else math.nan for i in range(32)][::-1],
    }
    monkeypatch.setattr(
        multitask_objective, "Archive", lambda _: SimpleNamespace(objects=SimpleNamespace(to_pydict=lambda: table))
    )


def trainer(tmp_path: Path, **changes: Any) -> train.Trainer:
    return train.Trainer(replace(RUN, **changes), DATA, tmp_path)


def test_heads_are_to_tell_flux_phase_and_redshift_of_the_right_objects(tmp_path: Path) -> None:
    own = trainer(tmp_path)
    augmentation = train.Augmentation(6, 0.0, 0.4, 99)
    seen = own.views(np.array([3, 4, 7]), augmentation, np.random.default_rng(0))
    wanted = own.objective.wanted(seen)
    assert np.isnan(wanted["phase"]).tolist() == np.isnan(wanted["redshift"]).tolist() == [False, True, False]
    days = [seen.histories[n].mjd[-1] - DATA.mjd[DATA.start[i]] - 10 for n, i in ((0, 3), (2, 7))]
    np.testing.assert_allclose(wanted["phase"][[0, 2]], np.arcsinh(np.array(days) / 10), rtol=1e-5)
    np.testing.assert_allclose(wanted["redshift"][[0, 2]], np.log1p([0.03, 0.07]), rtol=1e-5)
    peak = [np.nanmax(DATA.flux[DATA.start[i] : DATA.start[i + 1], 1]) for i in (3, 7)]
    np.testing.assert_allclose(wanted["flux"][[0, 2]], np.log10(np.clip(peak, 1, None)), rtol=1e-5)


@pytest.mark.parametrize("balance", ["uncertainty", "fixed"])
def test_a_run_learns_all_tasks_and_writes_bias_and_resolution(balance: str, tmp_path: Path) -> None:
    run = replace(RUN, objective={"name": "multitask", "balance": balance})
    info = train.run(run, tmp_path, "", DATA)
    assert info.training["protocol"]["objective"]["name"] == "multitask"
    notes = [json.loads(line) for line in (tmp_path / "objective.jsonl").read_text().splitlines()]
    assert set(notes[0]) >= {"class", "flux", "phase", "redshift"}
    assert ("s_phase" in notes[0]) == (balance == "uncertainty")
    if balance == "uncertainty":  # at the network's rate they could have moved by 6 steps of 0.0015 at most
        assert abs(notes[-1]["s_class"] - 1) > 4 * 6 * RUN.rate
    found = json.loads((tmp_path / "objective.json").read_text())
    assert set(found) == {*multitask.REGRESSIONS, "by_peak_flux"}
    first = found["phase"][0]
    assert (first["low"], first["high"]) == (1, 4)
    known = sum(bool(i % 2) for i in np.flatnonzero([s == "validation" for s in DATA.split]))
    assert first["count"] == known > 0  # those with a peak, after three stamps
    assert first["resolution"] > 0
    by_flux = found["by_peak_flux"]
    assert set(by_flux) == set(multitask.REGRESSIONS)
    assert sum(row["count"] for row in by_flux["phase"]) == known  # each once, with all its stamps
    assert all(row["count"] == 0 or 0 <= row["low"] <= np.log10(100) for row in by_flux["flux"])
    saved = (tmp_path / "weights.safetensors").read_bytes()
    assert b"heads" not in saved[:4000]


def test_gradients_reach_heads_and_network_and_the_mean_heads_follow(tmp_path: Path) -> None:
    own = trainer(tmp_path)
    augmentation = train.Augmentation(6, 0.0, 0.4, 99)
    objective: Any = own.objective
    before = objective.mean_heads.phase.weight.clone()
    objective.heads.phase.weight.data.add_(1.0)
    objective.steps += 1_000_000  # long after the beginning, when the mean follows at once
    views = [own.views(np.array([1, 3, 4, 7]), augmentation, np.random.default_rng(0))]
    objective.loss(views, np.random.default_rng(0)).backward()
    for module in (objective.heads, objective.balance, own.model):
        assert sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None) > 0
    assert all(p.grad is None for p in objective.mean_heads.parameters())
    np.testing.assert_allclose(objective.mean_heads.phase.weight, before + 0.01, rtol=1e-3, atol=1e-5)


def test_uncertainties_learn_by_themselves_and_without_decay(tmp_path: Path) -> None:
    own = trainer(tmp_path)
    slow, quick = objectives.groups(own.model, own.objective)
    objective: Any = own.objective
    assert {id(p) for p in quick["params"]} == {id(p) for p in objective.balance.parameters()}
    assert (slow["speed"], quick["speed"], quick["weight_decay"]) == (1.0, objectives.QUICKER, 0.0)
    both = [id(p) for group in (slow, quick) for p in group["params"]]
    assert sorted(both) == sorted(id(p) for p in (*own.model.parameters(), *objective.parameters()))
    assert len(objectives.groups(own.model, trainer(tmp_path / "b", objective={}).objective)) == 1


@pytest.mark.parametrize("balance", ["uncertainty", "fixed"])
def test_losses_are_scaled_as_asked(balance: str, tmp_path: Path) -> None:
    def loss(folder: str, **scales: float) -> tuple[float, dict[str, float]]:
        torch.manual_seed(0)
        own = trainer(tmp_path / folder, objective={"name": "multitask", "balance": balance, "scales": scales})
        objective: Any = own.objective
        seen = own.views(np.array([1, 3, 4, 7]), train.Augmentation(6, 0.0, 0.4, 99), np.random.default_rng(0))
        return float(objective.loss([seen], np.random.default_rng(0)).detach()), objective.log()

    (plain, terms), (scaled, _) = loss("a"), loss("b", phase=3.0)
    weight = math.exp(-1) if balance == "uncertainty" else 0.3
    assert scaled - plain == pytest.approx(2 * weight * terms["phase"], rel=1e-3)


def test_its_parameters_are_told_and_settings_checked(tmp_path: Path) -> None:
    own = trainer(tmp_path, model="cnn-gru")  # 256 numbers describe a history
    assert objectives.extra_parameters({"name": "multitask"}, own.model) == 51_703
    with pytest.raises(ModelError, match="multitask has no setting tau: it knows balance and scales"):
        trainer(tmp_path / "a", objective={"name": "multitask", "tau": 1})
    with pytest.raises(ModelError, match=r"scales is .*: give numbers for class, flux, phase, redshift"):
        trainer(tmp_path / "c", objective={"name": "multitask", "scales": {"energy": 2.0}})
    with pytest.raises(ModelError, match="scales has 0"):
        trainer(tmp_path / "d", objective={"name": "multitask", "scales": {"flux": 0}})
    with pytest.raises(ModelError, match="balance is 'none': use uncertainty or fixed"):
        trainer(tmp_path / "b", objective={"name": "multitask", "balance": "none"})
