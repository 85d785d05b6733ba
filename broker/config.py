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
from typing import Any, get_args, get_origin, get_type_hints

from skyheed.broker import rules
from skyheed.broker.errors import ConfigError
from skyheed.broker.kafka.selection import Outputs, Selection
from skyheed.broker.urls import redacted_url as redacted_url

Options = Mapping[str, str]


@dataclass(frozen=True)
class RedisSettings:
    url: str = "redis://127.0.0.1:6379/0"
    cluster: bool = False
    password: str = field(default="", repr=False)  # SKYHEED_REDIS_PASSWORD or password_file
    ca_file: str = ""  # rediss://: PEM of the authority that signed the server's certificate; empty: the system's
    certificate_file: str = ""  # rediss://: our own certificate and its key, where the server asks for them
    key_file: str = ""
    wait_replicas: int = 0  # offsets are committed only after so many replicas have the stamps; 0: the primary alone
    wait_s: float = 5.0  # how long the replicas have; then the batch waits and is repeated
    shards: int = 16  # fixed for the life of a data set: part of every key
    max_stamps: int = 99  # the model's longest sequence
    ttl_days: float = 180.0  # an object without a new stamp for this long is forgotten
    books_idle_days: float = 2.0  # the books of a partition that nothing came to for this long are closed
    books_days: float = 14.0  # how long a finished segment's bitmaps stay after they were folded


@dataclass(frozen=True)
class IngestSettings:
    topics: tuple[str, ...] = ()  # names, or patterns that begin with ^
    group: str = "skyheed"
    batch_size: int = 500  # messages fetched at a time
    batch_bytes: int = 64 * 2**20  # fetched at a time: values, keys and headers; one message more may be in hand
    batch_records: int = 2_000  # decoded before they are stored and committed; a whole message is in hand at least
    batch_s: float = 2.0  # of decoding, likewise
    batch_wait_s: float = 0.2
    stamp: str = ""  # science, difference or template; empty: the survey's default
    images: tuple[str, ...] = ()  # kinds of stamps to keep, science among them; empty: all that the survey sends
    photometry: bool = True  # keep the points that packets bring of earlier times
    context: bool = True  # keep what packets say of the surroundings
    skip: tuple[str, ...] = ("not_public", "artefact", "solar_system")  # sound packets to leave out; [] for none
    least_score: float = -1.0  # of being real, 0 to 1, below which a detection is an artefact; -1: the survey's own
    solar_system_arcsec: float = -1.0  # a detection this close to a known object is one; -1: the survey's own
    bands: str = ""  # bands to keep; empty: all of the survey's
    debounce_s: float = 1.0  # an object is due this long after its first new stamp: a visit makes one classification
    max_packet_bytes: int = 4 * 2**20  # a Rubin packet with a year of history is under 1 MB
    metrics_port: int = 0  # 0: no endpoint
    metrics_host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 for all, as in a container


@dataclass(frozen=True)
class ModelSettings:
    model: str = ""  # checkpoint directory, or shipped weights: SURVEY, SURVEY/MODEL, MODEL of the survey
    name: str = ""  # among the survey's models, in topics, keys and metrics; empty: as the model is called
    prior: str = ""  # class prior of the stream, as "906,1988,3225,2130"; empty: the checkpoint's
    topic: str = ""  # empty: topics.classifications for the first model, that and .<name> for others
    backlog: bool = False  # a model that joins others also classifies the objects that are there already


@dataclass(frozen=True)
class WorkSettings:
    model: str = ""  # as in [[work.models]], for one model
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0  # 0: all cores
    batch_size: int = 64  # objects claimed at a time
    batch_bytes: int = 64 * 2**20  # of histories fetched at a time, by each model; one object is at least
    batch_s: float = 2.0  # of classifying before it is published and settled, likewise; at most a quarter of lease_s
    interval_s: float = 0.5  # look for due objects at least this often; at once when a batch is full
    lease_s: float = 120.0  # a claimed object returns to the queue after this long
    prior: str = ""  # of that model
    models: tuple[ModelSettings, ...] = ()  # [[work.models]], for several
    min_stamps: int = 0  # fewer are declined (too_few_stamps); 0: as few as the model needs
    format: str = "avro"  # avro or elasticc
    metrics_port: int = 0
    metrics_host: str = "127.0.0.1"


