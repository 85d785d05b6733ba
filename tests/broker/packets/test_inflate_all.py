"""Many gzip files unpacked at once: the bytes that each alone has, or nothing."""

import gzip
import io
import random
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from astropy.io import fits

from skyheed.broker.errors import PacketError
from skyheed.broker.packets import inflate, stamps
from skyheed.broker.packets.fits import read_image, unpacked
from skyheed.broker.packets.inflate import GZIP, InflateError, TooLong, inflate_all
from skyheed.broker.packets.stamps import Waiting, WantedStamps
from skyheed.classifier.stamp import NORTH_UP

LIMIT = 100_000
RNG = random.Random(5)


def some_files(count: int = 12) -> list[bytes]:
    contents = [RNG.randbytes(RNG.randrange(1, 30_000)) + bytes(RNG.randrange(2000)) for _ in range(count)]
    return [gzip.compress(content, RNG.choice([1, 6, 9])) for content in contents]


def named(content: bytes) -> bytes:
    """A gzip file that begins with its name, as many tools write it."""
    out = io.BytesIO()
    with gzip.GzipFile("candid1.fits", "wb", fileobj=out) as file:
        file.write(content)
    return out.getvalue()


def alone(data: bytes) -> bytes | None:
    try:
        return inflate.inflate(data, LIMIT, GZIP)
    except (InflateError, TooLong):
        return None


def test_together_as_alone() -> None:
    files = [*some_files(), named(b"x" * 5000), named(b"")]
    assert inflate_all(files, LIMIT) == [alone(data) for data in files]
    assert inflate_all([], LIMIT) == []


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-9],
    "a wrong checksum": lambda data: data[:-8] + bytes([data[-8] ^ 1]) + data[-7:],
    "a wrong length": lambda data: data[:-4] + bytes([data[-4] ^ 1]) + data[-3:],
    "a length that is another file's": lambda data: data[:-4] + (100).to_bytes(4, "little"),
    "text behind it": lambda data: data + b"behind",
    "two members": lambda data: data + gzip.compress(b"more"),
    "an empty member first": lambda data: gzip.compress(b"") + data,
    "zeros behind it": lambda data: data + bytes(7),
    "a bomb": lambda _: gzip.compress(bytes(LIMIT + 1)),
    "a bomb that denies it": lambda _: gzip.compress(bytes(LIMIT + 1))[:-4] + b"\1\0\0\0",
    "bytes that are none": lambda _: b"\x1f\x8b\x08\x00" + RNG.randbytes(50),
    "flags": lambda data: data[:3] + b"\x10" + data[4:10] + b"comment\0" + data[10:],
    "the beginning alone": lambda data: data[:10],
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("where", [0, 5, 11])
def test_what_is_said_of_a_file_is_what_it_holds(harm: str, where: int) -> None:
    files = some_files()
    files[where] = HARMS[harm](files[where])
    together = inflate_all(files, LIMIT)
    for data, found in zip(files, together, strict=True):
        assert found is None or found == alone(data)
    if alone(files[where]) is None:
        assert together[where] is None


def test_a_file_cannot_continue_in_the_next() -> None:
    """Two that together are one valid file, and whose ends state the lengths that they would then have."""
    inner = gzip.compress(b"what the second one begins with")
    content = RNG.randbytes(500) + (0).to_bytes(4, "little") + inner + b"and so on"
    whole = gzip.compress(content, 0)  # stored as it is
    at = whole.index(inner)
    first, second = whole[:at], whole[at:]
    assert gzip.decompress(first + second) == content
    assert inflate_all([first, second], LIMIT) == [None, None]


def test_files_that_come_to_too_much_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [gzip.compress(bytes(LIMIT)) for _ in range(6)]
    monkeypatch.setattr(inflate, "_MOST_TOGETHER", 6 * LIMIT)
    assert inflate_all(files, LIMIT) == [bytes(LIMIT)] * 6
    monkeypatch.setattr(inflate, "_MOST_TOGETHER", 6 * LIMIT - 1)
    assert inflate_all(files, LIMIT) == [None] * 6


def test_other_threads_run_meanwhile() -> None:
    files = [gzip.compress(RNG.randbytes(30_000)) for _ in range(250)]
    go, ran = threading.Event(), []
    thread = threading.Thread(target=lambda: (go.wait(), ran.append(1)))
    thread.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(60)  # no thread is interrupted: the other one runs only if this one lets it
    try:
        go.set()
        until = time.monotonic() + 20  # a busy machine may not run the other one the first time
        while True:
            found = inflate_all(files, LIMIT)
            meanwhile = len(ran)
            if meanwhile or time.monotonic() > until:
                break
    finally:
        sys.setswitchinterval(before)
    thread.join()
    assert meanwhile == 1
    assert None not in found


def stamp(fault: str = "") -> bytes:
    out = io.BytesIO()
    fits.PrimaryHDU(np.random.default_rng(RNG.randrange(10**6)).normal(100, 5, (63, 63)).astype(np.float32)).writeto(
        out
    )
    data = out.getvalue().replace(b"SIMPLE  =", b"SIMPLE2 =") if fault == "no FITS" else out.getvalue()
    packed = gzip.compress(gzip.compress(data) if fault == "gzipped twice" else data, 1)
    return packed[:-1] if fault == "cut" else packed


FAULTS = ["", "", "", "cut", "", "no FITS", "", "gzipped twice", "", ""]


def result_of(wanted: WantedStamps) -> object:
    try:
        made, flags = wanted.result()
    except PacketError as error:
        return error.reason, error.detail
    return flags, {kind: pixels.tobytes() for kind, pixels in made.items()}


@pytest.mark.parametrize("faults", [[""], FAULTS])
def test_stamps_unpacked_ahead_are_those_of_each_packet_alone(
    faults: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "MOST_BYTES", 200_000)
    files = [{kind: stamp(faults[n % len(faults)]) for kind in ("science", "template")} for n in range(40)]
    waiting, wanted = Waiting(), [WantedStamps(own, 2.5, lambda _: (None, NORTH_UP)) for own in files]
    for n, one in enumerate(wanted):
        waiting.add(one)
        if n == 21:
            one.result()  # a packet that is finished before its turn
    waiting.make()
    assert all(not one.files for one in wanted)
    single = [WantedStamps(own, 2.5, lambda _: (None, NORTH_UP)) for own in files]
    assert [result_of(one) for one in wanted] == [result_of(one) for one in single]


def test_files_that_read_image_would_refuse_stay_as_they_are() -> None:
    files = [stamp(fault) for fault in FAULTS if fault != "cut"]
    for before, after, fault in zip(files, unpacked(files), [f for f in FAULTS if f != "cut"], strict=True):
        if fault:
            assert after == before
        else:
            assert after.startswith(b"SIMPLE")
            np.testing.assert_array_equal(read_image(after).pixels, read_image(before).pixels)
