"""`ingest.join_arcsec`: one transient under several names is read as one history."""

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from server_tools import ValkeyCluster
from state_tools import SURVEY, answer, content, deliveries, names, observation

from skyheed.broker import config
from skyheed.broker.app import connect_store
from skyheed.broker.local import embedded
from skyheed.broker.observation import Observation
from skyheed.broker.state import client as state
from skyheed.broker.state import neighbours
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.joined import MOST_JOINED, Joined, separation
from skyheed.broker.state.ledger import Ledger
from skyheed.broker.state.neighbours import MOST_NAMES, Neighbours, cell_of, cells_around
from skyheed.broker.state.queue import DueQueue
from skyheed.broker.state.sequence import EVERYTHING, Lane, StoredSequence
from skyheed.classifier.history import Photometry

LANE = Lane("", "model", 3, ("science", "difference"), photometry=True, context=True)
ARCSEC = 1 / 3600
# three names of one transient, in the order of their sizes, and one of another that is 3" away
SPLIT = {"170032913550409750": (0.0, 0.0), "170032913550409751": (0.45, -0.2), "1700329135504097520": (-0.3, 0.35)}
OTHER = {"170032913550409760": (0.0, 3.0)}


class Sky:
    """A store with the index of neighbours, and readers with and without joining."""

    def __init__(self, url: str, arcsec: float = 1.0, cluster: bool = False, survey: str = SURVEY) -> None:
        self.client = state.connect(url, cluster=cluster)
        self.neighbours = Neighbours(self.client, survey, 3600.0)
        self.store = SequenceStore(self.client, survey, debounce_s=0.0, neighbours=self.neighbours)
        self.queue = DueQueue(self.client, survey)
        self.ledger = Ledger(self.client, survey, shards=16)
        self.joined = Joined(self.store, self.neighbours, arcsec)

    def read(self) -> dict[str, StoredSequence]:
        """Every due object's joined history, by the object's own name."""
        found = self.store.fetch(self.queue.claim(100, 30.0), LANE)
        return {sequence.object_id: sequence for sequence in self.joined.read(found, LANE)}


def visits(ra: float = 150.0, dec: float = -30.0, objects: dict[str, Any] = SPLIT | OTHER) -> list[Observation]:
    """Two detections of each object, in turn, each with its own images, photometry and context."""
    rng, made = np.random.default_rng(7), []
    for n, (name, (east, north)) in enumerate([*objects.items()] * 2):
        stamp = rng.normal(0, 1, (32, 32)).astype(np.float16)
        points = Photometry(
            *(np.array([v], t) for v, t in ((60000.5 + n, "f8"), (1, "u1"), (n, "f4"), (1, "f4"), (0, "u1")))
        )
        made.append(
            observation(
                name, 100 + n, 60000.5 + n, stamp=stamp, images={"difference": np.round(stamp, 1)}, photometry=points,
                ra=(ra + east * ARCSEC / math.cos(math.radians(dec)) + rng.normal(0, 0.03) * ARCSEC) % 360,
                dec=dec + north * ARCSEC + rng.normal(0, 0.03) * ARCSEC, context={"detections": float(n + 1)},
            )
        )  # fmt: skip
    return made


def told(sequence: StoredSequence) -> tuple[Any, ...]:
    """What a model sees of a history."""
    names = [n for n in sequence.header.dtype.names or () if n not in ("kafka_ms", "ingest_ms")]
    points = sequence.photometry
    return (
        sequence.header[names].tolist(), sequence.stamps.tobytes(), sequence.images["difference"].tobytes(),
        None if points is None else (points.mjd.tolist(), points.flux.tolist()), dict(sequence.context),
        sequence.name, sequence.members,
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.floats(0, 360, exclude_max=True), st.floats(-90, 90), st.floats(0.01, 10), st.floats(0, 2 * math.pi),
    st.floats(0, 1),
)  # fmt: skip
@example(0.0, -90.0, 5.0, 1.0, 1.0)
@example(359.9999999, 89.9995, 10.0, 0.5, 1.0)
@example(0.0, 0.0, 1.0, math.pi, 1.0)
def test_the_cells_of_a_circle_hold_all_that_is_in_it(
    ra: float, dec: float, arcsec: float, angle: float, part: float
) -> None:
    distance = math.radians(arcsec * part * 0.999 * ARCSEC)
    at, around = math.radians(dec), math.radians(ra)
    to = math.asin(
        max(-1, min(1, math.sin(at) * math.cos(distance) + math.cos(at) * math.sin(distance) * math.cos(angle)))
    )
    turn = math.atan2(
        math.sin(angle) * math.sin(distance) * math.cos(at), math.cos(distance) - math.sin(at) * math.sin(to)
    )
    there = math.degrees(around + turn) % 360, math.degrees(to)
    cells = list(cells_around((ra, dec), arcsec))
    assert cell_of(*there) in cells
    assert len(set(cells)) == len(cells) < 40 or abs(dec) > 89.9


