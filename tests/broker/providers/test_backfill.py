"""`skyheed backfill`: what is asked for, what of it is published, kill -9 in the middle, ingest behind it."""

import io
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fastavro
import pytest
import real_data
from click.testing import CliRunner
from host_tools import Reply, Request, standing
from process_tools import Program, until
from stream_tools import ingest_all, publish, raw_messages, record_of, settings_for
from test_brokers import BabamulRules, FinkRules, kept_of
from test_surveys import ztf_packet

from skyheed.broker import app, providers
from skyheed.broker.backfill import TRIES, EarlierReader
from skyheed.broker.cli import skyheed
from skyheed.broker.errors import ConfigError, ServiceError, ServiceUnavailable
from skyheed.broker.http import Host, Refusal
from skyheed.broker.local import embedded
from skyheed.broker.packets.container import Decoder, SchemaSource
from skyheed.broker.packets.surveys import load_survey
from skyheed.broker.packets.surveys.previous import NamesEarlier
from skyheed.broker.plugins import plugins
from skyheed.broker.providers.rubin import Rubin
from skyheed.broker.settings import Settings

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
JD = 2_459_000.5
EARLIER = {
    "type": "record", "name": "prv",
    "fields": [{"name": "candid", "type": ["null", "long"]}, {"name": "jd", "type": "double"}],
}  # fmt: skip


def packet(name: str, number: int, earlier: int = 0, **changes: Any) -> bytes:
    """The `number`th packet of an object, which names this many detections before it and as many non-detections."""
    plain = ztf_packet(top={"objectId": name, "candid": number, **changes}, candid=number, jd=JD + number)
    schema, record = record_of(plain)
    schema["fields"].append({"name": "prv_candidates", "type": ["null", {"type": "array", "items": EARLIER}]})
    known = [{"candid": n, "jd": JD + n} for n in range(number - earlier, number)]
    none = [{"candid": None, "jd": JD + n + 0.5} for n in range(number - earlier, number)]
    out = io.BytesIO()
    written = record | {"prv_candidates": [*known, *none][::-1] or None}
    fastavro.writer(out, fastavro.parse_schema(schema, named_schemas={}), [written])
    return out.getvalue()


class AlerceRules:
    """ALeRCE's archive of packets: `GET /get_avro?oid&candid`; refuses other parameters."""

    def __init__(self, packets: dict[tuple[str, int], bytes], delay: float = 0.0) -> None:
        self.packets, self.delay = packets, delay
        self.asked: Counter[tuple[str, int]] = Counter()

    def __call__(self, request: Request) -> Reply:
        url = urlsplit(request.path)
        given = {key: values[0] for key, values in parse_qs(url.query).items()}
        if request.method != "GET" or url.path != "/get_avro" or set(given) != {"oid", "candid"}:
            return 422, {"detail": f"unexpected request {request.path}"}
        key = given["oid"], int(given["candid"])
        self.asked[key] += 1
        time.sleep(self.delay)
        return (200, self.packets[key]) if key in self.packets else (404, {"message": "not found"})


@pytest.fixture
def stream(kafka: embedded.Server, valkey: embedded.Server) -> Settings:
    return settings_for(kafka.address, valkey.url, "ztf", f"alerts-{uuid.uuid4().hex[:8]}")


def written(folder: Path, settings: Settings, url: str, provider: str = "alerce", more: str = "") -> str:
    path = folder / "backfill.toml"
    path.write_text(
        f'survey = "ztf"\n[kafka]\n"bootstrap.servers" = "{settings.kafka["bootstrap.servers"]}"\n'
        f'[redis]\nurl = "{settings.redis.url}"\n[ingest]\ntopics = ["{settings.ingest.topics[0]}"]\n'
        f'[backfill]\ngroup = "{uuid.uuid4().hex}"\nrate = 1000.0\n[providers.{provider}]\nurl = "{url}"\n{more}'
    )
    return str(path)


