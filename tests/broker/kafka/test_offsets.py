"""Offsets have gaps: control records, aborted and hanging transactions, compaction. And messages may have no time.

Ends, lag and drains are right all the same; partitions that appear later are read by everyone. On a real Kafka.
"""

import time
import uuid
from dataclasses import replace

import confluent_kafka as ck
import pytest
from confluent_kafka import TopicPartition, admin
from process_tools import until
from server_tools import HOME, NEEDS_APACHE
from stream_tools import settings_for

from skyheed.broker import health as check
from skyheed.broker.errors import PacketError, Reason, ServiceError
from skyheed.broker.kafka import deadletter, topics
from skyheed.broker.kafka.client import (
    BatchConsumer,
    Publisher,
    end_offsets,
    ensure_topics,
    group_lag,
    time_ms,
)
from skyheed.broker.kafka.lookup import Lookup
from skyheed.broker.kafka.partitions import UNKNOWN, Partition
from skyheed.broker.local import embedded

pytestmark = pytest.mark.kafka
apache_only = pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)


def options(server: embedded.Server, **more: str) -> dict[str, str]:
    return {"bootstrap.servers": server.address, "session.timeout.ms": "6000", **more}


def make_topic(server: embedded.Server, partitions: int = 1, **configuration: str) -> str:
    name = f"gaps-{uuid.uuid4().hex[:8]}"
    given = {k.replace("_", "."): v for k, v in configuration.items()}
    ensure_topics(options(server), {name: given}, partitions, 1)
    return name


def publish(server: embedded.Server, topic: str, *values: bytes | None, partition: int = 0, key: bytes = b"k") -> None:
    producer = ck.Producer({"bootstrap.servers": server.address})
    for value in values:
        producer.produce(topic, value, key, partition=partition)
    assert producer.flush(20) == 0


def begun(server: embedded.Server, topic: str, *values: bytes) -> ck.Producer:
    """A producer with an open transaction that holds `values`."""
    producer = ck.Producer(
        {"bootstrap.servers": server.address, "transactional.id": uuid.uuid4().hex, "transaction.timeout.ms": 600_000}
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value, partition=0)
    producer.flush(30)
    return producer


def read(consumer: BatchConsumer, limit_s: float = 40.0) -> list[bytes | None]:
    """Everything until the drain ends, each batch committed."""
    found: list[bytes | None] = []
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        batch = consumer.consume(50, 0.1)
        consumer.commit(batch)
        found += [m.value() for m in batch]
        if not batch and consumer.drained():
            return found
    raise AssertionError(f"not drained after {limit_s} s, {len(found)} messages: {consumer._parts}")


# --- what is known of one partition --------------------------------------------------------------------------------


def test_a_partition_is_committed_to_its_end_once_all_is_settled() -> None:
    part = Partition()
    for offset in (3, 4, 6):
        part.message(offset, 8, remember=True)
    part.end(8, 8)  # an aborted record at 5, a control record at 7
    assert (part.to_commit(), part.lag(8)) == (None, 0)
    part.settle([3, 4])
    assert part.to_commit() == 5
    part.settle([6])
    assert part.to_commit() == 8
    part.committed = 8
    assert part.to_commit() is None
    part.message(9, 10, remember=True)
    assert part.to_commit() == 7 or part.to_commit() is None  # never beyond what is settled
    part.settle([9])
    assert part.to_commit() == 10


def test_what_was_not_handed_out_is_never_settled() -> None:
    part = Partition()
    part.message(100, 200, remember=True)
    part.settle([300])  # of an earlier assignment, or of a topic that was deleted
    assert part.to_commit() is None
    part.message(90, 200, remember=True)  # it went away and came back
    part.settle([100])
    assert part.to_commit() is None
    part.settle([90])
    assert part.to_commit() == 91


