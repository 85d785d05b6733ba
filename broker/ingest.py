"""The ingest daemon: consume -> decode -> store -> commit, one slice of the fetched messages at a time.

A slice ends when its budget of records or seconds is used up. The consumer is kept alive and signals are handled even
between the records of a message, so that small messages of many records cost neither group membership nor memory. A
message that a signal interrupts counts as unread.

A consumer offset moves only after its packet is stored in Redis, recognised as a duplicate, marked skipped, or
acknowledged by the dead-letter topic; every write is idempotent, so that redelivery is always safe.
"""

import contextlib
import logging
import math
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from confluent_kafka import Message

from skyheed.broker.errors import PacketError, Reason, SkipPacket, SkyheedError
from skyheed.broker.kafka.client import AlertConsumer, place_of, time_ms
from skyheed.broker.kafka.deadletter import DeadLetters, Rejected
from skyheed.broker.kafka.messages import headers_of
from skyheed.broker.logs import event
from skyheed.broker.memory import Trim
from skyheed.broker.metrics import IngestMetrics
from skyheed.broker.observation import Observation
from skyheed.broker.packets.container import with_key
from skyheed.broker.packets.reader import Begun, Decodes, PacketReader
from skyheed.broker.packets.stamps import Waiting
from skyheed.broker.packets.surveys import Survey
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.ledger import Ledger
from skyheed.broker.state.sequence import Delivery, Outcome, check
from skyheed.broker.waiting import GRACE_S, Meanwhile, Started, Stopped, Unfinished, patiently

log = logging.getLogger("skyheed.ingest")
LAG_S = 5.0
BOOKS_S = 600.0  # how often old books are closed
PART = 125  # messages decoded while the previous ones are stored; smaller parts cost Redis more for each
Mark = tuple[str, int, Reason]
Keyed = tuple[str, int, Message]  # partition key, offset


@dataclass(frozen=True)
class Budget:
    """How much of the fetched messages is decoded before it is stored and committed; at least one whole message."""

    records: int = 2_000
    seconds: float = 2.0

    def begin(self) -> "Spending":
        """From now on."""
        return Spending(self.records, time.monotonic() + self.seconds)


@dataclass(frozen=True)
class Spending:
    """A budget in use: a number of records, and a deadline (monotonic)."""

    records: float = math.inf
    until: float = math.inf

    def over(self, records: int) -> bool:
        """Whether the budget is used up after this many records."""
        return records >= self.records or time.monotonic() > self.until


@dataclass
class Batch:
    """One slice of the fetched messages, sorted by outcome.

    Attributes:
        taken: how many of the given messages it holds, from the first.
    """

    taken: int = 0

    deliveries: list[Delivery] = field(default_factory=list)
    skipped: list[Mark] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


