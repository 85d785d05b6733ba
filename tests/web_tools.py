"""A stream with classified objects, and its page, for the tests of both."""

import contextlib
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from state_tools import deliveries, observation
from stream_tools import altered, ingest_all, publish, save_checkpoint, sdss_alert, settings_for

from skyheed.broker import app as daemon
from skyheed.broker import metrics, serve, worker_models
from skyheed.broker.kafka import client as kafka
from skyheed.broker.results import formats, record
from skyheed.broker.settings import Settings
from skyheed.broker.state.sequence import HEADER

HOSTILE = (
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "a/b/stamps.npz",
    "'\"><img src=x onerror=alert(1)>",
    "{{7*7}}${7*7}%0d%0aSet-Cookie: x=1",
    "x" * 250,
    "עברית و عربى 星",
    "~Li4",
    "..",
    "=1+1",
    "a%2Fb?c#d&e",
    "\\\\host\\share",
)


def page_settings(kafka_address: str, redis: Any, folder: Path, survey: str = "sdss", **options: Any) -> Settings:
    """Settings of a stream with topics of its own, in the Redis at `redis.url`."""
    prefix = f"web{uuid.uuid4().hex[:10]}"
    model = str(save_checkpoint(folder, "sdss"))
    own = {"topics.prefix": prefix, "work.model": model, "work.device": "cpu", "work.threads": 1, **options}
    own = {"work.precision": "float32", **own}
    return settings_for(kafka_address, redis.url, survey, f"{prefix}.alerts.sdss", **own)


def send(settings: Settings, objects: dict[str, Sequence[int]]) -> None:
    """Alerts of objects, by their numbers; ids that no archive would take, too."""
    alerts = [altered(sdss_alert("plain", n), objectId=name) for name, numbers in objects.items() for n in numbers]
    publish(settings, settings.alert_topic, alerts)


def classify(settings: Settings) -> None:
    """Store what was sent and classify what is due, as the daemons do."""
    ingest_all(settings)
    stop = threading.Event()
    served = worker_models.load_models(settings)
    worker_models.join(settings, served, stop)
    for model in served:
        with kafka.Publisher(settings.kafka) as publisher:
            worker = worker_models.make_worker(settings, model, publisher, metrics.WorkMetrics(settings.survey))
            worker.run(stop, drain=True)


def publish_news(settings: Settings, objects: dict[str, int]) -> None:
    """Classifications of objects with this many epochs, as a worker would publish them, without one."""
    kafka.ensure_topics(settings.kafka, {settings.classification_topic: {}}, 3, 1)
    messages = [
        (settings.classification_topic, name.encode(), formats.encode(news(settings.survey, name, epochs)), None)
        for name, epochs in objects.items()
    ]
    with kafka.Publisher(settings.kafka) as publisher:
        publisher.publish_all(messages)


def news(survey: str, name: str, epochs: int, revision: int = 1, model: str = "test") -> record.Classification:
    """One classification that nobody made."""
    header = np.zeros(epochs, HEADER)
    header["mjd"] = 60000 + np.arange(epochs)
    header["source_id"] = np.arange(epochs) + 1
    header["ra"], header["dec"] = 10 + sum(name.encode()) / 1000, 0.5
    header["kafka_ms"] = header["ingest_ms"] = 1_700_000_000_000
    made = record.Provenance("0", "none", "0", "0" * 64, "none", "none", "none")
    p = 0.5 + (sum(name.encode()) % 50) / 100
    answer = [("SNIa", 111, p), ("AGN", 221, 1 - p)] if epochs > 2 else None
    return record.Classification.of(
        survey, name, revision, header, answer, "too_few_stamps", made, 1_700_000_001_000 + revision, model
    )  # fmt: skip


def keep(settings: Settings, objects: dict[str, int], partition: str = "alerts/0") -> None:
    """Put histories of objects with this many epochs into Redis, without any packet.

    Args:
        partition: a new one for each call; what stood at an offset is stored once.
    """
    seen = [
        observation(name, source_id=n + 1, mjd=60000.0 + n, band="gri"[n % 3])
        for name, epochs in objects.items()
        for n in range(epochs)
    ]
    daemon.connect_store(settings)[0].store(deliveries(seen, partition))


@contextlib.contextmanager
def page_of(settings: Settings, folder: Path, **options: Any) -> Iterator[httpx.Client]:
    """A client of a page of its own."""
    chosen = serve.Options(**{"port": 0, "index": folder / "index.sqlite", "limits": False, **options})
    with serve.serving(settings, chosen) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client
