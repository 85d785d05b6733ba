"""Photometric points and context numbers as arrays. Numpy only."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import POINT_COLUMNS, History, Photometry

KINDS = 3  # of points: detection, forced, upper limit
POINT = 6 + KINDS  # numbers that describe a point
NO_POINTS = Photometry(
    np.zeros(0), np.zeros(0, np.uint8), np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, np.uint8)
)
# Names in `History.context` that a network uses, all of which a simulation can reproduce faithfully; values that a
# survey does not provide are absent. No positions: they would let a network memorise fields.
CONTEXT = ("reference_distance", "reference_magnitude", "galactic_latitude", "detections", "visits")


def point_features(
    histories: Sequence[History], scaling: Scaling, most: int
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.int64]], list[NDArray[np.float64]]]:
    """The latest points of each history up to its last epoch: numbers [k, POINT], bands [k], MJDs [k].

    Numbers: signal to noise and flux (asinh), error (log), kind, days since the first epoch (log and linear) and since
    the previous point (log).
    """
    latest = [_latest(h, most) for h in histories]
    counts = [len(points) for points in latest]
    mjd, band, flux, error, kind = (np.concatenate([getattr(p, name) for p in latest]) for name in POINT_COLUMNS)
    unit = np.array(scaling.flux_unit, np.float32)[band]
    error = np.maximum(error, 1e-3 * unit)
    days = mjd - np.repeat([h.mjd[0] for h in histories], counts)
    since = np.diff(mjd, prepend=mjd[:1])
    ends = np.cumsum(counts)
    since[(ends - counts)[np.array(counts) > 0]] = 0
    numbers = (
        np.arcsinh(flux / error), scaling.fluxes(flux, band), np.log(error / unit), *(kind == k for k in range(KINDS)),
        np.sign(days) * np.log1p(np.abs(days)), days / 100, np.log1p(since),
    )  # fmt: skip
    table = np.nan_to_num(np.stack(numbers, 1).astype(np.float32))
    found = (np.split(column, ends[:-1]) for column in (table, band.astype(np.int64), mjd))
    return tuple(found)  # type: ignore[return-value]


def _latest(history: History, most: int) -> Photometry:
    if history.photometry is None:
        return NO_POINTS
    points = history.photometry.until(float(history.mjd[-1]))
    return points.take(slice(max(0, len(points) - most), len(points)))


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
    times = np.concatenate([_until_inf([h.mjd for h in histories], stamps), _until_inf(points)], 1)
    # at equal times the point comes first, so that its stamp attends to it
    order = np.lexsort((np.isfinite(times) & (np.arange(times.shape[1]) < stamps), times), axis=1)
    return {"order": order, "place": np.argsort(order, 1)[:, :stamps]}


def _until_inf(rows: Sequence[NDArray[np.generic]], width: int = 0) -> NDArray[np.float64]:
    """Rows [k] of times in one array [b, n], padded with a time after all."""
    found = np.full((len(rows), max(width, *map(len, rows))), np.inf)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found


def context_numbers(histories: Sequence[History]) -> NDArray[np.float32]:
    """Numbers (0 where unknown) and whether they are known, [b, 2, CONTEXT]."""
    found = np.zeros((len(histories), 2, len(CONTEXT)), np.float32)
    for row, history in enumerate(histories):
        for n, name in enumerate(CONTEXT):
            value = history.context.get(name, np.nan)
            if np.isfinite(value):
                found[row, :, n] = value, 1
    return found
