"""What is kept of an object alongside headers and science stamps: exact, each thing once, the same in every order."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from real_data import real_data
from state_tools import LANE, answer, answer_all, deliveries, delivery, observation, open_state

from skyheed.broker.errors import PacketError
from skyheed.broker.local import embedded
from skyheed.broker.observation import Observation
from skyheed.broker.packets.reader import read_packet
from skyheed.broker.state import client as state
from skyheed.broker.state import parts
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.sequence import EVERYTHING, Outcome, check
from skyheed.broker.work import history_of
from skyheed.classifier import context as contexts
from skyheed.classifier.history import MOST_POINTS, POINT_COLUMNS, STEPS_A_DAY, History, Photometry
from skyheed.classifier.stamp import rounded

pytestmark = pytest.mark.redis
RNG = np.random.default_rng(8)
STAMPS = [rounded(RNG.normal(0, 13, (32, 32)).astype(np.float16)) for _ in range(5)]
WINDOW = 5
Point = tuple[float, int, float, float, int]


def photometry(points: list[Point]) -> Photometry:
    columns = list(zip(*points, strict=True)) if points else [()] * 5
    kinds = (np.float64, np.uint8, np.float32, np.float32, np.uint8)
    return Photometry.merged([Photometry(*(np.array(c, k) for c, k in zip(columns, kinds, strict=True)))])


def as_lists(found: Photometry | None) -> list[list[Any]]:
    return [] if found is None else [getattr(found, name).tolist() for name in POINT_COLUMNS]


# --- packing


@pytest.mark.parametrize("scale", [0.0, 1e-6, 0.01, 1.0, 13.0, 1e3, 65504.0])
def test_a_stamp_comes_back_exactly(scale: float) -> None:
    plain = np.clip(RNG.normal(0, scale, (32, 32)), -65504, 65504).astype(np.float16)
    for stamp in (plain, rounded(plain), -rounded(plain), rounded(plain)[::-1]):
        packed = [*parts.pack_stamps([stamp, plain]), b"", *parts.pack_stamps([stamp])]
        back = parts.unpack_stamps(packed)
        assert back.dtype == np.float16
        nothing = np.zeros_like(stamp)
        np.testing.assert_array_equal(back.view(np.uint16), np.stack([stamp, plain, nothing, stamp]).view(np.uint16))
    assert parts.pack_stamps([]) == []
    assert parts.unpack_stamps([]).shape == (0, 32, 32)
    if scale == 13:
        assert len(parts.pack_stamps([plain])[0]) == 2048
        assert len(parts.pack_stamps([rounded(plain)])[0]) < 1200  # so that three kinds cost 2.1 times one


@pytest.mark.parametrize("cut", [1, 383, 384, 500])
def test_a_stamp_that_is_cut_is_refused_and_never_another_ones(cut: int) -> None:
    whole = parts.pack_stamps(STAMPS[:2])
    with pytest.raises(ValueError, match="packed stamp"):
        parts.unpack_stamps([whole[0], whole[1][:cut], whole[1]])


def test_rounding_keeps_pixels_to_a_fraction_of_themselves() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    padded = np.resize(every, (-(-len(every) // 1024), 32, 32))
    for stamp in padded[:64]:
        done = rounded(stamp)
        assert np.isfinite(done).all()
        np.testing.assert_allclose(done.astype(float), stamp.astype(float), rtol=2**-6, atol=1.1e-6)
        np.testing.assert_array_equal(rounded(done), done)
        np.testing.assert_array_equal(rounded(-stamp), -done)


points_strategy = st.lists(
    st.tuples(
        st.integers(5_000_000_000, 5_000_000_400).map(lambda step: step / STEPS_A_DAY), st.integers(0, 5),
        st.floats(-1e5, 1e5, width=32), st.floats(2**-10, 1e4, width=32), st.integers(0, 2),
    ),
    max_size=30,
)  # fmt: skip


@given(points_strategy)
def test_points_come_back_exactly(points: list[Point]) -> None:
    made = photometry(points)
    assert as_lists(parts.unpack_points(parts.pack_points(made))) == as_lists(made)


def test_context_comes_back() -> None:
    whole = {name: float(np.float32(q.low + 0.3 * (q.high - q.low))) for name, q in
             zip(contexts.NAMES, contexts.QUANTITIES, strict=True)}  # fmt: skip
    for context in ({}, {"age_days": 3.5}, whole):
        assert parts.unpack_context(parts.pack_context(context)) == context
    later = parts.pack_context({"visits": 7}) + bytes([250, 0, 0, 0, 0])
    assert parts.unpack_context(later) == {"visits": 7}


def test_what_cannot_be_kept_is_refused_before_a_batch() -> None:
    for wrong in (
        {"images": {"psf": STAMPS[0]}}, {"images": {"template": np.zeros((5, 5), np.float16)}},
        {"context": {"ra": 1.0}}, {"context": {"age_days": float("nan")}},
    ):  # fmt: skip
        with pytest.raises((ValueError, PacketError)):
            check(observation(**wrong))


# --- in Redis


def everything(store: SequenceStore, name: str) -> dict[str, Any]:
    found = store.sequence(name)
    assert found is not None
    return {
        "header": [found.header[n].tolist() for n in found.header.dtype.names or () if not n.endswith("_ms")],
        "science": found.stamps.tobytes(),
        "images": {kind: stamps.tobytes() for kind, stamps in found.images.items()},
        "points": as_lists(found.photometry),
        "context": found.context,
    }


def full(source: int, template: int = 0, **changes: Any) -> Observation:
    """An observation with everything; the template is one of a few."""
    difference = rounded(STAMPS[source % 5] + np.float16(1))
    points = photometry([(60_000.0 + source - back, 1, 10.0 + back, 1.0, 0) for back in range(4)])
    more = {"images": {"difference": difference, "template": STAMPS[template]}, "photometry": points}
    return observation("a", source, **(more | {"context": {"detections": float(source + 1)}} | changes))


def test_everything_comes_back_as_from_the_packets(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    packets = [full(n, template=n % 2) for n in range(1, 8)] + [observation("a", 9)]
    assert store.store(deliveries(packets)) == [Outcome.STORED] * 8
    (found,) = store.fetch(queue.claim(1, 10.0), replace(EVERYTHING, kept_as="m"))
    streamed, direct = history_of(found, "ztf"), History.by_object(packets)["a"]
    assert list(streamed.images) == list(direct.images)
    for kind in direct.images:
        np.testing.assert_array_equal(streamed.images[kind], direct.images[kind])
    assert not streamed.images["template"][-1].any()
    assert as_lists(streamed.photometry) == as_lists(direct.photometry)
    assert streamed.context == direct.context == {}
    streamed.check(99)


def test_a_real_sequence_is_the_same_from_redis_and_from_its_packets(valkey: embedded.Server) -> None:
    files = sorted(real_data("ztf", "sequence_tde_ZTF20abfcszi").glob("*.avro"))
    packets = [o for path in files for o in read_packet(path.read_bytes(), "ztf")]
    store, queue, _ = open_state(valkey.url)
    store.store(deliveries(packets[::-1] + packets[:5]))
    (found,) = store.fetch(queue.claim(1, 10.0), replace(EVERYTHING, kept_as="m"))
    streamed, direct = history_of(found, "ztf"), History.by_object(packets)["ZTF20abfcszi"]
    assert list(streamed.images) == ["science", "difference", "template"]
    for kind, stamps in direct.images.items():
        np.testing.assert_array_equal(streamed.images[kind], stamps)
    assert as_lists(streamed.photometry) == as_lists(direct.photometry)
    assert streamed.context == {name: pytest.approx(value, rel=1e-6) for name, value in direct.context.items()}
    assert len(streamed.context) > 15


def test_a_model_gets_what_it_needs_and_no_more(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    store.store(deliveries([full(1), full(2)]))
    claims = queue.claim(1, 10.0)
    found = store.fetch(claims, LANE)[0]
    assert (found.images, found.photometry, found.context) == ({}, None, {})
    found = store.fetch(claims, replace(LANE, images=(), photometry=True))[0]
    assert (len(found.stamps), found.images) == (0, {})
    assert found.photometry is not None
    found = store.fetch(claims, replace(LANE, images=("science", "template"), context=True))[0]
    assert list(found.images) == ["template"]
    assert found.context == {"detections": 3.0}


def test_images_of_epochs_that_are_kept_as_tokens_are_not_fetched(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url)
    store.store(deliveries([full(n, template=n % 3) for n in range(1, 6)]))
    lane = replace(EVERYTHING, kept_as="m", span=2)
    (found,) = store.fetch(queue.claim(1, 10.0), lane)
    store.settle([answer(found, tokens={0: b"t", 1: b"t"})], lane)
    store.store(deliveries([full(6)], first=20))
    (found,) = store.fetch(queue.claim(1, 10.0), lane)
    assert found.images["difference"].shape == found.images["template"].shape == found.stamps.shape == (2, 32, 32)
    np.testing.assert_array_equal(found.images["template"], [STAMPS[2], STAMPS[0]])


def keys_of(valkey: embedded.Server, part: str) -> dict[bytes, bytes]:
    client = state.connect(valkey.url)
    names = client.run([("KEYS", f"*{part}:a")])[0]
    flat = client.run([("HGETALL", names[0])])[0] if names else {}
    return dict(flat) if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))


def test_a_template_is_kept_once_and_goes_with_its_last_epoch(valkey: embedded.Server) -> None:
    store, _, _ = open_state(valkey.url, max_stamps=3)
    store.store(deliveries([full(n, template=1) for n in range(1, 4)]))
    templates = keys_of(valkey, "templates")
    assert sorted(map(len, templates)) == [8, 9]  # the template, and that it has three uses
    assert templates[max(templates, key=len)] == b"3"
    store.store(deliveries([full(n, template=2) for n in (4, 5)], first=10))
    assert sorted(len(name) for name in keys_of(valkey, "templates")) == [8, 8, 9]
    store.store(deliveries([full(6, template=2), full(0, template=3)], first=20))
    assert sorted(len(name) for name in keys_of(valkey, "templates")) == [8, 9]
    assert len(keys_of(valkey, "further")) == 3
    found = store.sequence("a")
    assert found is not None
    np.testing.assert_array_equal(found.images["template"], [STAMPS[2]] * 3)
    for n in range(3):  # payloads of one source that replace each other
        store.store(deliveries([full(6, template=n, mjd=70_000.0 + n)], first=30 + n))
    assert len(keys_of(valkey, "further")) == 3
    found = store.sequence("a")
    assert found is not None
    np.testing.assert_array_equal(found.images["template"][-1], STAMPS[2])


def test_a_lost_template_is_noticed(valkey: embedded.Server) -> None:
    store, queue, ledger = open_state(valkey.url)
    store.store(deliveries([full(1)]))
    client = state.connect(valkey.url)
    client.run([("DEL", client.run([("KEYS", "*templates:a")])[0][0])])
    assert store.fetch(queue.claim(1, 10.0), EVERYTHING) == []
    assert ledger.books().objects.lost == 1


def test_points_are_bounded_and_a_late_packet_brings_its_own(valkey: embedded.Server) -> None:
    store, queue, _ = open_state(valkey.url, max_stamps=2)
    many = photometry([(60_000.0 + n / 100, 1, float(n), 1.0, 1) for n in range(290)])
    store.store(deliveries([full(5, photometry=many), full(6, photometry=None)]))
    assert answer_all(store, queue) == 1
    before = store.revision("a")
    early = photometry([(59_000.0 + n / 100, 2, float(n), 1.0, 0) for n in range(40)])
    assert store.store(deliveries([full(1, photometry=early)], first=9)) == [Outcome.SKIPPED]
    assert store.revision("a") > before
    assert answer_all(store, queue) == 1, "a late point makes the object due again"
    found = store.sequence("a")
    assert found is not None
    assert found.photometry is not None
    assert len(found.photometry) == MOST_POINTS
    assert found.photometry.flux[:10].tolist() == list(range(30, 40))
    before = store.revision("a")
    assert store.store(deliveries([full(1, photometry=early)], first=10)) == [Outcome.SKIPPED]
    assert store.revision("a") == before, "nothing new"


def test_a_changed_context_of_the_newest_epoch_is_a_change(valkey: embedded.Server) -> None:
    ends = set()
    for n, order in enumerate(itertools.permutations([1.0, 2.0, 3.0])):
        store, _, _ = open_state(valkey.url)
        seen = [replace(full(4, context={"visits": value}), object_id=f"o{n}") for value in order]
        outcomes = store.store(deliveries(seen, first=100 * n))
        assert outcomes == [Outcome.STORED, Outcome.DUPLICATE, Outcome.DUPLICATE]
        found = store.sequence(f"o{n}")
        assert found is not None
        ends.add(found.context["visits"])
    assert len(ends) == 1
    revision = store.revision("o5")
    store.store([delivery(990, replace(full(1, photometry=None), object_id="o5"))])
    assert store.revision("o5") > revision
    found = store.sequence("o5")
    assert found is not None
    assert found.context["visits"] in ends, "an earlier epoch's context does not count"


def stamp_or_none() -> Any:
    return st.sampled_from([None, *STAMPS[:2]])


@st.composite
def packets(draw: Any) -> Observation:
    images: dict[str, NDArray[np.float16]] = {}
    for kind in ("difference", "template"):
        if (stamp := draw(stamp_or_none())) is not None:
            images[kind] = stamp
    mjd = draw(st.sampled_from([1.0, 2.0, 3.0, 4.0, 4.5]))
    some = st.tuples(
        st.sampled_from([50_000.0, 50_001.0, 50_002.0, 50_003.00001]), st.just(1), st.sampled_from([1.0, 2.0]),
        st.sampled_from([0.5, 1.0]), st.sampled_from([0, 2]),
    )  # fmt: skip
    points = draw(st.none() | st.lists(some, max_size=4).map(photometry))
    context = draw(st.sampled_from([{}, {"visits": 1.0}, {"visits": 2.0}, {"age_days": 0.0}]))
    return observation(
        "a", draw(st.integers(1, 7)), mjd, flux=draw(st.sampled_from([1.0, 2.0])), images=images, photometry=points,
        context=context,
    )  # fmt: skip


@pytest.fixture(scope="module")
def own_valkey() -> object:
    with embedded.start_valkey() as server:
        yield server


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seen=st.lists(packets(), min_size=1, max_size=25), data=st.data())
def test_order_and_repetition_do_not_matter(own_valkey: embedded.Server, seen: list[Observation], data: Any) -> None:
    """Images, points and context as well are the same, whatever the order, the repetitions and the cuts."""
    messages = deliveries(seen)
    ends = []
    for _ in range(2):
        order = data.draw(st.permutations(messages))
        order += data.draw(st.lists(st.sampled_from(messages), max_size=8))
        state.connect(own_valkey.url).run([("FLUSHALL",)])
        store = open_state(own_valkey.url, max_stamps=WINDOW)[0]
        while order:
            size = data.draw(st.integers(1, 12))
            store.store(order[:size])
            order = order[size:]
        ends.append(everything(store, "a"))
        templates = keys_of(own_valkey, "templates")
        used = [value[:8] for value in keys_of(own_valkey, "further").values() if value[:8] != bytes(8)]
        counts = {digest: used.count(digest) for digest in used}
        assert {name for name in templates if len(name) == 8} == set(used)
        several = {digest + b"n": str(count).encode() for digest, count in counts.items() if count > 1}
        assert {name: value for name, value in templates.items() if len(name) == 9} == several
    assert ends[0] == ends[1]
    merged = [o.photometry for o in seen if o.photometry is not None]
    assert ends[0]["points"] == (as_lists(Photometry.merged(merged)) if merged else [[]] * 5)
