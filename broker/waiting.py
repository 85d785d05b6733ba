"""Waiting for an unavailable server: back off, log it once, log its return once, and stop when asked.

`observed` registers an observer of the waits, such as the daemons' metrics.
"""

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextvars import ContextVar
from typing import Generic, Protocol, TypeVar

from skyheed.broker.errors import ServiceUnavailable, SkyheedError

log = logging.getLogger("skyheed.waiting")
T = TypeVar("T")
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0
LOOK_S = 1.0  # waits are split into pieces of this length if something must be done meanwhile
GRACE_S = 2.0  # so that what takes a moment with a healthy server is not interrupted at once
APART_S = 0.2  # between two checks of work done in another thread
JITTER = 0.5  # of a wait: daemons that lost a server together must not all reconnect together


class Stopped(Exception):
    """The daemon was asked to stop while it waited for a server."""


class Unfinished(SkyheedError):
    """A drain was stopped before its end: it must not be treated as complete."""

    def __init__(self) -> None:
        super().__init__("stopped before everything was done: start it again, nothing is lost")


class Observer(Protocol):
    """Is notified of every wait."""

    def unavailable(self, server: str, source: str) -> None:
        """A call by `source`, a thread, failed because `server` is unavailable; may be called repeatedly during one
        wait."""

    def available(self, server: str, source: str) -> None:
        """The wait of `source` for `server` is over."""


_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Report the waits of `patiently` in this thread to `observer`."""
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
    """Does nothing meanwhile."""


class Meanwhile:
    """What a daemon does during a long step: it keeps its connections alive, and stops when asked. Call it often,
    between parts of the step.

    Args:
        alive: such as `BatchConsumer.keep_alive`.
        grace_s: how long the step may continue after `stop` was set.
    """

    def __init__(self, stop: threading.Event, alive: Callable[[], None] = _nothing, grace_s: float = 0.0) -> None:
        self._stop, self._alive, self._grace_s = stop, alive, grace_s
        self._until: float | None = None

    def __call__(self) -> None:
        """One check.

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
    """Do `action`, repeatedly while its server is unavailable; `meanwhile` runs every second until then.

    Raises:
        Stopped: `stop` was set before the server came back.
    """
    wait, waiting = FIRST_WAIT_S, _Wait()
    while True:
        try:
            result = action()
        except ServiceUnavailable as away:
            waiting.continues(away)
            if _pause(wait * random.uniform(1 - JITTER, 1), stop, meanwhile):
                raise Stopped(str(away)) from away
            wait = min(wait * 2, LONGEST_WAIT_S)
        else:
            waiting.ends()
            return result


class Started(Generic[T]):
    """An action that starts at once in another thread; it must be safe to repeat."""

    def __init__(self, action: Callable[[], T]) -> None:
        self._action = action
        self._first: Future[T] | None = Future()
        threading.Thread(target=self._work, args=(self._first,), name="apart", daemon=True).start()

    def _work(self, done: Future[T]) -> None:
        try:
            done.set_result(self._action())
        except BaseException as error:
            done.set_exception(error)

    @property
    def done(self) -> bool:
        """Whether it has finished, successfully or not."""
        return self._first is None or self._first.done()

    def wait(self, seconds: float) -> bool:
        """Whether it finishes within this time."""
        return self._first is None or bool(wait([self._first], seconds).done)

    def result(self, look: Callable[[], None]) -> T:
        """What it returned or raised; a second call repeats the action.

        Args:
            look: a `Meanwhile`, called until it is done.

        Raises:
            Stopped: by `look`. The action is abandoned and its result lost.
        """
        first = self._first
        if first is None:
            return self._action()
        while not self.wait(APART_S):
            look()
        self._first = None
        return first.result()


def apart(action: Callable[[], T], look: Callable[[], None]) -> T:
    """Do `action`, which may block for long, in another thread; call `look`, a `Meanwhile`, until it is done.

    Raises:
        Stopped: by `look`. The action is abandoned and its result lost, so it must be safe to repeat.
    """
    return Started(action).result(look)


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
    """The log messages of one wait."""

    def __init__(self) -> None:
        self._began = 0.0
        self._servers: set[str] = set()
        self._observer = _observer.get()
        self._source = threading.current_thread().name  # a worker of several models has a thread for each

    def continues(self, away: ServiceUnavailable) -> None:
        if not self._began:
            self._began = time.monotonic()
            log.warning("waiting: %s", away)
        self._servers.add(away.server)
        if self._observer:
            self._observer.unavailable(away.server, self._source)

    def ends(self) -> None:
        if self._began:
            log.warning("back after %.1f s", time.monotonic() - self._began)
        for server in self._servers if self._observer else ():
            self._observer.available(server, self._source)  # type: ignore[union-attr]
