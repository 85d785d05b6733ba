"""Heartbeats of daemons in Redis, written every few seconds by a separate thread, and how others read them.

An idle daemon sends no requests, and one that waits for a server reports nothing; this thread covers both. It updates
the daemon's metrics, and records in Redis what the daemon waits for, where `skyheed check` reads it.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from skyheed.broker.errors import ServiceUnavailable, SkyheedError
from skyheed.broker.state.client import Client
from skyheed.broker.state.keys import Keys

log = logging.getLogger("skyheed.heartbeat")
BEAT_S = 5.0
SILENT_S = 30.0  # a daemon that has not been heard of for this long hangs, is dead, or cannot reach Redis
FORGET_S = 600.0  # after this it is assumed to have been removed on purpose
SOURCE = "heartbeat"


class Waits(Protocol):
    """Records what the daemon waits for (`metrics`)."""

    def unavailable(self, server: str, source: str) -> None: ...

    def available(self, server: str, source: str) -> None: ...

    def waiting(self) -> dict[str, float]:
        """Seconds by server."""


@dataclass(frozen=True)
class Beat:
    """The last heartbeat of a daemon.

    Attributes:
        name: verb, machine and process.
        age_s: time since the beat, by Redis's clock.
        waiting: seconds waited so far, by server.
    """

    name: str
    age_s: float
    waiting: dict[str, float] = field(default_factory=dict)


class Heartbeat:
    """Beats until it is stopped.

    Args:
        client: used by nothing else, so that it shows what a new call would meet.
        verb: ingest or work.
        looks: called with every beat, for gauges that otherwise only a batch sets.
        kafka_away: whether Kafka is known to be unavailable.
    """

    def __init__(
        self,
        client: Client,
        survey: str,
        verb: str,
        waits: Waits,
        looks: Sequence[Callable[[], None]] = (),
        kafka_away: Callable[[], bool] = lambda: False,
    ) -> None:
        self._client = client
        self._prefix = Keys(survey).prefix
        self._name = f"{verb} {socket.gethostname()}:{os.getpid()} {uuid.uuid4().hex[:6]}"
        self._waits = waits
        self._looks = looks
        self._kafka_away = kafka_away
        self._refused = False

    def beat(self) -> None:
        """Send one heartbeat; an unavailable server shows in the metrics."""
        (self._waits.unavailable if self._kafka_away() else self._waits.available)("kafka", SOURCE)
        said = json.dumps({server: round(seconds, 1) for server, seconds in self._waits.waiting().items()})
        try:
            self._client.call("beat", [(self._prefix, round(FORGET_S * 1000), self._name, said)])
            for look in self._looks:
                look()
        except ServiceUnavailable:
            self._waits.unavailable("redis", SOURCE)
        except SkyheedError as error:  # a daemon stops on such an error; without this right alone it continues
            if not self._refused:
                log.warning("cannot record that this daemon is alive: %s", error)
            self._refused = True
        else:
            self._waits.available("redis", SOURCE)

    def run(self, stop: threading.Event) -> None:
        """Beat until `stop`, then remove the entry."""
        while True:
            self.beat()
            if stop.wait(BEAT_S):
                break
        with contextlib.suppress(SkyheedError):
            self._client.run([("HDEL", f"{self._prefix}daemons", self._name)])
        self._client.close()


@contextlib.contextmanager
def beating(heartbeat: Heartbeat) -> Iterator[None]:
    """Beat in a thread for the duration of the block."""
    stop = threading.Event()
    thread = threading.Thread(target=heartbeat.run, args=(stop,), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(BEAT_S)


def beats(client: Client, survey: str) -> list[Beat]:
    """The last beat of every recently active daemon, by name.

    Raises:
        ServiceUnavailable, ServiceError: Redis is unavailable, or refuses us.
    """
    found = [
        Beat(name.decode(), int(age) / 1000, json.loads(said))
        for name, age, said in client.call("beats", [(Keys(survey).prefix,)])[0]
    ]
    return sorted((beat for beat in found if beat.age_s <= FORGET_S), key=lambda beat: beat.name)
