"""Losses of domain adaptation, shares of classes, and several tasks at once, against closed forms and toys."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo_tools import batch, history

from skyheed.classifier.errors import ModelError
from skyheed.classifier.models.family import preset
from skyheed.classifier.training import adaptation_losses, label_shift, multitask


def clouds(shift: float = 0.0, seed: int = 0, n: int = 64, d: int = 8) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64) + shift


def test_the_reversal_turns_gradients_round_by_its_strength() -> None:
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(adaptation_losses.reverse(x, 0.3), x)
    (adaptation_losses.reverse(x, 0.3) ** 2).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, -0.3 * 2 * x.detach())


def test_the_strength_rises_from_nothing_to_one() -> None:
    assert adaptation_losses.strength(0, 100) == 0
    assert adaptation_losses.strength(50, 100) == pytest.approx(2 / (1 + math.exp(-5)) - 1)
    assert adaptation_losses.strength(100, 100) > 0.9999
    assert adaptation_losses.strength(20, 100, silent=0.2) == 0 < adaptation_losses.strength(21, 100, silent=0.2)


def test_the_head_learns_what_the_features_unlearn() -> None:
    source, target = (x.requires_grad_(True) for x in clouds(1.0))
    head = adaptation_losses.DomainHead(8).double()
    adaptation_losses.domain_loss(head, source, target, 0.3).backward()
    learnt = [p.grad.clone() for p in head.parameters() if p.grad is not None]
    assert source.grad is not None
    reversed_ = source.grad.clone()
    plain = source.detach().clone().requires_grad_(True)
    head.zero_grad()
    logits = head(torch.cat([plain, target.detach()]))
    functional.cross_entropy(logits, torch.tensor([0] * 64 + [1] * 64)).backward()
    assert plain.grad is not None
    torch.testing.assert_close(reversed_, -0.3 * plain.grad)
    for one, other in zip(learnt, head.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)


def test_the_accuracy_of_a_domain_head_is_the_mean_of_both_sides() -> None:
    class Sign(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([-x[:, 0], x[:, 0]], 1)

    source, target = torch.tensor([[-1.0], [-1.0], [-1.0], [1.0]]), torch.tensor([[1.0], [-1.0]])
    assert adaptation_losses.domain_accuracy(Sign(), source, target) == pytest.approx((0.75 + 0.5) / 2)
    weights = torch.tensor([1.0, 0, 0, 1, 1, 1])
    assert adaptation_losses.domain_accuracy(Sign(), source, target, weights) == pytest.approx(0.5)


def test_classes_that_are_not_listed_get_no_gradient_and_all_of_the_target_does() -> None:
    source, target = (x.requires_grad_(True) for x in clouds(1.0))
    labels = torch.arange(64) % 4
    weights = adaptation_losses.of_classes(labels, [1, 3], len(target))
    assert weights.tolist() == [float(n % 4 in (1, 3)) for n in range(64)] + [1.0] * 64
    adaptation_losses.domain_loss(adaptation_losses.DomainHead(8).double(), source, target, 1.0, weights).backward()
    assert source.grad is not None
    assert target.grad is not None
    listed = torch.isin(labels, torch.tensor([1, 3]))
    assert (source.grad[~listed] == 0).all()
    assert (source.grad[listed].abs().sum(1) > 0).all()
    assert (target.grad.abs().sum(1) > 0).all()


def test_the_conditioned_head_sees_every_product_and_no_gradient_of_the_classes() -> None:
    features, logits = torch.randn(3, 5, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    seen = adaptation_losses.conditioned(features, logits)
    assert seen.shape == (3, 20)
    assert float(seen[1, 2 * 4 + 3].detach()) == pytest.approx(
        float((features[1, 2] * logits.softmax(1)[1, 3]).detach())
    )
    seen.sum().backward()
    assert logits.grad is None
    assert features.grad is not None
    weights = adaptation_losses.certainty(torch.tensor([[9.0, 0, 0], [0, 0, 0]]))
    assert float(weights.mean()) == pytest.approx(1)
    assert weights[0] > weights[1]


def test_coral_of_twice_the_features() -> None:
    source, _ = clouds()
    assert float(adaptation_losses.coral(source, source)) == 0
    expected = 9 * source.T.cov().square().sum() / (4 * 8**2)
    torch.testing.assert_close(adaptation_losses.coral(source, 2 * source), expected)
    torch.testing.assert_close(
        adaptation_losses.coral(source, source + 5), torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_mkmmd_is_unbiased_and_sees_shifts() -> None:
    same = [float(adaptation_losses.mkmmd(*clouds(seed=n))) for n in range(60)]
    assert abs(np.mean(same)) < 0.012  # 0.021 / sqrt(60) is 0.0027
    assert min(same) < 0
    assert np.mean([float(adaptation_losses.mkmmd(*clouds(1.0, n))) for n in range(20)]) == pytest.approx(0.98, abs=0.1)


@pytest.mark.parametrize("loss", [adaptation_losses.coral, adaptation_losses.mkmmd])
def test_the_order_in_a_batch_does_not_matter(loss: Any) -> None:
    source, target = clouds(0.5)
    order = torch.randperm(64)
    torch.testing.assert_close(loss(source[order], target.flip(0)), loss(source, target))
    source.requires_grad_(True)
    loss(source, target).backward()
    assert source.grad is not None
    assert source.grad.abs().sum() > 0


def test_the_pairing_is_the_best_of_all() -> None:
    torch.manual_seed(1)
    source, target, logits = torch.randn(6, 3), torch.randn(6, 3), torch.randn(6, 4)
    labels = torch.arange(6) % 4
    apart = (source[:, None] - target[None]).square().sum(2)
    classes = (functional.one_hot(labels, 4)[:, None] - logits.softmax(1)[None]).square().sum(2)
    cost = 0.7 * apart + 0.4 * classes
    least = min(sum(float(cost[i, p[i]]) for i in range(6)) for p in itertools.permutations(range(6)))
    rows, columns = adaptation_losses.pairing(apart, labels, logits, 0.7, 0.4)
    assert float(cost[rows, columns].sum()) == pytest.approx(least, rel=1e-5)
    expected = 0.7 * apart[rows, columns].mean() + 0.4 * functional.cross_entropy(logits[columns], labels[rows])
    torch.testing.assert_close(adaptation_losses.jdot(source, labels, target, logits, 0.7, 0.4), expected)
    with pytest.raises(ValueError, match="give as many of each"):
        adaptation_losses.jdot(source, labels, target[:5], logits[:5])


def moons(n: int, degrees: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two half moons, turned."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    a = rng.uniform(0, np.pi, n)
    x = np.where(labels, 1 - np.cos(a), np.cos(a)) - 0.5
    y = np.where(labels, 0.5 - np.sin(a), np.sin(a)) - 0.25
    points = np.stack([x, y], 1) + rng.normal(0, 0.08, (n, 2))
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return torch.from_numpy((points @ np.array([[c, s], [-s, c]])).astype(np.float32)), torch.from_numpy(labels)


def accuracy_on_turned_moons(loss: str, steps: int = 500) -> float:
    torch.manual_seed(0)
    (x, y), (turned, truth) = moons(400, 0, 1), moons(400, 30, 2)
    encoder = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
    classes, head = nn.Linear(16, 2), adaptation_losses.DomainHead(16)
    optimiser = torch.optim.Adam([*encoder.parameters(), *classes.parameters(), *head.parameters()], 3e-3)
    for step in range(steps):
        rows, others = torch.randint(400, (2, 128))
        source, target = encoder(x[rows]), encoder(turned[others])
        total = functional.cross_entropy(classes(source), y[rows])
        by = adaptation_losses.strength(step, steps, 0.3)
        if loss == "dann":
            total = total + adaptation_losses.domain_loss(head, source, target, by)
        elif loss == "jdot":  # of features of length one
            both = (functional.normalize(f, dim=1) for f in (source, target))
            total = total + by * adaptation_losses.jdot(next(both), y[rows], next(both), classes(target))
        optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        return float((classes(encoder(turned)).argmax(1) == truth).float().mean())


def test_adaptation_helps_on_turned_moons() -> None:
    plain = accuracy_on_turned_moons("")
    assert plain < 0.92
    assert accuracy_on_turned_moons("jdot") > plain + 0.03
    assert accuracy_on_turned_moons("dann") > plain + 0.03


def test_batch_statistics_of_the_target() -> None:
    own = preset("vector")
    torch.manual_seed(0)
    network = own.family.build(own.family.configure({})).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    given = batch(network, [history(6, n) for n in range(4)])
    made = adaptation_losses.adapt_batch_norm(network, [given])
    norm: Any = made.encoder.stem.wide_norm  # type: ignore[union-attr]
    with torch.no_grad():
        maps = made.encoder.stem.wide(given["images"][given["valid"]])  # type: ignore[union-attr, operator]
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, maps.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(made.head.weight, network.head.weight)  # type: ignore[arg-type, union-attr]


def test_the_a_distance_of_one_cloud_and_of_two() -> None:
    assert adaptation_losses.distance_of(0.25) == 1
    assert adaptation_losses.distance_of(0.6) == 0
    source, target = (x.numpy() for x in clouds(n=400))
    found, error = adaptation_losses.a_distance(source, target)
    assert found < 3 * error < 0.5
    assert adaptation_losses.a_distance(source, target + 6)[0] == 2


PRIOR = np.full(4, 0.25)
SHARES = np.array([0.60, 0.10, 0.25, 0.05])


def gaussians(shares: Any, n: int, seed: int) -> tuple[Any, Any]:
    """Calibrated probabilities for equal shares, and classes."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, n, p=shares)
    centres = np.array([[0, 0], [2, 0], [0, 2], [2, 2.0]])
    x = centres[labels] + rng.normal(0, 1, (n, 2))
    density = np.exp(-((x[:, None] - centres) ** 2).sum(2) / 2)
    return density / density.sum(1, keepdims=True), labels


