"""The family `fusion`: numbers, late joining, fitted heads, what is unlike training, serving with what is kept."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo_tools import SCALING, batch, history, lively, logits, photometry

from skyheed.classifier import serving, taxonomy
from skyheed.classifier.errors import ModelError
from skyheed.classifier.history import DETECTION, FORCED, UPPER_LIMIT, History, Photometry
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.checkpoint import Calibration, Info
from skyheed.classifier.models.fusion.features import NUMBERS, SURROUNDINGS, table
from skyheed.classifier.models.fusion.light_curves import CURVE, curves, measurements
from skyheed.classifier.models.fusion.linear_heads import Fitted
from skyheed.classifier.models.fusion.network import Fusion, FusionFamily
from skyheed.classifier.prediction import Declined
from skyheed.classifier.training import few_shot

FAMILY = FusionFamily()
CONTEXT = {"reference_distance": 2.0, "reference_magnitude": 18.0, "catalogue_1_distance": 1.0, "catalogue_1_star": 0.2}


def made(**values: Any) -> Fusion:
    torch.manual_seed(3)
    network = FAMILY.build(FAMILY.configure(values))
    assert isinstance(network, Fusion)
    network.fit_inputs([whole(n) for n in range(2, 8)], SCALING)
    lively(network)
    return network


def whole(n: int, seed: int = 0) -> History:
    seen = history(n, seed)
    images = {**seen.images, "difference": seen.images["science"], "template": seen.images["science"] * 0}
    return replace(seen, images=images, photometry=photometry(seen, 12), context=CONTEXT)


def points(*rows: tuple[float, int, float, float, int]) -> Photometry:
    columns = zip(*rows, strict=True)
    kinds = (np.float64, np.uint8, np.float32, np.float32, np.uint8)
    return Photometry(*(np.array(c, k) for c, k in zip(columns, kinds, strict=True)))


def test_numbers_by_hand() -> None:
    seen = replace(
        history(2, bands=(1,)), mjd=np.array([60_000.0, 60_004.0]), flux=np.array([1e4, 4e4], np.float32),
        photometry=points((59_990.0, 1, 0, 500, UPPER_LIMIT), (59_996.0, 2, 0, 400, UPPER_LIMIT),
                          (60_004.0, 2, 2e4, 500, DETECTION), (60_001.0, 2, 300, 400, FORCED),
                          (60_009.0, 2, 9e9, 1, DETECTION)),
        context={"detections": 3.0, "visits": 11.0, "age_days": 4.0}
        | {"catalogue_1_star": 0.75, "catalogue_1_distance": 0.0},
    )  # fmt: skip
    seen = replace(seen, photometry=seen.photometry and seen.photometry.take(np.argsort(seen.photometry.mjd)))
    found = dict(zip(NUMBERS, table([seen])[0].tolist(), strict=True))
    expected = {
        "magnitude": 31.4 - 2.5 * np.log10(2e4), "below_peak": 0.5, "detected_share": 3 / 4, "gap": np.log1p(4),
        "fresh": 1, "span": np.log1p(4), "negative": 0, "rise": np.log1p(4), "since_peak": 0,
        "on_star": 0.75, "on_galaxy": 0.25, "detections": np.log1p(3), "detected_visits": np.log(3.5 / 12),
    }  # fmt: skip
    assert {name: pytest.approx(found[name], rel=1e-5) for name in expected} == expected
    assert np.isnan([found["reference_distance"], found["catalogue_gr"]]).all()
    assert found["colour"] == pytest.approx(
        -2.5 * np.log10(2e4 / np.median([1e4, 4e4])) / np.log(0.48 / 0.62), rel=1e-4
    )


def test_one_exposure_counts_once_and_order_does_not_matter() -> None:
    seen = history(3, bands=(1,))
    same = [(float(m), 1, 500.0, 50.0, kind) for m in seen.mjd for kind in (FORCED, DETECTION)]
    alone = replace(seen, flux=np.abs(seen.flux))
    with np.errstate(invalid="ignore"):
        found = curves([alone, replace(alone, photometry=points(*same))])
    np.testing.assert_allclose(found[1], found[0])
    only = measurements([replace(seen, flux=np.full(3, np.nan, np.float32), photometry=points(*same))])
    assert len(only.mjd) == 3


def test_fluxes_that_are_all_0_are_not_known_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = table([history(6, fluxes=np.zeros(6))])
    assert not np.isinf(row).any()
    assert np.isnan(row[NUMBERS.index("below_peak")])


def test_what_is_not_known_adds_nothing() -> None:
    network = made()
    bare = replace(whole(3), context={}, photometry=None, flux=np.full(3, np.nan, np.float32))
    encoded = network.encode(batch(network, [bare]))
    _, numbers, known, imaged = network.parts(encoded)
    assert not known.any()
    assert not numbers.any()
    assert imaged.all()
    torch.testing.assert_close(network.classify(encoded), network.head(encoded[:, : network.sequence_width]))
    assert logits(network, [replace(bare, images={})]).isfinite().all()


def test_a_fitted_head_decides_between_groups_and_leaves_shares_within() -> None:
    fitted = Fitted(2, 4)
    fitted.group.copy_(torch.tensor([0, 1, 2, 1]))
    fitted.weight[7, :3] = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    fitted.bias[7, :3] = torch.tensor([0.0, 0.5, 0.0])
    given, numbers = torch.tensor([[0.3, 1.0, -1.0, 0.2]]), torch.tensor([[0.5, torch.nan]])
    known = torch.tensor([[True, True, True]])
    torch.testing.assert_close(fitted(numbers, known, given), given)  # switched off
    fitted.on.fill_(1)
    p = fitted(numbers, known, given).exp()[0]
    groups = torch.tensor([0.5, 0.5, 0.0]).softmax(0)
    torch.testing.assert_close(torch.stack([p[0], p[1] + p[3], p[2]]), groups)
    torch.testing.assert_close(p[1] / p[3], torch.tensor(0.8).exp())
    assert fitted(numbers, ~known, given).exp()[0].isfinite().all()


def labelled(count: int = 60, seed: int = 0) -> few_shot.Views:
    """Groups told by three numbers of the surroundings, among many of chance; each object twice."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(count) % 3, 2)
    inputs = rng.normal(0, 1, (2 * count, len(NUMBERS) + 4))
    inputs[np.arange(2 * count), 3 + group] += 5
    return few_shot.Views(
        inputs, np.ones((2 * count, 3), bool), rng.normal(0, 1, (2 * count, 4)), group, np.arange(2 * count) // 2
    )


