"""Daemons as processes that are killed, and what must hold afterwards."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from skyheed.broker import app as daemon
from skyheed.broker.errors import ServiceUnavailable
from skyheed.broker.results.record import Classification
from skyheed.broker.settings import Settings

ROUNDING = 0.02  # of probabilities: bfloat16 has 8 bits


class Child:
    """A daemon as a child process that can be killed and started again."""

    def __init__(self, verb: str, arguments: list[str], folder: Path) -> None:
        self.verb = verb
        self._command = [sys.executable, "-m", "skyheed.broker.cli", verb, *arguments]
        self.log = folder / f"{verb}.log"
        self.kills = 0
        self.start()

    def start(self) -> None:
        environ = {"PATH": os.defpath, "HOME": "/tmp", "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environ, start_new_session=True)

    def kill(self) -> None:
        assert self._process.poll() is None, f"{self.verb} ended by itself: {self.log.read_text()[-500:]}"
        self._process.kill()
        self._process.wait()
        self.kills += 1

    def stop(self) -> int:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return int(self._process.returncode)


def arguments_for(settings: Settings, topic: str) -> list[str]:
    return [
        "--survey", settings.survey, "--kafka", settings.kafka["bootstrap.servers"], "--redis", settings.redis.url,
        "--topic", topic,
    ]  # fmt: skip


def wait_for(done: Callable[[], object], limit_s: float, what: str, found: Callable[[], str] = str) -> None:
    """Until `done` is true; a failure shows what `found` says then."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            if done():
                return
        except ServiceUnavailable:
            pass
        time.sleep(0.3)
    pytest.fail(f"{what} took longer than {limit_s} s\n{found()}")


def settled(settings: Settings, sent: int) -> bool:
    books = daemon.connect_store(settings)[2].books()
    return books.consumed == sent and books.pending == 0 and books.balanced


@pytest.fixture
def children(tmp_path: Path) -> Iterator[list[Child]]:
    made: list[Child] = []
    yield made
    for child in made:
        child.stop()


def keyed(published: Iterable[Classification]) -> dict[str, Classification]:
    """What a stranger has who keys the topic by classification_id; whichever of the repeats is taken, it is the same.

    Only the time of classification differs, and the probabilities by rounding: a repeat may stand in another batch,
    or take a token from the cache.
    """
    first: dict[str, Classification] = {}
    for record in published:
        other = first.setdefault(record.classification_id, record)
        assert [p.name for p in record.probabilities] == [p.name for p in other.probabilities]
        expected = [p.probability for p in other.probabilities]
        assert [p.probability for p in record.probabilities] == pytest.approx(expected, abs=ROUNDING)
        assert _exact(record) == _exact(other)
    return first


def _exact(record: Classification) -> Classification:
    """Without what rounding may change, the top class of near equals among it."""
    return replace(record, classified_ms=0, probabilities=(), top_class=None, top_probability=None)
