"""Reads the classification topics into the index, in a separate thread, while the page is served.

It has no consumer group: the index stores how far it has read together with what it read.
"""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from skyheed.broker.errors import SkyheedError, StreamError
from skyheed.broker.kafka.client import BatchConsumer, place_of
from skyheed.broker.results.formats import decode
from skyheed.broker.settings import Settings
from skyheed.broker.web.index import Event, Index, Read

log = logging.getLogger("skyheed.follower")
BATCH = 500
BATCH_BYTES = 16 * 2**20  # read at a time, plus the messages of one fetch
WAIT_S = 0.2
AGAIN_S = 5.0  # wait after a refusal


def topics_of(settings: Settings) -> list[str]:
    """The topics to which the survey's classifications are published: the first model's, then those of other models."""
    own = settings.classification_topic
    named = [model.topic for model in settings.models if model.topic]
    return [f"^{re.escape(own)}(\\.[A-Za-z0-9_-]+)?$", *(f"^{re.escape(name)}$" for name in named)]


class Follower(threading.Thread):
    """Fills the index and tells `news` what is new.

    Attributes:
        trouble: what is currently wrong with Kafka, in one sentence; empty if nothing is.
        behind: offsets not yet read; None if unknown.
    """

    def __init__(self, settings: Settings, index: Index, news: Callable[[Sequence[Event]], None]) -> None:
        super().__init__(name="follower", daemon=True)
        self._settings, self._index, self._news = settings, index, news
        self._stop_asked = threading.Event()
        self.trouble = f"Kafka at {settings.kafka['bootstrap.servers']} has not answered yet"
        self.behind: int | None = None
        self.bad = 0

    def stop(self) -> None:
        """Stop after the current batch."""
        self._stop_asked.set()

    def run(self) -> None:
        """Follow until `stop`; failures are reported and retried."""
        while not self._stop_asked.is_set():
            try:
                self._follow()
            except SkyheedError as error:
                self._say(str(error))
                self._stop_asked.wait(AGAIN_S)
            except Exception:
                log.exception("an internal error while reading classifications: trying again")
                self._say("an internal error while reading classifications, which is in the log")
                self._stop_asked.wait(AGAIN_S)

    def _follow(self) -> None:
        with BatchConsumer(self._settings.kafka, topics_of(self._settings), group=None) as consumer:
            consumer.begin_at = self._index.positions()
            looked = 0.0
            while not self._stop_asked.is_set():
                self._batch(consumer)
                if time.monotonic() - looked > 1.0:
                    looked = time.monotonic()
                    self._look(consumer)

    def _batch(self, consumer: BatchConsumer) -> None:
        messages = consumer.consume(BATCH, WAIT_S, BATCH_BYTES)
        if not messages:
            return
        found: list[Read] = []
        positions: dict[str, int] = {}
        for message in messages:
            place, offset = consumer.partition_key(*place_of(message)), cast(int, message.offset())
            positions[place] = max(positions.get(place, 0), offset + 1)
            with contextlib.suppress(StreamError):
                found += self._read(message, place, offset)
        if events := self._index.add(found, positions):
            self._news(events)

    def _read(self, message: Any, place: str, offset: int) -> list[Read]:
        """The classification in a message; nothing if it is of another survey, or only marks an object as deleted."""
        value = message.value()
        if value is None:
            return []
        try:
            record = decode(value)
        except StreamError as error:
            self.bad += 1
            log.warning("skipped: %s offset %d: %s", place, offset, error)
            raise
        return [Read(place, offset, record)] if record.survey == self._settings.survey else []

    def _look(self, consumer: BatchConsumer) -> None:
        lags = consumer.lag()
        self.behind = sum(lags.values()) if lags else None
        if consumer.connection.away():
            self._say(f"Kafka at {consumer.connection.hosts} is unavailable ({consumer.connection.detail()})")
        elif not lags and not consumer.connection.answers():
            self._say(f"Kafka at {consumer.connection.hosts} has not answered yet")
        else:
            self._say("")

    def _say(self, sentence: str) -> None:
        if sentence and not self.trouble:
            log.warning("the page is waiting: %s", sentence)
        if sentence:
            self.behind = None
        self.trouble = sentence
