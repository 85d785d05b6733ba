"""SuperNNova: its inputs, and the Bayesian form against the plain one and against closed forms."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from zoo_tools import SCALING, batch, history

from skyheed.classifier.models.base import Network, parameters
from skyheed.classifier.models.supernnova import (
    NARROW,
    RHO,
    SHARE,
    WIDE,
    SuperNNova,
    SuperNNovaFamily,
    Weights,
    log_prior,
)

FAMILY = SuperNNovaFamily()
SEEN = [history(12, 1), history(5, 2), history(8, 3)]


def made(**values: Any) -> SuperNNova:
    torch.manual_seed(4)
    network = FAMILY.build(FAMILY.configure(values))
    assert isinstance(network, SuperNNova)
    network.fit_inputs(SEEN, SCALING)
    return network.eval()


def test_the_columns_of_a_night() -> None:
    network = made()
    night = replace(history(5), mjd=59_000 + np.arange(5) * 0.001)  # one of all five bands
    given = batch(network, [night, history(3)])
    assert given["filters"].tolist() == [[31, 0, 0], [1, 2, 4]]
    scaled = network.scaled(given)
    assert scaled.shape[2] == 42
    assert scaled[0, 0, 11:].tolist() == [0.0] * 30 + [1.0]
    assert parameters(made(bands="griz")) == 40_196
    assert batch(made(bands="gr"), [history(9)])["measured"].shape[2] == 5  # 8 columns with the three combinations


def test_statistics_are_taken_once_and_of_all_bands_together() -> None:
    network = made()
    given = batch(network, SEEN)
    flux = given["measured"][given["valid"]][:, :5].double()
    logs = (flux - flux.min() + 1e-5).log()
    scaled = (logs - logs.mean()) / logs.std()
    torch.testing.assert_close(network.scaled(given)[given["valid"]][:, :5].double(), scaled, rtol=1e-4, atol=1e-4)


def test_without_scatter_the_bayesian_form_is_the_plain_one_with_its_means() -> None:
    plain, bayes = made(), made(bayes=True)
    state = {}
    for name, value in bayes.named_parameters():
        if ".rho." in name:
            value.data.fill_(-200)
        if ".mu." in name:
            state[name.replace(".weights.mu.", ".")] = value
    plain.load_state_dict({**plain.state_dict(), **state, "head.bias": bayes.state_dict()["head.bias"]})
    given = batch(plain, SEEN)
    torch.testing.assert_close(bayes(given), plain(given), rtol=0, atol=2e-4)  # the scatter is 1e-5 at least
    for network in (plain, bayes):
        network(given)[:, 0].sum().backward()
    learnt = dict(bayes.named_parameters())
    for name, value in plain.named_parameters():
        if name != "head.bias":
            part, rest = name.split(".")
            torch.testing.assert_close(learnt[f"{part}.weights.mu.{rest}"].grad, value.grad, rtol=1e-2, atol=1e-3)


def test_the_beginning_as_published() -> None:
    weights = Weights({"a": torch.Size([200, 50])}).requires_grad_(False)
    assert -0.05 <= float(weights.mu["a"].min()) < -0.049 < 0.049 < float(weights.mu["a"].max()) <= 0.05
    scatter = math.sqrt(SHARE * math.exp(-2) + (1 - SHARE) * math.exp(-14))
    assert round(scatter, 4) == 0.3186
    for n, rho in zip((4, 3), RHO, strict=True):
        assert rho == pytest.approx(math.log(math.exp(scatter / n) - 1))
    assert RHO[0] - 1e-6 <= float(weights.rho["a"].min()) <= float(weights.rho["a"].max()) <= RHO[1] + 1e-6


def test_the_prior_is_a_mixture_weight_by_weight() -> None:
    values = torch.tensor([-1.0, 0.0, 1e-3, 0.4], dtype=torch.float64)

    def density(x: float) -> float:
        both = ((SHARE, WIDE), (1 - SHARE, NARROW))
        return sum(p * math.exp(-((x / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi)) for p, s in both)

    expected = torch.tensor([math.log(density(x)) for x in values.tolist()], dtype=torch.float64)
    torch.testing.assert_close(log_prior(values), expected, rtol=1e-6, atol=1e-6)


def test_no_divergence_where_the_weights_are_as_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weights = Weights({"a": torch.Size([30, 30])})
    weights.mu["a"].data.zero_()
    weights.rho["a"].data.fill_(math.log(math.expm1(WIDE - 1e-5)))
    monkeypatch.setattr("skyheed.classifier.models.supernnova.log_prior", lambda w: log_prior(w, share=1))
    weights.draw()
    assert abs(float(weights.divergence().detach())) < 0.05  # of 900 weights
    weights.mu["a"].data.fill_(1.0)
    weights.draw()
    assert float(weights.divergence().detach()) / 900 == pytest.approx(1 / (2 * WIDE**2), rel=0.1)


def test_the_gradient_of_the_divergence_by_finite_differences() -> None:
    weights = Weights({"a": torch.Size([3])}).double()

    def divergence() -> torch.Tensor:
        weights.generator = torch.Generator().manual_seed(5)
        weights.draw()
        return weights.divergence()

    divergence().backward()  # type: ignore[no-untyped-call]
    for value in (weights.mu["a"], weights.rho["a"]):
        assert value.grad is not None
        for n in range(3):
            found = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    value[n] += step
                    found.append(float(divergence().detach()))
                    value[n] -= step
            assert (found[0] - found[1]) / 2e-6 == pytest.approx(float(value.grad[n].detach()), rel=1e-4)


def test_fifty_draws_are_averaged_and_repeat() -> None:
    network = made(bayes=True)
    given = batch(network, SEEN)
    with torch.inference_mode():
        logits, spread = network.predictive(given)
        again, _ = network.predictive(given)
        one, other = network(given), network(given)
    assert spread is not None
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(3))
    assert torch.equal(again, logits)
    assert not torch.equal(one, other)  # draws of training differ
    assert spread.shape == (3,)
    assert (spread > 0).all()
    assert made().predictive(given)[1] is None


def test_the_divergence_is_shared_by_the_objects_to_learn_from_and_drives_towards_the_prior() -> None:
    network = made(bayes=True)
    network(batch(network, SEEN))
    whole = network.regularisation()
    network.objects = 50
    torch.testing.assert_close(network.regularisation(), whole / 50)
    weaker = made(bayes=True, divergence=0.1)
    weaker.load_state_dict(network.state_dict())
    weaker.objects = 50
    torch.manual_seed(3)
    weaker(batch(weaker, SEEN))
    torch.manual_seed(3)
    network(batch(network, SEEN))
    torch.testing.assert_close(weaker.regularisation(), network.regularisation() / 10)
    assert float(whole.detach()) > 1000
    plain: Network = made()
    assert float(plain.regularisation().detach()) == 0
    assert parameters(copy.deepcopy(network)) == parameters(network)  # also after a pass
