"""Dead letters: nothing disappears, whatever its size, and each packet comes back as it was, once."""

import os
import signal
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from server_tools import HOME, NEEDS_APACHE
from state_tools import SURVEY, observation, open_state

from skyheed.broker import app as daemon
from skyheed.broker import config
from skyheed.broker.errors import (
    ConfigError,
    PacketError,
    Reason,
    ServiceError,
    ServiceUnavailable,
)
from skyheed.broker.ingest import Intake
from skyheed.broker.kafka import deadletter
from skyheed.broker.kafka.client import Publisher, ensure_topics, topic_ids
from skyheed.broker.kafka.deadletter import DeadLetter, DeadLetters, Rejected
from skyheed.broker.local import embedded
from skyheed.broker.observation import Observation
from skyheed.broker.redrive import redrive
from skyheed.broker.settings import Settings
from skyheed.broker.state.ledger import Ledger

pytestmark = pytest.mark.kafka


class Message:
    """A received message, as confluent_kafka gives it."""

    def __init__(self, value: bytes | None, offset: int = 5, key: bytes | None = None, headers: Any = None) -> None:
        self._value, self._offset, self._key, self._headers = value, offset, key, headers

    def topic(self) -> str:
        return "alerts"

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> Any:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return (1, 1_700_000_000_123)


def rejected(message: Message, reason: Reason = Reason.TRUNCATED, detail: str = "cut at byte 7") -> Rejected:
    return Rejected.of(message, "alerts@id/2", PacketError(reason, detail), "ztf", 1_700_000_001_000)


def make_topic(server: embedded.Server, **config: str) -> tuple[dict[str, str], str]:
    options = {"bootstrap.servers": server.address}
    topic = f"dead-{uuid.uuid4().hex[:8]}"
    ensure_topics(options, {topic: {k.replace("_", "."): v for k, v in config.items()}}, 3, 1)
    return options, topic


def set_aside(options: dict[str, str], topic: str, *packets: Rejected) -> None:
    with Publisher(options) as publisher:
        DeadLetters(publisher, topic).set_aside(packets)


def test_a_packet_comes_back_as_received_with_its_reason(kafka: embedded.Server) -> None:
    options, topic = make_topic(kafka)
    value = bytes(range(256)) * 10
    headers = [("a", b"1"), ("a", b"\xff"), ("skyheed-reason", b"not ours")]
    set_aside(options, topic, rejected(Message(value, 5, b"key", headers)))
    (letter,) = deadletter.read(options, topic)
    assert (letter.value, letter.key, list(letter.headers)) == (value, b"key", headers)
    assert (letter.reason, letter.error, letter.survey) == ("truncated", "truncated: cut at byte 7", "ztf")
    assert (letter.source_topic, letter.source_partition, letter.source_offset) == ("alerts", 2, 5)
    assert (letter.time_ms, letter.kafka_ms) == (1_700_000_001_000, 1_700_000_000_123)
    assert letter.place.startswith(topic)
    assert letter.place.split("/")[0] == f"{topic}@{topic_ids(options, {topic})[topic]}".rstrip("@")
    assert "alerts/2@5" in letter.line()


@pytest.mark.parametrize("value", [None, b""])
def test_a_packet_without_bytes_is_kept_too(kafka: embedded.Server, value: bytes | None) -> None:
    options, topic = make_topic(kafka)
    set_aside(options, topic, rejected(Message(value), Reason.EMPTY))
    (letter,) = deadletter.read(options, topic)
    assert letter.value == value
    assert letter.key is None


def test_a_packet_that_was_set_aside_twice_is_read_once(kafka: embedded.Server) -> None:
    options, topic = make_topic(kafka)
    packets = [rejected(Message(b"x%d" % i, offset=i)) for i in range(20)]
    set_aside(options, topic, *packets)
    set_aside(options, topic, *packets[10:], rejected(Message(b"x3", offset=99)))
    letters = list(deadletter.read(options, topic))
    assert sorted(letter.source_offset for letter in letters) == [*range(20), 99]


def test_reading_by_reason_and_with_a_limit(kafka: embedded.Server) -> None:
    options, topic = make_topic(kafka)
    reasons = [Reason.BOMB, Reason.BAD_MAGIC] * 10
    set_aside(options, topic, *[rejected(Message(b"x", offset=i), reason) for i, reason in enumerate(reasons)])
    assert len(list(deadletter.read(options, topic, reason="bad_magic"))) == 10
    assert len(list(deadletter.read(options, topic, reason="bad_magic", limit=3))) == 3
    assert list(deadletter.read(options, topic, reason="oversized")) == []
    assert list(deadletter.read(options, topic, limit=0)) == []


def test_an_empty_topic_has_no_letters(kafka: embedded.Server) -> None:
    options, topic = make_topic(kafka)
    assert list(deadletter.read(options, topic)) == []


@pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)
@pytest.mark.parametrize("size", [300_000, 2_500_000, 12_000_000])
def test_a_packet_that_the_topic_does_not_take_is_split_and_put_together(kafka: embedded.Server, size: int) -> None:
    options, topic = make_topic(kafka, max_message_bytes="300000")
    large = os.urandom(size)
    headers = [("schema", b"\x00\xff"), ("b", b"")]
    small = [rejected(Message(b"x", offset=i)) for i in range(5)]
    set_aside(
        options, topic, *small[:3], rejected(Message(large, 77, b"\xfekey", headers), Reason.OVERSIZED), *small[3:]
    )
    letters = {letter.source_offset: letter for letter in deadletter.read(options, topic)}
    assert sorted(letters) == [0, 1, 2, 3, 4, 77]
    whole = letters[77]
    assert whole.value == large
    assert (whole.key, list(whole.headers), whole.reason) == (b"\xfekey", headers, "oversized")


@pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)
def test_a_split_packet_that_was_set_aside_twice_is_read_once(kafka: embedded.Server) -> None:
    options, topic = make_topic(kafka, max_message_bytes="300000")
    packet = rejected(Message(os.urandom(1_000_000)), Reason.OVERSIZED)
    set_aside(options, topic, packet, packet)
    set_aside(options, topic, packet)
    (letter,) = deadletter.read(options, topic)
    assert letter.value == packet.value


def test_parts_without_the_rest_are_no_letter(kafka: embedded.Server) -> None:
    """The ingest died between two parts; the packet is not committed and comes again."""
    options, topic = make_topic(kafka)
    packet = rejected(Message(os.urandom(600_000)), Reason.OVERSIZED)
    with Publisher(options) as publisher:
        letters = DeadLetters(publisher, topic)
        parts = list(letters._parts(packet))
        assert len(parts) == 3
        publisher.publish_all(parts[:2])
        assert list(deadletter.read(options, topic)) == []
        publisher.publish_all(parts)
    (letter,) = deadletter.read(options, topic)
    assert letter.value == packet.value


def test_a_long_error_is_cut_and_a_foreign_message_is_shown(kafka: embedded.Server) -> None:
    options, topic = make_topic(kafka)
    set_aside(options, topic, rejected(Message(b"x"), detail="é" * 5000))
    with Publisher(options) as publisher:
        publisher.publish_all([(topic, None, b"somebody else's", [("skyheed-offset", b"five")])])
    letters = list(deadletter.read(options, topic))
    assert max(len(letter.error) for letter in letters) == deadletter.ERROR_CHARACTERS
    assert {letter.value for letter in letters} == {b"x", b"somebody else's"}


def test_without_an_answer_nothing_counts_as_set_aside() -> None:
    gone = {"bootstrap.servers": f"127.0.0.1:{embedded.free_port()}"}
    with Publisher(gone, deadline_s=1.0) as publisher, pytest.raises(ServiceUnavailable):
        DeadLetters(publisher, "dead").set_aside([rejected(Message(b"x"))])


# --- redrive -------------------------------------------------------------------------------------------------------


class Words:
    """A decoder whose packets are one word each."""

    def decode(self, payload: bytes) -> list[dict[str, Any]]:
        return [{"word": payload.decode()}]


class Survey:
    """A survey that fails on some words."""

    name = SURVEY

    def observation(self, record: dict[str, Any]) -> Observation:
        if record["word"] == "bug":
            raise ZeroDivisionError("ours")
        if record["word"] == "bad":
            raise PacketError(Reason.NO_TIME, "no time")
        if record["word"] == "refused":
            raise ServiceError("the schema registry refuses us")
        return observation(record["word"])


def letter(offset: int, word: str) -> DeadLetter:
    return DeadLetter(
        place="dead/0", offset=offset, reason="unexpected_error", error="", survey=SURVEY, source_topic="alerts",
        source_partition=0, source_offset=offset, time_ms=0, kafka_ms=0, key=None, value=word.encode(), headers=(),
    )  # fmt: skip


@pytest.fixture
def intake(valkey: embedded.Server) -> Intake:
    store, _, ledger = open_state(valkey.url)
    return Intake(Survey(), Words(), store, ledger, None)  # type: ignore[arg-type]


@pytest.mark.redis
def test_redrive_goes_on_behind_a_letter_that_meets_a_fault_of_ours(
    intake: Intake, caplog: pytest.LogCaptureFixture
) -> None:
    letters = [letter(n, word) for n, word in enumerate(("one", "bug", "bad", "two", "bug", "three"))]
    assert redrive(intake, letters) == {"stored": 3, "still_rejected": 3}
    assert redrive(intake, letters) == {"done_before": 3, "still_rejected": 3}
    assert intake.ledger.books().balanced
    assert len(caplog.records) == 2
    first = "the first: dead/0 offset 1: ZeroDivisionError"
    assert f"2 dead letters failed because of an internal error, {first}" in caplog.text


@pytest.mark.redis
def test_redrive_stops_where_a_server_refuses_us(intake: Intake) -> None:
    with pytest.raises(ServiceError, match="the schema registry refuses us"):
        redrive(intake, [letter(0, "one"), letter(1, "refused")])
    assert redrive(intake, [letter(0, "one")]) == {"stored": 1}


@pytest.fixture
def _signals() -> Iterator[None]:
    """What `daemon.stop_on_signal` puts in their place is taken back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.redis
@pytest.mark.usefixtures("_signals")
def test_redrive_with_another_number_of_shards_is_refused(kafka: embedded.Server, valkey: embedded.Server) -> None:
    def settings(shards: int) -> Settings:
        loaded = config.load(overrides={"survey": "sdss", "redis.shards": shards}, environ={})
        return config.with_servers(loaded, kafka.address, valkey.url)

    ledger: Ledger = daemon.connect_store(settings(16))[2]
    ledger.ping()
    with pytest.raises(ConfigError, match=r"set redis\.shards = 16"):
        daemon.run_redrive(settings(8), None)