@pytest.mark.redis
@pytest.mark.parametrize(("ra", "dec"), [(150.0, -30.0), (0.0, 0.0), (0.00005, -89.9), (359.99999, 85.5)])
def test_names_of_one_transient_are_one_history(valkey: embedded.Server, ra: float, dec: float) -> None:
    sky = Sky(valkey.url, survey=f"at{dec:.0f}")
    seen = visits(ra, dec)
    sky.store.store(deliveries(seen))
    found = sky.read()
    for name in SPLIT:
        one = found[name]
        assert one.members == tuple(SPLIT)
        assert one.name == "170032913550409750"
        assert one.header["source_id"].tolist() == [100, 101, 102, 104, 105, 106]
        expected = [o for o in seen if o.object_id in SPLIT]
        np.testing.assert_array_equal(one.stamps, [o.stamp for o in expected])
        np.testing.assert_array_equal(one.images["difference"], [o.images["difference"] for o in expected])
        assert one.photometry is not None
        assert one.photometry.flux.tolist() == [0, 1, 2, 4, 5, 6]
        assert dict(one.context) == {"detections": 7.0}
        assert one.revision == sky.store.revision(name)
        assert one.published_revision == max(map(sky.store.revision, SPLIT))
    (alone,) = OTHER
    assert found[alone].members == ()
    assert found[alone].header["source_id"].tolist() == [103, 107]


@pytest.mark.redis
def test_a_joined_history_does_not_depend_on_the_order_of_arrival(valkey: embedded.Server) -> None:
    seen, stories = visits(), set()
    for n in range(6):
        sky, order = Sky(valkey.url, survey=f"order{n}"), seen[:]
        random.Random(n).shuffle(order)
        for first in range(0, len(order), 3):  # repeated batches, too
            batch = deliveries(order[first : first + 3], first=first)
            sky.store.store(batch)
            sky.store.store(batch)
        stories.add(repr([told(one) for _, one in sorted(sky.read().items())]))
    assert len(stories) == 1


@pytest.mark.redis
def test_switching_it_off_gives_back_the_separate_histories_and_books_never_change(valkey: embedded.Server) -> None:
    on, off = Sky(valkey.url, survey="on"), Sky(valkey.url, survey="off")
    plain = SequenceStore(off.client, "off", debounce_s=0.0)
    on.store.store(deliveries(visits()))
    plain.store(deliveries(visits()))
    for sky in (on, off):
        sky.ledger.consumed({"alerts/0": list(range(8))})
        found = sky.store.fetch(sky.queue.claim(100, 30.0), LANE)
        joined = sky.joined.read(found, LANE)
        assert any(one.members for one in joined) == (sky is on)
        sky.store.settle([answer(one) for one in joined], LANE)
    assert on.ledger.books().to_json() == off.ledger.books().to_json()
    assert on.ledger.books().balanced
    for name in SPLIT | OTHER:
        assert content(on.store, name) == content(off.store, name)


@pytest.mark.redis
@pytest.mark.parametrize("arcsec", [0.0, 1.0])
def test_switched_off_it_costs_no_command_and_no_byte(valkey: embedded.Server, arcsec: float) -> None:
    asked = config.load(overrides={"survey": "lsst", "ingest.join_arcsec": arcsec}, environ={})
    asked = config.with_servers(asked, "nowhere:1", valkey.url)
    client = state.connect(valkey.url)
    client.run([("CONFIG", "RESETSTAT")])
    store, queue, _ = connect_store(asked)
    store.store(deliveries(visits()))
    store.fetch(queue.claim(100, 30.0), LANE)
    (run,) = client.run([("INFO", "commandstats")])
    assert ("cmdstat_pexpire" in str(run)) == bool(client.run([("KEYS", "*:near")])[0]) == bool(arcsec)


