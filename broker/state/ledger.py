"""The books: which offsets were consumed and the outcome of each, and the objects. Reads and writes the marks.

A mark is a bit, so that redelivery cannot count twice and gaps in Kafka's offsets do not matter. `consumed` is marked
when a message is polled, separately from its outcome; stored and duplicate are marked by the script that stores.

Surveys create topics by the night: the books of a partition that has been quiet for a while are closed (`finish`),
so that the memory and time they take do not grow with the number of nights. Later marks open them again.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from skyheed.broker.errors import ConfigError
from skyheed.broker.state.books import (
    Books,
    ModelBooks,
    ObjectBooks,
    PartitionBooks,
    count,
    ones,
    pack_known,
    union,
    unpack_known,
)
from skyheed.broker.state.client import Client
from skyheed.broker.state.keys import SEGMENT_BITS, Keys

__all__ = ["Books", "Ledger", "ObjectBooks", "PartitionBooks"]

Mark = tuple[str, int, str]  # partition, offset, reason
DAY_S = 86_400.0
MOST_OPENED = 100_000  # partitions remembered as open
FINISH = 10  # partitions closed at a time: about a tenth of a second
_COUNTS = ("consumed", "stored", "duplicate", "skipped", "rejected")


class Ledger:
    """The books of one survey.

    Args:
        shards: as the SequenceStore's.
        keep_s: how long the bitmaps of a finished segment stay after they were folded into counts; a message that
            is redelivered within this time is recognised as stored.
        idle_s: a partition's books are closed after nothing has arrived for this long.
    """

    def __init__(
        self, client: Client, survey: str, *, shards: int = 16, keep_s: float = 14 * DAY_S, idle_s: float = 2 * DAY_S
    ) -> None:
        self._client = client
        self._keys = Keys(survey)
        self._shards = shards
        self._keep_ms = round(keep_s * 1000)
        self._idle_s = idle_s
        self._opened: dict[str, float] = {}  # partition -> time of our last mark, monotonic
        self._looked_at = ""  # the last partition that `finish` looked at
        self._begun: set[tuple[str, int]] = set()

    def ping(self) -> None:
        """Check that Redis answers and holds this survey in the expected number of shards.

        Raises:
            ConfigError: the number of shards is different.
            ServiceUnavailable, ServiceError: Redis is unavailable, or denies access.
        """
        self._client.ping()
        found = self._client.run([("GET", self._keys.layout)])[0]
        if found is None:
            commands = [("SET", self._keys.layout, self._shards, "NX"), ("GET", self._keys.layout)]
            found = self._client.run(commands)[1]
        if int(found) != self._shards:
            raise ConfigError(
                f"Redis holds {self._keys.survey} in {int(found)} shards and redis.shards is {self._shards}: "
                f"set redis.shards = {int(found)}"
            )

    def consumed(self, offsets: Mapping[str, Iterable[int]]) -> None:
        """Mark offsets, by partition, as consumed. Safe to repeat.

        The first mark of a new segment folds the finished segments before it.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable or full, or denies access.
        """
        begun = self._mark({("consumed", partition): list(found) for partition, found in offsets.items()})
        for partition in sorted({partition for partition, segment in begun - self._begun if segment}):
            self.fold(partition)
        self._begun |= begun

    def skipped(self, marks: Iterable[Mark]) -> None:
        """Mark (partition, offset, reason) as valid but not needed. Safe to repeat.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable or full, or denies access.
        """
        self._mark(_by_reason("skipped", marks))

    def set_aside(self, marks: Iterable[Mark]) -> None:
        """Mark (partition, offset, reason) as acknowledged by the dead-letter topic. Safe to repeat.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable or full, or denies access.
        """
        self._mark(_by_reason("rejected", marks))

    def settled(self, places: Sequence[tuple[str, int]]) -> list[bool]:
        """For each (partition, offset), whether it was consumed and has an outcome.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable, or denies access.
        """
        found = [False] * len(places)
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        for n, (partition, offset) in enumerate(places):
            groups[partition, offset // SEGMENT_BITS].append(n)
        for (partition, segment), members in groups.items():
            marks = self._segment(partition, segment)
            done = marks.pop("consumed") & union([bits.tobytes() for bits in marks.values()], SEGMENT_BITS // 8)
            done |= _known(self._fold_of(partition, segment))
            for n in members:
                byte, bit = divmod(places[n][1] % SEGMENT_BITS, 8)
                found[n] = bool(done[byte] & (128 >> bit))
        return found

    def books(self) -> Books:
        """Read the books; marks that are still being written show as missing.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable, or denies access.
        """
        found = sorted(self._segments().items())
        finished = f"{self._keys.prefix}finished"
        closed = self._client.run([("HMGET", finished, *(name for name, _ in found))])[0] if found else []
        partitions = []
        for (partition, segments), is_closed in zip(found, closed, strict=True):
            total = PartitionBooks(partition)
            for folded in () if is_closed else self._folded(partition):  # otherwise they are part of the totals
                total.add(_from_fold(partition, folded))
            for segment in sorted(segments):
                total.add(self._count(partition, segment))
            partitions.append(total)
        return Books([*partitions, *self._totals()], self._objects())

    def fold(self, partition: str) -> int:
        """Turn the partition's finished segments into counts and let their bitmaps expire; returns how many.

        A segment is finished when a later one has begun and every consumed offset in it has an outcome. Safe to repeat
        and to run twice at once; later marks in a folded segment are counted and folded in turn.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable or full, or denies access.
        """
        return sum(self._fold(partition, segment) for segment in sorted(self._segments().get(partition, ()))[:-1])

    def finish(self, limit: int = FINISH) -> bool:
        """Close the books of partitions that balance and have been quiet for `idle_s`, `limit` at a time.

        Safe to repeat and to run twice at once, even while marks arrive.

        Returns:
            Whether all partitions have been looked at; otherwise call again.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable or full, or denies access.
        """
        names = sorted(name.decode() for name in self._client.run([("SMEMBERS", self._keys.partitions)])[0])
        recent = self._client.run([("GET", self._recent(name)) for name in names])
        idle = [name for name, found in zip(names, recent, strict=True) if not found and name > self._looked_at]
        if idle:
            segments = self._segments()
            for name in idle[:limit]:
                self._finish(name, segments.get(name, set()))
        self._looked_at = idle[limit - 1] if len(idle) > limit else ""
        return not self._looked_at

    def _finish(self, partition: str, segments: set[int]) -> None:
        if not all([self._fold(partition, segment) for segment in sorted(segments)]):
            return
        total = PartitionBooks(partition)
        for folded in self._folded(partition):
            total.add(_from_fold(partition, folded))
        self._unlist(partition, *segments)
        self._client.call("finish", [(self._keys.prefix, partition, _counts_text(total))])
        if self._client.run([("GET", self._recent(partition))])[0]:  # a mark has come in the meantime
            self._client.call("reopen", [(self._keys.prefix, partition)])
            self._list(partition, segments)

    def _recent(self, partition: str) -> str:
        """The key that exists while something has come to the partition recently."""
        return f"{self._keys.partition(partition)}recent"

    def _reopen(self, partitions: Iterable[str]) -> None:
        """Reopen the books of partitions that may have been closed since our last mark."""
        now = time.monotonic()
        closed = [name for name in partitions if now - self._opened.get(name, -math.inf) > self._idle_s / 2]
        if closed:
            self._client.call_each([("reopen", self._keys.prefix, *closed)], durable=True)
        self._opened |= dict.fromkeys(partitions, now)
        if len(self._opened) > MOST_OPENED:
            self._opened = dict.fromkeys(partitions, now)

    def _totals(self) -> list[PartitionBooks]:
        """One row for all partitions whose books are closed."""
        raw = self._client.run([("HGETALL", f"{self._keys.prefix}totals")])[0]
        found = {name.decode(): int(number) for name, number in raw.items()}
        if not (partitions := found.pop("partitions", 0)):
            return []
        total = PartitionBooks(f"{partitions} finished")
        for name, number in found.items():
            outcome, _, reason = name.partition(".")
            if reason:
                getattr(total, outcome)[reason] += number
            else:
                setattr(total, outcome, number)
        total.skipped, total.rejected = +total.skipped, +total.rejected
        return [total]

    def _mark(self, marks: Mapping[tuple[str, str], Sequence[int]]) -> set[tuple[str, int]]:
        """Set the bits of (mark, partition); returns the (partition, segment) they are in."""
        commands: list[list[Any]] = []
        touched: dict[str, set[int]] = defaultdict(set)
        for (mark, partition), offsets in marks.items():
            base = self._keys.partition(partition)
            for segment, bits in _by_segment(offsets).items():
                key = f"{base}{mark}:{segment}"
                commands.append(["BITFIELD", key, *(word for bit in bits for word in ("SET", "u1", bit, 1))])
                commands.append(["PERSIST", key])  # a folded segment with new marks stays until it is folded again
                touched[partition].add(segment)
            commands.append(["SADD", f"{base}marks", mark])
        for partition, segments in touched.items():
            commands.append(["SADD", f"{self._keys.partition(partition)}segments", *segments])
            commands.append(["SET", self._recent(partition), 1, "PX", max(1, round(self._idle_s * 1000))])
        if touched:
            commands.append(["SADD", self._keys.partitions, *touched])
        self._client.run(commands, durable=True)
        self._reopen(touched)  # after the marks: whoever closes the books checks `recent` once more afterwards
        return {(partition, segment) for partition, segments in touched.items() for segment in segments}

    def _segments(self) -> dict[str, set[int]]:
        """The segments that have bitmaps, by partition; includes partitions that have only folded segments."""
        bases = [self._keys.shard(shard) for shard in range(self._shards)]
        first, *members = self._client.run(
            [("SMEMBERS", self._keys.partitions), *(("SMEMBERS", f"{base}segments") for base in bases)]
        )
        found: dict[str, set[int]] = {name.decode(): set() for name in first}
        for member in {m for each in members for m in each}:
            partition, _, segment = member.decode().rpartition(":")
            found.setdefault(partition, set()).add(int(segment))
        names = sorted(found)
        commands = [("SMEMBERS", f"{self._keys.partition(name)}segments") for name in names]
        for name, own in zip(names, self._client.run(commands), strict=True):
            found[name] |= {int(segment) for segment in own}
        return found

    def _segment(self, partition: str, segment: int) -> dict[str, Any]:
        """The bitmaps of a segment by mark; `consumed` is read last, because it is written first."""
        base = self._keys.partition(partition)
        marked = sorted(mark.decode() for mark in self._client.run([("SMEMBERS", f"{base}marks")])[0])
        own = [mark for mark in marked if mark != "consumed"]
        keys = [key for mark in ("stored", "duplicate") for key in self._shared(mark, partition, segment)]
        keys += [f"{base}{mark}:{segment}" for mark in own]
        raw = self._client.run([("GET", key) for key in keys])
        raw += self._client.run([("GET", f"{base}consumed:{segment}")])
        size, n = SEGMENT_BITS // 8, self._shards
        marks = {"stored": union(raw[:n], size), "duplicate": union(raw[n : 2 * n], size)}
        marks |= {mark: union([bits], size) for mark, bits in zip([*own, "consumed"], raw[2 * n :], strict=True)}
        return marks

    def _shared(self, mark: str, partition: str, segment: int) -> list[str]:
        """The bitmaps of a segment in the shards."""
        return [f"{self._keys.shard(shard)}{mark}:{partition}:{segment}" for shard in range(self._shards)]

    def _count(self, partition: str, segment: int) -> PartitionBooks:
        """The counts of a segment that are not yet folded."""
        marks = self._segment(partition, segment)
        return count(partition, segment * SEGMENT_BITS, marks, _known(self._fold_of(partition, segment)))

    def _folded(self, partition: str) -> list[dict[str, Any]]:
        return [
            json.loads(text) for text in self._client.run([("HVALS", f"{self._keys.partition(partition)}folded")])[0]
        ]

    def _fold_of(self, partition: str, segment: int) -> bytes:
        """The counts of a segment and the offsets they cover, as JSON; b"" for none."""
        return self._client.run([("HGET", f"{self._keys.partition(partition)}folded", segment)])[0] or b""

    def _fold(self, partition: str, segment: int) -> bool:
        """Turn a segment's bitmaps into counts and let them expire, unless it does not balance."""
        base, before = self._keys.partition(partition), self._fold_of(partition, segment)
        marks = self._segment(partition, segment)
        books = count(partition, segment * SEGMENT_BITS, marks, _known(before))
        if not books.balanced:
            return False
        if books.consumed:  # another process that folds at the same time has counted the same
            self._client.call("fold", [(base, segment, before, _fold_text(books, before, marks["consumed"]))])
        keys = [f"{base}{mark}:{segment}" for mark in marks if mark not in ("stored", "duplicate")]
        keys += [key for mark in ("stored", "duplicate") for key in self._shared(mark, partition, segment)]
        self._client.run([("PEXPIRE", key, self._keep_ms, "NX") for key in keys])
        if not any(ones(found) for found in marks.values()):
            self._unlist(partition, segment)
        return True

    def _unlist(self, partition: str, *segments: int) -> None:
        """Remove folded segments from the lists, so that nobody looks for their bitmaps."""
        self._client.run(self._listing("SREM", partition, segments))

    def _list(self, partition: str, segments: Iterable[int]) -> None:
        self._client.run(self._listing("SADD", partition, segments))

    def _listing(self, command: str, partition: str, segments: Iterable[int]) -> list[tuple[Any, ...]]:
        shards = [self._keys.shard(shard) for shard in range(self._shards)]
        own = [(command, f"{self._keys.partition(partition)}segments", segment) for segment in segments]
        return own + [(command, f"{base}segments", f"{partition}:{segment}") for segment in segments for base in shards]

    def _objects(self) -> ObjectBooks:
        replies = self._client.call("objects", [(self._keys.shard(shard),) for shard in range(self._shards)])
        touched, expired, lost = (sum(column) for column in zip(*(reply[0] for reply in replies), strict=True))
        models: dict[str, ModelBooks] = defaultdict(ModelBooks)
        for name, classified, declined, fresh, due, in_flight, unasked in (m for reply in replies for m in reply[1:]):
            models[name.decode()] += ModelBooks(classified, declined, fresh + due + in_flight, unasked)
        if len(models) > 1:
            models.pop("", None)  # a shard that no model has joined yet
        return ObjectBooks(touched, expired, lost, dict(sorted(models.items())))


