"""Options that several verbs share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from skyheed.broker import config
from skyheed.broker.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


def options(*names: str) -> Callable[[F], F]:
    """The options that several verbs share, by name; the function gets one `settings` argument from them."""
    known = {
        "config": click.option("--config", metavar="FILE", help="TOML configuration file."),
        "survey": click.option("--survey", metavar="NAME", help="sdss, ztf, lsst, or the name of a plug-in."),
        "kafka": click.option("--kafka", metavar="HOST:PORT,…", help="Kafka servers."),
        "redis": click.option("--redis", metavar="URL", help="Redis or Valkey, redis://host:port/db."),
    }

    def add(function: F) -> F:
        for name in reversed(names):
            function = known[name](function)
        return function

    return add


def settings_from(given: dict[str, Any], **places: str) -> Settings:
    """Settings from the shared options in `given` and the verb's own, by dotted key."""
    shared = {"survey": "survey", "kafka": "kafka.bootstrap.servers", "redis": "redis.url"}
    dotted = {place: given.get(name) for name, place in {**shared, **places}.items()}
    return config.load(given.get("config"), dotted)


MODELS = click.option(
    "--model", multiple=True, metavar="MODEL", help="Checkpoint directory, or shipped weights (SURVEY/MODEL, or MODEL "
    "of the survey); repeatable. Default: the survey's."
)  # fmt: skip


def models_place(given: dict[str, Any]) -> str:
    """The setting that --model sets: one model, or several."""
    names = list(given["model"])
    given["model"] = names if len(names) > 1 else next(iter(names), None)
    return "work.models" if len(names) > 1 else "work.model"
