"""The due queue: objects that wait to be classified, claimed under leases and never popped.

Every model has its own queue, so that a slow one does not delay the others. A claimed object is in flight until it is
settled (`SequenceStore.settle`), or until its lease ends and the next claim by anyone returns it. Times are the
server's.
"""

import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from skyheed.broker.state.client import Claim, Client
from skyheed.broker.state.keys import Keys

__all__ = ["Claim", "DueQueue"]

OLDER_SHARE = 0.25  # share of a claim for objects classified before, while any wait: neither kind starves the other


@dataclass(frozen=True, slots=True)
class _Ready:
    shard: int
    fresh: int
    due: int
    oldest: float


class DueQueue:
    """The queue of one model of a survey; any number of workers may share it.

    Args:
        model: "" while no model has joined (`SequenceStore.join`).
    """

    def __init__(self, client: Client, survey: str, *, shards: int = 16, model: str = "") -> None:
        self._client = client
        keys = Keys(survey)
        self._lane = keys.lane(model)
        self._bases = [keys.shard(shard) for shard in range(shards)]
        self._owed = 0.0  # seats owed to older objects, carried over from claim to claim

    def claim(self, limit: int, lease_s: float) -> list[Claim]:
        """Take at most `limit` ready objects, new ones first, in two round trips.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable, or denies access; objects already taken return when
            their leases end.
        """
        ready = self._wake()
        fresh, due = self._seats(limit, sum(r.fresh for r in ready), sum(r.due for r in ready))
        by_age = sorted(ready, key=lambda r: r.oldest)
        fresh_of = _share(fresh, [r.fresh for r in by_age])
        due_of = _share(due, [r.due for r in by_age])
        lease = uuid.uuid4().hex
        wanted = [(r.shard, f, d) for r, f, d in zip(by_age, fresh_of, due_of, strict=True) if f or d]
        calls = [(self._bases[shard], self._lane, lease, round(lease_s * 1000), f, d) for shard, f, d in wanted]
        return [
            Claim(name.decode(), shard, lease, epochs=epochs)
            for (shard, _, _), found in zip(wanted, self._client.call("claim", calls), strict=True)
            for name, epochs in zip(found[::2], found[1::2], strict=True)
        ]

    def still_held(self, claims: Sequence[Claim]) -> list[bool]:
        """For each claim, whether we still hold its object."""
        groups = self._by_shard(claims)
        commands = [
            ("HMGET", f"{self._bases[shard]}leases{self._lane}", *(claims[n].object_id for n in members))
            for shard, members in groups.items()
        ]
        held = [False] * len(claims)
        for members, leases in zip(groups.values(), self._client.run(commands), strict=True):
            for n, lease in zip(members, leases, strict=True):
                held[n] = lease == claims[n].lease.encode()
        return held

    def release(self, claims: Sequence[Claim]) -> int:
        """Return unclassified objects before their leases end; returns how many were still held.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable, or denies access; they return with their leases.
        """
        calls = [
            (
                self._bases[shard],
                self._lane,
                *(word for n in members for word in (claims[n].object_id, claims[n].lease)),
            )
            for shard, members in self._by_shard(claims).items()
        ]
        return sum(self._client.call("release", calls))

    def ready(self) -> int:
        """How many objects a claim could take now."""
        return sum(r.fresh + r.due for r in self._wake())

    def depth(self) -> dict[str, int]:
        """Pending objects: `new` were never classified, `due` were, `in_flight` are claimed."""
        names = ("fresh", "due", "inflight")
        counts = self._client.run([("ZCARD", base + name + self._lane) for name in names for base in self._bases])
        width = len(self._bases)
        new, due, in_flight = (sum(counts[n * width : (n + 1) * width]) for n in range(len(names)))
        return {"new": new, "due": due, "in_flight": in_flight}

    def heads(self) -> list[list[bytes]]:
        """The objects that a claim would take next, for each shard; they change while workers are active."""
        return self._client.run(
            [("ZRANGE", base + name + self._lane, 0, 0) for base in self._bases for name in ("fresh", "due")]
        )

    def waiting_s(self) -> float | None:
        """How long the first object that became ready has been waiting, by the server's clock; None if none is ready.

        An object whose lease has ended counts from the end of the lease.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable, or denies access.
        """
        longest = max(self._client.call("waiting", [(base, self._lane) for base in self._bases]))
        return longest / 1000 if longest >= 0 else None

    def _wake(self) -> list[_Ready]:
        replies = self._client.call("wake", [(base, self._lane) for base in self._bases])
        return [_Ready(shard, *map(int, reply)) for shard, reply in enumerate(replies)]

    def _seats(self, limit: int, fresh: int, due: int) -> tuple[int, int]:
        """How many new and how many older objects to take."""
        kept = 0
        if due:
            self._owed += limit * OLDER_SHARE
            kept = min(int(self._owed), due)
            self._owed = min(self._owed - kept, 1.0)
        new = min(fresh, limit - kept)
        return new, min(due, limit - new)

    @staticmethod
    def _by_shard(claims: Sequence[Claim]) -> dict[int, list[int]]:
        groups: dict[int, list[int]] = defaultdict(list)
        for n, claim in enumerate(claims):
            groups[claim.shard].append(n)
        return groups


def _share(seats: int, waiting: Sequence[int]) -> list[int]:
    """Seats for each shard, in proportion to its waiting objects; the remainder goes to the first ones."""
    total = sum(waiting)
    if seats >= total:
        return list(waiting)
    shares = [seats * count // total for count in waiting]
    left = seats - sum(shares)
    for n, count in enumerate(waiting):
        if left and shares[n] < count:
            shares[n] += 1
            left -= 1
    return shares
