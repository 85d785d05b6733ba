"""HTTP to a schema registry: bounded in time and bytes; its password is sent only to its own host.

`confluent_kafka.schema_registry` is not used: docs/dependencies.md says why, with figures.
"""

import base64
import contextlib
import http.client
import json
import socket
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import quote, urljoin, urlsplit

from skyheed.broker.certificates import advice
from skyheed.broker.errors import (
    ConfigError,
    PacketError,
    Reason,
    ServiceError,
    ServiceUnavailable,
)
from skyheed.broker.urls import names_host

SILENCE_S = 1.0  # the registry may be silent for this long
ANSWER_S = 3.0  # one response, including redirects, even if it arrives byte by byte
MAX_ANSWER_BYTES = 4 << 20
_ACCEPT = "application/vnd.schemaregistry.v1+json, application/json"
_MAX_REDIRECTS = 3


class Away(Exception):
    """The registry did not answer, or reported that it cannot now; the message says which."""


class CertificateRefused(Away):
    """The registry's certificate is expired, for another host, or from an unknown authority."""


class RegistryClient:
    """Requests to one registry.

    Args:
        url: base URL.
        user, password: for HTTP basic authentication; never logged or shown in an error.
        ca_file: PEM of the authority that signed the registry's certificate; empty for the system's.
        setting: the setting that the URL comes from, for messages.

    Raises:
        ConfigError: a URL that cannot work or holds a password, or a CA file that cannot be read.
    """

    def __init__(
        self, url: str, user: str = "", password: str = "", ca_file: str = "", setting: str = "registry.url"
    ) -> None:
        _check_url(url, setting)
        self.url = url.rstrip("/")
        self._setting = setting
        self._tls = _tls_context(ca_file)
        secret = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._authorization = f"Basic {secret}" if user else ""

    def get(self, path: str) -> Any:
        """The JSON answer to a GET.

        Raises:
            Away: no answer, or not a usable one.
            PacketError: UNKNOWN_SCHEMA, the registry has nothing under this path.
            ServiceError: it refuses the user or password.
        """
        return self._ask(self._request(path), path)

    def post(self, path: str, content: Any, what: str) -> Any:
        """The JSON answer to a POST of JSON; errors as `get`, and ServiceError if the registry refuses `what`."""
        request = self._request(path)
        request.add_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        request.data = json.dumps(content).encode()
        return self._ask(request, what)

    def _request(self, path: str) -> urllib.request.Request:
        request = urllib.request.Request(self.url + path, headers={"Accept": _ACCEPT})
        if self._authorization:
            request.add_unredirected_header("Authorization", self._authorization)
        return request

    def _ask(self, request: urllib.request.Request, what: str) -> Any:
        try:
            with _Deadline(ANSWER_S) as deadline:
                opener = urllib.request.build_opener(
                    _Http(deadline), _Https(deadline, self._tls), _Redirects(self._authorization)
                )
                with opener.open(request, timeout=SILENCE_S) as response:
                    return _read_json(response)
        except urllib.error.HTTPError as error:
            error.close()
            raise self._refusal(error.code, what, request.get_method()) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _away(error) from None

    def _refusal(self, status: int, what: str, method: str) -> Exception:
        passing = status >= 500 or status == 429
        if method == "POST" and 300 <= status < 400:
            return ServiceError(f"the schema registry {self.url} redirects: write the final URL into {self._setting}")
        if method == "POST" and not passing:
            return ServiceError(
                f"the schema registry {self.url} refuses {what} with {status}: check {self._setting} and registry.user"
            )
        if status in (401, 403):
            return ServiceError(f"the schema registry {self.url} refuses registry.user and registry.password")
        if status == 404:
            return PacketError(Reason.UNKNOWN_SCHEMA, f"the registry does not know {what}")
        return Away("it redirects to a place we do not follow" if status < 400 else f"HTTP status {status}")


def _check_url(url: str, setting: str) -> None:
    if "@" in url:  # not shown: a password with / # or ? can end up in any part of the URL
        raise ConfigError(f"{setting} holds a user or password: set registry.user and registry.password instead")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and names_host(parts) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise ConfigError(f"{setting} must be http://HOST:PORT or https://HOST:PORT")


def _tls_context(ca_file: str) -> "_WatchedContext":
    context = _WatchedContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca_file:
            context.load_verify_locations(Path(ca_file))
        else:
            context.load_default_certs()
    except OSError as error:  # ssl.SSLError too
        reason = error.strerror or "it holds no certificate in PEM form"
        raise ConfigError(f"registry.ca_file: cannot use {ca_file}: {reason}") from None
    return context


def _away(error: Exception) -> Away:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        helps = advice(reason.verify_message, "registry.url", "registry.ca_file")
        return CertificateRefused(f"its certificate is refused ({reason.verify_message}): {helps}")
    if isinstance(reason, http.client.InvalidURL):  # its words may hold a part of a proxy's password
        return Away("an address behind it, or a proxy of the environment (HTTP_PROXY, HTTPS_PROXY), cannot be used")
    return Away(str(reason) or type(reason).__name__)


def _read_json(response: Any) -> Any:
    """A JSON answer of bounded length."""
    text = bytearray()
    while chunk := response.read1(1 << 16):
        text += chunk
        if len(text) > MAX_ANSWER_BYTES:
            raise Away("its answer is too long")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Away("its answer is not JSON") from None


# --- the whole answer in time --------------------------------------------------------------------------------


class _Deadline:
    """Closes the connections of one request when its time is up: a socket's own timeout applies to each read only."""

    def __init__(self, seconds: float) -> None:
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def watch(self, connection: socket.socket) -> None:
        self._sockets.append(connection.dup())  # TLS detaches the original

    def _cut(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self._timer.cancel()
        self._timer.join()
        for each in self._sockets:
            each.close()


class _WatchedContext(ssl.SSLContext):
    """Registers the connection before the handshake, which can also arrive byte by byte."""

    deadline: _Deadline | None = None

    def wrap_socket(self, sock: socket.socket, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        if self.deadline is not None:
            self.deadline.watch(sock)
        return super().wrap_socket(sock, *arguments, **options)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        deadline = self._deadline

        class Connection(http.client.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                deadline.watch(self.sock)

        return self.do_open(Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline, context: _WatchedContext) -> None:
        context.deadline = deadline
        super().__init__(context=context)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a GET, never from https to http; the password is sent along only within one host and port."""

    max_redirections = _MAX_REDIRECTS

    def __init__(self, authorization: str) -> None:
        self._authorization = authorization

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(urljoin(req.full_url, newurl))
        secure = new.scheme == "https" or (new.scheme == "http" and old.scheme == "http")
        if req.get_method() != "GET" or not secure:
            return None  # the redirect itself is the answer
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following and self._authorization and (old.scheme, old.netloc) == (new.scheme, new.netloc):
            following.add_unredirected_header("Authorization", self._authorization)
        return following


def register(client: RegistryClient, subject: str, schema: str) -> int:
    """Register a schema (JSON text) under `subject` and return its id; safe to repeat.

    Raises:
        ServiceError: the registry refuses (user, certificate, or a schema that is not compatible).
        ServiceUnavailable: the registry does not answer.
    """
    try:
        answer = client.post(f"/subjects/{quote(subject, safe='')}/versions", {"schema": schema}, subject)
        return int(answer["id"])
    except CertificateRefused as error:
        raise ServiceError(f"the schema registry {client.url} cannot be trusted: {error}") from None
    except (Away, KeyError, TypeError, ValueError) as error:
        raise ServiceUnavailable(
            f"the schema registry {client.url} does not answer as one: {error}", server="registry"
        ) from None
