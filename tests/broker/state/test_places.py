"""An object is in one place of each model's queue and books, whatever happens and in whatever order."""

import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from state_tools import SURVEY, answer, deliveries, observation, open_state

from skyheed.broker.local import embedded
from skyheed.broker.state import client as state
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.keys import Keys, shard_of
from skyheed.broker.state.queue import Claim, DueQueue
from skyheed.broker.state.sequence import Lane

pytestmark = pytest.mark.redis
MODELS, OBJECTS = ("a", "b"), ("x", "y", "z")
QUEUES = ("fresh", "due", "inflight")
BOOKS = ("classified", "declined")
SHARDS = 1


def places(url: str, models: list[str]) -> Counter[tuple[str, str]]:
    """In how many places of each model's queue and books each object is."""
    client, base, found = state.connect(url), Keys(SURVEY).shard(0), Counter[tuple[str, str]]()
    for model in models or [""]:
        lane = Keys(SURVEY).lane(model)
        commands: list[tuple[Any, ...]] = [("ZRANGE", f"{base}{part}{lane}", 0, -1) for part in (*QUEUES, "unasked")]
        commands += [("SMEMBERS", f"{base}{part}{lane}") for part in BOOKS]
        found.update((model, name.decode()) for names in client.run(commands) for name in names)
    return found


class Places(RuleBasedStateMachine):
    """Everything that moves an object between queues and books, in any order."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        state.connect(self.url).run([("FLUSHALL",)])
        self.store, _, self.ledger = open_state(self.url, shards=SHARDS)
        self.held: list[tuple[str, Claim]] = []
        self.offset = 0

    def queue(self, model: str) -> DueQueue:
        return DueQueue(state.connect(self.url), SURVEY, shards=SHARDS, model=model)

    @property
    def lanes(self) -> list[str]:
        return self.store.models() or [""]

    @rule(name=st.sampled_from(OBJECTS))
    def change(self, name: str) -> None:
        self.offset += 1
        self.store.store(deliveries([observation(name, self.offset)], first=self.offset))

    @rule(models=st.permutations(MODELS), count=st.integers(1, 2), backlog=st.booleans())
    def join(self, models: list[str], count: int, backlog: bool) -> None:
        self.store.join(*models[:count], backlog=models[:count] if backlog else ())

    @rule(model=st.sampled_from(MODELS))
    def retire(self, model: str) -> None:
        self.store.retire(model)

    @rule(model=st.sampled_from(("", *MODELS)), limit=st.integers(1, 6), lease_s=st.sampled_from([0.0, 60.0]))
    def claim(self, model: str, limit: int, lease_s: float) -> None:
        claims = self.queue(model).claim(limit, lease_s)
        assert len({claim.object_id for claim in claims}) == len(claims)
        self.held += [(model, claim) for claim in claims]

    @rule(classified=st.booleans())
    def settle(self, classified: bool) -> None:
        held, self.held = self.held, []
        for model, claim in held:
            lane = Lane(model, f"{model}-1", 1)
            self.store.settle([answer(s, classified) for s in self.store.fetch([claim], lane)], lane)

    @rule()
    def release(self) -> None:
        for model, claim in self.held:
            self.queue(model).release([claim])

    @rule(model=st.sampled_from(("", *MODELS)))
    def wake(self, model: str) -> None:
        self.queue(model).ready()

    @invariant()
    def each_object_is_in_one_place(self) -> None:
        found = places(self.url, self.store.models())
        known = {name for name in OBJECTS if self.store.revision(name)}
        assert found == {(model, name): 1 for model in self.lanes for name in known}
        assert self.ledger.books().objects.balanced


def test_every_object_is_in_one_place_whatever_moves_it(valkey: embedded.Server) -> None:
    class Machine(Places):
        url = valkey.url

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def join_behind(store: SequenceStore, url: str) -> DueQueue:
    """Two models join after an object came; it changes before the second classified it."""
    store.store(deliveries([observation("x")]))
    store.join("a", "b")
    store.store(deliveries([observation("x", 2)], first=1))
    return DueQueue(state.connect(url), SURVEY, model="b")


def test_what_changes_before_a_model_that_joined_has_seen_it_is_claimed_once(valkey: embedded.Server) -> None:
    store, _, ledger = open_state(valkey.url)
    queue = join_behind(store, valkey.url)
    assert queue.depth() == {"new": 0, "due": 1, "in_flight": 0}
    assert [claim.object_id for claim in queue.claim(10, 30.0)] == ["x"]
    assert queue.depth() == {"new": 0, "due": 0, "in_flight": 1}
    assert ledger.books().objects.balanced


def test_what_an_earlier_version_left_in_two_places_is_claimed_once(valkey: embedded.Server) -> None:
    store, _, ledger = open_state(valkey.url)
    queue = join_behind(store, valkey.url)
    fresh = f"{Keys(SURVEY).shard(shard_of('x', 16))}fresh.b"
    state.connect(valkey.url).run([("ZADD", fresh, int(time.time() * 1000), "x")])
    claims: list[Any] = queue.claim(10, 30.0)
    assert [claim.object_id for claim in claims] == ["x"]
    assert queue.depth() == {"new": 0, "due": 0, "in_flight": 1}
    assert ledger.books().objects.balanced


def test_a_retired_model_that_joins_again_has_seen_nothing(valkey: embedded.Server) -> None:
    store, _, _ = open_state(valkey.url)
    store.join("a")
    store.store(deliveries([observation("x")]))
    queue, lane = DueQueue(state.connect(valkey.url), SURVEY, model="a"), Lane("a", "a-1", 1)
    store.settle([answer(s) for s in store.fetch(queue.claim(1, 30.0), lane)], lane)
    store.retire("a")
    store.join("a")
    store.store(deliveries([observation("x", 2)], first=1))
    assert sum(queue.depth().values()) == 1
    meta = f"{Keys(SURVEY).shard(shard_of('x', 16))}meta:x"
    assert b"ans.a" not in state.connect(valkey.url).run([("HKEYS", meta)])[0]
