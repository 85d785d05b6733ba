"""Failovers of Redis: behind one name, with a replica that heard of everything or not, and of a cluster's primary.

Replication is asynchronous. What was committed survives the loss of the primary only with `redis.wait_replicas`.
"""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py
from fault_tools import Child, arguments_for, wait_for
from process_tools import until
from redis_tools import ClusterWithReplicas, Pair, follow, pair
from server_tools import ValkeyCluster
from state_tools import LANE, SURVEY, answer, content, deliveries, observation
from stream_tools import answers, ingest_all, last_answers, publish, save_checkpoint, sdss_alert, settings_for

from skyheed.broker import app as daemon
from skyheed.broker import config
from skyheed.broker.errors import ServiceUnavailable
from skyheed.broker.kafka import topics
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings
from skyheed.broker.state import client as state
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.nodes import Replicas
from skyheed.broker.state.queue import Claim, DueQueue
from skyheed.broker.state.sequence import Delivery, Settled
from skyheed.broker.waiting import patiently

pytestmark = pytest.mark.redis
LONGEST_PAUSE_S = 20.0  # of the daemons, on a busy machine; docs/operating.md has the measured one


@pytest.fixture
def servers() -> Iterator[Pair]:
    with pair() as found:
        yield found


def store_of(url: str, replicas: int = 1, wait_s: float = 0.3, cluster: bool = False) -> SequenceStore:
    client = state.Client(url, cluster=cluster, replicas=Replicas(replicas, wait_s))
    return SequenceStore(client, SURVEY, shards=4, debounce_s=0.0)


def batch(first: int, count: int = 20) -> list[Delivery]:
    return deliveries([observation(f"o{n}") for n in range(first, first + count)], first=first)


def objects_on(server: embedded.Server, names: int) -> int:
    store = store_of(server.url, 0)
    return sum(bool(content(store, f"o{n}")) for n in range(names))


def test_a_batch_is_stored_only_when_the_replica_has_it(servers: Pair) -> None:
    store = store_of(servers.name.url)
    store.store(batch(0))
    assert objects_on(servers.replica, 20) == 20
    servers.cut_off()
    for _ in range(2):
        with pytest.raises(ServiceUnavailable, match=r"0 of 1 replicas confirmed within 0.3 s.*redis.wait_replicas"):
            store.store(batch(20))
    servers.mend()
    store.store(batch(20))
    assert objects_on(servers.replica, 40) == 40


def test_a_replica_that_hangs_confirms_nothing_although_the_repeat_writes_nothing(servers: Pair) -> None:
    """WAIT waits for the writes of its own connection; a repeated batch has none, and is on a new connection."""
    store = store_of(servers.name.url)
    store.store(batch(0))
    assert servers.replica._process is not None
    servers.replica._process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(3):
            with pytest.raises(ServiceUnavailable, match="0 of 1 replicas"):
                store.store(batch(20))
    finally:
        servers.replica._process.send_signal(signal.SIGCONT)
    assert patiently(lambda: len(store.store(batch(20))), threading.Event()) == 20
    assert objects_on(servers.replica, 40) == 40


def test_scripts_that_a_server_forgot_are_confirmed_as_well(servers: Pair) -> None:
    store = store_of(servers.name.url)
    with redis_py.Redis.from_url(servers.primary.url) as client:
        for first in range(0, 60, 20):
            store.store(batch(first))
            client.script_flush()
            client.script_load(state.script("sweep").text)  # a part is known, a part is not
    assert objects_on(servers.replica, 60) == 60


def test_an_acknowledgement_that_is_lost_means_the_same_answer_again(servers: Pair) -> None:
    """Workers need not wait for replicas: the object is still in the queue, at the revision that was answered."""
    store, queue = store_of(servers.name.url), DueQueue(state.connect(servers.name.url), SURVEY, shards=4)
    store.store(batch(0, 1))
    first = store.fetch(queue.claim(1, 0.5), LANE)
    until(
        lambda: DueQueue(state.connect(servers.replica.url), SURVEY, shards=4).depth()["in_flight"] == 1,
        what="the claim",
    )
    servers.cut_off()
    assert store.settle([answer(s) for s in first], LANE) == [Settled.ACKED]
    servers.fail_over(demote=False)
    again = patiently(lambda: store.fetch(until_claimed(queue), LANE), threading.Event())
    assert [(s.object_id, s.revision) for s in again] == [(s.object_id, s.revision) for s in first]
    assert store.settle([answer(s) for s in again], LANE) == [Settled.ACKED]
    assert sum(queue.depth().values()) == 0


