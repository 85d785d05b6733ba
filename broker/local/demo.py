"""`skyheed demo`: a simulated SDSS season through the real pipeline, scored against its truth.

Servers, ingest and worker are those of `skyheed up`; the demo only adds the archive, the replay, a subscriber that
prints, and the scores. Accuracy after N stamps is recomputed by the served model from the first N stored stamps of
each object; accuracy at the end uses the last published record of each object.
"""

import contextlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from skyheed.broker import app as daemon
from skyheed.broker import config
from skyheed.broker import replay as player
from skyheed.broker.errors import ConfigError
from skyheed.broker.local import demo_report, page
from skyheed.broker.local import processes as stack
from skyheed.broker.observation import BANDS
from skyheed.broker.results.record import Classification
from skyheed.broker.settings import Settings
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.subscribe import Subscriber
from skyheed.broker.work import history_of
from skyheed.broker.worker_models import ServedModel, load_models
from skyheed.classifier import taxonomy
from skyheed.classifier.archives import reader as archives
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.base import Model
from skyheed.classifier.progress import say
from skyheed.classifier.reaper import end_if_asked, temporary_folder
from skyheed.classifier.safe_names import printable
from skyheed.classifier.sky import simulate

SURVEY = "sdss"
DRAIN_S = 120.0
SHOWN = 6  # objects in the picture


