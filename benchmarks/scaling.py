"""What more processes bring: ingests of one group and workers of one queue. The last line of stdout is JSON.

    python benchmarks/scaling.py [--alerts 3000] [--model ztf/fusion] [--only ingest|skew|work] [--processes 1 2 4]

  ingest     alerts/s that 1, 2 and 4 ingests read of a topic with four partitions; ZTF-shaped, three stamps.
  skew       the same where the partitions hold 70, 10, 10 and 10 % of the alerts.
  work       objects/s, nine stamps each, classified for the first time: one worker of one thread and of two, two
             and four workers of one thread.
The daemons start first and are halted (SIGSTOP) while their work is put into Kafka or Redis, so that neither their
start nor that is in the times. CPU s are those of the daemons together and of the servers; on a machine with fewer
cores than processes they are what can be compared.
"""

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import cpu
import packets
import redis
import stream
from confluent_kafka.admin import AdminClient

from skyheed.broker import app as daemon
from skyheed.broker.kafka import client as kafka
from skyheed.broker.local import processes as stack
from skyheed.broker.settings import Settings

PARTITIONS = 4
EVEN, UNEVEN = (25, 25, 25, 25), (70, 10, 10, 10)  # % of the alerts in each
WORKERS = ((1, 1), (1, 2), (2, 1), (4, 1))  # workers, threads of each
KNOWN = 9
READY_S, DONE_S = 180.0, 600.0


