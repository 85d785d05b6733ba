"""One small message may hold much work: neither the group's membership nor the way to stop depends on what it holds."""

import gzip
import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from process_tools import Program, until
from raw_kafka import produce
from server_tools import HOME, NEEDS_APACHE
from stream_tools import publish, raw_messages, record_of, sdss_alert, settings_for
from test_ingest import Message, Survey, Taking, Words

from skyheed.broker import app as daemon
from skyheed.broker.errors import PacketError, Reason, ServiceUnavailable
from skyheed.broker.ingest import Budget, Ingest, Intake
from skyheed.broker.kafka.client import BatchConsumer, Publisher
from skyheed.broker.kafka.deadletter import PIECE_BYTES, DeadLetter, DeadLetters, Rejected
from skyheed.broker.local import embedded
from skyheed.broker.metrics import IngestMetrics
from skyheed.broker.observation import Observation
from skyheed.broker.redrive import redrive
from skyheed.broker.state.sequence import Outcome
from skyheed.broker.waiting import Meanwhile, Stopped, patiently

STOP_S = 5.0


class Slow(Survey):
    """Every record takes a while."""

    def observation(self, record: dict[str, Any]) -> Observation:
        time.sleep(0.005)
        return super().observation(record)


class State:
    """A store and a ledger that remember how they were asked."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.marked: list[int] = []

    def store(self, deliveries: Any, behind: bool = False) -> list[Outcome]:
        self.calls.append(len(deliveries))
        return [Outcome.STORED] * len(deliveries)

    def finish(self) -> bool:
        return True

    def consumed(self, offsets: dict[str, list[int]]) -> None:
        self.marked += [offset for own in offsets.values() for offset in own]

    def settled(self, places: list[tuple[str, int]]) -> list[bool]:
        return [offset in self.marked for _, offset in places]


def words(count: int) -> bytes:
    return " ".join(f"w{n}" for n in range(count)).encode()


def loop_over(messages: list[Message], stop: threading.Event) -> tuple[Ingest, Taking, State]:
    state, consumer = State(), Taking(messages, stop)
    intake = Intake(Slow(), Words(), state, state, None)  # type: ignore[arg-type]
    return Ingest(intake, consumer, IngestMetrics("words"), 500, 0.1), consumer, state  # type: ignore[arg-type]


def test_a_signal_inside_a_message_leaves_it_unread_and_settles_those_before_it() -> None:
    stop = threading.Event()
    loop, consumer, state = loop_over([Message(0, words(3)), Message(1, words(5_000)), Message(2, b"x")], stop)
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    counts = loop.run(stop)
    assert time.monotonic() - began < STOP_S, "25 s is what the second message takes"
    assert (counts["consumed"], counts["stored"], counts["rejected"]) == (1, 3, 0)
    assert (consumer.committed, state.marked) == ([1], [0])


def test_a_signal_inside_the_first_message_marks_nothing() -> None:
    stop = threading.Event()
    loop, consumer, state = loop_over([Message(0, words(5_000))], stop)
    threading.Timer(0.3, stop.set).start()
    assert loop.run(stop) == {}
    assert (consumer.committed, state.marked, state.calls) == ([], [], [])


def test_the_consumer_is_kept_alive_between_the_records_of_a_message() -> None:
    stop = threading.Event()
    loop, consumer, _ = loop_over([Message(0, words(60))], stop)
    assert loop.run(stop)["stored"] == 60
    assert consumer.alive > 60


def test_a_part_is_stored_while_the_next_is_decoded_and_committed_in_order() -> None:
    """Storing waits for the first message of the next part, which would come after it if they took turns."""
    stop, begun = threading.Event(), threading.Event()
    messages = [Message(n, b"x") for n in range(500)]
    loop, consumer, state = loop_over(messages, stop)
    stored = state.store
    state.store = lambda deliveries, behind=False: begun.wait(30) and stored(deliveries, behind)  # type: ignore
    decode = loop.intake.reader.decoder.decode

    def decoding(value: bytes, *headers: Any) -> Any:
        decoded.append(1)
        if len(decoded) > 125:
            begun.set()
        return decode(value, *headers)

    decoded: list[int] = []
    loop.intake.reader.decoder.decode = decoding  # type: ignore[method-assign]
    assert loop.run(stop)["stored"] == 500
    assert (state.calls, state.marked) == ([125] * 4, list(range(500)))
    assert consumer.committed == [125] * 4


def test_a_part_that_cannot_be_stored_is_stored_later_and_nothing_behind_it_before() -> None:
    stop = threading.Event()
    loop, consumer, state = loop_over([Message(n, b"x") for n in range(250)], stop)
    stored, left = state.store, [2]

    def store(deliveries: Any, behind: bool = False) -> list[Outcome]:
        if left[0]:
            left[0] -= 1
            raise ServiceUnavailable("Redis is away")
        return stored(deliveries, behind)

    state.store = store  # type: ignore[method-assign]
    assert loop.run(stop)["stored"] == 250
    assert (state.calls, consumer.committed) == ([125, 125], [125, 125])
    assert state.marked == [*range(125)] * 3 + [*range(125, 250)], "consumed is marked again, which changes nothing"


def test_a_stop_leaves_a_part_that_is_never_stored() -> None:
    stop, forever = threading.Event(), threading.Event()
    loop, consumer, state = loop_over([Message(n, b"x") for n in range(200)], stop)
    state.store = lambda *_: forever.wait(60)  # type: ignore
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    loop.run(stop)
    forever.set()
    assert time.monotonic() - began < STOP_S
    assert consumer.committed == []


def slow_stamp(side: int = 511) -> bytes:
    """A gzipped stamp of 1 MiB that has one kB: the size that is still taken."""
    fits = gzip.decompress(record_of(sdss_alert("slow", 1))[1]["cutoutScience"])[:2880]
    for axis in (b"NAXIS1  =", b"NAXIS2  ="):
        fits = fits.replace(axis + b"64".rjust(21), axis + str(side).rjust(21).encode())
    pixels = np.ones((side, side), ">f4")
    pixels[30:36, 30:36] = 500.0
    data = pixels.tobytes()
    return gzip.compress(fits + data + bytes(-len(data) % 2880), 9, mtime=0)


def container_of(records: int, first: int = 0) -> bytes:
    """One message of many good records, each with a stamp that takes half a millisecond."""
    schema, record = record_of(sdss_alert("many", 1))
    record["cutoutScience"] = slow_stamp()
    made = [record | {"sourceId": first + n, "mjd": 55_000.0 + n / 1e4} for n in range(records)]
    out = io.BytesIO()
    parsed = fastavro.parse_schema(schema, named_schemas={})
    fastavro.writer(out, parsed, made, codec="deflate", sync_interval=2**21, sync_marker=bytes(16))
    return out.getvalue()


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts an ingest, which is gone at the end of the test."""
    made: list[Program] = []

    def start(kafka: str, redis: str, topic: str, *more: str) -> Program:
        words = ["--survey", "sdss", "--kafka", kafka, "--redis", redis, "--topic", topic, "--group", topic]
        made.append(Program(tmp_path / f"ingest{len(made)}", "ingest", *words, *more))
        return made[-1]

    yield start
    for program in made:
        if program.process.poll() is None:
            program.process.kill()
        program.process.wait(30)


