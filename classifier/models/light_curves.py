"""Inputs of light-curve models: one row per night, with a flux and an error for each band. Numpy only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier import value_checks
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import BANDS, PER_EPOCH, History
from skyheed.classifier.models import family
from skyheed.classifier.nights import nights, padded

SAME = 1e-4  # days: a photometric point and an epoch in the same band this close in time are one measurement


@dataclass(frozen=True)
class Config(family.Config):
    """Configuration of a model for specific bands.

    Attributes:
        bands: letters, in the order of the columns.
        photometry: use the photometric points in packets, not only the epochs with stamps.
    """

    bands: str = "ugriz"
    photometry: bool = False

    def check(self) -> None:
        """See `family.Config.check`."""
        value_checks.bands(self.bands)

    @property
    def codes(self) -> list[int]:
        """Numeric codes of the bands."""
        return [BANDS.index(b) for b in self.bands]


@dataclass(frozen=True)
class Rows:
    """One light curve, binned by night.

    Attributes:
        days: float64 [k], since the first row.
        flux, flux_error: float32 [k, bands]; 0 where a band was not observed.
        seen: bool [k, bands].
    """

    days: NDArray[np.float64]
    flux: NDArray[np.float32]
    flux_error: NDArray[np.float32]
    seen: NDArray[np.bool_]

    @property
    def gaps(self) -> NDArray[np.float64]:
        """Days since the previous night, [k]; 0 for the first."""
        return np.diff(self.days, prepend=0)


def rows(history: History, config: Config, scaling: Scaling | None = None) -> Rows:
    """Nights in which at least one of the config's bands was observed; one empty row if there is none.

    Args:
        scaling: gives fluxes and errors as asinh(flux / unit of the band); without it they are in nJy.
    """
    if config.photometry:
        history = with_photometry(history)
    found = nights(history)
    seen = found.seen[:, config.codes]
    kept = np.flatnonzero(seen.any(1)) if seen.any() else np.array([0])
    flux, error = (values[kept][:, config.codes] for values in (found.flux, found.flux_error))
    if scaling is not None:
        codes = np.broadcast_to(np.array(config.codes, np.uint8), flux.shape)
        flux, error = scaling.fluxes(flux, codes), scaling.fluxes(error, codes)
    return Rows(found.mjd[kept] - found.mjd[kept[0]], flux, error, seen[kept])


def table(histories: Sequence[History], config: Config, scaling: Scaling) -> dict[str, NDArray[Any]]:
    """Light curves as a padded batch.

    Returns:
        nights: float32 [b, n, 2 bands + 1]: asinh of fluxes and errors, log(1 + days since the previous night).
        valid: bool [b, n].
    """
    curves = [rows(h, config, scaling) for h in histories]
    tables = [np.concatenate([c.flux, c.flux_error, np.log1p(c.gaps)[:, None]], 1) for c in curves]
    return {"nights": padded(tables), "valid": lengths_valid(curves)}


def with_photometry(history: History) -> History:
    """The epochs, merged with the photometric points up to the last epoch as epochs without images."""
    if history.photometry is None:
        return history
    points = history.photometry.until(float(history.mjd[-1]))
    new = np.array([not _measured(history, points.mjd[n], points.band[n]) for n in range(len(points))], bool)
    columns = {name: getattr(history, name) for name in PER_EPOCH}
    extra: dict[str, NDArray[Any]] = {
        "mjd": points.mjd,
        "band": points.band,
        "flux": points.flux,
        "flux_error": points.flux_error,
    }
    filled = {name: extra.get(name, np.zeros(len(points), column.dtype)) for name, column in columns.items()}
    joined = {name: np.concatenate([column, filled[name][new]]) for name, column in columns.items()}
    order = np.argsort(joined["mjd"], kind="stable")
    changed: dict[str, Any] = {name: column[order] for name, column in joined.items()}
    return replace(history, images={}, kept={}, shown=np.arange(len(order)), **changed)


def _measured(history: History, mjd: float, band: int) -> bool:
    return bool(((np.abs(history.mjd - mjd) < SAME) & (history.band == band)).any())


def lengths_valid(curves: Sequence[Rows]) -> NDArray[np.bool_]:
    """bool [b, n]: where a batch of light curves has rows."""
    lengths = np.array([len(c.days) for c in curves])
    valid: NDArray[np.bool_] = np.arange(lengths.max()) < lengths[:, None]
    return valid


def expected_rows(config: Config, stamps: int) -> int:
    """Number of nights for this many epochs if every band is observed each night."""
    return -(-stamps // len(config.bands))
