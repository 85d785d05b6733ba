"""The due queue: objects whose sequence changed, claimed under leases, never popped."""

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .keys import shard_prefix
from .state import State

QUEUES = ("fresh", "due", "flight")


@dataclass(frozen=True, slots=True)
class Claim:
    """An object that is ours until its lease ends."""

    object_id: str
    shard: int
    lease: str


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class DueQueue:
    """Pending objects of one survey, spread over shards.

    Args:
        debounce_s: an object is ready this long after it became pending, so that one visit makes one classification.
    """

    def __init__(self, state: State, survey: str, *, shards: int = 16, debounce_s: float = 0.0) -> None:
        self._state = state
        self._prefixes = [shard_prefix(survey, shard) for shard in range(shards)]
        self._shards = shards
        self._debounce_ms = round(debounce_s * 1000)
        self._turn = 0

    def claim(self, limit: int, lease_s: float) -> list[Claim]:
        """Up to `limit` ready objects: new ones first, but at most three quarters while others wait.

        Raises:
            ServiceUnavailable: Redis is away; nothing was claimed that does not come back when its lease ends.
        """
        claims: list[Claim] = []
        shards = list(range(self._shards))
        while len(claims) < limit and shards:
            # a fair share of each shard, beginning at another one each time; shards that gave all leave the round
            share = -(-(limit - len(claims)) // len(shards))
            chosen = [shards[(self._turn + i) % len(shards)] for i in range(min(len(shards), limit - len(claims)))]
            self._turn += len(chosen)
            found = self._claim(chosen, share, lease_s)
            claims += [claim for part in found.values() for claim in part]
            shards = [s for s in shards if s not in found or len(found[s]) == share]
        return claims

    def _claim(self, shards: Sequence[int], share: int, lease_s: float) -> dict[int, list[Claim]]:
        token = uuid.uuid4().hex
        arguments = [_now_ms(), self._debounce_ms, round(lease_s * 1000), share, token]
        results = self._state.run([("claim", self._prefixes[shard], arguments) for shard in shards])
        return {
            shard: [Claim(object_id.decode(), shard, token) for object_id in result]
            for shard, result in zip(shards, results, strict=True)
        }

    def still_held(self, claims: Sequence[Claim]) -> list[bool]:
        """For each claim, whether its lease is still ours."""
        by_shard: dict[int, list[int]] = defaultdict(list)
        for index, claim in enumerate(claims):
            by_shard[claim.shard].append(index)
        groups = list(by_shard.items())

        def fill(pipe: Any) -> None:
            for shard, indices in groups:
                pipe.hmget(f"{self._prefixes[shard]}lease", [claims[i].object_id for i in indices])

        results = self._state.pipeline(fill)
        held = [False] * len(claims)
        for (_, indices), values in zip(groups, results, strict=True):
            for index, value in zip(indices, values, strict=True):
                held[index] = value is not None and value.decode().split(" ")[0] == claims[index].lease
        return held

    def release(self, claims: Sequence[Claim]) -> int:
        """Give objects back at once; returns how many were still ours."""
        groups: dict[tuple[int, str], list[str]] = defaultdict(list)
        for claim in claims:
            groups[claim.shard, claim.lease].append(claim.object_id)
        calls = [("release", self._prefixes[shard], [lease, *names]) for (shard, lease), names in groups.items()]
        return sum(self._state.run(calls))

    def depth(self) -> dict[str, int]:
        """Objects that are new, due again, and in flight."""
        rows = self._each(lambda pipe, prefix: [pipe.zcard(prefix + queue) for queue in QUEUES])
        new, due, flight = (sum(rows[i :: len(QUEUES)]) for i in range(len(QUEUES)))
        return {"new": new, "due": due, "in_flight": flight}

    def ready(self) -> int:
        """Objects that a claim could take now."""
        latest = _now_ms() - self._debounce_ms
        return sum(self._each(lambda pipe, prefix: [pipe.zcount(prefix + q, "-inf", latest) for q in QUEUES[:2]]))

    def oldest_ms(self) -> int | None:
        """When the longest waiting object became pending, Unix ms; None if nothing is due."""
        rows = self._each(lambda pipe, prefix: [pipe.zrange(prefix + q, 0, 0, withscores=True) for q in QUEUES[:2]])
        scores = [score for row in rows for _, score in row]
        return int(min(scores)) if scores else None

    def _each(self, commands: Callable[[Any, str], object]) -> list[Any]:
        """The results of the same commands on every shard, in one round trip."""

        def fill(pipe: Any) -> None:
            for prefix in self._prefixes:
                commands(pipe, prefix)

        return self._state.pipeline(fill)
