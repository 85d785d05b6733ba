"""The dead-letter topic: packets that cannot be used, as received, with the reason in the headers.

Key of a letter: where its packet came from (`topic@id/partition/offset`), so that a packet that was set aside twice
(a crash before the commit) can be told from two packets. Headers: skyheed-reason, -error, -survey, -topic, -partition,
-offset, -time (when it was set aside, ms), -kafka-time (ms; empty without one), -key (the packet's key); the packet's
own headers follow with the prefix `received-`.

A packet that is larger than the topic takes is split: every part has the letter's key and the header skyheed-part
"2/5"; put together the parts are one line of JSON with the packet's key and headers (base64), a line feed, and the
value as received. `read` puts them together again.
"""

import base64
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from confluent_kafka import KafkaError, Message

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.kafka.client import (
    BatchConsumer,
    Options,
    Outgoing,
    Publisher,
    place_of,
    time_ms,
)
from skyheed.classifier.names import printable

PREFIX = "skyheed-"
RECEIVED = "received-"
PART_BYTES = 256 * 1024  # any broker's default takes 1 MB
ERROR_CHARACTERS = 1000
READ_BATCH = 200
READ_S = 0.5

Headers = Sequence[tuple[str, bytes | None]]


class Received(Protocol):
    """What is needed of a Kafka message (confluent_kafka.Message has it)."""

    def topic(self) -> Any: ...
    def partition(self) -> Any: ...
    def offset(self) -> Any: ...
    def key(self) -> Any: ...
    def value(self) -> Any: ...
    def headers(self) -> Any: ...
    def timestamp(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Rejected:
    """A packet to set aside; `partition_key` and `offset` say where it came from, times are Unix ms UTC."""

    partition_key: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    kafka_ms: int
    reason: Reason
    error: str
    survey: str
    time_ms: int

    @classmethod
    def of(cls, message: Received, partition: str, error: PacketError, survey: str, now_ms: int) -> "Rejected":
        """From the message, its partition key and what was wrong with it."""
        return cls(
            partition_key=partition,
            topic=message.topic(),
            partition=message.partition(),
            offset=message.offset(),
            key=message.key(),
            value=message.value(),
            headers=message.headers() or (),
            kafka_ms=time_ms(message, -1),
            reason=error.reason,
            error=str(error),
            survey=survey,
            time_ms=now_ms,
        )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A packet that was set aside; `place` and `offset` are its own in the dead-letter topic."""

    place: str
    offset: int
    reason: str
    error: str
    survey: str
    source_topic: str
    source_partition: int
    source_offset: int
    time_ms: int
    kafka_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    def line(self) -> str:
        """What a person wants to know first."""
        when = "no time known"
        if self.time_ms >= 0:
            when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.time_ms / 1000))
        source = f"{self.source_topic}/{self.source_partition}@{self.source_offset}"
        return printable(f"{when:<19}  {self.offset:>8}  {source}  {len(self.value or b'')} bytes  {self.error}")


class DeadLetters:
    """Sets packets aside on one topic."""

    def __init__(self, publisher: Publisher, topic: str) -> None:
        self._publisher = publisher
        self._topic = topic

    def set_aside(self, rejected: Sequence[Rejected]) -> None:
        """Publish the packets and wait until the broker has all of them. Safe to repeat.

        Raises:
            ServiceError: the broker will not take them; commit nothing.
            ServiceUnavailable: the broker is away; try again.
        """
        letters = [self._letter(packet) for packet in rejected]
        parts: list[Outgoing] = []
        for packet, error in zip(rejected, self._publisher.publish(letters), strict=True):
            if error is None:
                continue
            if error.code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise self._publisher.connection.refusal(error, f"a dead letter on topic {self._topic}")
            parts += self._parts(packet)
        self._publisher.publish_all(parts)

    def _letter(self, packet: Rejected) -> Outgoing:
        own = [(RECEIVED + name, value or b"") for name, value in packet.headers]
        if packet.key is not None:
            own.insert(0, (PREFIX + "key", packet.key))
        return self._topic, _key(packet), packet.value, [*_headers(packet), *own]

    def _parts(self, packet: Rejected) -> Iterator[Outgoing]:
        head = {
            "key": _base64(packet.key),
            "headers": [[name, _base64(value)] for name, value in packet.headers],
        }
        body = json.dumps(head).encode() + b"\n" + (packet.value or b"")
        count = -(-len(body) // PART_BYTES)
        for number in range(count):
            part = body[number * PART_BYTES : (number + 1) * PART_BYTES]
            mark = (PREFIX + "part", f"{number + 1}/{count}".encode())
            yield self._topic, _key(packet), part, [*_headers(packet), mark]


class Assembler:
    """Turns messages of a dead-letter topic into letters: each packet once, split ones whole.

    Args:
        key_of: the partition key of a topic and partition (`BatchConsumer.partition_key`). It tells a dead-letter topic
            that was made again from the one before, so that no mark of the old one passes over a letter of the new one.
    """

    def __init__(self, key_of: Callable[[str, int], str]) -> None:
        self._key_of = key_of
        self._seen: set[bytes] = set()
        self._parts: dict[bytes, dict[int, bytes]] = {}

    def letters(self, messages: Iterable[Message]) -> Iterator[DeadLetter]:
        """The letters that these messages complete."""
        for message in messages:
            key = message.key() or f"{place_of(message)}/{message.offset()}".encode()
            assert isinstance(key, bytes)
            if key in self._seen or _is_tombstone(message):
                continue
            letter = self._complete(message, key)
            if letter is not None:
                self._seen.add(key)
                yield letter

    def _complete(self, message: Message, key: bytes) -> DeadLetter | None:
        headers = [(name, value or b"") for name, value in cast(Headers, message.headers() or ())]
        ours = {name.removeprefix(PREFIX): value for name, value in headers if name.startswith(PREFIX)}
        value, own_key = message.value(), ours.get("key")
        received = [(name.removeprefix(RECEIVED), v) for name, v in headers if name.startswith(RECEIVED)]
        if "part" in ours:
            number, count = map(int, ours["part"].split(b"/"))
            parts = self._parts.setdefault(key, {})
            parts[number] = value or b""
            if len(parts) < count:
                return None
            line, _, value = b"".join(part for _, part in sorted(self._parts.pop(key).items())).partition(b"\n")
            head = json.loads(line)
            own_key = _unbase64(head["key"])
            received = [(name, _unbase64(v) or b"") for name, v in head["headers"]]
        topic, partition = place_of(message)
        return _dead_letter(
            ours,
            place=self._key_of(topic, partition),
            offset=message.offset(),
            key=own_key,
            value=value,
            headers=received,
        )


def read(options: Options, topic: str, reason: str | None = None, limit: int | None = None) -> Iterator[DeadLetter]:
    """The letters that the topic holds now, each packet once; ends where the topic ends.

    Args:
        reason: only those that were set aside for it.
        limit: at most so many.

    Raises:
        ServiceError: the topic does not exist or may not be read.
        ServiceUnavailable: the broker does not answer.
    """
    found = 0
    with BatchConsumer(options, [topic], group=None, drain=True) as consumer:
        assembler = Assembler(consumer.partition_key)
        while limit is None or found < limit:
            messages = consumer.consume(READ_BATCH, READ_S)
            for letter in assembler.letters(messages):
                if reason in (None, letter.reason) and (limit is None or found < limit):
                    found += 1
                    yield letter
            if not messages and consumer.drained():
                return


def _is_tombstone(message: Message) -> bool:
    """Whether it is no letter, but somebody's order to a compacted topic to forget one; a letter has our headers."""
    names = [name for name, _ in cast(Headers, message.headers() or ())]
    return message.value() is None and not any(name.startswith(PREFIX) for name in names)


def _key(packet: Rejected) -> bytes:
    return f"{packet.partition_key}/{packet.offset}".encode()


def _headers(packet: Rejected) -> list[tuple[str, bytes]]:
    values = {
        "reason": packet.reason,
        "error": printable(packet.error, ERROR_CHARACTERS),
        "survey": packet.survey,
        "topic": packet.topic,
        "partition": packet.partition,
        "offset": packet.offset,
        "time": packet.time_ms,
        "kafka-time": packet.kafka_ms if packet.kafka_ms >= 0 else "",
    }
    return [(PREFIX + name, str(value).encode()) for name, value in values.items()]


def _dead_letter(ours: Mapping[str, bytes], **rest: Any) -> DeadLetter:
    """A message without our headers (someone else's) still becomes a letter, with nothing known of it."""

    def text(name: str) -> str:
        return ours.get(name, b"").decode(errors="replace")

    def number(name: str) -> int:
        value = ours.get(name, b"")
        return int(value) if value.isdigit() and len(value) < 15 else -1  # longer is no time and no offset

    return DeadLetter(
        reason=text("reason"),
        error=text("error"),
        survey=text("survey"),
        source_topic=text("topic"),
        source_partition=number("partition"),
        source_offset=number("offset"),
        time_ms=number("time"),
        kafka_ms=number("kafka-time"),
        **rest,
    )


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _unbase64(value: str | None) -> bytes | None:
    return None if value is None else base64.b64decode(value)
