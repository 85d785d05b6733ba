"""The page in a real browser, on a running stack: a simulated sky, hostile ids, real ZTF packets where there are some.

One stack and one browser for all of them. Every context fails on a request to another host, on a script error and on
anything that the content security policy refused.
"""

import contextlib
import csv
import json
import re
import shutil
import signal
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from process_tools import Program, until
from real_data import ztf_files
from stream_tools import answers, publish, settings_for
from web_tools import keep, page_of, page_settings, publish_news
from ztf_sky import alerts, named

from skyheed.broker import app as daemon
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings
from skyheed.broker.work import history_of
from skyheed.classifier.serving import load
from skyheed.classifier.sky import simulate

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright for Python: pip install '.[dev]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.kafka, pytest.mark.redis,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the PATH (Debian: apt install chromium)"),
]  # fmt: skip

HERE = Path(__file__).parent
AXE = HERE / "vendor" / "axe-core-4.14.1" / "axe.min.js"
HOSTILE = [
    "<script>window.hacked=1</script>", '"><img src=x onerror=window.hacked=1>', "../../etc/passwd", "..", "%2e%2e%2f",
    "x" * 150, "\u05e9\u05dc\u05d5\u05dd", "~tilde", "a/b?c#d&e", "{{7*7}}",
]  # fmt: skip
EPOCHS, OBJECTS = 24, 6
MODEL = "convention"  # declines what has fewer than three stamps, whatever a survey's default is
WAIT_MS = 20_000
SIZES = {"wide": (1440, 900), "middle": (1024, 800), "phone": (390, 844)}