def test_a_drain_is_blocked_only_by_what_was_there_at_its_beginning() -> None:
    part = Partition()
    part.message(0, 5, remember=False)
    part.end(1, 5)
    assert not part.finished
    assert part.unreadable == 4
    assert part.lag(5) == 0
    part.end(5, 9)  # the transaction ended, another one has begun
    assert part.finished
    assert part.blocked_s() == 0
    assert Partition().lag(5) is None
    assert Partition(position=3).lag(UNKNOWN) is None


# --- transactions --------------------------------------------------------------------------------------------------


@apache_only
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_the_group_stands_at_the_end_behind_control_records(kafka: embedded.Server, protocol: str) -> None:
    topic, group = make_topic(kafka), uuid.uuid4().hex
    begun(kafka, topic, b"1", b"2").commit_transaction(30)
    begun(kafka, topic, b"x").abort_transaction(30)
    settings = options(kafka, **{"group.protocol": protocol})
    with BatchConsumer(settings, [topic], group, drain=True) as consumer:
        assert read(consumer) == [b"1", b"2"]
        assert consumer.lag() == {f"{topic}/0": 0}
    assert end_offsets(settings, [topic]) == {(topic, 0): 5}
    assert group_lag(settings, group, [topic]) == {(topic, 0): 0}


