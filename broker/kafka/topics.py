"""Queries to the broker about topics and groups: ids, missing topics, ends, lag. Independent of messages."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import confluent_kafka as ck
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from skyheed.broker.kafka.connection import (
    AWAY,
    FAR_FUTURE_MS,
    REFUSED_RIGHT,
    Connection,
    Options,
    Place,
    admin,
    consumer,
    right,
)
from skyheed.broker.kafka.identity import TopicIds, Window, is_of_another, wait_for
from skyheed.broker.kafka.messages import place_of, time_ms
from skyheed.broker.kafka.selection import Selection, selection

REQUEST_S = 10.0
LOOK_S = 0.5
LAST = 100  # messages of a partition that are looked at for the time of the last; some may be control records
COORDINATOR_MOVES = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}


def topic_ids(options: Options, topics: set[str]) -> dict[str, str]:
    """Kafka's id of each topic, as `TopicIds.ask`.

    Raises:
        ServiceError: a topic does not exist.
        ServiceUnavailable: the broker does not answer.
    """
    asked = TopicIds(options)
    ids = {}
    for topic, found in asked.ask(topics).items():
        if found is None:
            error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
            raise asked.connection.refusal(error, right(error, topic))
        ids[topic] = found
    return ids


def partition_key(topic: str, topic_id: str, partition: int) -> str:
    """`topic@topicid/partition`, so that a recreated topic is distinct; `topic/partition` without an id."""
    return f"{topic}@{topic_id}/{partition}" if topic_id else f"{topic}/{partition}"


def ensure_topics(
    options: Options, topics: Mapping[str, Mapping[str, str]], partitions: int = 4, replication: int = -1
) -> None:
    """Create the missing topics, each with its configuration; existing ones are left unchanged.

    Raises:
        ServiceError: a topic is missing and we may not or cannot create it.
        ServiceUnavailable: the broker does not answer.
    """
    connection = Connection(options)
    client = admin(options, connection)
    existing = _metadata(client, connection)
    missing = [
        NewTopic(name, partitions, replication, config=dict(config))
        for name, config in topics.items()
        if name not in existing
    ]
    if not missing:
        return
    for name, future in client.create_topics(missing, request_timeout=REQUEST_S).items():
        try:
            wait_for(client, connection, future)
        except KafkaException as error:
            _judge_creation(connection, name, error.args[0])


def end_offsets(options: Options, topics: Sequence[str] | Selection) -> dict[Place, int]:
    """The end offset of every partition as reported by the broker (the embedded one is wrong after large batches).

    Raises:
        ServiceError: a topic does not exist or may not be read.
        ServiceUnavailable: the broker does not answer.
    """
    connection = Connection(options)
    client = consumer(options, "skyheed-ends", connection)
    try:
        return {
            place: client.get_watermark_offsets(TopicPartition(*place), REQUEST_S)[1]
            for place in _places(client, connection, topics)
        }
    except KafkaException as error:
        connection.check()
        raise connection.unavailable("the end offsets are unknown", error.args[0].str()) from None
    finally:
        client.close()


def offsets_between(options: Options, topics: Sequence[str] | Selection, since_ms: int, until_ms: int) -> Window:
    """For every partition the offset of the first message of `since_ms` or later, and that of `until_ms`.

    Times are Kafka's, Unix ms. If no message is that late, it is the current end.

    Raises:
        ServiceError: a topic does not exist or may not be read, its messages have no time, or the broker cannot search
            by time.
        ServiceUnavailable: the broker does not answer.
    """
    connection = Connection(options)
    client = consumer(options, "skyheed-times", connection)
    try:
        places = list(_places(client, connection, topics))
        ids = TopicIds(options).ask({topic for topic, _ in places})  # first: if it is made again now, a reader will see
        if wrong := [place for place, offset in _first_since(client, places, FAR_FUTURE_MS).items() if offset >= 0]:
            raise connection.cannot_search(wrong[0][0])
        starts, ends = (_first_since(client, places, when) for when in (since_ms, until_ms))
        marks = {place: client.get_watermark_offsets(TopicPartition(*place), REQUEST_S) for place in places}
        late = [place for place in places if starts[place] < 0]
        if topic := timeless(client, {place: marks[place] for place in late}):
            raise connection.without_times(topic)
        first, last = ({p: at[p] if at[p] >= 0 else marks[p][1] for p in places} for at in (starts, ends))
        return Window(
            {place: (first[place], last[place]) for place in places},
            {topic: id_ for topic, id_ in ids.items() if id_ is not None},
        )
    except KafkaException as error:
        connection.check()
        raise connection.unavailable("the offsets of that time are unknown", error.args[0].str()) from None
    finally:
        client.close()


def _first_since(client: ck.Consumer, places: Sequence[Place], when_ms: int) -> dict[Place, int]:
    """The offset of the first message at that time or later; negative if there is none."""
    found = client.offsets_for_times([TopicPartition(*place, when_ms) for place in places], REQUEST_S)
    if failed := [at.error for at in found if at.error]:
        raise KafkaException(failed[0])
    return {(at.topic, at.partition): at.offset for at in found}


def timeless(client: ck.Consumer, marks: Mapping[Place, tuple[int, int]]) -> str:
    """A topic whose last message in a partition has no time; empty if none. A search by time passes over such.

    Args:
        marks: partition -> first offset, and end.
    """
    last: dict[Place, Message] = {}
    left = {place for place, (low, high) in marks.items() if low < high}
    client.assign([TopicPartition(*place, max(marks[place][0], marks[place][1] - LAST)) for place in sorted(left)])
    deadline = time.monotonic() + REQUEST_S
    while left and time.monotonic() < deadline:
        for event in client.consume(LAST, LOOK_S):
            if (error := event.error()) is None:
                last[place_of(event)] = event
            elif error.code() == KafkaError._PARTITION_EOF:
                left.discard(place_of(event))
    client.unassign()
    return next((topic for (topic, _), message in sorted(last.items()) if time_ms(message, -1) < 0), "")


def group_lag(options: Options, group: str, topics: Sequence[str] | Selection) -> dict[Place, int]:
    """Offsets that `group` has still to read in every partition; all of them if it never committed.

    They are counted to the last stable offset, unless `isolation.level` says otherwise. Some may hold nothing readable
    (control records, compacted records): `unread` checks.

    Raises:
        ServiceError: a topic does not exist, or topic or group may not be read.
        ServiceUnavailable: the broker does not answer.
    """
    connection = Connection(options)
    client = consumer(options, group, connection)
    try:
        places = list(_places(client, connection, topics))
        lags = {}
        for at in _own(options, committed(client, places)):
            low, high = client.get_watermark_offsets(TopicPartition(at.topic, at.partition), REQUEST_S)
            lags[at.topic, at.partition] = max(0, high - max(low, at.offset))
        return lags
    except KafkaException as error:
        connection.check()
        if error.args[0].code() in REFUSED_RIGHT:
            raise connection.refusal(error.args[0], f"to read group {group}") from None
        raise connection.unavailable("the lag is unknown", error.args[0].str()) from None
    finally:
        client.close()


def unread(options: Options, group: str, places: Iterable[Place]) -> set[Place]:
    """Those of `places` with at least one message after what `group` has committed; found by reading.

    A place that does not answer within REQUEST_S is included.

    Raises:
        ServiceError: topic or group may not be read.
        ServiceUnavailable: the broker does not answer.
    """
    connection = Connection(options)
    client = consumer(options, group, connection, **{"auto.offset.reset": "earliest", "queued.min.messages": 1})
    asked = set(places)
    found: set[Place] = set()
    try:
        client.assign(_own(options, committed(client, sorted(asked))))  # without a position: from the beginning
        deadline = time.monotonic() + REQUEST_S
        while asked and time.monotonic() < deadline:
            for event in client.consume(100, LOOK_S):
                place, error = cast(Place, (event.topic(), event.partition())), event.error()
                if error is None:
                    found.add(place)
                if error is None or error.code() == KafkaError._PARTITION_EOF:
                    asked.discard(place)
            connection.check()
        return found | asked
    except KafkaException as error:
        connection.check()
        raise connection.unavailable("what is left to read is unknown", error.args[0].str()) from None
    finally:
        client.close()


def committed(client: ck.Consumer, places: Iterable[Place]) -> list[TopicPartition]:
    """What the client's group has committed; retries while the coordinator is being found or moved.

    Raises:
        KafkaException: no answer, or another one than "not the coordinator".
    """
    asked = [TopicPartition(*place) for place in places]
    deadline = time.monotonic() + REQUEST_S
    while True:
        try:
            found: list[TopicPartition] = client.committed(asked, timeout=REQUEST_S)
        except KafkaException as error:
            if error.args[0].code() not in COORDINATOR_MOVES or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return found


def _own(options: Options, found: Sequence[TopicPartition]) -> list[TopicPartition]:
    """The committed offsets; those of an earlier topic of the same name are replaced by the beginning."""
    ids = TopicIds(options).ask({at.topic for at in found}) if found else {}
    return [
        TopicPartition(at.topic, at.partition, ck.OFFSET_BEGINNING if is_of_another(at, ids[at.topic]) else at.offset)
        for at in found
    ]


def ping(options: Options) -> str:
    """Ask the broker for its cluster id.

    Raises:
        ServiceError: it refuses us.
        ServiceUnavailable: it does not answer.
    """
    connection = Connection(options)
    client = admin(options, connection)
    _metadata(client, connection)
    return str(client.cluster_id(REQUEST_S))


def _places(client: ck.Consumer, connection: Connection, topics: Sequence[str] | Selection) -> Iterator[Place]:
    for topic in _named(client, connection, topics):
        found = _metadata(client, connection, topic)[topic]
        if found.error is not None:
            raise connection.refusal(found.error, right(found.error, topic))
        yield from ((topic, number) for number in sorted(found.partitions))


def _named(client: ck.Consumer, connection: Connection, topics: Sequence[str] | Selection) -> list[str]:
    """The names among `topics` and the existing topics that its patterns (they begin with ^) match."""
    chosen = selection(topics)
    return chosen.among(_metadata(client, connection) if chosen.patterns else ())


def _metadata(client: AdminClient | ck.Consumer, connection: Connection, topic: str | None = None) -> dict[str, Any]:
    """The broker's topics (or one of them); queried in short intervals, because only a poll reveals a refusal."""
    deadline = time.monotonic() + REQUEST_S
    while True:
        try:
            # the stub does not allow None, which requests all topics
            found = client.list_topics(timeout=1.0) if topic is None else client.list_topics(topic, timeout=1.0)
            return dict(found.topics)
        except KafkaException as error:
            client.poll(0)
            connection.check()
            if time.monotonic() > deadline:
                raise connection.unavailable("it does not list its topics", error.args[0].str()) from None


def _judge_creation(connection: Connection, name: str, error: KafkaError) -> None:
    if error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
        return
    if error.code() in AWAY:
        raise connection.unavailable(f"topic {name} was not created", error.str())
    if error.code() in REFUSED_RIGHT:
        raise connection.refusal(error, f"to create topic {name}, which is missing (or to see it)")
    raise connection.refusal(error, f"to create topic {name}")