@dataclass
class Stack:
    """A survey's stream, and the page of it."""

    settings: Settings
    topic: str
    folder: Path
    port: int
    words: Sequence[str]
    index: Sequence[str]
    runs: list[Program] = field(default_factory=list)
    sent: int = 0

    @contextlib.contextmanager
    def streaming(self) -> Iterator["Stack"]:
        """With ingest and worker running."""
        publish(self.settings, self.topic, [], partitions=2)
        ingest = Program(self.folder / "ingest", "ingest", *self.words, "--debounce", "0")
        work = Program(self.folder / "work", "work", *self.words)
        try:
            yield self
        finally:
            for run in (ingest, work):
                run.process.send_signal(signal.SIGTERM)
            for run in (ingest, work):
                run.process.wait(30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """The page, on the same port every time."""
        run = Program(
            self.folder / f"serve{len(self.runs)}", "serve", *self.words, *self.index, "--port", str(self.port)
        )
        self.runs.append(run)
        until(lambda: self._answers() or run.process.poll() is not None, 60, run.said)
        assert run.process.poll() is None, run.said

    def _answers(self) -> bool:
        try:
            with fetched(f"{self.url}/api/v1/state") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        run = self.runs[-1]
        run.process.send_signal(signal.SIGTERM)
        run.process.wait(30)

    def classify(self, packets: Sequence[bytes]) -> None:
        """Through Kafka, ingest and worker; returns when nothing is pending."""
        self.sent += publish(self.settings, self.topic, packets, partitions=2)
        ledger = daemon.connect_store(self.settings)[2]
        until(lambda: ledger.books().consumed >= self.sent and ledger.books().pending == 0, 90, "classifying")

    def get(self, path: str) -> Any:
        with fetched(f"{self.url}{path}") as answer:
            return json.load(answer)

    def indexed(self) -> None:
        """Wait until the page has read all that has been published."""
        wanted = len(answers(self.settings))
        until(lambda: self.get("/api/v1/state")["index"]["classifications"] >= wanted, 30, "the index")


def fetched(url: str) -> Any:
    return urllib.request.urlopen(url, timeout=10)


def start_stack(
    survey: str, kafka: embedded.Server, redis: embedded.Server, folder: Path, topic: str = "page-simulated",
    models: Sequence[str] = (MODEL,),
) -> Stack:  # fmt: skip
    settings = settings_for(
        kafka.address, redis.url, survey, topic, **{"topics.classifications": f"{topic}-classifications"}
    )
    file = folder / "page.toml"
    file.write_text(
        f'[topics]\nclassifications = "{topic}-classifications"\n[ingest]\ntopics = ["{topic}"]\n'
        + "".join(f'[[work.models]]\nmodel = "{survey}/{model}"\nname = "{model}"\n' for model in models)
    )
    words = ["--survey", survey, "--kafka", kafka.address, "--redis", redis.url, "--config", str(file)]
    index = ["--index", str(folder / "index.sqlite")]
    return Stack(settings, topic, folder, embedded.free_port(), words, index)


@pytest.fixture(scope="module")
def page_redis() -> Iterator[embedded.Server]:
    with embedded.start_valkey() as server:
        yield server


@pytest.fixture(scope="module")
def stack(
    kafka: embedded.Server, page_redis: embedded.Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    made = start_stack("ztf", kafka, page_redis, tmp_path_factory.mktemp("page"))
    with made.streaming():
        made.start()
        fill(made)
        made.indexed()
        yield made
        made.stop()


def fill(made: Stack) -> None:
    packets = simulated(made.folder / "sky")
    for part in np.array_split(np.arange(len(packets)), 5):
        made.classify([packets[n] for n in part])
    hostile = [named(name, n) for name in HOSTILE for n in range(1, 4)]
    made.classify([*hostile, named("too-few", 1), b"no packet at all"])


def simulated(folder: Path) -> list[bytes]:
    """The first alerts of some simulated objects, in the order of time."""
    simulate("ztf", OBJECTS, 8, folder, seasons=1, balanced=True, most=EPOCHS)
    return alerts(folder, EPOCHS)


# --- the browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    cut = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", cut])
        yield running
        running.close()


@dataclass
class Reader:
    """Somebody who opens pages; what went wrong in their browser is kept."""

    browser: Any
    wrong: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)
    expected: str = ""  # what may go wrong in this test

    def open(self, url: str, size: str = "wide", scheme: str = "light") -> Any:
        width, height = SIZES[size]
        context = self.browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        page.on("request", self._asked)
        page.add_init_script(SHIFTS)
        return visit(page, url) if url != "about:blank" else page

    def _asked(self, request: Any) -> None:
        host = urllib.parse.urlsplit(request.url).hostname
        if request.url.startswith("http") and host != "127.0.0.1":
            self.foreign.append(request.url)


def visit(page: Any, url: str) -> Any:
    """Go on to another page."""
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    return page


SHIFTS = """
window.shifted = 0;
new PerformanceObserver((list) => { for (const e of list.getEntries()) window.shifted += e.value; })
  .observe({ type: "layout-shift", buffered: true });
"""


@pytest.fixture
def reader(browser: Any) -> Iterator[Reader]:
    made = Reader(browser)
    yield made
    for context in made.contexts:
        context.close()
    assert not made.foreign, "the page asked another host"
    assert not [said for said in made.wrong if not made.expected or not re.search(made.expected, said)]


def an_object(stack: Stack) -> dict[str, Any]:
    """The whole answer about a simulated object with all its epochs."""
    rows = stack.get("/api/v1/objects?q=ztf-sim&sort=epochs&declined=no&limit=50")["rows"]
    return dict(stack.get(f"/api/v1/objects/{rows[0]['path']}"))


def open_object(reader: Reader, stack: Stack, found: dict[str, Any], size: str = "wide") -> Any:
    page = reader.open(f"{stack.url}/object/{found['path']}", size)
    holds(page, "document.querySelector('#film').getAttribute('aria-valuetext')")
    return page


def holds(page: Any, expression: str, argument: object = None) -> None:
    """Poll until it is true in the page; Playwright's own wait evaluates text, which our policy forbids."""
    until(lambda: page.evaluate(expression, argument), WAIT_MS / 1000, expression)


def epoch_of(page: Any) -> int:
    return int(page.locator("#film").get_attribute("aria-valuenow"))


# --- the object page --------------------------------------------------------------------------------------------------


def test_hover_keys_and_play_move_one_epoch_through_all_rows(reader: Reader, stack: Stack) -> None:
    found = an_object(stack)
    n = len(found["epochs"]["mjd"])
    page = open_object(reader, stack, found)
    assert epoch_of(page) == n, "the newest epoch is shown first"
    box = page.locator("#film").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + box["height"] / 2)
    holds(page, "Number(document.querySelector('#film').getAttribute('aria-valuenow')) < 4")
    hovered = epoch_of(page)
    assert f"Epoch {hovered} " in page.locator("#epoch-title").inner_text()
    places = page.locator(".cursor").evaluate_all("all => all.map(c => Math.round(c.getBoundingClientRect().x))")
    assert len(places) == 2
    assert len(set(places)) == 1, "the cursors of light curve and classes stand in one line"
    page.mouse.move(5, 5)
    holds(page, f"document.querySelector('#film').getAttribute('aria-valuenow') == '{n}'")
    page.locator("#film").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    holds(page, f"document.querySelector('#film').getAttribute('aria-valuenow') == '{n - 2}'")
    pinned = urllib.parse.parse_qs(urllib.parse.urlsplit(page.url).query)["epoch"]
    assert pinned == [found["epochs"]["source_id"][n - 3]]
    page.reload()
    holds(page, f"document.querySelector('#film').getAttribute('aria-valuenow') == '{n - 2}'")
    page.locator("#film").press("Home")
    page.get_by_role("button", name="play").click()
    holds(page, "Number(document.querySelector('#film').getAttribute('aria-valuenow')) >= 4")


