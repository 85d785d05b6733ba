"""Pre-training inside a run, and that every model can be trained and served."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_tools import made
from zoo_tools import SCALING, history

from skyheed.classifier import serving
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models.base import Network
from skyheed.classifier.models.family import preset, presets
from skyheed.classifier.training import adaptation_scores, dataset, train
from skyheed.classifier.training.objectives import Setting, Views
from skyheed.classifier.training.pretrain import Pretrained
from skyheed.classifier.training.protocol import Protocol

SMALL = Protocol(
    "none", name="small", short_steps=2, steps=2, fine_steps=1, batch=4, short_batch=4, longest=6, every=2, threads=1,
    autocast=False,
)  # fmt: skip
LENGTHS = [4 + n % 5 for n in range(32)]
QUICK = ("supernnova-bayes", "sits-bert", "vit")


def setting(name: str, **values: Any) -> Setting:
    torch.manual_seed(1)
    network: Network = preset(name).family.build(preset(name).family.configure({**preset(name).network, **values}))
    protocol = SimpleNamespace(short_steps=0, steps=10, fine_steps=0)
    return Setting(network, network, None, SCALING, protocol, False)  # type: ignore[arg-type]


VIEWS = Views([history(9, n) for n in range(8)], [], np.arange(8) % 4)


@pytest.mark.parametrize("name", ["sits-bert", "vit"])
def test_first_steps_need_no_labels_and_later_ones_do(name: str) -> None:
    made_ = setting(name)
    objective = Pretrained(made_, share=0.2)
    head = made_.network.head
    for step in range(3):
        made_.network.zero_grad()
        objective.loss([VIEWS], np.random.default_rng(0)).backward()  # type: ignore[no-untyped-call]
        assert (head.weight.grad is not None) == (step == 2)  # type: ignore[union-attr]
        assert ("pretraining" in objective.log()) == (step < 2)
    learnt = {id(p) for p in objective.parameters()}
    assert learnt
    assert not learnt & {id(p) for p in made_.network.parameters()}
    again = Pretrained(made_, share=0.2)
    again.load_state_dict(objective.state_dict())
    assert int(again.steps) == 3


@pytest.mark.parametrize("hide", ["patches", "tubes"])
def test_tubes_hide_the_same_patches_of_all_stamps_of_an_object(hide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = setting("vit")
    objective: Any = Pretrained(own, hide=hide)
    hidden: list[torch.Tensor] = []
    latent = objective.task.latent
    monkeypatch.setattr(objective.task, "latent", lambda images, order: hidden.append(order) or latent(images, order))
    objective.loss([Views([history(9, n) for n in range(3)], [], np.arange(3))], np.random.default_rng(0))
    (order,) = hidden
    assert len(order) == 27
    assert len(order.unique(dim=0)) == (3 if hide == "tubes" else 27)


def test_what_cannot_be_pre_trained_says_so() -> None:
    with pytest.raises(ModelError, match="only sits-bert, and vector with the encoder vit"):
        Pretrained(setting("vector"))
    with pytest.raises(ModelError, match="has no setting target here"):
        Pretrained(setting("sits-bert"), target="pixels")
    with pytest.raises(ModelError, match="target is 'sky': use pixels or signal or normalised"):
        Pretrained(setting("vit"), target="sky")
    with pytest.raises(ModelError, match="hide is 'stamps': use patches or tubes"):
        Pretrained(setting("vit"), hide="stamps")
    with pytest.raises(ModelError, match="share is 2: give a number, between 0 and 1"):
        Pretrained(setting("vit"), share=2)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] * (n not in QUICK)) for n in presets() if n != "convention"]
)
def test_every_model_is_trained_and_served(name: str, tmp_path: Path) -> None:
    data = made(LENGTHS)
    info = train.run(replace(SMALL, model=name), tmp_path, "", data)
    assert info.family == preset(name).family.name
    model = serving.load(tmp_path, survey="sdss", device="cpu")
    seen = [data.history(n) for n in range(3)]
    said = model.predict(seen)
    np.testing.assert_allclose([p.probabilities.sum() for p in said], 1, rtol=1e-5)
    assert ("probability" in said[0].estimates) == (name == "supernnova-bayes")
    for prediction in said:
        for estimate in prediction.estimates.values():
            assert estimate.value == prediction.probabilities.max()
            assert 0 < estimate.error < 0.5
    (alone,) = model.predict(seen[1:2])
    np.testing.assert_allclose(alone.probabilities, said[1].probabilities, atol=1e-5)


def test_stamps_of_another_archive_are_seen_but_not_those_kept_to_be_measured_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = made(LENGTHS, seed=7)
    monkeypatch.setattr(dataset, "load", lambda *_, **__: data)
    own = setting("vit")
    wide: dict[str, Any] = {"bands": "", "longest": 6, "whole": 0.0, "truncate": 0.4, "stamps": 99, "drop": 0.3}
    for name, value in wide.items():
        setattr(own.protocol, name, value)
    objective = Pretrained(own, share=1.0, also=["real"])
    drawn = objective._drawn(40, np.random.default_rng(0))
    train_ones = {name for name, split in zip(data.object_ids, data.split, strict=True) if split == "train"}
    assert len(drawn) == 40
    assert {h.object_id for h in drawn} <= train_ones
    seen: list[int] = []
    whole = own.batch
    object.__setattr__(own, "batch", lambda histories: seen.append(len(histories)) or whole(histories))
    objective.loss([VIEWS], np.random.default_rng(0)).backward()  # type: ignore[no-untyped-call]
    assert seen == [16]


def test_a_pre_trained_model_is_measured_like_an_adapted_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = made(LENGTHS, seed=7)
    monkeypatch.setattr(dataset, "load", lambda *_, **__: target)
    asked = {"name": "pretrained", "share": 0.4, "measure_on": ["sky/real"]}
    train.run(replace(SMALL, model="vit", objective=asked), tmp_path, "", made(LENGTHS))
    (measured,) = json.loads((tmp_path / "objective.json").read_text())["measured"]
    _, held = adaptation_scores.members_of(target)
    assert measured["archive"] == "real"
    assert measured["objects"] == [target.object_ids[i] for i in held]
    assert len(measured["first"]) == len(held)
