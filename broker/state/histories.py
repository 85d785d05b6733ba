"""The time-ordered sequence of stamps for each object, in Redis: atomic, idempotent, bounded, and the same for every
order of arrival. Independent of Kafka and models; a token is just bytes."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from skyheed.broker.state.client import Claim, Client
from skyheed.broker.state.keys import MODEL_PARTS, Keys, shard_of
from skyheed.broker.state.neighbours import Neighbours
from skyheed.broker.state.sequence import (
    EVERYTHING,
    Answer,
    Delivery,
    Lane,
    Outcome,
    Settled,
    StoredSequence,
    settle_words,
    token_words,
    unpack,
    words,
)
from skyheed.classifier.history import LONGEST, MOST_POINTS

HISTORY = 99  # classifications kept for each object and model
DELIVERIES_A_CALL = 250  # a script call with these takes a few milliseconds, during which the server does nothing else
SWEEP_A_BATCH = 20  # objects to forget, plus one for each delivery, so that forgetting keeps up with storing


class SequenceStore:
    """The sequences of one survey.

    Args:
        shards: fixed for the lifetime of the data.
        max_stamps: longest sequence; the newest stamps are kept.
        ttl_s: an object without a new stamp for this long is forgotten, unless it still waits to be classified.
        debounce_s: an object becomes ready this long after its first new stamp, at the latest.
        quiet_s: and earlier, if nothing has arrived for it for this long and the caller of `store` is not behind.
        neighbours: the index of objects by position.
        until_seen: pixels of an epoch are dropped once every model has cached what it needs of them.
    """

    def __init__(
        self,
        client: Client,
        survey: str,
        *,
        shards: int = 16,
        max_stamps: int = LONGEST,
        ttl_s: float = 180 * 86_400.0,
        debounce_s: float = 1.0,
        quiet_s: float = math.inf,
        neighbours: Neighbours | None = None,
        until_seen: bool = False,
    ) -> None:
        self._client = client
        self._keys = Keys(survey)
        self._shards = shards
        self._max_stamps = max_stamps
        self._neighbours = neighbours
        self._pixels = "seen" if until_seen else ""
        self._ttl_ms = round(ttl_s * 1000)
        self._debounce_ms = round(debounce_s * 1000)
        self._quiet_ms = round(min(quiet_s, debounce_s) * 1000)

    def store(self, deliveries: Sequence[Delivery], behind: bool = False) -> list[Outcome]:
        """Store each delivery, queue its object and mark its place in the books, in one round trip. Safe to repeat.

        A delivery whose place in Kafka is already marked changes nothing and has its first outcome. All records of
        one message have to be in the same call.

        Args:
            behind: more is waiting to be stored, perhaps of the same objects: they wait for the whole debounce.

        Raises:
            ServiceUnavailable: Redis is unavailable or full; some shards may have been stored: repeat all.
            ServiceError: Redis denies access.
        """
        if self._neighbours:
            self._neighbours.note(d.observation for d in deliveries)
        groups = self._by_shard([d.observation.object_id for d in deliveries])
        calls: list[tuple[Any, ...]] = []
        indices: list[int] = []
        for shard, members in groups.items():
            base = self._keys.shard(shard)
            # first, because it frees memory
            calls.append(("sweep", base, self._ttl_ms, len(members) + SWEEP_A_BATCH))
            store = ("store", base, self._debounce_ms, self._debounce_ms if behind else self._quiet_ms)
            for chunk in _chunks(members, deliveries):
                calls.append((*store, self._max_stamps, MOST_POINTS, *words(chunk, deliveries)))
                indices += chunk
        replies = self._client.call_each(calls, durable=True)
        codes = [code for call, reply in zip(calls, replies, strict=True) if call[0] == "store" for code in reply]
        found = dict(zip(indices, codes, strict=True))
        return [Outcome(found[n]) for n in range(len(deliveries))]

    def fetch(self, claims: Sequence[Claim], lane: Lane) -> list[StoredSequence]:
        """The sequences of claimed objects as a model needs them, in one round trip.

        If Redis has lost a part of an object, it is forgotten, counted as lost in the books, and left out.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable, or denies access.
        """
        replies = self._read([c.object_id for c in claims], lane)
        there = [(claim, reply) for claim, reply in zip(claims, replies, strict=True) if reply is not None]
        lost = [claim for claim, reply in zip(claims, replies, strict=True) if reply is None]
        suffix = self._keys.lane(lane.model)
        self._client.call(
            "drop", [(self._keys.shard(claim.shard), suffix, claim.object_id, claim.lease) for claim in lost]
        )
        return unpack([claim for claim, _ in there], [reply for _, reply in there], lane)

    def settle(self, answers: Sequence[Answer], lane: Lane) -> list[Settled]:
        """Acknowledge a model's classifications, in one round trip; stores the classification, its line in the
        history, and the tokens.

        Safe to repeat: what was acknowledged before is returned as STALE. Also works on a full server, except that
        tokens are not stored.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable, or denies access.
        """
        suffix = self._keys.lane(lane.model)
        self._speak([answer for answer in answers if answer.spoken[0] not in ("", answer.claim.object_id)], suffix)
        groups = self._by_shard([answer.claim.object_id for answer in answers])
        calls: list[tuple[Any, ...]] = [
            (
                "settle",
                self._keys.shard(shard),
                suffix,
                HISTORY,
                *(w for n in members for w in settle_words(answers[n])),
            )
            for shard, members in groups.items()
        ]
        for shard, members in groups.items():
            words = [w for n in members if answers[n].tokens for w in token_words(answers[n], lane)]
            if words:
                calls.append(("tokens", self._keys.shard(shard), suffix, lane.span, lane.most, self._pixels, *words))
        replies = self._client.call_each(calls, forgive=("tokens",))
        settled: list[Settled] = [Settled.STALE] * len(answers)
        for members, codes in zip(groups.values(), replies, strict=False):
            for n, code in zip(members, codes, strict=True):
                settled[n] = Settled(code)
        return settled

    def sequence(self, object_id: str, lane: Lane = EVERYTHING) -> StoredSequence | None:
        """An object's whole sequence with everything stored for it, or with what a lane wants, without claiming it."""
        return self.sequences([object_id], lane)[0]

    def sequences(self, object_ids: Sequence[str], lane: Lane) -> list[StoredSequence | None]:
        """The same for several objects, in one round trip."""
        claims = [Claim(object_id, shard_of(object_id, self._shards), "") for object_id in object_ids]
        replies = self._read(object_ids, lane)
        there = [n for n, reply in enumerate(replies) if reply is not None]
        found = dict(zip(there, unpack([claims[n] for n in there], [replies[n] for n in there], lane), strict=True))
        return [found.get(n) for n in range(len(claims))]

    def sources(self, object_id: str) -> set[int]:
        """The stored detections of an object; its stamps are not read."""
        found = self.sequence(object_id, Lane(images=()))
        return set() if found is None else set(found.header["source_id"].tolist())

    def revision(self, object_id: str) -> int:
        """The object's revision, which every change of its sequence raises; 0 if there is none."""
        return int(self._client.run([("HGET", self._key("meta", object_id), "rev")])[0] or 0)

    def join(
        self, *models: str, backlog: Collection[str] = (), sees: Mapping[str, str] | None = None
    ) -> dict[str, int]:
        """Register models: from now on every object that changes is due for them. Safe to repeat.

        The first models of a survey, all in one call, are due for every object that is there.

        Args:
            backlog: those of them that are due for every object, even if other models are known.
            sees: for each, `Lane.sees`; pixels stay while a model is known of which it was never given.

        Returns:
            For each, how many objects are there and will not be due for it until they change.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable or full, or denies access.
        """
        said = sees or {}
        words = [word for m in models for word in (m, "all" if m in backlog else "", said.get(m, ""))]
        left = self._client.call("join", [(self._keys.shard(shard), *words) for shard in range(self._shards)])
        return dict(zip(models, map(sum, zip(*left, strict=True)), strict=True))

    def sees(self) -> dict[str, str]:
        """Of every known model, `Lane.sees` as it last joined; "" if it never said."""
        names, base = self.models(), self._keys.shard(0)
        found = self._client.run([("HGET", f"{base}needs", name) for name in names])
        return {name: (needs or b"").decode() for name, needs in zip(names, found, strict=True)}

    def models(self) -> list[str]:
        """The models that classify the survey's objects, by name."""
        found = self._client.run([("SMEMBERS", f"{self._keys.shard(shard)}models") for shard in range(self._shards)])
        return sorted({name.decode() for names in found for name in names})

    def retire(self, model: str) -> bool:
        """Forget a model: its queue, its books and its classifications; returns whether it was known.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable, or denies access; repeat.
        """
        known = sum(self._client.call("retire", [(self._keys.shard(shard), model) for shard in range(self._shards)]))
        for shard in range(self._shards):
            base, cursor = self._keys.shard(shard), 0
            while True:
                cursor, page = self._client.run([("ZSCAN", f"{base}touched", cursor, "COUNT", 1000)])[0]
                names = [name.decode() for name, _ in page]
                self._client.run(
                    [("UNLINK", f"{base}{part}.{model}:{name}") for name in names for part in MODEL_PARTS]
                    + [("HDEL", f"{base}meta:{name}", f"ans.{model}", f"until.{model}") for name in names]
                )
                cursor = int(cursor)
                if not cursor:
                    break
        return bool(known)

    def latest(self, object_id: str, model: str = "") -> bytes | None:
        """A model's last classification of an object, as published, including one from release 0.1."""
        keys = [self._key("latest" + self._keys.lane(model), object_id), self._key("latest", object_id)]
        own, before = self._client.run([("GET", key) for key in keys])
        found: bytes | None = own if own is not None else before
        return found

    def history(self, object_id: str, model: str = "") -> list[str]:
        """The lines of a model's classifications of an object so far, oldest first, including those of release 0.1."""
        keys = [self._key("history", object_id), self._key("history" + self._keys.lane(model), object_id)]
        lines = self._client.run([("LRANGE", key, 0, -1) for key in keys[not model :]])
        return [line.decode() for own in lines for line in own]

    def bytes_per_object(self, object_id: str) -> int:
        """Memory in bytes that the server uses for the object's own keys."""
        keys = self._keys.of_object(object_id, shard_of(object_id, self._shards), self.models())
        return sum(size or 0 for size in self._client.run([("MEMORY USAGE", key, "SAMPLES", 0) for key in keys]))

    def _speak(self, answers: Sequence[Answer], suffix: str) -> None:
        """Store classifications of joined histories with the objects under which they are published, before they are
        settled, so that they are repeated after an interruption in between."""
        groups = self._by_shard([answer.spoken[0] for answer in answers])
        calls = [
            (self._keys.shard(shard), suffix, HISTORY,
             *(w for n in members for w in (*answers[n].spoken, answers[n].latest, answers[n].history)))
            for shard, members in groups.items()
        ]  # fmt: skip
        self._client.call("speak", calls)

    def _key(self, part: str, object_id: str) -> str:
        return f"{self._keys.shard(shard_of(object_id, self._shards))}{part}:{object_id}"

    def _by_shard(self, object_ids: Iterable[str]) -> dict[int, list[int]]:
        groups: dict[int, list[int]] = defaultdict(list)
        for n, object_id in enumerate(object_ids):
            groups[shard_of(object_id, self._shards)].append(n)
        return groups

    def _read(self, object_ids: Sequence[str], lane: Lane) -> list[Any]:
        groups = self._by_shard(object_ids)
        how = (self._keys.lane(lane.model), lane.kept_as, lane.span, lane.wants)
        calls = [
            (self._keys.shard(shard), *how, *(object_ids[n] for n in members)) for shard, members in groups.items()
        ]
        found: list[Any] = [None] * len(object_ids)
        for members, replies in zip(groups.values(), self._client.call("fetch", calls), strict=True):
            for n, reply in zip(members, replies, strict=True):
                found[n] = reply
        return found


def _chunks(members: Sequence[int], deliveries: Sequence[Delivery]) -> Iterable[list[int]]:
    """`members` in pieces for one script call each; the records of one message stay together."""

    def message(n: int) -> tuple[str, int]:
        return deliveries[n].partition, deliveries[n].offset

    chunk: list[int] = []
    for n in sorted(members, key=message):
        if len(chunk) >= DELIVERIES_A_CALL and message(n) != message(chunk[-1]):
            yield chunk
            chunk = []
        chunk.append(n)
    if chunk:
        yield chunk
