"""The light-curve features of one history, step by step as docs and tests describe them: slow, to compare with."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.history import DETECTION, FORCED, History
from skyheed.classifier.models.fusion.light_curves import (
    AB_NJY,
    COLOUR_WITHIN,
    LATELY,
    LOG_WAVELENGTH,
    SAME,
    SIGNIFICANT,
)

Floats = NDArray[np.float64]
Values = dict[str, float]


class Measured:
    """All measurements of a history up to its latest epoch: epochs, and points that do not belong to an epoch.

    Attributes:
        mjd, band, flux, error: [k], in time order; nJy.
        detected: bool [k]; the others are limits.
    """

    def __init__(self, history: History) -> None:
        points = history.photometry
        known = np.isfinite(history.flux)
        columns: list[NDArray[Any]] = [
            history.mjd[known],
            history.band[known],
            history.flux[known],
            history.flux_error[known],
        ]
        kind = np.full(known.sum(), DETECTION, np.uint8)
        if points is not None and len(points):
            points = points.until(float(history.mjd[-1]))
            new = ~_measured(history, points.mjd, points.band)
            more: list[NDArray[Any]] = [points.mjd, points.band, points.flux, points.flux_error]
            columns = [np.concatenate([own, other[new]]) for own, other in zip(columns, more, strict=True)]
            kind = np.concatenate([kind, points.kind[new]])
        order = np.lexsort((kind, columns[1], columns[0]))
        self.mjd, self.band, self.flux, self.error = (c[order].astype(np.float64) for c in columns)
        self.band = self.band.astype(np.int64)
        kind = kind[order]
        self.error = np.maximum(np.nan_to_num(self.error, nan=0.0), 1e-3 + 0.01 * np.abs(self.flux))
        strong = np.abs(self.flux) > SIGNIFICANT * self.error
        self.detected = (kind == DETECTION) | ((kind == FORCED) & strong)
        self._once(kind)

    def _once(self, kind: NDArray[np.uint8]) -> None:
        """Keep one of several points of an exposure: detections before forced photometry before limits."""
        if not (self.mjd[1:] - self.mjd[:-1] < SAME).any():
            return
        keep = np.ones(len(self.mjd), bool)
        for n in range(1, len(keep)):
            before = n - 1
            while before >= 0 and self.mjd[n] - self.mjd[before] < SAME:
                keep[n] &= not (keep[before] and self.band[before] == self.band[n] and kind[before] <= kind[n])
                before -= 1
        for name in ("mjd", "band", "flux", "error", "detected"):
            setattr(self, name, getattr(self, name)[keep])


def _measured(history: History, mjd: Floats, band: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which points belong to an epoch."""
    near = np.abs(mjd[:, None] - history.mjd) < SAME
    found: NDArray[np.bool_] = (near & (band[:, None] == history.band) & np.isfinite(history.flux)).any(1)
    return found


def light_curve(history: History) -> Values:
    """The `CURVE` numbers that are known."""
    seen = Measured(history)
    if not seen.detected.any():
        return {}
    mjd, band, flux = (a[seen.detected] for a in (seen.mjd, seen.band, seen.flux))
    now, limits = float(history.mjd[-1]), seen.mjd[~seen.detected]
    before = limits[limits < mjd[0]]
    strength = np.abs(flux)
    peak, count = int(strength.argmax()), len(mjd)
    magnitude = AB_NJY - 2.5 * math.log10(max(strength[-1], 1.0))
    found = {
        "magnitude": min(max(magnitude, 12.0), 24.0),
        "negative": float(flux[-1] < 0), "negative_share": float((flux < 0).sum()) / count,
        "below_peak": float(strength[-1] / strength[peak]),
        "detected_share": count / (count + int((limits > mjd[0]).sum())),
        "span": math.log1p(now - mjd[0]), "fresh": float(len(before) > 0),
        "since_peak": math.log1p(now - mjd[peak]), "rise": math.log1p(mjd[peak] - mjd[0]),
    }  # fmt: skip
    if len(before):
        found["gap"] = math.log1p(mjd[0] - before[-1])
    return found | _shape(mjd, band, flux) | _colours(mjd, band, flux)


def _shape(mjd: Floats, band: NDArray[np.int64], flux: Floats) -> Values:
    """How the bands change, relative to their own median brightness: mean over bands."""
    found: dict[str, list[float]] = {}
    last = mjd[-1]
    for code in sorted(set(band.tolist())):
        rows = band == code
        days, curve = mjd[rows] - last, np.arcsinh(flux[rows] / _median(np.abs(flux[rows])))
        if len(days) > 1:
            found.setdefault("scatter", []).append(_scatter(curve))
        lately = days >= days[-1] - LATELY
        for name, x, y in (("slope", days, curve), ("slope_lately", days[lately], curve[lately])):
            if len(x) and x[-1] - x[0] > 0.5:
                slope, middle = line(x, y)
                found.setdefault(name, []).append(min(max(slope, -0.3), 0.3))
                if name == "slope" and len(days) > 2:
                    found.setdefault("residual", []).append(_scatter(curve - slope * days - middle))
    known = {name: [v for v in values if math.isfinite(v)] for name, values in found.items()}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def _median(values: Floats) -> float:
    ordered, n = np.sort(values), len(values)
    return float(ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def _scatter(values: Floats) -> float:
    away = values - np.add.reduce(values) / len(values)
    return math.sqrt(float(away @ away) / len(values))


def line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and intercept of the least-squares line through points [n]; the points differ in x."""
    middle, level = np.add.reduce(x) / len(x), np.add.reduce(y) / len(y)
    away = x - middle
    slope = float(away @ (y - level)) / float(away @ away)
    return slope, float(level) - slope * float(middle)


def _colours(mjd: Floats, band: NDArray[np.int64], flux: Floats) -> Values:
    """Colours as the slope of magnitude over log wavelength: of medians, of the last days, and its change per day."""
    positive = flux > 0
    found = {"colour": _colour(band[positive], flux[positive])}
    lately = positive & (mjd >= mjd[-1] - COLOUR_WITHIN)
    found["colour_now"] = _colour(band[lately], flux[lately])
    first = positive & (mjd <= mjd[0] + COLOUR_WITHIN)
    days = float(mjd[-1] - mjd[0])
    if days > 2 * COLOUR_WITHIN:
        found["reddening"] = (found["colour_now"] - _colour(band[first], flux[first])) / days
    return {name: min(max(value, -6.0), 6.0) for name, value in found.items() if math.isfinite(value)}


def _colour(band: NDArray[np.int64], flux: Floats) -> float:
    codes = sorted(set(band.tolist()))
    if len(codes) < 2:
        return math.nan
    magnitudes = np.array([-2.5 * math.log10(_median(flux[band == code])) for code in codes])
    return -line(LOG_WAVELENGTH[codes], magnitudes)[0]
