"""Checkpoints: weights as safetensors, everything else as JSON beside them; never pickle.

A checkpoint is a directory with `weights.safetensors` and `model.json`. The JSON holds the SHA-256 of the weights, so a
damaged or mixed-up pair is noticed, and all that is needed to reproduce an answer.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from . import sequence, taxonomy
from .errors import ModelError
from .sequence import BANDS, Scaling

FORMAT = 1
WEIGHTS, MODEL = "weights.safetensors", "model.json"
SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Calibration:
    """From logits to probabilities: softmax(logits / temperature(n)) * prior, normalised.

    Attributes:
        stamps, temperatures: temperature at so many stamps, linear in log(n) between.
        prior: of each class, relative to the mix that the model was trained on.
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
    """What a checkpoint says of itself; `model.json` holds the same.

    Attributes:
        config: of `convention.Config`.
        bands: letters that the model was trained on.
        surveys: whose stamps it was trained on.
        training: command, protocol, data card, seeds: how it was made.
        metrics: what was measured when it was made, with the name of the data.
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
    max_stamps: int = 99
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    format: int = FORMAT


def resolve(name: str | Path) -> Path:
    """The directory of a checkpoint: a path, or the name of shipped weights (a survey).

    Raises:
        ModelError: there is none.
    """
    for path in (Path(name), SHIPPED / str(name)):
        if (path / MODEL).is_file():
            return path
    shipped = sorted(p.parent.name for p in SHIPPED.glob(f"*/{MODEL}"))
    raise ModelError(f"no model {name}: give a checkpoint directory, or one of the shipped ones: {', '.join(shipped)}")


def save(directory: str | Path, state: Mapping[str, Any], info: Info) -> Info:
    """Write a checkpoint; the JSON comes last, so that a half-written one is never loaded.

    Args:
        state: name -> torch tensor.
    """
    from safetensors.torch import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / WEIGHTS
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights)
    complete = {**asdict(info), "digest": _digest(weights)}
    temporary = directory / f".{MODEL}"
    temporary.write_text(json.dumps(complete, indent=1) + "\n")
    temporary.replace(directory / MODEL)
    return read_info(directory)


def read_info(name: str | Path) -> Info:
    """What a checkpoint says of itself, its weights verified.

    Raises:
        ModelError: there is none, or it is damaged or from another version.
    """
    directory = resolve(name)
    try:
        given = json.loads((directory / MODEL).read_text())
        if not isinstance(given, dict):
            raise ValueError("it holds no keys")
        known = {f.name for f in fields(Info)}
        if given.get("format") != FORMAT:
            raise ModelError(f"{directory / MODEL} has format {given.get('format')}, this version reads {FORMAT}")
        given |= {key: tuple(given[key]) for key in ("classes", "surveys")}
        given["scaling"] = Scaling(tuple(given["scaling"]["softening"]), given["scaling"]["gain"])
        given["calibration"] = Calibration(**{k: tuple(v) for k, v in given["calibration"].items()})
        info = Info(**{key: value for key, value in given.items() if key in known})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{directory / MODEL} cannot be read ({error}): get the checkpoint again") from error
    if not (directory / WEIGHTS).is_file() or _digest(directory / WEIGHTS) != info.digest:
        raise ModelError(f"{directory / WEIGHTS} is not what {MODEL} was written for: get the checkpoint again")
    return info


def load_state(name: str | Path) -> dict[str, Any]:
    """The weights of a checkpoint, name -> torch tensor."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Any] = load_file(resolve(name) / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{resolve(name) / WEIGHTS} cannot be read ({error}): get the checkpoint again") from error
    return state


def check_survey(info: Info, survey: str, *, any_survey: bool = False) -> None:
    """Raise ModelError if the model was not made for a survey's stamps or by another preprocessing."""
    if survey not in info.surveys and not any_survey:
        raise ModelError(
            f"the model {info.name} was trained for {', '.join(info.surveys)}, not for {survey}: choose another model"
        )
    if info.preprocessing != sequence.VERSION:
        raise ModelError(
            f"the model {info.name} was trained with preprocessing {info.preprocessing}, this version makes "
            f"{sequence.VERSION}: train it again"
        )
    if not set(info.bands) <= set(BANDS):
        raise ModelError(f"the model {info.name} has bands {info.bands}; known are {BANDS}")


def describe(name: str | Path, survey: str) -> str:
    """One sentence about the checkpoint that a survey would be served with.

    Raises:
        ModelError: it cannot serve it.
    """
    info = read_info(name)
    check_survey(info, survey)
    return (
        f"{info.name} {info.version}, weights {info.digest[:12]}, bands {info.bands}, classes {', '.join(info.classes)}"
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
