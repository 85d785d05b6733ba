"""Reading in batches, with or without a group. Independent of message contents; `producer` publishes."""

import contextlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from types import TracebackType
from typing import Self, cast

from confluent_kafka import KafkaError, KafkaException, Message

from skyheed.broker.errors import ServiceError, ServiceUnavailable
from skyheed.broker.kafka.assignment import Assignment
from skyheed.broker.kafka.connection import (
    MAX_MESSAGE_BYTES,
    NO_TOPIC,
    REFUSED_AGAIN_S,
    REFUSED_RIGHT,
    REFUSED_USER,
    Options,
    Place,
    fatal,
    right,
)
from skyheed.broker.kafka.group_progress import OtherMembers
from skyheed.broker.kafka.identity import Window
from skyheed.broker.kafka.messages import make_readable, place_of, size_of, time_ms
from skyheed.broker.kafka.partitions import Partition, hanging
from skyheed.broker.kafka.producer import Outgoing, Publisher
from skyheed.broker.kafka.selection import Outputs, Selection, selection
from skyheed.broker.kafka.topics import (
    end_offsets,
    ensure_topics,
    group_lag,
    offsets_between,
    partition_key,
    ping,
    topic_ids,
)

__all__ = [
    "MAX_MESSAGE_BYTES",
    "AlertConsumer",
    "BatchConsumer",
    "Options",
    "Outgoing",
    "Publisher",
    "Window",
    "end_offsets",
    "ensure_topics",
    "group_lag",
    "offsets_between",
    "partition_key",
    "ping",
    "place_of",
    "time_ms",
    "topic_ids",
]

log = logging.getLogger("skyheed.kafka")
FETCHED = 100  # messages requested from librdkafka at a time, so that their bytes can be counted
PROBE_EVERY_S = 5.0
CLOSE_S = 10.0
ASSIGN_S = 300.0  # a drain gives up if it has no partition by then, or waits for a member that makes no progress
KEEP_ALIVE_S = 1.0
IDENTITY_S = 5.0  # topics are checked even without messages: one may have been recreated


