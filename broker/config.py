"""Settings: one TOML file, the environment and the command line, in rising order of strength.

This is the only module that reads the environment. Secrets come from the environment or from a file that a
`*_file` key names; the command line refuses them, because everyone on the machine can read it.

    survey = "ztf"

    [kafka]                                   # our own cluster: classifications, dead letters (and alerts)
    "bootstrap.servers" = "kafka:9092"        # any librdkafka option
    [kafka_input]                             # the cluster the alerts come from, where it is another one
    "bootstrap.servers" = "public.alerts.example:9092"
    "sasl.password_file" = "/run/secrets/alerts"
    [redis]
    url = "redis://valkey:6379/0"
    [ingest]
    topics = ["^ztf_.*_programid1$"]
"""

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints
from urllib.parse import urlsplit

from .errors import ConfigError

Options = Mapping[str, str]


@dataclass(frozen=True)
class RedisSettings:
    url: str = "redis://127.0.0.1:6379/0"
    cluster: bool = False
    password: str = field(default="", repr=False)  # SKYHEED_REDIS_PASSWORD or password_file
    shards: int = 16  # fixed for the life of a data set: part of every key
    max_stamps: int = 99  # the model's longest sequence
    ttl_days: float = 180.0  # an object without a new stamp for this long is forgotten
    books_days: float = 14.0  # how long a finished segment's bitmaps stay after they were folded


@dataclass(frozen=True)
class IngestSettings:
    topics: tuple[str, ...] = ()  # names, or patterns that begin with ^
    group: str = "skyheed"
    batch_size: int = 500
    batch_wait_s: float = 0.2
    stamp: str = ""  # science, difference or template; empty: the survey's default
    bands: str = ""  # bands to keep; empty: all of the survey's
    debounce_s: float = 1.0  # an object is due this long after its first new stamp: a visit makes one classification
    max_packet_bytes: int = 4 * 2**20  # a Rubin packet with a year of history is under 1 MB
    metrics_port: int = 0  # 0: no endpoint


@dataclass(frozen=True)
class WorkSettings:
    model: str = ""  # checkpoint path; empty: the shipped weights of the survey
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0  # 0: all cores
    batch_size: int = 64
    interval_s: float = 0.5  # look for due objects at least this often; at once when a batch is full
    lease_s: float = 120.0  # a claimed object returns to the queue after this long
    prior: str = ""  # how often the classes occur in the stream, as "906,1988,3225,2130"; empty: as the checkpoint says
    min_stamps: int = 3  # one full group of the 3D-CNN; fewer are declined (too_few_stamps)
    format: str = "avro"  # avro or elasticc
    metrics_port: int = 0


@dataclass(frozen=True)
class RegistrySettings:
    url: str = ""  # schema registry to read alert schemas from
    user: str = ""
    password: str = field(default="", repr=False)  # SKYHEED_REGISTRY_PASSWORD or password_file
    directory: str = ""  # local copies of the writer schemas, used when the registry is away
    output_url: str = ""  # registry to write the classification schema to; empty: self-describing containers


@dataclass(frozen=True)
class TopicSettings:
    prefix: str = "skyheed"
    classifications: str = ""  # empty: <prefix>.classifications.<survey>
    dead_letters: str = ""  # empty: <prefix>.deadletter.<survey>
    partitions: int = 4
    replication: int = -1  # the cluster's default


@dataclass(frozen=True)
class Settings:
    """Everything a daemon needs to know; `load` makes one."""

    survey: str = ""
    kafka: Options = field(default_factory=dict, repr=False)
    kafka_input: Options = field(default_factory=dict, repr=False)
    redis: RedisSettings = RedisSettings()
    ingest: IngestSettings = IngestSettings()
    work: WorkSettings = WorkSettings()
    registry: RegistrySettings = RegistrySettings()
    topics: TopicSettings = TopicSettings()
    kafka_named: bool = False  # set by `load`: somebody named a Kafka, so `up` starts none
    redis_named: bool = False

    @property
    def input_options(self) -> dict[str, str]:
        """librdkafka options of the cluster that the alerts come from."""
        return {**self.kafka, **self.kafka_input}

    @property
    def alert_topic(self) -> str:
        """Our own topic of alerts: what `replay` writes to, and ingest reads unless it is told otherwise."""
        return f"{self.topics.prefix}.alerts.{self.survey}"

    @property
    def classification_topic(self) -> str:
        return self.topics.classifications or f"{self.topics.prefix}.classifications.{self.survey}"

    @property
    def dead_letter_topic(self) -> str:
        return self.topics.dead_letters or f"{self.topics.prefix}.deadletter.{self.survey}"


