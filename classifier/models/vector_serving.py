"""Serving `vector`: the encoder folded, and an update computed from what was kept of the epochs before."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch

from ..checkpoint import Info
from ..history import History
from ..prediction import Prediction
from ..serving import Served, Where
from .vector import Vector

FORM = 1  # raised when kept things are computed in another way, so that old ones are not mixed with new ones


class VectorServed(Served):
    """See the module; float32."""

    network: Vector

    def __init__(self, network: Vector, info: Info, where: Where) -> None:
        super().__init__(network.eval().fold(), info, where)
        facts = [info.digest, info.preprocessing, asdict(info.scaling), network.config.kept, where.device.type, FORM]
        self.kept_as = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @torch.inference_mode()
    def _classify(self, histories: Sequence[History]) -> list[Prediction]:
        logits, keep = self.network.update(histories, self.info.scaling)
        probabilities = self.calibrated(logits.float().cpu().numpy(), histories)
        return [Prediction(p, keep=own) for p, own in zip(probabilities, keep, strict=True)]
