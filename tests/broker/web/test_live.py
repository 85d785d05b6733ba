"""The hub of the stream alone: where readers begin, and that none gets too little or anything twice."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from web_tools import news

from skyheed.broker.web import api
from skyheed.broker.web.index import Event, Index, Read
from skyheed.broker.web.live import BEGINNING, Batch, Hub, _of, _Reader, event_id
from skyheed.broker.web.search import Filters

PLACE = "topic@id/0"


@pytest.fixture
def index(tmp_path: Path) -> Any:
    made = Index(tmp_path / "i", "s")
    yield made
    made.close()


def add(index: Index, *names: str, first: int = 0) -> list[Event]:
    """Classifications of these objects, from this offset on."""
    found = [Read(PLACE, first + n, news("s", name, 4)) for n, name in enumerate(names)]
    return index.add(found, {PLACE: first + len(names)})


async def hub_of(index: Index) -> Hub:
    hub = Hub(index)
    hub.start()
    return hub


async def arrive(hub: Hub, events: list[Event]) -> None:
    """What the follower found, as the hub makes it known."""
    hub.tell(events)
    await asyncio.sleep(0)
    hub.gather()


async def opened(hub: Hub, last: str | None = None, query: str | None = None) -> AsyncIterator[Any]:
    """The stream as its address gives it for this header and this parameter."""
    answer = await api.events(SimpleNamespace(hub=hub), Filters(), query, last)  # type: ignore[arg-type]
    return aiter(answer.body_iterator)  # type: ignore[attr-defined]


async def heard(stream: AsyncIterator[Any], frames: int) -> list[str]:
    return [(await asyncio.wait_for(anext(stream), 20)).decode() for _ in range(frames)]


def rows(frame: str) -> list[str]:
    data = next(line.removeprefix("data: ") for line in frame.splitlines() if line.startswith("data: "))
    return [row["object_id"] for row in json.loads(data)["rows"]]


@pytest.mark.parametrize(("last", "query"), [("", None), (BEGINNING, None), (None, ""), (None, BEGINNING)])
def test_who_has_read_nothing_gets_everything_also_what_was_sent_before(
    index: Index, last: str | None, query: str | None
) -> None:
    async def read() -> list[str]:
        hub = await hub_of(index)
        await arrive(hub, add(index, "a", "b"))
        return await heard(await opened(hub, last, query), 2)

    assert rows(asyncio.run(read())[1]) == ["a", "b"]


def test_a_header_comes_before_the_address(index: Index) -> None:
    async def read() -> list[str]:
        hub = await hub_of(index)
        await arrive(hub, add(index, "a", "b"))
        return await heard(await opened(hub, f"{PLACE}:0", BEGINNING), 2)

    assert rows(asyncio.run(read())[1]) == ["b"], "a browser that comes back repeats its first address"


def test_who_came_before_the_first_classification_can_come_back(index: Index) -> None:
    """A browser sends no id if the last one was empty, and would go on from now."""

    async def read() -> list[str]:
        hub = await hub_of(index)
        [first] = await heard(await opened(hub), 1)
        id_ = next(line.removeprefix("id: ") for line in first.splitlines() if line.startswith("id:"))
        assert id_
        await arrive(hub, add(index, "a"))
        return await heard(await opened(hub, id_), 2)

    assert rows(asyncio.run(read())[1]) == ["a"]
    assert event_id({}) == BEGINNING


def test_a_start_while_the_index_is_filled_knows_the_places_of_what_it_knows(index: Index) -> None:
    """The positions and the newest event are of one moment, or a reader would get again, or never, what is between."""
    add(index, "a")
    base, told = index._file.reading(), []

    def add_between(statement: str) -> None:
        if statement.startswith("SELECT max(seq)") and not told:
            told.append(statement)
            asyncio.run(asyncio.to_thread(add, index, "b", first=1))

    base.set_trace_callback(add_between)
    positions, last = index.standing()
    base.set_trace_callback(None)
    assert told, "something was added between the two"
    assert (positions, last) == ({PLACE: 1}, 1)
    assert index.standing() == ({PLACE: 2}, 2)


def test_an_index_that_is_made_anew_repeats_nothing_in_a_shared_batch(index: Index) -> None:
    events = add(index, "a", "b", "c")
    batch = Batch(events, f"{PLACE}:2")
    has_two = _Reader(0, {PLACE: 2}, floor={PLACE: 2})
    assert [rows(part.decode()) for part in _of(batch, has_two, Filters())] == [["c"]]
    assert has_two.at == 3
    has_all = _Reader(0, {PLACE: 3}, floor={PLACE: 3})
    assert _of(batch, has_all, Filters()) == []
    assert [rows(part.decode()) for part in _of(batch, _Reader(0, {}), Filters())] == [["a", "b", "c"]]


def test_readers_at_different_places_get_each_row_once_while_more_arrives(index: Index) -> None:
    async def read() -> list[list[str]]:
        hub = await hub_of(index)
        await arrive(hub, add(index, *(f"o{n}" for n in range(3))))
        ids = (BEGINNING, f"{PLACE}:0", f"{PLACE}:2")
        got: list[list[str]] = [[] for _ in ids]

        async def follow(at: int, id_: str) -> None:
            stream = await opened(hub, id_)
            await heard(stream, 1)
            while "o99" not in got[at]:
                [frame] = await heard(stream, 1)
                got[at] += rows(frame) if "event: classifications" in frame else []

        followers = [asyncio.create_task(follow(at, id_)) for at, id_ in enumerate(ids)]
        for n in range(3, 100):
            events = await asyncio.to_thread(add, index, f"o{n}", first=n)
            await arrive(hub, events)
        await asyncio.gather(*followers)
        return got

    everything = [f"o{n}" for n in range(100)]
    assert asyncio.run(read()) == [everything, everything[1:], everything[3:]]
