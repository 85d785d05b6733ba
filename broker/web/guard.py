"""Checks before every response: who may make requests, how many and how large, and what a browser may do."""

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from skyheed.broker.web import problems
from skyheed.broker.web.problems import Problem

COOKIE = "skyheed"
LARGEST_BODY = 65_536  # bytes of a what-if request
LONGEST_URL = 8_192
LONGEST_STREAM_URL = 40_960  # an event's id names every partition of every model's topic
FREE = ("/static/", "/login")  # need no token
RECOMPUTED = ("/prefixes", "/what-if", "/influence", "/saliency")
# requests a second and burst size, by client: for all requests, and for those that a model computes
RATE, BURST = 50.0, 400.0
COSTLY_RATE, COSTLY_BURST = 5.0, 40.0
CLIENTS = 10_000  # remembered clients

POLICY = (
    "default-src 'none'; script-src 'self'{more}; style-src 'self'{more}; img-src 'self' data: blob:{more}; "
    "connect-src 'self'{more}; font-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
# Aladin Lite comes from CDS once a reader has asked for it
ALADIN = " https://aladin.cds.unistra.fr https://alasky.cds.unistra.fr https://alaskybis.cds.unistra.fr"
HEADERS = {
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin", "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}  # fmt: skip


class Token:
    """The single secret that opens the page where others can reach it."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        # the token cannot be derived from what a browser keeps
        self.cookie = hmac.new(self._token, b"skyheed page", hashlib.sha256).hexdigest()

    def opens(self, given: str) -> bool:
        """Whether this is the token."""
        return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self._token)

    def admits(self, headers: Headers) -> bool:
        """Whether a request carries the token (Authorization: Bearer) or the page's cookie."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() in ("bearer", "token") and self.opens(given.strip()):
            return True
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        return COOKIE in cookies and hmac.compare_digest(cookies[COOKIE].value.encode(), self.cookie.encode())


class _Bucket:
    """A token bucket that refills with time."""

    __slots__ = ("left", "seen")

    def __init__(self, burst: float) -> None:
        self.left, self.seen = burst, time.monotonic()

    def take(self, rate: float, burst: float) -> float:
        """Take one token; returns the seconds to wait if there is none."""
        now = time.monotonic()
        self.left = min(burst, self.left + rate * (now - self.seen))
        self.seen = now
        if self.left >= 1:
            self.left -= 1
            return 0.0
        return (1 - self.left) / rate


class Rates:
    """How often each client may make requests."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._clients: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, client: str) -> float:
        """Count one request of `client`; returns the seconds it has to wait, 0 if none."""
        bucket = self._clients.setdefault(client, _Bucket(self._burst))
        self._clients.move_to_end(client)
        if len(self._clients) > CLIENTS:
            self._clients.popitem(last=False)
        return bucket.take(self._rate, self._burst)


class Guard:
    """ASGI middleware.

    Args:
        hosts: names that a browser may show in its address bar; any other is someone else's page that was
            pointed at this server (DNS rebinding).
        token: required to see anything; None if the page is served to this machine only.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], token: Token | None, rates: bool = True) -> None:
        self._app, self._token = app, token
        self._hosts = frozenset(host.lower() for host in hosts)
        self._rates = (Rates(RATE, BURST), Rates(COSTLY_RATE, COSTLY_BURST)) if rates else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        guarded = _with_headers(scope, send)
        try:
            self._check(scope)
            body = await _bounded(scope, receive)
        except Problem as problem:
            await problems.answer(problem)(scope, receive, guarded)
            return
        if not self._admitted(scope):
            await self._refuse(scope, receive, guarded)
            return
        if scope["method"] == "HEAD":
            await _headers_of(self._app, scope, guarded)
        else:
            await self._app(scope, body, guarded)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        longest = LONGEST_STREAM_URL if scope["path"].endswith("/events") else LONGEST_URL
        if len(scope.get("raw_path", b"")) + len(scope.get("query_string", b"")) > longest:
            raise Problem(414, f"a URL has at most {longest} characters here")
        if _host_of(headers.get("host", "")) not in self._hosts:
            raise Problem(421, "this page is not served under that name: use the address that skyheed serve printed")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Problem(
                405,
                "the page is read-only: use GET or HEAD, and POST only for what is computed",
                {"Allow": "GET, HEAD, POST"},
            )
        if self._rates:
            self._check_rate(scope)

    def _check_rate(self, scope: Scope) -> None:
        assert self._rates is not None
        client = (scope.get("client") or ("", 0))[0]
        costly = scope["path"].endswith(RECOMPUTED)
        wait = self._rates[costly].take(client)
        if wait:
            raise Problem(429, "too many requests: slow down", {"Retry-After": str(max(1, round(wait)))})

    def _admitted(self, scope: Scope) -> bool:
        if self._token is None or scope["path"].startswith(FREE):
            return True
        return self._token.admits(Headers(scope=scope))

    @staticmethod
    async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
        wants_page = "text/html" in Headers(scope=scope).get("accept", "")
        if wants_page and scope["method"] == "GET":
            await RedirectResponse("/login", 303)(scope, receive, send)
            return
        problem = Problem(401, "send the token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})
        await problems.answer(problem)(scope, receive, send)


async def _headers_of(app: ASGIApp, scope: Scope, send: Send) -> None:
    """Answer HEAD with the headers that GET would have; also where the body has no end, as that of the stream."""
    begun = asyncio.Event()

    async def gone() -> MutableMapping[str, Any]:
        await begun.wait()
        return {"type": "http.disconnect"}

    async def begin(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b""})
            begun.set()

    await app({**scope, "method": "GET"}, gone, begin)


def _host_of(header: str) -> str:
    """The name in a Host header, without its port."""
    name = header.lower().strip()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


async def _bounded(scope: Scope, receive: Receive) -> Receive:
    """Read the body of a POST; refuse a large one."""
    if scope["method"] != "POST":
        return receive
    size, parts, more = 0, [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return receive
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > LARGEST_BODY:
            raise Problem(413, f"a request has at most {LARGEST_BODY} bytes here")
    sent = False

    async def body() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": b"".join(parts), "more_body": False}

    return body


def _with_headers(scope: Scope, send: Send) -> Callable[[MutableMapping[str, Any]], Awaitable[None]]:
    more = ALADIN if scope["path"].startswith("/object/") and b"aladin=1" in scope.get("query_string", b"") else ""
    policy = POLICY.format(more=more)
    # Aladin Lite's core is WebAssembly, and it sets its own styles
    policy = policy.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'") if more else policy
    policy = policy.replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'") if more else policy
    extra = [(b"content-security-policy", policy.encode())]
    extra += [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def guarded(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *extra]
        await send(message)

    return guarded
