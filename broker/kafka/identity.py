"""Which topic a name stands for: its id, whether it exists, since when it does not, and what positions belong to it.

A topic that is deleted and made again keeps its name and nothing else. Whatever is remembered under a topic's name is
checked against what this module knows.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from skyheed.broker.errors import ServiceError, ServiceUnavailable
from skyheed.broker.kafka.connection import NO_TOPIC, REFUSED_RIGHT, Connection, Options, Place, admin, right

log = logging.getLogger("skyheed.kafka")
ID, SINCE = "topic-id", "since"
REQUEST_S = 10.0


NO_IDS = REFUSED_RIGHT | {
    KafkaError._UNSUPPORTED_FEATURE,
    KafkaError.UNSUPPORTED_VERSION,
    KafkaError.INVALID_REQUEST,
}


class TopicIds:
    """Requests topic ids over one connection. Ids are never reused: a recreated topic has a new one."""

    def __init__(self, options: Options) -> None:
        self.connection = Connection(options)
        self._options = options
        self._client: AdminClient | None = None

    def ask(self, topics: Iterable[str]) -> dict[str, str | None]:
        """Kafka's id of each topic (URL-safe base64); empty if the broker has no ids, None if the topic does not exist.

        Raises:
            ServiceError: the broker refuses us.
            ServiceUnavailable: the broker does not answer.
        """
        if not (asked := sorted(topics)):
            return {}
        if self._client is None:
            self._client = admin(self._options, self.connection)
        futures = self._client.describe_topics(TopicCollection(asked), request_timeout=REQUEST_S)
        return {topic: self._id(self._client, topic, future) for topic, future in futures.items()}

    def _id(self, client: AdminClient, topic: str, future: "Future[Any]") -> str | None:
        try:
            found = str(wait_for(client, self.connection, future).topic_id)
        except KafkaException as error:
            code = error.args[0].code()
            if code in NO_TOPIC:
                return None
            if code not in NO_IDS:
                raise self.connection.unavailable(f"the id of topic {topic} is unknown", error.args[0].str()) from None
            return ""  # an old broker, or no right to describe: use the name
        # Uuid's text is plain base64; all zeros is "none"
        return "" if not found.strip("A") else found.replace("/", "_").replace("+", "-")


def id_of(options: Options, topic: str) -> str:
    """The id of a topic that was just seen or created; empty if the broker has none.

    Raises:
        ServiceError: the broker refuses us.
        ServiceUnavailable: it does not answer, or does not know the topic (yet).
    """
    asked = TopicIds(options)
    if (found := asked.ask([topic])[topic]) is None:
        raise asked.connection.unavailable(f"topic {topic} is not there", "it was deleted, or is being created")
    return found


def wait_for(client: AdminClient, connection: Connection, future: "Future[Any]") -> Any:
    """The result of an admin request; a refused user ends the wait at once."""
    while True:
        try:
            return future.result(0.05)
        except TimeoutError:
            client.poll(0)
            connection.check()


class Identities:
    """The topics of one reader.

    Attributes:
        known: the id of each topic as last seen; empty where the broker has none.
        away: topics that do not exist, and since when (monotonic).
    """

    def __init__(self, options: Options, connection: Connection, known: Mapping[str, str]) -> None:
        self._asks, self._connection = TopicIds(options), connection
        self.known = dict(known)
        self.away: dict[str, float] = {}

    def ask(self, topics: Iterable[str]) -> dict[str, str]:
        """The ids of those that exist.

        Raises:
            ServiceError, ServiceUnavailable: as `TopicIds.ask`.
        """
        found = self._asks.ask(topics)
        for topic, id_ in found.items():
            if id_ is None:
                self.misses(topic)
            else:
                self.away.pop(topic, None)
        return {topic: id_ for topic, id_ in found.items() if id_ is not None}

    def ask_now(self, topics: Iterable[str]) -> dict[str, str]:
        """As `ask`, without those that the broker does not return now; they are requested again."""
        try:
            return self.ask(topics)
        except (ServiceError, ServiceUnavailable):
            return {}

    def named_so_far(self, topic: str) -> str:
        """The id of a topic that has just been deleted: messages already fetched still belong to it.

        Raises:
            ServiceError: it was never known.
        """
        if topic not in self.known:
            raise self.refusal(topic)
        return self.known[topic]

    def misses(self, topic: str) -> None:
        """The topic does not exist: it may have been deleted to be made again."""
        if topic not in self.away:
            self.away[topic] = time.monotonic()
            log.warning("waiting: %s", self.refusal(topic))

    def refusal(self, topic: str) -> ServiceError:
        """What to say about a topic that is away."""
        error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
        if topic in self.known:
            return ServiceError(
                f"Kafka at {self._connection.hosts} has no topic {topic} any more: it was deleted while it was read; "
                "create it again, or leave it out"
            )
        return self._connection.refusal(error, right(error, topic))

    def learn(self, ids: Mapping[str, str]) -> Iterator[str]:
        """Remember these ids; yields the topics that were made again."""
        for topic, id_ in ids.items():
            before, self.known[topic] = self.known.get(topic, id_), id_
            if before and id_ and before != id_:
                log.warning("topic %s was deleted and recreated: reading it from its beginning", topic)
                yield topic

    def renamed(self, ids: Mapping[str, str]) -> set[str]:
        """Topics whose ids differ from what was last seen."""
        return {topic for topic, id_ in ids.items() if id_ and self.known.get(topic, id_) not in ("", id_)}


def commit_note(topic_id: str | None, since: int | None = None) -> str | None:
    """Metadata committed with an offset, so that it is not mistaken for one of an earlier topic, or another window.

    Args:
        since: the offset from which everything up to the committed one was read, if only a window is.
    """
    words = [f"{ID}={topic_id}"] if topic_id else []
    words += [f"{SINCE}={since}"] if since is not None else []
    return " ".join(words) or None


def is_of_another(at: TopicPartition, topic_id: str | None) -> bool:
    """Whether an offset was committed for an earlier topic of this name. One without our metadata is trusted: it comes
    from an earlier release or an operator, or the broker keeps no metadata."""
    return bool(topic_id) and at.offset >= 0 and _noted(at).get(ID, topic_id) != topic_id


def _noted(at: TopicPartition) -> dict[str, str]:
    words = (word.partition("=") for word in (at.metadata or "").split())
    return {name: value for name, _, value in words}


@dataclass(frozen=True)
class Window:
    """Part of the topics: a range of offsets of every partition.

    Attributes:
        ranges: the first offset, and the end.
        ids: of the topics when that was looked up.
    """

    ranges: Mapping[Place, tuple[int, int]]
    ids: Mapping[str, str]

    def start(self, place: Place) -> int:
        """The first offset of a partition."""
        return self.ranges.get(place, (0, 0))[0]

    def since(self, at: TopicPartition, topic_id: str | None) -> tuple[int, int]:
        """Where to go on reading, and the offset from which everything before that was read.

        Args:
            at: what the group has committed. It counts only if everything from the window's first offset up to it was
                read: the group may stand where another window left it.
            topic_id: None while unknown.
        """
        start = self.start((at.topic, at.partition))
        noted = _noted(at).get(SINCE, "")
        read = noted.isdigit() and at.offset >= 0 and topic_id is not None and not is_of_another(at, topic_id)
        return (at.offset, int(noted)) if read and int(noted) <= start <= at.offset else (start, start)