class BatchConsumer(Assignment):
    """Reads topics in batches, with or without a group, and knows when it has reached the end.

    Args:
        topics: names, or patterns that begin with `^` (`selection`).
        group: consumer group that remembers the position; None reads every partition and remembers nothing.
        start: "earliest" or "latest": where to begin without a remembered position.
        drain: stop each partition at the end that it had when its first message arrived.
        window: the part to read; a group that has not read it before begins at its first offset, and nothing beyond its
            end or from other partitions is returned. With `drain` only.
    """

    def __init__(
        self,
        options: Options,
        topics: Sequence[str] | Selection,
        group: str | None,
        start: str = "earliest",
        drain: bool = False,
        window: Window | None = None,
    ) -> None:
        super().__init__(options, topics, group, start, drain, window)
        self._probed = self._polled = self._began = time.monotonic()
        self._closed = False
        self._named = bool(options.get("group.instance.id"))
        self._handed_ids: dict[str, str] = {}  # for the messages that `consume` returned last
        self._identified = time.monotonic()
        self._asking_since: float | None = None  # ids were requested without success
        self._others = OtherMembers(self._consumer, self._topics, self._name, self._identities, window)
        if group is not None and not self._topics.patterns:
            self._subscribe(self._topics.names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self.close()

    def consume(self, limit: int, wait_s: float, limit_bytes: int = 2**62) -> list[Message]:
        """Up to `limit` messages, waiting at most `wait_s` for them; empty while the broker is unavailable.

        Until the next call, `partition_key` names the topics of these messages. A topic that was deleted and recreated
        is read from its beginning; messages fetched from the old one and not handed out are dropped.

        Args:
            limit_bytes: of values, keys and headers together; exceeded by at most one fetch of `FETCHED` messages.

        Raises:
            ServiceError: the broker refuses us (user, right, no such topic).
        """
        self._held = False
        with self._refused():
            self._set_straight()
            self._set_pauses()
            self._look()
            self._find_partitions()
            room = limit - len(self._kept)
            fetched = self._fetch(room, wait_s, limit_bytes) if room > 0 else []
            self._polled = time.monotonic()
            # a rebalance inside that call removes messages from those kept
            events, self._kept = [*self._kept, *fetched], []
            messages = [event for event in events if self._is_message(event)]
            messages = self._of_known_topics(messages, wait_s)
            self._check_identities()
            self._set_pauses()
            self._watch(bool(events))
            self._commit_again()
        self._handed_ids = dict(self._identities.known)
        return messages

    def _fetch(self, room: int, wait_s: float, limit_bytes: int) -> list[Message]:
        """Collect messages until there are enough, they are large enough, or the time is up."""
        found: list[Message] = []
        deadline, size = time.monotonic() + wait_s, 0
        while len(found) < room and size < limit_bytes:
            wait = max(0.0, deadline - time.monotonic())
            more = [make_readable(event) for event in self._consumer.consume(min(FETCHED, room - len(found)), wait)]
            found += more
            size += sum(size_of(message) for message in more)
            if len(more) < FETCHED or not wait:
                break
        return found

    def commit(self, messages: Sequence[Message]) -> None:
        """Mark the messages as settled: the group continues after them. Never waits; a failed commit is sent again.

        Messages of a partition lost since they were handed out are left to its new owner. A commit lost with the
        process only makes Kafka deliver the messages again.

        Raises:
            ServiceError: the broker refuses us.
        """
        settled: dict[Place, list[int]] = defaultdict(list)
        for message in messages:
            settled[place_of(message)].append(cast(int, message.offset()))
        for place, offsets in settled.items():
            if place in self._parts:
                self._parts[place].settle(offsets)
        with self._refused():
            self._commit_again()

    def holds(self, message: Message) -> bool:
        """Whether the message is still ours: its partition may have moved to another member since it was handed out."""
        part = self._parts.get(place_of(message))
        return part is not None and (self._group is None or cast(int, message.offset()) in part.handed)

    def drained(self, alone: bool = False) -> bool:
        """True when everything that was there when reading began was read and handed out.

        With a group this includes partitions of other members: one of them may yet leave, and its unread messages
        would come to us.

        Args:
            alone: consider only our own partitions, for a caller who commits only after the end.

        Raises:
            ServiceError: the end cannot be reached: a transaction hangs, or another member does not read its part.
        """
        if self.connection.away():
            self._began = time.monotonic()
            return False
        if self._kept or self._ended or self._away():
            return False
        unfinished = {place: part for place, part in self._parts.items() if not part.finished}
        if unfinished:
            if sentence := hanging(unfinished):
                raise ServiceError(sentence)
            return False
        if self._group is None:
            return bool(self._parts)
        if not self._joined:
            self._check_joined()
            return False
        if alone and self._parts:
            return True
        with self._refused():
            return self._others.finished(set(self._parts), ASSIGN_S)

    def lag(self) -> dict[str, int]:
        """Readable offsets still to read, for each "topic/partition" that has answered."""
        lags = {place: part.lag(self._watermark(place)) for place, part in sorted(self._parts.items())}
        return {f"{topic}/{number}": lag for (topic, number), lag in lags.items() if lag is not None}

    def keep_alive(self) -> None:
        """Stay in the group while the caller processes its batch; nothing is fetched meanwhile.

        Call it as often as you like.

        Raises:
            ServiceError: the broker refuses us.
        """
        if time.monotonic() - self._polled < KEEP_ALIVE_S:
            return
        self._held = True
        with self._refused():
            self._set_pauses()
            event = self._consumer.poll(0)
            self._polled = time.monotonic()
            self._set_pauses()  # partitions assigned in that call
            if event is not None and not self._is_trouble(event):
                self._kept.append(make_readable(event))
        self.connection.check()

    def close(self) -> None:
        """Commit what is settled, if the broker is reachable, and leave the group; closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._give_back()
        self._commit_now(set(self._parts))
        self._parts.clear()
        # librdkafka can wait forever for a dead broker to confirm; the broker notices the departure by itself
        closing = threading.Thread(target=self._consumer.close, daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            log.warning("Kafka at %s does not answer: left without closing the session", self.connection.hosts)

    def _give_back(self) -> None:
        """Release our partitions before closing the client, whose `close` must not coincide with a rebalance.

        An assignment that arrives while librdkafka closes hangs the whole process: it waits for a response that never
        comes while holding the GIL. A static member (group.instance.id) keeps its partitions until it returns: for
        it we can only check just before closing.
        """
        if self._group is None:
            return
        deadline = time.monotonic() + CLOSE_S / 2
        with contextlib.suppress(KafkaException):
            if not self._named:
                self._consumer.unsubscribe()
            while time.monotonic() < deadline:
                came = self._consumer.consume(1000, 0.02)  # runs callbacks; messages are no longer needed
                if not came and (self._named or not self._parts):
                    return

    # --- which topics they belong to

    def partition_key(self, topic: str, partition: int) -> str:
        """`topic@topicid/partition`, or `topic/partition` where the broker has no topic ids.

        Stays valid until the next `consume`, even if the topic changes meanwhile.
        """
        return partition_key(topic, self._handed_ids.get(topic, ""), partition)

    def _of_known_topics(self, messages: list[Message], wait_s: float) -> list[Message]:
        """Those of `messages` that belong to the topic whose id we know.

        A partition's id was read before anything was fetched from it; if it is still the same, it did not change in
        between. If it differs, fetched messages may be from either topic, and the new one is read from its beginning.
        """
        every = time.monotonic() - self._identified > IDENTITY_S
        named = {place_of(m)[0] for m in messages}
        topics = named | (self._watched() if every else self._ended - set(self._identities.away))
        if not topics or (not messages and self.connection.away()):
            return messages
        try:
            ids = self._identities.ask(topics)
            ids |= {topic: self._identities.named_so_far(topic) for topic in named - set(ids)}
            begun = self._identify(ids)
        except (ServiceError, ServiceUnavailable, KafkaException) as error:
            return self._wait(error, messages, wait_s)
        self._asking_since = None
        self._ended -= set(ids)
        if every:
            self._identified = time.monotonic()
        return [m for m in messages if place_of(m) not in begun]

    def _wait(self, error: Exception, messages: list[Message], wait_s: float) -> list[Message]:
        """Keep the messages; report missing ids once. A refusal is tolerated at first: we have read these topics."""
        if self._asking_since is None:
            self._asking_since = time.monotonic()
            log.warning("waiting: %s", error)
        elif isinstance(error, ServiceError) and time.monotonic() - self._asking_since > REFUSED_AGAIN_S:
            raise error
        self._kept = [*messages, *self._kept]
        self.keep_alive()
        time.sleep(wait_s)
        return []

    # --- what the broker says

    def _is_message(self, event: Message) -> bool:
        if self._is_trouble(event):
            return False
        place = place_of(event)
        part = self._parts.get(place)
        if part is None or place in self._astray:  # another member has it by now, or the topic was deleted
            return False
        # the fetch behind this event carried the true end; a query for it can be wrong (embedded broker)
        high, offset = self._watermark(place), cast(int, event.offset())
        if event.error() is not None:
            part.end(offset, high)
            self._ended.add(place[0])  # it may be the end of another topic of that name
            return False
        if self._window is not None and not self._inside(self._window.start(place), part, offset):
            return False
        part.message(offset, high, self._group is not None)
        return True

    @staticmethod
    def _inside(start: int, part: Partition, offset: int) -> bool:
        """Whether a message is in the window; one beyond its end finishes the partition."""
        if offset >= part.target:
            part.end(part.target, part.target)
            return False
        # on a loaded machine the first messages came from before the offset that the assignment named
        return offset >= start

    def _is_trouble(self, event: Message) -> bool:
        """Whether the event is neither a message nor the end of a partition; raises or logs its error."""
        error = event.error()
        if error is None or error.code() == KafkaError._PARTITION_EOF:
            return False
        code = error.code()
        if self._group is None and code == KafkaError.GROUP_AUTHORIZATION_FAILED:
            return True  # librdkafka also looks for the coordinator of a group that is not used
        if fatal(error) or code in REFUSED_RIGHT | REFUSED_USER:
            raise self.connection.refusal(error, right(error, event.topic() or "", self._group or ""))
        if code in NO_TOPIC and not self._parts and (event.topic() or "") in self._topics.names:
            if (event.topic() or "") not in self._identities.known:
                raise self._identities.refusal(event.topic() or "")
            self._identities.misses(event.topic() or "")
        elif code == KafkaError._MAX_POLL_EXCEEDED:
            log.warning(
                "group %s removed us: handling took longer than max.poll.interval.ms; rejoining; uncommitted messages "
                "will be delivered again. Raise max.poll.interval.ms if this happens often",
                self._group,
            )  # fmt: skip
        else:
            log.warning("Kafka at %s: %s", self.connection.hosts, self.connection.redact(error.str()))
        return True

    def _watch(self, answered: bool) -> None:
        if answered:
            self.connection.works()
        self.connection.check()
        if self.connection.away() and time.monotonic() - self._probed > PROBE_EVERY_S:
            self._probed = time.monotonic()
            try:
                self._consumer.list_topics(timeout=1.0)
                self.connection.works()
            except KafkaException:
                self.connection.check()

    def _check_joined(self) -> None:
        if time.monotonic() - self._began > ASSIGN_S:
            raise ServiceError(
                f"Kafka at {self.connection.hosts} gave us no partition of {', '.join(self._topics.topics)} within "
                f"{ASSIGN_S:.0f} s: another member of group {self._group} may be reading all of them"
            )


class AlertConsumer(BatchConsumer):
    """A `BatchConsumer` that never reads what skyheed writes; same arguments."""

    def __init__(
        self,
        options: Options,
        topics: Sequence[str] | Selection,
        group: str,
        start: str = "earliest",
        drain: bool = False,
        window: Window | None = None,
    ) -> None:
        super().__init__(options, selection(topics, Outputs().never), group, start, drain, window)
