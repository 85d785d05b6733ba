"""Serving `fusion`: as `vector`, and declining what is unlike all that was learnt from."""

from collections.abc import Sequence

import numpy as np
import torch

from skyheed.classifier.history import History
from skyheed.classifier.models.fusion.network import Fusion
from skyheed.classifier.models.vector_serving import VectorServed
from skyheed.classifier.prediction import Declined, Prediction


class FusionServed(VectorServed):
    """See the module; float32."""

    network: Fusion

    def judge(self, histories: Sequence[History]) -> list[Prediction]:
        """See `Served.judge`: unlike `classify`, it declines what is far from all that was learnt from."""
        if not histories:
            return []
        for history in histories:
            self.check(history)
        found = self._said(histories)
        unlike = Declined.UNLIKE_TRAINING
        return [Prediction(np.empty(0, np.float32), unlike, keep=p.keep) if far > 1 else p for p, far in found]

    def _classify(self, histories: Sequence[History]) -> list[Prediction]:
        return [p for p, _ in self._said(histories)]

    @torch.inference_mode()
    def _said(self, histories: Sequence[History]) -> list[tuple[Prediction, float]]:
        """Predictions, and how far each history is from all that was learnt from."""
        encoded, keep = self._update.encoded(histories, self.info.scaling)
        logits = self.network.classify(encoded).float().cpu().numpy()
        far = self.network.familiar(self.network.numbers(encoded)).cpu().tolist()
        probabilities = self.calibrated(logits, histories)
        return [(Prediction(p, keep=own), f) for p, own, f in zip(probabilities, keep, far, strict=True)]
