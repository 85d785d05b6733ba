"""Kills (-9) of ingest, worker, Kafka and Valkey while alerts pass, real ones among the simulated.

What must hold at the end: nothing lost, the books balance, and a keyed reader sees each classification once. The long
form is of a hundred kills and 100,000 alerts; benchmarks/reports has what it found.
"""

import gzip
import importlib
import io
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import fastavro
import numpy as np
import pytest
import torch
from fault_tools import Child, arguments_for, keyed, settled, wait_for
from real_data import DATA
from stream_tools import publish, raw_messages, settings_for
from zoo_tools import SCALING, lively

from skyheed.broker import app as daemon
from skyheed.broker import config
from skyheed.broker.errors import PacketError, ServiceUnavailable, SkipPacket
from skyheed.broker.kafka import client as kafka
from skyheed.broker.local import embedded
from skyheed.broker.packets.reader import read_packet
from skyheed.broker.results import formats
from skyheed.broker.results import record as records
from skyheed.broker.results.record import Classification
from skyheed.broker.state.sequence import HEADER
from skyheed.broker.subscribe import Subscriber
from skyheed.classifier import taxonomy
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.family import preset

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TOPIC, BATCHES = "many-kills", 40  # of messages, between two kills at the most
BAD = 7
Payloads = list[bytes]


