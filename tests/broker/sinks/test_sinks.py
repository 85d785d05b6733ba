"""What each host is sent, and what becomes of its answers."""

import base64
import hashlib
import hmac
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from host_tools import LasairRules, Reply, Request, SkyPortalRules, standing
from test_record import classification

from skyheed.broker import sinks
from skyheed.broker.errors import ConfigError, ServiceError, ServiceUnavailable
from skyheed.broker.http import Host
from skyheed.broker.plugins import plugins
from skyheed.broker.results.record import Classification
from skyheed.broker.sinks import Outcome
from skyheed.broker.sinks.lasair import Lasair, short_version
from skyheed.broker.sinks.skyportal import SkyPortal
from skyheed.broker.sinks.webhook import Webhook


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connections end with their test."""
    made: list[Host] = []
    begin = Host.__init__

    def noted(self: Host, *given: Any) -> None:
        begin(self, *given)
        made.append(self)

    monkeypatch.setattr(Host, "__init__", noted)
    yield
    for host in made:
        host.close()


def record(object_id: str = "ZTF18abc", version: str = "1", **other: Any) -> Classification:
    found = classification(object_id=object_id, **other)
    return replace(found, provenance=replace(found.provenance, model_version=version))


def declined(revision: int = 7) -> Classification:
    return classification(answer=None, reason="too_few_stamps", revision=revision)


def send(sink: Any, *found: Classification) -> list[Outcome]:
    payloads = [sink.payload(one) for one in found]
    return [answer.outcome for answer in sink.send(payloads)]


def test_every_sink_is_an_entry_point_and_unknown_ones_are_named() -> None:
    assert {"fastdb", "hop", "lasair", "skyportal", "webhook"} <= set(plugins(sinks.GROUP))
    with pytest.raises(ConfigError, match=r"no sink 'slack': choose one of .*lasair"):
        sinks.load("slack", {})


@pytest.mark.parametrize("name", ["fastdb", "hop", "lasair", "skyportal", "webhook"])
def test_what_is_missing_or_unknown_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"sinks\.{name} needs"):
        sinks.load(name, {"security": "PLAINTEXT"} if name == "hop" else {})
    with pytest.raises(ConfigError, match=rf"sinks\.{name}\.colour"):
        sinks.load(name, {"colour": "red"})


# --- Lasair ---------------------------------------------------------------------------------------------------------


def test_lasair_keeps_one_annotation_for_each_object() -> None:
    rules = LasairRules()
    with standing(rules) as host:
        sink = Lasair({"topic": "skyheed", "token": "t0ken", "url": f"{host.url}/api"})
        assert send(sink, record("a"), record("b")) == ["delivered", "delivered"]
        assert send(sink, record("a", revision=8, answer=[("AGN", 2332, 0.9), ("SNIa", 2222, 0.1)])) == ["delivered"]
        assert host.asked[0].path == "/api/annotatelist/"
    assert set(rules.kept) == {("a", "skyheed"), ("b", "skyheed")}
    assert rules.kept["a", "skyheed"]["classification"] == "AGN"
    assert json.loads(rules.kept["b", "skyheed"]["classdict"])["SNIa"] == pytest.approx(0.6)
    assert "SNIa with probability 0.60 from 5 stamps (3 g, 2 r)" in rules.kept["b", "skyheed"]["explanation"]


def test_lasair_refuses_one_object_and_takes_the_others() -> None:
    rules = LasairRules()
    with standing(rules) as host:
        sink = Lasair({"topic": "skyheed", "token": "t0ken", "url": host.url})
        answers = sink.send([sink.payload(record(name)) for name in ("a", "nowhere", "c")])
    assert [answer.outcome for answer in answers] == ["delivered", "refused", "delivered"]
    assert answers[1].words == "400 object nowhere does not exist"
    assert {name for name, _ in rules.kept} == {"a", "c"}


def test_lasair_is_told_no_decline() -> None:
    assert Lasair({"topic": "t", "token": "x"}).payload(declined()) is None


@pytest.mark.parametrize("version", ["1", "5+prior.906-1988-3225-2130", "5+prior.906-1988-3225-2131", "x" * 16, ""])
def test_versions_are_shortened_without_becoming_the_same(version: str) -> None:
    short = short_version(record(version=version))
    assert 1 <= len(short) <= 16
    assert len(version) > 16 or short == (version or "0")
    assert short_version(record(version=version + "?" * 20)) != short


def test_our_annotation_is_what_the_real_client_sends() -> None:
    lasair = pytest.importorskip("lasair", reason="needs the client: pip install lasair")
    rules = LasairRules()
    with standing(rules) as host:
        ours = Lasair({"topic": "skyheed", "token": "t0ken", "url": host.url})
        payload = dict(ours.payload(record(version="5+prior.906-1988-3225-2130")) or {})
        ours.send([payload])
        client = lasair.lasair_client("t0ken", endpoint=host.url)
        client.annotate_list([payload])
        assert host.asked[0].content == host.asked[1].content
        client.annotate(
            payload["topic"], payload["objectId"], payload["classification"], version=payload["version"],
            explanation=payload["explanation"], classdict=payload["classdict"], url=payload["url"],
        )  # fmt: skip  # raises for a version above 16 characters


# --- SkyPortal ------------------------------------------------------------------------------------------------------


def skyportal(url: str, **options: str) -> SkyPortal:
    return SkyPortal(
        {"url": url, "token": "t0ken", "taxonomy_id": "3", "classes": "SNIa=Ia, AGN=AGN", "group_ids": "1", **options}
    )


def test_skyportal_is_left_the_same_by_a_repeat() -> None:
    rules = SkyPortalRules({"ZTF18abc"}, {"Ia", "AGN"})
    with standing(rules) as host:
        sink = skyportal(host.url)
        for _ in range(2):
            assert send(sink, record()) == ["delivered"]
        assert send(sink, record(revision=8, answer=[("AGN", 2332, 0.9), ("SNIa", 2222, 0.1)])) == ["delivered"]
    [annotation], [found] = rules.annotations.values(), rules.classifications.values()
    assert (found["classification"], found["taxonomy_id"], found["ml"], found["group_ids"]) == ("AGN", 3, True, [1])
    assert found["probability"] == pytest.approx(0.9)
    assert annotation["data"]["AGN"] == pytest.approx(0.9)
    assert annotation["origin"] == found["origin"] == "skyheed:ConvEntion"


def test_skyportal_hears_nothing_of_sources_that_nobody_saved() -> None:
    rules = SkyPortalRules({"another"}, {"Ia"})
    with standing(rules) as host:
        assert send(skyportal(host.url), record()) == ["filtered"]
    assert not rules.annotations
    assert not rules.classifications


def test_a_class_that_the_taxonomy_lacks_is_refused_in_its_words_and_one_without_a_name_is_only_annotated() -> None:
    rules = SkyPortalRules({"ZTF18abc"}, {"Supernova"})
    with standing(rules) as host:
        sink = skyportal(host.url)
        [answer] = sink.send([sink.payload(record())])
        assert (answer.outcome, "(Ia) is not in the allowed classes" in answer.words) == ("refused", True)
        assert send(skyportal(host.url, classes="", taxonomy_id=""), record()) == ["delivered"]
    assert not rules.classifications


@pytest.mark.parametrize(
    ("option", "value"), [("classes", "SNIa"), ("classes", "SNIa="), ("group_ids", "all"), ("taxonomy_id", "x")]
)
def test_options_that_cannot_work_are_refused(option: str, value: str) -> None:
    with pytest.raises(ConfigError, match=option):
        skyportal("http://127.0.0.1:1", **{option: value})


class Drawn:
    """Stands in for strips of histories in Redis."""

    def of(self, object_id: str, sources: Any, title: str) -> bytes | None:
        return None if object_id == "forgotten" else f"{object_id} {sorted(sources)} {title}".encode()


def analyst(url: str, **options: str) -> SkyPortal:
    sink = skyportal(url, analysis_service_id="7", **options)
    assert isinstance(sink, sinks.Illustrated)
    assert sink.wants_strips
    sink.strips = Drawn()  # type: ignore[assignment]
    return sink


def test_skyportal_has_one_analysis_with_the_strip_of_the_newest_classification() -> None:
    rules = SkyPortalRules({"ZTF18abc", "ZTF18abcd"}, {"Ia", "AGN"})
    with standing(rules) as host:
        sink = analyst(host.url)
        for _ in range(2):
            assert send(sink, record(), record("ZTF18abcd")) == ["delivered"] * 2
        uploads = [request for request in host.asked if "analysis_upload" in request.path]
        assert len(uploads) == 2  # a repeat uploads nothing
        others = {"obj_id": "ZTF18abc", "analysis_service_id": 7, "status_message": "of somebody else", "id": 99}
        rules.analyses[99] = others
        newer = record(revision=8, answer=[("AGN", 2332, 0.9), ("SNIa", 2222, 0.1)])
        newer = replace(newer, classification_id="newer")
        assert send(sink, newer) == ["delivered"]
    assert rules.analyses.pop(99) == others
    kept = {row["obj_id"]: row for row in rules.analyses.values()}
    assert len(rules.analyses) == len(kept) == 2
    [plot] = kept["ZTF18abc"]["analysis"]["plots"]
    assert plot["format"] == "png"
    drawn = base64.b64decode(plot["data"]).decode()
    assert drawn == f"ZTF18abc {sorted(newer.sources)} {kept['ZTF18abc']['status_message']}"
    results = kept["ZTF18abc"]["analysis"]["results"]
    assert (results["format"], results["data"]["classification"]) == ("json", "AGN")
    assert results["data"]["external_provenance"]["classification_id"] == "newer"


def test_what_a_killed_forward_left_twice_is_mended() -> None:
    """Killed between the upload and the deletions, the next run finds both."""
    rules = SkyPortalRules({"ZTF18abc"}, {"Ia"})
    with standing(rules) as host:
        assert send(analyst(host.url), record()) == ["delivered"]
        [row] = rules.analyses.values()
        rules.analyses |= {77: {**row, "id": 77}, 78: {**row, "id": 78, "status_message": "skyheed:ConvEntion old"}}
        assert send(analyst(host.url), record()) == ["delivered"]
    assert list(rules.analyses.values()) == [row]


def test_an_analysis_without_a_history_has_no_picture_and_one_too_many_is_refused() -> None:
    rules = SkyPortalRules({"forgotten", "full"}, {"Ia"})
    rules.most_analyses = 1
    with standing(rules) as host:
        sink = analyst(host.url)
        assert send(sink, record("forgotten")) == ["delivered"]
        rules.analyses[99] = {"obj_id": "full", "analysis_service_id": 7, "status_message": "mine", "id": 99}
        [answer] = sink.send([sink.payload(record("full"))])
    assert (answer.outcome, answer.words) == (
        "refused", "403 You have reached the maximum number of analyses for this object.",
    )  # fmt: skip
    assert "plots" not in next(iter(rules.analyses.values()))["analysis"]


@pytest.mark.parametrize(("service", "words"), [("8", "is not upload_only"), ("9", "Cannot access")])
def test_an_analysis_service_that_cannot_work_stops_the_start(service: str, words: str) -> None:
    with standing(SkyPortalRules({"ZTF18abc"}, {"Ia"})) as host:
        sink = skyportal(host.url, analysis_service_id=service)
        with pytest.raises((ConfigError, ServiceError), match=words):
            send(sink, record())


def test_a_host_that_repeats_our_token_does_not_bring_it_into_an_error() -> None:
    rule = lambda _: (401, {"message": "no user has token t0ken"})  # noqa: E731
    with standing(rule) as host, pytest.raises(ServiceError, match="401 no user has token …") as error:
        send(skyportal(host.url), record())
    assert "t0ken" not in str(error.value)


# --- webhook --------------------------------------------------------------------------------------------------------


def test_a_receiver_can_check_the_signature_and_tell_a_repeat() -> None:
    with standing(lambda _: (200, {})) as host:
        sink = Webhook({"url": f"{host.url}/in?who=me", "secret": "s3cret", "token": "t0ken"})
        assert send(sink, record(), record(), declined(8)) == ["delivered"] * 3
    first, again, decline = host.asked
    assert first.path == "/in?who=me"
    stamp = first.headers["X-Skyheed-Timestamp"]
    wanted = hmac.new(b"s3cret", f"{stamp}.".encode() + first.body, hashlib.sha256).hexdigest()
    assert first.headers["X-Skyheed-Signature"] == f"sha256={wanted}"
    assert first.headers["Authorization"] == "Bearer t0ken"
    assert first.headers["Idempotency-Key"] == again.headers["Idempotency-Key"] != decline.headers["Idempotency-Key"]
    assert first.content["probability_of"]["SNIa"] == pytest.approx(0.6)
    assert first.content["triggering_source_id"] == str(record().triggering_source_id)
    assert decline.content["status"] == "NOT_CLASSIFIED"


# --- what hosts answer ----------------------------------------------------------------------------------------------


def test_a_busy_host_is_asked_again_when_it_says() -> None:
    with standing(lambda _: (200, {})) as host:
        host.first.append((429, {"error": "too many"}, {"Retry-After": "30"}))
        sink = Webhook({"url": host.url})
        for _ in range(2):
            with pytest.raises(ServiceUnavailable, match=r"in 30 s|for (29|30) s more"):
                send(sink, record())
        assert len(host.asked) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [(500, ServiceUnavailable), (503, ServiceUnavailable), (401, ServiceError), (302, ServiceError)],
)
def test_trouble_is_told_from_a_refusal(status: int, error: type[Exception]) -> None:
    with standing(lambda _: (status, {"message": "no"})) as host, pytest.raises(error):
        send(Webhook({"url": host.url}), record())


def test_a_host_that_is_away_is_waited_for() -> None:
    with pytest.raises(ServiceUnavailable, match="webhook at http://127"):
        send(Webhook({"url": "http://127.0.0.1:9"}), record())


LOGIN = b"<!doctype html><title>Please log in</title>"


@pytest.mark.parametrize("answer", [LOGIN, b"", [], "ok", None, 7, {"hello": "world"}])
@pytest.mark.parametrize("behind", [0, 1, 2, 3])
def test_skyportal_has_nothing_of_what_a_page_in_its_place_took(answer: Any, behind: int) -> None:
    """A proxy that shows a page for logging in, or for maintenance, with status 200: nothing counts as delivered."""
    rules = SkyPortalRules({"ZTF18abc"}, {"Ia"})
    with standing(rules) as host:
        sink = skyportal(host.url)
        left = [behind]

        def sometimes(request: Request) -> Reply:
            left[0] -= 1
            return rules(request) if left[0] >= 0 else (200, answer)

        host.rule = sometimes
        with pytest.raises(ServiceUnavailable, match="not what we expect"):
            send(sink, record())
        host.rule = rules
        assert send(sink, record()) == ["delivered"]
    assert (len(rules.annotations), len(rules.classifications)) == (1, 1)


@pytest.mark.parametrize("answer", [LOGIN, b"", [], "ok", None, 7])
def test_lasair_has_nothing_of_what_a_page_in_its_place_took(answer: Any) -> None:
    with standing(lambda _: (200, answer)) as host, pytest.raises(ServiceUnavailable, match="not what we expect"):
        send(Lasair({"topic": "t", "token": "t0ken", "url": host.url}), record())


@pytest.mark.parametrize("name", ["lasair", "skyportal"])
def test_an_error_that_comes_with_status_200_is_a_refusal_in_its_words_without_our_token(name: str) -> None:
    said = {"status": "error", "error": "no t0ken-hidden here", "message": "no t0ken-hidden here"}
    token = {"token": "t0ken-hidden"}
    with standing(lambda _: (200, said)) as host:
        lasair = Lasair({"topic": "t", "url": host.url, **token})
        sink = lasair if name == "lasair" else skyportal(host.url, **token)
        [answer] = sink.send([sink.payload(record()) or {}])
    assert (answer.outcome, answer.words) == ("refused", "200 no … here")


@pytest.mark.parametrize("status", [408, 425, 429])
def test_what_may_be_accepted_later_is_not_refused(status: int) -> None:
    with standing(lambda _: (200, {})) as host:
        host.first.append((status, {"message": "later"}, {"Retry-After": "0"}))
        sink = Webhook({"url": host.url})
        with pytest.raises(ServiceUnavailable, match=f"answers {status}"):
            send(sink, record())
        assert send(sink, record()) == ["delivered"]


def test_lasair_takes_in_pieces_what_is_too_large_at_once() -> None:
    rules = LasairRules()

    def small(request: Request) -> Reply:
        return rules(request) if len(request.body) < 1_000 else (413, {"error": "too large"})

    with standing(small) as host:
        sink = Lasair({"topic": "skyheed", "token": "t0ken", "url": host.url})
        assert send(sink, record("a"), record("b"), record("c")) == ["delivered"] * 3


def test_a_signature_is_of_the_bytes_whatever_the_letters() -> None:
    secret = "schlüssel-☃"
    with standing(lambda _: (200, {})) as host:
        sink = Webhook({"url": host.url, "secret": secret})
        assert send(sink, record("Ω☃𝔘 עברית")) == ["delivered"]
    [asked] = host.asked
    stamp = asked.headers["X-Skyheed-Timestamp"]
    wanted = hmac.new(secret.encode(), f"{stamp}.".encode() + asked.body, hashlib.sha256).hexdigest()
    assert asked.headers["X-Skyheed-Signature"] == f"sha256={wanted}"
    assert asked.content["object_id"] == "Ω☃𝔘 עברית"
    assert int(asked.headers["Content-Length"]) == len(asked.body)


@pytest.mark.parametrize("words", [{"message": "bad"}, {"detail": "bad"}, "bad", {"error": {"why": "bad"}}, ["bad"]])
def test_the_hosts_words_are_kept(words: Any) -> None:
    with standing(lambda _: (422, words)) as host:
        sink = Webhook({"url": host.url})
        [answer] = sink.send([sink.payload(record())])
    assert answer.outcome is Outcome.REFUSED
    assert answer.words.startswith("422")
    assert "bad" in answer.words


def test_no_secret_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with standing(lambda _: (403, {"message": "no"})) as host:
        sink = Webhook({"url": host.url, "token": "t0ken-hidden", "secret": "s3cret-hidden"})
        with pytest.raises(ServiceError) as refused:
            send(sink, record())
    assert "hidden" not in f"{refused.value!r} {caplog.text}"


@pytest.mark.parametrize("url", ["ftp://x", "http://user:pw@host", "nonsense", "http://", "http://host#part"])
def test_addresses_that_cannot_work_are_refused_without_showing_them(url: str) -> None:
    with pytest.raises(ConfigError, match=r"sinks\.webhook\.url must be http") as error:
        Webhook({"url": url})
    assert "pw" not in str(error.value)
