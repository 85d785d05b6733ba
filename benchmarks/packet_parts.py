"""What the further parts of a packet cost: intake rate and bytes an object. The last line of stdout is JSON.

    python benchmarks/packet_parts.py [--alerts 3000] [--rounds 5]

Intake: alerts/s of skyheed's ingest from Kafka to Valkey (see stream.py), ZTF-shaped packets with 20 earlier points, by
turns with the science stamp alone and with three stamps, photometry and context; medians of the rounds, and the median
of the ratios of neighbours. On a busy machine look at the CPU time of an alert, of ingest and Valkey together, instead.
Bytes: all keys of an object after 10, 30 and 99 epochs, for one, two and three kinds of stamps without photometry and
context, and for everything. Stamps are noise of ZTF's size (13 units a pixel) with a source, the further kinds rounded
as the adapters do it; every epoch has a template of its own, as real ZTF and Rubin packets have, or one for each band.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import packets
import redis
import stream

from skyheed.broker import app as daemon
from skyheed.broker.observation import Observation
from skyheed.broker.settings import Settings
from skyheed.broker.state.sequence import Delivery
from skyheed.classifier import context as contexts
from skyheed.classifier.history import Photometry
from skyheed.classifier.stamp import STAMP_SIZE, rounded

EPOCHS = (10, 30, 99)
OBJECTS = 10


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alerts", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    result: dict[str, Any] = {"kafka": stream.kafka_name(), "cpu": stream.cpu_name()}
    with tempfile.TemporaryDirectory(prefix="skyheed-bench-") as name, stream.servers(Path(name)) as settings:
        result |= intake(settings, given.alerts, given.rounds)
        result["bytes_per_object"] = memory(settings)
    print(json.dumps(result))


def intake(settings: Settings, alerts: int, rounds: int) -> dict[str, Any]:
    """Alerts/s of both regimes, by turns."""
    rates: dict[str, list[float]] = {"science": [], "everything": []}
    cpu: dict[str, list[float]] = {"science": [], "everything": []}
    for number in range(rounds):
        payloads = list(packets.packets(alerts // 5, 5, seed=number))
        for name, changes in (("science", stream.SCIENCE), ("everything", {})):
            redis.Redis.from_url(settings.redis.url).flushdb()
            topic = f"bench.{name}.{number}"
            stream.send(settings, topic, payloads)
            began = _cpu_s(settings)
            rates[name].append(stream.our_rate(stream.settings_with(settings, **changes), topic, len(payloads)))
            cpu[name].append((_cpu_s(settings) - began) / len(payloads) * 1e6)
        stream.say("  " + "  ".join(f"{name} {found[-1]:.0f}/s" for name, found in rates.items()))
    ratios = [b / a for a, b in zip(*rates.values(), strict=True)]
    medians = {f"{name}_per_s": round(statistics.median(found)) for name, found in rates.items()}
    times = {f"{name}_cpu_us": round(statistics.median(found)) for name, found in cpu.items()}
    return medians | {"ratio": round(statistics.median(ratios), 3)} | times


def _cpu_s(settings: Settings) -> float:
    """CPU time of this process and of Valkey so far, seconds."""
    used: Any = redis.Redis.from_url(settings.redis.url).info("cpu")
    return time.process_time() + float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def memory(settings: Settings) -> dict[str, dict[str, int]]:
    """Mean bytes of an object, by regime and epochs."""
    regimes: dict[str, tuple[tuple[str, ...], bool, bool]] = {
        "science": ((), False, False),
        "science, difference": (("difference",), False, False),
        "science, difference, template": (("difference", "template"), False, False),
        "science, difference, a template a band": (("difference", "template"), True, False),
        "everything": (("difference", "template"), False, True),
    }
    found = {}
    for name, (kinds, shared, more) in regimes.items():
        found[name] = {str(n): _bytes_of(settings, kinds, shared, more, n) for n in EPOCHS}
        against = [f"{size} ({size / found['science'][n]:.2f})" for n, size in found[name].items()]
        stream.say(f"  {name}: {', '.join(against)} bytes at {', '.join(map(str, EPOCHS))} epochs (against science)")
    return found


def _bytes_of(settings: Settings, kinds: tuple[str, ...], shared: bool, more: bool, epochs: int) -> int:
    redis.Redis.from_url(settings.redis.url).flushdb()
    store = daemon.connect_store(settings)[0]
    seen = list(_observations(kinds, shared, more, epochs))
    store.store([Delivery("bench/0", n, 0, 0, o) for n, o in enumerate(seen)])
    return round(statistics.mean(store.bytes_per_object(f"BEN{n:08d}") for n in range(OBJECTS)))


def _observations(kinds: tuple[str, ...], shared: bool, more: bool, epochs: int) -> Iterator[Observation]:
    rng = np.random.default_rng(7)
    for number in range(OBJECTS):
        templates = {band: rounded(_stamp(rng)) for band in "gr"}
        for epoch in range(epochs):
            band, mjd = "gr"[epoch % 2], 60_000.0 + 3 * epoch
            further = {kind: rounded(_stamp(rng)) for kind in kinds}
            if shared:
                further["template"] = templates[band]
            yield Observation(
                f"BEN{number:08d}", (epoch * OBJECTS + number + 1) * 1000 + 15, mjd, band, 10.0, 20.0, 1e4, 1e2,
                _stamp(rng), 0, images=further, photometry=_points(mjd) if more else None,
                context=_context() if more else {},
            )  # fmt: skip


def _stamp(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:STAMP_SIZE, :STAMP_SIZE] - STAMP_SIZE // 2
    source = 10 ** rng.uniform(1.5, 4) * np.exp(-(x**2 + y**2) / 8.0)
    return (rng.normal(0, 13, (STAMP_SIZE, STAMP_SIZE)) + source).astype(np.float16)


def _points(mjd: float) -> Photometry:
    """Of 30 days: a point every 1.5 days."""
    times = mjd - 1.5 * np.arange(20)[::-1]
    ones = np.ones(20, np.float32)
    return Photometry.merged([Photometry(times, np.ones(20, np.uint8), ones * 1e4, ones * 100, np.zeros(20, np.uint8))])


def _context() -> dict[str, float]:
    return {quantity.name: 0.5 * (quantity.low + quantity.high) for quantity in contexts.QUANTITIES}


if __name__ == "__main__":
    main()
