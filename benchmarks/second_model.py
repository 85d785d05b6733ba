"""Latency of a worker's first model, alone and with a second one that takes 50 ms per object.

    KAFKA_HOME=… python benchmarks/second_model.py [--seconds 60] [--rate 50]

Four runs in turn, each with its own daemons and topics on the same Kafka and Valkey: the first model alone, a second
one that waits 50 ms per object (as on another device), a second one that computes for 50 ms per object on one thread of
the same CPU, and the first model alone again. At 50 alerts/s the second model has 2.5 times more work than it can do,
so its queue grows throughout. The last line of stdout is one JSON document.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import packets
import redis
from stream import Answers, cpu_name, kafka_name, percentiles, say, send, servers, settings_with

from skyheed.broker import app as daemon
from skyheed.broker import config
from skyheed.broker.local import processes as stack
from skyheed.broker.settings import Settings

FIRST, SECOND = "ztf/fusion", "ztf/convention"
OBJECT_S = 0.05
RUNS = ("alone", "waits", "computes", "alone again")


class Slow:
    """A model whose predictions take at least `OBJECT_S` per history."""

    def __init__(self, model: Any, computes: bool) -> None:
        self._model, self._computes = model, computes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def predict(self, histories: Sequence[Any]) -> Any:
        """The model's predictions, after the time is up."""
        end = time.monotonic() + OBJECT_S * len(histories)
        found = self._model.predict(histories)
        if self._computes:
            _compute(end)
        time.sleep(max(0.0, end - time.monotonic()))
        return found


def _compute(end: float) -> None:
    import torch

    matrix = torch.ones(256, 256)
    while time.monotonic() < end:
        matrix = matrix @ matrix.clamp(max=1) / 256  # releases the interpreter's lock, as networks do


def work(file: str, run: str) -> None:
    """A worker process of both models; ends with SIGTERM."""
    from dataclasses import replace

    from skyheed.broker import worker_models as running

    load = running.load_models

    def slowed(settings: Settings) -> list[running.ServedModel]:
        first, *others = load(settings)
        return [first, *(replace(o, model=Slow(o.model, run == "computes")) for o in others)]  # type: ignore[arg-type]

    running.load_models = slowed
    daemon.run_work(config.load(Path(file)), drain=False)


def measure(settings: Settings, folder: Path, run: str, rate: float, seconds: float) -> dict[str, Any]:
    """Latencies of the first model, and what the second one has done and left."""
    name = f"second.{run.replace(' ', '-')}"
    redis.Redis.from_url(settings.redis.url).flushdb()
    own = settings_with(settings, **{"topics.prefix": name, "ingest.group": name})
    file = folder / f"{name}.toml"
    second = f'[[work.models]]\nmodel = "{SECOND}"\nname = "slow"\n' if not run.startswith("alone") else ""
    file.write_text(
        f'survey = "ztf"\n[kafka]\n"bootstrap.servers" = "{own.kafka["bootstrap.servers"]}"\n'
        f'[redis]\nurl = "{own.redis.url}"\n'
        f'[topics]\nprefix = "{name}"\n[ingest]\ngroup = "{name}"\n[work]\nthreads = 1\n'
        f'[[work.models]]\nmodel = "{FIRST}"\n{second}'
    )
    daemon.prepare_topics(own, threading.Event())
    answers = Answers(own)
    answers.start()
    ingest = stack.Daemon("ingest", stack.shared_arguments(own, str(file)), folder / f"{name}.ingest.log")
    with (folder / f"{name}.work.log").open("w") as log:
        worker = subprocess.Popen([sys.executable, __file__, "--work", str(file), run], stderr=log)
    objects = int(rate * seconds / 3)
    payloads = list(packets.packets(objects, 3, seed=11))
    try:
        send(own, daemon.alert_topics(own)[0], payloads[:1])
        answers.wait(["BEN00000000"], 1, 120)  # the daemons are up
        answers.latencies.clear()
        send(own, daemon.alert_topics(own)[0], payloads[1:], rate)
        answers.wait([f"BEN{n:08d}" for n in range(objects)], 3, 120)
        books = daemon.connect_store(own)[2].books()
        found = {model: [own_.classified + own_.declined, own_.pending] for model, own_ in books.objects.models.items()}
        result = {**percentiles(answers.latencies), "answers": len(answers.latencies), "answered_and_pending": found}
    finally:
        worker.terminate()
        worker.wait(60)
        ingest.stop()
    books = daemon.connect_store(own)[2].books()
    assert books.balanced, books.to_text()
    say(f"  {run}: {result}")
    return result


def main() -> None:
    """All runs on one Kafka and one Valkey."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--work", nargs=2, metavar=("FILE", "RUN"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        return work(*given.work)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="skyheed-bench-") as name, servers(Path(name)) as settings:
        found = {run: measure(settings, Path(name), run, given.rate, given.seconds) for run in RUNS}
    print(json.dumps({"kafka": kafka_name(), "cpu": cpu_name(), "rate": given.rate, **found}))
    return None


if __name__ == "__main__":
    sys.exit(main())