SHORT_POLL = """\
[kafka_input]
"max.poll.interval.ms" = 5000
"session.timeout.ms" = 5000
"heartbeat.interval.ms" = 400
"""


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)
def test_a_message_that_takes_longer_than_the_poll_interval_is_committed_and_a_signal_in_one_ends_the_daemon(
    kafka: embedded.Server, valkey: embedded.Server, tmp_path: Path, ingest: Callable[..., Program]
) -> None:
    topic, records = "heavy", 7_000
    settings = settings_for(kafka.address, valkey.url, "sdss", topic)
    messages = [container_of(records), container_of(9_999, 10_000)]
    assert max(map(len, messages)) < 200_000
    publish(settings, topic, messages, partitions=1)
    (tmp_path / "short.toml").write_text(SHORT_POLL)
    program = ingest(kafka.address, valkey.url, topic, "--config", str(tmp_path / "short.toml"))
    program.until_it_says("batch consumed=1")
    time.sleep(0.5)  # the second is in hand: it takes seconds
    began = time.monotonic()
    program.process.terminate()
    assert program.process.wait(60) == 0, program.said
    assert time.monotonic() - began < STOP_S
    assert "went on without us" not in program.said
    assert program.said.count("batch consumed=") == 1
    books = daemon.read_store(settings)[2].books()
    assert (books.consumed, books.balanced) == (1, True)
    assert raw_messages(settings, settings.dead_letter_topic) == []
    with BatchConsumer(settings.kafka, [topic], topic, drain=True) as consumer:
        left: list[Any] = []
        until(lambda: left.extend(m.offset() for m in consumer.consume(10, 0.3)) or left, 30.0)
    assert left == [1], "the first is committed, the other comes again"


