import base64
import json
import logging
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from skyheed.broker.errors import (
    ConfigError,
    PacketError,
    Reason,
    ServiceError,
    ServiceUnavailable,
)
from skyheed.broker.packets.avro import Schema
from skyheed.broker.registry import schemas as registry
from skyheed.broker.registry.client import Away, RegistryClient
from skyheed.broker.registry.schemas import KEPT, SchemaSource

ALERT = {"type": "record", "name": "alert", "fields": [{"name": "id", "type": "long"}]}
SECRET = "correct horse battery"


class Server:
    """A schema registry on a free loopback port; `answers` maps a path to (status, JSON) or a list of them."""

    def __init__(self):
        self.answers = {}
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append((self.path, self.headers.get("Authorization")))
                answer = outer.answers.get(self.path, (404, {"error_code": 40403}))
                if isinstance(answer, list):
                    answer = answer.pop(0) if len(answer) > 1 else answer[0]
                status, content = answer
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", content)
                    content = {}
                self.end_headers()
                self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server():
    running = Server()
    yield running
    running.stop()


def schema_answer(definition=ALERT, **more):
    return 200, {"schema": json.dumps(definition), **more}


def free_url():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def source(server, **options):
    return SchemaSource(server.url, package="", **options)


def reason_of(schemas, schema_id=7):
    with pytest.raises(PacketError) as caught:
        schemas.get(schema_id)
    return caught.value.reason


def test_a_schema_is_asked_for_once(server):
    server.answers["/schemas/ids/7"] = schema_answer()
    schemas = source(server)
    first = schemas.get(7)
    assert isinstance(first, Schema)
    assert first.root.fields[0][0] == "id"
    assert schemas.get(7) is first
    assert [path for path, _ in server.requests] == ["/schemas/ids/7"]


