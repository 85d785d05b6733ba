"""How much a worker has in hand at a time: bytes that it fetches, and seconds that it classifies without looking up."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

from skyheed.broker.state.sequence import Lane, StoredSequence
from skyheed.classifier.history import LONGEST
from skyheed.classifier.prediction import Needs

T = TypeVar("T")
FIRST = 16  # epochs that are classified together before anything is known of the model's speed
IMAGE_BYTES = 2 * 32 * 32  # float16
EPOCH_BYTES = 256  # header, photometry and context, for each epoch
KEPT_BYTES = 4_096  # of what a model keeps of an epoch, at most: vector has 3.1 kB
SHARE_OF_LEASE = 0.25  # that one portion may take
HALF = 0.5  # of the lease: what has not been begun by then goes back to the queue


@dataclass(frozen=True)
class BatchLimits:
    """What a worker may have in hand at a time.

    Attributes:
        bytes: of histories that are fetched at a time.
        seconds: of classifying at a time; a single long history may take longer.
    """

    bytes: int = 64 * 2**20
    seconds: float = 2.0


class Batching:
    """Cuts what was claimed into what is fetched, and that into what is classified at a time.

    Args:
        lease_s: how long a claim holds.
        lane: says whether stamps and kept things are fetched.
    """

    def __init__(self, limits: BatchLimits, lease_s: float, needs: Needs, lane: Lane) -> None:
        epoch = EPOCH_BYTES + IMAGE_BYTES * len(needs.images) + KEPT_BYTES * bool(lane.span)
        self.objects = max(1, limits.bytes // (LONGEST * epoch))  # fetched at a time: each may be the largest there is
        self._seconds = min(limits.seconds, SHARE_OF_LEASE * lease_s)
        self._lease_s = lease_s
        self._an_epoch: float | None = None  # seconds

    def late(self, claimed: float) -> bool:
        """Whether what was claimed at that time (monotonic) and has not been begun has to go back."""
        return time.monotonic() - claimed > HALF * self._lease_s

    def fetched(self, claims: Sequence[T]) -> Iterator[Sequence[T]]:
        """The claims in pieces that fit into memory."""
        return (claims[n : n + self.objects] for n in range(0, len(claims), self.objects))

    def first(self, sequences: Sequence[StoredSequence]) -> int:
        """How many of the sequences to classify together: one at least."""
        most = FIRST if self._an_epoch is None else self._seconds / self._an_epoch
        return max(1, sum(1 for epochs in accumulate(map(_epochs, sequences)) if epochs <= most))

    def took(self, sequences: Sequence[StoredSequence], seconds: float) -> None:
        """Learn how long these took. A slower model is believed at once, a faster one by and by."""
        new = max(seconds, 1e-6) / sum(map(_epochs, sequences))
        self._an_epoch = max(new, ((self._an_epoch or new) + new) / 2)


def _epochs(sequence: StoredSequence) -> int:
    """To be computed; an object counts for one more."""
    return 1 + len(sequence.stamps if sequence.looked else sequence.header)
