"""The errors that skyheed raises deliberately.

    SkyheedError
    ├── ConfigError          settings that cannot work; names the key and what to write instead
    ├── ServiceError         Kafka, Redis or the registry refused permanently (wrong password, …)
    │   └── MissingRight     the user is known, but may not do this
    ├── ServiceUnavailable   a server is unavailable or full: the daemons wait and retry
    ├── Unfinished           a drain was stopped before its end (`waiting`)
    ├── StreamError          a record is not what its topic should hold
    └── PacketError          one packet cannot be used: dead-letter topic, with its `reason`
        └── SkipPacket       one packet is valid but not needed: counted under its `reason`

`classifier.errors` has ClassifierError, ModelError and ArchiveError.
`SkipPacket` is a `PacketError`, so that one `except` handles a packet; check for it first.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a packet was set aside (dead-letter topic) or skipped; users read and filter by the value."""

    EMPTY = "empty_message"
    OVERSIZED = "oversized"
    TRUNCATED = "truncated"
    TRAILING_BYTES = "trailing_bytes"
    BAD_MAGIC = "bad_magic"
    BAD_SYNC = "bad_sync_marker"
    BAD_BLOCK = "bad_block"
    BAD_SCHEMA = "bad_schema"
    UNKNOWN_SCHEMA = "unknown_schema_id"
    REGISTRY_UNAVAILABLE = "registry_unavailable"
    WRONG_TYPE = "wrong_type"
    BAD_GZIP = "bad_gzip"
    BOMB = "decompression_bomb"
    BAD_FITS = "bad_fits"
    STAMP_TOO_LARGE = "stamp_too_large"
    EMPTY_STAMP = "empty_stamp"
    NO_OBJECT_ID = "missing_object_id"
    BAD_OBJECT_ID = "bad_object_id"  # with characters that no name has
    NO_SOURCE_ID = "missing_source_id"
    NO_TIME = "missing_time"
    BAD_POSITION = "bad_position"
    UNKNOWN_BAND = "unknown_band"
    BAD_FLUX = "bad_flux"
    UNEXPECTED = "unexpected_error"  # an internal error
    # skipped
    NO_STAMP = "no_stamp"
    SOLAR_SYSTEM = "solar_system"
    BAND_UNUSED = "band_unused"
    BEYOND_WINDOW = "older_than_window"
    NOT_PUBLIC = "not_public"
    ARTEFACT = "artefact"


class SkyheedError(Exception):
    """Root of the tree above; its message is one sentence that says what to do."""


class ConfigError(SkyheedError):
    """A setting is missing, unknown or impossible."""


class ServiceError(SkyheedError):
    """A server refused the request and would refuse it again; retrying is pointless."""


class MissingRight(ServiceError):
    """The server knows the user but does not permit the request."""


class ServiceUnavailable(SkyheedError):
    """A server is unavailable or full; retry later.

    Args:
        sentence: what is wrong, and what to do.
        server: kafka, redis or registry.
    """

    def __init__(self, sentence: str, server: str = "kafka") -> None:
        super().__init__(sentence)
        self.server = server


class StreamError(SkyheedError):
    """A record on a topic is not what its reader expects."""


class PacketError(SkyheedError):
    """One packet cannot be used.

    Args:
        reason: the code under which the packet is counted and can be found.
        detail: one sentence with the offending value.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class SkipPacket(PacketError):
    """One packet is valid but not needed."""
