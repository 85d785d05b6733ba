"""What holds of every model family: its size, padding, company, beginnings, learning, order, extremes, saving."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from zoo_tools import SCALING, batch, count_by_name, history, learn, lively, nines

from skyheed.classifier.errors import ModelError
from skyheed.classifier.history import IMAGE_KINDS, History
from skyheed.classifier.models.base import Config, Network, parameters
from skyheed.classifier.models.family import family, presets
from skyheed.classifier.nights import nights
from skyheed.classifier.training import objectives

COUNTS = {
    "lstm": 60_324, "cnn-gru": 1_993_140, "cnn-lstm": 2_190_260, "supernnova": 44_804, "supernnova-bayes": 89_604,
    "sits-bert": 596_036, "scone": 22_540, "vector": 683_660, "physnet": 767_774, "vit": 1_211_268, "swin": 548_464,
    "fusion": 196_004,
    "convention": 1_087_276, "convention-2d": 489_996,
}  # fmt: skip
G_ONLY = {"cnn-gru": 1_992_564, "cnn-lstm": 2_189_684}
IMAGES = ("cnn-gru", "cnn-lstm", "vector", "physnet", "vit", "swin", "convention", "convention-2d", "convention-paper")
SLOW = (
    "cnn-gru",
    "cnn-lstm",
    "physnet",
    "vit",
    "swin",
    "convention",
    "convention-2d",
    "convention-paper",
)  # learning by heart takes them more than a few seconds
RATES = {**dict.fromkeys(SLOW, 1e-3)}  # of learning
CALM = {"dropout": 0.0}  # for what is to be learnt by heart

PAPER = "convention-paper"  # which needs all its padding, and is computed in full: here with few places
ALL = (*COUNTS, PAPER)

each = pytest.mark.parametrize("preset", COUNTS)
each_with_paper = pytest.mark.parametrize("preset", ALL)
each_quick = pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=[pytest.mark.long] * (name in SLOW)) for name in ALL]
)


def build(preset: str, seen: list[History] | None = None, **values: Any) -> Network:
    torch.manual_seed(2)
    network = family_of(preset).build(configured(preset, **values))
    network.fit_inputs(seen or [history(12, seed) for seed in range(4)], SCALING)
    return lively(network)


def predicted(network: Network, seen: list[History]) -> Tensor:
    with torch.inference_mode():
        return network.eval().predictive(batch(network, seen))[0]


@each
def test_the_number_of_parameters(preset: str) -> None:
    network = build(preset)
    assert parameters(network) == COUNTS[preset] == sum(count_by_name(network).values())
    assert 0 < family_of(preset).served_parameters(network) <= COUNTS[preset]
    if preset in G_ONLY:
        assert parameters(build(preset, bands="g")) == G_ONLY[preset]


TOKENS = {  # of `vector` with any encoder of 64 maps of 8x8, behind the encoder
    "band": 6 * 128, "time": 3 * 128 + 128, "blocks": 2 * (12 * 128**2 + 13 * 128), "norm": 2 * 128,
    "head": 256 * 4 + 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "parts"),
    [
        ("vector", {"encoder": 218_888, "embed": 8 * 64 * 128 + 128, **TOKENS}),
        (
            "physnet",
            {"encoder": 296_338 + 64 * 8 + 8, "embed": 8 * 64 * 128 + 128, "band_images": 6 * 32 * 32, **TOKENS},
        ),
        ("vit", {"encoder": 128 + 16 * 128 + 128 + 4 * 198_272 + 256, "embed": 128 * 128 + 128, **TOKENS}),
        ("swin", {"encoder": 134_892, "embed": 64 * 128 + 128, "band_images": 6 * 32 * 32, **TOKENS}),
        ("fusion", {"blocks": 2 * (12 * 64**2 + 13 * 64), "head": 128 * 4 + 4, "band": 6 * 64, "encoder": 15_264}),
        (
            "convention-2d",
            {
                "features": 10 * 1024
                + 64 * (2 * 121 + 1)
                + 128 * (64 * 25 + 1)
                + 64 * (128 * 9 + 1)
                + 8 * (64 * 9 + 1)
                + 528,
                "blocks": 2 * 6_572,
                "head": 256 * (8 * 81 + 1) + 257 * 4,
            },
        ),
        ("cnn-gru", {"cnn": 794_160 + 540_800, "rnn": 591_360, "head": 66_820}),
        ("cnn-lstm", {"rnn": 788_480}),
        ("lstm", {"rnn": 59_856, "head": 468}),
        ("supernnova", {"lstm": 19_456 + 25_088, "head": 260}),
        ("supernnova-bayes", {"lstm": 2 * 44_544, "head": 2 * 256 + 4}),
        ("sits-bert", {"embed": 64 * 10 + 64, "blocks": 3 * 198_272, "head": 516}),
        ("scone", {"layers": 6_176 + 3_104 + 2 * 784 + 8, "dense": 360 * 32 + 32, "head": 132}),
    ],
)
def test_parameters_part_by_part(preset: str, parts: dict[str, int]) -> None:
    found = count_by_name(build(preset))
    assert {name: found[name] for name in parts} == parts


def test_encoders_have_the_published_sizes() -> None:
    for preset, count in (("physnet", 296_338), ("swin", 134_892), ("vit", 795_648)):
        assert family_of(preset).facts(configured(preset))["parameters_encoder"] == count
    assert family_of("vit").facts(configured("vit"))["parameters_with_decoder"] == 905_104


@each
def test_padding_changes_nothing(preset: str) -> None:
    network = build(preset)
    given = batch(network, [history(9), history(3, 1), history(1, 2)])
    if "valid" in given:  # an image of a light curve has no padding
        with torch.inference_mode():
            plain, other = network.predictive(given)[0], network.predictive(nines(given))[0]
        torch.testing.assert_close(other, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("preset", ["convention", PAPER])
def test_places_of_a_group_without_a_stamp_are_empty(preset: str) -> None:
    """The 3-D CNN sees them: they are always the same, whatever lies in memory."""
    network = build(preset)
    given = batch(network, [history(4), history(2, 1)])
    absent = ~given["present"].bool()
    assert absent[0, 1].tolist() == [False, True, True]
    for name in ("pixels", "bands"):
        assert not given[name][absent].any()


@each_with_paper
def test_alone_and_in_company_alike(preset: str) -> None:
    network = build(preset)
    seen = [history(9), history(3, 1), history(1, 2)]
    together = predicted(network, seen)
    alone = torch.cat([predicted(network, [h]) for h in seen])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@each_with_paper
def test_beginnings_are_classified_as_if_there_was_no_more(preset: str) -> None:
    network = build(preset)
    for name, value in network.named_parameters():
        if ".rho." in name:
            value.data.fill_(-200)  # drawn weights would differ from pass to pass
    seen = [history(7), history(4, 1), history(2, 2)]
    torch.manual_seed(0)
    with torch.inference_mode():
        found, rows = network.beginnings(batch(network, seen), np.random.default_rng(0))
    assert set(rows.tolist()) == {0, 1, 2}
    parts = [predicted(network, [h.until(epochs=n) for n in range(1, len(h) + 1)]) for h in seen]
    found = found.log_softmax(1)  # the Bayesian form says logarithms of probabilities
    parts = [part.log_softmax(1) for part in parts]
    for said, row in zip(found, rows, strict=True):
        assert (parts[row] - said).abs().amax(1).min() < 1e-4
    whole = predicted(network, seen).log_softmax(1)
    for row in range(3):  # and the whole is among them
        assert (found[rows == row] - whole[row]).abs().amax(1).min() < 1e-4


@pytest.mark.parametrize("preset", ["convention", "convention-2d"])
def test_the_beginnings_that_convention_learns_from_are_classified_as_if_there_was_no_more(preset: str) -> None:
    network: Any = build(preset)
    seen = [history(9), history(6, 1)]
    given = batch(network, seen)
    shown = objectives.prefixes(given["valid"], 3, np.random.default_rng(1))
    with torch.inference_mode():
        tokens = network.tokens(given["pixels"], given["bands"], given["valid"])
        again = [t.repeat(4, *[1] * (t.dim() - 1)) for t in (tokens, given["days"], given["present"])]
        found = network.logits(again[0], shown, again[1], again[2])
    group, row = network.config.group, np.arange(8) % 2
    counts = shown.sum(1).tolist()
    assert len(set(counts)) > 2
    for said, n, index in zip(found, counts, row, strict=True):
        (alone,) = predicted(network, [seen[index].until(epochs=group * n)])
        torch.testing.assert_close(said, alone, rtol=1e-5, atol=1e-5)


def learn_by_heart(network: Network, seen: list[History], labels: Tensor, steps: int, rate: float) -> float:
    return max(learn(network, batch(network, seen), labels, steps, rate))


def few_epochs(preset: str) -> int:
    if preset in ("convention", PAPER):
        return 6  # two groups
    return 3 if preset in IMAGES else 8


@each_quick
def test_sixteen_objects_are_learnt_by_heart(preset: str) -> None:
    seen = [history(few_epochs(preset), seed) for seed in range(16)]
    network = calm(preset, seen)
    labels = torch.arange(16) % 4
    assert (
        learn_by_heart(network, seen, labels, 2000 if preset == "supernnova-bayes" else 400, RATES.get(preset, 3e-3))
        == 1
    )


@pytest.mark.parametrize("preset", SLOW)
def test_a_few_objects_are_learnt_by_heart(preset: str) -> None:
    seen = [history(1 + n % 2, n) for n in range(4)]
    assert learn_by_heart(calm(preset, seen), seen, torch.arange(4), 40, 1e-3) == 1


def calm(preset: str, seen: list[History]) -> Network:
    """Without dropout and noise of weights."""
    values: dict[str, Any] = {} if preset == "lstm" else dict(CALM)
    if preset == "scone":
        values["late_dropout"] = 0.0
    network = build(preset, seen, **values)
    for name, value in network.named_parameters():
        if ".rho." in name:
            value.data.fill_(-12)
            value.requires_grad_(False)
        if ".mu." in name:
            value.data.mul_(3.5)  # as large as those of a plain LSTM: small ones take long to begin to learn
    return network


def ramps(count: int, epochs: int, seed: int, step: float = 5.0) -> tuple[list[History], Tensor]:
    """Objects of one band that rise (1) or fall (0): the same fluxes in another order."""
    rng = np.random.default_rng(seed)
    rising = rng.random(count) < 0.5
    seen = []
    for n, up in enumerate(rising):
        fluxes = np.linspace(5, 60, epochs) * rng.uniform(0.8, 1.2)
        seen.append(history(epochs, 1000 * seed + n, fluxes if up else fluxes[::-1], bands=[2], step=step))
    return seen, torch.from_numpy(rising.astype(np.int64))


@each_quick
def test_rising_and_falling_are_told_apart(preset: str) -> None:
    epochs = few_epochs(preset)
    seen, labels = ramps(24, epochs, 1)
    others, wanted = ramps(40, epochs, 2)
    network = calm(preset, seen)
    learn_by_heart(network, seen, labels, 200, RATES.get(preset, 3e-3))
    assert (predicted(network, others).argmax(1) == wanted).float().mean() > 0.85


def test_what_pools_without_time_cannot_tell_them_apart() -> None:
    """The toy is about order: means of fluxes over nights are at chance on it."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))

        def forward(self, given: dict[str, Tensor]) -> Tensor:
            out: Tensor = self.layers(given["pooled"])
            return out

    def pooled(seen: list[History]) -> Tensor:
        made = [nights(h).flux[:, 2] for h in seen]
        return torch.tensor([[m.mean() / 3000, m.std() / 3000] for m in made])

    torch.manual_seed(0)
    (seen, labels), (others, wanted) = ramps(24, 8, 1), ramps(200, 8, 2)
    network: Any = Pooled()
    list(learn(network, {"pooled": pooled(seen)}, labels, 200, 3e-3))
    assert (network({"pooled": pooled(others)}).argmax(1) == wanted).float().mean() < 0.65


