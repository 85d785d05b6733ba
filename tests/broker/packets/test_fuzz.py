"""The short form of `benchmarks/fuzz.py`: damaged packets of all surveys through the real intake and its books."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from skyheed.broker.local import embedded
from skyheed.broker.packets import fits

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
FUZZ = BENCHMARKS / "fuzz.py"
pytestmark = pytest.mark.redis


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("fuzz")


def run(*words: str) -> tuple[int, dict[str, object]]:
    done = subprocess.run([sys.executable, str(FUZZ), *words], capture_output=True, text=True, check=False, timeout=280)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_damaged_packets_are_accounted_for_and_what_is_accepted_is_right(
    valkey: embedded.Server, tmp_path: Path
) -> None:
    status, found = run("--packets", "1200", "--seed", "7", "--redis", valkey.url, "--data", str(tmp_path))
    assert status == 0, found
    assert (found["packets"], found["unaccounted"], found["unexpected"], found["differ"]) == (1200, 0, 0, 0), found
    assert found["balanced"] is True
    assert found["stamps"] >= 1200 / 3  # type: ignore[operator]
    assert found["slowest_s"] < 2.0  # type: ignore[operator]
    outcomes = found["outcomes"]
    assert isinstance(outcomes, dict)
    assert sum(outcomes.values()) == 1200
    assert {"accepted", "PacketError bad_fits", "PacketError bad_gzip", "PacketError truncated"} <= outcomes.keys()
    assert set(found["origins"]) == {"ztf own", "sdss own", "lsst own"}  # type: ignore[call-overload]


@pytest.mark.long
def test_damaged_real_packets(valkey: embedded.Server) -> None:
    status, found = run("--packets", "20000", "--seed", "8", "--redis", valkey.url, "--seconds", "240")
    assert status == 0, found
    assert (found["unaccounted"], found["unexpected"], found["differ"]) == (0, 0, 0)


def test_the_same_seed_makes_the_same_packets(fuzz: ModuleType) -> None:
    import random

    mutants = importlib.import_module("mutants")
    originals = list(mutants.own())
    made = [[mutants.mutant(random.Random(3), originals)[2] for _ in range(5)] for _ in range(2)]
    assert made[0] == made[1]


def test_what_the_fuzzer_looks_for_is_found(
    fuzz: ModuleType, valkey: embedded.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An internal error, pixels that are wrong and an outcome that is not booked: each must show."""
    mutants = importlib.import_module("mutants")
    plain, originals = fits._pixels, list(mutants.own())
    monkeypatch.setattr(fuzz.Ledger, "set_aside", lambda *_: None)
    assert fuzz.run(originals, 60, 3, 60.0, valkey.url)["unaccounted"] > 0
    monkeypatch.undo()
    monkeypatch.setattr(fits, "_pixels", lambda *words: plain(*words) + 1)
    assert fuzz.run(originals, 60, 1, 60.0, valkey.url)["differ"] > 0
    monkeypatch.setattr(fuzz.stamps, "pixels_of", lambda *_: {}[0])
    assert fuzz.run(originals, 60, 2, 60.0, valkey.url)["unexpected"] > 0
