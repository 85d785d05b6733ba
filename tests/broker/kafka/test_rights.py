"""The rights in Kafka that docs/security.md lists: each program works with exactly them."""

import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import admin
from conftest import SCRAM_USERS
from server_tools import scram_options
from stream_tools import answers, ingest_all, publish, save_checkpoint, sdss_alert, settings_for, work_all

from skyheed.broker import app as daemon
from skyheed.broker.errors import ServiceError
from skyheed.broker.kafka import client as kafka
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings
from skyheed.broker.subscribe import Subscriber

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
ALERTS, GROUP = "rights-alerts", "rights-group"


def rights() -> dict[str, list[tuple[str, str, list[str]]]]:
    """Program -> (kind, name, operations), from the table, for this test's survey, alerts and group."""
    text = (Path(__file__).parents[3] / "docs" / "security.md").read_text().replace(".ztf", ".sdss")
    found = {}
    for program, topics, group in re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", text, re.MULTILINE):
        granted = [part.split(": ") for part in topics.replace("`", "").split("; ")]
        own = [("TOPIC", ALERTS if name == "alerts" else name, words.split(", ")) for name, words in granted]
        found[program] = [*own, *([("GROUP", GROUP, [group.split(": ")[1]])] if ":" in group else [])]
    return found


def grant(root: dict[str, str], user: str, program: str) -> None:
    bindings = [
        admin.AclBinding(
            admin.ResourceType[kind], name, admin.ResourcePatternType.LITERAL, f"User:{user}", "*",
            admin.AclOperation[word], admin.AclPermissionType.ALLOW,
        )
        for kind, name, words in rights()[program] for word in words
    ]  # fmt: skip
    client = admin.AdminClient(root)
    for future in client.create_acls(bindings).values():
        future.result()


def test_every_program_works_with_the_rights_that_are_listed(
    kafka_scram: embedded.Server, valkey: embedded.Server, tmp_path: Path
) -> None:
    assert set(rights()) == {"ingest", "work", "subscribe"}

    def settings(user: str) -> Settings:
        scram = scram_options(user, SCRAM_USERS[user])
        plain = settings_for(kafka_scram.address, valkey.url, "sdss", ALERTS, **{"ingest.group": GROUP})
        return replace(plain, kafka={**plain.kafka, **scram})

    root = dict(settings("admin").kafka)
    kafka.ensure_topics(root, daemon.own_topics(settings("admin")), 1, 1)
    publish(settings("admin"), ALERTS, [sdss_alert(f"A{i}", n) for i in range(3) for n in range(4)] + [b"bad"])
    with pytest.raises(ServiceError, match="does not allow user 'alice'"):
        ingest_all(settings("alice"))
    grant(root, "alice", "ingest")
    done = ingest_all(settings("alice"))
    assert (done["stored"], done["rejected"]) == (12, 1), done
    model = save_checkpoint(tmp_path, "sdss")
    grant(root, "bob", "work")
    daemon.prepare_topics(settings("bob"), threading.Event())
    assert work_all(settings("bob"), model)["classified"] == 3
    with pytest.raises(ServiceError, match="does not allow user 'bob'"):
        answers(settings("bob"))
    grant(root, "bob", "subscribe")
    own = settings("bob")
    with Subscriber(
        kafka_scram.address, topic=own.classification_topic, options=dict(own.kafka), drain=True, group=GROUP
    ) as stream:
        assert len(list(stream)) == 3
