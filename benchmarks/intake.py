"""The intake alone: rates against the naive pipeline, with several processes, and its profile. Its last line is JSON.

    python benchmarks/intake.py [--alerts 3000] [--rounds 3] [--processes 1 2] [--no-profile]

As the regimes `ingest` and `profile` of stream.py, and more:
  ingest_per_s_a_core    alerts/s that one core of the ingest process can do, from its CPU time: the client's part with
                         librdkafka's threads, without the servers'
  by_processes           alerts/s of `skyheed ingest` with `ingest.processes` of this number, three stamps, photometry
                         and context, between a fifth and nine tenths of the alerts: starting is not intake. Kafka and
                         Redis share the cores with them, so that on two cores a second process has little to gain
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import packets
import redis
import stream

from skyheed.broker import app as daemon
from skyheed.broker.local import processes as stack
from skyheed.broker.settings import Settings

FIRST, LAST = 0.2, 0.9  # of the alerts, between which the rate of processes is taken
LIMIT_S = 120.0


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alerts", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=stream.ROUNDS)
    parser.add_argument("--processes", type=int, nargs="*", default=[])
    parser.add_argument("--no-profile", action="store_true")
    given = parser.parse_args()
    result: dict[str, Any] = {"kafka": stream.kafka_name(), "cpu": stream.cpu_name()}
    with tempfile.TemporaryDirectory(prefix="skyheed-bench-") as name, stream.servers(Path(name)) as settings:
        if given.rounds:
            result |= stream.ingest(settings, given.alerts, given.alerts // 5, given.rounds)
        if given.processes:
            result["by_processes"] = by_processes(settings, Path(name), given.alerts, given.processes)
        if not given.no_profile:
            result["us_per_alert"] = stream.profile(settings, given.alerts // 3)
    print(json.dumps(result))


def by_processes(settings: Settings, folder: Path, alerts: int, numbers: list[int]) -> dict[int, int]:
    """Alerts/s for each number of processes: medians of as many rounds, in turn."""
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    for turn in range(stream.ROUNDS):
        for number in numbers:
            rates[number].append(_rate(settings, folder, f"p{number}.{turn}", alerts, number))
            stream.say(f"  {number} processes: {rates[number][-1]:.0f}/s")
    return {number: round(statistics.median(found)) for number, found in rates.items()}


def _rate(settings: Settings, folder: Path, name: str, alerts: int, processes: int) -> float:
    """Alerts/s of one daemon with so many processes, which starts on a full topic."""
    redis.Redis.from_url(settings.redis.url).flushdb()
    own = stream.settings_with(settings, **{"topics.prefix": name, "ingest.group": name})
    file = folder / f"{name}.toml"
    file.write_text(f'[topics]\nprefix = "{name}"\n[ingest]\ngroup = "{name}"\nprocesses = {processes}\n')
    stream.send(own, daemon.alert_topics(own)[0], list(packets.packets(alerts // 5, 5, seed=processes)))
    child = stack.Daemon("ingest", stack.shared_arguments(own, str(file)), folder / f"{name}.log")
    try:
        return _between(own, alerts)
    finally:
        child.stop()


def _between(settings: Settings, alerts: int) -> float:
    """Alerts/s from a fifth of them to nine tenths, by the books."""
    ledger, began, first = daemon.connect_store(settings)[2], time.monotonic(), (0.0, 0)
    while time.monotonic() - began < LIMIT_S:
        done, now = sum(p.stored for p in ledger.books().partitions), time.monotonic()
        if done >= LAST * alerts:
            return (done - first[1]) / (now - first[0])
        if done < FIRST * alerts or not first[1]:
            first = now, done
        time.sleep(0.05)
    raise SystemExit(f"only {done} of {alerts} alerts were stored in {LIMIT_S:.0f} s")


if __name__ == "__main__":
    main()
