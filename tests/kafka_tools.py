"""Apache Kafka as it stands in production: with TLS, and three brokers that replicate."""

import base64
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from skyheed.broker.local import embedded


def with_tls(
    home: str, folder: Path, certificate: Path, key: Path, users: Mapping[str, str] | None = None
) -> embedded.Server:
    """A broker that speaks TLS to clients, and asks for a SCRAM user if there are `users`; to be started."""
    server = embedded.start_apache_kafka(home, folder, users)
    pair = embedded.private_file(folder / "pair.pem", key.read_text() + certificate.read_text())
    kind = "SASL" if users else "PLAINTEXT"
    _edit(
        folder / "server.properties",
        lambda text: (
            text.replace(f"CLIENTS:{'SASL_PLAINTEXT' if users else kind}", f"CLIENTS:{_over_tls(kind)}")
            + f"ssl.keystore.type=PEM\nssl.keystore.location={pair}\nssl.truststore.type=PEM\n"
            f"ssl.truststore.location={certificate}\nssl.endpoint.identification.algorithm=\n"
        ),
    )
    return server


def _over_tls(kind: str) -> str:
    return "SASL_SSL" if kind == "SASL" else "SSL"


def _edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


class KafkaCluster:
    """Three brokers that are controllers, too; topics have three replicas, two of which must be in sync."""

    NODES = 3

    def __init__(self, home: str, folder: Path) -> None:
        cluster = "A" + base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")[1:]
        folders = [folder / f"node{number}" for number in range(1, self.NODES + 1)]
        self.servers = []
        for one in folders:
            one.mkdir(parents=True)
            self.servers.append(embedded.start_apache_kafka(home, one))
        controllers = [
            _value(one / "server.properties", "controller.quorum.voters").partition("@")[2] for one in folders
        ]
        voters = ",".join(f"{number}@{address}" for number, address in enumerate(controllers, 1))
        for number, one in enumerate(folders, 1):
            _edit(one / "server.properties", lambda text, number=number: text + _more(number, voters))  # type: ignore[misc]
            _set(one / "log" / "meta.properties", {"cluster.id": cluster, "node.id": str(number)})

    @property
    def addresses(self) -> str:
        """For bootstrap.servers."""
        return ",".join(server.address for server in self.servers)

    def __enter__(self) -> Self:
        # none answers before two of them are there
        starts = [threading.Thread(target=server.start) for server in self.servers]
        for start in starts:
            start.start()
        for start in starts:
            start.join()
        return self

    def __exit__(self, *_: object) -> None:
        ends = [threading.Thread(target=server.kill) for server in self.servers]
        for end in ends:
            end.start()
        for end in ends:
            end.join()


def _more(number: int, voters: str) -> str:
    return f"""
node.id={number}
controller.quorum.voters={voters}
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
"""


def _value(path: Path, name: str) -> str:
    return next(line.partition("=")[2] for line in path.read_text().splitlines() if line.startswith(f"{name}="))


def _set(path: Path, values: Mapping[str, str]) -> None:
    lines = [line for line in path.read_text().splitlines() if line.partition("=")[0] not in values]
    path.write_text("\n".join([*lines, *(f"{name}={value}" for name, value in values.items()), ""]))
