"""Settings: one TOML file, the environment and the command line, in increasing order of precedence.

This is the only module that reads the environment. Secrets come from the environment or from a file that a
`*_file` key names; the command line refuses them, because everyone on the machine can read it.

    survey = "ztf"

    [kafka]                                   # skyheed's cluster: classifications, dead letters (and alerts)
    "bootstrap.servers" = "kafka:9092"        # any librdkafka option
    [kafka_input]                             # the cluster the alerts come from, if it is a different one
    "bootstrap.servers" = "public.alerts.example:9092"
    "sasl.password_file" = "/run/secrets/alerts"
    [redis]
    url = "redis://valkey:6379/0"
    [ingest]
    topics = ["^ztf_.*_programid1$"]
"""

import errno
import math
import os
import re
import select
import time
import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from skyheed.broker import named_files, settings_rules
from skyheed.broker.errors import ConfigError
from skyheed.broker.settings import Settings
from skyheed.broker.urls import redacted_url as redacted_url

# Environment variable -> setting. Secrets have no other short form.
ENVIRONMENT = {
    "SKYHEED_SURVEY": ("survey",),
    "SKYHEED_KAFKA": ("kafka", "bootstrap.servers"),
    "SKYHEED_KAFKA_USER": ("kafka", "sasl.username"),
    "SKYHEED_KAFKA_PASSWORD": ("kafka", "sasl.password"),
    "SKYHEED_KAFKA_INPUT": ("kafka_input", "bootstrap.servers"),
    "SKYHEED_KAFKA_INPUT_USER": ("kafka_input", "sasl.username"),
    "SKYHEED_KAFKA_INPUT_PASSWORD": ("kafka_input", "sasl.password"),
    "SKYHEED_REDIS": ("redis", "url"),
    "SKYHEED_REDIS_PASSWORD": ("redis", "password"),
    "SKYHEED_REGISTRY": ("registry", "url"),
    "SKYHEED_REGISTRY_USER": ("registry", "user"),
    "SKYHEED_REGISTRY_PASSWORD": ("registry", "password"),
    "SKYHEED_MODEL": ("work", "model"),
    "SKYHEED_FORWARD_TOKEN": ("forward", "token"),
    "SKYHEED_FORWARD_SECRET": ("forward", "secret"),
    "SKYHEED_BACKFILL_TOKEN": ("backfill", "token"),
}
SECRET_FILES = ("password_file", "token_file", "secret_file")
_SECRET = re.compile(r"password|token|secret")
MOST_SECRET = 2**16  # bytes in a password file
MOST_SETTINGS = 2**20  # in a configuration
PIPE_S = 10.0  # a pipe's writer may be silent for this long
WHOLE_PIPE_S = 30.0  # until all has come
CONFIG_VARIABLE = "SKYHEED_CONFIG"
MODELS = {("work", "model"), ("work", "models")}  # one, or several
# Settings a user may well forget; everything else has a working default.
DEFAULT_KAFKA = "127.0.0.1:9092"


