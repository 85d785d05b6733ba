"""However a verb ends, nothing of it stays: no process, no temporary folder."""

import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from process_tools import Program, until
from stream_tools import sdss_alert

from skyheed.broker import cli
from skyheed.broker.local import embedded, up
from skyheed.broker.local import processes as stack

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc"),
]
END, INTERRUPT, HANG_UP, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL
Start = Callable[..., Program]


def long(value: object) -> Any:
    """A parameter of the long form alone."""
    return pytest.param(value, marks=pytest.mark.long)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Program] = []

    def run(*words: str) -> Program:
        started.append(Program(tmp_path / f"program {len(started)}", *words))
        return started[-1]

    yield run
    for program in started:
        for pid in program.left():
            os.kill(pid, signal.SIGKILL)
        program.process.wait()


def ends(program: Program, number: int) -> int:
    """Send the signal, and return the exit status once nothing is left."""
    program.process.send_signal(number)
    status = program.process.wait(120)
    program.leaves_nothing()
    return status


# --- verbs with servers --------------------------------------------------------------------------------------------


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.parametrize(
    "number",
    [KILL, long(HANG_UP), long(END)],
)
def test_up_leaves_nothing(start: Start, number: int) -> None:
    program = start("up", "--survey", "sdss")
    program.until_it_says("Ctrl-C drains")
    assert len(program.left()) == 6, "up, Kafka, Valkey, ingest, worker, reaper"
    assert ends(program, number) == (-KILL if number == KILL else 0), program.said


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.parametrize("number", [END, long(KILL)])
def test_demo_leaves_nothing(start: Start, number: int) -> None:
    program = start("demo", "--objects", "12", "-o", "demo.png")
    program.until_it_says("3/4")
    assert ends(program, number) == (-KILL if number == KILL else 128 + END), program.said
    assert "Traceback" not in program.said, program.said


@pytest.mark.kafka
@pytest.mark.redis
def test_up_that_is_killed_while_it_starts_leaves_nothing(start: Start) -> None:
    program = start("up", "--survey", "sdss")
    until(lambda: list(program.temporary.iterdir()), what="a first folder")
    assert ends(program, KILL) == -KILL


@pytest.mark.kafka
@pytest.mark.redis
def test_daemons_are_asked_to_finish_before_the_servers_go(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "data"
    program = start("up", "--survey", "sdss", "--data", str(data))
    program.until_it_says("Ctrl-C drains")
    until(lambda: "batch" in (data / "work.log").read_text() or "work model" in (data / "work.log").read_text())
    until(lambda: "ingest survey" in (data / "ingest.log").read_text())
    ends(program, KILL)
    assert "SIGTERM: finishing the batch in hand" in (data / "ingest.log").read_text()
    assert "ingest ends" in (data / "ingest.log").read_text()


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.parametrize("number", [END, KILL])
def test_serve_leaves_nothing(start: Start, number: int, kafka: embedded.Server, valkey: embedded.Server) -> None:
    program = start("serve", "--survey", "sdss", "--kafka", kafka.address, "--redis", valkey.url, "--port", "0")
    program.until_it_says("the page is at")
    page = program.said.split("the page is at ")[1].split()[0]
    assert urllib.request.urlopen(f"{page.rstrip('/')}/api/v1/status", timeout=60).status == 200
    assert ends(program, number) == (-KILL if number == KILL else 0), program.said


# --- the other verbs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [END, HANG_UP, KILL])
def test_a_simulation_leaves_no_process(start: Start, number: int) -> None:
    words = ["--objects", "20000", "--processes", "2", "-o", "sky"]
    program = start("archive", "simulate", *words)
    until(
        lambda: list(program.log.parent.glob(".sky*/stamps/*.parquet")) and len(program.left()) >= 4,
        what="a first part",
    )
    assert ends(program, number) == (-KILL if number == KILL else 128 + number), program.said
    assert "Traceback" not in program.said, program.said
    until(lambda: not list(program.log.parent.glob("*sky*")), what="no half archive")


@pytest.mark.parametrize("parts", [2, 12])
def test_a_simulation_that_is_ended_before_its_first_part_says_nothing_of_its_processes(
    start: Start, parts: int
) -> None:
    program = start("archive", "simulate", "--objects", str(128 * parts), "--processes", "2", "-o", "sky")
    until(lambda: len(program.left()) >= 4, what="its processes")
    assert ends(program, END) == 128 + END, program.said
    assert "Traceback" not in program.said, program.said


@pytest.mark.kafka
@pytest.mark.parametrize("number", [END, HANG_UP, INTERRUPT, KILL])
def test_a_replay_leaves_no_folder(start: Start, kafka: embedded.Server, tmp_path: Path, number: int) -> None:
    (tmp_path / "alerts").mkdir()
    for n in range(4):
        (tmp_path / "alerts" / f"{n}.avro").write_bytes(sdss_alert("R", n))
    words = [str(tmp_path / "alerts"), "--kafka", kafka.address, "--rate", "0.001", "--topic", "replayed"]
    program = start("replay", "sdss", *words)
    until(lambda: list(program.temporary.iterdir()), what="its folder")
    expected = {KILL: -KILL, INTERRUPT: 1}.get(number, 128 + number)
    assert ends(program, number) == expected, program.said
    assert "Traceback" not in program.said, program.said


@pytest.mark.parametrize("verb", ["ingest", long("work"), "subscribe", long("replay")])
@pytest.mark.parametrize("number", [END, long(HANG_UP), long(INTERRUPT)])
def test_a_verb_that_waits_for_its_servers_ends_when_asked(
    start: Start, tmp_path: Path, verb: str, number: int
) -> None:
    (tmp_path / "one.avro").write_bytes(sdss_alert("R", 0))
    words = {"replay": ["sdss", str(tmp_path / "one.avro")]}.get(verb, ["--survey", "sdss"])
    program = start(verb, *words, "--kafka", f"127.0.0.1:{embedded.free_port()}")
    program.until_it_says("waiting")
    ends(program, number)
    assert "Traceback" not in program.said, program.said


def test_a_hang_up_that_is_ignored_stays_ignored(start: Start) -> None:
    code = """
        import os, signal, sys
        from skyheed.broker import app, terminal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        terminal.end_on_signals()
        stop = app.stop_on_signal()
        os.kill(os.getpid(), signal.SIGHUP)
        print("still here", stop.is_set())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == "still here False\n"


@pytest.mark.parametrize("held", ["stop._cond", "logging.getLogger().handlers[0].stream.lock"])
def test_a_signal_that_comes_while_a_lock_is_held_stops_the_daemon(held: str) -> None:
    """The main thread often waits for the event or writes a line of log; the handler runs in the middle of it."""
    code = f"""
        import io, logging, os, signal, sys, threading, time
        from skyheed.broker import app
        class Stream(io.StringIO):
            lock = threading.Lock()
            def write(self, text):
                with self.lock:
                    return super().write(text)
        logging.basicConfig(level=logging.INFO, stream=Stream())
        stop = app.stop_on_signal()
        with {held}:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000): pass  # the handler runs in here
        print("stopped", stop.wait(30))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=90)
    assert done.stdout == "stopped True\n", done.stderr


