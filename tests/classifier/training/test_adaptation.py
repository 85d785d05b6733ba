"""The objective adapt in a run: every method, what it may see of a target, and what it measures."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_tools import made
from safetensors.torch import load_file
from torch import nn

from skyheed.classifier.errors import ModelError
from skyheed.classifier.training import adaptation, adaptation_scores, dataset, train
from skyheed.classifier.training.adaptation import METHODS, Adaptation, Pair
from skyheed.classifier.training.dataset import Dataset
from skyheed.classifier.training.protocol import Protocol

NETWORK = {"encoder": "small", "norm": "batch", "width": 16, "layers": 1}
RUN = Protocol("none", model="vector", network=NETWORK, steps=6, batch=8, every=6, longest=3, threads=1, autocast=False)
DATA = made([2 + n % 3 for n in range(64)])
TARGET = made([1 + n % 2 for n in range(64)], seed=5)
BRIGHT = replace(TARGET, stamps=(np.asarray(TARGET.stamps, np.float32) * 1.5 + 1).astype(np.float16))


@pytest.fixture(autouse=True)
def archives(monkeypatch: pytest.MonkeyPatch) -> dict[str, Dataset]:
    """What lies under the names that the runs here give."""
    known = {"target": BRIGHT, "other": TARGET}
    monkeypatch.setattr(dataset, "load", lambda path, **_: known[Path(path).name])
    monkeypatch.setattr(
        adaptation_scores, "mean_distance", lambda one, other: [0.0, 1.0]
    )  # test_adaptation_losses looks at A-distances
    return known


def run(tmp_path: Path, **settings: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and report of a run."""
    train.run(replace(RUN, objective={"name": "adapt", **settings}), tmp_path, "", DATA)
    return load_file(tmp_path / "weights.safetensors"), json.loads((tmp_path / "objective.json").read_text())


def objective(**settings: Any) -> Adaptation:
    trainer = train.Trainer(replace(RUN, objective={"name": "adapt", **settings}), DATA, Path("/nonexistent"))
    found = trainer.objective
    assert isinstance(found, Adaptation)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_measured_on_what_it_was_not_adapted_to(method: str, tmp_path: Path) -> None:
    weights, report = run(tmp_path, method=method, target="target", measure_on=["other"], silent=0.0)
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert [m["archive"] for m in report["measured"]] == ["target", "other"]
    own = report["measured"][0]
    held = {name for name, split in zip(TARGET.object_ids, TARGET.split, strict=True) if split != "train"}
    assert set(own["objects"]) == held
    assert np.array(own["first"]).shape == np.array(own["whole"]).shape == (len(held), 4)
    assert sum(own["shares"]) == pytest.approx(1, abs=1e-3)
    assert {"all", "control"} <= set(own["a_distance"])
    notes = [json.loads(line) for line in (tmp_path / "objective.jsonl").read_text().splitlines()]
    assert ("domain" in notes[-1]) == (method not in ("none", "adabn"))
    assert ("domain_accuracy" in notes[-1]) == (method in ("dann", "dann-class", "cdan"))


@pytest.mark.parametrize("method", ["dann", "dann-class", "cdan", "jdot"])
def test_labels_of_the_target_change_nothing_that_is_learnt(
    method: str, archives: dict[str, Dataset], tmp_path: Path
) -> None:
    plain, _ = run(tmp_path / "a", method=method, target="target", classes=["AGN"], silent=0.0)
    order = np.random.default_rng(0).permutation(64)
    lied = [BRIGHT.label[i] for i in order]
    archives["target"] = replace(BRIGHT, label=lied, true_class=lied, kind=[BRIGHT.kind[i] for i in order])
    other, _ = run(tmp_path / "b", method=method, target="target", classes=["AGN"], silent=0.0)
    assert all(plain[name].equal(other[name]) for name in plain)


def test_adabn_changes_batch_statistics_and_nothing_else(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "a", method="none")
    adapted_, _ = run(tmp_path / "b", method="adabn", target="target")
    changed = {name for name in plain if not plain[name].equal(adapted_[name])}
    assert changed
    assert {name.rsplit(".", 1)[1] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}


def test_apart_each_domain_has_its_own_batch_statistics_and_the_sources_are_kept() -> None:
    own = objective(method="dann", target="target")
    network = own.setting.network.train()
    norm: Any = network.encoder.layers[1]  # type: ignore[union-attr, index]
    rng = np.random.default_rng(0)
    target = own._drawn(8, rng)
    with adaptation._statistics_kept(network):
        before = norm.running_mean.clone()
        network.encode(own.setting.batch(target))
        assert norm.running_mean.equal(before)
    network.encode(own.setting.batch(target))
    assert not norm.running_mean.equal(before)
    both = [objective(method="dann", target="target", domains=d) for d in adaptation.DOMAINS]
    for one in both:
        one.setting.network.load_state_dict(network.state_dict())
    histories = [DATA.history(i, 0, 1) for i in range(8)]
    apart, together = (one._encoded(histories, target)[0] for one in both)
    assert not torch.allclose(apart, together, atol=1e-3)


