"""What an alert says beside its stamps: points of photometry as tokens among the stamps' own, and context numbers.

Either may be missing, and in training it often is (modality dropout), so that a network does not come to rely on it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skyheed.classifier.history import BANDS, History
from skyheed.classifier.scaling import Scaling

KINDS = 3  # of points: detection, forced, upper limit
POINT = 6 + KINDS  # numbers that describe a point
# Names in `History.context` that a network looks at, all of which a simulation can make faithfully; what a survey does
# not say is absent. No positions: they let a network remember fields.
CONTEXT = ("reference_distance", "reference_magnitude", "galactic_latitude", "detections", "visits")


def point_features(history: History, scaling: Scaling, most: int) -> dict[str, NDArray[np.generic]]:
    """The newest points up to the last epoch: numbers [k, POINT], bands [k], MJDs [k].

    Numbers: signal to noise and flux (asinh), error (log), kind, days since the first epoch (log and linear) and since
    the point before (log).
    """
    points = history.photometry
    shown = 0 if points is None else len(points.until(float(history.mjd[-1])))
    if points is None or not shown:
        return {"points": np.zeros((0, POINT), np.float32), "point_band": np.zeros(0, np.int64), "mjd": np.zeros(0)}
    rows = slice(max(0, shown - most), shown)
    mjd, band, flux, kind = points.mjd[rows], points.band[rows], points.flux[rows], points.kind[rows]
    unit = np.array(scaling.flux_unit, np.float32)[band]
    error = np.maximum(points.flux_error[rows], 1e-3 * unit)
    days = mjd - history.mjd[0]
    numbers = (
        np.arcsinh(flux / error), scaling.fluxes(flux, band), np.log(error / unit), *(kind == k for k in range(KINDS)),
        np.sign(days) * np.log1p(np.abs(days)), days / 100, np.log1p(np.diff(mjd, prepend=mjd[:1])),
    )  # fmt: skip
    table = np.nan_to_num(np.stack(numbers, 1).astype(np.float32))
    return {"points": table, "point_band": band.astype(np.int64), "mjd": mjd}


def merged(
    histories: Sequence[History], points: Sequence[NDArray[np.generic]], stamps: int
) -> dict[str, NDArray[np.int64]]:
    """The order of time of stamps and points together.

    Args:
        points: MJDs of each history's points.
        stamps: epochs that the batch is padded to.

    Returns:
        order: [b, l], what stands at each place: index of a stamp, or `stamps` + index of a point; padding comes last.
        place: [b, stamps], where each stamp stands.
    """
    total = stamps + max(map(len, points))
    order = np.empty((len(histories), total), np.int64)
    for row, (history, mjd) in enumerate(zip(histories, points, strict=True)):
        real = np.concatenate([np.arange(len(history)), stamps + np.arange(len(mjd))])
        # at one time the point comes first, so that its stamp sees it
        by_time = real[np.lexsort((real < stamps, np.concatenate([history.mjd, mjd])))]
        order[row] = np.concatenate([by_time, np.setdiff1d(np.arange(total), by_time)])
    return {"order": order, "place": np.argsort(order, 1)[:, :stamps]}


class Points(nn.Module):
    """Points as tokens.

    Args:
        width: of a token.
        missing: in training, the chance that a history has no points, and that it lacks one kind of them.
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
        """bool [b, p]: the points that may be looked at; in training some are withheld."""
        if not self.training:
            return valid
        b = len(points)
        every, one = (torch.rand(2, b, device=points.device) < self.missing)[:, :, None]
        kind = torch.randint(KINDS, (b, 1), device=points.device)
        of_kind = points[:, :, 3 : 3 + KINDS].argmax(2) == kind
        shown: Tensor = valid & ~every & ~(one & of_kind)
        return shown


class Context(nn.Module):
    """Context numbers as something that is added to a history's representation.

    Args:
        width: of the representation.
        missing: in training, the chance that a history has none.
    """

    mean: Tensor
    scatter: Tensor

    def __init__(self, width: int, missing: float) -> None:
        super().__init__()
        self.missing = missing
        self.register_buffer("mean", torch.zeros(len(CONTEXT)))
        self.register_buffer("scatter", torch.ones(len(CONTEXT)))
        self.inner, self.outer = nn.Linear(2 * len(CONTEXT), width), nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.outer.weight)  # begins as the network without context

    def fit(self, histories: Sequence[History]) -> None:
        """Take means and scatters of the numbers that are there."""
        for n, name in enumerate(CONTEXT):
            if known := [float(h.context[name]) for h in histories if name in h.context]:
                self.mean[n], self.scatter[n] = float(np.mean(known)), max(float(np.std(known)), 1e-3)

    def forward(self, context: Tensor) -> Tensor:
        """Numbers and whether they are known [b, 2, CONTEXT] -> [b, width]; 0 where nothing is known."""
        values, known = context.unbind(1)
        if self.training:
            known = known * (torch.rand(len(known), 1, device=known.device) >= self.missing)
        values = (values - self.mean) / self.scatter * known
        out: Tensor = self.outer(torch.relu(self.inner(torch.cat([values, known], 1))))
        return out * known.any(1, keepdim=True)


def context_numbers(histories: Sequence[History]) -> NDArray[np.float32]:
    """Numbers (0 where unknown) and whether they are known, [b, 2, CONTEXT]."""
    found = np.zeros((len(histories), 2, len(CONTEXT)), np.float32)
    for row, history in enumerate(histories):
        for n, name in enumerate(CONTEXT):
            value = history.context.get(name, np.nan)
            if np.isfinite(value):
                found[row, :, n] = value, 1
    return found
