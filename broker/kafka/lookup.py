"""Messages of a span of time, read again without a group: for what a program looks up in a topic now and then."""

import time
import uuid
from collections.abc import Iterator, Sequence

import confluent_kafka as ck
from confluent_kafka import KafkaException, Message, TopicPartition

from skyheed.broker.kafka.connection import (
    FAR_FUTURE_MS,
    NO_TOPIC,
    REFUSED_RIGHT,
    Connection,
    Options,
    consumer,
    right,
)
from skyheed.broker.kafka.topics import timeless

ASK_S = 10.0
QUIET_S = 10.0  # without a message although there should be some
FETCHED = 200


class Lookup:
    """Reads topics by Kafka time.

    Raises:
        ServiceError: the broker refuses us.
        ServiceUnavailable: it is unavailable.
    """

    def __init__(self, options: Options, topics: Sequence[str]) -> None:
        self._connection, self._topics = Connection(options), topics
        self._searches = False  # the broker finds messages by their time
        self._consumer = consumer(options, f"skyheed-lookup-{uuid.uuid4()}", self._connection)

    def between(self, first_ms: int, last_ms: int) -> Iterator[Message]:
        """Messages with a Kafka time from `first_ms` to `last_ms`, those of one partition in order."""
        try:
            starts, ends = self._offsets(first_ms), self._offsets(last_ms + 1)
        except KafkaException as error:
            raise self._connection.unavailable(str(error), "no answer") from error
        left = {place: ends[place] - start for place, start in starts.items() if ends[place] > start}
        if not left:
            return
        self._consumer.assign([TopicPartition(*place, starts[place]) for place in left])
        try:
            yield from self._read({place: ends[place] for place in left})
        finally:
            self._consumer.unassign()

    def close(self) -> None:
        """Let go of the broker."""
        self._consumer.close()

    def _offsets(self, time_ms: int) -> dict[tuple[str, int], int]:
        """The first offset at or after a time, of every partition; its end where there is none."""
        places = [(topic, number) for topic in self._topics for number in self._partitions(topic)]
        asked = [TopicPartition(*place, time_ms) for place in places]
        if not self._searches:
            later = self._consumer.offsets_for_times([TopicPartition(*p, FAR_FUTURE_MS) for p in places], timeout=ASK_S)
            if wrong := [at.topic for at in later if at.offset >= 0]:
                raise self._connection.cannot_search(wrong[0])
            if topic := timeless(self._consumer, {place: self._marks(*place) for place in places}):
                raise self._connection.without_times(topic)
            self._searches = True
        found = self._consumer.offsets_for_times(asked, timeout=ASK_S)
        return {(p.topic, p.partition): p.offset if p.offset >= 0 else self._end(p.topic, p.partition) for p in found}

    def _partitions(self, topic: str) -> list[int]:
        found = self._consumer.list_topics(topic, timeout=ASK_S).topics[topic]
        if found.error is not None and found.error.code() in NO_TOPIC | REFUSED_RIGHT:
            raise self._connection.refusal(found.error, right(found.error, topic))
        if found.error is not None:
            raise KafkaException(found.error)
        return list(found.partitions)

    def _end(self, topic: str, number: int) -> int:
        return self._marks(topic, number)[1]

    def _marks(self, topic: str, number: int) -> tuple[int, int]:
        low, high = self._consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=ASK_S)
        return int(low), int(high)

    def _read(self, ends: dict[tuple[str, int], int]) -> Iterator[Message]:
        heard = time.monotonic()
        while ends:
            events = self._consumer.consume(FETCHED, 0.5)
            self._connection.check()
            if events:
                heard = time.monotonic()
            elif time.monotonic() - heard > QUIET_S:
                raise self._connection.unavailable(f"nothing came for {QUIET_S:g} s", "no messages")
            for event in events:
                place = str(event.topic()), int(event.partition() or 0)
                if (error := event.error()) is not None:
                    if error.code() == ck.KafkaError._PARTITION_EOF:  # an offset that is gone, or never was
                        ends.pop(place, None)
                    continue
                if place in ends and int(event.offset() or 0) < ends[place]:
                    yield event
                if place in ends and int(event.offset() or 0) >= ends[place] - 1:
                    ends.pop(place)
