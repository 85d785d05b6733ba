"""Settings that cannot work, each with the sentence that explains it; refused before anything starts."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from skyheed.broker.errors import ConfigError
from skyheed.broker.kafka.selection import check_name, internal
from skyheed.broker.settings import FORMATS, KEEP_PIXELS, STAMPS_KEPT
from skyheed.broker.urls import http_fault, redis_fault, servers_fault, splits_well

if TYPE_CHECKING:
    from skyheed.broker.settings import Settings, WorkSettings

LONGEST_DAYS = 36_500.0  # a century; the server counts lifetimes in milliseconds and must not overflow
SHORTEST_TTL_DAYS = 0.01  # below that, sequences expire between two visits: surely a mistake
DAY_S = 86_400.0
LARGEST_BYTES = 2**30
LARGEST_MESSAGE = 64 * 2**20  # the limit of skyheed's own topics
LONGEST_GROUP = 249
LARGEST_ARCSEC = 30  # ZTF's own search radius for solar-system objects
LARGEST_JOIN = 5  # arcsec: beyond, neighbours are other objects
LONGEST_MODEL_NAME = 48
MOST_PROCESSES = 64
LARGEST_RATE = 1_000_000  # a second
Rule = tuple[bool, str]

# Our guarantees depend on these: librdkafka would accept another value, and ours would silently override it.
OUR_OPTIONS = {
    "acks": ("all", "-1"), "request.required.acks": ("all", "-1"), "enable.idempotence": ("true",),
    "enable.auto.commit": ("false",), "enable.partition.eof": ("true",),
    "auto.offset.reset": ("earliest", "smallest", "beginning"), "group.id": (), "transactional.id": (),
    "default.topic.config": (), "logger": (), "on_commit": (), "on_delivery": (),
}  # fmt: skip


def check(settings: "Settings") -> None:
    """Refuse values that would delete data, crash a daemon in mid-stream, or ask for what does not exist.

    Raises:
        ConfigError: the first of them.
    """
    rules = (
        _state_rules,
        _server_rules,
        _batch_rules,
        _stream_rules,
        _topic_rules,
        _model_rules,
        _registry_rules,
        _exchange_rules,
    )
    for good, sentence in (*(r for find in rules for r in find(settings)), *_work_rules(settings.work)):
        if not good:
            raise ConfigError(sentence)
    for table, options in (("kafka", settings.kafka), ("kafka_input", settings.kafka_input)):
        _check_options(table, options)
    if settings.ingest.topics:
        _check_alerts(settings)


def _state_rules(settings: "Settings") -> list[Rule]:
    redis = settings.redis
    days = f"{LONGEST_DAYS:.0f} days"
    fault = redis_fault(redis.url, redis.cluster)
    return [
        (splits_well(redis.url), "redis.url holds a password with / # or ?: put it into SKYHEED_REDIS_PASSWORD"),
        (not fault, f"redis.url: {fault}"),
        (1 <= redis.shards <= 4096, "redis.shards must be 1 to 4096"),
        (1 <= redis.max_stamps <= STAMPS_KEPT, f"redis.max_stamps must be 1 to {STAMPS_KEPT}"),
        (redis.keep_pixels in KEEP_PIXELS, f"redis.keep_pixels must be one of {', '.join(KEEP_PIXELS)}"),
        (
            SHORTEST_TTL_DAYS <= redis.ttl_days <= LONGEST_DAYS,
            f"redis.ttl_days must be {SHORTEST_TTL_DAYS} to {days}: inactive objects are deleted after it",
        ),
        (
            SHORTEST_TTL_DAYS <= redis.books_days <= LONGEST_DAYS,
            f"redis.books_days must be {SHORTEST_TTL_DAYS} to {days}: the books' bitmaps are deleted after it",
        ),
        (
            SHORTEST_TTL_DAYS <= redis.books_idle_days <= LONGEST_DAYS,
            f"redis.books_idle_days must be {SHORTEST_TTL_DAYS} to {days}",
        ),
    ]


def _server_rules(settings: "Settings") -> list[Rule]:
    redis = settings.redis
    files = redis.ca_file or redis.certificate_file or redis.key_file
    return [
        (0 <= redis.wait_replicas <= 100, "redis.wait_replicas must be 0 (wait for none) to 100"),
        (0.1 <= redis.wait_s <= 10, "redis.wait_s must be 0.1 to 10: calls to Redis time out after 15 s"),
        (
            redis.url.startswith("rediss://") or not files,
            "redis.ca_file, certificate_file and key_file need TLS: write rediss:// in redis.url",
        ),
        (not redis.key_file or bool(redis.certificate_file), "redis.key_file needs redis.certificate_file"),
        (
            not settings.metrics.key_file or bool(settings.metrics.certificate_file),
            "metrics.key_file needs metrics.certificate_file",
        ),
    ]


def _batch_rules(settings: "Settings") -> list[Rule]:
    ingest = settings.ingest
    return [
        (1 <= ingest.batch_size <= 100_000, "ingest.batch_size must be 1 to 100000"),
        (2**16 <= ingest.batch_bytes <= LARGEST_BYTES, f"ingest.batch_bytes must be 65536 to {LARGEST_BYTES}"),
        (1 <= ingest.batch_records <= 100_000, "ingest.batch_records must be 1 to 100000"),
        (0.01 <= ingest.batch_s <= 60, "ingest.batch_s must be 0.01 to 60"),
        (0 <= ingest.batch_wait_s <= 60, "ingest.batch_wait_s must not be negative, and at most 60"),
        (
            1 <= ingest.max_packet_bytes <= LARGEST_MESSAGE,
            f"ingest.max_packet_bytes must be 1 to {LARGEST_MESSAGE}: at 0 every packet would be set aside",
        ),
    ]


def _stream_rules(settings: "Settings") -> list[Rule]:
    ingest, topics = settings.ingest, settings.topics
    return [
        (0 <= ingest.debounce_s <= DAY_S, "ingest.debounce_s must not be negative, and at most 86400"),
        (
            ingest.quiet_s == -1 or 0 <= ingest.quiet_s <= DAY_S,
            "ingest.quiet_s must be 0 to 86400, or -1 for a fifth of ingest.debounce_s",
        ),
        (1 <= ingest.processes <= MOST_PROCESSES, f"ingest.processes must be 1 to {MOST_PROCESSES}"),
        (
            bool(ingest.group) and ingest.group.isprintable() and len(ingest.group) <= LONGEST_GROUP,
            f"ingest.group must not be empty: 1 to {LONGEST_GROUP} characters that can be printed",
        ),
        (_is_port(ingest.metrics_port), "ingest.metrics_port must be 0 (none) to 65535"),
        (
            not ingest.metrics_port or ingest.metrics_port + ingest.processes <= 65_536,
            "ingest.metrics_port is too high for ingest.processes: each process takes the next port",
        ),
        (
            ingest.least_score == -1 or 0 <= ingest.least_score <= 1,
            "ingest.least_score must be 0 (no detection is an artefact) to 1, or -1 for the survey's own",
        ),
        (
            ingest.solar_system_arcsec == -1 or 0 <= ingest.solar_system_arcsec <= LARGEST_ARCSEC,
            f"ingest.solar_system_arcsec must be 0 to {LARGEST_ARCSEC}, or -1 for the survey's own",
        ),
        (
            0 <= ingest.join_arcsec <= LARGEST_JOIN,
            f"ingest.join_arcsec must be 0 (objects stay apart) to {LARGEST_JOIN}",
        ),
        (
            _is_count(topics.partitions, 10_000),
            "topics.partitions must be at least 1, at most 10000, or -1 for the cluster's default",
        ),
        (
            _is_count(topics.replication, 1000),
            "topics.replication must be at least 1, at most 1000, or -1 for the cluster's default",
        ),
    ]


def _topic_rules(settings: "Settings") -> Iterator[Rule]:
    topics = settings.topics
    for key in ("prefix", "classifications", "dead_letters"):
        name = getattr(topics, key)
        if name or key == "prefix":
            check_name(name, f"topics.{key}")
            yield not internal(name), f"topics.{key}: names that begin with __ are Kafka's own"
    own = [settings.classification_topic, settings.dead_letter_topic, settings.alert_topic]
    yield len(set(own)) == len(own), "topics.classifications, topics.dead_letters and our alert topic must differ"


def _model_rules(settings: "Settings") -> Iterator[Rule]:
    work = settings.work
    both = "work.model and work.prior are for one model, [[work.models]] for several: give either"
    yield not (work.models and (work.model or work.prior)), both
    for model in work.models:
        if model.topic:
            check_name(model.topic, "work.models.topic")
        if model.name:
            yield not model_name_fault(model.name), f"work.models.name: {model_name_fault(model.name)}"


def model_name_fault(name: str) -> str:
    """Why a model cannot have this name; empty if it can."""
    if 0 < len(name) <= LONGEST_MODEL_NAME and all(c.isascii() and (c.isalnum() or c in "-_") for c in name):
        return ""
    return f"a model's name has 1 to {LONGEST_MODEL_NAME} letters, digits, - and _, not {name!r}"


def _registry_rules(settings: "Settings") -> Iterator[Rule]:
    for key in ("url", "output_url"):
        if url := getattr(settings.registry, key):
            yield splits_well(url), f"registry.{key} holds a password: put it into SKYHEED_REGISTRY_PASSWORD"
            fault = http_fault(url)
            yield not fault, f"registry.{key}: {fault}"


def _check_alerts(settings: "Settings") -> None:
    for name in settings.alerts.names:
        if fault := settings.outputs.fault(name):
            raise ConfigError(f"ingest.topics: {fault}")


def _check_options(table: str, options: Mapping[str, str]) -> None:
    """What librdkafka accepts but cannot work; it checks the rest itself (`connection.check_options`)."""
    if "bootstrap.servers" in options and (fault := servers_fault(options["bootstrap.servers"])):
        raise ConfigError(f"[{table}] bootstrap.servers: {fault}")
    for key, value in options.items():
        if key.endswith("_cb") or (key in OUR_OPTIONS and value not in OUR_OPTIONS[key]):
            raise ConfigError(f"[{table}] {key} cannot be set: skyheed sets it itself, remove it")
        if "\0" in key + value:
            raise ConfigError(f"[{table}] {key!r} holds a NUL")


def _work_rules(work: "WorkSettings") -> list[Rule]:
    return [
        (1 <= work.batch_size <= 100_000, "work.batch_size must be 1 to 100000"),
        (2**16 <= work.batch_bytes <= LARGEST_BYTES, f"work.batch_bytes must be 65536 to {LARGEST_BYTES}"),
        (0.01 <= work.batch_s <= 60, "work.batch_s must be 0.01 to 60"),
        (0 <= work.min_stamps <= STAMPS_KEPT, f"work.min_stamps must be 0 to {STAMPS_KEPT}"),
        (0 <= work.threads <= 1024, "work.threads must not be negative, and at most 1024; 0 takes all cores"),
        (
            1 <= work.lease_s <= DAY_S,
            "work.lease_s must be at least 1, or every classification would be too late, and at most 86400",
        ),
        (0 < work.interval_s <= DAY_S, "work.interval_s must be above 0, and at most 86400"),
        (work.device in ("auto", "cpu", "cuda"), "work.device must be auto, cpu or cuda"),
        (work.precision in ("auto", "float32", "bfloat16"), "work.precision must be auto, float32 or bfloat16"),
        (work.format in FORMATS, f"work.format must be {' or '.join(FORMATS)}"),
        (_is_port(work.metrics_port), "work.metrics_port must be 0 (none) to 65535"),
    ]


def _exchange_rules(settings: "Settings") -> list[Rule]:
    forward, backfill = settings.forward, settings.backfill
    return [
        (0 <= forward.rate <= LARGEST_RATE, f"forward.rate must be 0 (the host's own) to {LARGEST_RATE}"),
        (1 <= forward.batch <= 10_000, "forward.batch must be 1 to 10000"),
        (_is_port(forward.metrics_port), "forward.metrics_port must be 0 (none) to 65535"),
        (0 <= backfill.rate <= LARGEST_RATE, f"backfill.rate must be 0 (the provider's own) to {LARGEST_RATE}"),
        (1 <= backfill.most <= STAMPS_KEPT, f"backfill.most must be 1 to {STAMPS_KEPT}, what a history keeps"),
        (_is_port(backfill.metrics_port), "backfill.metrics_port must be 0 (none) to 65535"),
    ]


def _is_port(number: int) -> bool:
    return 0 <= number <= 65_535


def _is_count(number: int, most: int) -> bool:
    return number == -1 or 1 <= number <= most