class Listener(threading.Thread):
    """Subscribes to the classifications and prints them as they arrive."""

    def __init__(self, kafka: str, topic: str, truth: Mapping[str, str], name: str = "") -> None:
        super().__init__(daemon=True)
        self.records: list[Classification] = []
        self._truth, self._name = truth, name
        self._stream = Subscriber(kafka, topic=topic)
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            with self._stream as stream:
                for record in stream:
                    self.records.append(record)
                    say(_line(record, self._truth.get(record.object_id, "?"), self._name))
        except Exception as error:  # raised by `last`, in the thread that can report it
            self._error = error

    def wait_for(self, revisions: Mapping[str, int], limit_s: float) -> None:
        """Wait until the latest revision of every object has arrived, then stop."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and self._error is None:
            seen: dict[str, int] = {}
            for record in list(self.records):
                seen[record.object_id] = max(seen.get(record.object_id, 0), record.revision)
            if all(seen.get(name, 0) >= revision for name, revision in revisions.items()):
                break
            end_if_asked()
            time.sleep(0.1)
        self._stream.stop()
        self.join(10)
        if self._error is not None:
            raise self._error


def _line(record: Classification, truth: str, name: str = "") -> str:
    bands = " ".join(f"{band}{count:<2d}" for band, count in sorted(record.stamps_per_band.items()))
    if record.top_class is None:
        answer = f"declined ({record.reason})"
    else:
        answer = f"{record.top_class:<8} {record.top_probability:4.0%} {'✓' if record.top_class == truth else ' '}"
    line = f"{record.object_id:<14} {bands:<22} {record.days_since_first:6.1f} d  {answer:<26} truth: {truth}"
    line = f"{name:<14} {line}" if name else line
    return printable(line)


def run(
    objects: int, rate: float, seed: int, output: str, models: Sequence[str] = (), serve: bool = False
) -> bool:  # fmt: skip
    """Run the demo; True if the books balance.

    Args:
        objects: how many objects to simulate.
        rate: alerts a second.
        output: file of the picture.
        models: checkpoint directories or shipped weights, all served at once; default: the survey's.
        serve: show the page from the start, and keep it until Ctrl-C.

    Raises:
        ClassifierError: a model does not load.
        ConfigError: a rate that is none, or a model's classes differ from those of the demo's sky.
    """
    if not rate > 0:
        raise ConfigError("--rate must be above 0")
    began = time.monotonic()
    with temporary_folder("skyheed-demo-") as folder:
        file = _configuration(folder, models or (SURVEY,))
        settings = config.load(str(file), overrides={"survey": SURVEY})
        served = load_models(settings)
        click.echo(f"1/4  simulating {objects} SDSS objects over one season (seed {seed})", err=True)
        simulate(SURVEY, objects, seed, folder / "archive", seasons=1, balanced=True)
        click.echo("2/4  starting Kafka, Valkey, ingest and worker", err=True)
        with stack.servers(None, None) as servers:
            settings = servers.settings(settings)
            arguments = stack.shared_arguments(settings, str(file))
            shown = page.shown(arguments, folder, servers.secrets) if serve else contextlib.nullcontext()
            with shown as viewer:
                good = _stream(servers, settings, served, folder, rate, Path(output), began)
                page.keep(viewer)
            return good


def _configuration(folder: Path, models: Sequence[str]) -> Path:
    """The worker's model settings; classes are equally frequent in the demo's sky.

    Raises:
        ClassifierError: there is no such model.
        ConfigError: its classes differ.
    """
    lines = []
    for name in models:
        path = checkpoint.resolve(name, SURVEY)
        classes = checkpoint.read_info(path).classes
        if {taxonomy.among(own, classes) for own in taxonomy.CLASSES} != set(classes):
            raise ConfigError(
                f"{name} knows {', '.join(classes)}, the demo's sky holds {', '.join(taxonomy.CLASSES)}: choose "
                "another model"
            )
        prior = ",".join("1" * len(classes))
        asked = (
            str(path) if Path(name) == path else name
        )  # a shipped name also gives the model's name within the survey
        lines += ["[[work.models]]", f"model = {json.dumps(asked)}", f'prior = "{prior}"', ""]
    file = folder / "demo.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def _stream(
    servers: stack.Servers, settings: Settings, served: Sequence[ServedModel], folder: Path, rate: float,
    output: Path, began: float,
) -> bool:  # fmt: skip
    archive = archives.Archive(folder / "archive")
    truth = dict(zip(archive.objects["object_id"].to_pylist(), archive.objects["class"].to_pylist(), strict=True))
    store, _, ledger = daemon.read_store(settings)
    daemon.prepare_topics(settings, threading.Event(), [one.topic for one in served])
    arguments = stack.shared_arguments(settings, str(folder / "demo.toml"))
    ingest = stack.Daemon("ingest", [*arguments, "--debounce", "0"], folder / "ingest.log", servers.secrets)
    worker = stack.Daemon("work", arguments, folder / "work.log", servers.secrets)
    kafka = settings.kafka["bootstrap.servers"]
    listeners = {
        one.name: Listener(kafka, one.topic, _called(truth, one.model.classes), one.name if len(served) > 1 else "")
        for one in served
    }
    try:
        for listener in listeners.values():
            listener.start()
        click.echo(f"3/4  replaying the season at {rate:.0f} alerts/s", err=True)
        sent = player.replay(
            settings.kafka, daemon.survey_of(settings), [str(folder / "archive")], daemon.alert_topics(settings)[0],
            rate=rate,
        )  # fmt: skip
        stack.wait_until(
            lambda: ledger.books().consumed >= sent and ledger.books().pending == 0,
            "classifying what was sent", [ingest, worker], DRAIN_S * len(served),
        )  # fmt: skip
        newest = {name: store.revision(name) for name in truth if store.revision(name)}
        for listener in listeners.values():
            listener.wait_for(newest, DRAIN_S)
    finally:
        ingest.stop()
        worker.stop()
    click.echo("4/4  scoring", err=True)
    books = ledger.books()
    result = _score(store, truth, served, {name: one.records for name, one in listeners.items()}, output)
    click.echo(f"\n{books.to_text()}\n\npicture: {output}\npage:    skyheed demo --serve shows all of it in a browser")
    summary = {**books.summary(), **result, "seconds": round(time.monotonic() - began, 1)}
    click.echo(json.dumps(summary))
    return books.balanced


def _called(truth: Mapping[str, str], classes: Sequence[str]) -> dict[str, str]:
    """The true classes in a model's terms; it may distinguish fewer kinds of supernovae."""
    return {name: taxonomy.among(own, classes) for name, own in truth.items()}


