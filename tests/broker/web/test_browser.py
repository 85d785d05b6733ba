"""The page in a real browser, on a running stack: a simulated sky, hostile ids. One stack and one browser for all."""

import contextlib
import csv
import io
import json
import re
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from browser_tools import (
    FILM,
    MARKS,
    MODEL,
    Reader,
    Stack,
    an_object,
    epoch_of,
    holds,
    names,
    open_object,
    start_stack,
    visit,
)  # fmt: skip
from PIL import Image
from process_tools import until
from stream_tools import settings_for
from web_tools import news, page_of
from ztf_sky import alerts, named

from skyheed.broker import app as daemon
from skyheed.broker.kafka import client as kafka
from skyheed.broker.local import embedded
from skyheed.broker.results import formats
from skyheed.broker.web import recompute
from skyheed.broker.work import history_of
from skyheed.classifier.serving import load
from skyheed.classifier.sky import simulate

pytestmark = MARKS
HERE = Path(__file__).parent
AXE = HERE / "vendor" / "axe-core-4.14.1" / "axe.min.js"
HOSTILE = [
    "<script>window.hacked=1</script>", '"><img src=x onerror=window.hacked=1>', "../../etc/passwd", "..", "%2e%2e%2f",
    "x" * 150, "\u05e9\u05dc\u05d5\u05dd", "~tilde", "a/b?c#d&e", "{{7*7}}",
]  # fmt: skip
EPOCHS, OBJECTS = 24, 6


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
    if found["epochs"]["mag"][-1] is not None:
        holds(page, "document.querySelector('#epoch-title').textContent.endsWith(' mag')")
    assert page.evaluate(NUMBERS_AT_THE_LEFT), "magnitudes have an axis too"
    for kind in ("difference", "template"):
        switch = page.locator(f"input[value={kind}]")
        assert switch.is_enabled() == bool(found["images"].get(kind))
        if switch.is_enabled():
            changed_by(page.locator("label", has=switch).click)


NUMBERS_AT_THE_LEFT = """() => {
  const canvas = document.querySelector('#light canvas');
  const { data } = canvas.getContext('2d').getImageData(0, 0, 44, canvas.height);
  return data.some((value, n) => n % 4 === 3 && value > 0);
}"""
POINTS = """async (path) => {
  const [{ points, unitOf }, { Axis }] = [await import('/static/rows.js'), await import('/static/timeline.js')];
  const data = await (await fetch(path)).json();
  const axis = new Axis(data.epochs.mjd, data.photometry.mjd);
  axis.mode = 'even';
  const made = points(data, axis, unitOf('flux', data.epochs.flux)).filter((p) => p.kind !== 'limit');
  return made.map((p) => [p.band, p.mjd ?? data.epochs.mjd[p.epoch]]);
}"""


def test_no_detection_is_drawn_twice(reader: Reader, stack: Stack) -> None:
    """Once with its stamp, and once as a later packet tells of it."""
    found = an_object(stack)
    page = open_object(reader, stack, found)
    points = page.evaluate(POINTS, f"/api/v1/objects/{found['path']}")
    assert len(points) >= len(found["epochs"]["mjd"])
    for band in "gri":
        times = np.sort([mjd for name, mjd in points if name == band])
        assert (np.diff(times) > 1e-4).all(), band


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
    page.get_by_role("button", name="switch everything on").click()
    page.get_by_text("as published.").wait_for()
    page.locator("#film").focus()
    page.keyboard.press("x")
    page.get_by_text("without 1 stamp,").wait_for()


