import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_tools import ValkeyCluster
from state_tools import LANE, SURVEY, answer, answer_all, content, deliveries, delivery, names, observation, open_state

from skyheed.broker.errors import ServiceUnavailable
from skyheed.broker.local import embedded
from skyheed.broker.observation import Observation
from skyheed.broker.state import client as state
from skyheed.broker.state.books import ModelBooks
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.sequence import HEADER, Delivery, Outcome, Settled

WINDOW = 6
REUSED_SERVER = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_what_was_stored_comes_back(valkey: embedded.Server) -> None:
    store, _, _ = open_state(valkey.url)
    stamp = np.arange(1024, dtype=np.float16).reshape(32, 32)
    seen = observation("ZTF18 ü{}", 2**63 - 1, 60123.456789012345, band="y", flux=float("nan"), flags=5, stamp=stamp)
    assert store.store([Delivery("alerts@id/7", 2**40, 111, 222, seen)]) == [Outcome.STORED]
    found = store.sequence(seen.object_id)
    assert found is not None
    row = found.header[0]
    assert (row["source_id"], row["mjd"], row["band"], row["flags"]) == (2**63 - 1, seen.mjd, 5, 5)
    assert (row["kafka_ms"], row["ingest_ms"], row["ra"], row["dec"]) == (111, 222, seen.ra, seen.dec)
    assert np.isnan(row["flux"])
    assert row["flux_error"] == np.float32(seen.flux_error)
    np.testing.assert_array_equal(found.stamps[0], stamp)
    assert found.revision == store.revision(seen.object_id) > 0
    assert store.sequence("unknown") is None
    assert store.revision("unknown") == 0


def test_a_sequence_is_in_the_order_of_time_then_source(valkey: embedded.Server) -> None:
    store, _, _ = open_state(valkey.url)
    seen = [observation("a", s, m) for s, m in [(300, 2.0), (5, 1.0), (256, 1.0), (255, 1.0), (7, 0.5), (2**62, 1.0)]]
    store.store(deliveries(seen))
    found = store.sequence("a")
    assert found is not None
    assert found.header["source_id"].tolist() == [7, 5, 255, 256, 2**62, 300]


def test_a_message_delivered_again_changes_nothing(valkey: embedded.Server) -> None:
    store, _, _ = open_state(valkey.url)
    batch = deliveries([observation("a", 1), observation("a", 2), observation("a", 1)])
    first = store.store(batch)
    assert first == [Outcome.STORED, Outcome.STORED, Outcome.DUPLICATE]
    before = store.revision("a"), content(store, "a")
    assert store.store(batch) == first
    assert (store.revision("a"), content(store, "a")) == before


def test_all_records_of_one_message_are_stored(valkey: embedded.Server) -> None:
    store, _, _ = open_state(valkey.url, shards=2)
    records = [observation(f"o{n % 5}", n) for n in range(600)]  # more than one script call takes
    outcomes = store.store([delivery(0, o) for o in records])
    assert outcomes == [Outcome.STORED] * 600
    assert sum(len(content(store, f"o{n}")) for n in range(5)) == 5 * 99


def test_the_newest_stay(valkey: embedded.Server) -> None:
    store, _, _ = open_state(valkey.url, max_stamps=3)
    assert store.store(deliveries([observation("a", n) for n in (5, 3, 4)])) == [Outcome.STORED] * 3
    revision = store.revision("a")
    assert store.store(deliveries([observation("a", 2)], first=3)) == [Outcome.SKIPPED]
    assert store.revision("a") == revision
    assert store.store(deliveries([observation("a", 6)], first=4)) == [Outcome.STORED]
    assert [row[-2] for row in content(store, "a")] == [4, 5, 6]
    assert store.revision("a") > revision


def test_a_smaller_window_takes_effect_with_the_next_stamp(valkey: embedded.Server) -> None:
    open_state(valkey.url, max_stamps=9)[0].store(deliveries([observation("a", n) for n in range(10, 19)]))
    store, _, _ = open_state(valkey.url, max_stamps=3)
    revision = store.revision("a")
    assert store.store(deliveries([observation("a", 1)], first=20)) == [Outcome.SKIPPED]
    assert [row[-2] for row in content(store, "a")] == [16, 17, 18]
    assert store.revision("a") > revision