def test_an_object_page_is_light(reader: Reader, stack: Stack) -> None:
    page = reader.open("about:blank")
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    sizes: list[float] = []
    network.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    found = an_object(stack)
    visit(page, f"{stack.url}/object/{found['path']}")
    holds(page, f"() => ({FILM})() !== ''")
    page.wait_for_load_state("networkidle")
    stamps = 2048 * len(found["epochs"]["mjd"])
    assert sum(sizes) - stamps < 400_000 - 99 * 2048, "with 99 epochs it would be more than 400 kB"


def test_stamps_answer_to_kind_stretch_and_axis(reader: Reader, stack: Stack) -> None:
    found = an_object(stack)
    page = open_object(reader, stack, found)
    holds(page, f"({FILM})() !== ''")

    def changed_by(action: Callable[[], object]) -> None:
        before = page.evaluate(FILM)
        action()
        holds(page, f"before => ({FILM})() !== before", before)

    page.wait_for_timeout(300)
    changed_by(lambda: page.get_by_label("stretch").select_option("linear"))
    changed_by(lambda: page.get_by_label("cuts").select_option("5-98"))
    changed_by(lambda: page.get_by_text("by epoch", exact=True).click())
    changed_by(lambda: page.get_by_role("button", name="Zoom in").click())
    page.get_by_role("group", name="Unit of the light curve").get_by_text("mag").click()
    assert "Magnitude" in page.locator("#light-label").inner_text()
    for kind in ("difference", "template"):
        switch = page.locator(f"input[value={kind}]")
        assert switch.is_enabled() == bool(found["images"].get(kind))
        if switch.is_enabled():
            changed_by(page.locator("label", has=switch).click)


FILM = "() => document.querySelector('#film canvas').toDataURL()"


def test_what_if_is_what_the_worker_says_of_the_reduced_history(reader: Reader, stack: Stack) -> None:
    found = an_object(stack)
    page = open_object(reader, stack, found)
    band = found["epochs"]["band"][0]
    page.get_by_role("group", name="bands that the model sees").get_by_label(band, exact=True).uncheck()
    said = page.locator("#whatif-said")
    said.wait_for()
    store, _, _ = daemon.connect_store(stack.settings)
    history = history_of(store.sequence(found["object_id"]), "ztf")
    keep = np.flatnonzero(np.array(found["epochs"]["band"]) != band)
    [expected] = load(Path(f"ztf/{MODEL}"), survey="ztf", threads=1).classify([history.take(keep)])
    left = f"from {len(keep)} epochs"
    assert left in said.inner_text()
    shown = page.locator(".compare > span:nth-of-type(3n + 2)").all_inner_texts()
    assert shown == [f"{p:.2f}" for p in expected.probabilities]
    page.get_by_role("button", name="all on again").click()
    page.get_by_text("as published.").wait_for()
    page.locator("#film").focus()
    page.keyboard.press("x")
    page.get_by_text("without 1 stamp,").wait_for()