def assert_it_ends(code: str, number: int) -> None:
    """The program ends by the signal that it sends itself, before its last line."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert "it went on" not in done.stdout
    assert done.returncode in ({-INTERRUPT, 1, 130} if number == INTERRUPT else {128 + number}), done.stderr


@pytest.mark.parametrize("number", [INTERRUPT, END, HANG_UP])
@pytest.mark.parametrize("place", ["destructor", "weak reference"])
def test_a_signal_that_comes_where_errors_are_thrown_away_still_ends_the_program(number: int, place: str) -> None:
    code = f"""
        import os, signal, time, weakref
        from skyheed.broker import terminal
        terminal.prepare()
        class Thing:
            def __del__(self):
                if {place!r} == "destructor":
                    os.kill(os.getpid(), {int(number)})
                    for _ in range(1000): pass  # the handler runs in here
        thing = Thing()
        def gone(_):
            if {place!r} != "destructor":
                os.kill(os.getpid(), {int(number)})
                for _ in range(1000): pass
        reference = weakref.ref(thing, gone)
        del thing
        time.sleep(30)
        print("it went on")
    """
    assert_it_ends(code, number)


@pytest.mark.parametrize("number", [INTERRUPT, END, HANG_UP])
def test_a_signal_whose_error_was_cleared_is_asked_for_again(number: int) -> None:
    """As extension modules do while they are imported: a replay went on to its end after a signal."""
    code = f"""
        import os, signal
        from skyheed.broker import terminal
        from skyheed.classifier import reaper
        terminal.prepare()
        reaper.end_if_asked()
        try:
            os.kill(os.getpid(), {int(number)})
            for _ in range(1000): pass
        except BaseException:
            pass
        reaper.end_if_asked()
        print("it went on")
    """
    assert_it_ends(code, number)


def test_every_verb_is_looked_at_here() -> None:
    """A new verb that starts processes or makes folders belongs into this file."""
    import click

    short = {"audit", "check", "deadletter", "evaluate", "layout", "model", "object", "redrive", "retire", "train"}
    short |= {"backfill", "few-shot", "forward", "prior", "score", "screen"}  # one process without a folder
    here = {"archive", "demo", "ingest", "replay", "serve", "subscribe", "up", "work"}
    assert set(cli.skyheed.list_commands(click.Context(cli.skyheed))) == short | here


def test_an_existing_folder_keeps_its_mode_and_what_is_written_into_it_is_private(tmp_path: Path) -> None:
    shared, new = tmp_path / "shared", tmp_path / "new"
    shared.mkdir(mode=0o755)
    for folder, mode in ((shared, 0o755), (new, 0o700)):
        with up._folder(str(folder)) as found:
            assert found.stat().st_mode & 0o777 == mode
            daemon = stack.Daemon("check", ["--help"], found / "ingest.log")
            daemon.process.wait(60)
            daemon.stop()
            assert (found / "ingest.log").stat().st_mode & 0o777 == 0o600
