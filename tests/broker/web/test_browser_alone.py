"""The page in a real browser, with streams of its own: servers that go, several models, real packets."""

from pathlib import Path

import pytest
from browser_tools import FILM, MARKS, MODEL, Reader, holds, names, open_object, start_stack, visit
from process_tools import until
from real_data import ztf_files
from web_tools import keep, page_of, page_settings, publish_news
from ztf_sky import named

from skyheed.broker.local import embedded

pytestmark = MARKS


@pytest.mark.long
def test_redis_and_kafka_go_and_come_back(
    reader: Reader, apache_kafka: embedded.Server, durable_valkey: embedded.Server, tmp_path: Path
) -> None:
    reader.expected = "404|503|ERR_CONNECTION_REFUSED"  # the stamps of a row that Redis does not have
    settings = page_settings(apache_kafka.address, durable_valkey, tmp_path / "model")
    publish_news(settings, {"first": 4})
    keep(settings, {"first": 4})
    with page_of(settings, tmp_path) as client:
        url = str(client.base_url)
        until(lambda: client.get("api/v1/state").json()["index"]["objects"] == 1, 60, "the index")
        live = reader.open(url)
        lamp = "document.querySelector('#lamp').textContent.includes('{}')"
        durable_valkey.kill()
        holds(live, lamp.format("Redis unavailable"))
        page = reader.open(f"{url}object/first")
        assert page.locator("#panel").is_hidden()
        assert page.locator("#message").is_visible()
        said = [row.split()[:3] for row in page.locator("#models tbody tr").all_inner_texts()]
        assert ["test", "SN", "Ia"] in said, "the latest classification is in the index"
        durable_valkey.restart()
        page.locator("#panel").wait_for()  # by itself
        holds(page, f"() => ({FILM})() !== ''")
        apache_kafka.kill()
        holds(live, lamp.format("Kafka unavailable"))
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
        labels = page.locator("#classes .label > b")
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
