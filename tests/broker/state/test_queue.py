import re
import threading
import time
from collections import Counter

import pytest
from process_tools import until
from state_tools import LANE, answer, deliveries, names, observation, open_state

from skyheed.broker import config
from skyheed.broker import health as check
from skyheed.broker.local import embedded
from skyheed.broker.state import client as state
from skyheed.broker.state import keys
from skyheed.broker.state.keys import shard_of
from skyheed.broker.state.sequence import Settled


def _objects(count: int, prefix: str = "o", first: int = 0):  # type: ignore[no-untyped-def]
    return deliveries([observation(f"{prefix}{n}") for n in range(count)], partition=prefix, first=first)


def _answered(url: str, count: int, prefix: str = "old") -> None:
    """Objects that were answered once and are due again."""
    store, queue, _ = open_state(url)
    store.store(_objects(count, prefix))
    store.settle([answer(s) for s in store.fetch(queue.claim(count, 30.0), LANE)], LANE)
    store.store(deliveries([observation(f"{prefix}{n}", 2) for n in range(count)], partition=prefix, first=count))


def test_an_empty_queue(valkey: embedded.Server) -> None:
    _, queue, _ = open_state(valkey.url)
    assert queue.claim(10, 10.0) == []
    assert queue.depth() == {"new": 0, "due": 0, "in_flight": 0}
    assert (queue.ready(), queue.waiting_s()) == (0, None)
    assert queue.still_held([]) == []


