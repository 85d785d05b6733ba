"""The learning curve of few labelled objects, on views of which it is known what can be learnt from them."""

import numpy as np
import pytest

from skyheed.classifier.models.fusion.features import NUMBERS
from skyheed.classifier.models.fusion.linear_heads import MODALITIES
from skyheed.classifier.training import few_shot, learning_curve

IMAGES = 4  # numbers that the network makes of images
OF_CLASS = (0, 1, 2, 1)  # AGN, supernovae of two kinds, variables
NETWORK, ALONE, ALL = "network", MODALITIES[0], " + ".join(MODALITIES)


def views(per_group: int) -> few_shot.Views:
    """Two views of every object; images say nothing, surroundings everything, and the network always says AGN."""
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(3), 2 * per_group)
    inputs = rng.normal(0, 1, (len(group), len(NUMBERS) + IMAGES))
    inputs[:, 0], inputs[:, 1] = group == 0, group == 1
    logits = np.tile([5.0, 0, 0, 0], (len(group), 1))
    known = np.ones((len(group), len(MODALITIES)), bool)
    return few_shot.Views(inputs, known, logits, group, np.repeat(np.arange(3 * per_group), 2))


def first_of(found: few_shot.Views) -> np.ndarray:
    return np.arange(len(found.group)) % 2 == 0


def test_what_tells_classes_apart_is_learnt_and_noise_is_not() -> None:
    own = views(20)
    found = learning_curve.curve(own, first_of(own), OF_CLASS)
    assert set(found) == {NETWORK, ALONE, ALL}
    assert found[NETWORK] == {"0": round(1 / 3, 4)}
    means = {name: [found[name][str(count)]["mean"] for count in learning_curve.COUNTS] for name in (ALONE, ALL)}
    assert means[ALL][0] < means[ALL][-1]
    assert means[ALL][-1] > 0.9
    assert max(means[ALONE]) < 0.5
    for count in learning_curve.COUNTS:
        entry = found[ALL][str(count)]
        assert entry["draws_68"][0] <= entry["mean"] <= entry["draws_68"][1]
        assert entry["objects_left"] == 3 * (20 - count), "none is measured that was learnt from"


def test_counts_that_leave_too_few_objects_are_left_out() -> None:
    own = views(5)
    found = learning_curve.curve(own, first_of(own), OF_CLASS)
    assert set(found[ALL]) == {"1"}


def test_the_same_seed_draws_the_same_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_curve, "DRAWS", 4)
    own = views(12)
    one, again, other = (learning_curve.curve(own, first_of(own), OF_CLASS, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
