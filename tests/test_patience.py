"""Waiting for servers: one line when they go, one when they return."""

import logging
import threading

import pytest

from broker import patience
from broker.errors import ServiceUnavailable, SkyheedError


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 0.002)


def test_it_says_once_that_the_server_is_away_and_once_that_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    attempts = iter(range(6))
    meanwhile = []

    def action() -> str:
        if next(attempts) < 5:
            raise ServiceUnavailable("Redis is away")
        return "done"

    with caplog.at_level(logging.WARNING):
        assert patience.patiently(action, threading.Event(), lambda: meanwhile.append(1)) == "done"
    assert [r.message.split(" after")[0] for r in caplog.records] == ["waiting: Redis is away", "back"]
    assert len(meanwhile) == 5


def test_being_asked_to_stop_ends_the_wait() -> None:
    stop = threading.Event()

    def action() -> None:
        stop.set()
        raise ServiceUnavailable("Kafka is away")

    with pytest.raises(patience.Stopped, match="Kafka is away"):
        patience.patiently(action, stop)


def test_being_stopped_while_waiting_is_an_error_for_a_drain_only() -> None:
    with pytest.raises(patience.Stopped), patience.to_the_end(drain=False):
        raise patience.Stopped("Kafka is away")
    stopped = pytest.raises(SkyheedError, match="stopped before everything was done")
    with stopped, patience.to_the_end(drain=True):
        raise patience.Stopped("Kafka is away")


def test_other_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError):
        patience.patiently(lambda: 1 // 0, threading.Event())
