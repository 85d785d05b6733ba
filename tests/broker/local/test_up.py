"""`skyheed up`: the whole stack in the foreground, from a stranger's point of view."""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from process_tools import until
from real_data import real_data
from stream_tools import save_checkpoint, sdss_alert
from test_several_models import save

from skyheed.broker.kafka import client as kafka

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(300)]
OBJECTS, EPOCHS = 12, 4


class Up:
    """The program as a child process; what it says is collected while it runs."""

    def __init__(self, *words: str) -> None:
        environ = {"PATH": os.defpath, "HOME": "/tmp", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "skyheed.broker.cli", "up", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            text=True, env=environ, start_new_session=True,
        )  # fmt: skip
        self.said: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self._collector = threading.Thread(target=self._collect, daemon=True)
        self._collector.start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as out:
            for line in out:
                self._lines.put(line.rstrip())
        self._lines.put("")

    def until(self, word: str, limit_s: float = 120.0) -> str:
        """The next line with `word` in it."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no {word!r} within {limit_s} s: {self.text}")
            self.said.append(line)
            if word in line:
                return line
            if not line and self.process.poll() is not None:
                pytest.fail(f"it ended before {word!r}: {self.text}")

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """Its exit status."""
        status = self.process.wait(120)
        self._collector.join(10)
        while not self._lines.empty():
            self.said.append(self._lines.get())
        return status

    @property
    def text(self) -> str:
        return "\n".join(self.said)


def children_of(pid: int) -> set[int]:
    """Every process that descends from `pid`."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # the name in brackets may hold spaces
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has just ended
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def run(debounce_s: float, interval_s: float, *words: str, survey: str = "sdss", models: str = "") -> Up:
        file = tmp_path / "skyheed.toml"
        own = models or f'model = "{save_checkpoint(tmp_path, survey)}"\n'
        file.write_text(
            f'survey = "{survey}"\n[ingest]\ndebounce_s = {debounce_s}\n'
            f"[work]\ninterval_s = {interval_s}\nthreads = 1\n{own}"
        )
        up = Up("--config", str(file), "--data", str(tmp_path / "data"), "--device", "cpu", *words)
        started.append(up)
        return up

    yield run
    for up in started:
        left = children_of(up.process.pid)
        if up.process.poll() is None:
            up.process.kill()
            up.process.wait()
        for pid in alive(left):
            os.kill(pid, signal.SIGKILL)


def send(address: str) -> None:
    alerts = [sdss_alert(f"U{i}", n) for n in range(EPOCHS) for i in range(OBJECTS)]
    with kafka.Publisher({"bootstrap.servers": address}) as publisher:
        publisher.publish_all([("skyheed.alerts.sdss", None, alert, None) for alert in alerts])


def until_consumed(log: Path, up: Up) -> None:
    """Wait until the ingest has settled everything that `send` sent."""
    deadline = time.monotonic() + 120
    while sum(map(int, re.findall(r"batch consumed=(\d+)", log.read_text()))) < OBJECTS * EPOCHS:
        assert up.process.poll() is None, up.text
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@needs_proc
def test_ctrl_c_answers_what_is_pending_and_leaves_no_process(start: Callable[..., Up], tmp_path: Path) -> None:
    up = start(3.0, 0.2, "--serve")  # late enough for Ctrl-C to find something to finish
    address = up.until("Kafka ").split()[1]
    page = up.until("page ").split()[1]
    up.until("Ctrl-C drains")
    family = children_of(up.process.pid)
    assert len(family) >= 5, "Kafka, Valkey, ingest, worker and the page"
    assert httpx.get(f"{page}api/v1/state", timeout=60).json()["survey"] == "sdss"
    send(address)
    until_consumed(tmp_path / "data" / "ingest.log", up)
    up.interrupt()
    assert up.wait() == 0, up.text
    assert "Traceback" not in up.text
    assert "not drained" not in up.text
    assert f"test-sdss: {OBJECTS} classified, 0 declined, 0 pending" in up.text
    assert "the books balance" in up.text
    until(lambda: not alive(family), 20, "processes that end after it")


@needs_proc
def test_a_second_ctrl_c_ends_the_wait(start: Callable[..., Up], tmp_path: Path) -> None:
    up = start(debounce_s=1000.0, interval_s=0.2)  # nothing will ever be due
    address = up.until("Kafka ").split()[1]
    up.until("Ctrl-C drains")
    family = children_of(up.process.pid)
    send(address)
    until_consumed(tmp_path / "data" / "ingest.log", up)
    up.interrupt()
    up.until("pending objects")
    up.interrupt()
    began = time.monotonic()
    assert up.wait() == 0, up.text
    assert time.monotonic() - began < 60
    assert "not drained: interrupted twice" in up.text
    until(lambda: not alive(family), 20, "processes that end after it")


OBJECT, STAMPS = "ZTF20abfcszi", 21  # the real sequence
MODELS = ("fusion", "convention", "lstm")  # of stamps and photometry, of groups of stamps, of fluxes alone


@needs_proc
def test_object_shows_the_histories_of_three_models_on_real_packets(start: Callable[..., Up], tmp_path: Path) -> None:
    """With the commands that `up` prints, as somebody who copies them."""
    packets = real_data("ztf", "sequence_tde_ZTF20abfcszi")
    places = ("ztf/fusion", "ztf/convention", save(tmp_path, "lstm", "ztf"))
    tables = "".join(
        f'[[work.models]]\nmodel = "{place}"\nname = "{name}"\n' for place, name in zip(places, MODELS, strict=True)
    )
    up = start(0.0, 0.2, survey="ztf", models=tables)
    sent = _copied(up.until("send alerts:").replace(" PATH ", f" {packets} "))
    assert f"{STAMPS} " in sent
    look = re.sub(r"check (.*)--kafka \S+", rf"object {OBJECT} \1", up.until("look after it:"))

    def shown() -> dict[str, str]:
        parts = re.split(r"^# (.*)\n", _copied(look, may_fail=True), flags=re.MULTILINE)[1:]
        return dict(zip(parts[::2], parts[1::2], strict=True))

    def complete() -> bool:
        found = shown()
        return set(found) == set(MODELS) and all(f'"n_stamps": {STAMPS},' in text for text in found.values())

    until(complete, 120, "the three models' last classifications")
    for name, text in shown().items():
        latest, end = json.JSONDecoder().raw_decode(text)
        history = [json.loads(line) for line in text[end:].split("\n") if line]
        assert (latest["model"], latest["object_id"]) == (name, OBJECT)
        assert history[-1]["n_stamps"] == STAMPS
    up.interrupt()
    assert up.wait() == 0, up.text
    assert up.text.count("1 classified, 0 declined, 0 pending") == len(MODELS)
    assert "the books balance" in up.text


def _copied(line: str, may_fail: bool = False) -> str:
    """What the command behind the colon prints, in a shell that finds `skyheed`."""
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "HOME": "/tmp"}
    done = subprocess.run(
        line.partition(":")[2], shell=True, env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert may_fail or done.returncode == 0, done.stderr
    return done.stdout + ("" if may_fail else done.stderr)
