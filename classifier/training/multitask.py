"""Several tasks from one representation: class, peak flux, phase and redshift, balanced by learned uncertainties.

After gamma-PhysNet (Jacquemont et al. 2021, VISAPP), which predicts energy, direction and impact as well as the class,
with tasks weighted after Kendall et al. (2018, CVPR). A regression is trained only on objects for which its quantity
is known: a peak that exists, a measured redshift.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

HIDDEN = 100
LOWEST, HIGHEST = -3.0, 6.0  # bounds on log-uncertainties; a loss near 0 would otherwise get an unbounded weight
REGRESSIONS = ("flux", "phase", "redshift")
# Targets of the heads: log10 of the peak flux in nJy, asinh(days since the peak / 10), log(1 + z).
TRANSFORMS: dict[str, Callable[..., Any]] = {
    "flux": lambda x: np.log10(np.clip(x, 1, None)),
    "phase": lambda x: np.arcsinh(x / 10),
    "redshift": lambda x: np.log1p(np.clip(x, 0, None)),
}


class Heads(nn.Module):
    """Regressions from a representation [b, width]: the flux by itself, phase and redshift from a shared layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.flux = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.fusion, self.phase, self.redshift = nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, 1), nn.Linear(HIDDEN, 1)

    def forward(self, encoded: Tensor) -> dict[str, Tensor]:
        """Representations [b, width] -> task -> [b]."""
        shared = functional.relu(self.fusion(encoded))
        parts = {"flux": self.flux(encoded), "phase": self.phase(shared), "redshift": self.redshift(shared)}
        return {name: value[:, 0] for name, value in parts.items()}


def transformed(name: str, values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Regression targets from values in nJy, days or redshift; NaN stays NaN."""
    made: NDArray[np.float32] = TRANSFORMS[name](np.asarray(values, np.float64)).astype(np.float32)
    return made


def regression(found: Tensor, wanted: Tensor) -> Tensor:
    """Smooth L1 over the known values; 0, with zero gradients, if there are none.

    Args:
        found: [b].
        wanted: [b], NaN where there is no target.
    """
    known = wanted.isfinite()
    each = functional.smooth_l1_loss(found, torch.where(known, wanted, found.detach()), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


class Balance(nn.Module):
    """Weights of tasks by their uncertainties: sum of c exp(-s) L + s, with s learned and clamped.

    Args:
        tasks: name -> c, which matters only until s has settled.
    """

    def __init__(self, tasks: Mapping[str, float]) -> None:
        super().__init__()
        self.scales = dict(tasks)
        self.logs = nn.ParameterDict({name: nn.Parameter(torch.ones(())) for name in tasks})

    def forward(self, losses: Mapping[str, Tensor], present: Mapping[str, bool] | None = None) -> Tensor:
        """The balanced loss; tasks for which the batch has no data are left out, so that their s does not change."""
        terms = []
        for name, loss in losses.items():
            if present is None or present[name]:
                s = _clamped(self.logs[name])
                terms.append(self.scales[name] * torch.exp(-s) * loss + s)
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def log(self) -> dict[str, float]:
        """s of every task."""
        return {f"s_{name}": float(_clamped(s.detach())) for name, s in self.logs.items()}


def _clamped(s: Tensor) -> Tensor:
    """s within the bounds; gradients pass through, so that s can return."""
    return s + (s.clamp(LOWEST, HIGHEST) - s).detach()


def losses(
    logits: Tensor, labels: Tensor, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, bool]]:
    """The loss of every task, and whether the batch has any data for it.

    Args:
        logits, labels: [b, classes] and [b].
        found, wanted: task -> [b]; NaN in `wanted` where there is no target.
    """
    made = {"class": functional.cross_entropy(logits, labels)}
    made |= {name: regression(found[name], wanted[name]) for name in REGRESSIONS}
    present = {"class": True, **{name: bool(wanted[name].isfinite().any()) for name in REGRESSIONS}}
    return made, present


def resolution(
    found: NDArray[np.floating[Any]], wanted: NDArray[np.floating[Any]], by: NDArray[np.floating[Any]],
    edges: Sequence[float],
) -> list[dict[str, float]]:  # fmt: skip
    """Bias (median error) and resolution (half the width that contains 68 % of the errors) in bins of another quantity.

    Args:
        found, wanted: [n]; unknown values are left out.
        by: [n], such as the number of stamps or the flux.
        edges: edges of the bins in `by`.

    Returns:
        For each bin its edges, the number of objects, bias and resolution; NaN for empty bins.
    """
    error = np.asarray(found, np.float64) - np.asarray(wanted, np.float64)
    rows = []
    for low, high in pairwise(edges):
        own = error[(by >= low) & (by < high) & np.isfinite(error)]
        bias, width = math.nan, math.nan
        if len(own):
            bias = float(np.median(own))
            lower, upper = np.quantile(own, (0.16, 0.84))
            width = float(upper - lower) / 2
        rows.append({"low": low, "high": high, "count": len(own), "bias": bias, "resolution": width})
    return rows
