"""Creates librdkafka clients from settings, and turns what their callbacks report into our errors. Independent of
messages.

Any librdkafka option passes through; the options that our guarantees depend on (manual commit, idempotence, acks) are
set last. librdkafka waits forever for an unavailable broker; `Connection` turns its callbacks into `ServiceError`
(refused permanently) or one log line (unavailable, back).
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import confluent_kafka as ck
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from skyheed.broker.certificates import advice, why_refused
from skyheed.broker.errors import ConfigError, ServiceError, ServiceUnavailable

log = logging.getLogger("skyheed.kafka")
Options = Mapping[str, Any]
Place = tuple[str, int]  # topic, partition

# A batch above the topic's max.message.bytes (1,048,588 by default, which counts it packed) is refused as a whole;
# larger single messages are still sent, alone, up to MAX_MESSAGE_BYTES if the topic allows. While librdkafka waits for
# the acknowledgement of one batch with the next one ready its thread is busy: with half of this, sending packets of
# 70 kB takes 1.4 times the CPU time.
BATCH_BYTES = 1_000_000
MAX_MESSAGE_BYTES = 64 * 2**20
QUEUED = 5_000  # messages of a partition that are fetched in advance
FETCH_BYTES = 576 * 1024  # packed, of a partition at a time; a larger batch is fetched alone
DELIVERY_S = 30.0
FAR_FUTURE_MS = 4_102_444_800_000  # 2100-01-01
REFUSED_AGAIN_S = 30.0  # a refusal on a connection that worked before may come from a broker that is just starting
AWAY_S = 1.0  # librdkafka also reports an idle connection that the broker closed

_TLS_PLACE = re.compile(r"(?:sasl_)?ssl://([^/\s]+)")
_SECRET = ("password", "secret", "key.pem", "jaas", "oauthbearer.config", "oauthbearer.token")
_CLASSIC_ONLY = ("session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy", "group.protocol.type")
REFUSED_USER = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED}
REFUSED_RIGHT = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
NO_TOPIC = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
AWAY = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._PURGE_INFLIGHT,
    KafkaError._PURGE_QUEUE,
    KafkaError._QUEUE_FULL,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._TRANSPORT,
    KafkaError._WAIT_COORD,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REQUEST_TIMED_OUT,
}


class _Librdkafka:
    """librdkafka's own log repeats every failed attempt: it is logged at debug level; we log one clear sentence."""

    def log(self, _level: int, message: str, *args: object) -> None:
        logging.getLogger("skyheed.librdkafka").debug(message, *args)


class Connection:
    """What one client's callbacks report about its broker, as our errors and one log line."""

    def __init__(self, options: Options) -> None:
        self.hosts = str(options.get("bootstrap.servers", "?"))
        self._user = str(options.get("sasl.username", ""))
        self._secrets = [str(v) for k, v in options.items() if v and any(part in k for part in _SECRET)]
        self._authorities = str(options.get("ssl.ca.location", ""))
        self._tls: str | None = None
        self._worked = False
        self._refused: tuple[float, ServiceError] | None = None
        self._away_since: float | None = None
        self._said = False
        self._detail = ""

    def on_error(self, error: KafkaError) -> None:
        """librdkafka's error_cb; runs inside poll, consume and flush."""
        if fatal(error) or error.code() in REFUSED_USER | REFUSED_RIGHT | {KafkaError._SSL}:
            began = self._refused[0] if self._refused else time.monotonic()
            self._refused = (began, self.refusal(error))
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._away_since = self._away_since or time.monotonic()
        else:
            self._detail = self.redact(error.str())

    def check(self) -> None:
        """Raise a permanent error.

        Raises:
            ServiceError: the broker refuses us.
        """
        if self._refused and (not self._worked or time.monotonic() - self._refused[0] > REFUSED_AGAIN_S):
            raise self._refused[1]

    def works(self) -> None:
        """The broker answered."""
        if self._said:
            log.warning("Kafka at %s is back after %.0f s", self.hosts, time.monotonic() - (self._away_since or 0))
        self._worked, self._said = True, False
        self._away_since = self._refused = self._tls = None

    def gone(self) -> bool:
        """True while no broker is reachable; does not log, for use from another thread."""
        since = self._away_since
        return since is not None and time.monotonic() - since > AWAY_S

    def answers(self) -> bool:
        """Whether the broker has answered, and has been reachable since."""
        return self._worked and not self.away()

    def detail(self) -> str:
        """The last reported reason why the broker is unreachable."""
        return self._detail or "no answer"

    def away(self) -> bool:
        """True while no broker is reachable; logs it once."""
        gone = self.gone()
        if gone and not self._said:
            self._said = True
            log.warning("Kafka at %s is unavailable, waiting for it (%s)", self.hosts, self._detail or "no answer")
        return gone

    def refusal(self, error: KafkaError, what: str = "") -> ServiceError:
        """The message for a permanent error; `what` names the topic or group."""
        user = f"user {self._user!r}" if self._user else "a client without a user name"
        code, detail = error.code(), self.redact(error.str())
        if code in REFUSED_USER:
            return ServiceError(
                f"Kafka at {self.hosts} refused {user}: check sasl.username, the password "
                "(SKYHEED_KAFKA_PASSWORD or sasl.password_file) and sasl.mechanism"
            )
        if code == KafkaError._SSL:
            return self._no_tls(detail)
        if code in REFUSED_RIGHT:
            right = what or f"what it asks ({error.name()})"
            return ServiceError(f"Kafka at {self.hosts} does not allow {user} {right}: ask for an ACL that does")
        if code in NO_TOPIC:
            return ServiceError(f"Kafka at {self.hosts} has no {what or 'such topic'}: check the name, or create it")
        return ServiceError(f"Kafka at {self.hosts} refuses {what or 'to go on'}: {detail}")

    def _no_tls(self, detail: str) -> ServiceError:
        if self._tls is None:  # checked once: it may take seconds, and librdkafka reports the same for every attempt
            place = _TLS_PLACE.search(detail) if "certificate verify failed" in detail else None
            reason = why_refused(place[1], self._authorities) if place else ""
            helps = advice(reason, "bootstrap.servers", "ssl.ca.location")
            self._tls = (
                f"presents a certificate that cannot be trusted ({reason}): {helps}" if reason
                else f"gives no TLS connection: check security.protocol and ssl.ca.location ({detail})"
            )  # fmt: skip
        return ServiceError(f"Kafka at {self.hosts} {self._tls}")

    def cannot_search(self, topic: str) -> ServiceError:
        """The broker answers a question about times that no message has."""
        return ServiceError(
            f"Kafka at {self.hosts} does not find messages of topic {topic} by their time, as Apache Kafka does (the "
            "embedded one cannot)"
        )

    def without_times(self, topic: str) -> ServiceError:
        """A topic cannot be read by time."""
        return ServiceError(
            f"messages of topic {topic} on Kafka at {self.hosts} carry no time by which to find them "
            "(message.timestamp.type = LogAppendTime gives new ones a time)"
        )

    def unavailable(self, doing: str, detail: str) -> ServiceUnavailable:
        reason = self._detail or f"{self.redact(detail)}; check security.protocol"
        if (
            "SSL_HANDSHAKE" in reason and "PLAINTEXT" not in reason
        ):  # librdkafka asks this only if it closes the connection first
            reason += "; connecting to a PLAINTEXT broker listener?"
        return ServiceUnavailable(f"Kafka at {self.hosts} is unavailable: {doing} ({reason})")

    def redact(self, text: str) -> str:
        """`text` without any secret of the options."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def fatal(error: KafkaError) -> bool:
    """Whether the client is unusable after it; a consumer's events show this only by their code."""
    return bool(error.fatal()) or error.code() == KafkaError._FATAL


