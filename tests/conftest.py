"""Servers for the tests, each started once, on free loopback ports, and stopped at the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py
from server_tools import HOME, NEEDS_APACHE, SCRAM_USERS, ValkeyCluster, start_apache_kafka, start_valkey_cluster

from skyheed.broker.local import embedded

embedded.START_S = 300.0  # a Java machine among many others takes its time


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """No long bytes in the ids of tests: a gzip holds its time, and the processes of a run must name the same tests."""
    return argname if isinstance(val, bytes) and len(val) > 20 else None


@pytest.fixture(scope="session")
def _valkey() -> Iterator[embedded.Server]:
    with embedded.start_valkey() as server:
        yield server


@pytest.fixture
def valkey(_valkey: embedded.Server) -> embedded.Server:
    """A Valkey with nothing in it."""
    with redis_py.Redis.from_url(_valkey.url) as client:
        client.flushall()
    return _valkey


@pytest.fixture(scope="session")
def _valkey_cluster() -> Iterator[ValkeyCluster]:
    with start_valkey_cluster(3) as cluster:
        yield cluster


@pytest.fixture
def valkey_cluster(_valkey_cluster: ValkeyCluster) -> ValkeyCluster:
    """Three Valkey nodes with nothing in them."""
    for node in _valkey_cluster.nodes:
        with redis_py.Redis.from_url(node.url) as client:
            client.flushall()
    return _valkey_cluster


@pytest.fixture(scope="session")
def kafka() -> Iterator[embedded.Server]:
    """A Kafka for the whole session: Apache's where KAFKA_HOME names one, else the embedded one."""
    with start_apache_kafka(HOME, settings=QUICK_GROUPS) if HOME else embedded.start_kafka() as server:
        yield server


@pytest.fixture
def apache_kafka(tmp_path: Path) -> Iterator[embedded.Server]:
    """An Apache Kafka of one's own, to kill and start again."""
    if not HOME:
        pytest.skip(NEEDS_APACHE)
    with start_apache_kafka(HOME, tmp_path / "apache-kafka") as server:
        yield server


# members that do not answer are given up soon, and new protocol groups change hands several times a second
QUICK_GROUPS = """\
group.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=300
group.consumer.heartbeat.interval.ms=300
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
"""


@pytest.fixture(scope="session")
def kafka_scram() -> Iterator[embedded.Server]:
    """An Apache Kafka with SASL/SCRAM users (`SCRAM_USERS`) and ACLs; only `admin` has rights at the start."""
    if not HOME:
        pytest.skip(NEEDS_APACHE)
    with start_apache_kafka(HOME, users=SCRAM_USERS) as server:
        yield server


@pytest.fixture
def durable_valkey(tmp_path: Path) -> Iterator[embedded.Server]:
    """A Valkey of one's own with an append-only file, to kill and start again."""
    with embedded.start_valkey(tmp_path / "valkey", appendonly=True, appendfsync="always") as server:
        yield server