@each_with_paper
def test_the_order_of_nights_matters(preset: str) -> None:
    network = build(preset)
    plain = history(6, bands=[2])
    order = np.array([3, 0, 5, 1, 4, 2])
    mixed = replace(
        plain, flux=plain.flux[order], flux_error=plain.flux_error[order],
        images={"science": plain.images["science"][order]},
    )  # fmt: skip
    given = {k: v.double() if v.is_floating_point() else v for k, v in batch(network, [plain, mixed]).items()}
    with torch.inference_mode():
        said = network.double().predictive(given)[0]  # an untrained cell forgets much, but not all, of early nights
    assert (said[0] - said[1]).abs().max() > 1e-8


def unknown_fluxes(seen: History) -> History:
    return replace(seen, flux=np.full(len(seen), np.nan, np.float32), flux_error=np.full(len(seen), np.nan, np.float32))


EXTREMES: dict[str, Callable[[], list[History]]] = {
    "one epoch": lambda: [history(1), history(1, 1)],
    "99 epochs": lambda: [history(99, step=3.0)],
    "one band": lambda: [history(5, bands=[3]), history(3, bands=[3])],
    "a band that it does not know": lambda: [history(3, bands=[5]), history(4)],
    "at one time": lambda: [replace(history(4), mjd=np.full(4, 59_000.0)), history(2)],
    "no fluxes": lambda: [unknown_fluxes(history(4)), history(2)],
}


