"""What one Redis or Valkey node can take, and what a cluster of three changes. The last line of stdout is JSON.

    python benchmarks/redis_limit.py [--alerts 2000] [--model ztf/fusion] [--rounds 3]

Known objects of nine epochs, one more alert each: three stamps, photometry and context.
  one, cluster   us of CPU an alert of the main threads of all nodes: `store`, 125 alerts at a time as the ingest
                 does, and `work`, everything that a worker asks for until it has settled; and the seconds that both
                 took. On one node and on three. The core of one is full at 1 / (store + work).
  full           the same commands of storing, and those of reading histories, sent again as bytes over one connection
                 whose replies nobody looks at, which is fast enough to fill the core: alerts/s, and the share of the
                 time in which the main thread computed.
Without an append-only file for one and cluster, with one (fsync every second) for full. Medians of the rounds.
"""

import argparse
import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hiredis
import packets
import redis
import stream
from profile_intake import Clock

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from profile_worker import _Nothing, _work
from server_tools import ValkeyCluster

from skyheed.broker import app as daemon
from skyheed.broker import config, metrics
from skyheed.broker import worker_models as models
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings
from skyheed.broker.state import nodes
from skyheed.broker.state.sequence import Delivery
from skyheed.broker.work import Worker

KNOWN, PART = 9, 125  # epochs before; alerts that the ingest stores at a time
END = b"skyheed-end"
Numbers = dict[str, float]


def main() -> None:
    """One node, a cluster, and one node at its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alerts", type=int, default=2000)
    parser.add_argument("--model", default="ztf/fusion")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found: dict[str, Any] = {"cpu": stream.cpu_name(), "model": given.model, "alerts": given.alerts}
    with embedded.start_valkey() as one, ValkeyCluster() as cluster:
        places = {"one": (one.url, False, [one.url]), "cluster": (cluster.url, True, [n.url for n in cluster.nodes])}
        users = {name: _User(*place, given.model) for name, place in places.items()}
        rounds = [{name: user.round(given.alerts) for name, user in users.items()} for _ in range(given.rounds)]
    for name in users:
        found[name] = _median([numbers[name] for numbers in rounds])
        stream.say(f"  {name}: {found[name]}")
    found["alerts_per_s_of_a_core"] = round(1e6 / (found["one"]["store"] + found["one"]["work"]))
    with embedded.start_valkey(appendonly=True) as valkey:
        user = _User(valkey.url, False, [valkey.url], given.model)
        full = [user.filled(given.alerts) for _ in range(given.rounds)]
    found["full"] = {step: _median([numbers[step] for numbers in full]) for step in full[0]}
    stream.say(f"  full: {found['full']}")
    print(json.dumps(found))


def _median(rounds: Sequence[Numbers]) -> Numbers:
    return {name: round(statistics.median(own[name] for own in rounds), 2) for name in rounds[0]}


class _User:
    """An ingest and a worker of a server."""

    def __init__(self, url: str, cluster: bool, every: Sequence[str], model: str) -> None:
        overrides = {"survey": stream.SURVEY, "redis.url": url, "redis.cluster": cluster, "work.model": model}
        self.settings: Settings = config.load(overrides=overrides, environ={})
        self.servers = [redis.Redis.from_url(one) for one in every]
        self._threads = [Path(f"/proc/{server.info()['process_id']}/schedstat") for server in self.servers]
        [self._served] = models.load_models(self.settings)
        nothing: Any = _Nothing()
        self.intake = daemon.make_intake(self.settings, nothing)
        self.worker: Worker = models.make_worker(
            self.settings, self._served, nothing, metrics.WorkMetrics(stream.SURVEY)
        )

    def cpu_s(self) -> float:
        """Of the main threads of all nodes so far."""
        return sum(int(path.read_text().split()[0]) for path in self._threads) / 1e9

    def begin(self, objects: int, classified: bool) -> list[list[Delivery]]:
        """Known objects and nothing else; returns the next alert of each, in parts."""
        for server in self.servers:
            server.flushall()
        models.join(self.settings, [self._served], threading.Event())
        stream.load(self.settings, range(objects), range(KNOWN), "bench.history/0")
        if classified:
            _work(self.worker, Clock(objects))
        payloads = packets.packets(objects, 1, seed=99)
        seen = [o for payload in payloads for o in self.intake.reader.observations(payload)]
        made = [Delivery("bench/0", n, 0, 0, observation) for n, observation in enumerate(seen)]
        return [made[n : n + PART] for n in range(0, len(made), PART)]

    def round(self, objects: int) -> Numbers:
        """One alert of each object through our own client."""
        parts = self.begin(objects, classified=True)
        cpu, own, began = self.cpu_s(), time.process_time(), time.monotonic()
        for part in parts:
            self.intake.store.store(part)
        stored, stored_at = self.cpu_s(), time.monotonic()
        time.sleep(self.settings.ingest.debounce_s)
        asked, asked_at = self.cpu_s(), time.monotonic()
        _work(self.worker, Clock(objects))
        return {
            "store": (stored - cpu) / objects * 1e6,
            "work": (self.cpu_s() - asked) / objects * 1e6,
            "client": (time.process_time() - own) / objects * 1e6,
            "store_s": stored_at - began,
            "work_s": time.monotonic() - asked_at,
        }

    def filled(self, objects: int) -> dict[str, Numbers]:
        """The node's commands once more as bytes."""
        parts = self.begin(objects, classified=True)
        with _recorded() as storing:
            for part in parts:
                self.intake.store.store(part)
        time.sleep(self.settings.ingest.debounce_s)
        claims = self.worker.queue.claim(objects, 60.0)
        with _recorded() as reading:
            for first in range(0, len(claims), self.worker.pace.batch_size):
                self.worker.store.fetch(claims[first : first + self.worker.pace.batch_size], self.worker.lane)
        found = {"fetch": self._again(reading, objects)}
        self.begin(objects, classified=False)
        return {"store": self._again(storing, objects), **found}

    def _again(self, commands: Sequence[bytes], alerts: int) -> Numbers:
        host, port = self.settings.redis.url.split("/")[2].split(":")
        words = b"".join([*commands, hiredis.pack_command(("ECHO", END))])
        with socket.create_connection((host, int(port))) as connection:
            sending = threading.Thread(target=connection.sendall, args=(words,))
            cpu, began = self.cpu_s(), time.monotonic()
            sending.start()
            last = b""
            while not last.endswith(END + b"\r\n"):
                last = (last + connection.recv(2**20))[-64:]
            seconds = time.monotonic() - began
            sending.join()
        used = self.cpu_s() - cpu
        return {"per_s": alerts / seconds, "us_of_cpu": used / alerts * 1e6, "full": used / seconds}


@contextmanager
def _recorded() -> Iterator[list[bytes]]:
    """The commands that go to the server meanwhile, as bytes."""
    found: list[bytes] = []
    send = nodes.send_on

    def noting(server: Any, commands: Sequence[Any], replicas: nodes.Replicas) -> list[Any]:
        found.extend(hiredis.pack_command(tuple(command)) for command in commands)
        return send(server, commands, replicas)

    nodes.send_on = noting
    try:
        yield found
    finally:
        nodes.send_on = send


if __name__ == "__main__":
    sys.exit(main())
