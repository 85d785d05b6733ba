"""A topic that is deleted and does not return, or returns with other partitions: readers end or say what they wait for,
and no end or position of the old topic passes for one of the new."""

import itertools
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

import pytest
from confluent_kafka import admin
from process_tools import until
from server_tools import HOME, NEEDS_APACHE
from test_kafka import numbered, options
from test_made_again import committed, make, remake, send
from test_offsets import begun
from test_subscribe import record

from skyheed.broker import health, prior
from skyheed.broker.errors import ServiceError, ServiceUnavailable
from skyheed.broker.kafka import deadletter
from skyheed.broker.kafka.client import BatchConsumer, Options, Outgoing, Publisher
from skyheed.broker.kafka.connection import Connection
from skyheed.broker.kafka.connection import consumer as plain_consumer
from skyheed.broker.kafka.group_progress import OtherMembers
from skyheed.broker.kafka.identity import Identities
from skyheed.broker.kafka.selection import Selection, selection
from skyheed.broker.local import embedded
from skyheed.broker.results.formats import encode
from skyheed.broker.settings import Settings
from skyheed.broker.subscribe import Subscriber

pytestmark = [pytest.mark.kafka, pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)]
QUICKLY = {"topic.metadata.refresh.interval.ms": "1000"}
SLOWLY = {**QUICKLY, "queued.min.messages": "1", "fetch.message.max.bytes": "100"}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyheed.broker.kafka.client.IDENTITY_S", 0.5)
    monkeypatch.setattr("skyheed.broker.kafka.assignment.REFUSED_AGAIN_S", 3.0)


def new(kafka: embedded.Server, partitions: int = 1) -> str:
    return make(kafka, f"goes-{uuid.uuid4().hex[:8]}", partitions)


def one_by_one(kafka: embedded.Server, messages: Sequence[Outgoing]) -> None:
    """In a batch each, so that `SLOWLY` does not fetch all at once."""
    with Publisher(options(kafka, **{"batch.num.messages": "1"})) as publisher:
        publisher.publish_all(messages)


def delete(kafka: embedded.Server, topic: str) -> None:
    client = admin.AdminClient({"bootstrap.servers": kafka.address})
    client.delete_topics([topic])[topic].result(10)


def in_steps(consumer: BatchConsumer, between: Callable[[], None], limit_s: float = 60.0) -> list[bytes]:
    """Drain, one message at a time; `between` is called after the first."""
    found: list[bytes] = []
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        messages = consumer.consume(1 if len(found) < 2 else 100, 0.2)
        consumer.commit(messages)
        found += [m.value() or b"" for m in messages]
        if messages and len(found) == 1:
            between()
        if not messages and consumer.drained():
            return found
    raise AssertionError(f"not drained, {len(found)} messages")


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("other", [True, False])
def test_a_drain_ends_when_its_topic_does_not_return(kafka: embedded.Server, group: bool, other: bool) -> None:
    """Also beside a topic that stays, whichever of the two it reads first."""
    topic, stays = new(kafka), new(kafka)
    one_by_one(kafka, numbered(topic, 20))
    one_by_one(kafka, numbered(stays, 20))
    topics = [topic, stays] if other else [topic]
    name = uuid.uuid4().hex if group else None
    settings = options(kafka, **SLOWLY)
    with (
        BatchConsumer(settings, topics, name, drain=True) as consumer,
        pytest.raises(ServiceError, match=f"has no topic {topic} any more: it was deleted while it was read"),
    ):
        in_steps(consumer, lambda: delete(kafka, topic))


def test_a_drain_of_a_group_ends_when_one_of_its_topics_does_not_exist(kafka: embedded.Server) -> None:
    topic, missing = new(kafka), f"missing-{uuid.uuid4().hex[:8]}"
    one_by_one(kafka, numbered(topic, 3))
    with (
        BatchConsumer(options(kafka, **QUICKLY), [topic, missing], uuid.uuid4().hex, drain=True) as consumer,
        pytest.raises(ServiceError, match=f"has no topic {missing}: check the name, or create it"),
    ):
        in_steps(consumer, lambda: None)


def test_a_drain_that_has_read_a_topic_may_lose_it(kafka: embedded.Server) -> None:
    gone, stays = new(kafka), new(kafka)
    one_by_one(kafka, numbered(stays, 30))
    with BatchConsumer(options(kafka, **SLOWLY), [gone, stays], None, drain=True) as consumer:

        def read_whole() -> bool:
            consumer.consume(1, 0.1)
            return (gone, 0) in consumer._parts and consumer._parts[gone, 0].finished and not consumer._ended

        until(read_whole, 30)
        assert not consumer.drained()
        delete(kafka, gone)
        until(lambda: not consumer.consume(1, 0.5) and consumer.drained(), 60)
        assert consumer.lag()[f"{stays}/0"] == 0


