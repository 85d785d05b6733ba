"""The folder of an export: graphs, and `onnx.json`, which contains all that is needed to use them. Loads no torch.

encoder.onnx   stamps -> cached values, each stamp (or group of stamps) by itself; not for light-curve models
head.onnx      everything after it -> logits
onnx.json      the card of the checkpoint, what the model needs of a history, names, types and shapes of the graphs'
               inputs and outputs, their digests
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skyheed.classifier import value_checks
from skyheed.classifier.bounded_files import read_file
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.checkpoint import EXPORT as EXPORT
from skyheed.classifier.prediction import Needs
from skyheed.classifier.safe_names import file_name

FORMAT = 1
OPSET = 20  # of the graphs
ENCODER, HEAD = "encoder", "head"
MOST_GRAPH = 2**31  # bytes, the maximum size of a protobuf


@dataclass(frozen=True)
class Graph:
    """One graph of an export.

    Attributes:
        file: its name in the folder.
        sha256: of the file.
        inputs, outputs: name -> [type, shape]; named axes may have any length.
    """

    file: str
    sha256: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


@dataclass(frozen=True)
class Export:
    """The description of an export.

    Attributes:
        info: card of the checkpoint.
        kind: how histories become inputs (`predictor.KINDS`).
        needs: what the model needs of a history.
        opset: of the graphs.
        graphs: by name, `HEAD` and, if stamps are used, `ENCODER`.
    """

    info: checkpoint.Info
    kind: str
    needs: Needs
    opset: int
    graphs: Mapping[str, Graph]


def write_card(folder: Path, export: Export) -> None:
    """Write `onnx.json`; it comes last, so that a partly written export is never loaded."""
    card = {"format": FORMAT, "kind": export.kind, "opset": export.opset, "needs": asdict(export.needs),
            "graphs": {name: asdict(graph) for name, graph in export.graphs.items()},
            "model": asdict(export.info)}  # fmt: skip
    temporary = folder / f".{EXPORT}"
    temporary.write_text(json.dumps(card, indent=1) + "\n")
    temporary.replace(folder / EXPORT)


def read_export(folder: Path) -> Export:
    """The description of an export.

    Raises:
        ModelError: it is damaged, or from another version.
    """
    path = folder / EXPORT
    try:
        card = json.loads(read_file(path, checkpoint.MOST_CARD, ModelError))
        if not isinstance(card, dict) or card.get("format") != FORMAT:
            raise ValueError(f"this version reads format {FORMAT}")
        needs = card["needs"]
        value_checks.text("kind", card["kind"])
        return Export(
            checkpoint.from_card(card["model"], path), card["kind"],
            Needs(**{**needs, "images": tuple(needs["images"])}),
            int(card["opset"]), {name: _graph(values) for name, values in card["graphs"].items()},
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}): export the model again") from error


def _graph(given: Mapping[str, Any]) -> Graph:
    """A graph whose file is called as only a file in this folder can be."""
    name = given["file"]
    value_checks.text("file", name)
    if file_name(name) != name:
        raise ValueError(f"{value_checks.shown(name)} is not the name of a graph")
    return Graph(**given)


def read_graph(folder: Path, graph: Graph) -> bytes:
    """A graph as it was written.

    Raises:
        ModelError: it is missing, or does not match the card.
    """
    path = folder / Path(graph.file).name
    content = read_file(path, MOST_GRAPH, ModelError)
    if hashlib.sha256(content).hexdigest() != graph.sha256:
        raise ModelError(f"{path} does not match its {EXPORT}: export the model again")
    return content
