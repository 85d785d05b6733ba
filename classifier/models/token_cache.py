"""The cache of a causal network: what it stores for every epoch, and how it later checks whether that is still valid.
Numpy only.

Each entry has two digests and some numbers. The first digest covers the epoch itself: its stamp's vector is valid
while it matches. The second covers all epochs up to it: keys, values and outputs are valid while it matches, too, so
that a late epoch, or a window that has moved, invalidates everything after it.

In a joined history (`History.joined`) only the first is used: neighbours change without a trace in the epochs of the
object that the entries are cached with.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.history import History

DIGEST = 8  # bytes
Row = NDArray[np.generic]


def digests(history: History) -> tuple[list[bytes], list[bytes]]:
    """Digests of every epoch by itself, and of all epochs up to it."""
    own = [
        hashlib.blake2b(f"{s} {m!r} {b}".encode(), digest_size=DIGEST).digest()
        for s, m, b in zip(history.source_id.tolist(), history.mjd.tolist(), history.band.tolist(), strict=True)
    ]
    running, upto = hashlib.blake2b(b"joined" if history.joined else b"", digest_size=DIGEST), []
    for one in own:
        running.update(one)
        upto.append(running.digest())
    return own, upto


def pack(own: bytes, upto: bytes, values: Row) -> bytes:
    """The cache entry of one epoch, as bytes."""
    return own + upto + values.tobytes()


@dataclass(frozen=True)
class Found:
    """The cached values of one history, as far as they are still valid.

    Attributes:
        own, upto: the digests of the history's epochs.
        values: float32 [n, width]; zero where nothing is valid.
        stamps: bool [n], epochs whose stamp's vector is known.
        whole: number of epochs, counted from the first, with all their values.
    """

    own: list[bytes]
    upto: list[bytes]
    values: NDArray[np.float32]
    stamps: NDArray[np.bool_]
    whole: int


def find(histories: Sequence[History], width: int, dtype: np.dtype[Any]) -> list[Found]:
    """What is cached of some histories, checked for all of them at once.

    Args:
        width: numbers cached per epoch; the first `vector` of them are its stamp's vector.
        dtype: of those numbers.
    """
    names = [digests(h) for h in histories]
    starts = np.concatenate([[0], np.cumsum([len(h) for h in histories])])
    entry = np.dtype([("own", "<u8"), ("upto", "<u8"), ("values", dtype, (width,))])
    assert entry.itemsize == 2 * DIGEST + width * dtype.itemsize
    places: list[int] = []
    raw: list[bytes] = []
    for start, history in zip(starts.tolist(), histories, strict=False):
        for epoch, one in _sound(history.kept, len(history), entry.itemsize):
            places.append(start + epoch)
            raw.append(one)
    given, at = np.frombuffer(b"".join(raw), entry), np.array(places, np.int64)
    own, upto = (np.frombuffer(b"".join(d for pair in names for d in pair[part]), "<u8") for part in (0, 1))
    valid = given["own"] == own[at]
    given, at = given[valid], at[valid]
    values, stamps = np.zeros((starts[-1], width), np.float32), np.zeros(starts[-1], bool)
    followed = np.zeros(starts[-1], bool)
    values[at], stamps[at], followed[at] = given["values"], True, given["upto"] == upto[at]
    return [
        Found(*digest, values[a:b], stamps[a:b], 0 if h.joined else _leading(followed[a:b]))
        for h, digest, a, b in zip(histories, names, starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]


def _leading(true: NDArray[np.bool_]) -> int:
    """How many are true before the first that is not."""
    return len(true) if true.all() else int(true.argmin())


def _sound(kept: Mapping[int, bytes], epochs: int, size: int) -> list[tuple[int, bytes]]:
    """Epochs and bytes of entries with a plausible form."""
    return [(epoch, raw) for epoch, raw in kept.items() if 0 <= epoch < epochs and len(raw) == size]
