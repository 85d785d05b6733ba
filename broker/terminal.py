"""The edge between a verb and whoever runs it: signals, encodings, and standard streams that may be missing."""

import codecs
import contextlib
import io
import os
import signal
import sys

from skyheed.classifier.keeper import interrupt

# What our own texts hold beyond ASCII, and how a terminal that cannot show it gets it; the rest comes as \x and \u.
PLAIN = {
    "…": "...", "—": "-", "–": "-", "×": "x", "→": "->", "►": ">", "◄": "<", "─": "-", "│": "|", "✓": "+",
    "≥": ">=", "≤": "<=", "±": "+-", "µ": "u", "°": "deg", "’": "'", "“": '"', "”": '"', "█": "#",
}  # fmt: skip
ERRORS = "skyheed.plain"


def prepare() -> None:
    """Make the standard streams safe to write to, and let SIGTERM and SIGHUP end a verb as Ctrl-C does."""
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)
    end_on_signals()


def open_streams() -> None:
    """Give closed standard streams (`>&-`) the null device: else the next file we open would become one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open until we end)
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def end_on_signals() -> None:
    """Turn SIGTERM and SIGHUP into SystemExit, so that servers stop and folders go; status 128 + the signal's number.

    The daemons set handlers of their own. A hang-up that is ignored (nohup) stays ignored.
    """

    def ended(number: int, _frame: object) -> None:
        # a second signal must not cut the stopping short: `keeper` would finish it, but in a rougher way
        signal.signal(number, signal.SIG_IGN)
        interrupt(SystemExit(128 + number))

    def interrupted(_number: int, _frame: object) -> None:
        interrupt(KeyboardInterrupt())

    with contextlib.suppress(ValueError):  # not in the main thread: whoever called us decides
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, ended)
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupted)


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    shown = "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in found)
    return shown, error.end


codecs.register_error(ERRORS, _plain)