def load(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings: `overrides` (dotted key -> value, from the command line) over environment over file.

    Raises:
        ConfigError: an unknown key, a wrong type, an unreadable file, or a secret on the command line.
    """
    environ = os.environ if environ is None else environ
    path = path or environ.get(CONFIG_VARIABLE)
    tree = _read_toml(Path(path)) if path else {}
    # line ends as in an .env file that Windows wrote
    named = {place: environ[name].rstrip("\r\n") for name, place in ENVIRONMENT.items() if environ.get(name)}
    asked = {dotted: value for dotted, value in (overrides or {}).items() if value is not None}
    for dotted, value in asked.items():
        _refuse_secret(dotted, value)
    for stronger in (named, {_split(dotted): value for dotted, value in asked.items()}):
        _lay_over(tree, stronger)
    settings: Settings = _build(Settings, tree, "")
    settings_rules.check(settings)
    named_files.check(settings)
    return replace(
        settings,
        kafka={"bootstrap.servers": DEFAULT_KAFKA, **settings.kafka},
        kafka_named="bootstrap.servers" in settings.kafka,
        redis_named="url" in tree.get("redis", {}),
    )


def _read_toml(path: Path) -> dict[str, Any]:
    """The tree of a file, with the secrets that it says are in others."""
    try:
        data = _read(path, MOST_SETTINGS + 1)
        if len(data) > MOST_SETTINGS:
            raise ConfigError(f"the configuration {path} has more than {MOST_SETTINGS} bytes: is it the right file?")
        tree = tomllib.loads(data.decode("utf-8-sig"))
        _read_secret_files(tree, "")  # tables in tables without end are found out here
        return tree
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 (byte {error.start}), which TOML has to be") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _read_secret_files(tree: dict[str, Any], where: str) -> None:
    for key, value in list(tree.items()):
        if isinstance(value, dict):
            _read_secret_files(value, f"{where}{key}.")
        elif key.endswith(SECRET_FILES):
            del tree[key]
            tree[key.removesuffix("_file")] = _read_secret(value, f"{where}{key}")


def _read_secret(path: Any, where: str) -> str:
    if not isinstance(path, str):
        raise ConfigError(f"{where} must be the path of a file")
    return read_secret(Path(path), where)


def _read(path: Path, most: int) -> bytes:
    """The first bytes of a file, or of a pipe such as <(pass show …), whose writer may be silent for `PIPE_S` and take
    `WHOLE_PIPE_S` for everything."""
    found, deadline = b"", time.monotonic() + WHOLE_PIPE_S
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        while len(found) < most:
            part = file.read(most - len(found))
            if part is None and not select.select([file], [], [], PIPE_S)[0]:
                raise OSError(errno.ETIMEDOUT, f"it sent nothing for {PIPE_S:g} s")
            if time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, f"it is not complete after {WHOLE_PIPE_S:g} s")
            if part == b"":
                break
            found += part or b""
    return found


def read_secret(path: Path, where: str) -> str:
    """The single line of a file that only this user should be able to read.

    Raises:
        ConfigError: it cannot be read, or holds more than one line.
    """
    try:
        data = _read(path, MOST_SECRET + 1)
        if len(data) > MOST_SECRET:
            raise ConfigError(f"{where}: {path} has more than {MOST_SECRET} bytes: is it the right file?")
        secret = data.decode("utf-8-sig").rstrip("\r\n")
    except OSError as error:
        # what is no whole path may be the secret itself, written where its file belongs
        shown = path if path.is_absolute() else "the file that it names"
        raise ConfigError(f"{where}: cannot read {shown}: {error.strerror}") from None
    except UnicodeDecodeError:  # not chained: that error contains the file's bytes
        raise ConfigError(f"{where}: {path} is not text in UTF-8") from None
    if not secret:
        raise ConfigError(f"{where}: {path} is empty")
    if len(secret.splitlines()) > 1 or "\0" in secret:
        raise ConfigError(f"{where}: {path} holds more than one line of text: write the password and nothing else")
    return secret


def _split(dotted: str) -> tuple[str, ...]:
    # librdkafka's own names contain dots: only the first dot separates
    return tuple(dotted.split(".", 1))


def _lay_over(tree: dict[str, Any], stronger: Mapping[tuple[str, ...], Any]) -> None:
    """Values of a source that takes precedence; the models it names, one or several, replace those of the others."""
    work = tree.get("work")
    if MODELS & stronger.keys() and isinstance(work, dict):
        for _, key in MODELS:
            work.pop(key, None)
    for place, value in stronger.items():
        _put(tree, place, value)


def _put(tree: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    for part in place[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{part} is a table: write [{part}]")
    tree[place[-1]] = value


def _refuse_secret(dotted: str, value: Any) -> None:
    if _SECRET.search(dotted) or (isinstance(value, str) and redacted_url(value) != value):
        raise ConfigError(
            f"a password on the command line ({dotted}) can be read by everyone on this machine: "
            "put it into the environment (SKYHEED_KAFKA_PASSWORD, SKYHEED_REDIS_PASSWORD) or a password_file"
        )


def _build(cls: type, tree: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls) if not f.name.endswith("_named")}
    unknown = sorted(set(tree) - known)
    if unknown:
        raise ConfigError(f"unknown setting {where}{unknown[0]}; known here: {', '.join(sorted(known))}")
    return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in tree.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is a table: write [{where}]")
        return _build(kind, value, f"{where}.")  # type: ignore[arg-type]
    if get_origin(kind) is Mapping:
        return _options(value, where) if get_args(kind)[1] is str else _option_tables(value, where)
    if get_origin(kind) is tuple:
        part = get_args(kind)[0]
        return _tables(part, value, where) if is_dataclass(part) else _names(value, where)
    return _scalar(kind, value, where)


def _options(value: Any, where: str) -> dict[str, str]:
    """librdkafka takes strings; TOML booleans become true and false."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is a table of options: write [{where}]")
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            raise ConfigError(f'{where}.{key}: write librdkafka options quoted, as in "{key}.{next(iter(item), "")}"')
        flat[key] = str(item).lower() if isinstance(item, bool) else str(item)
    return flat


def _option_tables(value: Any, where: str) -> dict[str, dict[str, str]]:
    """Tables of options by name, [where.NAME]."""
    if not isinstance(value, Mapping) or not all(isinstance(item, Mapping) for item in value.values()):
        raise ConfigError(f"{where} is a table of tables: write [{where}.NAME]")
    return {name: _options(item, f"{where}.{name}") for name, item in value.items()}


def _tables(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    """[[where]] of a file; names alone from the command line."""
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} is a list of tables: write [[{where}]]")
    tables = [{"model": item} if isinstance(item, str) else item for item in value]
    return tuple(_convert(kind, item, f"{where}[{n}]") for n, item in enumerate(tables))


def _names(value: Any, where: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{where} must be a name or a list of names")
    return tuple(names)


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        shown = "" if _SECRET.search(where) else f", not {value!r}"
        raise ConfigError(f"{where} must be {kind.__name__}{shown}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, not {value}")
    return value


def child_environment(secrets: Mapping[str, str]) -> dict[str, str]:
    """This environment plus `secrets`, for a child daemon: unlike its arguments, no other user can read it."""
    return {**os.environ, **secrets}


def with_servers(settings: Settings, kafka: str, redis: str, redis_password: str = "") -> Settings:
    """The same settings on other servers (the embedded ones)."""
    return replace(
        settings,
        kafka={**settings.kafka, "bootstrap.servers": kafka},
        kafka_input={},
        redis=replace(settings.redis, url=redis, password=redis_password or settings.redis.password),
    )
