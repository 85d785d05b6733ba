"""A topic that is deleted and made again under its readers: what is new is read, whatever was read of the old one."""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition, admin
from process_tools import until
from server_tools import HOME, NEEDS_APACHE
from stream_tools import sdss_alert, settings_for
from test_kafka import numbered, options, publish
from test_subscribe import record

from skyheed.broker import app as daemon
from skyheed.broker import metrics
from skyheed.broker.ingest import Ingest
from skyheed.broker.kafka import client as clients
from skyheed.broker.kafka import deadletter
from skyheed.broker.kafka.client import (
    AlertConsumer,
    BatchConsumer,
    Publisher,
    group_lag,
    topic_ids,
)
from skyheed.broker.kafka.connection import Connection
from skyheed.broker.kafka.connection import consumer as plain_consumer
from skyheed.broker.local import embedded
from skyheed.broker.results.formats import encode
from skyheed.broker.settings import Settings
from skyheed.broker.subscribe import Subscriber

pytestmark = [pytest.mark.kafka, pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)]
OLD = 20


def make(server: embedded.Server, topic: str, partitions: int = 1) -> str:
    client = admin.AdminClient({"bootstrap.servers": server.address})
    deadline = time.monotonic() + 20
    while True:
        try:
            client.create_topics([admin.NewTopic(topic, partitions, 1)])[topic].result(10)  # type: ignore[attr-defined]
        except KafkaException as error:  # the old one is still going
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return topic


def remake(server: embedded.Server, topic: str, partitions: int = 1) -> None:
    client = admin.AdminClient({"bootstrap.servers": server.address})
    client.delete_topics([topic])[topic].result(10)
    make(server, topic, partitions)


def send(server: embedded.Server, topic: str, payloads: list[bytes]) -> None:
    with Publisher(options(server)) as publisher:
        publisher.publish_all([(topic, None, payload, None) for payload in payloads])


@contextmanager
def ingesting(settings: Settings) -> Iterator[Ingest]:
    """The daemon's loop in a thread of this process."""
    daemon.prepare_topics(settings, threading.Event())
    stop = threading.Event()
    with (
        clients.Publisher(settings.kafka) as publisher,
        AlertConsumer(settings.input_options, daemon.alert_topics(settings), settings.ingest.group) as consumer,
    ):
        loop = Ingest(daemon.make_intake(settings, publisher), consumer, metrics.IngestMetrics("sdss"), 100, 0.1)
        thread = threading.Thread(target=loop.run, args=(stop,))
        thread.start()
        try:
            yield loop
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()


