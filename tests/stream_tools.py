"""Alerts, checkpoints and whole streams for the tests that run everything."""

import contextlib
import gzip
import io
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import fastavro
import numpy as np
import torch
from packet_tools import confluent_payload

from skyheed.broker import app as daemon
from skyheed.broker import config, metrics, worker_models
from skyheed.broker.errors import Reason
from skyheed.broker.ingest import Ingest
from skyheed.broker.kafka import client as kafka
from skyheed.broker.packets.surveys import load_survey
from skyheed.broker.packets.surveys.sdss import alert_from_archive
from skyheed.broker.results.record import Classification
from skyheed.broker.settings import Settings
from skyheed.broker.subscribe import Subscriber
from skyheed.broker.work import Output, Pace, Worker
from skyheed.classifier import taxonomy
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.convention import network as convention
from skyheed.classifier.serving import load

CHUNK = 100


def save_checkpoint(folder: Path, survey: str) -> Path:
    """A real model with random weights: these tests ask where answers go, not whether they are right."""
    torch.manual_seed(5)
    model = convention.ConvEntion(convention.Config())
    info = checkpoint.Info(
        f"test-{survey}", "0", model.config.to_dict(), taxonomy.CLASSES, load_survey(survey, None, None).bands,
        (survey,), Scaling((1.0,) * 6, 0.5), checkpoint.Calibration(),
    )  # fmt: skip
    checkpoint.save(folder / survey, model.state_dict(), info)
    return folder / survey


def sdss_alert(object_id: str, number: int, flux: float = 2e4) -> bytes:
    """The `number`th alert of an object: another source, two hours later, the next band."""
    y, x = np.mgrid[:64, :64] - 32
    rng = np.random.default_rng([sum(object_id.encode()), number])
    stamp = rng.normal(0, 100, (64, 64)) + flux / 25 * np.exp(-(x**2 + y**2) / 8)
    return alert_from_archive(
        object_id=object_id, source_id=abs(hash_of(object_id)) * 1000 + number, mjd=54000.0 + number / 12,
        band="ugriz"[number % 5], ra=10.0, dec=0.5, stamp=stamp.astype(np.float32), flux=flux, flux_error=100.0,
        psf_fwhm=1.3, zero_point=22.5, sky_noise=100.0,
    )  # fmt: skip


