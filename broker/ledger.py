"""The books: what became of every offset and of every object, so that a loss shows.

For each partition: distinct offsets consumed = stored + duplicate + skipped + rejected. Each book is a bitmap by
offset, so redelivery cannot count twice and gaps in Kafka's offsets do not matter. For objects: touched = classified +
declined + pending. A message of several records may stand in several books; the first of rejected, stored, duplicate,
skipped counts.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .keys import SEGMENT_BITS, books_prefix, partition_prefix, segment_of, shard_prefix
from .state import State

Mark = tuple[str, int, str]  # partition, offset, reason
PRECEDENCE = ("rejected", "stored", "duplicate", "skipped")
REDRIVEN = "redriven:"  # prefix of the books of dead letters that were sent through again
SHOWN = 5  # offsets named when a row does not balance
CHUNK = 5000  # marks a script call


@dataclass
class Row:
    """The books of one partition."""

    partition: str
    consumed: int = 0
    stored: int = 0
    duplicate: int = 0
    skipped: int = 0
    rejected: int = 0
    missing: int = 0  # consumed, but without an outcome
    unexpected: int = 0  # an outcome, but never consumed
    missing_offsets: list[int] = field(default_factory=list)
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def balanced(self) -> bool:
        """Every consumed offset has one outcome, and every outcome was consumed."""
        settled = self.stored + self.duplicate + self.skipped + self.rejected
        return self.missing == 0 and self.unexpected == 0 and self.consumed == settled


@dataclass
class Objects:
    """The books of the objects."""

    touched: int = 0
    classified: int = 0
    declined: int = 0
    pending: int = 0
    expired: int = 0

    @property
    def balanced(self) -> bool:
        """Every touched object was answered or waits."""
        return self.touched == self.classified + self.declined + self.pending


@dataclass
class Books:
    """Everything at one time."""

    rows: list[Row]
    objects: Objects

    @property
    def balanced(self) -> bool:
        """True if nothing was lost or counted twice."""
        return self.objects.balanced and all(row.balanced for row in self.rows)

    @property
    def consumed(self) -> int:
        """Distinct offsets consumed, without those of dead letters sent through again."""
        return self._total("consumed")

    @property
    def pending(self) -> int:
        """Objects that wait for an answer."""
        return self.objects.pending

    def summary(self) -> dict[str, Any]:
        """The totals, as the demo prints them."""
        return {
            "consumed": self.consumed,
            "stored": self._total("stored"),
            "duplicates": self._total("duplicate"),
            "skipped": self._total("skipped"),
            "rejected": self._total("rejected"),
            "objects": self.objects.touched,
            "classified": self.objects.classified,
            "declined": self.objects.declined,
            "pending": self.objects.pending,
            "balanced": self.balanced,
        }

    def to_json(self) -> dict[str, Any]:
        """Totals, every partition and the objects."""
        rows = [{**asdict(row), "balanced": row.balanced} for row in self.rows]
        return {**self.summary(), "expired": self.objects.expired, "partitions": rows}

    def to_text(self) -> str:
        """A table that a person reads."""
        names = ("consumed", "stored", "duplicate", "skipped", "rejected")
        width = max([len(row.partition) for row in self.rows] + [9])
        lines = [f"{'partition':<{width}}" + "".join(name.rjust(11) for name in names) + "  balanced"]
        for row in self.rows:
            counts = "".join(str(getattr(row, name)).rjust(11) for name in names)
            lines.append(f"{row.partition:<{width}}{counts}  {'yes' if row.balanced else 'NO'}{_trouble(row)}")
        lines += [f"  {kind} {reason}: {n}" for kind, reasons in self._reasons().items() for reason, n in reasons]
        o = self.objects
        verdict = "balanced" if o.balanced else "NOT BALANCED"
        lines.append(
            f"objects: {o.touched} touched = {o.classified} classified + {o.declined} declined + {o.pending} pending"
            f" ({verdict}; {o.expired} forgotten so far)"
        )
        return "\n".join(lines)

    def _reasons(self) -> dict[str, list[tuple[str, int]]]:
        totals: dict[str, dict[str, int]] = {}
        for row in self.rows:
            for kind, reasons in row.reasons.items():
                for reason, count in reasons.items():
                    totals.setdefault(kind, {}).setdefault(reason, 0)
                    totals[kind][reason] += count
        return {kind: sorted(reasons.items()) for kind, reasons in sorted(totals.items())}

    def _total(self, name: str) -> int:
        return sum(getattr(row, name) for row in self.rows if not row.partition.startswith(REDRIVEN))


def _trouble(row: Row) -> str:
    if row.balanced:
        return ""
    named = ", ".join(map(str, row.missing_offsets))
    return f"  ({row.missing} without outcome{f': offsets {named}' if named else ''}; {row.unexpected} never consumed)"


class Ledger:
    """Writes and reads the books of one survey.

    Args:
        keep_s: how long the bitmaps of a finished segment stay after they were folded into counts.
    """

    def __init__(self, state: State, survey: str, *, shards: int = 16, keep_s: float = 14 * 86_400.0) -> None:
        self._state = state
        self._survey = survey
        self._prefixes = [shard_prefix(survey, shard) for shard in range(shards)]
        self._all = books_prefix(survey)
        self._keep_s = round(keep_s)
        self._registered: set[str] = set()

    def ping(self) -> None:
        """Raise what keeps us from Redis."""
        self._state.ping()

    def consumed(self, offsets: Mapping[str, Sequence[int]]) -> None:
        """Mark offsets (by partition) as consumed, before anything is known of their outcome."""
        self._register({f"{segment_of(o)} {partition}" for partition, each in offsets.items() for o in each})
        self._mark("consumed", [(partition, o, "") for partition, each in offsets.items() for o in each])

    def skipped(self, marks: Sequence[Mark]) -> None:
        """Mark offsets as sound but of no use here."""
        self._mark("skipped", marks)

    def set_aside(self, marks: Sequence[Mark]) -> None:
        """Mark offsets as acknowledged by the dead-letter topic."""
        self._mark("rejected", marks)

    def settled(self, places: Sequence[tuple[str, int]]) -> list[bool]:
        """For each (partition, offset), whether it was consumed."""

        def fill(pipe: Any) -> None:
            for partition, offset in places:
                pipe.getbit(*self._bit(partition, offset))

        return [bool(bit) for bit in self._state.pipeline(fill)]

    def books(self) -> Books:
        """Read everything; for an exact balance nothing should be consuming meanwhile."""
        folded = self._folded()
        rows: dict[str, Row] = {}
        for name in sorted(self._segments()):
            segment, partition = name.split(" ", 1)
            row = rows.setdefault(partition, Row(partition))
            if name in folded:
                _add(row, folded[name])
            else:
                _add(row, self._count(int(segment), partition))
        for partition, row in rows.items():
            row.reasons = self._reasons(partition)
        counts = np.sum(self._state.run([("objects", prefix, []) for prefix in self._prefixes]), axis=0)
        return Books([rows[name] for name in sorted(rows)], Objects(*map(int, counts)))

    def fold(self) -> int:
        """Turn the bitmaps of finished segments into counts and let them expire; returns how many were folded.

        A segment is finished when all of it that was consumed has an outcome and a later one has begun.
        """
        names, folded = self._segments(), self._folded()
        newest: dict[str, int] = {}
        for name in names:
            segment, partition = name.split(" ", 1)
            newest[partition] = max(newest.get(partition, 0), int(segment))
        done = 0
        for name in sorted(names - set(folded)):
            segment, partition = name.split(" ", 1)
            counts = self._count(int(segment), partition) if int(segment) < newest[partition] else None
            if counts is not None and not counts["missing"] and not counts["unexpected"]:
                self._fold(name, int(segment), partition, counts)
                done += 1
        return done

    def _fold(self, name: str, segment: int, partition: str, counts: Mapping[str, Any]) -> None:
        self._state.pipeline(lambda pipe: pipe.hset(f"{self._all}folded", name, json.dumps(counts)))

        def expire(pipe: Any) -> None:
            for key in self._keys(segment, partition):
                pipe.expire(key, self._keep_s)

        self._state.pipeline(expire)

    def _register(self, names: set[str]) -> None:
        unknown = names - self._registered
        if unknown:
            self._state.pipeline(lambda pipe: pipe.sadd(f"{self._all}segments", *unknown))
            self._registered |= unknown

    def _mark(self, book: str, marks: Sequence[Mark]) -> None:
        by_partition: dict[str, list[Any]] = {}
        for partition, offset, reason in marks:
            by_partition.setdefault(partition, []).extend((offset, str(reason)))
        self._state.run(
            [
                ("mark", partition_prefix(self._survey, partition), [book, *words[at : at + 2 * CHUNK]])
                for partition, words in by_partition.items()
                for at in range(0, len(words), 2 * CHUNK)
            ]
        )

    def _bit(self, partition: str, offset: int) -> tuple[str, int]:
        key = f"{partition_prefix(self._survey, partition)}consumed:{segment_of(offset)}"
        return key, offset & ((1 << SEGMENT_BITS) - 1)

    def _segments(self) -> set[str]:
        members = self._state.pipeline(lambda pipe: pipe.smembers(f"{self._all}segments"))[0]
        return {member.decode() for member in members}

    def _folded(self) -> dict[str, dict[str, Any]]:
        found = self._state.pipeline(lambda pipe: pipe.hgetall(f"{self._all}folded"))[0]
        return {name.decode(): json.loads(counts) for name, counts in found.items()}

    def _reasons(self, partition: str) -> dict[str, dict[str, int]]:
        prefix = partition_prefix(self._survey, partition)
        kinds = ("skipped", "rejected")

        def fill(pipe: Any) -> None:
            for kind in kinds:
                pipe.hgetall(f"{prefix}reasons:{kind}")

        found = zip(kinds, self._state.pipeline(fill), strict=True)
        return {kind: {r.decode(): int(n) for r, n in sorted(each.items())} for kind, each in found if each}

    def _keys(self, segment: int, partition: str) -> list[str]:
        """consumed, rejected, skipped, then stored of every shard, then duplicate of every shard."""
        own = partition_prefix(self._survey, partition)
        keys = [f"{own}{book}:{segment}" for book in ("consumed", "rejected", "skipped")]
        for book in ("stored", "duplicate"):
            keys += [f"{prefix}b:{book}:{segment}:{partition}" for prefix in self._prefixes]
        return keys

    def _count(self, segment: int, partition: str) -> dict[str, Any]:
        keys = self._keys(segment, partition)

        def fill(pipe: Any) -> None:
            for key in keys:
                pipe.get(key)

        maps = self._state.pipeline(fill)
        shards = len(self._prefixes)
        books = {
            "consumed": _union(maps[:1]),
            "rejected": _union(maps[1:2]),
            "skipped": _union(maps[2:3]),
            "stored": _union(maps[3 : 3 + shards]),
            "duplicate": _union(maps[3 + shards :]),
        }
        return _settle(books, segment << SEGMENT_BITS)


def _union(maps: Iterable[bytes | None]) -> NDArray[np.uint8]:
    """The OR of bitmaps of any length, at the length of a full segment."""
    union = np.zeros(1 << (SEGMENT_BITS - 3), np.uint8)
    for raw in maps:
        if raw:
            part = np.frombuffer(raw, np.uint8)
            union[: len(part)] |= part
    return union


def _settle(books: Mapping[str, NDArray[np.uint8]], first: int) -> dict[str, Any]:
    """Counts in which every offset has one outcome."""
    seen = np.zeros_like(books["consumed"])
    counts: dict[str, Any] = {"consumed": _ones(books["consumed"])}
    for book in PRECEDENCE:
        counts[book] = _ones(books[book] & ~seen)
        seen = seen | books[book]
    missing = np.unpackbits(books["consumed"] & ~seen)
    counts["missing"] = int(missing.sum())
    counts["unexpected"] = _ones(seen & ~books["consumed"])
    counts["missing_offsets"] = [int(first + at) for at in np.flatnonzero(missing)[:SHOWN]]
    return counts


def _ones(bitmap: NDArray[np.uint8]) -> int:
    return int(np.bitwise_count(bitmap).sum())


def _add(row: Row, counts: Mapping[str, Any]) -> None:
    for name in ("consumed", *PRECEDENCE, "missing", "unexpected"):
        setattr(row, name, getattr(row, name) + counts[name])
    row.missing_offsets = [*row.missing_offsets, *counts["missing_offsets"]][:SHOWN]
