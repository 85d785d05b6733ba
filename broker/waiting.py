"""Waiting for a server that is unavailable: back off, say so once, say once that it is back, and stop when asked.

Who wants to know of the waits (the daemons' metrics do) says so with `observed`.
"""

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextvars import ContextVar
from typing import Protocol, TypeVar

from skyheed.broker.errors import ServiceUnavailable, SkyheedError

log = logging.getLogger("skyheed.patience")
T = TypeVar("T")
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0
LOOK_S = 1.0  # a wait is cut into pieces of this length where something is to be done meanwhile
GRACE_S = 2.0  # what takes a moment while its server is well is not broken off at once
APART_S = 0.2  # between two looks at what is done apart
JITTER = 0.5  # of a wait: daemons that lost a server at the same moment must not all come back at the same moment


class Stopped(Exception):
    """The daemon was asked to stop while it waited for a server."""


class Unfinished(SkyheedError):
    """A drain was asked to stop before it had reached its end: whoever waits for it must not take it for done."""

    def __init__(self) -> None:
        super().__init__("stopped before everything was done: start it again, nothing is lost")


class Observer(Protocol):
    """Is told of every wait."""

    def waits(self, server: str, source: str) -> None:
        """A call of `source`, a thread, failed because `server` is unavailable; more than once in one wait."""

    def goes_on(self, server: str, source: str) -> None:
        """The wait of `source` for `server` is over."""


_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Tell `observer` of the waits of `patiently` in this thread."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


@contextlib.contextmanager
def to_the_end(drain: bool) -> Iterator[None]:
    """With `drain`, being stopped while waiting for a server is an error.

    Raises:
        Unfinished: in place of `Stopped`.
    """
    try:
        yield
    except Stopped as stopped:
        if drain:
            raise Unfinished from stopped
        raise


def _nothing() -> None:
    """Nothing is to be done meanwhile."""


class Meanwhile:
    """What a daemon does while one step of its work takes long: it stays alive for its servers, and stops when asked.

    Call it often, between the parts of a step.

    Args:
        alive: such as `BatchConsumer.keep_alive`.
        grace_s: how long the step may still take after `stop` was set.
    """

    def __init__(self, stop: threading.Event, alive: Callable[[], None] = _nothing, grace_s: float = 0.0) -> None:
        self._stop, self._alive, self._grace_s = stop, alive, grace_s
        self._until: float | None = None

    def __call__(self) -> None:
        """One look.

        Raises:
            Stopped: `stop` was set, and the grace is over.
        """
        self._alive()
        if not self._stop.is_set():
            return
        if self._until is None:
            self._until = time.monotonic() + self._grace_s
        if time.monotonic() >= self._until:
            raise Stopped("asked to stop")


def patiently(action: Callable[[], T], stop: threading.Event, meanwhile: Callable[[], None] = _nothing) -> T:
    """Do `action`, again and again while its server is unavailable; `meanwhile` runs every second until then.

    Raises:
        Stopped: `stop` was set before the server came back.
    """
    wait, waiting = FIRST_WAIT_S, _Wait()
    while True:
        try:
            result = action()
        except ServiceUnavailable as away:
            waiting.goes_on_for(away)
            if _pause(wait * random.uniform(1 - JITTER, 1), stop, meanwhile):
                raise Stopped(str(away)) from away
            wait = min(wait * 2, LONGEST_WAIT_S)
        else:
            waiting.ends()
            return result


def apart(action: Callable[[], T], look: Callable[[], None]) -> T:
    """Do `action`, which may be silent for long, in a thread of its own; `look`, a `Meanwhile`, until it is done.

    Raises:
        Stopped: by `look`. The action is left; whether it succeeds nobody hears, so it must be safe to repeat.
    """
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(action())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, name="apart", daemon=True).start()
    while not wait([done], APART_S).done:
        look()
    return done.result()


def _pause(seconds: float, stop: threading.Event, meanwhile: Callable[[], None]) -> bool:
    """Sleep this long; True as soon as `stop` is set."""
    piece = seconds if meanwhile is _nothing else LOOK_S
    while seconds > 0:
        if stop.wait(min(piece, seconds)):
            return True
        seconds -= piece
        meanwhile()
    return False


class _Wait:
    """What is said of one wait."""

    def __init__(self) -> None:
        self._began = 0.0
        self._servers: set[str] = set()
        self._observer = _observer.get()
        self._source = threading.current_thread().name  # a worker of several models has a thread for each

    def goes_on_for(self, away: ServiceUnavailable) -> None:
        if not self._began:
            self._began = time.monotonic()
            log.warning("waiting: %s", away)
        self._servers.add(away.server)
        if self._observer:
            self._observer.waits(away.server, self._source)

    def ends(self) -> None:
        if self._began:
            log.warning("back after %.1f s", time.monotonic() - self._began)
        for server in self._servers if self._observer else ():
            self._observer.goes_on(server, self._source)  # type: ignore[union-attr]