@pytest.mark.parametrize("new", [OLD - 7, OLD, OLD + 19])
def test_every_alert_of_a_topic_made_again_is_stored_in_books_of_its_own(
    kafka: embedded.Server, valkey: embedded.Server, new: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skyheed.broker.kafka.client.IDENTITY_S", 1.0)
    topic = make(kafka, f"remade-{uuid.uuid4().hex[:8]}")
    settings = settings_for(kafka.address, valkey.url, "sdss", topic)
    store, _, ledger = daemon.connect_store(settings)
    send(kafka, topic, [sdss_alert(f"old{n}", 1) for n in range(OLD)])
    with ingesting(settings):
        until(lambda: ledger.books().summary()["stored"] == OLD)
        before = topic_ids(settings.kafka, {topic})[topic]
        remake(kafka, topic)
        send(kafka, topic, [sdss_alert(f"new{n}", 1) for n in range(new)])
        until(lambda: ledger.books().summary()["stored"] == OLD + new, 60)
        send(kafka, topic, [sdss_alert(f"late{n}", 1) for n in range(5)])
        until(lambda: ledger.books().summary()["stored"] == OLD + new + 5, 60)
        until(lambda: group_lag(settings.kafka, settings.ingest.group, [topic]) == {(topic, 0): 0})
    rows = {p.partition: (p.consumed, p.stored, p.balanced) for p in ledger.books().partitions}
    after = topic_ids(settings.kafka, {topic})[topic]
    assert rows == {f"{topic}@{before}/0": (OLD, OLD, True), f"{topic}@{after}/0": (new + 5, new + 5, True)}
    names = [f"new{n}" for n in range(new)] + [f"late{n}" for n in range(5)]
    assert all(store.revision(name) for name in names)


def committed(server: embedded.Server, topic: str, group: str) -> TopicPartition:
    client = plain_consumer(options(server), group, Connection(options(server)))
    try:
        return client.committed([TopicPartition(topic, 0)], 10)[0]
    finally:
        client.close()


def drain(server: embedded.Server, topic: str, group: str | None, start: str = "earliest") -> list[bytes]:
    found: list[bytes] = []
    with BatchConsumer(options(server), [topic], group, start=start, drain=True) as consumer:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            messages = consumer.consume(100, 0.2)
            consumer.commit(messages)
            found += [m.value() or b"" for m in messages]
            if not messages and consumer.drained():
                return found
    raise AssertionError("not drained")


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_position_of_the_old_topic_is_not_used_after_a_restart(
    kafka: embedded.Server, protocol: str, start: str
) -> None:
    """A commit that was under way when the topic was made again leaves the old position with the new topic."""
    topic, group = make(kafka, f"remade-{uuid.uuid4().hex[:8]}"), uuid.uuid4().hex
    settings = options(kafka, **{"group.protocol": protocol})
    publish(kafka, numbered(topic, OLD))
    assert len(drain(kafka, topic, group)) == OLD
    note = committed(kafka, topic, group).metadata
    assert note is not None
    assert topic_ids(settings, {topic})[topic] in note
    remake(kafka, topic)
    client = plain_consumer(settings, group, Connection(settings))
    until(lambda: not client.list_topics(topic, timeout=5).topics[topic].error)
    client.commit(offsets=[TopicPartition(topic, 0, OLD, note)], asynchronous=False)
    client.close()
    publish(kafka, numbered(topic, OLD + 3, 100))
    assert group_lag(settings, group, [topic]) == {(topic, 0): OLD + 3}
    assert len(drain(kafka, topic, group, start)) == OLD + 3
    assert group_lag(settings, group, [topic]) == {(topic, 0): 0}


def test_an_operator_may_set_a_position(kafka: embedded.Server) -> None:
    topic, group = make(kafka, f"remade-{uuid.uuid4().hex[:8]}"), uuid.uuid4().hex
    publish(kafka, numbered(topic, OLD))
    client = plain_consumer(options(kafka), group, Connection(options(kafka)))
    client.commit(offsets=[TopicPartition(topic, 0, OLD - 2)], asynchronous=False)
    client.close()
    assert len(drain(kafka, topic, group)) == 2


def test_a_reader_without_a_group_reads_the_new_topic(kafka: embedded.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyheed.broker.kafka.client.IDENTITY_S", 1.0)
    topic = make(kafka, f"remade-{uuid.uuid4().hex[:8]}")
    publish(kafka, numbered(topic, OLD))
    found: list[bytes] = []
    with BatchConsumer(options(kafka), [topic], None) as consumer:

        def have(count: int) -> bool:
            found.extend(m.value() or b"" for m in consumer.consume(100, 0.2))
            return len(found) == count

        until(lambda: have(OLD))
        remake(kafka, topic)
        publish(kafka, numbered(topic, OLD + 5, 100))
        until(lambda: have(2 * OLD + 5), 60)
    assert len(set(found)) == 2 * OLD + 5


def test_a_subscriber_hands_out_all_that_the_new_topic_holds(
    kafka: embedded.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new topic brings answers that the old one had, too, and one with a lower revision."""
    monkeypatch.setattr("skyheed.broker.kafka.client.IDENTITY_S", 1.0)
    topic, group = make(kafka, f"remade-{uuid.uuid4().hex[:8]}"), uuid.uuid4().hex
    old = [record(n, 5) for n in range(4)]
    new = [record(n, 5) for n in range(4)] + [record(n, 3) for n in range(10, 13)]
    old += [record(n, 9) for n in range(10, 13)]
    send(kafka, topic, [encode(r) for r in old])
    with Subscriber(kafka.address, topic=topic, group=group, options=options(kafka), timeout=60) as stream:
        first = [next(stream) for _ in old]
        remake(kafka, topic)
        send(kafka, topic, [encode(r) for r in new])
        second = [next(stream) for _ in new]
    assert {r.object_id for r in first} == {r.object_id for r in old}
    assert sorted((r.object_id, r.revision) for r in second) == sorted((r.object_id, r.revision) for r in new)


def test_marks_of_the_old_dead_letter_topic_pass_over_no_letter_of_the_new_one(kafka: embedded.Server) -> None:
    topic = make(kafka, f"remade-{uuid.uuid4().hex[:8]}")
    settings = options(kafka)
    send(kafka, topic, [b"old"])
    letters = deadletter.read(settings, topic)
    before = next(letters).place
    letters.close()  # type: ignore[attr-defined]
    remake(kafka, topic)
    send(kafka, topic, [b"new"])
    (letter,) = deadletter.read(settings, topic)
    assert letter.value == b"new"
    assert letter.place == f"{topic}@{topic_ids(settings, {topic})[topic]}/0" != before
