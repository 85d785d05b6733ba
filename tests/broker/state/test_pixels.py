"""`redis.keep_pixels = "until-seen"`: pixels leave once every model has seen them, and no answer changes."""

import random
import threading
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_tools import ValkeyCluster
from state_tools import SURVEY, answer, deliveries, names, observation

from skyheed.broker.local import embedded
from skyheed.broker.observation import Observation
from skyheed.broker.state import client as state
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.keys import Keys
from skyheed.broker.state.ledger import Ledger
from skyheed.broker.state.queue import DueQueue
from skyheed.broker.state.sequence import EVERYTHING, Answer, Lane, Outcome, Settled, StoredSequence
from skyheed.classifier.history import Photometry

pytestmark = pytest.mark.redis
WINDOW = 5
KINDS = ("science", "difference", "template")
SCIENCE = Lane("a", "a-1", 1, ("science",))
ALL_KINDS = Lane("b", "b-1", 1, KINDS, photometry=True, context=True)
CURVES = Lane("c", "", 0, (), photometry=True)
GROUPS = Lane("g", "g-1", 3, ("science",))


class Stream:
    """A store, its queues and models that tell of every pixel what they saw, and keep that of single epochs."""

    def __init__(self, url: str, until_seen: bool, *lanes: Lane, cluster: bool = False, **options: Any) -> None:
        self.client = state.connect(url, cluster=cluster)
        self.client.run([("FLUSHALL",)]) if not cluster else None
        self.shards = options.pop("shards", 2)
        options = {"debounce_s": 0.0, "max_stamps": WINDOW} | options
        self.store = SequenceStore(self.client, SURVEY, shards=self.shards, until_seen=until_seen, **options)
        self.ledger = Ledger(self.client, SURVEY, shards=self.shards)
        self.lanes = lanes
        self.offset = 0
        self.gone: set[str] = set()  # objects that a model could not see whole
        self.join(*lanes)

    def join(self, *lanes: Lane) -> None:
        self.store.join(*(lane.model for lane in lanes), sees={lane.model: lane.sees for lane in lanes})

    def add(self, *seen: Observation) -> list[Outcome]:
        self.offset += len(seen)
        return self.store.store(deliveries(seen, first=self.offset - len(seen)))

    def claim(self, lane: Lane, lease_s: float = 60.0, limit: int = 100) -> list[StoredSequence]:
        queue = DueQueue(self.client, SURVEY, shards=self.shards, model=lane.model)
        return self.store.fetch(queue.claim(limit, lease_s), lane)

    def settle(self, lane: Lane, sequences: list[StoredSequence], keep: bool = True) -> list[Settled]:
        self.gone |= {sequence.object_id for sequence in sequences if sequence.gone}
        return self.store.settle([told(sequence, lane, keep) for sequence in sequences], lane)

    def answer(self, *lanes: Lane) -> None:
        for lane in lanes or self.lanes:
            while found := self.claim(lane):
                self.settle(lane, found)

    def pixels(self, name: str = "o") -> list[int]:
        """The epochs whose pixels are there, by their source ids."""
        found = self.store.sequence(name)
        assert found is not None
        assert len(found.stamps) == len(found.shown)
        return [int(source) for source in found.header["source_id"][found.shown]]

    def hash_of(self, part: str, name: str = "o") -> dict[bytes, bytes]:
        keys = [f"{Keys(SURVEY).shard(shard)}{part}:{name}" for shard in range(self.shards)]
        found = self.client.run([("HGETALL", key) for key in keys])
        return {k: v for one in found for k, v in one.items()}

    def latest(self) -> dict[str, bytes | None]:
        return {
            f"{name} {lane.model}": self.store.latest(name, lane.model) for name in ("o", "p") for lane in self.lanes
        }


def told(sequence: StoredSequence, lane: Lane, keep: bool = True) -> Answer:
    """An answer that depends on everything that the model needs, and on nothing else."""
    tokens = dict(sequence.tokens)
    for row, epoch in enumerate(sequence.shown if lane.images else ()):
        kinds = [sequence.stamps, *(sequence.images[kind] for kind in sorted(sequence.images))]
        tokens[int(epoch)] = blake2b(b"".join(pixels[row].tobytes() for pixels in kinds), digest_size=8).digest()
    header, points = sequence.header, sequence.photometry
    said = [
        header[[n for n in header.dtype.names or () if not n.endswith("_ms")]].tolist(),
        [tokens.get(n, b"").hex() for n in range(len(header))], dict(sequence.context),
        None if points is None else (points.mjd.tolist(), points.flux.tolist()),
    ]  # fmt: skip
    fresh = {n: t for n, t in tokens.items() if n not in sequence.tokens} if lane.span == 1 and keep else {}
    return answer(sequence, latest=repr(said).encode(), tokens=fresh)