def _by_reason(outcome: str, marks: Iterable[Mark]) -> dict[tuple[str, str], list[int]]:
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for partition, offset, reason in marks:
        groups[f"{outcome}.{reason}", partition].append(offset)
    return groups


def _by_segment(offsets: Iterable[int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for offset in offsets:
        segment, bit = divmod(offset, SEGMENT_BITS)
        groups[segment].append(bit)
    return groups


def _known(fold: bytes) -> Any:
    """The offsets of a segment that its fold covers."""
    return union([unpack_known(json.loads(fold)["known"])] if fold else [], SEGMENT_BITS // 8)


def _fold_text(books: PartitionBooks, before: bytes, consumed: Any) -> str:
    """Counts and the offsets they cover in one value, including those of an earlier fold."""
    if before:
        books.add(_from_fold(books.partition, json.loads(before)))
    counts = {name: getattr(books, name) for name in _COUNTS}
    return json.dumps({**counts, "known": pack_known(consumed | _known(before))})


def _counts_text(books: PartitionBooks) -> str:
    """As finish.lua expects them: one more partition's books, and its counts."""
    counts = {"partitions": 1, "consumed": books.consumed, "stored": books.stored, "duplicate": books.duplicate}
    counts |= {f"skipped.{reason}": number for reason, number in books.skipped.items()}
    counts |= {f"rejected.{reason}": number for reason, number in books.rejected.items()}
    return " ".join(f"{name} {number}" for name, number in counts.items())


def _from_fold(partition: str, folded: Mapping[str, Any]) -> PartitionBooks:
    books = PartitionBooks(partition)
    books.add(PartitionBooks(partition, **{name: folded[name] for name in _COUNTS}))
    return books
