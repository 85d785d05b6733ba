"""Sorting messages: each ends in exactly one pile, whatever the packet or our own code does."""

import http.server
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from packet_tools import confluent_payload
from state_tools import observation, open_state

from skyheed.broker import metrics
from skyheed.broker.errors import (
    PacketError,
    Reason,
    ServiceError,
    ServiceUnavailable,
    SkipPacket,
)
from skyheed.broker.ingest import Budget, Ingest, Intake, _beyond
from skyheed.broker.local import embedded
from skyheed.broker.metrics import IngestMetrics
from skyheed.broker.observation import Observation
from skyheed.broker.packets.container import Decoder
from skyheed.broker.packets.surveys import load_survey
from skyheed.broker.registry.schemas import SchemaSource
from skyheed.broker.state.sequence import Delivery, Outcome
from skyheed.broker.waiting import Unfinished


class Message:
    """What a Kafka message looks like."""

    def __init__(self, offset: int, value: bytes | None) -> None:
        self._offset, self._value = offset, value

    def topic(self) -> str:
        return "alerts"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> None:
        return None

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, 1234


class Words:
    """A decoder whose packets are words, one record each."""

    def decode(self, payload: bytes) -> list[dict[str, Any]]:
        return [{"word": word} for word in payload.decode().split()]


class Survey:
    """A survey in which some words are bad."""

    name = "words"

    def observation(self, record: dict[str, Any]) -> Observation:
        word = record["word"]
        if word == "skip":
            raise SkipPacket(Reason.NO_STAMP, "no stamp")
        if word == "bad":
            raise PacketError(Reason.NO_TIME, "no time")
        if word == "bug":
            raise ZeroDivisionError("ours")
        if word == "away":
            raise ServiceUnavailable("a catalogue is unavailable")
        return Observation(word, 1, 60000.0, "r", 1.0, 2.0, 3.0, 4.0, np.zeros((32, 32), np.float16), 0)


class Many:
    """A decoder whose packets are numbers of records, and take a while."""

    def decode(self, payload: bytes) -> list[dict[str, Any]]:
        time.sleep(0.02)
        return [{"word": f"w{payload.decode()}-{n}"} for n in range(int(payload))]


class Taking:
    """A consumer that hands out one batch, and remembers what is done with it."""

    def __init__(self, messages: list[Any], stop: threading.Event) -> None:
        self.messages, self._stop = messages, stop
        self.committed: list[int] = []
        self.alive = 0

    def consume(self, _limit: int, _wait_s: float, _bytes: int) -> list[Any]:
        messages, self.messages = self.messages, []
        if not messages:
            self._stop.set()
        return messages

    def partition_key(self, topic: str, partition: int) -> str:
        return f"{topic}/{partition}"

    def keep_alive(self) -> None:
        self.alive += 1

    def commit(self, messages: Sequence[Any]) -> None:
        self.committed.append(len(messages))

    def lag(self) -> dict[str, int]:
        return {}


class Books:
    """A ledger and a store that remember what they were told."""

    def __init__(self) -> None:
        self.marked: list[int] = []

    def finish(self) -> bool:
        return True

    def consumed(self, offsets: Mapping[str, Sequence[int]]) -> None:
        self.marked += [offset for own in offsets.values() for offset in own]

    def store(self, deliveries: Sequence[Delivery], behind: bool = False) -> list[Outcome]:
        return [Outcome.STORED] * len(deliveries)


def ingest_of(messages: list[Any], stop: threading.Event, **budget: Any) -> tuple[Ingest, Taking, Books]:
    books = Books()
    consumer = Taking(messages, stop)
    made = Intake(Survey(), Many(), books, books, None)  # type: ignore[arg-type]
    measured = IngestMetrics("words")
    return Ingest(made, consumer, measured, 500, 0.1, Budget(**budget)), consumer, books  # type: ignore[arg-type]


def test_a_batch_is_settled_and_committed_in_slices_of_a_budget_of_records() -> None:
    stop = threading.Event()
    messages = [Message(n, str(count).encode()) for n, count in enumerate((3, 3, 9, 1, 1, 1))]
    loop, consumer, books = ingest_of(messages, stop, records=5, seconds=60.0)
    assert loop.run(stop)["stored"] == 18
    assert consumer.committed == [2, 1, 3]  # a message is never cut
    assert books.marked == [0, 1, 2, 3, 4, 5]
    assert consumer.alive >= 6