@dataclass(frozen=True)
class RegistrySettings:
    url: str = ""  # schema registry to read alert schemas from
    user: str = ""
    password: str = field(default="", repr=False)  # SKYHEED_REGISTRY_PASSWORD or password_file
    directory: str = ""  # local copies of the writer schemas, used when the registry is away
    ca_file: str = ""  # PEM certificates that sign the registry's; empty: those that the system trusts
    output_url: str = ""  # registry to write the classification schema to; empty: self-describing containers


@dataclass(frozen=True)
class TopicSettings:
    prefix: str = "skyheed"
    classifications: str = ""  # empty: <prefix>.classifications.<survey>
    dead_letters: str = ""  # empty: <prefix>.deadletter.<survey>
    partitions: int = 4
    replication: int = -1  # the cluster's default


@dataclass(frozen=True)
class ForwardSettings:
    group: str = ""  # Kafka group that remembers the position; empty: skyheed-forward-<sink>
    rate: float = 0.0  # payloads a second; 0: as the host takes them
    batch: int = 100  # classifications read at a time; their position is committed together
    token: str = field(default="", repr=False)  # SKYHEED_FORWARD_TOKEN, where sinks.<sink> has none
    secret: str = field(default="", repr=False)  # SKYHEED_FORWARD_SECRET, likewise
    metrics_port: int = 0
    metrics_host: str = "127.0.0.1"


@dataclass(frozen=True)
class BackfillSettings:
    group: str = "skyheed-backfill"
    rate: float = 0.0  # requests a second; 0: as the provider takes them
    most: int = 30  # earlier detections asked for of one packet, the newest
    token: str = field(default="", repr=False)  # SKYHEED_BACKFILL_TOKEN, where providers.<name> has none
    metrics_port: int = 0
    metrics_host: str = "127.0.0.1"


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
    forward: ForwardSettings = ForwardSettings()
    sinks: Mapping[str, Options] = field(default_factory=dict, repr=False)  # [sinks.lasair] and so on
    backfill: BackfillSettings = BackfillSettings()
    providers: Mapping[str, Options] = field(default_factory=dict, repr=False)  # [providers.rubin] and so on
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
    def models(self) -> tuple[ModelSettings, ...]:
        """The models that a worker runs."""
        return self.work.models or (ModelSettings(self.work.model, prior=self.work.prior),)

    def topic_of(self, number: int, name: str) -> str:
        """Where the classifications of the model of that place go."""
        own = self.models[number].topic
        return own or (self.classification_topic if not number else f"{self.classification_topic}.{name}")

    @property
    def dead_letter_topic(self) -> str:
        return self.topics.dead_letters or f"{self.topics.prefix}.deadletter.{self.survey}"

    @property
    def backfill_topic(self) -> str:
        """Where the packets of earlier detections go, for an ingest to read."""
        return f"skyheed.alerts.{self.survey}.backfill"

    def refused_topic(self, sink: str) -> str:
        """Where classifications go that a host refuses."""
        return f"{self.topics.prefix}.refused.{self.survey}.{sink}"

    @property
    def outputs(self) -> Outputs:
        """The topics that skyheed writes, which hold no alerts."""
        own = tuple(name for name in (self.topics.classifications, self.topics.dead_letters) if name)
        own += tuple(model.topic for model in self.work.models if model.topic)
        return Outputs(("skyheed", self.topics.prefix), own)

    @property
    def alerts(self) -> Selection:
        """The topics to read alerts from; one of our own by default, which `replay` writes to.

        Raises:
            ConfigError: a name or pattern that cannot work.
        """
        return Selection(self.ingest.topics or (self.alert_topic,), self.outputs.never)


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
    "SKYHEED_FORWARD_TOKEN": ("forward", "token"),
    "SKYHEED_FORWARD_SECRET": ("forward", "secret"),
    "SKYHEED_BACKFILL_TOKEN": ("backfill", "token"),
}
SECRET_FILES = ("password_file", "token_file", "secret_file")
_SECRET = re.compile(r"password|token|secret")
MOST_SECRET = 2**16  # bytes of a password file
CONFIG_VARIABLE = "SKYHEED_CONFIG"
# Values a user may well forget; everything else has a working default.
DEFAULT_KAFKA = "127.0.0.1:9092"


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
            _put(tree, place, environ[variable].rstrip("\r\n"))  # of an .env file that Windows wrote
    for dotted, value in (overrides or {}).items():
        if value is not None:
            _refuse_secret(dotted, value)
            _put(tree, _split(dotted), value)
    settings: Settings = _build(Settings, tree, "")
    rules.check(settings)
    return replace(
        settings,
        kafka={"bootstrap.servers": DEFAULT_KAFKA, **settings.kafka},
        kafka_named="bootstrap.servers" in settings.kafka,
        redis_named="url" in tree.get("redis", {}),
    )


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
        elif key.endswith(SECRET_FILES):
            del tree[key]
            tree[key.removesuffix("_file")] = _read_secret(value, f"{where}{key}")