def test_of_two_payloads_of_a_source_the_same_one_stays(valkey: embedded.Server) -> None:
    store, _, _ = open_state(valkey.url)
    payloads = [observation("x", 1, 50.0, flux=f) for f in (1.0, 2.0, 3.0)]
    ends = set()
    for n, order in enumerate([(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)]):
        seen = [observation(f"o{n}", 1, 50.0, flux=payloads[i].flux) for i in order]
        store.store(deliveries(seen, first=10 * n))
        ends.add(content(store, f"o{n}")[0])
    assert len(ends) == 1


def test_a_replaced_payload_is_a_change_and_drops_the_tokens(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    store.store(deliveries([observation("a", n) for n in range(3)]))
    old = store.fetch(queue.claim(1, 10.0), LANE)[0]
    # while the object is in flight, a later MJD of the same source arrives
    assert store.store(deliveries([observation("a", 1, 60001.5)], first=5)) == [Outcome.STORED]
    assert store.settle([answer(old, tokens={0: b"of the old stamps"})], LANE) == [Settled.REQUEUED]
    new = store.fetch(queue.claim(1, 10.0), LANE)[0]
    assert new.tokens == {}
    assert len(new.stamps) == 3
    assert new.revision > old.revision


sources = st.builds(
    observation,
    object_id=st.sampled_from("ab"),
    source_id=st.integers(1, 12),
    mjd=st.sampled_from([1.0, 1.5, 2.0, 2.0000000001, 3.0, 1e-300, -7.0]),
    flux=st.sampled_from([1.0, 2.0]),
)


@pytest.fixture(scope="module")
def own_valkey() -> object:
    with embedded.start_valkey() as server:
        yield server


def _fresh(server: embedded.Server, **options: object) -> SequenceStore:
    state.connect(server.url).run([("FLUSHALL",)])
    return open_state(server.url, **options)[0]


def _expected(seen: list[Observation], object_id: str) -> list[tuple[float, int]]:
    newest: dict[int, float] = {}
    for o in seen:
        if o.object_id == object_id:
            newest[o.source_id] = max(newest.get(o.source_id, -1e9), o.mjd)
    return sorted((mjd, source) for source, mjd in newest.items())[-WINDOW:]


@REUSED_SERVER
@given(seen=st.lists(sources, min_size=1, max_size=40), data=st.data())
def test_order_and_repetition_do_not_matter(own_valkey: embedded.Server, seen: list[Observation], data) -> None:  # type: ignore[no-untyped-def]
    """The same sequences, whatever the order, the repetitions and the cuts between batches."""
    messages = deliveries(seen)
    ends = []
    for _ in range(2):
        order = data.draw(st.permutations(messages))
        order += data.draw(st.lists(st.sampled_from(messages), max_size=10))
        store = _fresh(own_valkey, max_stamps=WINDOW, shards=2)
        while order:
            size = data.draw(st.integers(1, 15))
            store.store(order[:size])
            order = order[size:]
        ends.append({name: content(store, name) for name in "ab"})
    assert ends[0] == ends[1]
    for name in "ab":
        assert [(row[3], row[-2]) for row in ends[0][name]] == _expected(seen, name)


@REUSED_SERVER
@given(
    seen=st.lists(sources, min_size=1, max_size=30), cuts=st.lists(st.integers(0, 30), max_size=6), seed=st.integers()
)
def test_crashes_between_any_two_calls_lose_and_double_nothing(
    own_valkey: embedded.Server, seen: list[Observation], cuts: list[int], seed: int
) -> None:
    """A batch comes again from the last committed offset, cut differently, while answers go on."""
    chance = random.Random(seed)
    state.connect(own_valkey.url).run([("FLUSHALL",)])
    store, queue, ledger = open_state(own_valkey.url, max_stamps=WINDOW, shards=2)
    messages, committed = deliveries(seen), 0
    for crash in [*cuts, 0]:
        crashes = crash > 0
        batch = messages[committed : committed + (crash if crashes else len(messages))]
        ledger.consumed({"alerts/0": [d.offset for d in batch]})
        if crashes and chance.random() < 0.3:
            continue
        outcomes = store.store(batch)
        if crashes and chance.random() < 0.3:
            continue
        ledger.skipped(
            [(d.partition, d.offset, "old") for d, o in zip(batch, outcomes, strict=True) if o is Outcome.SKIPPED]
        )
        if crashes and chance.random() < 0.3:
            continue
        claims = queue.claim(1, 0.0)
        fetched = store.fetch(claims, LANE)
        if chance.random() < 0.5:
            store.settle([answer(s) for s in fetched], LANE)
        committed += 0 if crashes and chance.random() < 0.3 else len(batch)
    if committed < len(messages):
        ledger.consumed({"alerts/0": [d.offset for d in messages[committed:]]})
        rest = messages[committed:]
        outcomes = store.store(rest)
        ledger.skipped(
            [(d.partition, d.offset, "old") for d, o in zip(rest, outcomes, strict=True) if o is Outcome.SKIPPED]
        )
    answer_all(store, queue)
    books = ledger.books()
    assert books.balanced, books.to_text()
    assert books.consumed == len(seen)
    assert (books.pending, books.objects.touched) == (0, len({o.object_id for o in seen}))
    for name in "ab":
        assert [(row[3], row[-2]) for row in content(store, name)] == _expected(seen, name)
        if found := store.sequence(name):
            assert store.latest(name) == f"answer to {found.revision}".encode()


def test_settling(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    store.store(deliveries([observation("c")]))
    late = store.fetch(queue.claim(1, 0.0), LANE)[0]
    store.store(deliveries([observation("a"), observation("b")], first=1))
    found = {s.object_id: s for s in store.fetch(queue.claim(3, 10.0), LANE)}
    store.store(deliveries([observation("b", 2)], first=3))
    answers = [answer(found["a"]), answer(found["b"]), answer(late)]
    assert store.settle(answers, LANE) == [Settled.ACKED, Settled.REQUEUED, Settled.STALE]
    assert store.settle(answers, LANE) == [Settled.STALE] * 3
    assert store.latest("a") == answers[0].latest
    assert store.latest("b") == answers[1].latest
    assert store.latest("c") is None
    assert store.history("a") == [answers[0].history]
    assert queue.depth() == {"new": 0, "due": 1, "in_flight": 1}


def test_a_lease_that_another_took_over_acknowledges_nothing(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    store.store(deliveries([observation("a")]))
    slow = store.fetch(queue.claim(1, 0.0), LANE)[0]
    store.store(deliveries([observation("a", 2)], first=1))
    quick = store.fetch(queue.claim(1, 10.0), LANE)[0]
    assert quick.revision > slow.revision
    assert queue.still_held([slow.claim, quick.claim]) == [False, True]
    assert store.settle([answer(slow)], LANE) == [Settled.STALE]
    assert store.settle([answer(quick)], LANE) == [Settled.ACKED]
    assert store.settle([answer(slow)], LANE) == [Settled.STALE]
    assert store.latest("a") == answer(quick).latest
    assert store.history("a") == [answer(quick).history]


def test_an_older_answer_never_replaces_a_newer_one(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    store.store(deliveries([observation("a")]))
    old = store.fetch(queue.claim(1, 10.0), LANE)[0]
    store.settle([answer(old)], LANE)
    store.store(deliveries([observation("a", 2)], first=1))
    new = store.fetch(queue.claim(1, 10.0), LANE)[0]
    # even with a lease that holds
    assert store.settle([answer(new, latest=b"old", history="old").__class__(
        new.claim, old.revision - 1, True, b"old", "old", {}
    )], LANE) == [Settled.REQUEUED]  # fmt: skip
    assert store.latest("a") == answer(old).latest


def test_tokens_replace_the_stamps_of_full_groups(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    store.store(deliveries([observation("a", n) for n in range(10, 17)]))
    first = store.fetch(queue.claim(1, 10.0), LANE)[0]
    assert (len(first.stamps), first.tokens) == (7, {})
    store.settle([answer(first, tokens={0: b"zero", 1: b"one"})], LANE)
    store.store(deliveries([observation("a", 20)], first=10))
    second = store.fetch(queue.claim(1, 10.0), LANE)[0]
    assert second.tokens == {0: b"zero", 1: b"one"}
    assert second.stamps[:, 0, 0].tolist() == [16, 20]
    assert len(second.header) == 8
    assert store.fetch([second.claim], replace(LANE, kept_as="another version"))[0].tokens == {}
    # a late stamp in group 1: group 0 stands, group 1 is another one
    store.store(deliveries([observation("a", 900, 60013.5)], first=11))
    third = store.fetch([second.claim], LANE)[0]
    assert third.tokens == {0: b"zero"}
    assert third.stamps[:, 0, 0].tolist() == [13, 900, 14, 15, 16, 20]
    store.settle([answer(third, tokens={1: b"new one"})], LANE)
    keys = state.connect(valkey.url).run([("KEYS", "*tokens:a")])[0]
    assert len(state.connect(valkey.url).run([("HKEYS", keys[0])])[0]) == 3  # model, group 0, new group 1


def test_tokens_outlive_the_sliding_of_a_full_sequence(valkey: embedded.Server) -> None:
    """Each stamp moves the groups of a full sequence by one; every third one brings the same groups back."""
    store, queue, _ = open_state(valkey.url, max_stamps=6)
    computed = []
    for n in range(20):
        store.store(deliveries([observation("a", n)], first=n))
        found = store.fetch(queue.claim(1, 10.0), LANE)[0]
        new = {g: b"%d" % g for g in range(len(found.header) // 3) if g not in found.tokens}
        computed.append(len(new))
        store.settle([answer(found, tokens=new)], LANE)
    assert computed[:6] == [0, 0, 1, 0, 0, 1]
    assert computed[6:8] == [2, 2], "the two other ways to cut the sequence into groups"
    assert computed[8:] == [1] * 12, "afterwards only the newest group"
    kept = state.connect(valkey.url).run([("KEYS", "*tokens:a")])[0]
    assert state.connect(valkey.url).run([("HLEN", kept[0])]) == [1 + 4]


def test_a_token_of_a_group_that_is_not_full_is_refused(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    store.store(deliveries([observation("a", 1)]))
    found = store.fetch(queue.claim(1, 10.0), LANE)
    with pytest.raises(ValueError, match="not full"):
        store.settle([answer(found[0], tokens={0: b"token"})], LANE)


def test_every_change_raises_the_revision(valkey: embedded.Server) -> None:
    store, _, _ = open_state(valkey.url)
    revisions = []
    for n in range(200):  # several within one millisecond
        store.store(deliveries([observation("a", n), observation("a", n)], first=2 * n))
        revisions.append(store.revision("a"))
    assert revisions == sorted(set(revisions))


def test_an_object_that_changed_counts_as_pending_only(valkey: embedded.Server) -> None:
    store, queue, ledger = open_state(valkey.url)
    store.store(deliveries([observation("a"), observation("b")]))
    found = {s.object_id: s for s in store.fetch(queue.claim(2, 10.0), LANE)}
    store.settle([answer(found["a"]), answer(found["b"], classified=False)], LANE)
    objects = ledger.books().objects
    assert (objects.models[""], objects.balanced) == (ModelBooks(1, 1, 0), True)
    store.store(deliveries([observation("a", 2), observation("b", 2)], first=2))
    objects = ledger.books().objects
    assert (objects.models[""], objects.balanced) == (ModelBooks(0, 0, 2), True)
    answer_all(store, queue)
    objects = ledger.books().objects
    assert (objects.models[""], objects.balanced) == (ModelBooks(2, 0, 0), True)


def test_a_late_answer_leaves_nothing_of_a_forgotten_object(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url, ttl_s=0.1, shards=1)
    store.store(deliveries([observation("a", n) for n in range(3)]))
    late = store.fetch(queue.claim(1, 0.0), LANE)[0]
    answer_all(store, queue)
    threading.Event().wait(0.2)
    store.store(deliveries([observation("b")], first=3))
    assert store.sequence("a") is None
    assert store.settle([answer(late, tokens={0: b"token"})], LANE) == [Settled.STALE]
    assert not [k for k in state.connect(valkey.url).run([("KEYS", "*")])[0] if k.endswith(b":a")]


def test_the_history_is_bounded(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    for n in range(105):
        store.store(deliveries([observation("a", n)], first=n))
        answer_all(store, queue)
    assert len(store.history("a")) == 99
    assert store.history("a")[-1] == f'{{"revision": {store.revision("a")}}}'


def test_a_quiet_object_is_forgotten_and_counted(valkey: embedded.Server) -> None:
    store, queue, ledger = open_state(valkey.url, ttl_s=0.2, shards=1)
    store.store(deliveries([observation("a"), observation("b")]))
    revision = store.revision("a")
    store.settle([answer(s) for s in store.fetch([c for c in queue.claim(2, 30.0) if c.object_id == "a"], LANE)], LANE)
    threading.Event().wait(0.3)
    store.store(deliveries([observation("c")], first=2))
    assert store.sequence("a") is None
    assert len(content(store, "b")) == 1, "b waits for an answer"
    objects = ledger.books().objects
    assert (objects.touched, objects.expired, objects.total("pending"), objects.balanced) == (2, 1, 2, True)
    assert not [k for k in state.connect(valkey.url).run([("KEYS", "*")])[0] if k.endswith(b":a")]
    # it comes back: its old message changes nothing, a new one begins a new sequence with a higher revision
    store.store(deliveries([observation("a")]))
    assert store.sequence("a") is None
    store.store(deliveries([observation("a", 9)], first=3))
    assert store.revision("a") > revision


def test_an_object_of_which_redis_lost_a_part_shows_in_the_books(valkey: embedded.Server) -> None:
    store, queue, ledger = open_state(valkey.url)
    store.store(deliveries([observation("a"), observation("b")]))
    client = state.connect(valkey.url)
    client.run([("DEL", *client.run([("KEYS", "*stamps:a")])[0])])
    stale, held = queue.claim(2, 0.0), queue.claim(2, 10.0)
    assert [s.object_id for s in store.fetch(stale, LANE)] == ["b"]
    assert ledger.books().objects.lost == 0, "whose lease is over decides nothing"
    found = store.fetch(held, LANE)
    assert [s.object_id for s in found] == ["b"]
    store.settle([answer(found[0])], LANE)
    objects = ledger.books().objects
    assert (objects.touched, objects.total("pending"), objects.lost, objects.balanced) == (1, 0, 1, False)


def _ingest(url: str, messages: list[Delivery], seed: int) -> None:
    store, _, _ = open_state(url)
    mine = random.Random(seed).sample(messages, len(messages))  # every ingest delivers everything
    for n in range(0, len(mine), 40):
        store.store(mine[n : n + 40])


def _work(url: str, done: threading.Event) -> None:
    store, queue, _ = open_state(url)
    while not done.is_set():
        claims = queue.claim(7, 5.0)
        store.settle([answer(s) for s in store.fetch(claims, LANE)], LANE)


def test_several_ingests_and_workers_at_once(valkey: embedded.Server) -> None:
    done = threading.Event()
    messages = deliveries([observation(f"o{n % 20}", n) for n in range(600)])
    with ThreadPoolExecutor(6) as threads:
        workers = [threads.submit(_work, valkey.url, done) for _ in range(3)]
        ingests = [threads.submit(_ingest, valkey.url, messages, seed) for seed in range(3)]
        try:
            for ingest in ingests:
                ingest.result(60)
        finally:
            done.set()
        for worker in workers:
            worker.result(60)
    store, queue, ledger = open_state(valkey.url)
    answer_all(store, queue)
    ledger.consumed({"alerts/0": range(600)})
    books = ledger.books()
    assert books.balanced, books.to_text()
    assert books.summary()["stored"] == 600
    for n in range(20):
        found = store.sequence(f"o{n}")
        assert found is not None
        assert len(found.header) == 30
        assert store.latest(f"o{n}") == answer(found).latest


def _fill(store: SequenceStore, batches: int, objects: str = "o{k}") -> tuple[int, str]:
    """Store 50 stamps a batch until the server is full; how many messages were taken, and what it said.

    Raises:
        AssertionError: it never was.
    """
    for n in range(batches):
        seen = [observation(objects.format(k=k, n=n), n) for k in range(50)]
        try:
            store.store(deliveries(seen, first=50 * n))
        except ServiceUnavailable as full:
            return 50 * n, str(full)
    raise AssertionError("the server was never full")


def test_a_full_redis_refuses_whole_and_goes_on_when_there_is_room() -> None:
    with embedded.start_valkey(maxmemory="6mb") as server:
        store, queue, ledger = open_state(server.url)
        taken, reason = _fill(store, 200)
        assert taken >= 500
        assert "is full: raise its maxmemory" in reason
        # what is there can be answered, only tokens are not kept
        found = store.fetch(queue.claim(20, 10.0), LANE)
        settled = store.settle([answer(s, tokens={0: bytes(1000)}) for s in found], LANE)
        assert settled == [Settled.ACKED] * 20
        state.connect(server.url).run([("CONFIG SET", "maxmemory", "100mb")])
        store.store(deliveries([observation(f"o{k}", taken // 50) for k in range(50)], first=taken))
        answer_all(store, queue)
        ledger.consumed({"alerts/0": range(taken + 50)})
        assert ledger.books().balanced


def test_forgetting_makes_room_on_a_full_redis() -> None:
    with embedded.start_valkey(maxmemory="6mb") as server:
        store, queue, _ = open_state(server.url, ttl_s=0.5, shards=1)
        _fill(store, 10_000, "o{n}-{k}")
        answer_all(store, queue)
        threading.Event().wait(0.6)
        outcomes: list[Outcome] = []
        for _ in range(50):
            with suppress(ServiceUnavailable):
                outcomes = store.store(deliveries([observation("new")], first=10**6))
        assert outcomes == [Outcome.STORED]


def test_a_killed_server_keeps_what_it_acknowledged(durable_valkey: embedded.Server) -> None:
    store, queue, ledger = open_state(durable_valkey.url)
    seen = [observation(f"o{n % 10}", n) for n in range(100)]
    ledger.consumed({"alerts/0": range(100)})
    store.store(deliveries(seen))
    found = store.fetch(queue.claim(4, 0.0), LANE)
    store.settle([answer(s) for s in found], LANE)
    before = {f"o{n}": content(store, f"o{n}") for n in range(10)}
    revisions = {name: store.revision(name) for name in before}
    durable_valkey.kill()
    with pytest.raises(ServiceUnavailable, match="unavailable"):
        store.store(deliveries([observation("o0", 500)], first=100))
    durable_valkey.restart()
    assert {name: content(store, name) for name in before} == before
    assert {name: store.revision(name) for name in before} == revisions
    books = ledger.books()
    assert books.balanced
    assert (books.objects.total("classified"), books.pending) == (4, 6)
    assert answer_all(store, queue) == 6


def test_on_a_cluster(valkey_cluster: ValkeyCluster) -> None:
    store, queue, ledger = open_state(valkey_cluster.url, cluster=True)
    ledger.ping()
    seen = [observation(f"o{n % 40}", n) for n in range(400)]
    messages = deliveries(seen)
    ledger.consumed({"alerts/0": range(401)})
    ledger.skipped([("alerts/0", 400, "no_stamp")])
    chance = random.Random(4)
    for _ in range(2):
        mixed = chance.sample(messages, len(messages))
        for n in range(0, 400, 130):
            store.store(mixed[n : n + 130])
    used = [state.connect(node.url).run([("DBSIZE",)])[0] for node in valkey_cluster.nodes]
    assert min(used) > 0, "the shards should use every node"
    assert names(queue.claim(15, 0.0)) <= {f"o{n}" for n in range(40)}
    assert answer_all(store, queue) == 40
    for n in range(40):
        assert [row[-2] for row in content(store, f"o{n}")] == list(range(n, 400, 40))
    books = ledger.books()
    assert books.balanced, books.to_text()
    assert books.summary()["stored"] == 400
    assert (books.objects.touched, books.objects.total("classified")) == (40, 40)


def test_the_header_is_what_the_scripts_think() -> None:
    # store.lua leaves out bytes 37 to 52 when it compares payloads
    assert HEADER.itemsize == 60
    assert HEADER.fields is not None
    assert (HEADER.fields["kafka_ms"][1], HEADER.fields["ingest_ms"][1], HEADER.fields["source_id"][1]) == (36, 44, 52)


def test_a_stamp_of_another_shape_is_refused(valkey: embedded.Server) -> None:
    store, _, _ = open_state(valkey.url)
    with pytest.raises(ValueError, match="float16"):
        store.store(deliveries([observation(stamp=np.zeros((31, 32), np.float16))]))


def test_survey_names_keep_apart(valkey: embedded.Server) -> None:
    store, _, _ = open_state(valkey.url)
    store.store(deliveries([observation("a")]))
    assert SequenceStore(state.connect(valkey.url), f"{SURVEY}2").sequence("a") is None
