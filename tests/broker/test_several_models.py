"""Models of different needs in one worker, through real servers: three through kills, and every one there is."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fault_tools import Child, arguments_for, wait_for
from stream_tools import publish, sdss_alert, settings_for

from skyheed.broker import app as daemon
from skyheed.broker import config, worker_models
from skyheed.broker.local import embedded
from skyheed.broker.packets.surveys import load_survey
from skyheed.broker.results import record as records
from skyheed.broker.settings import Settings
from skyheed.broker.subscribe import Subscriber
from skyheed.classifier import taxonomy
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.family import known_presets, preset

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(300)]
MODELS = ("convention", "convention-2d", "lstm")
OBJECTS, EPOCHS, KILLS = 20, 6, 6


def save(folder: Path, name: str, survey: str = "sdss") -> Path:
    """A checkpoint of a model with random weights."""
    torch.manual_seed(3)
    own = preset(name)
    loaded = own.family.configure(own.network)
    info = checkpoint.Info(
        name, "0", loaded.to_dict(), taxonomy.CLASSES, load_survey(survey, None, None).bands, (survey,),
        Scaling((1.0,) * 6, 0.5, (100.0,) * 6), checkpoint.Calibration(), family=own.family.name,
    )  # fmt: skip
    checkpoint.save(folder / name, own.family.build(loaded).state_dict(), info)
    return folder / name


@pytest.fixture
def children() -> Iterator[list[Child]]:
    made: list[Child] = []
    yield made
    for child in made:
        child.stop()


def records_of(settings: Settings, topic: str) -> list[records.Classification]:
    with Subscriber(settings.kafka["bootstrap.servers"], topic=topic, options=settings.kafka, drain=True) as stream:
        return list(stream)


def test_three_models_of_different_needs_classify_each_object_once_a_revision_through_kills(
    kafka: embedded.Server, durable_valkey: embedded.Server, tmp_path: Path, children: list[Child]
) -> None:
    rng, topic = random.Random(5), "three-models"
    settings = settings_for(kafka.address, durable_valkey.url, "sdss", topic)
    file = tmp_path / "models.toml"
    tables = "".join(f'[[work.models]]\nmodel = "{save(tmp_path, name)}"\nname = "{name}"\n' for name in MODELS)
    file.write_text(f'[topics]\nclassifications = "three"\n[work]\nlease_s = 3.0\nthreads = 1\n{tables}')
    alerts = [sdss_alert(f"M{i}", n) for n in range(EPOCHS) for i in range(OBJECTS)]
    publish(settings, topic, [], partitions=2)
    shared = [*arguments_for(settings, topic), "--config", str(file)]
    work = Child("work", [word for word in shared if word not in ("--topic", topic)], tmp_path)
    ingest = Child("ingest", [*shared, "--group", topic, "--debounce", "0"], tmp_path)
    children += [ingest, work]
    ledger = daemon.connect_store(settings)[2]
    for number in range(KILLS):
        share = len(alerts) // KILLS
        publish(settings, topic, alerts[number * share : (number + 1) * share])
        time.sleep(rng.uniform(0.5, 3.0))
        work.kill()
        work.start()
    wait_for(lambda: len(daemon.connect_store(settings)[0].models()) == len(MODELS), 60, "the models")
    wait_for(
        lambda: ledger.books().pending == 0 and ledger.books().consumed == len(alerts), 120, "settling",
        lambda: "\n".join([ledger.books().to_text(), *(child.log.read_text()[-3000:] for child in children)]),
    )  # fmt: skip
    books = ledger.books()
    assert books.balanced, books.to_text()
    assert set(books.objects.models) == set(MODELS)
    assert all(own.classified == OBJECTS for own in books.objects.models.values()), books.to_text()
    store = daemon.connect_store(settings)[0]
    for place, name in enumerate(MODELS):
        seen = records_of(settings, "three" if not place else f"three.{name}")
        assert {record.model for record in seen} == {name}
        assert max(Counter((record.object_id, record.revision) for record in seen).values()) == 1  # to a keyed reader
        newest = {record.object_id: record for record in sorted(seen, key=lambda r: r.revision)}
        assert {n: r.revision for n, r in newest.items()} == {f"M{i}": store.revision(f"M{i}") for i in range(OBJECTS)}
        assert all(record.n_stamps == EPOCHS for record in newest.values())
        assert store.history("M0", name)


@pytest.mark.timeout(600)
def test_every_model_is_served_from_one_redis(
    kafka: embedded.Server, durable_valkey: embedded.Server, tmp_path: Path, children: list[Child]
) -> None:
    topic, count, epochs = "every-model", 3, 4
    names = [name for name in known_presets() if name != "fusion"]  # as built, it wants images that SDSS does not send
    settings = settings_for(kafka.address, durable_valkey.url, "sdss", topic)
    file = tmp_path / "models.toml"
    tables = "".join(f'[[work.models]]\nmodel = "{save(tmp_path, name)}"\nname = "{name}"\n' for name in names)
    file.write_text(f'[topics]\nclassifications = "every"\n[work]\nthreads = 1\n{tables}')
    alerts = [sdss_alert(f"E{i}", n) for n in range(epochs) for i in range(count)]
    publish(settings, topic, alerts)
    shared = [*arguments_for(settings, topic), "--config", str(file)]
    children += [
        Child("ingest", [*shared, "--group", topic, "--debounce", "0"], tmp_path),
        Child("work", [word for word in shared if word not in ("--topic", topic)], tmp_path),
    ]
    ledger = daemon.connect_store(settings)[2]
    wait_for(lambda: len(daemon.connect_store(settings)[0].models()) == len(names), 240, "the models")
    wait_for(
        lambda: ledger.books().pending == 0 and ledger.books().consumed == len(alerts), 240, "settling",
        lambda: "\n".join([ledger.books().to_text(), *(child.log.read_text()[-3000:] for child in children)]),
    )  # fmt: skip
    assert ledger.books().balanced, ledger.books().to_text()
    for place, name in enumerate(names):
        seen = records_of(settings, "every" if not place else f"every.{name}")
        newest = {record.object_id: record for record in sorted(seen, key=lambda r: r.revision)}
        assert set(newest) == {f"E{i}" for i in range(count)}, name
        for record in newest.values():
            assert (record.model, record.n_stamps, record.reason) == (name, epochs, None)
            assert sum(p.probability for p in record.probabilities) == pytest.approx(1, abs=1e-4)
            spread = [(e.name, e.value, e.error > 0) for e in record.estimates]
            bayes = name == "supernnova-bayes"  # the scatter of its draws is the error of its top probability
            assert spread == ([("probability", pytest.approx(record.top_probability), True)] if bayes else [])


def test_a_configuration_without_weights_is_refused_by_work(kafka: embedded.Server, valkey: embedded.Server) -> None:
    settings = config.load(overrides={"survey": "ztf", "work.model": "scone", "redis.url": valkey.url}, environ={})
    with pytest.raises(Exception, match="there are no weights of scone for ztf: train them"):
        worker_models.load_models(settings)
