"""What is kept, against order: epochs, points and windows that come in any way end in what the whole history says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo_tools import SCALING, history, lively, photometry

from skyheed.classifier import serving, taxonomy
from skyheed.classifier.history import History
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.base import Model
from skyheed.classifier.models.checkpoint import Calibration, Info
from skyheed.classifier.models.family import family


@pytest.fixture(scope="module", params=["vector", "fusion"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(4)
    own = family(request.param)
    network = own.build(own.configure({}))
    network.fit_inputs([whole(n) for n in range(2, 8)], SCALING)
    about = Info(
        "test", "1", network.config.to_dict(), taxonomy.CLASSES, "ugriz", ("sdss",), SCALING, Calibration(),
        family=request.param,
    )  # fmt: skip
    folder: Path = tmp_path_factory.mktemp(request.param)
    checkpoint.save(folder, lively(network).state_dict(), about)
    return serving.load(folder, survey="sdss", device="cpu", precision="float32")


def whole(n: int, seed: int = 0) -> History:
    seen = history(n, seed)
    images = {**seen.images, "difference": seen.images["science"], "template": seen.images["science"] * 0}
    context = {"detections": 3.0, "visits": 11.0, "reference_distance": 1.5}
    return replace(seen, images=images, photometry=photometry(seen, 12), context=context, contexts=[context] * n)


class Store:
    """Keeps by source what a model wants kept, and gives a history with it, as the broker's does."""

    def __init__(self, model: Model) -> None:
        self.model, self.kept = model, dict[int, bytes]()

    def says(self, seen: History) -> np.ndarray:
        """Probabilities of a history, of which only images that are not covered are shown."""
        sources = seen.source_id.tolist()
        kept = {n: self.kept[s] for n, s in enumerate(sources) if s in self.kept}
        epochs = np.array([n for n in range(len(seen)) if n not in kept], np.int64)
        images = {kind: seen.pixels(kind, epochs) for kind in seen.images}
        (said,) = self.model.classify([replace(seen, images=images, shown=epochs, kept=kept)])
        self.kept |= {sources[n]: value for n, value in said.keep.items()}
        return said.probabilities


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_epochs_in_any_order_end_in_the_same(model: Model, seed: int) -> None:
    given, store = whole(8), Store(model)
    order = np.random.default_rng(seed).permutation(8)
    for n in range(1, 9):
        found = store.says(given.take(np.sort(order[:n])))
    np.testing.assert_allclose(found, model.classify([given])[0].probabilities, rtol=0, atol=1e-5)


def test_a_window_that_slides_says_what_it_shows(model: Model) -> None:
    given, store = whole(9), Store(model)
    for end in range(1, 10):
        part = given.take(np.arange(max(0, end - 4), end))
        expected = model.classify([part])[0].probabilities
        np.testing.assert_allclose(store.says(part), expected, rtol=0, atol=1e-5)


def test_a_point_of_an_earlier_date_counts_from_when_it_comes(model: Model) -> None:
    given, store = whole(6), Store(model)
    assert given.photometry is not None
    without = replace(given, photometry=given.photometry.take(np.array([0, 1, 2, 3, 6, 7, 8, 9, 10, 11])))
    before = store.says(without)
    after = store.says(given)  # nothing but the points is new
    np.testing.assert_allclose(after, model.classify([given])[0].probabilities, rtol=0, atol=1e-5)
    assert (np.abs(after - before).max() > 1e-6) == model.needs.photometry


def test_in_batches_of_one_shape_the_bits_are_the_same(model: Model) -> None:
    given = [whole(6, seed) for seed in range(3)]
    first = model.classify(given)
    again = model.classify(
        [
            replace(h, images={k: v[:0] for k, v in h.images.items()}, shown=np.arange(0), kept=dict(p.keep))
            for h, p in zip(given, first, strict=True)
        ]
    )
    whole_again = model.classify(given)
    for a, b, c in zip(first, again, whole_again, strict=True):
        assert a.probabilities.tobytes() == b.probabilities.tobytes() == c.probabilities.tobytes()
        assert not b.keep
