"""Redis memory of an object, by what `redis.keep_pixels` keeps of it.

Objects with simulated stamps come epoch by epoch and are classified by a shipped model after each, so that
everything that an object leaves in Redis is there: headers, pixels or digests, what the model caches, photometry,
context, the last classification and a line for each one. Bytes are those of an object's own keys (MEMORY USAGE), the
mean of some objects; a few hundred more in sets that all objects share are not counted. Nothing is published.
First, what one, two and three kinds of stamps take before any classification, without photometry and context.

    python benchmarks/pixels.py [--objects 40] [--quick]

The very last line is one JSON document.
"""

import json
import statistics
from dataclasses import replace
from typing import Any

import click
import numpy as np

from skyheed.broker import metrics
from skyheed.broker.local import embedded
from skyheed.broker.observation import Observation
from skyheed.broker.packets.stamps import rounded
from skyheed.broker.results import formats
from skyheed.broker.settings import KEEP_PIXELS, UNTIL_SEEN
from skyheed.broker.state import client as state
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.queue import DueQueue
from skyheed.broker.state.sequence import Delivery
from skyheed.broker.work import Output, Pace, Worker
from skyheed.broker.worker_models import provenance_of
from skyheed.classifier.history import IMAGE_KINDS, Photometry
from skyheed.classifier.serving import load

EPOCHS, QUICK = (10, 30, 99), (10,)
REGIMES = {  # model, kinds of images
    "fusion, science": ("sdss/fusion", IMAGE_KINDS[:1]),
    "fusion, three kinds, photometry, context": ("ztf/fusion", IMAGE_KINDS),
    "vector, science": ("sdss/vector", IMAGE_KINDS[:1]),
}
CONTEXT = {"detections": 3.0, "visits": 11.0, "reference_distance": 1.0, "galactic_latitude": 30.0, "age_days": 4.0}


def epoch_of(name: str, number: int, kinds: tuple[str, ...], rng: np.random.Generator) -> Observation:
    """A detection with its stamps; with more than one kind also with the photometry and context of a packet."""
    mjd, further = 60_000.0 + 3 * number, kinds[1:]
    stamps = [rounded(rng.normal(0, 1, (32, 32)).astype(np.float16)) for _ in further]
    points = Photometry(
        mjd - 3 * np.arange(10.0)[::-1], np.resize(np.array([1, 2], np.uint8), 10),
        rng.normal(500, 99, 10).astype(np.float32), np.full(10, 90, np.float32), np.zeros(10, np.uint8),
    )  # fmt: skip
    return Observation(
        name, abs(hash(name)) % 10**12 * 1000 + number, mjd, "gr"[number % 2], 10.0, 20.0, 1e4, 1e2,
        rng.normal(0, 1, (32, 32)).astype(np.float16), 0, images=dict(zip(further, stamps, strict=True)),
        photometry=points if further else None, context=CONTEXT if further else {},
    )  # fmt: skip


def grown(
    url: str, model: Any, kinds: tuple[str, ...], keep: str, objects: int, epochs: tuple[int, ...]
) -> dict[str, int]:  # fmt: skip
    """Bytes an object after some numbers of epochs, every one of which was classified."""
    client = state.connect(url)
    client.run([("FLUSHALL",)])
    store = SequenceStore(client, "bench", debounce_s=0.0, until_seen=keep == UNTIL_SEEN)
    output = Output("model", "topic", formats.FORMATS["avro"], provenance_of(model))
    worker = Worker(
        "bench", DueQueue(client, "bench", model="model"), store, model, None, output,  # type: ignore[arg-type]
        metrics.WorkMetrics("bench"), Pace(objects, 0.1, 60.0),
    )  # fmt: skip
    store.join("model", sees={"model": worker.lane.sees})
    rng = np.random.default_rng(7)
    names, found = [f"BEN{n:08d}" for n in range(objects)], {}
    for number in range(max(epochs)):
        seen = [epoch_of(name, number, kinds, rng) for name in names]
        store.store([Delivery("bench/0", number * objects + n, 0, 0, o) for n, o in enumerate(seen)])
        answers = worker.answer(worker.fetch(worker.queue.claim(objects, 60.0)))
        assert len(answers) == objects
        store.settle([answer for _, answer in answers], worker.lane)
        if number + 1 in epochs:
            found[str(number + 1)] = round(statistics.mean(map(store.bytes_per_object, names)))
    return found


def stored(url: str, kinds: tuple[str, ...], objects: int, epochs: tuple[int, ...]) -> dict[str, int]:
    """Bytes an object after some numbers of epochs of which there are stamps alone, none of them classified."""
    client = state.connect(url)
    client.run([("FLUSHALL",)])
    store, rng = SequenceStore(client, "bench"), np.random.default_rng(7)
    names, found = [f"BEN{n:08d}" for n in range(objects)], {}
    for number in range(max(epochs)):
        seen = [replace(epoch_of(name, number, kinds, rng), photometry=None, context={}) for name in names]
        store.store([Delivery("bench/0", number * objects + n, 0, 0, o) for n, o in enumerate(seen)])
        if number + 1 in epochs:
            found[str(number + 1)] = round(statistics.mean(map(store.bytes_per_object, names)))
    return found


@click.command()
@click.option("--objects", default=20, show_default=True)
@click.option("--quick", is_flag=True, help="10 epochs only.")
def main(objects: int, quick: bool) -> None:
    """Print a table."""
    wanted = QUICK if quick else EPOCHS
    found: dict[str, dict[str, dict[str, int]]] = {}
    with embedded.start_valkey() as server:
        alone = {str(n): stored(server.url, IMAGE_KINDS[:n], objects, wanted) for n in (1, 2, 3)}
        for count, sizes in alone.items():
            bytes_of = ", ".join(f"{size:,} at {n}" for n, size in sizes.items())
            click.echo(f"stamps of {count} kinds alone: bytes an object {bytes_of} epochs")
        for name, (shipped, kinds) in REGIMES.items():
            model = load(shipped, survey=shipped.split("/")[0], device="cpu", precision="float32", threads=1)
            found[name] = {}
            for keep in KEEP_PIXELS:
                found[name][keep] = grown(server.url, model, kinds, keep, objects, wanted)
                bytes_of = ", ".join(f"{size:,} at {n}" for n, size in found[name][keep].items())
                click.echo(f"{name}, {keep}: bytes an object {bytes_of} epochs")
    click.echo(json.dumps({"objects": objects, "stamps_alone": alone, "bytes_an_object": found}))


if __name__ == "__main__":
    main()