def test_basic_authentication(server):
    server.answers["/schemas/ids/7"] = schema_answer()
    SchemaSource(server.url, "me", SECRET, package="").get(7)
    scheme, _, token = server.requests[0][1].partition(" ")
    assert (scheme, base64.b64decode(token).decode()) == ("Basic", f"me:{SECRET}")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_password_stops_and_is_not_shown(server, status, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    server.answers["/schemas/ids/7"] = (status, {})
    with pytest.raises(ServiceError, match="refuses") as caught:
        SchemaSource(server.url, "me", SECRET, package="").get(7)
    shown = repr(caught.value) + caplog.text + "".join(capfd.readouterr())
    assert SECRET not in shown
    assert base64.b64encode(f"me:{SECRET}".encode()).decode() not in shown
    assert len(server.requests) == 1


def test_the_password_does_not_follow_a_redirect(server):
    other = Server()
    other.answers["/schemas/ids/7"] = schema_answer()
    server.answers["/schemas/ids/7"] = (302, f"{other.url}/schemas/ids/7")
    try:
        assert SchemaSource(server.url, "me", SECRET, package="").get(7)
    finally:
        other.stop()
    assert server.requests[0][1]
    assert other.requests == [("/schemas/ids/7", None)]


@pytest.mark.parametrize(
    "proxy",
    ["u:hidden", "http://u:hidden@127.0.0.1:9", "http://127.0.0.1:hidden", "http://h:u:hidden", "http:u:hidden@h"],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_of_the_registry_shows_no_password(monkeypatch, proxy, scheme):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, proxy)
    with pytest.raises(Away) as error:
        RegistryClient(f"{scheme}://registry.invalid:1").get("/schemas/ids/1")
    assert "hidden" not in str(error.value)


def test_an_unknown_id_is_remembered_for_a_while(server, monkeypatch):
    schemas = source(server)
    assert reason_of(schemas) is Reason.UNKNOWN_SCHEMA
    assert reason_of(schemas) is Reason.UNKNOWN_SCHEMA
    assert len(server.requests) == 1
    server.answers["/schemas/ids/7"] = schema_answer()
    now = time.monotonic()
    monkeypatch.setattr(registry.time, "monotonic", lambda: now + registry.RECHECK_S + 1)
    assert schemas.get(7)


def test_a_short_failure_is_waited_out(server):
    server.answers["/schemas/ids/7"] = [(503, {}), (500, {}), schema_answer()]
    began = time.monotonic()
    assert source(server).get(7)
    assert len(server.requests) == 3
    assert 0.5 < time.monotonic() - began < registry.RETRY_S


def test_references_are_followed(server):
    server.answers["/schemas/ids/7"] = schema_answer(
        {"type": "record", "name": "alert", "fields": [{"name": "s", "type": "lsst.source"}]},
        references=[{"name": "lsst.source", "subject": "a/b", "version": 3}],
    )
    server.answers["/subjects/a%2Fb/versions/3"] = schema_answer(
        {"type": "record", "name": "source", "namespace": "lsst", "fields": [{"name": "x", "type": "int"}]}
    )
    assert source(server).get(7).root.fields[0][1].fields[0][0] == "x"


def part(name, **fields):
    made = [{"name": field, "type": kind} for field, kind in fields.items()]
    return {"type": "record", "name": name, "namespace": "t.x", "fields": made}


def reference(name, subject, version=1):
    return {"references": [{"name": name, "subject": subject, "version": version}]}


@pytest.mark.parametrize("version", [2, -1, "latest"])
@pytest.mark.parametrize("by", ["type", "subject"])
def test_retired_references_are_still_found(server, version, by):
    """Confluent answers 404 for a version that was soft-deleted, unless ?deleted=true; so may what it refers to."""
    name = {"type": "t.x.Outer", "subject": "any name at all"}[by]
    asked = "latest" if version in (-1, "latest") else version
    server.answers["/schemas/ids/7"] = schema_answer(part("Alert", a="t.x.Outer"), **reference(name, "outer", version))
    server.answers[f"/subjects/outer/versions/{asked}?deleted=true"] = schema_answer(
        part("Outer", b="t.x.Inner"), **reference("t.x.Inner", "inner")
    )
    server.answers["/subjects/inner/versions/1?deleted=true"] = schema_answer(part("Inner", v="long"))
    root = source(server).get(7).root
    assert root.fields[0][1].fields[0][1].fields[0][0] == "v"


def test_a_reference_that_is_gone_for_good(server):
    server.answers["/schemas/ids/7"] = schema_answer(part("Alert", a="t.x.Inner"), **reference("t.x.Inner", "inner"))
    assert reason_of(source(server)) is Reason.UNKNOWN_SCHEMA


def test_a_retired_reference_that_the_registry_hides_is_found_locally(server, tmp_path):
    server.answers["/schemas/ids/7"] = schema_answer(part("Alert", a="t.x.Inner"), **reference("t.x.Inner", "inner"))
    (tmp_path / "7.avsc").write_text(json.dumps(part("Alert", a=part("Inner", v="long"))))
    assert source(server, directory=tmp_path).get(7).root.fields[0][1].fields[0][0] == "v"


def test_two_versions_of_a_subject_are_referred_to_at_once(server):
    """Each version brings a type of its own; the same subject is asked for both."""
    both = [{"name": n, "subject": "parts", "version": v} for n, v in (("t.x.Old", 1), ("t.x.New", 2))]
    server.answers["/schemas/ids/7"] = schema_answer(part("Alert", a="t.x.Old", b="t.x.New"), references=both)
    server.answers["/subjects/parts/versions/1?deleted=true"] = schema_answer(part("Old", v="int"))
    server.answers["/subjects/parts/versions/2"] = schema_answer(part("New", w="int"))
    first, second = source(server).get(7).root.fields
    assert (first[1].fields[0][0], second[1].fields[0][0]) == ("v", "w")


def test_references_without_end(server):
    answer = schema_answer(ALERT, references=[{"name": f"n{i}", "subject": "s", "version": 1} for i in range(60)])
    server.answers["/schemas/ids/7"] = answer
    server.answers["/subjects/s/versions/1"] = schema_answer()
    assert reason_of(source(server)) is Reason.BAD_SCHEMA


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        5,
        None,
        {"schema": 5},
        {"schema": "{"},
        {"schema": "{}"},
        {"schema": "{}", "schemaType": "PROTOBUF"},
        {"schema": "{}", "references": 5},
    ],
)
def test_senseless_answers(server, answer):
    server.answers["/schemas/ids/7"] = (200, answer)
    assert reason_of(source(server)) is Reason.BAD_SCHEMA


def test_a_registry_that_is_away(monkeypatch):
    monkeypatch.setattr(registry, "RETRY_S", 0.5)
    schemas = SchemaSource(free_url(), package="")
    began = time.monotonic()
    assert reason_of(schemas) is Reason.REGISTRY_UNAVAILABLE
    assert 0.1 < time.monotonic() - began < 2
    began = time.monotonic()
    for schema_id in (7, 8, 9):  # known to be unavailable: no waiting
        assert reason_of(schemas, schema_id) is Reason.REGISTRY_UNAVAILABLE
    assert time.monotonic() - began < 0.1
    with pytest.raises(ServiceUnavailable, match=r"does not answer: .*refused"):
        schemas.ping()


@pytest.mark.parametrize("content", [b"<html>", b"x" * (3 << 20)])
def test_something_else_at_the_address(server, monkeypatch, content):
    monkeypatch.setattr(registry, "RETRY_S", 0.1)
    server.answers["/schemas/ids/7"] = (200, content)
    assert reason_of(source(server)) is Reason.REGISTRY_UNAVAILABLE


