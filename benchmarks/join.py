"""What `ingest.join_arcsec` costs: CPU time, commands to Redis and bytes, off and on. The last line of stdout is JSON.

    python benchmarks/join.py [--objects 500] [--epochs 12] [--rounds 5]

`off` is the default; `alone` has it on, with every object far from the others; `pairs` has it on, with two object
ids for every transient, 0.5 arcsec apart. Ingest stores one detection of every object at a time, and a worker's batches
of 64 are claimed, read (and joined) and settled after each, without a model. Stamps are noise, the science kind alone;
positions scatter by 0.1 arcsec.

By alert: CPU time of the client (this process) and of Valkey, and how many commands Valkey ran. Of the worker the same
by object read. Bytes: of all keys, by object. Medians of the rounds, the three regimes taking turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import redis
import stream

from skyheed.broker.local import embedded
from skyheed.broker.observation import Observation
from skyheed.broker.state import client as state
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.joined import Joined
from skyheed.broker.state.neighbours import Neighbours
from skyheed.broker.state.queue import DueQueue
from skyheed.broker.state.sequence import Answer, Delivery, Lane, StoredSequence
from skyheed.classifier.stamp import STAMP_SIZE

SURVEY, ARCSEC, BATCH = "lsst", 1.0, 64
LANE = Lane(images=("science",))
REGIMES = ("off", "alone", "pairs")
DEGREE = 3600.0


def main() -> None:
    """Measure the three regimes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in REGIMES}
    with embedded.start_valkey() as valkey:
        for _ in range(given.rounds):
            for name in REGIMES:
                found[name].append(measure(valkey.url, name, given.objects, given.epochs))
    result: dict[str, Any] = {"cpu": stream.cpu_name()}
    for name, rounds in found.items():
        result[name] = {what: round(statistics.median(one[what] for one in rounds), 2) for what in rounds[0]}
        stream.say(f"{name}: " + ", ".join(f"{what} {value:g}" for what, value in result[name].items()))
    print(json.dumps(result))


class Meter:
    """CPU time and commands of what is done within it, summed."""

    def __init__(self, server: Any) -> None:
        self.server, self.client_s, self.server_s, self.commands = server, 0.0, 0.0, 0

    def __enter__(self) -> None:
        self._began = self._now()

    def __exit__(self, *_: object) -> None:
        client, server, commands = (b - a for a, b in zip(self._began, self._now(), strict=True))
        self.client_s += client
        self.server_s += server
        self.commands += round(commands) - 1  # INFO itself

    def _now(self) -> tuple[float, float, float]:
        said = self.server.info()
        server_s = float(said["used_cpu_user"]) + float(said["used_cpu_sys"])
        return time.process_time(), server_s, float(said["total_commands_processed"])

    def by(self, what: str, count: int) -> dict[str, float]:
        """By one of `count`."""
        return {
            f"{what}_client_us": self.client_s / count * 1e6, f"{what}_server_us": self.server_s / count * 1e6,
            f"{what}_commands": self.commands / count,
        }  # fmt: skip


def measure(url: str, regime: str, objects: int, epochs: int) -> dict[str, float]:
    """One round of one regime, on an empty server."""
    server = redis.Redis.from_url(url)
    server.flushall()
    client = state.connect(url)
    index = Neighbours(client, SURVEY, 86_400.0) if regime != "off" else None
    store = SequenceStore(client, SURVEY, debounce_s=0.0, neighbours=index)
    queue = DueQueue(client, SURVEY)
    joined = Joined(store, index, ARCSEC) if index else None
    intake, worker = Meter(server), Meter(server)
    for number, visit in enumerate(visits(objects, epochs, 0.5 if regime == "pairs" else 60.0)):
        with intake:
            store.store([Delivery("bench/0", number * objects + n, 0, 0, one) for n, one in enumerate(visit)])
        answered = 0
        while answered < objects:
            with worker:
                found = store.fetch(queue.claim(BATCH, 30.0), LANE)
                read = joined.read(found, LANE) if joined else found
                store.settle([_answer(one) for one in read], LANE)
            answered += len(read)
    used = sum(int(server.memory_usage(key) or 0) for key in server.scan_iter(count=1000))
    return {**intake.by("ingest", objects * epochs), **worker.by("worker", objects * epochs), "bytes": used / objects}


def _answer(one: StoredSequence) -> Answer:
    """As the worker settles it, without a model and its tokens."""
    spoken = (one.name, one.published_revision) if one.members else ("", 0)
    return Answer(one.claim, one.revision, True, b"latest", '{"p": 1}', {}, spoken)


def visits(objects: int, epochs: int, apart: float) -> Iterator[Sequence[Observation]]:
    """Every object once at each epoch; objects 2n and 2n + 1 are so many arcsec apart."""
    rng = np.random.default_rng(7)
    for epoch in range(epochs):
        noise = rng.normal(0, 13, (objects, STAMP_SIZE, STAMP_SIZE)).astype(np.float16)
        scatter = rng.normal(0, 0.1 / DEGREE, (objects, 2))
        yield [
            Observation(
                str(170_032_913_550_409_000 + n), epoch * objects + n + 1, 60_000.0 + epoch, "r",
                150.0 + n // 2 * 0.1 + scatter[n, 0], -30.0 + n % 2 * apart / DEGREE + scatter[n, 1],
                1e4, 1e2, noise[n], 0,
            )
            for n in range(objects)
        ]  # fmt: skip


if __name__ == "__main__":
    main()
