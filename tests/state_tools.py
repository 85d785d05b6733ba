"""Observations, deliveries and the end state of a store, for the tests of what is kept in Redis."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from skyheed.broker.observation import Observation
from skyheed.broker.state import client as state
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.ledger import Ledger
from skyheed.broker.state.queue import DueQueue
from skyheed.broker.state.sequence import Answer, Delivery, Lane, StoredSequence

SURVEY = "test"
LANE = Lane("", "model", 3)  # of a model that has not joined, and keeps a token of three epochs


def open_state(url: str, cluster: bool = False, **options: Any) -> tuple[SequenceStore, DueQueue, Ledger]:
    """The three views of the server at `url`, without debounce."""
    client = state.connect(url, cluster=cluster)
    shards = options.pop("shards", 16)
    store = SequenceStore(client, SURVEY, shards=shards, **{"debounce_s": 0.0, **options})
    return store, DueQueue(client, SURVEY, shards=shards), Ledger(client, SURVEY, shards=shards)


def observation(object_id: str = "a", source_id: int = 1, mjd: float | None = None, **changes: Any) -> Observation:
    """An observation whose pixels tell its source."""
    fields: dict[str, Any] = {
        "band": "r", "ra": 10.0, "dec": -5.0, "flux": 100.0, "flux_error": 1.0, "flags": 0,
        "stamp": np.full((32, 32), source_id % 1000, np.float16),
    }  # fmt: skip
    fields |= changes
    return Observation(
        object_id=object_id, source_id=source_id, mjd=60000.0 + source_id if mjd is None else mjd, **fields
    )


def delivery(offset: int, seen: Observation, partition: str = "alerts/0") -> Delivery:
    """`seen` as the message at `offset`."""
    return Delivery(partition, offset, 1_000 + offset, 2_000 + offset, seen)


def deliveries(seen: Iterable[Observation], partition: str = "alerts/0", first: int = 0) -> list[Delivery]:
    """`seen` as consecutive messages."""
    return [delivery(first + n, o, partition) for n, o in enumerate(seen)]


def content(store: SequenceStore, object_id: str) -> list[tuple[Any, ...]]:
    """The sequence without what depends on the time of arrival."""
    found = store.sequence(object_id)
    if found is None:
        return []
    names = [n for n in found.header.dtype.names or () if n not in ("kafka_ms", "ingest_ms")]
    return [
        (*(row[n].item() for n in names), pixels.tobytes())
        for row, pixels in zip(found.header, found.stamps, strict=True)
    ]


def answer(sequence: StoredSequence, classified: bool = True, **changes: Any) -> Answer:
    """A worker's answer to a sequence."""
    fields: dict[str, Any] = {
        "latest": f"answer to {sequence.revision}".encode(), "history": f'{{"revision": {sequence.revision}}}',
        "tokens": {},
    }  # fmt: skip
    return Answer(claim=sequence.claim, revision=sequence.revision, classified=classified, **(fields | changes))


def answer_all(store: SequenceStore, queue: DueQueue) -> int:
    """Claim and answer until nothing is ready; how many answers it took."""
    count = 0
    while claims := queue.claim(100, 30.0):
        store.settle([answer(s) for s in store.fetch(claims, LANE)], LANE)
        count += len(claims)
    return count


def names(claims: Sequence[Any]) -> set[str]:
    """The objects of claims."""
    return {claim.object_id for claim in claims}
