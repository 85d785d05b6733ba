"""The rights that docs/security.md lists: every program works with exactly them, and they hold nothing beyond."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from server_tools import ValkeyCluster
from state_tools import deliveries, observation
from stream_tools import ingest_all, publish, save_checkpoint, sdss_alert, settings_for, work_all

from skyheed.broker import app as daemon
from skyheed.broker import config, heartbeat, metrics
from skyheed.broker import health as check
from skyheed.broker.errors import MissingRight
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings
from skyheed.broker.state import client as state
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.keys import SEGMENT_BITS
from skyheed.broker.state.ledger import Ledger
from skyheed.broker.state.nodes import Replicas
from skyheed.broker.waiting import patiently

pytestmark = pytest.mark.redis
ROOT = Path(__file__).parents[2]
SURVEY, PASSWORD = "sdss", "pw-5731"
LUA = {
    "skyheed-ingest": ("store", "sweep", "fold", "finish", "reopen", "agree", "beat"),
    "skyheed-work": (
        "wake",
        "claim",
        "fetch",
        "drop",
        "settle",
        "release",
        "tokens",
        "join",
        "speak",
        "retire",
        "agree",
        "beat",
    ),
    "skyheed-look": ("objects", "waiting", "beats", "fetch"),
}
# What is asked without a script: by the client, the ledger, the layout and the queue.
ALWAYS = {"ping", "eval_ro", "evalsha_ro", "command", "cluster|slots"}  # the last two on a cluster
WRITES = {"eval", "evalsha"}
DIRECT = {
    "skyheed-ingest": {
        "get", "set", "hget", "hset", "hdel", "hvals", "smembers", "sadd", "srem", "bitfield", "persist", "pexpire",
        "zrandmember", "incr", "wait",
    },
    "skyheed-work": {"get", "set", "hget", "hdel", "hmget", "zcard", "smembers", "zscan", "unlink"},
    "skyheed-look": {"get", "hget", "hvals", "smembers", "lrange"},
}  # fmt: skip
NO_COMMANDS = {"NX", "XX", "WITHSCORES", "LIMIT", "AGGREGATE", "MIN"}


def rights() -> dict[str, list[str]]:
    """User -> the rules of docs/security.md, for this test's survey."""
    text = (
        (ROOT / "docs" / "security.md").read_text().replace("{ztf", f"{{{SURVEY}").replace(">PASSWORD", f">{PASSWORD}")
    )
    return {user: rules.split() for user, rules in re.findall(r"^user (skyheed-\w+) (.*)$", text, re.MULTILINE)}


def with_rights(client: redis_py.Redis) -> None:
    for user, rules in rights().items():
        client.execute_command("ACL SETUSER", user, "reset", *rules)


@pytest.fixture
def admin(valkey: embedded.Server) -> Iterator[redis_py.Redis]:
    with redis_py.Redis.from_url(valkey.url) as client:
        with_rights(client)
        yield client
        client.execute_command("ACL DELUSER", *rights())


def url_of(server: embedded.Server, user: str) -> str:
    return server.url.replace("redis://", f"redis://skyheed-{user}:{PASSWORD}@")


@pytest.mark.parametrize("user", sorted(LUA))
def test_the_list_holds_what_is_used_and_nothing_beyond(user: str) -> None:
    listed = {rule[1:] for rule in rights()[user] if rule.startswith("+")}
    scripts = {word.lower() for name in LUA[user] for word in _commands(state.script(name).text)}
    assert listed == scripts | DIRECT[user] | ALWAYS | (set() if user == "skyheed-look" else WRITES)
    assert not any("@" in rule or rule == "allkeys" for rule in rights()[user])


def _commands(lua: str) -> set[str]:
    code = re.sub(r"--.*", "", lua)
    return set(re.findall(r"'([A-Z]+)'", code)) - NO_COMMANDS


def test_ingest_and_redrive_need_no_more(valkey: embedded.Server, admin: redis_py.Redis) -> None:
    settings = config.load(overrides={"survey": SURVEY}, environ={"SKYHEED_REDIS": url_of(valkey, "ingest")})
    intake = daemon.make_intake(settings, None)  # type: ignore[arg-type]
    intake.ledger.ping()
    for segment in range(2):  # the second begins with folding the first
        first = segment * SEGMENT_BITS
        intake.ledger.consumed({"t@x/0": range(first, first + 6)})
        seen = [observation("a", n) for n in (1, 2, 3)] + [observation("a", 3), observation("a", 3, flux=2.0)]
        intake.store.store(deliveries(seen, "t@x/0", first))
        intake.ledger.skipped([("t@x/0", first + 5, "no_stamp")])
        intake.ledger.set_aside([("t@x/0", first + 5, "truncated")])
    assert intake.ledger.settled([("t@x/0", 1)]) == [True]
    admin.delete(*admin.scan_iter("*recent"))
    assert intake.ledger.finish()
    intake.ledger.consumed({"t@x/0": [0]})
    quick = SequenceStore(state.connect(settings.redis.url), SURVEY, ttl_s=0.0, max_stamps=1, debounce_s=0.0)
    admin.delete(*[key for key in admin.scan_iter() if b":fresh" in key])
    quick.store(deliveries([observation("a", n) for n in (1, 2, 3)], "t@x/1"))  # forgotten, stored again and cut
    assert Ledger(state.connect(valkey.url), SURVEY).books().objects.expired == 1
    replicated = state.Client(settings.redis.url, replicas=Replicas(1, 0.1))
    with pytest.raises(Exception, match="0 of 1 replicas"):
        replicated.run([("SET", "sh:{sdss}:x", 1)], durable=True)
    heartbeat.Heartbeat(state.connect(settings.redis.url), SURVEY, "ingest", metrics.IngestMetrics(SURVEY)).run(_set())


