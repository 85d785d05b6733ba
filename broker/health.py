"""`skyheed check`: one line per part, and whether all are healthy. Changes nothing."""

import importlib.util
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException

from skyheed.broker import app as daemon
from skyheed.broker import config, heartbeat
from skyheed.broker.errors import (
    MissingRight,
    ServiceError,
    ServiceUnavailable,
    SkyheedError,
)
from skyheed.broker.kafka import client as kafka
from skyheed.broker.kafka import connection, topics
from skyheed.broker.kafka.identity import TopicIds
from skyheed.broker.kafka.selection import Selection
from skyheed.broker.packets.surveys import Survey
from skyheed.broker.settings import RedisSettings, Settings
from skyheed.broker.state import client as state
from skyheed.broker.state import queue as schedule
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.keys import Keys
from skyheed.broker.state.ledger import Ledger
from skyheed.classifier.errors import ClassifierError

PARTS = ("kafka", "redis", "schema", "model", "lag", "queue", "oldest", "daemons")
# The oldest due object should be seconds old; minutes mean too few workers, or none.
OLDEST_S = 300.0
FULL = 0.9  # of maxmemory: above this an operator should act
# A group with messages to read commits after every batch, several times a second.
STANDS_S = 10.0
LOOK_S = 0.5
WAITS_S = 30.0  # a failover takes seconds


@dataclass(frozen=True)
class Line:
    """The state of one part in one sentence."""

    part: str
    ok: bool
    sentence: str


def check(settings: Settings, only: Sequence[str] = PARTS) -> list[Line]:
    """Check every part named in `only`."""
    looks: dict[str, Callable[[Settings], Line]] = {
        "kafka": _kafka, "redis": _redis, "schema": _schema, "model": _model,
        "lag": _lag, "queue": _queue, "oldest": _oldest, "daemons": _daemons,
    }  # fmt: skip
    return [_safely(part, looks[part], settings) for part in PARTS if part in only]


def _safely(part: str, look: Callable[[Settings], Line], settings: Settings) -> Line:
    try:
        return look(settings)
    except (SkyheedError, ClassifierError) as error:
        return Line(part, False, str(error))


def _kafka(settings: Settings) -> Line:
    connection.check_options(settings.kafka)
    cluster = kafka.ping(settings.kafka)
    places = [f"{settings.kafka['bootstrap.servers']} answers (cluster {cluster})"]
    if settings.kafka_input:
        connection.check_options(settings.input_options)
        kafka.ping(settings.input_options)
        places.append(f"input {settings.input_options['bootstrap.servers']} answers")
    return Line("kafka", True, ", ".join(places))


def _client(settings: Settings) -> state.Client:
    return state.connect_as(settings.redis)


def _redis(settings: Settings) -> Line:
    """Memory matters most: a full Redis stops the intake, and one that evicts keys silently loses stamps."""
    client, address = _client(settings), config.redacted_url(settings.redis.url)
    client.ping()
    try:
        health = state.health(client)
    except MissingRight:  # no daemon needs it
        return Line("redis", True, f"{address} answers; this user may not read its memory use (INFO)")
    if trouble := _trouble(settings.redis, health):
        return Line("redis", False, f"{address} {trouble}")
    kept = "append-only file on" if health.append_only else "no append-only file: a restart forgets everything"
    return Line("redis", True, f"{address} answers, {_memory(health)}, {kept}")


def _memory(health: state.Health) -> str:
    used, limit = health.used_memory, health.max_memory
    return f"{used / 2**20:.0f} MiB used" + (f" of {limit / 2**20:.0f} MiB" if limit else "")


def _trouble(redis: RedisSettings, health: state.Health) -> str:
    """What would stop the daemons or lose data; empty if nothing."""
    used, limit = health.used_memory, health.max_memory
    if health.read_only:
        return "is a replica, which daemons cannot write to: point redis.url at the primary"
    if health.evicts:
        return f"evicts keys ({health.eviction_policy}): set maxmemory-policy noeviction"
    if health.cannot_save:
        return "cannot write its file; intake waits and nothing is lost: free space on its disk"
    if limit and used >= limit:
        return f"is full, intake waits, nothing is lost: {_memory(health)}; raise maxmemory"
    if limit and used > FULL * limit:
        return f"is nearly full: {_memory(health)}; raise maxmemory"
    if health.replicas < redis.wait_replicas:
        return f"has {health.replicas} replicas and redis.wait_replicas is {redis.wait_replicas}: intake waits for them"
    return ""


