"""Plug-ins by name, and the options of their tables in the settings, such as [sinks.lasair] or [providers.rubin]."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from skyheed.broker.errors import ConfigError

SECRETS = ("token", "secret", "password")


def plugins(group: str) -> list[str]:
    """The installed plug-ins of a group of entry points."""
    return sorted(point.name for point in entry_points(group=group))


def plugin(group: str, kind: str, name: str, options: Mapping[str, str]) -> Any:
    """The plug-in of this name, constructed with its options.

    Args:
        kind: for messages: sink or provider.

    Raises:
        ConfigError: no such plug-in, a missing dependency, or an option that cannot work.
    """
    found = [point for point in entry_points(group=group) if point.name == name]
    if not found:
        raise ConfigError(f"there is no {kind} {name!r}: choose one of {', '.join(plugins(group))}")
    try:
        return found[0].load()(options)
    except ModuleNotFoundError as error:
        raise ConfigError(f"the {kind} {name} needs {error.name}: pip install 'skyheed[forward]'") from error


def take(options: Mapping[str, str], known: Mapping[str, str], table: str) -> dict[str, str]:
    """The options, with defaults filled in.

    Raises:
        ConfigError: one is unknown.
    """
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"unknown setting {table}.{unknown[0]}; known here: {', '.join(sorted(known))}")
    return {**known, **options}


def required(options: Mapping[str, str], name: str, table: str, meaning: str) -> str:
    """A required option.

    Raises:
        ConfigError: it is missing.
    """
    if not options.get(name):
        hint = f" (or {name}_file, or {variable(table, name)})" if name in SECRETS else ""
        hint = hint or (f" (or {name}_file)" if name.endswith("password") else "")
        raise ConfigError(f"{table} needs {meaning}: set {table}.{name}{hint}")
    return options[name]


def variable(table: str, name: str) -> str:
    """The environment variable that holds a secret: SKYHEED_FORWARD_TOKEN, SKYHEED_BACKFILL_TOKEN and so on."""
    verb = "FORWARD" if table.startswith("sinks.") else "BACKFILL"
    return f"SKYHEED_{verb}_{name.upper()}"
