"""Real SDSS images: corrected frames (`frame-*.fits[.bz2]`, nanomaggies) and old fpC frames (counts).

A frame knows its time, its noise, its PSF and where a sky position lies on it, and cuts stamps with north up and east
left. Formats: https://data.sdss.org/datamodel/files/BOSS_PHOTOOBJ/frames/RERUN/RUN/CAMCOL/frame.html and the DR7 data
model of fpC, psField and asTrans.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning, NoConvergence
from numpy.typing import NDArray
from scipy import ndimage, optimize

from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.safe_names import printable
from skyheed.classifier.sky.surveys import SDSS
from skyheed.classifier.sources.fits_files import one_sentence, read_header, refuse_large, unpacked

BANDS = "ugriz"
NJY_PER_NANOMAGGY = 3631.0  # AB: magnitude 22.5
STAMP = SDSS.size
GAUSSIAN_FWHM = 2.3548
# Turns that differ less from a multiple of 90 degrees are made by flips: 1 degree is half a pixel at the stamp's edge.
NEARLY_RIGHT = 1.0  # degrees
# A star drifts over this many rows of its CCD before it is read out (Gunn et al. 1998, AJ 116, 3040): 53.9 s.
CCD_ROWS = 2048
MATRICES = tuple(f"{form}{i}_{j}" for form in ("CD", "PC") for i in (1, 2) for j in (1, 2))
NAME = re.compile(
    r"(?P<kind>frame|fpC)-(?P<first>[ugriz]|\d+)-(?P<second>\w+)-(?P<third>\d+)(-(?P<fourth>\d+))?\.fits?(\.bz2|\.gz)?$"
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
        with one_sentence(path, "an SDSS frame"):
            refuse_large(read_header(path))
            with unpacked(path) as stream, fits.open(stream, memmap=False) as parts:
                self._header = parts[0].header
                self._read(parts)
        self._ps_field = _ps_field(path, name)
        self.shape: tuple[int, int] = self.image.shape

    def _read(self, parts: Any) -> None:
        if self.path.name.startswith("fpC"):
            # FLUX20: counts of a star of magnitude 20, which is 10 nanomaggies.
            nanomaggies = 10 / self._fact("FLUX20")
            counts = parts[0].data.astype(np.float32) - float(self._header.get("SOFTBIAS", 1000))
            image = (counts - np.median(counts)) * nanomaggies
            self._sky_counts = float(np.median(counts))
            self._place = pixel_of_wcs(self._header)
        else:
            nanomaggies = self._fact("NMGY")
            image = parts[0].data.astype(np.float32)
            self._sky_counts = float(np.median(parts[2].data["ALLSKY"]))
            _refuse_changed(self._header)
            self._place = pixel_of_transformation(parts[3].data[0])
        self.zero_point = 22.5 - 2.5 * float(np.log10(nanomaggies))
        self._per_count = nanomaggies * NJY_PER_NANOMAGGY
        if image.ndim != 2 or not np.isfinite(self._sky_counts):
            raise ValueError("its image or its sky is damaged")
        self.image = image.astype(np.float32) * np.float32(NJY_PER_NANOMAGGY)
        self._fact("TAI"), self._fact("C_OBS")

    def _fact(self, key: str) -> float:
        """A number of the header that is above 0."""
        value = self._header[key]
        if not isinstance(value, int | float) or not 0 < value < np.inf:
            raise ValueError(f"{key} is {printable(value, 20)}")
        return float(value)

    def pixel(self, ra: float, dec: float) -> tuple[float, float]:
        """(x, y) of a position (degrees, ICRS), counted from 0 at the centre of the first pixel."""
        return self._place(ra, dec)

    def mjd(self, y: float) -> float:
        """Mid-exposure, MJD TAI, of what lies in a row (from 0).

        TAI is when the frame's first row was read out, C_OBS the microseconds from one row to the next. The light of a
        row was collected while it drifted over the whole CCD, so the middle of its exposure was half a CCD before.
        """
        after = (y - CCD_ROWS / 2) * float(self._header["C_OBS"]) * 1e-6
        return float((float(self._header["TAI"]) + after) / 86400)

    @cached_property
    def sky_noise(self) -> float:
        """Standard deviation of the sky, nJy per pixel: from counts and gain if psField is there, else measured."""
        if self._ps_field is not None:
            gain, dark = self._ps_field["gain"], self._ps_field["dark_variance"]
            noise = float(np.sqrt(max(self._sky_counts, 0.0) / gain + dark / gain**2) * self._per_count)
        else:
            noise = float(1.4826 * np.nanmedian(np.abs(self.image - np.nanmedian(self.image))))
        if not 0 <= noise < np.inf:
            raise ArchiveError(f"{self.path} has a sky of noise {noise:g} nJy: get it again, or leave it out")
        return noise

    @cached_property
    def psf_fwhm(self) -> float:
        """Arcsec: of psField, else the median of the brighter stars of the frame; the survey's median without stars."""
        if self._ps_field is not None:
            return self._ps_field["psf_width"]
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
    """Position -> pixel by the header's WCS, as astropy applies it: all projections, SIP, TPV, axes in any order.

    Raises:
        ValueError: it is no WCS of the sky in ICRS (or FK5 of J2000), or astropy passes over a part of it.
    """
    with warnings.catch_warnings():
        # Old headers write RADECSYS and dates of 1999; astropy understands and says so.
        warnings.simplefilter("ignore", FITSFixedWarning)
        wcs = WCS(header)
    _refuse_unapplied(header, wcs)
    longitude_first = wcs.wcs.lng == 0

    def place(ra: float, dec: float) -> tuple[float, float]:
        try:
            x, y = wcs.all_world2pix(*((ra, dec) if longitude_first else (dec, ra)), 0)
        except NoConvergence:  # far from the frame, where its distortion means nothing
            return float("nan"), float("nan")
        return float(x), float(y)

    return place


