"""Assembles the page: routes, errors, compression, static files, and the checks that run before them."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from skyheed.broker.errors import SkyheedError
from skyheed.broker.web import api, api_object, problems, skyportal, views
from skyheed.broker.web.components import Web
from skyheed.broker.web.guard import Guard
from skyheed.broker.web.problems import Problem
from skyheed.broker.web.rows import PREFIX

log = logging.getLogger("skyheed.web")
STATE_S = 2.0  # how often the stream's readers are told that a server went down or came back
_NO_GZIP = re.compile(r"(?i)\bgzip\s*;\s*q=0(\.0*)?\s*(,|$)")
SAME_FOR = 31_536_000  # seconds for which a file named with its digest may be cached
DESCRIPTION = (
    "Early classifications of alert streams from sequences of stamps. Ids are strings. Times: `mjd` days TAI, `_ms` "
    "Unix milliseconds UTC. Fluxes in nJy, magnitudes AB, positions in degrees ICRS; unknown values are null. Errors "
    "are problem details (RFC 9457). Responses have an ETag. `as published` and `recomputed` are never mixed: every "
    "response says which it is."
)


def make(web: Web) -> FastAPI:
    """The application of a page."""
    made = FastAPI(
        title="skyheed", version=version("skyheed"), description=DESCRIPTION, openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None, redoc_url=None, lifespan=_lifespan, redirect_slashes=False,
    )  # fmt: skip
    made.state.web = web
    for part in (api, api_object, skyportal, views):
        made.include_router(part.router)
    made.mount("/static", _Files(directory=web.static), name="static")
    for kind in (Problem, HTTPException, RequestValidationError, SkyheedError, Exception):
        made.add_exception_handler(kind, _failed)
    made.add_middleware(_Gzip, minimum_size=1000, compresslevel=5)
    made.add_middleware(Guard, hosts=web.hosts, token=web.token, rates=web.limits)
    return made


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    web: Web = app.state.web
    web.hub.start()
    tasks = [asyncio.create_task(web.hub.run()), asyncio.create_task(_watch(web))]
    try:
        yield
    finally:
        web.hub.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(web: Web) -> None:
    """Tell the stream's readers when a server goes down or comes back."""
    while True:
        try:
            web.hub.tell_state(await asyncio.to_thread(web.status.state))
        except SkyheedError as error:
            log.warning("cannot determine the state of the servers: %s", error)
        except Exception:
            log.exception("an internal error while checking the servers: checking again")
        await asyncio.sleep(STATE_S)


async def _failed(request: Request, error: Exception) -> Response:
    problem = problems.of_error(error)
    if problem.status == 500:
        log.error("an internal error in the response to %s", request.url.path, exc_info=error)
    wants_page = "text/html" in request.headers.get("accept", "")
    if wants_page and not request.url.path.startswith((PREFIX, "/alerts", "/static")):
        with contextlib.suppress(Exception):
            return await asyncio.to_thread(views.error_page, request, request.app.state.web, problem)
    return problems.answer(problem)


class _Gzip(GZipMiddleware):
    """Compresses for those who did not refuse it; Starlette looks for the word alone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = scope["type"] == "http" and _NO_GZIP.search(Headers(scope=scope).get("accept-encoding", ""))
        await (self.app(scope, receive, send) if refused else super().__call__(scope, receive, send))


class _Files(StaticFiles):
    """Static files; those named with their digest never change."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        named = scope.get("query_string", b"").startswith(b"v=")
        response.headers["Cache-Control"] = f"public, max-age={SAME_FOR}, immutable" if named else "no-cache"
        return response
