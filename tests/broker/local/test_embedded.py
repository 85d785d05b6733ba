import contextlib
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pytest
from confluent_kafka.admin import AdminClient
from server_tools import HOME, NEEDS_APACHE, SCRAM_USERS, ValkeyCluster, scram_options, start_apache_kafka

from skyheed.broker.errors import ServiceError
from skyheed.broker.local import embedded
from skyheed.broker.state import client as state


def _listens(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def _client(url: str) -> state.Client:
    return state.connect(url)


def test_a_port_is_free_and_no_client_gets_it() -> None:
    ports = {embedded.free_port() for _ in range(50)}
    assert len(ports) > 45
    assert max(ports) < 32_768, "Linux gives clients ports from here on"
    assert not any(_listens(f"127.0.0.1:{port}") for port in ports)


def test_valkey_listens_on_loopback_until_the_block_ends() -> None:
    with embedded.start_valkey() as server:
        assert server.address.startswith("127.0.0.1:")
        assert _client(server.url).run([("SET", "key", "value"), ("GET", "key")])[1] == b"value"
        folder = server.log_file.parent
    assert not _listens(server.address)
    assert not folder.exists()


def test_servers_stop_when_the_block_fails() -> None:
    with contextlib.suppress(RuntimeError), embedded.start_valkey() as server:
        raise RuntimeError
    assert not _listens(server.address)


def test_valkey_keeps_its_file_across_kill_and_restart(tmp_path: Path) -> None:
    with embedded.start_valkey(tmp_path / "data", appendonly=True, appendfsync="always") as server:
        _client(server.url).run([("SET", f"key{n}", n) for n in range(500)])
        address = server.address
        server.kill()
        assert not _listens(address)
        server.restart()
        assert server.address == address
        assert _client(server.url).run([("DBSIZE",)]) == [500]
    with embedded.start_valkey(tmp_path / "data", appendonly=True) as again:
        assert _client(again.url).run([("DBSIZE",)]) == [500]


def test_valkey_never_evicts(tmp_path: Path) -> None:
    with embedded.start_valkey(tmp_path, maxmemory="64mb") as server:
        health = state.health(_client(server.url))
        assert (health.max_memory, health.eviction_policy, health.append_only) == (64 * 2**20, "noeviction", False)


def test_only_we_can_read_the_file_that_holds_the_password(tmp_path: Path) -> None:
    with embedded.start_valkey(tmp_path, password="pw-4417") as server:
        holding = [f for f in tmp_path.iterdir() if "pw-4417" in f.read_text(errors="replace")]
        assert [f.name for f in holding] == ["valkey.conf"]
        assert holding[0].stat().st_mode & 0o077 == 0
        command_lines = [Path(f"/proc/{pid}/cmdline") for pid in os.listdir("/proc") if pid.isdigit()]
        for line in command_lines:
            with contextlib.suppress(OSError):
                assert b"pw-4417" not in line.read_bytes()
        state.connect(server.url, "pw-4417").ping()


def test_a_cluster_answers_for_every_slot(valkey_cluster: ValkeyCluster) -> None:
    client = state.connect(valkey_cluster.url, cluster=True)
    client.run([("SET", f"key{n}", n) for n in range(300)])
    held = [_client(node.url).run([("DBSIZE",)])[0] for node in valkey_cluster.nodes]
    assert sum(held) == 300
    assert min(held) > 50


def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    script = "import sys; sys.exit('port taken by a walrus')"
    server = embedded.Server(
        "the thing", [sys.executable, "-c", script], embedded.free_port(), lambda _: False, tmp_path / "log"
    )
    with pytest.raises(ServiceError, match="the thing did not start: port taken by a walrus"):
        server.start()


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "START_S", 0.3)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    server = embedded.Server("the thing", command, embedded.free_port(), lambda _: False, tmp_path / "log")
    with pytest.raises(ServiceError, match="it said nothing"), server:
        pass
    assert server._process is not None
    assert server._process.poll() is not None


class _Quiet:
    def log(self, *_: object) -> None: ...


def _produce(options: dict[str, Any], topic: str, count: int) -> list[str]:
    """Produce and return what the delivery reports said, an empty text for each success."""
    said: list[str] = []
    producer = ck.Producer({**options, "message.timeout.ms": 8000, "logger": _Quiet()})
    for n in range(count):
        producer.produce(
            topic, str(n).encode(), on_delivery=lambda error, _: said.append(error.name() if error else "")
        )
    producer.flush(15)
    return said


