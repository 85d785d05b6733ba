"""The watcher that cleans up after a program that was killed."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from process_tools import until

from skyheed.classifier import reaper

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('on', flush=True)\ntime.sleep(600)"
)
PARENT = """
    import subprocess, sys, time
    from pathlib import Path
    from skyheed.classifier import reaper
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
    reaper.reaper.process(child.pid, reaper.SERVER)
    folder = reaper.make_folder("it's a \\"folder\\" ü ")
    print(child.pid, folder, flush=True)
    time.sleep(600)
"""


def test_the_reaper_ends_what_does_not_want_to_and_removes_folders_of_any_name(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(PARENT), STUBBORN]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"TMPDIR": str(tmp_path), **ENVIRONMENT})
    assert parent.stdout is not None
    lines = [parent.stdout.readline(), parent.stdout.readline()]
    pid, _, folder = next(line for line in lines if line != "on\n").rstrip("\n").partition(" ")
    (Path(folder) / "file").write_text("x")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not reaper._lives(int(pid)), 30, "the child")
    until(lambda: not Path(folder).exists(), 30, "the folder")


ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}


def test_the_reaper_is_gone_when_there_is_nothing_to_keep() -> None:
    mine = reaper.Reaper()
    mine.folder(Path("/nonexistent/one"))
    mine.folder(Path("/nonexistent/two"))
    watcher = mine._watcher
    assert watcher is not None
    mine.forget_folder(Path("/nonexistent/one"))
    assert watcher.poll() is None
    mine.forget_folder(Path("/nonexistent/two"))
    assert watcher.poll() == 0


def test_a_reaper_that_was_killed_is_replaced(tmp_path: Path) -> None:
    mine = reaper.Reaper()
    mine.folder(tmp_path / "one")
    assert mine._watcher is not None
    mine._watcher.kill()
    mine._watcher.wait()
    (tmp_path / "one").mkdir()
    mine.folder(tmp_path / "two")
    assert mine._watcher.poll() is None
    assert mine._watcher.stdin is not None
    mine._watcher.stdin.close()  # as if we had died
    mine._watcher.wait()
    assert not (tmp_path / "one").exists()
