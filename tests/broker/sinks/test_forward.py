"""`skyheed forward` through Kafka: its books, what is refused, kill -9 in the middle."""

import base64
import json
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from host_tools import LasairRules, Reply, Request, SkyPortalRules, standing
from process_tools import Program, until
from state_tools import deliveries, observation
from test_subscribe import QUICK, Topic, declined, record

from skyheed.broker.cli import skyheed
from skyheed.broker.forward import Rate
from skyheed.broker.kafka.client import ensure_topics
from skyheed.broker.local import embedded
from skyheed.broker.results.record import Classification
from skyheed.broker.state import client as state
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.subscribe import Subscriber

pytestmark = pytest.mark.kafka


@pytest.fixture
def topic(kafka: embedded.Server) -> Topic:
    return Topic(kafka)


def settings(folder: Path, source: Topic, sink: str, /, **options: str) -> str:
    """A configuration with the table of one sink, and a topic of refusals of its own."""
    kafka = {"bootstrap.servers": source.kafka, **QUICK}
    lines = [
        'survey = "ztf"', "[topics]", f'prefix = "{source.name}"',
        "[kafka]", *[f'"{key}" = "{value}"' for key, value in kafka.items()],
        "[forward]", f'group = "{source.name}"', "batch = 4",
        f"[sinks.{sink}]", *[f'{key} = "{value}"' for key, value in options.items()],
    ]  # fmt: skip
    path = folder / "forward.toml"
    path.write_text("\n".join(lines))
    return str(path)