def test_recomputed_and_published_are_never_mixed(reader: Reader, stack: Stack) -> None:
    found = an_object(stack)
    page = open_object(reader, stack, found)
    label = page.locator("#classes .label span")
    assert label.all_inner_texts() == ["as published"]
    page.get_by_text("recomputed now", exact=True).click()
    holds(page, "document.querySelector('#panel').dataset.source === 'recomputed'")
    assert label.all_inner_texts() == ["recomputed now"]
    page.get_by_text("Recomputed now, it has been").wait_for()
    page.get_by_role("button", name="show the influence of each stamp").click()
    page.locator("#influence-row").wait_for()
    page.get_by_role("button", name="What in this stamp carries it?").click()
    page.get_by_text("pixels that speak for").wait_for()
    page.get_by_text("as published", exact=True).first.click()
    assert label.all_inner_texts() == ["as published"]


def test_on_a_phone_a_finger_moves_the_strip_under_the_cursor(reader: Reader, stack: Stack) -> None:
    page = open_object(reader, stack, an_object(stack), "phone")
    page.locator("#film").press("Home")
    holds(page, "document.querySelector('#film').getAttribute('aria-valuenow') == '1'")
    cursor = "() => Math.round(document.querySelector('.cursor').getBoundingClientRect().x)"
    before = page.evaluate(cursor)
    middle = page.evaluate("() => { const r = document.querySelector('#light .u-over').getBoundingClientRect(); return r.x + r.width / 2; }")  # fmt: skip  # noqa: E501
    assert abs(before - middle) < 3, "the cursor stands in the middle"
    page.evaluate(FINGER, -60)
    holds(page, "Number(document.querySelector('#film').getAttribute('aria-valuenow')) > 1")
    assert abs(page.evaluate(cursor) - middle) < 3, "and is still there"


FINGER = """(by) => {
  const film = document.querySelector('#film canvas');
  const { x, y } = film.getBoundingClientRect();
  const send = (type, dx) => film.dispatchEvent(new PointerEvent(type, {
    bubbles: true, pointerType: 'touch', clientX: x + 200 + dx, clientY: y + 20 }));
  send('pointerdown', 0);
  for (let n = 1; n <= 10; n += 1) send('pointermove', (by * n) / 10);
  send('pointerup', by);
}"""


def test_without_redis_the_object_page_keeps_what_was_published(reader: Reader, stack: Stack) -> None:
    found = an_object(stack)
    away = "Redis is away: stamps and fluxes come back with it"

    def without_epochs(route: Any) -> None:
        body = route.fetch().text()
        data = json.loads(re.search(r'id="data">(.*?)</script>', body, re.S).group(1))  # type: ignore[union-attr]
        data |= {"epochs": None, "images": {}, "photometry": None, "source": "index", "notice": away}
        said = json.dumps(data).replace("<", "\\u003c")
        route.fulfill(body=re.sub(r'(id="data">).*?(</script>)', lambda m: m[1] + said + m[2], body, flags=re.S), content_type="text/html")  # fmt: skip  # noqa: E501

    page = reader.open("about:blank")
    page.route("**/object/*", without_epochs)
    visit(page, f"{stack.url}/object/{found['path']}")
    assert away in page.locator("#message").inner_text()
    assert page.locator("#panel").is_hidden()
    assert "convention" in page.locator("#models").inner_text()


def test_a_declined_object_says_why(reader: Reader, stack: Stack) -> None:
    page = reader.open(f"{stack.url}/object/too-few")
    assert "declined" in page.locator("#now").inner_text()
    assert "stamps" in page.locator("#now").inner_text()


# --- lists, live, status ----------------------------------------------------------------------------------------------


def names(page: Any) -> list[str]:
    return list(page.locator("#rows tbody th").all_inner_texts())


