"""The options of a plug-in's table in the settings, such as [sinks.lasair] or [providers.rubin]."""

from collections.abc import Mapping

from skyheed.broker.errors import ConfigError

SECRETS = ("token", "secret", "password")


def take(options: Mapping[str, str], known: Mapping[str, str], table: str) -> dict[str, str]:
    """The options over their defaults.

    Raises:
        ConfigError: one is unknown.
    """
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"unknown setting {table}.{unknown[0]}; known here: {', '.join(sorted(known))}")
    return {**known, **options}


def required(options: Mapping[str, str], name: str, table: str, meaning: str) -> str:
    """An option that has no default.

    Raises:
        ConfigError: it is missing.
    """
    if not options.get(name):
        hint = f" (or {name}_file, or {variable(table, name)})" if name in SECRETS else ""
        raise ConfigError(f"{table} needs {meaning}: set {table}.{name}{hint}")
    return options[name]


def variable(table: str, name: str) -> str:
    """The environment variable that holds a secret: SKYHEED_FORWARD_TOKEN, SKYHEED_BACKFILL_TOKEN and so on."""
    verb = "FORWARD" if table.startswith("sinks.") else "BACKFILL"
    return f"SKYHEED_{verb}_{name.upper()}"
