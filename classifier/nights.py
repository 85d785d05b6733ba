"""Groups a history's epochs by night: one row with a flux and an error for each band. Numpy only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.history import BANDS, History

NIGHT_D = 0.33  # days that one night's observations span (Möller & de Boissière 2020, MNRAS 491, 4277)


@dataclass(frozen=True)
class Nights:
    """One history, night by night.

    Attributes:
        mjd: float64 [k], of each night's first epoch.
        flux, flux_error: float32 [k, 6] nJy; 0 if a band was not observed (or has no flux).
        seen: bool [k, 6], bands that were observed.
        epoch: int64 [k, 6], the epoch used; -1 if none.
    """

    mjd: NDArray[np.float64]
    flux: NDArray[np.float32]
    flux_error: NDArray[np.float32]
    seen: NDArray[np.bool_]
    epoch: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.mjd)


def nights(history: History) -> Nights:
    """The nights of a history; of two epochs in one band and night, the one with the smaller error is used."""
    starts = _starts(history.mjd)
    night = np.searchsorted(starts, np.arange(len(history)), "right") - 1
    epoch = np.full((len(starts), len(BANDS)), -1)
    error = np.nan_to_num(history.flux_error, nan=np.inf)
    # the smallest error is written last; of equal ones the earliest epoch
    for n in np.lexsort((-np.arange(len(history)), -error)):
        epoch[night[n], history.band[n]] = n
    seen = epoch >= 0
    flux, flux_error = (np.where(seen, np.nan_to_num(v)[epoch], 0) for v in (history.flux, history.flux_error))
    return Nights(history.mjd[starts], flux.astype(np.float32), flux_error.astype(np.float32), seen, epoch)


def _starts(mjd: NDArray[np.float64]) -> NDArray[np.int64]:
    """The first epoch of each night."""
    found = [0]
    for n in range(1, len(mjd)):
        if mjd[n] - mjd[found[-1]] > NIGHT_D:
            found.append(n)
    return np.array(found)


def padded(rows: Sequence[NDArray[Any]], width: int = 0) -> NDArray[np.float32]:
    """Rows [k, …] of several histories in one array [b, n, …], zero-padded."""
    longest = max(width, *(len(r) for r in rows))
    out = np.zeros((len(rows), longest, *rows[0].shape[1:]), np.float32)
    for n, r in enumerate(rows):
        out[n, : len(r)] = r
    return out
