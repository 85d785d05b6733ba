"""Every setting, with its default and meaning. `config` reads them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from skyheed.broker.kafka.selection import Outputs, Selection

Options = Mapping[str, str]
KEEP_PIXELS = ALWAYS, UNTIL_SEEN = "always", "until-seen"
FORMATS = "avro", "elasticc"  # of output; `results.formats.FORMATS` has their encoders
STAMPS_KEPT = 99  # `classifier.history.LONGEST`, which costs the import of numpy


@dataclass(frozen=True)
class RedisSettings:
    url: str = "redis://127.0.0.1:6379/0"  # of Redis or Valkey; rediss:// for TLS, several hosts for a cluster
    cluster: bool = False  # the servers of url are nodes of a Redis cluster
    password: str = field(default="", repr=False)  # SKYHEED_REDIS_PASSWORD or password_file
    ca_file: str = ""  # rediss://: PEM of the authority that signed the server's certificate; empty: the system's
    certificate_file: str = ""  # rediss://: client certificate and its key, if the server requires them
    key_file: str = ""  # PEM; empty: it is in certificate_file
    wait_replicas: int = 0  # offsets are committed only after this many replicas have the stamps; 0: the primary alone
    wait_s: float = 5.0  # how long to wait for replicas before the batch is retried
    shards: int = 16  # fixed for the lifetime of the data: part of every key
    max_stamps: int = STAMPS_KEPT  # the longest sequence a model takes
    keep_pixels: str = ALWAYS  # images of an epoch: always, or until-seen: until every model has cached what it needs
    ttl_days: float = 180.0  # an object without a new stamp for this long is forgotten
    books_idle_days: float = 2.0  # books of a partition without messages for this long are closed
    books_days: float = 14.0  # how long a finished segment's bitmaps are kept after folding


@dataclass(frozen=True)
class IngestSettings:
    topics: tuple[str, ...] = ()  # names, or patterns that begin with ^
    group: str = "skyheed"  # Kafka group that remembers how far the topics have been read
    processes: int = 1  # per command, each a group member; more than partitions leaves some idle
    batch_size: int = 500  # messages fetched at a time
    batch_bytes: int = 64 * 2**20  # fetched at a time: values, keys and headers; exceeded by at most one message
    batch_records: int = 2_000  # decoded before they are stored and committed; at least one whole message
    batch_s: float = 2.0  # decoding time, likewise
    batch_wait_s: float = 0.2  # how long to wait for messages until a batch is full
    stamp: str = ""  # science, difference or template; empty: the survey's default
    images: tuple[str, ...] = ()  # kinds of stamps to keep, including science; empty: all that the survey sends
    photometry: bool = True  # keep earlier photometry that packets carry
    context: bool = True  # keep what packets say about the object's surroundings
    skip: tuple[str, ...] = ("not_public", "artefact", "solar_system")  # valid packets to leave out; [] for none
    least_score: float = -1.0  # real-bogus score, 0 to 1, below which a detection is an artefact; -1: the survey's own
    solar_system_arcsec: float = (
        -1.0
    )  # a detection this close to a known solar-system object is one; -1: the survey's own
    join_arcsec: float = 0.0  # read objects within this distance as one history, 0 to 5; 0: each by itself
    bands: str = ""  # bands to keep; empty: all of the survey's
    debounce_s: float = 1.0  # an object is due this long after its first new stamp: a visit makes one classification
    quiet_s: float = -1.0  # due earlier after this long without a stamp, once all is read; -1: a fifth of debounce_s
    max_packet_bytes: int = 4 * 2**20  # a Rubin packet with a year of history is under 1 MB
    metrics_port: int = 0  # 0: no endpoint
    metrics_host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 for all, as in a container


@dataclass(frozen=True)
class ModelSettings:
    model: str = ""  # checkpoint directory, or shipped weights: SURVEY, SURVEY/MODEL, MODEL of the survey
    name: str = ""  # within the survey: in topics, keys and metrics; empty: the model's own name
    prior: str = ""  # class prior, such as "906,1988,3225,2130"; empty: the checkpoint's
    topic: str = ""  # empty: topics.classifications for the first model, with .<name> appended for others
    backlog: bool = False  # a model that joins others also classifies objects already stored


@dataclass(frozen=True)
class WorkSettings:
    model: str = ""  # as in [[work.models]], for one model
    device: str = "auto"  # cpu or cuda; auto: a GPU if there is one
    precision: str = "auto"  # float32 or bfloat16; auto: bfloat16 where the processor computes in it itself
    threads: int = 0  # 0: all cores
    batch_size: int = 256  # objects claimed at a time
    batch_bytes: int = 64 * 2**20  # histories fetched at a time, per model; at least one object
    batch_s: float = 2.0  # classifying time before results are published and settled, at most lease_s/4
    interval_s: float = 0.5  # look for due objects at least this often; at once when a batch is full
    lease_s: float = 120.0  # a claimed object returns to the queue after this long
    prior: str = ""  # of that one model
    models: tuple[ModelSettings, ...] = ()  # [[work.models]], several models
    min_stamps: int = 0  # objects with fewer are declined (too_few_stamps); 0: the model's own minimum
    format: str = "avro"  # one of FORMATS
    metrics_port: int = 0  # 0: no endpoint
    metrics_host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 for all, as in a container


@dataclass(frozen=True)
class RegistrySettings:
    url: str = ""  # schema registry that holds the alert schemas
    user: str = ""  # of the registry, where it asks for one
    password: str = field(default="", repr=False)  # SKYHEED_REGISTRY_PASSWORD or password_file
    directory: str = ""  # local copies of the writer schemas, used when the registry is unavailable
    ca_file: str = ""  # PEM of the authority that signed the registry's certificate; empty: the system's
    output_url: str = ""  # registry for the classification schema; empty: self-describing containers


@dataclass(frozen=True)
class MetricsSettings:
    """Metrics over TLS, for every daemon that has a `metrics_port`."""

    certificate_file: str = ""  # PEM; empty: plain HTTP
    key_file: str = ""  # PEM; empty: it is in certificate_file


@dataclass(frozen=True)
class TopicSettings:
    prefix: str = "skyheed"  # that the names of all our topics begin with
    classifications: str = ""  # empty: <prefix>.classifications.<survey>
    dead_letters: str = ""  # empty: <prefix>.deadletter.<survey>
    partitions: int = 4  # of topics that we create
    replication: int = -1  # the cluster's default


@dataclass(frozen=True)
class ForwardSettings:
    group: str = ""  # Kafka group that remembers the position; empty: skyheed-forward-<sink>
    rate: float = 0.0  # payloads a second; 0: the host's own limit
    batch: int = 100  # classifications read at a time; their position is committed together
    token: str = field(default="", repr=False)  # SKYHEED_FORWARD_TOKEN, where sinks.<sink> has none
    secret: str = field(default="", repr=False)  # SKYHEED_FORWARD_SECRET, likewise
    metrics_port: int = 0  # 0: no endpoint
    metrics_host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 for all, as in a container


@dataclass(frozen=True)
class BackfillSettings:
    group: str = "skyheed-backfill"  # Kafka group that remembers the position
    rate: float = 0.0  # requests a second; 0: the provider's own limit
    most: int = 30  # earlier detections requested for one packet, newest first
    token: str = field(default="", repr=False)  # SKYHEED_BACKFILL_TOKEN, where providers.<name> has none
    metrics_port: int = 0  # 0: no endpoint
    metrics_host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 for all, as in a container


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
    metrics: MetricsSettings = MetricsSettings()
    topics: TopicSettings = TopicSettings()
    forward: ForwardSettings = ForwardSettings()
    sinks: Mapping[str, Options] = field(default_factory=dict, repr=False)  # [sinks.lasair] and so on
    backfill: BackfillSettings = BackfillSettings()
    providers: Mapping[str, Options] = field(default_factory=dict, repr=False)  # [providers.rubin] and so on
    kafka_named: bool = False  # set by `load`: a Kafka was named, so `up` starts none
    redis_named: bool = False

    @property
    def input_options(self) -> dict[str, str]:
        """librdkafka options for the cluster that the alerts come from."""
        return {**self.kafka, **self.kafka_input}

    @property
    def base_survey(self) -> str:
        """The survey that sent the packets: of a replay (`night_replay`), the part of its name before the dot."""
        return self.survey.partition(".")[0]

    @property
    def space(self) -> str:
        """The name of the key space; empty for the live one."""
        return self.survey.partition(".")[2]

    def _apart(self, topic: str) -> str:
        """A topic named in the settings, adapted to this key space."""
        return f"{topic}.{self.space}" if topic and self.space else topic

    @property
    def alert_topic(self) -> str:
        """skyheed's own alert topic: `replay` writes to it, and ingest reads it by default."""
        return f"{self.topics.prefix}.alerts.{self.survey}"

    @property
    def classification_topic(self) -> str:
        return self._apart(self.topics.classifications) or f"{self.topics.prefix}.classifications.{self.survey}"

    @property
    def models(self) -> tuple[ModelSettings, ...]:
        """The models that a worker runs."""
        return self.work.models or (ModelSettings(self.work.model, prior=self.work.prior),)

    def topic_of(self, number: int, name: str) -> str:
        """The classification topic of the model at that index."""
        own = self._apart(self.models[number].topic)
        return own or (self.classification_topic if not number else f"{self.classification_topic}.{name}")

    @property
    def dead_letter_topic(self) -> str:
        return self._apart(self.topics.dead_letters) or f"{self.topics.prefix}.deadletter.{self.survey}"

    @property
    def backfill_topic(self) -> str:
        """The topic of packets of earlier detections, for ingest to read."""
        return f"skyheed.alerts.{self.survey}.backfill"

    def refused_topic(self, sink: str) -> str:
        """The topic of classifications that a host refuses."""
        return f"{self.topics.prefix}.refused.{self.survey}.{sink}"

    @property
    def outputs(self) -> Outputs:
        """The topics that skyheed writes, which hold no alerts."""
        own = tuple(name for name in (self.topics.classifications, self.topics.dead_letters) if name)
        own += tuple(model.topic for model in self.work.models if model.topic)
        own += tuple(self._apart(name) for name in own) if self.space else ()
        return Outputs(("skyheed", self.topics.prefix), own)

    @property
    def alerts(self) -> Selection:
        """The topics to read alerts from; by default skyheed's own, to which `replay` writes.

        Raises:
            ConfigError: a name or pattern that cannot work.
        """
        return Selection(self.ingest.topics or (self.alert_topic,), self.outputs.never)