# Environment variable -> place in the settings. Secrets have no other short form.
ENVIRONMENT = {
    "SKYHEED_SURVEY": ("survey",),
    "SKYHEED_KAFKA": ("kafka", "bootstrap.servers"),
    "SKYHEED_KAFKA_USER": ("kafka", "sasl.username"),
    "SKYHEED_KAFKA_PASSWORD": ("kafka", "sasl.password"),
    "SKYHEED_KAFKA_INPUT": ("kafka_input", "bootstrap.servers"),
    "SKYHEED_KAFKA_INPUT_USER": ("kafka_input", "sasl.username"),
    "SKYHEED_KAFKA_INPUT_PASSWORD": ("kafka_input", "sasl.password"),
    "SKYHEED_REDIS": ("redis", "url"),
    "SKYHEED_REDIS_PASSWORD": ("redis", "password"),
    "SKYHEED_REGISTRY": ("registry", "url"),
    "SKYHEED_REGISTRY_USER": ("registry", "user"),
    "SKYHEED_REGISTRY_PASSWORD": ("registry", "password"),
    "SKYHEED_MODEL": ("work", "model"),
}
CONFIG_VARIABLE = "SKYHEED_CONFIG"
# Values a user may well forget; everything else has a working default.
DEFAULT_KAFKA = "127.0.0.1:9092"
LONGEST_DAYS = 36_500.0  # a century; the server counts lifetimes in milliseconds and must not overflow
SHORTEST_TTL_DAYS = 0.01  # below that, sequences are forgotten between two visits: surely a slip
# Everything up to the last @ belongs to the user or password: urlsplit would end a password at its first / # or ?
_USER_AND_PASSWORD = re.compile(r"(?<=://)([^:]*):.*@", re.DOTALL)
_PASSWORD_OPTION = re.compile(r"([?&][^=&]*password=)[^&]*", re.DOTALL)


def load(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings: `overrides` (dotted key -> value, from the command line) over environment over file.

    Raises:
        ConfigError: an unknown key, a wrong type, an unreadable file, or a secret on the command line.
    """
    environ = os.environ if environ is None else environ
    path = path or environ.get(CONFIG_VARIABLE)
    tree = _read_toml(Path(path)) if path else {}
    _read_secret_files(tree, "")
    for variable, place in ENVIRONMENT.items():
        if environ.get(variable):
            _put(tree, place, environ[variable])
    for dotted, value in (overrides or {}).items():
        if value is not None:
            _refuse_secret(dotted, value)
            _put(tree, _split(dotted), value)
    settings = _check(_build(Settings, tree, ""))
    return replace(
        settings,
        kafka={"bootstrap.servers": DEFAULT_KAFKA, **settings.kafka},
        kafka_named="bootstrap.servers" in settings.kafka,
        redis_named="url" in tree.get("redis", {}),
    )


def redacted_url(url: str) -> str:
    """The URL without its password, for logs and messages; whatever characters the password holds."""
    return _PASSWORD_OPTION.sub(r"\1***", _USER_AND_PASSWORD.sub(r"\1:***@", url))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 (byte {error.start}), which TOML has to be") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _read_secret_files(tree: dict[str, Any], where: str) -> None:
    for key, value in list(tree.items()):
        if isinstance(value, dict):
            _read_secret_files(value, f"{where}{key}.")
        elif key.endswith("password_file"):
            del tree[key]
            tree[key.removesuffix("_file")] = _read_secret(value, f"{where}{key}")


def _read_secret(path: Any, where: str) -> str:
    if not isinstance(path, str):
        raise ConfigError(f"{where} must be the path of a file")
    try:
        secret = Path(path).read_text(encoding="utf-8-sig").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:  # not chained: the error holds the file's bytes
        raise ConfigError(f"{where}: {path} is not text in UTF-8") from None
    if not secret:
        raise ConfigError(f"{where}: {path} is empty")
    if not secret.isprintable():  # several lines, or a file that is something else
        raise ConfigError(f"{where}: {path} holds more than one line of text: write the password and nothing else")
    return secret


def _split(dotted: str) -> tuple[str, ...]:
    # librdkafka's own names hold dots: only the first one separates
    return tuple(dotted.split(".", 1))


def _put(tree: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    for part in place[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{part} is a table: write [{part}]")
    tree[place[-1]] = value


def _refuse_secret(dotted: str, value: Any) -> None:
    if "password" in dotted or (isinstance(value, str) and redacted_url(value) != value):
        raise ConfigError(
            f"a password on the command line ({dotted}) can be read by everyone on this machine: "
            "put it into the environment (SKYHEED_KAFKA_PASSWORD, SKYHEED_REDIS_PASSWORD) or a password_file"
        )


def _build(cls: type, tree: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls) if not f.name.endswith("_named")}
    unknown = sorted(set(tree) - known)
    if unknown:
        raise ConfigError(f"unknown setting {where}{unknown[0]}; known here: {', '.join(sorted(known))}")
    return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in tree.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is a table: write [{where}]")
        return _build(kind, value, f"{where}.")  # type: ignore[arg-type]
    if get_origin(kind) is Mapping:
        return _options(value, where)
    if get_origin(kind) is tuple:
        return _names(value, where)
    return _scalar(kind, value, where)


def _options(value: Any, where: str) -> dict[str, str]:
    """librdkafka takes strings; TOML booleans become true and false."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is a table of librdkafka options: write [{where}]")
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            raise ConfigError(f'{where}.{key}: write librdkafka options quoted, as in "{key}.{next(iter(item), "")}"')
        flat[key] = str(item).lower() if isinstance(item, bool) else str(item)
    return flat