class Intake:
    """Decodes messages and writes them to Redis, the books and the dead-letter topic; independent of the consumer."""

    def __init__(
        self, survey: Survey, decoder: Decodes, store: SequenceStore, ledger: Ledger, dead_letters: DeadLetters
    ) -> None:
        self.survey = survey
        self.reader = PacketReader(survey, decoder, check)
        self.store = store
        self.ledger = ledger
        self.dead_letters = dead_letters

    def sort(
        self, messages: Iterable[Keyed], now_ms: int, budget: Budget | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Batch:  # fmt: skip
        """Decode `messages`, each with its partition key and offset, until the budget is used up.

        No message is ever left out: the batch holds the first `taken` of them, at least one unless stopped.

        Args:
            meanwhile: done before every message and every record of one; if it raises `Stopped`, the batch ends with
            the previous message, and the current one is discarded.

        Raises:
            ServiceError: the schema registry refuses access; nothing is known about the packets.
            ServiceUnavailable: a server is unavailable; repeat with the same messages later.
        """
        batch, sorting = Batch(), _Sorting(self.survey.name, now_ms)
        spending, waiting = budget.begin() if budget else Spending(), Waiting()
        begun: list[tuple[Keyed, list[Begun]]] = []
        records = 0
        for keyed in messages:
            if batch.taken and spending.over(records):
                break
            message = keyed[2]
            try:
                meanwhile()
                with sorting.judging(keyed):
                    begun.append(
                        (
                            keyed,
                            self.reader.begin(
                                message.value(), with_key(headers_of(message), message.key()), meanwhile, waiting
                            ),
                        )
                    )
                    records += len(begun[-1][1])
            except Stopped:  # nothing is known about this message
                break
            batch.taken += 1
        waiting.make()
        for keyed, records_of in begun:
            with sorting.judging(keyed):
                batch.deliveries += _deliveries(keyed, self.reader.finish(records_of), now_ms)
        batch.skipped, batch.rejected = sorting.results()
        return batch

    def settle(
        self, batch: Batch, meanwhile: Callable[[], None] = lambda: None, outcomes: Sequence[Outcome] | None = None
    ) -> Counter[str]:
        """Store, mark and set aside; then every message of the batch is accounted for. Safe to repeat.

        Args:
            meanwhile: called while waiting for Kafka; an exception from it ends the wait.
            outcomes: of the deliveries, if they are already stored.

        Raises:
            ServiceUnavailable: Redis or Kafka is unavailable; repeat with the same batch.
        """
        if outcomes is None:
            outcomes = self.store.store(batch.deliveries)
        skipped = [*batch.skipped, *_beyond(batch.deliveries, outcomes)]
        if skipped:
            self.ledger.skipped(skipped)
        if batch.rejected:
            self.dead_letters.set_aside(batch.rejected, meanwhile)
            self.ledger.set_aside([(r.partition_key, r.offset, r.reason) for r in batch.rejected])
        counts = Counter(outcome.name.lower() for outcome in outcomes)
        counts["skipped"] = len(skipped)
        counts["rejected"] = len(batch.rejected)
        return counts


class _Sorting:
    """The outcome of messages that yield no observation."""

    def __init__(self, survey: str, now_ms: int) -> None:
        self._survey, self._now_ms = survey, now_ms
        self._skipped: list[Mark] = []
        self._rejected: list[tuple[Keyed, PacketError]] = []
        self._faults: list[str] = []

    @contextlib.contextmanager
    def judging(self, keyed: Keyed) -> Iterator[None]:
        """Turns an exception about a message into its outcome; exceptions about a server are re-raised."""
        try:
            yield
        except Stopped:
            raise
        except SkipPacket as skip:
            self._skipped.append((*keyed[:2], skip.reason))
        except PacketError as error:
            self._rejected.append((keyed, error))
        except SkyheedError:  # a server's fault, not the packet's: setting it aside would drain the whole stream
            raise
        except Exception as error:  # an internal error: the stream continues, the packet can be redriven
            fault = fault_of(error)
            self._rejected.append((keyed, fault))
            self._faults.append(f"{keyed[0]} offset {keyed[1]}: {fault.detail}")

    def results(self) -> tuple[list[Mark], list[Rejected]]:
        """What was skipped and what is to be set aside, in the order of offsets."""
        if self._faults:
            log.error(
                "%d packets set aside because of an internal error, the first: %s", len(self._faults), self._faults[0]
            )
        rejected = sorted(self._rejected, key=lambda item: item[0][:2])
        return self._skipped, [
            Rejected.of(message, partition, error, self._survey, self._now_ms)
            for (partition, _, message), error in rejected
        ]


def _deliveries(keyed: Keyed, found: Iterable[Observation], now_ms: int) -> list[Delivery]:
    partition, offset, message = keyed
    kafka_ms = time_ms(message, now_ms)
    return [Delivery(partition, offset, kafka_ms, now_ms, seen) for seen in found]


def fault_of(error: Exception) -> PacketError:
    """An internal error as the reason for setting a packet aside: its type and place in the code, nothing else."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    detail = f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
    return PacketError(Reason.UNEXPECTED, detail)


def _beyond(deliveries: Sequence[Delivery], outcomes: Sequence[Outcome]) -> list[Mark]:
    """Messages none of whose records fitted into its sequence."""
    placed = {
        (d.partition, d.offset)
        for d, outcome in zip(deliveries, outcomes, strict=True)
        if outcome is not Outcome.SKIPPED
    }
    places = dict.fromkeys((d.partition, d.offset) for d in deliveries)
    return [
        (partition, offset, Reason.BEYOND_WINDOW) for partition, offset in places if (partition, offset) not in placed
    ]


@dataclass(frozen=True)
class _Storing:
    """A slice on its way to Redis, where it is also marked as consumed."""

    batch: Batch
    messages: Sequence[Message]
    began: float
    stored: Started[list[Outcome]]


def _parts(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """The messages in pieces of about `PART`."""
    count = max(1, round(len(messages) / PART))
    size = -(-len(messages) // count)
    return (messages[first : first + size] for first in range(0, len(messages), size))


class Ingest:
    """The daemon's loop around an `Intake`."""

    def __init__(
        self, intake: Intake, consumer: AlertConsumer, metrics: IngestMetrics, batch_size: int, wait_s: float,
        budget: Budget | None = None, batch_bytes: int = 64 * 2**20,
    ) -> None:  # fmt: skip
        self.intake = intake
        self.consumer = consumer
        self.metrics = metrics
        self.batch_size = batch_size
        self.wait_s = wait_s
        self.budget = budget or Budget()
        self.batch_bytes = batch_bytes
        self.totals: Counter[str] = Counter()
        self._lag_at = time.monotonic()
        self._books_at, self._more_books = -math.inf, False
        self._storing: _Storing | None = None
        self._trim = Trim()

    def run(self, stop: threading.Event, drain: bool = False) -> Counter[str]:
        """Consume until `stop` is set or, with `drain`, until everything present at the start was consumed.

        Raises:
            ServiceError: Kafka or Redis refuses access permanently.
            Unfinished: `stop` came before the end of the drain.
        """
        done = False
        try:
            while not done and not stop.is_set():
                messages = self.consumer.consume(self.batch_size, self.wait_s, self.batch_bytes)
                self._close_books(stop)
                if messages:
                    self._batch(messages, stop)
                    self._trim()
                else:
                    self._look_at_lag()
                    done = drain and self.consumer.drained()
            while done and not self._close_books(stop, every_s=0):
                pass  # a drain typically runs once a night
        except Stopped as stopped:
            log.warning("stopped while waiting, the batch in hand will be delivered again: %s", stopped)
        event(log, "ingest ends:", **dict(sorted(self.totals.items())))
        if drain and not done:
            raise Unfinished
        return self.totals

    def _look_at_lag(self) -> None:
        """Between batches: control records may follow the last message, and partitions come and go."""
        if time.monotonic() - self._lag_at > LAG_S:
            self._lag_at = time.monotonic()
            self.metrics.lag(self.consumer.lag())

    def _close_books(self, stop: threading.Event, every_s: float = BOOKS_S) -> bool:
        """Close, now and then, the books of a few idle partitions; False while there may be more."""
        if stop.is_set() or (not self._more_books and time.monotonic() - self._books_at < every_s):
            return True
        self._books_at = time.monotonic()
        self._more_books = not patiently(self.intake.ledger.finish, stop, self.consumer.keep_alive)
        return not self._more_books

    def _batch(self, messages: Sequence[Message], stop: threading.Event) -> None:
        """Settle and commit part by part, storing each while the next is decoded.

        Whatever is left when `stop` is set will be delivered again. Nothing is still being stored afterwards.
        """
        try:
            for part in _parts(messages):
                left = list(part)
                while left and not stop.is_set():
                    left = left[self._slice(left, stop) :]
            self._end(stop)
        except BaseException:
            if self._storing:
                self._storing.stored.wait(GRACE_S)  # not committed: it will be delivered again
            raise
        finally:
            self._storing = None

    def _slice(self, messages: Sequence[Message], stop: threading.Event) -> int:
        """Decode the first slice of the messages and start to store it once the previous one is settled.

        Returns:
            Its size: 0 if `stop` came during the first message.
        """
        began, now_ms = time.monotonic(), time.time_ns() // 1_000_000
        keyed = [(self.consumer.partition_key(*place_of(m)), cast(int, m.offset()), m) for m in messages]
        alive = self.consumer.keep_alive
        reading = Meanwhile(stop, alive)

        def meanwhile() -> None:
            reading()
            if self._storing and self._storing.stored.done:  # a slow message must not delay the commit
                self._end(stop)

        batch = patiently(lambda: self.intake.sort(keyed, now_ms, self.budget, meanwhile), stop, alive)
        self._end(stop)
        if not batch.taken:
            return 0
        alive()
        offsets: dict[str, list[int]] = defaultdict(list)
        for partition, offset, _ in keyed[: batch.taken]:
            offsets[partition].append(offset)
        # the next part is stored before these objects are due; what is still in Kafka may not be
        behind = batch.taken < len(messages) or any(self.consumer.lag().values())

        def store() -> list[Outcome]:
            # consumed is marked for the messages, independently of any outcome, so that the books can fail to balance
            self.intake.ledger.consumed(offsets)
            return self.intake.store.store(batch.deliveries, behind)

        self._storing = _Storing(batch, messages[: batch.taken], began, Started(store))
        return batch.taken

    def _end(self, stop: threading.Event) -> None:
        """Settle and commit the slice being stored, if any."""
        if self._storing is None:
            return
        slice_, alive = self._storing, self.consumer.keep_alive
        settling = Meanwhile(stop, alive, GRACE_S)
        outcomes = patiently(lambda: slice_.stored.result(settling), stop, alive)
        counts = patiently(lambda: self.intake.settle(slice_.batch, settling, outcomes), stop, alive)
        self._storing = None
        self.consumer.commit(slice_.messages)
        alive()
        self._report(len(slice_.messages), counts, slice_.batch, time.monotonic() - slice_.began)

    def _report(self, consumed: int, counts: Counter[str], batch: Batch, seconds: float) -> None:
        self.totals["consumed"] += consumed
        self.totals.update(counts)
        self.metrics.batch(consumed, counts, batch.skipped, batch.rejected, seconds, self.consumer.lag())
        event(log, "batch", consumed=consumed, **dict(sorted(counts.items())), seconds=seconds)