def seen(source: int, name: str = "o", template: int = 0, **changes: Any) -> Observation:
    """An observation with all images; the template is one of a few."""
    rng = np.random.default_rng(source)
    images = {
        "difference": rng.normal(0, 1, (32, 32)).astype(np.float16),
        "template": np.full((32, 32), template + 1, np.float16),
    }
    return observation(name, source, **({"images": images, "stamp": images["difference"] + np.float16(2)} | changes))


def test_pixels_leave_when_every_model_has_seen_them(valkey: embedded.Server) -> None:
    stream = Stream(valkey.url, True, SCIENCE, ALL_KINDS)
    stream.add(*(seen(n, template=n % 2) for n in (1, 2, 3)))
    stream.answer(SCIENCE)
    assert stream.pixels() == [1, 2, 3], "the other model has not seen them"
    stream.answer(ALL_KINDS)
    assert stream.pixels() == []
    assert [stream.hash_of(part) for part in ("stamps", "further", "templates")] == [{}, {}, {}]
    assert {len(digest) for digest in stream.hash_of("seen").values()} == {40}
    stream.add(seen(4))
    for lane in (SCIENCE, ALL_KINDS):
        (found,) = stream.claim(lane)
        assert (found.shown.tolist(), sorted(found.tokens), found.gone) == ([3], [0, 1, 2], frozenset())
        stream.settle(lane, [found])
    assert stream.pixels() == []
    assert stream.ledger.books().objects.balanced


def test_pixels_stay_with_always(valkey: embedded.Server) -> None:
    stream = Stream(valkey.url, False, SCIENCE)
    stream.add(seen(1), seen(2))
    stream.answer()
    assert stream.pixels() == [1, 2]


def test_a_light_curve_model_waits_for_no_pixels_and_a_model_of_groups_keeps_them_all(valkey: embedded.Server) -> None:
    stream = Stream(valkey.url, True, SCIENCE, CURVES)
    stream.add(seen(1))
    stream.answer(SCIENCE)
    assert stream.pixels() == []
    stream.answer(CURVES)
    stream.join(GROUPS)
    stream.add(seen(2))
    stream.answer(SCIENCE, CURVES)
    assert stream.pixels() == [2]
    assert stream.store.sees() == {"a": "99 a-1", "c": "0 -", "g": ""}
    stream.store.retire("g")
    stream.add(seen(3))
    stream.answer(SCIENCE)
    assert stream.pixels() == []


def test_what_a_model_does_not_look_at_any_more_does_not_wait_for_it(valkey: embedded.Server) -> None:
    short = replace(SCIENCE, most=2)
    stream = Stream(valkey.url, True, short)
    stream.add(*(seen(n) for n in (1, 2, 3, 4)))
    (found,) = stream.claim(short)
    stream.store.settle([answer(found, tokens={2: b"three", 3: b"four"})], short)
    assert stream.pixels() == []
    assert len(stream.hash_of("seen")) == 4
    stream.add(seen(5))
    stream.answer(short)
    kept = {int.from_bytes(source) for source in stream.hash_of("tokens.a") if source != b"model"}
    assert (stream.pixels(), kept) == ([], {4, 5})


def test_a_payload_is_compared_with_one_whose_pixels_are_gone(valkey: embedded.Server) -> None:
    """Of two payloads of one source the same one stays, whether pixels are kept or not, whatever comes first."""
    payloads = [seen(2, flux=flux, stamp=np.full((32, 32), flux, np.float16)) for flux in (1.0, 2.0, 3.0)]
    ends = set()
    for until_seen in (False, True):
        for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)):
            stream = Stream(valkey.url, until_seen, SCIENCE)
            stream.add(seen(1), seen(3))
            for n in order:
                stream.add(payloads[n])
                stream.answer()
            before = stream.store.revision("o")
            assert stream.add(*payloads) == [Outcome.DUPLICATE] * 3
            assert stream.store.revision("o") == before, "all of them were there before"
            assert stream.gone == set()
            ends.add(stream.latest()["o a"])
            assert stream.pixels() == ([] if until_seen else [1, 2, 3])
    assert len(ends) == 1


def test_a_replaced_payload_is_seen_anew_and_the_others_are_not(valkey: embedded.Server) -> None:
    stream = Stream(valkey.url, True, SCIENCE, ALL_KINDS)
    stream.add(seen(1), seen(2), seen(3))
    stream.answer()
    stream.add(seen(4))
    late = [(lane, stream.claim(lane)) for lane in stream.lanes]
    stream.add(seen(2, mjd=60002.5, stamp=np.full((32, 32), 9, np.float16)))
    for lane, found in late:  # they have seen the payload that was replaced meanwhile
        assert stream.settle(lane, found) == [Settled.REQUEUED]
    assert stream.pixels() == [2, 4]
    for lane in stream.lanes:
        (found,) = stream.claim(lane)
        assert (found.shown.tolist(), found.gone) == ([1, 3], frozenset())
        stream.settle(lane, [found])
    assert stream.pixels() == []


