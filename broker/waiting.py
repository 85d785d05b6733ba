"""Waiting for a server that is away: back off, say so once, say once that it is back, and stop when asked.

Who wants to know of the waits (the daemons' metrics do) says so with `observed`.
"""

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Protocol, TypeVar

from skyheed.broker.errors import ServiceUnavailable, SkyheedError

log = logging.getLogger("skyheed.patience")
T = TypeVar("T")
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0
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
        """A call of `source`, a thread, failed because `server` is away; more than once in one wait."""

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


def patiently(action: Callable[[], T], stop: threading.Event, meanwhile: Callable[[], None] = lambda: None) -> T:
    """Do `action`, again and again while its server is away; `meanwhile` runs before each new attempt.

    Raises:
        Stopped: `stop` was set before the server came back.
    """
    wait, waiting = FIRST_WAIT_S, _Wait()
    while True:
        try:
            result = action()
        except ServiceUnavailable as away:
            waiting.goes_on_for(away)
            if stop.wait(wait * random.uniform(1 - JITTER, 1)):
                raise Stopped(str(away)) from away
            wait = min(wait * 2, LONGEST_WAIT_S)
            meanwhile()
        else:
            waiting.ends()
            return result


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