def test_search_by_id_part_and_position(reader: Reader, stack: Stack) -> None:
    found = an_object(stack)
    page = reader.open(f"{stack.url}/objects")
    field_ = page.locator("#filters [name=q]")
    for text in (
        found["object_id"], found["object_id"][4:], f"{found['ra']} {found['dec']} 5",
        f"{found['sexagesimal']['ra']} {found['sexagesimal']['dec']} 5",
    ):  # fmt: skip
        field_.fill(text)
        holds(page, f"new URL(location.href).searchParams.get('q') === {json.dumps(text)}")
        holds(page, "document.querySelectorAll('#rows tbody tr').length === 1")
        assert names(page) == [found["object_id"]]
    field_.fill("there-is-none")
    page.locator("#empty").wait_for()
    field_.blur()
    page.locator("body").press("/")
    page.keyboard.type(found["object_id"])
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/object/{found['path']}")


def test_filters_sort_and_export_show_the_same(reader: Reader, stack: Stack) -> None:
    page = reader.open(f"{stack.url}/objects?min_epochs=4&declined=no")
    assert page.locator("[name=min_epochs]").input_value() == "4"
    assert len(names(page)) == OBJECTS
    page.get_by_role("button", name="p", exact=True).click()
    holds(page, "document.querySelector('th[aria-sort]').textContent.startsWith('p')")
    p = [float(text) for text in page.locator("#rows tbody .p").all_inner_texts()]
    assert p == sorted(p, reverse=True)
    with page.expect_download() as waiting:
        page.get_by_role("link", name="CSV").click()
    rows = list(csv.DictReader(Path(waiting.value.path()).read_text().splitlines()))
    assert [row["object_id"] for row in rows] == names(page)
    with page.expect_download() as waiting:
        page.get_by_role("link", name="JSON").click()
    listed = json.loads(Path(waiting.value.path()).read_text())["rows"]
    assert [row["object_id"] for row in listed] == names(page)
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Parquet").click()
    table = pq.read_table(waiting.value.path())
    assert table["object_id"].to_pylist() == names(page)
    assert [f"{value:.2f}" for value in table["top_probability"].to_pylist()] == [f"{value:.2f}" for value in p]


def test_the_live_page_filters_pauses_and_goes_on(reader: Reader, stack: Stack) -> None:
    page = reader.open(f"{stack.url}/")
    holds(page, "document.body.dataset.stream === 'open'")
    stack.classify([named("arrives", n) for n in range(1, 4)])
    page.get_by_role("link", name="arrives", exact=True).first.wait_for()
    page.get_by_role("button", name="Pause").click()
    stack.classify([named("waits", n) for n in range(1, 4)])
    page.get_by_text("1 row waiting").wait_for()
    assert "waits" not in names(page)
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("link", name="waits", exact=True).wait_for()
    page.locator("[name=min_epochs]").fill("4")
    page.wait_for_url("**/?min_epochs=4")
    holds(page, "document.querySelectorAll('#rows tbody tr').length > 0")
    counts = [int(text) for text in page.locator("#rows tbody .epochs").all_inner_texts()]
    assert min(counts) >= 4


def test_a_restart_of_the_server_loses_no_row(reader: Reader, stack: Stack) -> None:
    reader.expected = "ERR_|Failed to load"  # while the server is away
    page = reader.open(f"{stack.url}/")
    holds(page, "document.body.dataset.stream === 'open'")
    rows = names(page)
    stack.stop()
    page.get_by_text("The connection is lost").wait_for()
    assert names(page) == rows, "what was there stays"
    stack.classify([named(f"meanwhile-{k}", n) for k in range(3) for n in range(1, 4)])
    stack.start()
    for k in range(3):
        page.get_by_role("link", name=f"meanwhile-{k}", exact=True).wait_for(timeout=40_000)
    assert len(names(page)) == len(set(names(page)) | set(rows)) or sorted(names(page)) != rows
    holds(page, "document.querySelector('#lamp').dataset.state === 'ok'")


