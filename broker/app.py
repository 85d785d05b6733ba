"""Wires the stages together: builds the daemons from settings and runs them until a signal or the end of a drain."""

import _thread
import contextlib
import logging
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from skyheed.broker import config, heartbeat, ingest_processes, logs, metrics, redrive, waiting
from skyheed.broker.errors import ConfigError
from skyheed.broker.ingest import Budget, Ingest, Intake
from skyheed.broker.kafka import client as kafka
from skyheed.broker.kafka import deadletter
from skyheed.broker.kafka.connection import check_options
from skyheed.broker.kafka.selection import Selection
from skyheed.broker.night_replay import Night
from skyheed.broker.packets import surveys
from skyheed.broker.packets.container import Decoder, SchemaSource
from skyheed.broker.packets.surveys import Survey, load_survey
from skyheed.broker.settings import UNTIL_SEEN, Settings
from skyheed.broker.state import client as state
from skyheed.broker.state import layout
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.ledger import Ledger
from skyheed.broker.state.neighbours import Neighbours
from skyheed.broker.state.queue import DueQueue

if TYPE_CHECKING:
    pass

log = logging.getLogger("skyheed.daemon")
MILLISECONDS_A_DAY = 86_400_000
# Dead letters must outlast any holiday; readers of classifications may connect only every few days.
DEAD_LETTER_TOPIC = {"retention.ms": "-1", "max.message.bytes": str(kafka.MAX_MESSAGE_BYTES)}
CLASSIFICATION_TOPIC = {"retention.ms": str(7 * MILLISECONDS_A_DAY)}
ALERT_TOPIC = {"retention.ms": str(7 * MILLISECONDS_A_DAY), "max.message.bytes": str(kafka.MAX_MESSAGE_BYTES)}


def stop_on_signal() -> threading.Event:
    """An event that SIGINT, SIGTERM and SIGHUP set; the daemons finish the batch in hand.

    A hang-up that is ignored (nohup) stays ignored.
    """
    stop = threading.Event()

    def asked(number: int) -> None:
        log.info("%s: finishing the batch in hand", signal.Signals(number).name)
        stop.set()

    def handle(number: int, _frame: object) -> None:
        # The interrupted main thread may hold the lock of the event (it waits for it often) or of the log's stream:
        # taking it here would block forever. `threading.Thread` takes one, too.
        _thread.start_new_thread(asked, (number,))

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)
    return stop


def survey_of(settings: Settings) -> Survey:
    """The configured survey, with the chosen stamp and bands.

    Raises:
        ConfigError: the survey is missing, or survey, stamp or band is unknown.
    """
    if not settings.survey:
        raise ConfigError("no survey: add --survey, SKYHEED_SURVEY or survey = ... to the configuration")
    own = settings.ingest
    wanted = surveys.Wanted(
        images=own.images or None, photometry=own.photometry, context=own.context, skip=own.skip,
        least_score=None if own.least_score < 0 else own.least_score,
        solar_system_arcsec=None if own.solar_system_arcsec < 0 else own.solar_system_arcsec,
    )  # fmt: skip
    return load_survey(settings.base_survey, own.stamp or None, own.bands or None, wanted)


def with_survey(settings: Settings) -> Settings:
    """The same settings, after checking that they name a known survey."""
    survey_of(settings)
    return settings


def checked(settings: Settings) -> Settings:
    """The same settings, after checking that the survey is known and that librdkafka accepts the options.

    Raises:
        ConfigError: one of them is wrong. Nothing has been started and no server contacted by then.
    """
    survey_of(settings)
    check_options(settings.kafka)
    if settings.kafka_input:
        check_options(settings.input_options)
    return settings


def alert_topics(settings: Settings) -> list[str]:
    """The topics to read; by default skyheed's own alert topic, to which `replay` writes."""
    return list(settings.alerts.topics)


def connect_store(
    settings: Settings, model: str = "", agreement: layout.Agreement | None = None
) -> tuple[SequenceStore, DueQueue, Ledger]:
    """The three views of the state in Redis, for a writer.

    Args:
        model: whose queue.
        agreement: settings that all daemons must share, checked on every new connection; by default those of an ingest.

    Raises:
        ConfigError: no such survey.
    """
    client = state.connect_as(settings.redis)
    brings = agreement or layout.of_ingest(settings.redis, survey_of(settings))
    client.on_connect = partial(layout.Layout(client, settings.survey).agree, brings)
    return _views(client, settings, model)