# --- publishing ----------------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere() -> dict[str, str]:
    return {"bootstrap.servers": f"127.0.0.1:{embedded.free_port()}"}


def test_a_publisher_that_waits_for_kafka_keeps_the_consumer_alive_and_ends_when_it_is_asked_to(
    nowhere: dict[str, str],
) -> None:
    stop, alive = threading.Event(), []
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    with Publisher(nowhere) as publisher, pytest.raises(Stopped):
        publisher.publish_all([("topic", None, b"x", None)], Meanwhile(stop, lambda: alive.append(1), grace_s=0.5))
    assert time.monotonic() - began < STOP_S, "35 s is what it waits for an answer"
    assert len(alive) > 3


def test_a_publisher_whose_queue_is_full_ends_when_it_is_asked_to(nowhere: dict[str, str]) -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    options = {**nowhere, "queue.buffering.max.messages": "10"}
    began = time.monotonic()
    with Publisher(options) as publisher, pytest.raises(Stopped):
        publisher.publish_all([("topic", None, b"x", None)] * 100, Meanwhile(stop))
    assert time.monotonic() - began < STOP_S


@pytest.mark.kafka
def test_a_step_that_a_signal_meets_is_finished_where_the_broker_answers(kafka: embedded.Server) -> None:
    stop = threading.Event()
    stop.set()
    settings = settings_for(kafka.address, "redis://127.0.0.1:1/0", "sdss", "graceful")
    publish(settings, "graceful", [], 1)
    with Publisher(settings.kafka) as publisher:
        publisher.publish_all([("graceful", None, b"x", None)], Meanwhile(stop, grace_s=30.0))


def test_an_intake_whose_dead_letters_cannot_go_out_ends_when_it_is_asked_to(nowhere: dict[str, str]) -> None:
    stop = threading.Event()
    with Publisher(nowhere) as publisher:
        state, consumer = State(), Taking([Message(0, b"bad")], stop)
        intake = Intake(Survey(), Words(), state, state, DeadLetters(publisher, "dead"))  # type: ignore[arg-type]
        loop = Ingest(intake, consumer, IngestMetrics("words"), 500, 0.1)  # type: ignore[arg-type]
        threading.Timer(0.5, stop.set).start()
        began = time.monotonic()
        loop.run(stop)
    assert time.monotonic() - began < STOP_S
    assert consumer.committed == []


def test_something_is_done_meanwhile_every_second_of_a_long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyheed.broker.waiting.FIRST_WAIT_S", 1.6)
    monkeypatch.setattr("skyheed.broker.waiting.LOOK_S", 0.05)
    times: list[float] = []
    failures = iter([True, False])

    def action() -> None:
        if next(failures):
            raise ServiceUnavailable("Redis is unavailable", server="redis")

    patiently(action, threading.Event(), lambda: times.append(time.monotonic()))
    assert len(times) > 8


