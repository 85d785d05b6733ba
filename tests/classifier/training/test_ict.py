"""The objective ict: each term by hand, what receives gradients, the queue, collapse, and its effect on a toy."""

import copy
import itertools
import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_tools import made
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from zoo_tools import SCALING, history

from skyheed.classifier.errors import ModelError
from skyheed.classifier.models.base import Network, parameters
from skyheed.classifier.models.family import preset
from skyheed.classifier.training import ict, objectives, train
from skyheed.classifier.training.averaging import follow, warmed
from skyheed.classifier.training.ict import Branch, Ict, Queue, Settings, distance, divergence, joined
from skyheed.classifier.training.objectives import Setting, Views
from skyheed.classifier.training.protocol import Protocol


def test_the_distance_on_the_sphere() -> None:
    e = torch.eye(3, dtype=torch.float64)
    assert distance(e[:1], e[1:2]).tolist() == [2]
    x = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(distance(x, 2 * x), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(distance(x, -x), torch.full((5,), 4.0, dtype=torch.float64))
    y = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(distance(3 * x, 0.1 * y), distance(x, y))
    assert torch.autograd.gradcheck(lambda p: distance(p, y), (x.clone().requires_grad_(True),))


def test_the_divergence_is_that_of_the_target_from_what_is_learnt() -> None:
    torch.manual_seed(0)
    t, o = torch.randn(2, 6, 4, dtype=torch.float64)
    p, q = t.softmax(1), o.softmax(1)
    torch.testing.assert_close(divergence(t, o), (p * (p.log() - q.log())).sum(1))
    assert (divergence(t, o) > 0).all()
    assert (divergence(t, o) - divergence(o, t)).abs().max() > 1e-2
    torch.testing.assert_close(divergence(t, t + 3), torch.zeros(6, dtype=torch.float64))


def test_the_momentum_rises_by_a_cosine() -> None:
    assert ict.momentum(0, 100) == pytest.approx(0.99)
    assert ict.momentum(50, 100) == pytest.approx((1 + 0.99) / 2)
    assert ict.momentum(100, 100) == 1
    assert ict.momentum(300, 100) == 1


def test_a_target_follows_in_weights_and_batch_statistics() -> None:
    online, target = ict.projector(16), ict.projector(16)
    online(torch.randn(8, 16))
    before = copy.deepcopy(target.state_dict())
    follow(target, online, 0.9)
    for name, value in target.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * online.state_dict()[name])
    assert (target[1].running_mean - before["1.running_mean"]).abs().max() > 0  # type: ignore[operator]


def test_the_queue_keeps_the_newest_of_each_class() -> None:
    queue = Queue(3, 4, 2)
    z = torch.arange(12.0).view(6, 2).requires_grad_(True)
    otherwise = torch.full((3, 2), -1.0)
    labels = torch.tensor([0, 1, 0, 0, 0, 0])
    queue.put(z, labels)
    means = queue.means(torch.tensor([0, 1, 2]), otherwise)
    assert means.tolist() == [[(4 + 6 + 8 + 10) / 4, (5 + 7 + 9 + 11) / 4], [2, 3], [-1, -1]]  # z[0] went
    queue.put(torch.tensor([[100.0, 100.0]]), torch.tensor([0]))
    assert queue.means(torch.tensor([0]), otherwise[:1]).tolist() == [[(6 + 8 + 10 + 100) / 4, (7 + 9 + 11 + 100) / 4]]
    assert not means.requires_grad
    assert not queue.vectors.requires_grad
    assert parameters(queue) == 0


def test_others_of_a_class() -> None:
    assert ict.others(torch.tensor([0, 1, 0, 2, 0])).tolist() == [2, 1, 4, 3, 0]


def branches(seed: int = 0) -> tuple[list[Branch], list[Branch], Tensor]:
    torch.manual_seed(seed)

    def made(online: bool) -> Branch:
        h, z, logits, p = torch.randn(6, 10), torch.randn(6, 128), torch.randn(6, 4), torch.randn(6, 128)
        early, rows = torch.randn(9, 4), torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 1])
        if not online:
            return Branch(h, functional.normalize(z, dim=1), logits)
        return Branch(h, z, logits, p, early, rows)

    return [made(True), made(True)], [made(False), made(False)], torch.tensor([0, 1, 0, 2, 1, 3])


