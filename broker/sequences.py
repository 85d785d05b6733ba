"""Every object's stamps in Redis: atomic, idempotent, bounded, expiring, and independent of the order of arrival."""

import struct
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from classifier.stamp import STAMP_SIZE

from .keys import shard_of, shard_prefix
from .observation import BANDS, Observation
from .schedule import Claim
from .state import State

# One stamp as it is kept: the header, then STAMP_SIZE x STAMP_SIZE float16. The scripts in lua/ know the offsets of
# mjd (4), source_id (36) and the two times (44 to 60).
HEADER = np.dtype(
    [
        ("version", "u1"), ("band", "u1"), ("flags", "<u2"), ("mjd", "<f8"), ("flux", "<f4"), ("flux_error", "<f4"),
        ("ra", "<f8"), ("dec", "<f8"), ("source_id", "<u8"), ("kafka_ms", "<i8"), ("ingest_ms", "<i8"),
    ]
)  # fmt: skip
RECORD_VERSION = 1
_PACK = struct.Struct("<BBHdffddQqq").pack
_BAND = {letter: code for code, letter in enumerate(BANDS)}
GROUP = 3  # stamps that the 3D-CNN sees together
HISTORY = 200  # answers kept of an object
_SOURCES = np.dtype(">u8")  # as the order keeps them: their bytes sort like their numbers
T = TypeVar("T")


class Outcome(IntEnum):
    """What became of a delivery; the values are what store.lua returns."""

    STORED = 0
    DUPLICATE = 1
    SKIPPED = 2  # older than everything in a full sequence


class Settled(IntEnum):
    """What became of an answer; the values are what settle.lua returns."""

    ACKED = 0
    REQUEUED = 1  # the sequence changed meanwhile
    STALE = 2  # the lease was not ours any more: nothing was changed


@dataclass(frozen=True, slots=True)
class Delivery:
    """An observation and the message that brought it; times are Unix ms UTC."""

    partition: str
    offset: int
    kafka_ms: int
    ingest_ms: int
    observation: Observation


@dataclass(frozen=True, slots=True)
class StoredSequence:
    """A sequence at one revision.

    Attributes:
        header: `HEADER` [n], in the order of (MJD, source id).
        stamps: float16 [m, 32, 32]: those of the groups of three that have no token, in order.
        tokens: group index -> token bytes.
    """

    object_id: str
    revision: int
    claim: Claim | None
    header: NDArray[Any]
    stamps: NDArray[np.float16]
    tokens: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    """What to keep of one published answer.

    Attributes:
        sources: source ids of the sequence that was answered, in its order.
        tokens: group index -> token bytes, of full groups that had none.
    """

    claim: Claim
    revision: int
    classified: bool
    latest: bytes
    history: str
    token_model: str
    tokens: Mapping[int, bytes]
    sources: NDArray[np.uint64]


