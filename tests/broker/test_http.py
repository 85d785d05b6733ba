"""Hosts that send bombs, nonsense or nothing, and what must not be shown of tokens, URLs and proxies."""

import gzip
import json
import resource
import traceback
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote, unquote

import pytest
from host_tools import Reply, Request, Stand, standing
from test_record import classification

from skyheed.broker import http, providers, sinks
from skyheed.broker.errors import ConfigError, ServiceError, ServiceUnavailable, SkyheedError
from skyheed.broker.http import Host, Refusal

OPTIONS = {
    "lasair": {"topic": "t", "token": "t0ken-hidden"},
    "skyportal": {"token": "t0ken-hidden", "taxonomy_id": "3", "classes": "SNIa=Ia"},
    "webhook": {"token": "t0ken-hidden", "secret": "s3cret-hidden"},
}
SENSELESS = [
    b"", b"null", b"0", b'"text"', b"[]", b"[1, null, [2]]", b"{}", b'{"data": 7}', b'{"data": [{"origin": "x"}]}',
    b"[" * 200_000, b'{"data": [' + b'{"a":' * 50_000, b"\xff\xfe\x00", b"<html>busy</html>", b'{"error": {"a": [1]}}',
    b'{"error": "\x1b[2Jgone"}', b"NaN", b'{"status": "success", "data": [{"origin": "skyheed:ConvEntion"}]}',
]  # fmt: skip


@pytest.fixture
def stand() -> Iterator[Stand]:
    with standing(lambda _: (200, {})) as found:
        yield found


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def packed(times: int) -> bytes:
    data = bytes(2**26)
    for _ in range(times):
        data = gzip.compress(data, 9)
    return data


@pytest.mark.parametrize(("encoding", "times"), [("gzip", 1), ("gzip, gzip", 2), ("deflate, gzip", 2), ("br", 1)])
def test_an_answer_that_unpacks_without_end_takes_little_memory(stand: Stand, encoding: str, times: int) -> None:
    stand.first.append((200, packed(times), {"Content-Encoding": encoding}))
    before = peak_mib()
    with closing(Host("providers.x", stand.url)) as host, pytest.raises((Refusal, ServiceUnavailable)) as refused:
        host.fetch("/")
    assert "more than" in str(refused.value) or "compressed as" in str(refused.value)
    assert peak_mib() < before + 30
    assert stand.asked[0].headers["Accept-Encoding"] == "identity"


def test_an_answer_that_is_packed_unasked_is_read(stand: Stand) -> None:
    stand.first += [
        (200, gzip.compress(b'{"a": 1}'), {"Content-Encoding": "gzip"}), (200, b"x", {"Content-Encoding": "gzip"})
    ]  # fmt: skip
    with closing(Host("providers.x", stand.url)) as host:
        assert host.get("/") == {"a": 1}
        with pytest.raises(ServiceUnavailable, match="cannot be decompressed"):
            host.get("/")


def test_an_answer_of_several_gzip_members_is_read_whole(stand: Stand) -> None:
    several = gzip.compress(b'{"a"') + gzip.compress(b"") + gzip.compress(b": 1}")
    headers = {"Content-Encoding": "gzip"}
    harmed = (several[:-1], several + b"behind", several + gzip.compress(b" ") * 300_000)
    stand.first += [(200, content, headers) for content in (several, several + bytes(10), *harmed)]
    with closing(Host("providers.x", stand.url)) as host:
        assert host.get("/") == host.get("/") == {"a": 1}
        for _ in harmed:
            with pytest.raises(ServiceUnavailable, match=r"cannot be decompressed|more than \d+ bytes"):
                host.get("/")


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_members_may_begin_in_any_piece_of_an_answer(size: int) -> None:
    several = b"".join(map(gzip.compress, (b"ab", b"", b"c" * 100))) + bytes(3)
    pieces = [several[at : at + size] for at in range(0, len(several), size)]
    assert b"".join(http._gunzipped(pieces)) == b"ab" + b"c" * 100


@pytest.mark.parametrize("name", sorted(OPTIONS))
@pytest.mark.parametrize("status", [200, 400, 404, 503])
def test_senseless_answers_are_one_of_the_errors_that_forward_knows(name: str, status: int) -> None:
    said: list[bytes] = []

    def rule(_: Request) -> Reply:
        return status, said[-1]

    with standing(rule) as stand, closing(sinks.load(name, {**OPTIONS[name], "url": stand.url})) as sink:
        payload = sink.payload(classification())
        assert payload is not None
        for content in SENSELESS:
            said.append(content)
            sink._host._not_before = 0.0  # type: ignore[attr-defined]
            try:
                answers = sink.send([payload])
            except (ServiceUnavailable, ServiceError) as error:
                words = str(error)
            else:
                words = answers[0].words
            assert words.isprintable()
            assert "hidden" not in words
            assert len(words) <= http.MOST_WORDS + 50


