"""The whole stream: packets into Kafka, stamps into Redis, answers out of the worker, and the books."""

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import pytest
from real_data import rubin_files, ztf_files
from stream_tools import (
    answers,
    bad_packets,
    ingest_all,
    last_answers,
    publish,
    raw_messages,
    save_checkpoint,
    sdss_alert,
    settings_for,
    work_all,
)
from test_schemas import Server as Registry

from skyheed.broker import app as daemon
from skyheed.broker.errors import SkipPacket
from skyheed.broker.kafka import deadletter
from skyheed.broker.local import embedded
from skyheed.broker.packets import container as wire
from skyheed.broker.packets.reader import read_packet
from skyheed.broker.redrive import redrive
from skyheed.broker.settings import Settings
from skyheed.broker.state.books import Books
from skyheed.classifier import taxonomy

pytestmark = [pytest.mark.kafka, pytest.mark.redis]


def books_of(settings: Settings) -> Books:
    return daemon.connect_store(settings)[2].books()


def skipped_for(payload: bytes) -> str:
    """Why the filters leave a real packet out; empty where they do not."""
    try:
        read_packet(payload, "ztf", images=("science",))
    except SkipPacket as skipped:
        return skipped.reason.value
    return ""


def test_every_real_ztf_packet_is_accounted_for(
    kafka: embedded.Server, valkey: embedded.Server, tmp_path: Path
) -> None:
    payloads = [part for path in ztf_files() for part in wire.split_container(path.read_bytes())]
    left_out = Counter(reason for payload in payloads if (reason := skipped_for(payload)))
    known = Counter((o.object_id, o.source_id) for p in payloads if not skipped_for(p) for o in read_packet(p, "ztf"))
    settings = settings_for(kafka.address, valkey.url, "ztf", "real-ztf")
    publish(settings, "real-ztf", payloads)
    ingest_all(settings)
    work_all(settings, save_checkpoint(tmp_path, "ztf"))
    books = books_of(settings)
    assert books.balanced, books.to_text()
    summary = books.summary()
    # 242 sound packets with stamps: each new source is stored, each repeated one is a duplicate, none is refused
    assert summary["consumed"] == len(payloads) == sum(known.values()) + left_out.total()
    assert (summary["stored"], summary["duplicates"]) == (len(known), sum(known.values()) - len(known))
    assert (summary["skipped"], summary["rejected"], summary["pending"]) == (left_out.total(), 0, 0)
    assert set(left_out) == {"not_public", "artefact", "solar_system"}
    for reason, count in left_out.items():  # as `skyheed audit` shows it
        assert f"skipped: {reason} {count}" in books.to_text()
    assert summary["objects"] == len({name for name, _ in known})
    sequence = daemon.connect_store(settings)[0].sequence("ZTF20abfcszi")
    assert sequence is not None
    assert len(sequence.header) == 21
    assert (sequence.header["mjd"][1:] >= sequence.header["mjd"][:-1]).all()
    last = last_answers(answers(settings))
    assert set(last) == {name for name, _ in known}
    assert last["ZTF20abfcszi"].n_stamps == 21


def test_every_real_rubin_packet_is_accounted_for(
    kafka: embedded.Server, valkey: embedded.Server, tmp_path: Path
) -> None:
    pytest.importorskip("lsst.alert.packet", reason="writer schemas come from the package lsst-alert-packet")
    payloads = [path.read_bytes() for path in rubin_files()]
    settings = settings_for(kafka.address, valkey.url, "lsst", "real-lsst")
    publish(settings, "real-lsst", payloads)
    ingest_all(settings)
    work_all(settings, save_checkpoint(tmp_path, "lsst"), min_stamps=1)
    books = books_of(settings)
    assert books.balanced, books.to_text()
    summary = books.summary()
    assert summary["consumed"] == len(payloads)
    assert summary["rejected"] == 0
    # sources of the solar system have no object to collect stamps for
    reasons: Counter[str] = sum((p.skipped for p in books.partitions), Counter())
    assert set(reasons) == {"solar_system"}
    assert summary["classified"] == summary["objects"] > 0


@pytest.fixture
def stream(kafka: embedded.Server, valkey: embedded.Server, request: pytest.FixtureRequest) -> Settings:
    return settings_for(kafka.address, valkey.url, "sdss", f"alerts-{request.node.name[:60]}")