def _schema(settings: Settings) -> Line:
    survey: Survey = daemon.survey_of(settings)
    sentence = f"{survey.name} reader schema is valid, stamps: {survey.stamp}, bands: {survey.bands}"
    source = daemon.schema_source(settings)
    try:
        source.ping()
    except (ServiceError, ServiceUnavailable) as error:
        return Line("schema", False, f"{error}; {source.describe()}")
    return Line("schema", True, f"{sentence}; {source.describe()}")


def _model(settings: Settings) -> Line:
    from skyheed.classifier.models.checkpoint import describe, is_export

    names = [m.model or settings.base_survey for m in settings.models]
    asked = [describe(name, settings.base_survey, m.prior) for name, m in zip(names, settings.models, strict=True)]
    exports = [is_export(name) for name in names]
    missing = [kind for kind, wanted in (("onnxruntime", any(exports)), ("torch", not all(exports)))
               if wanted and importlib.util.find_spec(kind) is None]  # fmt: skip
    if missing:
        where = f"this machine has no {' and no '.join(missing)}, so no worker can run here"
    else:
        where = f"a worker here computes {' and '.join(_computes(settings, exports))}"
    return Line("model", True, f"{'; '.join(asked)}; {where}")


def _computes(settings: Settings, exports: Sequence[bool]) -> Iterator[str]:
    from skyheed.classifier.serving import choose

    if not all(exports):
        yield f"on {choose(settings.work.device, settings.work.precision).chosen}"
    if any(exports):
        yield "by onnxruntime, float32, on the CPU"


def _lag(settings: Settings) -> Line:
    """A backlog is healthy while it shrinks: if an ingest hangs or is gone, the group does not advance."""
    options, group = settings.input_options, settings.ingest.group
    lags = kafka.group_lag(options, group, settings.alerts)
    behind = {place for place, lag in lags.items() if lag}
    stalled = bool(behind) and not _moves(options, group, sorted(behind))
    if stalled:  # offsets without a message (control records, say) are not lag
        behind = topics.unread(options, group, behind)
    sentence = f"{sum(lags[place] for place in behind)} alerts not yet read in {len(lags)} partitions"
    if stalled and behind:
        return Line(
            "lag", False, f"{sentence}, and group {group} is not advancing: is an ingest running? Look at its log"
        )
    hidden = _hidden(options, settings.alerts)
    return Line("lag", not hidden, f"{sentence}{hidden}")


def _hidden(options: kafka.Options, alerts: Selection) -> str:
    """What no reader gets because a transaction has been open for STANDS_S, as the end of a sentence; empty if none."""
    everything, ids = {**options, "isolation.level": "read_uncommitted"}, TopicIds(options)
    ends = _ends(everything, alerts, ids)  # first: what arrives later is no transaction
    first = stable = _ends(options, alerts, ids)
    began = time.monotonic()
    while open_ := {p: ends[p] - stable[p] for p in ends if p in stable and stable[p] == first.get(p, -1) < ends[p]}:
        if time.monotonic() - began > STANDS_S:
            topic, partition, _ = place = min(open_)
            return (
                f", and {sum(open_.values())} offsets cannot be read: a transaction on {topic} partition {partition} "
                f"has been open since offset {stable[place]}; end it (kafka-transactions.sh abort)"
            )
        time.sleep(LOOK_S)
        stable = _ends(options, alerts, ids)
    return ""


def _ends(options: kafka.Options, alerts: Selection, ids: TopicIds) -> dict[tuple[str, int, str], int]:
    """The end of every partition, by topic id as well: a topic recreated between two looks has other ends."""
    found = kafka.end_offsets(options, alerts)
    now = ids.ask({topic for topic, _ in found})
    return {(*place, id_): end for place, end in found.items() if (id_ := now[place[0]]) is not None}