@pytest.mark.parametrize("until_seen", [False, True])
@pytest.mark.parametrize("lane", [SCIENCE, GROUPS])
def test_an_epoch_that_left_the_window_comes_back_with_other_pixels(
    valkey: embedded.Server, until_seen: bool, lane: Lane
) -> None:
    stream = Stream(valkey.url, until_seen, lane, max_stamps=3)
    stream.add(seen(1), seen(2), seen(3))
    (found,) = stream.claim(lane)
    stream.store.settle([answer(found, tokens=dict.fromkeys(range(3 // lane.span), b"old"))], lane)
    stream.add(seen(1, mjd=60002.2, stamp=np.zeros((32, 32), np.float16)))
    (held,) = stream.claim(lane)
    stream.add(seen(4))  # 2 leaves
    again = seen(2, mjd=60009.0, stamp=np.full((32, 32), 5, np.float16))
    stream.add(again)  # and comes back as the newest, so that 1 leaves
    stream.store.settle([answer(held, tokens=dict.fromkeys(range(3 // lane.span), b"old"))], lane)
    (found,) = stream.claim(lane)
    assert found.header["source_id"].tolist() == [3, 4, 2]
    assert found.gone == frozenset()
    assert 2 not in found.tokens
    assert found.stamps[-1].tobytes() == again.stamp.tobytes()


def test_another_version_declines_what_it_cannot_see_until_it_has_left_the_window(valkey: embedded.Server) -> None:
    stream = Stream(valkey.url, True, SCIENCE, max_stamps=3)
    stream.add(seen(1), seen(2))
    stream.answer()
    newer = replace(SCIENCE, kept_as="a-2")
    stream.join(newer)
    assert stream.store.sees() == {"a": "99 a-2"}
    for n, expected in ((3, {0, 1}), (4, {0}), (5, set())):
        stream.add(seen(n))
        (found,) = stream.claim(newer)
        assert (found.gone, found.tokens) == (expected, {})
        assert stream.store.fetch([found.claim], SCIENCE)[0].gone == set(), "the version before could go on"
        assert len(found.stamps) == len(found.shown) == 3 - len(expected) if n > 2 else True
        stream.store.settle([told(found, newer) if not expected else answer(found, classified=False)], newer)
    assert stream.pixels() == [], "all that is left has been seen by the new version"
    assert stream.ledger.books().objects.lost == 0


def test_pixels_stay_while_two_versions_disagree(valkey: embedded.Server) -> None:
    stream = Stream(valkey.url, True, SCIENCE)
    stream.join(replace(SCIENCE, kept_as="a-2"))
    stream.add(seen(1))
    stream.answer(SCIENCE)  # of the version that joined first
    assert stream.pixels() == [1]


def test_a_model_that_joins_later_sees_what_comes_later(valkey: embedded.Server) -> None:
    stream = Stream(valkey.url, True, SCIENCE)
    stream.add(seen(1))
    stream.answer()
    stream.store.join("b", backlog=["b"], sees={"b": ALL_KINDS.sees})
    stream.add(seen(1, "p"))
    found = {sequence.object_id: sequence for sequence in stream.claim(ALL_KINDS)}
    assert found["o"].gone == {0}
    assert found["p"].gone == set()
    assert found["o"].images["template"].shape == (0, 32, 32)


def test_pixels_that_were_lost_are_not_taken_for_seen(valkey: embedded.Server) -> None:
    stream = Stream(valkey.url, True, SCIENCE)
    stream.add(seen(1))
    stream.answer()
    stream.add(seen(2), seen(1, "p"))
    client = stream.client
    client.run([("DEL", *client.run([("KEYS", "*}:stamps:p")])[0])])
    stream.answer()
    books = stream.ledger.books().objects
    assert (books.touched, books.lost) == (1, 1)
    assert stream.pixels() == []


def test_a_forgotten_object_leaves_no_digest(valkey: embedded.Server) -> None:
    stream = Stream(valkey.url, True, SCIENCE, shards=1, ttl_s=0.2)
    stream.add(seen(1))
    stream.answer()
    assert len(stream.hash_of("seen")) == 1
    threading.Event().wait(0.3)
    stream.add(seen(1, "p"))
    assert not [k for k in stream.client.run([("KEYS", "*")])[0] if k.endswith(b":o")]


def test_everything_else_is_still_read(valkey: embedded.Server) -> None:
    stream = Stream(valkey.url, True, ALL_KINDS)
    points = Photometry(*(np.array([v], t) for v, t in ((6e4, "f8"), (1, "u1"), (5, "f4"), (1, "f4"), (0, "u1"))))
    stream.add(seen(1, photometry=points, context={"visits": 2.0}), seen(2, context={"visits": 3.0}))
    stream.answer()
    stream.add(seen(3, context={"visits": 4.0}))
    found = stream.store.sequence("o", EVERYTHING)
    assert found is not None
    assert found.gone == {0, 1}
    assert found.shown.tolist() == [2]
    assert len(found.header) == 3
    assert dict(found.context) == {"visits": 4.0}
    assert found.photometry is not None
    assert found.photometry.flux.tolist() == [5.0]
    np.testing.assert_array_equal(found.images["template"], [np.ones((32, 32))])
    assert stream.store.sources("o") == {1, 2, 3}


def test_on_a_cluster(valkey_cluster: ValkeyCluster) -> None:
    stream = Stream(valkey_cluster.url, True, SCIENCE, ALL_KINDS, cluster=True, shards=16)
    stream.add(*(seen(n, f"o{n % 10}") for n in range(40)))
    stream.answer()
    for n in range(10):
        assert stream.pixels(f"o{n}") == []
    queue = DueQueue(stream.client, SURVEY, model="a")
    assert names(queue.claim(10, 1.0)) == set()


STAMPS = [np.full((32, 32), n, np.float16) for n in range(3)]


@st.composite
def packets(draw: Any) -> Observation:
    images = {k: STAMPS[draw(st.integers(0, 2))] for k in ("difference", "template") if draw(st.booleans())}
    return observation(
        draw(st.sampled_from("op")), draw(st.integers(1, 8)), draw(st.sampled_from([1.0, 2.0, 3.0, 4.0, 4.5])),
        flux=draw(st.sampled_from([1.0, 2.0])), stamp=STAMPS[draw(st.integers(0, 2))], images=images,
        context=draw(st.sampled_from([{}, {"visits": 1.0}])),
    )  # fmt: skip


@pytest.fixture(scope="module")
def own_valkey() -> object:
    with embedded.start_valkey() as server:
        yield server


def _run(stream: Stream, seen: list[Observation], chance: random.Random) -> dict[str, bytes | None]:
    """Deliver packets in some order, some again, while workers answer, are killed before or within settling, and repeat
    what they did; then answer everything."""
    messages = deliveries(seen)
    order = chance.sample(messages, len(messages)) + chance.choices(messages, k=len(messages) // 2)
    held: list[tuple[Lane, list[StoredSequence]]] = []
    while order:
        size = chance.randint(1, 6)
        batch, order = order[:size], order[size:]
        stream.store.store(batch)
        for lane in chance.sample(stream.lanes, chance.randint(0, len(stream.lanes))):
            held.append((lane, stream.claim(lane, chance.choice([0.0, 60.0]), chance.randint(1, 3))))
        for own in [own for own in held if chance.random() < 0.6]:
            stream.settle(*own, keep=chance.random() < 0.8)
            if chance.random() < 0.7:  # otherwise it is settled once more later, by a worker that was cut off
                held.remove(own)
    client = stream.client
    for lane in stream.lanes:  # the leases of those that were killed end
        queue = DueQueue(client, SURVEY, shards=stream.shards, model=lane.model)
        queue.release([sequence.claim for own, found in held if own is lane for sequence in found])
    stream.answer()
    return stream.latest()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seen=st.lists(packets(), min_size=1, max_size=25), seeds=st.tuples(st.integers(), st.integers()))
def test_the_answers_are_those_of_always(
    own_valkey: embedded.Server, seen: list[Observation], seeds: tuple[int, int]
) -> None:
    """Whatever the order, repetitions, late epochs, replaced payloads, a window that slides, and kills."""
    ends = []
    for until_seen, seed in zip((False, True), seeds, strict=True):
        stream = Stream(own_valkey.url, until_seen, SCIENCE, ALL_KINDS, CURVES)
        ends.append(_run(stream, seen, random.Random(seed)))
        assert stream.gone == set()
        assert stream.ledger.books().objects.balanced
        for name in ("o", "p"):
            templates, further = stream.hash_of("templates", name), stream.hash_of("further", name)
            used = [value[:8] for value in further.values() if value[:8] != bytes(8)]
            assert {digest for digest in templates if len(digest) == 8} == set(used)
            several = {digest + b"n": b"%d" % used.count(digest) for digest in used if used.count(digest) > 1}
            assert {digest: n for digest, n in templates.items() if len(digest) == 9} == several
            stamps, digests = stream.hash_of("stamps", name), stream.hash_of("seen", name)
            assert not set(stamps) & set(digests)
            assert set(stamps) | set(digests) == set(stream.hash_of("headers", name))
    assert ends[0] == ends[1]
