import json
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_tools import ValkeyCluster
from state_tools import SURVEY, deliveries, delivery, observation, open_state

from skyheed.broker.errors import ConfigError
from skyheed.broker.local import embedded
from skyheed.broker.state import client as state
from skyheed.broker.state.keys import SEGMENT_BITS
from skyheed.broker.state.ledger import Ledger, PartitionBooks

P = "alerts@id/0"


def _row(ledger: Ledger, partition: str = P) -> PartitionBooks:
    return next(p for p in ledger.books().partitions if p.partition == partition)


def test_nothing_consumed_balances(valkey: embedded.Server) -> None:
    books = open_state(valkey.url)[2].books()
    assert books.balanced
    assert (books.consumed, books.pending, books.partitions) == (0, 0, [])


def test_every_outcome_is_counted_once(valkey: embedded.Server) -> None:
    store, _, ledger = open_state(valkey.url)
    for _ in range(2):  # delivered twice
        ledger.consumed({P: range(10), "alerts@id/1": [5, 7]})
        store.store(deliveries([observation("a", 1), observation("a", 2), observation("a", 1)], P))
        ledger.skipped([(P, 3, "no_stamp"), (P, 4, "no_stamp"), (P, 5, "solar_system")])
        ledger.set_aside([(P, 6, "bad_gzip"), (P, 7, "bad_gzip"), (P, 8, "truncated"), (P, 9, "truncated")])
        store.store([delivery(5, observation("b", 1), "alerts@id/1"), delivery(7, observation("c", 1), "alerts@id/1")])
    row = _row(ledger)
    assert (row.consumed, row.stored, row.duplicate) == (10, 2, 1)
    assert row.skipped == {"no_stamp": 2, "solar_system": 1}
    assert row.rejected == {"bad_gzip": 2, "truncated": 2}
    books = ledger.books()
    assert books.balanced
    assert books.summary() == {
        "consumed": 12, "stored": 4, "duplicates": 1, "skipped": 3, "rejected": 4, "objects": 3, "classified": 0,
        "declined": 0, "pending": 3, "expired": 0, "lost": 0, "balanced": True,
    }  # fmt: skip
    assert json.loads(json.dumps(books.to_json()))["partitions"][0]["skipped"] == {"no_stamp": 2, "solar_system": 1}
    assert "the books balance" in books.to_text()


def test_a_lost_message_shows(valkey: embedded.Server) -> None:
    _, _, ledger = open_state(valkey.url)
    ledger.consumed({P: range(2_000_000, 2_000_020)})
    ledger.skipped([(P, n, "no_stamp") for n in range(2_000_000, 2_000_013)])
    row = _row(ledger)
    assert (row.balanced, row.missing, row.unexpected) == (False, 7, 0)
    assert row.first_missing == [2_000_013, 2_000_014, 2_000_015, 2_000_016, 2_000_017]
    text = ledger.books().to_text()
    assert "7 without an outcome: offsets 2000013, 2000014, 2000015, 2000016, 2000017, …" in text
    assert "DO NOT BALANCE" in text


def test_an_outcome_that_was_never_consumed_shows(valkey: embedded.Server) -> None:
    store, _, ledger = open_state(valkey.url)
    store.store([delivery(3 * SEGMENT_BITS + 9, observation("a"), P)])  # not even its partition is known otherwise
    row = _row(ledger)
    assert (row.balanced, row.unexpected, row.first_unexpected) == (False, 1, [3 * SEGMENT_BITS + 9])


def test_a_message_of_several_records_counts_once(valkey: embedded.Server) -> None:
    store, _, ledger = open_state(valkey.url)
    ledger.consumed({P: range(3)})
    store.store([delivery(0, observation(f"o{n}"), P) for n in range(20)])
    store.store([delivery(1, observation("o0"), P), delivery(1, observation("new"), P)])  # duplicate and stored
    ledger.skipped([(P, 1, "older_than_window")])
    ledger.set_aside([(P, 2, "truncated")])
    store.store([delivery(2, observation("x"), P)])  # rejected first, stored after a fix
    row = _row(ledger)
    assert (row.consumed, row.stored, row.duplicate, row.skipped, row.rejected) == (3, 2, 0, {}, {"truncated": 1})
    assert row.balanced


def test_two_reasons_for_one_offset_count_once(valkey: embedded.Server) -> None:
    _, _, ledger = open_state(valkey.url)
    ledger.consumed({P: [0]})
    ledger.set_aside([(P, 0, "registry_unavailable")])
    ledger.set_aside([(P, 0, "bad_schema")])
    assert _row(ledger).rejected == {"bad_schema": 1}


