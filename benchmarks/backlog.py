"""A backlog: so many alerts that wait in Kafka are worked off. The last line of stdout is one JSON document.

    python benchmarks/backlog.py --alerts 25000          three minutes on two busy cores
    python benchmarks/backlog.py --alerts 1000000        a long night's: leave it two hours

Small simulated SDSS packets (2.0 kB, one stamp each), 20 of each object, are published first; then one ingest and one
worker start and run until nothing is left to read or to classify. The model is the shipped one, or
--model. Memory is of both daemons, sampled every second: `mib` holds the mean of the second and of the last quarter
of the time, which must be alike. `quiet` says that no part of `skyheed check` was not well meanwhile.
With KAFKA_HOME an Apache Kafka, else the embedded one, which keeps all of it in memory.
"""

import argparse
import json
import os
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from stream import cpu_name, kafka_name, say, servers

from skyheed.broker import app as daemon
from skyheed.broker import config
from skyheed.broker import health as check
from skyheed.broker.kafka import client as kafka
from skyheed.broker.local import processes as stack
from skyheed.broker.packets.container import _zigzag
from skyheed.broker.packets.surveys.sdss import alert_from_archive
from skyheed.broker.settings import Settings

EPOCHS = 20  # of an object
CHUNK = 5_000  # published at a time
FIRST_SOURCE = 2**30  # from here to 2^34 a source id has five bytes in Avro
NAME, MJD = "B00000000", 54_321.5
PARTS = ("lag", "queue", "oldest", "daemons")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alerts", type=int, default=20_000)
    parser.add_argument("--model", default="sdss", help="of the worker")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skyheed-backlog-") as name, servers(Path(name)) as found:
        settings = config.with_servers(
            config.load(overrides={"survey": "sdss"}, environ={}), found.kafka["bootstrap.servers"], found.redis.url
        )
        result = {"alerts": given.alerts, "kafka": kafka_name(), "cpu": cpu_name(), "model": given.model}
        print(json.dumps(result | backlog(settings, Path(name), given.alerts, given.model)))


def packets(count: int) -> Iterator[bytes]:
    """Packets that differ in object, source and time; their bytes are changed in place, which is quick."""
    stamp = np.zeros((64, 64), np.float32)
    stamp[28:36, 28:36] = 500
    made = alert_from_archive(
        object_id=NAME, source_id=FIRST_SOURCE, mjd=MJD, band="r", ra=10.0, dec=0.5, stamp=stamp, flux=2e4,
        flux_error=100.0, psf_fwhm=1.3, zero_point=22.5, sky_noise=100.0,
    )  # fmt: skip
    old = NAME.encode() + _zigzag(FIRST_SOURCE) + struct.pack("<d", MJD)
    before, found, after = made.partition(old)
    assert found, "the schema of packets has changed"
    objects = max(1, count // EPOCHS)
    for n in range(count):
        name, mjd = f"B{n % objects:08}".encode(), struct.pack("<d", MJD + n // objects)
        yield before + name + _zigzag(FIRST_SOURCE + n) + mjd + after


def publish(settings: Settings, count: int) -> None:
    topic = settings.alert_topic
    kafka.ensure_topics(settings.kafka, {topic: daemon.ALERT_TOPIC}, 4, 1)
    chunk: list[kafka.Outgoing] = []
    with kafka.Publisher(settings.kafka) as publisher:
        for packet in packets(count):
            chunk.append((topic, None, packet, None))
            if len(chunk) == CHUNK:
                publisher.publish_all(chunk)
                chunk = []
        publisher.publish_all(chunk)


class Watch:
    """Memory of daemons every second, and parts of `check` that are not well."""

    def __init__(self, settings: Settings, daemons: dict[str, stack.Daemon]) -> None:
        self.mib: dict[str, list[float]] = {verb: [] for verb in daemons}
        self.loud: list[str] = []
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
            if len(self.mib["ingest"]) % 20 == 0:
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


def backlog(settings: Settings, folder: Path, count: int, model: str) -> dict[str, Any]:
    """Publish, work off, look at the books."""
    began = time.monotonic()
    publish(settings, count)
    say(f"{count} alerts wait after {time.monotonic() - began:.0f} s")
    daemon.prepare_topics(settings, threading.Event())
    shared = stack.shared_arguments(settings, None)
    daemons = {
        "ingest": stack.Daemon("ingest", shared, folder / "ingest.log"),
        "work": stack.Daemon("work", [*shared, "--model", model, "--threads", "1"], folder / "work.log"),
    }
    ledger = daemon.read_store(settings)[2]
    began = time.monotonic()
    read_s = 0.0
    try:
        with Watch(settings, daemons) as watch:
            while not read_s or ledger.books().pending:
                for child in daemons.values():
                    child.check()
                if not read_s and ledger.books().consumed >= count:
                    read_s = time.monotonic() - began
                time.sleep(1.0)
            all_s = time.monotonic() - began
    finally:
        for child in daemons.values():
            child.stop()
    books = ledger.books()
    return {
        "read_s": round(read_s, 1), "all_s": round(all_s, 1), "alerts_per_s": round(count / all_s, 1),
        "books": books.summary(), "mib": {verb: watch.summary(verb) for verb in daemons},
        "quiet": not watch.loud, "loud": watch.loud[:5],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
