"""`skyheed up`: servers, ingest and worker in the foreground, stopped in the order that leaves nothing behind."""

import contextlib
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import click

from . import config, daemon, stack
from .errors import ServiceError, SkyheedError
from .ledger import Ledger

DRAIN_S = 120.0


def run(settings: config.Settings, settings_path: str | None, data: str | None, models: Sequence[str] = ()) -> None:
    """Run until Ctrl-C, SIGTERM or the end of a daemon.

    Args:
        settings: servers named there are used, the others are started here.
        settings_path: the configuration file, handed on to the daemons.
        models: of the command line; those of the configuration file come with it.
        data: folder for the embedded Valkey's state and the logs; a temporary one by default.

    Raises:
        ServiceError: a daemon ended by itself.
    """
    daemon.survey_of(settings)
    stop = daemon.stop_on_signal()
    folder = Path(data) if data else Path(tempfile.mkdtemp(prefix="skyheed-"))
    folder.mkdir(parents=True, exist_ok=True)
    given_kafka = settings.kafka["bootstrap.servers"] if settings.kafka_named else None
    given_redis = settings.redis.url if settings.redis_named else None
    with stack.servers(given_kafka, given_redis, folder / "valkey" if data else None) as servers:
        settings = config.with_servers(settings, servers.kafka, servers.redis)
        daemon.prepare_topics(settings, stop)
        arguments = stack.shared_arguments(settings, settings_path)
        topics = [word for topic in settings.ingest.topics for word in ("--topic", topic)]
        ingest = stack.Daemon("ingest", [*arguments, *topics], folder / "ingest.log")
        own = [word for model in models for word in ("--model", model)]
        worker = stack.Daemon("work", [*arguments, "--device", settings.work.device, *own], folder / "work.log")
        with contextlib.ExitStack() as children:
            children.callback(worker.stop)
            children.callback(ingest.stop)
            click.echo(_addresses(settings, servers, folder))
            _watch(stop, [ingest, worker])
            stop.clear()  # the next Ctrl-C is the second one
            ingest.stop()
            _drain(daemon.read_store(settings)[2], worker, stop)
            books = daemon.read_store(settings)[2].books()
    click.echo(books.to_text())


def _addresses(settings: config.Settings, servers: stack.Servers, folder: Path) -> str:
    survey, kafka = settings.survey, servers.kafka
    return "\n".join(
        [
            f"Kafka            {kafka} ({servers.kafka_origin})",
            f"Redis            {config.redacted_url(servers.redis)} ({servers.redis_origin})",
            f"alerts           {', '.join(daemon.alert_topics(settings))}",
            f"classifications  {settings.classification_topic}",
            f"dead letters     {settings.dead_letter_topic}",
            f"logs             {folder}/ingest.log, {folder}/work.log",
            "",
            f"send alerts:     skyheed replay {survey} PATH --kafka {kafka}",
            f"read answers:    skyheed subscribe --survey {survey} --kafka {kafka}",
            f"look after it:   skyheed check --survey {survey} --kafka {kafka} --redis {servers.redis}",
            "Ctrl-C drains and stops.",
        ]
    )


def _watch(stop: threading.Event, daemons: Sequence[stack.Daemon]) -> None:
    while not stop.wait(0.5):
        for child in daemons:
            child.check()
            if child.process.poll() is not None:
                raise ServiceError(f"{child.verb} ended by itself: {child.last_words()}")


def _drain(ledger: Ledger, worker: stack.Daemon, stop: threading.Event) -> None:
    """Let the worker answer what is pending; a second Ctrl-C or the limit ends the wait."""
    pending = ledger.books().pending
    if not pending:
        return
    click.echo(f"finishing {pending} pending objects (at most {DRAIN_S:.0f} s; Ctrl-C again ends the wait)")
    try:
        stack.wait_until(lambda: stop.is_set() or ledger.books().pending == 0, "draining", [worker], DRAIN_S)
        if stop.is_set():
            click.echo("not drained: asked twice to stop", err=True)
    except SkyheedError as error:
        click.echo(f"not drained: {error}", err=True)
