"""Who may see the page, and what happens to it while servers, tokens, clients and models misbehave."""

import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import redis as redis_py
from astropy.io import fits
from click.testing import CliRunner
from state_tools import answer
from test_page_api import API, eventually, routes
from web_tools import keep, page_of, page_settings, publish_news

from skyheed.broker import cli, serve
from skyheed.broker.errors import ConfigError
from skyheed.broker.local import embedded
from skyheed.broker.packets.surveys import links
from skyheed.broker.settings import Settings
from skyheed.broker.state import client as state
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.keys import Keys, shard_of
from skyheed.broker.state.queue import DueQueue
from skyheed.broker.state.sequence import Lane
from skyheed.broker.web import images, openapi, positions, recompute
from skyheed.broker.web.guard import COSTLY_BURST, Rates
from skyheed.broker.web.problems import Problem
from skyheed.broker.web.recompute import Pool, Task
from skyheed.classifier.history import History

TOKEN = "a-token-for-the-tests-0123456789"
PAGES = ("/", "/objects", "/sky", "/status", "/api", "/login", "/object/a")
pytestmark = [pytest.mark.kafka, pytest.mark.redis]


@pytest.fixture(scope="module")
def settings(kafka: embedded.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A stream that the tests add objects to."""
    with embedded.start_valkey() as valkey:
        made = page_settings(kafka.address, valkey, tmp_path_factory.mktemp("model"))
        publish_news(made, {"a": 4, "b": 4})
        keep(made, {"a": 4, "b": 4})
        yield made


def objects(client: httpx.Client) -> set[str]:
    return {row["object_id"] for row in client.get(f"{API}/objects").json()["rows"]}


def stream_of(url: str, last: str | None = None, query: str = "", stop: Any = None) -> tuple[list[dict[str, Any]], str]:
    """Rows of the stream until `stop` is true of them, and the last event's id."""
    headers = {"Last-Event-ID": last} if last is not None else {}
    rows: list[dict[str, Any]] = []
    id_ = last or ""
    deadline = time.monotonic() + 180
    with httpx.stream("GET", f"{url}{API[1:]}/events{query}", headers=headers, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        kind = ""
        for line in answer.iter_lines():
            got = [row["object_id"] for row in rows]
            assert time.monotonic() < deadline, f"since {last!r} {query}: {got} until {id_!r}, the last line {line!r}"
            name, _, value = line.partition(": ")
            if name == "id":
                id_ = value
            elif name == "event":
                kind = value
            elif name == "data" and kind == "classifications":
                rows += json.loads(value)["rows"]
            elif not line and stop(rows, id_):
                return rows, id_
    return rows, id_


class TestStream:
    def test_a_reader_that_comes_back_misses_nothing_also_over_a_restart(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        with page_of(settings, tmp_path) as client:
            eventually(lambda: objects(client) >= {"a", "b"})
            url = str(client.base_url)
            first = client.get(f"{API}/classifications").json()["last_event_id"]
            everything, second = stream_of(url, "", stop=lambda rows, _: len(rows) >= 2)
            assert {row["object_id"] for row in everything} == {"a", "b"}
            assert second == first, "ids say the same place"
            assert stream_of(url, first, stop=lambda _rows, id_: True)[0] == []
            publish_news(settings, {"c": 5})
            eventually(lambda: "c" in objects(client))
        publish_news(settings, {"d": 5})  # while the page is not there
        with page_of(settings, tmp_path) as client:
            url = str(client.base_url)
            rows, third = stream_of(url, first, stop=lambda rows, _: len(rows) >= 2)
            assert [row["object_id"] for row in rows] == ["c", "d"]
            live: list[str] = []

            def read() -> None:
                found, _ = stream_of(url, third, "?min_epochs=6", stop=lambda rows, _: len(rows) >= 1)
                live.extend(row["object_id"] for row in found)

            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            publish_news(settings, {"e": 4, "f": 6})
            reader.join(60)
            assert live == ["f"], "filters hold in the stream"

    def test_an_index_that_is_made_anew_repeats_nothing_to_a_reader(self, settings: Settings, tmp_path: Path) -> None:
        with page_of(settings, tmp_path) as client:
            before = eventually(lambda: (found := objects(client)) >= {"a", "b"} and found)
            eventually(lambda: client.get(f"{API}/state").json()["index"]["behind"] == 0)
            last = client.get(f"{API}/classifications").json()["last_event_id"]
        for file in tmp_path.glob("index.sqlite*"):
            file.unlink()
        publish_news(settings, {"g": 4})
        with page_of(settings, tmp_path) as client:
            rows, _ = stream_of(str(client.base_url), last, stop=lambda rows, _: len(rows) >= 1)
            assert [row["object_id"] for row in rows] == ["g"]
            assert eventually(lambda: objects(client) == before | {"g"}), "the topics have all of it"

    def test_a_strange_place_to_go_on_from(self, settings: Settings, tmp_path: Path) -> None:
        with page_of(settings, tmp_path) as client:
            with client.stream("GET", f"{API}/events", headers={"Last-Event-ID": "x"}) as answer:
                lines = answer.iter_lines()
                assert any(line == "event: gap" for _, line in zip(range(10), lines, strict=False))
            assert client.get(f"{API}/events", headers={"Last-Event-ID": "y" * 20_000}).status_code == 422

    def test_a_damaged_index_is_made_anew(self, settings: Settings, tmp_path: Path) -> None:
        ours = b"SQLite format 3\x00".ljust(68, b"\x00") + b"skyh"
        (tmp_path / "index.sqlite").write_bytes(ours + b"no database at all" * 1000)
        with page_of(settings, tmp_path) as client:
            eventually(lambda: objects(client) >= {"a", "b"})


class TestAway:
    def test_redis_away_and_back(self, kafka: embedded.Server, durable_valkey: embedded.Server, tmp_path: Path) -> None:
        settings = page_settings(kafka.address, durable_valkey, tmp_path / "model")
        publish_news(settings, {"a": 4})
        keep(settings, {"a": 4})
        with page_of(settings, tmp_path) as client:
            eventually(lambda: objects(client) == {"a"})
            durable_valkey.kill()
            eventually(lambda: not client.get(f"{API}/state").json()["redis"]["ok"])
            found = client.get(f"{API}/objects/a").json()
            assert found["source"] == "index"
            assert found["epochs"] is None
            assert "unavailable" in found["notice"]
            assert client.get(f"{API}/objects/b").status_code == 503
            assert client.get(f"{API}/objects/a/stamps.npz").status_code == 503
            assert client.get(f"{API}/objects/a/light-curve.csv").headers["retry-after"] == "5"
            assert objects(client) == {"a"}
            for path in ("/", "/objects", "/status", "/object/a"):
                assert client.get(path, headers={"accept": "text/html"}).status_code == 200, path
            assert client.get(f"{API}/status").json()["notices"]
            durable_valkey.restart()
            eventually(lambda: client.get(f"{API}/state").json()["redis"]["ok"])
            assert client.get(f"{API}/objects/a").json()["source"] == "redis"

    def test_kafka_away_from_the_start(self, valkey: embedded.Server, tmp_path: Path) -> None:
        settings = page_settings("127.0.0.1:9", valkey, tmp_path / "model")
        with page_of(settings, tmp_path) as client:
            found = eventually(lambda: (s := client.get(f"{API}/state").json())["kafka"]["ok"] or s)
            assert found["kafka"]["ok"] is False
            assert "127.0.0.1:9" in found["kafka"]["sentence"]
            assert client.get("/", headers={"accept": "text/html"}).status_code == 200
            assert client.get("/status", headers={"accept": "text/html"}).status_code == 200


class TestReplay:
    def test_a_replayed_night_has_its_surveys_camera_links_and_models(
        self, kafka: embedded.Server, valkey: embedded.Server, tmp_path: Path
    ) -> None:
        settings = page_settings(kafka.address, valkey, tmp_path / "model", survey="sdss.night20")
        publish_news(settings, {"a": 4, "b": 5})
        keep(settings, {"a": 4, "b": 5})
        with page_of(settings, tmp_path) as client:
            eventually(lambda: objects(client) == {"a", "b"})
            found = client.get(f"{API}/objects/a").json()
            assert found["stamp"]["pixel_arcsec"] == 0.396
            assert {link["name"] for link in found["links"]} >= {"SIMBAD", "Legacy Survey"}
            assert found["models"][0]["recompute"] is True
            assert client.get(f"{API}/objects?min_epochs=5&model=test").json()["count"] == 1
            assert [row["object_id"] for row in client.get(f"{API}/objects?q=b").json()["rows"]] == ["b"]
            with fits.open(io.BytesIO(client.get(f"{API}/objects/a/stamps/1.fits").content)) as parts:
                assert parts[0].header["CTYPE1"] == "RA---TAN"
            assert client.get("/object/a", headers={"accept": "text/html"}).status_code == 200

    @pytest.mark.parametrize("survey", ["ztf", "lsst"])
    def test_other_brokers_have_the_object_of_a_replay_as_well(self, survey: str) -> None:
        live, replayed = (positions.links(name, "ZTF18abc", 10.0, 0.5) for name in (survey, f"{survey}.night20"))
        assert live == replayed
        assert {link["name"] for link in live} >= {"ALeRCE", "Fink", "Lasair", "Babamul"}
        assert links.pixel_arcsec(f"{survey}.night20") == links.pixel_arcsec(survey) is not None


class TestWho:
    def test_a_token_opens_the_page(self, settings: Settings, tmp_path: Path) -> None:
        with page_of(settings, tmp_path, token=TOKEN) as client:
            assert client.get(f"{API}/state").status_code == 401
            assert client.get(f"{API}/state", headers={"authorization": "Bearer wrong"}).status_code == 401
            assert client.get(f"{API}/state", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
            redirect = client.get("/", headers={"accept": "text/html"})
            assert (redirect.status_code, redirect.headers["location"]) == (303, "/login")
            assert client.get("/login", headers={"accept": "text/html"}).status_code == 200
            refused = client.post("/login", data={"token": "wrong"})
            assert refused.status_code == 403
            assert "That is not the token" in refused.text
            for away in ("//evil.example", "https://evil.example", "/\\evil", "/\r\nx: y"):
                assert client.post("/login", data={"token": TOKEN, "next": away}).headers["location"] == "/"
            client.cookies.clear()
            opened = client.post("/login", data={"token": TOKEN, "next": "/status"})
            assert opened.headers["location"] == "/status"
            cookie = opened.headers["set-cookie"]
            assert "httponly" in cookie.lower()
            assert "samesite=strict" in cookie.lower()
            assert TOKEN not in cookie
            page = client.get("/status", headers={"accept": "text/html"})
            assert page.status_code == 200
            assert TOKEN not in page.text
            assert " data-token" in page.text

    def test_no_answer_tells_a_secret(self, kafka: embedded.Server, tmp_path: Path) -> None:
        secret = "hush-hush-0123456789"
        with embedded.start_valkey() as valkey:
            with redis_py.Redis.from_url(valkey.url) as admin:
                admin.config_set("requirepass", secret)
            with_password = SimpleNamespace(url=valkey.url.replace("redis://", f"redis://:{secret}@"))
            settings = page_settings(kafka.address, with_password, tmp_path / "model")
            publish_news(settings, {"a": 4})
            keep(settings, {"a": 4})
            with page_of(settings, tmp_path, token=TOKEN) as client:
                client.headers["authorization"] = f"Bearer {TOKEN}"
                eventually(lambda: objects(client) == {"a"})
                assert client.get(f"{API}/objects/a").json()["source"] == "redis"
                urls = [*routes(client, key="a", alert_id="a", source_id="1", place="x"), *PAGES, "/nothing"]
                self._tells_nothing(client, urls, secret)
                valkey.stop()
                eventually(lambda: not client.get(f"{API}/state").json()["redis"]["ok"])
                self._tells_nothing(client, urls, secret)

    @staticmethod
    def _tells_nothing(client: httpx.Client, urls: list[str], secret: str) -> None:
        for url in urls:
            for accept in ("text/html", "application/json"):
                answer = client.get(url, headers={"accept": accept})
                said = answer.content + str(answer.headers).encode()
                assert secret.encode() not in said, url
                assert TOKEN.encode() not in said, url

    def test_other_addresses_need_a_token(self) -> None:
        for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
            with pytest.raises(ConfigError, match="--token-file"):
                serve.check(serve.Options(host=host))
            serve.check(serve.Options(host=host, token=TOKEN))
        for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
            serve.check(serve.Options(host=host))

    def test_the_verb_refuses_before_it_starts(self, tmp_path: Path) -> None:
        short = tmp_path / "token"
        short.write_text("short\n")
        words = ["serve", "--survey", "sdss", "--kafka", "127.0.0.1:9", "--host", "0.0.0.0"]
        refused = CliRunner().invoke(cli.skyheed, words)
        assert isinstance(refused.exception, ConfigError)
        refused = CliRunner().invoke(cli.skyheed, [*words, "--token-file", str(short)])
        assert "fewer than 16" in str(refused.exception)

    def test_a_port_that_is_taken(self, settings: Settings, tmp_path: Path) -> None:
        with page_of(settings, tmp_path) as client:
            port = client.base_url.port
            chosen = serve.Options(port=port or 0, index=tmp_path / "other.sqlite")
            with pytest.raises(ConfigError, match="choose another"), serve.serving(settings, chosen):
                pass

    def test_too_many_requests(self, settings: Settings, tmp_path: Path) -> None:
        with page_of(settings, tmp_path, limits=True) as client:
            # many at a time: on a busy machine single ones are slow enough to be within the limit
            with ThreadPoolExecutor(8) as several:
                answers = list(several.map(client.get, [f"{API}/objects/nobody/prefixes"] * int(4 * COSTLY_BURST)))
            assert {answer.status_code for answer in answers} == {404, 429}
            refused = next(answer for answer in answers if answer.status_code == 429)
            assert int(refused.headers.get("retry-after", 0)) >= 1
            assert client.get(f"{API}/state").status_code == 200, "other requests have a limit of their own"

    def test_rates_remember_a_bounded_number_of_clients(self) -> None:
        rates = Rates(1.0, 1.0)
        for n in range(20_000):
            assert rates.take(f"10.0.{n // 256}.{n % 256}") == 0
        assert len(rates._clients) <= 10_000


class TestPool:
    def test_without_torch_the_rest_works(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(recompute, "_torch_is_there", lambda: False)
        with page_of(settings, tmp_path) as client:
            eventually(lambda: objects(client) >= {"a", "b"})
            said = client.get(f"{API}/state").json()["recompute"]
            assert said["ok"] is False
            assert "torch" in said["sentence"]
            refused = client.get(f"{API}/objects/a/prefixes")
            assert refused.status_code == 503
            assert "torch is not installed" in refused.json()["detail"]
            assert client.get("/object/a", headers={"accept": "text/html"}).status_code == 200

    def test_a_computation_that_takes_too_long_is_ended_and_the_next_one_works(self, settings: Settings) -> None:
        pytest.importorskip("torch")
        history = History(np.arange(40.0), np.zeros(40, np.uint8), {"science": np.zeros((40, 32, 32), np.float16)})
        task = Task("prefixes", "", history, {})
        pool = Pool(settings, limit_s=0.001)
        try:
            with pytest.raises(Problem, match="longer than") as late:
                pool.run(task)
            assert late.value.status == 504
            pool._limit_s = 60
            assert len(pool.run(task)["prefixes"]) == 40
        finally:
            pool.close()

    def test_only_so_many_wait(self, settings: Settings) -> None:
        pool = Pool(settings, processes=1, limit_s=0.2)
        if pool.missing:
            pytest.skip(pool.missing)
        task = Task("prefixes", "", History(np.arange(1.0), np.zeros(1, np.uint8)), {})
        busy = pool._free.get()
        began = time.monotonic()
        refused: list[Problem] = []

        def ask() -> None:
            with pytest.raises(Problem) as problem:
                pool.run(task)
            refused.append(problem.value)

        readers = [threading.Thread(target=ask) for _ in range(40)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert {problem.status for problem in refused} == {429}
        assert time.monotonic() - began < 20
        pool._free.put(busy)


class TestImagesThatAreNotKept:
    def test_everything_else_is_shown(self, settings: Settings, tmp_path: Path) -> None:
        keep(settings, {"faded": 5}, "alerts/1")
        publish_news(settings, {"faded": 5})
        with redis_py.Redis.from_url(settings.redis.url) as redis, page_of(settings, tmp_path) as client:
            eventually(lambda: "faded" in objects(client))
            assert client.get(f"{API}/objects/faded").json()["images_missing"] == 0
            shard = shard_of("faded", settings.redis.shards)
            assert redis.delete(f"{Keys(settings.survey).shard(shard)}stamps:faded") == 1
            found = client.get(f"{API}/objects/faded").json()
            openapi.Object.model_validate(found)
            assert len(found["epochs"]["mjd"]) == found["images_missing"] == 5
            assert found["images"] == {}
            assert client.get("/object/faded", headers={"accept": "text/html"}).status_code == 200
            assert len(client.get(f"{API}/objects/faded/light-curve.csv").text.splitlines()) == 6
            assert "stamps_science" not in np.load(io.BytesIO(client.get(f"{API}/objects/faded/stamps.npz").content))
            source = found["epochs"]["source_id"][0]
            for part in ("strip.png", "stamps.gif", "stamps.fits", "atlas/science", f"stamps/{source}.png"):
                refused = client.get(f"{API}/objects/faded/{part}")
                assert refused.status_code == 404, part
                assert "not kept any more" in refused.json()["detail"]
            if Pool(settings, 0).missing:
                return
            refused = client.get(f"{API}/objects/faded/prefixes")
            assert refused.status_code == 422
            assert "the images of this object are not kept any more" in refused.json()["detail"]

    @pytest.mark.parametrize("later", [0, 2])
    def test_what_every_model_has_seen(self, settings: Settings, tmp_path: Path, later: int) -> None:
        """`redis.keep_pixels = "until-seen"`, before and after further epochs come."""
        name, lane = f"seen-{later}", Lane("seer", "1", 1)
        store = SequenceStore(state.connect(settings.redis.url), settings.survey, debounce_s=0.0, until_seen=True)
        store.join("seer", sees={"seer": lane.sees})
        keep(settings, {name: 3}, f"alerts/{name}")
        queue = DueQueue(state.connect(settings.redis.url), settings.survey, model="seer")
        found = [s for s in store.fetch(queue.claim(99, 60.0), lane) if s.object_id == name]
        store.settle([answer(s, tokens=dict.fromkeys(range(3), b"seen")) for s in found], lane)
        store.retire("seer")
        keep(settings, {name: 3 + later}, f"alerts/{name}-later")
        publish_news(settings, {name: 3})
        with page_of(settings, tmp_path) as client:
            eventually(lambda: name in objects(client))
            found = client.get(f"{API}/objects/{name}").json()
            openapi.Object.model_validate(found)
            assert (len(found["epochs"]["mjd"]), found["images_missing"]) == (3 + later, 3)
            assert found["images"] == ({"science": [3, 4]} if later else {})
            assert client.get(f"/object/{name}", headers={"accept": "text/html"}).status_code == 200
            arrays = np.load(io.BytesIO(client.get(f"{API}/objects/{name}/stamps.npz").content))
            assert len(arrays["mjd"]) == 3 + later
            status = [
                client.get(f"{API}/objects/{name}/{part}").status_code
                for part in ("strip.png", "stamps.gif", "stamps.fits", "atlas/science")
            ]
            assert status == [200 if later else 404] * 4
            gone = client.get(f"{API}/objects/{name}/stamps/{found['epochs']['source_id'][0]}.png")
            assert gone.status_code == 404
            if not Pool(settings, 0).missing:
                refused = client.get(f"{API}/objects/{name}/prefixes")
                assert refused.status_code == 422
                assert "not kept any more" in refused.json()["detail"]

    def test_a_light_curve_that_is_gone_is_not_promised_for_later(self, settings: Settings, tmp_path: Path) -> None:
        publish_news(settings, {"published-only": 4})
        with page_of(settings, tmp_path) as client:
            eventually(lambda: "published-only" in objects(client))
            gone = client.get(f"{API}/objects/published-only/light-curve.csv")
            assert (gone.status_code, "retry-after" in gone.headers) == (404, False)
            assert "no longer has this object's history" in gone.json()["detail"]

    def test_some_epochs_have_theirs(self) -> None:
        stamps = np.arange(2 * 32 * 32, dtype=np.float16).reshape(2, 32, 32)
        history = History(np.arange(5.0), np.zeros(5, np.uint8), {"science": stamps}, shown=np.array([1, 4]))
        assert images.missing(history) == 3
        epochs, pixels = images.of_kind(history, "science")
        assert epochs.tolist() == [1, 4]
        assert (pixels == stamps).all()
        assert json.loads(images.atlas(history, "science", 1)[4:].split(b"}")[0] + b"}")["source_id"] == ["1", "4"]
        assert "3 of its 5 epochs" in images.without(images.missing(history), len(history))
