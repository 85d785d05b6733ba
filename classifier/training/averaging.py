"""Exponential means of networks in training: of the one that is served, and of the parts that are trained with it."""

import torch
from torch import nn

WARM_UP = 10  # steps: a mean over few forgets its beginning quickly, which is an untrained network


def warmed(keep: float, steps: int) -> float:
    """What is kept of a mean over this many steps; `keep` in the end, less at first."""
    return min(keep, steps / (steps + WARM_UP))


@torch.no_grad()
def follow(mean: nn.Module, now: nn.Module, keep: float) -> None:
    """mean = keep * mean + (1 - keep) * now, for weights and batch statistics."""
    for old, new in zip(mean.state_dict().values(), now.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - keep)