def until_claimed(queue: DueQueue) -> list[Claim]:
    claims: list[Claim] = []
    until(lambda: bool(claims.extend(queue.claim(1, 30.0)) or claims), what="the end of the lease")
    return claims


@pytest.mark.kafka
@pytest.mark.parametrize("wait_replicas", [pytest.param(0, marks=pytest.mark.long), 1])
def test_what_was_committed_survives_the_primary_only_if_replicas_were_waited_for(
    kafka: embedded.Server, servers: Pair, wait_replicas: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The primary dies just after the replica was cut off. Without the setting the commit came too early."""
    topic = f"failover-{wait_replicas}"
    settings = settings_for(
        kafka.address, servers.name.url, "sdss", topic,
        **{"redis.wait_replicas": wait_replicas, "redis.wait_s": 0.3},  # type: ignore[arg-type]
    )  # fmt: skip
    publish(settings, topic, [sdss_alert(f"W{i}", 1) for i in range(30)])
    ingest_all(settings)
    servers.cut_off()
    publish(settings, topic, [sdss_alert(f"W{i}", 1) for i in range(30, 60)])
    ingest = threading.Thread(target=ingest_all, args=(settings,))
    ingest.start()
    if wait_replicas:
        until(lambda: "0 of 1 replicas confirmed" in caplog.text, what="waiting for the replica")
    else:
        ingest.join(60)
    committed = _committed(settings, topic)
    assert committed == (30 if wait_replicas else 60)
    with embedded.start_valkey() as another:
        servers.fail_over(demote=False)
        follow(another, servers.replica)
        ingest.join(60)
        assert not ingest.is_alive()
        store, _, ledger = daemon.connect_store(settings)
        kept = sum(store.revision(f"W{i}") > 0 for i in range(60))
        assert kept == (60 if wait_replicas else 30)
        books = ledger.books()
        assert (books.consumed, books.balanced) == (kept, True)


def _at(settings: Settings, server: embedded.Server) -> Settings:
    return config.with_servers(settings, settings.kafka["bootstrap.servers"], server.url)


def _committed(settings: Settings, topic: str) -> int:
    from skyheed.broker.kafka import connection

    client = connection.consumer(settings.kafka, settings.ingest.group, connection.Connection(settings.kafka))
    try:
        return sum(max(0, at.offset) for at in topics.committed(client, [(topic, n) for n in range(3)]))
    finally:
        client.close()


@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_daemons_go_on_after_a_failover_behind_one_name(kafka: embedded.Server, servers: Pair, tmp_path: Path) -> None:
    """The old primary lives on as a replica and keeps its connections: only a new one leads to the new primary."""
    topic = "one-name"
    settings = settings_for(kafka.address, servers.name.url, "sdss", topic)
    daemon.prepare_topics(settings, threading.Event())
    sent = publish(settings, topic, [sdss_alert(f"before{i}", 1) for i in range(5)])
    shared = arguments_for(settings, topic)
    model = str(save_checkpoint(tmp_path, "sdss"))
    ingest = Child("ingest", [*shared, "--group", topic, "--debounce", "0"], tmp_path)
    work = Child("work", [*shared[:-2], "--model", model, "--threads", "1", "--min-stamps", "1"], tmp_path)
    try:
        # the topic is shared with other tests
        before, after = ({f"{when}{i}" for i in range(5)} for when in ("before", "after"))
        wait_for(lambda: before <= set(last_answers(answers(settings))), 90, "the first answers")
        servers.fail_over(demote=True)
        failed = time.monotonic()
        sent += publish(settings, topic, [sdss_alert(f"after{i}", 1) for i in range(5)])
        store, _, ledger = daemon.connect_store(_at(settings, servers.replica))
        until(lambda: all(store.latest(f"after{i}", "test-sdss") for i in range(5)), what="going on")
        pause = time.monotonic() - failed
        assert pause < LONGEST_PAUSE_S
        print(f"alerts sent at the failover were answered {pause:.1f} s after it")
        wait_for(lambda: ledger.books().balanced and ledger.books().consumed == sent, 30, "balancing")
        assert before | after <= set(last_answers(answers(settings)))
        assert [child.log.read_text().count("Traceback") for child in (ingest, work)] == [0, 0]
    finally:
        assert [ingest.stop(), work.stop()] == [0, 0]


def test_the_primary_of_a_cluster_is_killed_under_load() -> None:
    """Its replica takes over; nothing that was confirmed is lost, also if the URL names the node that is gone."""
    stop, done, gaps = threading.Event(), [0], [0.0]
    with ClusterWithReplicas() as cluster:
        store = store_of(cluster.url, wait_s=1.0, cluster=True)
        fresh = store_of(",".join(node.address for node in cluster.nodes).join(("redis://", "/0")), 0, cluster=True)

        def load() -> None:
            while not stop.is_set():
                began = time.monotonic()
                patiently(lambda: store.store(batch(done[0])), stop)
                done[0] += 20
                gaps.append(time.monotonic() - began)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            until(lambda: done[0] >= 200, what="the first batches")
            cluster.nodes[0].kill()
            until(lambda: _is_primary(cluster.nodes[3]), what="the takeover")
            cluster.nodes[0].restart()  # comes back as the replica that is waited for
            before = done[0]
            until(lambda: done[0] >= before + 200, 90, "going on")
        finally:
            stop.set()
            thread.join(60)
        assert not thread.is_alive()
        print(f"longest pause {max(gaps):.1f} s")
        cluster.nodes[1].kill()
        until(lambda: _is_primary(cluster.nodes[4]), what="the second takeover")
        kept = patiently(lambda: sum(fresh.revision(f"o{n}") > 0 for n in range(done[0])), threading.Event())
        assert kept == done[0]


def _is_primary(node: embedded.Server) -> bool:
    with redis_py.Redis.from_url(node.url) as client:
        return bool(client.info("replication")["role"] == "master" and client.cluster("info")["cluster_state"] == "ok")


def test_a_slot_that_is_on_its_way_is_waited_for(valkey_cluster: ValkeyCluster) -> None:
    """Our scripts do not declare their keys: run on the receiving node they would see half of an object."""
    store, idle = (store_of(valkey_cluster.url, 0, cluster=True) for _ in range(2))
    store.store(batch(0, 40))
    idle.store(batch(0, 40))
    clients = [redis_py.Redis.from_url(node.url) for node in valkey_cluster.nodes]
    slot = clients[0].execute_command("CLUSTER KEYSLOT", "sh:{test:0}:")
    ids = [client.execute_command("CLUSTER MYID").decode() for client in clients]
    source = next(n for n, client in enumerate(clients) if _serves(client, slot))
    target = (source + 1) % 3
    clients[target].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
    clients[source].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
    with pytest.raises(ServiceUnavailable, match="is moving a slot"):
        store.store(batch(40, 40))
    assert clients[target].execute_command("CLUSTER COUNTKEYSINSLOT", slot) == 0
    host, port = valkey_cluster.nodes[target].address.split(":")
    while keys := clients[source].execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
        clients[source].execute_command("MIGRATE", host, port, "", 0, 5000, "KEYS", *keys)
    for node in (target, source, 3 - source - target):
        clients[node].execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])
    idle.store(batch(40, 40))  # knows of nothing and is led on by MOVED, without an error
    store.store(batch(40, 40))
    assert sum(bool(content(store, f"o{n}")) for n in range(80)) == 80
    clients[source].execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])
    for client in clients:
        client.close()


def _serves(client: redis_py.Redis, slot: int) -> bool:
    own = client.execute_command("CLUSTER MYID").decode()
    ranges = client.execute_command("CLUSTER SLOTS")
    return any(first <= slot <= last and node[2].decode() == own for first, last, node, *_ in _plain(ranges))


def _plain(ranges: object) -> list[tuple[int, int, list[bytes]]]:
    if isinstance(ranges, dict):  # redis-py's form: (first, last) -> {"primary": (host, port), …}
        raise TypeError("redis-py has changed its reply")
    return [(first, last, *nodes) for first, last, *nodes in ranges]  # type: ignore[misc, attr-defined]
