"""An object's history as one picture for other systems: one row per band, one column per epoch.

Stamps are shown as negatives, north up and east left, each with its own intensity limits, because bands and nights
differ. The label above a column is the time since the first epoch in days.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.history import BANDS

if TYPE_CHECKING:  # sinks are imported without the Redis client
    from skyheed.broker.state.histories import SequenceStore
    from skyheed.broker.state.sequence import StoredSequence

MOST_EPOCHS = 40  # in a picture, the newest
SCALE = 2  # screen pixels per stamp pixel
GAP, MARGIN, HEAD = 2, 14, 26  # pixels between stamps, for the band names, for the title and the days
CUTS = 1.0, 99.5  # percentiles
SAME_VISIT_DAYS = 0.02  # epochs of different bands within half an hour share a column
PAPER, INK = 255, 0


class FilmStrips:
    """Draws film strips of objects from their histories in Redis."""

    def __init__(self, store: SequenceStore) -> None:
        self._store = store

    def of(self, object_id: str, sources: Collection[int], title: str) -> bytes | None:
        """A PNG of the epochs with these source ids; None if Redis no longer has the stamp of any of them.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable, or refuses us.
        """
        found = self._store.sequence(object_id)
        kept = np.zeros(0, bool) if found is None else np.isin(found.header["source_id"], list(sources))
        if found is not None:
            kept[sorted(found.gone)] = False
        return draw(found, kept, title) if found is not None and kept.any() else None


def draw(sequence: StoredSequence, kept: NDArray[np.bool_], title: str) -> bytes:
    """The chosen epochs of a sequence as a PNG.

    Args:
        kept: [n], which epochs; of more than `MOST_EPOCHS` the newest are drawn.
    """
    from PIL import Image, ImageDraw

    epochs = np.flatnonzero(kept)[-MOST_EPOCHS:]
    header, stamps = sequence.header[epochs], sequence.stamps[np.searchsorted(sequence.shown, epochs)]
    columns = columns_of(header["mjd"], header["band"])
    lanes = {int(band): lane for lane, band in enumerate(np.unique(header["band"]))}
    side = stamps.shape[-1] * SCALE + GAP
    image = Image.new("L", (MARGIN + side * (columns[-1] + 1), HEAD + side * len(lanes)), PAPER)
    for column, band, stamp in zip(columns, header["band"].tolist(), stamps, strict=True):
        image.paste(Image.fromarray(grey(stamp)), (MARGIN + side * column, HEAD + side * lanes[band]))
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, 1), title, INK)
    for band, lane in lanes.items():
        pen.text((3, HEAD + side * lane + side // 2 - 6), BANDS[band], INK)
    _write_days(pen, columns, header["mjd"], side)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def _write_days(pen: Any, columns: list[int], mjd: NDArray[np.float64], side: int) -> None:
    written: set[int] = set()
    for column, days in zip(columns, (mjd - mjd[0]).tolist(), strict=True):
        if column not in written:
            pen.text((MARGIN + side * column, HEAD - 12), f"+{days:.1f} d", INK)
            written.add(column)


def columns_of(mjd: NDArray[np.float64], band: NDArray[Any]) -> list[int]:
    """The column of every epoch, in time order: visits in several bands share one.

    Args:
        mjd, band: [n] days and codes, in time order.
    """
    columns: list[int] = []
    start, taken = -np.inf, set[int]()
    for when, code in zip(mjd.tolist(), band.tolist(), strict=True):
        if when - start > SAME_VISIT_DAYS or code in taken:
            start, taken = when, set()
            columns.append(columns[-1] + 1 if columns else 0)
        else:
            columns.append(columns[-1])
        taken.add(code)
    return columns


def grey(stamp: NDArray[np.float16]) -> NDArray[np.uint8]:
    """One stamp, rows south to north and columns east to west -> [64, 64] grey values, north up."""
    values = stamp.astype(np.float32)[::-1]
    low, high = np.percentile(values, CUTS)
    unit = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
    shade = (255 - np.rint(255 * unit)).astype(np.uint8)
    return np.ascontiguousarray(shade.repeat(SCALE, 0).repeat(SCALE, 1))
