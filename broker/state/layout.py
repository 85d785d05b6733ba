"""The settings that all daemons of a survey must share, because they determine what is in Redis: recorded by the
first, compared by the others when they start and whenever they reconnect. Models may differ: what they write says
which of them wrote it.

An ingest records everything; a worker records and compares the settings they have in common. State of a release that
recorded only the shards is completed by the first ingest, if what is in Redis agrees with its settings.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from skyheed.broker.errors import ConfigError, ServiceError
from skyheed.broker.observation import BANDS
from skyheed.broker.settings import KEEP_PIXELS, RedisSettings
from skyheed.broker.state.client import Client
from skyheed.broker.state.keys import Keys
from skyheed.broker.state.sequence import HEADER, RECORD_VERSION
from skyheed.classifier.history import IMAGE_KINDS, LONGEST
from skyheed.classifier.stamp import PREPROCESSING

if TYPE_CHECKING:
    from skyheed.broker.packets.surveys import Survey

QUEUES = 2  # format of the queue keys: one queue for each model; release 0.1 had a single one
SAMPLE = 20  # objects of each shard that are checked before an older state is completed


@dataclass(frozen=True)
class Entry:
    """One thing to agree on: the setting that decides on it, or what of the release does; may it be changed later?"""

    setting: str = ""
    of_release: str = ""
    may_change: bool = False


ENTRIES = {
    "shards": Entry("redis.shards"),
    "max_stamps": Entry("redis.max_stamps", may_change=True),
    "stamp": Entry("ingest.stamp"),
    "images": Entry("ingest.images", may_change=True),
    "keep_pixels": Entry("redis.keep_pixels", may_change=True),
    "bands": Entry("ingest.bands", may_change=True),
    "record_version": Entry(of_release="the record version"),
    "queues": Entry(of_release="queues of form"),
    "preprocessing": Entry(of_release="the preprocessing"),
}


@dataclass(frozen=True)
class Agreement:
    """What one daemon contributes.

    Attributes:
        records: what it decides, name -> value.
        compares: what must agree if it is recorded.
        bands: those that its model knows; None if it has no model.
        images: kinds of stamps that its model uses.
    """

    records: Mapping[str, str]
    compares: Mapping[str, str]
    bands: str | None = None
    images: tuple[str, ...] = ()


def of_ingest(redis: RedisSettings, survey: "Survey") -> Agreement:
    """For writers of histories: ingest and redrive."""
    bands = "".join(sorted(survey.bands, key=BANDS.index))
    images = ",".join(getattr(survey, "images", (survey.stamp,)))  # a survey from another package may have one kind
    own = {"stamp": survey.stamp, "images": images, "bands": bands}
    return Agreement({**_shared(redis), **_compared(redis), **own}, {})


def of_worker(redis: RedisSettings, bands: str, images: tuple[str, ...] = ()) -> Agreement:
    """For readers, with a model that knows `bands` and uses `images`."""
    return Agreement(_shared(redis), _compared(redis), bands, images)


def _of_release() -> dict[str, str]:
    return {"record_version": str(RECORD_VERSION), "queues": str(QUEUES), "preprocessing": PREPROCESSING}


def _shared(redis: RedisSettings) -> dict[str, str]:
    own = {"shards": str(redis.shards), "record_version": str(RECORD_VERSION), "queues": str(QUEUES)}
    return {**own, "keep_pixels": redis.keep_pixels}


def _compared(redis: RedisSettings) -> dict[str, str]:
    return {"max_stamps": str(redis.max_stamps), "preprocessing": PREPROCESSING}


class Layout:
    """What is recorded for one survey."""

    def __init__(self, client: Client, survey: str) -> None:
        self._client = client
        self._keys = Keys(survey)
        self._survey = survey

    def recorded(self) -> dict[str, str]:
        """Name -> value.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable, or denies access.
        """
        shards, *pairs = self._client.run(
            [("GET", self._keys.layout), *(("HGET", self._keys.agreed, name) for name in ENTRIES)]
        )
        found = dict(zip(ENTRIES, pairs, strict=True)) | ({"shards": shards} if shards else {})
        return {name: value.decode() for name, value in found.items() if value is not None}

    def agree(self, own: Agreement) -> None:
        """Record what is not recorded yet, and compare the rest.

        Raises:
            ConfigError: something else is recorded; names the setting and both values.
            ServiceUnavailable, ServiceError: Redis is unavailable, or denies access.
        """
        found = self.recorded()
        self._compare(own, found)
        if set(own.records) <= set(found):
            return
        if "max_stamps" in own.records and "shards" in found:  # written by a release that recorded only the shards
            self._sample(own.records)
        words = [word for pair in own.records.items() for word in pair]
        reply = self._client.call("agree", [(self._keys.prefix, *words)])[0]
        names, values = reply[::2], reply[1::2]
        self._compare(own, {n.decode(): v.decode() for n, v in zip(names, values, strict=True)})

    def check_readable(self) -> None:
        """For readers, which record nothing: refuse what another release wrote in another form.

        Raises:
            ServiceError: it did; names what differs and both values.
            ServiceUnavailable: Redis is unavailable.
        """
        found = self.recorded()
        for name, value in _of_release().items():
            if found.get(name, value) != value:
                raise ServiceError(self._sentence(name, found[name], value))

    def change(self, name: str, value: str) -> None:
        """Record another value, once every daemon that uses the old one is stopped.

        Raises:
            ConfigError: there is no such entry, or a change would corrupt what is stored.
            ServiceUnavailable, ServiceError: Redis is unavailable, or denies access.
        """
        if name not in ENTRIES or not ENTRIES[name].may_change:
            names = ", ".join(name for name, entry in ENTRIES.items() if entry.may_change)
            raise ConfigError(
                f"{name} cannot be changed: only {names} can; for anything else start with an empty Redis"
            )
        ordered = _CHANGES[name](value)
        if not ordered:
            raise ConfigError(
                f"{name} cannot be {value!r}: write 1 to {LONGEST} for max_stamps, letters of bands for bands, "
                "always or until-seen for keep_pixels, and for images science with what else is kept, such as "
                "science,difference,template"
            )
        self._client.run([("HSET", self._keys.agreed, name, ordered)], durable=True)

    def _compare(self, own: Agreement, found: Mapping[str, str]) -> None:
        for name, value in (*own.records.items(), *own.compares.items()):
            if found.get(name, value) != value:
                raise ConfigError(self._sentence(name, found[name], value))
        unknown = set(found.get("bands", "")) - set(own.bands or BANDS)
        if unknown:
            raise ConfigError(
                f"Redis holds {self._survey} with bands {found['bands']}, and the model does not know "
                f"{', '.join(sorted(unknown))}: run a model that does"
            )
        kept = found.get("images", "").split(",")
        if found.get("images") and found.get("stamp") == "science" and (missing := set(own.images) - set(kept)):
            raise ConfigError(
                f"Redis holds {self._survey} with images {found['images']}, and the model looks at "
                f"{', '.join(sorted(missing))} as well: stop all daemons and let ingest keep them (ingest.images, "
                "skyheed layout --set images=…), or run another model"
            )

    def _sentence(self, name: str, recorded: str, own: str) -> str:
        entry = ENTRIES[name]
        if not entry.setting:
            return (
                f"Redis holds {self._survey} with {entry.of_release} {recorded} and this release writes {own}: "
                "run the release that wrote it, or start with an empty Redis"
            )
        other = f"or stop all daemons and run skyheed layout --set {name}={own}" if entry.may_change else ""
        return (
            f"Redis holds {self._survey} with {entry.setting} = {recorded} and it is {own} here: "
            f"set {entry.setting} = {_toml(name, recorded)}, {other or 'or start with an empty Redis'}"
        )

    def _sample(self, own: Mapping[str, str]) -> None:
        """Check that stored histories match our settings."""
        bases = [self._keys.shard(shard) for shard in range(int(own["shards"]))]
        picked = self._client.run([("ZRANDMEMBER", f"{base}touched", SAMPLE) for base in bases])
        places = [(base, object_id.decode()) for base, found in zip(bases, picked, strict=True) for object_id in found]
        stored = self._client.run([("HVALS", f"{base}headers:{object_id}") for base, object_id in places])
        longest = max(map(len, stored), default=0)
        if longest > int(own["max_stamps"]):
            raise ConfigError(self._sentence("max_stamps", f"at least {longest}", own["max_stamps"]))
        headers = np.frombuffer(b"".join(raw for values in stored for raw in values), HEADER)
        bands = "".join(BANDS[band] for band in sorted(set(headers["band"].tolist())))
        if not set(bands) <= set(own["bands"]):
            raise ConfigError(self._sentence("bands", bands, own["bands"]))


def _stamps(value: str) -> str:
    return value if value.isdigit() and 1 <= int(value) <= LONGEST else ""


def _bands(value: str) -> str:
    return "".join(sorted(set(value), key=BANDS.index)) if set(value) <= set(BANDS) else ""


def _images(value: str) -> str:
    kinds = set(value.split(","))
    return ",".join(k for k in IMAGE_KINDS if k in kinds) if {"science"} <= kinds <= set(IMAGE_KINDS) else ""


def _pixels(value: str) -> str:
    return value if value in KEEP_PIXELS else ""


# What may be changed -> the value as recorded, or None if it is invalid.
_CHANGES: Mapping[str, Callable[[str], str]] = {
    "max_stamps": _stamps, "bands": _bands, "images": _images, "keep_pixels": _pixels,
}  # fmt: skip


def _toml(name: str, value: str) -> str:
    """As written in the settings."""
    if name == "images":
        return json.dumps(value.split(","))
    number = value.removeprefix("at least ")
    return number if number.isdigit() else f'"{value}"'
