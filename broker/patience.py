"""Waiting for a server that is away: back off, say so once, say once that it is back, and stop when asked."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from .errors import ServiceUnavailable

log = logging.getLogger("skyheed.patience")
T = TypeVar("T")
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0


class Stopped(Exception):
    """The daemon was asked to stop while it waited for a server."""


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
