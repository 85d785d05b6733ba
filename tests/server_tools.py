"""Servers that only tests and benchmarks start: Apache Kafka from its jars, with or without users; a Valkey cluster."""

import base64
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from skyheed.broker.errors import ServiceError
from skyheed.broker.local.embedded import (
    START_S,
    Server,
    answers_kafka,
    answers_redis,
    folder_for,
    free_port,
    private_file,
    quoted,
    valkey_binary,
    valkey_settings,
)
from skyheed.classifier.reaper import make_folder, remove_folder

HOME = os.environ.get("KAFKA_HOME", "")
NEEDS_APACHE = "needs an Apache Kafka: set KAFKA_HOME to its folder"
SCRAM_USERS = {
    "admin": "admin-pw-5731", "alice": "alice-pw-8264", "bob": "bob-pw-1907", "carol": "carol-pw-3380",
    "dave": "dave-pw-6612", "erin": "erin-pw-9045",
}  # fmt: skip
CLUSTER_SLOTS = 16384
LOG4J = """\
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %m (%c)%n
rootLogger.level=WARN
rootLogger.appenderRef.out.ref=out
"""
KAFKA_SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=CLIENTS://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=CLIENTS://127.0.0.1:{port}
listener.security.protocol.map=CLIENTS:{protocol},CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENTS
log.dirs=log
message.max.bytes=8388608
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
"""
SCRAM_SETTINGS = """\
sasl.enabled.mechanisms=SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512
listener.name.clients.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule \
required username="admin" password="{admin}";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin;User:ANONYMOUS
"""


def start_apache_kafka(
    home: str | Path, data_dir: Path | None = None, users: Mapping[str, str] | None = None, settings: str = ""
) -> Server:
    """One broker and controller of the Apache Kafka in `home` (it has libs/*.jar), in KRaft mode; needs Java 17.

    Args:
        data_dir: kept across restarts; a temporary folder by default.
        users: name -> password for SASL/SCRAM-SHA-512 with ACLs; must hold `admin`, the super user.
        settings: more lines of server.properties.

    Raises:
        ServiceError: no Java, no jars, or the data folder could not be prepared.
    """
    libraries = Path(home) / "libs"
    if not shutil.which("java") or not libraries.is_dir():
        raise ServiceError(f"Apache Kafka needs java on the PATH and its jars in {libraries}")
    folder, ours = folder_for(data_dir, "apache-kafka")
    port, controller = free_port(), free_port()
    text = KAFKA_SETTINGS.format(port=port, controller=controller, protocol="SASL_PLAINTEXT" if users else "PLAINTEXT")
    if users:
        text += SCRAM_SETTINGS.format(admin=users["admin"])
    properties = private_file(folder / "server.properties", text + settings)
    (folder / "log4j2.properties").write_text(LOG4J, encoding="ascii")
    java = [
        str(shutil.which("java")), "-Xmx512m", "-XX:+UseSerialGC",
        f"-Dlog4j2.configurationFile={(folder / 'log4j2.properties').as_uri()}", "-cp", f"{libraries.absolute()}/*",
    ]  # fmt: skip
    if not (folder / "log" / "meta.properties").exists():
        _format(java, properties, users or {})
    admin = {} if not users else scram_options("admin", users["admin"])
    return Server(
        "Apache Kafka", [*java, "kafka.Kafka", str(properties)], port, answers_kafka(admin), folder / "kafka.log",
        folder=ours,
    )  # fmt: skip


def scram_options(user: str, password: str) -> dict[str, str]:
    """librdkafka options of a SCRAM user without TLS."""
    return {
        "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": user, "sasl.password": password,
    }  # fmt: skip


def _format(java: Sequence[str], properties: Path, users: Mapping[str, str]) -> None:
    # an id that begins with "-" would be read as an option
    cluster = "A" + base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")[1:]
    scram = [w for n, p in users.items() for w in ("--add-scram", f"SCRAM-SHA-512=[name={n},password={p}]")]
    words = [*java[1:], "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties), *scram]
    # a file of arguments, because everybody on this machine can read a command line
    arguments = private_file(properties.parent / "format.arguments", "\n".join(map(quoted, words)))
    done = subprocess.run(
        [java[0], f"@{arguments.name}"],
        capture_output=True, text=True, check=False, cwd=properties.parent, 
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    arguments.unlink()
    if done.returncode:
        raise ServiceError(f"Apache Kafka could not prepare its data folder: {done.stderr.strip()[-300:]}")


class ValkeyCluster:
    """Three masters on loopback that share the slots, without replicas; use it in a `with` block."""

    def __init__(self, nodes: int = 3) -> None:
        self._folder = make_folder("skyheed-cluster-")
        self._ports: list[tuple[int, int]] = []  # clients', nodes'
        self.nodes = [self._node(number) for number in range(nodes)]

    @property
    def url(self) -> str:
        """Any node leads to the others."""
        return self.nodes[0].url

    def _node(self, number: int) -> Server:
        folder, port, bus = self._folder / str(number), free_port(), free_port()
        folder.mkdir()
        settings = {
            "bind": "127.0.0.1", "port": port, "dir": folder, "save": "", "cluster-enabled": "yes",
            "cluster-port": bus, "cluster-node-timeout": 2000, "maxmemory-policy": "noeviction",
        }  # fmt: skip
        file = private_file(folder / "valkey.conf", valkey_settings(settings))
        self._ports.append((port, bus))
        return Server("Valkey", [valkey_binary(), str(file)], port, answers_redis, folder / "valkey.log")

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
            self._join()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop every node and forget what they hold."""
        for node in self.nodes:
            node.stop()
        remove_folder(self._folder)

    def _join(self) -> None:
        import redis

        clients: list[Any] = [redis.Redis.from_url(node.url) for node in self.nodes]
        share = -(-CLUSTER_SLOTS // len(clients))
        for number, client in enumerate(clients):
            last = min((number + 1) * share, CLUSTER_SLOTS) - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * share, last)
            for port, bus in self._ports:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)
        deadline = time.monotonic() + START_S
        while not all(self._is_whole(client) for client in clients):
            if time.monotonic() > deadline:
                raise ServiceError("the Valkey cluster did not form")
            time.sleep(0.1)
        for client in clients:
            client.close()

    def _is_whole(self, client: Any) -> bool:
        info = client.cluster("info")
        return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == len(self.nodes)

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self.stop()


def start_valkey_cluster(nodes: int = 3) -> ValkeyCluster:
    """A cluster that is not started yet."""
    return ValkeyCluster(nodes)
