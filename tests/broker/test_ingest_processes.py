"""Several ingest processes of one command: one group, one set of books, and none left behind."""

import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest
from process_tools import Program, until
from stream_tools import publish, sdss_alert, settings_for

from skyheed.broker import app as daemon
from skyheed.broker import config, ingest_processes
from skyheed.broker.errors import ConfigError, ServiceError
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings
from skyheed.broker.waiting import Stopped, Unfinished

ALERTS = 120


def words_of(settings: Settings, *more: str) -> list[str]:
    own = settings.ingest
    servers = ["--kafka", settings.kafka["bootstrap.servers"], "--redis", settings.redis.url]
    return ["ingest", "--survey", "sdss", "--topic", own.topics[0], "--group", own.group, *servers, *more]


@pytest.fixture
def stream(kafka: embedded.Server, valkey: embedded.Server, tmp_path: Path) -> Settings:
    topic = f"several.{tmp_path.name.replace('_', '-')}"
    settings = settings_for(kafka.address, valkey.url, "sdss", topic)
    publish(settings, topic, [sdss_alert(f"S{n:05d}", 1) for n in range(ALERTS)], partitions=4)
    return settings


def stored(settings: Settings) -> int:
    books = daemon.read_store(settings)[2].books()
    return books.balanced and sum(row.consumed for row in books.partitions)


def test_a_drain_in_two_processes_reads_everything_once(stream: Settings, tmp_path: Path) -> None:
    program = Program(tmp_path / "run", *words_of(stream, "--processes", "2", "--drain"))
    assert program.process.wait(180) == 0, program.said
    assert stored(stream) == ALERTS
    assert program.said.count("ingest ends:") == 2
    program.leaves_nothing()


@pytest.mark.parametrize("who", ["parent asked", "parent killed", "child killed"])
def test_whoever_ends_no_process_is_left(stream: Settings, tmp_path: Path, who: str) -> None:
    program = Program(tmp_path / "run", *words_of(stream, "--processes", "2"))
    until(lambda: stored(stream) == ALERTS, 120, "stored")
    if who == "child killed":
        child = next(pid for pid, line in program.left().items() if "spawn_main" in line)
        os.kill(child, signal.SIGKILL)
        assert program.process.wait(90) == 1
        assert "of 2 ended with status -9; the others were stopped: start again" in program.said
    else:
        program.process.send_signal(signal.SIGTERM if who == "parent asked" else signal.SIGKILL)
        assert program.process.wait(90) == (0 if who == "parent asked" else -signal.SIGKILL)
    program.leaves_nothing()
    assert stored(stream) == ALERTS


@pytest.mark.parametrize(
    ("one", "error"), [("refused", ServiceError), ("unfinished", Unfinished), ("stopped", Stopped)]
)
def test_how_a_process_ends_is_how_the_command_ends(one: str, error: type[Exception]) -> None:
    settings = config.load(overrides={"survey": "sdss", "ingest.processes": 1}, environ={})
    with pytest.raises(error):
        ingest_processes.run(globals()[one], settings, True, threading.Event())


def test_totals_are_those_of_all() -> None:
    settings = config.load(overrides={"survey": "sdss", "ingest.processes": 2}, environ={})
    assert ingest_processes.run(done, settings, True, threading.Event()) == Counter(consumed=6)


def refused(_settings: Settings, _drain: bool) -> Counter[str]:
    raise ServiceError("refused us")


def unfinished(_settings: Settings, _drain: bool) -> Counter[str]:
    raise Unfinished


def stopped(_settings: Settings, _drain: bool) -> Counter[str]:
    raise Stopped("asked to stop")


def done(settings: Settings, _drain: bool) -> Counter[str]:
    assert settings.ingest.processes == 1
    return Counter(consumed=3)


def test_every_process_has_a_port_and_a_name_of_its_own() -> None:
    overrides = {"survey": "sdss", "ingest.processes": 3, "ingest.metrics_port": 9000}
    options = {"kafka_input": {"group.instance.id": "reader"}}
    settings = config.load(overrides={**overrides, **options}, environ={})
    own = [ingest_processes.own_settings(settings, n) for n in range(3)]
    assert [one.ingest.metrics_port for one in own] == [9000, 9001, 9002]
    assert [one.input_options["group.instance.id"] for one in own] == ["reader-0", "reader-1", "reader-2"]


@pytest.mark.parametrize("wrong", [{"ingest.processes": 0}, {"ingest.processes": 65}])
def test_numbers_that_cannot_work_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"ingest\.processes must be 1 to 64"):
        config.load(overrides={"survey": "sdss", **wrong}, environ={})


def test_the_quiet_time_is_a_fifth_of_the_debounce_unless_it_is_given() -> None:
    found = []
    for own in ({}, {"ingest.debounce_s": 0.0}, {"ingest.quiet_s": 0.5}, {"ingest.quiet_s": 5.0}):
        store, _, _ = daemon.read_store(config.load(overrides={"survey": "sdss", **own}, environ={}))
        found.append((store._debounce_ms, store._quiet_ms))
    assert found == [(1000, 200), (0, 0), (1000, 500), (1000, 1000)]


def test_every_process_needs_a_port() -> None:
    with pytest.raises(ConfigError, match=r"is too high for ingest\.processes"):
        config.load(overrides={"survey": "sdss", "ingest.processes": 3, "ingest.metrics_port": 65534}, environ={})