@apache_only
def test_a_transaction_that_hangs_ends_a_drain_with_a_sentence_and_a_living_one_is_waited_for(
    kafka: embedded.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = make_topic(kafka)
    publish(kafka, topic, b"before")
    hangs = begun(kafka, topic, b"inside")
    publish(kafka, topic, b"after")
    monkeypatch.setattr("skyheed.broker.kafka.partitions.TRANSACTION_S", 1.0)
    for group in (None, uuid.uuid4().hex):
        with (
            BatchConsumer(options(kafka), [topic], group, drain=True) as consumer,
            pytest.raises(ServiceError, match=rf"{topic} partition 0 .* began at offset 1 .*2 offsets"),
        ):
            read(consumer)
    with BatchConsumer(options(kafka, **{"isolation.level": "read_uncommitted"}), [topic], None, drain=True) as all_:
        assert read(all_) == [b"before", b"inside", b"after"]
    monkeypatch.setattr("skyheed.broker.kafka.partitions.TRANSACTION_S", 30.0)
    with BatchConsumer(options(kafka), [topic], None, drain=True) as consumer:
        until(lambda: consumer.consume(5, 0.1) or (consumer._parts and consumer._parts[topic, 0].unreadable))
        assert not consumer.drained()
        hangs.commit_transaction(30)
        assert read(consumer)[-2:] == [b"inside", b"after"]


@apache_only
def test_dead_letters_behind_a_hanging_transaction_are_not_passed_over_in_silence(
    kafka: embedded.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = make_topic(kafka)
    hangs = begun(kafka, topic, b"inside")
    publish(kafka, topic, b"after")
    monkeypatch.setattr("skyheed.broker.kafka.partitions.TRANSACTION_S", 1.0)
    with pytest.raises(ServiceError, match="a transaction that began at offset 0"):
        list(deadletter.read(options(kafka), topic))
    hangs.abort_transaction(30)
    assert [letter.value for letter in deadletter.read(options(kafka), topic)] == [b"after"]


# --- check ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "STANDS_S", 1.0)


def lag_line(server: embedded.Server, topic: str, group: str) -> check.Line:
    settings = settings_for(server.address, "redis://127.0.0.1:1", "sdss", topic, **{"ingest.group": group})
    (line,) = check.check(settings, ["lag"])
    return line


def commit(server: embedded.Server, group: str, topic: str, offset: int) -> None:
    """As any other client does: behind the last message, before the control records."""
    client = ck.Consumer({"bootstrap.servers": server.address, "group.id": group})
    client.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)
    client.close()


@apache_only
@pytest.mark.usefixtures("quick_check")
def test_control_records_are_no_backlog(kafka: embedded.Server) -> None:
    topic, group = make_topic(kafka), uuid.uuid4().hex
    begun(kafka, topic, b"1", b"2").commit_transaction(30)
    commit(kafka, group, topic, 2)
    assert group_lag(options(kafka), group, [topic]) == {(topic, 0): 1}
    assert topics.unread(options(kafka), group, [(topic, 0)]) == set()
    assert lag_line(kafka, topic, group) == check.Line("lag", True, "0 alerts not yet read in 1 partitions")
    publish(kafka, topic, b"3")
    line = lag_line(kafka, topic, group)
    assert not line.ok
    assert f"group {group} is not advancing" in line.sentence


@apache_only
@pytest.mark.usefixtures("quick_check")
def test_check_names_a_transaction_that_stands_open(kafka: embedded.Server) -> None:
    topic, group = make_topic(kafka), uuid.uuid4().hex
    publish(kafka, topic, b"1")
    hangs = begun(kafka, topic, b"2")
    publish(kafka, topic, b"3")
    commit(kafka, group, topic, 1)
    line = lag_line(kafka, topic, group)
    assert not line.ok
    assert line.sentence.startswith(
        "0 alerts not yet read in 1 partitions, and 2 offsets cannot be read: a transaction"
    )
    assert f"{topic} partition 0 has been open since offset 1" in line.sentence
    hangs.abort_transaction(30)
    commit(kafka, group, topic, 4)
    assert lag_line(kafka, topic, group).ok


@apache_only
def test_what_retention_removed_is_no_backlog(kafka: embedded.Server) -> None:
    topic, group = make_topic(kafka), uuid.uuid4().hex
    publish(kafka, topic, *[b"%d" % n for n in range(10)])
    commit(kafka, group, topic, 2)
    client = admin.AdminClient({"bootstrap.servers": kafka.address})
    client.delete_records([TopicPartition(topic, 0, 7)])[TopicPartition(topic, 0)].result()
    assert group_lag(options(kafka), group, [topic]) == {(topic, 0): 3}
    with BatchConsumer(options(kafka), [topic], group, drain=True) as consumer:
        assert read(consumer) == [b"7", b"8", b"9"]
    assert group_lag(options(kafka), group, [topic]) == {(topic, 0): 0}


# --- compacted topics ----------------------------------------------------------------------------------------------


@apache_only
def test_a_drain_of_a_compacted_topic_ends(kafka: embedded.Server) -> None:
    topic = make_topic(
        kafka, cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.0", max_compaction_lag_ms="100",
        delete_retention_ms="0",
    )  # fmt: skip
    publish(kafka, topic, *[b"%d" % n for n in range(20)], None)
    time.sleep(0.3)
    publish(kafka, topic, b"last", key=b"other")  # a new segment: the one before it may be compacted
    with BatchConsumer(options(kafka), [topic], uuid.uuid4().hex, drain=True) as consumer:
        assert read(consumer)[-1] == b"last"  # whatever the broker has compacted by now
    assert [letter.value for letter in deadletter.read(options(kafka), topic)][-1] == b"last"  # a null is no letter


def test_a_letter_without_a_value_is_one_and_somebody_elses_null_is_none(kafka: embedded.Server) -> None:
    topic = make_topic(kafka)
    with Publisher(options(kafka)) as publisher:
        packet = deadletter.Rejected(
            "t@id/0", "t", 0, 7, None, None, (), -1, Reason.EMPTY, "the message has no value", "sdss", 1_700_000_000_000
        )
        deadletter.DeadLetters(publisher, topic).set_aside([packet])
        publisher.publish_all([(topic, b"t@id/0/7", None, None), (topic, b"k", None, None)])
    (letter,) = deadletter.read(options(kafka), topic)
    assert (letter.reason, letter.value, letter.source_offset, letter.kafka_ms) == ("empty_message", None, 7, -1)
    assert letter.line().startswith("2023-11-14T22:13:20")
    assert replace(letter, time_ms=-1).line().startswith("no time known  ")


# --- partitions that appear later ----------------------------------------------------------------------------------


def grow(server: embedded.Server, topic: str, partitions: int) -> None:
    client = admin.AdminClient({"bootstrap.servers": server.address})
    client.create_partitions([admin.NewPartitions(topic, partitions)])[topic].result()


@apache_only
@pytest.mark.parametrize("start", [pytest.param("earliest", marks=pytest.mark.long), "latest"])
@pytest.mark.parametrize("protocol", [None, "classic", "eager", "consumer"])
def test_partitions_that_appear_later_are_read_from_their_beginning(
    kafka: embedded.Server, monkeypatch: pytest.MonkeyPatch, start: str, protocol: str | None
) -> None:
    monkeypatch.setattr("skyheed.broker.kafka.assignment.NEW_PARTITIONS_S", 0.5)
    topic = make_topic(kafka)
    settings = options(kafka, **{"topic.metadata.refresh.interval.ms": "1000", "heartbeat.interval.ms": "300"})
    if protocol == "eager":
        settings["partition.assignment.strategy"] = "roundrobin"
    elif protocol:
        settings["group.protocol"] = protocol
    found: list[bytes | None] = []
    with BatchConsumer(settings, [topic], protocol and uuid.uuid4().hex, start=start) as consumer:

        def take() -> bool:
            batch = consumer.consume(50, 0.1)
            consumer.commit(batch)
            found.extend(m.value() for m in batch)
            return bool(consumer.lag())

        until(take)
        grow(kafka, topic, 3)
        publish(kafka, topic, b"1", partition=1)
        publish(kafka, topic, b"2", partition=2)
        until(lambda: take() and set(found) == {b"1", b"2"})
        assert consumer.lag().keys() == {f"{topic}/{n}" for n in range(3)}
        publish(kafka, topic, b"0")
        until(lambda: take() and set(found) == {b"0", b"1", b"2"})
    assert len(found) == 3


# --- messages without a time ---------------------------------------------------------------------------------------


@apache_only
def test_a_message_without_a_time_gets_that_of_its_arrival(kafka: embedded.Server) -> None:
    topic = make_topic(kafka)
    producer = ck.Producer({"bootstrap.servers": kafka.address})
    producer.produce(topic, b"timeless", timestamp=-1)
    producer.produce(topic, b"timed", timestamp=1_700_000_000_000)
    assert producer.flush(20) == 0
    with BatchConsumer(options(kafka), [topic], None, drain=True) as consumer:
        messages: list[ck.Message] = []
        until(lambda: messages.extend(consumer.consume(5, 0.1)) or len(messages) == 2)
    assert messages[0].timestamp()[1] == -1
    assert [time_ms(m, 7) for m in messages] == [7, 1_700_000_000_000]
    rejected = deadletter.Rejected.of(messages[0], "t/0", PacketError(Reason.EMPTY, "nothing"), "sdss", 9)
    assert rejected.kafka_ms == -1  # not known: the letter says nothing of it
    assert ("skyheed-kafka-time", b"") in deadletter._headers(rejected)


@apache_only
def test_a_look_up_by_time_is_refused_where_messages_have_none(kafka: embedded.Server) -> None:
    """They would be taken for missing."""
    topic = make_topic(kafka, 2)
    producer = ck.Producer({"bootstrap.servers": kafka.address})
    producer.produce(topic, b"timed", partition=0, timestamp=1_700_000_000_000)
    producer.produce(topic, b"timeless", partition=1, timestamp=-1)
    assert producer.flush(20) == 0
    past = Lookup(options(kafka), [topic])
    with pytest.raises(ServiceError, match=f"messages of topic {topic} .* carry no time by which to find them"):
        list(past.between(1_600_000_000_000, 1_800_000_000_000))
    past.close()
    producer.produce(topic, b"timed", partition=1, timestamp=1_700_000_000_000)  # the producer was mended
    assert producer.flush(20) == 0
    past = Lookup(options(kafka), [topic])
    assert [m.value() for m in past.between(1_600_000_000_000, 1_800_000_000_000)] == [b"timed", b"timed"]
    past.close()
