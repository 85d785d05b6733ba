"""The rights that docs/security.md lists: each program works with exactly them, those who look in Redis too."""

import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import redis as redis_py
from confluent_kafka import admin
from host_tools import Reply, Request, SkyPortalRules, standing
from process_tools import Program, until
from server_tools import SCRAM_USERS, scram_options
from stream_tools import answers, ingest_all, publish, raw_messages, save_checkpoint, sdss_alert, settings_for, work_all
from test_backfill import AlerceRules, fetched, packet
from test_redis_rights import PASSWORD, with_rights
from test_redis_rights import rights as redis_rights
from web_tools import keep, publish_news

from skyheed.broker import app as daemon
from skyheed.broker.errors import ServiceError
from skyheed.broker.kafka import client as kafka
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings
from skyheed.broker.subscribe import Subscriber

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
ALERTS, GROUP = "rights-alerts", "rights-group"
MISSED, REFUSAL = ("not allow", "may not", "Traceback"), "not allow"


def rights(survey: str = "sdss", sink: str = "skyportal") -> dict[str, list[tuple[str, str, list[str]]]]:
    """Program -> (kind, name, operations), from the table, for this test's survey, alerts and groups."""
    text = (Path(__file__).parents[3] / "docs" / "security.md").read_text().replace(".ztf", f".{survey}")
    ours = {"alerts": ALERTS, "skyheed": GROUP, "its own": GROUP}
    found = {}
    for program, *columns in re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", text, re.MULTILINE):
        found[program] = [
            (kind, ours.get(name, name).replace("SINK", sink), words.split(", "))
            for kind, column in zip(("TOPIC", "GROUP"), columns, strict=True)
            for name, _, words in (part.partition(": ") for part in column.replace("`", "").split("; ")) if words
        ]  # fmt: skip
    return found


def grant(root: Mapping[str, str], user: str, granted: list[tuple[str, str, list[str]]]) -> None:
    bindings = [
        admin.AclBinding(
            admin.ResourceType[kind], name, admin.ResourcePatternType.LITERAL, f"User:{user}", "*",
            admin.AclOperation[word], admin.AclPermissionType.ALLOW,
        )
        for kind, name, words in granted for word in words
    ]  # fmt: skip
    client = admin.AdminClient(dict(root))
    for future in client.create_acls(bindings).values():
        future.result()


@pytest.fixture
def settings(kafka_scram: embedded.Server, valkey: embedded.Server) -> Callable[..., Settings]:
    def make(user: str, survey: str = "sdss", **more: str) -> Settings:
        plain = settings_for(kafka_scram.address, valkey.url, survey, ALERTS, **{"ingest.group": GROUP, **more})
        return replace(plain, kafka={**plain.kafka, **scram_options(user, SCRAM_USERS[user])})

    return make


@pytest.fixture
def looks(valkey: embedded.Server) -> Iterator[str]:
    """The address of Redis for a user who may look at sdss and ztf."""
    with redis_py.Redis.from_url(valkey.url) as client:
        with_rights(client)
        client.execute_command("ACL SETUSER", "skyheed-look", *[f"%R~sh:{{ztf{end}:*" for end in ("}", "", "|")])
        yield valkey.url.replace("redis://", "redis://skyheed-look@")
        client.execute_command("ACL DELUSER", *redis_rights())


def test_every_program_works_with_the_rights_that_are_listed(settings: Callable[..., Settings], tmp_path: Path) -> None:
    assert set(rights()) == {"ingest", "work", "subscribe", "forward", "backfill", "serve"}
    root = settings("admin").kafka
    kafka.ensure_topics(root, daemon.own_topics(settings("admin")), 1, 1)
    publish(settings("admin"), ALERTS, [sdss_alert(f"A{i}", n) for i in range(3) for n in range(4)] + [b"bad"])
    with pytest.raises(ServiceError, match="does not allow user 'alice'"):
        ingest_all(settings("alice"))
    grant(root, "alice", rights()["ingest"])
    done = ingest_all(settings("alice"))
    assert (done["stored"], done["rejected"]) == (12, 1), done
    model = save_checkpoint(tmp_path, "sdss")
    grant(root, "bob", rights()["work"])
    daemon.prepare_topics(settings("bob"), threading.Event())
    assert work_all(settings("bob"), model)["classified"] == 3
    with pytest.raises(ServiceError, match="does not allow user 'bob'"):
        answers(settings("bob"))
    grant(root, "bob", rights()["subscribe"])
    own = settings("bob")
    with Subscriber(
        str(own.kafka["bootstrap.servers"]), own.classification_topic, options=dict(own.kafka), drain=True, group=GROUP
    ) as stream:
        assert len(list(stream)) == 3


def configured(folder: Path, settings: Settings, redis_url: str, *lines: str) -> tuple[str, dict[str, str]]:
    """A configuration and an environment for a program of its own."""
    folder.mkdir()
    options = [f'"{key}" = "{value}"' for key, value in settings.kafka.items() if key != "sasl.password"]
    head = [f'survey = "{settings.survey}"', "[kafka]", *options, "[redis]", f'url = "{redis_url}"', "[ingest]"]
    (folder / "own.toml").write_text("\n".join([*head, f'topics = ["{ALERTS}"]', f'group = "{GROUP}"', *lines]))
    secrets = {"SKYHEED_KAFKA_PASSWORD": settings.kafka["sasl.password"], "SKYHEED_REDIS_PASSWORD": PASSWORD}
    return str(folder / "own.toml"), secrets