def test_a_slice_ends_with_its_time() -> None:
    stop = threading.Event()
    loop, consumer, _ = ingest_of([Message(n, b"1") for n in range(10)], stop, seconds=0.03)
    loop.run(stop)
    assert sum(consumer.committed) == 10
    assert len(consumer.committed) >= 4


def test_a_signal_ends_a_batch_after_the_message_in_hand_and_its_books_balance() -> None:
    stop = threading.Event()
    loop, consumer, books = ingest_of([Message(n, b"1") for n in range(500)], stop)
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    loop.run(stop)
    assert time.monotonic() - began < 3
    assert 0 < sum(consumer.committed) < 200
    assert len(books.marked) == sum(consumer.committed), "what will be delivered again is not consumed"


@pytest.fixture
def intake() -> Intake:
    return Intake(Survey(), Words(), None, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "stored", "skipped", "rejected"),
    [
        (b"one", 1, [], []),
        (b"one two skip", 2, [], []),
        (b"skip skip", 0, [Reason.NO_STAMP], []),
        (b"one bad two", 0, [], [Reason.NO_TIME]),
        (b"skip bad", 0, [], [Reason.NO_TIME]),
        (b"bug", 0, [], [Reason.UNEXPECTED]),
        (b"\xff", 0, [], [Reason.UNEXPECTED]),
        (b"", 0, [], [Reason.EMPTY]),
        (None, 0, [], [Reason.EMPTY]),
        (b" ", 0, [], [Reason.EMPTY]),
    ],
)
def test_a_message_is_taken_skipped_or_set_aside_as_a_whole(
    intake: Intake, value: bytes | None, stored: int, skipped: list[Reason], rejected: list[Reason]
) -> None:
    batch = intake.sort([("alerts/0", 7, Message(7, value))], 99)  # type: ignore[list-item]
    assert len(batch.deliveries) == stored
    assert [reason for _, _, reason in batch.skipped] == skipped
    assert [letter.reason for letter in batch.rejected] == rejected
    assert all((d.offset, d.kafka_ms, d.ingest_ms) == (7, 1234, 99) for d in batch.deliveries)
    assert all(letter.value == value for letter in batch.rejected)


def test_faults_of_ours_are_one_line_a_batch_with_their_place(intake: Intake, caplog: pytest.LogCaptureFixture) -> None:
    batch = intake.sort([("alerts/0", n, Message(n, b"bug")) for n in range(50)], 99)  # type: ignore[misc]
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("50 packets set aside because of an internal error, the first: alerts/0 offset 0: ")
    assert "ZeroDivisionError: ours (test_ingest.py, line " in line
    assert "ZeroDivisionError: ours (test_ingest.py, line " in batch.rejected[-1].error


def test_a_server_that_is_away_is_not_the_packets_fault(intake: Intake) -> None:
    messages = [("alerts/0", n, Message(n, word)) for n, word in enumerate((b"one", b"away"))]
    with pytest.raises(ServiceUnavailable, match="a catalogue is unavailable"):
        intake.sort(messages, 99)  # type: ignore[arg-type]


