"""The stream benchmark: what one machine takes in, answers and needs. The last line of stdout is one JSON document.

    python benchmarks/stream.py            everything (about twelve minutes on two cores)
    python benchmarks/stream.py --quick    a tenth of the alerts
    python benchmarks/stream.py --model ztf/fusion     visit and steady stream with this model alone
    python benchmarks/stream.py --only visit           or `steady` (after a visit of 3,000 alerts), or `stream`: both
    python benchmarks/stream.py --only visit --model lsst/fusion     with Rubin-shaped packets (rubin_packets.py)

Regimes, all in one run on one Kafka (Apache with KAFKA_HOME set, the embedded one otherwise) and one Valkey:
  ingest     alerts/s of skyheed's ingest with the science stamp alone (ingest_per_s, as in reports of 2026-11-21),
             with three stamps, photometry and context (_3_images), and of a naive one, in turn: container decode of
             all fields, astropy.io.fits for each of the three stamps, one Redis round trip per write; it is frozen as
             it stood at 51e1edb. Packets are ZTF-shaped.
  profile    us of CPU an alert by step (profile_intake.py), simulated packets.
  visit      one Rubin visit: 10,000 alerts of 10,000 known objects (9 stamps each) sent at once; the time from the
             first send until the last object's new answer was read by a subscriber. Its rate is end_to_end_per_s;
             visit_cpu_s are CPU seconds of each process meanwhile (client: this one, which sends and reads).
  steady     latency from Kafka's time stamp to the classification at 100 and at 500 alerts/s, and how long after the
             last alert was sent the last answer came.
  memory     bytes per object in Valkey at 10, 30 and 99 stamps.
Visit and steady stream run with each model; the first one's figures also stand at the top, `family` names it.
Client, servers and model share the cores: that is what an operator with one machine gets.
"""

import argparse
import gzip
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import cpu
import fastavro
import numpy as np
import packets
import redis
import rubin_packets
from astropy.io import fits
from cpu import name as cpu_name

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from server_tools import start_apache_kafka

from skyheed.broker import app as daemon
from skyheed.broker import config, metrics
from skyheed.broker.ingest import Ingest
from skyheed.broker.kafka import client as kafka
from skyheed.broker.local import embedded
from skyheed.broker.local import processes as stack
from skyheed.broker.observation import Observation
from skyheed.broker.settings import Settings
from skyheed.broker.state.sequence import Delivery
from skyheed.broker.subscribe import Subscriber
from skyheed.classifier.progress import progress_bar
from skyheed.classifier.stamp import STAMP_SIZE

SURVEY = "ztf"
ROUNDS = 3
MODELS = ("ztf/fusion", "ztf/convention")
PACKETS: dict[str, Any] = {"ztf": packets, "lsst": rubin_packets}  # modules that make packets and name their objects
SCIENCE = {"ingest.images": ("science",), "ingest.photometry": False, "ingest.context": False}


