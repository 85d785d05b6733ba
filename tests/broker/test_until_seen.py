"""`redis.keep_pixels = "until-seen"` through real workers and models: the answers are those of `always`."""

import logging
import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from state_tools import SURVEY, deliveries, observation
from stream_tools import answers, ingest_all, publish, save_checkpoint, sdss_alert, settings_for
from zoo_tools import SCALING, history, lively

from skyheed.broker import app as daemon
from skyheed.broker import config, metrics, worker_models
from skyheed.broker.errors import ConfigError
from skyheed.broker.kafka import client as kafka
from skyheed.broker.local import embedded
from skyheed.broker.observation import Observation
from skyheed.broker.results import formats
from skyheed.broker.results.record import Classification, Declined
from skyheed.broker.settings import Settings
from skyheed.broker.state import client as state
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.joined import Joined
from skyheed.broker.state.ledger import Ledger
from skyheed.broker.state.neighbours import Neighbours
from skyheed.broker.state.queue import DueQueue
from skyheed.broker.work import Output, Pace, Worker, lane_of
from skyheed.classifier import serving, taxonomy
from skyheed.classifier.history import Photometry
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.family import preset
from skyheed.classifier.models.token_cache import find

WINDOW = 6
ARCSEC = 1 / 3600
SOURCE = 900 * np.exp(-0.5 * ((np.indices((32, 32)) - 16) ** 2).sum(0) / 1.2)  # noise alone would be declined


def vector(folder: Path, seed: int = 3, **config: Any) -> Any:
    """A model of `vector` with random weights."""
    torch.manual_seed(seed)
    own = preset("vector")
    network = lively(own.family.build(own.family.configure({"encoder": "small", "width": 16, **config})), seed)
    about = checkpoint.Info(
        f"vector-{seed}", "1", network.config.to_dict(), taxonomy.CLASSES, "ugriz", ("test",), SCALING,
        checkpoint.Calibration(), family="vector",
    )  # fmt: skip
    checkpoint.save(folder / f"vector-{seed}", network.state_dict(), about)
    return serving.load(folder / f"vector-{seed}", survey="test", device="cpu", threads=1)


class Stream:
    """A store with models that answer in this process; what they said last of each object."""

    def __init__(self, url: str, until_seen: bool, models: dict[str, Any], arcsec: float = 0.0) -> None:
        self.client = state.connect(url)
        self.client.run([("FLUSHALL",)])
        near = Neighbours(self.client, SURVEY, 3600.0) if arcsec else None
        self.store = SequenceStore(
            self.client, SURVEY, debounce_s=0.0, max_stamps=WINDOW, neighbours=near, until_seen=until_seen
        )
        joined = Joined(self.store, near, arcsec) if near else None
        self.workers = {name: self._worker(name, model, joined) for name, model in models.items()}
        self.store.join(*models, sees={name: worker.lane.sees for name, worker in self.workers.items()})
        self.said: dict[tuple[str, str], Classification] = {}
        self.offset = 0

    def _worker(self, name: str, model: Any, joined: Joined | None) -> Worker:
        queue = DueQueue(self.client, SURVEY, model=name)
        form = formats.Form(formats.encode, True)
        output = Output(name, "topic", form, worker_models.provenance_of(model))
        measured, pace = metrics.WorkMetrics(SURVEY), Pace(20, 0.1, 60.0)
        return Worker(SURVEY, queue, self.store, model, None, output, measured, pace, joined)  # type: ignore[arg-type]

    def add(self, *seen: Observation) -> None:
        self.store.store(deliveries(seen, first=self.offset))
        self.offset += len(seen)

    def answer(self, *names: str, settle: bool = True) -> None:
        """Answer what is due; with `settle=False` the worker is killed before it says so."""
        for name in names or self.workers:
            worker = self.workers[name]
            claims = worker.queue.claim(100, 60.0 if settle else 0.0)
            found = worker.answer(worker.fetch(claims))
            if settle:
                self.store.settle([answer for _, answer in found], worker.lane)
                self.said |= {(name, record.object_id): record for record, _ in found}

    def probabilities(self) -> dict[tuple[str, str], list[float]]:
        assert {record.reason for record in self.said.values()} == {None}
        return {key: [p.probability for p in record.probabilities] for key, record in self.said.items()}

    def pixels(self) -> int:
        """Keys that hold pixels."""
        return sum(len(self.client.run([("KEYS", f"*}}:{part}:*")])[0]) for part in ("stamps", "further", "templates"))


