"""Builds the programs that talk to other systems: forward (out) and backfill (in)."""

import contextlib
from collections import Counter
from collections.abc import Mapping

from skyheed.broker import app, backfill, forward, metrics, providers, sinks, waiting
from skyheed.broker.errors import ConfigError
from skyheed.broker.filmstrip import FilmStrips
from skyheed.broker.kafka import client as kafka
from skyheed.broker.packets.container import Decoder
from skyheed.broker.packets.reader import PacketReader
from skyheed.broker.packets.surveys.previous import NamesEarlier
from skyheed.broker.results.record import Wanted
from skyheed.broker.settings import Settings
from skyheed.broker.subscribe import Subscriber


def run_forward(settings: Settings, name: str, topic: str, wanted: Wanted, drain: bool, dry_run: bool) -> Counter[str]:
    """Send classifications to another system.

    Raises:
        SkyheedError, Stopped: as `run_ingest`.
    """
    stop, own = app.stop_on_signal(), settings.forward
    refused = settings.refused_topic(name)
    if topic == refused and not (drain or dry_run):
        raise ConfigError(f"{topic} receives what the host refuses, so it would never end: read it with --drain")
    sink = sinks.load(name, table_options(settings.sinks, name, {"token": own.token, "secret": own.secret}))
    if isinstance(sink, sinks.Illustrated) and sink.wants_strips and not dry_run:
        sink.strips = FilmStrips(app.read_store(settings)[0])
    group = None if dry_run else own.group or f"skyheed-forward-{name}"
    servers = settings.kafka["bootstrap.servers"]
    with (
        contextlib.closing(sink),
        Subscriber(
            servers, topic, group=group, options=settings.kafka, drain=drain or dry_run, skip_bad=True
        ) as stream,
    ):
        if dry_run:
            return forward.dry_run(stream, sink, wanted, lambda line: print(line, flush=True))
        measured = metrics.ForwardMetrics(settings.survey, name)
        metrics.serve(measured, own.metrics_port, own.metrics_host, settings.metrics)
        with waiting.observed(measured), waiting.to_the_end(drain), kafka.Publisher(settings.kafka) as publisher:
            waiting.patiently(lambda: _ensure(settings, refused, app.DEAD_LETTER_TOPIC), stop)
            rate = forward.Rate(own.rate or sink.rate)
            daemon = forward.Forward(stream, sink, publisher, refused, measured, wanted, own.batch, rate)
            counts = daemon.run(stop)
            if drain and not stream.ended:
                raise waiting.Unfinished
            return counts


def run_backfill(settings: Settings, name: str, drain: bool) -> Counter[str]:
    """Request the packets of earlier detections from a provider.

    Raises:
        SkyheedError, Stopped: as `run_ingest`.
    """
    stop, own, survey = app.stop_on_signal(), settings.backfill, app.survey_of(settings)
    if not isinstance(survey, NamesEarlier):
        raise ConfigError(f"packets of {survey.name} do not name earlier detections: there is nothing to backfill")
    provider = providers.load(name, table_options(settings.providers, name, {"token": own.token}))
    measured = metrics.BackfillMetrics(settings.survey, name)
    metrics.serve(measured, own.metrics_port, own.metrics_host, settings.metrics)
    if provider.survey != settings.base_survey:
        raise ConfigError(
            f"{name} has packets of {provider.survey}, not of {settings.base_survey}: choose another provider"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(provider))
        stack.enter_context(waiting.observed(measured))
        stack.enter_context(waiting.to_the_end(drain))
        publisher = stack.enter_context(kafka.Publisher(settings.kafka))
        waiting.patiently(lambda: _ensure(settings, settings.backfill_topic, app.ALERT_TOPIC), stop)
        consumer = stack.enter_context(
            kafka.AlertConsumer(settings.input_options, settings.alerts, own.group, drain=drain)
        )
        source = app.schema_source(settings)
        decoder = Decoder(survey.earlier_schema, schemas=source, max_packet_bytes=settings.ingest.max_packet_bytes)
        whole = Decoder(survey.reader_schema, schemas=source, max_packet_bytes=settings.ingest.max_packet_bytes)
        daemon = backfill.Backfill(
            consumer, backfill.EarlierReader(survey, decoder.decode), app.read_store(settings)[0], provider,
            PacketReader(survey, whole), publisher, settings.backfill_topic, measured, own.most,
            forward.Rate(own.rate or provider.rate),
        )  # fmt: skip
        return daemon.run(stop, drain)


def _ensure(settings: Settings, topic: str, how: dict[str, str]) -> None:
    kafka.ensure_topics(settings.kafka, {topic: how}, settings.topics.partitions, settings.topics.replication)


def table_options(tables: Mapping[str, Mapping[str, str]], name: str, secrets: Mapping[str, str]) -> dict[str, str]:
    """The options of a plug-in; `secrets` from the environment fill those that its table lacks."""
    own = dict(tables.get(name, {}))
    return {**{key: value for key, value in secrets.items() if value and not own.get(key)}, **own}