def test_recomputed_and_published_are_never_mixed(reader: Reader, stack: Stack) -> None:
    found = an_object(stack)
    page = open_object(reader, stack, found)
    label = page.locator("#classes .label span")
    assert label.all_inner_texts() == ["as published"]
    values = page.locator("#classes .values")
    assert values.inner_text(), "what was published stands next to the panel"
    held: list[Any] = []
    page.route("**/prefixes*", lambda route: held.append(route))
    with page.expect_request("**/prefixes*"):
        page.get_by_text("recomputed now", exact=True).click()
    assert values.all_inner_texts() == [""], "nothing that was published, while it is recomputed"
    held.pop().continue_()
    holds(page, "document.querySelector('#panel').dataset.source === 'recomputed'")
    assert label.all_inner_texts() == ["recomputed now"]
    page.get_by_text("Recomputed now, it has been").wait_for()
    assert values.inner_text()
    page.get_by_role("button", name="show the influence of each stamp").click()
    page.locator("#influence-row").wait_for()
    page.get_by_role("button", name="Which pixels matter?").click()
    page.get_by_text("pixels that are evidence for").wait_for()
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
    away = "Redis is unavailable: stamps and fluxes come back with it"

    def without_epochs(route: Any) -> None:
        body = route.fetch().text()
        data = json.loads(re.search(r'id="data">(.*?)</script>', body, re.S).group(1))  # type: ignore[union-attr]
        data |= {"epochs": None, "images": {}, "photometry": None, "source": "index", "notice": away}
        data["latest"] = dict.fromkeys(data["latest"])
        said = json.dumps(data).replace("<", "\\u003c")
        route.fulfill(body=re.sub(r'(id="data">).*?(</script>)', lambda m: m[1] + said + m[2], body, flags=re.S), content_type="text/html")  # fmt: skip  # noqa: E501

    page = reader.open("about:blank")
    page.route("**/object/*", without_epochs)
    visit(page, f"{stack.url}/object/{found['path']}")
    assert away in page.locator("#message").inner_text()
    assert page.locator("#panel").is_hidden()
    [row] = found["rows"]
    said = page.locator("#models tbody tr").inner_text().split()
    assert (said[0], said[-2:]) == ("convention", [f"{row['top_probability']:.2f}", str(row["n_stamps"])])
    assert f"{row['top_probability']:.2f}" in page.locator("#now").inner_text()
    assert page.locator("#whatif").is_hidden()


def test_a_declined_object_says_why(reader: Reader, stack: Stack) -> None:
    page = reader.open(f"{stack.url}/object/too-few")
    assert "declined" in page.locator("#now").inner_text()
    assert "stamps" in page.locator("#now").inner_text()


# --- lists, live, status ----------------------------------------------------------------------------------------------


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


def test_an_object_page_says_that_there_is_more_and_shows_it_on_a_click(reader: Reader, stack: Stack) -> None:
    stack.classify([named("grows", n) for n in range(1, 4)])
    page = reader.open(f"{stack.url}/object/grows")
    stack.classify([named("grows", 4)])
    told = "document.dispatchEvent(new CustomEvent('state', { detail: { redis: { ok: true } } }))"
    page.evaluate(f"for (let n = 0; n < 6; n += 1) {told}")
    assert page.locator("#film").get_attribute("aria-valuemax") == "3", "nothing moves by itself"
    page.get_by_role("button", name="1 more epoch since: show").click()
    holds(page, "document.querySelector('#film').getAttribute('aria-valuemax') === '4'")


def test_a_restart_of_the_server_loses_no_row(reader: Reader, stack: Stack) -> None:
    reader.expected = "ERR_|Failed to load"  # while the server is unavailable
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


def test_status_tells_of_books_models_and_dead_letters(reader: Reader, stack: Stack) -> None:
    page = reader.open(f"{stack.url}/status")
    assert "The books balance." in page.locator("#books").inner_text()
    assert "ConvEntion" in page.locator("#models").inner_text() or "convention" in page.locator("#models").inner_text()
    page.locator("#dead button").first.click()
    page.locator("#letter pre").wait_for()
    assert "6e 6f 20 70" in page.locator("#letter pre").inner_text(), "the packet's own bytes"
    assert downloaded(page, page.get_by_role("link", name="the whole packet")) == b"no packet at all"


def test_the_sky_and_the_examples_of_the_api(reader: Reader, stack: Stack) -> None:
    page = reader.open(f"{stack.url}/sky")
    assert page.locator("#sky circle").count() > 0
    page = reader.open(f"{stack.url}/api")
    page.get_by_text("what-if").first.click()
    assert "-d '{" in page.locator("details[open] pre").first.inner_text()


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