def main() -> None:
    """Run every regime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the alerts")
    parser.add_argument(
        "--model", action="append",
        help=f"that visit and steady stream run with: {', '.join(MODELS)}, or those of another survey",
    )  # fmt: skip
    parser.add_argument("--only", choices=("stream", "visit", "steady"), help="one part of it")
    given = parser.parse_args()
    scale, models = 10 if given.quick else 1, given.model or list(MODELS)
    surveys = {model.partition("/")[0] for model in models}
    if len(surveys) > 1 or not surveys <= PACKETS.keys():
        parser.error(f"give models of one of the surveys {', '.join(PACKETS)}")
    [survey] = surveys
    if survey != SURVEY and not given.only:
        parser.error(f"the naive pipeline reads packets of {SURVEY}: add --only visit, steady or stream")
    steady = 0 if given.only == "visit" else 3000 // scale
    visit = steady if given.only == "steady" else 10_000 // scale
    with tempfile.TemporaryDirectory(prefix="skyheed-bench-") as name, servers(Path(name), survey) as settings:
        result: dict[str, Any] = {"kafka": kafka_name(), "cpu": cpu_name()}
        if not given.only:
            result |= ingest(settings, 3000 // scale, 600 // scale)
            result["us_per_alert"] = profile(settings, 2000 // scale)
            result["bytes_per_object"] = memory(settings)
        else:
            warm_up(settings)
        found = {model: stream(settings, Path(name), model, visit, steady) for model in models}
    print(json.dumps({**result, "family": models[0], **found[models[0]], "models": found}))


def warm_up(settings: Settings) -> None:
    """What the intake does for the servers before the visit: a JVM is slow until its code is compiled."""
    payloads = list(PACKETS[settings.survey].packets(600, 5, seed=0))
    send(settings, "bench.warm", payloads)
    our_rate(settings_with(settings, **SCIENCE), "bench.warm", len(payloads))


def profile(settings: Settings, alerts: int) -> dict[str, dict[str, float]]:
    """See profile_intake.py."""
    import profile_intake  # which takes from here what it needs

    payloads = list(packets.packets(alerts // 5, 5, seed=3))
    return {kinds: profile_intake.profile(settings, payloads, kinds) for kinds in profile_intake.IMAGES}


@contextmanager
def servers(folder: Path, survey: str = SURVEY) -> Iterator[Settings]:
    """Kafka, Valkey with an append-only file as operators run it, and the settings that name them."""
    home = os.environ.get("KAFKA_HOME")
    broker = start_apache_kafka(home, folder / "kafka") if home else embedded.start_kafka()
    with broker as kafka_server, embedded.start_valkey(data_dir=folder / "valkey", appendonly=True) as valkey:
        settings = config.load(overrides={"survey": survey}, environ={})
        yield config.with_servers(settings, kafka_server.address, valkey.url)


def kafka_name() -> str:
    home = os.environ.get("KAFKA_HOME")
    if not home:
        return "embedded (tansu)"
    jar = next(Path(home, "libs").glob("kafka-clients-*.jar")).stem
    return f"apache {jar.removeprefix('kafka-clients-')}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- ingest --------------------------------------------------------------------------------------------------------


def send(settings: Settings, topic: str, payloads: Sequence[bytes], rate: float = 0.0) -> None:
    """Publish all payloads without a key, at `rate` a second or flat out."""
    kafka.ensure_topics(settings.kafka, {topic: daemon.ALERT_TOPIC}, 4, 1)
    with kafka.Publisher({**settings.kafka, **PACKETS[settings.survey].PRODUCER}) as publisher:
        began, step = time.monotonic(), 500 if not rate else max(1, int(rate / 10))
        for first in range(0, len(payloads), step):
            chunk = payloads[first : first + step]
            publisher.publish_all([(topic, None, payload, None) for payload in chunk])
            if rate:
                time.sleep(max(0.0, began + (first + len(chunk)) / rate - time.monotonic()))


def ingest(settings: Settings, ours: int, naive: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Alerts/s of all pipelines, in turn; medians, and the median of the ratios of neighbours.

    On a machine with other work look at the ratios of CPU time, which leave out what the servers do.
    """
    say(f"ingest: {rounds} rounds of {ours} alerts through skyheed, twice, and {naive} through the naive pipeline")
    rates: list[tuple[float, ...]] = []
    for number in range(rounds):
        payloads = list(packets.packets(ours // 5, 5, seed=number))
        for name in ("science", "all"):
            send(settings, f"bench.{name}.{number}", payloads)
        send(settings, f"bench.naive.{number}", payloads[:naive])
        redis.Redis.from_url(settings.redis.url).flushdb()
        own = settings_with(settings, **SCIENCE)
        science = with_cpu(lambda own=own, n=number: our_rate(own, f"bench.science.{n}", ours), ours)
        redis.Redis.from_url(settings.redis.url).flushdb()  # other settings of images are refused, and the same alerts
        slow = with_cpu(lambda n=number: _naive_rate(settings, f"bench.naive.{n}", naive), naive)
        everything = with_cpu(lambda n=number: our_rate(settings, f"bench.all.{n}", ours), ours)
        rates.append((*science, *everything, *slow))
        say(
            f"  science {science[0]:6.0f}/s   all {everything[0]:6.0f}/s   naive {slow[0]:6.0f}/s   ratios "
            f"{science[0] / slow[0]:5.1f} and {everything[0] / slow[0]:5.1f}, of CPU time "
            f"{slow[1] / science[1]:5.1f} and {slow[1] / everything[1]:5.1f}"
        )
    medians = [round(statistics.median(column)) for column in zip(*rates, strict=True)]
    return {
        "ingest_per_s": medians[0], "ingest_per_s_3_images": medians[2], "naive_per_s": medians[4],
        "ingest_ratio": round(statistics.median(r[0] / r[4] for r in rates), 1),
        "ingest_ratio_3_images": round(statistics.median(r[2] / r[4] for r in rates), 1),
        "ingest_3_images_to_science": round(statistics.median(r[2] / r[0] for r in rates), 2),
        "ingest_per_s_a_core": {"science": round(1e6 / medians[1]), "3_images": round(1e6 / medians[3])},
        "cpu_ratio": round(statistics.median(r[5] / r[1] for r in rates), 1),
        "cpu_ratio_3_images": round(statistics.median(r[5] / r[3] for r in rates), 1),
        "client_cpu_us": {"science": medians[1], "3_images": medians[3], "naive": medians[5]},
    }  # fmt: skip


def with_cpu(run: Callable[[], float], alerts: int) -> tuple[float, float]:
    """A rate, and us of CPU an alert of this process, librdkafka's threads included."""
    began = time.process_time()
    rate = run()
    return rate, (time.process_time() - began) / alerts * 1e6


def settings_with(settings: Settings, **changes: Any) -> Settings:
    """Other settings on the same servers."""
    made = config.load(overrides={"survey": settings.survey, **changes}, environ={})
    return config.with_servers(made, settings.kafka["bootstrap.servers"], settings.redis.url)


class _Timed:
    """A consumer that notes when its first batch came and its last was done: joining and draining are not intake."""

    def __init__(self, consumer: kafka.AlertConsumer) -> None:
        self._consumer = consumer
        self.began = self.ended = 0.0

    def commit(self, messages: Sequence[ck.Message]) -> None:
        self._consumer.commit(messages)
        self.ended = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def consume(self, limit: int, wait_s: float, limit_bytes: int) -> list[ck.Message]:
        messages = self._consumer.consume(limit, wait_s, limit_bytes)
        if messages and not self.began:
            self.began = time.monotonic()
        return messages


def our_rate(settings: Settings, topic: str, count: int) -> float:
    with (
        kafka.Publisher(settings.kafka) as publisher,
        kafka.AlertConsumer(settings.kafka, [topic], f"group-{topic}", drain=True) as consumer,
    ):
        timed = _Timed(consumer)
        intake = daemon.make_intake(settings, publisher)
        loop = Ingest(intake, timed, metrics.IngestMetrics(settings.survey), 500, 0.2)  # type: ignore[arg-type]
        totals = loop.run(threading.Event(), drain=True)
        assert totals["consumed"] == count == totals["stored"] + totals["duplicate"], totals
        return count / (timed.ended - timed.began)


def _naive_rate(settings: Settings, topic: str, count: int) -> float:
    client = redis.Redis.from_url(settings.redis.url)
    options = {"bootstrap.servers": settings.kafka["bootstrap.servers"], "group.id": f"naive-{topic}"}
    consumer = ck.Consumer({**options, "auto.offset.reset": "earliest", "enable.auto.commit": False})
    consumer.subscribe([topic])
    began, done = 0.0, 0
    while done < count:
        message = consumer.poll(10)
        if message is None or message.error():
            continue
        began = began or time.monotonic()
        for alert in fastavro.reader(io.BytesIO(message.value())):
            _naive_store(client, alert)
        consumer.commit(message=message, asynchronous=True)
        done += 1
    rate = count / (time.monotonic() - began)
    consumer.close()
    return rate


def _naive_store(client: Any, alert: dict[str, Any]) -> None:
    """What a first version would do: every stamp through astropy, every write its own round trip."""
    key, candidate = f"naive:{alert['objectId']}", alert["candidate"]
    stamps = []
    for kind in ("cutoutScience", "cutoutTemplate", "cutoutDifference"):
        with fits.open(io.BytesIO(gzip.decompress(alert[kind]["stampData"]))) as hdus:
            stamps.append(np.asarray(hdus[0].data, np.float32))
    middle = stamps[0].shape[0] // 2
    cut = stamps[0][middle - 16 : middle + 16, middle - 16 : middle + 16].astype(np.float16)
    client.hset(key, str(alert["candid"]), cut.tobytes())
    client.zadd(f"{key}:order", {str(alert["candid"]): candidate["jd"]})
    client.zadd("naive:due", {alert["objectId"]: time.time()})
    client.expire(key, 86_400)


# --- memory --------------------------------------------------------------------------------------------------------


def observations(objects: range, epochs: range, survey: str = SURVEY) -> Iterator[Observation]:
    """Simulated observations that need no packet: noise with a point source."""
    name = PACKETS[survey].name
    rng = np.random.default_rng(7)
    stamps = rng.normal(0, 1, (64, STAMP_SIZE, STAMP_SIZE)).astype(np.float16)
    stamps[:, 14:18, 14:18] += rng.uniform(5, 200, (64, 1, 1)).astype(np.float16)
    for epoch in epochs:
        for number in objects:
            source = (epoch * 1_000_000 + number + 1) * 1000 + 16  # not an id of `packets`
            yield Observation(
                name(number), source, 60000.0 + 2 * epoch - 1000, "gr"[epoch % 2], 10.0, 20.0, 1e4, 1e2,
                stamps[(number + epoch) % 64], 0,
            )  # fmt: skip


def load(settings: Settings, objects: range, epochs: range, partition: str) -> None:
    """Put observations straight into the store."""
    store = daemon.connect_store(settings)[0]
    batch: list[Delivery] = []
    # known objects: what they bring was consumed long ago, and the books must balance
    daemon.connect_store(settings)[2].consumed({partition: range(len(objects) * len(epochs))})
    total = len(objects) * len(epochs)
    seen = observations(objects, epochs, settings.survey)
    for offset, observation in enumerate(progress_bar(seen, "loading", total)):
        batch.append(Delivery(partition, offset, 0, 0, observation))
        if len(batch) == 500 or offset == total - 1:
            store.store(batch)
            batch = []


def memory(settings: Settings) -> dict[str, int]:
    """Mean bytes of all keys of an object, measured on 20 objects."""
    store = daemon.connect_store(settings)[0]
    found = {}
    for stamps in (10, 30, 99):
        objects = range(stamps * 10_000_000, stamps * 10_000_000 + 20)
        load(settings, objects, range(stamps), f"bench.memory/{stamps}")
        found[str(stamps)] = round(statistics.mean(store.bytes_per_object(packets.name(n)) for n in objects))
    for stamps, size in found.items():
        say(f"  {stamps} stamps: {size} bytes an object, {size / 1e3:.1f} GB for 1e6, {size / 1e2:.0f} GB for 1e7")
    return found


# --- the whole stream ----------------------------------------------------------------------------------------------


class Answers(threading.Thread):
    """Reads the classifications; knows the stamps of every object's newest answer and all latencies."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.stamps: dict[str, int] = {}
        self.missing: set[str] = set()
        self.wanted = 0
        self.latencies: list[int] = []
        self._stream = Subscriber(settings.kafka["bootstrap.servers"], topic=settings.classification_topic)

    def run(self) -> None:
        with self._stream as stream:
            for record in stream:
                self.stamps[record.object_id] = record.n_stamps
                if record.n_stamps >= self.wanted:
                    self.missing.discard(record.object_id)
                self.latencies.append(record.classified_ms - record.kafka_ms)

    def wait(self, objects: Sequence[str], stamps: int, limit_s: float) -> float:
        """Seconds until every object was answered with at least this many stamps."""
        began = time.monotonic()
        self.wanted, self.missing = stamps, set(objects)  # the thread leaves out those answered from now on
        self.missing -= {name for name in objects if self.stamps.get(name, 0) >= stamps}
        with progress_bar(None, "answered", len(objects)) as bar:
            while time.monotonic() - began < limit_s:
                bar.update(len(objects) - len(self.missing) - bar.n)
                if not self.missing:
                    return time.monotonic() - began
                time.sleep(0.05)
        raise SystemExit(f"{len(self.missing)} of {len(objects)} objects were not answered in {limit_s:.0f} s")


def stream(settings: Settings, folder: Path, model: str, visit: int, steady: int) -> dict[str, Any]:
    """The visit and the steady stream through both daemons, with one model and topics of its own."""
    known, name = 9, model.replace("/", ".")
    say(f"{model}: {visit} objects with {known} stamps each, then a visit of {visit} alerts at once")
    redis.Redis.from_url(settings.redis.url).flushdb()
    own = settings_with(settings, **{"topics.prefix": name, "ingest.group": name})
    file = folder / f"{name}.toml"
    file.write_text(f'[topics]\nprefix = "{name}"\n[ingest]\ngroup = "{name}"\n[work]\nmodel = "{model}"\n')
    load(own, range(visit), range(known), "bench.history/0")
    daemon.prepare_topics(own, threading.Event())
    arguments = stack.shared_arguments(own, str(file))
    answers = Answers(own)
    answers.start()
    shaped = PACKETS[settings.survey]
    names = [shaped.name(n) for n in range(visit)]
    children = [stack.Daemon(verb, arguments, folder / f"{name}.{verb}.log") for verb in ("ingest", "work")]
    try:
        answers.wait(names, known, 1800)
        payloads = list(shaped.packets(visit, 1, seed=99))
        say("  sending the visit")
        began, before = time.monotonic(), cpu.seconds()
        answers.latencies.clear()
        send(own, daemon.alert_topics(own)[0], payloads)
        answers.wait(names, known + 1, 600)
        seconds, burst, used = time.monotonic() - began, percentiles(answers.latencies), cpu.since(before)
        say(f"  {visit} alerts classified in {seconds:.1f} s ({visit / seconds:.0f}/s), latency {burst}, CPU s {used}")
        rates = ((100, (1,), known + 2), (500, (2, 3), known + 4)) if steady else ()
        calm = {f"latency_ms_at_{r}_per_s": _steady(own, answers, steady, e, r, s) for r, e, s in rates}
        books = daemon.connect_store(own)[2].books()
        assert books.balanced, books.to_text()
    finally:
        for child in children:
            child.stop()
    return {
        "end_to_end_per_s": round(visit / seconds),
        f"visit_{visit}_s": round(seconds, 1),
        "visit_cpu_s": used,
        "visit_latency_ms": burst,
        **calm,
    }


def _steady(
    settings: Settings, answers: Answers, objects: int, epochs: Sequence[int], rate: float, stamps: int
) -> dict[str, float]:
    """Latencies at a rate; `after_the_last_s` is how long after the last alert was sent every object was answered."""
    count = objects * len(epochs)
    say(f"  steady: {count} alerts at {rate:.0f}/s")
    shaped = PACKETS[settings.survey]
    payloads = list(shaped.packets(objects, epochs[-1] + 1, seed=5))[epochs[0] * objects :]
    answers.latencies.clear()
    send(settings, daemon.alert_topics(settings)[0], payloads, rate=rate)
    after = answers.wait([shaped.name(n) for n in range(objects)], stamps, 300)
    found = {**percentiles(answers.latencies), "after_the_last_s": round(after, 1)}
    per_alert = len(answers.latencies) / count
    say(f"  latency {found}, {per_alert:.2f} answers an alert")
    return {**found, "answers_per_alert": round(per_alert, 2)}


def percentiles(milliseconds: Sequence[int]) -> dict[str, float]:
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return {"p50": round(float(p50)), "p99": round(float(p99))}


if __name__ == "__main__":
    sys.exit(main())