def _read_secret(path: Any, where: str) -> str:
    if not isinstance(path, str):
        raise ConfigError(f"{where} must be the path of a file")
    return read_secret(Path(path), where)


def read_secret(path: Path, where: str) -> str:
    """The one line of a file that only we should be able to read.

    Raises:
        ConfigError: it cannot be read, or holds anything else.
    """
    try:
        with path.open("rb") as file:  # perhaps a pipe, <(pass show …)
            secret = file.read(MOST_SECRET).decode("utf-8-sig").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:  # not chained: the error holds the file's bytes
        raise ConfigError(f"{where}: {path} is not text in UTF-8") from None
    if not secret:
        raise ConfigError(f"{where}: {path} is empty")
    if len(secret.splitlines()) > 1 or "\0" in secret:
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
        return _options(value, where) if get_args(kind)[1] is str else _option_tables(value, where)
    if get_origin(kind) is tuple:
        part = get_args(kind)[0]
        return _tables(part, value, where) if is_dataclass(part) else _names(value, where)
    return _scalar(kind, value, where)


def _options(value: Any, where: str) -> dict[str, str]:
    """librdkafka takes strings; TOML booleans become true and false."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is a table of options: write [{where}]")
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            raise ConfigError(f'{where}.{key}: write librdkafka options quoted, as in "{key}.{next(iter(item), "")}"')
        flat[key] = str(item).lower() if isinstance(item, bool) else str(item)
    return flat


def _option_tables(value: Any, where: str) -> dict[str, dict[str, str]]:
    """Tables of options by name, [where.NAME]."""
    if not isinstance(value, Mapping) or not all(isinstance(item, Mapping) for item in value.values()):
        raise ConfigError(f"{where} is a table of tables: write [{where}.NAME]")
    return {name: _options(item, f"{where}.{name}") for name, item in value.items()}


def _tables(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    """[[where]] of a file; names alone from the command line."""
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} is a list of tables: write [[{where}]]")
    tables = [{"model": item} if isinstance(item, str) else item for item in value]
    return tuple(_convert(kind, item, f"{where}[{n}]") for n, item in enumerate(tables))


def _names(value: Any, where: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{where} must be a name or a list of names")
    return tuple(names)


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        shown = "" if _SECRET.search(where) else f", not {value!r}"
        raise ConfigError(f"{where} must be {kind.__name__}{shown}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, not {value}")
    return value


def child_environment(secrets: Mapping[str, str]) -> dict[str, str]:
    """Our own environment with `secrets`, for a daemon that we start: nobody else can read it, unlike its arguments."""
    return {**os.environ, **secrets}


def with_servers(settings: Settings, kafka: str, redis: str, redis_password: str = "") -> Settings:
    """The same settings on other servers (the embedded ones)."""
    return replace(
        settings,
        kafka={**settings.kafka, "bootstrap.servers": kafka},
        kafka_input={},
        redis=replace(settings.redis, url=redis, password=redis_password or settings.redis.password),
    )
