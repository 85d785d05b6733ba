"""The cache of a causal network: what it stores for every epoch, and how it later checks whether that is still valid.
Numpy only.

Each entry has two digests and some numbers. The first digest covers the epoch itself: its stamp's vector is valid
while it matches. The second covers all epochs up to it: keys, values and outputs are valid while it matches, too, so
that a late epoch, or a window that has moved, invalidates everything after it.

In a joined history (`History.joined`) only the first is used: neighbours change without a trace in the epochs of the
object that the entries are cached with.
"""

import hashlib
from collections.abc import Mapping
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


class Found:
    """The cached values of one history, as far as they are still valid.

    Args:
        width: numbers cached per epoch; the first `vector` of them are its stamp's vector.
        dtype: of those numbers.

    Attributes:
        own, upto: the digests of the history's epochs.
        values: float32 [n, width]; zero where nothing is valid.
        stamps: bool [n], epochs whose stamp's vector is known.
        whole: number of epochs, counted from the first, with all their values.
    """

    def __init__(self, history: History, width: int, dtype: np.dtype[Any]) -> None:
        self.own, self.upto = digests(history)
        n = len(history)
        self.values, self.stamps = np.zeros((n, width), np.float32), np.zeros(n, bool)
        followed = np.zeros(n, bool)
        for epoch, raw in _sound(history.kept, n, 2 * DIGEST + width * dtype.itemsize):
            first, second = raw[:DIGEST], raw[DIGEST : 2 * DIGEST]
            if first == self.own[epoch]:
                self.stamps[epoch] = True
                self.values[epoch] = np.frombuffer(raw, dtype, offset=2 * DIGEST)
                followed[epoch] = second == self.upto[epoch] and not history.joined
        self.whole = n if followed.all() else int(followed.argmin())


def _sound(kept: Mapping[int, bytes], epochs: int, size: int) -> list[tuple[int, bytes]]:
    """Epochs and bytes of entries with a plausible form."""
    return [(epoch, raw) for epoch, raw in kept.items() if 0 <= epoch < epochs and len(raw) == size]
