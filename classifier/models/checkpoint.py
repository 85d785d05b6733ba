"""Checkpoints: weights as safetensors, everything else as JSON alongside them; never pickle.

A checkpoint is a directory with `weights.safetensors` and `model.json`. The JSON contains all that is needed to
reproduce a prediction, the SHA-256 of the weights, so that damaged or mixed-up files are detected, and that of its
other content.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from skyheed.classifier import taxonomy, value_checks
from skyheed.classifier.bounded_files import open_regular, read_file
from skyheed.classifier.errors import ModelError
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import BANDS
from skyheed.classifier.models import priors
from skyheed.classifier.models.convention import groups as sequence
from skyheed.classifier.models.family import family, known_presets

FORMAT = 1
WEIGHTS, MODEL = "weights.safetensors", "model.json"
EXPORT = "onnx.json"  # the card of an export to ONNX (`models.onnx.folder`)
MOST_CARD = 16 * 2**20  # bytes of model.json; the shipped ones have 30 kB
MOST_WEIGHTS = 16 * 2**30  # bytes; the shipped ones have 2 MB
MOST_HEADER = 16 * 2**20  # bytes of names and shapes in safetensors, which are parsed as JSON
CARD_DIGEST = "card_digest"  # key of the JSON: SHA-256 of everything else in it
SHIPPED = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class Calibration:
    """From logits to probabilities: softmax(logits / temperature(n)) * prior, normalised.

    Attributes:
        stamps, temperatures: temperature at this many stamps, linear in log(n) between.
        prior: of each class, relative to the class shares that the model was trained with.
    """

    stamps: tuple[float, ...] = (1.0,)
    temperatures: tuple[float, ...] = (1.0,)
    prior: tuple[float, ...] = ()

    def __call__(self, logits: "np.ndarray[Any, Any]", stamps: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """[b, classes] logits of sequences with stamps [b] -> probabilities."""
        temperature = np.interp(np.log(stamps), np.log(self.stamps), self.temperatures)
        scaled = logits.astype(np.float64) / temperature[:, None]
        if self.prior:
            scaled = scaled + np.log(np.asarray(self.prior))
        p = np.exp(scaled - scaled.max(1, keepdims=True))
        normalised: np.ndarray[Any, Any] = (p / p.sum(1, keepdims=True)).astype(np.float32)
        return normalised


@dataclass(frozen=True)
class Info:
    """The description of a checkpoint; `model.json` contains the same.

    Attributes:
        family: model family (`models.family`); checkpoints of release 0.1 name none and are ConvEntion's.
        config: configuration of that family.
        bands: letters of the bands that the model was trained on.
        surveys: the surveys whose stamps it was trained on.
        taxonomy, class_ids, members: version of the taxonomy, numbers of its classes, and their members
            (`taxonomy.Taxonomy`); checkpoints of release 0.1 have the standard classes and get their present numbers.
        training: how it was made: command, protocol, data card, seeds.
        metrics: measured at the end of training, with the name of the data.
        digest: SHA-256 of the weights.
    """

    name: str
    version: str
    config: Mapping[str, Any]
    classes: tuple[str, ...]
    bands: str
    surveys: tuple[str, ...]
    scaling: Scaling
    calibration: Calibration
    preprocessing: str = sequence.VERSION
    taxonomy: str = taxonomy.VERSION
    class_ids: Mapping[str, int] = field(default_factory=lambda: dict(taxonomy.CLASS_IDS))
    members: Mapping[str, Sequence[str]] = field(default_factory=dict)
    max_stamps: int = 99
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    format: int = FORMAT
    family: str = "convention"


def resolve(name: str | Path, survey: str = "") -> Path:
    """The directory of a checkpoint.

    Args:
        name: a directory, or shipped weights: SURVEY (its default), SURVEY/MODEL, or MODEL alone.
        survey: for MODEL alone.

    Raises:
        ModelError: there is none.
    """
    for path in (Path(name), SHIPPED / str(name), SHIPPED / survey / str(name), SHIPPED / str(name) / default(name)):
        if os.path.isfile(path / MODEL):  # also False for impossible file names
            return path
    if str(name).rpartition("/")[2] in known_presets():
        raise ModelError(
            f"there are no weights of {name}{f' for {survey}' * bool(survey)}: train them (skyheed train) and give "
            f"their directory, or choose one of the shipped ones: {', '.join(shipped_names())}"
        )
    raise ModelError(
        f"no model {name}: give a checkpoint directory, or one of the shipped ones: {', '.join(shipped_names())}"
    )


def default(survey: str | Path) -> str:
    """The model that a survey is served with by default; "" if it has no weights."""
    found: dict[str, str] = json.loads((SHIPPED / "defaults.json").read_text())
    return found.get(str(survey), "")


def shipped_name(name: str | Path, surveys: Sequence[str]) -> str:
    """The name of a shipped checkpoint within its survey, as in SURVEY/MODEL; "" for one that is not shipped."""
    if is_export(name):
        return ""
    for survey in surveys:
        path = resolve(name, survey)
        if path.parent.parent == SHIPPED:
            return path.name
    return ""


def is_shipped(name: str | Path, survey: str = "") -> bool:
    """Whether these are weights that come with skyheed.

    Raises:
        ModelError: there are none of this name.
    """
    return resolve(name, survey).parent.parent == SHIPPED


def shipped_names() -> list[str]:
    """The names of all checkpoints that come with skyheed, SURVEY/MODEL."""
    return sorted(str(p.parent.relative_to(SHIPPED)) for p in SHIPPED.glob(f"*/*/{MODEL}"))


def save(directory: str | Path, state: Mapping[str, Any], info: Info) -> Info:
    """Write a checkpoint; the JSON comes last, so that a partly written one is never loaded.

    Args:
        state: name -> torch tensor.

    Raises:
        ModelError: the parts of `info` are inconsistent; nothing is written.
    """
    from safetensors.torch import save_file

    check(info)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / WEIGHTS
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights)
    return _write_card(directory, info, _digest(weights))


def describe_training(directory: str | Path, **said: Any) -> Info:
    """Add information about a checkpoint's training to its card; the weights are unchanged.

    Raises:
        ModelError: see `read_info`.
    """
    info = read_info(directory)
    return _write_card(Path(directory), replace(info, training={**info.training, **said}), info.digest)


def _write_card(directory: Path, info: Info, digest: str) -> Info:
    complete = json.loads(json.dumps({**asdict(info), "digest": digest}))
    complete[CARD_DIGEST] = _card_digest(complete)
    temporary = directory / f".{MODEL}"
    temporary.write_text(json.dumps(complete, indent=1) + "\n")
    temporary.replace(directory / MODEL)
    return read_info(directory)


def read_info(name: str | Path, survey: str = "") -> Info:
    """The description of a checkpoint (named as for `resolve`), with its weights verified.

    Raises:
        ModelError: there is none, or it is damaged or from another version.
    """
    directory = resolve(name, survey)
    path = directory / MODEL
    try:
        given = json.loads(read_file(path, MOST_CARD, ModelError))
        info = _info(given, path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}): get the checkpoint again") from error
    try:
        check(info)
    except ModelError as error:
        raise ModelError(f"{path} cannot be used ({error}): get the checkpoint again") from error
    if not (directory / WEIGHTS).is_file() or _digest(directory / WEIGHTS) != info.digest:
        raise ModelError(f"{directory / WEIGHTS} does not match its {MODEL}: get the checkpoint again")
    # checkpoints of earlier versions have no digest of the card
    if CARD_DIGEST in given and given[CARD_DIGEST] != _card_digest(given):
        raise ModelError(f"{path} was changed after it was written: get the checkpoint again")
    return info


def from_card(given: Any, path: Path) -> Info:
    """The description from a card stored in another file; the family is not checked.

    Raises:
        ModelError, ValueError, KeyError, TypeError, AttributeError: the card is invalid.
    """
    info = _info(given, path)
    _check_words(info)
    return info


def _info(given: Any, path: Path) -> Info:
    if not isinstance(given, dict):
        raise ValueError("it has no keys")
    if given.get("format") != FORMAT:
        raise ModelError(f"{path} has format {given.get('format')}, this version reads {FORMAT}")
    known = {f.name for f in fields(Info)}
    values = {key: value for key, value in given.items() if key in known}
    if "class_ids" not in given:
        values["taxonomy"] = taxonomy.VERSION
    values |= {key: _listed(given[key], key) for key in ("classes", "surveys")}
    scaling, calibration = given["scaling"], given["calibration"]
    unit = _listed(scaling.get("flux_unit", []), "flux_unit")
    values["scaling"] = Scaling(_listed(scaling["softening"], "softening"), scaling["gain"], unit)
    values["calibration"] = Calibration(**{key: _listed(value, key) for key, value in calibration.items()})
    return Info(**values)


def _listed(value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{key} is not a list")
    return tuple(value)


def check(info: Info) -> None:
    """Refuse an inconsistent description.

    Raises:
        ModelError: names the first invalid value.
    """
    _check_words(info)
    _check_config(info)


def _check_words(info: Info) -> None:
    """Check everything that does not depend on the family."""
    for key in ("name", "version", "family", "bands", "preprocessing", "taxonomy"):
        value_checks.text(key, getattr(info, key))
    for survey in info.surveys:
        value_checks.text("surveys", survey)
    for key in ("config", "training", "metrics"):
        if not isinstance(getattr(info, key), Mapping):
            raise ModelError(f"{key} is {value_checks.shown(getattr(info, key))}: give keys and values")
    value_checks.bands(info.bands)
    value_checks.classes(info.classes, info.class_ids)
    for name, number in info.class_ids.items():
        value_checks.count(f"class_ids.{name}", number, 1)
    _check_scaling(info.scaling)
    _check_calibration(info.calibration, len(info.classes))


def _check_config(info: Info) -> None:
    try:
        config = family(info.family).configure(info.config)
    except ImportError as error:
        if error.name != "torch":
            raise
        return  # most families need torch even to be configured; without it, a card can still be read
    if config.classes != len(info.classes):
        raise ModelError(f"config has {config.classes} classes, classes names {len(info.classes)}: give as many")
    value_checks.count("max_stamps", info.max_stamps, 1)
    if info.max_stamps > config.stamps:
        raise ModelError(f"max_stamps is {info.max_stamps}, but config takes {config.stamps} stamps: give no more")


def _check_scaling(scaling: Scaling) -> None:
    if len(scaling.softening) != len(BANDS):
        raise ModelError(f"softening has {len(scaling.softening)} values: give one for each of {BANDS}")
    value_checks.positive("softening", *scaling.softening)
    value_checks.positive("gain", scaling.gain)
    if len(scaling.flux_unit) not in (0, len(BANDS)):
        raise ModelError(f"flux_unit has {len(scaling.flux_unit)} values: give one for each of {BANDS}")
    value_checks.positive("flux_unit", *scaling.flux_unit)


def _check_calibration(calibration: Calibration, classes: int) -> None:
    stamps, temperatures, prior = calibration.stamps, calibration.temperatures, calibration.prior
    value_checks.positive("calibration.stamps", *stamps)
    value_checks.positive("calibration.temperatures", *temperatures)
    value_checks.positive("calibration.prior", *prior)
    if not stamps or len(stamps) != len(temperatures):
        raise ModelError(f"calibration has {len(temperatures)} temperatures for {len(stamps)} stamps: give as many")
    if any(after <= before for before, after in pairwise(stamps)):
        raise ModelError(f"calibration.stamps is {value_checks.shown(list(stamps))}: give them in rising order")
    if len(prior) not in (0, classes):
        raise ModelError(f"calibration.prior has {len(prior)} values for {classes} classes: give one for each, or none")


def load_state(name: str | Path, survey: str = "") -> dict[str, Any]:
    """The weights of a checkpoint, name -> torch tensor."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = resolve(name, survey) / WEIGHTS
    try:
        state: dict[str, Any] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{resolve(name, survey) / WEIGHTS} cannot be read ({error}): get the checkpoint again"
        ) from error
    return state


