"""The JSON API against a running stream: everything that it answers, and what it answers to what nobody should ask."""

import gzip
import io
import json
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import numpy as np
import pytest
from web_tools import HOSTILE, classify, page_of, page_settings, send

from skyheed.broker import app as daemon
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings
from skyheed.broker.web import guard, openapi
from skyheed.broker.web.object_ids import object_of, path_key
from skyheed.broker.work import history_of
from skyheed.classifier.serving import load

API = "/api/v1"
pytestmark = [pytest.mark.kafka, pytest.mark.redis]


def eventually(found: Callable[[], Any], limit_s: float = 60.0) -> Any:
    """What `found` gives once it is true."""
    deadline = time.monotonic() + limit_s
    while not (value := found()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)
    return value


@pytest.fixture(scope="module")
def stream(kafka: embedded.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Objects of several lengths, one of which is declined, and hostile ids."""
    with embedded.start_valkey() as valkey:
        settings = page_settings(kafka.address, valkey, tmp_path_factory.mktemp("model"))
        objects = {"long": range(20), "middle": range(7), "short": range(2), **dict.fromkeys(HOSTILE, range(3))}
        send(settings, objects)
        classify(settings)
        yield settings


@pytest.fixture(scope="module")
def page(stream: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with page_of(stream, tmp_path_factory.mktemp("page")) as client:
        eventually(lambda: client.get(f"{API}/state").json()["index"]["objects"] == 3 + len(HOSTILE))
        yield client


def routes(page: httpx.Client, **values: str) -> list[str]:
    """An address of every operation that is read, but for the stream; `values` are those of its parameters."""
    found = []
    for path, methods in page.get(f"{API}/openapi.json").json()["paths"].items():
        if "get" not in methods or path.endswith("/events"):
            continue
        parameters = methods["get"].get("parameters", [])
        needed = {p["name"]: values.get(p["name"]) or p["schema"]["enum"][0] for p in parameters if p.get("required")}
        query = "&".join(
            f"{p['name']}={needed[p['name']]}" for p in parameters if p["name"] in needed and p["in"] == "query"
        )
        found.append(path.format(**needed) + (f"?{query}" if query else ""))
    return found


def rows(page: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    answer = page.get(f"{API}/objects", params=query)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["rows"])


def ids(page: httpx.Client, **query: Any) -> set[str]:
    return {row["object_id"] for row in rows(page, **query)}


class TestLists:
    def test_every_object_is_listed_with_its_latest_classification(self, page: httpx.Client) -> None:
        found = {row["object_id"]: row for row in rows(page)}
        assert set(found) == {"long", "middle", "short", *HOSTILE}
        assert found["long"]["n_stamps"] == 20
        assert found["short"]["status"] == "NOT_CLASSIFIED"
        assert found["short"]["reason"] == "too_few_stamps"
        assert found["short"]["reason_text"] == "too few stamps so far"
        assert sum(found["long"]["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert isinstance(found["long"]["object_id"], str)

    def test_filters(self, page: httpx.Client) -> None:
        assert ids(page, declined="yes") == {"short"}
        assert "short" not in ids(page, declined="no")
        assert ids(page, min_epochs=5) == {"long", "middle"}
        assert ids(page, min_epochs=5, max_epochs=10) == {"middle"}
        assert ids(page, bands="ugriz", max_epochs=10) == {"middle"}
        assert ids(page, min_days=0.6) == {"long"}
        top = next(row["top_class"] for row in rows(page) if row["object_id"] == "long")
        assert "long" in ids(page, **{"class": top})
        assert ids(page, **{"class": "no such class"}) == set()
        assert ids(page, min_probability=1.0) <= ids(page)
        assert len(ids(page, cone="10,0.5,1")) == 3 + len(HOSTILE)
        assert ids(page, cone="10,0.6,1") == set()
        assert ids(page, night=54000, min_epochs=7) == {"middle"}
        assert ids(page, night=54001) == {"long"}
        assert ids(page, model="none") == set()
        assert ids(page, since_ms=4 * 10**12) == set()

    def test_search(self, page: httpx.Client) -> None:
        assert ids(page, q="long") == {"long"}
        assert ids(page, q="iddl") == {"middle"}
        assert ids(page, q="100%") == set()
        assert ids(page, q="_ong") == set(), "_ is a letter here, no wildcard"
        assert len(rows(page, q="10 0.5")) == 3 + len(HOSTILE)
        assert len(rows(page, q="00:40:00 +00:30:00 2")) == 3 + len(HOSTILE)
        assert rows(page, q="00h40m00s -00d30m00s 2") == []
        for name in HOSTILE:
            assert name in ids(page, q=name)

    def test_pages_follow_each_other_and_miss_nothing(self, page: httpx.Client) -> None:
        for sort in (
            "newest",
            "-newest",
            "probability",
            "-probability",
            "epochs",
            "id",
            "-id",
            "days",
            "first",
            "-night",
        ):
            seen: list[str] = []
            cursor: str | None = ""
            while cursor is not None:
                answer = page.get(f"{API}/objects", params={"sort": sort, "limit": 2, "cursor": cursor}).json()
                seen += [row["object_id"] for row in answer["rows"]]
                cursor = answer["next"]
            assert sorted(seen) == sorted(["long", "middle", "short", *HOSTILE]), sort

    def test_order(self, page: httpx.Client) -> None:
        counts = [row["n_stamps"] for row in rows(page, sort="epochs")]
        assert counts == sorted(counts, reverse=True)

    @pytest.mark.parametrize(
        "query",
        [
            {"limit": 0}, {"limit": 501}, {"sort": "x"}, {"cursor": "x"}, {"cursor": "WzIsIDFd"}, {"bands": "q"},
            {"cone": "1,2,3,4"}, {"cone": "nan,1,1"}, {"q": "400 10"}, {"q": "10 99"}, {"min_probability": "nan"},
            {"declined": "maybe"}, {"q": "x" * 600}, {"q": "10 10 99999"},
        ],
    )  # fmt: skip
    def test_what_makes_no_sense_is_a_problem(self, page: httpx.Client, query: dict[str, Any]) -> None:
        answer = page.get(f"{API}/objects", params=query)
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        said = answer.json()
        assert set(said) >= {"type", "title", "status", "detail"}
        assert said["status"] == 422

    def test_exports(self, page: httpx.Client) -> None:
        text = page.get(f"{API}/objects.csv").text
        lines = text.splitlines()
        assert len(lines) == 1 + 3 + len(HOSTILE)
        assert "'=1+1" in text, "no spreadsheet runs a cell"
        pq = pytest.importorskip("pyarrow.parquet")
        table = pq.read_table(io.BytesIO(page.get(f"{API}/objects.parquet").content))
        assert set(table["object_id"].to_pylist()) == {"long", "middle", "short", *HOSTILE}
        assert len(page.get(f"{API}/objects.csv", params={"declined": "yes"}).text.splitlines()) == 2
        listed = page.get(f"{API}/objects.json", params={"sort": "id"})
        assert "attachment" in listed.headers["content-disposition"]
        assert [row["object_id"] for row in listed.json()["rows"]] == sorted(["long", "middle", "short", *HOSTILE])

    def test_sky(self, page: httpx.Client) -> None:
        found = page.get(f"{API}/sky").json()
        assert found["night"] == found["nights"][0]["night"]
        assert {p["object_id"] for p in found["points"]} == {"long"}
        assert sum(night["objects"] for night in found["nights"]) == 3 + len(HOSTILE)


class TestObject:
    def test_epochs_and_what_was_published(self, page: httpx.Client, stream: Settings) -> None:
        found = page.get(f"{API}/objects/long").json()
        openapi.Object.model_validate(found)
        stored = daemon.read_store(stream)[0].sequence("long")
        assert stored is not None
        assert found["epochs"]["source_id"] == [str(s) for s in stored.header["source_id"].tolist()]
        assert found["epochs"]["mjd"] == stored.header["mjd"].tolist()
        assert found["images"] == {"science": list(range(20))}
        assert found["kind"] == "as published"
        [name] = found["published"]
        assert [line["n_stamps"] for line in found["published"][name]] == [20]
        assert found["latest"][name]["sources"] == found["epochs"]["source_id"]
        assert found["models"][0]["same_as_published"] is True
        assert found["sexagesimal"] == {"ra": "00:40:00.000", "dec": "+00:30:00.00"}
        assert {link["name"] for link in found["links"]} >= {"SIMBAD", "NED", "TNS", "Legacy Survey", "Gaia DR3"}
        assert {n["object_id"] for n in found["neighbours"]} >= {"middle", "short"}, "they are at the same place"

    def test_magnitudes(self, page: httpx.Client) -> None:
        epochs = page.get(f"{API}/objects/long").json()["epochs"]
        assert epochs["mag"][0] == pytest.approx(31.4 - 2.5 * np.log10(2e4), abs=1e-3)
        assert epochs["mag_error"][0] == pytest.approx(2.5 / np.log(10) * 100 / 2e4, abs=1e-4)

    def test_unknown(self, page: httpx.Client) -> None:
        for url in ("nobody", "nobody/atlas/science", "nobody/prefixes", "long/stamps/12.png", "~%00", "~!!"):
            assert page.get(f"{API}/objects/{url}").status_code in (404, 422)

    @pytest.mark.parametrize("name", HOSTILE)
    def test_hostile_ids(self, page: httpx.Client, name: str) -> None:
        key = path_key(name)
        assert object_of(key) == name
        for url in (f"{API}/objects/{key}", f"/alerts/{key}"):
            answer = page.get(url)
            assert answer.status_code == 200, (url, answer.text)
        assert page.get(f"{API}/objects/{key}").json()["object_id"] == name
        html = page.get(f"/object/{key}", headers={"accept": "text/html"})
        assert html.status_code == 200
        for dangerous in ("<script>alert", "<img src=x", "onerror=alert(1)>"):
            assert dangerous not in html.text
        assert "set-cookie" not in {header.lower() for header in html.headers}
        download = page.get(f"{API}/objects/{key}/stamps.npz")
        disposition = download.headers["content-disposition"]
        assert all(c not in disposition.partition("filename=")[2].strip('"') for c in "/\\<>\"'")

    def test_hostile_lists(self, page: httpx.Client) -> None:
        for url in (
            "/",
            "/objects",
            "/sky",
            "/status",
            "/api",
            f"/objects?q={quote(HOSTILE[0])}&class={quote(HOSTILE[0])}",
        ):
            html = page.get(url, headers={"accept": "text/html"}, follow_redirects=True)
            assert html.status_code == 200, (url, html.text[:500])
            assert "<script>alert" not in html.text
            assert "<img src=x" not in html.text

    @pytest.mark.parametrize("name", ["\x00", "a\u202eb", "\x1b]0;x\x07", "a\r\nSet-Cookie: x=1", "%", "y" * 900])
    def test_ids_that_no_packet_brings(self, page: httpx.Client, name: str) -> None:
        for url in (f"{API}/objects/{path_key(name)}", f"{API}/objects/{quote(name, safe='')}"):
            answer = page.get(url)
            assert answer.status_code in (404, 422)
            assert "set-cookie" not in answer.headers
        assert page.get(f"{API}/objects", params={"q": name}).status_code in (200, 422)

    def test_atlas(self, page: httpx.Client, stream: Settings) -> None:
        raw = page.get(f"{API}/objects/long/atlas/science").content
        [length] = struct.unpack("<I", raw[:4])
        head = json.loads(raw[4 : 4 + length])
        assert (4 + length) % 8 == 0
        pixels = np.frombuffer(raw[4 + length :], "<f2").reshape(head["shape"])
        stored = daemon.read_store(stream)[0].sequence("long")
        assert stored is not None
        assert (pixels == stored.stamps).all()
        assert head["source_id"] == [str(s) for s in stored.header["source_id"].tolist()]
        assert page.get(f"{API}/objects/long/atlas/difference").status_code == 404

    def test_files(self, page: httpx.Client, stream: Settings) -> None:
        from astropy.io import fits
        from PIL import Image

        stored = daemon.read_store(stream)[0].sequence("long")
        assert stored is not None
        with np.load(io.BytesIO(page.get(f"{API}/objects/long/stamps.npz").content)) as archive:
            assert (archive["stamps_science"] == stored.stamps).all()
            assert (archive["mjd"] == stored.header["mjd"]).all()
        with fits.open(io.BytesIO(page.get(f"{API}/objects/long/stamps.fits").content)) as parts:
            assert (parts["SCIENCE"].data == stored.stamps.astype(np.float32)).all()
            assert (parts["SCIENCE_EPOCHS"].data["MJD"] == stored.header["mjd"]).all()
        source = stored.header["source_id"][4]
        with fits.open(io.BytesIO(page.get(f"{API}/objects/long/stamps/{source}.fits").content)) as parts:
            assert (parts[0].data == stored.stamps[4].astype(np.float32)).all()
            assert parts[0].header["CRPIX1"] == 17
        picture = page.get(f"{API}/objects/long/stamps/{source}.png", params={"scale": 4, "stretch": "asinh"})
        image = np.array(Image.open(io.BytesIO(picture.content)))
        assert image.shape == (128, 128)
        y, x = np.unravel_index(np.argmax(stored.stamps[4]), (32, 32))
        assert image[4 * (31 - y), 4 * x] == 0, "light is dark, the first row is the north"
        gif = Image.open(io.BytesIO(page.get(f"{API}/objects/long/stamps.gif").content))
        assert gif.n_frames == 20
        strip = Image.open(io.BytesIO(page.get(f"{API}/objects/long/strip.png?last=3").content))
        assert strip.size == (3 * 32 + 2, 32)
        assert len(page.get(f"{API}/objects/long/light-curve.csv").text.splitlines()) == 21

    def test_pictures_have_limits(self, page: httpx.Client) -> None:
        for query in ("scale=1000", "low=99&high=1", "stretch=x", "kind=x", "last=1000", "bands=q", "low=nan"):
            assert page.get(f"{API}/objects/long/strip.png?{query}").status_code == 422


class TestRecomputed:
    @pytest.fixture(autouse=True)
    def _torch(self) -> None:
        pytest.importorskip("torch")

    def test_the_last_prefix_is_what_was_published(self, page: httpx.Client) -> None:
        found = page.get(f"{API}/objects/long/prefixes").json()
        openapi.Prefixes.model_validate(found)
        assert found["kind"] == "recomputed"
        assert [row["epochs"] for row in found["prefixes"]] == list(range(1, 21))
        assert found["prefixes"][0]["status"] == "NOT_CLASSIFIED"
        published = page.get(f"{API}/objects/long").json()["latest"]
        [latest] = published.values()
        said = {p["name"]: p["probability"] for p in latest["probabilities"]}
        assert found["prefixes"][-1]["probabilities"] == pytest.approx(said, abs=2e-5)

    @pytest.mark.parametrize(
        "off",
        [
            {"sources": [0, 7, 19]}, {"nights": [54000]}, {"bands": ["g", "r"]}, {},
            {"sources": [3], "bands": ["u"], "nights": [54001], "kinds": ["photometry", "context", "difference"]},
        ],
    )  # fmt: skip
    def test_what_if_is_the_workers_classification_of_the_reduced_history(
        self, page: httpx.Client, stream: Settings, off: dict[str, Any]
    ) -> None:
        stored = daemon.read_store(stream)[0].sequence("long")
        assert stored is not None
        history = history_of(stored, "sdss")
        sources = [str(history.source_id[n]) for n in off.get("sources", [])]
        body = {"off": {**off, "sources": sources}}
        for _ in range(2):  # the second time with what was kept
            found = page.post(f"{API}/objects/long/what-if", json=body).json()
            openapi.WhatIf.model_validate(found)
            keep = [
                n
                for n in range(len(history))
                if str(history.source_id[n]) not in sources
                and int(history.mjd[n]) not in off.get("nights", [])
                and "ugrizy"[history.band[n]] not in off.get("bands", [])
            ]
            model = load(stream.work.model, survey="sdss", device="cpu", precision="float32", threads=1)
            [expected] = model.predict([history.take(np.array(keep))])
            assert found["epochs"] == len(keep)
            got = [found["reduced"]["probabilities"][name] for name in model.classes]
            assert got == pytest.approx(expected.probabilities.tolist(), abs=2e-6)

    def test_influence_is_what_leaving_out_changes(self, page: httpx.Client) -> None:
        found = page.get(f"{API}/objects/long/influence").json()
        openapi.Influence.model_validate(found)
        assert len(found["influence"]) == 20
        one = found["influence"][5]
        body = {"off": {"sources": [one["source_id"]]}}
        change = page.post(f"{API}/objects/long/what-if", json=body).json()["change"]
        assert one["log_odds"] == pytest.approx(-change[found["class"]], abs=2e-3)
        other = next(name for name in found["whole"]["probabilities"] if name != found["class"])
        switched = page.get(f"{API}/objects/long/influence", params={"class": other}).json()
        assert switched["class"] == other

    def test_leaving_out_may_leave_too_few(self, page: httpx.Client) -> None:
        key = path_key(HOSTILE[0])
        found = page.get(f"{API}/objects/{key}/influence").json()
        assert [row["reason"] for row in found["influence"]] == ["too_few_stamps"] * 3
        declined = page.get(f"{API}/objects/short/influence")
        assert declined.status_code == 422
        assert "too few stamps" in declined.json()["detail"]

    def test_saliency(self, page: httpx.Client) -> None:
        source = page.get(f"{API}/objects/long").json()["epochs"]["source_id"][2]
        found = page.get(f"{API}/objects/long/saliency", params={"source_id": source}).json()
        openapi.Saliency.model_validate(found)
        grid = np.array(found["maps"]["science"])
        assert grid.shape == (32, 32)
        assert np.abs(grid).max() > 0

    @pytest.mark.parametrize(
        "body",
        [
            {"off": {"kinds": ["science"]}}, {"off": {"bands": list("ugriz")}}, {"off": {"x": 1}}, {"off": 3}, [],
            {"model": "y" * 300}, {"off": {"sources": ["1"] * 2000}},
        ],
    )  # fmt: skip
    def test_what_cannot_be(self, page: httpx.Client, body: Any) -> None:
        answer = page.post(f"{API}/objects/long/what-if", json=body)
        assert answer.status_code == 422
        assert answer.json()["detail"][0].isalpha()

    def test_another_model(self, page: httpx.Client) -> None:
        assert page.get(f"{API}/objects/long/prefixes?model=none").status_code == 404
        assert page.get(f"{API}/objects/long/influence?class=none").status_code == 422


class TestHttp:
    def test_etag_and_gzip(self, page: httpx.Client) -> None:
        first = page.get(f"{API}/objects/long")
        assert first.headers["content-encoding"] == "gzip"
        again = page.get(f"{API}/objects/long", headers={"if-none-match": first.headers["etag"]})
        assert again.status_code == 304
        assert again.content == b""
        plain = page.get(f"{API}/objects/long", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.json() == first.json()
        for refusal in ("gzip;q=0", "br, GZIP; q=0.0 , identity"):
            refused = page.get(f"{API}/objects/long", headers={"accept-encoding": refusal})
            assert "content-encoding" not in refused.headers, refusal
        for wish in ("gzip;q=0.5", "gzip;q=1, *;q=0"):
            assert (
                page.get(f"{API}/objects/long", headers={"accept-encoding": wish}).headers["content-encoding"] == "gzip"
            )

    def test_every_answer_has_an_etag_and_large_json_is_compressed(self, page: httpx.Client) -> None:
        source = page.get(f"{API}/objects/long").json()["epochs"]["source_id"][4]
        asked = routes(page, key="long", alert_id="long", source_id=source, place="none")
        assert len(asked) >= 20
        for url in asked:
            answer = page.get(url)
            if "dead-letters" in url:
                assert answer.status_code == 404, "there is none"
                continue
            assert answer.status_code in ((200, 503) if "torch" in answer.text else (200,)), (url, answer.text[:300])
            if answer.status_code != 200:
                continue
            again = page.get(url, headers={"if-none-match": answer.headers["etag"]})
            # of what has changed meanwhile (a time, a duration) there is another one
            assert again.status_code == 304 or again.headers["etag"] != answer.headers["etag"], url
            plain = answer.headers["content-type"] == "application/json" and len(answer.content) > 1000
            assert not plain or answer.headers["content-encoding"] == "gzip", url
            refused = page.put(url)
            assert (refused.status_code, refused.headers["content-type"]) == (405, "application/problem+json")
            assert "read-only" in refused.json()["detail"]

    def test_a_page_of_20_epochs_is_small(self, page: httpx.Client) -> None:
        raw = page.get("/object/long", headers={"accept": "text/html"}).content
        assert len(gzip.compress(raw)) < 20_000

    def test_security_headers(self, page: httpx.Client) -> None:
        answer = page.get("/", headers={"accept": "text/html"})
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
        assert "aladin" not in policy

    def test_scripts_of_others_only_where_they_were_asked_for(self, page: httpx.Client) -> None:
        assert "aladin" in page.get("/object/long?aladin=1").headers["content-security-policy"]
        assert "aladin" not in page.get("/?aladin=1").headers["content-security-policy"]

    @pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil:80", "[::2]"])
    def test_another_name_is_refused(self, page: httpx.Client, host: str) -> None:
        assert page.get("/", headers={"host": host}).status_code == 421

    @pytest.mark.parametrize("host", ["localhost", "localhost:80", "LOCALHOST", "[::1]:80", "127.0.0.1"])
    def test_our_names(self, page: httpx.Client, host: str) -> None:
        assert page.get(f"{API}/state", headers={"host": host}).status_code == 200

    def test_read_only(self, page: httpx.Client) -> None:
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            assert page.request(method, f"{API}/objects/long").status_code == 405
        assert page.post(f"{API}/objects").status_code == 405

    def test_sizes(self, page: httpx.Client) -> None:
        assert page.post(f"{API}/objects/long/what-if", content=b"x" * 70_000).status_code == 413
        assert page.get(f"{API}/objects?q={'x' * 9_000}").status_code == 414
        many = ",".join(f"topic-{n}@0123456789abcdef/0:12345" for n in range(400))  # of a survey with many models
        query = urlencode({"last_event_id": many})
        assert len(query) > guard.LONGEST_URL
        with page.stream("GET", f"{API}/events?{query}") as stream:
            assert stream.status_code == 200
            assert not any(line == "event: gap" for _, line in zip(range(3), stream.iter_lines(), strict=False))
        assert page.get(f"{API}/events?last_event_id={'x' * guard.LONGEST_STREAM_URL}").status_code == 414

    def test_head_is_get_without_its_body(self, page: httpx.Client) -> None:
        for url in (f"{API}/objects/long", f"{API}/openapi.json", "/", "/static/live.js", "/alerts", f"{API}/events"):
            head = page.head(url, headers={"accept": "text/html" if url == "/" else "application/json"})
            assert (head.status_code, head.content) == (200, b""), url
            assert head.headers["content-security-policy"]
        plain = {"accept-encoding": "identity"}
        head, full = (page.request(method, f"{API}/objects/long", headers=plain) for method in ("HEAD", "GET"))
        assert int(head.headers["content-length"]) == len(full.content)
        assert head.headers["etag"] == full.headers["etag"]
        again = page.head(f"{API}/objects/long", headers={"if-none-match": f'"other", {full.headers["etag"]}'})
        assert again.status_code == 304
        assert page.head(f"{API}/objects/nobody").status_code == 404
        for method in ("OPTIONS", "PUT"):
            assert page.request(method, "/").headers["allow"] == "GET, HEAD, POST"

    def test_files_stay_in_their_folder(self, page: httpx.Client) -> None:
        for path in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "....//app.py", "/etc/passwd", "vendor/../../app.py"):
            assert page.get(f"/static/{path}").status_code in (404, 405)

    def test_unknown_pages(self, page: httpx.Client) -> None:
        html = page.get("/nothing", headers={"accept": "text/html"})
        assert html.status_code == 404
        assert "text/html" in html.headers["content-type"]
        assert page.get("/object/nobody", headers={"accept": "text/html"}).status_code == 404
        assert page.get(f"{API}/nothing").headers["content-type"] == "application/problem+json"

    def test_no_secret_in_any_answer(self, page: httpx.Client, stream: Settings) -> None:
        urls = [f"{API}/{name}" for name in ("state", "status", "models", "books", "openapi.json")]
        for url in [*urls, "/status"]:
            text = page.get(url).text
            assert "password" not in text.lower()
            assert stream.redis.url not in text


class TestStatus:
    def test_books(self, page: httpx.Client) -> None:
        found = page.get(f"{API}/status").json()
        openapi.Status.model_validate(found)
        assert found["notices"] == []
        assert found["books"]["balanced"] is True
        counts = {entry["name"]: entry["count"] for entry in found["books"]["explained"]}
        assert counts["consumed"] == counts["stored"] == 29 + 3 * len(HOSTILE)
        assert found["shares"][0]["counts"]
        assert sum(hour["classified"] + hour["declined"] for hour in found["throughput"]) == 3 + len(HOSTILE)
        assert found["latency_ms"]["n"] == 3 + len(HOSTILE)
        assert found["due"] == []
        assert all(entry["messages"] == 0 for entry in found["lag"])

    def test_drift(self, page: httpx.Client) -> None:
        found = eventually(lambda: page.get(f"{API}/status").json()["drift"])
        newest = [entry for entry in found if entry["night"] == 54001]
        assert {entry["band"] for entry in newest} == set("ugriz")
        for entry in newest:
            assert entry["flux"]["p50"] == pytest.approx(2e4)
            assert entry["background"]["p50"] == pytest.approx(1.0, rel=0.3), (
                "100 nJy per pixel, which is the stamps' unit"
            )
            assert 3 < entry["width"] < 7, "a Gaussian with sigma 2 pixels has 4.7"
        reference = page.get(f"{API}/status").json()["drift_reference"]
        assert reference["bands"] is None
        assert "does not describe its training data" in reference["sentence"], "of a card without these numbers"

    def test_models(self, page: httpx.Client) -> None:
        found = page.get(f"{API}/models").json()
        openapi.Models.model_validate(found)
        assert found["models"][0]["title"] == "test-sdss"
        assert found["models"][0]["needs"]["fewest"] == 3

    def test_state(self, page: httpx.Client) -> None:
        openapi.State.model_validate(page.get(f"{API}/state").json())

    def test_skyportal_reads_alerts(self, page: httpx.Client) -> None:
        # as broker_apis/generic.py of SkyPortal does: GET base_url/alerts with whatever parameters, unwrap data
        listed = page.get("/alerts", params={"objectId": "long", "page": 1, "numPerPage": 10}).json()["data"]
        assert [alert["objectId"] for alert in listed] == ["long"]
        assert len(page.get("/alerts", params={"ra": 10, "dec": 0.5, "radius": 2}).json()["data"]) == 3 + len(HOSTILE)
        for half in ({"ra": 10}, {"dec": 0.5, "radius": 2}):
            refused = page.get("/alerts", params=half)
            assert (refused.status_code, "belong together" in refused.json()["detail"]) == (422, True)
        one = page.get(f"/alerts/{listed[0]['id']}").json()["data"]
        assert one["objectId"] == "long"
        assert len(one["epochs"]["mjd"]) == 20