def read_store(settings: Settings, model: str = "") -> tuple[SequenceStore, DueQueue, Ledger]:
    """The same for a reader: of the settings only the number of shards matters, and the form that a release writes."""
    client = state.connect_as(settings.redis)
    client.on_connect = layout.Layout(client, settings.survey).check_readable
    return _views(client, settings, model)


def _views(client: state.Client, settings: Settings, model: str) -> tuple[SequenceStore, DueQueue, Ledger]:
    ingest = settings.ingest
    store = SequenceStore(
        client,
        settings.survey,
        shards=settings.redis.shards,
        max_stamps=settings.redis.max_stamps,
        ttl_s=settings.redis.ttl_days * 86_400,
        debounce_s=ingest.debounce_s,
        quiet_s=ingest.debounce_s / 5 if ingest.quiet_s < 0 else ingest.quiet_s,
        neighbours=neighbours_of(client, settings) if ingest.join_arcsec else None,
        until_seen=settings.redis.keep_pixels == UNTIL_SEEN,
    )
    queue = DueQueue(client, settings.survey, shards=settings.redis.shards, model=model)
    return (
        store,
        queue,
        Ledger(
            client,
            settings.survey,
            shards=settings.redis.shards,
            keep_s=settings.redis.books_days * 86_400,
            idle_s=settings.redis.books_idle_days * 86_400,
        ),
    )


def neighbours_of(client: state.Client, settings: Settings) -> Neighbours:
    """Where objects are found by their place."""
    return Neighbours(client, settings.survey, settings.redis.ttl_days * 86_400)


def schema_source(settings: Settings) -> SchemaSource:
    """Sources of writer schemas: the registry, then the local directory, then the installed LSST package."""
    registry = settings.registry
    return SchemaSource(
        url=registry.url,
        user=registry.user,
        password=registry.password,
        directory=registry.directory,
        ca_file=registry.ca_file,
    )


def make_intake(settings: Settings, publisher: kafka.Publisher) -> Intake:
    """The path from a message to Redis."""
    survey = survey_of(settings)
    decoder = Decoder(
        survey.reader_schema, schemas=schema_source(settings), max_packet_bytes=settings.ingest.max_packet_bytes
    )
    store, _, ledger = connect_store(settings)
    return Intake(survey, decoder, store, ledger, deadletter.DeadLetters(publisher, settings.dead_letter_topic))


def budget_of(settings: Settings) -> Budget:
    """How much ingest and redrive decode before they store it."""
    return Budget(settings.ingest.batch_records, settings.ingest.batch_s)


def own_topics(settings: Settings) -> dict[str, dict[str, str]]:
    """The topics that skyheed writes, with their configuration."""
    topics = {
        settings.classification_topic: CLASSIFICATION_TOPIC,
        settings.dead_letter_topic: DEAD_LETTER_TOPIC,
    }
    if not settings.ingest.topics:
        topics[settings.alert_topic] = ALERT_TOPIC
    return topics


def prepare_topics(settings: Settings, stop: threading.Event, more: Sequence[str] = ()) -> None:
    """Create whichever of `own_topics` and of the `more` classification topics are missing; waits for Kafka if it is
    unavailable."""
    topics, wanted = settings.topics, {**own_topics(settings), **dict.fromkeys(more, CLASSIFICATION_TOPIC)}
    waiting.patiently(lambda: kafka.ensure_topics(settings.kafka, wanted, topics.partitions, topics.replication), stop)