@pytest.fixture
def refusing_registry() -> Iterator[tuple[str, list[str]]]:
    """A schema registry that takes no password, and what it was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_wrong_registry_password_stops_the_intake_and_sets_no_packet_aside(
    refusing_registry: tuple[str, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    url, asked = refusing_registry
    survey = load_survey("lsst")
    decoder = Decoder(survey.reader_schema, schemas=SchemaSource(url, "me", "hunter2"))
    intake = Intake(survey, decoder, None, None, None)  # type: ignore[arg-type]
    messages = [("alerts/0", n, Message(n, confluent_payload(1100, b"x"))) for n in range(20)]
    with caplog.at_level(logging.INFO), pytest.raises(ServiceError, match=r"refuses registry\.user") as caught:
        intake.sort(messages, 99)  # type: ignore[arg-type]
    assert len(asked) == 1
    assert caplog.records == []
    assert "hunter2" not in str(caught.value)


class Topic:
    """A consumer of a topic that is empty, and that tells the daemon to stop when it is read."""

    def __init__(self, stop: threading.Event, drained: bool) -> None:
        self._stop, self._drained = stop, drained

    def consume(self, _limit: int, _wait_s: float, _bytes: int) -> list[Any]:
        self._stop.set()
        return []

    def drained(self) -> bool:
        return self._drained


@pytest.mark.parametrize(
    ("drain", "drained", "whole"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_a_drain_that_was_stopped_before_its_end_is_an_error(
    intake: Intake, drain: bool, drained: bool, whole: bool
) -> None:
    stop = threading.Event()
    loop = Ingest(intake, Topic(stop, drained), metrics.IngestMetrics("words"), 10, 0.1)  # type: ignore[arg-type]
    if whole:
        assert loop.run(stop, drain) == {}
    else:
        with pytest.raises(Unfinished, match="start it again"):
            loop.run(stop, drain)


@pytest.mark.kafka
def test_a_drain_that_a_signal_stops_ends_with_status_1_and_one_sentence(kafka: embedded.Server) -> None:
    words = ["ingest", "--survey", "sdss", "--kafka", kafka.address, "--drain"]
    nowhere = f"redis://127.0.0.1:{embedded.free_port()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "skyheed.broker.cli", *words, "--redis", nowhere], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = ""
    while "waiting: Redis" not in said:
        said = process.stderr.readline()
        assert said, "it ended by itself"
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=30)[1].splitlines()
    assert process.returncode == 1
    assert rest[-1] == "skyheed: stopped before everything was done: start it again, nothing is lost"


class Careless:
    """A plug-in's survey, which checks nothing: whatever `changes` says is in the observation."""

    name = "careless"

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def observation(self, record: dict[str, Any]) -> Observation:
        return replace(observation(record["word"]), **(self.changes if record["word"] == "odd" else {}))


@pytest.mark.redis
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"flux": 3.5e38}, Reason.BAD_FLUX),
        ({"flux_error": 1e300}, Reason.BAD_FLUX),
        ({"flux": -float("inf")}, Reason.BAD_FLUX),
        ({"mjd": float("nan")}, Reason.UNEXPECTED),
        ({"band": "gr"}, Reason.UNEXPECTED),
        ({"band": "w"}, Reason.UNEXPECTED),
        ({"ra": None}, Reason.UNEXPECTED),
        ({"flags": -1}, Reason.UNEXPECTED),
        ({"source_id": 1 << 64}, Reason.UNEXPECTED),
        ({"object_id": "\ud800"}, Reason.BAD_OBJECT_ID),
        ({"object_id": 7}, Reason.UNEXPECTED),
        ({"stamp": np.zeros((31, 32), np.float16)}, Reason.UNEXPECTED),
    ],
)
def test_what_the_store_could_not_keep_is_set_aside_and_the_rest_of_the_batch_is_stored(
    valkey: embedded.Server, changes: dict[str, Any], reason: Reason
) -> None:
    store, _, _ = open_state(valkey.url)
    intake = Intake(Careless(**changes), Words(), store, None, None)  # type: ignore[arg-type]
    messages = [("alerts/0", n, Message(n, word)) for n, word in enumerate((b"one", b"odd", b"two"))]
    batch = intake.sort(messages, 99)  # type: ignore[arg-type]
    assert [(letter.offset, letter.reason) for letter in batch.rejected] == [(1, reason)]
    assert store.store(batch.deliveries) == [Outcome.STORED, Outcome.STORED]


@pytest.mark.redis
@pytest.mark.parametrize("value", [3e38, -3e38, float("nan"), 0.0])
def test_any_flux_that_passes_is_stored(valkey: embedded.Server, value: float) -> None:
    store, _, _ = open_state(valkey.url)
    intake = Intake(Careless(flux=value, flux_error=value), Words(), store, None, None)  # type: ignore[arg-type]
    batch = intake.sort([("alerts/0", 0, Message(0, b"odd"))], 99)  # type: ignore[list-item]
    assert store.store(batch.deliveries) == [Outcome.STORED]


def test_a_message_is_beyond_the_window_only_if_all_its_records_are() -> None:
    seen = Observation("A", 1, 60000.0, "r", 1.0, 2.0, 3.0, 4.0, np.zeros((32, 32), np.float16), 0)
    deliveries = [Delivery("p", offset, 0, 0, seen) for offset in (1, 1, 2, 2)]
    outcomes = [Outcome.STORED, Outcome.SKIPPED, Outcome.SKIPPED, Outcome.SKIPPED]
    assert _beyond(deliveries, outcomes) == [("p", 2, Reason.BEYOND_WINDOW)]
