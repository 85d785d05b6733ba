"""Fink and Babamul as providers: asked as their APIs are documented, and their packets say what the survey's say."""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
import real_data
from host_tools import Reply, Request, Stand, standing
from test_surveys import lsst_packet, ztf_packet

from skyheed.broker.errors import PacketError, ServiceError, ServiceUnavailable, SkipPacket
from skyheed.broker.http import Broken, Refusal
from skyheed.broker.observation import Observation
from skyheed.broker.packets.container import Decoder
from skyheed.broker.packets.reader import read_packet
from skyheed.broker.packets.surveys import load_survey
from skyheed.broker.packets.surveys.base import Wanted
from skyheed.broker.providers import AsksAhead, Provider, cost, load, rows
from skyheed.broker.registry.schemas import SchemaSource

KINDS = ("Science", "Template", "Difference")
Kept = dict[int, tuple[str, dict[str, Any], dict[str, bytes]]]  # detection -> object, its columns, its stamps


def kept_of(survey: str, packets: Sequence[bytes]) -> Kept:
    """What a broker keeps of packets: the detection's columns and its stamps."""
    found: Kept = {}
    known = load_survey(survey, wanted=Wanted(skip=()))
    decoder = Decoder(known.reader_schema, schemas=SchemaSource())
    for packet in packets:
        for record in decoder.decode(packet):
            columns = dict(record["diaSource" if survey == "lsst" else "candidate"] or {})
            number = columns["diaSourceId"] if survey == "lsst" else record["candid"] or columns["candid"]
            name = columns["diaObjectId"] if survey == "lsst" else record["objectId"]
            stamps = {kind: record[f"cutout{kind}"] for kind in KINDS}
            files = {k: s.get("stampData") if isinstance(s, dict) else s for k, s in stamps.items()}
            if survey == "ztf":
                columns |= {"objectId": name, "candid": number}
            found[int(number)] = str(name), columns, {k: data for k, data in files.items() if data}
    return found


class FinkRules:
    """Fink's API: rows of an object with prefixed names, stamps of a detection; refuses any other argument."""

    def __init__(self, survey: str, kept: Kept) -> None:
        self.kept = kept
        lsst = survey == "lsst"
        self.rows, self.prefix = ("/api/v1/sources", "r:") if lsst else ("/api/v1/objects", "i:")
        self.name, self.number = ("diaObjectId", "diaSourceId") if lsst else ("objectId", "candid")

    def __call__(self, request: Request) -> Reply:
        asked = request.content
        if request.method != "POST" or not all(isinstance(value, str) for value in asked.values()):
            return 400, {"status": "error", "text": f"unexpected {request.method} {asked}"}
        if request.path == self.rows and set(asked) == {self.name, "columns", "output-format"}:
            return 200, self._rows(asked)
        names = {self.number, "kind", "output-format"} | ({"objectId"} if self.number == "candid" else set())
        if request.path == "/api/v1/cutouts" and set(asked) == names and asked["output-format"] == "FITS":
            return 200, self.kept.get(int(asked[self.number]), ("", {}, {}))[2].get(asked["kind"], b"")
        return 400, {"status": "error", "text": f"unexpected {sorted(asked)} at {request.path}"}

    def _rows(self, asked: dict[str, str]) -> list[dict[str, Any]]:
        wanted = asked["columns"].split(",")
        own = [columns for name, columns, _ in self.kept.values() if name == asked[self.name]]
        rows = [{self.prefix + key: value for key, value in columns.items()} for columns in own]
        return [{key: row[key] for key in wanted if key in row} for row in rows]


class BabamulRules:
    """Babamul's API: pages of an object's alerts, stamps of at most 100 detections; refuses any other parameter."""

    def __init__(self, survey: str, kept: Kept) -> None:
        self.kept, self.path = kept, f"/surveys/{survey.upper()}"
        self.bulk: list[list[int]] = []

    def __call__(self, request: Request) -> Reply:
        if request.headers.get("Authorization") != "Bearer t0ken":
            return 401, {"message": "Unauthorized"}
        url = urlsplit(request.path)
        asked = dict(parse_qsl(url.query))
        if request.method == "GET" and url.path == f"{self.path}/alerts":
            return self._alerts(asked)
        if request.method == "POST" and url.path == f"{self.path}/cutouts" and not asked:
            return self._cutouts(request.content)
        return 400, {"message": f"unexpected {request.method} {request.path}"}

    def _alerts(self, asked: dict[str, str]) -> Reply:
        if set(asked) != {"object_id", "limit", "skip"}:
            return 400, {"message": f"unexpected {sorted(asked)}"}
        own = [n for n, (name, _, _) in self.kept.items() if name == asked["object_id"]]
        page = own[int(asked["skip"]) :][: int(asked["limit"])]
        return 200, {
            "data": [{"candid": n, "objectId": asked["object_id"], "candidate": self.kept[n][1]} for n in page]
        }

    def _cutouts(self, asked: dict[str, Any]) -> Reply:
        if set(asked) != {"candids"} or not 1 <= len(asked["candids"]) <= 100:
            return 400, {"message": "between 1 and 100 candids"}
        self.bulk.append(asked["candids"])
        found = []
        for n in (n for n in asked["candids"] if n in self.kept):
            stamps = self.kept[n][2]
            encoded = {
                f"cutout{kind}": base64.b64encode(stamps[kind]).decode() if kind in stamps else None for kind in KINDS
            }
            found.append({"candid": n, **encoded})
        return 200, {"data": {"cutouts": found}}


