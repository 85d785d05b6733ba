"""The books: counts from bitmaps of offsets, and whether they balance. Independent of Redis."""

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.safe_names import printable

Bits = NDArray[np.uint8]
# An offset with several outcomes (a message of several records) counts under the first of these.
PRECEDENCE = ("rejected", "stored", "duplicate", "skipped")
SHOWN = 5  # offsets named if a partition does not balance
# Mask and counts of a folded segment are kept as JSON; bitmaps of nearly every offset deflate to a few hundred bytes.
_BYTE = "latin-1"


@dataclass
class PartitionBooks:
    """One partition's books: distinct offsets by outcome.

    Attributes:
        missing: consumed but without an outcome (or with one still being written), and the first of them.
        unexpected: with an outcome but never consumed, and the first of them.
    """

    partition: str
    consumed: int = 0
    stored: int = 0
    duplicate: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    unexpected: int = 0
    first_missing: list[int] = field(default_factory=list)
    first_unexpected: list[int] = field(default_factory=list)

    @property
    def balanced(self) -> bool:
        """Every consumed offset has an outcome, and every outcome was consumed."""
        return not self.missing and not self.unexpected

    def add(self, other: "PartitionBooks") -> None:
        """Add another segment's counts."""
        for name in ("consumed", "stored", "duplicate", "missing", "unexpected"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.skipped.update(other.skipped)
        self.rejected.update(other.rejected)
        self.first_missing = sorted(self.first_missing + other.first_missing)[:SHOWN]
        self.first_unexpected = sorted(self.first_unexpected + other.first_unexpected)[:SHOWN]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "partition": self.partition, "consumed": self.consumed, "stored": self.stored,
            "duplicate": self.duplicate, "skipped": dict(self.skipped), "rejected": dict(self.rejected),
            "missing": self.missing, "unexpected": self.unexpected, "first_missing": self.first_missing,
            "first_unexpected": self.first_unexpected, "balanced": self.balanced,
        }  # fmt: skip


