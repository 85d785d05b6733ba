"""Completes the histories of newly seen objects: asks a provider for the packets of earlier detections.

An alert packet names its object's earlier detections, whose stamps it does not carry. `backfill` reads the alert
topics with its own consumer group, requests what Redis does not hold, and publishes the packets, as the survey sent
them, to the topic skyheed.alerts.<survey>.backfill. An ingest that reads this topic stores them like any others: once,
in the books of that topic, and without ever waiting for the provider.

The books: asked = fetched + unknown + refused + wrong. Stopping it at any time loses nothing: the position moves past
a message only when all detections it names have been requested, and a packet that is published twice is a duplicate.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Message

from skyheed.broker.errors import PacketError, SkipPacket
from skyheed.broker.forward import Rate
from skyheed.broker.http import Broken, Refusal
from skyheed.broker.kafka.client import AlertConsumer, Publisher
from skyheed.broker.kafka.messages import headers_of
from skyheed.broker.metrics import BackfillMetrics
from skyheed.broker.packets.container import Headers, with_key
from skyheed.broker.packets.reader import PacketReader
from skyheed.broker.packets.surveys.previous import NamesEarlier
from skyheed.broker.providers import AsksAhead, Provider, cost
from skyheed.broker.recently_seen import Recent
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.waiting import Meanwhile, apart, patiently
from skyheed.classifier.safe_names import printable

log = logging.getLogger("skyheed.backfill")
BATCH, WAIT_S = 100, 0.5
BATCH_BYTES = 16 * 2**20  # read at a time, plus at most one more fetch
TRIES = 5  # for a detection on which the provider fails (500); an unavailable provider is waited for
REMEMBERED = 200_000  # detections that were requested recently


@dataclass
class Backfill:
    """The daemon.

    Attributes:
        consumer: of the alert topics.
        topic: where fetched packets go; its own messages are ignored.
        reader: decodes packets, to check that each is the one requested.
        most: earlier detections to request for one packet, newest first.
    """

    consumer: AlertConsumer
    earlier: "EarlierReader"
    store: SequenceStore
    provider: Provider
    reader: PacketReader
    publisher: Publisher
    topic: str
    metrics: BackfillMetrics
    most: int = 30
    rate: Rate = field(default_factory=lambda: Rate(1.0))
    asked: Recent = field(default_factory=lambda: Recent(REMEMBERED))

    def run(self, stop: threading.Event, drain: bool = False) -> Counter[str]:
        """Run until `stop` is set or, with `drain`, until everything present at the start is done; returns the books.

        Raises:
            ServiceError: Kafka, Redis or the provider refuses us.
            Stopped: `stop` was set while a server was unavailable.
        """
        counts: Counter[str] = Counter(asked=0, fetched=0, unknown=0, refused=0, wrong=0)
        while not stop.is_set():
            messages = self.consumer.consume(BATCH, WAIT_S, BATCH_BYTES)
            for number, message in enumerate(messages):
                if stop.is_set():
                    break
                self.metrics.lag(sum(self.consumer.lag().values()) + len(messages) - number)
                if message.topic() != self.topic:
                    counts.update(self._complete(message, stop))
                self.consumer.commit([message])
                self.metrics.read()
            if drain and not messages and self.consumer.drained():
                break
        return counts

    def _complete(self, message: Message, stop: threading.Event) -> Counter[str]:
        counts: Counter[str] = Counter()
        look = Meanwhile(stop, self.consumer.keep_alive)
        for object_id, source_id in self._missing(message, stop, look):
            look()
            outcome = self._fetch(object_id, source_id, stop, look)
            self.asked.put(object_id, str(source_id))
            counts.update({"asked": 1, outcome: 1})
            self.metrics.asked(outcome)
        return counts

    def _missing(self, message: Message, stop: threading.Event, look: Meanwhile) -> Iterator[tuple[str, int]]:
        """Detections that a packet names, that Redis does not hold, and that were not requested recently."""
        for object_id, sources in self.earlier.of(message.value(), with_key(headers_of(message), message.key())):
            look()
            newest = dict.fromkeys(sources[-self.most :])
            wanted = [n for n in newest if self.asked.get(object_id, str(n)) is None]
            if wanted:
                kept = patiently(lambda name=object_id: self.store.sources(name), stop, look)  # type: ignore[misc]
                missing = [n for n in wanted if n not in kept]
                if isinstance(self.provider, AsksAhead):
                    self.provider.expect(object_id, missing)
                yield from ((object_id, n) for n in missing)

    def _fetch(self, object_id: str, source_id: int, stop: threading.Event, look: Meanwhile) -> str:
        """Request one detection and publish its packet; returns the outcome."""
        self.rate.pause(cost(self.provider), stop, look)
        ask = self._asking(object_id, source_id)
        try:
            packet = patiently(lambda: apart(ask, look), stop, look)
        except Refusal as refusal:
            log.warning("%s refuses detection %d: %s", type(self.provider).__name__, source_id, refusal)
            return "refused"
        if packet is None:
            return "unknown"
        if fault := self._fault(packet, object_id, source_id, look):
            log.warning("detection %d of %s: %s", source_id, printable(object_id), fault)
            return "wrong"
        patiently(lambda: self.publisher.publish_all([(self.topic, None, packet, None)], look), stop, look)
        return "fetched"

    def _asking(self, object_id: str, source_id: int) -> Callable[[], bytes | None]:
        """Requests one detection; gives up on one for which the provider fails repeatedly."""
        left = TRIES

        def ask() -> bytes | None:
            nonlocal left
            try:
                return self.provider.packet(object_id, source_id)
            except Broken as error:
                left -= 1
                if not left:
                    raise Refusal(500, f"it failed {TRIES} times on this one") from error
                raise

        return ask

    def _fault(self, packet: bytes, object_id: str, source_id: int, look: Meanwhile) -> str:
        """Why a packet is not the one requested, or not complete; empty if it is both."""
        try:
            found = self.reader.observations(packet, None, look)
        except SkipPacket:  # valid: ingest counts it in its books
            return ""
        except PacketError as error:
            return str(error)
        if [(seen.object_id, seen.source_id) for seen in found] != [(object_id, source_id)]:
            return "the provider sent the packet of another detection"
        return ""


class EarlierReader:
    """Reads which earlier detections a packet names; an unreadable packet names none, and ingest reports why."""

    def __init__(self, survey: NamesEarlier, decode: Callable[[bytes, Headers], Sequence[Mapping[str, Any]]]) -> None:
        self._survey, self._decode = survey, decode

    def of(self, value: bytes | None, headers: Headers = ()) -> Iterator[tuple[str, list[int]]]:
        """(object, its earlier detections in time order) for each record of a message."""
        try:
            records = self._decode(value, headers) if value else ()
            named = [self._survey.earlier(record) for record in records]
        except PacketError:
            return
        yield from (one for one in named if one[1])
