"""Novelty: how far an object is from the training data, in the space of the hand-chosen features."""

import torch
from torch import Tensor, nn

WIDEST = 8.0  # sigma: larger deviations of a single number are clipped to this


class Familiar(nn.Module):
    """Squared Mahalanobis distance to the nearest of some centres, divided by a limit; always 0 if nothing was fitted.

    Only statistics are stored, no objects. Unknown values are set to the centre's.

    Args:
        inputs: numbers.
        centres: one for each class.
    """

    centre: Tensor
    precision: Tensor
    limit: Tensor

    def __init__(self, inputs: int, centres: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scatter", torch.ones(inputs))
        self.register_buffer("centre", torch.zeros(centres, inputs))
        self.register_buffer("precision", torch.zeros(inputs, inputs))
        self.register_buffer("limit", torch.ones(1))

    mean: Tensor
    scatter: Tensor

    def forward(self, numbers: Tensor) -> Tensor:
        """Numbers [b, inputs], NaN where unknown -> [b]; above 1 an object is unlike the training data."""
        away = ((numbers - self.mean) / self.scatter)[:, None] - self.centre
        away = away.nan_to_num(0.0).clamp(-WIDEST, WIDEST)
        squared = ((away @ self.precision) * away).sum(2)
        return squared.min(1).values / self.limit