def _refuse_unapplied(header: fits.Header, wcs: WCS) -> None:
    """Keywords of the geometry that astropy takes in another sense, or not at all."""
    told = wcs.wcs
    if wcs.naxis != 2 or sorted((told.lng, told.lat)) != [0, 1] or told.lngtyp.strip() != "RA":
        raise ValueError(f"its axes {', '.join(map(str, told.ctype))} are not right ascension and declination")
    if told.radesys.strip() not in ("", "ICRS", "FK5") or (told.equinox not in (2000.0,) and np.isfinite(told.equinox)):
        raise ValueError(f"its positions are in {told.radesys or 'the system'} of equinox {told.equinox:g}, not J2000")
    if len({key[:2] for key in MATRICES if key in header}) > 1:
        raise ValueError("it has both CD and PC")
    if float(header.get("CROTA1", 0.0)) not in (0.0, float(header.get("CROTA2", 0.0))):
        raise ValueError(f"CROTA1 is {header['CROTA1']} and CROTA2 {header.get('CROTA2', 'missing')}")
    turn = np.radians(float(header.get("CROTA2", 0.0)))
    if turn and any(key in header for key in MATRICES):
        steps = float(header.get("CDELT1", 1.0)), float(header.get("CDELT2", 1.0))
        told_twice = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * steps
        matrix = wcs.pixel_scale_matrix
        if np.abs(matrix - told_twice).max() > 1e-4 * np.abs(matrix).max():
            raise ValueError(f"CROTA2 is {np.degrees(turn):g} degrees, which its matrix contradicts")
    if tables := [key for key in header if key.startswith(("CPDIS", "CQDIS", "D2IMDIS"))]:
        raise ValueError(f"it has a distortion table ({tables[0]})")


def _refuse_changed(header: fits.Header) -> None:
    """Keywords that no corrected frame has: somebody turned or bent the image, and its asTrans holds no longer."""
    plain = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "LONPOLE": 180.0}
    plain |= {"CROTA1": 0.0, "CROTA2": 0.0}
    swapped = {**plain, "CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN"}
    changed = [[key for key, value in one.items() if header.get(key, value) != value] for one in (plain, swapped)]
    bends = re.compile(r"PV\d_\d+|[AB]P?_(ORDER|\d_\d)|CPDIS\d|CQDIS\d|D2IMDIS\d|PC\d{3}\d{3}|PC\d_\d")
    found = [key for key in header if bends.fullmatch(key)] + min(changed, key=len)
    if found:
        raise ValueError(f"its header has {found[0]} = {printable(header[found[0]], 20)}, which SDSS does not write")


def pixel_of_transformation(row: Any) -> Callable[[float, float], tuple[float, float]]:
    """Position -> pixel by the frame's own astrometric solution (asTrans, the third extension of a frame).

    The header's WCS leaves out its optical distortions and half a pixel: SDSS rows and columns are 0.5 at the centre of
    the first pixel. Colour terms (below 0.02 pixel) are left out here too.
    """
    node, incl = np.radians(float(row["NODE"])), np.radians(float(row["INCL"]))
    matrix = np.array([[row["B"], row["C"]], [row["E"], row["F"]]], float)
    origin = np.array([row["A"], row["D"]], float)
    bend_row, bend_column = ([float(row[f"{axis}{k}"]) for k in (3, 2, 1, 0)] for axis in ("DROW", "DCOL"))
    numbers = [node, incl, *matrix.ravel(), *origin, *bend_row, *bend_column]
    if not np.isfinite(numbers).all() or not np.linalg.det(matrix):
        raise ValueError("its astrometric solution (asTrans) is not finite or singular")

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


def _ps_field(path: Path, name: FrameName) -> dict[str, float] | None:
    """The frame's gain, dark variance and PSF width (arcsec) from its psField file alongside it, None if there is none.

    Raises:
        ArchiveError: the file cannot be read, or holds no such numbers.
    """
    for place in (path.parent, path.parent.parent):
        for ending in ("fit", "fits", "fit.gz", "fits.gz"):
            file = place / f"psField-{name.run:06d}-{name.camcol}-{name.field:04d}.{ending}"
            if file.is_file():
                with one_sentence(file, "a psField file"):
                    return _read_ps_field(file, BANDS.index(name.band))
    return None


def _read_ps_field(file: Path, band: int) -> dict[str, float]:
    with unpacked(file) as stream, fits.open(stream, memmap=False) as parts:
        row = {key: float(np.array(parts[6].data[key][0])[band]) for key in ("psf_width", "gain", "dark_variance")}
    for key, value in row.items():
        least = 0.0 if key == "dark_variance" else 1e-6
        if not least <= value < np.inf:
            raise ValueError(
                f"{key} of band {BANDS[band]} is {value:g}: get it again, or remove it to have it measured"
            )
    return row


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
