"""`skyheed check`: one line per part, and whether all of it is well. Reads, changes nothing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from classifier.errors import ClassifierError

from . import config, daemon, kafka, schedule, state
from .errors import SkyheedError
from .surveys import Survey

PARTS = ("kafka", "redis", "schema", "model", "lag", "queue", "oldest")
# The oldest due object should be seconds old; minutes mean that the workers are too few or dead.
OLDEST_S = 300.0
FULL = 0.9  # of maxmemory: from here on an operator should act


@dataclass(frozen=True)
class Line:
    """The state of one part in one sentence."""

    part: str
    ok: bool
    sentence: str


def check(settings: config.Settings, only: Sequence[str] = PARTS) -> list[Line]:
    """Look at every part named in `only`."""
    looks: dict[str, Callable[[config.Settings], Line]] = {
        "kafka": _kafka, "redis": _redis, "schema": _schema, "model": _model,
        "lag": _lag, "queue": _queue, "oldest": _oldest,
    }  # fmt: skip
    return [_safely(part, looks[part], settings) for part in PARTS if part in only]


def _safely(part: str, look: Callable[[config.Settings], Line], settings: config.Settings) -> Line:
    try:
        return look(settings)
    except (SkyheedError, ClassifierError) as error:
        return Line(part, False, str(error))


def _kafka(settings: config.Settings) -> Line:
    cluster = kafka.ping(settings.kafka)
    places = [f"{settings.kafka['bootstrap.servers']} answers (cluster {cluster})"]
    if settings.kafka_input:
        kafka.ping(settings.input_options)
        places.append(f"input {settings.input_options['bootstrap.servers']} answers")
    return Line("kafka", True, ", ".join(places))


def _client(settings: config.Settings) -> state.Client:
    return state.connect(settings.redis.url, settings.redis.password or None, cluster=settings.redis.cluster)


def _redis(settings: config.Settings) -> Line:
    """Memory decides: a full Redis stops the intake, and one that evicts loses stamps in silence."""
    health = state.health(_client(settings))
    used, limit = health.used_memory, health.max_memory
    memory = f"{used / 2**20:.0f} MiB used" + (f" of {limit / 2**20:.0f} MiB" if limit else "")
    address = config.redacted_url(settings.redis.url)
    if health.evicts:
        return Line(
            "redis", False, f"{address} evicts keys ({health.eviction_policy}): set maxmemory-policy noeviction"
        )
    if limit and used >= limit:
        return Line("redis", False, f"{address} is full, intake waits, nothing is lost: {memory}; raise maxmemory")
    if limit and used > FULL * limit:
        return Line("redis", False, f"{address} is nearly full: {memory}; raise maxmemory")
    kept = "append-only file on" if health.append_only else "no append-only file: a restart forgets everything"
    return Line("redis", True, f"{address} answers, {memory}, {kept}")


def _schema(settings: config.Settings) -> Line:
    survey: Survey = daemon.survey_of(settings)
    sentence = f"{survey.name} reader schema is valid, stamps: {survey.stamp}, bands: {survey.bands}"
    source = daemon.schema_source(settings)
    return Line("schema", source.ping(), f"{sentence}; {source.describe()}")


def _model(settings: config.Settings) -> Line:
    from classifier.checkpoint import describe

    model = settings.work.model or settings.survey
    return Line("model", True, describe(model, settings.survey))


def _lag(settings: config.Settings) -> Line:
    lags = kafka.group_lag(settings.input_options, settings.ingest.group, daemon.alert_topics(settings))
    return Line("lag", True, f"{sum(lags.values())} alerts not yet read in {len(lags)} partitions")


def _depth(settings: config.Settings) -> tuple[schedule.DueQueue, dict[str, int]]:
    queue = daemon.connect_store(settings)[1]
    return queue, queue.depth()


def _queue(settings: config.Settings) -> Line:
    _, depth = _depth(settings)
    return Line("queue", True, ", ".join(f"{name} {count}" for name, count in depth.items()))


def _oldest(settings: config.Settings) -> Line:
    oldest = daemon.connect_store(settings)[1].oldest_ms()
    if oldest is None:
        return Line("oldest", True, "nothing is due")
    age = max(0.0, time.time() - oldest / 1000)
    advice = "" if age < OLDEST_S else ": start more workers, or look at their logs"
    return Line("oldest", age < OLDEST_S, f"the oldest due object waits since {age:.0f} s{advice}")