def backfill(path: str, provider: str = "alerce") -> dict[str, int]:
    words = ["backfill", "--config", path, "--from", provider, "--drain"]
    ran = CliRunner().invoke(skyheed, words, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return {key: int(value) for key, value in (part.split("=") for part in ran.stdout.split())}


def fetched(settings: Settings, name: str) -> set[int]:
    """Detections of an object on the topic of backfilled packets, which other tests write to as well."""
    found = [record_of(message.value() or b"")[1] for message in raw_messages(settings, settings.backfill_topic)]
    return {record["candid"] for record in found if record["objectId"] == name}


def test_a_history_is_whole_after_its_first_packet(stream: Settings, tmp_path: Path) -> None:
    one, two = f"ZTF{uuid.uuid4().hex[:8]}", f"ZTF{uuid.uuid4().hex[:8]}"
    publish(stream, stream.ingest.topics[0], [packet(one, 9, 4), packet(two, 3)])
    ingest_all(stream)
    archive = {(one, n): packet(one, n) for n in range(5, 9) if n != 6}
    archive[one, 7] = packet(two, 7)  # of another object
    rules = AlerceRules(archive)
    with standing(rules) as host:
        path = written(tmp_path, stream, host.url)
        assert backfill(path) == {"asked": 4, "fetched": 2, "unknown": 1, "refused": 0, "wrong": 1}
        assert set(rules.asked) == {(one, n) for n in range(5, 9)}
        assert backfill(path)["asked"] == 0  # its group remembers
    assert fetched(stream, one) == {5, 8}
    whole = settings_for(
        stream.kafka["bootstrap.servers"], stream.redis.url, "ztf", stream.backfill_topic, **{"ingest.group": one}
    )
    ingest_all(whole)
    kept = app.read_store(stream)[0].sequence(one)
    assert kept is not None
    assert kept.header["source_id"].tolist() == [5, 8, 9]


def test_what_is_stored_or_was_asked_for_is_not_asked_for_again(stream: Settings, tmp_path: Path) -> None:
    name = f"ZTF{uuid.uuid4().hex[:8]}"
    publish(stream, stream.ingest.topics[0], [packet(name, 3), packet(name, 4, 3), packet(name, 5, 4)])
    ingest_all(stream)
    rules = AlerceRules({})
    with standing(rules) as host:
        assert backfill(written(tmp_path, stream, host.url))["unknown"] == 2
    assert rules.asked == {(name, 1): 1, (name, 2): 1}


def test_a_damaged_packet_is_not_passed_on(stream: Settings, tmp_path: Path) -> None:
    name = f"ZTF{uuid.uuid4().hex[:8]}"
    publish(stream, stream.ingest.topics[0], [packet(name, 4, 3)])
    cut = packet(name, 2)[:-900]
    no_fits = packet(name, 3, cutoutScience={"fileName": "f", "stampData": b"SIMPLE = cut"})
    with standing(AlerceRules({(name, 1): b"<html>busy</html>", (name, 2): cut, (name, 3): no_fits})) as host:
        counts = backfill(written(tmp_path, stream, host.url))
    assert counts == {"asked": 3, "fetched": 0, "unknown": 0, "refused": 0, "wrong": 3}
    assert not fetched(stream, name)


def test_a_busy_provider_is_waited_for(stream: Settings, tmp_path: Path) -> None:
    name = f"ZTF{uuid.uuid4().hex[:8]}"
    publish(stream, stream.ingest.topics[0], [packet(name, 4, 2)])
    with standing(AlerceRules({(name, n): packet(name, n) for n in (2, 3)})) as host:
        host.first += [(429, "", {"Retry-After": "1"}), (500, "", {"Retry-After": "0"})]
        assert backfill(written(tmp_path, stream, host.url))["fetched"] == 2


def test_a_killed_backfill_goes_on(stream: Settings, tmp_path: Path) -> None:
    name = f"ZTF{uuid.uuid4().hex[:8]}"
    publish(stream, stream.ingest.topics[0], [packet(name, 13, 12)])
    rules = AlerceRules({(name, n): packet(name, n) for n in range(1, 13)}, delay=0.3)
    with standing(rules) as host:
        path = written(tmp_path, stream, host.url)
        program = Program(tmp_path / "first", "backfill", "--config", path, "--from", "alerce")
        try:
            until(lambda: len(rules.asked) > 2, 60, "requests")
        finally:
            program.process.kill()
            program.process.wait()
        rules.delay = 0.0
        backfill(path)
    assert fetched(stream, name) == set(range(1, 13))


@pytest.mark.parametrize("provider", ["fink-ztf", "babamul-ztf"])
def test_a_killed_backfill_from_a_broker_leaves_every_stamp_once(
    provider: str, stream: Settings, tmp_path: Path
) -> None:
    name = f"ZTF{uuid.uuid4().hex[:8]}"
    publish(stream, stream.ingest.topics[0], [packet(name, 13, 12)])
    ingest_all(stream)
    kept = kept_of("ztf", [packet(name, n) for n in range(1, 13)])
    rules = FinkRules("ztf", kept) if provider == "fink-ztf" else BabamulRules("ztf", kept)
    slow = threading.Event()
    slow.set()

    def unhurried(request: Request) -> Reply:
        if slow.is_set():
            time.sleep(0.1)
        return rules(request)

    with standing(unhurried) as host:
        path = written(tmp_path, stream, host.url, provider, 'token = "t0ken"\n' if provider == "babamul-ztf" else "")
        program = Program(tmp_path / "first", "backfill", "--config", path, "--from", provider)
        try:
            until(lambda: len(fetched(stream, name)) > 2, 60, "packets")
        finally:
            program.process.kill()
            program.process.wait()
        slow.clear()
        backfill(path, provider)
    assert fetched(stream, name) == set(range(1, 13))
    whole = settings_for(
        stream.kafka["bootstrap.servers"], stream.redis.url, "ztf", stream.backfill_topic, **{"ingest.group": name}
    )
    ingest_all(whole)
    sequence = app.read_store(stream)[0].sequence(name)
    assert sequence is not None
    assert sequence.header["source_id"].tolist() == list(range(1, 14))


def test_a_detection_at_which_the_provider_fails_again_and_again_is_given_up(
    stream: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skyheed.broker.http.FIRST_WAIT_S", 0.0)
    name = f"ZTF{uuid.uuid4().hex[:8]}"
    publish(stream, stream.ingest.topics[0], [packet(name, 4, 2)])
    rules = AlerceRules({(name, 3): packet(name, 3)})

    def broken(request: Request) -> Reply:
        return (500, {}) if request.path.endswith("candid=2") else rules(request)

    with standing(broken) as host:
        counts = backfill(written(tmp_path, stream, host.url))
        assert counts == {"asked": 2, "fetched": 1, "unknown": 0, "refused": 1, "wrong": 0}
        assert len([one for one in host.asked if one.path.endswith("candid=2")]) == TRIES


# --- providers ------------------------------------------------------------------------------------------------------


def test_rubin_is_asked_as_its_guide_says() -> None:
    def rule(request: Request) -> Reply:
        if request.headers.get("Authorization") != "Bearer t0ken":
            return 401, {"detail": "no"}
        known = {"/api/alerts?ID=77": b"packet"}
        return (200, known[request.path]) if request.path in known else (404, {"detail": "no alert"})

    with standing(rule) as host:
        good, bad = Rubin({"token": "t0ken", "url": host.url}), Rubin({"token": "wr0ng", "url": host.url})
        assert (good.packet("1", 77), good.packet("1", 78)) == (b"packet", None)
        with pytest.raises(ServiceError, match=r"check providers\.rubin\.token") as refused:
            bad.packet("1", 77)
        good.close()
        bad.close()
    assert "wr0ng" not in str(refused.value)


def test_an_endless_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyheed.broker.http.MOST_BYTES", 1000)
    with standing(lambda _: (200, bytes(5000))) as host:
        client = Host("providers.x", host.url)
        with pytest.raises(Refusal, match="more than 1000 bytes"):
            client.fetch("/")
        client.close()
    away = Host("providers.x", host.url)
    with pytest.raises(ServiceUnavailable):
        away.fetch("/")
    away.close()


def test_providers_by_name() -> None:
    assert {"alerce", "rubin"} <= set(plugins(providers.GROUP))
    with pytest.raises(ConfigError, match=r"no provider 'x': choose one of .*alerce"):
        providers.load("x", {})
    with pytest.raises(ConfigError, match=r"providers\.rubin needs a token .*SKYHEED_BACKFILL_TOKEN"):
        providers.load("rubin", {})


@pytest.mark.parametrize(("survey", "files"), [("ztf", real_data.ztf_files), ("lsst", real_data.rubin_files)])
def test_real_packets_name_their_earlier_detections(survey: str, files: Callable[[], list[Path]]) -> None:
    found = load_survey(survey)
    assert isinstance(found, NamesEarlier)
    reader = EarlierReader(found, Decoder(found.earlier_schema, schemas=SchemaSource()).decode)
    named = 0
    for path in files()[:60]:
        for object_id, detections in reader.of(path.read_bytes()):
            assert object_id
            assert detections
            named += len(detections)
    assert named


def test_so_many_detections_of_a_packet_are_asked_for(stream: Settings, tmp_path: Path) -> None:
    name = f"ZTF{uuid.uuid4().hex[:8]}"
    publish(stream, stream.ingest.topics[0], [packet(name, 300, 200)])
    rules = AlerceRules({})
    with standing(rules) as host:
        path = Path(written(tmp_path, stream, host.url))
        path.write_text(path.read_text().replace("[backfill]", "[backfill]\nmost = 7"))
        assert backfill(str(path))["asked"] == 7
    assert set(rules.asked) == {(name, n) for n in range(293, 300)}
