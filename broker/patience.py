"""Waiting for a server that is away: back off, say so once, say once that it is back, and stop when asked."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from .errors import ServiceUnavailable, SkyheedError

log = logging.getLogger("skyheed.patience")
T = TypeVar("T")
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0


class Stopped(Exception):
    """The daemon was asked to stop while it waited for a server."""


class Unfinished(SkyheedError):
    """A drain was asked to stop before it had reached its end: whoever waits for it must not take it for done."""

    def __init__(self) -> None:
        super().__init__("stopped before everything was done: start it again, nothing is lost")


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
    wait, began = FIRST_WAIT_S, 0.0
    while True:
        try:
            result = action()
        except ServiceUnavailable as away:
            if not began:
                began = time.monotonic()
                log.warning("waiting: %s", away)
            if stop.wait(wait):
                raise Stopped(str(away)) from away
            wait = min(wait * 2, LONGEST_WAIT_S)
            meanwhile()
        else:
            if began:
                log.warning("back after %.1f s", time.monotonic() - began)
            return result
