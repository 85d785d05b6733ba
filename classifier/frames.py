"""Real SDSS images: corrected frames (`frame-*.fits[.bz2]`, nanomaggies) and old fpC frames (counts).

A frame knows its time, its noise, its PSF and where a sky position lies on it, and cuts stamps with north up and east
left. Formats: https://data.sdss.org/datamodel/files/BOSS_PHOTOOBJ/frames/RERUN/RUN/CAMCOL/frame.html and the DR7 data
model of fpC, psField and asTrans.
"""

import bz2
import gzip
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from numpy.typing import NDArray
from scipy import ndimage, optimize

from .errors import ArchiveError
from .sky.surveys import SDSS

BANDS = "ugriz"
NJY_PER_NANOMAGGY = 3631.0  # AB: magnitude 22.5
STAMP = SDSS.size
GAUSSIAN_FWHM = 2.3548
# Turns that differ less from a multiple of 90 degrees are made by flips: 1 degree is half a pixel at the stamp's edge.
NEARLY_RIGHT = 1.0  # degrees
NAME = re.compile(
    r"(?P<kind>frame|fpC)-(?P<first>\w+)-(?P<second>\w+)-(?P<third>\d+)(-(?P<fourth>\d+))?\.fits?(\.bz2|\.gz)?$"
)
Image = NDArray[np.float32]


@dataclass(frozen=True, order=True)
class FrameName:
    """Which frame: run, camera column, field and band."""

    run: int
    camcol: int
    field: int
    band: str

    @property
    def file(self) -> str:
        """Name of the corrected frame in the Science Archive Server, below .../frames/301/."""
        place = f"{self.run}/{self.camcol}"
        return f"{place}/frame-{self.band}-{self.run:06d}-{self.camcol}-{self.field:04d}.fits.bz2"


def frame_name(path: Path) -> FrameName | None:
    """What a file's name says, None if it is no frame."""
    found = NAME.match(path.name)
    if not found:
        return None
    if found["kind"] == "frame" and found["fourth"]:
        return FrameName(int(found["second"]), int(found["third"]), int(found["fourth"]), found["first"])
    if found["kind"] == "fpC" and re.fullmatch(r"[ugriz]\d", found["second"]):
        return FrameName(int(found["first"]), int(found["second"][1]), int(found["third"]), found["second"][0])
    return None


@dataclass(frozen=True)
class Cut:
    """One stamp and its circumstances; see `archive_card.STAMP_FIELDS` for units."""

    stamp: Image
    mjd: float
    band: str
    psf_fwhm: float
    sky_noise: float
    zero_point: float


