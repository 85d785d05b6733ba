"""A checkpoint as ONNX graphs; see `folder` for the files written."""

import hashlib
import json
import logging
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skyheed.classifier import output_paths
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.family import family
from skyheed.classifier.models.onnx.folder import OPSET, Export, Graph, write_card
from skyheed.classifier.models.onnx.graphs import Cut, cut


def export(name: str | Path, folder: Path) -> Path:
    """Write the graphs of a checkpoint and their card.

    Args:
        name: checkpoint directory, or the name of shipped weights.
        folder: created if it does not exist; existing files of the same names are replaced.

    Raises:
        ModelError: there is no such model, it cannot be exported, the folder cannot be written, or onnx is missing.
    """
    from skyheed.classifier.serving import load_network

    info = checkpoint.read_info(name)
    kind, cuts = cut(load_network(name, info))
    output_paths.check_folder(folder, ModelError)
    folder.mkdir(parents=True, exist_ok=True)
    own = family(info.family)
    needs = replace(own.needs(own.configure(info.config)), most=info.max_stamps)
    graphs = {part: _write(one, folder / f"{part}.onnx", info) for part, one in cuts.items()}
    write_card(folder, Export(info, kind, needs, OPSET, graphs))
    return folder


class _Positional(nn.Module):
    """Adapts a module to the ordered inputs and outputs of a graph."""

    def __init__(self, given: Cut) -> None:
        super().__init__()
        self.module, self.inputs, self.outputs = given.module, list(given.axes), list(given.outputs)

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        said = self.module(dict(zip(self.inputs, arguments, strict=True)))
        return tuple(said[name] for name in self.outputs)


def _write(given: Cut, path: Path, info: checkpoint.Info) -> Graph:
    model = _model(given)
    _name_axes(model.graph, given)
    for key, value in _metadata(info).items():
        model.metadata_props.add(key=f"skyheed.{key}", value=value if isinstance(value, str) else json.dumps(value))
    content: bytes = model.SerializeToString()
    path.write_bytes(content)
    shown = [{v.name: _described(v) for v in values} for values in (model.graph.input, model.graph.output)]
    return Graph(path.name, hashlib.sha256(content).hexdigest(), *shown)


def _model(given: Cut) -> Any:
    """The graph as written by torch (`onnx.ModelProto`)."""
    moving = tuple(
        {n: torch.export.Dim.DYNAMIC for n, axis in enumerate(axes) if isinstance(axis, str)}
        for axes in given.axes.values()
    )
    arguments = tuple(given.example[name] for name in given.axes)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torch's messages about packages that are not needed here
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Positional(given).eval(), arguments, dynamo=True, dynamic_shapes={"arguments": moving},
                input_names=list(given.axes), output_names=list(given.outputs), opset_version=OPSET, verbose=False,
            )  # fmt: skip
    except ImportError as error:
        raise ModelError(f"exporting needs more packages ({error}): pip install 'skyheed[onnx]'") from error
    assert program is not None
    return program.model_proto


def _name_axes(graph: Any, given: Cut) -> None:
    """Replace torch's names for the axes of inputs and outputs by our own."""
    names: dict[str, str] = {}
    for value in graph.input:
        for dim, axis in zip(value.type.tensor_type.shape.dim, given.axes[value.name], strict=True):
            if dim.dim_param and isinstance(axis, str):
                names.setdefault(dim.dim_param, axis)
    del graph.value_info[:]  # shapes of intermediate values, with torch's names
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)


def _described(value: Any) -> list[Any]:
    """[type, shape] of an input or output."""
    import onnx

    kind = value.type.tensor_type
    shape = [d.dim_param or d.dim_value for d in kind.shape.dim]
    return [onnx.TensorProto.DataType.Name(kind.elem_type).lower(), shape]


def _metadata(info: checkpoint.Info) -> dict[str, Any]:
    """Metadata stored in each graph, too, so that it documents its own origin."""
    return {
        "name": info.name, "version": info.version, "family": info.family, "digest": info.digest,
        "classes": list(info.classes), "class_ids": dict(info.class_ids), "taxonomy": info.taxonomy,
        "bands": info.bands, "surveys": list(info.surveys), "preprocessing": info.preprocessing,
        "scaling": asdict(info.scaling), "calibration": asdict(info.calibration), "max_stamps": info.max_stamps,
    }  # fmt: skip
