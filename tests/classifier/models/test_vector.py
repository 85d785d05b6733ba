"""The family `vector`: folded encoders, causal attention, and what is kept against the whole computation."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_tools import shown
from torch import Tensor
from zoo_tools import SCALING, batch, history, lively, logits, photometry

from skyheed.classifier import serving, taxonomy
from skyheed.classifier.errors import ModelError
from skyheed.classifier.history import History
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.base import parameters
from skyheed.classifier.models.checkpoint import Calibration, Info
from skyheed.classifier.models.encoders import Branches, RepVgg
from skyheed.classifier.models.token_cache import DIGEST, find
from skyheed.classifier.models.vector import Config, Vector, VectorFamily
from skyheed.classifier.models.vector_serving import TorchEngine
from skyheed.classifier.models.vector_updates import Updates

FAMILY = VectorFamily()


def made(**values: Any) -> Vector:
    torch.manual_seed(3)
    network = FAMILY.build(FAMILY.configure(values))
    assert isinstance(network, Vector)
    lively(network)
    return network


@dataclass(frozen=True)
class Said:
    logits: Tensor
    keep: list[dict[int, bytes]]


def serve(network: Vector, *histories: History) -> Said:
    said, keep = Updates(TorchEngine(network), network.inputs)(histories, SCALING)
    return Said(torch.from_numpy(said["logits"]), keep)


def test_parameters_part_by_part() -> None:
    network = made()
    assert FAMILY.facts(network.config) == {"parameters_encoder": 218_888}
    # 9 convolutions, 1x1 and identity branches with their batch norms; folded: a kernel and a bias each
    assert parameters(network.fold().encoder) == 195_304
    assert parameters(network.blocks) == 2 * 198_272
    assert parameters(network.embed) == 512 * 128 + 128
    assert parameters(network) == 218_888 + 65_664 + 6 * 128 + 4 * 128 + 396_544 + 256 + 1_028 == 683_660
    assert FAMILY.served_parameters(network) == 660_076


@pytest.mark.parametrize(("channels", "kernel", "stride"), [((3, 3), 3, 1), ((2, 4), 5, 2), ((3, 5), 3, 2)])
def test_folded_branches_equal_the_branches_to_rounding(channels: tuple[int, int], kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    branches = Branches(*channels, kernel, stride).double()
    for _ in range(3):  # batch statistics that are not the initial ones
        branches(torch.randn(8, channels[0], 12, 12, dtype=torch.float64) * 3 + 1)
    x = torch.randn(4, channels[0], 12, 12, dtype=torch.float64)
    before = branches.eval()(x)
    branches.fold()
    torch.testing.assert_close(branches(x), before, rtol=1e-12, atol=1e-12)
    assert [n.split(".")[0] for n, _ in branches.named_parameters()] == ["folded", "folded"]


@pytest.mark.parametrize("values", [{}, {"band": "film"}, {"encoder": "physnet"}])
def test_the_folded_network_says_the_same(values: dict[str, Any]) -> None:
    network = made(**values)
    seen = [history(5), history(2, 1)]
    torch.testing.assert_close(logits(network.fold(), seen), logits(network, seen), rtol=1e-5, atol=1e-5)
    exact = made(**values).double()
    given = {k: v.double() if v.is_floating_point() else v for k, v in batch(exact, seen).items()}
    torch.testing.assert_close(exact.fold()(given), exact(given), rtol=1e-10, atol=1e-10)


def test_training_goes_through_the_branches_and_folding_leaves_the_network_as_it_was() -> None:
    network = made()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.fold()
    assert before.keys() == network.state_dict().keys()
    encoder = network.encoder
    assert isinstance(encoder, RepVgg)
    network.train()(batch(network, [history(3)])).sum().backward()
    assert encoder.stem.point.weight.grad is not None
    assert encoder.stem.point.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("values", [{}, {"pooling": "attention"}, {"photometry": True}])
def test_every_beginning_is_classified_in_one_pass(values: dict[str, Any]) -> None:
    network = made(**values)
    seen = [history(7), history(4, 1), history(1, 2)]
    if values.get("photometry"):
        seen = [replace(h, photometry=photometry(h, 6 + n)) for n, h in enumerate(seen)]
    with torch.inference_mode():
        found, rows = network.beginnings(batch(network, seen), np.random.default_rng(0))
    assert rows.tolist() == [0] * 7 + [1] * 4 + [2]
    parts = [h.until(epochs=n) for h in seen for n in range(1, len(h) + 1)]
    torch.testing.assert_close(found, logits(network, parts), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "tolerance"), [({}, 1e-5), ({"pooling": "attention"}, 1e-5), ({"kept": "float16"}, 2e-2)]
)
def test_an_update_with_what_was_kept_equals_the_whole(values: dict[str, Any], tolerance: float) -> None:
    network = made(**values)
    wholes = [history(9), history(5, 1), history(3, 2), history(6, 3)]
    known = [8, 2, 0, 6]  # one epoch is new, some, all, none
    kept: list[dict[int, bytes]] = [{}, {}, {}, {}]
    starts = [(n, h.until(epochs=k)) for n, (h, k) in enumerate(zip(wholes, known, strict=True)) if k]
    for (n, _), keep in zip(starts, serve(network, *(h for _, h in starts)).keep, strict=True):
        kept[n] = dict(keep)
    served = serve(network, *(shown(h, k) for h, k in zip(wholes, kept, strict=True)))
    torch.testing.assert_close(served.logits, logits(network, wholes), rtol=tolerance, atol=tolerance)
    assert [sorted(k) for k in served.keep] == [[8], [2, 3, 4], [0, 1, 2], []]


def test_stamp_by_stamp_equals_the_whole_and_is_the_same_bits_each_time() -> None:
    network, whole = made(), history(12)

    def all_updates() -> list[bytes]:
        kept: dict[int, bytes] = {}
        said = []
        for n in range(1, 13):
            served = serve(network, shown(whole.until(epochs=n), kept))
            kept |= served.keep[0]
            assert list(served.keep[0]) == [n - 1]
            torch.testing.assert_close(served.logits, logits(network, [whole.until(epochs=n)]), rtol=1e-5, atol=1e-5)
            said.append(served.logits.numpy().tobytes())
        return said

    assert all_updates() == all_updates()


def test_what_is_kept_is_as_large_as_said() -> None:
    for values, each in (({}, 4 * 128 * 6), ({"kept": "float16"}, 2 * 128 * 6), ({"photometry": True}, 4 * 128)):
        (keep,) = serve(made(**values), history(2)).keep
        assert {len(v) for v in keep.values()} == {2 * DIGEST + each}


def test_a_late_epoch_ends_what_came_after_it_but_no_stamp_is_encoded_again() -> None:
    network, whole = made(), history(6)
    early = whole.take(np.array([0, 1, 3, 4, 5]))
    keep = serve(network, early).keep[0]
    moved = {n + (n >= 2): value for n, value in keep.items()}
    served = serve(network, shown(whole, moved))  # only the late stamp's image is here
    torch.testing.assert_close(served.logits, logits(network, [whole]), rtol=1e-5, atol=1e-5)
    assert sorted(served.keep[0]) == [2, 3, 4, 5]


def test_a_window_that_moves_ends_all_that_was_kept_but_the_stamps_vectors() -> None:
    network, whole = made(), history(7)
    keep = serve(network, whole.newest(6).until(epochs=5)).keep[0]
    later = whole.take(np.arange(2, 7))
    served = serve(network, shown(later, {n - 1: value for n, value in keep.items() if n}))
    torch.testing.assert_close(served.logits, logits(network, [later]), rtol=1e-5, atol=1e-5)
    assert sorted(served.keep[0]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("change", ["source_id", "mjd", "band"])
def test_what_was_kept_of_another_epoch_is_not_taken(change: str) -> None:
    network, whole = made(), history(4)
    kept = dict(serve(network, whole.until(epochs=3)).keep[0])
    values = getattr(whole, change).copy()
    values[1] += 1
    other = replace(whole, **{change: values})
    served = serve(network, replace(other, kept=kept))
    torch.testing.assert_close(served.logits, logits(network, [other]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="images of some of these epochs are missing"):
        serve(network, shown(other, kept))


def test_damaged_or_strange_things_are_computed_again() -> None:
    network, whole = made(), history(3)
    kept: dict[int, bytes] = {0: bytes(5), 1: bytes(16 + 4 * 768), 7: bytes(3)}
    torch.testing.assert_close(
        serve(network, replace(whole, kept=kept)).logits, logits(network, [whole]), rtol=1e-5, atol=1e-5
    )
    assert not find([replace(whole, kept=kept)], 768, np.dtype("float32"))[0].stamps.any()


def test_all_kinds_of_images_and_which_are_missing() -> None:
    network = made(images="all")
    plain = history(3)
    science = plain.images["science"]
    every = replace(plain, images={"science": science, "difference": science, "template": science // 2})
    both = logits(network, [plain, every])
    assert (both[0] - both[1]).abs().max() > 1e-4
    alone = torch.cat([logits(network, [h]) for h in (plain, every)])
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-5)
    network.train()
    torch.manual_seed(0)
    images = torch.ones(4000, 3, 1, 1)
    left = network._withheld(images).mean((0, 2, 3))
    assert left[0] == 1  # the science stamp is always there
    assert left[1:].sub(0.7).abs().max() < 0.03
    assert FAMILY.needs(network.config).images == ("science", "difference", "template")


def test_points_up_to_an_epoch_are_seen_and_later_ones_are_not() -> None:
    network = made(photometry=True)
    plain = history(5)
    points = photometry(plain, 20)
    several = replace(plain, photometry=points)
    said = logits(network, [several])
    assert (said - logits(network, [plain])).abs().max() > 1e-3
    late = replace(points, mjd=np.where(np.arange(20) == 19, plain.mjd[-1] + 5, points.mjd))
    changed = replace(late, flux=np.where(np.arange(20) == 19, 1e6, late.flux).astype(np.float32))
    both = logits(network, [replace(plain, photometry=p) for p in (late, changed)])
    torch.testing.assert_close(both[0], both[1], rtol=1e-6, atol=1e-6)
    served = serve(network, several)
    again = serve(network, shown(several, dict(served.keep[0])))
    torch.testing.assert_close(again.logits, said, rtol=1e-5, atol=1e-5)


def test_switched_on_but_not_used_says_what_the_plain_form_says() -> None:
    plain, rich = made(), made(photometry=True, context=True)
    left = rich.load_state_dict(plain.state_dict(), strict=False)
    assert not left.unexpected_keys
    seen = [history(4), history(2, 1)]
    torch.testing.assert_close(logits(rich, seen), logits(plain, seen), rtol=1e-5, atol=1e-5)


def test_context_is_scaled_and_may_be_missing() -> None:
    network = made(context=True)
    seen = [replace(history(2, n), context={"reference_magnitude": 20.0 + n, "strange": 1.0}) for n in range(3)]
    network.fit_inputs(seen, SCALING)
    assert network.context is not None
    assert network.context.mean.tolist() == [0, 21, 0, 0, 0]
    before = logits(network, seen[:1])
    with torch.no_grad():
        network.context.outer.weight.normal_()
    after = logits(network, [seen[0], replace(seen[0], context={})])
    assert (after[0] - before[0]).abs().max() > 1e-3
    torch.testing.assert_close(after[1], before[0], rtol=1e-5, atol=1e-5)


def test_a_checkpoint_is_served_folded_and_with_what_was_kept(tmp_path: Path) -> None:
    network, whole = made(), history(6)
    about = Info(
        "test", "1", network.config.to_dict(), taxonomy.CLASSES, "ugriz", ("sdss",), SCALING, family="vector",
        calibration=Calibration((1.0, 10.0), (1.2, 0.8), (2.0, 1.0, 0.5, 0.5)),
    )  # fmt: skip
    checkpoint.save(tmp_path, network.state_dict(), about)
    model = serving.load(tmp_path, survey="sdss", device="cpu")
    (early,) = model.predict([whole.until(epochs=5)])
    (late,) = model.predict([shown(whole, dict(early.keep))])
    (plain,) = model.predict([whole])
    np.testing.assert_allclose(late.probabilities, plain.probabilities, rtol=1e-5, atol=1e-5)
    assert (sorted(early.keep), sorted(late.keep), sorted(plain.keep)) == ([0, 1, 2, 3, 4], [5], [0, 1, 2, 3, 4, 5])
    expected = about.calibration(logits(network, [whole]).numpy(), np.array([6]))[0]
    np.testing.assert_allclose(plain.probabilities, expected, rtol=1e-4, atol=1e-5)
    assert model.needs.span == 1
    asked = serving.load(tmp_path, survey="sdss", device="cpu", precision="bfloat16")
    assert asked.chosen.endswith(", float32 (all that this model computes in)")  # it is not said to compute otherwise
    assert asked.chosen.startswith("cpu x")
    assert len(model.kept_as) == 16


def test_an_update_does_not_grow_with_the_history() -> None:
    few, many = (FAMILY.operations(Config(), n) for n in (3, 99))
    assert 18e6 < few < many < 1.01 * few


def test_configurations_that_cannot_be() -> None:
    with pytest.raises(ModelError, match="width is 130: give a multiple of heads"):
        FAMILY.configure({"width": 130})
    with pytest.raises(ModelError, match="band is film, which the encoder vit does not know"):
        FAMILY.configure({"encoder": "vit", "band": "film"})
    with pytest.raises(ModelError, match="does not know the key depth"):
        FAMILY.configure({"depth": 1})
