"""Which partitions a consumer holds, from which topics, which are paused, and what is committed. Delivers no
messages."""

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

import confluent_kafka as ck
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from skyheed.broker.errors import ServiceError, ServiceUnavailable
from skyheed.broker.kafka.connection import (
    AWAY,
    REFUSED_AGAIN_S,
    Connection,
    Options,
    Place,
    consumer,
    rebalances_in_steps,
    right,
)
from skyheed.broker.kafka.messages import place_of
from skyheed.broker.kafka.partitions import UNKNOWN, Partition
from skyheed.broker.kafka.selection import Selection, selection
from skyheed.broker.kafka.topics import TopicIds, commit_note, committed, is_of_another, partition_key

log = logging.getLogger("skyheed.kafka")
Window = Mapping[Place, tuple[int, int]]  # partition -> first offset, end
LOOK_EVERY = "topic.metadata.refresh.interval.ms"
LOOK_EVERY_MS = 30_000  # how often to look for topics that match a pattern; librdkafka's own refresh interval
NEW_PARTITIONS_S = 10.0  # without a group, new ones are not announced


class Assignment:
    """The part of a `BatchConsumer` that gains and loses partitions. Its callbacks run inside librdkafka calls."""

    def __init__(
        self, options: Options, topics: Sequence[str] | Selection, group: str | None, start: str, drain: bool,
        window: Window | None = None,
    ) -> None:  # fmt: skip
        self.connection = Connection(options)
        self._window = window
        self._topics, self._group, self._start, self._drain = selection(topics), group, start, drain
        self._name = group or f"skyheed-reader-{uuid.uuid4()}"
        self._subscribed: list[str] = []
        self._look_at = 0.0  # when to ask again which topics the patterns match
        self._looked = time.monotonic()
        self._parts: dict[Place, Partition] = {}  # assigned partitions; everything known about a partition is kept here
        self._known: set[Place] | None = None  # partitions that existed at the first assignment
        self._kept: list[Message] = []  # fetched, not yet handed out
        self._gone: tuple[float, ServiceError] | None = None  # a topic that we have read is not there, since when
        self._missing: set[str] = set()  # patterns without a topic, reported once
        self._joined = False  # the group has assigned partitions, or none for now
        self._held = False  # the caller is busy: every partition is paused
        self._incremental = rebalances_in_steps(options)
        self._consumer = consumer(
            options, self._name, self.connection, **{"auto.offset.reset": start, "on_commit": self._on_commit}
        )
        self._topic_ids = TopicIds(options)
        self._ids: dict[str, str] = {}  # as last seen
        self._astray: set[Place] = set()  # of a recreated topic, still to be set to its beginning
        self.on_made_again: Callable[[str], None] = lambda _topic: None  # the topic was recreated: forget the old one's
        self.begin_at: Mapping[str, int] = {}  # without a group: partition key -> offset, instead of `start`
        # read after librdkafka has validated it; it accepts -1 for never
        self._look_every_s = max(1, int(options.get(LOOK_EVERY, LOOK_EVERY_MS))) / 1000

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        """Turns librdkafka's fatal errors, raised by its calls, into our errors."""
        try:
            yield
        except KafkaException as error:  # fatal: for example, another member took our group.instance.id
            raise self.connection.refusal(error.args[0], right(error.args[0], "", self._group or "")) from None

    def _subscribe(self, topics: list[str]) -> None:
        self._subscribed = topics
        self._consumer.subscribe(
            topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )  # fmt: skip

    def _look(self) -> None:
        """Subscribe to what the patterns match now: we match them ourselves, so that they mean the same everywhere."""
        if self._group is None or not self._topics.patterns or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + self._look_every_s
        existing = self._existing()
        found = self._topics.among(existing or [])
        if existing is not None and found and found != self._subscribed:
            self._subscribe(found)
        for pattern in self._topics.patterns if existing is not None else ():
            if not self._parts and not self._topics.matched(pattern, existing or []):
                self._no_match(pattern)

    def _existing(self) -> list[str] | None:
        """The names of the broker's topics; None while it does not answer: `_watch` finds out why."""
        try:
            found = self._consumer.list_topics(timeout=1.0).topics
        except KafkaException:
            self._look_at = 0.0
            return None
        return [name for name, topic in found.items() if topic.error is None]

    def _find_partitions(self) -> None:
        """Without a group: assign every partition, and periodically those that have appeared since."""
        self._check_gone()
        now = time.monotonic()
        if self._group is not None or (self._parts and (self._drain or now - self._looked < NEW_PARTITIONS_S)):
            return
        self._looked = now
        if self._parts and self.connection.away():
            return
        offset = ck.OFFSET_END if not self._parts and self._start == "latest" else ck.OFFSET_BEGINNING
        new = sorted(self._listed() - set(self._parts))
        if new:
            ids = self._ask_ids({topic for topic, _ in new})
            keys = [partition_key(topic, ids.get(topic, ""), number) for topic, number in new]
            firsts = [self.begin_at.get(key, offset) for key in keys]
            partitions = [TopicPartition(*place, first) for place, first in zip(new, firsts, strict=True)]
            self._consumer.incremental_assign(partitions)
            self._take(partitions, ids)

    def _listed(self) -> set[Place]:
        """Every partition of our topics; none while the broker does not answer: `_watch` finds out why.

        Raises:
            ServiceError: a topic does not exist or may not be read, and nothing was ever read.
        """
        places: set[Place] = set()
        existing = self._existing() if self._topics.patterns else []
        for topic in self._topics.among(existing) if existing is not None else ():
            try:
                found = self._consumer.list_topics(topic, timeout=1.0).topics[topic]
            except KafkaException:
                return set()
            if found.error is not None and not self._parts and found.error.code() not in AWAY:
                raise self.connection.refusal(found.error, right(found.error, topic))
            places |= {(topic, number) for number in found.partitions}
        for pattern in self._topics.patterns if existing is not None and not self._parts else ():
            if not self._topics.matched(pattern, existing or []):
                self._no_match(pattern)
        return places

    def _on_assign(self, client: ck.Consumer, partitions: list[TopicPartition]) -> None:
        ids = self._ask_ids({p.topic for p in partitions})  # before anything is fetched
        begin: set[Place] = set()
        with contextlib.suppress(KafkaException):  # no answer: new ones begin at the latest offset, too
            begin |= self._new_ones(client, partitions) if self._start == "latest" else set()
        try:
            begin |= self._of_earlier_topics([(p.topic, p.partition) for p in partitions], ids)
        except KafkaException:
            ids = {}  # checked again with the first message
        firsts = {**self._firsts(client, partitions), **dict.fromkeys(begin, ck.OFFSET_BEGINNING)}
        if firsts:
            places = [(p.topic, p.partition) for p in partitions]
            offsets = [TopicPartition(*p, firsts[p]) if p in firsts else TopicPartition(*p) for p in places]
            (client.incremental_assign if self._incremental else client.assign)(offsets)
        self._joined = True
        self._take(partitions, ids)

    def _part(self, topic_id: str | None, place: Place) -> Partition:
        if self._window is None:
            return Partition(topic_id)
        start, end = self._window.get(place, (0, 0))
        return Partition(topic_id, target=end, finished=start >= end)

    def _firsts(self, client: ck.Consumer, partitions: list[TopicPartition]) -> dict[Place, int]:
        """Where to begin reading a window if the group has no position; from its start by default."""
        if self._window is None:
            return {}
        places = [(p.topic, p.partition) for p in partitions]
        with contextlib.suppress(KafkaException):
            places = [(at.topic, at.partition) for at in committed(client, places) if at.offset < 0]
        return {place: self._window[place][0] for place in places if place in self._window}

    def _take(self, partitions: list[TopicPartition], ids: Mapping[str, str]) -> None:
        # librdkafka keeps our pause while a partition is assigned elsewhere
        self._consumer.resume(partitions)
        self._parts |= {
            (p.topic, p.partition): self._part(ids.get(p.topic), (p.topic, p.partition)) for p in partitions
        }
        self._learn(ids)
        if partitions:
            self._gone = None
        self.connection.works()

    def _new_ones(self, client: ck.Consumer, partitions: list[TopicPartition]) -> set[Place]:
        """Partitions that appeared while reading, to be read from their beginning: `latest` would skip their first
        messages. Only where the group has no position yet.
        """
        if self._known is None:
            metadata = client.list_topics(timeout=5.0).topics
            self._known = {(topic, number) for topic, found in metadata.items() for number in found.partitions}
        new = [p for p in partitions if (p.topic, p.partition) not in self._known]
        self._known |= {(p.topic, p.partition) for p in new}
        return {(p.topic, p.partition) for p in client.committed(new, timeout=5.0) if p.offset < 0} if new else set()

    def _on_revoke(self, client: ck.Consumer, partitions: list[TopicPartition]) -> None:
        self._commit_now({(p.topic, p.partition) for p in partitions})
        self._on_lost(client, partitions)

    def _on_lost(self, _client: ck.Consumer, partitions: list[TopicPartition]) -> None:
        for p in partitions:
            self._parts.pop((p.topic, p.partition), None)
        self._astray &= set(self._parts)
        self._kept = [m for m in self._kept if place_of(m) in self._parts]

    def _named_so_far(self, topic: str) -> str:
        """The id of a topic that has just been deleted: messages already fetched still belong to it."""
        if topic not in self._ids:
            error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
            raise self.connection.refusal(error, right(error, topic))
        return self._ids[topic]

    def _identify(self, ids: Mapping[str, str]) -> set[Place]:
        """Compare the partitions with the current topics; returns those of a recreated topic, which begin again."""
        ours = {place: part.topic_id for place, part in self._parts.items() if place[0] in ids}
        unknown = [place for place, id_ in ours.items() if id_ is None]
        begin = self._of_earlier_topics(unknown, ids) if unknown else set()
        begin |= {place for place, id_ in ours.items() if id_ and ids[place[0]] and id_ != ids[place[0]]}
        for place in set(ours) - begin:
            self._parts[place].topic_id = ids[place[0]]
        for place in begin:
            self._parts[place] = Partition(ids[place[0]], paused=self._parts[place].paused)
        self._astray |= begin
        self._learn(ids)
        self._set_straight()
        return begin

    def _of_earlier_topics(self, places: Sequence[Place], ids: Mapping[str, str]) -> set[Place]:
        """Places where the group's position belongs to an earlier topic of that name, or was lost with it.

        Raises:
            KafkaException: the broker does not answer.
        """
        if self._group is None:
            return set()
        renamed = {topic for topic, id_ in ids.items() if id_ and self._ids.get(topic, id_) not in ("", id_)}
        return {
            (at.topic, at.partition)
            for at in committed(self._consumer, places)
            if is_of_another(at, ids.get(at.topic)) or (at.offset < 0 and at.topic in renamed)
        }

    def _learn(self, ids: Mapping[str, str]) -> None:
        for topic, id_ in ids.items():
            before, self._ids[topic] = self._ids.get(topic, id_), id_
            if before and id_ and before != id_:
                log.warning("topic %s was deleted and recreated: reading it from its beginning", topic)
                self._kept = [m for m in self._kept if place_of(m)[0] != topic]
                # messages fetched by the same call may be from either
                self._astray |= {place for place in self._parts if place[0] == topic}
                self.on_made_again(topic)

    def _set_straight(self) -> None:
        """Seek partitions of a recreated topic to its beginning; librdkafka drops what it fetched before."""
        for place in sorted(self._astray):
            with contextlib.suppress(KafkaException):  # not yet fetched from: the next call tries again
                self._consumer.seek(TopicPartition(*place, ck.OFFSET_BEGINNING))
                self._astray.discard(place)

    def _ask_ids(self, topics: set[str]) -> dict[str, str]:
        """The ids of topics, without those that the broker does not return now; they are requested again."""
        try:
            return {topic: id_ for topic, id_ in self._topic_ids.ask(topics).items() if id_ is not None}
        except (ServiceError, ServiceUnavailable):
            return {}

    def _without_topic(self, topic: str, error: KafkaError) -> None:
        """One that we have read may have been deleted to be made again: only after a while is that a reason to end.

        Raises:
            ServiceError: we have never read it.
        """
        refusal = self.connection.refusal(error, f"topic {topic}")
        if topic not in self._ids:
            raise refusal
        if self._gone is None:
            self._gone = time.monotonic(), refusal
            log.warning("waiting: %s", refusal)

    def _check_gone(self) -> None:
        if self._gone is not None and time.monotonic() - self._gone[0] > REFUSED_AGAIN_S:
            raise self._gone[1]

    def _no_match(self, pattern: str) -> None:
        if self._drain:
            error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
            raise self.connection.refusal(error, f"topic that matches {pattern}")
        if pattern not in self._missing:  # surveys create a topic each night: the first may not exist yet
            self._missing.add(pattern)
            log.warning("Kafka at %s has no topic that matches %s yet: waiting for one", self.connection.hosts, pattern)

    def _watermark(self, place: Place) -> int:
        with contextlib.suppress(KafkaException):  # librdkafka does not know it yet
            marks = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
            return int(marks[1]) if marks else UNKNOWN
        return UNKNOWN

    def _set_pauses(self) -> None:
        """Make librdkafka pause what should be paused, and nothing else. Only this and `_on_assign` touch its pauses.

        Paused are all partitions while the caller is busy, and those that a drain has finished.
        """
        for pause, tell in ((True, self._consumer.pause), (False, self._consumer.resume)):
            places = {
                place
                for place, part in self._parts.items()
                if (self._held or (self._drain and part.finished)) is pause and part.paused is not pause
            }
            if places:
                tell([TopicPartition(*place) for place in sorted(places)])
            for place in places:
                self._parts[place].paused = pause

    # --- commits

    def _uncommitted(self, places: set[Place]) -> list[TopicPartition]:
        offsets = {place: self._parts[place].to_commit() for place in sorted(places & set(self._parts))}
        return [
            TopicPartition(*place, offset, commit_note(self._parts[place].topic_id))
            for place, offset in offsets.items()
            if offset is not None
        ]

    def _commit_again(self) -> None:
        offsets = self._uncommitted(set(self._parts)) if self._group else []
        if offsets:
            for p in offsets:  # assumed committed until the callback says otherwise, so that each is sent once
                self._parts[p.topic, p.partition].committed = p.offset
            self._consumer.commit(offsets=offsets, asynchronous=True)

    def _commit_now(self, places: set[Place]) -> None:
        for place in places & set(self._parts):
            self._parts[place].committed = UNKNOWN
        offsets = self._uncommitted(places) if self._group and not self.connection.away() else []
        if not offsets:
            return
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:  # harmless: these messages are delivered again
            log.warning(
                "offsets not committed; the messages will be delivered again: %s", self.connection.redact(str(error))
            )

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        for p in partitions:
            part = self._parts.get((p.topic, p.partition))
            if (error or p.error) and part is not None and part.committed == p.offset:
                part.committed = UNKNOWN