@dataclass(frozen=True)
class ModelBooks:
    """Objects by their outcome for one model.

    Attributes:
        classified, declined: by their last classification, if nothing is pending.
        pending: new, due again or in flight.
        unasked: present before the model joined and unchanged since.
    """

    classified: int = 0
    declined: int = 0
    pending: int = 0
    unasked: int = 0

    def __add__(self, other: "ModelBooks") -> "ModelBooks":
        return ModelBooks(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class ObjectBooks:
    """Objects by outcome.

    Attributes:
        touched: currently stored.
        expired: inactive for too long and forgotten.
        lost: Redis lost a part of them (evicted or deleted by hand).
        models: by name; one without a name while none has joined.
    """

    touched: int = 0
    expired: int = 0
    lost: int = 0
    models: Mapping[str, ModelBooks] = field(default_factory=lambda: {"": ModelBooks()})

    def total(self, name: str) -> int:
        """One of the counts of `ModelBooks`, summed over the models."""
        return sum(getattr(own, name) for own in self.models.values())

    @property
    def balanced(self) -> bool:
        """touched = classified + declined + pending + unasked for every model, and none was lost."""
        return not self.lost and all(sum(astuple(own)) == self.touched for own in self.models.values())


@dataclass(frozen=True)
class Books:
    """All partitions and all objects of a survey."""

    partitions: list[PartitionBooks]
    objects: ObjectBooks

    @property
    def balanced(self) -> bool:
        """Nothing is lost and nothing is counted twice."""
        return self.objects.balanced and all(p.balanced for p in self.partitions)

    @property
    def consumed(self) -> int:
        """Distinct offsets consumed."""
        return sum(p.consumed for p in self.partitions)

    @property
    def pending(self) -> int:
        """Objects waiting to be classified, for all models together."""
        return self.objects.total("pending")

    def summary(self) -> dict[str, Any]:
        """The totals in one flat table."""
        return {
            "consumed": self.consumed,
            "stored": sum(p.stored for p in self.partitions),
            "duplicates": sum(p.duplicate for p in self.partitions),
            "skipped": sum(p.skipped.total() for p in self.partitions),
            "rejected": sum(p.rejected.total() for p in self.partitions),
            "objects": self.objects.touched,
            "classified": self.objects.total("classified"),
            "declined": self.objects.total("declined"),
            "pending": self.objects.total("pending"),
            "expired": self.objects.expired,
            "lost": self.objects.lost,
            "balanced": self.balanced,
        }

    def to_json(self) -> dict[str, Any]:
        """Totals and every partition, as plain values."""
        models = {name: asdict(own) for name, own in self.objects.models.items() if name}
        return {**self.summary(), "models": models, "partitions": [p.to_json() for p in self.partitions]}

    def to_text(self) -> str:
        """A readable table; if it does not balance, it says what to inspect."""
        width = max([len(printable(p.partition)) for p in self.partitions], default=9)
        rows = [_ROW.format("partition", "consumed", "stored", "duplicate", "skipped", "rejected", "", width=width)]
        rows += [_row(p, width) for p in self.partitions]
        for name in ("skipped", "rejected"):
            reasons: Counter[str] = sum((getattr(p, name) for p in self.partitions), Counter())
            rows += [f"  {name}: {printable(reason)} {count}" for reason, count in reasons.most_common()]
        o = self.objects
        rows.append(f"objects: {o.touched} touched, {o.expired} expired{f', {o.lost} LOST' if o.lost else ''}")
        rows += [_model_row(name, own, o.touched) for name, own in o.models.items()]
        rows.append("the books balance" if self.balanced else "THE BOOKS DO NOT BALANCE")
        return "\n".join(rows)


def _model_row(name: str, own: ModelBooks, touched: int) -> str:
    text = f"{own.classified} classified, {own.declined} declined, {own.pending} pending"
    if own.unasked:
        text += f", {own.unasked} unchanged since the model joined"
    trouble = "" if sum(astuple(own)) == touched else "  DOES NOT BALANCE"
    return f"  {printable(name) or 'no model has joined'}: {text}{trouble}"


_ROW = "{:<{width}} {:>10} {:>10} {:>10} {:>10} {:>10}  {}"


def _row(p: PartitionBooks, width: int) -> str:
    trouble = []
    if p.missing:
        trouble.append(f"{p.missing} without an outcome: offsets {_few(p.first_missing, p.missing)}")
    if p.unexpected:
        trouble.append(f"{p.unexpected} never consumed: offsets {_few(p.first_unexpected, p.unexpected)}")
    counts = (p.consumed, p.stored, p.duplicate, p.skipped.total(), p.rejected.total())
    return _ROW.format(printable(p.partition), *counts, "; ".join(trouble) or "balanced", width=width)


def _few(offsets: list[int], count: int) -> str:
    return ", ".join(map(str, offsets)) + (", …" if count > len(offsets) else "")


def union(bitmaps: list[bytes | None], size: int) -> Bits:
    """The OR of bitmaps of any lengths, `size` bytes long."""
    total = np.zeros(size, np.uint8)
    for raw in bitmaps:
        if raw:
            total[: len(raw)] |= np.frombuffer(raw, np.uint8)
    return total


def count(partition: str, first: int, marks: Mapping[str, Bits], known: Bits) -> PartitionBooks:
    """The counts of one segment.

    Args:
        first: offset of the segment's first bit.
        marks: bitmaps of one length by name: consumed, stored, duplicate, skipped.<reason>, rejected.<reason>.
        known: offsets to leave out, because they were counted before.
    """
    books = PartitionBooks(partition)
    nothing = np.zeros_like(known)
    consumed = marks.get("consumed", nothing) & ~known
    settled = nothing
    for name in sorted(marks, key=_precedence):
        if name == "consumed":
            continue
        new = marks[name] & ~known & ~settled
        settled = settled | new
        outcome, _, reason = name.partition(".")
        if reason:
            getattr(books, outcome)[reason] += ones(new)
        else:
            setattr(books, outcome, ones(new))
    books.skipped, books.rejected = +books.skipped, +books.rejected
    books.consumed = ones(consumed)
    books.missing, books.first_missing = _list(consumed & ~settled, first)
    books.unexpected, books.first_unexpected = _list(settled & ~consumed, first)
    return books


def _precedence(name: str) -> tuple[int, str]:
    outcome = name.partition(".")[0]
    return (PRECEDENCE.index(outcome) if outcome in PRECEDENCE else -1), name


def ones(bits: Bits) -> int:
    """How many bits are set."""
    return int(np.bitwise_count(bits).sum())


def _list(bits: Bits, first: int) -> tuple[int, list[int]]:
    total = ones(bits)
    if not total:
        return 0, []
    occupied = np.flatnonzero(bits)[:SHOWN]  # each of these bytes has at least one bit set
    return total, [first + 8 * int(byte) + bit for byte in occupied for bit in range(8) if bits[byte] & (128 >> bit)][
        :SHOWN
    ]


def pack_known(bits: Bits) -> str:
    """A mask of offsets as text."""
    return zlib.compress(bits.tobytes(), 9).decode(_BYTE)


def unpack_known(text: str) -> bytes:
    """The bitmap packed by `pack_known`."""
    return zlib.decompress(text.encode(_BYTE))
