"""The JSON API for lists of objects, search, the stream, the sky and status. For one object: `api_object`."""

import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from skyheed.broker.web import lists, openapi
from skyheed.broker.web.components import Here
from skyheed.broker.web.index import COUNTED
from skyheed.broker.web.live import LONGEST_ID, event_id
from skyheed.broker.web.object_ids import object_of
from skyheed.broker.web.parameters import Cursor, Limit, Model, Night, Search, Sort, Wanted
from skyheed.broker.web.problems import Problem
from skyheed.broker.web.responses import as_json, encode, respond
from skyheed.broker.web.rows import PREFIX
from skyheed.broker.web.status import letter_row, look_into

router = APIRouter(prefix=PREFIX, responses=openapi.PROBLEMS)
SKY_POINTS = 5_000
MOST_READERS = 1_000


@router.get("/state", response_model=openapi.State, summary="State of the servers")
def state(request: Request, web: Here) -> Response:
    """The state of Kafka and Redis, how far the index has read, and whether models can recompute here."""
    return as_json(request, web.status.state())


@router.get("/models", response_model=openapi.Models, summary="The models, with their cards")
def models(request: Request, web: Here) -> Response:
    """The models in the settings, then others that have published."""
    return as_json(request, {"models": web.status.models()})


@router.get("/objects", response_model=openapi.Objects, summary="List and search")
def objects(
    request: Request, web: Here, wanted: Wanted, typed: Search, sort: Sort = "newest", limit: Limit = 100,
    cursor: Cursor = "",
) -> Response:  # fmt: skip
    """The latest classification of each object; pass `next` from the response as `cursor` to get the next page."""
    began = time.perf_counter()
    found = lists.page(web, wanted, typed, sort, limit, cursor)
    took = round(1000 * (time.perf_counter() - began), 1)
    said = {
        "rows": found.rows, "next": found.next, "count": found.count, "count_capped": found.count >= COUNTED,
        "understood": typed.to_json(),
    }  # fmt: skip
    response = as_json(request, said)
    response.headers["Server-Timing"] = f"index;dur={took}"
    return response


@router.get("/objects.{form}", response_class=Response, summary="The list as a file", responses=openapi.LISTS)
def export(
    request: Request, web: Here, wanted: Wanted, typed: Search,
    form: Annotated[Literal["csv", "json", "parquet"], Path()], sort: Sort = "newest",
) -> Response:  # fmt: skip
    """At most 10,000 rows."""
    rows = lists.everything(web, wanted, typed, sort)
    if form == "csv":
        return respond(request, lists.as_csv(rows), "text/csv; charset=utf-8", name=f"{web.settings.survey}.csv")
    if form == "json":
        return respond(request, encode({"rows": rows}), name=f"{web.settings.survey}.json")
    content = lists.as_parquet(rows)
    return respond(request, content, "application/vnd.apache.parquet", name=f"{web.settings.survey}.parquet")


@router.get("/classifications", response_model=openapi.Classifications, summary="The newest classifications")
def classifications(request: Request, web: Here, wanted: Wanted, limit: Limit = 100) -> Response:
    """All classifications, newest first, and the stream position that follows them (`last_event_id`)."""
    wanted = lists.of_one_model(web, wanted) if wanted.model else wanted
    rows, positions = web.index.recent(wanted, limit)
    return as_json(request, {"rows": rows, "last_event_id": event_id(positions)})


@router.get(
    "/events", response_class=StreamingResponse, summary="New classifications as server-sent events",
    responses=openapi.STREAM,
)  # fmt: skip
async def events(
    web: Here, wanted: Wanted, last_event_id: Annotated[str | None, Query(max_length=LONGEST_ID)] = None,
    last: Annotated[str | None, Header(alias="Last-Event-ID", max_length=LONGEST_ID)] = None,
) -> Response:  # fmt: skip
    """Sends `classifications`, `state`, `gap` and, when nothing else happens, `alive`; resumes after Last-Event-ID."""
    if web.hub.readers >= MOST_READERS:
        raise Problem(503, "too many readers of the stream: try again later", {"Retry-After": "30"})
    wanted = lists.of_one_model(web, wanted) if wanted.model else wanted
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    # an empty id is a place, too: before the first classification
    stream = web.hub.stream(wanted, last if last is not None else last_event_id)
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


@router.get("/sky", response_model=openapi.Sky, summary="A night's objects on the sky")
def sky(request: Request, web: Here, night: Night = None, model: Model = "") -> Response:
    """Positions of the objects whose last epoch is in a given night (whole MJD; the newest by default)."""
    return as_json(request, sky_of(web, night, model))


def sky_of(web: Here, night: int | None, model: str = "") -> dict[str, Any]:
    """The response of `/sky`."""
    nights = web.index.nights()
    at = night if night is not None else (nights[0][0] if nights else None)
    names = web.status.published()
    chosen = model or (names[0] if names else "")
    rows = web.index.sky(at, chosen, SKY_POINTS) if at is not None else []
    points = [
        {
            "ra": row["ra"], "dec": row["dec"], "class": row["top_class"], "probability": row["top_probability"],
            "path": row["path"], "object_id": row["object_id"],
        }
        for row in rows
    ]  # fmt: skip
    listed = [{"night": number, "objects": count} for number, count in nights]
    return {
        "night": at,
        "model": chosen,
        "models": names,
        "nights": listed,
        "points": points,
        "classes": web.status.classes(),
        "capped": len(points) >= SKY_POINTS,
    }


@router.get("/status", response_model=openapi.Status, summary="Books, queues, lag, dead letters, latency")
def status(request: Request, web: Here) -> Response:
    """Everything on the status page; what is unavailable is null, and `notices` say why."""
    return as_json(request, web.status.whole())


@router.get("/books", response_model=openapi.Books, summary="The books")
def books(request: Request, web: Here) -> Response:
    """Which alerts were read and what became of them: as `skyheed audit --json`, with a sentence for each count."""
    return as_json(request, web.status.books())


@router.get("/dead-letters/{place}", response_model=openapi.Letter, summary="Contents of a packet that was set aside")
def dead_letter(request: Request, web: Here, place: Annotated[str, Path(max_length=2000)]) -> Response:
    """The headers and first bytes of a dead letter."""
    return as_json(request, look_into(_letter(web, place)))


@router.get("/dead-letters/{place}/value", response_class=Response, summary="The packet", responses=openapi.FILES)
def dead_letter_value(request: Request, web: Here, place: Annotated[str, Path(max_length=2000)]) -> Response:
    """The dead letter as it was received."""
    return respond(request, _letter(web, place).value or b"", "application/octet-stream", name="packet.bin")


def _letter(web: Here, place: str) -> Any:
    try:
        object_of(place)
    except ValueError as error:
        raise Problem(422, str(error)) from error
    found: Iterator[Any] = (letter for letter in web.status.letters() if letter_row(letter)["place"] == place)
    letter = next(found, None)
    if letter is None:
        raise Problem(404, "no such dead letter among the newest: skyheed deadletter list shows all")
    return letter
