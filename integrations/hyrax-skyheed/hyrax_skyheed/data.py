"""An archive of skyheed (`skyheed archive`) as a Hyrax data set: one history an item, padded to the longest."""

from pathlib import Path
from typing import Any

import numpy as np
from hyrax.datasets import HyraxDataset
from numpy.typing import NDArray

from skyheed import History
from skyheed.classifier import context
from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.history import MOST_POINTS, POINT_COLUMNS

EPOCHS = 99
SIZE = 32


class SkyheedArchive(HyraxDataset):
    """The newest `EPOCHS` epochs of every object; what an item lacks is 0 (stamps, bands) or NaN (numbers)."""

    def __init__(self, config: dict, data_location: Path | str | None = None) -> None:
        if data_location is None:
            raise ValueError("give data_location: the folder of an archive that skyheed wrote")
        self._archive = Archive(data_location)
        self._ids = self._archive.object_ids
        self._last: tuple[int, History] | None = None
        super().__init__(config)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        return {}

    def get_object_id(self, idx: int) -> str:
        """The survey's name."""
        return self._ids[idx]

    def get_label(self, idx: int) -> str:
        """The class, where the archive knows it."""
        return str(self._archive.object(self._ids[idx]).get("label") or "")

    def get_epochs(self, idx: int) -> int:
        """How many epochs are no padding."""
        return min(len(self._history(idx)), EPOCHS)

    def get_mjd(self, idx: int) -> NDArray[np.float64]:
        """[99] days, MJD TAI."""
        return self._padded(self._history(idx).mjd, np.nan)

    def get_band(self, idx: int) -> NDArray[np.uint8]:
        """[99] index into ugrizy."""
        return self._padded(self._history(idx).band, 0)

    def get_flux(self, idx: int) -> NDArray[np.float32]:
        """[99] nJy, of the difference."""
        return self._padded(self._history(idx).flux, np.nan)

    def get_flux_error(self, idx: int) -> NDArray[np.float32]:
        """[99] nJy."""
        return self._padded(self._history(idx).flux_error, np.nan)

    def get_science(self, idx: int) -> NDArray[np.float16]:
        """[99, 32, 32] as skyheed's models take them."""
        return self._stamps(idx, "science")

    def get_difference(self, idx: int) -> NDArray[np.float16]:
        """[99, 32, 32]."""
        return self._stamps(idx, "difference")

    def get_template(self, idx: int) -> NDArray[np.float16]:
        """[99, 32, 32]."""
        return self._stamps(idx, "template")

    def get_points(self, idx: int) -> NDArray[np.float64]:
        """[300, 5] the packets' photometry: MJD, band, flux, its error, kind."""
        points = self._history(idx).photometry
        made = np.full((MOST_POINTS, len(POINT_COLUMNS)), np.nan)
        if points is not None:
            columns = np.stack([np.asarray(getattr(points, name), np.float64) for name in POINT_COLUMNS], 1)
            made[: len(columns)] = columns[-MOST_POINTS:]
        return made

    def get_context(self, idx: int) -> NDArray[np.float32]:
        """What the packets say of the surroundings, in the order of skyheed.classifier.context.NAMES."""
        known = self._history(idx).context
        return np.array([known.get(name, np.nan) for name in context.NAMES], np.float32)

    def _history(self, idx: int) -> History:
        if self._last is None or self._last[0] != idx:  # Hyrax asks for the fields of one item in turn
            self._last = idx, history_of(self._archive, self._ids[idx])
        return self._last[1]

    def _stamps(self, idx: int, kind: str) -> NDArray[np.float16]:
        history = self._history(idx)
        if kind not in history.images:
            return np.zeros((EPOCHS, SIZE, SIZE), np.float16)
        return self._padded(history.images[kind], 0)

    @staticmethod
    def _padded(values: NDArray[Any], nothing: float) -> NDArray[Any]:
        made = np.full((EPOCHS, *values.shape[1:]), nothing, values.dtype)
        made[: min(len(values), EPOCHS)] = values[-EPOCHS:]
        return made
