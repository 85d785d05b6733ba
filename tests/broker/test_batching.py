"""What a worker has in hand: bounded in bytes and seconds, given back when there is no time left for it."""

import threading
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from process_tools import until
from state_tools import deliveries, observation, open_state
from test_lanes import Slow, queue_of, worker_of

from skyheed.broker import config
from skyheed.broker.batching import Batching, BatchLimits
from skyheed.broker.errors import ConfigError, ServiceUnavailable
from skyheed.broker.local import embedded
from skyheed.broker.state.client import Claim
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.sequence import Lane
from skyheed.broker.work import Pace
from skyheed.classifier.prediction import Needs


def histories(*epochs: int) -> list[Any]:
    return [SimpleNamespace(looked=True, stamps=np.empty(n), header=np.empty(n)) for n in epochs]


def claims(*epochs: int) -> list[Claim]:
    return [Claim(f"o{n}", 0, "", epochs=own) for n, own in enumerate(epochs)]


ALL_LONG = claims(*[99] * 10), claims(*[0] * 10)


def test_what_is_fetched_fits_into_its_bytes_whatever_the_objects_are() -> None:
    three = Needs(images=("science", "difference", "template"))
    for needs, lane in ((Needs(), Lane()), (three, Lane(span=1)), (Needs(images=()), Lane(images=()))):
        for mib in (1, 64):
            batching = Batching(BatchLimits(mib * 2**20), 60.0, needs, lane)
            largest = 99 * (len(needs.images) * 2048 + (3_100 if lane.span else 0) + 100)
            sizes = [len(piece) for piece in batching.fetched(claims(*[99] * 80))]
            assert sum(sizes) == 80
            assert max(sizes) * largest <= mib * 2**20
    longest = [list(map(len, Batching(BatchLimits(2**20), 60.0, Needs(), Lane()).fetched(c))) for c in ALL_LONG]
    assert longest == [[4, 4, 2]] * 2, "of unknown length as well"
    assert [*map(len, Batching(BatchLimits(2**16), 60.0, three, Lane(span=1)).fetched(claims(99, 99)))] == [1, 1]
    some = Batching(BatchLimits(2**20), 60.0, Needs(), Lane())
    assert [len(p) for p in some.fetched(claims(*[10] * 50, 99, *[1] * 400))] == [45, 312, 94]
    assert [len(p) for p in some.fetched(claims(*[10] * 10), joined=True)] == [4, 4, 2]
    assert list(some.fetched([])) == []


def test_what_is_classified_at_once_takes_the_seconds_that_it_may() -> None:
    batching = Batching(BatchLimits(seconds=2.0), 60.0, Needs(), Lane())
    assert batching.first(histories(*[1] * 100)) == 8, "16 epochs, an object counting as one"
    assert batching.first(histories(99, 99)) == 1, "one at least"
    batching.took(histories(*[1] * 10), 1.0)  # 0.05 s for each
    assert batching.first(histories(*[1] * 100)) == 20
    assert batching.first(histories(*[9] * 100)) == 4
    for _ in range(20):
        batching.took(histories(*[1] * 10), 0.001)
    assert batching.first(histories(*[1] * 1000)) == 1000
    batching.took(histories(5), 60.0)
    assert batching.first(histories(*[1] * 100)) == 1, "a slower one is believed at once"
    assert Batching(BatchLimits(seconds=60.0), 8.0, Needs(), Lane())._seconds == 2.0


@pytest.mark.parametrize("key", ["batch_bytes", "batch_s"])
def test_no_hand_is_empty(key: str) -> None:
    with pytest.raises(ConfigError, match=f"work.{key} must be"):
        config.load(overrides={f"work.{key}": 0}, environ={})


def fill(store: SequenceStore, count: int) -> None:
    store.store(deliveries([observation(f"o{n}") for n in range(count)]))


@pytest.mark.redis
def test_a_batch_that_takes_longer_than_its_lease_is_answered_whole_and_once(valkey: embedded.Server) -> None:
    """80 objects of 50 ms under leases of 1 s, while another worker looks for leases that are over."""
    sent: list[tuple[float, str]] = []
    worker = worker_of(valkey.url, "a", Slow(0.05), sent, Pace(80, 0.1, 1.0))
    fill(worker.store, 80)
    done, other = threading.Event(), queue_of(valkey.url, "a")

    def look() -> None:
        while not done.wait(0.02):
            other.ready()

    thread = threading.Thread(target=look)
    thread.start()
    totals = worker.run(threading.Event(), drain=True)
    done.set()
    thread.join()
    assert (totals["acked"], totals["stale"], totals["lost_lease"]) == (80, 0, 0), totals
    assert max(Counter(name for _, name in sent).values()) == 1