def forward(config: str, topic: Topic, name: str, *more: str) -> dict[str, int]:
    """Run the verb to its end; the counts that it prints."""
    ran = CliRunner().invoke(
        skyheed, ["forward", "--config", config, "--to", name, "--topic", topic.name, "--drain", *more],
        catch_exceptions=False,
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    return {key: int(value) for key, value in (part.split("=") for part in ran.stdout.splitlines()[-1].split())}


def refused_of(topic: Topic, name: str) -> list[Classification]:
    with Subscriber(topic.kafka, f"{topic.name}.refused.ztf.{name}", drain=True, options=QUICK) as stream:
        return list(stream)


def test_the_books_balance_and_a_refused_record_can_be_sent_again(topic: Topic, tmp_path: Path) -> None:
    topic.publish(*[record(i) for i in range(10)], declined(11))
    rules = LasairRules()

    def choosy(request: Request) -> Reply:
        faulty = [a for a in request.content["annotations"] if a["objectId"] == "object-3" and not forgiving]
        return (400, {"error": "object-3 is not ours"}) if faulty else rules(request)

    forgiving = False
    with standing(choosy) as host:
        config = settings(tmp_path, topic, "lasair", topic="skyheed", token="t0ken", url=host.url)
        counts = forward(config, topic, "lasair")
        assert counts == {"read": 11, "delivered": 9, "filtered": 1, "refused": 1}
        assert forward(config, topic, "lasair")["read"] == 0  # the group remembers
        assert [one.object_id for one in refused_of(topic, "lasair")] == ["object-3"]
        forgiving = True
        again = Topic.__new__(Topic)
        again.kafka, again.name = topic.kafka, f"{topic.name}.refused.ztf.lasair"
        assert forward(config, again, "lasair")["delivered"] == 1
    assert len(rules.kept) == 10


def test_only_what_is_wanted_is_sent(topic: Topic, tmp_path: Path) -> None:
    topic.publish(record(1, AGN=0.9, SNIa=0.1), record(2, SNIa=0.9, AGN=0.1), record(3, SNIa=0.6, AGN=0.4))
    with standing(lambda _: (200, {})) as host:
        config = settings(tmp_path, topic, "webhook", url=host.url)
        counts = forward(config, topic, "webhook", "--class", "SNIa", "--min-probability", "0.8")
    assert counts == {"read": 3, "delivered": 1, "filtered": 2, "refused": 0}
    assert [request.content["object_id"] for request in host.asked] == ["object-2"]


def test_a_dry_run_prints_payloads_and_changes_nothing(topic: Topic, tmp_path: Path) -> None:
    topic.publish(record(1), declined(2))
    with standing(lambda _: (200, {})) as host:
        config = settings(tmp_path, topic, "lasair", topic="skyheed", token="t0ken-hidden", url=host.url)
        ran = CliRunner().invoke(
            skyheed, ["forward", "--config", config, "--to", "lasair", "--topic", topic.name, "--dry-run"]
        )
        assert not host.asked
    assert ran.exit_code == 0, ran.output
    [payload] = [json.loads(line) for line in ran.stdout.splitlines()]
    assert payload["objectId"] == "object-1"
    assert "hidden" not in ran.output


def test_a_host_that_was_away_for_a_while_gets_everything(topic: Topic, tmp_path: Path) -> None:
    topic.publish(*[record(i) for i in range(6)])
    with standing(lambda _: (200, {})) as host:
        host.first += [(503, "", {"Retry-After": "0"})] * 3
        config = settings(tmp_path, topic, "webhook", url=host.url)
        assert forward(config, topic, "webhook")["delivered"] == 6
    assert len({request.headers["Idempotency-Key"] for request in host.asked}) == 6


def test_a_killed_forward_loses_nothing_and_leaves_nothing_twice(topic: Topic, tmp_path: Path) -> None:
    topic.publish(*[record(i) for i in range(24)])
    rules, slow = LasairRules(), threading.Event()
    slow.set()

    def unhurried(request: Request) -> Reply:
        if slow.is_set():
            time.sleep(0.3)
        return rules(request)

    with standing(unhurried) as host:
        config = settings(tmp_path, topic, "lasair", topic="skyheed", token="t0ken", url=host.url)
        for part in ("first", "second"):
            words = ("forward", "--config", config, "--to", "lasair", "--topic", topic.name)
            before = len(rules.kept)
            program = Program(tmp_path / part, *words)
            until(lambda before=before: len(rules.kept) > before, 60, "an annotation")  # type: ignore[misc]
            program.process.kill()
            program.process.wait()
        slow.clear()
        forward(config, topic, "lasair")
    assert {name for name, _ in rules.kept} == {f"object-{i}" for i in range(24)}
    assert not refused_of(topic, "lasair")


@pytest.mark.redis
def test_a_killed_forward_leaves_one_analysis_with_its_strip_on_every_source(
    topic: Topic, valkey: embedded.Server, tmp_path: Path
) -> None:
    found = [record(i) for i in range(8)]
    store = SequenceStore(state.connect(valkey.url), "ztf")
    seen = [observation(one.object_id, source, 59_000.0 + n) for one in found for n, source in enumerate(one.sources)]
    store.store(deliveries(seen))
    topic.publish(*found)
    rules, slow = SkyPortalRules({one.object_id for one in found}, {"Ia"}), threading.Event()
    slow.set()

    def unhurried(request: Request) -> Reply:
        if slow.is_set():
            time.sleep(0.05)
        return rules(request)

    options = {"token": "t0ken", "taxonomy_id": "3", "classes": "SNIa=Ia", "analysis_service_id": "7"}
    with standing(unhurried) as host:
        config = settings(tmp_path, topic, "skyportal", url=host.url, **options)
        with Path(config).open("a") as file:
            file.write(f'\n[redis]\nurl = "{valkey.url}"\n')
        for part in ("first", "second"):
            words = ("forward", "--config", config, "--to", "skyportal", "--topic", topic.name, "--rate", "1000")
            before = len(rules.analyses)
            program = Program(tmp_path / part, *words)
            until(lambda before=before: len(rules.analyses) > before, 60, "an analysis")  # type: ignore[misc]
            program.process.kill()
            program.process.wait()
        slow.clear()
        forward(config, topic, "skyportal", "--rate", "1000")
    names = sorted(one.object_id for one in found)
    for kept in (rules.analyses, rules.annotations, rules.classifications):
        assert sorted(row["obj_id"] for row in kept.values()) == names
    pictures = [base64.b64decode(row["analysis"]["plots"][0]["data"]) for row in rules.analyses.values()]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert not refused_of(topic, "skyportal")


def test_hop_client_reads_what_hop_was_sent(topic: Topic, tmp_path: Path) -> None:
    pytest.importorskip("six", reason="hop-client imports six without asking for it")
    hop = pytest.importorskip("hop")
    topic.publish(record(1), record(2), declined(3))
    there = f"group.{uuid.uuid4().hex[:8]}"
    ensure_topics({"bootstrap.servers": topic.kafka}, {there: {}}, 1, 1)
    config = settings(tmp_path, topic, "hop", topic=there, servers=topic.kafka, security="PLAINTEXT", sender="us")
    assert forward(config, topic, "hop") == {"read": 3, "delivered": 3, "filtered": 0, "refused": 0}
    stream = hop.io.Stream(auth=False, until_eos=True, start_at=hop.io.StartPosition.EARLIEST)
    with stream.open(f"kafka://{topic.kafka}/{there}", "r", group_id=f"hop-{uuid.uuid4().hex}") as messages:
        found = list(messages.read(metadata=True))
    assert {type(message).__name__ for message, _ in found} == {"AvroBlob"}
    headers = [dict(metadata.headers) for _, metadata in found]
    assert {header["_sender"] for header in headers} == {b"us"}
    assert len({header["_id"] for header in headers}) == 3
    assert {len(header["_id"]) for header in headers} == {16}


def test_a_wrong_token_stops_the_start_with_one_sentence(topic: Topic, tmp_path: Path) -> None:
    topic.publish(record(1))
    with standing(LasairRules()) as host:
        config = settings(tmp_path, topic, "lasair", topic="skyheed", token="wr0ng", url=host.url)
        words = ["forward", "--config", config, "--to", "lasair", "--topic", topic.name, "--drain"]
        program = Program(tmp_path / "wrong", *words)
        assert program.process.wait(60) == 1
    assert "check sinks.lasair.token" in program.said
    assert "wr0ng" not in program.said
    assert "Traceback" not in program.said


def test_the_token_comes_from_a_file_or_the_environment(topic: Topic, tmp_path: Path) -> None:
    topic.publish(record(1))
    (tmp_path / "token").write_text("t0ken\n")
    rules = LasairRules()
    with standing(rules) as host:
        config = settings(tmp_path, topic, "lasair", topic="skyheed", token_file=str(tmp_path / "token"), url=host.url)
        assert forward(config, topic, "lasair")["delivered"] == 1


@pytest.mark.parametrize(("rate", "payloads", "wanted"), [(0, 1000, 0.0), (10, 5, 0.5), (100, 1, 0.01)])
def test_the_rate_is_kept(rate: float, payloads: int, wanted: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    clock: Callable[[], float] = lambda: now[0]  # noqa: E731
    monkeypatch.setattr("skyheed.broker.forward.time.monotonic", clock)
    limit = Rate(rate)
    assert limit.wait_for(payloads) == 0
    assert limit.wait_for(payloads) == pytest.approx(wanted)
    now[0] += 60
    assert limit.wait_for(payloads) == 0
