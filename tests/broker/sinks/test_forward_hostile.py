"""`forward` and `backfill` against hosts that are silent or refuse everything, and messages of many records."""

import io
import json
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fastavro
import pytest
from click.testing import CliRunner
from host_tools import Reply, Request, standing
from process_tools import Program, until
from stream_tools import publish, record_of, settings_for
from test_backfill import packet, written
from test_forward import refused_of, settings
from test_subscribe import Topic, record

from skyheed.broker import config
from skyheed.broker.cli import skyheed
from skyheed.broker.local import embedded
from skyheed.broker.waiting import Meanwhile, Stopped, apart

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
ENDS_S = 10.0  # 5 s, and what a busy machine adds; a silent host is waited for 30 s otherwise


@pytest.fixture
def topic(kafka: embedded.Server) -> Topic:
    return Topic(kafka)


@pytest.fixture
def silent() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Set when a host was asked, and what lets it answer."""
    asked, answer = threading.Event(), threading.Event()
    yield asked, answer
    answer.set()


def ends(program: Program) -> float:
    began = time.monotonic()
    program.process.send_signal(signal.SIGTERM)
    assert program.process.wait(60) == 0, program.said
    return time.monotonic() - began


def test_what_is_refused_is_not_read_again(topic: Topic, tmp_path: Path) -> None:
    topic.publish(*[record(i) for i in range(3)])
    with standing(lambda _: (400, {"error": "never"})) as host:
        path = settings(tmp_path, topic, "webhook", url=host.url)
        text = Path(path).read_text().replace("[kafka]", '[kafka]\n"topic.metadata.refresh.interval.ms" = "1000"')
        Path(path).write_text(text)
        words = ["forward", "--config", path, "--to", "webhook", "--topic", f"^{topic.name}.*"]
        program = Program(tmp_path / "one", *words)
        try:
            until(lambda: len(host.asked) == 3, 60, "three refusals")
            time.sleep(3.0)  # the topic of refusals is there by now, and looked for every second
            topic.publish(record(9))
            until(lambda: len(host.asked) > 3, 60, "the fourth")
        finally:
            ends(program)
        assert len(host.asked) == 4
    assert len(refused_of(topic, "webhook")) == 4


def test_refusals_are_read_to_their_end_only(topic: Topic, tmp_path: Path) -> None:
    path = settings(tmp_path, topic, "webhook", url="http://127.0.0.1:9")
    words = ["forward", "--config", path, "--to", "webhook", "--topic", f"{topic.name}.refused.ztf.webhook"]
    ran = CliRunner().invoke(skyheed, words)
    assert ran.exit_code == 1
    assert "it would never end: read it with --drain" in str(ran.exception)


def test_a_silent_host_does_not_keep_forward_from_ending(
    topic: Topic, tmp_path: Path, silent: tuple[threading.Event, threading.Event]
) -> None:
    asked, answer = silent
    topic.publish(record(1))

    def rule(_: Request) -> Reply:
        asked.set()
        answer.wait(60)
        return 200, {}

    with standing(rule) as host:
        words = ["forward", "--config", settings(tmp_path, topic, "webhook", url=host.url), "--to", "webhook"]
        program = Program(tmp_path / "one", *words, "--topic", topic.name)
        assert asked.wait(60), program.said
        assert ends(program) < ENDS_S
        answer.set()


@pytest.fixture
def stream(kafka: embedded.Server, valkey: embedded.Server) -> config.Settings:
    return settings_for(kafka.address, valkey.url, "ztf", f"alerts-{uuid.uuid4().hex[:8]}")


def test_a_silent_provider_does_not_keep_backfill_from_ending(
    stream: config.Settings, tmp_path: Path, silent: tuple[threading.Event, threading.Event]
) -> None:
    asked, answer = silent
    publish(stream, stream.ingest.topics[0], [packet(f"ZTF{uuid.uuid4().hex[:8]}", 4, 2)])

    def rule(_: Request) -> Reply:
        asked.set()
        answer.wait(60)
        return 404, {}

    with standing(rule) as host:
        program = Program(
            tmp_path / "one", "backfill", "--config", written(tmp_path, stream, host.url), "--from", "alerce"
        )
        assert asked.wait(60), program.said
        assert ends(program) < ENDS_S
        answer.set()


def test_a_message_of_many_records_does_not_keep_backfill_from_ending(stream: config.Settings, tmp_path: Path) -> None:
    schema, one = record_of(packet("ZTF1", 4, 1))
    out = io.BytesIO()
    run = uuid.uuid4().hex[:6]
    many = [one | {"objectId": f"ZTF{run}{n:04}", "cutoutScience": None} for n in range(2_000)]
    small = [{key: value for key, value in record.items() if not key.startswith("cutout")} for record in many]
    fields = [field for field in schema["fields"] if not field["name"].startswith("cutout")]
    fastavro.writer(out, fastavro.parse_schema({**schema, "fields": fields}, named_schemas={}), small, codec="deflate")
    publish(stream, stream.ingest.topics[0], [out.getvalue()])
    with standing(lambda _: (404, {})) as host:
        path = written(tmp_path, stream, host.url)
        Path(path).write_text(Path(path).read_text().replace("rate = 1000.0", "rate = 20.0"))
        program = Program(tmp_path / "one", "backfill", "--config", path, "--from", "alerce")
        until(lambda: len(host.asked) > 3, 60, f"requests: {program.said}")
        assert ends(program) < ENDS_S
        assert len(host.asked) < 1_000


def test_what_is_done_apart_ends_with_its_result_its_error_or_a_stop() -> None:
    stop, hold = threading.Event(), threading.Event()
    assert apart(lambda: 7, Meanwhile(stop)) == 7
    with pytest.raises(ZeroDivisionError):
        apart(lambda: 1 // 0, Meanwhile(stop))
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Stopped):
        apart(lambda: hold.wait(30), Meanwhile(stop))
    hold.set()


def test_a_dry_run_shows_no_terminal_commands(topic: Topic, tmp_path: Path) -> None:
    nasty = record(1)
    topic.publish(replace(nasty, model="\x1b[2J\u202ex"))
    path = settings(tmp_path, topic, "webhook", url="http://127.0.0.1:9")
    ran = CliRunner().invoke(
        skyheed, ["forward", "--config", path, "--to", "webhook", "--topic", topic.name, "--dry-run"]
    )
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.strip().isprintable()
    assert ran.stdout.isascii()
    assert json.loads(ran.stdout)["model"] == "\x1b[2J\u202ex"