@pytest.mark.redis
def test_a_signal_ends_a_worker_soon_and_what_it_held_is_there_for_others(valkey: embedded.Server) -> None:
    """A batch of 300 objects of 100 ms, which would take 30 s, under leases of two minutes."""
    sent: list[tuple[float, str]] = []
    worker = worker_of(valkey.url, "a", Slow(0.1), sent, Pace(300, 0.1, 120.0))
    fill(worker.store, 300)
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    until(lambda: worker.queue.depth()["in_flight"])
    time.sleep(1.0)
    began = time.monotonic()
    stop.set()
    thread.join(60)
    assert time.monotonic() - began < 5.0
    assert len(sent) < 300
    left = queue_of(valkey.url, "a").claim(300, 30.0)
    assert {claim.object_id for claim in left} | {name for _, name in sent} == {f"o{n}" for n in range(300)}
    assert len(left) + len(sent) == 300
    assert open_state(valkey.url)[2].books().objects.balanced


@pytest.mark.redis
def test_a_signal_while_kafka_takes_nothing_gives_all_back(valkey: embedded.Server) -> None:
    worker = worker_of(valkey.url, "a", Slow(), [], Pace(10, 0.1, 120.0))
    fill(worker.store, 10)
    stop = threading.Event()

    def away(_messages: object, waiting: Any) -> None:
        stop.set()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            waiting()
            time.sleep(0.05)
        raise ServiceUnavailable("Kafka is unavailable")

    worker.publisher = SimpleNamespace(publish_all=away)  # type: ignore[assignment]
    began = time.monotonic()
    worker.run(stop)
    assert time.monotonic() - began < 5.0
    assert len(queue_of(valkey.url, "a").claim(100, 30.0)) == 10


@pytest.mark.redis
def test_answers_are_published_while_the_next_are_computed_and_again_after_a_failure(valkey: embedded.Server) -> None:
    """Publishing waits for the next prediction to begin, which would come after it if they took turns."""
    worker = worker_of(valkey.url, "a", Slow(), [], Pace(10, 0.1, 120.0))
    fill(worker.store, 20)
    predictions = threading.Semaphore(0)
    predict, asked, sent = worker.model.predict, [], []

    def predicting(histories: Any) -> Any:
        predictions.release()
        return predict(histories)

    def publish_all(messages: Any, _waiting: Any) -> None:
        asked.append(len(messages))
        if len(asked) == 1:
            assert all(predictions.acquire(timeout=30) for _ in range(2))
            raise ServiceUnavailable("Kafka is away")
        sent.extend(messages)

    worker.model.predict = predicting  # type: ignore[method-assign]
    worker.publisher = SimpleNamespace(publish_all=publish_all)  # type: ignore[assignment]
    totals = worker.run(threading.Event(), drain=True)
    assert (totals["acked"], totals["stale"]) == (20, 0)
    assert asked[0] == asked[1], "the same once more"
    assert len({key for _, key, _, _ in sent}) == len(sent) == 20


@pytest.mark.redis
def test_only_who_holds_a_lease_gives_it_back(valkey: embedded.Server) -> None:
    worker = worker_of(valkey.url, "a", Slow(), [])
    fill(worker.store, 3)
    late = worker.queue.claim(3, 0.0)
    held = worker.queue.claim(3, 60.0)
    assert worker.queue.release(late) == 0
    assert worker.queue.claim(3, 60.0) == []
    assert worker.queue.release(held) == 3
    assert len(worker.queue.claim(3, 60.0)) == 3


@pytest.mark.redis
def test_a_large_batch_is_fetched_in_pieces(valkey: embedded.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_of(valkey.url, "a", Slow(), [], Pace(1000, 0.1, 60.0, BatchLimits(bytes=2**20)))
    for source in range(1, 31):
        worker.store.store(deliveries([observation(f"o{n}", source) for n in range(50)], first=50 * source))
    asked: list[int] = []
    fetch = worker.store.fetch
    monkeypatch.setattr(worker.store, "fetch", lambda claims, lane: asked.append(len(claims)) or fetch(claims, lane))
    assert worker._batch(threading.Event()) == 50
    assert sum(asked) == 50
    assert max(asked) == worker.batching.epochs // 30 == 15
