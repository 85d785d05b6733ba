"""Inputs in addition to stamps: photometric points as tokens among those of stamps, and context numbers.

Either may be missing, and often is in training (modality dropout), so that a network does not rely on it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from skyheed.classifier.history import BANDS, History
from skyheed.classifier.models.fusion.points import CONTEXT, KINDS, POINT


class Points(nn.Module):
    """Points as tokens.

    Args:
        width: width of a token.
        missing: in training, the probability that a history has no points, and that it lacks one kind of them.
    """

    def __init__(self, width: int, missing: float) -> None:
        super().__init__()
        self.missing = missing
        self.values, self.band = nn.Linear(POINT, width), nn.Embedding(len(BANDS), width)

    def forward(self, points: Tensor, band: Tensor) -> Tensor:
        """[b, p, POINT] numbers and [b, p] bands -> tokens [b, p, width]."""
        out: Tensor = self.values(points) + self.band(band)
        return out

    def shown(self, points: Tensor, valid: Tensor) -> Tensor:
        """bool [b, p]: the points that may be used; in training some are withheld."""
        if not self.training:
            return valid
        b = len(points)
        every, one = (torch.rand(2, b, device=points.device) < self.missing)[:, :, None]
        kind = torch.randint(KINDS, (b, 1), device=points.device)
        of_kind = points[:, :, 3 : 3 + KINDS].argmax(2) == kind
        shown: Tensor = valid & ~every & ~(one & of_kind)
        return shown


class Context(nn.Module):
    """Context numbers as a term added to a history's representation.

    Args:
        width: width of the representation.
        missing: in training, the probability that a history has none.
    """

    mean: Tensor
    scatter: Tensor

    def __init__(self, width: int, missing: float) -> None:
        super().__init__()
        self.missing = missing
        self.register_buffer("mean", torch.zeros(len(CONTEXT)))
        self.register_buffer("scatter", torch.ones(len(CONTEXT)))
        self.inner, self.outer = nn.Linear(2 * len(CONTEXT), width), nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.outer.weight)  # starts as the network without context

    def fit(self, histories: Sequence[History]) -> None:
        """Take means and standard deviations of the known numbers."""
        for n, name in enumerate(CONTEXT):
            if known := [float(h.context[name]) for h in histories if name in h.context]:
                self.mean[n], self.scatter[n] = float(np.mean(known)), max(float(np.std(known)), 1e-3)

    def forward(self, context: Tensor) -> Tensor:
        """Numbers and whether they are known [b, 2, CONTEXT] -> [b, width]; 0 if nothing is known."""
        values, known = context.unbind(1)
        if self.training:
            known = known * (torch.rand(len(known), 1, device=known.device) >= self.missing)
        values = (values - self.mean) / self.scatter * known
        out: Tensor = self.outer(torch.relu(self.inner(torch.cat([values, known], 1))))
        return out * known.any(1, keepdim=True)
