"""Three Apache Kafka brokers, restarted one after the other under load: nothing is lost, and the pause is stated.

Replication 3, min.insync.replicas 2, 200 alerts/s: what a broker team does on a Tuesday.
"""

import importlib
import itertools
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient
from fault_tools import Child, arguments_for, settled, wait_for
from kafka_cluster import KafkaCluster
from server_tools import HOME, NEEDS_APACHE
from stream_tools import raw_messages, settings_for
from test_many_kills import BENCHMARKS, Expected, cheap_model, judge, simulated

from skyheed.broker import app as daemon
from skyheed.broker.errors import ServiceUnavailable
from skyheed.broker.kafka import client as kafka
from skyheed.broker.local import embedded
from skyheed.broker.results import formats
from skyheed.broker.settings import Settings

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.long, pytest.mark.timeout(1800)]
TOPIC, RATE = "rolling", 200
OBJECTS = 1000  # of which none gets more sources than are kept


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[KafkaCluster]:
    if not HOME:
        pytest.skip(NEEDS_APACHE)
    with KafkaCluster(HOME, tmp_path / "kafka") as found:
        yield found


class Sender(threading.Thread):
    """Sends at the rate until it is told to stop; what Kafka did not confirm it sends again."""

    def __init__(self, settings: Settings, packets: Iterator[tuple[str, int, bytes]]) -> None:
        super().__init__(daemon=True)
        self._settings, self._packets = settings, packets
        self.sources: dict[str, set[int]] = defaultdict(set)
        self.sent, self.again, self.longest_s = 0, 0, 0.0
        self.done = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with kafka.Publisher(self._settings.kafka) as publisher:
                began = time.monotonic()
                while not self.done.is_set():
                    self.done.wait(max(0.0, began + self.sent / RATE - time.monotonic()))
                    self._send(publisher, [next(self._packets) for _ in range(RATE // 10)])
        except BaseException as error:
            self.failure = error

    def _send(self, publisher: kafka.Publisher, packets: list[tuple[str, int, bytes]]) -> None:
        began = time.monotonic()
        while True:
            try:
                publisher.publish_all([(TOPIC, None, payload, None) for _, _, payload in packets])
                break
            except ServiceUnavailable:
                self.again += 1
                assert time.monotonic() - began < 300, "Kafka never came back"
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        for name, source, _ in packets:
            self.sources[name].add(source)
        self.sent += len(packets)


class Pauses(threading.Thread):
    """How long the intake stood still, at most: the books' count of alerts is looked at several times a second."""

    def __init__(self, consumed: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self._consumed = consumed
        self.longest_s = 0.0
        self.done = threading.Event()

    def run(self) -> None:
        last, since = self._consumed(), time.monotonic()
        while not self.done.wait(0.2):
            now = self._consumed()
            if now != last:
                last, since = now, time.monotonic()
            self.longest_s = max(self.longest_s, time.monotonic() - since)


def in_sync(settings: Settings, nodes: int) -> bool:
    """Whether every partition of our topics has all its replicas."""
    admin = AdminClient(dict(settings.kafka))
    try:
        names = [TOPIC, settings.classification_topic, "__consumer_offsets"]
        found = admin.describe_topics(TopicCollection(names), request_timeout=10)
        parts = [part for future in found.values() for part in future.result().partitions]
    except Exception:  # a broker that has just gone
        return False
    return bool(parts) and all(part.leader is not None and len(part.isr) == nodes for part in parts)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_rolling_restart_loses_nothing(
    cluster: KafkaCluster, durable_valkey: embedded.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(embedded, "STOP_S", 90.0)  # a broker hands its partitions over first
    packets = simulated(importlib.import_module("packets"), OBJECTS, 10_000)
    settings = settings_for(cluster.addresses, durable_valkey.url, "ztf", TOPIC)
    kafka.ensure_topics(settings.kafka, {TOPIC: daemon.ALERT_TOPIC}, 6, KafkaCluster.NODES)
    shared = arguments_for(settings, TOPIC)
    ingest = Child("ingest", [*shared, "--group", TOPIC, "--debounce", "0"], tmp_path)
    work = Child("work", [*shared[:-2], "--model", str(cheap_model(tmp_path)), "--threads", "1"], tmp_path)
    ledger = daemon.connect_store(settings)[2]
    sender, pauses = Sender(settings, packets), Pauses(lambda: int(ledger.books().consumed))
    try:
        sender.start()
        wait_for(lambda: ledger.books().consumed > 1000, 120, "the first alerts")
        wait_for(lambda: in_sync(settings, KafkaCluster.NODES), 120, "being in sync")
        pauses.start()
        began = time.monotonic()
        for server in cluster.servers:
            getattr(server, how)()
            time.sleep(5)
            server.restart()
            wait_for(lambda: in_sync(settings, KafkaCluster.NODES), 180, "being in sync again")
        seconds = time.monotonic() - began
        for thread in (sender, pauses):
            thread.done.set()
            thread.join(300)
            assert not thread.is_alive()
        assert sender.failure is None, sender.failure
        wait_for(lambda: settled(settings, sum(kafka.end_offsets(settings.kafka, [TOPIC]).values())), 600, "settling")
    finally:
        sender.done.set()
        pauses.done.set()
        ends = [ingest.stop(), work.stop()]
    assert ends == [0, 0]
    found = judge(settings, range(sender.sent), Expected(sender.sources))
    published = [formats.decode(message.value()) for message in raw_messages(settings, settings.classification_topic)]
    times = sorted(record.classified_ms for record in published)
    print("\n" + json.dumps({
        "how": how, "seconds": round(seconds), "sent_again": sender.again,
        "producer_pause_s": round(sender.longest_s, 1), "intake_pause_s": round(pauses.longest_s, 1),
        "classification_pause_s": max(b - a for a, b in itertools.pairwise(times)) / 1000,
        **found,
    }))  # fmt: skip
