"""Serving ConvEntion with torch: the CNN folded, in bfloat16 if that is native; tokens of full groups are cached."""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray

from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.convention.fast import FORM, CpuTokens, CudaTokens, FoldedFeatures
from skyheed.classifier.models.convention.grouped import TOGETHER, Grouped
from skyheed.classifier.models.convention.groups import Layout
from skyheed.classifier.models.convention.network import ConvEntion
from skyheed.classifier.serving import Served, Where

MOST_ON_A_GPU = 2**20  # histories processed after the CNN at once: all of them


class Predictor(Grouped, Served):
    """ConvEntion's stream variant; see `Served`."""

    network: ConvEntion
    narrow = True

    def __init__(self, network: ConvEntion, info: checkpoint.Info, where: Where) -> None:
        Served.__init__(self, network, info, where)
        self.config = network.config
        # bfloat16 values fit into float16; every token is rounded in the same way, whether cached or just computed
        self.token_dtype = np.dtype("<f2" if self.precision == "bfloat16" else "<f4")
        self.kept_as = self._kept_as()
        features = FoldedFeatures(network, torch.bfloat16 if self.precision == "bfloat16" else torch.float32)
        features.to(self.device)
        on_gpu = self.device.type == "cuda"
        self.tokens_of = CudaTokens(features, self.device) if on_gpu else CpuTokens(features)
        self.together = MOST_ON_A_GPU if on_gpu else TOGETHER

    def _kept_as(self) -> str:
        info = self.info
        facts = [info.digest, info.preprocessing, _pixel_scaling(info), self.precision, self.device.type, FORM]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def logits_of(self, tokens: NDArray[np.float32], where: Layout) -> NDArray[np.float32]:
        """See `Grouped.logits_of`."""
        valid = None if where.valid.all() else torch.from_numpy(where.valid).to(self.device)  # no padding to mask
        days, present = (torch.from_numpy(a).to(self.device) for a in (where.days, where.present))
        with torch.inference_mode():
            logits = self.network.logits(torch.from_numpy(tokens).to(self.device), valid, days, present)
        found: NDArray[np.float32] = logits.cpu().numpy()
        return found


def _pixel_scaling(info: checkpoint.Info) -> dict[str, object]:
    """The parts of the scaling on which a token depends."""
    return {key: value for key, value in asdict(info.scaling).items() if key != "flux_unit"}
