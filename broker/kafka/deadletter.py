"""The dead-letter topic: packets that cannot be used, as received, with the reason in the headers.

A letter's key is where its packet came from (`topic@id/partition/offset`), so that one packet set aside twice (a crash
before the commit) can be told from two packets. Headers: skyheed-reason, -error, -survey, -topic, -partition,
-offset, -time (when it was set aside, ms), -kafka-time (ms; empty without one), -key (the packet's key); the packet's
own headers follow with the prefix `received-`.

A packet too large for the topic is split: every part has the letter's key and the header skyheed-part
"2/5"; put together the parts are one line of JSON with the packet's key and headers (base64), a line feed, and the
value as received. `read` puts them together again.
"""

import base64
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

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
from skyheed.broker.kafka.messages import Headers, headers_of
from skyheed.broker.recently_seen import Recent
from skyheed.classifier.safe_names import printable

log = logging.getLogger("skyheed.deadletter")
T = TypeVar("T")
PREFIX = "skyheed-"
RECEIVED = "received-"
PART_BYTES = 256 * 1024  # every broker accepts 1 MB by default
ERROR_CHARACTERS = 1000
PIECE_BYTES = 8 * 2**20  # letters published at a time, so that librdkafka need not hold more
READ_BATCH = 200
READ_BYTES = 16 * 2**20  # read at a time, plus at most one more fetch
READ_S = 0.5
REMEMBERED = 100_000  # packets remembered to recognise repeats, up to twice as many; 30 MB at most
MOST_PARTS = 512  # of one packet: 64 MiB with headers in base64 make 342
MOST_WAITING = 256 * 2**20  # bytes of parts whose other parts have not arrived yet
MOST_SPLIT = 10_000  # packets with some parts received
MOST_SYNTAX = 1_000_000  # brackets and commas in the line with key and headers: each can begin a value
SAID = 10  # non-letters logged individually; further ones are only counted


