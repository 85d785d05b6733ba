"""What a consumer knows about a partition that it holds, discarded with the partition. Independent of the client.

Offsets are never counted: control records, aborted transactions and compaction leave gaps. The end of a partition is
where the broker reports that nothing follows (an end-of-partition event). With isolation.level=read_committed this is
the last stable offset: beyond it are records of open transactions.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from skyheed.broker.kafka.connection import Place

UNKNOWN = -1
TRANSACTION_S = 30.0  # how long a drain waits for a transaction to end


@dataclass(slots=True)
class Partition:
    """One partition since it was last assigned to us.

    Attributes:
        topic_id: id of the topic, read before anything was fetched; empty if the broker has no ids, None while unknown.
        position: next offset to read.
        target: where a drain ends: the high watermark when reading began.
        since: the offset from which everything is read, if only a window is.
        finished: a drain has read it to its target; never reset.
        unreadable: offsets beyond the last stable one, as of the last end-of-partition event.
        paused: what librdkafka was told last.
        done: next offset after what the caller settled.
        committed: what was sent to the group.
        handed: offsets handed to the caller and not yet settled.
    """

    topic_id: str | None = None
    position: int = UNKNOWN
    target: int = UNKNOWN
    since: int | None = None
    finished: bool = False
    unreadable: int = 0
    paused: bool = False
    done: int = UNKNOWN
    committed: int = UNKNOWN
    handed: set[int] = field(default_factory=set)
    _at_end: bool = False
    _since: float = field(default_factory=time.monotonic)

    def message(self, offset: int, high: int, remember: bool) -> None:
        """A message arrived; `high` is the high watermark, `remember` says whether it is to be settled."""
        if offset in self.handed:  # it was kept for a while
            return
        if (
            offset < self.position
        ):  # the partition was lost and regained, or restarts: earlier settlements no longer count
            self.done = self.committed = UNKNOWN
            self.handed.clear()
        if remember:
            self.handed.add(offset)
        self._at_end, self.unreadable = False, 0
        self._reach(offset + 1, high)

    def end(self, offset: int, high: int) -> None:
        """Nothing readable remains below `offset`."""
        self._at_end, self._since = True, time.monotonic()
        self.unreadable = max(0, high - offset)
        self._reach(offset, high)
        self.finished |= not self.unreadable

    def settle(self, offsets: Iterable[int]) -> None:
        """The caller is done with these and all before them; those of an earlier assignment are ignored."""
        last = max((offset for offset in offsets if offset in self.handed), default=UNKNOWN)
        if last != UNKNOWN:
            self.handed = {offset for offset in self.handed if offset > last}
            self.done = max(self.done, last + 1)

    def to_commit(self) -> int | None:
        """The offset from which the group should continue, if not yet committed.

        At the end it is the end itself, with the control records before it: else the group would never catch up.
        """
        offset = self.position if self._at_end and not self.handed else self.done
        return None if offset in (UNKNOWN, self.committed) else offset

    def lag(self, high: int) -> int | None:
        """Readable offsets still to read; None while nothing is known."""
        if UNKNOWN in (high, self.position):
            return None
        return max(0, high - self.position - self.unreadable)

    def blocked_s(self) -> float:
        """How long an open transaction has kept a drain from its target; 0 if none does."""
        hidden = self._at_end and self.unreadable and not self.finished
        return time.monotonic() - self._since if hidden else 0.0

    def _reach(self, position: int, high: int) -> None:
        self.position = position
        if self.target == UNKNOWN:
            self.target = high
        self.finished |= self.target != UNKNOWN and position >= self.target


def hanging(unfinished: Mapping[Place, Partition]) -> str:
    """Says which transaction keeps all of these from their end, if that is so for long; empty otherwise."""
    if min(part.blocked_s() for part in unfinished.values()) < TRANSACTION_S:
        return ""
    (topic, number), part = next(iter(unfinished.items()))
    return (
        f"{topic} partition {number} cannot be read to its end: a transaction that began at offset {part.position} "
        f"has not ended for {TRANSACTION_S:.0f} s, and it and what follows it ({part.unreadable} offsets) "
        "are unread; end it (kafka-transactions.sh abort), or set isolation.level = read_uncommitted"
    )
