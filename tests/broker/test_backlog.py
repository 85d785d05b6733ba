"""The benchmark of a backlog, in a short form: all is worked off, memory stays, `check` stays quiet."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skyheed.broker.observation import BANDS
from skyheed.broker.packets.container import Decoder
from skyheed.broker.packets.surveys import load_survey

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = [pytest.mark.kafka, pytest.mark.redis]


def backlog(alerts: int, limit_s: float) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "backlog.py"), "--alerts", str(alerts)],
        capture_output=True, text=True, timeout=limit_s, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_packets_of_the_benchmark_are_sound_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import backlog as benchmark

    survey = load_survey("sdss", None, None)
    decoder = Decoder(survey.reader_schema)
    seen = [survey.observation(record) for packet in benchmark.packets(60, 20) for record in decoder.decode(packet)]
    assert len({o.source_id for o in seen}) == 60
    assert {o.object_id: 20 for o in seen} == {f"B{n:08}": 20 for n in range(3)}
    assert len({(o.object_id, o.mjd) for o in seen}) == 60
    assert {o.band for o in seen} <= set(BANDS)


def test_a_small_backlog_is_worked_off_in_quiet() -> None:
    found = backlog(1_000, 200)
    assert (found["books"]["stored"], found["books"]["classified"], found["books"]["pending"]) == (1_000, 50, 0)
    assert found["books"]["balanced"]
    assert found["quiet"], found["loud"]


@pytest.mark.long
@pytest.mark.timeout(1_200)
def test_memory_does_not_grow_with_a_backlog() -> None:
    found = backlog(60_000, 1_100)
    assert found["books"]["stored"] == 60_000
    assert found["books"]["balanced"]
    assert found["quiet"], found["loud"]
    for verb in ("ingest", "work"):
        mib = found["mib"][verb]
        assert mib["last_quarter"] < mib["second_quarter"] + 60, (verb, mib)
    assert found["mib"]["ingest"]["peak"] < 800  # of 4 partitions, whose packets pack two hundred times
