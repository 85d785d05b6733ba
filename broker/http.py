"""HTTP requests to a host: bounded in time and bytes; quotes the host's refusals and honours its Retry-After."""

import json
import logging
import re
import ssl
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

import httpx

from skyheed.broker.certificates import advice
from skyheed.broker.errors import ConfigError, ServiceError, ServiceUnavailable
from skyheed.broker.urls import names_host
from skyheed.classifier.safe_names import printable

TIMEOUT_S = 30.0  # of silence
ANSWER_S = 60.0  # for a whole response
MOST_BYTES = 4 * 2**20
MOST_WORDS = 500
LONGEST_WAIT_S = 3600.0  # that a host may ask us to wait
KEY = 8  # characters; shorter parts of a URL's path are words
BUSY = (408, 425, 429)  # it took too long, is too early, or asks too often: the same request may be accepted later
FIRST_WAIT_S = 5.0  # if it is busy but does not say for how long
# the client's own log lines contain whole URLs
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)


class Refusal(Exception):
    """The host rejected this request; its own words, and the status."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Broken(ServiceUnavailable):
    """The host failed on this request (status 500): either the host or the request is at fault."""


class Unwelcome(ServiceError):
    """The host denies access: status 401 or 403."""

    def __init__(self, sentence: str, status: int, words: str) -> None:
        super().__init__(sentence)
        self.status, self.words = status, words


class Host:
    """Requests to one host.

    Args:
        name: of the table in the settings, such as sinks.lasair, for messages.
        url: base URL, http:// or https://; of it messages show the host alone, because paths of webhooks are secrets.
        headers: sent with every request; includes the token, never logged or shown.

    Raises:
        ConfigError: a URL that cannot work or holds a password, an invalid token, or an unusable proxy.
    """

    def __init__(self, name: str, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.name, self._base = name, _checked(url, name)
        parts = urlsplit(self._base)
        self.where = f"{parts.scheme}://{parts.netloc}"
        self._client = _client({**_sendable(headers or {}, name), "Accept-Encoding": "identity"}, name)
        tokens = [value.split()[-1] for value in (headers or {}).values() if value.strip()]
        self._secrets = _spellings([*tokens, *_parts_of_path(parts)])
        self._not_before = 0.0  # the host asked us to wait until this time

    def get(self, path: str) -> Any:
        """The JSON answer to a GET; errors as `ask`."""
        return self.ask("GET", path)

    def post(self, path: str, content: Any) -> Any:
        """The JSON answer to a POST of JSON; errors as `ask`."""
        return self.ask("POST", path, content)

    def put(self, path: str, content: Any) -> Any:
        """The JSON answer to a PUT of JSON; errors as `ask`."""
        return self.ask("PUT", path, content)

    def delete(self, path: str) -> Any:
        """The JSON answer to a DELETE; errors as `ask`."""
        return self.ask("DELETE", path)

    def ask(
        self, method: str, path: str, content: Any = None, *, body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:  # fmt: skip
        """The JSON of the response, or its text if it is not JSON.

        Args:
            content: sent as JSON.
            body: sent unchanged, instead.

        Raises:
            Refusal: the host rejects this.
            ServiceUnavailable: it is unavailable, busy, or wants us to wait (`Broken` with 500).
            ServiceError: it denies access (`Unwelcome` with 401 and 403), or its certificate cannot be trusted.
        """
        if content is not None:
            body, headers = json.dumps(content, allow_nan=False).encode(), {"Content-Type": "application/json"}
        return _json_or_text(self._exchange(method, path, body, headers or {}).decode("utf-8", "replace"))

    def fetch(self, path: str, content: Any = None) -> bytes:
        """The bytes of the answer to a GET, or to a POST of JSON; errors as `ask`, and `Refusal` where there are more
        than `MOST_BYTES`."""
        if content is None:
            found = self._exchange("GET", path, None, {})
        else:
            body = json.dumps(content, allow_nan=False).encode()
            found = self._exchange("POST", path, body, {"Content-Type": "application/json"})
        if len(found) > MOST_BYTES:
            raise Refusal(200, f"an answer of more than {MOST_BYTES} bytes")
        return found

    def _exchange(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
        self._wait_as_asked()
        try:
            with self._client.stream(method, self._base + path, content=body, headers=dict(headers)) as response:
                found = _read(response)
        except httpx.DecodingError as error:
            raise self._away(str(error)) from error
        except httpx.HTTPError as error:
            if reason := _refused_certificate(error):
                helps = advice(reason, f"{self.name}.url", "the variable SSL_CERT_FILE")
                said = f"the certificate of {self.name} at {self.where} cannot be trusted ({reason}): {helps}"
                raise ServiceError(said) from None
            raise self._away(f"{type(error).__name__}") from error
        self._judge(response, found)
        return found

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _wait_as_asked(self) -> None:
        left = self._not_before - time.monotonic()
        if left > 0:
            raise self._away(f"it asks us to wait for {left:.0f} s more")

    def _judge(self, response: httpx.Response, found: bytes) -> None:
        status = response.status_code
        if status < 300:
            return
        if status in BUSY or status >= 500:
            wait = _retry_after(response.headers.get("Retry-After", ""))
            self._not_before = time.monotonic() + wait
            away = self._away(f"it answers {status} and is asked again in {wait:.0f} s")
            raise Broken(str(away), self.name) if status == 500 else away
        words = self._words(found)
        if status in (401, 403):
            said = f"{self.name} at {self.where} refuses us ({status} {words}): check {self.name}.token"
            raise Unwelcome(said, status, words)
        if status < 400:
            raise ServiceError(f"{self.name} at {self.where} redirects: write the final URL into {self.name}.url")
        raise Refusal(status, f"{status} {words}"[:MOST_WORDS])

    def refusal(self, answer: Any) -> Refusal:
        """That the host rejects a request, as it says in an answer with status 200."""
        return Refusal(200, f"200 {self._shown(_message_in(answer))}"[:MOST_WORDS])

    def stranger(self) -> ServiceUnavailable:
        """That somebody else answered in the host's place, with status 200: a page to log in, or of maintenance."""
        return self._away("what answers there is not what we expect, such as a web page: is its url right?")

    def _words(self, found: bytes) -> str:
        """The message in the host's error."""
        return self._shown(_message_in(_json_or_text(found.decode("utf-8", "replace"))))

    def _shown(self, words: str) -> str:
        """The host's words without our token and our URL's path, which some hosts echo."""
        for secret in self._secrets:
            words = words.replace(secret, "…")
        return printable(words[:MOST_WORDS])[:MOST_WORDS]

    def _away(self, why: str) -> ServiceUnavailable:
        return ServiceUnavailable(f"{self.name} at {self.where}: {why}", self.name)


