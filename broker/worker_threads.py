"""Runs the workers of several models in one process, each in its own thread."""

import contextvars
import threading
import time
from collections import Counter
from collections.abc import Sequence

from skyheed.broker.waiting import Unfinished
from skyheed.broker.work import Worker

LOOK_S = 0.25  # how soon a failure of another worker is noticed


def run_all(workers: Sequence[Worker], stop: threading.Event, drain: bool = False) -> Counter[str]:
    """Run workers of several models at once, the first in this thread; the first error ends all.

    Returns: The combined totals.

    Raises:
        As `Worker.run`.
    """
    errors: list[BaseException] = []
    ended = threading.Event()

    def run(worker: Worker) -> None:
        try:
            worker.run(_Either(stop, ended), drain)
        except BaseException as error:
            errors.append(error)
            ended.set()

    contexts = [(contextvars.copy_context(), worker) for worker in workers[1:]]
    threads = [
        threading.Thread(target=context.run, args=(run, worker), name=worker.output.model)
        for context, worker in contexts
    ]
    for thread in threads:
        thread.start()
    run(workers[0])
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, Unfinished)), errors[0])
    return sum((worker.totals for worker in workers), Counter())


class _Either(threading.Event):
    """Set when a stop was requested, or when another model's worker failed."""

    def __init__(self, asked: threading.Event, failed: threading.Event) -> None:
        super().__init__()
        self._asked, self._failed = asked, failed

    def is_set(self) -> bool:
        return self._asked.is_set() or self._failed.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Like `Event.wait`; a failure of another worker is noticed within `LOOK_S`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = LOOK_S if deadline is None else min(LOOK_S, deadline - time.monotonic())
            if left <= 0:
                break
            self._asked.wait(left)
        return self.is_set()