def test_single_stamps_are_aligned_in_the_same_band() -> None:
    own = objective(method="dann", target="target")
    rng = np.random.default_rng(0)
    assert all(len(h) == 1 for h in own._drawn(16, rng))
    history = DATA.history(2)
    for band in range(5):
        one = adaptation._one(history, band, rng)
        assert len(one) == 1
        assert one.band[0] == band or band not in history.band


def test_injected_samples_are_of_the_classes_that_the_target_lacks() -> None:
    own = objective(method="dann-class", target="target", classes=["AGN", "Variable"], inject=0.25)
    source, labels = torch.arange(16.0)[:, None].repeat(1, 3), torch.arange(16) % 4
    made_ = own._injected(source, torch.full((8, 3), -1.0), labels, np.random.default_rng(0))
    assert (made_[:6] == -1).all()
    listed = {own.setting.protocol.classes.index(c) for c in ("AGN", "Variable")}
    assert {int(v) % 4 for v in made_[6:, 0]} <= set(range(4)) - listed


def gradients(own: Adaptation, labels: torch.Tensor) -> torch.Tensor:
    """Of the alignment, by source samples [16] of these labels."""
    torch.manual_seed(3)
    width = own.setting.network.width
    source, target = torch.randn(16, width, requires_grad=True), torch.randn(16, width)
    own._adversarial(source, target, labels, 1.0, np.random.default_rng(0)).backward()  # type: ignore[no-untyped-call]
    assert source.grad is not None
    return source.grad.abs().sum(1)


def test_only_the_classes_that_are_listed_are_aligned() -> None:
    labels = torch.arange(16) % 4
    own = objective(method="dann-class", target="target", classes=["AGN", "Variable"])
    listed = torch.isin(labels, torch.tensor([own.setting.protocol.classes.index(c) for c in ("AGN", "Variable")]))
    found = gradients(own, labels)
    assert (found[~listed] == 0).all()
    assert (found[listed] > 0).all()
    assert (gradients(objective(method="dann", target="target", classes=["AGN"]), labels) > 0).all()


def test_shares_weight_the_source_by_its_classes() -> None:
    labels = torch.arange(16) % 4
    own = objective(method="dann-class", target="target", shares=[0.0, 0.1, 0.6, 0.3])
    assert own.shares is not None
    assert own.shares.tolist() == pytest.approx([0, 0.4, 2.4, 1.2])
    even = objective(method="dann-class", target="target", shares=[0.25] * 4)
    even.head.load_state_dict(own.head.state_dict())
    ratio = gradients(own, labels) / gradients(even, labels)
    torch.testing.assert_close(ratio, own.shares[labels])


def alignment(step: int, **settings: Any) -> dict[str, float]:
    """What the objective notes at a step of 60."""
    torch.manual_seed(0)
    trainer = train.Trainer(
        replace(RUN, steps=60, objective={"name": "adapt", "target": "target", **settings}), DATA, Path("/nonexistent")
    )
    own: Any = trainer.objective
    own.steps += step
    views = trainer.views(np.arange(8), dataset.Augmentation(3, 0.0, 0.4, 99), np.random.default_rng(0))
    own.loss([views], np.random.default_rng(0))
    return dict(own.log())


def test_the_weight_scales_the_alignment_and_the_silence_delays_it() -> None:
    one, half = (alignment(30, method="coral", weight=w, silent=0.0) for w in (1.0, 0.5))
    assert one["strength"] == pytest.approx(2 / (1 + math.exp(-5)) - 1)
    assert half["strength"] == pytest.approx(one["strength"] / 2)
    assert half["domain"] == pytest.approx(one["domain"] / 2, rel=1e-5)
    assert "domain" not in alignment(11, method="coral", silent=0.2)
    assert alignment(13, method="coral", silent=0.2)["strength"] > 0


def test_objects_kept_for_measurement_are_never_drawn() -> None:
    own = objective(method="dann", target="target")
    seen = {h.object_id for n in range(40) for h in own._drawn(16, np.random.default_rng(n))}
    train_ = {name for name, split in zip(TARGET.object_ids, TARGET.split, strict=True) if split == "train"}
    assert seen
    assert seen <= train_


def test_a_balanced_domain_loss_never_outweighs_the_classes_sixteenfold() -> None:
    pair = Pair()
    optimiser = torch.optim.SGD(pair.parameters(), 0.1)
    for _ in range(600):
        optimiser.zero_grad()
        pair(torch.tensor(0.5), torch.tensor(1e-6)).backward()
        optimiser.step()
    found = pair.log()
    assert found["s_supervised"] == pytest.approx(math.log(0.5), abs=0.02)  # e^-a L + a is least at a = log L
    assert found["s_domain"] == pytest.approx(found["s_supervised"] - math.log(16), abs=1e-3)
    for _ in range(600):
        optimiser.zero_grad()
        pair(torch.tensor(0.5), torch.tensor(0.7)).backward()
        optimiser.step()
    assert pair.log()["s_domain"] == pytest.approx(math.log(0.7), abs=0.02)  # it comes back from its bound


