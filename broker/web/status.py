"""The state of the survey's stream: servers, books, queues, lag, dead letters, latency. Changes nothing. Results are
cached for a few seconds, so that many readers cause no more requests than one.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar

from skyheed.broker import app as daemon
from skyheed.broker import heartbeat
from skyheed.broker.errors import ServiceUnavailable, SkyheedError
from skyheed.broker.kafka import client as kafka
from skyheed.broker.kafka import deadletter
from skyheed.broker.settings import Settings
from skyheed.broker.state import client as redis
from skyheed.broker.state.books import Books
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.keys import Keys
from skyheed.broker.state.ledger import Ledger
from skyheed.broker.web import drift
from skyheed.broker.web.cards import Cards
from skyheed.broker.web.drift import Drift
from skyheed.broker.web.follower import Follower
from skyheed.broker.web.index import Index, by_night, now_ms, percentiles
from skyheed.broker.web.object_ids import path_key
from skyheed.broker.web.recompute import Pool
from skyheed.broker.web.rows import PREFIX
from skyheed.classifier.safe_names import printable

T = TypeVar("T")
KEPT_S = 5.0  # how long a server's response is reused
LETTERS_S = 30.0
LETTERS_KEPT = 50
LETTERS_READ = 5_000  # dead letters read from the topic, at most
DUE_SHOWN = 50


@dataclass
class Sources:
    """Where the status comes from."""

    settings: Settings
    index: Index
    follower: Follower
    pool: Pool
    cards: Cards
    store: SequenceStore
    ledger: Ledger
    client: redis.Client


@dataclass
class _Kept:
    at: float = -1e9
    value: Any = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Status:
    """The state of the stream, with cached results."""

    def __init__(self, sources: Sources) -> None:
        self._s = sources
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()
        self._drift = Drift(sources.settings.survey, sources.store, sources.index)

    def state(self) -> dict[str, Any]:
        """Whether the servers are available, and how far the index has read."""
        trouble = self._s.follower.trouble
        totals = self._once("totals", KEPT_S, self._s.index.totals)
        redis_trouble = self._once("redis", KEPT_S, self._redis)
        behind = self._s.follower.behind
        missing = self._s.pool.missing
        return {
            "survey": self._s.settings.survey, "version": version("skyheed"), "now_ms": now_ms(),
            "kafka": {"ok": not trouble, "sentence": trouble or "Kafka answers"},
            "redis": {"ok": not redis_trouble, "sentence": redis_trouble or "Redis answers"},
            "index": {
                "objects": totals["objects"], "classifications": totals["events"], "behind": behind,
                "sentence": _index_sentence(behind, trouble),
            },
            "recompute": {"ok": not missing, "sentence": missing or "models can be run here"},
        }  # fmt: skip

    def whole(self) -> dict[str, Any]:
        """Everything on the status page; what is unavailable is null, and `notices` say why."""
        notices: list[str] = []
        books: Books | None = self._try(notices, "books", self._s.ledger.books)
        return {
            "state": self.state(), "notices": notices, "books": _explained(books) if books else None,
            "queues": self._try(notices, "queues", self._queues), "due": self._try(notices, "due", self._due) or [],
            "daemons": self._try(notices, "daemons", self._daemons) or [],
            "lag": self._of_kafka(notices, "lag", self._lag) or [],
            "latency_ms": percentiles(self._s.index.latencies()), "throughput": self._throughput(),
            "shares": by_night(self._s.index.shares()), "drift": self._drift.rows(),
            "drift_reference": drift.reference(self.models()),
            "dead_letters": self._of_kafka(notices, "letters", self._letters) or {"reasons": {}, "letters": []},
            "models": self.models(),
        }  # fmt: skip

    def models(self) -> list[dict[str, Any]]:
        """The models in the settings, then others that have published."""
        return self._s.cards.all(dict.fromkeys(self._s.index.models()))

    def published(self) -> list[str]:
        """Names of the models that have published, the survey's first one first."""
        return self._s.cards.ordered(self._s.index.models())

    def classes(self) -> list[str]:
        """The classes of the models available here, then others that have been published."""
        return list(dict.fromkeys([c for entry in self.models() for c in entry["classes"]] + self._s.index.classes()))

    def books(self) -> dict[str, Any]:
        """The books with a sentence for each count.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable, or refuses us.
        """
        return _explained(self._once("books", KEPT_S, self._s.ledger.books))

    def letters(self) -> list[deadletter.DeadLetter]:
        """The newest dead letters.

        Raises:
            ServiceUnavailable, ServiceError: Kafka is unavailable, or refuses us.
        """
        if self._s.follower.trouble:
            raise ServiceUnavailable(self._s.follower.trouble)
        found: list[deadletter.DeadLetter] = self._once("read letters", LETTERS_S, self._read_letters)[1]
        return found

    # --- parts

    def _once(self, name: str, kept_s: float, make: Callable[[], T]) -> T:
        with self._lock:
            kept = self._kept.setdefault(name, _Kept())
        with kept.lock:  # one thread asks, the others wait for it
            if time.monotonic() - kept.at > kept_s:
                kept.value, kept.at = make(), time.monotonic()
            return kept.value  # type: ignore[no-any-return]

    def _try(self, notices: list[str], name: str, make: Callable[[], T], kept_s: float = KEPT_S) -> T | None:
        try:
            return self._once(name, kept_s, make)
        except SkyheedError as error:
            sentence = printable(str(error), 400)
            if sentence not in notices:
                notices.append(sentence)
            return None

    def _of_kafka(self, notices: list[str], name: str, make: Callable[[], T]) -> T | None:
        """As `_try`; while Kafka is unavailable, nobody waits for it and its last response is shown."""
        if trouble := self._s.follower.trouble:
            notices += [trouble] if trouble not in notices else []
            return self._kept[name].value if name in self._kept else None
        return self._try(notices, name, make, LETTERS_S)

    def _redis(self) -> str:
        try:
            self._s.client.ping()
        except SkyheedError as error:
            return printable(str(error), 400)
        return ""

    def _queues(self) -> dict[str, Any]:
        found = {}
        for model in self._s.store.models() or [""]:
            queue = daemon.read_store(self._s.settings, model)[1]
            found[model] = {**queue.depth(), "oldest_s": queue.waiting_s()}
        return found

    def _due(self) -> list[dict[str, Any]]:
        """Objects in the queue, ready ones first; only a few are read from each shard."""
        found: list[dict[str, Any]] = []
        keys = Keys(self._s.settings.survey)
        shards = self._s.settings.redis.shards
        for model in self._s.store.models() or [""]:
            lane = keys.lane(model)
            for state, why in _WHY.items():
                commands = [
                    ("ZRANGE", f"{keys.shard(shard)}{state}{lane}", 0, DUE_SHOWN - 1, "WITHSCORES")
                    for shard in range(shards)
                ]
                pairs = (pair for reply in self._s.client.run(commands) for pair in _pairs(reply))
                found += [
                    {
                        "object_id": name, "path": path_key(name), "model": model, "state": _STATES[state],
                        "ready_ms": ready, "why": why,
                    }
                    for name, ready in sorted(pairs, key=lambda pair: pair[1])[:DUE_SHOWN]
                ]  # fmt: skip
        return sorted(found, key=lambda entry: entry["ready_ms"])[:DUE_SHOWN]

    def _daemons(self) -> list[dict[str, Any]]:
        found = heartbeat.beats(self._s.client, self._s.settings.survey)
        return [{"name": b.name, "age_s": round(b.age_s, 1), "waiting": b.waiting} for b in found[:200]]

    def _lag(self) -> list[dict[str, Any]]:
        settings = self._s.settings
        lags = kafka.group_lag(settings.input_options, settings.ingest.group, settings.alerts)
        return [{"topic": t, "partition": p, "messages": n} for (t, p), n in sorted(lags.items())[:1000]]

    def _throughput(self) -> list[dict[str, Any]]:
        names = ("hour_ms", "model", "classified", "declined")
        return [dict(zip(names, hour, strict=True)) for hour in self._s.index.hours()]

    def _letters(self) -> dict[str, Any]:
        reasons, letters = self._once("read letters", LETTERS_S, self._read_letters)
        return {"reasons": dict(reasons), "letters": [letter_row(letter) for letter in letters]}

    def _read_letters(self) -> tuple[Counter[str], list[deadletter.DeadLetter]]:
        settings = self._s.settings
        reasons: Counter[str] = Counter()
        newest: deque[deadletter.DeadLetter] = deque(maxlen=LETTERS_KEPT)
        for letter in deadletter.read(settings.kafka, settings.dead_letter_topic, limit=LETTERS_READ):
            reasons[letter.reason or "unknown"] += 1
            newest.append(letter)
        return reasons, sorted(newest, key=lambda letter: -letter.time_ms)