def test_letters_and_classifications_of_a_topic_that_goes(
    kafka: embedded.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `redrive`, `deadletter list`, the status page and `prior` read with."""
    topic = new(kafka)
    one_by_one(kafka, numbered(topic, 20))
    monkeypatch.setattr(deadletter, "READ_BATCH", 1)
    slowly = options(kafka, **SLOWLY)
    letters = deadletter.read(slowly, topic)
    next(letters)
    delete(kafka, topic)
    with pytest.raises(ServiceError, match=f"has no topic {topic} any more"):
        list(letters)
    topic = new(kafka)
    one_by_one(kafka, [(topic, None, encode(record(n)), None) for n in range(20)])
    monkeypatch.setattr("skyheed.broker.subscribe.BATCH", 1)

    def newest(records: Iterator[object], _last: int) -> dict[object, object]:
        next(records)
        delete(kafka, topic)
        return {n: found for n, found in enumerate(records)}

    monkeypatch.setattr(prior, "newest", newest)
    with pytest.raises(ServiceError, match=f"has no topic {topic} any more"):
        prior.report(Settings(survey="ztf", kafka=slowly), [topic], 10, None)


def test_a_reader_that_follows_says_what_it_waits_for_and_goes_on(
    kafka: embedded.Server, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new(kafka)
    send(kafka, topic, [encode(record(1))])
    with Subscriber(kafka.address, topic=topic, options=options(kafka), timeout=60) as stream:
        assert next(stream).revision == record(1).revision
        delete(kafka, topic)
        stream._timeout = 6.0
        with pytest.raises(ServiceUnavailable, match="no record"):
            next(stream)
        said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert sum(f"waiting: Kafka at {kafka.address} has no topic {topic} any more" in line for line in said) == 1
        make(kafka, topic)
        send(kafka, topic, [encode(record(2))])
        stream._timeout = 60.0
        assert next(stream).object_id == record(2).object_id


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3)])
def test_a_drain_of_a_topic_that_returns_with_other_partitions_reads_the_new_one(
    kafka: embedded.Server, group: bool, before: int, after: int
) -> None:
    topic = new(kafka, before)
    one_by_one(kafka, numbered(topic, 60))

    def again() -> None:
        remake(kafka, topic, after)
        one_by_one(kafka, numbered(topic, 40, 1000))

    settings = options(kafka, **SLOWLY)
    with BatchConsumer(settings, [topic], uuid.uuid4().hex if group else None, drain=True) as consumer:
        found = in_steps(consumer, again)
    assert {value for value in found if value >= b"001000"} == {f"{n:06}".encode() for n in range(1000, 1040)}


def test_the_end_of_a_new_topic_is_not_that_of_the_old_one(
    kafka: embedded.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new topic is empty when its end is seen, before its id is."""
    monkeypatch.setattr("skyheed.broker.kafka.client.IDENTITY_S", 3600.0)
    topic = new(kafka)
    one_by_one(kafka, numbered(topic, 20))
    settings = options(kafka, **SLOWLY)
    made: list[str] = []
    with BatchConsumer(settings, [topic], None, drain=True) as consumer:
        consumer.on_made_again = made.append
        in_steps(consumer, lambda: remake(kafka, topic))
    assert made == [topic]


def test_ends_of_other_members_are_kept_beside_the_id_of_their_topic(kafka: embedded.Server) -> None:
    """Its partition is held by another member, which reads the new topic only later."""
    topic, group, settings = new(kafka), uuid.uuid4().hex, options(kafka, **QUICKLY)
    client = plain_consumer(settings, group, Connection(settings))
    others = OtherMembers(client, selection([topic]), group, Identities(settings, Connection(settings), {}))

    def all_read() -> bool:
        others._asked = 0.0
        return others.finished(set(), 3600)

    until(all_read, 20)  # there is nothing
    remake(kafka, topic)
    one_by_one(kafka, numbered(topic, 20))
    until(lambda: not all_read(), 20)
    with BatchConsumer(settings, [topic], group) as reads:
        until(lambda: reads.commit(reads.consume(100, 0.2)) or all_read(), 60)
    assert committed(kafka, topic, group).offset == 20
    client.close()


def test_a_record_in_hand_settles_none_of_the_new_topic(
    kafka: embedded.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The subscriber handles a record while the topic is made again; it ends with the first of the new one in hand."""
    monkeypatch.setattr("skyheed.broker.subscribe.COMMIT_S", 3600.0)  # before the next records come, it is not the time
    topic, group = new(kafka), uuid.uuid4().hex
    send(kafka, topic, [encode(record(n)) for n in range(6)])
    stream = Subscriber(kafka.address, topic=topic, group=group, options=options(kafka, **QUICKLY), timeout=60)
    for _ in range(6):
        next(stream)

    def held(any_: bool) -> bool:
        stream.keep_alive()
        time.sleep(0.2)
        return bool(stream._consumer._parts) is any_

    delete(kafka, topic)
    until(lambda: held(False), 60)
    make(kafka, topic)
    send(kafka, topic, [encode(record(n)) for n in range(10, 20)])
    until(lambda: held(True), 60)
    assert next(stream).object_id == record(10).object_id
    stream.close()
    assert committed(kafka, topic, group).offset <= 0


@pytest.mark.parametrize("back_at_once", [True, False])
def test_check_goes_on_when_topics_change_between_its_questions(
    kafka: embedded.Server, monkeypatch: pytest.MonkeyPatch, back_at_once: bool
) -> None:
    """A topic that a pattern matches is made again after the first question about ends, or is away for the second one.

    An open transaction on another topic makes it ask further."""
    topic, other = new(kafka), new(kafka)
    one_by_one(kafka, numbered(topic, 5))
    begun(kafka, other, b"inside")
    count, ends = itertools.count(1), health.kafka.end_offsets

    def changing(settings: Options, topics: Selection) -> dict[tuple[str, int], int]:
        number = next(count)
        if number == 2 and back_at_once:
            remake(kafka, topic)
        elif number == 2:
            delete(kafka, topic)
        elif number == 3 and not back_at_once:
            make(kafka, topic)
        there = back_at_once or number != 2
        until(lambda: ((topic, 0) in ends(settings, topics)) is there, 30)
        return ends(settings, topics)

    monkeypatch.setattr(health.kafka, "end_offsets", changing)
    monkeypatch.setattr(health, "STANDS_S", 3.0)
    sentence = health._hidden(options(kafka), selection([f"^({topic}|{other})$"]))
    assert f", and 1 offsets cannot be read: a transaction on {other} partition 0" in sentence
