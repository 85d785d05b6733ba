"""What the page allows its readers, where no server is needed to see it."""

import asyncio
import json
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_index import fill
from web_tools import news

from skyheed.broker.errors import StreamError
from skyheed.broker.web import api, explain, follower, guard, images, lists, live, object_ids, problems, status
from skyheed.broker.web.index import Event, Index
from skyheed.broker.web.objects import MOST_MODELS, Objects
from skyheed.broker.web.problems import Problem
from skyheed.broker.web.rows import row_of
from skyheed.broker.web.search import Filters, Typed
from skyheed.classifier.history import History


def stub(**given: Any) -> Any:
    return SimpleNamespace(**given)


@pytest.fixture
def index(tmp_path: Path) -> Any:
    made = Index(tmp_path / "i", "s")
    yield made
    made.close()


def test_an_export_ends(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(index, 1_500)
    monkeypatch.setattr(lists, "MOST_EXPORTED", 1_100)
    monkeypatch.setattr(lists, "of_one_model", lambda _web, filters: filters)
    found = lists.everything(stub(index=index), Filters(), Typed("", "", None), "newest")
    assert len(found) == 1_100


def test_a_map_has_so_many_points(index: Index) -> None:
    fill(index, 1_500)
    [(night, _), *_] = index.nights(1)
    rows = index.sky(night, "", 100)
    assert len(rows) <= 100


def test_so_many_read_the_stream_at_once() -> None:
    async def ask(readers: int) -> Any:
        hub = stub(readers=readers, stream=lambda *_: iter(()))
        return await api.events(stub(hub=hub), Filters())

    with pytest.raises(Problem, match="too many readers") as refused:
        asyncio.run(ask(api.MOST_READERS))
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "30")
    assert asyncio.run(ask(api.MOST_READERS - 1)).media_type == "text/event-stream"


def events(count: int, first: int = 1) -> list[Event]:
    return [Event(first + n, "t/0", first + n, json.dumps(row_of(news("s", "a", 1)))) for n in range(count)]


def test_forms_of_a_batch_and_batches_are_bounded(index: Index) -> None:
    batch = live.Batch(events(2), "x")
    for n in range(3 * live.FRAMES):
        batch.form(Filters(model=f"m{n}"))
    assert len(batch.frames) <= live.FRAMES
    hub = live.Hub(index)
    for n in range(live.KEPT + 20):
        hub._pending += events(1, first=n + 1)
        hub.gather()
    assert len(hub._batches) == live.KEPT


def test_what_is_kept_for_recomputing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "KEPT", 30)
    explainer = explain.Explained.__new__(explain.Explained)
    explainer._kept, explainer.model = OrderedDict(), stub(needs=stub(span=1), kept_as="m")
    for n in range(20):
        history = History(
            np.arange(5.0), np.zeros(5, np.uint8), {"science": np.zeros((5, 32, 32), np.float16)}, object_id=f"o{n}"
        )
        explainer._keep(history, stub(keep={at: b"x" for at in range(5)}), "")
        assert len(explainer._kept) <= 30
    assert explainer.kept(history)


def test_models_in_an_answer_are_bounded() -> None:
    objects = Objects.__new__(Objects)
    objects._store = stub(models=lambda: ["first"])  # type: ignore[assignment]
    found = objects._models([{"model": f"m{n:03}"} for n in range(500)])
    assert (len(found), found[0]) == (MOST_MODELS, "first")


def test_a_sentence_of_a_problem_is_short_and_harmless() -> None:
    problem = Problem(422, "\x1b[2J" + "x" * 10_000)
    assert len(problem.detail) <= problems.LONGEST + 10
    assert "\x1b" not in problem.detail


@pytest.mark.parametrize("key", ["a" * (2 * object_ids.LONGEST + 1), "~" + "A" * 2 * object_ids.LONGEST])
def test_an_id_that_is_too_long_is_refused_before_it_is_decoded(key: str) -> None:
    with pytest.raises(ValueError, match="at most 1024 characters"):
        object_ids.object_of(key)


def test_the_newest_of_many_letters_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def read(_options: Any, _topic: str, limit: int) -> Any:
        asked.append(limit)
        return (stub(reason="truncated", time_ms=n) for n in range(min(limit, 700)))

    monkeypatch.setattr(status.deadletter, "read", read)
    looked = status.Status.__new__(status.Status)
    looked._s = stub(settings=stub(kafka={}, dead_letter_topic="d"))
    reasons, letters = looked._read_letters()
    assert asked == [status.LETTERS_READ]
    assert reasons == {"truncated": 700}
    assert [letter.time_ms for letter in letters] == list(range(699, 699 - status.LETTERS_KEPT, -1))


def test_the_follower_reads_so_many_bytes_at_a_time(index: Index) -> None:
    asked: list[tuple[float, ...]] = []

    def consume(*given: float) -> list[Any]:
        asked.append(given)
        return []

    reader = follower.Follower(stub(kafka={"bootstrap.servers": "h:1"}), index, lambda _: None)
    reader._batch(stub(consume=consume))
    assert asked == [(follower.BATCH, follower.WAIT_S, follower.BATCH_BYTES)]


def test_a_hostile_message_is_counted_and_passed_over(index: Index) -> None:
    reader = follower.Follower(stub(kafka={"bootstrap.servers": "h:1"}, survey="s"), index, lambda _: None)
    for value in (b"x", b"Obj\x01" + b"\xff" * 400, bytes(2**20 + 1)):
        with pytest.raises(StreamError):
            reader._read(stub(value=lambda value=value: value), "t/0", 1)
    assert reader.bad == 3


def test_rates_come_back_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    rates = guard.Rates(guard.RATE, guard.BURST)
    assert [rates.take("a") for _ in range(int(guard.BURST))] == [0.0] * int(guard.BURST)
    assert rates.take("a") == pytest.approx(1 / guard.RATE)
    assert rates.take("b") == 0, "others are not held up"
    now[0] += 1.0
    assert [rates.take("a") > 0 for _ in range(int(guard.RATE) + 1)] == [False] * int(guard.RATE) + [True]


def test_a_picture_that_is_too_large_is_refused() -> None:
    grey = np.zeros((1_024, 1_024), np.uint8)
    assert images._scaled(grey, 2).shape == (2_048, 2_048)
    with pytest.raises(Problem, match="take a smaller scale"):
        images._scaled(grey, 3)
