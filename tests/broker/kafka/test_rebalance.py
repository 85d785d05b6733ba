"""Groups whose partitions change hands under load: nothing is skipped, nothing stays paused, every drain ends.

On a real Kafka, with the three protocols: partitions taken step by step, all at once, and by the broker (KIP-848).
"""

import contextlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator

import confluent_kafka as ck
import pytest
from process_tools import until
from server_tools import HOME, NEEDS_APACHE

from skyheed.broker.errors import ServiceError
from skyheed.broker.kafka.client import (
    BatchConsumer,
    Outgoing,
    Publisher,
    ensure_topics,
    group_lag,
    place_of,
)
from skyheed.broker.local import embedded

pytestmark = [pytest.mark.kafka, pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)]
QUICK = {"session.timeout.ms": "3000", "heartbeat.interval.ms": "300"}
PROTOCOLS = {
    "cooperative": QUICK,
    "eager": {**QUICK, "partition.assignment.strategy": "range"},
    "consumer": {"group.protocol": "consumer"},
}


@pytest.fixture(params=PROTOCOLS)
def settings(request: pytest.FixtureRequest, kafka: embedded.Server) -> dict[str, str]:
    return {"bootstrap.servers": kafka.address, **PROTOCOLS[request.param]}


def make_topic(settings: dict[str, str], partitions: int) -> str:
    name = f"shared-{uuid.uuid4().hex[:8]}"
    ensure_topics(settings_of(settings), {name: {}}, partitions, 1)
    return name


def settings_of(settings: dict[str, str]) -> dict[str, str]:
    """Without what concerns a group."""
    return {"bootstrap.servers": settings["bootstrap.servers"]}


def publish(settings: dict[str, str], topic: str, values: list[int], partition: int | None = None) -> None:
    """Each value with its own key, or all to one partition."""
    if partition is None:
        messages: list[Outgoing] = [(topic, b"%d" % v, b"%d" % v, None) for v in values]
        with Publisher(settings_of(settings)) as publisher:
            publisher.publish_all(messages)
        return
    producer = ck.Producer(settings_of(settings))
    for value in values:
        producer.produce(topic, b"%d" % value, partition=partition)
    assert producer.flush(20) == 0


def publish_for(settings: dict[str, str], topic: str, total: int, seconds: float) -> None:
    """So many values, evenly over this many seconds."""
    with Publisher(settings_of(settings)) as publisher:
        for first in range(0, total, 20):
            publisher.publish_all([(topic, b"%d" % v, b"%d" % v, None) for v in range(first, first + 20)])
            time.sleep(seconds * 20 / total)


class Member:
    """A reader in a thread of its own: what it settled, and in which order."""

    def __init__(self, settings: dict[str, str], topic: str, group: str, pace_s: float = 0.0, **more: bool) -> None:
        self.values: list[int] = []
        self.error: BaseException | None = None
        self._busy, self._stop = threading.Event(), threading.Event()
        self._pace_s, self._drain = pace_s, more.get("drain", False)
        self.consumer = BatchConsumer(settings, [topic], group, drain=self._drain)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def parts(self) -> int:
        return len(self.consumer._parts)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """As with a batch in hand while Redis is unavailable."""
        self._busy.set()
        until(lambda: self.consumer._held or self.error, what="holding")
        try:
            yield
        finally:
            self._busy.clear()

    def leave(self) -> None:
        self._stop.set()
        self.join()

    def join(self, limit_s: float = 60.0) -> None:
        self._thread.join(limit_s)
        assert not self._thread.is_alive(), f"still reading after {limit_s} s: {self.consumer._parts}"
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            with self.consumer:
                while not self._stop.is_set():
                    batch = self.consumer.consume(20, 0.1)
                    while self._busy.is_set() and not self._stop.is_set():
                        self.consumer.keep_alive()
                        time.sleep(0.05)
                    time.sleep(self._pace_s * len(batch))
                    self.consumer.commit(batch)
                    self.values += [int(m.value() or b"-1") for m in batch]
                    if self._drain and not batch and self.consumer.drained():
                        return
        except BaseException as error:
            self.error = error


def test_what_was_paused_and_came_back_is_read(settings: dict[str, str]) -> None:
    topic, group = make_topic(settings, 4), uuid.uuid4().hex
    publish(settings, topic, list(range(40)))
    first = Member(settings, topic, group)
    until(lambda: len(first.values) == 40, what="reading")
    with first.busy():  # another one joins during the outage, and stays; its partitions go while they are paused
        second = Member(settings, topic, group)
        until(lambda: 0 < first.parts < 4 and second.parts, what="sharing")
    with first.busy(), second.busy():  # it leaves during the next
        publish(settings, topic, list(range(40, 80)))
        second.leave()
        until(lambda: first.parts == 4, what="getting back")
    publish(settings, topic, list(range(80, 120)))
    until(lambda: set(first.values) >= set(range(120)) - set(second.values), what="reading on")
    first.leave()
    assert sorted({*first.values, *second.values}) == list(range(120))
    assert set(group_lag(settings, group, [topic]).values()) == {0}


def test_what_left_while_it_was_paused_is_read_when_it_comes_back_later(settings: dict[str, str]) -> None:
    """librdkafka keeps the pause: nothing of ours but the resume on assignment takes it away."""
    topic, group = make_topic(settings, 2), uuid.uuid4().hex
    publish(settings, topic, list(range(20)))
    first = Member(settings, topic, group)
    until(lambda: len(first.values) == 20, what="reading")
    with first.busy():
        second = Member(settings, topic, group)
        until(lambda: first.parts == 1 and second.parts == 1, what="sharing")
    until(lambda: not first.consumer._held, what="going on")
    second.leave()  # only now: `first` is not busy any more
    until(lambda: first.parts == 2, what="getting back")
    for partition in (0, 1):
        publish(settings, topic, [100 + partition], partition)
    until(lambda: {100, 101} <= set(first.values), 15, what="reading what came back")
    first.leave()


