"""The page's figures: a list among 100,000 objects, an object of 99 epochs, 200 readers of the live stream.

    python benchmarks/page.py [--objects 100000] [--readers 200] [--rate 50] [--seconds 20]

Loopback only, embedded servers, simulated histories. The server of the stream runs in a process of its own on one core;
readers on the others. The last line is JSON.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from state_tools import deliveries, observation
from web_tools import news

from skyheed.broker import app as daemon
from skyheed.broker import config, serve
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings
from skyheed.broker.web.index import Index, Read

API = "api/v1"
NAME, TIME = re.compile(rb'"object_id":"([^"]*)"'), re.compile(rb'"classified_ms":(\d+)')
PLACE = "bench@0/0"


def fill(path: Path, objects: int) -> None:
    """An index with this many objects of one model."""
    index = Index(path, "sdss")
    for first in range(0, objects, 5_000):
        many = range(first, min(first + 5_000, objects))
        reads = [Read(PLACE, n, news("sdss", f"object-{n:07d}", 1 + n % 99)) for n in many]
        index.add(reads, {PLACE: many[-1] + 1})
    index.close()


def keep_one(settings: Settings, name: str, epochs: int) -> None:
    """An object in Redis whose stamps are noise, which does not compress."""
    rng = np.random.default_rng(1)
    seen = [
        observation(
            name, source_id=n + 1, mjd=60000.0 + n, band="gri"[n % 3],
            stamp=rng.normal(0, 13, (32, 32)).astype(np.float16),
        )
        for n in range(epochs)
    ]  # fmt: skip
    daemon.connect_store(settings)[0].store(deliveries(seen))


def timed(client: httpx.Client, url: str, times: int = 20) -> dict[str, float]:
    """Milliseconds of an answer, the first and the median, its size as sent, and the CPU time of server and client."""
    found, cpu = [], []
    for _ in range(times):
        began, worked = time.perf_counter(), time.process_time()
        size = 0
        with client.stream("GET", url) as answer:
            assert answer.status_code == 200, url
            size = sum(len(part) for part in answer.iter_raw())
        found.append(1000 * (time.perf_counter() - began))
        cpu.append(1000 * (time.process_time() - worked))
    return {
        "first_ms": round(found[0], 1), "median_ms": round(statistics.median(found), 1), "bytes": size,
        "cpu_ms": round(statistics.median(cpu), 1),
    }  # fmt: skip


def lists(client: httpx.Client) -> dict[str, Any]:
    """A list of 100 in several forms."""
    queries = {
        "newest": "", "class": "&class=SNIa&min_probability=0.9", "bands": "&bands=u&min_epochs=30",
        "part of an id": "&q=99", "cone": "&cone=10.9,0.5,60", "by probability": "&sort=probability",
        "by night": "&sort=night",
    }  # fmt: skip
    return {name: timed(client, f"{API}/objects?limit=100{query}") for name, query in queries.items()}


def _server(pipe: Connection, settings: Settings, path: Path, rate: int, seconds: float) -> None:
    """The page on one core, with news at a rate."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    options = serve.Options(port=0, index=path, limits=False)
    with serve.listen(options) as listening, serve.parts(settings, options) as web:
        import threading

        server = serve.server_of(web)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        pipe.send(serve.address(listening))
        pipe.recv()
        began, cpu = time.monotonic(), time.process_time()
        for n in range(int(rate * seconds)):
            record = news("sdss", f"live-{n}", 5, revision=time.time_ns() // 1_000_000 - 1_700_000_001_000)
            web.hub.tell(web.index.add([Read("live@0/0", n, record)], {"live@0/0": n + 1}))
            time.sleep(max(0.0, began + (n + 1) / rate - time.monotonic()))
        time.sleep(2)
        pipe.send((time.process_time() - cpu) / (time.monotonic() - began))
        pipe.recv()
        web.hub.close()
        server.should_exit = True
        thread.join(10)


async def _reader(url: str, wanted: int, delays: list[float], connected: asyncio.Semaphore) -> int:
    """Rows that one reader got, without repeats; over a bare connection, so that the clients cost little."""
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    incoming, outgoing = await asyncio.open_connection(host, int(port), limit=2**24)
    outgoing.write(f"GET /{API}/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    seen: set[bytes] = set()
    begun = False
    while len(seen) < wanted and (line := await incoming.readline()):
        if not begun and line.startswith(b"id: "):
            begun = True
            connected.release()
        if line.startswith(b'data: {"rows"'):
            now = time.time() * 1000
            seen.update(NAME.findall(line))
            delays += [now - int(ms) for ms in TIME.findall(line)]
    outgoing.close()
    return len(seen)


async def _read(url: str, readers: int, wanted: int, limit_s: float, pipe: Connection) -> dict[str, Any]:
    delays: list[float] = []
    connected = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(_reader(url, wanted, delays, connected)) for _ in range(readers)]
    for _ in range(readers):
        await asyncio.wait_for(connected.acquire(), 60)
    pipe.send("begin")
    done, late = await asyncio.wait(tasks, timeout=limit_s)
    for task in late:
        task.cancel()
    got = [task.result() for task in done]
    ordered = sorted(delays)
    return {
        "readers": readers, "complete": sum(n == wanted for n in got), "classifications": wanted,
        "delay_p50_ms": round(ordered[len(ordered) // 2]), "delay_p99_ms": round(ordered[len(ordered) * 99 // 100]),
    }  # fmt: skip


def stream(settings: Settings, path: Path, readers: int, rate: int, seconds: float) -> dict[str, Any]:
    """Many readers of the stream."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_server, args=(theirs, settings, path, rate, seconds), daemon=True)
    process.start()
    url = ours.recv()
    found = asyncio.run(_read(url, readers, int(rate * seconds), seconds + 60, ours))
    busy = ours.recv() if ours.poll(60) else None
    ours.send("end")
    process.join(20)
    return {**found, "rate": rate, "server_share_of_a_core": round(busy, 3) if busy is not None else None}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("objects", 100_000), ("readers", 200), ("rate", 50), ("seconds", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, embedded.start_kafka() as kafka, embedded.start_valkey() as valkey:
        given = config.load(overrides={"survey": "sdss"}, environ={})
        settings = config.with_servers(given, kafka.address, valkey.url)
        keep_one(settings, "long", 99)
        path = Path(folder) / "index.sqlite"
        fill(path, asked.objects)
        options = serve.Options(port=0, index=path, limits=False)
        with serve.serving(settings, options) as url, httpx.Client(base_url=url, timeout=60) as client:
            found: dict[str, Any] = {"objects": asked.objects, "lists": lists(client)}
            atlas = timed(client, f"{API}/objects/long/atlas/science")
            found["object_of_99_epochs"] = {"html": timed(client, "object/long", times=5), "atlas": atlas}
        found["stream"] = stream(settings, path, asked.readers, asked.rate, asked.seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