@pytest.mark.redis
def test_the_answer_stands_with_the_name_that_it_is_published_under(valkey: embedded.Server) -> None:
    sky = Sky(valkey.url)
    seen = visits()
    sky.store.store(deliveries(seen[:4]))
    joined = list(sky.read().values())
    sky.store.settle([said(one) for one in joined], LANE)
    sky.store.store(deliveries([replace(seen[5], source_id=200, mjd=60100.0)], first=10))
    (last,) = sky.read().values()
    assert (last.object_id, last.name) == ("170032913550409751", "170032913550409750")
    late = said(last)
    codes = sky.store.settle([late], LANE)
    assert [code.name for code in codes] == ["ACKED"]
    assert sky.store.latest(last.name) == sky.store.latest(last.object_id) == late.latest
    lines = sky.store.history(last.name)
    sky.store.settle([late], LANE)  # as somebody does who was stopped before
    assert sky.store.history(last.name) == lines
    sky.client.run([("FLUSHDB",)])
    sky.store.settle([late], LANE)
    assert sky.store.latest(last.name) is None  # no keys of objects that are forgotten


def said(one: StoredSequence) -> Any:
    text = f"{one.name} at {one.published_revision}"
    return answer(one, latest=text.encode(), history=text, spoken=(one.name, one.published_revision))


@pytest.mark.redis
def test_a_detection_that_was_moved_to_another_name_counts_once(valkey: embedded.Server) -> None:
    sky = Sky(valkey.url)
    first, second = itertools.islice(SPLIT, 2)
    moved = [observation(name, 7, ra=10.0, dec=-5.0, flux=flux) for name, flux in ((second, 1.0), (first, 2.0))]
    sky.store.store(deliveries([*moved, observation(second, 8, ra=10.0, dec=-5.0)]))
    for one in sky.read().values():
        assert one.header["source_id"].tolist() == [7, 8]
        assert one.header["flux"].tolist() == [2.0, 100.0]


@pytest.mark.redis
def test_artefacts_in_heaps_are_not_joined(valkey: embedded.Server) -> None:
    """A row of names, each a neighbour of the next, that is longer than any group; and a cell that is full of them."""
    sky = Sky(valkey.url)
    row = [observation(f"row{n}", n + 1, ra=40.0, dec=n * 0.8 * ARCSEC) for n in range(MOST_JOINED + 1)]
    heap = [observation(f"heap{n}", n + 1, ra=80.0, dec=0.00001) for n in range(MOST_NAMES + 1)]
    sky.store.store(deliveries([*row, *heap]))
    found = sky.read()
    assert len(found) == len(row) + len(heap)
    assert all(one.members == () for one in found.values())
    shorter = Sky(valkey.url, survey="shorter")
    shorter.store.store(deliveries(row[1:]))
    assert {one.members for one in shorter.read().values()} == {tuple(f"row{n}" for n in range(1, MOST_JOINED + 1))}


@pytest.mark.redis
def test_neighbours_are_found_on_a_cluster(valkey_cluster: ValkeyCluster) -> None:
    sky = Sky(valkey_cluster.url, cluster=True)
    sky.store.store(deliveries(visits()))
    found = sky.read()
    assert {one.members for name, one in found.items() if name in SPLIT} == {tuple(SPLIT)}
    sky.store.settle([said(one) for one in found.values()], LANE)
    assert names(sky.queue.claim(10, 30.0)) == set()


@pytest.mark.redis
def test_a_cell_is_forgotten_with_its_objects(valkey: embedded.Server) -> None:
    sky = Sky(valkey.url)
    sky.store.store(deliveries([observation("a", 1, ra=10.0, dec=-5.0), observation("nan", 2, ra=float("nan"))]))
    (key,) = sky.client.run([("KEYS", "*:near")])[0]
    left = sky.client.run([("PTTL", key)])[0]
    assert 0 < left <= 3_600_000
    assert sky.neighbours.near([(10.0, -5.0)], 1.0) == [{"a"}]
    assert sky.neighbours.near([], 1.0) == []


def test_distances() -> None:
    assert separation((10.0, 60.0), (10.0 + 2 * ARCSEC, 60.0)) == pytest.approx(1.0, rel=1e-6)
    assert separation((0.0, 0.0), (360.0 - ARCSEC, 0.0)) == pytest.approx(1.0, rel=1e-6)
    assert neighbours.CELL_ARCSEC == 10.0  # a part of every key
    assert EVERYTHING.span == 0