def check_survey(info: Info, survey: str, *, any_survey: bool = False) -> None:
    """Raise ModelError if the model was made for other surveys or with different preprocessing."""
    if survey not in info.surveys and not any_survey:
        raise ModelError(
            f"the model {info.name} was trained for {', '.join(info.surveys)}, not for {survey}: choose another model"
        )
    if info.preprocessing != sequence.VERSION:
        raise ModelError(
            f"the model {info.name} was trained with preprocessing {info.preprocessing}, this version makes "
            f"{sequence.VERSION}: train it again"
        )


def is_export(name: str | Path) -> bool:
    """Whether a model is a folder with an export to ONNX."""
    return os.path.isfile(Path(name) / EXPORT)  # also False for impossible file names


def card_of(name: str | Path, survey: str = "") -> Info:
    """The description of a model: a checkpoint, or a folder with an export to ONNX.

    Raises:
        ModelError: see `read_info`.
    """
    from skyheed.classifier.models.onnx.folder import read_export

    return read_export(Path(name)).info if is_export(name) else read_info(name, survey)


def describe(name: str | Path, survey: str, prior: str = "") -> str:
    """One sentence about the checkpoint or export that a survey would be served with.

    Raises:
        ModelError: the survey cannot be served with it, or not with that prior.
    """
    info = card_of(name, survey)
    check_survey(info, survey)
    if prior:
        info = priors.assuming(info, priors.class_prior(prior, info.classes))
    return (
        f"{info.name} {info.version}, weights {info.digest[:12]}, bands {info.bands}, classes {', '.join(info.classes)}"
    )


def _digest(path: Path) -> str:
    """SHA-256 of the weights, after checking that their size is acceptable."""
    with open_regular(path, ModelError) as file:
        size, begin = os.fstat(file.fileno()).st_size, file.read(8)
        header = int.from_bytes(begin, "little")
        if size > MOST_WEIGHTS or header > MOST_HEADER or 8 + header > size:
            raise ModelError(
                f"{path} has {size} bytes and a header of {header}: not weights that we wrote: get them again"
            )
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _card_digest(card: Mapping[str, Any]) -> str:
    """SHA-256 of the other content of the JSON, independent of its formatting."""
    said = {key: value for key, value in card.items() if key != CARD_DIGEST}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
