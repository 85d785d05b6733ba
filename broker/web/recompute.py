"""Today's model's classification of a history, its prefixes, and versions with parts switched off: "recomputed now".

This uses the worker's own predictor, in separate processes, so that the page needs no torch, stays responsive, and
can end a computation that takes too long.
"""

import importlib.util
import logging
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from skyheed.broker.settings import Settings
from skyheed.broker.web.problems import Problem
from skyheed.classifier.history import History

log = logging.getLogger("skyheed.recompute")
LIMIT_S = 30.0  # for one computation
LOAD_S = 120.0  # for torch and the weights, once
WAITING = 8  # requests that may wait for a process; further ones are told to come back later
MISSING = "torch is not installed here: pip install 'skyheed[classifier]' (everything else on this page works without)"


def _torch_is_there() -> bool:
    return importlib.util.find_spec("torch") is not None


@dataclass(frozen=True)
class Task:
    """What to compute: a name from `web.explain.TASKS`, the name of a model, a history, and any other arguments."""

    name: str
    model: str
    history: History
    given: Mapping[str, Any]


class Pool:
    """A few processes that compute, each with the models in the settings loaded.

    Attributes:
        missing: why nothing can be computed here; empty if it can.
    """

    def __init__(self, settings: Settings, processes: int = 1, limit_s: float = LIMIT_S) -> None:
        self._settings, self._limit_s = settings, limit_s
        self.missing = "" if _torch_is_there() else MISSING
        self._free: queue.LifoQueue[_Process] = queue.LifoQueue()
        self._seats = threading.BoundedSemaphore(processes + WAITING)
        self._all = [_Process(settings) for _ in range(0 if self.missing else processes)]
        for process in self._all:
            self._free.put(process)

    def run(self, task: Task) -> dict[str, Any]:
        """Compute, waiting for a free process.

        Raises:
            Problem: torch is missing, too many requests wait, it took too long, or the request cannot be met.
        """
        if self.missing:
            raise Problem(503, self.missing)
        if not self._seats.acquire(blocking=False):
            raise Problem(
                429, "too many computations are already waiting: try again in a few seconds", {"Retry-After": "5"}
            )
        try:
            return self._run(task)
        finally:
            self._seats.release()

    def _run(self, task: Task) -> dict[str, Any]:
        try:
            process = self._free.get(timeout=self._limit_s)
        except queue.Empty:
            raise Problem(429, "every computation is busy: try again in a few seconds", {"Retry-After": "5"}) from None
        try:
            return process.run(task, self._limit_s)
        finally:
            self._free.put(process)

    def start(self) -> None:
        """Load the models in the background, so that the first reader does not wait for torch."""
        for process in self._all:
            threading.Thread(target=process.prepare, daemon=True, name="load").start()

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            process.end()


class _Process:
    """One process, started when it is needed and restarted after it has ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: Any = None
        self._pipe: Connection | None = None
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Start the process and wait until its models are loaded; a failure shows up with the first task."""
        with self._lock:
            try:
                self._started()
            except Problem as problem:
                log.warning("nothing can be recomputed: %s", problem.detail)

    def run(self, task: Task, limit_s: float) -> dict[str, Any]:
        """Compute one task.

        Raises:
            Problem: it took too long, or the request cannot be met.
        """
        with self._lock:
            pipe = self._started()
            began = time.monotonic()
            try:
                pipe.send(task)
                if not pipe.poll(limit_s):
                    self._end()
                    raise Problem(504, f"the computation took longer than {limit_s:g} s and was ended")
                kind, value = pipe.recv()
            except (EOFError, OSError) as error:
                self._end()
                raise Problem(500, "the computation ended without a result: see the log of skyheed serve") from error
        if kind == "problem":
            raise Problem(*value)
        return {**value, "seconds": round(time.monotonic() - began, 3)}

    def end(self) -> None:
        """End the process immediately."""
        self._end()

    def _started(self) -> Connection:
        if self._pipe is not None and self._process.is_alive():
            return self._pipe
        self._end()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._settings), name="recompute", daemon=True)
        self._process.start()
        theirs.close()
        self._pipe = ours
        try:
            if not ours.poll(LOAD_S):
                raise EOFError
            kind, value = ours.recv()
        except (EOFError, OSError):
            kind, value = "problem", (500, "the models could not be loaded: see the log of skyheed serve")
        if kind == "problem":
            self._end()
            raise Problem(*value)
        return ours

    def _end(self) -> None:
        process, self._process = self._process, None
        pipe, self._pipe = self._pipe, None
        if process is not None:
            process.kill()
            process.join(5)
        if pipe is not None:
            pipe.close()


def _serve(pipe: Connection, settings: Settings) -> None:
    """Runs in the process: load the models, then do tasks until the other end closes."""
    import signal

    for number in (signal.SIGINT, signal.SIGHUP):  # sent by the terminal; the parent process ends this one
        signal.signal(number, signal.SIG_IGN)
    answers = _safely(lambda: _models(settings))
    pipe.send(("ready", None) if answers[0] == "value" else answers)
    models = answers[1]
    while answers[0] == "value":
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(_safely(lambda task=task: models.run(task)))  # type: ignore[misc]


def _models(settings: Settings) -> Any:
    from skyheed.broker.web.explain import Models

    return Models(settings)


def _safely(action: Callable[[], Any]) -> tuple[str, Any]:
    from skyheed.broker.errors import SkyheedError
    from skyheed.classifier.errors import ClassifierError

    try:
        return "value", action()
    except Problem as problem:
        return "problem", (problem.status, problem.detail)
    except (ClassifierError, SkyheedError) as error:
        return "problem", (422, str(error))
    except ModuleNotFoundError as missing:
        return "problem", (503, f"{missing.name} is not installed here: pip install 'skyheed[classifier]'")
    except Exception:
        logging.getLogger("skyheed.recompute").exception("an internal error in a computation")
        return "problem", (500, "an internal error in the computation, which is in the log: please report it")
