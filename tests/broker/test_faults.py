"""Breaking it on purpose: kill -9 of daemons and servers, servers away, memory full, rights missing.

What must hold at the end: nothing lost, the books balance, and a reader that keys by classification_id sees each
classification once.
"""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SCRAM_USERS
from server_tools import scram_options
from stream_tools import (
    answers,
    hash_of,
    last_answers,
    publish,
    raw_messages,
    save_checkpoint,
    sdss_alert,
    settings_for,
)

from skyheed.broker import app as daemon
from skyheed.broker.errors import ServiceUnavailable
from skyheed.broker.kafka import client as kafka
from skyheed.broker.local import embedded
from skyheed.broker.results import formats
from skyheed.broker.results import record as records
from skyheed.broker.results.record import Classification
from skyheed.broker.settings import Settings
from skyheed.broker.state.sequence import HEADER

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(600)]
OBJECTS, EPOCHS, KILLS = 60, 12, 14  # of both servers, too: Kafka with kill 7, Valkey with kill 13
BAD = 7
ROUNDING = 0.02  # of probabilities: bfloat16 has 8 bits


class Child:
    """A daemon as a child process that can be killed and started again."""

    def __init__(self, verb: str, arguments: list[str], folder: Path) -> None:
        self.verb = verb
        self._command = [sys.executable, "-m", "skyheed.broker.cli", verb, *arguments]
        self.log = folder / f"{verb}.log"
        self.kills = 0
        self.start()

    def start(self) -> None:
        environ = {"PATH": os.defpath, "HOME": "/tmp", "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environ, start_new_session=True)

    def kill(self) -> None:
        assert self._process.poll() is None, f"{self.verb} ended by itself: {self.log.read_text()[-500:]}"
        self._process.kill()
        self._process.wait()
        self.kills += 1

    def stop(self) -> int:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return int(self._process.returncode)


def arguments_for(settings: Settings, topic: str) -> list[str]:
    return [
        "--survey", settings.survey, "--kafka", settings.kafka["bootstrap.servers"], "--redis", settings.redis.url,
        "--topic", topic,
    ]  # fmt: skip


def wait_for(done: object, limit_s: float, what: str) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            if done():  # type: ignore[operator]
                return
        except ServiceUnavailable:
            pass
        time.sleep(0.3)
    pytest.fail(f"{what} took longer than {limit_s} s")


def settled(settings: Settings, sent: int) -> bool:
    books = daemon.connect_store(settings)[2].books()
    return books.consumed == sent and books.pending == 0 and books.balanced


@pytest.fixture
def children(tmp_path: Path) -> Iterator[list[Child]]:
    made: list[Child] = []
    yield made
    for child in made:
        child.stop()


def slow_publish(
    settings: Settings, topic: str, payloads: list[bytes], failures: list[BaseException], pause_s: float = 0.7
) -> None:
    """Send in batches of 20 with pauses between them, whatever happens to Kafka meanwhile."""
    try:
        with kafka.Publisher(settings.kafka) as publisher:
            for first in range(0, len(payloads), 20):
                batch = [(topic, None, payload, None) for payload in payloads[first : first + 20]]
                for _ in range(50):
                    try:
                        publisher.publish_all(batch)
                        break
                    except ServiceUnavailable:
                        time.sleep(1)
                else:
                    raise AssertionError("Kafka never came back")
                time.sleep(pause_s)
    except BaseException as error:
        failures.append(error)


@pytest.mark.parametrize("kills", [KILLS, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_nothing_is_lost_whatever_is_killed(
    apache_kafka: embedded.Server, durable_valkey: embedded.Server, tmp_path: Path, children: list[Child], kills: int
) -> None:
    rng = random.Random(20)
    topic = "faults"
    settings = settings_for(apache_kafka.address, durable_valkey.url, "sdss", topic)
    alerts = [sdss_alert(f"F{i}", n) for n in range(EPOCHS) for i in range(OBJECTS)]
    payloads = [*rng.sample(alerts, len(alerts)), *rng.sample(alerts, 40), *(b"bad %d" % n for n in range(BAD))]
    rng.shuffle(payloads)
    publish(settings, topic, [], partitions=3)
    model = save_checkpoint(tmp_path, "sdss")
    shared = arguments_for(settings, topic)
    ingest = Child("ingest", [*shared, "--group", "faults", "--debounce", "0"], tmp_path)
    work_arguments = [*shared[:-2], "--model", str(model), "--threads", "1", "--interval", "0.2"]
    config_file = tmp_path / "short-lease.toml"
    config_file.write_text("[work]\nlease_s = 5.0\n")
    work = Child("work", [*work_arguments, "--config", str(config_file)], tmp_path)
    children += [ingest, work]
    failures: list[BaseException] = []
    sending = settings, topic, payloads, failures, 0.7 * kills / KILLS
    sender = threading.Thread(target=slow_publish, args=sending, daemon=True)
    sender.start()
    for number in range(kills):
        time.sleep(rng.uniform(0.3, 3.5))
        victim = rng.choice([ingest, work])
        victim.kill()
        victim.start()
        if number % 20 == 7:
            _restart(apache_kafka, rng)
        if number % 20 == 13:
            _restart(durable_valkey, rng)
    sender.join(200)
    assert not sender.is_alive()
    assert not failures, failures
    wait_for(lambda: settled(settings, _distinct_offsets(settings, topic)), 150, "settling")
    _judge(settings, topic, payloads)
    assert ingest.kills + work.kills == kills


def _restart(server: embedded.Server, rng: random.Random) -> None:
    server.kill()
    time.sleep(rng.uniform(1, 4))
    server.restart()


def _distinct_offsets(settings: Settings, topic: str) -> int:
    # no transactions and no compaction here: end offsets are counts
    return sum(kafka.end_offsets(settings.kafka, [topic]).values())


def _judge(settings: Settings, topic: str, payloads: list[bytes]) -> None:
    store, _, ledger = daemon.connect_store(settings)
    books = ledger.books()
    summary = books.summary()
    assert books.balanced, books.to_text()
    # a producer whose broker died may have sent a packet twice: never less than what was sent
    assert summary["consumed"] >= len(payloads)
    assert summary["stored"] == OBJECTS * EPOCHS
    assert summary["stored"] + summary["duplicates"] + summary["rejected"] == summary["consumed"]
    assert summary["rejected"] >= BAD
    assert (summary["objects"], summary["classified"], summary["pending"]) == (OBJECTS, OBJECTS, 0)
    published = [formats.decode(message.value()) for message in raw_messages(settings, settings.classification_topic)]
    by_id = keyed(published)
    last = last_answers(list(by_id.values()))
    # our own client leaves out late answers of older sequences, too; what it has at the end is the same
    ids = {name: record.classification_id for name, record in last.items()}
    assert {name: r.classification_id for name, r in last_answers(answers(settings)).items()} == ids
    for number in range(OBJECTS):
        name = f"F{number}"
        expected = [hash_of(name) * 1000 + n for n in range(EPOCHS)]
        found = store.sequence(name)
        assert found is not None
        assert found.header["source_id"].tolist() == expected
        assert list(last[name].sources) == expected
        assert last[name].revision == found.revision


def keyed(published: Iterable[Classification]) -> dict[str, Classification]:
    """What a stranger has who keys the topic by classification_id; whichever of the repeats is taken, it is the same.

    Only the time of classification differs, and the probabilities by rounding: a repeat may stand in another batch,
    or take a token from the cache.
    """
    first: dict[str, Classification] = {}
    for record in published:
        other = first.setdefault(record.classification_id, record)
        assert [p.name for p in record.probabilities] == [p.name for p in other.probabilities]
        expected = [p.probability for p in other.probabilities]
        assert [p.probability for p in record.probabilities] == pytest.approx(expected, abs=ROUNDING)
        assert _exact(record) == _exact(other)
    return first


def _exact(record: Classification) -> Classification:
    """Without what rounding may change, the top class of near equals among it."""
    return replace(record, classified_ms=0, probabilities=(), top_class=None, top_probability=None)


def test_repeats_that_differ_are_found() -> None:
    """`keyed` is what the fault test rests on: it must be able to fail."""
    header = np.zeros(3, HEADER)
    header["source_id"] = 1, 2, 3
    provenance = records.Provenance("1", "model", "1", "digest", "stamp-1", "taxonomy", "cpu")
    record = Classification.of(
        "sdss", "A", 7, header, [("SNIa", 2222, 0.75), ("AGN", 2332, 0.25)], None, provenance, 1000
    )
    again = replace(record, classified_ms=2000)
    assert keyed([record, again]) == {record.classification_id: record}
    for changes in ({"revision": 8}, {"n_stamps": 4}, {"probabilities": again.probabilities[::-1]}, {"kafka_ms": 5}):
        with pytest.raises(AssertionError):
            keyed([record, replace(again, **changes)])


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
    return subprocess.run(
        [sys.executable, "-m", "skyheed.broker.cli", "ingest", "--config", str(config_file), "--drain", *words],
        capture_output=True, text=True, timeout=120, check=False, env={"PATH": os.defpath, **environ},
    )  # fmt: skip


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
