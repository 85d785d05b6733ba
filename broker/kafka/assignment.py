"""Which partitions a consumer holds, from which topics, which are paused, and what is committed. Delivers no
messages."""

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

import confluent_kafka as ck
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from skyheed.broker.errors import ServiceError
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
from skyheed.broker.kafka.identity import Identities, Window, commit_note, is_of_another
from skyheed.broker.kafka.messages import place_of
from skyheed.broker.kafka.partitions import UNKNOWN, Partition
from skyheed.broker.kafka.selection import Selection, selection
from skyheed.broker.kafka.topics import committed, partition_key

log = logging.getLogger("skyheed.kafka")
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
        self._missing: set[str] = set()  # patterns without a topic, reported once
        self._joined = False  # the group has assigned partitions, or none for now
        self._held = False  # the caller is busy: every partition is paused
        self._incremental = rebalances_in_steps(options)
        self._consumer = consumer(
            options, self._name, self.connection, **{"auto.offset.reset": start, "on_commit": self._on_commit}
        )
        self._identities = Identities(options, self.connection, window.ids if window else {})
        self._astray: set[Place] = set()  # of a recreated topic, still to be set to its beginning
        self._anew: set[str] = set()  # recreated topics whose partitions are still to be counted
        self._counted = False  # one has been, and may have more than before
        self._ended: set[str] = set()  # topics with a partition at its end, whose ids are to be checked
        self._cut_off = ""  # the recreated topic whose window cannot be read any more
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
        now = time.monotonic()
        idle = self._parts and not self._counted and (self._drain or now - self._looked < NEW_PARTITIONS_S)
        if self._group is not None or idle:
            return
        self._looked = now
        if self._parts and self.connection.away():
            return
        offset = ck.OFFSET_END if not self._parts and self._start == "latest" else ck.OFFSET_BEGINNING
        new = sorted(self._listed() - set(self._parts))
        self._counted = False
        if new:
            ids = self._identities.ask_now({topic for topic, _ in new})
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
        ids = self._identities.ask_now({p.topic for p in partitions})  # before anything is fetched
        begin: set[Place] = set()
        with contextlib.suppress(KafkaException):  # no answer: new ones begin at the latest offset, too
            begin |= self._new_ones(client, partitions) if self._start == "latest" else set()
        try:
            begin |= self._of_earlier_topics([(p.topic, p.partition) for p in partitions], ids)
        except KafkaException:
            ids = {}  # checked again with the first message
        sinces = self._sinces([(p.topic, p.partition) for p in partitions], ids)
        firsts = {**dict.fromkeys(begin, ck.OFFSET_BEGINNING), **{place: first for place, (first, _) in sinces.items()}}
        if firsts:
            places = [(p.topic, p.partition) for p in partitions]
            offsets = [TopicPartition(*p, firsts[p]) if p in firsts else TopicPartition(*p) for p in places]
            (client.incremental_assign if self._incremental else client.assign)(offsets)
        self._joined = True
        self._take(partitions, ids, {place: since for place, (_, since) in sinces.items()})

    def _part(self, topic_id: str | None, place: Place, since: int | None) -> Partition:
        if self._window is None:
            return Partition(topic_id)
        start, end = self._window.ranges.get(place, (0, 0))
        return Partition(topic_id, target=end, since=since, finished=start >= end)

    def _sinces(self, places: list[Place], ids: Mapping[str, str]) -> dict[Place, tuple[int, int]]:
        """Where to go on reading a window, and since where it was read; from its start if that is not known."""
        if self._window is None:
            return {}
        found = [TopicPartition(*place) for place in places]
        with contextlib.suppress(KafkaException):
            found = committed(self._consumer, places)
        return {(at.topic, at.partition): self._window.since(at, ids.get(at.topic)) for at in found}

    def _take(
        self, partitions: list[TopicPartition], ids: Mapping[str, str], sinces: Mapping[Place, int] | None = None
    ) -> None:
        # librdkafka keeps our pause while a partition is assigned elsewhere
        self._consumer.resume(partitions)
        for place in [(p.topic, p.partition) for p in partitions]:
            self._parts[place] = self._part(ids.get(place[0]), place, (sinces or {}).get(place))
        self._learn(ids)
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

    def _watched(self) -> set[str]:
        """Topics to look at without messages: one may have been deleted or made again."""
        held = {topic for topic, _ in self._parts}
        if not self._drain:
            return held | (set(self._identities.known) & set(self._topics.names))
        return held | set(self._identities.known) | (set(self._topics.names) if self._joined else set())

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
        if self._group is None or self._window is not None:
            return set()
        renamed = self._identities.renamed(ids)
        return {
            (at.topic, at.partition)
            for at in committed(self._consumer, places)
            if is_of_another(at, ids.get(at.topic)) or (at.offset < 0 and at.topic in renamed)
        }

    def _learn(self, ids: Mapping[str, str]) -> None:
        for topic in self._identities.learn(ids):
            self._kept = [m for m in self._kept if place_of(m)[0] != topic]
            # messages fetched by the same call may be from either
            self._astray |= {place for place in self._parts if place[0] == topic}
            self._anew.add(topic)
            if self._window is not None:
                self._cut_off = topic
            self.on_made_again(topic)

    def _set_straight(self) -> None:
        """Seek partitions of a recreated topic to its beginning; librdkafka drops what it fetched before."""
        self._count()
        for place in sorted(place for place in self._astray if place[0] not in self._anew):
            with contextlib.suppress(KafkaException):  # not yet fetched from: the next call tries again
                self._consumer.seek(TopicPartition(*place, ck.OFFSET_BEGINNING))
                self._astray.discard(place)

    def _count(self) -> None:
        """Let go of the partitions that a recreated topic does not have: librdkafka would ask for them forever."""
        for topic in sorted(self._anew):
            with contextlib.suppress(KafkaException):
                found = self._consumer.list_topics(topic, timeout=1.0).topics[topic]
                if found.error is None:
                    self._anew.discard(topic)
                    self._counted = True
                    self._leave({p for p in self._parts if p[0] == topic and p[1] not in found.partitions})

    def _leave(self, places: set[Place]) -> None:
        """These partitions do not exist any more; a group takes them away only when it rebalances."""
        gone = [TopicPartition(*place) for place in sorted(places)]
        if gone and self._group is None:
            self._consumer.incremental_unassign(gone)
            self._on_lost(self._consumer, gone)
        for place in places & set(self._parts):
            self._parts[place].finished = True
        self._astray -= places

    def _away(self) -> list[str]:
        """Topics that do not exist, unless a drain has read them to their end before."""
        held = {topic for topic, _ in self._parts} if self._drain else set()
        unread = {topic for (topic, _), part in self._parts.items() if not part.finished} | self._ended
        return [topic for topic in self._identities.away if topic in unread or topic not in held]

    def _check_identities(self) -> None:
        """A topic that was deleted may be made again: only after a while is its absence a reason to end.

        Raises:
            ServiceError: a drain, or a group that reads nothing else, has waited long enough; or the topic of a window
                was made again.
        """
        if topic := self._cut_off:
            raise ServiceError(
                f"topic {topic} on Kafka at {self.connection.hosts} was deleted and created again while it was read, "
                "and what was left of this time is gone: start again to read the same time of the new topic"
            )
        for topic in self._away():
            alone = self._group is not None and not self._parts and topic in self._topics.names
            waited = time.monotonic() - self._identities.away[topic]
            if (self._drain or alone) and waited > REFUSED_AGAIN_S:
                raise self._identities.refusal(topic)

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
            TopicPartition(*place, offset, commit_note(self._parts[place].topic_id, self._parts[place].since))
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
