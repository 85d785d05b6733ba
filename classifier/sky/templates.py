"""Spectral templates of SNe Ia from files, in place of our own standard light curves.

Hsiao et al. 2007 (ApJ 663, 1187): a FITS image of flux per wavelength over (days, wavelength), as in version 3
distributed with snpy. SALT3 (Kenworthy et al. 2021, ApJ 923, 265): a folder with `salt3_template_0.dat` and its
companions, read by sncosmo if that is installed. Neither is part of skyheed.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from skyheed.classifier.bounded_files import open_regular
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.sky.spectra import Array
from skyheed.classifier.sky.type_ia import B_WAVELENGTH, STANDARD, IaTemplate

NODES = np.arange(2200.0, 11000.0, 100.0)  # Angstrom; a template is averaged in intervals around these
B_WIDTH = 900.0  # Angstrom, of the band in which the maximum is 1
LAST_DAY = 50.0  # of SALT3; afterwards its last spectrum fades
FADE = 0.02  # natural log of the flux per day, after the last day


@lru_cache(4)
def load_template(path: Path | None) -> IaTemplate:
    """The SN Ia template from a FITS file or a SALT3 folder; our own if none is given.

    Raises:
        ArchiveError: there is no such file, or it cannot be read as a template.
    """
    if path is None:
        return STANDARD
    try:
        if path.is_dir():
            return _salt3(path)
        with open_regular(path) as file, fits.open(file) as parts:
            return _hsiao(path.stem, parts[0])
    except (OSError, LookupError, ValueError, TypeError, EOFError) as error:
        raise ArchiveError(f"{path} is neither a template's FITS file nor a SALT3 folder: {error}") from error


def _hsiao(name: str, part: Any) -> IaTemplate:
    header, data = part.header, np.asarray(part.data, float)
    wavelength, days = (_axis(header, number) for number in (1, 2))
    table = _log_table(days, wavelength, data)

    def log_flux(day: Array, x1: float) -> Array:
        return np.stack([np.interp(day, days, column) for column in table.T], axis=1)

    return IaTemplate(name, NODES, log_flux, stretches=True)


def _axis(header: Any, number: int) -> Array:
    pixel = np.arange(header[f"NAXIS{number}"]) + 1 - header[f"CRPIX{number}"]
    return np.asarray(header[f"CRVAL{number}"] + header[f"CDELT{number}"] * pixel, float)


def _log_table(days: Array, wavelength: Array, per_wavelength: Array) -> Array:
    """Log flux per frequency [day, NODES], 0 in B at day 0."""
    per_frequency = per_wavelength * wavelength**2
    means = _means(per_frequency, wavelength, NODES, NODES[1] - NODES[0])
    b = _means(per_frequency, wavelength, np.array([B_WAVELENGTH]), B_WIDTH)[:, 0]
    at_maximum = float(np.interp(0, days, b))
    if not at_maximum > 0:
        raise ValueError("it has no flux in B at maximum")
    return np.log(np.maximum(means / at_maximum, 1e-12))


def _means(flux: Array, wavelength: Array, nodes: Array, width: float) -> Array:
    inside = np.abs(wavelength - nodes[:, None]) <= width / 2
    return np.asarray(flux @ (inside / np.maximum(inside.sum(1, keepdims=True), 1)).T)


def _salt3(folder: Path) -> IaTemplate:
    try:
        from sncosmo import SALT3Source
    except ImportError as error:
        raise ArchiveError("SALT3 is read by sncosmo: pip install sncosmo, or give a template's FITS file") from error
    source = SALT3Source(modeldir=str(folder))
    days, wavelength = np.arange(source.minphase(), LAST_DAY + 1), np.arange(2000.0, 11000.0, 20.0)
    tables = []
    for x1 in (0.0, 1.0):
        source.set(x0=1.0, x1=x1, c=0.0)
        tables.append(np.maximum(source.flux(days, wavelength), 0) * wavelength**2)
    flux = [_means(table, wavelength, NODES, NODES[1] - NODES[0]) for table in tables]
    at_maximum = float(np.interp(0, days, _means(tables[0], wavelength, np.array([B_WAVELENGTH]), B_WIDTH)[:, 0]))

    def log_flux(day: Array, x1: float) -> Array:
        table = np.log(np.maximum(flux[0] + x1 * (flux[1] - flux[0]), 1e-12 * at_maximum) / at_maximum)
        inside = np.stack([np.interp(day, days, column) for column in table.T], axis=1)
        return np.asarray(inside - FADE * np.maximum(day - LAST_DAY, 0)[:, None])

    return IaTemplate(f"SALT3 {folder.name}", NODES, log_flux, stretches=False)
