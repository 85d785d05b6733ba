"""Waiting for servers: one line when they go, one when they return."""

import contextvars
import logging
import threading

import pytest

from skyheed.broker import metrics, waiting
from skyheed.broker.errors import ServiceUnavailable, SkyheedError


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(waiting, "LONGEST_WAIT_S", 0.002)


def test_it_says_once_that_the_server_is_away_and_once_that_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    attempts = iter(range(6))
    meanwhile = []

    def action() -> str:
        if next(attempts) < 5:
            raise ServiceUnavailable("Redis is unavailable")
        return "done"

    with caplog.at_level(logging.WARNING):
        assert waiting.patiently(action, threading.Event(), lambda: meanwhile.append(1)) == "done"
    assert [r.message.split(" after")[0] for r in caplog.records] == ["waiting: Redis is unavailable", "back"]
    assert len(meanwhile) == 5


def test_being_asked_to_stop_ends_the_wait() -> None:
    stop = threading.Event()

    def action() -> None:
        stop.set()
        raise ServiceUnavailable("Kafka is unavailable")

    with pytest.raises(waiting.Stopped, match="Kafka is unavailable"):
        waiting.patiently(action, stop)


def test_being_stopped_while_waiting_is_an_error_for_a_drain_only() -> None:
    with pytest.raises(waiting.Stopped), waiting.to_the_end(drain=False):
        raise waiting.Stopped("Kafka is unavailable")
    stopped = pytest.raises(SkyheedError, match="stopped before everything was done")
    with stopped, waiting.to_the_end(drain=True):
        raise waiting.Stopped("Kafka is unavailable")


def test_other_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError):
        waiting.patiently(lambda: 1 // 0, threading.Event())


def test_every_thread_waits_for_itself() -> None:
    """A worker of several models: the first that goes on does not end the others' wait."""
    measured = metrics.WorkMetrics("sdss")
    stop, quick_failed, slow_failed = threading.Event(), threading.Event(), threading.Event()
    quick_may = threading.Event()

    def slow() -> None:
        slow_failed.set()
        raise ServiceUnavailable("Redis is unavailable", server="redis")

    def quick() -> None:
        if not quick_may.is_set():
            quick_failed.set()
            raise ServiceUnavailable("Redis is unavailable", server="redis")

    def slow_to_the_end() -> None:
        with pytest.raises(waiting.Stopped):
            waiting.patiently(slow, stop)

    with waiting.observed(measured):
        contexts = contextvars.copy_context(), contextvars.copy_context()
    one = threading.Thread(target=contexts[0].run, args=(slow_to_the_end,), name="slow")
    other = threading.Thread(target=contexts[1].run, args=(waiting.patiently, quick, stop), name="quick")
    one.start()
    other.start()
    assert slow_failed.wait(10)
    assert quick_failed.wait(10)
    quick_may.set()
    other.join(10)
    assert set(measured.waiting()) == {"redis"}, "the slow one still waits"
    stop.set()
    one.join(10)
    assert not one.is_alive()


def test_waits_are_of_different_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons that lost a server at the same moment do not come back at the same moment."""
    monkeypatch.undo()
    waited: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0.0)
            return len(waited) >= 60

    def action() -> None:
        raise ServiceUnavailable("Redis is unavailable", server="redis")

    with pytest.raises(waiting.Stopped):
        waiting.patiently(action, Stop())
    assert 0.1 <= waited[0] <= 0.2
    late = waited[10:]
    assert 2.5 <= min(late) < 3.5 < 4.0 < max(late) <= 5.0