def test_settled_needs_both_marks(valkey: embedded.Server) -> None:
    store, _, ledger = open_state(valkey.url)
    ledger.consumed({P: [0, 1, 2]})
    store.store([delivery(1, observation("a"), P), delivery(5, observation("b"), P)])
    ledger.skipped([(P, 2, "no_stamp")])
    places = [(P, 0), (P, 1), (P, 2), (P, 5), (P, 10**7), ("elsewhere/0", 1)]
    assert ledger.settled(places) == [False, True, True, False, False, False]


def test_a_topic_made_again_has_books_of_its_own(valkey: embedded.Server) -> None:
    store, _, ledger = open_state(valkey.url)
    for topic in ("alerts@one/0", "alerts@two/0"):
        ledger.consumed({topic: [0]})
    store.store([delivery(0, observation("a", 1), "alerts@one/0"), delivery(0, observation("a", 2), "alerts@two/0")])
    assert ledger.books().summary()["stored"] == 2
    assert ledger.books().balanced


outcomes = st.sampled_from(["stored", "duplicate", "skipped.no_stamp", "rejected.truncated", "lost"])


@pytest.fixture(scope="module")
def own_valkey() -> object:
    with embedded.start_valkey() as server:
        yield server


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=st.dictionaries(
        st.one_of(st.integers(0, 40), st.integers(SEGMENT_BITS - 20, SEGMENT_BITS + 20)), outcomes, max_size=30
    ),
    repeat=st.booleans(),
)
def test_any_set_of_offsets(own_valkey: embedded.Server, plan: dict[int, str], repeat: bool) -> None:
    """Offsets with gaps, on both sides of a segment's end, in any order."""
    state.connect(own_valkey.url).run([("FLUSHALL",)])
    store, _, ledger = open_state(own_valkey.url, shards=3)
    store.store([delivery(0, observation("d", 1), "elsewhere/0")])
    ledger.consumed({"elsewhere/0": [0]})
    for _ in range(1 + repeat):
        ledger.consumed({P: list(plan)})
        for offset, outcome in plan.items():
            if outcome == "stored":
                store.store([delivery(offset, observation(f"o{offset}"), P)])
            elif outcome == "duplicate":
                store.store([delivery(offset, observation("d", 1), P)])
            elif outcome != "lost":
                kind, reason = outcome.split(".")
                (ledger.skipped if kind == "skipped" else ledger.set_aside)([(P, offset, reason)])
    expected = {name: sum(o == name for o in plan.values()) for name in
                ("stored", "duplicate", "skipped.no_stamp", "rejected.truncated", "lost")}  # fmt: skip
    if not plan:
        return
    row = _row(ledger)
    assert (row.consumed, row.stored, row.duplicate, row.skipped.total(), row.rejected.total(), row.missing) == (
        len(plan), *expected.values()
    )  # fmt: skip
    assert row.first_missing == sorted(o for o, name in plan.items() if name == "lost")[:5]
    assert row.balanced == (expected["lost"] == 0)


def _fill(ledger: Ledger, segment: int, count: int = 100, start: int = 0) -> None:
    first = segment * SEGMENT_BITS + start
    ledger.consumed({P: range(first, first + count)})
    ledger.skipped([(P, n, "no_stamp") for n in range(first, first + count)])


def _bitmaps(url: str) -> int:
    found = state.connect(url).run([("KEYS", "sh:*:[0-9]*")])[0]
    return len([key for key in found if key.rsplit(b":", 1)[1].isdigit()])


def test_finished_segments_are_folded_and_their_bitmaps_go(valkey: embedded.Server) -> None:
    ledger = Ledger(state.connect(valkey.url), SURVEY, keep_s=0.3)
    _fill(ledger, 0)
    _fill(ledger, 1)
    assert ledger.fold(P) == 1
    assert ledger.fold(P) == 1, "folding again changes nothing"
    before = ledger.books().to_json()
    assert before["consumed"] == 200
    assert _bitmaps(valkey.url) == 4
    threading.Event().wait(0.4)
    assert _bitmaps(valkey.url) == 2, "the live segment's"
    assert ledger.books().to_json() == before
    ledger.fold(P)
    assert ledger.books().to_json() == before
    assert ledger.settled([(P, 5), (P, 99), (P, 100)]) == [True, True, False]


def test_a_segment_with_a_loss_is_not_folded(valkey: embedded.Server) -> None:
    ledger = Ledger(state.connect(valkey.url), SURVEY, keep_s=0.1)
    ledger.consumed({P: [7]})
    _fill(ledger, 1)
    assert ledger.fold(P) == 0
    threading.Event().wait(0.2)
    assert _row(ledger).first_missing == [7]