_STATES = {"fresh": "new", "due": "due", "inflight": "in_flight"}
_WHY = {
    "fresh": "never classified by this model",
    "due": "has changed since its last classification",
    "inflight": "claimed by a worker; due again if its lease ends",
}


def _pairs(reply: Any) -> list[tuple[str, int]]:
    """(object, score) from a ZRANGE … WITHSCORES reply, in either form that clients return."""
    flat = [part for item in reply for part in (item if isinstance(item, list | tuple) else (item,))]
    names, scores = flat[::2], flat[1::2]
    return [(name.decode(), int(float(score))) for name, score in zip(names, scores, strict=True)]


def _index_sentence(behind: int | None, trouble: str) -> str:
    if trouble:
        return "what was read before Kafka became unavailable is shown"
    if behind is None:
        return "reading the classifications from the beginning of the topics"
    return f"{behind} classifications still to read" if behind else "up to date"


_SENTENCES = {
    "consumed": "alerts read from the topics",
    "stored": "alerts whose measurements were added to a history",
    "duplicates": "alerts that had been stored before",
    "skipped": "valid alerts that are not used here, such as other programmes' and other bands'",
    "rejected": "packets that could not be used, set aside on the dead-letter topic",
    "objects": "objects with a history in Redis now",
    "classified": "objects whose latest result is a classification, summed over all models",
    "declined": "objects that the model declined to classify, summed over all models",
    "pending": "objects that wait to be classified, summed over all models",
    "expired": "objects without alerts for longer than redis.ttl_days, whose history was removed",
    "lost": "objects of which Redis has lost a part",
}