def _set() -> threading.Event:
    stop = threading.Event()
    stop.set()
    return stop


@pytest.mark.kafka
def test_every_program_works_with_its_own_user(
    kafka: embedded.Server, valkey: embedded.Server, admin: redis_py.Redis, tmp_path: Path
) -> None:
    topic = "rights"

    def settings(user: str, **more: Any) -> Settings:
        return settings_for(kafka.address, url_of(valkey, user), SURVEY, topic, **more)

    publish(settings("ingest"), topic, [sdss_alert(f"A{i}", n) for i in range(3) for n in range(4)])
    assert ingest_all(settings("ingest"))["stored"] == 12
    model = save_checkpoint(tmp_path, SURVEY)
    assert work_all(settings("work"), model)["classified"] == 3
    # a cut sequence, kept tokens, a lost object, an expired lease
    publish(settings("ingest"), topic, [sdss_alert(f"A{i}", 4) for i in range(3)])
    ingest_all(settings("ingest"))
    shard = daemon.connect_store(settings("look"))[0]
    assert shard.latest("A0")
    admin.delete(*[key for key in admin.scan_iter() if b"headers:A0" in key])
    daemon.connect_store(settings("work"))[1].claim(1, 0.0)
    totals = work_all(settings("work"), model)
    assert totals["classified"] == 2
    words = ["--survey", SURVEY, "--redis", valkey.url.replace("redis://", "redis://skyheed-look@")]
    environ = {"PATH": os.defpath, "SKYHEED_REDIS_PASSWORD": PASSWORD}
    for verb in (["check", "--only", "redis,queue,oldest,daemons"], ["audit"], ["object", "A1"], ["layout"]):
        done = _run([*verb, *words], environ)
        assert ("may not" in done.stdout) == (verb[0] == "check"), done.stdout
        assert (done.returncode, done.stderr) == (verb[0] == "audit", ""), done.stdout  # one object was lost


def _run(words: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "skyheed.broker.cli", *words], capture_output=True, text=True, timeout=60, check=False,
        env=environ,
    )  # fmt: skip


def test_check_tells_more_to_who_may_ask_more(valkey: embedded.Server, admin: redis_py.Redis) -> None:
    def line(**more: Any) -> check.Line:
        given = config.load(overrides={"survey": SURVEY, **more}, environ={"SKYHEED_REDIS": url_of(valkey, "look")})
        [found] = check.check(given, ["redis"])
        return found

    assert (line().ok, "INFO" in line().sentence) == (True, True)
    admin.execute_command("ACL SETUSER", "skyheed-look", "+info")
    assert "MiB used" in line().sentence
    few = line(**{"redis.wait_replicas": 1})
    assert not few.ok
    assert "has 0 replicas and redis.wait_replicas is 1" in few.sentence
    admin.execute_command("REPLICAOF", "127.0.0.1", embedded.free_port())
    try:
        assert not line().ok
        assert "is a replica" in line().sentence
    finally:
        admin.execute_command("REPLICAOF", "NO", "ONE")


def test_who_looks_can_change_nothing_and_others_surveys_are_out_of_reach(
    valkey: embedded.Server, admin: redis_py.Redis
) -> None:
    looks = state.connect(url_of(valkey, "look"))
    writes = [("SET", "sh:{sdss}:layout", 1), ("HSET", "sh:{sdss}:agreed", "a", 1)]
    for command in writes:
        with pytest.raises(MissingRight, match=r"docs/security\.md"):
            looks.run([command])
    with pytest.raises(MissingRight):
        looks.call("beat", [("sh:{sdss}:", 1000, "x", "{}")])
    ingest = state.connect(url_of(valkey, "ingest"))
    admin.execute_command("ACL SETUSER", "skyheed-ingest", "-hincrby", "-hset")
    with pytest.raises(MissingRight, match="hset"):  # inside a script, where servers say it in other words
        ingest.call("beat", [("sh:{sdss}:", 1000, "x", "{}")])
    for command in (("GET", "sh:{ztf}:layout"), ("GET", "sh:{sdss2}:layout"), ("GET", "other")):
        with pytest.raises(MissingRight):
            ingest.run([command])


def test_the_rights_are_enough_on_a_cluster(valkey_cluster: ValkeyCluster) -> None:
    admins = [redis_py.Redis.from_url(node.url) for node in valkey_cluster.nodes]
    for client in admins:
        with_rights(client)
    try:
        url = valkey_cluster.url.replace("redis://", f"redis://skyheed-ingest:{PASSWORD}@")
        store = SequenceStore(state.connect(url, cluster=True), SURVEY)
        assert len(patiently(lambda: store.store(deliveries([observation(f"o{n}") for n in range(40)])), _set())) == 40
        store._client.ping()
    finally:
        for client in admins:
            client.execute_command("ACL DELUSER", *rights())
            client.close()
