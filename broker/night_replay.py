"""Replaying one night: which part of the topics to read, and where to keep the results, apart from the live stream.

A survey called `ztf.NAME` is ztf in a separate key space: it uses ztf's adapter and models, but its keys, books, group
and topics carry the full name, so that nothing is confused with the live stream.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from skyheed.broker.errors import ConfigError
from skyheed.broker.settings import Settings

UNIX_EPOCH_MJD = 40587
MS_PER_DAY = 86_400_000
LONGEST_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_MJD = re.compile(r"\d{5}(\.\d+)?")


@dataclass(frozen=True)
class Night:
    """A range of Kafka timestamps, Unix ms UTC: from `since_ms`, before `until_ms`."""

    since_ms: int
    until_ms: int

    @property
    def name(self) -> str:
        """The default name of a replay's key space."""
        return "-".join(
            datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y%m%dT%H%M%S") for ms in (self.since_ms, self.until_ms)
        )


def night_of(since: str, until: str, now_ms: int) -> Night:
    """A night from two times as users write them.

    Args:
        until: "" means now.

    Raises:
        ConfigError: one cannot be read, or they are in the wrong order or in the future.
    """
    begin, end = _time_ms(since, "--since"), _time_ms(until, "--until") if until else now_ms
    if end > now_ms:
        raise ConfigError(f"--until {until} is in the future: a replay reads what exists; omit it to read up to now")
    if begin >= end:
        raise ConfigError(f"--since {since} is not before --until {until or 'now'}")
    return Night(begin, end)


def _time_ms(text: str, option: str) -> int:
    if _MJD.fullmatch(text):
        return round((float(text) - UNIX_EPOCH_MJD) * MS_PER_DAY)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option} {text!r} is not a time: write it as 2026-11-20T22:00 (UTC unless it has an offset) or as an MJD"
        ) from None
    return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


def apart(settings: Settings, name: str) -> Settings:
    """Settings for an ingest into a separate key space, which reads the same topics with its own group.

    Args:
        name: of the key space.

    Raises:
        ConfigError: the name is invalid, or the survey is itself a replay.
    """
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise ConfigError(f"--into {name!r} is not a valid name: write 1 to {LONGEST_NAME} letters, digits, _ and -")
    if settings.space:
        raise ConfigError(f"{settings.survey} is the result of a replay: name the survey, {settings.base_survey}")
    survey = f"{settings.survey}.{name}"
    topics = settings.ingest.topics or (settings.alert_topic,)
    own = replace(settings.ingest, topics=topics, group=f"skyheed-replay-{survey}", processes=1)
    return replace(settings, survey=survey, ingest=own)
