"""Batch sizes of a worker: how many bytes it fetches, and for how long it classifies, before it checks for signals."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from skyheed.broker.state.client import Claim
from skyheed.broker.state.sequence import Lane, StoredSequence
from skyheed.classifier.history import LONGEST
from skyheed.classifier.prediction import Needs
from skyheed.classifier.stamp import STAMP_SIZE

FIRST = 16  # epochs classified together while the model's speed is unknown
IMAGE_BYTES = 2 * STAMP_SIZE**2  # float16
EPOCH_BYTES = 256  # header, photometry and context of each epoch
KEPT_BYTES = 4_096  # cached by a model for each epoch, at most: vector takes 3.1 kB
SHARE_OF_LEASE = 0.25  # that one batch may take
HALF = 0.5  # of the lease: objects not started by then return to the queue


@dataclass(frozen=True)
class BatchLimits:
    """How much a worker may process at a time.

    Attributes:
        bytes: histories fetched at a time.
        seconds: time classifying at a time; a single long history may take longer.
    """

    bytes: int = 64 * 2**20
    seconds: float = 2.0


class Batching:
    """Splits claimed objects into fetches, and fetches into batches to classify.

    Args:
        lease_s: lifetime of a claim.
        lane: whether stamps and cached tokens are fetched.
    """

    def __init__(self, limits: BatchLimits, lease_s: float, needs: Needs, lane: Lane) -> None:
        epoch = EPOCH_BYTES + IMAGE_BYTES * len(needs.images) + KEPT_BYTES * bool(lane.span)
        self.epochs = max(1, limits.bytes // epoch)  # fetched at a time
        self._seconds = min(limits.seconds, SHARE_OF_LEASE * lease_s)
        self._lease_s = lease_s
        self._an_epoch: float | None = None  # seconds

    def late(self, claimed: float) -> bool:
        """Whether objects claimed at that time (monotonic) and not yet started must return to the queue."""
        return time.monotonic() - claimed > HALF * self._lease_s

    def fetched(self, claims: Sequence[Claim], joined: bool = False) -> Iterator[Sequence[Claim]]:
        """The claims in chunks that fit into memory.

        Args:
            joined: others of unknown length are read together with each object.
        """
        first = epochs = 0
        for n, claim in enumerate(claims):
            own = LONGEST if joined else claim.epochs or LONGEST
            if n > first and epochs + own > self.epochs:
                yield claims[first:n]
                first, epochs = n, 0
            epochs += own
        if claims:
            yield claims[first:]

    def first(self, sequences: Sequence[StoredSequence]) -> int:
        """How many of the sequences to classify together; at least one."""
        most = FIRST if self._an_epoch is None else self._seconds / self._an_epoch
        return max(1, sum(1 for epochs in accumulate(map(_epochs, sequences)) if epochs <= most))

    def took(self, sequences: Sequence[StoredSequence], seconds: float) -> None:
        """Record how long these took. The estimate rises at once and falls gradually."""
        new = max(seconds, 1e-6) / sum(map(_epochs, sequences))
        self._an_epoch = max(new, ((self._an_epoch or new) + new) / 2)


def _epochs(sequence: StoredSequence) -> int:
    """Epochs to be computed; each object counts as one more."""
    return 1 + len(sequence.stamps if sequence.looked else sequence.header)