def _client(make: Callable[[dict[str, Any]], Any], options: Options, connection: Connection) -> Any:
    settings = {**options, "error_cb": connection.on_error, "logger": _Librdkafka()}
    try:
        return make(settings)
    except (KafkaException, ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise ConfigError(f"Kafka options cannot work: {connection.redact(' '.join(reason.split()))}") from None


def check_options(options: Options) -> None:
    """Check that librdkafka accepts the options: it validates most of them only when a client is created. Contacts no
    server.

    Raises:
        ConfigError: an unknown option, an invalid value, or options that contradict each other.
    """
    producer(options, Connection(options))
    consumer(options, "skyheed-check", Connection(options)).close()


def producer(options: Options, connection: Connection) -> ck.Producer:
    """An idempotent producer: acks=all, zstd, Java's partitioner, so that keys go to the partitions other clients
    use."""
    defaults = {
        "batch.size": BATCH_BYTES,
        "compression.type": "zstd",
        "linger.ms": 5,
        "message.max.bytes": MAX_MESSAGE_BYTES,
        "message.timeout.ms": int(DELIVERY_S * 1000),
        "partitioner": "murmur2_random",
        "topic.metadata.propagation.max.ms": 10_000,  # an unknown topic is reported before the messages time out
    }
    return _client(ck.Producer, {**defaults, **options, "enable.idempotence": True, "acks": "all"}, connection)  # type: ignore[no-any-return]


def consumer(options: Options, group: str, connection: Connection, **overrides: Any) -> ck.Consumer:
    """A consumer that commits only when told; classic and `group.protocol=consumer` (KIP-848) both work."""
    # 10 s: partitions move soon after a kill -9 (45 s is librdkafka's default, 6 s the brokers' minimum)
    # librdkafka asks for more until its queue holds so many messages of a partition (100,000 is its default) or 64 MiB,
    # and keeps what it asked for unpacked, however well a topic packs; it looks again after 0.1 s instead of 1 s
    defaults = {
        "auto.offset.reset": "earliest", "topic.metadata.refresh.interval.ms": 30_000, "session.timeout.ms": 10_000,
        "queued.min.messages": QUEUED, "fetch.message.max.bytes": FETCH_BYTES, "fetch.queue.backoff.ms": 100,
    }  # fmt: skip
    settings = {**defaults, **options, **overrides}
    settings |= {"group.id": group, "enable.auto.commit": False, "enable.partition.eof": True}
    if settings.get("group.protocol") == "consumer":  # KIP-848: set by the broker; librdkafka rejects them
        settings = {k: v for k, v in settings.items() if k not in _CLASSIC_ONLY}
    else:
        settings.setdefault("partition.assignment.strategy", "cooperative-sticky")
    return _client(ck.Consumer, settings, connection)  # type: ignore[no-any-return]


def rebalances_in_steps(options: Options) -> bool:
    """Whether a group with these options rebalances partition by partition (cooperative), or all at once."""
    eager = "cooperative" not in str(options.get("partition.assignment.strategy", "cooperative-sticky"))
    return options.get("group.protocol") == "consumer" or not eager


def admin(options: Options, connection: Connection) -> AdminClient:
    """An admin client."""
    return _client(AdminClient, options, connection)  # type: ignore[no-any-return]


def right(error: KafkaError, topic: str, group: str = "") -> str:
    """What was not permitted, for `Connection.refusal`."""
    if error.code() in NO_TOPIC:
        return f"topic {topic}"
    if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
        return f"to read as group {group}"
    return f"to read topic {topic}" if topic else "to read"