def test_a_claim_takes_each_object_once(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    store.store(_objects(100))
    first, second, third = queue.claim(30, 30.0), queue.claim(50, 30.0), queue.claim(50, 30.0)
    assert [len(first), len(second), len(third)] == [30, 50, 20]
    assert len(names([*first, *second, *third])) == 100
    assert queue.depth() == {"new": 0, "due": 0, "in_flight": 100}
    assert all(queue.still_held([*first, *second, *third]))
    assert len({first[0].lease, second[0].lease, third[0].lease}) == 3


def test_workers_at_once_take_disjoint_objects(valkey: embedded.Server) -> None:
    open_state(valkey.url)[0].store(_objects(400))
    taken: list[str] = []

    def work() -> None:
        _, queue, _ = open_state(valkey.url)
        while claims := queue.claim(13, 30.0):
            taken.extend(claim.object_id for claim in claims)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(taken) == Counter(f"o{n}" for n in range(400))


def ready_ms(url: str, name: str) -> float:
    """When a new object becomes ready, by the server's clock."""
    key = f"{keys.Keys('test').shard(shard_of(name, 16))}fresh"
    return float(state.connect(url).run([("ZSCORE", key, name)])[0])


def test_an_object_is_ready_after_the_debounce(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url, debounce_s=2.0)
    began = time.time()
    store.store(deliveries([observation("a", 1)]))
    first = ready_ms(valkey.url, "a")
    time.sleep(0.1)
    store.store(deliveries([observation("a", 2)], first=1))
    assert ready_ms(valkey.url, "a") == first, "a later stamp does not postpone the answer"
    assert 1.9 < first / 1000 - began < 4
    assert (queue.claim(1, 10.0), queue.ready(), queue.waiting_s()) == ([], 0, None)
    assert queue.depth()["new"] == 1
    time.sleep(max(0.0, first / 1000 - time.time()) + 0.05)
    assert queue.ready() == 1
    assert 0.05 <= (queue.waiting_s() or 0) < 10
    assert names(queue.claim(1, 10.0)) == {"a"}


def test_a_quiet_object_is_ready_before_the_debounce_is_over(valkey: embedded.Server) -> None:
    store, _, _ = open_state(valkey.url, debounce_s=60.0, quiet_s=10.0)
    began = time.time()
    store.store(deliveries([observation("a", 1)]))
    first = ready_ms(valkey.url, "a") / 1000
    assert 9 < first - began < 20
    until(lambda: time.time() > began + 0.5)
    store.store(deliveries([observation("a", 2)], first=1))
    second = ready_ms(valkey.url, "a") / 1000
    assert second - first >= 0.4, "another stamp of the visit: the object waits until that is quiet, too"
    store.store(deliveries([observation("a", 3)], first=2), behind=True)
    assert ready_ms(valkey.url, "a") / 1000 - began > 55, "more is to come at once: as long as the debounce"
    store.store(deliveries([observation("a", 4)], first=3))
    assert ready_ms(valkey.url, "a") / 1000 - began < 30, "the intake has caught up"


def test_an_intake_that_is_behind_lets_objects_wait_for_the_whole_debounce(valkey: embedded.Server) -> None:
    store, _, _ = open_state(valkey.url, debounce_s=60.0, quiet_s=1.0)
    store.store(deliveries([observation("a", 1)]), behind=True)
    first = ready_ms(valkey.url, "a")
    assert first / 1000 - time.time() > 50
    store.store(deliveries([observation("a", 2)], first=1))
    assert ready_ms(valkey.url, "a") == first


def test_bands_of_a_visit_never_make_more_than_one_answer_of_a_revision(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url, debounce_s=1.0, quiet_s=0.05)
    revisions = []
    for band in range(5):
        store.store(deliveries([observation("a", band + 1)], first=band))
        until(lambda: queue.ready() == 1)
        claims = queue.claim(1, 60.0)
        sequences = store.fetch(claims, LANE)
        revisions += [s.revision for s in sequences]
        assert store.settle([answer(s) for s in sequences], LANE) == [Settled.ACKED]
        assert queue.claim(1, 60.0) == []
    assert len(set(revisions)) == 5


def test_an_expired_lease_returns(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    store.store(_objects(3))
    lost = queue.claim(3, 0.2)
    assert queue.claim(3, 10.0) == []
    time.sleep(0.25)
    assert queue.ready() == 3
    again = queue.claim(3, 10.0)
    assert names(again) == names(lost)
    assert queue.still_held(lost) == [False] * 3
    assert queue.depth()["in_flight"] == 3


def test_a_returned_object_is_no_longer_held_and_keeps_its_kind(valkey: embedded.Server) -> None:
    _answered(valkey.url, 1)
    store, queue, _ = open_state(valkey.url)
    store.store(_objects(1, "new"))
    claims = queue.claim(2, 0.0)
    assert queue.ready() == 2
    assert queue.depth() == {"new": 1, "due": 1, "in_flight": 0}
    assert queue.still_held(claims) == [False, False]
    assert store.settle([answer(s) for s in store.fetch(claims, LANE)], LANE) == [Settled.STALE] * 2


def test_an_object_in_flight_is_not_queued_twice(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    store.store(_objects(1))
    queue.claim(1, 30.0)
    store.store(deliveries([observation("o0", 5)], first=1))
    assert queue.depth() == {"new": 0, "due": 0, "in_flight": 1}


@pytest.mark.parametrize("limit", [1, 4, 10, 64])
def test_neither_kind_starves_the_other(valkey: embedded.Server, limit: int) -> None:
    _answered(valkey.url, 100)
    store, queue, _ = open_state(valkey.url)
    store.store(_objects(400, "new"))
    kinds: Counter[str] = Counter()
    while sum(kinds.values()) < 120:
        kinds.update("old" if name.startswith("old") else "new" for name in names(queue.claim(limit, 30.0)))
    total = sum(kinds.values())
    assert kinds["old"] == pytest.approx(total / 4, abs=2)


def test_seats_that_one_kind_does_not_need_go_to_the_other(valkey: embedded.Server) -> None:
    _answered(valkey.url, 40)
    store, queue, _ = open_state(valkey.url)
    assert len(queue.claim(20, 30.0)) == 20
    store.store(_objects(5, "new"))
    assert Counter(name[:3] for name in names(queue.claim(16, 30.0))) == {"new": 5, "old": 11}
    store.store(_objects(40, "new", first=40))
    store.store(_objects(40, "late"))
    assert len(queue.claim(40, 30.0)) == 40


def test_those_that_wait_longest_go_first(valkey: embedded.Server) -> None:
    """A shard with one old object is served although another shard is full of younger ones."""
    store, queue, _ = open_state(valkey.url)
    first = next(name for name in (f"first{n}" for n in range(999)) if shard_of(name, 16) == 15)
    store.store(deliveries([observation(first)], "first"))
    time.sleep(0.02)
    store.store(_objects(800))
    assert names(queue.claim(1, 30.0)) == {first}
    queue.claim(1000, 30.0)
    one_shard, queue, _ = open_state(valkey.url, shards=1)
    for n in range(5):
        one_shard.store(deliveries([observation(f"next{n}")], "in order", first=n))
        time.sleep(0.003)
    assert [claim.object_id for claim in queue.claim(3, 30.0)] == ["next0", "next1", "next2"]


def test_how_long_the_first_that_became_ready_has_been_waiting(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    store.store(_objects(5))
    time.sleep(0.3)
    store.store(_objects(5, "later"))
    assert 0.3 <= (queue.waiting_s() or 0) < 5
    queue.claim(10, 0.2)
    assert queue.waiting_s() is None
    time.sleep(0.25)
    assert 0.05 <= (queue.waiting_s() or 0) < 5, "the lease is over: it waits for its next claim"
    assert queue.depth()["in_flight"] == 10, "looking changes nothing"


@pytest.mark.parametrize("skew", [-400.0, 400.0])
def test_ages_are_told_by_the_servers_clock(
    valkey: embedded.Server, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    store, queue, _ = open_state(valkey.url)
    real_time, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real_time() + skew)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + round(skew * 1e9))
    store.store(_objects(3))
    assert 0 <= (queue.waiting_s() or 0) < 10
    settings = config.load(overrides={"survey": "sdss", "redis.url": valkey.url}, environ={})
    client = state.connect(valkey.url)
    now = client.run([("TIME",)])[0]
    for shard, age in ((0, 30_000), (1, 320_000)):
        client.run([("ZADD", keys.Keys("sdss").shard(shard) + "fresh", int(now[0]) * 1000 - age, "X")])
        [line] = check.check(settings, ["oldest"])
        assert line.ok == (age < 300_000)
        said = re.search(r"waiting for (\d+) s", line.sentence)
        assert said
        assert age / 1000 <= int(said[1]) < age / 1000 + 10
