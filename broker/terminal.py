"""The interface between a verb and its caller: signals, encodings, and standard streams that may be missing."""

import codecs
import contextlib
import io
import os
import signal
import sys
import threading
from typing import Any

from skyheed.classifier.reaper import interrupt

# Non-ASCII characters in our messages, and replacements for terminals without them; others are shown as \x and \u.
PLAIN = {
    "…": "...", "—": "-", "–": "-", "×": "x", "→": "->", "►": ">", "◄": "<", "─": "-", "│": "|", "✓": "+",
    "≥": ">=", "≤": "<=", "±": "+-", "µ": "u", "°": "deg", "’": "'", "“": '"', "”": '"', "█": "#",
}  # fmt: skip
ERRORS = "skyheed.plain"
SOON_S = 0.02


def prepare() -> None:
    """Make the standard streams safe to write to, and let SIGTERM and SIGHUP end a verb as Ctrl-C does."""
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)
    end_on_signals()


def open_streams() -> None:
    """Point closed standard streams (`>&-`) at the null device: otherwise the next opened file would become one of
    them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open until we end)
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def end_on_signals() -> None:
    """Turn SIGTERM and SIGHUP into SystemExit, so that servers stop and folders are removed; status 128 + the signal's
    number.

    Daemons set their own handlers. An ignored SIGHUP (nohup) stays ignored.
    """

    sys.unraisablehook = _once_more(sys.unraisablehook)
    with contextlib.suppress(ValueError):  # not in the main thread: the caller decides
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _ended)
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupted)


def _ended(number: int, _frame: object) -> None:
    # a second signal must not interrupt the clean-up: `reaper` would finish it, but less gently
    signal.signal(number, signal.SIG_IGN)
    interrupt(SystemExit(128 + number))


def _interrupted(_number: int, _frame: object) -> None:
    interrupt(KeyboardInterrupt())


def _once_more(shown: Any) -> Any:
    """A hook for exceptions that the interpreter discards; it resends the signal if its exception was among them.

    A handler can run anywhere, including inside a destructor or weak-reference callback (imports use those); an
    exception raised there is swallowed, and the signal would be lost.
    """

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if isinstance(error, KeyboardInterrupt):
            number = signal.SIGINT
        elif isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
            number = signal.Signals(error.code - 128)
            signal.signal(number, _ended)
        else:
            shown(unraisable)
            return
        # from a thread: here its exception would be lost again
        threading.Timer(SOON_S, os.kill, (os.getpid(), number)).start()

    return hook


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    shown = "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in found)
    return shown, error.end


codecs.register_error(ERRORS, _plain)