@pytest.mark.parametrize("token", ["two\nlines", "sécret-hidden", "nul\0hidden", "tab\thidden", "\u2603hidden"])
def test_a_token_that_is_none_is_one_sentence_without_it(token: str) -> None:
    with pytest.raises(ConfigError, match=r"providers\.rubin: its token holds characters") as refused:
        providers.load("rubin", {"token": token})
    assert "hidden" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "proxy", ["socks5://u:hidden@h:1", "ftp://u:hidden@h:1", "http://u:hidden@h:port", "http://u:hidden@127.0.0.1:9"]
)
def test_a_proxy_with_a_password_does_not_show_it(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises((ConfigError, ServiceUnavailable)) as refused, closing(Host("sinks.x", "http://h.example")) as h:
        h.get("/")
    assert "hidden" not in str(refused.value)


def test_of_a_webhook_only_its_host_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    with standing(lambda _: (302, {})) as stand:
        sink = sinks.load("webhook", {"url": f"{stand.url}/services/T0/hidden?key=hidden"})
        with closing(sink), pytest.raises(ServiceError, match=stand.url) as refused:
            sink.send([sink.payload(classification()) or {}])
    assert stand.asked[0].path == "/services/T0/hidden?key=hidden"
    assert "hidden" not in str(refused.value) + caplog.text


@pytest.mark.parametrize("status", [400, 401, 404, 302, 500, 503])
def test_a_host_that_says_our_address_or_token_again_makes_us_show_neither(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    path, token = "/services/T0/hidden+%2Fkey?sig=hidden%2Fsig", "hidden/t+ken="
    echoes = (
        f"no route POST {path}",
        unquote(path),
        f"key {quote(token, safe='')}",
        token,
        "hidden/sig",
        "hidden+/key",
    )
    with standing(lambda _: (status, {"message": " | ".join(echoes)})) as stand:
        sink = sinks.load("webhook", {"url": stand.url + path, "token": token})
        with closing(sink):
            try:
                said = sink.send([sink.payload(classification()) or {}])[0].words
            except SkyheedError as error:
                said = "".join(traceback.format_exception(error))
    assert "hidden" not in said + caplog.text


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_takes_no_token_along(status: int) -> None:
    with standing(lambda _: (200, {})) as other, standing(lambda _: (status, b"")) as stand:
        stand.headers = {"Location": f"{other.url}/"}
        for name in ("lasair", "skyportal", "webhook"):
            with closing(sinks.load(name, {**OPTIONS[name], "url": stand.url})) as sink:
                payload = sink.payload(classification()) or {}
                with pytest.raises(ServiceError, match=rf"sinks\.{name} at .* redirects"):
                    sink.send([payload])
        for name in ("alerce", "babamul", "babamul-ztf", "fink", "fink-ztf", "rubin"):
            token = {} if name.startswith(("alerce", "fink")) else {"token": "t0ken"}
            provider = providers.load(name, {"url": stand.url, **token})
            with closing(provider), pytest.raises(ServiceError, match=rf"providers\.{name} at .* redirects"):
                provider.packet("ZTF18abc", 7)
        assert len(stand.asked) == 9
        assert not other.asked


HUGE = ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 +99999999999999", "9" * 5000)


@pytest.mark.parametrize("seconds", ["1e9", "-5", "nan", "inf", "Wed, 21 Oct 2099 07:28:00 GMT", "tomorrow", "", *HUGE])
def test_a_host_can_make_us_wait_an_hour_at_most(stand: Stand, seconds: str) -> None:
    stand.first.append((429, b"", {"Retry-After": seconds}))
    with closing(Host("sinks.x", stand.url)) as host:
        with pytest.raises(ServiceUnavailable):
            host.get("/")
        assert host._not_before - http.time.monotonic() <= http.LONGEST_WAIT_S


def test_a_host_may_write_a_date_until_which_we_wait(stand: Stand) -> None:
    for ahead, least, most in ((40, 37, 41), (-40, -1, 1)):
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True)
        stand.first.append((503, b"", {"Retry-After": date}))
        with closing(Host("sinks.x", stand.url)) as host:
            with pytest.raises(ServiceUnavailable):
                host.get("/")
            assert least <= host._not_before - http.time.monotonic() <= most


def test_words_of_a_host_are_few_and_harmless(stand: Stand) -> None:
    stand.first.append((400, json.dumps({"message": "\x1b[31m" + "x" * 10_000}).encode(), {}))
    with closing(Host("sinks.x", stand.url)) as host, pytest.raises(Refusal) as refused:
        host.get("/")
    assert len(str(refused.value)) <= http.MOST_WORDS
    assert "\x1b" not in str(refused.value)


def test_an_answer_in_drops_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drops:
        def __init__(self) -> None:
            self.headers: dict[str, str] = {}

        def iter_raw(self) -> Iterator[bytes]:
            while True:
                yield b"."

    monkeypatch.setattr(http, "ANSWER_S", 0.2)
    found: Any = Drops()
    with pytest.raises(http.httpx.ReadTimeout):
        http._read(found)