def _parts_of_path(parts: SplitResult) -> list[str]:
    """What may be secret behind a URL's host: all of it, and each part that is as long as a key."""
    whole = f"{parts.path}?{parts.query}".rstrip("?")
    return [*([whole] if len(whole) > 1 else []), *(part for part in re.split("[/?&=]", whole) if len(part) >= KEY)]


def _spellings(secrets: Iterable[str]) -> list[str]:
    """The secrets as they are and as they are quoted in URLs, longest first."""
    found = {spelling for one in secrets for spelling in (one, unquote(one), quote(one), quote(one, safe=""))}
    return sorted(found, key=len, reverse=True)


def segment(name: str) -> str:
    """A name from data as one segment of a path.

    Raises:
        Refusal: it is empty, `.` or `..`, which would name another place there, however they are quoted.
    """
    if not name.strip("."):
        raise Refusal(400, f"a name that cannot be in an address: {name[:20]!r}")
    return quote(name, safe="")


def _checked(url: str, name: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and names_host(parts) and parts.port != 0 and "@" not in url
    except ValueError:
        good = False
    if not good or parts.fragment:
        raise ConfigError(f"{name}.url must be http(s)://HOST/PATH without a user or password")
    return url.rstrip("/")


def _sendable(headers: Mapping[str, str], name: str) -> dict[str, str]:
    for value in headers.values():
        if not (value.isascii() and value.isprintable()):
            raise ConfigError(f"{name}: its token holds characters that no HTTP header can have: is it the right file?")
    return dict(headers)


def _client(headers: Mapping[str, str], name: str) -> httpx.Client:
    try:
        return httpx.Client(headers=headers, timeout=TIMEOUT_S, follow_redirects=False)
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:  # their words may hold a proxy's password
        raise ConfigError(
            f"{name}: a proxy or certificate of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE) "
            f"cannot be used ({type(error).__name__})"
        ) from None


def _refused_certificate(error: BaseException | None) -> str:
    """OpenSSL's reason to refuse the host's certificate, if that is behind the error; else empty."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return str(error.verify_message)
        error = error.__cause__ or error.__context__
    return ""


def _read(response: httpx.Response) -> bytes:
    """The body, or a little more than `MOST_BYTES` of one that is too long to be an answer."""
    parts, size, deadline = [], 0, time.monotonic() + ANSWER_S
    for part in _unpacked(response):
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            break
        if time.monotonic() > deadline:  # byte by byte, each within the timeout of one read
            raise httpx.ReadTimeout(f"no complete answer within {ANSWER_S:g} s")
    return b"".join(parts)


def _unpacked(response: httpx.Response) -> Iterator[bytes]:
    """The body as it comes; httpx itself would unpack what was packed twice, a million times over."""
    packed = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packed in ("", "identity"):
        yield from response.iter_raw()
    elif packed == "gzip":  # although we asked for none
        yield from _gunzipped(response.iter_raw())
    else:
        raise httpx.DecodingError(f"its response is compressed as {printable(packed)[:40]}, which was not requested")


def _gunzipped(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of a gzip stream of one or more members, each part of it bounded."""
    unpacker, received = zlib.decompressobj(31), 0
    try:
        for part in parts:
            if (received := received + len(part)) > MOST_BYTES:  # of which nothing may have come out
                raise httpx.DecodingError(f"its response has more than {MOST_BYTES} bytes")
            yield unpacker.decompress(part, MOST_BYTES + 1)
            while unpacker.eof and (part := unpacker.unused_data.lstrip(b"\0")):
                unpacker = zlib.decompressobj(31)
                yield unpacker.decompress(part, MOST_BYTES + 1)
    except zlib.error:
        raise httpx.DecodingError("its response cannot be decompressed") from None
    if not unpacker.eof:
        raise httpx.DecodingError("its response cannot be decompressed")


def _message_in(said: Any) -> str:
    """The message in a host's error, in the forms that hosts use."""
    if isinstance(said, dict):
        said = next((said[key] for key in ("message", "detail", "error", "title") if said.get(key)), said)
    return str(said).strip() or "without a word"


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return text


def _retry_after(value: str) -> float:
    """Seconds to wait: a number or an HTTP date (RFC 9110, 10.2.3)."""
    try:
        seconds = float(value) if value else FIRST_WAIT_S
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            seconds = FIRST_WAIT_S
    return min(max(seconds, 0.0), LONGEST_WAIT_S) if seconds == seconds else FIRST_WAIT_S
