"""Summary statistics of a model's input stamps by band: of the training data, for the model's card, and of each night
of a stream, to compare with it. They describe many stamps, not single ones.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.history import BANDS, History
from skyheed.classifier.stamp import BORDER, STAMP_SIZE

_SIGMA = 1.4826  # standard deviation of a normal distribution, in median absolute deviations
_MIDDLE = STAMP_SIZE // 2
_PERCENTILES = {"p16": 16, "p50": 50, "p84": 84}
# Four pixels wide, inside of the border, which is padding where a survey's stamps are smaller (Rubin: 30 pixels).
_RING = np.zeros((STAMP_SIZE, STAMP_SIZE), bool)
_RING[BORDER:-BORDER, BORDER:-BORDER] = True
_RING[BORDER + 4 : -BORDER - 4, BORDER + 4 : -BORDER - 4] = False

Seen = dict[str, list[tuple[float, NDArray[np.float32]]]]  # band -> (flux in nJy, science stamp) of epochs


def gather(histories: Iterable[History], night: int | None = None) -> Seen:
    """Fluxes and science stamps by band.

    Args:
        night: integer MJD of the wanted epochs; None for all.
    """
    found: Seen = defaultdict(list)
    for history in histories:
        science = history.images.get("science")
        for at, epoch in enumerate(history.shown if science is not None else ()):
            assert science is not None
            if night is None or int(history.mjd[epoch]) == night:
                found[BANDS[history.band[epoch]]].append((float(history.flux[epoch]), science[at].astype(np.float32)))
    return found


def summary(seen: Seen) -> dict[str, dict[str, Any]]:
    """Band -> number of stamps; flux (nJy) and background noise (100 nJy per pixel) as percentiles; width (pixels)."""
    return {band: _of_band(seen[band]) for band in BANDS if seen.get(band)}


def _of_band(found: list[tuple[float, NDArray[np.float32]]]) -> dict[str, Any]:
    stamps = np.stack([stamp for _, stamp in found])
    flux = np.array([value for value, _ in found if np.isfinite(value)])
    return {
        "n": len(stamps), "flux": _percentiles(flux), "background": _percentiles(noise(stamps)),
        "width": _short(width(stamps)),
    }  # fmt: skip


def _percentiles(values: NDArray[Any]) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(_PERCENTILES)
    return {name: _short(float(np.percentile(values, at))) for name, at in _PERCENTILES.items()}


def noise(stamps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scatter of the outer pixels of stamps [n, 32, 32], in the stamps' unit (100 nJy)."""
    edge = stamps[:, _RING]
    found: NDArray[np.float32] = _SIGMA * np.median(np.abs(edge - np.median(edge, 1, keepdims=True)), 1)
    return found


def width(stamps: NDArray[np.float32]) -> float | None:
    """Full width at half maximum of the median stamp, pixels: the diameter of a circle with the area above half."""
    mean = np.median(stamps / np.maximum(stamps.max((1, 2), keepdims=True), 1e-6), 0)
    peak = mean[_MIDDLE - 2 : _MIDDLE + 3, _MIDDLE - 2 : _MIDDLE + 3].max()
    area = int((mean[_MIDDLE - 10 : _MIDDLE + 11, _MIDDLE - 10 : _MIDDLE + 11] > peak / 2).sum())
    return 2 * float(np.sqrt(area / np.pi)) if peak > 0 else None


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
