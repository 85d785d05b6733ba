"""The light-curve features of `features`, for all histories of a batch at once. Numpy only.

One history has a few dozen measurements, on which numpy spends more on every call than on the numbers. So the
measurements of all histories lie in flat arrays, sorted by history and time, and each step is done for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.history import BANDS, DETECTION, FORCED, UPPER_LIMIT, History
from skyheed.classifier.models.fusion.groups import Groups

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Values = dict[str, Floats]

AB_NJY = 31.4  # magnitude of 1 nJy
SIGNIFICANT = 3.0  # sigma, above which a forced point counts as a detection
SAME = 1e-3  # days: an epoch and a point in the same band this close in time are one measurement
LATELY = 8.0  # days
SHORTEST = 0.5  # days that points must span for a slope
STEEPEST = 0.3  # slopes are cut to this
COLOUR_WITHIN = 3.0  # days
# Microns, approximate band centres of LSST (Ivezic et al. 2019, ApJ 873, 111); other surveys' differ little.
LOG_WAVELENGTH = np.log([0.37, 0.48, 0.62, 0.75, 0.87, 0.99])

CURVE = (
    "magnitude", "negative", "negative_share", "below_peak", "detected_share", "span", "fresh", "gap", "scatter",
    "slope", "slope_lately", "residual", "since_peak", "rise", "colour", "colour_now", "reddening",
)  # fmt: skip


@dataclass(frozen=True)
class Measurements:
    """Measurements of several histories up to the latest epoch of each, sorted by history and time.

    Attributes:
        row: [k], the history.
        mjd, band, flux, error: [k]; nJy.
        kind: uint8 [k], as of photometric points; epochs are detections.
    """

    row: Integers
    mjd: Floats
    band: Integers
    flux: Floats
    error: Floats
    kind: NDArray[np.uint8]

    def take(self, which: NDArray[Any]) -> "Measurements":
        """A selection."""
        return Measurements(
            self.row[which], self.mjd[which], self.band[which], self.flux[which], self.error[which], self.kind[which]
        )

    @property
    def detected(self) -> NDArray[np.bool_]:
        """Which are detections; the others are limits."""
        found: NDArray[np.bool_] = (self.kind == DETECTION) | (
            (self.kind == FORCED) & (np.abs(self.flux) > SIGNIFICANT * self.error)
        )
        return found

    @property
    def curve(self) -> Integers:
        """[k], a number for each history and band."""
        return self.row * len(BANDS) + self.band


def curves(histories: Sequence[History]) -> Floats:
    """The `CURVE` features of histories, [b, CURVE]; NaN where unknown."""
    found = np.full((len(histories), len(CURVE)), np.nan)
    measured = measurements(histories)
    limits, seen = measured.take(~measured.detected), measured.take(measured.detected)
    if len(seen.row):
        now = np.array([float(h.mjd[-1]) for h in histories])
        for values in (_course(seen, limits, now), _shapes(seen, len(now)), _colours(seen, len(now))):
            for name, column in values.items():
                found[:, CURVE.index(name)] = column
    return found


def measurements(histories: Sequence[History]) -> Measurements:
    """Everything measured: epochs with a flux, and points that do not belong to one, each exposure once."""
    epochs, points = _epochs(histories), _points(histories)
    if len(points.row):
        points = points.take(~_among(points, epochs))
    names = ("row", "mjd", "band", "flux", "error", "kind")
    both = Measurements(*(np.concatenate([getattr(epochs, n), getattr(points, n)]) for n in names))
    ordered = both.take(np.lexsort((both.kind, both.band, both.mjd, both.row)))
    return ordered.take(_once(ordered))


def _epochs(histories: Sequence[History]) -> Measurements:
    flux = np.concatenate([h.flux for h in histories])
    found = _flat(
        np.repeat(np.arange(len(histories)), [len(h) for h in histories]),
        np.concatenate([h.mjd for h in histories]), np.concatenate([h.band for h in histories]), flux,
        np.concatenate([h.flux_error for h in histories]), np.full(len(flux), DETECTION, np.uint8),
    )  # fmt: skip
    return found.take(np.isfinite(flux))


def _points(histories: Sequence[History]) -> Measurements:
    """The points up to the latest epoch of each history."""
    some = [(row, h.photometry.until(float(h.mjd[-1]))) for row, h in enumerate(histories) if h.photometry is not None]
    if not some:
        nothing = np.zeros(0)
        return _flat(np.zeros(0, np.int64), nothing, nothing, nothing, nothing, np.zeros(0, np.uint8))
    mjd, band, flux, error, kind = (
        np.concatenate([getattr(points, name) for _, points in some])
        for name in ("mjd", "band", "flux", "flux_error", "kind")
    )
    row = np.repeat([row for row, _ in some], [len(points) for _, points in some])
    return _flat(row, mjd, band, flux, error, kind)


def _flat(
    row: Integers, mjd: NDArray[Any], band: NDArray[Any], flux: NDArray[Any], error: NDArray[Any], kind: NDArray[Any]
) -> Measurements:
    flux = flux.astype(np.float64)
    error = np.maximum(np.nan_to_num(error.astype(np.float64), nan=0.0), 1e-3 + 0.01 * np.abs(flux))
    return Measurements(row, mjd.astype(np.float64), band.astype(np.int64), flux, error, kind)


def _among(points: Measurements, epochs: Measurements) -> NDArray[np.bool_]:
    """Which points belong to an epoch."""
    if not len(epochs.row):
        return np.zeros(len(points.row), bool)
    start = min(points.mjd.min(), epochs.mjd.min())
    reach = max(points.mjd.max(), epochs.mjd.max()) - start + 1
    # one axis on which the light curves of all histories and bands lie one behind the other
    order = np.lexsort((epochs.mjd, epochs.curve))
    curve, mjd = epochs.curve[order], epochs.mjd[order]
    after = np.searchsorted(curve * reach + (mjd - start), points.curve * reach + (points.mjd - start))
    found = np.zeros(len(points.row), bool)
    for place in (after - 1, after):
        near = np.clip(place, 0, len(mjd) - 1)
        found |= (curve[near] == points.curve) & (np.abs(mjd[near] - points.mjd) < SAME)
    return found


def _once(ordered: Measurements) -> NDArray[np.bool_]:
    """Which to keep of several points of an exposure: detections before forced photometry before limits."""
    keep = np.ones(len(ordered.row), bool)
    row, mjd, band, kind = ordered.row, ordered.mjd, ordered.band, ordered.kind
    for n in (np.flatnonzero((row[1:] == row[:-1]) & (mjd[1:] - mjd[:-1] < SAME)) + 1).tolist():
        before = n - 1
        while before >= 0 and row[before] == row[n] and mjd[n] - mjd[before] < SAME:
            keep[n] &= not (keep[before] and band[before] == band[n] and kind[before] <= kind[n])
            before -= 1
    assert UPPER_LIMIT > FORCED > DETECTION
    return keep


def _course(seen: Measurements, limits: Measurements, now: Floats) -> Values:
    """Brightness now and at its peak, detections against limits, and times; [b] each, NaN without a detection."""
    every, rows = Groups(seen.row), len(now)
    strength = np.abs(seen.flux)
    first, last = seen.mjd[every.first], seen.flux[every.last]
    peak = every.first_where(strength == every.spread(every.largest(strength)))
    start = np.full(rows, np.nan)
    start[every.key] = first
    before = limits.mjd < start[limits.row]
    gap = np.full(rows, np.nan)
    gap[limits.row[before]] = limits.mjd[before]  # in time order: the last one before the first detection stays
    after = np.bincount(limits.row[limits.mjd > start[limits.row]], minlength=rows)[every.key]
    magnitude = AB_NJY - 2.5 * np.log10(np.maximum(np.abs(last), 1.0))
    found = {
        "magnitude": np.clip(magnitude, 12.0, 24.0), "negative": (last < 0).astype(float),
        "negative_share": every.mean((seen.flux < 0).astype(float)), "below_peak": np.abs(last) / strength[peak],
        "detected_share": every.count / (every.count + after), "span": np.log1p(now[every.key] - first),
        "fresh": np.isfinite(gap[every.key]).astype(float), "gap": np.log1p(first - gap[every.key]),
        "since_peak": np.log1p(now[every.key] - seen.mjd[peak]), "rise": np.log1p(seen.mjd[peak] - first),
    }  # fmt: skip
    return {name: every.placed(values, rows) for name, values in found.items()}


def _shapes(seen: Measurements, rows: int) -> Values:
    """How the bands change, relative to their own median brightness: mean over bands; [b] each."""
    every = Groups(seen.row)
    last = every.spread(seen.mjd[every.last])
    order = np.argsort(seen.curve, kind="stable")
    seen, last = seen.take(order), last[order]
    bands, days = Groups(seen.curve), seen.mjd - last
    curve = np.arcsinh(seen.flux / bands.spread(bands.median(np.abs(seen.flux))))
    lately = days >= bands.spread(days[bands.last]) - LATELY
    slope, middle = bands.line(days, curve)
    rest = bands.scatter(curve - bands.spread(slope) * days - bands.spread(middle))
    found = {
        "scatter": np.where(bands.count > 1, bands.scatter(curve), np.nan),
        "slope": _slopes(bands, days, curve),
        "slope_lately": _slopes(Groups(seen.curve[lately]), days[lately], curve[lately]),
        "residual": np.where(_long(bands, days) & (bands.count > 2), rest, np.nan),
    }
    return {name: _over_bands(bands.key // len(BANDS), values, rows) for name, values in found.items()}


def _long(bands: Groups, days: Floats) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = days[bands.last] - days[bands.first] > SHORTEST
    return found


def _slopes(bands: Groups, days: Floats, curve: Floats) -> Floats:
    slope, _ = bands.line(days, curve)
    return np.where(_long(bands, days), np.clip(slope, -STEEPEST, STEEPEST), np.nan)


def _over_bands(row: Integers, values: Floats, rows: int) -> Floats:
    """Mean over the bands of each history [rows] in which a value [g] is known."""
    known = np.isfinite(values)
    count = np.bincount(row[known], minlength=rows)
    found: Floats = np.bincount(row[known], values[known], rows) / np.where(count, count, np.nan)
    return found


def _colours(seen: Measurements, rows: int) -> Values:
    """Colours as the slope of magnitude over log wavelength: of medians, of the last days, and its change per day."""
    every, positive = Groups(seen.row), seen.flux > 0
    first, last = seen.mjd[every.first], seen.mjd[every.last]
    early, lately = every.spread(first + COLOUR_WITHIN), every.spread(last - COLOUR_WITHIN)
    now = _colour(seen.take(positive & (seen.mjd >= lately)), rows)
    then = _colour(seen.take(positive & (seen.mjd <= early)), rows)
    days = every.placed(last - first, rows)
    change = np.where(days > 2 * COLOUR_WITHIN, (now - then) / days, np.nan)
    found = {"colour": _colour(seen.take(positive), rows), "colour_now": now, "reddening": change}
    return {name: np.clip(np.where(np.isfinite(v), v, np.nan), -6.0, 6.0) for name, v in found.items()}


def _colour(seen: Measurements, rows: int) -> Floats:
    """The colour [rows] of positive fluxes; NaN with fewer than two bands."""
    seen = seen.take(np.argsort(seen.curve, kind="stable"))
    bands = Groups(seen.curve)
    magnitudes = -2.5 * np.log10(bands.median(seen.flux))
    every = Groups(bands.key // len(BANDS))
    slope, _ = every.line(LOG_WAVELENGTH[bands.key % len(BANDS)], magnitudes)
    return every.placed(np.where(every.count > 1, -slope, np.nan), rows)