class Frame:
    """One SDSS frame.

    Attributes:
        image: [ny, nx], nJy per pixel above the sky.
        shape: (ny, nx).

    Raises:
        ArchiveError: the file cannot be read or is not what its name says.
    """

    def __init__(self, path: Path) -> None:
        name = frame_name(path)
        if name is None:
            raise ArchiveError(f"{path.name} is not named like an SDSS frame")
        self.path, self.name = path, name
        try:
            with fits.open(path, memmap=False) as parts:
                self._header = parts[0].header
                self._read(parts)
        except (OSError, KeyError, IndexError, ValueError, TypeError) as error:
            raise ArchiveError(f"{path} cannot be read as an SDSS frame: {error}") from error
        self.shape: tuple[int, int] = self.image.shape

    def _read(self, parts: Any) -> None:
        if self.path.name.startswith("fpC"):
            # FLUX20: counts of a star of magnitude 20, which is 10 nanomaggies.
            nanomaggies = 10 / float(self._header["FLUX20"])
            counts = parts[0].data.astype(np.float32) - float(self._header.get("SOFTBIAS", 1000))
            image = (counts - np.median(counts)) * nanomaggies
            self._sky_counts = float(np.median(counts))
            self._place = pixel_of_wcs(self._header)
        else:
            nanomaggies = float(self._header["NMGY"])
            image = parts[0].data.astype(np.float32)
            self._sky_counts = float(np.median(parts[2].data["ALLSKY"]))
            self._place = pixel_of_transformation(parts[3].data[0])
        self.zero_point = 22.5 - 2.5 * float(np.log10(nanomaggies))
        self._per_count = nanomaggies * NJY_PER_NANOMAGGY
        self.image = image.astype(np.float32) * np.float32(NJY_PER_NANOMAGGY)
        self._ps_field = _ps_field(self.path, self.name)

    def pixel(self, ra: float, dec: float) -> tuple[float, float]:
        """(x, y) of a position (degrees, ICRS), counted from 0 at the centre of the first pixel."""
        return self._place(ra, dec)

    def mjd(self, y: float) -> float:
        """MJD TAI at which a row was read out; the exposure began 54 s before."""
        return float((float(self._header["TAI"]) + y * float(self._header["C_OBS"]) * 1e-6) / 86400)

    @cached_property
    def sky_noise(self) -> float:
        """Standard deviation of the sky, nJy per pixel: from counts and gain if psField is there, else measured."""
        if self._ps_field is not None:
            gain, dark = (float(self._ps_field[key][BANDS.index(self.name.band)]) for key in ("gain", "dark_variance"))
            return float(np.sqrt(self._sky_counts / gain + dark / gain**2) * self._per_count)
        middle = np.median(self.image)
        return float(1.4826 * np.median(np.abs(self.image - middle)))

    @cached_property
    def psf_fwhm(self) -> float:
        """Arcsec: of psField, else the median of the brighter stars of the frame; the survey's median without stars."""
        if self._ps_field is not None:
            return float(self._ps_field["psf_width"][BANDS.index(self.name.band)])
        measured = measure_fwhm(self.image, self.sky_noise)
        return measured * SDSS.pixel if np.isfinite(measured) else SDSS.bands[self.name.band].seeing

    def cut(self, ra: float, dec: float) -> Cut | None:
        """The 64x64 stamp about a position, NaN beyond the frame; None if the position itself lies beyond."""
        x, y = self.pixel(ra, dec)
        if not (0 <= x <= self.shape[1] - 1 and 0 <= y <= self.shape[0] - 1):
            return None
        stamp = upright(self.image, x, y, self._to_sky(ra, dec))
        return Cut(stamp, self.mjd(y), self.name.band, self.psf_fwhm, self.sky_noise, self.zero_point)

    def _to_sky(self, ra: float, dec: float) -> NDArray[np.float64]:
        """[[dx/deast, dx/dnorth], [dy/deast, dy/dnorth]], pixels per arcsec, at a position."""
        step = 1 / 3600
        x, y = np.array(self.pixel(ra, dec))
        east = np.array(self.pixel(ra + step / np.cos(np.radians(dec)), dec)) - (x, y)
        north = np.array(self.pixel(ra, dec + step)) - (x, y)
        return np.stack([east, north], axis=1)


def pixel_of_wcs(header: fits.Header) -> Callable[[float, float], tuple[float, float]]:
    """Position -> pixel by the header's tangent projection."""
    with warnings.catch_warnings():
        # Old headers write RADECSYS and dates of 1999; astropy understands and says so.
        warnings.simplefilter("ignore", FITSFixedWarning)
        wcs = WCS(header)

    def place(ra: float, dec: float) -> tuple[float, float]:
        x, y = wcs.all_world2pix(ra, dec, 0)
        return float(x), float(y)

    return place


def pixel_of_transformation(row: Any) -> Callable[[float, float], tuple[float, float]]:
    """Position -> pixel by the frame's own astrometric solution (asTrans, the third extension of a frame).

    The header's WCS leaves out its optical distortions and half a pixel: SDSS rows and columns are 0.5 at the centre of
    the first pixel. Colour terms (below 0.02 pixel) are left out here too.
    """
    node, incl = np.radians(float(row["NODE"])), np.radians(float(row["INCL"]))
    matrix = np.array([[row["B"], row["C"]], [row["E"], row["F"]]], float)
    origin = np.array([row["A"], row["D"]], float)
    bend_row, bend_column = ([float(row[f"{axis}{k}"]) for k in (3, 2, 1, 0)] for axis in ("DROW", "DCOL"))

    def place(ra: float, dec: float) -> tuple[float, float]:
        # Great-circle coordinates: Pier et al. 2003, AJ 125, 1559.
        turn, height = np.radians(ra) - node, np.radians(dec)
        x = np.cos(turn) * np.cos(height)
        y = np.sin(turn) * np.cos(height)
        z = np.sin(height)
        mu = np.degrees(np.arctan2(y * np.cos(incl) + z * np.sin(incl), x) + node)
        nu = np.degrees(np.arcsin(np.clip(z * np.cos(incl) - y * np.sin(incl), -1, 1)))
        away = np.array([(mu - origin[0] + 180) % 360 - 180, nu - origin[1]])
        far_row, far_column = np.linalg.solve(matrix, away)
        column = far_column
        for _ in range(4):
            column = far_column - np.polyval(bend_column, column)
        return float(column - 0.5), float(far_row - np.polyval(bend_row, column) - 0.5)

    return place