def record_of(packet: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The writer schema of a packet of one record, and the record; by fastavro alone."""
    reader = fastavro.reader(io.BytesIO(packet))
    schema: Any = reader.writer_schema
    [record] = list(reader)
    return {name: part for name, part in schema.items() if not name.startswith("__")}, dict(record)  # type: ignore[arg-type]


def altered(packet: bytes, types: dict[str, Any] | None = None, **values: Any) -> bytes:
    """The packet with other values, and other Avro types of some fields in its writer schema."""
    schema, record = record_of(packet)
    for field in schema["fields"]:
        field["type"] = (types or {}).get(field["name"], field["type"])
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(schema, named_schemas={}), [record | values], sync_marker=bytes(16))
    return out.getvalue()


def numbered(packet: bytes, schema_id: int, **more: str) -> tuple[bytes, dict[str, Any]]:
    """The packet in Confluent wire with more strings at its end, and the schema that its number stands for."""
    schema, record = record_of(packet)
    schema["fields"] += [{"name": name, "type": "string"} for name in more]
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema, named_schemas={}), record | more)
    return confluent_payload(schema_id, out.getvalue()), schema


def bad_packets(limit: int, known_id: int, away_id: int) -> tuple[dict[str, tuple[bytes, Reason]], dict[str, Any]]:
    """Every kind of packet that cannot be used, with the reason it must get; and the schema of `known_id`.

    Args:
        limit: bytes above which a packet is oversized.
        known_id, away_id: the number of a schema that the registry has, and one that it cannot tell now.
    """
    good = sdss_alert("bad", 1)
    stamp = gzip.decompress(record_of(good)[1]["cutoutScience"])
    head, pixels = stamp[:2880], stamp[2880:]
    wide = head.replace(b"NAXIS1  =" + b"64".rjust(21), b"NAXIS1  =" + b"2000000000".rjust(21))
    whole, schema = numbered(good, known_id, behind="a string that nobody here reads")

    def with_stamp(data: bytes) -> bytes:
        return altered(good, cutoutScience=data)

    optional: dict[str, Any] = {"objectId": ["null", "string"], "mjd": ["null", "double"]}
    return {
        "no value": (b"", Reason.EMPTY),
        "no Avro": (b"not avro at all", Reason.BAD_MAGIC),
        "cut": (good[:-500], Reason.TRUNCATED),
        "cut inside a field that is skipped": (whole[:-5], Reason.TRUNCATED),
        "more than a record": (whole + b"?", Reason.TRAILING_BYTES),
        "sync marker": (good[:-16] + bytes(16), Reason.BAD_SYNC),
        "oversized": (good + bytes(limit), Reason.OVERSIZED),
        "unknown schema": (confluent_payload(0x07FFFF, bytes(50)), Reason.UNKNOWN_SCHEMA),
        "registry down": (confluent_payload(away_id, bytes(50)), Reason.REGISTRY_UNAVAILABLE),
        "wrong Avro type": (altered(good, {"ra": "string"}, ra="10.0"), Reason.WRONG_TYPE),
        "no object": (altered(good, optional, objectId=None), Reason.NO_OBJECT_ID),
        "commands in the name": (altered(good, objectId="A\x1b]0;owned\x07\n2026 ERROR"), Reason.BAD_OBJECT_ID),
        "another projection": (with_stamp(gzip.compress(head.replace(b"---TAN", b"---ZPN") + pixels)), Reason.BAD_FITS),
        "turned twice": (with_stamp(gzip.compress(_card(head, "CROTA2", 30.0) + pixels)), Reason.BAD_FITS),
        "no time": (altered(good, optional, mjd=None), Reason.NO_TIME),
        "NaN coordinates": (altered(good, ra=float("nan")), Reason.BAD_POSITION),
        "unknown band": (altered(good, band="Q"), Reason.UNKNOWN_BAND),
        "corrupt gzip": (with_stamp(gzip.compress(stamp)[:-2000] + bytes(2000)), Reason.BAD_GZIP),
        "bomb": (with_stamp(gzip.compress(head + bytes(50 * 2**20))), Reason.BOMB),
        "absurd NAXIS": (with_stamp(gzip.compress(wide + pixels)), Reason.STAMP_TOO_LARGE),
        "no FITS": (with_stamp(gzip.compress(b"no FITS" * 1000)), Reason.BAD_FITS),
        "all NaN": (with_stamp(gzip.compress(head + b"\x7f\xc0\x00\x00" * 4096)), Reason.EMPTY_STAMP),
    }, schema


def _card(header: bytes, key: str, value: float) -> bytes:
    """One more card in a header that has room for it."""
    card = f"{key:<8}= {value:>20}".ljust(80).encode()
    return header.replace(b"END".ljust(80), card + b"END".ljust(80), 1)[: len(header)]


def hash_of(object_id: str) -> int:
    """A number for a name, the same in every process."""
    return int.from_bytes(object_id.encode()[-5:], "big")


def settings_for(kafka_address: str, redis_url: str, survey: str, topic: str, **options: str) -> Settings:
    """Settings for one stream, quick to join and without debounce."""
    overrides = {"survey": survey, "ingest.topics": [topic], "ingest.debounce_s": 0.0, "ingest.group": f"group-{topic}"}
    loaded = config.load(overrides={**overrides, **options}, environ={})
    return config.with_servers(loaded, kafka_address, redis_url)


def publish(settings: Settings, topic: str, payloads: Iterable[bytes], partitions: int = 3) -> int:
    """Send payloads without a key, as surveys do; returns how many."""
    given = list(payloads)
    kafka.ensure_topics(settings.kafka, {topic: daemon.ALERT_TOPIC}, partitions, 1)
    with kafka.Publisher(settings.kafka) as publisher:
        for first in range(0, len(given), CHUNK):
            publisher.publish_all([(topic, None, payload, None) for payload in given[first : first + CHUNK]])
    return len(given)


def ingest_all(settings: Settings) -> Counter[str]:
    """Run the ingest in this process until its topics are read."""
    daemon.prepare_topics(settings, threading.Event())
    with (
        kafka.Publisher(settings.kafka) as publisher,
        kafka.AlertConsumer(settings.input_options, settings.alerts, settings.ingest.group, drain=True) as consumer,
    ):
        loop = Ingest(
            daemon.make_intake(settings, publisher), consumer, metrics.IngestMetrics(settings.survey), 100, 0.2
        )
        return loop.run(threading.Event(), drain=True)


@contextlib.contextmanager
def worker_for(settings: Settings, model: Path, min_stamps: int | None = None, batch: int = 32) -> Iterator[Worker]:
    """A worker in this process."""
    predictor = load(model, survey=settings.survey, device="cpu", precision="float32", threads=1, fewest=min_stamps)
    store, queue, _ = daemon.connect_store(settings)
    topic = settings.classification_topic
    output = Output("", topic, worker_models.output_form(settings, topic), worker_models.provenance_of(predictor))
    with kafka.Publisher(settings.kafka) as publisher:
        yield Worker(
            settings.survey, queue, store, predictor, publisher, output, metrics.WorkMetrics(settings.survey),
            Pace(batch, 0.05, 60.0),
        )  # fmt: skip


def work_all(settings: Settings, model: Path, min_stamps: int | None = None) -> Counter[str]:
    """Answer everything that is due."""
    with worker_for(settings, model, min_stamps) as worker:
        return worker.run(threading.Event(), drain=True)


def answers(settings: Settings) -> list[Classification]:
    """Every record on the classification topic, repeats dropped."""
    with Subscriber(
        settings.kafka["bootstrap.servers"], topic=settings.classification_topic, options=settings.kafka, drain=True
    ) as stream:
        return list(stream)


def last_answers(records: Sequence[Classification]) -> dict[str, Classification]:
    """The newest record of each object."""
    last: dict[str, Classification] = {}
    for record in records:
        if record.object_id not in last or record.revision >= last[record.object_id].revision:
            last[record.object_id] = record
    return last


def raw_messages(settings: Settings, topic: str) -> list[ck.Message]:
    """Every message of a topic, with no help of ours but the consumer."""
    with kafka.BatchConsumer(settings.kafka, [topic], group=None, drain=True) as consumer:
        found: list[Any] = []
        while True:
            batch = consumer.consume(100, 0.5)
            found += batch
            if not batch and consumer.drained():
                return found