def _explained(books: Books) -> dict[str, Any]:
    summary = books.summary()
    said = [{"name": name, "count": summary[name], "sentence": sentence} for name, sentence in _SENTENCES.items()]
    balance = (
        "every alert that was read has one outcome, and every object one place"
        if books.balanced
        else "something has no outcome, or two: it may still be in progress; if this persists, run skyheed audit"
    )
    return {**books.to_json(), "explained": said, "sentence": balance}


def letter_row(letter: deadletter.DeadLetter) -> dict[str, Any]:
    """A dead letter as a row of a list."""
    source = f"{letter.source_topic}/{letter.source_partition}@{letter.source_offset}"
    return {
        "place": path_key(f"{letter.place}/{letter.offset}"), "offset": str(letter.offset),
        "reason": printable(letter.reason, 100), "error": printable(letter.error, 500),
        "source": printable(source, 400), "time_ms": letter.time_ms if letter.time_ms >= 0 else None,
        "bytes": len(letter.value or b""),
    }  # fmt: skip


def look_into(letter: deadletter.DeadLetter, most: int = 512) -> dict[str, Any]:
    """A dead letter with its first bytes and headers; nothing is decoded, because decoding has already failed."""
    value = letter.value or b""
    headers: list[Any] = [
        [printable(name, 100), printable((text or b"").decode("utf-8", "replace"), 400)]
        for name, text in list(letter.headers)[:50]
    ]
    row = letter_row(letter)
    return {
        "letter": row, "value_url": f"{PREFIX}/dead-letters/{row['place']}/value", "headers": headers,
        "hex": value[:most].hex(" "), "fields": _fields(value),
    }  # fmt: skip


def _fields(value: bytes) -> Mapping[str, str]:
    """What a container's header says about its schema, if it can be read."""
    import json

    begin = value.find(b'"name"')
    if not value.startswith(b"Obj\x01") or begin < 0:
        return {}
    start = value.find(b"{")
    try:
        schema, _ = json.JSONDecoder().raw_decode(value[start : start + 200_000].decode("utf-8", "replace"))
        names = [str(field["name"]) for field in schema["fields"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {
        "schema": printable(f"{schema.get('namespace', '')}.{schema.get('name', '')}", 200),
        "schema version": printable(schema.get("version", "not said"), 60),
        "fields": printable(", ".join(names[:60]), 1000),
    }
