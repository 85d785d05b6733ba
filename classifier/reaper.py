"""Ends the processes and removes the folders of a program that was killed before it could do so itself.

`kill -9`, a crash or the out-of-memory killer leave a program no time to stop its servers. So a program reports
everything it starts to a small watcher process, over a pipe that only the program holds open: when the program is gone
for any reason, the pipe closes, and the watcher asks the daemons to finish their batch, then stops the servers, then
removes the temporary folders. This needs no Linux-specific call and no thread, and after an orderly exit the watcher
has nothing to do.

The watcher runs this file alone (`python -I -S reaper.py`), so it starts in milliseconds and imports nothing from
skyheed.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

DAEMON, SERVER = "daemon", "server"  # the order in which they are stopped
PATIENCE_S = {DAEMON: 20.0, SERVER: 5.0}  # from SIGTERM to SIGKILL
POLL_S = 0.05


class Reaper:
    """The program's end of the pipe; the watcher lives while there is something to watch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watcher: subprocess.Popen[bytes] | None = None
        self._kept: set[str] = set()

    def process(self, pid: int, kind: str) -> None:
        """Watch a process that leads its own session; `kind` is DAEMON or SERVER."""
        self._tell("keep", f"{kind}:{pid}")

    def forget_process(self, pid: int, kind: str) -> None:
        """It has ended."""
        self._tell("forget", f"{kind}:{pid}")

    def folder(self, path: Path) -> None:
        """Watch a temporary folder."""
        self._tell("keep", f"folder:{path.absolute()}")

    def forget_folder(self, path: Path) -> None:
        """It has been removed."""
        self._tell("forget", f"folder:{path.absolute()}")

    def _tell(self, word: str, what: str) -> None:
        with undisturbed(), self._lock:
            (self._kept.add if word == "keep" else self._kept.discard)(what)
            if not self._kept:
                self._end()
            elif self._watcher is None or self._watcher.poll() is not None:
                self._start()
            else:
                self._say(word, what)

    def _start(self) -> None:
        if self._watcher is not None and self._watcher.stdin is not None:
            self._watcher.stdin.close()
        command = [sys.executable, "-I", "-S", __file__]
        quiet = subprocess.DEVNULL
        self._watcher = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True, bufsize=0
        )
        for what in sorted(self._kept):
            self._say("keep", what)

    def _say(self, word: str, what: str) -> None:
        assert self._watcher is not None
        assert self._watcher.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed: the next registration starts another
            self._watcher.stdin.write(json.dumps([word, what]).encode() + b"\n")

    def _end(self) -> None:
        """Stop the watcher and wait for it, so that a program that has ended leaves no process."""
        if self._watcher is not None and self._watcher.stdin is not None:
            self._say("off", "")
            self._watcher.stdin.close()
            self._watcher.wait()
        self._watcher = None


reaper = Reaper()
_sections = 0
_waiting: list[BaseException] = []
_asked: list[BaseException] = []  # the exception that a signal asked for, raised or pending


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Delay a signal that would end the program until the end of the block, so that starting and registering a process
    is atomic. For the main thread; others do not handle signals.
    """
    global _sections
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _sections += 1
    try:
        yield
    finally:
        _sections -= 1
        if not _sections and _waiting:
            raise _waiting.pop()


def interrupt(error: BaseException) -> None:
    """Raise the error of a signal handler, at the end of `undisturbed` if we are in one."""
    _asked.append(error)
    if not _sections:
        raise error
    _waiting.append(error)


def nothing_asked() -> None:
    """A verb begins: forget signals to an earlier one in this process."""
    _asked.clear()


def end_if_asked() -> None:
    """Raise again what `interrupt` raised: call it in a verb's loop, not during clean-up. A signal's exception can
    strike anywhere, and a few in a hundred were lost early in a run (which code swallows them is unknown), so that the
    verb would run to its end.
    """
    if _asked and not _sections:
        raise _asked[-1]


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A private folder, removed at the end of the block, or when this program is killed."""
    path = make_folder(prefix)
    try:
        yield path
    finally:
        remove_folder(path)


def make_folder(prefix: str) -> Path:
    """A private temporary folder; `remove_folder` removes it, or the watcher if this program is killed."""
    path = Path(tempfile.gettempdir()).absolute() / f"{prefix}{secrets.token_hex(6)}"
    reaper.folder(path)  # before it exists: we may be killed at any time
    path.mkdir(mode=0o700)
    return path


def remove_folder(path: Path) -> None:
    """Remove what `make_folder` made."""
    shutil.rmtree(path, ignore_errors=True)
    reaper.forget_folder(path)


# --- the watcher ---------------------------------------------------------------------------------------------------


def watch(orders: IO[bytes]) -> None:
    """Read orders until the pipe closes, then stop and remove what is left."""
    kept: set[str] = set()
    for line in orders:
        with contextlib.suppress(ValueError):  # incomplete: its writer was killed
            word, what = json.loads(line)
            if word == "off":
                return
            (kept.add if word == "keep" else kept.discard)(what)
    for kind in (DAEMON, SERVER):
        _end_all([int(what.partition(":")[2]) for what in kept if what.startswith(f"{kind}:")], PATIENCE_S[kind])
    for what in kept:
        if what.startswith("folder:"):
            _remove(Path(what.partition(":")[2]))


def _remove(folder: Path) -> None:
    """Remove it, even while a process still writes to it."""
    deadline = time.monotonic() + PATIENCE_S[SERVER]
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(POLL_S)


def _end_all(pids: list[int], patience_s: float) -> None:
    """SIGTERM to each, and SIGKILL to what is left of its session after `patience_s`."""
    for pid in pids:
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while any(_lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for pid in pids:
        _signal(pid, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # where no process adopts orphans, they stay as zombies
        return Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return not Path("/proc/self").exists()


if __name__ == "__main__":
    for unwanted in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends when the program it watches has ended
        signal.signal(unwanted, signal.SIG_IGN)
    watch(sys.stdin.buffer)
