"""`vector` in the worker: stamps out of order, a window that moves, and what is kept of it in Redis."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from state_tools import deliveries, observation, open_state
from test_work import worker_of
from zoo_tools import SCALING, lively

from skyheed.broker.local import embedded
from skyheed.classifier import serving, taxonomy
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.checkpoint import Calibration, Info
from skyheed.classifier.models.family import preset

WINDOW = 6


@pytest.fixture
def model(tmp_path: Path) -> Any:
    torch.manual_seed(3)
    own = preset("vector")
    network = lively(own.family.build(own.family.configure({})))
    about = Info(
        "vector", "1", network.config.to_dict(), taxonomy.CLASSES, "ugriz", ("test",), SCALING, family="vector",
        calibration=Calibration((1.0, 10.0), (1.0, 1.0), (1.0, 1.0, 1.0, 1.0)),
    )  # fmt: skip
    checkpoint.save(tmp_path, network.state_dict(), about)
    return serving.load(tmp_path, survey="test", device="cpu", threads=1)


def observations(object_id: str, count: int, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [
        observation(object_id, n + 1, stamp=rng.normal(0, 30, (32, 32)).astype(np.float16), band="ugriz"[n % 5])
        for n in range(count)
    ]


@pytest.mark.redis
def test_any_order_ends_in_the_same_probabilities_and_each_stamp_is_encoded_once(
    valkey: embedded.Server, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, queue, _ = open_state(valkey.url, max_stamps=WINDOW)
    worker = worker_of(model, queue, store)
    encoded = SimpleNamespace(count=0)
    plain = model.network.stamp_vectors

    def counted(images: Any, band: Any) -> Any:
        encoded.count += len(images)
        return plain(images, band)

    monkeypatch.setattr(model.network, "stamp_vectors", counted)
    seen = [o for n in range(3) for o in observations(f"object-{n}", 10, n)]
    last: dict[str, list[float]] = {}
    offset = 0
    for n in np.random.default_rng(5).permutation(len(seen)):
        store.store(deliveries([seen[n]], first=offset))
        offset += 1
        if offset % 2:
            continue  # several stamps an update, sometimes
        answers = worker.answer(worker.fetch(queue.claim(10, 60.0)))
        store.settle([answer for _, answer in answers], worker.lane)
        last |= {record.object_id: [p.probability for p in record.probabilities] for record, _ in answers}
    assert encoded.count <= len(seen)
    monkeypatch.undo()
    for n in range(3):
        whole, its_queue, _ = open_state(valkey.url, max_stamps=WINDOW)
        whole.store(
            deliveries([observation_of(o, f"again-{n}") for o in seen[10 * n + 4 : 10 * n + 10]], first=100 + 10 * n)
        )
        ((record, _),) = worker.answer(worker.fetch(its_queue.claim(10, 60.0)))
        assert [p.probability for p in record.probabilities] == pytest.approx(last[f"object-{n}"], abs=1e-5)
        assert len(record.sources) == WINDOW


def observation_of(seen: Any, object_id: str) -> Any:
    return observation(object_id, seen.source_id, stamp=seen.stamp, band=seen.band)
