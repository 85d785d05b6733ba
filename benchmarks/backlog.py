"""A backlog: this many alerts that wait in Kafka are worked off. The last line of stdout is one JSON document.

    python benchmarks/backlog.py --alerts 25000
    python benchmarks/backlog.py --alerts 1000000 --each 50 --model sdss/supernnova --minutes 60

Small simulated SDSS packets (2.0 kB, one stamp each), --each of every object, are published first; then one ingest and
one worker start and run until nothing is left to read or to classify, or for --minutes. An object that grows while it
waits is classified once: `classifications` says how many there were. Memory is of both daemons and of Redis, sampled
every second: `mib` holds the mean of the second and of the last quarter of the time, which must be alike for the
daemons, and `mib_every_10_s` the course of it. `quiet`: no part of
`skyheed check` was not well meanwhile; `rang` names the alert rules that fired, where a `prometheus` is on the PATH.
With KAFKA_HOME an Apache Kafka, else the embedded one, which keeps all of it in memory.
"""

import argparse
import contextlib
import json
import os
import shutil
import struct
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from stream import cpu_name, kafka_name, say, servers

from skyheed.broker import app as daemon
from skyheed.broker import config
from skyheed.broker import health as check
from skyheed.broker.kafka import client as kafka
from skyheed.broker.kafka import topics
from skyheed.broker.local import embedded
from skyheed.broker.local import processes as stack
from skyheed.broker.packets.avro_numbers import zigzag
from skyheed.broker.packets.surveys.sdss import alert_from_archive
from skyheed.broker.settings import Settings
from skyheed.broker.state import client as state

CHUNK = 5_000  # published at a time
FIRST_SOURCE = 2**30  # from here to 2^34 a source id has five bytes in Avro
NAME, MJD = "B00000000", 54_321.5
PARTS = ("lag", "queue", "oldest", "daemons")
CHECKED_S, SAID_S = 20, 60
RULES = Path(__file__).parents[1] / "deploy" / "prometheus" / "alerts.yml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alerts", type=int, default=20_000)
    parser.add_argument("--each", type=int, default=20, help="alerts of an object")
    parser.add_argument("--model", default="sdss", help="of the worker")
    parser.add_argument("--minutes", type=float, default=600.0, help="end then, whatever is left")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skyheed-backlog-") as name, servers(Path(name)) as found:
        settings = config.with_servers(
            config.load(overrides={"survey": "sdss"}, environ={}), found.kafka["bootstrap.servers"], found.redis.url
        )
        result = {"kafka": kafka_name(), "cpu": cpu_name(), **vars(given)}
        print(json.dumps(result | backlog(settings, Path(name), given)))


