"""Several models of one survey: each with its queue, its books, its topic; what release 0.1 left is taken over."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from state_tools import SURVEY, answer, deliveries, observation, open_state

from skyheed.broker import metrics
from skyheed.broker.errors import ServiceError
from skyheed.broker.local import embedded
from skyheed.broker.results import formats
from skyheed.broker.results import record as records
from skyheed.broker.state import client as state
from skyheed.broker.state.books import ModelBooks
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.keys import Keys, shard_of
from skyheed.broker.state.queue import DueQueue
from skyheed.broker.state.sequence import Lane, Settled
from skyheed.broker.work import Output, Pace, Worker
from skyheed.broker.worker_threads import run_all
from skyheed.classifier.history import History
from skyheed.classifier.prediction import Needs, Prediction

pytestmark = pytest.mark.redis
A, B = Lane("a", "a-1", 3), Lane("b", "b-1", 1)
PROVENANCE = records.Provenance("0.2.0", "test", "1", "ab", "stamp-1", "test-1", "cpu")


def queue_of(url: str, model: str) -> DueQueue:
    return DueQueue(state.connect(url), SURVEY, model=model)


def work_off(store: SequenceStore, queue: DueQueue, lane: Lane, **changes: Any) -> int:
    count = 0
    while claims := queue.claim(100, 30.0):
        found = store.fetch(claims, lane)
        assert set(store.settle([answer(s, **changes) for s in found], lane)) == {Settled.ACKED}
        count += len(claims)
    return count


def test_every_model_has_its_queue_and_its_books(valkey: embedded.Server) -> None:
    store, _, ledger = open_state(valkey.url)
    assert (store.join("a", "b"), store.models()) == ({"a": 0, "b": 0}, ["a", "b"])
    store.store(deliveries([observation("x"), observation("y")]))
    queues = {name: queue_of(valkey.url, name) for name in "ab"}
    assert work_off(store, queues["a"], A) == 2
    assert ledger.books().objects.models == {"a": ModelBooks(2), "b": ModelBooks(pending=2)}
    assert work_off(store, queues["b"], B, classified=False, latest=b"from b", history="b's") == 2
    books = ledger.books()
    assert books.objects.models == {"a": ModelBooks(2), "b": ModelBooks(declined=2)}
    assert books.objects.balanced
    assert store.latest("x", "b") == b"from b" != store.latest("x", "a")
    assert (store.history("x", "b"), len(store.history("x", "a"))) == (["b's"], 1)
    store.store(deliveries([observation("x", 2)], first=2))
    assert ledger.books().objects.models == {"a": ModelBooks(1, 0, 1), "b": ModelBooks(0, 1, 1)}


def test_a_model_keeps_its_own_tokens_of_its_own_width(valkey: embedded.Server) -> None:
    store, _, _ = open_state(valkey.url)
    store.join("a")
    store.join("b")
    store.store(deliveries([observation("x", n) for n in range(4)]))
    for lane, tokens in ((A, {0: b"three"}), (B, {0: b"zero", 2: b"two"})):
        queue = queue_of(valkey.url, lane.model)
        found = store.fetch(queue.claim(1, 30.0), lane)
        store.settle([answer(s, tokens=tokens) for s in found], lane)
    store.store(deliveries([observation("x", 9)], first=9))
    (a,) = store.fetch(queue_of(valkey.url, "a").claim(1, 30.0), A)
    (b,) = store.fetch(queue_of(valkey.url, "b").claim(1, 30.0), B)
    assert (a.tokens, b.tokens) == ({0: b"three"}, {0: b"zero", 2: b"two"})
    assert [int(pixels[0, 0]) for pixels in a.stamps] == [3, 9]
    assert [int(pixels[0, 0]) for pixels in b.stamps] == [1, 3, 9]
    (none,) = store.fetch([b.claim], replace(B, images=()))
    assert len(none.stamps) == 0
    assert len(none.header) == 5


def test_a_model_that_joins_later_is_asked_when_an_object_changes(valkey: embedded.Server) -> None:
    store, _, ledger = open_state(valkey.url)
    store.join("a")
    store.store(deliveries([observation("x"), observation("y"), observation("z")]))
    work_off(store, queue_of(valkey.url, "a"), A)
    assert store.join("b") == {"b": 3} == store.join("b")
    books = ledger.books()
    assert (books.objects.models["b"], books.objects.balanced) == (ModelBooks(unasked=3), True)
    store.store(deliveries([observation("x", 2)], first=3))
    assert ledger.books().objects.models["b"] == ModelBooks(pending=1, unasked=2)
    assert work_off(store, queue_of(valkey.url, "b"), B) == 1
    assert ledger.books().objects.balanced
    assert store.join("c", backlog=["c"]) == {"c": 0}
    assert queue_of(valkey.url, "c").depth()["due"] == 3


def test_what_came_before_any_model_waits_for_the_first(valkey: embedded.Server) -> None:
    store, nobody, ledger = open_state(valkey.url)
    store.store(deliveries([observation("x"), observation("y")]))
    assert ledger.books().objects.models == {"": ModelBooks(pending=2)}
    assert nobody.depth()["new"] == 2
    store.join("a")
    assert ledger.books().objects.models == {"a": ModelBooks(pending=2)}
    assert work_off(store, queue_of(valkey.url, "a"), A) == 2


def test_what_came_before_any_model_waits_for_all_that_join_first(valkey: embedded.Server) -> None:
    store, _, ledger = open_state(valkey.url)
    store.store(deliveries([observation("x"), observation("y")]))
    assert store.join("a", "b") == {"a": 0, "b": 0}
    assert ledger.books().objects.models == {"a": ModelBooks(pending=2), "b": ModelBooks(pending=2)}
    assert work_off(store, queue_of(valkey.url, "b"), B) == 2


def test_what_release_0_1_left_is_read(valkey: embedded.Server) -> None:
    """Its keys knew one model: the sets without a name, and `latest`, `history`, `tokens` and `ans` of objects."""
    store, _, ledger = open_state(valkey.url)
    store.store(deliveries([observation("x", n) for n in range(3)]))
    client, base = state.connect(valkey.url), Keys(SURVEY).shard(shard_of("x", 16))
    revision = store.revision("x")
    client.run([
        ("ZREM", base + "fresh", "x"), ("SADD", base + "classified", "x"), ("SET", base + "latest:x", b"old"),
        ("RPUSH", base + "history:x", "old line"), ("HSET", base + "meta:x", "ans", revision),
        ("HSET", base + "tokens:x", "model", "a-1", b"\0" * 24, b"token"),
    ])  # fmt: skip
    assert ledger.books().objects.models == {"": ModelBooks(1)}
    store.join("a")
    assert ledger.books().objects.models == {"a": ModelBooks(1)}
    assert (store.latest("x", "a"), store.history("x", "a")) == (b"old", ["old line"])
    store.store(deliveries([observation("x", 7)], first=9))
    (found,) = store.fetch(queue_of(valkey.url, "a").claim(1, 30.0), A)
    assert (found.tokens, len(found.stamps)) == ({}, 4)
    store.settle([answer(found, history="new line")], A)
    assert store.history("x", "a") == ["old line", "new line"]
    assert store.latest("x", "a") != b"old"
    assert ledger.books().objects.balanced


def test_what_release_0_1_stored_after_a_step_back_becomes_due_for_every_model(valkey: embedded.Server) -> None:
    """0.2 ran, then 0.1 again, which knows the queues without a name alone, then 0.2: nothing waits for nobody."""
    store, _, ledger = open_state(valkey.url)
    store.join("a", "b")
    # more of one shard than a script passes on at once
    names = [name for name in (f"o{n}" for n in range(20_000)) if shard_of(name, 16) == 0][:600]
    store.store(deliveries([observation(name) for name in names]))
    for lane in (A, B):
        assert work_off(store, queue_of(valkey.url, lane.model), lane) == len(names)
    store.store(deliveries([observation("waits"), observation("flies")], first=2000))
    flying = store.fetch(queue_of(valkey.url, "b").claim(9, 30.0), B)
    client, keys = state.connect(valkey.url), Keys(SURVEY)
    for queue, name in (*(("due", name) for name in names), ("fresh", "new"), ("due", "waits"), ("inflight", "flies")):
        base = keys.shard(shard_of(name, 16))
        client.run([("ZADD", base + "touched", 1, name), ("ZADD", base + queue, 1000, name)])
        client.run([("HSET", base + "leases", "token", name), ("HINCRBY", f"{base}meta:{name}", "rev", 1)])
    assert not ledger.books().objects.balanced  # nobody was asked for "new"
    store.join("a")
    store.join("b")
    counts = {"a": queue_of(valkey.url, "a").depth(), "b": queue_of(valkey.url, "b").depth()}
    assert sum(counts["a"].values()) == sum(counts["b"].values()) == len(names) + 3
    assert counts["b"]["in_flight"] == len(flying) == 2
    assert ledger.books().objects.balanced
    kinds = ("fresh", "due", "inflight", "leases", "strays")
    places = [keys.shard(shard) + kind for shard in range(16) for kind in kinds]
    assert not any(client.run([("EXISTS", place) for place in places]))


def test_a_retired_model_leaves_nothing(valkey: embedded.Server) -> None:
    store, _, ledger = open_state(valkey.url)
    store.join("a")
    store.join("b")
    store.store(deliveries([observation("x", n) for n in range(3)]))
    for lane in (A, B):
        (found,) = store.fetch(queue_of(valkey.url, lane.model).claim(1, 30.0), lane)
        store.settle([answer(found, tokens={0: b"token"})], lane)
    assert store.retire("b")
    assert not store.retire("b")
    assert store.models() == ["a"]
    names = [key.decode() for key in state.connect(valkey.url).run([("KEYS", "*")])[0]]
    assert not [name for name in names if ".b" in name]
    assert ledger.books().objects.models == {"a": ModelBooks(1)}
    # the last one's queue waits for the next
    store.store(deliveries([observation("x", 8)], first=8))
    assert store.retire("a")
    assert ledger.books().objects.models == {"": ModelBooks(pending=1)}
    store.join("c")
    assert queue_of(valkey.url, "c").depth()["due"] + queue_of(valkey.url, "c").depth()["new"] == 1


class Slow:
    """A model that takes its time, and fails when it is told to."""

    def __init__(self, seconds: float = 0.0, fails: bool = False) -> None:
        self.info = SimpleNamespace(class_ids={"AGN": 2332}, bands="ugriz")
        self.classes, self.kept_as, self.chosen = ("AGN",), "", ""
        self.needs = Needs(fewest=1)
        self.seconds, self.fails = seconds, fails

    def predict(self, histories: Sequence[History]) -> list[Prediction]:
        time.sleep(self.seconds * len(histories))
        if self.fails:
            raise ServiceError("broken")
        return [Prediction(np.ones(1, np.float32)) for _ in histories]


def worker_of(url: str, name: str, model: Slow, sent: list[tuple[float, str]], pace: Pace | None = None) -> Worker:
    def publish_all(messages: Sequence[tuple[str, bytes, bytes, Any]], _waiting: object) -> None:
        sent.extend((time.monotonic(), formats.decode(value).object_id) for _, _, value, _ in messages)

    store = open_state(url)[0]
    store.join(name)
    output = Output(name, "topic", formats.Form(formats.encode, True), PROVENANCE)
    return Worker(
        SURVEY, queue_of(url, name), store, model, SimpleNamespace(publish_all=publish_all), output,  # type: ignore[arg-type]
        metrics.WorkMetrics(SURVEY), pace or Pace(32, 0.1, 60.0),
    )  # fmt: skip


def test_a_slow_second_model_makes_the_first_not_late_and_loses_nothing(valkey: embedded.Server) -> None:
    """50 ms an object, 40 objects: two seconds of work, while the first model is done with all at once."""
    fast: list[tuple[float, str]] = []
    slow: list[tuple[float, str]] = []
    workers = [worker_of(valkey.url, "a", Slow(), fast), worker_of(valkey.url, "b", Slow(0.05), slow)]
    store, _, ledger = open_state(valkey.url)
    stop, began = threading.Event(), time.monotonic()
    thread = threading.Thread(target=run_all, args=(workers, stop))
    thread.start()
    for n in range(40):
        store.store(deliveries([observation(f"o{n}")], first=n))
    while len(slow) < 40 and time.monotonic() - began < 60:
        time.sleep(0.05)
    stop.set()
    thread.join(20)
    assert len(fast) == len(slow) == 40
    assert max(when for when, _ in fast) + 0.5 < max(when for when, _ in slow)
    books = ledger.books()
    assert books.objects.models == {"a": ModelBooks(40), "b": ModelBooks(40)}
    assert books.objects.balanced


def test_the_failure_of_one_model_ends_all(valkey: embedded.Server) -> None:
    workers = [worker_of(valkey.url, "a", Slow(), []), worker_of(valkey.url, "b", Slow(fails=True), [])]
    open_state(valkey.url)[0].store(deliveries([observation("x")]))
    with pytest.raises(ServiceError, match="broken"):
        run_all(workers, threading.Event())


def test_models_that_share_a_topic_have_keys_of_their_own() -> None:
    alone = Output("vector", "topic", None, PROVENANCE)  # type: ignore[arg-type]
    assert alone.key("ZTF1") == b"ZTF1"
    assert replace(alone, shared=True).key("ZTF1") == b"ZTF1 vector"
