"""Metrics: what is counted, and that a scrape shows it."""

import ssl
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest
from test_record import classification, header
from tls_tools import Authority

from skyheed.broker import config, metrics
from skyheed.broker.errors import ConfigError, Reason
from skyheed.broker.local.embedded import free_port
from skyheed.broker.settings import MetricsSettings


class Rejected:
    reason = Reason.TRUNCATED


def value(measured: metrics.IngestMetrics | metrics.WorkMetrics, name: str, **labels: str) -> float | None:
    return measured.registry.get_sample_value(name, {"survey": "ztf", **labels})


def test_an_ingest_batch_is_counted_by_outcome_and_reason() -> None:
    measured = metrics.IngestMetrics("ztf")
    skipped = [("t/0", 1, Reason.NO_STAMP), ("t/0", 2, Reason.NO_STAMP), ("t/1", 1, Reason.BAND_UNUSED)]
    counts = {"stored": 5, "duplicate": 2}
    for _ in range(2):
        measured.batch(12, counts, skipped, [Rejected(), Rejected()], 0.03, {"t/0": 7, "t/1": 0})
    assert value(measured, "skyheed_messages_consumed_total") == 24
    assert value(measured, "skyheed_stamps_stored_total") == 10
    assert value(measured, "skyheed_stamps_duplicate_total") == 4
    assert value(measured, "skyheed_messages_skipped_total", reason="no_stamp") == 4
    assert value(measured, "skyheed_messages_skipped_total", reason="band_unused") == 2
    assert value(measured, "skyheed_messages_rejected_total", reason="truncated") == 4
    assert value(measured, "skyheed_ingest_batch_seconds_count") == 2
    assert value(measured, "skyheed_consumer_lag_messages", partition="t/0") == 7


def test_the_lag_of_a_partition_that_went_to_another_member_disappears() -> None:
    measured = metrics.IngestMetrics("ztf")
    measured.lag({"t/0": 7, "t/1": 3})
    measured.lag({"t/1": 2})
    assert value(measured, "skyheed_consumer_lag_messages", partition="t/0") is None
    assert value(measured, "skyheed_consumer_lag_messages", partition="t/1") == 2


def test_a_work_batch_is_counted_by_class_reason_and_latency() -> None:
    measured = metrics.WorkMetrics("ztf")
    answered = classification()  # 5 s after its alert
    declined = classification(header(2), None, "too_few_stamps")
    depth = {"new": 4, "due": 5, "in_flight": 6}
    measured.batch("vector", [answered, answered, declined], {"acked": 3}, 0.1, 0.2, 0.3, depth)
    of = {"model": "vector"}
    assert value(measured, "skyheed_classifications_total", **of, **{"class": "SNIa"}) == 2
    assert value(measured, "skyheed_declined_total", reason="too_few_stamps", **of) == 1
    assert value(measured, "skyheed_answers_total", outcome="acked", **of) == 3
    assert value(measured, "skyheed_queue_objects", state="due", **of) == 5
    assert value(measured, "skyheed_work_batch_seconds_sum", stage="classify", **of) == 0.2
    assert value(measured, "skyheed_alert_to_classification_seconds_bucket", le="5.0", **of) == 0
    assert value(measured, "skyheed_alert_to_classification_seconds_bucket", le="10.0", **of) == 3
    total = value(measured, "skyheed_alert_to_classification_seconds_sum", **of)
    assert total == pytest.approx(2 * 5 + 8 + 3 * 0.3)


def test_a_server_that_is_waited_for_shows() -> None:
    measured = metrics.IngestMetrics("ztf")
    assert (value(measured, "skyheed_kafka_up"), value(measured, "skyheed_redis_up")) == (1, 1)
    assert value(measured, "skyheed_waiting_seconds", server="kafka") == 0
    measured.unavailable("kafka")
    measured.unavailable("kafka", "heartbeat")
    measured.unavailable("registry")
    time.sleep(0.02)
    measured.unavailable("kafka")  # again, in the same wait
    measured.available("kafka", "heartbeat")
    assert (value(measured, "skyheed_kafka_up"), value(measured, "skyheed_redis_up")) == (0, 1)
    assert value(measured, "skyheed_waiting_seconds", server="kafka") >= 0.02  # type: ignore[operator]
    assert value(measured, "skyheed_waiting_seconds", server="registry") > 0  # type: ignore[operator]
    measured.available("kafka")
    assert value(measured, "skyheed_kafka_up") == 1
    assert value(measured, "skyheed_waiting_seconds", server="kafka") == 0


def test_a_scrape_shows_every_name() -> None:
    ingest, work = metrics.IngestMetrics("ztf"), metrics.WorkMetrics("ztf")
    ingest.batch(1, {"stored": 1}, [("t/0", 1, Reason.NO_STAMP)], [Rejected()], 0.1, {"t/0": 1})
    both = [classification(), classification(header(1), None, "x")]
    work.batch("vector", both, {"acked": 1}, 0.1, 0.1, 0.1, {"due": 1})
    seen = set()
    for measured in (ingest, work, metrics.ForwardMetrics("ztf", "lasair"), metrics.BackfillMetrics("ztf", "alerce")):
        port = free_port()
        assert metrics.serve(measured, port, "127.0.0.1") == port
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        seen |= {line.split("{")[0] for line in text.splitlines() if line.startswith("skyheed_")}
    assert metrics.names() <= seen
    assert {name for name in seen if not name.endswith("_created")} <= metrics.names()


def test_port_zero_serves_nothing() -> None:
    assert metrics.serve(metrics.IngestMetrics("ztf"), 0) == 0


def test_metrics_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    certificate, key = authority.issue("127.0.0.1")
    both = tmp_path / "both.pem"
    both.write_text(key.read_text() + certificate.read_text())
    trusting = ssl.create_default_context(cafile=str(authority.file))
    for tls in (MetricsSettings(str(certificate), str(key)), MetricsSettings(str(both))):
        port = metrics.serve(metrics.IngestMetrics("ztf"), free_port(), "127.0.0.1", tls)
        address = f"127.0.0.1:{port}/metrics"
        assert b"skyheed_" in urllib.request.urlopen(f"https://{address}", context=trusting).read()
        with pytest.raises(URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"https://{address}", context=ssl.create_default_context())


def test_a_certificate_of_metrics_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    certificate, _ = Authority(tmp_path, "ours").issue("127.0.0.1")
    for tls in (MetricsSettings(str(certificate)), MetricsSettings(str(tmp_path / "missing"))):
        with pytest.raises(ConfigError, match=r"metrics\.certificate_file .* cannot be used"):
            metrics.serve(metrics.IngestMetrics("ztf"), free_port(), "127.0.0.1", tls)
    with pytest.raises(ConfigError, match=r"metrics\.key_file needs"):
        config.load(overrides={"metrics.key_file": "x"}, environ={})