def test_the_way_of_an_alert(stream: Settings, tmp_path: Path) -> None:
    [topic] = stream.ingest.topics
    sent = publish(stream, topic, [sdss_alert(f"O{i}", n) for n in range(5) for i in range(8)])
    # one object stays too short to be classified
    sent += publish(stream, topic, [sdss_alert("short", 0)])
    assert ingest_all(stream)["stored"] == sent
    totals = work_all(stream, save_checkpoint(tmp_path, "sdss"))
    assert (totals["classified"], totals["declined"]) == (8, 1)
    last = last_answers([r for r in answers(stream) if r.object_id in {"short", *(f"O{i}" for i in range(8))}])
    record = last["O3"]
    assert record.n_stamps == 5
    assert record.stamps_per_band == {"u": 1, "g": 1, "r": 1, "i": 1, "z": 1}
    assert sum(p.probability for p in record.probabilities) == pytest.approx(1, abs=1e-5)
    assert [p.taxonomy_id for p in record.probabilities] == [taxonomy.CLASS_IDS[c] for c in taxonomy.CLASSES]
    assert record.days_since_first == pytest.approx(4 / 12)
    assert record.kafka_ms <= record.ingest_ms <= record.classified_ms
    assert record.provenance.model_name == "test-sdss"
    assert last["short"].reason == "too_few_stamps"
    assert books_of(stream).balanced


def test_a_stranger_reads_the_topic_with_fastavro_alone(stream: Settings, tmp_path: Path) -> None:
    publish(stream, stream.ingest.topics[0], [sdss_alert("stranger", n) for n in range(3)])
    ingest_all(stream)
    work_all(stream, save_checkpoint(tmp_path, "sdss"))
    own = [m for m in raw_messages(stream, stream.classification_topic) if m.key() == b"stranger"]
    [record] = fastavro.reader(io.BytesIO(own[-1].value() or b""))
    assert isinstance(record, dict)
    assert record["object_id"] == "stranger"
    assert record["status"] == "CLASSIFIED"
    assert record["n_stamps"] == 3


def test_every_bad_packet_gets_its_own_reason_and_the_stream_goes_on(stream: Settings) -> None:
    [topic] = stream.ingest.topics
    limit, known_id, away_id = 300_000, 7, 8
    bad, schema = bad_packets(limit, known_id, away_id)
    payloads = [sdss_alert("good", 0)]
    for number, (packet, _) in enumerate(bad.values()):
        payloads += [packet, sdss_alert("good", 1 + number)]
    publish(stream, topic, payloads, partitions=1)
    registry = Registry()
    registry.answers[f"/schemas/ids/{known_id}"] = (200, {"schema": json.dumps(schema)})
    registry.answers[f"/schemas/ids/{away_id}"] = (503, {})
    strict = replace(
        stream,
        ingest=replace(stream.ingest, max_packet_bytes=limit),
        registry=replace(stream.registry, url=registry.url),
    )
    try:
        counts = ingest_all(strict)
    finally:
        registry.stop()
    letters = [x for x in deadletter.read(stream.kafka, stream.dead_letter_topic) if x.source_topic == topic]
    assert {letter.value or b"": letter.reason for letter in letters} == dict(bad.values())
    assert len(letters) == len(bad) == len({packet for packet, _ in bad.values()})
    assert (counts["rejected"], counts["stored"]) == (len(bad), len(bad) + 1)
    books = books_of(stream)
    assert books.balanced, books.to_text()
    rejected: Counter[str] = sum((p.rejected for p in books.partitions), Counter())
    assert rejected == Counter(str(reason) for _, reason in bad.values())