@pytest.mark.parametrize("extreme", EXTREMES)
@each_with_paper
def test_losses_and_gradients_are_finite(preset: str, extreme: str) -> None:
    network = build(preset, **({"stamps": 99} if preset == PAPER and extreme == "99 epochs" else {}))
    seen = EXTREMES[extreme]()
    network.train()
    logits, rows = network.beginnings(batch(network, seen), np.random.default_rng(0))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(rows % 4)) + network.regularisation()
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    assert predicted(network, seen).isfinite().all()


@each_with_paper
def test_saved_and_loaded_says_the_same_bits(preset: str, tmp_path: Path) -> None:
    network = build(preset)
    seen = [history(5), history(2, 1)]
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(99)
    again = type(network)(family_of(preset).configure(network.config.to_dict()))
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(predicted(again, seen), predicted(network, seen))


def family_of(preset: str) -> Any:
    return presets()[preset].family


def configured(preset: str, **values: Any) -> Any:
    known = presets()[preset]
    few = {"stamps": 12} if preset == PAPER else {}
    return known.family.configure({**known.network, **few, **values})


@each
def test_what_a_family_says_of_itself(preset: str) -> None:
    own = family_of(preset)
    config = configured(preset)
    needs = own.needs(config)
    assert needs.fewest == (3 if preset in ("convention", PAPER) else 1)
    assert needs.most == config.stamps
    assert needs.images == (IMAGE_KINDS if preset == "fusion" else ("science",) if preset in IMAGES else ())
    costs = [own.operations(config, n) for n in (3, 12, 48, 99)]
    assert costs == sorted(costs)
    assert costs[0] > 0
    assert own.summary


def test_a_configuration_is_refused_in_one_sentence() -> None:
    with pytest.raises(ModelError, match="no model family transformer: known are"):
        family("transformer")
    with pytest.raises(ModelError, match="bands is 'gx': give letters of ugrizy"):
        family("lstm").configure({"bands": "gx"})
    with pytest.raises(ModelError, match="bands is '': give a text"):
        family("recurrent").configure({"bands": ""})
    with pytest.raises(ModelError, match="cell is 'rnn': use gru or lstm"):
        family("recurrent").configure({"cell": "rnn"})
    assert isinstance(family("scone").configure({}), Config)
