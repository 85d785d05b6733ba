"""The live stream: server-sent events of new classifications, for many readers at once.

An event's id says how far its reader has come: `place:offset` for every partition. A reader that returns with it
(after a reconnect, or after the server restarted) gets everything since then from the index and then continues live.
What all readers receive is built only once.
"""

import asyncio
import contextlib
import json
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skyheed.broker.web.index import Event, Index
from skyheed.broker.web.responses import encode
from skyheed.broker.web.search import Filters

BATCH_S = 0.5
KEEP_ALIVE_S = 15.0  # a reader that hears nothing for three times as long may reconnect
KEPT = 240  # batches: a reader more than two minutes behind continues from the index
PAGE = 500  # events read from the index at a time
FRAMES = 64  # versions of a batch (one for each set of filters) that are kept
RETRY_MS = 2000
LONGEST_ID = 16_384
BEGINNING = "beginning"  # the id where nothing was read yet: browsers send an empty one as none, which means "from now"

Positions = dict[str, int]  # place -> next offset


def event_id(positions: Mapping[str, int]) -> str:
    """The id of the event after which a reader resumes: `topic@id/partition:offset` of the last event of each."""
    return ",".join(f"{place}:{offset - 1}" for place, offset in sorted(positions.items())) or BEGINNING


def positions_of(text: str) -> Positions:
    """The positions in an event's id; none in an empty id or `BEGINNING`, which everything follows.

    Raises:
        ValueError: the id was not made here.
    """
    if len(text) > LONGEST_ID:
        raise ValueError("too long")
    found: Positions = {}
    if text == BEGINNING:
        return found
    for part in filter(None, text.split(",")):
        place, _, offset = part.rpartition(":")
        if not place or not offset.lstrip("-").isdecimal() or len(offset) > 19 or int(offset) < -1:
            raise ValueError(f"{part[:80]!r} is not a place and an offset")
        found[place] = int(offset) + 1
    return found


def frame(kind: str, data: bytes, id_: str = "") -> bytes:
    """One event; `data` is JSON without line breaks."""
    head = f"id: {id_}\n" if id_ else ""
    return f"{head}event: {kind}\ndata: ".encode() + data + b"\n\n"


@dataclass
class Batch:
    """The news of half a second, the positions that follow them, and the bytes for each set of filters."""

    events: Sequence[Event]
    id: str
    frames: "OrderedDict[str, bytes | None]" = field(default_factory=OrderedDict)

    @property
    def last(self) -> int:
        return self.events[-1].seq

    def form(self, filters: Filters) -> bytes | None:
        """What a reader with these filters receives, or None if nothing matches."""
        if filters.key not in self.frames:
            self.frames[filters.key] = _form(self.events, filters, self.id)
            if len(self.frames) > FRAMES:
                self.frames.popitem(last=False)
        return self.frames[filters.key]


def _form(events: Sequence[Event], filters: Filters, id_: str) -> bytes | None:
    rows = [e.row for e in events if filters.empty or filters.wants(json.loads(e.row))]
    if not rows:
        return None
    return frame("classifications", b'{"rows":[' + ",".join(rows).encode() + b"]}", id_)