def test_balanced_inside_and_with_all_tasks_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, report = run(tmp_path, method="dann", target="target", balance_domain=True, silent=0.0)
    note = json.loads((tmp_path / "objective.jsonl").read_text().splitlines()[-1])
    assert {"s_supervised", "s_domain"} <= set(note)
    assert report["measured"]
    from skyheed.classifier.training import multitask_objective

    unknown = np.full(64, np.nan)
    truth = {"flux": unknown, "peak_mjd": unknown, "redshift": unknown}
    monkeypatch.setattr(multitask_objective, "truth_of", lambda _: truth)
    own = objective(method="dann", target="target", tasks="multitask", silent=0.0)
    own.steps += 3
    views = train.Trainer(RUN, DATA, Path("/nonexistent")).views(
        np.arange(8), dataset.Augmentation(3, 0.0, 0.4, 99), np.random.default_rng(0)
    )
    own.loss([views], np.random.default_rng(0)).backward()  # type: ignore[no-untyped-call]
    assert {"class", "supervised", "domain", "s_class"} <= set(own.log())
    assert "s_domain" not in own.log()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "magic", "target": "target"}, "method"),
        ({"method": "dann"}, "needs a target"),
        ({"method": "dann", "target": "target", "classes": ["Comet"]}, "Comet"),
        ({"method": "dann", "target": "target", "shares": [1, 2]}, "one number"),
        ({"method": "dann", "target": "target", "strenght": 1}, "strenght"),
        ({"method": "dann", "target": "target", "domains": "both"}, "domains"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        objective(**settings)


def test_where_labels_are_missing_those_objects_are_the_target(archives: dict[str, Dataset]) -> None:
    label = ["" if i % 3 else name for i, name in enumerate(TARGET.label)]
    some = replace(TARGET, label=label, true_class=label)
    members, held = adaptation_scores.members_of(some)
    assert {i % 3 for i in members} == {1, 2}
    assert (held % 3 == 0).all()
    assert len(members) + len(held) == 64
    every, rest = adaptation_scores.members_of(TARGET)
    assert {TARGET.split[i] for i in every} == {"train"}
    assert {TARGET.split[i] for i in rest} == {"validation", "test"}
    archives["target"] = replace(TARGET, split=["test"] * 64)
    with pytest.raises(ModelError, match="no objects to adapt to"):
        objective(method="dann", target="target")


def test_unsupervised_scores_of_known_features() -> None:
    same = np.ones((9, 4))
    assert adaptation_scores.neighbourhood_density(same) == pytest.approx(math.log(8))
    pairs = np.repeat(np.eye(4), 2, 0)
    assert adaptation_scores.neighbourhood_density(pairs) == pytest.approx(0, abs=1e-3)
    found = adaptation_scores.unsupervised(np.full((5, 4), 0.25), same)
    assert found["entropy"] == pytest.approx(math.log(4), abs=1e-3)


def test_groups_add_the_probabilities_of_supernovae() -> None:
    measured = {"classes": ["AGN", "SNIa", "Variable", "SNOther"], "truth": [1, 3, 0], "first": [
        [0.4, 0.3, 0.0, 0.3], [0.1, 0.2, 0.6, 0.1], [0.7, 0.1, 0.1, 0.1]]}  # fmt: skip
    truth, p = adaptation_scores.summary(measured, "first", True)
    assert truth.tolist() == [1, 1, 0]
    np.testing.assert_allclose(p[0], [0.4, 0.6, 0.0])
    assert adaptation_scores.balanced_accuracy(truth, p) == 0.75


def test_the_distance_of_real_objects_is_measured_within_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real supernovae of both types make one group: each alone would have too few objects."""
    compared: list[tuple[int, int]] = []
    monkeypatch.setattr(adaptation_scores, "mean_distance", lambda one, other: compared.append((len(one), len(other))))
    monkeypatch.setattr(adaptation_scores, "features", lambda _, data, indices: np.zeros((len(indices), 3)))
    own = objective(method="none").setting
    classes = own.protocol.classes
    source = [classes.index(own.data.label[i]) for i in own.data.choose("test")]
    monkeypatch.setattr(adaptation_scores, "FEWEST", 1)
    truth = np.array([classes.index(c) for c in ("AGN", "SNIa", "SNIa", "SNOther")])
    found = adaptation_scores.a_distances(own, BRIGHT, np.arange(4), truth, grouped=True)
    assert list(found) == ["all", "AGN", "SN", "control"]
    supernovae = [classes.index(c) for c in ("SNIa", "SNOther")]
    assert compared[2] == (sum(c in supernovae for c in source), 3)
    compared.clear()
    assert list(adaptation_scores.a_distances(own, BRIGHT, np.arange(4), truth, grouped=False))[2] == "SNIa"
    assert compared[2] == (source.count(classes.index("SNIa")), 2)


def test_batch_norm_is_a_choice_of_the_small_encoder_alone() -> None:
    from skyheed.classifier.models.family import preset

    family = preset("vector").family
    assert any(isinstance(m, nn.BatchNorm2d) for m in family.build(family.configure(NETWORK)).modules())
    with pytest.raises(ModelError, match="norm is batch"):
        family.configure({"norm": "batch"})
