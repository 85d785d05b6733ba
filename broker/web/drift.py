"""What the stamps of the last nights look like, night by night and band by band, next to what the model's card says of
its training: a stream that drifts away from it is classified worse and nothing else shows it.

From a sample of objects in Redis, in the background; a number that many stamps agree on, not a measurement of one.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.broker.errors import SkyheedError
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.web.index import Index
from skyheed.broker.web.rows import night_of
from skyheed.broker.work import history_of
from skyheed.classifier.history import BANDS, History
from skyheed.classifier.stamp import BORDER, STAMP_SIZE

log = logging.getLogger("skyheed.drift")
EVERY_S = 600.0
NIGHTS, OBJECTS = 7, 20  # that are looked at: nights, and objects of each
_SIGMA = 1.4826  # of a normal distribution, in median absolute deviations
_MIDDLE = STAMP_SIZE // 2


class Drift:
    """The newest look at the last nights; made again in the background when it is old."""

    def __init__(self, survey: str, store: SequenceStore, index: Index) -> None:
        self._survey, self._store, self._index = survey, store, index
        self._rows: list[dict[str, Any]] = []
        self._looked = -EVERY_S
        self._lock = threading.Lock()

    def rows(self) -> list[dict[str, Any]]:
        """One entry for each night and band, newest night first; empty until the first look has ended."""
        with self._lock:
            old = time.monotonic() - self._looked >= EVERY_S
            if old:
                self._looked = time.monotonic()
        if old:
            threading.Thread(target=self.look, name="drift", daemon=True).start()
        return self._rows

    def look(self) -> None:
        """Look now; what fails is tried again with the next call."""
        try:
            self._rows = self._look()
        except (SkyheedError, OSError) as error:
            log.warning("the last nights' stamps cannot be looked at: %s", error)
            self._looked = -EVERY_S
        if not self._rows:  # nothing was classified yet: soon again
            self._looked = time.monotonic() - EVERY_S + 5

    def _look(self) -> list[dict[str, Any]]:
        models = self._index.models()
        seen: dict[tuple[int, int], list[tuple[float, NDArray[np.float32]]]] = defaultdict(list)
        for night, _ in self._index.nights(NIGHTS):
            for row in self._index.sky(night, models[0], OBJECTS):
                stored = self._store.sequence(row["object_id"])
                if stored is not None:
                    _gather(history_of(stored, self._survey), night, seen)
        return [_entry(night, band, seen[night, band]) for night, band in sorted(seen, key=lambda k: (-k[0], k[1]))]


def _gather(history: History, night: int, seen: dict[tuple[int, int], Any]) -> None:
    """The epochs of one night."""
    science = history.images.get("science")
    for at, epoch in enumerate(history.shown if science is not None else ()):
        if night_of(float(history.mjd[epoch])) == night:
            assert science is not None
            pair = (float(history.flux[epoch]), science[at].astype(np.float32))
            seen[night, int(history.band[epoch])].append(pair)


def _entry(night: int, band: int, found: list[tuple[float, NDArray[np.float32]]]) -> dict[str, Any]:
    stamps = np.stack([stamp for _, stamp in found])
    flux = np.array([value for value, _ in found if np.isfinite(value)])
    p16, p50, p84 = np.percentile(flux, (16, 50, 84)) if len(flux) else (None, None, None)
    return {
        "night": night, "band": BANDS[band], "n": len(stamps),
        "flux": {name: _short(p) for name, p in (("p16", p16), ("p50", p50), ("p84", p84))},
        "background": _short(float(np.median([noise(stamp) for stamp in stamps]))),
        "width": _short(width(stamps)),
    }  # fmt: skip


def noise(stamp: NDArray[np.float32]) -> float:
    """Scatter of the border's pixels, in the stamp's unit (100 nJy)."""
    frame = np.ones(stamp.shape, bool)
    frame[BORDER:-BORDER, BORDER:-BORDER] = False
    edge = stamp[frame]
    return float(_SIGMA * np.median(np.abs(edge - np.median(edge))))


def width(stamps: NDArray[np.float32]) -> float | None:
    """Full width at half maximum of the median stamp, pixels: the diameter of a circle with the area above half."""
    mean = np.median(stamps / np.maximum(stamps.max((1, 2), keepdims=True), 1e-6), 0)
    peak = mean[_MIDDLE - 2 : _MIDDLE + 3, _MIDDLE - 2 : _MIDDLE + 3].max()
    area = int((mean[_MIDDLE - 10 : _MIDDLE + 11, _MIDDLE - 10 : _MIDDLE + 11] > peak / 2).sum())
    return 2 * float(np.sqrt(area / np.pi)) if peak > 0 else None


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def reference(card: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a model's card says of what it was trained on."""
    if card is None:
        return None
    softening = card.get("scaling", {}).get("softening", [])
    return {
        "bands": card.get("bands"), "background": dict(zip(BANDS, softening, strict=False)),
        "archive": card.get("training", {}).get("archive"),
        "sentence": "background: the sky noise of the band's stamps in the training data, 100 nJy a pixel",
    }  # fmt: skip