class Received(Protocol):
    """The part of a Kafka message that is needed (confluent_kafka.Message has it)."""

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
        """A summary line."""
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

    def set_aside(self, rejected: Sequence[Rejected], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Publish the packets, a few MiB at a time, and wait until the broker has acknowledged all. Safe to repeat.

        Args:
            meanwhile: called while waiting; an exception from it ends the wait.

        Raises:
            ServiceError: the broker rejects them; commit nothing.
            ServiceUnavailable: the broker is unavailable; retry.
        """
        for piece in in_pieces(rejected, _bytes_of):
            self._set_aside(piece, meanwhile)

    def _set_aside(self, rejected: Sequence[Rejected], meanwhile: Callable[[], None]) -> None:
        letters = [self._letter(packet) for packet in rejected]
        for packet, error in zip(rejected, self._publisher.publish(letters, meanwhile), strict=True):
            if error is None:
                continue
            if error.code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise self._publisher.connection.refusal(error, f"a dead letter on topic {self._topic}")
            for parts in in_pieces(self._parts(packet), lambda part: len(part[2] or b"")):
                self._publisher.publish_all(parts, meanwhile)

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


class Unreadable(Exception):
    """A message on a dead-letter topic that is not a dead letter; says why."""


class Assembler:
    """Turns messages of a dead-letter topic into letters: each packet once, split ones whole.

    Anyone may have written to the topic: unreadable messages are skipped and counted, and memory is bounded. A packet
    that was set aside twice with more than `REMEMBERED` others in between is returned twice.

    Args:
        key_of: the partition key of a topic and partition (`BatchConsumer.partition_key`). It distinguishes a
            recreated dead-letter topic from the old one, so that no mark of the old one hides a letter of the new one.

    Attributes:
        unreadable: messages that were skipped.
    """

    def __init__(self, key_of: Callable[[str, int], str]) -> None:
        self._key_of = key_of
        self._seen = Recent(REMEMBERED)
        self._parts: OrderedDict[tuple[bytes, int], dict[int, bytes]] = OrderedDict()
        self._waiting_bytes = 0
        self.unreadable = 0

    def letters(self, messages: Iterable[Message]) -> Iterator[DeadLetter]:
        """The letters that these messages complete."""
        for message in messages:
            key = message.key() or f"{place_of(message)}/{message.offset()}".encode()
            if self._seen.get(key) is not None or _is_tombstone(message):
                continue
            try:
                letter = self._complete(message, bytes(key))
            except Unreadable as error:
                self._pass_over(f"{'/'.join(map(str, place_of(message)))} offset {message.offset()}", str(error))
                continue
            if letter is not None:
                self._seen.put(key)
                yield letter

    def _complete(self, message: Message, key: bytes) -> DeadLetter | None:
        headers = [(name, value or b"") for name, value in headers_of(message)]
        ours = {name.removeprefix(PREFIX): value for name, value in headers if name.startswith(PREFIX)}
        value, own_key = message.value(), ours.get("key")
        received = [(name.removeprefix(RECEIVED), v) for name, v in headers if name.startswith(RECEIVED)]
        if "part" in ours:
            whole = self._with_part(key, *_number_of_part(ours["part"]), value or b"")
            if whole is None:
                return None
            own_key, received, value = _unfolded(whole)
        topic, partition = place_of(message)
        return _dead_letter(
            ours,
            place=self._key_of(topic, partition),
            offset=message.offset(),
            key=own_key,
            value=value,
            headers=received,
        )

    def _with_part(self, key: bytes, number: int, count: int, data: bytes) -> bytes | None:
        """All parts put together, if this is the last missing one."""
        name = blake2b(key).digest(), count
        parts = self._parts.setdefault(name, {})
        self._parts.move_to_end(name)
        self._waiting_bytes += len(data) - len(parts.get(number, b""))
        parts[number] = data
        if len(parts) == count:
            return b"".join(part for _, part in sorted(self._forget(name).items()))
        while self._waiting_bytes > MOST_WAITING or len(self._parts) > MOST_SPLIT:
            oldest = next(iter(self._parts))
            self._pass_over(f"a packet of {oldest[1]} parts", f"only {len(self._forget(oldest))} of them arrived")
        return None

    def _forget(self, name: tuple[bytes, int]) -> dict[int, bytes]:
        parts = self._parts.pop(name)
        self._waiting_bytes -= sum(map(len, parts.values()))
        return parts

    def _pass_over(self, what: str, why: str) -> None:
        self.unreadable += 1
        if self.unreadable <= SAID:
            log.warning("skipped, not a skyheed dead letter: %s: %s", what, printable(why, 200))
        if self.unreadable == SAID:
            log.warning("further messages that are not dead letters are only counted")


def read(
    options: Options, topic: str, reason: str | None = None, limit: int | None = None,
    stop: Callable[[], bool] = lambda: False, unreadable: Callable[[int], None] = lambda _count: None,
) -> Iterator[DeadLetter]:  # fmt: skip
    """The letters on the topic now, each packet once; stops at the topic's end.

    Args:
        reason: only those set aside for this reason.
        limit: maximum number.
        stop: ends reading, even while the broker is unavailable.
        unreadable: called at the end with the number of skipped messages.

    Raises:
        ServiceError: the topic does not exist or may not be read.
        ServiceUnavailable: the broker does not answer.
    """
    found = 0
    with BatchConsumer(options, [topic], group=None, drain=True) as consumer:
        assembler = Assembler(consumer.partition_key)
        try:
            while not stop() and (limit is None or found < limit):
                messages = consumer.consume(READ_BATCH, READ_S, READ_BYTES)
                for letter in assembler.letters(messages):
                    if reason in (None, letter.reason) and (limit is None or found < limit):
                        found += 1
                        yield letter
                if not messages and consumer.drained():
                    return
        finally:
            unreadable(assembler.unreadable)


def _is_tombstone(message: Message) -> bool:
    """Whether it is a tombstone on a compacted topic, not a letter; letters have our headers."""
    return message.value() is None and not any(name.startswith(PREFIX) for name, _ in headers_of(message))


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
    """A message without our headers still becomes a letter, with nothing known about it."""

    def text(name: str) -> str:
        return ours.get(name, b"")[: 4 * ERROR_CHARACTERS].decode(errors="replace")

    def number(name: str) -> int:
        value = ours.get(name, b"")
        return int(value) if value.isdigit() and len(value) < 15 else -1  # longer is neither a time nor an offset

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


def _number_of_part(text: bytes) -> tuple[int, int]:
    """From "2/5".

    Raises:
        Unreadable: not of this form, or more parts than any packet has.
    """
    numbers = [int(word) if word.isdigit() and len(word) < 5 else 0 for word in text[:20].split(b"/")]
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1] <= MOST_PARTS:
        raise Unreadable(f"part {text[:20]!r}, not 1 to {MOST_PARTS} of as many")
    return numbers[0], numbers[1]


def _unfolded(whole: bytes) -> tuple[bytes | None, list[tuple[str, bytes]], bytes]:
    """Key, headers and value of a split packet.

    Raises:
        Unreadable: it does not begin as our split packets do.
    """
    line, _, value = whole.partition(b"\n")
    if (syntax := sum(map(line.count, (b"[", b"{", b",")))) > MOST_SYNTAX:
        raise Unreadable(f"{syntax} brackets and commas before its value")
    try:
        head = json.loads(line)
        headers = [(name, _unbase64(content) or b"") for name, content in head["headers"]]
        if not all(isinstance(name, str) for name, _ in headers):
            raise TypeError("a header without a name")
        return _unbase64(head["key"]), headers, value
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unreadable(f"its parts do not begin with key and headers ({type(error).__name__})") from error


def _bytes_of(packet: Rejected) -> int:
    """The approximate size of the letter."""
    return len(packet.value or b"") + len(packet.key or b"") + sum(len(n) + len(v or b"") for n, v in packet.headers)


def in_pieces(things: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """`things` in lists of about `PIECE_BYTES` each, with at least one item."""
    piece: list[T] = []
    held = 0
    for thing in things:
        piece.append(thing)
        held += size(thing)
        if held >= PIECE_BYTES:
            yield piece
            piece, held = [], 0
    if piece:
        yield piece


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _unbase64(value: str | None) -> bytes | None:
    return None if value is None else base64.b64decode(value)