def test_a_network_that_was_cut_loses_no_row(reader: Reader, stack: Stack) -> None:
    reader.expected = "ERR_INTERNET_DISCONNECTED|Failed to load"
    page = reader.open(f"{stack.url}/")
    holds(page, "document.body.dataset.stream === 'open'")
    rows = names(page)
    page.context.set_offline(True)
    page.get_by_text("The connection is lost").wait_for()
    assert names(page) == rows
    stack.classify([named("while-cut", n) for n in range(1, 4)])
    page.context.set_offline(False)
    page.get_by_role("link", name="while-cut", exact=True).wait_for(timeout=40_000)
    holds(page, "document.querySelector('#lamp').dataset.state === 'ok'")


@pytest.mark.long
def test_redis_and_kafka_go_and_come_back(
    reader: Reader, apache_kafka: embedded.Server, durable_valkey: embedded.Server, tmp_path: Path
) -> None:
    reader.expected = "404|503"  # the stamps of a row that Redis does not have
    settings = page_settings(apache_kafka.address, durable_valkey, tmp_path / "model")
    publish_news(settings, {"first": 4})
    keep(settings, {"first": 4})
    with page_of(settings, tmp_path) as client:
        url = str(client.base_url)
        until(lambda: client.get("api/v1/state").json()["index"]["objects"] == 1, 60, "the index")
        live = reader.open(url)
        lamp = "document.querySelector('#lamp').textContent.includes('{}')"
        durable_valkey.kill()
        holds(live, lamp.format("Redis away"))
        page = reader.open(f"{url}object/first")
        assert page.locator("#panel").is_hidden()
        assert page.locator("#message").is_visible()
        durable_valkey.restart()
        page.locator("#panel").wait_for()  # by itself
        holds(page, f"() => ({FILM})() !== ''")
        apache_kafka.kill()
        holds(live, lamp.format("Kafka away"))
        assert names(live) == ["first"], "what was there stays"
        apache_kafka.restart()
        publish_news(settings, {"second": 4})
        live.get_by_role("link", name="second", exact=True).wait_for(timeout=60_000)
        holds(live, lamp.format("up to date"))


@pytest.mark.long
def test_several_models_have_a_panel_each_and_stay_apart(
    reader: Reader, kafka: embedded.Server, durable_valkey: embedded.Server, tmp_path: Path
) -> None:
    own = start_stack("ztf", kafka, durable_valkey, tmp_path, "page-models", ("fusion", MODEL))
    with own.streaming():
        own.start()
        own.classify([named("both", n) for n in range(1, 5)])
        until(lambda: len(own.get("/api/v1/classifications?limit=50")["rows"]) >= 2, 60, "both models")
        rows = own.get("/api/v1/objects?model=*")["rows"]
        assert {row["model"] for row in rows} == {"fusion", MODEL}
        assert [row["model"] for row in own.get("/api/v1/objects")["rows"]] == ["fusion"], "the first of the settings"
        page = open_object(reader, own, own.get("/api/v1/objects/both"))
        labels = page.locator("#classes .label b")
        assert labels.all_inner_texts() == ["fusion", MODEL]
        assert page.locator("#now .chip").count() == 2
        page.get_by_text("recomputed now", exact=True).click()
        page.locator("#whatif select").first.select_option(MODEL)
        page.get_by_text("Recomputed now, it has been").wait_for()
        page.get_by_role("group", name="bands that the model sees").get_by_label("g", exact=True).uncheck()
        said = page.locator("#whatif-said")
        said.wait_for()
        assert "declined" in said.inner_text(), "two stamps are too few for this model"
        page.locator("#whatif select").first.select_option("fusion")
        holds(page, "!document.querySelector('#whatif-said').textContent.includes('declined')")
        visit(page, f"{own.url}/sky")
        page.get_by_label("classes by").select_option(MODEL)
        page.get_by_text(f"classes by {MODEL}").first.wait_for()
        page.close()  # it asks on
        own.stop()


def test_status_tells_of_books_models_and_dead_letters(reader: Reader, stack: Stack) -> None:
    page = reader.open(f"{stack.url}/status")
    assert "The books balance." in page.locator("#books").inner_text()
    assert "ConvEntion" in page.locator("#models").inner_text() or "convention" in page.locator("#models").inner_text()
    page.locator("#dead button").first.click()
    page.locator("#letter pre").wait_for()
    assert "6e 6f 20 70" in page.locator("#letter pre").inner_text(), "the packet's own bytes"


