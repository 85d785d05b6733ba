"""Ages on the page are told by Redis's clock, whatever that of the page's machine says."""

import time

import pytest
from process_tools import until
from web_tools import keep, page_of, page_settings, publish_news

from skyheed.broker import heartbeat, metrics
from skyheed.broker.local import embedded
from skyheed.broker.state import client as state

pytestmark = [pytest.mark.kafka, pytest.mark.redis]


def test_ages_on_the_page_are_told_by_the_servers_clock(
    kafka: embedded.Server, valkey: embedded.Server, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = page_settings(kafka.address, valkey, tmp_path_factory.mktemp("model"))
    publish_news(settings, {"a": 4})
    keep(settings, {"a": 4})
    heartbeat.Heartbeat(state.connect(valkey.url), "sdss", "ingest", metrics.IngestMetrics("sdss")).beat()
    real_time, real_ns = time.time, time.time_ns
    with page_of(settings, tmp_path_factory.mktemp("page")) as client:
        for skew in (-4_000.0, 4_000.0):
            monkeypatch.setattr(time, "time", lambda skew=skew: real_time() + skew)
            monkeypatch.setattr(time, "time_ns", lambda skew=skew: real_ns() + round(skew * 1e9))
            began = client.get("/api/v1/status").json()["state"]["now_ms"]
            until(
                lambda at=began: client.get("/api/v1/status").json()["state"]["now_ms"] > at + 6_000,
                what="a newer answer",
            )
            found = client.get("/api/v1/status").json()
            assert abs(found["state"]["now_ms"] / 1000 - skew - real_time()) < 100, "the page's own clock is off"
            assert 0 <= found["daemons"][0]["age_s"] < 300
            assert all(0 <= queue["oldest_s"] < 300 for queue in found["queues"].values())
