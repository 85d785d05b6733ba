"""The clock of a training run: it goes on over interruptions, and divides a limited time between the stages."""

import hashlib
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from skyheed.classifier.training.clock import FINE_SHARE, Clock
from skyheed.classifier.training.protocol import Protocol

LIMITED = Protocol("none", cpu_seconds=1000.0, fine_steps=10)


def test_only_the_cpu_time_of_its_own_process_counts() -> None:
    clock = Clock(LIMITED)
    begun = clock.spent()
    subprocess.run([sys.executable, "-c", "sum(range(20_000_000))"], check=True)  # of another process
    time.sleep(0.3)
    assert clock.spent() - begun < 0.1
    busy = threading.Thread(target=lambda: hashlib.sha256(bytes(300_000_000)))  # of a further thread of its own
    busy.start()
    busy.join()
    assert clock.spent() - begun > 0.1
    clock.count()
    assert clock.cpu_seconds < clock.seconds


def test_a_resumed_run_goes_on_from_what_it_had_taken() -> None:
    first = Clock(LIMITED)
    first.seconds, first.cpu_seconds = 50.0, 40.0
    first.begin("whole")
    again = Clock(LIMITED)
    again.load_state_dict(first.state_dict())
    assert 50 <= again.seconds < 60
    assert 40 <= again.spent() < 50
    assert again.begun == {"whole": pytest.approx(40, abs=5)}
    again.begin("whole")  # it had begun before
    assert again.begun == first.begun


def test_a_state_of_an_earlier_release_is_read() -> None:
    clock = Clock(LIMITED)
    clock.load_state_dict({"seconds": 7.0})
    assert (clock.seconds, clock.begun) == (7.0, {})
    assert clock.spent() < 5


def test_the_stages_on_confirmed_labels_have_a_share_of_their_own() -> None:
    clock = Clock(LIMITED)
    clock.cpu_seconds = 425.0
    assert clock.share("whole") == pytest.approx(0.5, abs=0.01)
    clock.cpu_seconds = 850.0
    clock.begin("fine")
    assert clock.share("whole") >= 1
    assert clock.share("fine") == pytest.approx(0, abs=0.03)
    clock.cpu_seconds = 850.0 + FINE_SHARE * 500
    assert clock.share("fine_head") == pytest.approx(0.5, abs=0.05)


def test_without_a_limit_no_stage_runs_out_of_time() -> None:
    clock = Clock(replace(LIMITED, cpu_seconds=0.0))
    clock.cpu_seconds = 1e9
    assert clock.share("whole") == 0