def test_the_sky_and_the_examples_of_the_api(reader: Reader, stack: Stack) -> None:
    page = reader.open(f"{stack.url}/sky")
    assert page.locator("#sky circle").count() > 0
    page = reader.open(f"{stack.url}/api")
    page.get_by_text("what-if").first.click()
    assert "curl -s -X POST" in page.locator("details[open] pre").first.inner_text()


# --- what must never happen -------------------------------------------------------------------------------------------


def test_hostile_ids_are_text(reader: Reader, stack: Stack) -> None:
    page = reader.open(f"{stack.url}/objects?max_epochs=3")
    listed = names(page)
    assert set(HOSTILE) <= set(listed)
    links = page.locator("#rows tbody th a").evaluate_all(
        "all => all.map(a => [a.textContent, a.getAttribute('href')])"
    )
    for name, href in links:
        if name not in HOSTILE:
            continue
        visit(page, f"{stack.url}{href}")
        assert page.locator("h1").inner_text() == name
        assert page.evaluate("window.hacked") is None


def test_aladin_is_loaded_on_a_click_only_and_says_so(reader: Reader, stack: Stack) -> None:
    page = open_object(reader, stack, an_object(stack))
    assert not reader.foreign
    reader.expected = "ERR_NAME_NOT_RESOLVED|aladin"
    page.get_by_role("link", name="Aladin Lite (loads from CDS)").click()
    page.get_by_text("CDS does not answer").wait_for()
    hosts = {urllib.parse.urlsplit(url).hostname for url in reader.foreign}
    assert hosts == {"aladin.cds.unistra.fr"}
    reader.foreign.clear()


PATHS = ("/", "/objects", "/sky", "/status", "/api", "/object/none", "an object")
LOOKS = [("wide", "light"), ("middle", "dark"), ("phone", "light")]


def looks_right(reader: Reader, stack: Stack, paths: Sequence[str], size: str, scheme: str) -> None:
    """Nothing serious for axe, nothing wider than the screen, nothing that jumps."""
    reader.expected = "404" if "/object/none" in paths else ""
    page = reader.open(f"{stack.url}/login", size, scheme)
    for path in paths:
        where = f"/object/{an_object(stack)['path']}" if path == "an object" else path
        visit(page, f"{stack.url}{where}")
        page.wait_for_timeout(300)  # images come in this time
        shifted = page.evaluate("window.shifted")
        page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
        serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
        assert not serious, path
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, path
        assert shifted < 0.02, f"{path} jumps by {shifted}"


@pytest.mark.parametrize("look", range(3), ids=["wide-light", "middle-dark", "phone-light"])
def test_pages_look_right(reader: Reader, stack: Stack, look: int) -> None:
    looks_right(reader, stack, [*PATHS[:-1][look::3], PATHS[-1]], *LOOKS[look])


@pytest.mark.long
@pytest.mark.parametrize(("size", "scheme"), [*LOOKS, ("wide", "dark"), ("phone", "dark")])
def test_every_page_looks_right_at_every_width(reader: Reader, stack: Stack, size: str, scheme: str) -> None:
    looks_right(reader, stack, PATHS, size, scheme)


@pytest.mark.long
def test_real_ztf_packets_are_shown(
    reader: Reader, kafka: embedded.Server, durable_valkey: embedded.Server, tmp_path: Path
) -> None:
    packets = [path.read_bytes() for path in ztf_files() if path.stat().st_size < 400_000][:12]
    own = start_stack("ztf", kafka, durable_valkey, tmp_path, "page-real")
    with own.streaming():
        own.classify(packets)
        own.start()
        own.indexed()
        rows = own.get("/api/v1/objects?limit=5")["rows"]
        page = reader.open(f"{own.url}/object/{rows[0]['path']}")
        assert page.locator("h1").inner_text() == rows[0]["object_id"]
        holds(page, f"({FILM})() !== ''")
        page.close()  # it asks on
        own.stop()