class Hub:
    """Collects news and distributes them to the readers; everything except `tell` runs in the server's event loop."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: list[Event] = []
        self._batches: deque[Batch] = deque(maxlen=KEPT)
        self._positions: Positions = {}
        self._last = 0
        self._state = b""
        self._state_number = 0
        self._moved = asyncio.Event()
        self.closed = False
        self.readers = 0
        self.caught_up: Callable[[], bool] = lambda: True  # whether the index has read everything there is

    def start(self) -> None:
        """Start, in the event loop, before the first reader."""
        self._loop = asyncio.get_running_loop()
        self._positions, self._last = self._index.standing()

    def tell(self, events: Sequence[Event]) -> None:
        """Add news, from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._pending.extend, events)

    def tell_state(self, state: Mapping[str, Any]) -> None:
        """Set the state of the servers, in the event loop; readers are told if it changed."""
        said = encode({key: value for key, value in state.items() if key != "now_ms"})
        if said != self._state:
            self._state, self._state_number = said, self._state_number + 1
            self._wake()

    async def run(self) -> None:
        """Turn news into batches until cancelled."""
        while True:
            await asyncio.sleep(BATCH_S)
            self.gather()

    def gather(self) -> None:
        """Make one batch of what is pending."""
        events = [event for event in self._pending if event.seq > self._last]
        self._pending.clear()
        if not events:
            return
        for event in events:
            self._positions[event.place] = max(self._positions.get(event.place, 0), event.offset + 1)
        self._last = events[-1].seq
        self._batches.append(Batch(events, event_id(self._positions)))
        self._wake()

    def close(self) -> None:
        """End every stream, so that the server can stop."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def stream(self, filters: Filters, last_id: str | None) -> AsyncIterator[bytes]:
        """The events for one reader, without end.

        Args:
            last_id: id of the last event the reader has received; None to start from now.
        """
        self.readers += 1
        try:
            async for part in self._stream(filters, last_id):
                yield part
        finally:
            self.readers -= 1

    async def _stream(self, filters: Filters, last_id: str | None) -> AsyncIterator[bytes]:
        reader, first = await self._begin(last_id)
        yield first
        told = 0
        while not self.closed:
            moved = self._moved
            if told != self._state_number:
                told = self._state_number
                yield frame("state", self._state)
            for part in await self._next(reader, filters):
                reader.said = time.monotonic()
                yield part
            if reader.at >= self._last and not reader.catching and not self.closed:
                await _came(moved, reader.said + KEEP_ALIVE_S)
            elif reader.waits:
                await _came(moved, time.monotonic() + BATCH_S)
            if time.monotonic() - reader.said >= KEEP_ALIVE_S:
                reader.said = time.monotonic()
                yield frame("alive", b"{}", event_id(reader.positions))

    async def _begin(self, last_id: str | None) -> tuple["_Reader", bytes]:
        retry = f"retry: {RETRY_MS}\n\n".encode()
        now = _Reader(self._last, dict(self._positions))
        if last_id is None:
            return now, retry + f"id: {event_id(now.positions)}\n\n".encode()
        try:
            positions = positions_of(last_id)
        except ValueError:
            said: dict[str, Any] = {
                "missed": None,
                "sentence": "the position to continue from is unknown here: continuing with new classifications",
            }
            return now, retry + frame("gap", encode(said), event_id(now.positions))
        at, missed = await asyncio.to_thread(self._index.seq_before, positions)
        reader = _Reader(at, dict(positions), floor=positions, catching=True)
        if not missed:
            return reader, retry
        said = {"missed": missed, "sentence": f"about {missed} classifications are no longer kept here: see the topic"}
        return reader, retry + frame("gap", encode(said))

    async def _next(self, reader: "_Reader", filters: Filters) -> list[bytes]:
        """What the reader has not seen: from the index while it is behind, then from the batches."""
        first = self._batches[0].events[0].seq if self._batches else self._last + 1
        if reader.catching or reader.at + 1 < first <= self._last:
            return await self._older(reader, filters)
        return [part for batch in list(self._batches) if batch.last > reader.at for part in _of(batch, reader, filters)]

    async def _older(self, reader: "_Reader", filters: Filters) -> list[bytes]:
        found = await asyncio.to_thread(self._index.events_after, reader.at, PAGE)
        # what is in the index but not yet in a batch will be in everyone's next batch
        events = [event for event in found if event.seq <= self._last]
        if not events:
            reader.catching = reader.catching and (reader.at < self._last or self._is_ahead(reader))
            reader.waits = reader.catching
            return []
        made = _form(reader.take(events), filters, event_id(reader.positions))
        return [made] if made else []

    def _is_ahead(self, reader: "_Reader") -> bool:
        """Whether the reader has seen what the index has not read again yet, because the index was rebuilt."""
        if self.caught_up():
            return False
        return any(offset > self._positions.get(place, 0) for place, offset in reader.floor.items())


@dataclass
class _Reader:
    """How far one reader has come.

    Attributes:
        at: the last event it has received.
        positions: place -> next offset.
        floor: what it already had when it connected; nothing earlier is sent again.
        catching: it is reading from the index what it missed.
        waits: it is catching up, but the index has nothing for it yet.
    """

    at: int
    positions: Positions
    floor: Positions = field(default_factory=dict)
    catching: bool = False
    waits: bool = False
    said: float = field(default_factory=time.monotonic)

    def take(self, events: Sequence[Event]) -> list[Event]:
        """Those of `events` that the reader has not yet received; they count as received afterwards."""
        fresh = [event for event in events if event.seq > self.at and event.offset >= self.floor.get(event.place, 0)]
        self.at = max(self.at, events[-1].seq)
        for event in fresh:
            self.positions[event.place] = max(self.positions.get(event.place, 0), event.offset + 1)
        return fresh


def _of(batch: Batch, reader: _Reader, filters: Filters) -> list[bytes]:
    fresh = reader.take(batch.events)
    whole = len(fresh) == len(batch.events)  # the reader has none of it yet, also from before the index was made anew
    made = batch.form(filters) if whole else _form(fresh, filters, event_id(reader.positions))
    return [made] if made else []


async def _came(moved: asyncio.Event, until: float) -> None:
    """Wait for news until a given time."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(moved.wait(), max(0.0, until - time.monotonic()))