def upright(image: Image, x: float, y: float, pixels: NDArray[np.float64]) -> Image:
    """The stamp about (x, y) with rows from south to north and columns from east to west.

    Frames that are turned by nearly a multiple of 90 degrees, as those of Stripe 82 are, are flipped and cut at whole
    pixels, which leaves the noise as it is and the source within half a pixel of the middle; others are interpolated.

    Args:
        pixels: [2, 2], change of (x, y) per arcsec to the (east, north).
    """
    unit = pixels / np.linalg.norm(pixels, axis=0)
    nearest = np.rint(unit)
    away = np.degrees(np.arccos(np.clip((unit * nearest).sum(0) / np.linalg.norm(nearest, axis=0), -1, 1))).max()
    flips = away < NEARLY_RIGHT
    step = nearest if flips else unit
    # One column to the right in the stamp is one pixel to the west, one row up one pixel to the north.
    v, u = np.indices((STAMP, STAMP)) - STAMP // 2
    origin = (round(x), round(y)) if flips else (x, y)
    columns = origin[0] - step[0, 0] * u + step[0, 1] * v
    rows = origin[1] - step[1, 0] * u + step[1, 1] * v
    if flips:
        return _pick(image, rows.astype(int), columns.astype(int))
    turned = ndimage.map_coordinates(image, [rows, columns], order=3, mode="constant", cval=np.nan, prefilter=True)
    return np.asarray(turned, np.float32)


def _pick(image: Image, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Image:
    inside = (rows >= 0) & (rows < image.shape[0]) & (columns >= 0) & (columns < image.shape[1])
    stamp = np.full(rows.shape, np.nan, np.float32)
    stamp[inside] = image[rows[inside], columns[inside]]
    return stamp


def _ps_field(path: Path, name: FrameName) -> Any:
    """The row of the frame's psField file beside it, None if there is none."""
    for place in (path.parent, path.parent.parent):
        for ending in ("fit", "fits", "fit.gz", "fits.gz"):
            file = place / f"psField-{name.run:06d}-{name.camcol}-{name.field:04d}.{ending}"
            if file.is_file():
                with fits.open(file, memmap=False) as parts:
                    return {key: np.array(parts[6].data[key][0]) for key in ("psf_width", "gain", "dark_variance")}
    return None


def measure_fwhm(image: Image, noise: float, most: int = 20) -> float:
    """Median FWHM (pixels) of Gaussians fitted to the sharper half of the peaks above the noise; NaN without any."""
    finite = np.nan_to_num(image)
    smooth = ndimage.gaussian_filter(finite, 1.5)
    peaks = (smooth == ndimage.maximum_filter(smooth, 15)) & (smooth > 15 * noise)
    peaks[:8], peaks[-8:], peaks[:, :8], peaks[:, -8:] = False, False, False, False
    rows, columns = np.nonzero(peaks)
    # The brightest may be saturated: from the faint end.
    order = np.argsort(smooth[rows, columns])[:most]
    widths = [
        _gaussian_width(finite[r - 7 : r + 8, c - 7 : c + 8]) for r, c in zip(rows[order], columns[order], strict=True)
    ]
    known = np.sort([w for w in widths if np.isfinite(w)])
    return float(np.median(known[: max(len(known) // 2, 1)])) * GAUSSIAN_FWHM if len(known) else float("nan")


def _gaussian_width(cut: Image) -> float:
    y, x = np.indices(cut.shape) - 7.0

    def model(_: Any, height: float, x0: float, y0: float, sigma: float, floor: float) -> NDArray[np.float64]:
        return np.asarray((height * np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / sigma**2) + floor).ravel())

    try:
        fit, _ = optimize.curve_fit(model, 0, cut.ravel().astype(float), p0=(cut.max(), 0, 0, 1.5, 0), maxfev=400)
    except (RuntimeError, optimize.OptimizeWarning):
        return float("nan")
    return abs(float(fit[3])) if 0.5 < abs(fit[3]) < 6 else float("nan")


def read_header(path: Path) -> fits.Header:
    """The primary header alone; a compressed frame is unpacked no further than that."""
    opener: Any = {".bz2": bz2.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "rb") as stream:
        return fits.Header.fromfile(stream, endcard=True, padding=False)