def test_hostile_labels_are_text(reader: Reader, stack: Stack, tmp_path: Path) -> None:
    """Of classes, models and their versions, as a worker of somebody else's may publish them."""
    reader.expected = "404"  # there are no stamps
    bad = '<img src=x onerror="window.hacked=1"> \u202e{{7*7}}'
    made = news("ztf", "labelled", 5, model=bad)
    parts = tuple(replace(part, name=f"{n}{bad}") for n, part in enumerate(made.probabilities))
    provenance = replace(made.provenance, model_name=bad, model_version=bad, weights_digest=bad, preprocessing=bad)
    hostile = replace(made, probabilities=parts, provenance=provenance)
    own = settings_for(
        stack.settings.kafka["bootstrap.servers"], stack.settings.redis.url, "ztf", "labels",
        **{"topics.classifications": "labels-classifications"},
    )  # fmt: skip
    kafka.ensure_topics(own.kafka, {"labels-classifications": {}}, 3, 1)
    with kafka.Publisher(own.kafka) as publisher:
        publisher.publish_all([("labels-classifications", b"labelled", formats.encode(hostile), None)])
    with page_of(own, tmp_path) as client:
        until(lambda: client.get("api/v1/state").json()["index"]["objects"] == 1, 60, "the index")
        page = reader.open("about:blank")
        for path in ("", "objects?model=*", "object/labelled", "sky", "status", "api"):
            visit(page, f"{client.base_url}{path}")
            assert path == "api" or bad in page.locator("body").text_content(), path
            assert page.evaluate("window.hacked") is None
        page.close()  # it asks on


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


def looks_right(
    reader: Reader, stack: Stack, paths: Sequence[str], size: str, scheme: str, unfolded: bool = False
) -> None:
    """Nothing serious for axe, nothing wider than the screen, nothing that jumps."""
    reader.expected = "404" if "/object/none" in paths else ""
    page = reader.open(f"{stack.url}/login", size, scheme)
    for path in paths:
        where = f"/object/{an_object(stack)['path']}" if path == "an object" else path
        visit(page, f"{stack.url}{where}")
        page.wait_for_timeout(300)  # images come in this time
        shifted = page.evaluate("window.shifted")
        if unfolded:
            page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
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
    looks_right(reader, stack, PATHS, size, scheme, unfolded=True)


# --- what a reader takes along ----------------------------------------------------------------------------------------


def downloaded(page: Any, link: Any) -> bytes:
    """What a click on a link saves."""
    with page.expect_download() as waiting:
        link.click()
    return Path(waiting.value.path()).read_bytes()


def test_every_download_holds_what_its_link_says(reader: Reader, stack: Stack) -> None:
    found = an_object(stack)
    epochs, images = found["epochs"], found["images"]
    page = open_object(reader, stack, found)
    links = page.locator("#more-body p.links a")
    texts = links.all_inner_texts()
    got = {text: downloaded(page, links.nth(n)) for n, text in enumerate(texts)}
    assert json.loads(got.pop("JSON"))["object_id"] == found["object_id"]
    lines = list(csv.DictReader(got.pop("light curve (CSV)").decode().splitlines()))
    assert [line["source_id"] for line in lines if line["source_id"]] == epochs["source_id"]
    with np.load(io.BytesIO(got.pop("stamps (NPZ)"))) as archive:
        assert {f"stamps_{kind}" for kind in images} <= set(archive)
        assert archive["stamps_science"].shape == (len(epochs["mjd"]), 32, 32)
        science = archive["stamps_science"]
    with fits.open(io.BytesIO(got.pop("stamps (FITS cubes)"))) as parts:
        assert {kind: len(parts[kind.upper()].data) for kind in images} == {k: len(n) for k, n in images.items()}
        assert (parts["SCIENCE"].data == science.astype(np.float32)).all()
    for kind, shown in images.items():
        film = Image.open(io.BytesIO(got.pop(f"{kind} film (GIF)")))
        assert (film.n_frames, film.size) == (len(shown), (128, 128))
        strip = Image.open(io.BytesIO(got.pop(f"{kind} strip (PNG)")))
        assert strip.size[1] == 96
    assert not got, "every link is looked at"
    facts = page.locator("#epoch-body dl")
    picture = Image.open(io.BytesIO(downloaded(page, facts.get_by_role("link", name="PNG"))))
    assert picture.size == (256, 256)
    with fits.open(io.BytesIO(downloaded(page, facts.get_by_role("link", name="FITS")))) as parts:
        assert (parts[0].data == science[-1].astype(np.float32)).all()
        place = WCS(parts[0].header, fix=False)
        assert np.allclose(proj_plane_pixel_scales(place) * 3600, found["stamp"]["pixel_arcsec"])
        assert np.allclose(place.wcs_pix2world([[16, 16]], 0)[0], [epochs["ra"][-1], epochs["dec"][-1]], atol=1e-5)