SERVICES = [("fink", "lsst"), ("fink-ztf", "ztf"), ("babamul", "lsst"), ("babamul-ztf", "ztf")]


@contextmanager
def serving(name: str, survey: str, kept: Kept, **options: str) -> Iterator[tuple[Provider, Stand, Any]]:
    rules = FinkRules(survey, kept) if name.startswith("fink") else BabamulRules(survey, kept)
    with standing(rules) as host:
        token = {"token": "t0ken"} if name.startswith("babamul") else {}
        provider = load(name, {"url": host.url, **token, **options})
        try:
            yield provider, host, rules
        finally:
            provider.close()


def packets_of(survey: str, count: int = 3) -> list[bytes]:
    """Detections 1 to `count` of one object."""
    if survey == "lsst":
        return [lsst_packet(diaSourceId=n, diaObjectId=77, midpointMjdTai=61000.0 + n) for n in range(1, count + 1)]
    return [
        ztf_packet(top={"objectId": "ZTF18abc", "candid": n}, candid=n, jd=2459000.5 + n) for n in range(1, count + 1)
    ]


def name_of(survey: str) -> str:
    return "77" if survey == "lsst" else "ZTF18abc"


def same(one: Observation, other: Observation) -> None:
    for field in ("object_id", "source_id", "mjd", "band", "ra", "dec", "flux", "flux_error", "flags"):
        assert getattr(one, field) == pytest.approx(getattr(other, field), nan_ok=True), field
    np.testing.assert_array_equal(one.stamp, other.stamp)
    assert set(one.images) == set(other.images)
    for kind, stamp in one.images.items():
        np.testing.assert_array_equal(stamp, other.images[kind])


@pytest.mark.parametrize(("name", "survey"), SERVICES)
def test_a_packet_says_what_the_surveys_says(name: str, survey: str) -> None:
    packets = packets_of(survey)
    with serving(name, survey, kept_of(survey, packets)) as (provider, _, _):
        assert provider.survey == survey
        for n, packet in enumerate(packets, 1):
            assembled = provider.packet(name_of(survey), n)
            assert assembled is not None
            same(read_packet(assembled, survey)[0], read_packet(packet, survey)[0])
        assert provider.packet(name_of(survey), 99) is None
        assert provider.packet("12345" if survey == "lsst" else "ZTF99zzz", 1) is None


@pytest.mark.parametrize(
    ("name", "survey", "files"),
    [(n, s, real_data.rubin_files if s == "lsst" else real_data.ztf_files) for n, s in SERVICES],
)
def test_real_packets_come_back_the_same(name: str, survey: str, files: Callable[[], list[Any]]) -> None:
    """Through the broker's columns and stamps and back; of those that can be used at all."""
    usable: dict[tuple[str, int], Observation] = {}
    kept: Kept = {}
    for path in files()[:24]:
        try:
            [seen] = read_packet(path.read_bytes(), survey)
        except (SkipPacket, PacketError, ValueError):
            continue
        usable[seen.object_id, seen.source_id] = seen
        kept |= kept_of(survey, [path.read_bytes()])
    with serving(name, survey, kept) as (provider, _, _):
        for (object_id, source_id), seen in usable.items():
            assembled = provider.packet(object_id, source_id)
            assert assembled is not None
            same(read_packet(assembled, survey)[0], seen)
    assert len(usable) >= 10


