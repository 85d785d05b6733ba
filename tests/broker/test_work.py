"""The worker's answers: who is declined and why."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from state_tools import deliveries, observation, open_state
from stream_tools import save_checkpoint

from skyheed.broker import app as daemon
from skyheed.broker import config, metrics, worker_models
from skyheed.broker.errors import ConfigError
from skyheed.broker.local import embedded
from skyheed.broker.results import formats
from skyheed.broker.results.record import Declined, Status
from skyheed.broker.settings import Settings
from skyheed.broker.state import client as state
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.queue import Claim, DueQueue
from skyheed.broker.state.sequence import Settled
from skyheed.broker.waiting import Meanwhile, Unfinished
from skyheed.broker.work import POLL_S, Output, Pace, Worker
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.convention.predictor import Predictor
from skyheed.classifier.prediction import Needs
from skyheed.classifier.serving import load

NO_MODEL = SimpleNamespace(kept_as="", needs=Needs())
NO_OUTPUT = SimpleNamespace(model="")
OWN = ("Comet", "Nova", "Flare", "Else")


def waiting_worker(queue: Any, pace: Pace) -> Worker:
    """A worker that finds nothing to classify."""
    return Worker("test", queue, None, NO_MODEL, None, NO_OUTPUT, None, pace)  # type: ignore[arg-type]


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return load(save_checkpoint(tmp_path, "sdss"), survey="sdss", device="cpu", precision="float32", threads=1)


def worker_of(predictor: Predictor, queue: DueQueue, store: SequenceStore) -> Worker:
    output = Output("", "topic", formats.Form(formats.encode, True), worker_models.provenance_of(predictor))
    return Worker(
        "test",
        queue,
        store,
        predictor,
        None,
        output,
        metrics.WorkMetrics("test"),
        Pace(10, 0.1, 60.0),  # type: ignore[arg-type]
    )


@pytest.mark.redis
def test_classes_of_ones_own_are_published_with_their_ids(valkey: embedded.Server, tmp_path: Path) -> None:
    place = save_checkpoint(tmp_path, "sdss")
    info = checkpoint.read_info(place)
    own = replace(info, class_ids={name: 7 + n for n, name in enumerate(OWN)}, classes=OWN, taxonomy="student-1")
    checkpoint.save(tmp_path / "own", load_file(place / checkpoint.WEIGHTS), own)
    model = load(tmp_path / "own", survey="sdss", device="cpu", precision="float32", threads=1)
    store, queue, _ = open_state(valkey.url)
    stamp = np.ones((32, 32), np.float16)
    store.store(deliveries([observation("good", n, stamp=stamp) for n in (1, 2, 3)]))
    worker = worker_of(model, queue, store)
    ((record, _),) = worker.answer(store.fetch(queue.claim(10, 60.0), worker.lane))
    found = formats.decode(formats.encode(record))
    assert [(p.name, p.taxonomy_id) for p in found.probabilities] == [(name, 7 + n) for n, name in enumerate(OWN)]
    assert found.provenance.taxonomy == "student-1"
    assert found.top_class in OWN


@pytest.mark.redis
def test_short_sequences_and_unknown_bands_are_declined_with_their_reason(
    valkey: embedded.Server, predictor: Predictor
) -> None:
    store, queue, _ = open_state(valkey.url)
    stamp = np.ones((32, 32), np.float16)
    store.store(deliveries([observation("short", 1, stamp=stamp)]))
    store.store(deliveries([observation("good", n, stamp=stamp) for n in (1, 2, 3)], first=10))
    store.store(deliveries([observation("other", n, band="y", stamp=stamp) for n in (1, 2, 3)], first=20))
    worker = worker_of(predictor, queue, store)
    answers = worker.answer(store.fetch(queue.claim(10, 60.0), worker.lane))
    found = {record.object_id: record for record, _ in answers}
    assert found["good"].status is Status.CLASSIFIED
    assert found["short"].reason == Declined.TOO_FEW_STAMPS
    assert found["other"].reason == Declined.BANDS_UNKNOWN
    assert {record.object_id: answer.classified for record, answer in answers} == {
        "good": True, "short": False, "other": False,
    }  # fmt: skip
    assert [list(answer.tokens) for record, answer in answers if record.object_id == "good"] == [[0]]


@pytest.mark.redis
def test_a_worker_encodes_a_record_once(
    valkey: embedded.Server, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, queue, _ = open_state(valkey.url)
    store.store(deliveries([observation("a", n, stamp=np.ones((32, 32), np.float16)) for n in (1, 2, 3)]))
    worker, sent, written = worker_of(predictor, queue, store), [], []
    worker.publisher = SimpleNamespace(publish_all=lambda messages, _: sent.extend(messages))  # type: ignore[assignment]
    writer = formats.written
    monkeypatch.setattr(formats, "written", lambda record: (written.append(record), writer(record))[1])
    answers = worker.answer(store.fetch(queue.claim(10, 60.0), worker.lane))
    assert worker._publish(answers, Meanwhile(threading.Event())) == [Settled.ACKED]
    assert len(sent) == len(written) == 1


@pytest.mark.redis
@pytest.mark.parametrize("with_tokens", [False, True])
def test_a_sequence_that_is_longer_than_the_model_takes_is_answered_from_its_newest_stamps(
    valkey: embedded.Server, predictor: Predictor, with_tokens: bool
) -> None:
    store, queue, _ = open_state(valkey.url)
    rng = np.random.default_rng(3)
    seen = [observation("long", n, stamp=rng.normal(0, 1, (32, 32)).astype(np.float16)) for n in range(10)]
    worker = worker_of(predictor, queue, store)
    store.store(deliveries(seen[:9]))
    if with_tokens:  # of the groups of the whole sequence
        store.settle([answer for _, answer in worker.answer(worker.fetch(queue.claim(10, 60.0)))], worker.lane)
    store.store(deliveries([*seen[9:], observation("short", 1), observation("short", 2)], first=9))
    predictor.needs = replace(predictor.needs, most=4)
    answers = worker.answer(worker.fetch(queue.claim(10, 60.0)))
    found = {record.object_id: record for record, _ in answers}
    assert found["long"].sources == (6, 7, 8, 9)
    assert found["short"].reason == Declined.TOO_FEW_STAMPS
    assert store.settle([answer for _, answer in answers], worker.lane) == [Settled.ACKED] * 2
    # the same as a store gives that kept only these
    smaller, its_queue, _ = open_state(valkey.url, max_stamps=4)
    smaller.store(deliveries([replace(o, object_id="cut") for o in seen], first=20))
    ((same, _),) = worker.answer(smaller.fetch(its_queue.claim(10, 60.0), worker.lane))
    assert same.sources == found["long"].sources
    expected = [p.probability for p in same.probabilities]
    assert [p.probability for p in found["long"].probabilities] == pytest.approx(expected, abs=1e-3)
    # the token of its first group (6, 7, 8) was kept as that of the whole sequence's third
    (whole,) = store.fetch([Claim("long", 0, "")], worker.lane)
    assert set(whole.tokens) == ({0, 1, 2} if with_tokens else {2})


@pytest.mark.parametrize(
    ("drain", "pending", "whole"), [(True, 1, False), (True, 0, True), (False, 1, True), (False, 0, True)]
)
def test_a_drain_that_was_stopped_before_its_end_is_an_error(drain: bool, pending: int, whole: bool) -> None:
    stop = threading.Event()
    queue = SimpleNamespace(claim=lambda _n, _s: stop.set() or [], depth=lambda: {"new": pending}, ready=lambda: 0)
    worker = waiting_worker(queue, Pace(10, 0.1, 60.0))
    if whole:
        assert worker.run(stop, drain) == {}
    else:
        with pytest.raises(Unfinished, match="start it again"):
            worker.run(stop, drain)


def test_a_model_that_cannot_take_what_ingest_keeps_is_refused(predictor: Predictor) -> None:
    def settings(**redis: int) -> Settings:
        return config.load(overrides={"survey": "sdss", **{f"redis.{k}": v for k, v in redis.items()}}, environ={})

    survey = daemon.survey_of(settings())
    worker_models.check_fit(settings(), survey, predictor)
    predictor.info = replace(predictor.info, bands="gri")
    with pytest.raises(ConfigError, match=r'does not know band u, z: set ingest.bands = "gri"'):
        worker_models.check_fit(settings(), survey, predictor)


@pytest.mark.redis
def test_an_idle_worker_asks_ever_more_rarely_and_at_once_again_when_there_is_work(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    client = state.connect(valkey.url)
    worker = waiting_worker(queue, Pace(3, 0.2, 60.0))
    stop = threading.Event()

    def commands() -> int:
        return int(client.info()[0]["total_commands_processed"])

    for _ in range(3):
        worker._batch(stop)
        worker._wait(stop)
    before, began = commands(), time.monotonic()
    for _ in range(4):
        worker._batch(stop)
        worker._wait(stop)
    assert time.monotonic() - began > 4 * 0.2
    assert (commands() - before) / 4 < 80, "one look at 16 shards, of two commands each, or two"
    # what arrives meanwhile is taken after the interval, as ever; a full batch at once
    store.store(deliveries([observation("a")]))
    began = time.monotonic()
    worker._wait(stop)
    store.store(deliveries([observation("b"), observation("c")], first=10))
    worker._pause = POLL_S
    worker._wait(stop)
    assert time.monotonic() - began < 1.0
    assert queue.ready() == 3


@pytest.mark.redis
@pytest.mark.parametrize("form", ["container", "wire"])
def test_a_record_is_encoded_once(
    valkey: embedded.Server, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    store, queue, _ = open_state(valkey.url)
    store.store(deliveries([observation(f"o{n}") for n in range(3)]))
    sent: list[bytes] = []
    publisher = SimpleNamespace(publish_all=lambda messages, _: sent.extend(value for _, _, value, _ in messages))
    worker = worker_of(predictor, queue, store)
    worker.publisher = publisher  # type: ignore[assignment]
    if form == "wire":
        form_ = formats.Form(lambda record, datum: formats.encode_wire(record, 7, datum), False)
        worker.output = replace(worker.output, form=form_)
    encoded: list[str] = []
    real = formats.written
    monkeypatch.setattr(formats, "written", lambda record: encoded.append(record.object_id) or real(record))
    assert worker._batch(threading.Event()) == 3
    assert sorted(encoded) == ["o0", "o1", "o2"]
    kept = [formats.decode(store.latest(f"o{n}") or b"") for n in range(3)]
    monkeypatch.undo()
    frame = formats.encode if form == "container" else lambda record: formats.encode_wire(record, 7)
    assert sorted(sent) == sorted(map(frame, kept))