class KeyedReader:
    """A stranger's: drops a `classification_id` that it has seen, and what is older than its object's last `revision`.

    Attributes:
        handed: (object id, revision) of what is left.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._last: dict[str, int] = {}
        self.handed: list[tuple[str, int]] = []

    def read(self, record: Classification) -> None:
        """Take a record, or drop it."""
        if record.classification_id in self._seen or record.revision < self._last.get(record.object_id, 0):
            return
        self._seen.add(record.classification_id)
        self._last[record.object_id] = record.revision
        self.handed.append((record.object_id, record.revision))


@dataclass
class Expected:
    """Source ids by object, of what a reader that nobody disturbs takes from the packets."""

    sources: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    skipped: int = 0
    rejected: int = 0
    real: int = 0

    def read(self, payload: bytes) -> None:
        """One packet."""
        try:
            for seen in read_packet(payload, "ztf"):
                self.sources[seen.object_id].add(seen.source_id)
        except SkipPacket:
            self.skipped += 1
        except PacketError:
            self.rejected += 1


def simulated(packets: ModuleType, objects: int, epochs: int) -> Iterator[tuple[str, int, bytes]]:
    """Small ZTF-shaped packets: object, source, container of our own reader schema, which has only what is read."""
    text = files("skyheed.schemas").joinpath("ztf/reader.avsc").read_bytes()
    schema: Any = fastavro.parse_schema(json.loads(text, object_hook=lambda found: found | {"doc": ""}))
    pool = stamps(packets)
    dice = random.Random(4)
    for epoch in range(epochs):
        for number in range(objects):
            candid = (epoch * objects + number + 1) * 1000 + 15
            candidate = {
                "candid": candid, "jd": packets.START_JD + 2 * epoch, "fid": 1 + epoch % 2, "ra": 150 + number / 1000,
                "dec": 2.0, "magpsf": dice.uniform(16, 20), "sigmapsf": 0.1, "isdiffpos": "t", "magzpsci": 26.3,
                "programid": 1, "rb": 0.9, "drb": 0.99,
            }  # fmt: skip
            record = {"objectId": f"KIL{number:06d}", "candid": candid, "candidate": candidate}
            record["cutoutScience"] = {"fileName": "s", "stampData": dice.choice(pool)}
            out = io.BytesIO()
            fastavro.writer(out, schema, [record])
            yield record["objectId"], candid, out.getvalue()


def stamps(packets: ModuleType) -> list[bytes]:
    """Point sources in noise of a few counts, so that a hundred thousand of them fit into memory."""
    y, x = np.mgrid[:63, :63] - 31
    dice = np.random.default_rng(3)
    images = (dice.normal(10, 2, (63, 63)) + peak * np.exp(-(x**2 + y**2) / 8.0) for peak in dice.uniform(20, 500, 64))
    return [gzip.compress(packets._fits(np.round(image).astype(">f4")), 6) for image in images]


def stream(
    packets: ModuleType, objects: int, epochs: int, reals: int, dice: random.Random
) -> tuple[Payloads, Expected]:
    """All packets in the order in which they are sent, some of them twice, and what must come of them."""
    expected, payloads = Expected(rejected=BAD), [b"bad %d" % n for n in range(BAD)]
    for name, candid, payload in simulated(packets, objects, epochs):
        expected.sources[name].add(candid)
        payloads.append(payload)
    payloads += dice.sample(payloads[BAD:], len(payloads) // 20)
    dice.shuffle(payloads)
    found = [path for folder in ("ztf", "ztf-unlabelled") for path in sorted((DATA / folder).rglob("*.avro"))]
    for path in dice.sample(found, min(reals, len(found))):  # none of them where they are not at hand
        payload = path.read_bytes()
        expected.read(payload)
        payloads.insert(dice.randrange(len(payloads)), payload)
        expected.real += 1
    return payloads, expected


def cheap_model(folder: Path) -> Path:
    """Stamps through `vector` with random weights: these tests ask what is published, not whether it is right."""
    torch.manual_seed(5)
    own = preset("vector")
    network = lively(own.family.build(own.family.configure({})))
    calibration = checkpoint.Calibration((1.0, 10.0), (1.0, 1.0), (1.0, 1.0, 1.0, 1.0))
    about = checkpoint.Info(
        "cheap", "1", network.config.to_dict(), taxonomy.CLASSES, "ugriz", ("ztf",), SCALING, family="vector",
        calibration=calibration,
    )  # fmt: skip
    checkpoint.save(folder / "cheap", network.state_dict(), about)
    return folder / "cheap"


class Sender(threading.Thread):
    """Sends the packets evenly over the kills, however long these take, and sends again what Kafka did not confirm."""

    def __init__(self, settings: config.Settings, payloads: Payloads, kills: int) -> None:
        super().__init__(daemon=True)
        self._settings, self._payloads, self._kills = settings, payloads, kills
        self.killed = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with kafka.Publisher(self._settings.kafka) as publisher:
                size = -(-len(self._payloads) // (self._kills * BATCHES))
                for first in range(0, len(self._payloads), size):
                    while first > len(self._payloads) * (self.killed + 1) / self._kills:
                        time.sleep(0.05)
                    self._send(publisher, self._payloads[first : first + size])
        except BaseException as error:
            self.failure = error

    @staticmethod
    def _send(publisher: kafka.Publisher, payloads: Payloads) -> None:
        for _ in range(300):
            try:
                return publisher.publish_all([(TOPIC, None, payload, None) for payload in payloads])
            except ServiceUnavailable:
                time.sleep(1)
        raise AssertionError("Kafka never came back")


class Victim:
    """What is killed: a daemon or a server."""

    def __init__(self, one: Child | embedded.Server) -> None:
        self._one = one
        self.name = one.verb if isinstance(one, Child) else one.name
        self.kills = 0

    def kill(self, dice: random.Random) -> None:
        """And start it again, a server after a while."""
        self._one.kill()
        self.kills += 1
        if isinstance(self._one, Child):
            self._one.start()
        else:
            time.sleep(dice.uniform(0.2, 3))
            self._one.restart()


def rota(victims: Sequence[Victim], kills: int, dice: random.Random) -> list[Victim]:
    """Who is killed in turn: of ten, daemons four times each and servers once."""
    found: list[Victim] = []
    while len(found) < kills:
        found += dice.sample(victims, 10, counts=[4, 4, 1, 1])
    return found[:kills]


@pytest.mark.parametrize(
    ("kills", "objects", "epochs", "reals"),
    [(12, 60, 12, 20), pytest.param(100, 4000, 25, 1000, marks=[pytest.mark.long, pytest.mark.timeout(9000)])],
)
def test_nothing_is_lost_whatever_is_killed(
    apache_kafka: embedded.Server, durable_valkey: embedded.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    kills: int, objects: int, epochs: int, reals: int,
) -> None:  # fmt: skip
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    dice, began = random.Random(21), time.monotonic()
    payloads, expected = stream(importlib.import_module("packets"), objects, epochs, reals, dice)
    settings = settings_for(apache_kafka.address, durable_valkey.url, "ztf", TOPIC)
    publish(settings, TOPIC, [], partitions=3)
    file = tmp_path / "short-lease.toml"
    file.write_text("[work]\nlease_s = 10.0\n")
    shared = arguments_for(settings, TOPIC)
    ingest = Child("ingest", [*shared, "--group", TOPIC, "--debounce", "0"], tmp_path)
    words = [*shared[:-2], "--model", str(cheap_model(tmp_path)), "--threads", "1", "--interval", "0.5"]
    work = Child("work", [*words, "--config", str(file)], tmp_path)
    victims = [Victim(one) for one in (ingest, work, apache_kafka, durable_valkey)]
    sender = Sender(settings, payloads, kills)
    sender.start()
    try:
        for victim in rota(victims, kills, dice):
            time.sleep(dice.uniform(0.5, 3.5 if kills < 50 else 8.0))
            victim.kill(dice)
            sender.killed += 1
        sender.join(1200)
        assert not sender.is_alive()
        assert sender.failure is None, sender.failure
        # no transactions and no compaction here: end offsets are counts
        wait_for(lambda: settled(settings, sum(kafka.end_offsets(settings.kafka, [TOPIC]).values())), 2400, "settling")
        found = judge(settings, payloads, expected)
    finally:
        ends = [ingest.stop(), work.stop()]
    assert ends == [0, 0]
    found |= {"kills": {victim.name: victim.kills for victim in victims}, "seconds": round(time.monotonic() - began)}
    print("\n" + json.dumps(found))


def judge(settings: config.Settings, payloads: Sequence[object], expected: Expected) -> dict[str, Any]:
    """What must hold at the end; the figures."""
    store, _, ledger = daemon.connect_store(settings)
    books = ledger.books()
    summary = books.summary()
    assert books.balanced, books.to_text()
    assert summary["consumed"] >= len(payloads)  # a producer whose broker died may have sent a packet twice
    lost = [
        (name, source) for name, sources in expected.sources.items() for source in sources - set(_sources(store, name))
    ]
    assert not lost, f"{len(lost)} lost, the first {lost[:3]}"
    # a message counts once in the books, whatever number of records it holds, and whoever sent it twice
    assert summary["stored"] + summary["duplicates"] >= len(payloads) - expected.skipped - expected.rejected
    assert summary["skipped"] >= expected.skipped
    assert summary["rejected"] >= expected.rejected
    assert (summary["objects"], summary["pending"]) == (len(expected.sources), 0)
    published = [formats.decode(message.value()) for message in raw_messages(settings, settings.classification_topic)]
    reader = KeyedReader()
    for record in published:
        reader.read(record)
    by_revision: dict[int, list[Classification]] = defaultdict(list)
    for record in published:
        by_revision[record.revision].append(record)
    for group in by_revision.values():  # repeats are the same answers
        keyed(group)
    repeated = len(reader.handed) - len(set(reader.handed))
    assert repeated == 0
    with Subscriber(
        settings.kafka["bootstrap.servers"], topic=settings.classification_topic, options=settings.kafka, drain=True
    ) as ours:
        handed = [(record.object_id, record.revision) for record in ours]
    assert len(handed) == len(set(handed))
    last = dict(handed)
    for name in expected.sources:
        assert last[name] == store.revision(name), name
    return {
        "alerts": len(payloads), "real": expected.real, "lost": len(lost), "repeated": repeated,
        "sources": sum(map(len, expected.sources.values())), "published": len(published), "keyed": len(reader.handed),
        **{name: summary[name] for name in ("consumed", "stored", "duplicates", "skipped", "rejected")},
    }  # fmt: skip


def _sources(store: Any, name: str) -> list[int]:
    found = store.sequence(name)
    return [] if found is None else [int(source) for source in found.header["source_id"]]


def test_repeats_that_differ_are_found() -> None:
    """`keyed` is what the test above rests on: it must be able to fail."""
    header = np.zeros(3, HEADER)
    header["source_id"] = 1, 2, 3
    provenance = records.Provenance("1", "model", "1", "digest", "stamp-1", "taxonomy", "cpu")
    record = Classification.of(
        "sdss", "A", 7, header, [("SNIa", 2222, 0.75), ("AGN", 2332, 0.25)], None, provenance, 1000
    )
    again = replace(record, classified_ms=2000)
    assert keyed([record, again]) == {record.classification_id: record}
    for changes in ({"revision": 8}, {"n_stamps": 4}, {"probabilities": again.probabilities[::-1]}, {"kafka_ms": 5}):
        with pytest.raises(AssertionError):
            keyed([record, replace(again, **changes)])
