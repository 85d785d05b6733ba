"""A disk that is full under Valkey or Kafka: one sentence, nothing is lost, and all continues once there is room."""

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_tools import Child, arguments_for, children
from process_tools import until
from server_tools import HOME, NEEDS_APACHE, start_apache_kafka
from stream_tools import answers, ingest_all, last_answers, publish, save_checkpoint, sdss_alert, settings_for

from skyheed.broker import app as daemon
from skyheed.broker import health as check
from skyheed.broker.local import embedded

__all__ = ["children"]
pytestmark = pytest.mark.kafka
INFINITY = resource.RLIM_INFINITY


@pytest.fixture
def valkey_with_a_limit(tmp_path: Path) -> Iterator[embedded.Server]:
    """A Valkey that hears of a file that may not grow by an error, as on a full disk, and not by a signal."""
    server = embedded.start_valkey(tmp_path / "valkey", appendonly=True)
    server._command = ["/bin/sh", "-c", 'trap \'\' XFSZ; exec "$0" "$@"', *server._command]
    with server:
        yield server


def room(server: embedded.Server, size: int) -> None:
    """Files of the server may grow to this many bytes from now on."""
    assert server._process
    resource.prlimit(server._process.pid, resource.RLIMIT_FSIZE, (size, INFINITY))


@pytest.mark.redis
def test_a_full_disk_under_valkey_stops_the_intake_and_loses_nothing(
    kafka: embedded.Server, valkey_with_a_limit: embedded.Server, tmp_path: Path, children: list[Child]
) -> None:
    valkey = valkey_with_a_limit
    settings = settings_for(kafka.address, valkey.url, "sdss", "full-disk")
    sent = publish(settings, "full-disk", [sdss_alert(f"F{n}", 1) for n in range(400)])
    room(valkey, 300_000)  # some hundred stamps
    ingest = Child("ingest", [*arguments_for(settings, "full-disk"), "--group", "full-disk"], tmp_path)
    children.append(ingest)
    until(lambda: "cannot write its file" in ingest.log.read_text(), 90, "noticing that the disk is full")
    [line] = check.check(settings, ["redis"])
    assert (line.ok, "make room on its disk" in line.sentence) == (False, True), line
    room(valkey, INFINITY)
    ledger = daemon.connect_store(settings)[2]
    until(lambda: ledger.books().consumed == sent and ledger.books().balanced, 90, "going on with room")
    assert ledger.books().summary()["stored"] == sent
    said = ingest.log.read_text()
    assert (said.count("waiting: "), said.count("back after"), "Traceback" in said) == (1, 1, False), said
    assert ingest.stop() == 0
    valkey.kill()  # what was acknowledged is in the file
    valkey.restart()
    assert ledger.books().summary()["stored"] == sent
    ledger._client.close()


@contextlib.contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A file system of its own; skips where we may not make one."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("may not mount a small file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return filler


@pytest.mark.long
@pytest.mark.redis
@pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)
def test_a_full_disk_under_kafka_makes_the_worker_wait_and_loses_nothing(
    valkey: embedded.Server, tmp_path: Path, children: list[Child]
) -> None:
    """Kafka itself ends on a full disk; it is started again when there is room."""
    with small_disk(tmp_path / "disk", 64) as disk, start_apache_kafka(HOME, disk / "kafka") as kafka:
        settings = settings_for(kafka.address, valkey.url, "sdss", "disk")
        names = [f"K{n}" for n in range(150)]
        sent = publish(settings, "disk", [sdss_alert(name, 1) for name in names])
        assert ingest_all(settings)["stored"] == sent
        filler = fill(disk)
        model = save_checkpoint(tmp_path, "sdss")
        words = [*arguments_for(settings, "disk")[:-2], "--model", str(model), "--threads", "1", "--interval", "0.2"]
        work = Child("work", words, tmp_path)
        children.append(work)
        until(lambda: "waiting: Kafka at" in work.log.read_text(), 150, "noticing that Kafka takes nothing")
        kafka.kill()
        filler.unlink()
        kafka.restart()
        ledger = daemon.connect_store(settings)[2]
        until(lambda: ledger.books().pending == 0, 150, "going on with room")
        assert ledger.books().balanced
        assert set(last_answers(answers(settings))) == set(names)
        said = work.log.read_text()
        assert (said.count("waiting: Kafka at"), "Traceback" in said) == (1, False), said
        assert work.stop() == 0
        ledger._client.close()