@pytest.mark.parametrize(("name", "survey"), SERVICES)
def test_a_detection_without_a_science_stamp_is_unknown_and_a_cut_one_is_seen(name: str, survey: str) -> None:
    kept = kept_of(survey, packets_of(survey))
    del kept[1][2]["Science"]
    kept[2][2]["Science"] = kept[2][2]["Science"][: -3000 if survey == "lsst" else -40]
    del kept[3][2]["Template"]
    with serving(name, survey, kept) as (provider, _, _):
        assert provider.packet(name_of(survey), 1) is None
        cut, whole = (provider.packet(name_of(survey), n) or b"" for n in (2, 3))
    with pytest.raises(PacketError):
        read_packet(cut, survey)
    assert set(read_packet(whole, survey)[0].images) == {"difference"}


def test_fink_needs_no_login_and_asks_for_an_objects_rows_once() -> None:
    with serving("fink", "lsst", kept_of("lsst", packets_of("lsst"))) as (provider, host, _):
        for n in (1, 2, 3):
            provider.packet("77", n)
        assert cost(provider) == 3
        assert [request.path.rpartition("/")[2] for request in host.asked] == ["sources", *["cutouts"] * 9]
        assert "Authorization" not in host.asked[0].headers
        assert host.asked[0].content["diaObjectId"] == "77"


def test_a_detection_newer_than_the_table_is_asked_for_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = kept_of("lsst", packets_of("lsst"))
    late = kept.pop(3)
    with serving("fink", "lsst", kept) as (provider, host, _):
        assert provider.packet("77", 3) is None
        kept[3] = late
        assert provider.packet("77", 3) is None
        assert len(host.asked) == 1
        monkeypatch.setattr(rows, "STALE_S", 0.0)
        assert provider.packet("77", 3)


def test_babamul_is_asked_for_several_stamps_at_a_time_and_page_after_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyheed.broker.providers.babamul.PAGE", 4)
    monkeypatch.setattr("skyheed.broker.providers.babamul.STAMPS", 3)
    with serving("babamul-ztf", "ztf", kept_of("ztf", packets_of("ztf", 9))) as (provider, host, rules):
        assert isinstance(provider, AsksAhead)
        provider.expect("ZTF18abc", [2, 3, 5, 8, 9])
        assert all(provider.packet("ZTF18abc", n) for n in (2, 3, 5, 8, 9))
        assert rules.bulk == [[2, 3, 5], [8, 9]]
        assert [request.method for request in host.asked] == ["GET"] * 3 + ["POST"] * 2


def test_babamul_needs_its_token() -> None:
    from skyheed.broker.errors import ConfigError

    with pytest.raises(ConfigError, match=r"providers\.babamul needs an API token .*SKYHEED_BACKFILL_TOKEN"):
        load("babamul", {})
    with (
        serving("babamul", "lsst", {}, token="wr0ng") as (provider, _, _),
        pytest.raises(ServiceError, match="401 Unauthorized") as refused,
    ):
        provider.packet("77", 1)
    assert "wr0ng" not in str(refused.value)


@pytest.mark.parametrize("name", ["fink", "babamul"])
def test_busy_and_broken_services_and_answers_that_are_none(name: str) -> None:
    with serving(name, "lsst", kept_of("lsst", packets_of("lsst"))) as (provider, host, _):
        host.first.append((200, {"data": "maintenance"}, {}))
        with pytest.raises(Refusal, match="an answer of"):
            provider.packet("77", 1)
        host.first.append((500, {}, {"Retry-After": "0"}))
        with pytest.raises(Broken):
            provider.packet("77", 1)
        host.first.append((429, {"message": "slow down"}, {"Retry-After": "30"}))
        with pytest.raises(ServiceUnavailable, match="in 30 s"):
            provider.packet("77", 1)
        before = len(host.asked)
        with pytest.raises(ServiceUnavailable, match="wait for"):
            provider.packet("77", 1)
        assert len(host.asked) == before


@pytest.mark.parametrize("name", ["fink", "babamul"])
def test_rows_that_are_none_are_left_out_and_numbers_stay_whole(name: str) -> None:
    number = 170_050_479_238_676_547  # above 2^53
    kept = kept_of("lsst", [lsst_packet(diaSourceId=number, diaObjectId=77)])
    assert json.loads(json.dumps(number)) == number
    with serving(name, "lsst", kept) as (provider, host, _):
        packet = provider.packet("77", number)
        assert packet is not None
        assert read_packet(packet, "lsst")[0].source_id == number
        bad = [
            None,
            7,
            {"r:diaSourceId": 1.7e17},
            {"candid": True, "candidate": {}},
            {"candid": "x", "candidate": None},
        ]
        host.first.append((200, bad if name == "fink" else {"data": bad}, {}))
        assert provider.packet("78", 170_000_000_000_000_000) is None
