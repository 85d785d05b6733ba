"""Gzipped stamps: one member or several, and what may follow them; Python's gzip is the reference."""

import gzip
import io
import itertools
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.packets.fits import MAX_STAMP_BYTES, read_image
from skyheed.broker.packets.inflate import GZIP, MOST_MEMBERS, InflateError, TooLong, inflate

PIXELS = np.random.default_rng(3).normal(100, 10, (63, 63)).astype(np.float32)


def fits_file() -> bytes:
    out = io.BytesIO()
    fits.PrimaryHDU(PIXELS).writeto(out)
    return out.getvalue()


def members(data: bytes, *ends: int) -> bytes:
    """`data` as a gzip file that begins a new member at each of these places."""
    edges = [0, *ends, len(data)]
    return b"".join(gzip.compress(data[a:b], mtime=0) for a, b in itertools.pairwise(edges))


def reason_of(data: bytes) -> Reason:
    with pytest.raises(PacketError) as refused:
        read_image(data)
    return refused.value.reason


@pytest.mark.parametrize("ends", [(2880,), (1,), (2880, 5000, 5000, 9000), (0,)])
@pytest.mark.parametrize("padding", [b"", bytes(1), bytes(10_000)])
def test_members_are_read_as_one_file_as_astropy_reads_them(ends: tuple[int, ...], padding: bytes) -> None:
    packed = members(fits_file(), *ends) + padding
    with gzip.open(io.BytesIO(packed)) as stream, fits.open(stream) as units:
        np.testing.assert_array_equal(np.asarray(units[0].data, np.float32), PIXELS)
    np.testing.assert_array_equal(read_image(packed).pixels, PIXELS)


HARMS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "the second member is cut short": lambda a, b: a + b[:-1],
    "it is cut inside its header": lambda a, b: a + b[:5],
    "its checksum is wrong": lambda a, b: a + b[:-8] + bytes([b[-8] ^ 1]) + b[-7:],
    "its length is wrong": lambda a, b: a + b[:-1] + bytes([b[-1] ^ 1]),
    "text behind it": lambda a, b: a + b + b"behind",
    "text behind zeros": lambda a, b: a + b + bytes(100) + b"\1",
    "the first two bytes of a member": lambda a, b: a + b + b"\x1f\x8b",
    "the first is cut short": lambda a, b: a[:-9] + b,
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_pythons_gzip_refuses_is_refused(harm: str) -> None:
    data = fits_file()
    packed = HARMS[harm](gzip.compress(data[:3000]), gzip.compress(data[3000:]))
    with pytest.raises((EOFError, OSError, gzip.zlib.error)):  # type: ignore[attr-defined]
        gzip.decompress(packed)
    assert reason_of(packed) is Reason.BAD_GZIP


@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(0, 5), st.binary(max_size=3), st.integers(0, 3))
def test_any_members_read_as_by_python_or_are_refused_as_by_python(
    parts: list[bytes], zeros: int, behind: bytes, cut: int
) -> None:
    packed = b"".join(map(gzip.compress, [b"", *parts])) + bytes(zeros) + behind
    packed = packed[: len(packed) - cut]
    try:
        expected = gzip.decompress(packed)
    except (EOFError, OSError, gzip.zlib.error):  # type: ignore[attr-defined]
        with pytest.raises(InflateError):
            inflate(packed, 10_000, GZIP)
    else:
        assert inflate(packed, 10_000, GZIP) == expected


def test_the_limit_is_that_of_all_members_together() -> None:
    parts = gzip.compress(bytes(600)) + gzip.compress(bytes(400))
    assert inflate(parts, 1000, GZIP) == bytes(1000)
    with pytest.raises(TooLong, match="more than 999 bytes"):
        inflate(parts, 999, GZIP)


def test_a_bomb_behind_a_sound_member_takes_no_more_memory_than_the_limit() -> None:
    bomb = gzip.compress(fits_file()) + gzip.compress(bytes(200 * 2**20), 9)
    tracemalloc.start()
    try:
        assert reason_of(bomb) is Reason.BOMB
        assert tracemalloc.get_traced_memory()[1] < 8 * MAX_STAMP_BYTES
    finally:
        tracemalloc.stop()


def test_a_flood_of_empty_members_is_refused_soon() -> None:
    flood = gzip.compress(b"") * 200_000  # 4 MB, what a packet may have
    began = time.process_time()
    assert reason_of(gzip.compress(fits_file()) + flood) is Reason.BAD_GZIP
    assert time.process_time() - began < 1.0
    assert inflate(gzip.compress(b"a") * MOST_MEMBERS, 1000, GZIP) == b"a" * MOST_MEMBERS