def main() -> None:
    """All runs on one Kafka and one Valkey."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alerts", type=int, default=3000)
    parser.add_argument("--model", default="ztf/fusion")
    parser.add_argument("--only", choices=("ingest", "skew", "work"))
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2, 4))
    given = parser.parse_args()
    found: dict[str, Any] = {"kafka": stream.kafka_name(), "cpu": stream.cpu_name()}
    with tempfile.TemporaryDirectory(prefix="skyheed-bench-") as name, stream.servers(Path(name)) as settings:
        payloads = list(packets.packets(given.alerts, 1, seed=3)) if given.only != "work" else []
        for what, shares in (("ingest", EVEN), ("skew", UNEVEN)):
            if given.only in (None, what):
                runs = {str(n): ingests(settings, Path(name), payloads, shares, n) for n in given.processes}
                found[what] = runs
        if given.only in (None, "work"):
            chosen = [own for own in WORKERS if own[0] in given.processes]
            found["work"] = {
                f"{n} of {threads}": workers(settings, Path(name), given.model, given.alerts, n, threads)
                for n, threads in chosen
            }
    print(json.dumps(found))


def ingests(
    settings: Settings, folder: Path, payloads: Sequence[bytes], shares: Sequence[int], count: int
) -> dict[str, Any]:
    """Alerts/s of `count` ingests."""
    name = f"scaling.{shares[0]}.{count}"
    own, file = _own(settings, folder, name, "")
    kafka.ensure_topics(own.kafka, {name: daemon.ALERT_TOPIC}, PARTITIONS, 1)
    words = [*stack.shared_arguments(own, str(file)), "--topic", name]
    store = daemon.connect_store(own)[0]
    admin = AdminClient({"bootstrap.servers": own.kafka["bootstrap.servers"]})
    with _daemons("ingest", words, folder / name, count) as daemons:
        _until(lambda: _members(admin, name) == count, READY_S, "the group to form")
        with _halted(daemons):
            _publish(own, name, payloads, shares)
            before = cpu.seconds()
        began = time.monotonic()
        _until(lambda: _objects(store, own) >= len(payloads), DONE_S, "every alert to be stored")
        return _said(f"{count} ingests, partitions of {shares} %", len(payloads), began, before)


def workers(settings: Settings, folder: Path, model: str, objects: int, count: int, threads: int) -> dict[str, Any]:
    """Objects/s of `count` workers with so many threads each."""
    name = f"scaling.work.{count}.{threads}"
    own, file = _own(settings, folder, name, f'[work]\nmodel = "{model}"\nthreads = {threads}\n')
    daemon.prepare_topics(own, threading.Event())
    lane = model.split("/")[-1]
    store, _, ledger = daemon.connect_store(own, lane)
    with _daemons("work", stack.shared_arguments(own, str(file)), folder / name, count) as daemons:
        _until(lambda: all("work model=" in d.log_file.read_text() for d in daemons), READY_S, "the workers to start")
        _until(lambda: lane in store.models(), READY_S, "the model to join")
        time.sleep(1.0)
        with _halted(daemons):
            stream.load(own, range(objects), range(KNOWN), "bench.history/0")
            time.sleep(own.ingest.debounce_s)
            before = cpu.seconds()
        began = time.monotonic()
        _until(lambda: _answered(ledger, lane) >= objects, DONE_S, "every classification")
        return _said(f"{count} workers of {threads} threads", objects, began, before)


def _own(settings: Settings, folder: Path, name: str, more: str) -> tuple[Settings, Path]:
    """Settings with topics and a group of their own on an empty Redis, and the file that says so to daemons."""
    redis.Redis.from_url(settings.redis.url).flushdb()
    file = folder / f"{name}.toml"
    file.write_text(f'[topics]\nprefix = "{name}"\n[ingest]\ngroup = "{name}"\n{more}')
    return stream.settings_with(settings, **{"topics.prefix": name, "ingest.group": name}), file


@contextmanager
def _daemons(verb: str, words: Sequence[str], place: Path, count: int) -> Iterator[list[stack.Daemon]]:
    with ExitStack() as running:
        daemons = []
        for n in range(count):
            daemons.append(stack.Daemon(verb, words, place.with_name(f"{place.name}.{n}.log")))
            running.callback(daemons[-1].stop)
        yield daemons


@contextmanager
def _halted(daemons: Sequence[stack.Daemon]) -> Iterator[None]:
    """For less than the 10 s after which Kafka would take their partitions away."""
    for one in daemons:
        one.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for one in daemons:
            one.process.send_signal(signal.SIGCONT)


def _publish(settings: Settings, topic: str, payloads: Sequence[bytes], shares: Sequence[int]) -> None:
    producer = ck.Producer({"bootstrap.servers": settings.kafka["bootstrap.servers"], "compression.type": "zstd"})
    places = [place for place, share in enumerate(shares) for _ in range(share)]
    for n, payload in enumerate(payloads):
        producer.produce(topic, payload, partition=places[n * 37 % 100])  # 37: neighbours go to different ones
        producer.poll(0)
        if n % 200 == 0:
            producer.flush()
    producer.flush()


def _members(admin: AdminClient, group: str) -> int:
    """Members of the group that have partitions; 0 while it rebalances."""
    try:
        described = admin.describe_consumer_groups([group])[group].result()
    except ck.KafkaException:  # the group does not exist yet
        return 0
    if described.state != ck.ConsumerGroupState.STABLE:
        return 0
    return sum(bool(m.assignment and m.assignment.topic_partitions) for m in described.members)


def _objects(store: Any, settings: Settings) -> int:
    server = redis.Redis.from_url(settings.redis.url)
    with server.pipeline(transaction=False) as pipeline:
        for shard in range(settings.redis.shards):
            pipeline.zcard(f"{store._keys.shard(shard)}touched")
        return sum(pipeline.execute())


def _answered(ledger: Any, model: str) -> int:
    own = ledger.books().objects.models[model]
    return int(own.classified + own.declined)


def _until(ready: Callable[[], bool], limit_s: float, what: str) -> None:
    deadline = time.monotonic() + limit_s
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {limit_s:.0f} s for {what}")
        time.sleep(0.05)


def _said(what: str, count: int, began: float, before: Any) -> dict[str, Any]:
    seconds = time.monotonic() - began
    used = cpu.since(before)
    stream.say(f"  {what}: {count / seconds:.0f}/s, CPU s {used}")
    return {"per_s": round(count / seconds), "cpu_s": used}


if __name__ == "__main__":
    sys.exit(main())