def test_local_schemas_help_until_the_registry_is_back(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(registry, "RETRY_S", 0.3)
    (tmp_path / "7.avsc").write_text(json.dumps(ALERT))
    server.answers["/schemas/ids/7"] = (503, {})
    schemas = source(server, directory=tmp_path)
    local = schemas.get(7)
    assert schemas.get(7) is local
    assert caplog.text.count("does not answer") == 1
    server.answers["/schemas/ids/7"] = schema_answer()
    now = time.monotonic()
    monkeypatch.setattr(registry.time, "monotonic", lambda: now + registry.RECHECK_S + 1)
    assert schemas.get(7) is not local


def test_local_schema_for_an_id_that_the_registry_does_not_know(server, tmp_path):
    (tmp_path / "7.avsc").write_text(json.dumps(ALERT))
    assert source(server, directory=tmp_path).get(7)


def test_directory_by_version(tmp_path):
    version = tmp_path / "12" / "3"
    version.mkdir(parents=True)
    top = {
        "type": "record",
        "name": "alert",
        "namespace": "lsst.v12_3",
        "fields": [{"name": "s", "type": "lsst.v12_3.diaSource"}],
    }
    part = {"type": "record", "name": "diaSource", "namespace": "lsst.v12_3", "fields": [{"name": "x", "type": "int"}]}
    (version / "lsst.v12_3.alert.avsc").write_text(json.dumps(top))
    (version / "lsst.v12_3.diaSource.avsc").write_text(json.dumps(part))
    assert SchemaSource(directory=tmp_path, package="").get(1203).root.fields[0][1].fields[0][0] == "x"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"type": "nothing"}'])
def test_a_damaged_local_schema(tmp_path, text):
    (tmp_path / "7.avsc").write_text(text)
    (tmp_path / "1" / "0").mkdir(parents=True)
    (tmp_path / "1" / "0" / "x.alert.avsc").write_text(text)
    for schema_id in (7, 100):
        assert reason_of(SchemaSource(directory=tmp_path, package=""), schema_id) is Reason.BAD_SCHEMA


def test_a_local_schema_that_never_ends(tmp_path):
    (tmp_path / "1" / "0").mkdir(parents=True)
    os.mkfifo(tmp_path / "1" / "0" / "x.alert.avsc")
    (tmp_path / "7.avsc").symlink_to("/dev/zero")
    with (tmp_path / "8.avsc").open("wb") as sparse:
        sparse.truncate(2**40)
    schemas = SchemaSource(directory=tmp_path, package="")
    assert [reason_of(schemas, n) for n in (100, 8)] == [Reason.BAD_SCHEMA] * 2
    assert reason_of(schemas, 7) is Reason.UNKNOWN_SCHEMA


@pytest.mark.parametrize("version", ["7/1", "9/0", "10/0", "11/0"])
def test_the_installed_package(version):
    pytest.importorskip("lsst.alert.packet", reason="package lsst-alert-packet is not installed")
    major, minor = map(int, version.split("/"))
    schema = SchemaSource().get(100 * major + minor)
    assert "diaSource" in dict(schema.root.fields)
    assert not schema.recursive


def test_a_package_that_is_not_there():
    schemas = SchemaSource(package="no.such.package")
    assert reason_of(schemas, 900) is Reason.UNKNOWN_SCHEMA
    assert schemas.describe() == "schemas only from the packets"


@pytest.mark.parametrize(
    "url", ["ftp://host", "file:///etc/passwd", "registry:8081", "http://", "http://me:secret@host:80"]
)
def test_urls_that_cannot_work(url):
    with pytest.raises(ConfigError, match=r"registry\.") as caught:
        SchemaSource(url)
    assert "secret" not in str(caught.value)


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="not a directory"):
        SchemaSource(directory=tmp_path / "none")


def test_description_and_ping(server, tmp_path):
    server.answers["/subjects"] = (200, [])
    schemas = SchemaSource(server.url, "me", SECRET, tmp_path)
    schemas.ping()
    assert server.url in schemas.describe()
    assert SECRET not in schemas.describe() + repr(schemas)
    SchemaSource(package="").ping()


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        ((401, {}), ServiceError, "refuses registry.user"),
        ((404, {}), ServiceError, "is not a schema registry"),
        ((503, {}), ServiceUnavailable, "does not answer: HTTP status 503"),
        ((200, b"<html>"), ServiceUnavailable, "not JSON"),
    ],
)
def test_ping_says_why_the_registry_is_of_no_use(server, answer, error, sentence):
    server.answers["/subjects"] = answer
    with pytest.raises(error, match=sentence) as caught:
        SchemaSource(server.url, "me", SECRET, package="").ping()
    assert SECRET not in str(caught.value)


def test_the_cache_of_unknown_ids_is_bounded():
    schemas = SchemaSource(package="")
    for schema_id in range(3000):
        assert reason_of(schemas, schema_id) is Reason.UNKNOWN_SCHEMA
    assert len(schemas._recent) <= 1001


def test_schemas_that_are_remembered_are_bounded(server):
    schemas = source(server)
    for number in range(KEPT + 20):
        server.answers[f"/schemas/ids/{number}"] = schema_answer()
        schemas.get(number)
    assert len(schemas._known) == KEPT
