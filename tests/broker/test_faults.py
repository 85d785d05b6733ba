"""Breaking it on purpose: servers away, memory full, rights missing, a wrong start.

Kills of everything in a stream are in test_many_kills.py.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_tools import Child, arguments_for, children, settled, wait_for
from process_tools import run_verb
from server_tools import SCRAM_USERS, scram_options
from stream_tools import answers, last_answers, publish, save_checkpoint, sdss_alert, settings_for

from skyheed.broker import app as daemon
from skyheed.broker.kafka import client as kafka
from skyheed.broker.local import embedded

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(600)]
__all__ = ["children"]


def test_daemons_wait_for_servers_that_are_away_and_say_so_once(
    apache_kafka: embedded.Server, durable_valkey: embedded.Server, tmp_path: Path, children: list[Child]
) -> None:
    topic = "away"
    settings = settings_for(apache_kafka.address, durable_valkey.url, "sdss", topic)
    sent = publish(settings, topic, [sdss_alert("A", n) for n in range(5)])
    durable_valkey.kill()
    shared = arguments_for(settings, topic)
    # the answer is due a fifth of that later, when Kafka is gone
    ingest = Child("ingest", [*shared, "--group", "away", "--debounce", "50"], tmp_path)
    model = save_checkpoint(tmp_path, "sdss")
    work = Child("work", [*shared[:-2], "--model", str(model), "--threads", "1", "--interval", "0.2"], tmp_path)
    children += [ingest, work]
    for child in (ingest, work):
        wait_for(lambda log=child.log: "waiting: Redis at" in log.read_text(), 60, "noticing the dead Valkey")
    time.sleep(4)  # long enough to say it twice
    durable_valkey.restart()
    ledger = daemon.connect_store(settings)[2]
    wait_for(lambda: ledger.books().consumed == sent, 60, "going on after Valkey came back")
    apache_kafka.kill()
    wait_for(lambda: "waiting: Kafka at" in work.log.read_text(), 90, "noticing that Kafka is unavailable")
    time.sleep(3)
    apache_kafka.restart()
    sent += publish(settings, topic, [sdss_alert("A", n) for n in range(5, 10)])
    wait_for(lambda: settled(settings, sent), 150, "going on after Kafka came back")
    logs = ingest.log.read_text(), work.log.read_text()
    assert [log.count("waiting: Redis at") for log in logs] == [1, 1]
    assert (logs[0].count("is unavailable, waiting for it"), logs[1].count("waiting: Kafka at")) == (1, 1)
    assert [log.count("back after") for log in logs] == [2, 2]
    assert all("Traceback" not in log for log in logs)
    assert last_answers(answers(settings))["A"].n_stamps == 10
    assert [ingest.stop(), work.stop()] == [0, 0]


def test_a_full_redis_stops_the_intake_and_check_says_so(
    kafka: embedded.Server, tmp_path: Path, children: list[Child]
) -> None:
    topic = "full"
    with embedded.start_valkey(tmp_path / "small", maxmemory="7mb") as valkey:
        settings = settings_for(kafka.address, valkey.url, "sdss", topic)
        sent = publish(settings, topic, [sdss_alert(f"X{i:05d}", 1) for i in range(3500)])
        ingest = Child("ingest", [*arguments_for(settings, topic), "--group", "full"], tmp_path)
        children.append(ingest)
        wait_for(lambda: "is full" in ingest.log.read_text(), 60, "noticing that Redis is full")
        checked = subprocess.run(
            [sys.executable, "-m", "skyheed.broker.cli", "check", "--survey", "sdss", "--redis", valkey.url,
             "--only", "redis"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert checked.returncode == 1
        assert "full" in checked.stdout
        _set_memory(valkey, "200mb")
        ledger = daemon.connect_store(settings)[2]
        wait_for(lambda: ledger.books().consumed == sent and ledger.books().balanced, 60, "going on with more memory")
        assert ledger.books().summary()["stored"] == sent


def _set_memory(valkey: embedded.Server, amount: str) -> None:
    import redis

    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("maxmemory", amount)


def run_ingest(config_file: Path, environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return run_verb("ingest", "--config", str(config_file), "--drain", *words, **environ)


def test_scram_right_password_wrong_password_and_missing_right(
    kafka_scram: embedded.Server, valkey: embedded.Server, tmp_path: Path
) -> None:
    admin = scram_options("admin", SCRAM_USERS["admin"])
    options = {**admin, "bootstrap.servers": kafka_scram.address}
    topics = {name: {} for name in ("secret", "skyheed.classifications.sdss", "skyheed.deadletter.sdss")}
    kafka.ensure_topics(options, topics, 1, 1)
    with kafka.Publisher(options) as publisher:
        publisher.publish_all([("secret", None, sdss_alert("S", n), None) for n in range(4)])
    file = tmp_path / "skyheed.toml"
    file.write_text(
        f'survey = "sdss"\n[kafka]\n"bootstrap.servers" = "{kafka_scram.address}"\n'
        '"security.protocol" = "SASL_PLAINTEXT"\n"sasl.mechanism" = "SCRAM-SHA-512"\n'
        f'[redis]\nurl = "{valkey.url}"\n[ingest]\ntopics = ["secret"]\n'
    )
    good = run_ingest(file, {"SKYHEED_KAFKA_USER": "admin", "SKYHEED_KAFKA_PASSWORD": SCRAM_USERS["admin"]})
    assert good.returncode == 0, good.stderr
    assert "stored=4" in good.stderr
    wrong = run_ingest(file, {"SKYHEED_KAFKA_USER": "admin", "SKYHEED_KAFKA_PASSWORD": "wrong-pw-4711"})
    assert wrong.returncode == 1
    assert "refused user 'admin'" in wrong.stderr.splitlines()[-1]
    denied = run_ingest(file, {"SKYHEED_KAFKA_USER": "bob", "SKYHEED_KAFKA_PASSWORD": SCRAM_USERS["bob"]})
    assert denied.returncode == 1
    assert "ACL" in denied.stderr.splitlines()[-1]
    for result in (good, wrong, denied):
        spoken = result.stdout + result.stderr
        assert "Traceback" not in spoken
        assert not any(secret in spoken for secret in (*SCRAM_USERS.values(), "wrong-pw-4711"))


def test_cuda_without_a_gpu_stops_the_start(kafka: embedded.Server, valkey: embedded.Server, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = subprocess.run(
        [
            sys.executable, "-m", "skyheed.broker.cli", "work", "--survey", "sdss", "--kafka", kafka.address, "--redis",
            valkey.url, "--device", "cuda", "--model", str(save_checkpoint(tmp_path, "sdss")), "--drain",
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "no GPU" in result.stderr.splitlines()[-1]