def _create(options: dict[str, Any], topic: str, **config: str) -> None:
    admin = AdminClient({**options, "logger": _Quiet()})
    for future in admin.create_topics([ck.admin.NewTopic(topic, 1, 1, config=config)]).values():
        future.result(20)


def _read(options: dict[str, Any], topic: str) -> list[bytes]:
    consumer = ck.Consumer({**options, "group.id": "none", "enable.partition.eof": True, "logger": _Quiet()})
    consumer.assign([ck.TopicPartition(topic, 0, ck.OFFSET_BEGINNING)])
    values: list[bytes] = []
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        message = consumer.poll(1.0)
        if message is not None and message.error() is not None:
            break
        if message is not None:
            values.append(message.value() or b"")
    consumer.close()
    return values


def _listening(pid: int) -> set[str]:
    """The addresses on which a process and its children listen."""
    inodes = set()
    for each in [pid, *_children(pid)]:
        for link in Path(f"/proc/{each}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(link))
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


def _children(pid: int) -> list[int]:
    return [int(n) for task in Path(f"/proc/{pid}/task").iterdir() for n in (task / "children").read_text().split()]


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, and the same for Java


@pytest.mark.kafka
def test_nobody_outside_this_machine_can_connect_to_an_embedded_server(
    kafka: embedded.Server, valkey: embedded.Server, valkey_cluster: ValkeyCluster
) -> None:
    with embedded.start_kafka() as memory_only:
        for server in (kafka, valkey, memory_only, *valkey_cluster.nodes):
            assert server._process
            addresses = _listening(server._process.pid)
            assert addresses, server.name
            assert addresses <= LOOPBACK, (server.name, addresses)


@pytest.mark.kafka
def test_passwords_of_kafkas_users_stand_in_no_command_line_and_in_no_file_that_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not HOME:
        pytest.skip(NEEDS_APACHE)
    started: list[list[str]] = []
    run = embedded.subprocess.run
    monkeypatch.setattr(embedded.subprocess, "run", lambda words, **more: started.append(words) or run(words, **more))
    server = start_apache_kafka(HOME, tmp_path, users={"admin": 'a "quoted" \\ pw-7712'})
    assert len(started) == 1
    assert "pw-7712" not in " ".join([*started[0], *server._command])
    holding = [f for f in tmp_path.rglob("*") if f.is_file() and b"pw-7712" in f.read_bytes()]
    assert [f.name for f in holding] == ["server.properties"]
    assert holding[0].stat().st_mode & 0o077 == 0


@pytest.mark.kafka
def test_the_embedded_kafka_takes_and_gives() -> None:
    with embedded.start_kafka() as server:
        options = {"bootstrap.servers": server.address}
        _create(options, "topic")
        assert _produce(options, "topic", 10) == [""] * 10
        assert _read(options, "topic") == [str(n).encode() for n in range(10)]
    assert not _listens(server.address)


@pytest.mark.kafka
def test_apache_kafka_keeps_what_it_acknowledged_across_kill_and_restart(apache_kafka: embedded.Server) -> None:
    options = {"bootstrap.servers": apache_kafka.address}
    _create(options, "topic", **{"max.message.bytes": "4000000"})
    assert _produce(options, "topic", 200) == [""] * 200
    address = apache_kafka.address
    apache_kafka.kill()
    assert not _listens(address)
    apache_kafka.restart()
    assert apache_kafka.address == address
    assert _read(options, "topic") == [str(n).encode() for n in range(200)]


def test_apache_kafka_without_its_jars(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="needs java on the PATH and its jars"):
        start_apache_kafka(tmp_path)


@pytest.fixture
def scram(kafka_scram: embedded.Server) -> dict[str, Any]:
    return {"bootstrap.servers": kafka_scram.address, **scram_options("admin", SCRAM_USERS["admin"])}


@pytest.mark.kafka
def test_scram_users_have_no_rights_until_they_are_given(scram: dict[str, Any]) -> None:
    _create(scram, "embedded-guarded")
    assert _produce(scram, "embedded-guarded", 1) == [""]
    alice = {**scram, **scram_options("alice", SCRAM_USERS["alice"])}
    assert _produce(alice, "embedded-guarded", 1) == ["TOPIC_AUTHORIZATION_FAILED"]
    wrong = {**scram, **scram_options("alice", "wrong")}
    assert _produce(wrong, "embedded-guarded", 1) == ["_MSG_TIMED_OUT"]
