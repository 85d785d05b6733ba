"""Freed memory goes back to the system now and then."""

import os
from pathlib import Path

import pytest

from skyheed.broker import memory


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_holes_between_small_blocks_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    trim = memory.Trim()
    if trim._trim is None:
        pytest.skip("the C library has no malloc_trim")
    blocks = [(bytearray(100_000), bytearray(600)) for _ in range(1_000)]
    small = [block for _, block in blocks]  # what keeps the C library from giving back the rest by itself
    del blocks
    before = resident_mib()
    assert not trim()  # not yet
    monkeypatch.setattr(memory, "EVERY_S", 0.0)
    assert trim()
    assert resident_mib() < before - 60
    assert len(small) == 1_000
