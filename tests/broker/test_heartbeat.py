"""Signs of life: what a daemon waits for shows in its metrics and to `check`, also when it has nothing to do."""

import threading
import urllib.request
from pathlib import Path

import pytest
import redis as redis_py
from fault_tools import Child, arguments_for
from process_tools import until
from stream_tools import publish, sdss_alert, settings_for

from skyheed.broker import app as daemon
from skyheed.broker import config, heartbeat, metrics, waiting
from skyheed.broker import health as check
from skyheed.broker.errors import ServiceUnavailable
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings
from skyheed.broker.state import client as state
from skyheed.broker.state.queue import DueQueue

pytestmark = pytest.mark.redis


def value(measured: metrics.IngestMetrics | metrics.WorkMetrics, name: str, **labels: str) -> float | None:
    return measured.registry.get_sample_value(f"skyheed_{name}", {"survey": "sdss", **labels})


def settings_of(url: str) -> Settings:
    return config.load(overrides={"survey": "sdss", "redis.url": url}, environ={})


def daemons(url: str) -> check.Line:
    [line] = check.check(settings_of(url), ["daemons"])
    return line


def test_a_wait_shows_in_the_metrics_and_to_check(valkey: embedded.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = metrics.IngestMetrics("sdss")
    alive = heartbeat.Heartbeat(state.connect(valkey.url), "sdss", "ingest", measured)
    assert daemons(valkey.url).sentence == "none has been heard of in the last ten minutes"
    alive.beat()
    assert (daemons(valkey.url).ok, daemons(valkey.url).sentence) == (True, "1 ingest running")
    monkeypatch.setattr(waiting, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(check, "WAITS_S", 0.05)
    stop, began = threading.Event(), threading.Event()

    def never() -> None:
        began.set()
        raise ServiceUnavailable("0 of 1 replicas confirmed", server="redis")

    def work() -> None:
        with waiting.observed(measured), pytest.raises(waiting.Stopped):
            waiting.patiently(never, stop)

    thread = threading.Thread(target=work)
    thread.start()
    began.wait(10)
    until(lambda: (value(measured, "waiting_seconds", server="redis") or 0) > 0.1, what="the wait")
    assert value(measured, "redis_up") == 0
    alive.beat()  # Redis answers the heartbeat, but not the work
    assert value(measured, "redis_up") == 0
    line = daemons(valkey.url)
    assert not line.ok
    assert "ingest" in line.sentence
    assert "has been waiting for redis for" in line.sentence
    stop.set()
    thread.join()


def test_an_idle_daemon_notices_that_redis_went_and_came_back(
    durable_valkey: embedded.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.05)
    measured = metrics.IngestMetrics("sdss")
    with heartbeat.beating(heartbeat.Heartbeat(state.connect(durable_valkey.url), "sdss", "ingest", measured)):
        until(lambda: daemons(durable_valkey.url).sentence == "1 ingest running", what="the first beat")
        durable_valkey.kill()
        until(lambda: value(measured, "redis_up") == 0, what="noticing that Redis is unavailable")
        until(lambda: (value(measured, "waiting_seconds", server="redis") or 0) > 0.2, what="waiting")
        durable_valkey.restart()
        until(lambda: value(measured, "redis_up") == 1, what="noticing that Redis is back")
    assert "none" in daemons(durable_valkey.url).sentence, "who ends in order says goodbye"


def test_kafka_that_is_away_shows(valkey: embedded.Server) -> None:
    measured = metrics.IngestMetrics("sdss")
    away = [True]
    alive = heartbeat.Heartbeat(state.connect(valkey.url), "sdss", "ingest", measured, kafka_away=lambda: away[0])
    alive.beat()
    assert (value(measured, "kafka_up"), value(measured, "redis_up")) == (0, 1)
    away[0] = False
    alive.beat()
    assert value(measured, "kafka_up") == 1


@pytest.mark.parametrize("reason", ["full", "replica"])
def test_a_server_that_would_refuse_the_intake_refuses_the_pulse(durable_valkey: embedded.Server, reason: str) -> None:
    measured = metrics.IngestMetrics("sdss")
    alive = heartbeat.Heartbeat(state.connect(durable_valkey.url), "sdss", "ingest", measured)
    with redis_py.Redis.from_url(durable_valkey.url) as client:
        alive.beat()
        if reason == "full":
            client.config_set("maxmemory", "1mb")
        else:
            client.execute_command("REPLICAOF", "127.0.0.1", embedded.free_port())
        alive.beat()
        assert value(measured, "redis_up") == 0


def test_the_queue_of_an_idle_worker_is_looked_at(valkey: embedded.Server) -> None:
    client = state.connect(valkey.url)
    queue, measured = DueQueue(client, "sdss"), metrics.WorkMetrics("sdss")
    measured.queue("", {"new": 0, "due": 0, "in_flight": 7})  # as the last batch left it
    heartbeat.Heartbeat(client, "sdss", "work", measured, [lambda: measured.queue("", queue.depth())]).beat()
    assert value(measured, "queue_objects", state="in_flight", model="") == 0


def test_silent_daemons_are_told_of_and_then_forgotten(
    valkey: embedded.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = heartbeat.Heartbeat(state.connect(valkey.url), "sdss", "work", metrics.WorkMetrics("sdss"))
    alive = heartbeat.Heartbeat(state.connect(valkey.url), "sdss", "ingest", metrics.IngestMetrics("sdss"))
    dead.beat()
    with redis_py.Redis.from_url(valkey.url) as client:
        [(name, said)] = client.hgetall("sh:{sdss}:daemons").items()
        when, _, rest = said.partition(b" ")
        client.hset("sh:{sdss}:daemons", name, b"%d %s" % (int(when) - 40_000, rest))
        alive.beat()
        line = daemons(valkey.url)
        assert not line.ok
        assert line.sentence.startswith("work ")
        assert "has not been heard of for 4" in line.sentence
        client.hset("sh:{sdss}:daemons", name, b"%d %s" % (int(when) - 700_000, rest))
        assert daemons(valkey.url).sentence == "1 ingest running"
        alive.beat()
        assert client.hlen("sh:{sdss}:daemons") == 1


@pytest.mark.kafka
def test_the_metrics_of_an_ingest_that_waits_at_its_start_and_while_idle(
    kafka: embedded.Server, durable_valkey: embedded.Server, tmp_path: Path
) -> None:
    """Redis is unavailable when it starts; later Redis dies while nothing is to be read."""
    topic = "heartbeat"
    settings = settings_for(kafka.address, durable_valkey.url, "sdss", topic)
    publish(settings, topic, [sdss_alert("P", n) for n in range(3)])
    port = embedded.free_port()
    durable_valkey.kill()
    ingest = Child(
        "ingest", [*arguments_for(settings, topic), "--group", topic, "--metrics-port", str(port)], tmp_path
    )  # fmt: skip

    def redis_up() -> str | None:
        return scraped(port, 'skyheed_redis_up{survey="sdss"}')

    try:
        until(lambda: redis_up() == "0.0", 90, "waiting at the start")
        durable_valkey.restart()
        until(lambda: redis_up() == "1.0", what="going on")
        store = daemon.connect_store(settings)[0]
        until(lambda: store.sequence("P") is not None, what="storing")
        durable_valkey.kill()
        until(lambda: redis_up() == "0.0", what="noticing while nothing is to be done")
        assert float(scraped(port, 'skyheed_waiting_seconds{server="redis",survey="sdss"}') or 0) > 0
    finally:
        assert ingest.stop() == 0


def scraped(port: int, sample: str) -> str | None:
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except OSError:
        return None
    return next((line.split()[-1] for line in text.splitlines() if line.startswith(sample)), None)
