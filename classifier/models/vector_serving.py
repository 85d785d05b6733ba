"""Serving `vector` and `fusion` with torch: the encoder folded, in float32."""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray

from skyheed.classifier.models.checkpoint import Info
from skyheed.classifier.models.vector import Vector
from skyheed.classifier.models.vector_inputs import Arrays
from skyheed.classifier.models.vector_parts import Among, Behind, Encoder
from skyheed.classifier.models.vector_updates import FORM, Updated, Updates
from skyheed.classifier.serving import Served, Where


class VectorServed(Updated, Served):
    """See the module."""

    network: Vector

    def __init__(self, network: Vector, info: Info, where: Where) -> None:
        Served.__init__(self, network.eval().fold(), info, where)
        facts = [info.digest, info.preprocessing, asdict(info.scaling), network.config.kept, where.device.type, FORM]
        self.kept_as = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self._update = Updates(TorchEngine(self.network), self.network.inputs)


class TorchEngine:
    """See `updates.Engine`.

    Args:
        network: in evaluation mode, where it computes.
    """

    def __init__(self, network: Vector) -> None:
        self.encoder = Encoder(network)
        self.rest = Among(network) if network.config.photometry else Behind(network)
        self.device = next(network.parameters()).device

    @torch.inference_mode()
    def vectors(self, images: NDArray[np.float32], band: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Engine.vectors`."""
        made = self.encoder(torch.from_numpy(images).to(self.device), torch.from_numpy(band).to(self.device))
        found: NDArray[np.float32] = made.cpu().numpy()
        return found

    @torch.inference_mode()
    def behind(self, arrays: Arrays) -> Arrays:
        """See `Engine.behind`."""
        said = self.rest({name: torch.from_numpy(a).to(self.device) for name, a in arrays.items()})
        return {name: value.float().cpu().numpy() for name, value in said.items()}
