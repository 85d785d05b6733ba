"""Progress of long work on stderr: a bar on a terminal, elsewhere at most a line every ten seconds.

A log file, pipe or container log would record every redraw of a bar. The only user of tqdm.
"""

import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

EVERY_S = 10.0  # between two lines without a terminal
ON_TERMINAL_S = 0.5  # between two redraws


class _Lines(tqdm):  # type: ignore[misc]
    """The same numbers as whole lines, at least EVERY_S apart; short work prints nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._said = time.monotonic()
        super().__init__(*arguments, **options | {"mininterval": EVERY_S, "miniters": 1, "ascii": True, "ncols": 100})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        now = time.monotonic()
        if now - self._said >= EVERY_S:
            self._said = now
            self.fp.write(f"{self if msg is None else msg}\n")
            self.fp.flush()
        return True

    def close(self) -> None:
        if self in self._instances:  # a bar draws its last line here, without `display`
            self.disable = True
            self._decr_instances(self)


def progress_bar(
    items: Iterable[Any] | None = None, what: str = "", total: int | None = None, *, show: bool = True, **options: Any
) -> "tqdm[Any]":
    """An iterator over `items`, or a bar to `update`, that shows progress.

    Args:
        what: text before the numbers.
        total: number of items, if `items` does not know it.
        show: False prints nothing.
        options: for tqdm (unit, initial, leave, delay, smoothing).
    """
    out = sys.stderr
    kind = tqdm if _is_terminal(out) else _Lines
    options = {"mininterval": ON_TERMINAL_S, **options}
    return kind(items, what or None, total, file=out, disable=not show or out is None, **options)


def say(line: str) -> None:
    """Print a line on stdout without tearing a bar."""
    tqdm.write(line)


def _is_terminal(out: TextIO | None) -> bool:
    return out is not None and out.isatty()