def _names(value: Any, where: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{where} must be a name or a list of names")
    return tuple(names)


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        shown = "" if "password" in where else f", not {value!r}"
        raise ConfigError(f"{where} must be {kind.__name__}{shown}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, not {value}")
    return value


def _check(settings: Settings) -> Settings:
    """Refuse values that would delete data, crash a daemon in mid-stream, or ask for what does not exist."""
    for good, sentence in (*_state_rules(settings), *_stream_rules(settings), *_work_rules(settings.work)):
        if not good:
            raise ConfigError(sentence)
    return settings


def _state_rules(settings: Settings) -> list[tuple[bool, str]]:
    redis = settings.redis
    days = f"{LONGEST_DAYS:.0f} days"
    return [
        (_well_formed(redis.url), "redis.url holds a password with / # or ?: put it into SKYHEED_REDIS_PASSWORD"),
        (redis.shards >= 1, "redis.shards must be at least 1"),
        (1 <= redis.max_stamps <= 99, "redis.max_stamps must be 1 to 99"),
        (
            SHORTEST_TTL_DAYS <= redis.ttl_days <= LONGEST_DAYS,
            f"redis.ttl_days must be {SHORTEST_TTL_DAYS} to {days}: quiet objects are deleted after it",
        ),
        (
            SHORTEST_TTL_DAYS <= redis.books_days <= LONGEST_DAYS,
            f"redis.books_days must be {SHORTEST_TTL_DAYS} to {days}: the books' bitmaps are deleted after it",
        ),
    ]


def _stream_rules(settings: Settings) -> list[tuple[bool, str]]:
    ingest, topics = settings.ingest, settings.topics
    return [
        (ingest.batch_size >= 1, "ingest.batch_size must be at least 1"),
        (ingest.batch_wait_s >= 0, "ingest.batch_wait_s must not be negative"),
        (ingest.debounce_s >= 0, "ingest.debounce_s must not be negative"),
        (ingest.max_packet_bytes >= 1, "ingest.max_packet_bytes must be at least 1: every packet would be set aside"),
        (bool(ingest.group), "ingest.group must not be empty"),
        (_is_port(ingest.metrics_port), "ingest.metrics_port must be 0 (none) to 65535"),
        (bool(topics.prefix), "topics.prefix must not be empty"),
        (_is_count(topics.partitions), "topics.partitions must be at least 1, or -1 for the cluster's default"),
        (_is_count(topics.replication), "topics.replication must be at least 1, or -1 for the cluster's default"),
    ]


def _work_rules(work: WorkSettings) -> list[tuple[bool, str]]:
    return [
        (work.batch_size >= 1, "work.batch_size must be at least 1"),
        (work.min_stamps >= 1, "work.min_stamps must be at least 1"),
        (work.threads >= 0, "work.threads must not be negative; 0 takes all cores"),
        (work.lease_s >= 1, "work.lease_s must be at least 1: every answer would come too late"),
        (work.interval_s > 0, "work.interval_s must be above 0"),
        (work.device in ("auto", "cpu", "cuda"), "work.device must be auto, cpu or cuda"),
        (work.precision in ("auto", "float32", "bfloat16"), "work.precision must be auto, float32 or bfloat16"),
        (work.format in ("avro", "elasticc"), "work.format must be avro or elasticc"),
        (_is_port(work.metrics_port), "work.metrics_port must be 0 (none) to 65535"),
    ]


def _is_port(number: int) -> bool:
    return 0 <= number <= 65_535


def _is_count(number: int) -> bool:
    return number == -1 or number >= 1


def _well_formed(url: str) -> bool:
    """Whether a client that splits the URL by the rules finds the host where the user meant it."""
    return not _USER_AND_PASSWORD.search(url) or "@" in urlsplit(url).netloc


def with_servers(settings: Settings, kafka: str, redis: str) -> Settings:
    """The same settings on other servers (the embedded ones)."""
    return replace(
        settings,
        kafka={**settings.kafka, "bootstrap.servers": kafka},
        kafka_input={},
        redis=replace(settings.redis, url=redis),
    )