def _score(
    store: SequenceStore, truth: Mapping[str, str], served: Sequence[ServedModel],
    records: Mapping[str, Sequence[Classification]], output: Path,
) -> dict[str, Any]:  # fmt: skip
    """Scores of every model in one table; the picture and the latency are those of the first."""
    whole = {name: store.sequence(name) for name in truth if store.revision(name)}
    tables = {one.name: _scores_of(one.model, records[one.name], whole, truth) for one in served}
    first = served[0]
    scores, matrix = tables[first.name]
    classes, own = first.model.classes, _called(truth, first.model.classes)
    latency = demo_report.latency([r.classified_ms - r.kafka_ms for r in records[first.name]])
    click.echo("\n" + demo_report.text({name: found for name, (found, _) in tables.items()}))
    for one in served:
        name = one.name if len(served) > 1 else ""
        click.echo("\n" + demo_report.matrix_text(tables[one.name][1], one.model.classes, name))
    click.echo(f"\n  alert to classification: p50 {latency['p50']:.0f} ms, p99 {latency['p99']:.0f} ms")
    end = scores[-1]
    title = f"skyheed demo, simulated SDSS: {end.objects} objects, accuracy {end.accuracy:.0%} at the end"
    demo_report.plot(output, _tracks(whole, own, records[first.name], classes), matrix, classes, title)
    summaries = {name: demo_report.summary(found) for name, (found, _) in tables.items()}
    return {"latency_ms": latency, **summaries[first.name], "models": summaries}


def _scores_of(
    model: Model, records: Sequence[Classification], whole: Mapping[str, Any], truth: Mapping[str, str]
) -> tuple[list[demo_report.Score], NDArray[np.int64]]:
    """Scores after given numbers of stamps (recomputed) and at the end (as published); and the final confusion
    matrix."""
    classes, own = model.classes, _called(truth, model.classes)
    last = {r.object_id: r for r in sorted(records, key=lambda r: r.revision) if r.top_class}
    matrix = demo_report.confusion([own[n] for n in last], [str(r.top_class) for r in last.values()], classes)
    scores = [_score_at(cutoff, whole, own, model) for cutoff in demo_report.CUTOFFS]
    return [*scores, demo_report.score("the last stamp", matrix)], matrix


def _score_at(cutoff: int, whole: Mapping[str, Any], truth: Mapping[str, str], model: Model) -> demo_report.Score:
    """The served model's classification of the first `cutoff` stamps of every object that has as many."""
    chosen = [(name, s) for name, s in whole.items() if len(s.header) >= cutoff]
    histories = [history_of(s, SURVEY).until(epochs=cutoff) for _, s in chosen]
    classes = model.classes
    answers = [classes[int(np.argmax(p.probabilities))] for p in model.classify(histories)]
    matrix = demo_report.confusion([truth[name] for name, _ in chosen], answers, classes)
    return demo_report.score(f"{cutoff} stamps", matrix)


def _tracks(
    whole: Mapping[str, Any], truth: Mapping[str, str], records: Sequence[Classification], classes: Sequence[str]
) -> list[demo_report.Track]:
    """Some objects of each class, those with the most classifications first."""
    answers: dict[str, list[Classification]] = {}
    for record in sorted(records, key=lambda r: r.revision):
        if record.top_class:
            answers.setdefault(record.object_id, []).append(record)
    order = sorted(answers, key=lambda name: -len(answers[name]))
    chosen: list[str] = []
    for turn in range(SHOWN):
        wanted = classes[turn % len(classes)]
        chosen += [name for name in order if truth[name] == wanted and name not in chosen][:1]
    return [_track(name, truth[name], answers[name], whole[name], classes) for name in chosen]


def _track(
    name: str, truth: str, answers: Sequence[Classification], sequence: Any, classes: Sequence[str]
) -> demo_report.Track:
    picks = np.unique(np.linspace(0, len(sequence.header) - 1, 10).round().astype(int))
    header = sequence.header[picks]
    first = min(r.first_mjd for r in answers)  # of the object: a sequence longer than the window begins later
    probabilities = [[dict(r.probability_of)[c] for c in classes] for r in answers]
    return demo_report.Track(
        object_id=name,
        truth=truth,
        days=[r.last_mjd - first for r in answers],
        probabilities=np.array(probabilities, np.float32),
        stamps=sequence.stamps[picks].astype(np.float32),
        captions=[f"{BANDS[h['band']]} {h['mjd'] - first:.0f} d" for h in header],
    )