def test_redrive_after_a_fix(stream: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    [topic] = stream.ingest.topics
    publish(stream, topic, [sdss_alert("mended", n) for n in range(4)] + [b"still bad"], partitions=1)
    tight = settings_for(
        stream.kafka["bootstrap.servers"], stream.redis.url, "sdss", topic, **{"ingest.max_packet_bytes": 1000}  # type: ignore[arg-type]
    )  # fmt: skip
    assert ingest_all(tight)["rejected"] == 5
    assert books_of(stream).balanced
    letters = [x for x in deadletter.read(stream.kafka, stream.dead_letter_topic) if x.source_topic == topic]
    with daemon.kafka.Publisher(stream.kafka) as publisher:
        intake = daemon.make_intake(stream, publisher)
        first, second = redrive(intake, letters), redrive(intake, letters)
    assert (first["stored"], first["still_rejected"]) == (4, 1)
    assert (second["done_before"], second["still_rejected"], second["stored"]) == (4, 1, 0)
    sequence = daemon.connect_store(stream)[0].sequence("mended")
    assert sequence is not None
    assert len(sequence.header) == 4
    assert books_of(stream).balanced


def test_a_permuted_and_duplicated_stream_ends_the_same(
    kafka: embedded.Server, valkey: embedded.Server, tmp_path: Path
) -> None:
    alerts = [sdss_alert(f"P{i}", n) for n in range(9) for i in range(6)]
    model = save_checkpoint(tmp_path, "sdss")
    ends = []
    for seed in (None, 1, 2):
        topic = f"permuted-{seed}"
        # each run with books and sequences of its own, in the same Redis
        settings = settings_for(kafka.address, valkey.url, "sdss", topic, **{"topics.prefix": topic})
        _flush(valkey)
        for part in _parts(alerts, seed):
            publish(settings, topic, part)
            ingest_all(settings)
            work_all(settings, model)
        store = daemon.connect_store(settings)[0]
        sequences = {name: store.sequence(name) for name in (f"P{i}" for i in range(6))}
        last = last_answers(answers(settings))
        assert books_of(settings).balanced
        ends.append(
            {
                name: (
                    s.header["source_id"].tolist(), s.stamps.tobytes(), last[name].classification_id,
                    [round(p.probability, 4) for p in last[name].probabilities],
                )
                for name, s in sequences.items() if s
            }
        )  # fmt: skip
    assert len(ends[0]) == 6
    assert ends[0] == ends[1] == ends[2]


def _parts(alerts: list[bytes], seed: int | None) -> list[list[bytes]]:
    """The stream in three parts with classifications between them; with a seed shuffled and some alerts twice."""
    import random

    given = list(alerts)
    if seed is not None:
        rng = random.Random(seed)
        given = rng.sample(given, len(given)) + rng.sample(given, 10)
    third = -(-len(given) // 3)
    return [given[i : i + third] for i in range(0, len(given), third)]


def _flush(valkey: embedded.Server) -> None:
    import redis

    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()


def test_two_workers_share_the_queue(stream: Settings, tmp_path: Path) -> None:
    import threading

    from stream_tools import worker_for

    publish(stream, stream.ingest.topics[0], [sdss_alert(f"W{i}", n) for n in range(3) for i in range(60)])
    ingest_all(stream)
    model = save_checkpoint(tmp_path, "sdss")
    with worker_for(stream, model, batch=8) as one, worker_for(stream, model, batch=8) as two:
        threads = [threading.Thread(target=w.run, args=(threading.Event(), True)) for w in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.totals["acked"] + two.totals["acked"] == 60
        assert min(one.totals["acked"], two.totals["acked"]) > 0
    assert books_of(stream).summary()["classified"] == 60


def test_elasticc_messages(stream: Settings, tmp_path: Path) -> None:
    from skyheed.broker.results.formats import elasticc_schema

    settings = settings_for(
        stream.kafka["bootstrap.servers"], stream.redis.url, "sdss", stream.ingest.topics[0],
        **{"work.format": "elasticc", "topics.prefix": "elasticc"},
    )  # fmt: skip
    publish(settings, settings.ingest.topics[0], [sdss_alert("E", n) for n in range(3)])
    ingest_all(settings)
    work_all(settings, save_checkpoint(tmp_path, "sdss"))
    [message] = raw_messages(settings, settings.classification_topic)
    record: Any = fastavro.schemaless_reader(io.BytesIO(message.value() or b""), elasticc_schema(), None)
    assert record["brokerName"] == "skyheed"
    assert sum(c["probability"] for c in record["classifications"]) == pytest.approx(1, abs=1e-5)
    assert {c["classId"] for c in record["classifications"]} <= {2332, 2222, 2100, 2221}