@pytest.mark.parametrize("positives", ["view+class", "view", "class", "levels"])
@pytest.mark.parametrize("kl", ["views", "early"])
def test_it_does_not_matter_which_view_is_the_first(positives: Any, kl: Any) -> None:
    online, target, labels = branches()
    queue, settings = Queue(4, 8), Settings(positives=positives, kl=kl)
    queue.put(torch.randn(6, 128), labels)
    forward = joined(online, target, labels, queue, settings)
    back = joined(online[::-1], target[::-1], labels, queue, settings)
    torch.testing.assert_close(sum(forward.values()), sum(back.values()))


def test_every_reading_by_hand() -> None:
    online, target, labels = branches()
    queue = Queue(4, 8)
    (a, b), (c, d) = online, target
    assert a.p is not None
    assert b.p is not None

    def terms(positives: Any) -> list[float]:
        found = joined(online, target, labels, queue, Settings(positives=positives))
        return [float(found["mse1"]), float(found["mse2"])]

    to_other = [float(distance(a.p, d.z).mean()), float(distance(b.p, c.z).mean())]
    assert terms("view") == pytest.approx(to_other)
    # an empty queue: the other view's own projection
    assert terms("view+class") == pytest.approx([sum(to_other) / 2] * 2)
    levels = float((distance(a.h, d.h) + distance(b.h, c.h)).mean() / 2)
    assert terms("levels") == pytest.approx([levels, sum(to_other) / 2])
    ring = torch.tensor([2, 4, 0, 3, 1, 5])
    assert terms("class") == pytest.approx(
        [float(distance(a.p, d.z[ring]).mean()), float(distance(b.p, c.z[ring]).mean())]
    )
    queue.put(torch.randn(40, 128), torch.arange(40) % 4)
    means = queue.vectors.mean(1)[labels]
    to_class = float((distance(a.p, means) + distance(b.p, means)).mean() / 2)
    assert terms("view+class") == pytest.approx([sum(to_other) / 2, to_class])


def test_the_same_view_twice_through_the_same_branch_costs_nothing() -> None:
    online, _, labels = branches()
    (a, _) = online
    same = Branch(a.h, a.z, a.logits, a.z)  # the predictor is the identity
    target = Branch(a.h, functional.normalize(a.z, dim=1), a.logits)
    found = joined([same, same], [target, target], labels, Queue(4, 8), Settings())
    assert abs(float(found["mse1"])) < 1e-5
    assert abs(float(found["kl"])) < 1e-6


def test_early_is_what_the_target_says_of_the_whole() -> None:
    online, target, labels = branches()
    (a, b), (c, d) = online, target
    found = joined(online, target, labels, Queue(4, 8), Settings(kl="early", temperature=0.5))
    expected = 0.0
    for o, t in ((a, c), (b, d)):
        assert o.rows is not None
        assert o.early is not None
        expected += float(divergence(t.logits[o.rows] / 0.5, o.early).mean()) / 2
    assert float(found["kl"]) == pytest.approx(expected)


def setting(name: str = "vector", **values: Any) -> Setting:
    torch.manual_seed(1)
    own = preset(name)
    network: Network = own.family.build(own.family.configure({**own.network, **values}))
    mean = copy.deepcopy(network).eval()
    protocol = SimpleNamespace(classes=("a", "b", "c", "d"), short_steps=0, steps=10, fine_steps=0, prefixes=2)
    return Setting(network, mean, None, SCALING, protocol, False)  # type: ignore[arg-type]


def views(seed: int) -> Views:
    lengths = (4, 6, 3, 9, 5, 3, 7, 4)
    return Views([history(n, seed + i) for i, n in enumerate(lengths)], [], np.arange(8) % 4)