def test_shares_of_classes_are_found_in_a_shifted_stream() -> None:
    probabilities, _ = gaussians(SHARES, 5000, 1)
    source, truth = gaussians(PRIOR, 5000, 2)
    found = label_shift.expectation_maximisation(probabilities, PRIOR)
    np.testing.assert_allclose(found, SHARES, atol=0.03)
    boxed = label_shift.black_box(truth, source.argmax(1), probabilities.argmax(1), 4)
    np.testing.assert_allclose(boxed, SHARES, atol=0.04)


def test_without_a_shift_the_prior_comes_back_and_names_do_not_matter() -> None:
    probabilities, _ = gaussians(PRIOR, 5000, 3)
    np.testing.assert_allclose(label_shift.expectation_maximisation(probabilities, PRIOR), PRIOR, atol=0.03)
    shifted, _ = gaussians(SHARES, 2000, 4)
    order = [2, 0, 3, 1]
    plain = label_shift.expectation_maximisation(shifted, PRIOR)
    np.testing.assert_allclose(label_shift.expectation_maximisation(shifted[:, order], PRIOR), plain[order], atol=1e-6)


def test_a_classifier_that_confuses_two_classes_is_refused() -> None:
    labels = np.arange(400) % 4
    with pytest.raises(ModelError, match="does not tell all classes apart"):
        label_shift.black_box(labels, labels // 2 * 2, labels, 4)


def test_several_tasks_and_what_they_cost() -> None:
    heads = multitask.Heads(256)
    assert sum(p.numel() for p in heads.parameters()) == 2 * (256 * 100 + 100) + 3 * 101 == 51_703
    assert {name: v.shape for name, v in heads(torch.randn(5, 256)).items()} == dict.fromkeys(
        multitask.REGRESSIONS, (5,)
    )


@pytest.mark.parametrize(
    ("name", "values"), [("flux", [10.0, 5e4]), ("phase", [-20.0, 0, 300]), ("redshift", [0, 0.5, 4])]
)
def test_targets_of_the_heads_can_be_inverted(name: str, values: list[float]) -> None:
    inverse = {"flux": lambda y: 10.0**y, "phase": lambda y: 10 * np.sinh(y), "redshift": np.expm1}[name]
    made = multitask.transformed(name, np.array([*values, np.nan]))
    assert np.abs(made[:-1]).max() < 7
    np.testing.assert_allclose(inverse(made.astype(np.float64)), [*values, np.nan], rtol=1e-4, atol=1e-5)


def test_without_a_supernova_the_phase_learns_nothing_and_its_weight_stays() -> None:
    heads, balance = multitask.Heads(16), multitask.Balance(dict.fromkeys(("class", *multitask.REGRESSIONS), 1.0))
    encoded, nothing = torch.randn(6, 16), torch.full((6,), torch.nan)
    wanted = {"flux": torch.randn(6), "phase": nothing, "redshift": torch.cat([torch.randn(2), nothing[:4]])}
    found, present = multitask.losses(torch.randn(6, 4), torch.arange(6) % 4, heads(encoded), wanted)
    total = balance(found, present)
    total.backward()
    assert total.isfinite()
    assert present == {"class": True, "flux": True, "phase": False, "redshift": True}
    assert heads.phase.weight.grad is None
    without = multitask.regression(heads(encoded)["phase"], nothing)
    without.backward()
    assert float(without.detach()) == 0
    assert (heads.phase.weight.grad == 0).all()
    assert (heads.redshift.weight.grad != 0).any()
    assert balance.logs["phase"].grad is None
    assert balance.logs["flux"].grad is not None


def test_uncertainties_settle_at_the_logarithm_of_the_loss_and_are_clamped() -> None:
    balance = multitask.Balance({"a": 2.0, "b": 1.0})
    optimiser = torch.optim.SGD(balance.parameters(), 0.1)
    for _ in range(400):
        optimiser.zero_grad()
        balance({"a": torch.tensor(0.7), "b": torch.tensor(0.0)}).backward()
        optimiser.step()
    assert balance.log()["s_a"] == pytest.approx(math.log(2 * 0.7), abs=1e-3)
    assert balance.log()["s_b"] == multitask.LOWEST


def test_bias_and_resolution_by_bins() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(0, 5, 4000)
    by = rng.uniform(0, 20, 4000)
    found = wanted + 0.5 + rng.normal(0, np.where(by < 10, 2.0, 1.0))
    found[:10] = np.nan
    rows = multitask.resolution(found, wanted, by, (0, 10, 20, 30))
    assert [r["resolution"] for r in rows[:2]] == pytest.approx([2.0, 1.0], rel=0.1)
    assert [r["bias"] for r in rows[:2]] == pytest.approx([0.5, 0.5], abs=0.15)
    assert rows[2]["count"] == 0
    assert math.isnan(rows[2]["bias"])
    assert sum(r["count"] for r in rows) == 3990
