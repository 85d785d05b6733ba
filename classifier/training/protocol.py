"""A training run as a TOML file."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from skyheed.classifier import taxonomy, value_checks
from skyheed.classifier.bounded_files import read_file
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models.family import Family, preset

MOST_CONFIGURATION = 2**20  # bytes
SHARED = ("variant", "attention", "band_embedding", "cnn", "time", "dropout")  # of ConvEntion's network, as shortcuts
STEPS = ("short_steps", "steps", "head_steps", "fine_steps", "fine_head_steps")
_KINDS = {
    str: "text in quotes", bool: "true or false", int: "a whole number", float: "a number",
    tuple[str, ...]: "a list of texts", tuple[float, ...]: "a list of numbers", Mapping[str, Any]: "keys and values",
}  # fmt: skip
_AT_LEAST_1 = ("batch", "short_batch", "head_batch", "short_longest", "longest", "bank_views", "every", "models")
_POSITIVE = ("rate", "head_rate")
_SHARES = ("whole", "truncate", "drop", "average", "rehearse")


@dataclass(frozen=True)
class Protocol:
    """One run; the keys of the TOML file.

    Each stage is skipped where its steps are 0. `short`, `whole` and `head` learn from all labels, `fine` and
    `fine_head` from those that spectroscopy confirmed.

    Attributes:
        archive: the training data.
        name: of the checkpoint; it appears in every figure made from it.
        start: begin with the weights of this checkpoint (a directory or a shipped one); empty: with random weights.
        bands: keep only these; empty for all of the archive.
        epochs: what light-curve models see: alerts, the epochs whose stamps image models see; all, also every visit
            for which no alert was sent, such as those before the first one (for models that read photometry).
        model: what is trained, a name of `skyheed model list`.
        network: changes to the configuration of that model.
        objective: `name` of what is minimised and its settings; empty for the model's default.
        variant, attention, band_embedding, cnn, time, dropout: of ConvEntion's network, as shortcuts.
        stamps: number of stamps in the longest history.
        classes: those to distinguish; if there is a custom taxonomy, all of its classes by default.
        taxonomy: custom classes instead of the standard ones, see `taxonomy.from_mapping`.
        objects: number of training objects, evenly by class (at natural frequencies if not `balanced`); 0 for all.
        validation: the same for the objects used to select the weights and calibrate.
        short_steps: everything learns, from views of at most `short_longest` stamps: many objects at low cost.
        steps: everything learns, from views of at most `longest` stamps, a fraction `whole` of up to 99.
        head_steps: the 3D-CNN is frozen and everything after it learns from tokens computed once.
        fine_steps, fine_head_steps: the same on confirmed labels.
        rehearse: in these two stages, the fraction of objects drawn from all labels, to prevent forgetting of what the
            few confirmed ones do not show.
        batch, short_batch, head_batch: views per step.
        bank_views: views of each object whose tokens are computed for the head.
        rate, head_rate: the highest learning rates; a quarter of them on confirmed labels.
        truncate, drop: see `dataset.Augmentation`.
        balanced: draw classes equally often (weighted random sampling), and correct the prior afterwards.
        prefixes: number of beginnings of each view that are also classified.
        photometry: weight of the loss for predicting fluxes from tokens; 0 as published.
        average: decay per step of the exponential mean of the weights, which is what is measured.
        prior: relative frequency of each class assumed by the served probabilities; empty: equal.
        cpu_seconds: CPU time of the process after which the stages end, even if steps are left; 0: no limit. The
            learning rate follows steps or time, whichever is closer to its end.
        every: steps between two measurements.
        patience: measurements without a better macro-F1 after which a stage stops; 0: never.
        blocks, models: number of object-disjoint folds, and models for each; 0 blocks: the archive's own splits.
        device, autocast: where to compute, and bfloat16 where it is native.
        threads: number of CPU threads; 0 for all.
    """

    archive: str
    name: str = "convention"
    version: str = "1"
    start: str = ""
    bands: str = ""
    epochs: str = "alerts"
    model: str = "convention"
    network: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    variant: str = "stream"
    attention: str = "linear"
    band_embedding: str = "learned"
    cnn: str = "3d"
    time: str = "both"
    classes: tuple[str, ...] = taxonomy.CLASSES
    taxonomy: Mapping[str, Any] = field(default_factory=dict)
    dropout: float = 0.3
    stamps: int = 99
    objects: int = 0
    validation: int = 0
    short_steps: int = 0
    steps: int = 0
    head_steps: int = 0
    fine_steps: int = 0
    fine_head_steps: int = 0
    rehearse: float = 0.0
    batch: int = 16
    short_batch: int = 48
    head_batch: int = 64
    short_longest: int = 9
    longest: int = 36
    whole: float = 0.06
    bank_views: int = 2
    rate: float = 1.5e-3
    head_rate: float = 1e-3
    weight_decay: float = 0.05
    truncate: float = 0.4
    drop: float = 0.3
    balanced: bool = True
    prefixes: int = 3
    photometry: float = 0.3
    average: float = 0.99
    prior: tuple[float, ...] = ()
    cpu_seconds: int = 0
    every: int = 250
    patience: int = 0
    blocks: int = 0
    models: int = 1
    seed: int = 1
    device: str = "auto"
    autocast: bool = True
    threads: int = 0

    @property
    def family(self) -> Family:
        """The family of the model to be trained.

        Raises:
            ModelError: there is no such model.
        """
        return preset(self.model).family

    def configuration(self) -> dict[str, Any]:
        """The configuration of the network.

        Raises:
            ModelError: there is no such model, or a key belongs to another one.
        """
        own = preset(self.model)
        short = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name in SHARED and getattr(self, f.name) != f.default
        }
        if short and own.family.name != "convention":
            raise ModelError(f"{min(short)} is a key of ConvEntion: give {self.model} its own keys in [network]")
        return {**own.network, **short, **self.network, "classes": len(self.classes), "stamps": self.stamps}

    def minimised(self) -> dict[str, Any]:
        """The objective and its settings."""
        return {"name": "cross-entropy", **preset(self.model).objective, **self.objective}


def from_mapping(given: Mapping[str, Any], where: str | Path) -> Protocol:
    """A protocol from its keys.

    Raises:
        ModelError: an unknown or missing key, or an invalid value.
    """
    known = {f.name for f in fields(Protocol)}
    if unknown := sorted(set(given) - known):
        raise ModelError(f"{where}: unknown key {unknown[0]}; known are {', '.join(sorted(known))}")
    if "archive" not in given:
        raise ModelError(f"{where}: archive is missing: name the archive to train on")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    if "classes" not in values and isinstance(values.get("taxonomy"), Mapping):
        values["classes"] = tuple(values["taxonomy"].get("classes", taxonomy.CLASSES))
    made = Protocol(**values)
    check(made, where)
    return made


def check(protocol: Protocol, where: str | Path) -> None:
    """Refuse, before anything is computed, settings that cannot be trained or would have no effect.

    Args:
        where: the file, for the error message.

    Raises:
        ModelError: names the first invalid key.
    """
    try:
        for rule in (_types, _numbers, _data, _prior, _stages):
            rule(protocol)
        needs = protocol.family.needs(protocol.family.configure(protocol.configuration()))
        if protocol.epochs == "all" and not needs.photometry:
            raise ModelError(
                f"epochs is all, but {protocol.model} would not read them: give a light-curve model, and "
                "network = { photometry = true }"
            )
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error


def _types(p: Protocol) -> None:
    for key in fields(p):
        value = getattr(p, key.name)
        if not _is(value, key.type):
            raise ModelError(f"{key.name} is {value_checks.shown(value)}: give {_KINDS[key.type]}")  # type: ignore[index]


def _is(value: Any, kind: Any) -> bool:
    if kind == Mapping[str, Any]:
        return isinstance(value, Mapping)
    if parts := get_args(kind):
        return isinstance(value, tuple) and all(_is(part, parts[0]) for part in value)
    if kind is float:
        return value_checks.is_number(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _numbers(p: Protocol) -> None:
    for key in fields(p):
        value = getattr(p, key.name)
        if key.type is int:
            value_checks.count(key.name, value, 1 if key.name in _AT_LEAST_1 else 0)
        elif key.name in _POSITIVE:
            value_checks.positive(key.name, value)
        elif key.type is float:
            value_checks.number(key.name, value, 0, *[1] * (key.name in _SHARES))
    if p.blocks == 1:
        raise ModelError("blocks is 1, which leaves no objects to learn from: give 0, or 2 or more")


def _data(p: Protocol) -> None:
    value_checks.text("archive", p.archive)
    value_checks.classes(p.classes, taxonomy.from_mapping(p.taxonomy).ids)
    value_checks.bands(p.bands)
    value_checks.choice("epochs", p.epochs, ("alerts", "all"))
    for key in ("objects", "validation"):
        if 0 < (value := getattr(p, key)) < len(p.classes):
            raise ModelError(f"{key} is {value}, fewer than the classes: give {len(p.classes)} or more, or 0 for all")


def _prior(p: Protocol) -> None:
    if not p.prior:
        return
    if len(p.prior) != len(p.classes):
        raise ModelError(f"prior has {len(p.prior)} values for {len(p.classes)} classes: give one for each")
    value_checks.positive("prior", *p.prior)
    if not p.balanced:
        raise ModelError(
            "prior would be ignored, as balanced is false and classes keep their shares: leave one of them out"
        )


def _stages(p: Protocol) -> None:
    if not any(getattr(p, key) for key in STEPS):
        raise ModelError(f"{', '.join(STEPS)} are all 0, so nothing would be trained: set at least one")
    for key in ("head_steps", "fine_head_steps"):
        if (value := getattr(p, key)) and not _keeps_tokens(p):
            raise ModelError(f"{key} is {value}, but {p.model} keeps no tokens to learn from: set it to 0")


def _keeps_tokens(p: Protocol) -> bool:
    """Whether the network is ConvEntion's, with tokens that never change."""
    return p.family.name == "convention" and p.configuration().get("variant", "stream") == "stream"


def load(path: str | Path) -> dict[str, Any]:
    """The keys and values of a TOML file.

    Raises:
        ModelError: it cannot be read.
    """
    data = read_file(Path(path), MOST_CONFIGURATION, ModelError)
    try:
        return tomllib.loads(data.decode("utf-8-sig"))  # Windows editors write a byte order mark
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ModelError(f"cannot read the training configuration {path}: {error}") from error


def read(path: str | Path, changes: Mapping[str, Any] | None = None) -> Protocol:
    """A protocol from its file, with some keys changed.

    Raises:
        ModelError: unreadable file, an unknown key, or an invalid value.
    """
    return from_mapping(load(path) | dict(changes or {}), path)
