"""Where the worker's time goes, us of CPU an object by step. The last line of stdout is JSON.

    python benchmarks/profile_worker.py [--model ztf/fusion] [--objects 2000] [--functions]

Objects of nine epochs were classified before; then one more alert of each arrives (benchmarks/packets.py), and the
steps of a batch are done one after the other as `Worker` does them. CPU time of all threads of this process; Valkey's
own is not in it, and nothing is sent to Kafka. The median of the rounds. `--functions` lists the most expensive
functions instead, as cProfile sees them.
"""

import argparse
import cProfile
import json
import pstats
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import redis
import stream
from profile_intake import Clock

from skyheed.broker import app as daemon
from skyheed.broker import config, metrics
from skyheed.broker import worker_models as models
from skyheed.broker.local import embedded
from skyheed.broker.results.formats import datum_of
from skyheed.broker.state.sequence import Delivery, StoredSequence
from skyheed.broker.work import Worker, history_of

KNOWN, ROUNDS, MOST_SHOWN = 9, 3, 45


class _Nothing:
    """A publisher whose records go nowhere."""

    def publish_all(self, records: Sequence[Any], *_: Any) -> None:
        """Forget them."""


def main() -> None:
    """Profile one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ztf/fusion")
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--functions", action="store_true")
    given = parser.parse_args()
    survey = given.model.partition("/")[0]
    with embedded.start_valkey() as valkey:
        settings = config.load(
            overrides={"survey": survey, "redis.url": valkey.url, "work.model": given.model}, environ={}
        )
        [served] = models.load_models(settings)
        worker = models.make_worker(settings, served, _Nothing(), metrics.WorkMetrics(survey))  # type: ignore[arg-type]
        rounds = [_round(settings, worker, given.objects, given.functions) for _ in range(ROUNDS)]
    steps = {step: round(statistics.median(found[step] for found in rounds), 1) for step in rounds[0]}
    stream.say(f"{given.model}: " + ", ".join(f"{step} {time_us:.0f}" for step, time_us in steps.items()))
    print(json.dumps({"cpu": stream.cpu_name(), "model": given.model, "us_per_object": steps}))


def _round(settings: config.Settings, worker: Worker, objects: int, functions: bool) -> dict[str, float]:
    server = redis.Redis.from_url(settings.redis.url)
    server.flushdb()
    models.join(settings, [models.ServedModel(worker.output.model, worker.model, "", False, False)], threading.Event())
    stream.load(settings, range(objects), range(KNOWN), "bench.history/0")
    _work(worker, Clock(objects))
    _visit(settings, objects)
    clock = Clock(objects)
    if functions:
        with cProfile.Profile() as found:
            _work(worker, clock)
        pstats.Stats(found, stream=sys.stderr).sort_stats("tottime").print_stats(MOST_SHOWN)
    else:
        _work(worker, clock)
    return {**clock.steps, "all": sum(clock.steps.values())}


def _visit(settings: config.Settings, objects: int) -> None:
    """One more alert of every object."""
    intake = daemon.make_intake(settings, _Nothing())  # type: ignore[arg-type]
    payloads = stream.PACKETS[settings.survey].packets(objects, 1, seed=99)
    seen = [o for payload in payloads for o in intake.reader.observations(payload)]
    intake.store.store([Delivery("bench/0", n, 0, 0, observation) for n, observation in enumerate(seen)])


def _work(worker: Worker, clock: Clock) -> None:
    """Everything that is due, step by step."""
    cpu = time.process_time
    while True:
        with clock.step("claim", cpu):
            claims = worker.queue.claim(worker.pace.batch_size, 600.0)
        if not claims:
            if not worker.queue.depth()["new"] + worker.queue.depth()["due"]:
                return
            time.sleep(0.1)
            continue
        portions = worker.portions(claims, threading.Event())
        while portion := _next(portions, clock):
            _portion(worker, portion, clock)


def _next(portions: Iterator[tuple[Sequence[StoredSequence], float]], clock: Clock) -> Sequence[StoredSequence]:
    """What is classified at once next; empty at the end. Fetching happens where the worker does it."""
    with clock.step("fetch", time.process_time):
        return next(portions, ((), 0.0))[0]


def _portion(worker: Worker, sequences: Sequence[StoredSequence], clock: Clock) -> None:
    cpu, began = time.process_time, time.monotonic()
    with clock.step("history", cpu):
        histories = [history_of(sequence, worker.survey) for sequence in sequences]
    with clock.step("predict", cpu):
        predictions = worker.model.predict(histories)
    worker.batching.took(sequences, time.monotonic() - began)
    with clock.step("record", cpu):
        answers = [worker._answer(s, p, 0) for s, p in zip(sequences, predictions, strict=True)]
    with clock.step("format", cpu):
        for record, answer in answers:
            worker.output.form.encode(record, datum_of(answer.latest))
    with clock.step("settle", cpu):
        worker.store.settle([answer for _, answer in answers], worker.lane)


if __name__ == "__main__":
    main()
