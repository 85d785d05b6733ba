"""Certificates and keys that settings name and a client library opens: on a pipe or a device it would wait forever."""

import os
import stat
from collections.abc import Iterator, Mapping

from skyheed.broker.errors import ConfigError
from skyheed.broker.settings import Settings

MOST_PEM = 16 * 2**20  # bytes; all authorities of a system have 200 kB
LOCATION = ".location"  # librdkafka's options that name files end so


def check(settings: Settings) -> None:
    """Refuse what is neither a file nor a folder; what is missing or wrong in one the library says itself.

    Raises:
        ConfigError
    """
    for where, path in _named(settings):
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(found.st_mode) and found.st_size > MOST_PEM:
            raise ConfigError(f"{where}: {path} has more than {MOST_PEM // 2**20} MiB: is it the right file?")
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise ConfigError(f"{where}: {path} is not an ordinary file: give a file")


def _named(settings: Settings) -> Iterator[tuple[str, str]]:
    tables: dict[str, Mapping[str, str]] = {"kafka": settings.kafka, "kafka_input": settings.kafka_input}
    tables |= {f"sinks.{name}": table for name, table in settings.sinks.items()}
    for table, options in tables.items():
        yield from ((f"{table}.{key}", path) for key, path in options.items() if key.endswith((LOCATION, "_file")))
    for name in ("redis", "registry", "metrics"):
        own = getattr(settings, name)
        keys = [key for key in ("ca_file", "certificate_file", "key_file") if hasattr(own, key)]
        yield from ((f"{name}.{key}", getattr(own, key)) for key in keys if getattr(own, key))
