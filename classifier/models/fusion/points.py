"""Photometric points and context numbers as arrays. Numpy only."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History

KINDS = 3  # of points: detection, forced, upper limit
POINT = 6 + KINDS  # numbers that describe a point
# Names in `History.context` that a network uses, all of which a simulation can reproduce faithfully; values that a
# survey does not provide are absent. No positions: they would let a network memorise fields.
CONTEXT = ("reference_distance", "reference_magnitude", "galactic_latitude", "detections", "visits")


def point_features(history: History, scaling: Scaling, most: int) -> dict[str, NDArray[np.generic]]:
    """The latest points up to the last epoch: numbers [k, POINT], bands [k], MJDs [k].

    Numbers: signal to noise and flux (asinh), error (log), kind, days since the first epoch (log and linear) and since
    the previous point (log).
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
    """The common time order of stamps and points.

    Args:
        points: MJDs of each history's points.
        stamps: epochs that the batch is padded to.

    Returns:
        order: [b, l], the item at each place: index of a stamp, or `stamps` + index of a point; padding comes last.
        place: [b, stamps], the place of each stamp.
    """
    total = stamps + max(map(len, points))
    order = np.empty((len(histories), total), np.int64)
    for row, (history, mjd) in enumerate(zip(histories, points, strict=True)):
        real = np.concatenate([np.arange(len(history)), stamps + np.arange(len(mjd))])
        # at equal times the point comes first, so that its stamp attends to it
        by_time = real[np.lexsort((real < stamps, np.concatenate([history.mjd, mjd])))]
        order[row] = np.concatenate([by_time, np.setdiff1d(np.arange(total), by_time)])
    return {"order": order, "place": np.argsort(order, 1)[:, :stamps]}


def context_numbers(histories: Sequence[History]) -> NDArray[np.float32]:
    """Numbers (0 where unknown) and whether they are known, [b, 2, CONTEXT]."""
    found = np.zeros((len(histories), 2, len(CONTEXT)), np.float32)
    for row, history in enumerate(histories):
        for n, name in enumerate(CONTEXT):
            value = history.context.get(name, np.nan)
            if np.isfinite(value):
                found[row, :, n] = value, 1
    return found