@pytest.mark.parametrize("name", ["vector", "convention", "lstm"])
def test_only_the_online_branch_learns(name: str) -> None:
    made = setting(name)
    objective = Ict(made)
    loss = objective.loss([views(0), views(50)], np.random.default_rng(0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert all(p.grad is None for p in made.mean.parameters())
    assert all(p.grad is None for p in objective.target.parameters())
    for module in (objective.projector, objective.predictor, made.network):
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert sum(float(g.abs().sum()) for g in gradients) > 0
    assert set(objective.log()) >= {"mse1", "mse2", "ce", "kl", "z_std", "momentum", "within_between", "collapsed"}


def test_what_enters_the_target_gets_no_gradient_and_what_is_learnt_from_does() -> None:
    made = setting("vector")
    objective = Ict(made)
    online, target = ([made.batch(views(n).histories) for n in (0, 50)] for _ in range(2))
    for batch in (*online, *target):
        batch["images"].requires_grad_(True)
    rng = np.random.default_rng(0)
    shown, aims = [objective._online(b, rng) for b in online], [objective._target(b) for b in target]
    assert not any(part.requires_grad for aim in aims for part in (aim.h, aim.z, aim.logits))
    terms = joined(shown, aims, torch.arange(8) % 4, objective.queue, objective.settings)
    (terms["mse1"] + terms["mse2"] + terms["kl"]).backward()
    assert all(batch["images"].grad is None for batch in target)
    assert all(float(batch["images"].grad.abs().sum()) > 0 for batch in online)


def test_terms_have_weights_and_without_three_of_them_no_label_is_used() -> None:
    def loss(labels: int, **weights: float) -> tuple[float, dict[str, float]]:
        objective = Ict(setting("lstm"), weights=weights)
        seen = [replace(views(n), labels=np.full(8, labels)) for n in (0, 50)]
        made = float(objective.loss(seen, np.random.default_rng(0)).detach())
        return made, objective.log()

    total, terms = loss(1, mse1=0.5, kl=2.0)
    assert total == pytest.approx(0.5 * terms["mse1"] + terms["mse2"] + terms["ce"] + 2 * terms["kl"], rel=1e-5)
    free = dict.fromkeys(("mse2", "ce", "kl"), 0.0)
    assert loss(1, **free)[0] == loss(2, **free)[0] == pytest.approx(terms["mse1"], rel=1e-5)
    assert loss(1)[0] != loss(2)[0]


def test_the_target_may_use_statistics_of_the_batch_and_keeps_its_own() -> None:
    made = setting("vector")
    mean, batched = Ict(made), Ict(made, target_bn="batch")
    batched.load_state_dict(mean.state_dict())
    before = copy.deepcopy({**made.mean.state_dict(), **batched.target.state_dict()})
    batch = made.batch(views(0).histories)
    plain, other = mean._target(batch), batched._target(batch)
    assert (plain.z - other.z).abs().max() > 1e-2
    made.mean.encoder.train()  # type: ignore[union-attr, operator]
    h = copy.deepcopy(made.mean).encode(batch)
    torch.testing.assert_close(other.h, h)
    made.mean.eval()
    after = {**made.mean.state_dict(), **batched.target.state_dict()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(mean._target(batch).z, plain.z)


def test_beginnings_of_convention_and_of_causal_networks_are_classified() -> None:
    for name, count in (("convention", 3 * 8), ("vector", 41), ("sits-bert", 8)):
        made = setting(name)
        network = made.network.eval()
        batch = made.batch(views(0).histories)
        with torch.inference_mode():
            encoded, rows, whole = ict.representations(network, batch, 2, np.random.default_rng(0))
            torch.testing.assert_close(encoded[whole], network.encode(batch), rtol=1e-4, atol=1e-4)
        assert len(encoded) == count
        assert rows[whole].tolist() == list(range(8))


def test_the_target_is_that_of_the_step_before_and_a_saved_objective_goes_on_alike() -> None:
    made = setting("lstm")
    objective = Ict(made)
    with torch.no_grad():
        objective.projector[0].weight.add_(1.0)  # type: ignore[union-attr, operator]
    before = objective.target[0].weight.clone()  # type: ignore[union-attr, operator]
    objective.loss([views(0), views(50)], np.random.default_rng(0))
    torch.testing.assert_close(objective.target[0].weight, before + 1.0, rtol=1e-4, atol=1e-5)
    again = Ict(made)
    again.load_state_dict(objective.state_dict())
    both = [o.loss([views(1), views(9)], np.random.default_rng(3)) for o in (objective, again)]
    assert float(both[0].detach()) == float(both[1].detach())
    assert again.log()["momentum"] == warmed(ict.momentum(1, 10), 1)


def test_what_it_learns_besides_the_network_is_as_large_as_said() -> None:
    objective = Ict(setting())
    assert parameters(objective.projector) == 197_632
    assert parameters(objective.predictor) == 132_096
    assert objectives.extra_parameters({"name": "ict"}, objective.setting.network) == 329_728
    assert sum(p.numel() for p in objective.parameters() if p.requires_grad) == 329_728


def test_a_run_notes_every_term_and_rings_when_projections_collapse(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Protocol(
        "none", model="ict-convention", network={"cnn": "2d"}, steps=4, batch=4, every=2, longest=6, threads=1,
        autocast=False,
    )  # fmt: skip
    data = made([4 + n % 5 for n in range(32)])
    with caplog.at_level(logging.WARNING, "skyheed.train"):
        train.run(run, tmp_path / "well", "", data)
    assert not caplog.records
    notes = [json.loads(line) for line in (tmp_path / "well" / "objective.jsonl").read_text().splitlines()]
    assert [(n["stage"], n["step"]) for n in notes] == [("whole", 2), ("whole", 4)]
    assert set(notes[0]) >= {"mse1", "mse2", "ce", "kl", "momentum", "z_std", "within_between", "collapsed"}
    assert notes[0]["within_between_h"] > 0
    assert notes[1]["momentum"] > notes[0]["momentum"]

    def one(self: Ict, batch: Any) -> Branch:
        branch = self_target(self, batch)
        return Branch(branch.h, branch.z[:1].expand_as(branch.z), branch.logits)

    self_target = Ict._target
    monkeypatch.setattr(Ict, "_target", one)
    monkeypatch.setattr(ict, "SETTLED", 3)
    with caplog.at_level(logging.WARNING, "skyheed.train"):
        train.run(run, tmp_path / "ill", "", data)
    (alarm,) = caplog.messages
    assert "whole, step 4: projections have collapsed: their scatter is" in alarm


def test_an_interrupted_run_has_the_same_target_queue_and_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Protocol(
        "none", model="ict-convention", network={"cnn": "2d"}, steps=4, batch=4, every=2, longest=6, threads=1,
        autocast=False,
    )  # fmt: skip
    data = made([4 + n % 5 for n in range(32)])
    train.run(run, tmp_path / "whole", "", data)
    step, count = train.Trainer.views, itertools.count(1)

    def stops(self: train.Trainer, *given: Any) -> Views:
        if next(count) == 6:  # two views a step: in the third one
            raise KeyboardInterrupt
        return step(self, *given)

    monkeypatch.setattr(train.Trainer, "views", stops)
    with pytest.raises(KeyboardInterrupt):
        train.run(run, tmp_path / "cut", "", data)
    monkeypatch.undo()
    train.run(run, tmp_path / "cut", "", data)
    notes = [(tmp_path / name / "objective.jsonl").read_text() for name in ("cut", "whole")]
    assert notes[0] == notes[1]
    cut, whole = (load_file(tmp_path / name / "weights.safetensors") for name in ("cut", "whole"))
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, rtol=1e-4, atol=1e-5)


def test_settings_are_checked() -> None:
    with pytest.raises(ModelError, match="no setting tau: known are positives, kl, queue, temperature, momentum"):
        Settings.of({"tau": 1})
    with pytest.raises(ModelError, match="positives is 'all': use view"):
        Settings.of({"positives": "all"})
    with pytest.raises(ModelError, match="target_bn is 'none': use mean or batch"):
        Settings.of({"target_bn": "none"})
    with pytest.raises(ModelError, match="momentum is 2: give a number, between 0 and 1"):
        Settings.of({"momentum": 2})
    with pytest.raises(ModelError, match=r"weights is .*: give numbers for mse1, mse2, ce, kl"):
        Settings.of({"weights": {"mse": 1}})
    with pytest.raises(ModelError, match="the weight of ce is -1: give a number"):
        Settings.of({"weights": {"ce": -1}})


class Toy:
    """Four Gaussian classes in 32 dimensions, with a nuisance as wide as the classes, in noisy views."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.centres, self.nuisance = torch.randn(4, 32) * 0.7, torch.randn(8, 32) * 0.7
        self.encoder = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.head, self.projector, self.predictor = nn.Linear(256, 4), ict.projector(256), ict.projector(128)

    def views(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        labels = torch.randint(4, (count,))
        centre = self.centres[labels] + torch.randn(count, 8) @ self.nuisance / math.sqrt(8) * 1.5
        return centre + 0.3 * torch.randn(count, 32), centre + 0.3 * torch.randn(count, 32), labels

    def train(self, terms: tuple[str, ...], positives: Any = "view+class", steps: int = 200) -> None:
        online = nn.ModuleList([self.encoder, self.projector, self.head])
        target = copy.deepcopy(online).requires_grad_(False)
        optimiser = torch.optim.AdamW([*online.parameters(), *self.predictor.parameters()], 1e-3)
        queue = Queue(4, 64)
        for step in range(steps):
            follow(target, online, warmed(ict.momentum(step, steps), step))
            a, b, labels = self.views(64)
            shown = [self.branch(online, x, self.predictor) for x in (a, b)]
            with torch.no_grad():
                aims = [self.branch(target, x) for x in (a, b)]
            found = joined(shown, aims, labels, queue, Settings(positives=positives))
            queue.put(torch.cat([t.z for t in aims]), labels.repeat(2))
            loss = sum(found[name] for name in terms)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            optimiser.step()

    def branch(self, modules: nn.ModuleList, x: Tensor, predictor: nn.Module | None = None) -> Branch:
        encoder, projector, head = modules
        h = encoder(x)
        z = projector(h)
        if predictor is None:
            return Branch(h, functional.normalize(z, dim=1), head(h))
        return Branch(h, z, head(h), predictor(z))

    def projections(self) -> tuple[Tensor, Tensor]:
        x, _, labels = self.views(512)
        with torch.no_grad():
            return functional.normalize(self.projector.eval()(self.encoder(x)), dim=1), labels


def test_two_branches_and_a_predictor_do_not_collapse() -> None:
    toy = Toy(0)
    toy.train(("mse1",))
    assert ict.scatter(toy.projections()[0]) > ict.COLLAPSED  # 0.0884 would be even on the sphere


def test_the_alarm_rings_where_views_are_only_drawn_together() -> None:
    toy = Toy(0)
    optimiser = torch.optim.AdamW([*toy.encoder.parameters(), *toy.projector.parameters()], 1e-3)
    for _ in range(200):
        a, b, _ = toy.views(64)
        loss = distance(toy.projector(toy.encoder(a)), toy.projector(toy.encoder(b))).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert ict.scatter(toy.projections()[0]) < 0.02


def test_readings_that_use_the_class_draw_it_together_and_the_others_do_not() -> None:
    def found(terms: tuple[str, ...], positives: Any = "view+class") -> float:
        toy = Toy(1)
        toy.train(terms, positives)
        return ict.within_between(*toy.projections())

    plain = found(("ce",))
    of = {p: found(("mse1", "mse2", "ce"), p) for p in ("view+class", "class", "view", "levels")}
    assert max(of["view+class"], of["class"]) < plain / 4  # measured 0.009 and 0.003, 0.27
    assert min(of["view"], of["levels"]) > plain * 1.2  # 0.38 and 0.41


def test_the_projector_of_the_target_follows_quickly_at_first() -> None:
    made = setting("lstm")
    objective = Ict(made)
    for step in range(3):
        with torch.no_grad():
            for value in objective.projector.parameters():
                value += 1
        before, online = objective.target[0].weight.clone(), objective.projector[0].weight.detach()
        objective._follow()
        keep = step / (step + 10)  # as the mean of the network; 0.99 would leave it where it began
        torch.testing.assert_close(objective.target[0].weight, keep * before + (1 - keep) * online)
