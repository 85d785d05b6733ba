"""What the other members of a consumer group have read; a drain ends only when theirs is read, too. Independent of
messages."""

import time

import confluent_kafka as ck
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from skyheed.broker.errors import ServiceError
from skyheed.broker.kafka.connection import REFUSED_RIGHT, REFUSED_USER, Place, fatal
from skyheed.broker.kafka.identity import Identities, Window, is_of_another
from skyheed.broker.kafka.selection import Selection

ASK_S = 1.0
ANSWER_S = 5.0


class OtherMembers:
    """Checks whether the partitions of a group's topics that we do not hold were read to their end.

    Args:
        topics: those the group reads.
        window: what of them, if not everything.
    """

    def __init__(
        self, client: ck.Consumer, topics: Selection, group: str, identities: Identities, window: Window | None = None
    ) -> None:
        self._client, self._topics, self._group = client, topics, group
        self._identities, self._window = identities, window
        # the end of each partition when first checked, by topic id as well
        self._ends: dict[tuple[Place, str | None], int] = {}
        self._asked = 0.0
        self._left = -1
        self._since = time.monotonic()

    def finished(self, ours: set[Place], patience_s: float) -> bool:
        """Whether everything that others hold was read to its end; queries the broker at most every ASK_S.

        Raises:
            ServiceError: they have made no progress for `patience_s`.
            KafkaException: the broker refuses us.
        """
        now = time.monotonic()
        if now - self._asked < ASK_S:
            return False
        self._asked = now
        try:
            left = self._unread(ours)
        except KafkaException as error:
            if fatal(error.args[0]) or error.args[0].code() in REFUSED_RIGHT | REFUSED_USER:
                raise
            return False  # no answer for now
        if left != self._left:
            self._left, self._since = left, now
        if left and now - self._since > patience_s:
            raise ServiceError(
                f"another member of group {self._group} has {left} messages of {', '.join(self._topics.topics)} still "
                f"to read, and has made no progress for {patience_s:.0f} s: end it, or look at its log"
            )
        return not left

    def _unread(self, ours: set[Place]) -> int:
        """Offsets of the others that existed at the first check and are not committed.

        Raises:
            KafkaException: no answer, or a topic does not exist.
        """
        others = sorted(self._places() - ours)
        ids = self._identities.ask_now({topic for topic, _ in others})
        found = self._client.committed([TopicPartition(*p) for p in others], timeout=ANSWER_S) if others else ()
        return sum(self._left_of(at, ids.get(at.topic)) for at in found)

    def _left_of(self, at: TopicPartition, topic_id: str | None) -> int:
        place = at.topic, at.partition
        if self._window is not None:
            return max(0, self._window.ranges.get(place, (0, 0))[1] - self._window.since(at, topic_id)[0])
        low, high = self._client.get_watermark_offsets(TopicPartition(*place), ANSWER_S)
        end = self._ends.setdefault((place, topic_id), high)
        return max(0, end - (low if is_of_another(at, topic_id) else max(low, at.offset)))

    def _places(self) -> set[Place]:
        found = self._client.list_topics(timeout=ANSWER_S).topics
        chosen = self._topics.among([name for name, topic in found.items() if topic.error is None])
        if not chosen or not set(chosen) <= set(found):
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
        return {(name, number) for name in chosen for number in found[name].partitions}