class SequenceStore:
    """The sequences of one survey.

    Args:
        shards: fixed for the life of the data; part of every key.
        max_stamps: longest sequence.
        ttl_s: an object without a change for this long is forgotten.
    """

    def __init__(
        self, state: State, survey: str, *, shards: int = 16, max_stamps: int = 99, ttl_s: float = 180 * 86_400.0
    ) -> None:
        self._state = state
        self._shards = shards
        self._prefixes = [shard_prefix(survey, shard) for shard in range(shards)]
        self._max_stamps = max_stamps
        self._ttl_s = round(ttl_s)

    def store(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        """Store stamps, and mark stored and duplicate ones in the books; one round trip. Safe to repeat.

        Raises:
            ServiceUnavailable: Redis is away or full; repeat with the same deliveries.
        """
        groups = self._by_shard([d.observation.object_id for d in deliveries])
        now = _now_ms()
        calls = [
            ("store", self._prefixes[shard], self._store_arguments([deliveries[i] for i in indices], now))
            for shard, indices in groups.items()
        ]
        outcomes = _scatter(groups, self._state.run(calls), len(deliveries))
        return [Outcome(code) for code in outcomes]

    def _store_arguments(self, deliveries: Sequence[Delivery], now: int) -> list[Any]:
        partitions = {name: number for number, name in enumerate({d.partition: 0 for d in deliveries}, 1)}
        arguments: list[Any] = [now, self._ttl_s, self._max_stamps, len(partitions), *partitions]
        for delivery in deliveries:
            arguments += (
                partitions[delivery.partition], delivery.offset, delivery.observation.object_id, pack(delivery)
            )  # fmt: skip
        return arguments

    def fetch(self, claims: Sequence[Claim], token_model: str = "") -> list[StoredSequence]:
        """The sequences of claimed objects; objects that were forgotten meanwhile are left out.

        Args:
            token_model: whose tokens to use instead of stamps; empty for all stamps.
        """
        found = self._fetch([claim.object_id for claim in claims], token_model)
        return [_sequence(claim.object_id, claim, raw) for claim, raw in zip(claims, found, strict=True) if raw]

    def sequence(self, object_id: str) -> StoredSequence | None:
        """An object's whole sequence, or None; for looking, not for working."""
        raw = self._fetch([object_id], "")[0]
        return _sequence(object_id, None, raw) if raw else None

    def settle(self, answers: Sequence[Answer]) -> list[Settled]:
        """Acknowledge published answers; one round trip. Safe to repeat.

        Raises:
            ServiceUnavailable: Redis is away; repeat with the same answers.
        """
        groups = self._by_shard([a.claim.object_id for a in answers])
        head = [_now_ms(), self._ttl_s, HISTORY]
        calls = [
            ("settle", self._prefixes[shard], [*head, *(w for i in indices for w in _settle_arguments(answers[i]))])
            for shard, indices in groups.items()
        ]
        return [Settled(code) for code in _scatter(groups, self._state.run(calls), len(answers))]

    def forget(self, most: int = 1000) -> int:
        """Take objects that were quiet for longer than the ttl off the lists; returns how many."""
        arguments = [_now_ms(), self._ttl_s, most]
        return sum(self._state.run([("forget", prefix, arguments) for prefix in self._prefixes]))

    def latest(self, object_id: str) -> bytes | None:
        """The object's last record, as it was published."""
        prefix = self._prefix(object_id)
        record: bytes | None = self._state.pipeline(lambda pipe: pipe.hget(f"{prefix}o:{object_id}", "latest"))[0]
        return record

    def revision(self, object_id: str) -> int:
        """How often the object's sequence changed; 0 if it is unknown."""
        prefix = self._prefix(object_id)
        return int(self._state.pipeline(lambda pipe: pipe.hget(f"{prefix}o:{object_id}", "rev"))[0] or 0)

    def history(self, object_id: str) -> list[str]:
        """The object's answers so far as JSON lines, oldest first."""
        prefix = self._prefix(object_id)
        lines = self._state.pipeline(lambda pipe: pipe.lrange(f"{prefix}h:{object_id}", 0, -1))[0]
        return [line.decode() for line in reversed(lines)]

    def bytes_per_object(self, object_id: str) -> int:
        """Memory of the object's stamps, order and meta data, as Redis counts it."""
        keys = [f"{self._prefix(object_id)}{kind}:{object_id}" for kind in "qsoh"]

        def fill(pipe: Any) -> None:
            for key in keys:
                pipe.memory_usage(key, samples=0)

        return sum(size or 0 for size in self._state.pipeline(fill))

    def _prefix(self, object_id: str) -> str:
        return self._prefixes[shard_of(object_id, self._shards)]

    def _fetch(self, object_ids: Sequence[str], token_model: str) -> list[Any]:
        groups = self._by_shard(object_ids)
        calls = [
            ("fetch", self._prefixes[shard], [token_model, *(object_ids[i] for i in indices)])
            for shard, indices in groups.items()
        ]
        return _scatter(groups, self._state.run(calls), len(object_ids))

    def _by_shard(self, object_ids: Sequence[str]) -> dict[int, list[int]]:
        groups: dict[int, list[int]] = defaultdict(list)
        for index, object_id in enumerate(object_ids):
            groups[shard_of(object_id, self._shards)].append(index)
        return groups


def pack(delivery: Delivery) -> bytes:
    """A delivery's record as it is kept."""
    o = delivery.observation
    header = _PACK(
        RECORD_VERSION, _BAND[o.band], o.flags, o.mjd, o.flux, o.flux_error, o.ra, o.dec, o.source_id,
        delivery.kafka_ms, delivery.ingest_ms,
    )  # fmt: skip
    return header + o.stamp.astype("<f2", copy=False).tobytes()


def _sequence(object_id: str, claim: Claim | None, raw: list[Any]) -> StoredSequence:
    revision, header, stamps, tokens = raw
    return StoredSequence(
        object_id=object_id,
        revision=revision,
        claim=claim,
        header=np.frombuffer(header, HEADER),
        stamps=np.frombuffer(stamps, "<f2").reshape(-1, STAMP_SIZE, STAMP_SIZE),
        tokens=dict(zip(tokens[::2], tokens[1::2], strict=True)),
    )


def _settle_arguments(answer: Answer) -> list[Any]:
    """As settle.lua takes them; a group's field is its three source ids."""
    raw = answer.sources.astype(_SOURCES).tobytes()
    width = GROUP * _SOURCES.itemsize
    fields = [raw[at : at + width] for at in range(0, len(raw) - width + 1, width)]
    tokens = [part for group, token in answer.tokens.items() for part in (fields[group], token)]
    return [
        answer.claim.object_id, answer.claim.lease, answer.revision, int(answer.classified), answer.latest,
        answer.history, answer.token_model, len(fields), *fields, len(answer.tokens), *tokens,
    ]  # fmt: skip


def _scatter(groups: Mapping[int, list[int]], results: Sequence[Sequence[Any]], count: int) -> list[Any]:
    """Results by shard back into the order of the request."""
    flat: list[Any] = [None] * count
    for indices, values in zip(groups.values(), results, strict=True):
        for index, value in zip(indices, values, strict=True):
            flat[index] = value
    return flat


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