def packets(name: str, count: int, seed: int, east: float = 0.0) -> list[Observation]:
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        stamp, difference = (rng.normal(0, 30, (2, 32, 32)) + [[[0]], [[1]]] * SOURCE).astype(np.float16)
        points = Photometry(*(np.array([v], t) for v, t in (
            (60000.5 + n, "f8"), (1, "u1"), (rng.normal(500, 99), "f4"), (80, "f4"), (0, "u1")
        )))  # fmt: skip
        made.append(observation(
            name, 100 * seed + n + 1, 60001.0 + n + seed / 10, stamp=stamp, band="gr"[n % 2], ra=10.0 + east * ARCSEC,
            images={"difference": difference, "template": np.full((32, 32), seed, np.float16)}, photometry=points,
            context={"detections": float(n + 1)},
        ))  # fmt: skip
    return made


@pytest.mark.redis
def test_fusion_and_vector_answer_as_with_always(valkey: embedded.Server, tmp_path: Path) -> None:
    """In any order, with late epochs, replaced payloads, a window that slides, and workers that are killed."""
    fusion = serving.load("ztf/fusion", survey="ztf", device="cpu", precision="float32", threads=1)
    models = {"fusion": fusion, "vector": vector(tmp_path), "short": vector(tmp_path, 4)}
    models["short"].needs = replace(models["short"].needs, most=3)  # takes fewer epochs than are kept
    seen = [o for n in range(1, 4) for o in packets(f"object-{n}", 4 * n, n)]
    again = [replace(o, mjd=o.mjd + 0.05, stamp=o.stamp * np.float16(2)) for o in seen[::3]]
    ends = []
    for until_seen, seed in ((False, 1), (True, 2), (True, 3)):
        chance, stream = random.Random(seed), Stream(valkey.url, until_seen, models)
        order = chance.sample([*seen, *again], len(seen) + len(again))
        for one in order:
            stream.add(one, *chance.sample(seen, 1))
            stream.answer(*chance.sample(sorted(models), 1), settle=chance.random() < 0.7)
        stream.answer()
        assert Ledger(stream.client, SURVEY).books().objects.balanced
        assert bool(stream.pixels()) != until_seen
        ends.append(stream.probabilities())
    for end in ends[1:]:
        assert end == {key: pytest.approx(value, abs=1e-5) for key, value in ends[0].items()}


@pytest.mark.redis
@pytest.mark.parametrize("points", [False, True])
def test_joined_names_are_answered_as_with_always(valkey: embedded.Server, tmp_path: Path, points: bool) -> None:
    """Two names of one transient, of which the second comes when pixels of the first have left."""
    model = vector(tmp_path, photometry=points)
    first, second = packets("a", 4, 1), packets("b", 3, 2, east=0.4)
    both = replace(first[3], object_id="b", stamp=first[0].stamp)  # a detection of both, with other pixels
    moved = replace(second[1], mjd=second[1].mjd + 0.01, stamp=first[1].stamp)
    # of several payloads that differ in their pixels alone, one will win over the first
    replaced = [replace(second[0], stamp=one.stamp) for one in packets("b", 6, 9)]
    batches = [first[:2], second[:2], [first[2], second[2]], [both], [moved], replaced, [first[3]]]
    ends = []
    at_once = [[one for batch in batches for one in batch]]
    for until_seen, parts in ((False, at_once), (False, batches), (True, batches)):
        stream = Stream(valkey.url, until_seen, {"vector": model}, arcsec=1.0)
        for part in parts:
            stream.add(*part)
            stream.answer()
        assert {record.n_stamps for (_, name), record in stream.said.items() if name == "a"} == {7}
        ends.append(stream.probabilities())
        stream.workers["vector"].joined = None  # joining is switched off
        stream.add(packets("a", 5, 1)[4], packets("b", 4, 2)[3])
        stream.answer()
        ends.append(stream.probabilities())
    for n, end in enumerate(ends[2:]):
        assert end == {key: pytest.approx(value, abs=1e-5) for key, value in ends[n % 2].items()}


def test_what_was_cached_in_a_joined_history_holds_for_the_epoch_alone(tmp_path: Path) -> None:
    model, whole = vector(tmp_path), history(4)
    for joined in (False, True):
        (said,) = model.predict([replace(whole, joined=joined)])
        for later in (False, True):
            kept = replace(whole, images={}, shown=np.empty(0, np.int64), kept=said.keep, joined=later)
            [found] = find([kept], model.network.config.keeps, np.dtype("f4"))
            assert found.stamps.all()
            assert found.whole == (0 if joined or later else 4)


