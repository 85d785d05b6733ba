"""What Redis stores for an object, and in which bytes: incoming deliveries, outgoing sequences.

`histories` sends and fetches it; store.lua, fetch.lua, settle.lua and tokens.lua know the order of the words.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.broker.errors import PacketError, Reason, ServiceError
from skyheed.broker.observation import BANDS, Observation
from skyheed.broker.state import parts
from skyheed.broker.state.client import Claim
from skyheed.broker.state.keys import SEGMENT_BITS
from skyheed.classifier.history import IMAGE_KINDS, LONGEST, Photometry
from skyheed.classifier.stamp import STAMP_SIZE

RECORD_VERSION = 1
# How a stamp is stored: a header and, separately, float16 [32, 32], so that a sequence whose tokens are cached is read
# without its stamps. store.lua compares payloads without the two times: it knows their positions in the header.
HEADER = np.dtype(
    [
        ("version", "u1"), ("band", "u1"), ("flags", "<u2"), ("mjd", "<f8"), ("flux", "<f4"), ("flux_error", "<f4"),
        ("ra", "<f8"), ("dec", "<f8"), ("kafka_ms", "<i8"), ("ingest_ms", "<i8"), ("source_id", "<u8"),
    ]
)  # fmt: skip
STAMP_SHAPE = (STAMP_SIZE, STAMP_SIZE)
_PACK = struct.Struct("<BBHdffddqqQ")
SOURCE_BYTES = 8
_SOURCE = struct.Struct(">Q")  # big endian: Redis orders equal MJDs by these bytes, that is by source id
_LARGEST_FLUX = 3e38  # nJy; float32 ends at 3.4e38


class Outcome(Enum):
    """The outcome of a delivery; the values are those of the script."""

    STORED = 1
    DUPLICATE = 2  # its source is already in the sequence
    SKIPPED = 3  # older than everything in a full sequence; the caller marks it in the books


class Settled(Enum):
    """The outcome of a classification; the values are those of the script."""

    ACKED = 1
    REQUEUED = 2  # kept, but the object changed in the meantime and is due again
    STALE = 3  # the lease is gone: nothing was kept


@dataclass(frozen=True, slots=True)
class Delivery:
    """One observation and its place in Kafka; times in Unix ms UTC."""

    partition: str
    offset: int
    kafka_ms: int
    ingest_ms: int
    observation: Observation


@dataclass(frozen=True, slots=True)
class Lane:
    """One model's place in the state.

    Attributes:
        model: its name among those that classify the survey's objects; "" while none has joined.
        kept_as: version of what it caches for an object's epochs.
        span: number of neighbouring epochs that a token belongs to; 0: nothing is cached.
        images: kinds of stamps that it uses.
        photometry, context: whether it uses these.
        most: epochs that it takes, the newest.
    """

    model: str = ""
    kept_as: str = ""
    span: int = 0
    images: tuple[str, ...] = ("science",)
    photometry: bool = False
    context: bool = False
    most: int = LONGEST

    @property
    def wants(self) -> str:
        """In the form that `fetch.lua` expects."""
        wanted = bool(self.images), any(kind != "science" for kind in self.images), self.photometry, self.context
        return "".join(letter for letter, yes in zip("sfpc", wanted, strict=True) if yes)

    @property
    def can_do_without_pixels(self) -> bool:
        """Whether the pixels of an epoch are of no more use to the model once it has cached something for it.

        Tokens of several epochs belong to groups that a late epoch or a full history cuts differently.
        """
        return not self.images or self.span == 1

    @property
    def sees(self) -> str:
        """What has to be cached before pixels may be dropped, in the form that `tokens.lua` expects."""
        if not self.can_do_without_pixels:
            return ""
        return f"{self.most} {self.kept_as}" if self.images else "0 -"


EVERYTHING = Lane(images=IMAGE_KINDS, photometry=True, context=True)


@dataclass(frozen=True, slots=True)
class StoredSequence:
    """A sequence as it is at `revision`.

    Attributes:
        header: `HEADER` [n], in (MJD, source id) order.
        stamps: float16 [m, 32, 32], in order, for the epochs `shown`.
        tokens: index of a span of epochs -> token.
        span: epochs of a token.
        gone: epochs of which there are neither token nor stamps any more (redis.keep_pixels).
        looked: whether the stamps were requested; if not, there are none.
        images: the further kinds requested, in the form of `stamps`; zeros where an epoch has none.
        photometry: None if it was not requested.
        context: of the newest epoch.
        members: for a joined history (joined.py), the objects it consists of, in the order of their names.
        published: their newest revision.
        keeps: the epochs whose tokens are kept with the claimed object; None for all.
    """

    object_id: str
    revision: int
    claim: Claim
    header: NDArray[Any]
    stamps: NDArray[np.float16]
    tokens: dict[int, bytes]
    span: int = 0
    gone: frozenset[int] = frozenset()
    looked: bool = True
    images: Mapping[str, NDArray[np.float16]] = field(default_factory=dict)
    photometry: Photometry | None = None
    context: Mapping[str, float] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    published: int = 0
    keeps: frozenset[int] | None = None

    @property
    def shown(self) -> NDArray[np.int64]:
        """The epochs that `stamps` belong to: int64 [m]."""
        span = max(self.span, 1)
        covered = (n for n in range(len(self.header)) if n // span not in self.tokens and n not in self.gone)
        return np.fromiter(covered, np.int64)

    @property
    def name(self) -> str:
        """The name under which its classification is published."""
        return self.members[0] if self.members else self.object_id

    @property
    def published_revision(self) -> int:
        """The revision of its classification."""
        return max(self.published, self.revision)


@dataclass(frozen=True, slots=True)
class Answer:
    """A worker's classification of a sequence.

    Attributes:
        claim: that of the `StoredSequence`.
        revision: the revision that was classified.
        latest: the classification as published.
        history: one line for the object's history.
        tokens: index of a span of epochs -> token, of full spans only.
        spoken: the name and revision under which it is published, if the history was joined.
    """

    claim: Claim
    revision: int
    classified: bool
    latest: bytes
    history: str
    tokens: Mapping[int, bytes]
    spoken: tuple[str, int] = ("", 0)


def check(observation: Observation) -> None:
    """Check that `store` can keep an observation: a failure there would stop a whole batch.

    Raises:
        PacketError: BAD_FLUX or BAD_OBJECT_ID.
        Exception: of any kind, for values that no survey should have let through.
    """
    if any(abs(value) > _LARGEST_FLUX for value in (observation.flux, observation.flux_error)):
        raise PacketError(Reason.BAD_FLUX, f"flux {observation.flux!r} with error {observation.flux_error!r}")
    if not math.isfinite(observation.mjd) or len(observation.band) != 1:
        raise ValueError(f"a source at MJD {observation.mjd!r} in band {observation.band!r}")
    if not observation.object_id.isprintable():
        raise PacketError(Reason.BAD_OBJECT_ID, f"object id {observation.object_id!a} cannot be printed")
    observation.object_id.encode()
    _header(observation, 0, 0)
    _check_stamp(observation.stamp)
    parts.check(observation)


def words(chunk: Sequence[int], deliveries: Sequence[Delivery]) -> list[Any]:
    words: list[Any] = []
    further = parts.words([deliveries[n].observation for n in chunk])
    for n, more in zip(chunk, further, strict=True):
        delivery, o = deliveries[n], deliveries[n].observation
        segment, bit = divmod(delivery.offset, SEGMENT_BITS)
        header = _header(o, delivery.kafka_ms, delivery.ingest_ms)
        place = f"{delivery.partition}:{segment}"
        words += (place, bit, o.object_id, _SOURCE.pack(o.source_id), repr(float(o.mjd)), header, _pixels(o.stamp))
        words += more
    return words


def _header(o: Observation, kafka_ms: int, ingest_ms: int) -> bytes:
    return _PACK.pack(
        RECORD_VERSION, BANDS.index(o.band), o.flags, o.mjd, o.flux, o.flux_error, o.ra, o.dec,
        kafka_ms, ingest_ms, o.source_id,
    )  # fmt: skip


def _pixels(stamp: NDArray[np.float16]) -> bytes:
    _check_stamp(stamp)
    return stamp.astype("<f2", copy=False).tobytes()


def _check_stamp(stamp: NDArray[np.float16]) -> None:
    if stamp.shape != STAMP_SHAPE or stamp.dtype != np.float16:
        raise ValueError(f"a stamp is float16 {STAMP_SHAPE}, not {stamp.dtype} {stamp.shape}")


def unpack(claims: Sequence[Claim], replies: Sequence[Sequence[Any]], lane: Lane) -> list[StoredSequence]:
    """What fetch.lua answered for each of these objects.

    Raises:
        ServiceError: stored by a release that this one does not know.
    """
    images = parts.images_of([(reply[4], reply[5]) for reply in replies], lane.images)
    return [_unpack(*found, lane) for found in zip(claims, replies, images, strict=True)]


def _unpack(
    claim: Claim, reply: Sequence[Any], images: Mapping[str, NDArray[np.float16]], lane: Lane
) -> StoredSequence:
    revision, headers, stamps, tokens, _, _, points, context, gone = reply
    header = np.frombuffer(headers, HEADER)
    if (header["version"] != RECORD_VERSION).any():
        raise ServiceError(
            f"Redis holds stamps of record version {header['version'].max()}, this release reads {RECORD_VERSION}: "
            "run the release that wrote them, or start with an empty Redis"
        )
    return StoredSequence(
        object_id=claim.object_id,
        revision=int(revision),
        claim=replace(claim, sources=header["source_id"].astype(">u8").tobytes()),
        header=header,
        stamps=np.frombuffer(stamps, "<f2").reshape(-1, *STAMP_SHAPE),
        tokens=dict(zip(tokens[::2], tokens[1::2], strict=True)),
        span=lane.span,
        gone=frozenset(gone),
        looked=bool(lane.images),
        images=images,
        photometry=parts.unpack_points(points) if lane.photometry else None,
        context=parts.unpack_context(context),
    )


def settle_words(answer: Answer) -> tuple[Any, ...]:
    kind = "classified" if answer.classified else "declined"
    return answer.claim.object_id, answer.claim.lease, answer.revision, kind, answer.latest, answer.history


def token_words(answer: Answer, lane: Lane) -> list[Any]:
    """The tokens by the source ids of their epochs, as they were when the sequence was fetched."""
    width, sources = lane.span * _SOURCE.size, answer.claim.sources
    words: list[Any] = [answer.claim.object_id, lane.kept_as, answer.revision, len(answer.tokens)]
    for at, token in answer.tokens.items():
        field = sources[at * width : (at + 1) * width]
        if len(field) != width or not width:
            raise ValueError(f"span {at} of {answer.claim.object_id} is not full: its token cannot be kept")
        words += (field, token)
    return words