def test_marks_that_come_to_a_folded_segment_count_once(valkey: embedded.Server) -> None:
    """Somebody sets the group back, and some offsets were never read before."""
    ledger = Ledger(state.connect(valkey.url), SURVEY, keep_s=0.2)
    for segment in (0, 1):
        _fill(ledger, segment)
    ledger.fold(P)
    threading.Event().wait(0.3)  # the bitmaps are gone
    _fill(ledger, 0, count=60, start=90)
    row = _row(ledger)
    assert (row.consumed, row.skipped["no_stamp"], row.balanced) == (250, 250, True)
    ledger.fold(P)
    assert _row(ledger).consumed == 250
    threading.Event().wait(0.3)
    assert _row(ledger).consumed == 250
    _fill(ledger, 0, 150)
    assert _row(ledger).consumed == 250, "a fold covers what earlier folds covered"


def test_new_marks_keep_a_bitmap_that_was_about_to_go(valkey: embedded.Server) -> None:
    ledger = Ledger(state.connect(valkey.url), SURVEY, keep_s=0.2, shards=1)
    for segment in (0, 1):
        _fill(ledger, segment)
    ledger.consumed({P: [999]})
    store = open_state(valkey.url, shards=1)[0]
    store.store([delivery(999, observation("a", 1), P)])
    ledger.fold(P)
    ledger.consumed({P: [1000, 1001]})
    store.store([delivery(1001, observation("a", 2), P)])
    threading.Event().wait(0.3)
    assert _row(ledger).first_missing == [1000]
    assert _row(ledger).stored == 2


def test_consuming_folds_by_itself(valkey: embedded.Server) -> None:
    ledger = Ledger(state.connect(valkey.url), SURVEY, keep_s=0.1)
    for segment in range(4):
        _fill(ledger, segment)
    threading.Event().wait(0.2)
    assert _bitmaps(valkey.url) == 2, "only the last segment's"
    assert _row(ledger).consumed == 400
    assert ledger.books().balanced


def test_another_number_of_shards_is_refused(valkey: embedded.Server) -> None:
    client = state.connect(valkey.url)
    Ledger(client, SURVEY, shards=16).ping()
    Ledger(client, SURVEY, shards=16).ping()
    with pytest.raises(ConfigError, match=r"redis\.shards = 16"):
        Ledger(client, SURVEY, shards=8).ping()
    Ledger(client, "another", shards=8).ping()


def test_the_books_of_a_cluster(valkey_cluster: ValkeyCluster) -> None:
    store, _, ledger = open_state(valkey_cluster.url, cluster=True)
    partitions = [f"alerts@id/{n}" for n in range(9)]
    ledger.consumed({p: range(20) for p in partitions})
    for p in partitions:
        store.store(deliveries([observation(f"{p}{n}") for n in range(10)], p))
        ledger.skipped([(p, n, "no_stamp") for n in range(10, 19)])
    books = ledger.books()
    assert [row.missing for row in books.partitions] == [1] * 9
    ledger.set_aside([(p, 19, "truncated") for p in partitions])
    assert ledger.books().balanced
    assert ledger.books().summary()["stored"] == 90


def _finished(url: str, nights: int, **options: float) -> Ledger:
    """Books of this many nights of two partitions, all of them closed but the last night's."""
    client = state.connect(url)
    ledger = Ledger(client, SURVEY, shards=2, **{"keep_s": 0.05, "idle_s": 3600.0, **options})
    for night in range(nights):
        for partition in (f"night{night}@id/0", f"night{night}@id/1"):
            ledger.consumed({partition: range(20)})
            ledger.skipped([(partition, n, "no_stamp") for n in range(15)])
            ledger.set_aside([(partition, n, "truncated") for n in range(15, 20)])
    for key in client.run([("KEYS", "sh:*:recent")])[0]:
        if b"|night%d@" % (nights - 1) not in key:
            client.run([("DEL", key)])
    while not ledger.finish():
        pass
    return ledger


def _commands_of(url: str, ledger: Ledger) -> int:
    client = state.connect(url)
    ledger.books()  # from now on the server knows the scripts
    before = client.info()[0]["total_commands_processed"]
    assert ledger.books().balanced
    return int(client.info()[0]["total_commands_processed"] - before)


def _size_at_rest(url: str) -> int:
    """Keys once the bitmaps of what is closed are gone: Valkey removes what has expired a little at a time."""
    sizes: list[int] = []
    while len(sizes) < 4 or len(set(sizes[-4:])) > 1:
        assert len(sizes) < 100, sizes
        threading.Event().wait(0.2)
        sizes.append(state.connect(url).run([("DBSIZE",)])[0])
    return sizes[-1]


