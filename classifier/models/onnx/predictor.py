"""Models computed by onnxruntime, on the CPU in float32; needs only numpy and onnxruntime."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.base_predictor import BasePredictor
from skyheed.classifier.errors import ModelError
from skyheed.classifier.history import History
from skyheed.classifier.models import light_curves
from skyheed.classifier.models.checkpoint import Info
from skyheed.classifier.models.convention.config import Config as GroupedConfig
from skyheed.classifier.models.convention.grouped import Grouped
from skyheed.classifier.models.convention.groups import Layout
from skyheed.classifier.models.fusion.inputs import FusionInputs
from skyheed.classifier.models.onnx.folder import ENCODER, EXPORT, HEAD, Export, read_export, read_graph
from skyheed.classifier.models.vector_inputs import Arrays, Inputs
from skyheed.classifier.models.vector_updates import Updated, Updates
from skyheed.classifier.prediction import Prediction
from skyheed.classifier.safe_names import printable

AT_ONCE = 64  # groups of stamps in one call


class Session:
    """A graph ready to run."""

    def __init__(self, content: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        # spinning threads would take the cores from ingest and servers
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._inputs = [i.name for i in self._session.get_inputs()]
        self._outputs = [o.name for o in self._session.get_outputs()]

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """Outputs by name; arrays that are not inputs are ignored."""
        made = self._session.run(self._outputs, {name: arrays[name] for name in self._inputs})
        return dict(zip(self._outputs, made, strict=True))


class ByOnnx(BasePredictor):
    """The common part of all kinds.

    Args:
        info: card, possibly with another prior than the export's own.
        threads: number of onnxruntime threads; None for all cores.
    """

    def __init__(self, export: Export, info: Info, folder: Path, threads: int | None) -> None:
        import onnxruntime

        threads = threads or len(os.sched_getaffinity(0))
        chosen = f"cpu x{threads}, float32 by onnxruntime {onnxruntime.__version__}"
        super().__init__(info, export.needs, chosen)
        self.sessions = {n: Session(read_graph(folder, g), threads) for n, g in export.graphs.items()}
        if export.needs.span:
            facts = {n: g.sha256 for n, g in export.graphs.items()} | {"scaling": list(info.scaling.softening)}
            self.kept_as = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class OnnxGroups(ByOnnx, Grouped):
    """ConvEntion, with the tokens of full groups cached."""

    token_dtype = np.dtype("<f4")

    def __init__(self, export: Export, info: Info, folder: Path, threads: int | None) -> None:
        super().__init__(export, info, folder, threads)
        self.config = GroupedConfig(**info.config)
        self.tokens_of = self._tokens_of

    def _tokens_of(self, pixels: NDArray[np.float32], bands: NDArray[np.int64]) -> NDArray[np.float32]:
        parts = [slice(at, at + AT_ONCE) for at in range(0, len(pixels), AT_ONCE)]
        made = [self.sessions[ENCODER]({"pixels": pixels[p], "bands": bands[p]})["tokens"] for p in parts]
        found: NDArray[np.float32] = np.concatenate(made)
        return found

    def logits_of(self, tokens: NDArray[np.float32], where: Layout) -> NDArray[np.float32]:
        """See `Grouped.logits_of`."""
        given = {"tokens": tokens, "valid": where.valid, "days": where.days, "present": where.present}
        found: NDArray[np.float32] = self.sessions[HEAD](given)["logits"]
        return found


class OnnxStamps(ByOnnx, Updated):
    """`vector`, with cached values for each stamp."""

    inputs: type[Inputs] = Inputs

    def __init__(self, export: Export, info: Info, folder: Path, threads: int | None) -> None:
        super().__init__(export, info, folder, threads)
        options = self.inputs.options
        known = options.__dataclass_fields__
        config = options(**{key: value for key, value in info.config.items() if key in known})
        self._update = Updates(self, self.inputs(config))

    def vectors(self, images: NDArray[np.float32], band: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `updates.Engine`."""
        found: NDArray[np.float32] = self.sessions[ENCODER]({"images": images, "band": band})["vectors"]
        return found

    def behind(self, arrays: Arrays) -> Arrays:
        """See `updates.Engine`."""
        return self.sessions[HEAD](arrays)


class OnnxFusion(OnnxStamps):
    """`fusion`."""

    inputs = FusionInputs


class OnnxNights(ByOnnx):
    """A model of light curves by night, computed in full."""

    def __init__(self, export: Export, info: Info, folder: Path, threads: int | None) -> None:
        super().__init__(export, info, folder, threads)
        known = light_curves.Config.__dataclass_fields__
        self._config = light_curves.Config(**{key: value for key, value in info.config.items() if key in known})

    def _classify(self, histories: Sequence[History]) -> list[Prediction]:
        arrays = light_curves.table(histories, self._config, self.info.scaling)
        return [Prediction(p) for p in self.calibrated(self.sessions[HEAD](arrays)["logits"], histories)]


KINDS: Mapping[str, type[ByOnnx]] = {
    "groups": OnnxGroups, "stamps": OnnxStamps, "fusion": OnnxFusion, "nights": OnnxNights,
}  # fmt: skip


def served(folder: Path, info: Info, threads: int | None) -> ByOnnx:
    """The model of an export, ready to serve.

    Raises:
        ModelError: it is damaged, or onnxruntime is not installed or refuses it.
    """
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ModelError("onnxruntime is not installed: pip install 'skyheed[onnx]'") from error
    export = read_export(folder)
    if export.kind not in KINDS:
        raise ModelError(f"{folder} holds a model of the kind {export.kind}, which this version does not know: update")
    try:
        made = KINDS[export.kind](export, info, folder, threads)
        made.classify([made.blank(1)])
    except ModelError:
        raise
    except Exception as error:  # onnxruntime raises of its own trees for what is no graph, or another one
        said = printable(str(error).splitlines()[0] if str(error) else type(error).__name__, 200)
        raise ModelError(
            f"{folder} does not compute what its {EXPORT} says ({said}): export the model again"
        ) from error
    return made