@pytest.mark.redis
def test_another_version_of_a_model_declines_what_it_cannot_see(
    valkey: embedded.Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = vector(tmp_path), vector(tmp_path, 5)
    stream = Stream(valkey.url, True, {"vector": old})
    stream.add(*packets("old", 3, 1))
    stream.answer()
    before = stream.store.sees()
    stream.workers["vector"].model = new
    stream.workers["vector"].lane = lane = lane_of("vector", new)
    with caplog.at_level(logging.WARNING):
        worker_models.warn_of_pixels(before, {"vector": lane.sees, "groups": ""})
    assert "model vector does not cache what" in caplog.text
    assert "images stay until model groups joins" in caplog.text
    stream.store.join("vector", sees={"vector": lane.sees})
    stream.add(packets("old", 4, 1)[3], *packets("new", 2, 2))
    stream.answer()
    assert stream.said["vector", "old"].reason == Declined.IMAGES_NOT_KEPT
    assert stream.said["vector", "new"].reason is None
    books = Ledger(stream.client, SURVEY).books().objects
    assert (books.total("classified"), books.total("declined"), books.lost, books.balanced) == (1, 1, 0, True)
    stream.add(*packets("old", 9, 1)[4:])
    stream.answer()
    assert stream.said["vector", "old"].reason is None, "newer stamps fill its history"
    assert stream.pixels() == 0


def test_a_model_that_has_to_see_earlier_images_again_is_refused(tmp_path: Path) -> None:
    def settings(keep: str) -> Settings:
        return config.load(overrides={"survey": "sdss", "redis.keep_pixels": keep}, environ={})

    model = serving.load(save_checkpoint(tmp_path, "sdss"), survey="sdss", device="cpu", threads=1)
    survey = daemon.survey_of(settings("always"))
    worker_models.check_fit(settings("always"), survey, model)
    with pytest.raises(ConfigError, match=r'set redis\.keep_pixels = "always", or run a model of the family fusion'):
        worker_models.check_fit(settings("until-seen"), survey, model)
    with pytest.raises(ConfigError, match=r"redis\.keep_pixels must be one of always, until-seen"):
        settings("never")


def run_models(settings: Settings) -> None:
    """What a worker daemon does, until nothing is due."""
    served, stop = worker_models.load_models(settings), threading.Event()
    daemon.prepare_topics(settings, stop, [one.topic for one in served])
    worker_models.join(settings, served, stop)
    with kafka.Publisher(settings.kafka) as publisher:
        for one in served:
            worker = worker_models.make_worker(settings, one, publisher, metrics.WorkMetrics(settings.survey))
            worker.run(stop, drain=True)


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.timeout(300)
def test_two_shipped_models_through_kafka(kafka: embedded.Server, valkey: embedded.Server) -> None:
    ends = []
    chance, epochs = random.Random(7), {"A": 30, "B": 4}
    alerts = [sdss_alert(name, n) for name, count in epochs.items() for n in range(count)]
    chance.shuffle(alerts)
    for keep in ("always", "until-seen"):
        state.connect(valkey.url).run([("FLUSHALL",)])
        topic = f"pixels-{keep}"
        options: dict[str, Any] = {
            "redis.keep_pixels": keep, "work.models": [{"model": "sdss/fusion"}, {"model": "sdss/vector"}],
            "work.precision": "float32", "work.threads": 1,
            "topics.classifications": f"out-{topic}", "topics.dead_letters": f"dead-{topic}",
        }  # fmt: skip
        settings = settings_for(kafka.address, valkey.url, "sdss", topic, **options)
        for batch in (alerts[:14], alerts[14:24], alerts[24:]):
            publish(settings, topic, batch, partitions=1)
            assert ingest_all(settings)["stored"] == len(batch)
            run_models(settings)
        store, _, ledger = daemon.read_store(settings)
        for name, count in epochs.items():
            found = store.sequence(name)
            assert found is not None
            assert (len(found.header), len(found.gone)) == (count, count if keep == "until-seen" else 0)
        assert ledger.books().balanced
        records = [formats.decode(store.latest(name, m) or b"") for name in epochs for m in ("fusion", "vector")]
        assert {record.reason for record in [*records, *answers(settings)]} == {None}
        ends.append([p.probability for record in records for p in record.probabilities])
    assert ends[1] == pytest.approx(ends[0], abs=1e-5)
