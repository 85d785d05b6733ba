"""The client: classifications from Kafka as typed records. Needs no torch and no Redis.

    with Subscriber("localhost:9092", topic="skyheed.classifications.ztf", group="me") as stream:
        for c in stream:
            print(c.object_id, c.top_class, c.top_probability, c.stamps_per_band)

Delivery is at least once: the group's position moves past a record when the next one is requested, so that a record
whose handling failed is delivered again after a restart. Within one run a `Subscriber` drops repeats itself; a program
that must see each classification once across restarts keys what it stores by `classification_id`.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Message

from skyheed.broker.errors import ConfigError, ServiceUnavailable, StreamError
from skyheed.broker.kafka.client import BatchConsumer, place_of
from skyheed.broker.kafka.connection import Place
from skyheed.broker.kafka.selection import no_classifications, selection
from skyheed.broker.recently_seen import Recent
from skyheed.broker.results.formats import Schema, decode
from skyheed.broker.results.record import Classification, Wanted

log = logging.getLogger("skyheed.subscribe")
BATCH = 500
BATCH_BYTES = 16 * 2**20  # read at a time, plus at most one more fetch
WAIT_S = 0.1  # a batch is handed on after this even if it is not full
COMMIT_S = 1.0
REMEMBERED = (
    100_000  # objects, and classifications, remembered to recognise repeats, up to twice as many; 60 MB at most
)
SAY_S = 3.0  # how soon, and how often, to report what it is waiting for
SAY_AGAIN_S = 60.0
START = {"beginning": "earliest", "latest": "latest"}


class Subscriber:
    """Iterates over the classifications of a topic.

    Args:
        kafka: servers, "host:port,host:port".
        topic: name or names, or patterns that begin with ^, which never match topics of dead letters or refusals.
        group: Kafka consumer group that remembers the position; None reads everything from `start`.
        start: "beginning" or "latest", if no position is remembered.
        options: any librdkafka options, such as those for SASL and TLS.
        classes: only records with one of these top classes.
        models: only records of these models, by their names within the survey.
        min_probability: only records whose top class has at least this probability.
        drain: stop at the end that the topic had when reading began.
        drop_repeats: leave out classifications seen before, and those older than the object's last.
        skip_bad: count records that do not decode in `bad` instead of raising StreamError.
        writer_schema: looks up a schema by registry id, for topics in Confluent wire format.
        timeout: seconds after which the wait for Kafka, or for the next record, is given up; None waits forever.

    Raises:
        ConfigError: an option that cannot work.
    """

    def __init__(
        self,
        kafka: str,
        topic: str | Sequence[str],
        *,
        group: str | None = None,
        start: str = "beginning",
        options: Mapping[str, Any] | None = None,
        classes: Collection[str] = (),
        models: Collection[str] = (),
        min_probability: float = 0.0,
        drain: bool = False,
        drop_repeats: bool = True,
        skip_bad: bool = False,
        writer_schema: Callable[[int], Schema] | None = None,
        timeout: float | None = None,
    ) -> None:
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"timeout must be above 0 seconds, not {timeout:g}")
        if start not in START:
            raise ConfigError(f"start must be {' or '.join(START)}, not {start!r}")
        topics = [topic] if isinstance(topic, str) else list(topic)
        chosen = selection(topics, no_classifications)
        self._consumer = BatchConsumer(
            {**(options or {}), "bootstrap.servers": kafka}, chosen, group, START[start], drain
        )
        self._wanted, self._drain = Wanted(frozenset(classes), frozenset(models), min_probability), drain
        self._repeats = _Repeats() if drop_repeats else None
        self._consumer.on_made_again = self._begin_anew
        self._skip_bad, self._writer_schema = skip_bad, writer_schema
        self._topics, self._timeout = topics, timeout
        self._waiting: deque[Message] = deque()
        self._handed_out: Message | None = None
        self._done: dict[Place, Message] = {}  # the last record handled, by partition
        self._committed_at = time.monotonic()
        self._stop = threading.Event()
        self.remembers = group is not None  # so that the group never gets a handled record again
        self.hold_position = False  # move the group's position only at the end, when everything has been written
        self.bad = 0
        self.ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        if kind is not None and self.hold_position:
            self._done.clear()
        self.close()

    def __iter__(self) -> Iterator[Classification]:
        return self

    def __next__(self) -> Classification:
        """The next record.

        Raises:
            StreamError: a record that does not decode; asking again continues after it.
            ServiceError: Kafka refuses us.
            ServiceUnavailable: nothing came for `timeout` seconds.
        """
        if self._handed_out is not None:
            self._handled(self._handed_out)
            self._handed_out = None
        wait = _Wait(self._topics, self._consumer, self._timeout)
        while not self._stop.is_set():
            while self._waiting:
                self._consumer.keep_alive()  # handling these may take long
                self._commit()
                record = self._next()
                if record is not None:
                    return record
            self._commit()
            self._waiting.extend(self._consumer.consume(BATCH, WAIT_S, BATCH_BYTES))
            if self._drain and not self._waiting and self._consumer.drained(alone=self.hold_position):
                break
            wait.look(bool(self._waiting))
        raise StopIteration

    def take(self, most: int, wait_s: float) -> list[Classification]:
        """Up to `most` records that are available or arrive within `wait_s` seconds, to be handled together.

        The group's position stays before them until `settle`; use either this or iteration, not both. After the last
        record of a drain `ended` is true.

        Raises:
            StreamError, ServiceError: as for the next record.
        """
        found: list[Classification] = []
        deadline = time.monotonic() + wait_s
        while len(found) < most and not self._stop.is_set():
            if not self._waiting:
                self._waiting.extend(self._consumer.consume(min(BATCH, most), WAIT_S, BATCH_BYTES))
            if not self._waiting:
                self.ended = self._drain and self._consumer.drained(alone=True)
                if self.ended or time.monotonic() > deadline:
                    break
            found += self._take_waiting(most - len(found))
        return found

    def _take_waiting(self, most: int) -> list[Classification]:
        found: list[Classification] = []
        while self._waiting and len(found) < most:
            record = self._next()
            if record is not None:
                assert self._handed_out is not None
                self._handled(self._handed_out)
                self._handed_out = None
                found.append(record)
        return found

    def settle(self) -> None:
        """What `take` returned has been handled: the group continues after it."""
        self._consumer.commit([*self._done.values()])
        self._done.clear()

    def lag(self) -> int:
        """Messages fetched but not yet handed out."""
        return sum(self._consumer.lag().values()) + len(self._waiting)

    def keep_alive(self) -> None:
        """Stay in the group while records are being handled; call it as often as you like."""
        self._consumer.keep_alive()

    def _next(self) -> Classification | None:
        """The first of the waiting messages as a record, if it is wanted and still assigned to us."""
        message = self._waiting.popleft()
        if not self._consumer.holds(message):  # its partition moved to another member, which will deliver it
            return None
        record = self._take(message)
        if record is None:
            self._handled(message)
        else:
            self._handed_out = message
        return record

    def stop(self) -> None:
        """End the iteration, from any thread."""
        self._stop.set()

    def close(self) -> None:
        """Commit the position of the handled records, and leave; closing again does nothing."""
        self._consumer.commit([*self._done.values()])
        self._done.clear()
        self._consumer.close()

    def _begin_anew(self, topic: str) -> None:
        """A recreated topic is a new stream: forget what was seen on the old one, and do not settle the record in hand,
        whose offset is another record's now.
        """
        if self._handed_out is not None and place_of(self._handed_out)[0] == topic:
            self._handed_out = None
        self._done = {place: message for place, message in self._done.items() if place[0] != topic}
        if self._repeats is not None:
            self._repeats = _Repeats()

    def _commit(self) -> None:
        if self._done and not self.hold_position and time.monotonic() - self._committed_at > COMMIT_S:
            self._consumer.commit([*self._done.values()])
            self._done.clear()
            self._committed_at = time.monotonic()

    def _handled(self, message: Message) -> None:
        self._done[place_of(message)] = message

    def _take(self, message: Message) -> Classification | None:
        value = message.value()
        if value is None:  # a compacted topic: the object was deleted
            return None
        try:
            record = decode(value if isinstance(value, bytes) else b"", self._writer_schema)
        except StreamError as error:
            topic, partition = place_of(message)
            sentence = f"{topic} partition {partition} offset {message.offset()}: {error}"
            if not self._skip_bad:
                self._handled(message)
                raise StreamError(sentence) from error
            self.bad += 1
            log.warning("skipped: %s", sentence)
            return None
        if self._repeats is not None and self._repeats.seen(record):
            return None
        return record if record in self._wanted else None


class _Wait:
    """Reports what a reader waits for, and gives up after `timeout` seconds without a message."""

    def __init__(self, topics: Sequence[str], consumer: BatchConsumer, timeout: float | None) -> None:
        self._topics, self._consumer, self._timeout = ", ".join(topics), consumer, timeout
        self._since = time.monotonic()
        self._said = SAY_S

    def look(self, came: bool) -> None:
        """After each attempt to read.

        Raises:
            ServiceUnavailable: it is time to give up.
        """
        connection, now = self._consumer.connection, time.monotonic()
        if came:
            self._since, self._said = now, SAY_S
        waited = now - self._since
        if self._timeout is not None and waited >= self._timeout:
            if connection.answers():
                raise ServiceUnavailable(f"no record of {self._topics} came within {self._timeout:g} s")
            raise connection.unavailable(f"it has not answered for {self._timeout:g} s", "no answer")
        if waited >= self._said:
            self._say(waited)

    def _say(self, waited: float) -> None:
        connection = self._consumer.connection
        if connection.answers():  # a quiet stream is reported only once
            self._said = float("inf")
            log.info("waiting for records of %s from Kafka at %s", self._topics, connection.hosts)
            return
        self._said = waited + SAY_AGAIN_S
        log.warning(
            "waiting for Kafka at %s, which has not answered for %.0f s (%s): is the address right?",
            connection.hosts, waited, connection.detail(),
        )  # fmt: skip


class _Repeats:
    """Recently seen classifications by id, and the newest revision of each object; names of any length."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._answers, self._revisions = Recent(size), Recent(size)

    def seen(self, record: Classification) -> bool:
        """True for a repeat, or for a record older than the object's last; remembers the record.

        The id names the sources, not their pixels: if a stored stamp was replaced, the newer classification has the
        same id and a higher revision.
        """
        object_ = (record.survey, record.object_id, record.model)
        newest = self._revisions.get(*object_)
        known = self._answers.get(record.classification_id) is not None
        repeat = newest is not None and (record.revision < newest or (record.revision == newest and known))
        self._answers.put(record.classification_id)
        self._revisions.put(*object_, number=record.revision if newest is None else max(newest, record.revision))
        return repeat
