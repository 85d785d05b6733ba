"""Several ingest processes from one command: each is a separate daemon in the same consumer group.

They share only Kafka and Redis, like daemons on several machines. The parent forwards signals and waits; if one
process fails or is killed, it stops the others and exits with the reason, so that a supervisor (systemd, compose,
Kubernetes) restarts all of them. Nothing is lost: uncommitted messages are delivered again. A process whose parent is
gone stops by itself.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from skyheed.broker import logs
from skyheed.broker.errors import ServiceError, SkyheedError
from skyheed.broker.settings import Settings
from skyheed.broker.waiting import Stopped, Unfinished

log = logging.getLogger("skyheed.daemon")
STOP_S = 30.0  # to finish the current batch; then the process is killed, which loses nothing
LOOK_S = 0.5
Run = Callable[[Settings, bool], Counter[str]]
Said = tuple[str, Any]  # how a process ended, with its totals or error message


@dataclass
class _Child:
    number: int
    process: BaseProcess
    pipe: Connection

    def said(self) -> Said:
        """How the process ended, once it has."""
        self.process.join()
        try:
            how, what = self.pipe.recv() if self.pipe.poll() else ("died", f"status {self.process.exitcode}")
        except EOFError:
            how, what = "died", f"status {self.process.exitcode}"
        return how, what


def run(one: Run, settings: Settings, drain: bool, stop: threading.Event) -> Counter[str]:
    """Run `one(settings, drain)` in each of `settings.ingest.processes` processes; returns the totals.

    Args:
        one: an importable function.

    Raises:
        SkyheedError: one of them ended with an error, or was killed.
        Stopped, Unfinished: as `one`.
    """
    children = [_start(one, own_settings(settings, n), drain, n) for n in range(settings.ingest.processes)]
    totals: Counter[str] = Counter()
    ends: list[Said] = []
    try:
        left, asked = list(children), False
        while left and all(how == "done" for how, _ in ends):
            wait([child.process.sentinel for child in left], LOOK_S)
            if stop.is_set() and not asked:
                asked = True
                _signal(left)
            for child in [child for child in left if not child.process.is_alive()]:
                left.remove(child)
                ends.append(_ended(child, child.said(), settings.ingest.processes))
    finally:
        ends += [child.said() for child in _stopped(children) if child in left]
    for how, what in ends:
        totals += what if how == "done" else Counter()
    _raise_first(ends)
    return totals


def own_settings(settings: Settings, number: int) -> Settings:
    """The settings of one process: its own metrics port and, if group members are named, its own name."""
    own, options = settings.ingest, settings.input_options
    port = own.metrics_port + number if own.metrics_port else 0
    named = {"group.instance.id": f"{options['group.instance.id']}-{number}"} if "group.instance.id" in options else {}
    kafka_input = {**settings.kafka_input, **named}
    return replace(settings, ingest=replace(own, processes=1, metrics_port=port), kafka_input=kafka_input)


def _start(one: Run, settings: Settings, drain: bool, number: int) -> _Child:
    # spawned, not forked: librdkafka and redis-py have threads; passwords are passed through a pipe
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    level = logging.getLogger().level
    handlers = logging.getLogger().handlers
    as_json = any(isinstance(handler.formatter, logs.Json) for handler in handlers)
    process = context.Process(
        target=_child, args=(one, settings, drain, theirs, as_json, level), name=f"ingest-{number + 1}"
    )
    process.start()
    theirs.close()
    return _Child(number, process, ours)


def _child(one: Run, settings: Settings, drain: bool, pipe: Connection, as_json: bool, level: int) -> None:
    """Runs in the child process, and reports to the parent how it ended."""
    logs.set_up(as_json, level)
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        said: Said = "done", one(settings, drain)
    except Stopped as stopped:
        said = "stopped", str(stopped)
    except Unfinished:
        said = "unfinished", ""
    except SkyheedError as error:
        said = "error", str(error)
    pipe.send(said)


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _ended(child: _Child, said: Said, count: int) -> Said:
    how, what = said
    if how == "died":
        what = f"ingest process {child.number + 1} of {count} ended with {what}; the others were stopped: start again"
    return how, what


def _signal(children: list[_Child]) -> None:
    for child in children:
        child.process.terminate()


def _stopped(children: list[_Child]) -> list[_Child]:
    """All processes, once they have ended."""
    running = [child for child in children if child.process.is_alive()]
    _signal(running)
    until = time.monotonic() + STOP_S
    for child in running:
        child.process.join(max(0.0, until - time.monotonic()))
        if child.process.is_alive():
            log.warning(
                "ingest process %d did not stop: killed; its uncommitted messages will be delivered again",
                child.number + 1,
            )
            child.process.kill()
    return children


def _raise_first(ends: list[Said]) -> None:
    """The first error; otherwise an unfinished drain; otherwise that they were stopped."""
    for how, make in (("died", ServiceError), ("error", ServiceError), ("unfinished", None), ("stopped", Stopped)):
        for found, what in ends:
            if found == how:
                raise Unfinished if make is None else make(what)