def packets(count: int, each: int) -> Iterator[bytes]:
    """Packets that differ in object, source and time; their bytes are changed in place, which is quick."""
    stamp = np.zeros((64, 64), np.float32)
    stamp[28:36, 28:36] = 500
    made = alert_from_archive(
        object_id=NAME, source_id=FIRST_SOURCE, mjd=MJD, band="r", ra=10.0, dec=0.5, stamp=stamp, flux=2e4,
        flux_error=100.0, psf_fwhm=1.3, zero_point=22.5, sky_noise=100.0,
    )  # fmt: skip
    old = NAME.encode() + zigzag(FIRST_SOURCE) + struct.pack("<d", MJD)
    before, found, after = made.partition(old)
    assert found, "the schema of packets has changed"
    objects = max(1, count // each)
    for n in range(count):
        name, mjd = f"B{n % objects:08}".encode(), struct.pack("<d", MJD + n // objects)
        yield before + name + zigzag(FIRST_SOURCE + n) + mjd + after


def publish(settings: Settings, count: int, each: int) -> None:
    topic = settings.alert_topic
    kafka.ensure_topics(settings.kafka, {topic: daemon.ALERT_TOPIC}, 4, 1)
    chunk: list[kafka.Outgoing] = []
    with kafka.Publisher(settings.kafka) as publisher:
        for packet in packets(count, each):
            chunk.append((topic, None, packet, None))
            if len(chunk) == CHUNK:
                publisher.publish_all(chunk)
                chunk = []
        publisher.publish_all(chunk)


class Watch:
    """Memory of daemons every second, and parts of `check` that are not well."""

    def __init__(self, settings: Settings, daemons: dict[str, stack.Daemon]) -> None:
        self.mib: dict[str, list[float]] = {verb: [] for verb in [*daemons, "redis"]}
        self.loud: list[str] = []
        self._redis = state.connect_as(settings.redis)
        self._settings, self._daemons, self._stop = settings, daemons, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            for verb, child in self._daemons.items():
                self.mib[verb].append(resident(child.process.pid))
            self.mib["redis"].append(state.health(self._redis).used_memory / 2**20)
            if len(self.mib["ingest"]) % CHECKED_S == 0:
                self.loud += [
                    f"{line.part}: {line.sentence}" for line in check.check(self._settings, PARTS) if not line.ok
                ]

    def summary(self, verb: str) -> dict[str, float]:
        found = self.mib[verb]
        quarter = max(1, len(found) // 4)
        second, last = found[quarter : 2 * quarter] or found, found[-quarter:]
        return {
            "second_quarter": round(float(np.mean(second)), 1), "last_quarter": round(float(np.mean(last)), 1),
            "peak": round(max(found), 1),
        }  # fmt: skip


def resident(pid: int) -> float:
    """MiB."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


@contextlib.contextmanager
def prometheus(folder: Path, ports: dict[str, int]) -> Iterator[str]:
    """A Prometheus with the alert rules that are deployed; yields its address, empty where there is none."""
    if not (program := shutil.which("prometheus")):
        yield ""
        return
    jobs = [{"job_name": verb, "static_configs": [{"targets": [f"127.0.0.1:{p}"]}]} for verb, p in ports.items()]
    settings = {"global": {"scrape_interval": "5s", "evaluation_interval": "15s"}}
    (folder / "prometheus.yml").write_text(json.dumps({**settings, "rule_files": [str(RULES)], "scrape_configs": jobs}))
    port = embedded.free_port()
    words = [
        program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    server = embedded.Server("Prometheus", words, port, _is_ready, folder / "prometheus.log")
    with server:
        yield server.address


def _is_ready(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/-/ready", timeout=1.0):
        return True
    return False


def rang(address: str) -> list[str] | None:
    """Alert rules that fired at any time; None where nobody listened."""
    if not address:
        return None
    query = urllib.parse.urlencode(
        {"query": 'count by (alertname) (count_over_time(ALERTS{alertstate="firing"}[12h]))'}
    )
    with urllib.request.urlopen(f"http://{address}/api/v1/query?{query}", timeout=30) as answer:
        found = json.load(answer)["data"]["result"]
    return sorted(row["metric"]["alertname"] for row in found)


def daemons_of(settings: Settings, folder: Path, model: str) -> tuple[dict[str, stack.Daemon], dict[str, int]]:
    """Ingest and worker, started, and where each shows its metrics."""
    ports = {verb: embedded.free_port() for verb in ("ingest", "work")}
    file = folder / "skyheed.toml"
    file.write_text("".join(f"[{verb}]\nmetrics_port = {port}\n" for verb, port in ports.items()))
    shared = stack.shared_arguments(settings, str(file))
    words = {"ingest": shared, "work": [*shared, "--model", model, "--threads", "1"]}
    return {verb: stack.Daemon(verb, words[verb], folder / f"{verb}.log") for verb in ports}, ports


def backlog(settings: Settings, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Publish, work off, look at the books."""
    began = time.monotonic()
    publish(settings, given.alerts, given.each)
    publish_s = time.monotonic() - began
    say(f"{given.alerts} alerts wait after {publish_s:.0f} s")
    daemon.prepare_topics(settings, threading.Event())
    daemons, ports = daemons_of(settings, folder, given.model)
    try:
        with prometheus(folder, ports) as address, Watch(settings, daemons) as watch:
            read_s, all_s = work_off(settings, daemons, given.alerts, given.minutes * 60)
            rules = rang(address)
    finally:
        for child in daemons.values():
            child.stop()
    books = daemon.read_store(settings)[2].books()
    return {
        "publish_s": round(publish_s, 1), "read_s": round(read_s, 1), "all_s": round(all_s, 1),
        "read_per_s": round(books.consumed / (read_s or all_s), 1),
        "classifications": sum(topics.end_offsets(settings.kafka, [settings.classification_topic]).values()),
        "books": books.summary(), "mib": {name: watch.summary(name) for name in watch.mib},
        "mib_every_10_s": {name: [round(mib) for mib in seen[::10]] for name, seen in watch.mib.items()},
        "quiet": not watch.loud, "loud": watch.loud[:5], "rang": rules,
    }  # fmt: skip


def work_off(settings: Settings, daemons: dict[str, stack.Daemon], count: int, limit_s: float) -> tuple[float, float]:
    """Wait; the seconds until all was read (0: it was not) and until all was classified or the time was over."""
    ledger = daemon.read_store(settings)[2]
    began = said = time.monotonic()
    read_s = 0.0
    while (now := time.monotonic()) - began < limit_s:
        for child in daemons.values():
            child.check()
        books = ledger.books()
        if not read_s and books.consumed >= count:
            read_s = now - began
        if read_s and not books.pending:
            break
        if now - said > SAID_S:
            said = now
            say(f"{now - began:5.0f} s: {books.consumed} read, {books.pending} objects wait")
        time.sleep(1.0)
    return read_s, time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
