"""The pages: templates filled with the JSON API's responses."""

import asyncio
import contextlib
import functools
import hashlib
from importlib.metadata import version
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from skyheed.broker.errors import SkyheedError
from skyheed.broker.observation import BANDS
from skyheed.broker.web import lists
from skyheed.broker.web.api import sky_of
from skyheed.broker.web.components import HERE, Here, Web
from skyheed.broker.web.guard import COOKIE
from skyheed.broker.web.index import COUNTED
from skyheed.broker.web.live import event_id
from skyheed.broker.web.object_ids import object_of, path_key
from skyheed.broker.web.parameters import Cursor, Limit, Model, Night, Search, Sort, Wanted
from skyheed.broker.web.problems import Problem
from skyheed.broker.web.responses import encode, respond
from skyheed.broker.web.rows import PREFIX
from skyheed.broker.web.search import Filters
from skyheed.broker.web.status import letter_row

router = APIRouter(include_in_schema=False)
LIVE_ROWS = 50
SESSION_S = 30 * 86_400
# "<" would end the script element; U+2028 and U+2029 would end the line in older browsers
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def embedded(value: Any) -> Markup:
    """JSON that is safe inside a script element."""
    return Markup(encode(value).decode().translate(_UNSAFE))


@functools.cache
def _environment() -> Environment:
    made = Environment(loader=FileSystemLoader(HERE / "pages"), autoescape=True, undefined=StrictUndefined)
    made.filters |= {"json": embedded, "path_key": path_key}
    made.globals["static"] = static
    made.globals["prefix"] = PREFIX
    return made


@functools.cache
def digest(name: str) -> str:
    """The digest of a static file, so that a browser fetches it again when it has changed."""
    return hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()[:12]


def static(name: str) -> str:
    """The URL of a static file."""
    return f"/static/{name}?v={digest(name)}"


def page(request: Request, web: Web, name: str, data: Any, nav: str = "", code: int = 200, **more: Any) -> Response:
    """Render a page.

    Args:
        name: of the template.
        data: passed to its JavaScript.
    """
    state = web.status.state()
    text = _environment().get_template(f"{name}.html").render(
        survey=web.settings.survey, version=version("skyheed"), nav=nav or name, data=data, state=state,
        torch=not web.pool.missing, torch_missing=web.pool.missing, signed_in=web.token is not None, **more,
    )  # fmt: skip
    if code != 200:
        return HTMLResponse(text, code, {"Cache-Control": "no-store"})
    return respond(request, text.encode("utf-8", "replace"), "text/html; charset=utf-8")


def error_page(request: Request, web: Web, problem: Problem) -> Response:
    """An error page for people."""
    from http import HTTPStatus

    said: dict[str, Any] = {
        "status": problem.status,
        "title": HTTPStatus(problem.status).phrase,
        "detail": problem.detail,
    }
    return page(request, web, "error", said, code=problem.status, **said)


def _choices(web: Web) -> dict[str, Any]:
    cards = {entry["name"]: entry for entry in web.status.models()}
    models = web.status.published() or list(cards)
    bands = "".join(b for b in BANDS if any(b in entry["bands"] for entry in cards.values())) or BANDS
    return {"models": models, "classes": web.status.classes(), "bands": bands}


@router.get("/")
def live(request: Request, web: Here) -> Response:
    """New classifications as they arrive."""
    rows, positions = web.index.recent(Filters(), LIVE_ROWS)
    return page(request, web, "live", {"rows": rows, "last_event_id": event_id(positions), **_choices(web)})


@router.get("/objects")
def objects(
    request: Request, web: Here, wanted: Wanted, typed: Search, sort: Sort = "newest", limit: Limit = 100,
    cursor: Cursor = "",
) -> Response:  # fmt: skip
    """The list of objects; a search that matches exactly one object opens its page."""
    found = lists.page(web, wanted, typed, sort, limit, cursor)
    exact = web.index.of_object(typed.text) if typed.kind == "id" and found.count <= 1 and not cursor else []
    if exact:
        return RedirectResponse(f"/object/{path_key(typed.text)}", 303)
    said = {
        "rows": found.rows, "next": found.next, "count": found.count, "count_capped": found.count >= COUNTED,
        "understood": typed.to_json(), "query": dict(request.query_params), **_choices(web),
    }  # fmt: skip
    return page(request, web, "objects", said)


@router.get("/sky")
def sky(request: Request, web: Here, night: Night = None, model: Model = "") -> Response:
    """The objects of a night on a map of the sky."""
    return page(request, web, "sky", sky_of(web, night, model))


@router.get("/object/{key}")
def object_(request: Request, web: Here, key: str) -> Response:
    """One object."""
    try:
        name = object_of(key)
    except ValueError as error:
        raise Problem(404, str(error)) from error
    return page(request, web, "object", web.objects.describe(name))


@router.get("/status")
def status(request: Request, web: Here) -> Response:
    """The state of the stream."""
    return page(request, web, "status", web.status.whole())


@router.get("/api")
def api(request: Request, web: Here) -> Response:
    """The JSON API, with examples."""
    data = {"openapi": f"{PREFIX}/openapi.json", "example": _example(web)}
    return page(request, web, "api", data)


def _example(web: Web) -> dict[str, str]:
    """What the examples request: the object classified last, its newest epoch, the newest dead letter."""
    rows = web.index.recent(Filters(declined="no"), 1)[0] or web.index.recent(Filters(), 1)[0]
    found = {}
    if rows:
        found = {"key": rows[0]["path"], "alert_id": rows[0]["path"]}
        with contextlib.suppress(Problem, SkyheedError):
            found["source_id"] = str(web.objects.history(rows[0]["object_id"])[0].source_id[-1])
    with contextlib.suppress(SkyheedError):
        for letter in web.status.letters()[:1]:
            found["place"] = letter_row(letter)["place"]
    return found


@router.get("/login")
def login(request: Request, web: Here) -> Response:
    """The form for the token."""
    return page(request, web, "login", {}, wrong=False, next="/")


@router.post("/login")
async def sign_in(request: Request, web: Here) -> Response:
    """Check the token and store it in a cookie that scripts cannot read."""
    form = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=10)
    token, next_ = (form.get(name, [""])[0] for name in ("token", "next"))
    if web.token is None:
        return RedirectResponse("/", 303)
    if not web.token.opens(token.strip()):
        return await asyncio.to_thread(page, request, web, "login", {}, code=403, wrong=True, next="/")
    # only to this site: //host and /\host lead to other hosts
    inside = next_.startswith("/") and next_[1:2] not in ("/", "\\") and next_.isprintable()
    response = RedirectResponse(next_ if inside else "/", 303)
    response.set_cookie(
        COOKIE, web.token.cookie, max_age=SESSION_S, httponly=True, samesite="strict",
        secure=request.url.scheme == "https",
    )  # fmt: skip
    return response
