"""Readers that are slow, readers that nothing comes to, and what ends them."""

import os
import re
import subprocess
import sys
import time
import uuid

import confluent_kafka as ck
import pytest
from server_tools import HOME, NEEDS_APACHE
from test_subscribe import Topic, numbers, record

from skyheed.broker import subscribe
from skyheed.broker.errors import ConfigError, ServiceUnavailable
from skyheed.broker.kafka.client import group_lag
from skyheed.broker.local import embedded
from skyheed.broker.results.record import Classification
from skyheed.broker.subscribe import Subscriber

pytestmark = pytest.mark.kafka
apache_only = pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)
IMPATIENT = {"session.timeout.ms": "1500", "heartbeat.interval.ms": "300", "max.poll.interval.ms": "2000"}
INTERVAL_S = 2.0


@pytest.fixture
def topic(kafka: embedded.Server) -> Topic:
    return Topic(kafka)


def handled(topic: Topic, group: str, pauses: list[float]) -> list[Classification]:
    """What a drain of `group` hands out to a reader that takes this long for its first records."""
    found = []
    with Subscriber(topic.kafka, topic=topic.name, group=group, options=IMPATIENT, drain=True) as stream:
        for answer in stream:
            found.append(answer)
            time.sleep(pauses[len(found) - 1] if len(found) <= len(pauses) else 0)
    return found


@apache_only
@pytest.mark.parametrize("pauses", [[0.2] * 18, [0, 0, INTERVAL_S + 1.5]], ids=["many records", "one record"])
def test_a_reader_slower_than_the_poll_interval_ends_its_drain_and_keeps_its_position(
    topic: Topic, pauses: list[float]
) -> None:
    topic.publish(*[record(n) for n in range(20)])
    group = uuid.uuid4().hex
    assert sum(pauses) > INTERVAL_S
    assert numbers(handled(topic, group, pauses)) == list(range(20))
    assert handled(topic, group, []) == []
    assert set(group_lag({"bootstrap.servers": topic.kafka}, group, [topic.name]).values()) == {0}


@apache_only
def test_what_waited_in_a_partition_that_was_lost_is_left_to_its_new_owner(topic: Topic) -> None:
    topic.publish(*[record(n) for n in range(30)])
    with Subscriber(topic.kafka, topic=topic.name, group="leavers", options=IMPATIENT) as stream:
        next(stream)
        lost = {ck.TopicPartition(topic.name, m.partition()) for m in stream._waiting}
        assert lost
        stream._consumer._on_lost(stream._consumer._consumer, list(lost))
        assert not any(stream._consumer.holds(m) for m in stream._waiting)
        waiting = len(stream._waiting)
        assert [stream._next() for _ in range(waiting)] == [None] * waiting
        assert not stream._done  # nor are they settled


@apache_only
def test_a_deleted_object_of_a_compacted_topic_is_passed_over(topic: Topic) -> None:
    topic.publish(record(1), record(2))
    producer = ck.Producer({"bootstrap.servers": topic.kafka})
    producer.produce(topic.name, None, b"object-1")
    assert producer.flush(20) == 0
    topic.publish(record(3))
    assert numbers(topic.read()) == [1, 2, 3]
    with topic.subscriber(group="g", skip_bad=True) as stream:
        assert len(list(stream)) == 3
        assert stream.bad == 0
    assert topic.read(group="g") == []


# --- waiting -------------------------------------------------------------------------------------------------------


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "skyheed.broker.cli", "subscribe", *words]


def test_subscribe_says_that_no_kafka_listens_and_gives_up_after_its_timeout() -> None:
    address = f"127.0.0.1:{embedded.free_port()}"
    began = time.monotonic()
    ended = subprocess.run(
        command("--kafka", address, "--topic", "t", "--timeout", "5"), capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert ended.returncode == 1
    assert time.monotonic() - began > 5
    *said, last = ended.stderr.splitlines()
    assert last.startswith(f"skyheed: Kafka at {address} is unavailable: it has not answered for 5 s (")
    assert any(
        re.search(rf"waiting for Kafka at {address}, which has not answered .*is the address right", x) for x in said
    )
    assert "Traceback" not in ended.stderr


def test_a_stream_on_which_nothing_comes_says_what_it_waits_for_and_ends_after_its_timeout(
    topic: Topic, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(subscribe, "SAY_S", 0.5)
    caplog.set_level("INFO", "skyheed.subscribe")
    topic.publish(record(1))
    with Subscriber(topic.kafka, topic=topic.name, timeout=3.0) as stream:
        assert next(stream) == record(1)
        with pytest.raises(ServiceUnavailable, match=f"^no record of {topic.name} came within 3 s$"):
            next(stream)
    said = [r.getMessage() for r in caplog.records if "waiting for records" in r.getMessage()]
    assert said[-1] == f"waiting for records of {topic.name} from Kafka at {topic.kafka}"
    with pytest.raises(ConfigError, match="above 0"):
        Subscriber(topic.kafka, topic=topic.name, timeout=0)


UNCAUGHT = """
import sys
from skyheed.broker import subscribe, record_writers
def broken(record):
    raise RuntimeError("an error of nobody's making")
record_writers._row = broken
with subscribe.Subscriber(sys.argv[1], topic=sys.argv[2], group="g") as stream:
    record_writers.write(stream, "table")
"""


def test_an_uncaught_error_ends_the_program(topic: Topic) -> None:
    topic.publish(*[record(n) for n in range(5)])
    ended = subprocess.run(
        [sys.executable, "-c", UNCAUGHT, topic.kafka, topic.name], capture_output=True, text=True, check=False,
        timeout=60, env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("RuntimeError: an error of nobody's making")


def test_closing_twice_does_nothing(topic: Topic) -> None:
    stream = topic.subscriber()
    stream.close()
    stream.close()