def test_the_cost_of_an_audit_does_not_grow_with_finished_topics(valkey: embedded.Server) -> None:
    """Nor does what finished topics leave behind: two small values for each partition."""
    costs, sizes = [], []
    for nights in (3, 103):
        state.connect(valkey.url).run([("FLUSHALL",)])
        ledger = _finished(valkey.url, nights)
        costs.append(_commands_of(valkey.url, ledger))
        sizes.append(_size_at_rest(valkey.url))
        books = ledger.books()
        assert books.summary()["consumed"] == nights * 40
        assert [p.partition for p in books.partitions][-1] == f"{2 * nights - 2} finished"
        assert (books.partitions[-1].skipped, books.partitions[-1].rejected) == (
            {"no_stamp": 15 * (2 * nights - 2)}, {"truncated": 5 * (2 * nights - 2)},
        )  # fmt: skip
        assert len(books.partitions) == 3
        assert "finished" in books.to_text()
    assert costs[0] == costs[1]
    assert sizes[1] - sizes[0] <= 2 * 200
    assert state.connect(valkey.url).run([("SCARD", f"sh:{{{SURVEY}:0}}:segments")])[0] <= 2


def test_marks_that_come_to_a_finished_topic_open_its_books_and_count_once(valkey: embedded.Server) -> None:
    _finished(valkey.url, 3)
    ledger = Ledger(state.connect(valkey.url), SURVEY, shards=2)  # another daemon
    ledger.consumed({"night0@id/0": range(10, 30)})  # the group was set back, and more came
    ledger.skipped([("night0@id/0", n, "no_stamp") for n in range(20, 29)])
    books = ledger.books()
    row = _row(ledger, "night0@id/0")
    assert (row.consumed, row.skipped["no_stamp"], row.rejected["truncated"], row.first_missing) == (30, 24, 5, [29])
    assert books.consumed == 3 * 40 + 10
    assert books.partitions[-1].partition == "3 finished"
    ledger.skipped([("night0@id/0", 29, "no_stamp")])
    state.connect(valkey.url).run([("DEL", f"sh:{{{SURVEY}|night0@id/0}}:recent")])
    assert ledger.finish()
    assert ledger.finish(), "closing again changes nothing"
    books = ledger.books()
    assert (books.consumed, books.balanced, books.partitions[-1].partition) == (130, True, "4 finished")
    assert ledger.settled([("night0@id/0", 29), ("night0@id/0", 30)]) == [True, False]


def test_a_topic_of_which_something_was_lost_is_never_finished(valkey: embedded.Server) -> None:
    ledger = Ledger(state.connect(valkey.url), SURVEY, idle_s=0.05)
    _fill(ledger, 0)
    ledger.consumed({P: [500]})
    threading.Event().wait(0.1)
    assert ledger.finish()
    assert _row(ledger).first_missing == [500]


def test_a_topic_is_finished_only_when_nothing_came_for_so_long(valkey: embedded.Server) -> None:
    ledger = Ledger(state.connect(valkey.url), SURVEY, idle_s=0.3)
    _fill(ledger, 0)
    assert ledger.finish()
    assert _row(ledger).consumed == 100
    threading.Event().wait(0.4)
    assert ledger.finish()
    assert [p.partition for p in ledger.books().partitions] == ["1 finished"]


def test_two_that_fold_or_finish_at_once_count_once(valkey: embedded.Server) -> None:
    ledgers = [Ledger(state.connect(valkey.url), SURVEY, shards=2, idle_s=0.01) for _ in range(3)]
    for n in range(20):
        ledgers[0].consumed({f"t@id/{n}": range(10), P: [n * SEGMENT_BITS]})
        ledgers[0].skipped([(f"t@id/{n}", k, "no_stamp") for k in range(10)] + [(P, n * SEGMENT_BITS, "no_stamp")])
    threading.Event().wait(0.05)
    threads = [threading.Thread(target=ledger.finish, args=(100,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    books = ledgers[0].books()
    assert (books.consumed, books.balanced) == (220, True)
    assert [p.partition for p in books.partitions] == ["21 finished"]


def test_marks_while_books_are_closed_are_not_lost(valkey: embedded.Server) -> None:
    client = state.connect(valkey.url)
    ledger, other = (Ledger(client, SURVEY, shards=2, idle_s=0.02) for _ in range(2))
    stop = threading.Event()

    def close() -> None:
        while not stop.is_set():
            other.finish()

    thread = threading.Thread(target=close)
    thread.start()
    for n in range(150):
        ledger.consumed({P: [n]})
        ledger.skipped([(P, n, "no_stamp")])
        stop.wait(0.03 if n % 10 == 0 else 0.0)
    stop.set()
    thread.join()
    books = ledger.books()
    assert (books.consumed, books.balanced) == (150, True)
