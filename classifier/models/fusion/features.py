"""Hand-chosen features of an alert in addition to its images: its surroundings, and its light curve so far.

They are few and the same for all surveys, so that a few dozen labelled objects suffice to fit heads on them. Unknown
values are NaN. Numpy only.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.history import DETECTION, FORCED, UPPER_LIMIT, History

Floats = NDArray[np.float64]
Values = dict[str, float]

AB_NJY = 31.4  # magnitude of 1 nJy
NEAR = 1.5  # arcsec: a catalogue source this close is taken to be the object itself, or the core of its host
SIGNIFICANT = 3.0  # sigma, above which a forced point counts as a detection
SAME = 1e-3  # days: an epoch and a point in the same band this close in time are one measurement
LATELY = 8.0  # days
COLOUR_WITHIN = 3.0  # days
# Microns, approximate band centres of LSST (Ivezic et al. 2019, ApJ 873, 111); other surveys' differ little.
LOG_WAVELENGTH = np.log([0.37, 0.48, 0.62, 0.75, 0.87, 0.99])

SURROUNDINGS = (
    "reference_distance", "reference_magnitude", "reference_shape", "over_reference", "catalogue_distance", "on_star",
    "on_galaxy", "catalogue_magnitude", "catalogue_gr", "catalogue_ri", "second_distance", "latitude", "detections",
    "age", "detected_visits",
)  # fmt: skip
CURVE = (
    "magnitude", "negative", "negative_share", "below_peak", "detected_share", "span", "fresh", "gap", "scatter",
    "slope", "slope_lately", "residual", "since_peak", "rise", "colour", "colour_now", "reddening",
)  # fmt: skip
NUMBERS = SURROUNDINGS + CURVE


def surroundings(context: Mapping[str, float]) -> Values:
    """The `SURROUNDINGS` that are known, from a history's context (`classifier.context`)."""

    def known(name: str, low: float = -math.inf, high: float = math.inf) -> float:
        return min(max(float(context.get(name, math.nan)), low), high)  # NaN stays NaN in this order

    star, distance = known("catalogue_1_star"), known("catalogue_1_distance")
    near = math.exp(-((distance / NEAR) ** 2))
    detections, visits = known("detections"), known("visits")
    return {
        "reference_distance": math.log1p(known("reference_distance", 0, 60)),
        "reference_magnitude": known("reference_magnitude", 12, 23), "reference_shape": known("reference_shape", -1, 1),
        "over_reference": known("magnitude_over_reference", -5, 4),
        "catalogue_distance": math.log1p(known("catalogue_1_distance", 0, 60)),
        "on_star": star * near, "on_galaxy": (1 - star) * near,
        "catalogue_magnitude": known("catalogue_1_magnitude", 12, 23),
        "catalogue_gr": known("catalogue_1_gr", -1, 2.5), "catalogue_ri": known("catalogue_1_ri", -1, 2.5),
        "second_distance": math.log1p(known("catalogue_2_distance", 0, 60)),
        "latitude": known("galactic_latitude", 0, 60),  # above this, the density of Galactic stars hardly decreases
        "detections": np.log1p(detections), "age": math.log1p(known("age_days", 0)),
        "detected_visits": np.log((detections + 0.5) / (visits + 1)),
    }  # fmt: skip


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
        assert UPPER_LIMIT > FORCED > DETECTION


def _measured(history: History, mjd: Floats, band: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which points belong to an epoch."""
    near = np.abs(mjd[:, None] - history.mjd) < SAME
    found: NDArray[np.bool_] = (near & (band[:, None] == history.band) & np.isfinite(history.flux)).any(1)
    return found


def light_curve(history: History) -> Values:
    """The `CURVE` numbers that are known.

    Sums and medians are written out: numpy's own are ten times as slow on so few points, and took half of the time of
    a prediction.
    """
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
    return {name: sum(values) / len(values) for name, values in found.items()}


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


def table(histories: Sequence[History]) -> NDArray[np.float32]:
    """The `NUMBERS` of histories, float32 [b, NUMBERS]; NaN where unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):  # fluxes that are all 0 are unknown, like missing ones
        rows = [surroundings(h.context) | light_curve(h) for h in histories]
    return np.array([[row.get(name, np.nan) for name in NUMBERS] for row in rows], np.float32)
