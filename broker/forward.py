"""Sends classifications to another system (the host): at least once, in order for each object, with its own books.

read = delivered + filtered + refused. The group's position moves past a batch only when the host, or the topic of
refusals, has all of it. Refused records go to that topic unchanged, with the host's message in the headers, and can be
forwarded again from there (`skyheed forward --topic skyheed.refused.…`).
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from skyheed.broker.errors import SkyheedError
from skyheed.broker.kafka.client import Publisher
from skyheed.broker.metrics import ForwardMetrics
from skyheed.broker.results import formats
from skyheed.broker.results.record import Classification, Wanted
from skyheed.broker.sinks import FILTERED, Answer, Outcome, Payload, Sink, refused
from skyheed.broker.subscribe import Subscriber
from skyheed.broker.waiting import GRACE_S, Meanwhile, Stopped, apart, patiently
from skyheed.classifier.safe_names import printable

log = logging.getLogger("skyheed.forward")
WAIT_S = 0.5  # for the rest of a batch after a stop
WORDS = 500  # of a host, in a header


class Rate:
    """Limits payloads per second; 0 is unlimited."""

    def __init__(self, per_second: float) -> None:
        self._gap, self._next = (1 / per_second if per_second > 0 else 0.0), 0.0

    def wait_for(self, payloads: int) -> float:
        """Seconds until this many may be sent; they count as sent."""
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + payloads * self._gap
        return start - now

    def pause(self, payloads: int, stop: threading.Event, meanwhile: Callable[[], None]) -> None:
        """Wait until this many may be sent; `meanwhile` runs every second.

        Raises:
            Stopped: `stop` was set before.
        """
        until = time.monotonic() + self.wait_for(payloads)
        while (left := until - time.monotonic()) > 0:
            if stop.wait(min(left, 1.0)):
                raise Stopped("stopped between two payloads")
            meanwhile()


@dataclass
class Forward:
    """The daemon between the classification topic and one sink.

    Attributes:
        refused_topic: receives refused records.
        batch: records per batch.
    """

    stream: Subscriber
    sink: Sink
    publisher: Publisher
    refused_topic: str
    metrics: ForwardMetrics
    wanted: Wanted = field(default_factory=Wanted)
    batch: int = 100
    rate: Rate = field(default_factory=lambda: Rate(0))

    def run(self, stop: threading.Event) -> Counter[str]:
        """Run until `stop` is set or the stream ends; returns counts by outcome, including `read`.

        Raises:
            ServiceError: Kafka or the host refuses us.
            Stopped: `stop` was set while a server was unavailable; nothing of the batch in hand is committed.
        """
        counts: Counter[str] = Counter(read=0, **dict.fromkeys(map(str, Outcome), 0))
        while not stop.is_set() and not self.stream.ended:
            batch = self.stream.take(self.batch, WAIT_S)
            self.metrics.lag(self.stream.lag() + len(batch))
            if batch:
                counts.update(self._forward(batch, stop))
            self.stream.settle()
        return counts

    def _forward(self, batch: Sequence[Classification], stop: threading.Event) -> Counter[str]:
        prepared = [_prepared(self.sink, self.wanted, record) for record in batch]
        answers = iter(self._send([payload for payload in prepared if not isinstance(payload, Answer)], stop))
        outcomes = [own if isinstance(own, Answer) else next(answers) for own in prepared]
        self._set_aside(
            [(r, a.words) for r, a in zip(batch, outcomes, strict=True) if a.outcome == Outcome.REFUSED], stop
        )
        counts = Counter(str(answer.outcome) for answer in outcomes)
        self.metrics.batch(len(batch), counts)
        return counts + Counter(read=len(batch))

    def _send(self, payloads: Sequence[Payload], stop: threading.Event) -> list[Answer]:
        answers: list[Answer] = []
        look = Meanwhile(stop, self.stream.keep_alive, GRACE_S)
        for first in range(0, len(payloads), self.sink.batch):
            part = payloads[first : first + self.sink.batch]
            self.rate.pause(len(part), stop, self.stream.keep_alive)
            answers += patiently(lambda part=part: apart(lambda: _send(self.sink, part), look), stop, look)  # type: ignore[misc]
            look()
        return answers

    def _set_aside(self, refused: Sequence[tuple[Classification, str]], stop: threading.Event) -> None:
        if not refused:
            return
        for record, words in refused:
            log.warning("refused: object %s: %s", printable(record.object_id), words)
        now = str(time.time_ns() // 1_000_000).encode()
        messages = [
            (self.refused_topic, record.object_id.encode(), formats.encode(record), _headers(record, words, now))
            for record, words in refused
        ]
        look = Meanwhile(stop, self.stream.keep_alive, GRACE_S)
        patiently(lambda: self.publisher.publish_all(messages, look), stop, look)


def _prepared(sink: Sink, wanted: Wanted, record: Classification) -> Payload | Answer:
    """What is sent for a record, or why nothing is."""
    if record not in wanted:
        return FILTERED
    try:
        payload = sink.payload(record)
    except SkyheedError:
        raise
    except Exception as error:
        return _unsendable(error)
    return FILTERED if payload is None else payload


def _send(sink: Sink, payloads: Sequence[Payload]) -> list[Answer]:
    """The answers; a payload that the sink itself cannot deal with is refused, and does not hold up the others."""
    try:
        return sink.send(payloads)
    except SkyheedError:
        raise
    except Exception as error:
        if len(payloads) == 1:
            return [_unsendable(error)]
        return [answer for payload in payloads for answer in _send(sink, [payload])]


def _unsendable(error: Exception) -> Answer:
    log.error("a record is refused because of an internal error", exc_info=error)
    return refused(f"an internal error: {type(error).__name__}")


def _headers(record: Classification, words: str, now: bytes) -> list[tuple[str, bytes]]:
    return [*record.headers(), ("skyheed-error", printable(words)[:WORDS].encode()), ("skyheed-time", now)]


def dry_run(stream: Subscriber, sink: Sink, wanted: Wanted, show: Callable[[str], None]) -> Counter[str]:
    """Print every payload as a line of JSON and send nothing; returns the counts."""
    counts: Counter[str] = Counter(read=0, shown=0, filtered=0)
    for record in stream:
        payload = _prepared(sink, wanted, record)
        counts["read"] += 1
        if isinstance(payload, Answer):
            counts[str(payload.outcome)] += 1
        else:
            counts["shown"] += 1
            show(json.dumps(payload, ensure_ascii=True))
    return counts
