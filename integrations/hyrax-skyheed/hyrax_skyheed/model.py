"""Any of skyheed's models for Hyrax's `infer`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hyrax.models.model_registry import hyrax_model
from torch import Tensor, nn

from skyheed import History, load_model
from skyheed.classifier import context
from skyheed.classifier.history import POINT_COLUMNS, Photometry

KINDS = ("science", "difference", "template")
POINT_TYPES = {"mjd": np.float64, "band": np.uint8, "kind": np.uint8}


@hyrax_model
class SkyheedModel(nn.Module):
    """Probabilities [b, classes] of the items of a `SkyheedArchive`, NaN where the model declines.

    It is not trained here: `skyheed train` draws its batches from histories cut at random.
    """

    def __init__(self, config: dict, data_sample: Any = None) -> None:
        super().__init__()
        self.config = config
        self.unused = nn.Linear(1, 1)  # Hyrax's optimizer wants a weight
        own = config["hyrax_skyheed"]["SkyheedModel"]
        self._precision = own["precision"]
        self._served = load_model(own["model"], precision=self._precision) if own["model"] else None
        self.load = self._load  # the decorator's own would read a torch file
        self.save = self._save

    def _load(self, weights: Path | str) -> None:
        if self._served is None:
            self._served = load_model(Path(weights).parent, precision=self._precision)

    def _save(self, path: Path | str) -> None:
        """What was used, instead of weights: those stay in the checkpoint."""
        info = self._served.info if self._served else None
        torch.save({"model": info.name, "version": info.version, "weights": info.digest} if info else {}, path)

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the columns."""
        return tuple(self._served.classes) if self._served else ()

    @staticmethod
    def prepare_inputs(data_dict: dict) -> tuple[Any, ...]:
        """The fields of a `SkyheedArchive`, in the order in which `infer_batch` takes them."""
        import numpy as np

        names = (
            "epochs", "mjd", "band", "flux", "flux_error", "science", "difference", "template", "points", "context",
        )  # fmt: skip
        return tuple(np.asarray(data_dict["data"][name]) for name in names)

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        """See the class."""
        if self._served is None:
            raise RuntimeError("no model: set hyrax_skyheed.SkyheedModel.model, or infer.model_weights_file")
        arrays = [part.cpu().numpy() for part in batch]
        predictions = self._served.predict([_history(*(part[n] for part in arrays)) for n in range(len(arrays[0]))])
        nothing = np.full(len(self._served.classes), np.nan, np.float32)
        return torch.from_numpy(np.stack([nothing if p.reason else p.probabilities for p in predictions]))

    def infer_batch(self, batch: Sequence[Tensor]) -> Tensor:
        """See the class."""
        return self.forward(batch)

    def train_batch(self, batch: Sequence[Tensor]) -> dict[str, float]:
        """Always an error."""
        raise RuntimeError("skyheed's models are trained by `skyheed train`, not by Hyrax")


def _history(epochs: Any, mjd: Any, band: Any, flux: Any, error: Any, *rest: Any) -> History:
    *stamps, points, said = rest
    n = int(epochs)
    images = {kind: pixels[:n] for kind, pixels in zip(KINDS, stamps, strict=True) if kind == "science" or pixels.any()}
    there = points[~np.isnan(points[:, 0])]
    columns = [there[:, i].astype(POINT_TYPES.get(name, np.float32)) for i, name in enumerate(POINT_COLUMNS)]
    known = {name: float(v) for name, v in zip(context.NAMES, said, strict=True) if not np.isnan(v)}
    return History(
        mjd[:n], band[:n], images, np.arange(n), {}, photometry=Photometry(*columns) if len(there) else None,
        context=known, flux=flux[:n], flux_error=error[:n],
    )  # fmt: skip
