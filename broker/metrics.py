"""Every Prometheus name, defined once. One registry per daemon, so that tests and daemons do not share counts."""

import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from prometheus_client import CollectorRegistry, Gauge, Histogram, start_http_server
from prometheus_client import Counter as PrometheusCounter

from skyheed.broker.errors import ConfigError
from skyheed.broker.results.record import Classification, Status
from skyheed.broker.settings import MetricsSettings

PLAIN = MetricsSettings()
SERVERS = ("kafka", "redis", "registry")
BATCH_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# From a single alert on an idle machine to a visit of 10,000 alerts on a slow one.
LATENCY_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 39.0, 60.0, 120.0, 300.0, 600.0)


class _Rejected(Protocol):
    @property
    def reason(self) -> str: ...


class _Metrics:
    """What both daemons export; every sample carries the survey. Observes every wait (`waiting.Observer`)."""

    def __init__(self, survey: str, host: str = "") -> None:
        self.registry = CollectorRegistry()
        self._survey = survey
        self._since: dict[tuple[str, str], float] = {}  # (server, who waits) -> monotonic seconds
        self._lock = threading.Lock()
        seconds = self._gauge("waiting_seconds", "how long the daemon has been waiting for a server", "server")
        for server in (*SERVERS, *([host] if host else [])):
            seconds.labels(survey, server).set_function(partial(self._waited, server))
        for server, name in (("kafka", "Kafka"), ("redis", "Redis")):
            up = self._gauge(f"{server}_up", f"1 while {name} answers, 0 while the daemon waits for it")
            up.labels(survey).set_function(partial(self._is_up, server))

    def unavailable(self, server: str, source: str = "work") -> None:
        """`server` is unavailable; several threads may wait for it at once."""
        with self._lock:
            self._since.setdefault((server, source), time.monotonic())

    def available(self, server: str, source: str = "work") -> None:
        """The wait of `source` is over."""
        with self._lock:
            self._since.pop((server, source), None)

    def waiting(self) -> dict[str, float]:
        """Seconds for which the daemon has been waiting, by server."""
        now = time.monotonic()
        with self._lock:
            found = list(self._since.items())
        return {name: max(now - since for (server, _), since in found if server == name) for (name, _), _ in found}

    def _waited(self, server: str) -> float:
        return self.waiting().get(server, 0.0)

    def _is_up(self, server: str) -> float:
        return float(server not in self.waiting())

    def _counter(self, name: str, text: str, *labels: str) -> PrometheusCounter:
        return PrometheusCounter(f"skyheed_{name}", text, ["survey", *labels], registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"skyheed_{name}", text, ["survey", *labels], registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"skyheed_{name}", text, ["survey", *labels], buckets=buckets, registry=self.registry)


class IngestMetrics(_Metrics):
    """Metrics of the ingest daemon."""

    def __init__(self, survey: str) -> None:
        super().__init__(survey)
        self._consumed = self._counter("messages_consumed", "messages read from the alert topics")
        self._stored = self._counter("stamps_stored", "stamps stored in sequences")
        self._duplicates = self._counter("stamps_duplicate", "stamps that were stored already")
        self._skipped = self._counter("messages_skipped", "valid messages that are not needed", "reason")
        self._rejected = self._counter("messages_rejected", "messages set aside on the dead-letter topic", "reason")
        self._seconds = self._histogram("ingest_batch_seconds", "from a batch to its commit", BATCH_S)
        self._lag = self._gauge("consumer_lag_messages", "messages not yet read", "partition")
        for counter in (self._consumed, self._stored, self._duplicates):  # the series exists before the first batch
            counter.labels(survey)

    def batch(
        self,
        consumed: int,
        counts: Mapping[str, int],
        skipped: Iterable[tuple[str, int, str]],
        rejected: Iterable[_Rejected],
        seconds: float,
        lag: Mapping[str, int],
    ) -> None:
        """One settled batch: messages, outcomes by name, marks (partition, offset, reason), lag by partition."""
        self._consumed.labels(self._survey).inc(consumed)
        self._stored.labels(self._survey).inc(counts.get("stored", 0))
        self._duplicates.labels(self._survey).inc(counts.get("duplicate", 0))
        for reason, number in Counter(str(reason) for _, _, reason in skipped).items():
            self._skipped.labels(self._survey, reason).inc(number)
        for reason, number in Counter(str(packet.reason) for packet in rejected).items():
            self._rejected.labels(self._survey, reason).inc(number)
        self._seconds.labels(self._survey).observe(seconds)
        self.lag(lag)

    def lag(self, lag: Mapping[str, int]) -> None:
        """Messages not yet read, by partition; partitions of other members disappear."""
        self._lag.clear()
        for partition, messages in lag.items():
            self._lag.labels(self._survey, partition).set(messages)