class Sizes:
    """A publisher that takes everything and remembers how much at a time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def publish(self, messages: list[Any], _meanwhile: Callable[[], None]) -> list[None]:
        self.sizes.append(sum(len(value or b"") for _, _, value, _ in messages))
        return [None] * len(messages)


def test_letters_go_out_a_few_mib_at_a_time() -> None:
    sizes = Sizes()
    value = bytes(3 * 2**20)
    packets = [
        Rejected.of(Message(n, value), "alerts/0", PacketError(Reason.BOMB, "a bomb"), "words", 0) for n in range(20)
    ]
    DeadLetters(sizes, "dead").set_aside(packets)  # type: ignore[arg-type]
    assert sum(sizes.sizes) == 20 * len(value)
    assert max(sizes.sizes) < PIECE_BYTES + len(value)
    assert len(sizes.sizes) == 7


# --- redrive -------------------------------------------------------------------------------------------------------


def letter(offset: int, value: bytes) -> DeadLetter:
    return DeadLetter(
        place="dead/0", offset=offset, reason="bomb", error="", survey="words", source_topic="alerts",
        source_partition=0, source_offset=offset, time_ms=0, kafka_ms=0, key=None, value=value, headers=(),
    )  # fmt: skip


def intake_of(state: State, survey: Survey) -> Intake:
    return Intake(survey, Words(), state, state, None)  # type: ignore[arg-type]


def test_redrive_stores_in_slices_of_the_same_budget() -> None:
    state = State()
    letters = [letter(n, words(30)) for n in range(20)]
    counts = redrive(intake_of(state, Survey()), letters, Budget(records=100, seconds=60.0))
    assert counts == {"stored": 600}
    assert state.calls == [120] * 5, "a letter is never cut"
    assert state.marked == list(range(20))
    assert redrive(intake_of(state, Survey()), letters) == {"done_before": 20}


def test_redrive_stops_within_a_letter_and_leaves_it_where_it_is() -> None:
    state, stop = State(), threading.Event()
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    counts = redrive(intake_of(state, Slow()), [letter(0, b"one"), letter(1, words(5_000))], meanwhile=Meanwhile(stop))
    assert time.monotonic() - began < STOP_S
    assert (counts, state.marked) == ({"stored": 1}, [0])


def test_redrive_holds_no_more_letters_than_fit_into_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyheed.broker.redrive.BATCH_BYTES", 1_000)
    state = State()
    read = 0
    most = 0

    def letters() -> Any:
        nonlocal read, most
        for n in range(50):
            read += 1
            most = max(most, read - len(state.marked))
            yield letter(n, b"x" * 400)

    assert redrive(intake_of(state, Survey()), letters())["stored"] == 50
    assert most <= 3


# --- headers -------------------------------------------------------------------------------------------------------


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)
def test_a_header_whose_name_is_no_text_ends_no_daemon(
    kafka: embedded.Server, valkey: embedded.Server, ingest: Callable[..., Program]
) -> None:
    topic = "named"
    settings = settings_for(kafka.address, valkey.url, "sdss", topic)
    publish(settings, topic, [], partitions=1)
    bad = [(b"good", b"0"), (b"\xff\xfe", b"1"), (b"more", b"2")]
    values = [sdss_alert("H", 1), b"no packet", sdss_alert("H", 2)]
    produce(kafka.address, topic, [(b"key", value, bad) for value in values] + [(None, sdss_alert("H", 3), [])])
    program = ingest(kafka.address, valkey.url, topic, "--drain")
    assert program.process.wait(60) == 0, program.said
    assert program.said.count("a header name is not UTF-8; read without headers") == 3
    store, _, ledger = daemon.read_store(settings)
    assert ledger.books().balanced
    found = store.sequence("H")
    assert found is not None
    assert len(found.header) == 3
    (set_aside,) = raw_messages(settings, settings.dead_letter_topic)
    assert set_aside.value() == b"no packet"


def test_the_budget_counts_records_and_time() -> None:
    assert not Budget(10, 60.0).begin().over(9)
    assert Budget(10, 60.0).begin().over(10)
    spending = Budget(10, 0.0).begin()
    until(lambda: spending.over(0), 5.0)
