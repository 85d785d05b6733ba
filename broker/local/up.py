"""`skyheed up`: servers, ingest and worker in the foreground, stopped in the order that leaves nothing behind."""

import contextlib
import shlex
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from skyheed.broker import app as daemon
from skyheed.broker import config
from skyheed.broker.errors import ServiceError, SkyheedError
from skyheed.broker.local import page
from skyheed.broker.local import processes as stack
from skyheed.broker.settings import Settings
from skyheed.broker.state.ledger import Ledger
from skyheed.classifier.reaper import temporary_folder

DRAIN_S = 120.0


def run(
    settings: Settings, settings_path: str | None, data: str | None, models: Sequence[str] = (),
    serve: bool = False,
) -> None:  # fmt: skip
    """Run until Ctrl-C, SIGTERM, a terminal that closes, or the end of a daemon.

    Args:
        settings: servers named there are used, the others are started here.
        settings_path: the configuration file, passed to the daemons.
        models: from the command line; the configuration file's come with it.
        data: folder for the embedded Valkey's state and the logs; a new one is readable only by this user; an existing
            one keeps its mode, and only our files in it are private. A temporary one by default.
        serve: also serve the page.

    Raises:
        ServiceError: a daemon ended by itself.
    """
    daemon.survey_of(settings)
    stop = daemon.stop_on_signal()
    with _folder(data) as folder:
        _run(settings, settings_path, folder, keep=bool(data), stop=stop, models=models, serve=serve)


@contextlib.contextmanager
def _folder(data: str | None) -> Iterator[Path]:
    if data is None:
        with temporary_folder("skyheed-") as folder:
            yield folder
    else:
        folder = Path(data).absolute()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        yield folder


def _run(
    settings: Settings, settings_path: str | None, folder: Path, keep: bool, stop: threading.Event,
    models: Sequence[str], serve: bool,
) -> None:  # fmt: skip
    given_kafka = settings.kafka["bootstrap.servers"] if settings.kafka_named else None
    given_redis = settings.redis.url if settings.redis_named else None
    with stack.servers(given_kafka, given_redis, folder / "valkey" if keep else None) as servers:
        settings = servers.settings(settings)
        daemon.prepare_topics(settings, stop)
        arguments = stack.shared_arguments(settings, settings_path)
        topics = [word for topic in settings.ingest.topics for word in ("--topic", topic)]
        ingest = stack.Daemon("ingest", [*arguments, *topics], folder / "ingest.log", servers.secrets)
        own = [word for model in models for word in ("--model", model)]
        device = ["--device", settings.work.device]
        worker = stack.Daemon("work", [*arguments, *device, *own], folder / "work.log", servers.secrets)
        with contextlib.ExitStack() as children:
            children.callback(worker.stop)
            children.callback(ingest.stop)
            daemons = [ingest, worker]
            shown = ""
            if serve:
                viewer, shown = page.start([*arguments, *own], folder, servers.secrets)
                children.callback(viewer.stop)
                daemons.append(viewer)
            _say(_addresses(settings, servers, folder, shown))
            _watch(stop, daemons)
            stop.clear()  # the next Ctrl-C is the second one
            ingest.stop()
            _drain(daemon.read_store(settings)[2], worker, stop)
            books = daemon.read_store(settings)[2].books()
    _say(books.to_text())


def _say(text: str, err: bool = False) -> None:
    """Print it, unless the terminal is gone, which must not prevent an orderly stop."""
    with contextlib.suppress(OSError):
        click.echo(text, err=err)


def _addresses(settings: Settings, servers: stack.Servers, folder: Path, shown: str) -> str:
    survey, kafka = settings.survey, servers.kafka
    file = servers.redis_password_file
    password = f'SKYHEED_REDIS_PASSWORD="$(cat {shlex.quote(str(file))})" ' if file else ""
    return "\n".join(
        [
            f"Kafka            {kafka} ({servers.kafka_origin})",
            f"Redis            {config.redacted_url(servers.redis)} ({servers.redis_origin})",
            f"alerts           {', '.join(daemon.alert_topics(settings))}",
            f"classifications  {settings.classification_topic}",
            f"dead letters     {settings.dead_letter_topic}",
            f"logs             {folder}/ingest.log, {folder}/work.log",
            *([f"page             {shown}"] if shown else []),
            "",
            f"send alerts:     skyheed replay {survey} PATH --kafka {kafka}",
            f"read results:    skyheed subscribe --survey {survey} --kafka {kafka}",
            f"look after it:   {password}skyheed check --survey {survey} --kafka {kafka} --redis {servers.redis}",
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
    """Let the worker classify what is pending; a second Ctrl-C or the limit ends the wait."""
    pending = ledger.books().pending
    if not pending:
        return
    _say(f"finishing {pending} pending objects (at most {DRAIN_S:.0f} s; Ctrl-C again ends the wait)")
    try:
        stack.wait_until(lambda: stop.is_set() or ledger.books().pending == 0, "draining", [worker], DRAIN_S)
        if stop.is_set():
            _say("not drained: interrupted twice", err=True)
    except SkyheedError as error:
        _say(f"not drained: {error}", err=True)