class WorkMetrics(_Metrics):
    """Metrics of the worker daemon."""

    def __init__(self, survey: str) -> None:
        super().__init__(survey)
        self._classified = self._counter("classifications", "objects classified, by their top class", "model", "class")
        self._declined = self._counter("declined", "objects not classified", "model", "reason")
        self._settled = self._counter("answers", "classifications by outcome", "model", "outcome")
        self._latency = self._histogram(
            "alert_to_classification_seconds",
            "from the newest alert's Kafka time to its published classification",
            LATENCY_S,
            "model",
        )
        self._stage = self._histogram("work_batch_seconds", "seconds per batch, by stage", BATCH_S, "model", "stage")
        self._queue = self._gauge("queue_objects", "objects in the due queue", "model", "state")

    def batch(
        self,
        model: str,
        records: Iterable[Classification],
        counts: Mapping[str, int],
        fetch: float,
        classify: float,
        publish: float,
        depth: Mapping[str, int],
    ) -> None:
        """One published batch: its records, outcomes by name, seconds of each stage, objects due by state."""
        latency = self._latency.labels(self._survey, model)
        for record in records:
            if record.status is Status.CLASSIFIED:
                self._classified.labels(self._survey, model, record.top_class).inc()
            else:
                self._declined.labels(self._survey, model, record.reason).inc()
            # classified at classified_ms, but published only with the delivery report
            latency.observe(max(0.0, (record.classified_ms - record.kafka_ms) / 1000 + publish))
        for outcome, number in counts.items():
            self._settled.labels(self._survey, model, outcome).inc(number)
        for stage, seconds in (("fetch", fetch), ("classify", classify), ("publish", publish)):
            self._stage.labels(self._survey, model, stage).observe(seconds)
        self.queue(model, depth)

    def begin(self, model: str) -> None:
        """Announce a model: its series exist before its first batch, so that an alert rule can see it stalled."""
        for outcome in ("acked", "requeued", "stale"):
            self._settled.labels(self._survey, model, outcome)
        self.queue(model, dict.fromkeys(("new", "due", "in_flight"), 0))

    def queue(self, model: str, depth: Mapping[str, int]) -> None:
        """Objects in a model's due queue, by state."""
        for state, objects in depth.items():
            self._queue.labels(self._survey, model, state).set(objects)


class ForwardMetrics(_Metrics):
    """Metrics of `skyheed forward`: read = delivered + filtered + refused."""

    def __init__(self, survey: str, sink: str) -> None:
        super().__init__(survey, f"sinks.{sink}")
        self._sink = sink
        self._read = self._counter("forward_read", "classifications read, to be sent to a host", "sink")
        self._outcomes = self._counter("forward_outcomes", "classifications by outcome at the host", "sink", "outcome")
        self._lag = self._gauge("forward_lag_messages", "classifications not yet read", "sink")
        self._read.labels(survey, sink)
        self._lag.labels(survey, sink)
        for outcome in ("delivered", "filtered", "refused"):
            self._outcomes.labels(survey, sink, outcome)

    def batch(self, read: int, counts: Mapping[str, int]) -> None:
        """One batch, accepted by the host or by the topic of refusals."""
        self._read.labels(self._survey, self._sink).inc(read)
        for outcome, number in counts.items():
            self._outcomes.labels(self._survey, self._sink, outcome).inc(number)

    def lag(self, messages: int) -> None:
        """Classifications not yet read."""
        self._lag.labels(self._survey, self._sink).set(messages)


class BackfillMetrics(_Metrics):
    """Metrics of `skyheed backfill`: messages examined, and requests by outcome."""

    OUTCOMES = ("fetched", "unknown", "refused", "wrong")

    def __init__(self, survey: str, provider: str) -> None:
        super().__init__(survey, f"providers.{provider}")
        self._read = self._counter("backfill_messages", "alerts looked at")
        self._lag = self._gauge("backfill_lag_messages", "alerts not yet examined")
        self._read.labels(survey)
        self._lag.labels(survey)
        self._asked = self._counter("backfill_requests", "earlier detections asked for, by outcome", "outcome")
        for outcome in self.OUTCOMES:
            self._asked.labels(survey, outcome)

    def asked(self, outcome: str) -> None:
        """One request and its outcome."""
        self._asked.labels(self._survey, outcome).inc()

    def read(self) -> None:
        """One message, all of whose earlier detections have been requested."""
        self._read.labels(self._survey).inc()

    def lag(self, messages: int) -> None:
        """Alerts not yet examined."""
        self._lag.labels(self._survey).set(messages)


def serve(metrics: _Metrics, port: int, host: str = "127.0.0.1", tls: MetricsSettings = PLAIN) -> int:
    """Serve Prometheus metrics at http(s)://host:port/metrics in a separate thread; port 0 serves nothing.

    Returns:
        The port.

    Raises:
        ConfigError: the certificate or its key cannot be used.
    """
    if not port:
        return 0
    certificate, key = tls.certificate_file or None, tls.key_file or tls.certificate_file or None
    try:
        if certificate:  # before it listens, so that a failure leaves nothing behind
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError too
        raise ConfigError(
            f"metrics.certificate_file {certificate} and metrics.key_file {key} cannot be used: {error}"
        ) from None
    server, _thread = start_http_server(port, host, registry=metrics.registry, certfile=certificate, keyfile=key)
    return int(server.server_port)


def names() -> set[str]:
    """Every sample name that a daemon can export, as used in queries."""
    found = set()
    for metrics in (IngestMetrics("x"), WorkMetrics("x"), ForwardMetrics("x", "y"), BackfillMetrics("x", "y")):
        for family in metrics.registry.collect():
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
            found |= {family.name + suffix for suffix in suffixes}
    return found
