"""JSON responses and file downloads, with an ETag."""

import hashlib
import json
import math
from typing import Any

from fastapi import Request
from fastapi.responses import Response


def plain(value: Any) -> Any:
    """Plain values for JSON, which has no NaN or infinity: those become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def encode(value: Any) -> bytes:
    """Compact JSON in UTF-8; a lone surrogate, which UTF-8 cannot encode, stays an escape."""
    text = json.dumps(plain(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(plain(value), separators=(",", ":"), allow_nan=False).encode()


def respond(
    request: Request, content: bytes, media_type: str = "application/json", *, name: str = "", stays: bool = False
) -> Response:
    """A response that a client may cache and revalidate.

    Args:
        name: file name, for a download.
        stays: the content never changes.
    """
    # weak: the same content is sent both plain and compressed
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, max-age=86400" if stays else "private, no-cache"}
    if name:
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    if _matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)


def as_json(request: Request, value: Any) -> Response:
    """`value` as JSON."""
    return respond(request, encode(value))


def _matches(given: str, etag: str) -> bool:
    tags = {tag.strip().removeprefix("W/") for tag in given.split(",")}
    return "*" in tags or etag.removeprefix("W/") in tags