def test_held_out_objects_are_told_by_what_matters_and_not_by_what_does_not() -> None:
    views = labelled()
    fold = few_shot.folds(views.group, views.objects, 5, 1)
    assert (fold[::2] == fold[1::2]).all()  # both views of an object together
    found = few_shot.held_out(views, 3, 0.1)
    right = {c: float((p.argmax(1) == views.group).mean()) for c, p in found.items()}
    assert right[7] > 0.85
    assert right[4] > 0.85  # the surroundings alone
    assert right[3] < 0.6  # images and light curve know nothing


def test_heads_in_the_network_say_what_they_said_in_numpy() -> None:
    network, views = made(), labelled()
    heads = few_shot.fit(views, 3, 0.1)
    few_shot.install(network, heads, [0, 1, 2, 1])
    given = (
        torch.from_numpy(views.inputs).float(),
        torch.from_numpy(views.kinds),
        torch.from_numpy(views.logits).float(),
    )
    p = network.fitted(*given).exp()
    together = torch.stack([p[:, 0], p[:, 1] + p[:, 3], p[:, 2]], 1)
    heads.bias[:, 1] += np.log(2)  # a group of two classes has twice the prior of one, as all classes are alike
    np.testing.assert_allclose(together.numpy(), np.exp(heads(views)), atol=1e-5)


def test_too_few_objects_are_refused() -> None:
    with pytest.raises(ModelError, match="can be used: 2 of AGN, 2 of SN, 2 of Variable; give 3 or more of each group"):
        few_shot.check(labelled(6), ("AGN", "SN", "Variable"))
    with pytest.raises(ModelError, match="can be used: 0 of SN; give"):
        few_shot.check_counts({"AGN": 3, "SN": 0})


def saved(network: Fusion, where: Path) -> Path:
    info = Info(
        "fusion-test", "1", network.config.to_dict(), taxonomy.CLASSES, "ugriz", ("ztf",), SCALING, Calibration(),
        family="fusion",
    )  # fmt: skip
    checkpoint.save(where, network.state_dict(), info)
    return where


def test_served_with_what_was_kept_as_without_and_from_the_first_alert(tmp_path: Path) -> None:
    network = made()
    few_shot.install(network, few_shot.fit(labelled(), 3, 0.1), [0, 1, 2, 1])
    model = serving.load(saved(network, tmp_path), survey="ztf")
    assert model.needs.fewest == 1
    assert model.needs.images == ("science", "difference", "template")
    assert (model.needs.photometry, model.needs.context) == (True, True)
    seen = whole(5)
    first = model.predict([seen.until(epochs=4)])[0]
    images = {kind: pixels[4:] for kind, pixels in seen.images.items()}
    later = model.predict([replace(seen, images=images, shown=np.array([4]), kept=first.keep)])[0]
    np.testing.assert_allclose(later.probabilities, model.predict([seen])[0].probabilities, atol=1e-5)
    assert model.predict([whole(1)])[0].reason is None


def test_what_is_unlike_training_is_declined_but_classified_for_evaluation(tmp_path: Path) -> None:
    network, views = made(), labelled()
    few_shot.install_familiar(network, views, views.rows(slice(0)), 3)
    numbers = torch.from_numpy(views.inputs[:, : len(NUMBERS)]).float()
    assert float((network.familiar(numbers) > 1).float().mean()) < 0.02
    assert (network.familiar(numbers + 20) > 1).all()
    model = serving.load(saved(network, tmp_path), survey="ztf")
    strange = replace(whole(2), context={"reference_magnitude": 23.0, "galactic_latitude": 60.0, "age_days": 1e4})
    assert model.predict([strange])[0].reason == Declined.UNLIKE_TRAINING
    assert len(model.classify([strange])[0].probabilities) == 4


def test_training_sees_every_beginning_and_withholds_numbers() -> None:
    network = made().train()
    found, rows = network.beginnings(batch(network, [whole(4), whole(2, 1)]), np.random.default_rng(0))
    assert rows.tolist() == [0] * 4 + [1] * 2 + [0, 1]
    found.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    torch.manual_seed(0)
    known = torch.ones(400, len(NUMBERS), dtype=torch.bool)
    shown = network._withheld_numbers(known)
    whole_kind = shown[:, : len(SURROUNDINGS)].any(1)
    assert 0.6 < float(whole_kind.float().mean()) < 0.8
    assert len(CURVE) + len(SURROUNDINGS) == len(NUMBERS)


def test_it_refuses_to_be_less_than_a_fusion() -> None:
    with pytest.raises(ModelError, match="use the model vector"):
        FAMILY.configure({"photometry": False})
