"""Where the intake's time goes, us of CPU an alert by step. The last line of stdout is JSON.

    python benchmarks/profile_intake.py [--alerts 2000] [--packets FOLDER | --survey lsst]

Each step is done alone for all alerts, a slice of 500 at a time, from what the step before it made: simulated
ZTF-shaped packets (benchmarks/packets.py) or Rubin-shaped ones (rubin_packets.py), and with FOLDER the real ones in
it, repeated under object and source ids of their own. `1` keeps the science stamp alone, `3` three stamps, photometry
and context. CPU time of the thread that works; `kafka threads` is what librdkafka spends alongside it, `redis server`
what the server does. The median of the rounds.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis
import stream

from skyheed.broker import app as daemon
from skyheed.broker import config
from skyheed.broker.errors import PacketError, SkipPacket
from skyheed.broker.ingest import Intake
from skyheed.broker.kafka import client as kafka
from skyheed.broker.observation import Observation
from skyheed.broker.packets import container, points, reader, stamps
from skyheed.broker.packets.stamps import Unfinished
from skyheed.broker.state import sequence
from skyheed.broker.state.sequence import Delivery

SLICE = 500
TOGETHER = 25  # packets: their files come to about as much as ingest unpacks at once
ROUNDS = 3
IMAGES = {
    "1": stream.SCIENCE,
    "3": {"ingest.images": ("science", "difference", "template")},
}


def main() -> None:
    """Profile both kinds of packets with one and three kinds of stamps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alerts", type=int, default=2000)
    parser.add_argument("--packets", type=Path, help="folder of real ZTF packets")
    parser.add_argument("--survey", choices=stream.PACKETS, default=stream.SURVEY)
    given = parser.parse_args()
    if given.packets and given.survey != stream.SURVEY:
        parser.error(f"real packets are of {stream.SURVEY} here: leave --packets or --survey out")
    sources = {"simulated": list(stream.PACKETS[given.survey].packets(given.alerts // 5, 5, seed=3))}
    if given.packets:
        sources["real"] = real_packets(given.packets, given.alerts)
    result: dict[str, Any] = {"cpu": stream.cpu_name()}
    with (
        tempfile.TemporaryDirectory(prefix="skyheed-bench-") as name,
        stream.servers(Path(name), given.survey) as settings,
    ):
        result["us_per_alert"] = {
            f"{source}, {kinds}": profile(settings, payloads, kinds)
            for source, payloads in sources.items() for kinds in IMAGES
        }  # fmt: skip
    print(json.dumps(result))


def real_packets(folder: Path, count: int) -> list[bytes]:
    """Packets of one alert each that the intake keeps, repeated."""
    found = []
    for path in sorted(folder.glob("**/*.avro")):
        for payload in container.split_container(path.read_bytes()):
            try:
                reader.read_packet(payload, "ztf")
            except (SkipPacket, PacketError):
                continue
            found.append(payload)
    if not found:
        raise SystemExit(f"no ZTF packets (.avro) in {folder}: give another folder")
    return [found[n % len(found)] for n in range(count)]


def profile(settings: config.Settings, payloads: Sequence[bytes], kinds: str) -> dict[str, float]:
    """us an alert of every step, the median of the rounds, and of all together."""
    rounds = [_round(settings, payloads, kinds) for _ in range(ROUNDS)]
    steps = {step: round(statistics.median(found[step] for found in rounds), 1) for step in rounds[0]}
    stream.say(f"{kinds} kinds: " + ", ".join(f"{step} {time_us:.0f}" for step, time_us in steps.items()))
    return steps


class Clock:
    """CPU time of steps, us an alert."""

    def __init__(self, alerts: int) -> None:
        self.alerts = alerts
        self.steps: dict[str, float] = defaultdict(float)

    @contextmanager
    def step(self, name: str, cpu: Callable[[], float] = time.thread_time) -> Iterator[None]:
        """The time of the block, added to a step."""
        began = cpu()
        yield
        self.steps[name] += (cpu() - began) / self.alerts * 1e6


def _round(settings: config.Settings, payloads: Sequence[bytes], kinds: str) -> dict[str, float]:
    own = stream.settings_with(settings, **IMAGES[kinds])
    server = redis.Redis.from_url(settings.redis.url)
    server.flushdb()
    clock = Clock(len(payloads))
    with kafka.Publisher(own.kafka) as publisher:
        intake = daemon.make_intake(own, publisher)
        for payload in payloads[:SLICE]:  # schemas are compiled once
            intake.reader.observations(payload)
        _poll(own, payloads, clock)
        observations: list[Observation] = []
        for first in range(0, len(payloads), SLICE):
            observations += _decode(intake, payloads[first : first + SLICE], clock)
        _store(intake, observations, server, clock)
    return {**clock.steps, "all": sum(clock.steps.values())}


def _poll(settings: config.Settings, payloads: Sequence[bytes], clock: Clock) -> None:
    """Reading and committing, without anything between."""
    topic = f"bench.profile.{time.time_ns()}"
    stream.send(settings, topic, payloads)
    began, left = (time.process_time(), time.thread_time()), len(payloads)
    with kafka.AlertConsumer(settings.input_options, [topic], f"group-{topic}", drain=True) as consumer:
        while left:
            with clock.step("kafka poll and commit"):
                messages = consumer.consume(SLICE, 0.2)
                consumer.commit(messages)
            left -= len(messages)
    everything, ours = time.process_time() - began[0], time.thread_time() - began[1]
    clock.steps["kafka threads"] = (everything - ours) / clock.alerts * 1e6


def _decode(intake: Intake, payloads: Sequence[bytes], clock: Clock) -> list[Observation]:
    """A slice as ingest does it, one step after the other."""
    survey: Any = intake.survey
    with clock.step("container and record"):
        records = [record for payload in payloads for record in intake.reader.decoder.decode(payload)]
    with clock.step("fields and filters"):
        begun = [survey.begin(record) for record in records]
    for first in range(0, len(begun), TOGETHER):
        _make(begun[first : first + TOGETHER], clock)
    with clock.step("photometry"):
        points.make([one.points for one in begun if one.points])
    with clock.step("context, checks"):
        return intake.reader.finish(begun)


def _make(begun: Sequence[Unfinished], clock: Clock) -> None:
    """The stamps of a few packets; ingest unpacks them in another thread."""
    with clock.step("gunzip (alongside)"):
        unpacked = stamps._unpacked([one.wanted.files for one in begun])
    for one, files in zip(begun, unpacked, strict=True):
        one.wanted.files = files
    with clock.step("FITS headers"):
        for one in begun:
            one.wanted.images()
    with clock.step("pixels and normalise"):
        stamps.make([one.wanted for one in begun])


def _store(intake: Intake, seen: Sequence[Observation], server: Any, clock: Clock) -> None:
    """Packing, the client's part and the server's of storing and of marking what was consumed."""
    own = [
        replace(o, object_id=f"BEN{n // 5:08d}", source_id=1000 * (n + 1) + 15) for n, o in enumerate(seen)
    ]  # repeated packets are alerts of their own
    for first in range(0, len(own), SLICE):
        numbers = range(first, min(first + SLICE, len(own)))
        deliveries = [Delivery("bench/0", n, 0, 0, own[n]) for n in numbers]
        with clock.step("pack"):
            sequence.words(range(len(deliveries)), deliveries)
        before = _server_s(server), clock.steps["pack"]
        with clock.step("redis client"):
            intake.ledger.consumed({"bench/0": list(numbers)})
            intake.store.store(deliveries)
        clock.steps["redis server"] += (_server_s(server) - before[0]) / clock.alerts * 1e6
    clock.steps["redis client"] -= clock.steps["pack"]  # which that did again
    clock.steps["pixels and normalise"] -= clock.steps["FITS headers"]  # and that


def _server_s(server: Any) -> float:
    used = server.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


if __name__ == "__main__":
    main()