def run_ingest(settings: Settings, drain: bool, night: Night | None = None) -> Counter[str]:
    """The ingest daemon.

    Args:
        night: read only messages whose Kafka time is within it, then end.

    Raises:
        SkyheedError: a setting cannot work, or a server refused the connection or request.
        Stopped: a signal came before it began; with `drain`, Unfinished at any time.
    """
    stop = stop_on_signal()
    topics = checked(settings).alerts
    logs.event(
        log, "ingest", survey=settings.survey, topics=",".join(topics.topics), group=settings.ingest.group,
        redis=config.redacted_url(settings.redis.url),
    )  # fmt: skip
    if settings.ingest.processes > 1:
        return ingest_processes.run(run_ingest, settings, drain, stop)
    measured = metrics.IngestMetrics(settings.survey)
    # before the first wait, which must be visible
    metrics.serve(measured, settings.ingest.metrics_port, settings.ingest.metrics_host, settings.metrics)
    with (
        waiting.observed(measured),
        waiting.to_the_end(drain or night is not None),
        kafka.Publisher(settings.kafka) as publisher,
    ):
        prepare_topics(settings, stop)
        intake = make_intake(settings, publisher)
        waiting.patiently(intake.ledger.ping, stop)
        window = _window(settings, topics, night, stop) if night else None
        drain = drain or night is not None
        group = settings.ingest.group
        with kafka.AlertConsumer(settings.input_options, topics, group, drain=drain, window=window) as consumer:
            own, budget = settings.ingest, budget_of(settings)
            daemon = Ingest(intake, consumer, measured, own.batch_size, own.batch_wait_s, budget, own.batch_bytes)
            alive = heartbeat.Heartbeat(
                state.connect_as(settings.redis), settings.survey, "ingest", measured,
                kafka_away=consumer.connection.gone,
            )  # fmt: skip
            with heartbeat.beating(alive):
                return daemon.run(stop, drain)


def _window(settings: Settings, topics: Selection, night: Night, stop: threading.Event) -> kafka.Window:
    found = waiting.patiently(
        lambda: kafka.offsets_between(settings.input_options, topics, night.since_ms, night.until_ms), stop
    )
    ranges = found.ranges.values()
    log.info("%d offsets of that time in %d partitions", sum(end - start for start, end in ranges), len(ranges))
    return found


def run_work(settings: Settings, drain: bool) -> Counter[str]:
    """The worker daemon.

    Raises:
        SkyheedError, Stopped: as `run_ingest`.
        ClassifierError: a model does not load or does not run here.
    """
    from skyheed.broker import worker_models as running  # torch takes seconds: only this verb pays
    from skyheed.broker.worker_threads import run_all

    stop = stop_on_signal()
    checked(settings)
    models = running.load_models(settings)
    measured = metrics.WorkMetrics(settings.survey)
    # before the first wait, which must be visible
    metrics.serve(measured, settings.work.metrics_port, settings.work.metrics_host, settings.metrics)
    with contextlib.ExitStack() as stack:
        stack.enter_context(waiting.observed(measured))
        stack.enter_context(waiting.to_the_end(drain))
        publishers = [stack.enter_context(kafka.Publisher(settings.kafka)) for _ in models]
        prepare_topics(settings, stop, [served.topic for served in models])
        waiting.patiently(read_store(settings)[2].ping, stop)
        running.join(settings, models, stop)
        workers = [
            running.make_worker(settings, served, publisher, measured)
            for served, publisher in zip(models, publishers, strict=True)
        ]
        own = state.connect_as(settings.redis)
        looks = [running.depth_of(own, settings, served.name, measured) for served in models]
        alive = heartbeat.Heartbeat(own, settings.survey, "work", measured, looks, publishers[0].connection.gone)
        with heartbeat.beating(alive):
            return run_all(workers, stop, drain)


def run_redrive(settings: Settings, reason: str | None) -> Counter[str]:
    """Send the packets that were set aside through the pipeline again, once.

    Raises:
        SkyheedError, Stopped: as `run_ingest`.
        Unfinished: a signal came before the last dead letter.
    """
    stop = stop_on_signal()
    with kafka.Publisher(checked(settings).kafka) as publisher:
        intake = make_intake(settings, publisher)
        waiting.patiently(intake.ledger.ping, stop)  # with another redis.shards it would write to the wrong keys
        unreadable: Counter[str] = Counter()
        letters = deadletter.read(
            settings.kafka, settings.dead_letter_topic, reason, stop=stop.is_set,
            unreadable=lambda count: unreadable.update(unreadable=count),
        )  # fmt: skip
        counts = redrive.redrive(intake, letters, budget_of(settings), waiting.Meanwhile(stop))
        counts += unreadable
    if stop.is_set():
        log.warning("redrive stopped: %s", " ".join(f"{name}={count}" for name, count in sorted(counts.items())))
        raise waiting.Unfinished
    return counts