def test_copy_buttons_copy(reader: Reader, stack: Stack) -> None:
    found = an_object(stack)
    page = open_object(reader, stack, found)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=stack.url)
    ra, dec = found["sexagesimal"]["ra"], found["sexagesimal"]["dec"]
    wanted = {
        "Copy position, sexagesimal": f"{ra} {dec}",
        "Copy position in degrees": f"{found['ra']:.5f} {found['dec']:.5f}",
        "Copy source id": found["epochs"]["source_id"][-1],
    }
    for name, text in wanted.items():
        page.get_by_role("button", name=name).click()
        holds(page, "async text => await navigator.clipboard.readText() === text", text)


class _EnoughError(Exception):
    """Of a stream that does not end."""


def test_every_example_of_the_api_runs(
    reader: Reader, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("requests")
    page = reader.open(f"{stack.url}/api")
    codes = page.locator("details[data-operation]").evaluate_all(
        "all => all.map(d => [d.dataset.operation, ...[...d.querySelectorAll('pre')].map(pre => pre.textContent)])"
    )
    own = visit(page, f"{stack.url}/object/{an_object(stack)['path']}").locator("#more-body pre").all_text_contents()
    assert {name for name, _, _ in codes} == {
        f"{method} {path}" for path, methods in stack.get("/api/v1/openapi.json")["paths"].items() for method in methods
    }
    monkeypatch.chdir(tmp_path)
    for name, curl, python in [*codes, ("an object's page", own[1], own[0])]:
        endless = name.endswith("/events")
        limits = "--max-time 2" if endless else "--fail --max-time 60"
        ran = subprocess.run(f"{curl} {limits}", shell=True, capture_output=True, timeout=90)
        assert ran.returncode == (28 if endless else 0), (name, curl, ran.stderr)
        assert ran.stdout or list(tmp_path.iterdir()), curl
        said: list[str] = []

        def say(*words: object, said: list[str] = said, endless: bool = endless) -> None:
            said.append(" ".join(map(str, words)))
            if endless:
                raise _EnoughError

        with contextlib.suppress(_EnoughError):
            exec(python, {"print": say})
        assert said or "open(" in python, python


def test_without_torch_the_page_says_what_is_missing_and_shows_the_rest(
    reader: Reader, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of a model whose card is not on this server it shows what was published."""
    reader.expected = "503"
    monkeypatch.setattr(recompute, "_torch_is_there", lambda: False)
    found = an_object(stack)
    with page_of(stack.settings, tmp_path) as client:
        url = str(client.base_url)
        until(lambda: client.get("api/v1/state").json()["index"]["classifications"] > 0, 60, "the index")
        page = reader.open(f"{url}object/{found['path']}")
        assert "torch is not installed here" in page.locator("#whatif-body").inner_text()
        values = page.locator(f".row[data-model={MODEL}] .values div")
        holds(page, f"document.querySelectorAll('.row[data-model={MODEL}] .values div').length > 1")
        latest = sorted((p["probability"] for p in found["latest"][MODEL]["probabilities"]), reverse=True)
        assert [text.split()[-1] for text in values.all_inner_texts()] == [f"{p:.2f}" for p in latest]
        page.get_by_text("recomputed now", exact=True).click()
        page.locator("#classes .note").get_by_text("torch is not installed here").first.wait_for()
        visit(page, f"{url}status")
        assert "torch is not installed here" in page.locator("#parts").inner_text()
        page.close()  # it asks on


def test_a_token_opens_the_page_and_stands_in_no_example(reader: Reader, stack: Stack, tmp_path: Path) -> None:
    reader.expected = "401|403"
    token = "a-token-of-more-than-16-characters"
    with page_of(stack.settings, tmp_path, token=token) as client:
        page = reader.open(f"{client.base_url}status")
        field = page.get_by_label("Token")
        field.fill("wrong")
        field.press("Enter")
        page.get_by_text("That is not the token.").wait_for()
        field.fill(token)
        field.press("Enter")
        page.wait_for_url(str(client.base_url))
        page.wait_for_selector("body[data-ready]")
        holds(page, "document.body.dataset.stream === 'open'")
        visit(page, f"{client.base_url}api")
        codes = page.locator("details[data-operation] pre").all_text_contents()
        assert codes
        assert all("$TOKEN" in code or 'os.environ["TOKEN"]' in code for code in codes)
        assert token not in page.content()
        page.close()  # it asks on
