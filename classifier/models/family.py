"""Families of models: what configures a network, and the registry of families. Loads no torch by itself.

A family is found through the entry-point group `skyheed.models`, so that other packages can provide one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from skyheed.classifier import value_checks
from skyheed.classifier.errors import ModelError
from skyheed.classifier.history import LONGEST
from skyheed.classifier.prediction import Needs

if TYPE_CHECKING:
    from skyheed.classifier.models.base import Model, Network
    from skyheed.classifier.models.checkpoint import Info
    from skyheed.classifier.serving import Where

GROUP = "skyheed.models"


@dataclass(frozen=True)
class Config:
    """The configuration of a network; a family adds fields with defaults, of type int, float, bool, str or Literal.

    Attributes:
        classes: how many.
        stamps: epochs of the longest history.
    """

    classes: int = 4
    stamps: int = LONGEST

    def __post_init__(self) -> None:
        for key in fields(self):
            value = getattr(self, key.name)
            if key.type is int:
                value_checks.size(key.name, value)
            elif key.type is float:
                value_checks.number(key.name, value, 0, 1)
            elif key.type is bool:
                value_checks.switch(key.name, value)
            elif key.type is str:
                value_checks.text(key.name, value)
            else:
                value_checks.choice(key.name, value, get_args(key.type))
        self.check()

    def check(self) -> None:
        """Refuse inconsistent values.

        Raises:
            ModelError: in one sentence that names the key.
        """

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Family:
    """One kind of network.

    Attributes:
        name: in `model.json` and in training configurations.
        config: its `Config`.
        network: its `Network`; takes the config alone.
        presets: name in `skyheed model list` -> its settings; the key `objective` sets what is minimised.
        summary: one sentence for `skyheed model list`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    config: ClassVar[type[Any]]
    network: ClassVar[type[Any]]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]

    def configure(self, values: Mapping[str, Any]) -> Any:
        """A config from plain values.

        Raises:
            ModelError: an unknown key, or an invalid value.
        """
        known = {field.name for field in fields(self.config)}
        if unknown := sorted(set(values) - known):
            raise ModelError(
                f"the family {self.name} does not know the key {unknown[0]}; it knows {', '.join(sorted(known))}"
            )
        return self.config(**values)

    def needs(self, config: Any) -> Needs:
        """What a network of this configuration needs from a history."""
        raise NotImplementedError

    def build(self, config: Any) -> "Network":
        """A network with random weights."""
        made: Network = self.network(config)
        return made

    def serve(self, network: "Network", info: "Info", where: "Where") -> "Model":
        """A network ready to serve; by default it is computed in full for every prediction.

        Raises:
            ModelError: this configuration cannot be served.
        """
        from skyheed.classifier.serving import Served

        return Served(network, info, where)

    def served_parameters(self, network: "Network") -> int:
        """Number of parameters when served; fewer than trained if layers are folded."""
        return sum(p.numel() for p in network.parameters())

    def facts(self, config: Any) -> dict[str, Any]:
        """Further facts for `skyheed model describe`, such as `parameters_encoder`."""
        return {}

    def operations(self, config: Any, stamps: int) -> int:
        """Multiply-adds of one update of a history that has reached this many epochs, making use of cached values."""
        raise NotImplementedError


def families() -> Mapping[str, Family]:
    """Every family that is installed, by name."""
    return {point.name: family(point.name) for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


@cache
def family(name: str) -> Family:
    """The family of a name.

    Raises:
        ModelError: there is none.
    """
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name not in known:
        raise ModelError(f"no model family {name}: known are {', '.join(sorted(known))}; install the package it is in")
    made: Family = known[name].load()()
    return made


@dataclass(frozen=True)
class Preset:
    """A name in `skyheed model list`: its family, and differences from the family's defaults."""

    family: Family
    network: Mapping[str, Any]
    objective: Mapping[str, Any]


def presets() -> dict[str, Preset]:
    """Every model that can be trained, by name."""
    return {name: _preset(own, values) for own in families().values() for name, values in own.presets.items()}


def known_presets() -> list[str]:
    """The names of `presets`."""
    return sorted(presets())


def preset(name: str) -> Preset:
    """The model of a name.

    Raises:
        ModelError: there is none.
    """
    if name == "convention":  # does not need the other families or torch
        return _preset(family(name), family(name).presets[name])
    known = presets()
    if name not in known:
        raise ModelError(f"no model {name}: known are {', '.join(sorted(known))}")
    return known[name]


def _preset(own: Family, values: Mapping[str, Any]) -> Preset:
    network = {key: value for key, value in values.items() if key != "objective"}
    return Preset(own, network, values.get("objective", {}))
