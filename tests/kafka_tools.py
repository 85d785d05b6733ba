"""Apache Kafka with TLS."""

from collections.abc import Callable, Mapping
from pathlib import Path

from server_tools import scram_options, start_apache_kafka
from tls_tools import Authority

from skyheed.broker.local import embedded


def with_tls(home: str, folder: Path, authority: Authority, users: Mapping[str, str]) -> tuple[embedded.Server, str]:
    """A broker that speaks TLS: SASL_SSL at its address, SSL at the other; to be started."""
    server, other = start_apache_kafka(home, folder, users), f"127.0.0.1:{embedded.free_port()}"
    certificate, key = authority.issue("127.0.0.1")
    pair = embedded.private_file(folder / "pair.pem", key.read_text() + certificate.read_text())
    more = f"ssl.keystore.type=PEM\nssl.keystore.location={pair}\n"
    more += f"ssl.truststore.type=PEM\nssl.truststore.location={authority.file}\n"  # it is a client of itself

    def change(text: str) -> str:
        text = text.replace("CLIENTS:SASL_PLAINTEXT", "CLIENTS:SASL_SSL,TLS:SSL")
        return text.replace("listeners=CLIENTS", f"listeners=TLS://{other},CLIENTS") + more

    _edit(folder / "server.properties", change)
    unverified = {"security.protocol": "SASL_SSL", "enable.ssl.certificate.verification": "false"}
    server._answers = embedded.answers_kafka({**scram_options("admin", users["admin"]), **unverified})
    return server, other


def _edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))