@pytest.mark.parametrize("static", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_group_under_load_skips_nothing(settings: dict[str, str], static: bool) -> None:
    topic, group = make_topic(settings, 6), uuid.uuid4().hex
    total = 3000
    sender = threading.Thread(target=publish_for, args=(settings, topic, total, 5.0), daemon=True)

    def member(name: str) -> Member:
        return Member({**settings, "group.instance.id": name} if static else settings, topic, group, pace_s=0.002)

    sender.start()
    members = [member("one"), member("two")]
    until(lambda: all(m.parts == 3 for m in members), what="sharing by two")
    members.append(member("three"))
    until(lambda: all(m.parts == 2 for m in members), what="sharing by three")
    with members[0].busy():
        members[1].leave()  # one that is known by name keeps its partitions until its session ends, and may come back
        members.append(member("two"))
        until(lambda: members[3].parts == 2, what="coming back")
    members[2].leave()
    sender.join()
    read: set[int] = set()
    until(lambda: len(read.update(*(m.values for m in members)) or read) == total, what="reading all")
    for left in (members[0], members[3]):
        assert not left.consumer._held
        assert not any(part.paused for part in left.consumer._parts.values())
        left.leave()
    # only what a member had in hand when it lost the partition may come twice
    repeated = [v for v, n in Counter(v for m in members for v in m.values).items() if n > 1]
    assert len(repeated) < total / 4
    until(lambda: set(group_lag(settings, group, [topic]).values()) == {0}, what="committing all")


def test_two_drains_of_a_group_end_with_everything_read(settings: dict[str, str]) -> None:
    topic, group = make_topic(settings, 4), uuid.uuid4().hex
    publish(settings, topic, list(range(400)), partition=3)  # one long partition: what is finished changes hands
    publish(settings, topic, list(range(400, 406)), partition=0)
    first = Member(settings, topic, group, pace_s=0.004, drain=True)
    until(lambda: len(first.values) > 20, what="the first drain")
    second = Member(settings, topic, group, pace_s=0.004, drain=True)
    second.join()
    first.join()
    assert {*first.values, *second.values} == set(range(406))
    assert set(group_lag(settings, group, [topic]).values()) == {0}


def test_a_drain_reads_what_a_member_that_died_had_not_read(settings: dict[str, str]) -> None:
    topic, group = make_topic(settings, 2), uuid.uuid4().hex
    publish(settings, topic, list(range(60)))
    if "group.protocol" in settings:
        pytest.skip("librdkafka takes no max.poll.interval.ms below 45 s with the new protocol")
    dying = BatchConsumer({**settings, "max.poll.interval.ms": "3000"}, [topic], group)
    held: list[ck.Message] = []
    until(lambda: held.extend(dying.consume(5, 0.1)) or held, what="reading")
    drain = Member(settings, topic, group, drain=True)
    until(lambda: held.extend(dying.consume(5, 0.1)) or (held and drain.parts == 1), what="sharing")
    drain.join()  # `dying` never asks again: its partitions come to the drain
    assert set(drain.values) == set(range(60))
    dying.commit(held)  # it lost them: its position must not be used
    dying.close()
    assert set(group_lag(settings, group, [topic]).values()) == {0}


def test_a_drain_without_a_partition_waits_for_the_member_that_has_it(settings: dict[str, str]) -> None:
    topic, group = make_topic(settings, 1), uuid.uuid4().hex
    publish(settings, topic, list(range(100)))
    first = Member(settings, topic, group, pace_s=0.02, drain=True)
    until(lambda: first.values, what="the first drain")
    second = Member(settings, topic, group, drain=True)
    second.join()
    first.join()
    assert {*first.values, *second.values} == set(range(100))


def test_a_drain_beside_a_member_that_does_not_read_is_an_error(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, group = make_topic(settings, 2), uuid.uuid4().hex
    publish(settings, topic, list(range(40)))
    monkeypatch.setattr("skyheed.broker.kafka.client.ASSIGN_S", 3.0)
    stuck = Member(settings, topic, group)
    with stuck.busy():
        drain = Member(settings, topic, group, drain=True)
        with pytest.raises(ServiceError, match=rf"another member of group {group} has \d+ messages of {topic} still"):
            drain.join()
    stuck.leave()


def test_what_was_handed_out_before_a_loss_is_not_committed(settings: dict[str, str]) -> None:
    topic, group = make_topic(settings, 1), uuid.uuid4().hex
    publish(settings, topic, list(range(10)))
    slow = BatchConsumer(settings, [topic], group)
    held: list[ck.Message] = []
    until(lambda: held.extend(slow.consume(10, 0.1)) or len(held) == 10, what="reading")
    assert all(slow.holds(m) for m in held)
    slow._on_lost(slow._consumer, [ck.TopicPartition(topic, 0)])
    assert not any(slow.holds(m) for m in held)
    slow._on_assign(slow._consumer, [ck.TopicPartition(topic, 0)])
    slow.commit(held)
    assert slow._parts[place_of(held[0])].to_commit() is None
    slow.close()
    assert group_lag(settings, group, [topic]) == {(topic, 0): 10}
