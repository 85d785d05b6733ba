"""Three Apache Kafka brokers that replicate, as they stand in production."""

import base64
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from server_tools import start_apache_kafka

HEAP = "-Xmx256m"
REPLICATED = """
node.id={number}
controller.quorum.voters={voters}
min.insync.replicas=2
default.replication.factor=3
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
controlled.shutdown.enable=true
"""


class KafkaCluster:
    """Three brokers that are controllers, too; use it in a `with` block."""

    NODES = 3

    def __init__(self, home: str, folder: Path) -> None:
        folders = [folder / f"node-{number}" for number in range(1, self.NODES + 1)]
        for one in folders:
            one.mkdir(parents=True)
        self.servers = [start_apache_kafka(home, one) for one in folders]
        voters = [_values(one / "server.properties")["controller.quorum.voters"].partition("@")[2] for one in folders]
        together = ",".join(f"{number}@{address}" for number, address in enumerate(voters, 1))
        cluster = "A" + base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")[1:]
        for number, (one, server) in enumerate(zip(folders, self.servers, strict=True), 1):
            with (one / "server.properties").open("a") as properties:
                properties.write(REPLICATED.format(number=number, voters=together))
            _set(one / "log" / "meta.properties", {"cluster.id": cluster, "node.id": str(number)})
            server._command = [HEAP if word.startswith("-Xmx") else word for word in server._command]

    @property
    def addresses(self) -> str:
        """For bootstrap.servers."""
        return ",".join(server.address for server in self.servers)

    def __enter__(self) -> Self:
        _all([server.start for server in self.servers])  # none answers before two of them are there
        return self

    def __exit__(self, *_: object) -> None:
        _all([server.kill for server in self.servers])


def _all(calls: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _values(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line and line[0] != "#")


def _set(path: Path, values: Mapping[str, str]) -> None:
    changed = _values(path) | values
    path.write_text("".join(f"{name}={value}\n" for name, value in changed.items()))
