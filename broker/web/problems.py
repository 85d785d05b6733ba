"""Errors as problem details (RFC 9457): every error response explains itself in one sentence."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from skyheed.broker.errors import ServiceError, ServiceUnavailable, SkyheedError
from skyheed.classifier.safe_names import printable

CONTENT_TYPE = "application/problem+json"
LONGEST = 500  # characters of a sentence


class Problem(Exception):
    """What was requested cannot be given.

    Args:
        status: HTTP status code.
        detail: one sentence that says what to do.
        headers: extra headers, such as Retry-After.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = printable(detail, LONGEST)
        self.headers = dict(headers or {})


def body(status: int, detail: str) -> dict[str, Any]:
    """The members of a problem document."""
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}


def answer(problem: Problem) -> JSONResponse:
    """The problem as a JSON response."""
    headers = {**problem.headers, "Cache-Control": "no-store"}
    return JSONResponse(body(problem.status, problem.detail), problem.status, headers, media_type=CONTENT_TYPE)


def of_error(error: Exception) -> Problem:
    """What a client may be told about an error."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        status = error.status_code if error.status_code >= 400 else 500
        return Problem(status, str(error.detail), error.headers)
    if isinstance(error, RequestValidationError):
        return Problem(422, _first_fault(error))
    if isinstance(error, ServiceUnavailable):
        return Problem(503, str(error), {"Retry-After": "5"})
    if isinstance(error, ServiceError):
        return Problem(502, str(error))
    if isinstance(error, SkyheedError):
        return Problem(500, str(error))
    return Problem(500, "an internal error, which is in the log of skyheed serve: please report it")


def _first_fault(error: RequestValidationError) -> str:
    faults = error.errors()
    if not faults:
        return "the request cannot be understood"
    place = ".".join(str(part) for part in faults[0].get("loc", ())[1:])
    return f"{printable(place, 100) or 'the request'}: {faults[0].get('msg', 'cannot be understood')}"


async def handle(_request: Request, error: Exception) -> Response:
    """Respond to any error of the JSON API."""
    return answer(of_error(error))
