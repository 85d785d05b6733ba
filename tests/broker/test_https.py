"""TLS to a schema registry, and to the hosts of `forward` and `backfill`: which certificates are taken."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tls_tools import DAY, Authority, server_side

from skyheed.broker.errors import PacketError, Reason, ServiceError, ServiceUnavailable
from skyheed.broker.http import Host
from skyheed.broker.registry.client import RegistryClient, register
from skyheed.broker.registry.schemas import SchemaSource

SECRET = "correct horse battery"
SCHEMA = {"type": "record", "name": "alert", "fields": [{"name": "id", "type": "long"}]}


@contextlib.contextmanager
def serving(pair: tuple[Path, Path]) -> Iterator[tuple[str, list[str]]]:
    """A registry behind TLS: its URL, and the passwords that it was told."""
    told: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.append(self.headers.get("Authorization", ""))
            self.send_response(200)
            self.end_headers()
            answer = ["alert"] if self.path == "/subjects" else {"schema": json.dumps(SCHEMA)}
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None: ...  # a client that hangs up

    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = server_side(*pair).wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_address[1]}", told
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


def refusals(url: str, ca_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the three clients say; none of them waits for what no waiting cures."""
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    source = SchemaSource(url, package="", user="us", password=SECRET, ca_file=str(ca_file))
    with pytest.raises(PacketError) as unread:
        source.get(7)
    assert unread.value.reason is Reason.REGISTRY_UNAVAILABLE  # the packet waits in the dead-letter topic
    client = RegistryClient(url, "us", SECRET, str(ca_file))
    host = Host("sinks.webhook", url, {"Authorization": f"Bearer {SECRET.replace(' ', '-')}"})
    found = []
    for ask in (source.ping, lambda: register(client, "alert", "{}"), lambda: host.get("/subjects")):
        with pytest.raises(ServiceError) as refused:
            ask()
        assert not isinstance(refused.value, ServiceUnavailable)
        found.append(str(refused.value))
    host.close()
    assert not any(word in said for said in found for word in (SECRET, "correct-horse"))
    return found


def test_a_certificate_is_taken_from_an_authority_that_we_were_told_of(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    itself = Authority(tmp_path, "itself", host="127.0.0.1")
    for pair, ca_file in (
        (authority.issue("127.0.0.1"), authority.file),
        ((itself.file, itself.key_file), itself.file),
    ):
        monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
        with serving(pair) as (url, told):
            source = SchemaSource(url, package="", user="us", password=SECRET, ca_file=str(ca_file))
            source.ping()
            assert source.get(7) is not None
            host = Host("sinks.webhook", url)
            assert host.get("/subjects") == ["alert"]
            host.close()
            assert [bool(password) for password in told] == [True, True, False]


@pytest.mark.parametrize(
    ("host", "left", "why", "helps"),
    [
        ("registry.example.org", DAY, "127.0.0.1", "host name that it was issued for"),
        ("127.0.0.1", -DAY, "expired", "renew it"),
    ],
)
def test_another_name_and_an_expired_certificate_are_refused(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, host: str, left: object, why: str, helps: str
) -> None:
    with serving(authority.issue(host, left)) as (url, told):  # type: ignore[arg-type]
        for sentence in refusals(url, authority.file, monkeypatch):
            assert why in sentence
            assert helps in sentence
        assert told == []


def test_a_stranger_is_refused_and_the_sentence_names_the_option(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(authority.issue("127.0.0.1")) as (url, told):
        ping, registered, asked = refusals(url, Authority(tmp_path, "theirs").file, monkeypatch)
        assert "set registry.ca_file" in ping
        assert "set registry.ca_file" in registered
        assert "set the variable SSL_CERT_FILE" in asked
        assert told == []


def test_plain_http_where_tls_is_spoken_is_away(authority: Authority) -> None:
    with serving(authority.issue("127.0.0.1")) as (url, told):
        with pytest.raises(ServiceUnavailable):
            SchemaSource(url.replace("https", "http"), package="").ping()
        assert told == []