@contextmanager
def running(program: Program, expected: str = "") -> Iterator[Program]:
    """It runs meanwhile, ends as an operator would have it end, and has missed no right but the `expected` one."""
    try:
        yield program
        assert program.process.poll() is None, program.said
        program.process.terminate()
        assert program.process.wait(60) == 0, program.said
        assert not any(word in program.said for word in MISSED if word != expected), program.said
    finally:
        program.process.kill()
        program.process.wait()


def refused_at_the_start(program: Program, user: str) -> None:
    assert program.process.wait(120) == 1, program.said
    assert f"does not allow user {user!r}" in program.said
    assert "Traceback" not in program.said


def test_forward_works_with_its_rights(settings: Callable[..., Settings], looks: str, tmp_path: Path) -> None:
    admins, own = settings("admin"), settings("carol")
    publish_news(admins, {"one": 4, "two": 5, "odd": 4})
    keep(admins, {"one": 4, "two": 5}, f"rights-{uuid.uuid4().hex}/0")
    kafka.ensure_topics(admins.kafka, {admins.refused_topic("skyportal"): {}}, 1, 1)
    known = SkyPortalRules({"one", "two", "odd"}, {"Ia"})

    def choosy(request: Request) -> Reply:
        odd = request.method == "POST" and "/odd/" in request.path
        return (400, {"status": "error", "message": "odd"}) if odd else known(request)

    with standing(choosy) as host:
        options = {"url": host.url, "token": "t0ken", "taxonomy_id": "3", "analysis_service_id": "7"}
        table = ["[sinks.skyportal]", *[f'{key} = "{value}"' for key, value in options.items()]]
        path, secrets = configured(tmp_path / "own", own, looks, *table)
        words = ("forward", "--config", path, "--to", "skyportal", "--rate", "1000", "--metrics-port", "0")
        refused_at_the_start(Program(tmp_path / "refused", *words, environ=secrets), "carol")
        grant(admins.kafka, "carol", rights()["forward"])
        with running(Program(tmp_path / "allowed", *words, environ=secrets)):
            until(lambda: len(known.analyses) == 2, 120, "two analyses")
            until(lambda: b"odd" in _keys(admins, admins.refused_topic("skyportal")), 60, "what the host refuses")
    assert all(row["analysis"]["plots"] for row in known.analyses.values()), "strips from Redis"


def _keys(settings: Settings, topic: str) -> list[bytes | None]:
    return [message.key() for message in raw_messages(settings, topic)]


def test_backfill_works_with_its_rights(settings: Callable[..., Settings], looks: str, tmp_path: Path) -> None:
    admins, own = settings("admin", "ztf"), settings("dave", "ztf")
    name = f"ZTF{uuid.uuid4().hex[:8]}"
    publish(admins, ALERTS, [packet(name, 4, 2)])
    kafka.ensure_topics(admins.kafka, {admins.backfill_topic: {}}, 1, 1)
    with standing(AlerceRules({(name, n): packet(name, n) for n in (2, 3)})) as host:
        path, secrets = configured(tmp_path / "own", own, looks, "[providers.alerce]", f'url = "{host.url}"')
        words = ("backfill", "--config", path, "--from", "alerce", "--rate", "1000", "--metrics-port", "0")
        refused_at_the_start(Program(tmp_path / "refused", *words, environ=secrets), "dave")
        grant(admins.kafka, "dave", rights("ztf")["backfill"])
        with running(Program(tmp_path / "allowed", *words, environ=secrets)):
            until(lambda: fetched(admins, name) == {2, 3}, 120, "two packets")


def test_the_page_works_with_its_rights(settings: Callable[..., Settings], looks: str, tmp_path: Path) -> None:
    admins, own = settings("admin"), settings("erin")
    kafka.ensure_topics(admins.kafka, daemon.own_topics(admins), 1, 1)
    publish(admins, ALERTS, [sdss_alert("seen", n) for n in range(4)] + [b"bad"])
    ingest_all(admins)
    publish_news(admins, {"seen": 4})
    path, secrets = configured(tmp_path / "own", own, looks)
    words = ("serve", "--config", path, "--port", "0", "--index", str(tmp_path / "index.sqlite"))
    with running(Program(tmp_path / "page", *words, environ=secrets), REFUSAL) as own_page:
        own_page.until_it_says("the page is at")
        url = own_page.said.split("the page is at ")[1].split()[0]
        with httpx.Client(base_url=f"{url}api/v1/", timeout=60) as page:
            until(lambda: "does not allow user 'erin'" in page.get("status").text, 60, "that it may not read")
            grant(admins.kafka, "erin", rights()["serve"])
            until(lambda: page.get("objects").json()["rows"], 120, "a classification")
            assert len(page.get("objects/seen").json()["epochs"]["mjd"]) == 4
            until(lambda: not page.get("status").json()["notices"], 120, "no notice")
            status = page.get("status").json()
    assert status["lag"]
    assert status["dead_letters"]["letters"]
