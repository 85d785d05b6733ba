"""Programs as child processes, and what of theirs is still there afterwards: processes and temporary folders."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def until(true: Callable[[], object], limit_s: float = 60.0, what: str = "") -> float:
    """Poll until it is true; returns the seconds that it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < limit_s, f"not within {limit_s:.0f} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - began


def run_verb(*words: str, limit_s: float = 120.0, **environ: str) -> subprocess.CompletedProcess[str]:
    """A verb to its end, in an environment of nothing but this."""
    return subprocess.run(
        [sys.executable, "-m", "skyheed.broker.cli", *words], capture_output=True, text=True, timeout=limit_s,
        env={"PATH": os.defpath, **environ}, check=False,
    )  # fmt: skip


class Program:
    """A verb with a temporary folder of its own, by which its processes can be told from all others."""

    def __init__(self, folder: Path, *words: str, environ: Mapping[str, str] | None = None) -> None:
        self.mark = str(folder)
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.log = folder / "said"
        environment = {
            "PATH": os.defpath, "HOME": str(folder), "OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary),
            "PROGRAM_OF": self.mark, **(environ or {}),
        }  # fmt: skip
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "skyheed.broker.cli", *words],
                stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                env=environment, start_new_session=True, cwd=folder,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until_it_says(self, word: str, limit_s: float = 120.0) -> None:
        """Wait for a word in its output."""

        def heard() -> bool:
            assert self.process.poll() is None or word in self.said, self.said
            return word in self.said

        until(heard, limit_s, word)

    def left(self) -> dict[int, str]:
        """Its processes that are still there, with their command lines; zombies are not."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self._is_mine(entry):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return found

    def _is_mine(self, entry: Path) -> bool:
        try:
            # servers get an environment of their own, but stand in a folder of ours or write into one
            places = [os.readlink(entry / "cwd"), os.readlink(entry / "fd" / "1")]
            environ = (entry / "environ").read_bytes()
            alive = (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False
        mine = self.mark.encode() in environ or any(p.startswith(self.mark) for p in places)
        return alive and mine and int(entry.name) != os.getpid()

    def leaves_nothing(self, limit_s: float = 40.0) -> None:
        """Assert that within the limit no process and no temporary folder is there."""
        until(lambda: not self.left(), limit_s, "processes left")
        until(lambda: not list(self.temporary.iterdir()), limit_s, "folders left")