def _moves(options: kafka.Options, group: str, places: Sequence[connection.Place]) -> bool:
    """Whether the group's position in any of `places` changes within STANDS_S."""
    began = time.monotonic()
    client = connection.consumer(options, group, connection.Connection(options))
    try:
        first = _committed(client, places)
        while time.monotonic() - began < STANDS_S:
            time.sleep(LOOK_S)
            if _committed(client, places) != first:
                return True
        return False
    except KafkaException as error:
        raise ServiceUnavailable(
            f"the position of group {group} is unknown: {error.args[0].str()}", server="kafka"
        ) from None
    finally:
        client.close()


def _committed(client: Consumer, places: Sequence[connection.Place]) -> list[int]:
    return [at.offset for at in topics.committed(client, places)]


def reading(settings: Settings) -> tuple[SequenceStore, schedule.DueQueue, Ledger]:
    """The three views of the state in Redis, for a reader.

    Raises:
        ConfigError: no such survey, or Redis holds it in a different number of shards, so keys would not be found.
        ServiceUnavailable, ServiceError: Redis is unavailable, or refuses us.
    """
    store, queue, ledger = daemon.read_store(daemon.with_survey(settings))
    # if there is no layout yet, `Ledger.ping` would record ours: only daemons may do that
    if _client(settings).run([("GET", Keys(settings.survey).layout)])[0] is not None:
        ledger.ping()
    return store, queue, ledger


def queues(settings: Settings) -> dict[str, schedule.DueQueue]:
    """The due queue of every model; one without a name if none has joined yet."""
    models = reading(settings)[0].models() or [""]
    return {model: daemon.read_store(settings, model)[1] for model in models}


def _queue(settings: Settings) -> Line:
    found = {model: queue.depth() for model, queue in queues(settings).items()}
    said = [
        _of(model) + ", ".join(f"{name} {count}" for name, count in depth.items()) for model, depth in found.items()
    ]
    return Line("queue", True, "; ".join(said))


def _oldest(settings: Settings) -> Line:
    """A backlog is healthy while it shrinks, as in `_lag`."""
    found = queues(settings)
    ages = {model: age for model, queue in found.items() if (age := queue.waiting_s()) is not None}
    if not ages:
        return Line("oldest", True, "nothing is due")
    model, age = max(ages.items(), key=lambda item: item[1])
    sentence = f"{_of(model)}the oldest due object has been waiting for {age:.0f} s"
    late = [name for name, its in ages.items() if its >= OLDEST_S]
    if standing := [name for name in late if not _is_worked_on(found[name])]:
        sentence = f"{_of(standing[0])}the oldest due object has been waiting for {ages[standing[0]]:.0f} s"
        return Line("oldest", False, f"{sentence} and none is claimed: is a worker running? Look at its log; {_RETIRE}")
    return Line("oldest", True, sentence + (", and the queue is being worked through" if late else ""))


def _is_worked_on(queue: schedule.DueQueue) -> bool:
    """Whether any worker claims objects within STANDS_S."""
    began, first = time.monotonic(), queue.heads()
    while time.monotonic() - began < STANDS_S:
        time.sleep(LOOK_S)
        if queue.heads() != first:
            return True
    return False


_RETIRE = "if no worker should run this model any more, use skyheed retire"


def _of(model: str) -> str:
    return f"{model}: " if model else ""


def _daemons(settings: Settings) -> Line:
    """What every daemon reports about itself; one that cannot reach Redis falls silent."""
    found = heartbeat.beats(_client(settings), daemon.with_survey(settings).survey)
    for beat in found:
        if beat.age_s > heartbeat.SILENT_S:
            sentence = f"{beat.name} has not been heard of for {beat.age_s:.0f} s: it is dead or cannot reach Redis"
            return Line("daemons", False, f"{sentence}; look at its log")
        for server, seconds in beat.waiting.items():
            if seconds > WAITS_S:
                sentence = f"{beat.name} has been waiting for {server} for {seconds + beat.age_s:.0f} s"
                return Line("daemons", False, f"{sentence}; look at its log")
    verbs = Counter(beat.name.split()[0] for beat in found)
    running = ", ".join(f"{count} {verb}" for verb, count in sorted(verbs.items()))
    return Line("daemons", True, f"{running} running" if running else "none has been heard of in the last ten minutes")
