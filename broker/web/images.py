"""Stamps for people and programs: an atlas for the page, npz and FITS for analysis, PNG and GIF for viewing.

Arrays keep the model's orientation (row 0 south, column 0 east); pictures and FITS files are turned so that north is
up and east left. Pictures are negatives (light is dark), without smoothing.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.broker.packets.surveys.links import pixel_arcsec
from skyheed.broker.web.problems import Problem
from skyheed.classifier.history import BANDS, IMAGE_KINDS, History
from skyheed.classifier.safe_names import header_text

STRETCHES = ("linear", "asinh", "log", "sqrt")
MOST_PIXELS = 4096 * 1024  # of one picture
GAP = 1  # pixels between the stamps of a strip
BLANK = 255
_EPOCH = (1980, 1, 1, 0, 0, 0)  # time stamp of files in an archive, so that the same stamps give the same bytes


@dataclass(frozen=True)
class Look:
    """How pixel values become grey: cuts as percentiles, and the stretch between them."""

    stretch: str = "linear"
    low: float = 1.0
    high: float = 99.5
    scale: int = 1

    def __post_init__(self) -> None:
        if self.stretch not in STRETCHES:
            raise Problem(422, f"stretch is one of {', '.join(STRETCHES)}")
        if not 0 <= self.low < self.high <= 100:
            raise Problem(422, "cuts are percentiles: 0 <= low < high <= 100")

    def grey(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """[…, 32, 32] -> grey values of the same shape, all with the same cuts, light shown dark."""
        values = pixels.astype(np.float32)
        low, high = np.percentile(values, [self.low, self.high])
        span = float(high - low)
        unit = np.clip((values - low) / span, 0, 1) if span > 0 else np.zeros_like(values)
        grey: NDArray[np.uint8] = (255 - np.rint(255 * _CURVES[self.stretch](unit))).astype(np.uint8)
        return grey


_CURVES: dict[str, Any] = {
    "linear": lambda x: x,
    "asinh": lambda x: np.arcsinh(10 * x) / np.arcsinh(10.0),
    "log": lambda x: np.log1p(1000 * x) / np.log(1001.0),
    "sqrt": np.sqrt,
}


def missing(history: History) -> int:
    """The number of epochs whose images are no longer kept."""
    return len(history) - (len(history.shown) if "science" in history.images else 0)


def without(count: int, epochs: int) -> str:
    """The same as a sentence; empty if nothing is missing."""
    if not count:
        return ""
    which = "the images of this object are" if count == epochs else f"the images of {count} of its {epochs} epochs are"
    return f"{which} not kept any more (redis.keep_pixels)"


def kinds(history: History) -> list[str]:
    """The kinds of images that at least one epoch was sent with."""
    return [kind for kind, pixels in history.images.items() if _sent(kind, pixels).any()]


def _sent(kind: str, pixels: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Which epochs have an image: one with all pixels zero was not sent."""
    return np.asarray(pixels.any((1, 2)) | (kind == "science"))


def of_kind(history: History, kind: str) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """The epochs that have an image of a kind, and those images.

    Raises:
        Problem: no epoch has one.
    """
    there = kinds(history)
    if kind not in there:
        gone = without(missing(history), len(history))
        why = f": {gone}" if gone else f"; its kinds: {', '.join(there) or 'none'}"
        raise Problem(404, f"this object has no {kind!a} stamps{why}")
    pixels = history.images[kind]
    sent = _sent(kind, pixels)
    return history.shown[sent], pixels[sent]


def atlas(history: History, kind: str, revision: int) -> bytes:
    """All stamps of a kind: the length of a header (4 bytes, little-endian), the header as JSON, float16 pixels."""
    epochs, pixels = of_kind(history, kind)
    head = {
        "revision": revision, "kind": kind, "source_id": [str(source) for source in history.source_id[epochs].tolist()],
        "shape": list(pixels.shape), "dtype": "float16",
    }  # fmt: skip
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-(4 + len(text)) % 8)
    return len(text).to_bytes(4, "little") + text + pixels.astype("<f2").tobytes()


def npz(history: History) -> bytes:
    """A full history as a NumPy archive; the same history always gives the same bytes."""
    columns: dict[str, NDArray[Any]] = {
        "mjd": history.mjd, "band": np.array([BANDS[code] for code in history.band]), "flux": history.flux,
        "flux_error": history.flux_error, "source_id": history.source_id, "ra": history.ra, "dec": history.dec,
        "flags": history.flags, "object_id": np.array(history.object_id), "survey": np.array(history.survey),
    }  # fmt: skip
    for kind in kinds(history):
        epochs, pixels = of_kind(history, kind)
        columns |= {f"stamps_{kind}": pixels, f"epochs_{kind}": epochs}
    if history.photometry is not None:
        points = history.photometry
        columns |= {f"photometry_{name}": getattr(points, name) for name in ("mjd", "flux", "flux_error", "kind")}
        columns["photometry_band"] = np.array([BANDS[code] for code in points.band], "<U1")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, column in columns.items():
            body = io.BytesIO()
            np.lib.format.write_array(body, np.asanyarray(column), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), body.getvalue(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def fits_cube(history: History) -> bytes:
    """A cube [epoch, y, x] for each kind, and a table of the epochs.

    Raises:
        Problem: there are no stamps.
    """
    from astropy.io import fits

    parts: list[Any] = [fits.PrimaryHDU(header=_header(history))]
    for kind in kinds(history) or ("science",):
        epochs, pixels = of_kind(history, kind)
        cube = fits.ImageHDU(pixels.astype(np.float32), name=kind.upper())
        _place(cube.header, history, int(epochs[-1]))
        parts.append(cube)
        table = fits.BinTableHDU.from_columns(_columns(history, epochs), name=f"{kind.upper()}_EPOCHS")
        parts.append(table)
    return _written(fits.HDUList(parts))


def fits_one(history: History, kind: str, epoch: int, pixels: NDArray[np.float16]) -> bytes:
    """One stamp as a FITS image."""
    from astropy.io import fits

    image = fits.PrimaryHDU(pixels.astype(np.float32), header=_header(history))
    image.header["KIND"] = kind
    image.header["BAND"] = BANDS[history.band[epoch]]
    image.header["MJD-AVG"] = (float(history.mjd[epoch]), "TAI, middle of the exposure")
    image.header["TIMESYS"] = "TAI"
    image.header["SOURCEID"] = (str(history.source_id[epoch]), "of the survey")
    _place(image.header, history, epoch)
    return _written(fits.HDUList([image]))


def _header(history: History) -> Any:
    from astropy.io import fits

    header = fits.Header()
    header["OBJECT"] = header_text(history.object_id)[:60]
    header["SURVEY"] = header_text(history.survey)[:60]
    header["BUNIT"] = ("100 nJy", "a pixel, above the local background")
    return header


def _place(header: Any, history: History, epoch: int) -> None:
    """Write the position: the source is at pixel [16, 16] from 0; columns run from east to west, so east is left."""
    header["BUNIT"] = ("100 nJy", "a pixel, above the local background")
    scale, ra, dec = pixel_arcsec(history.survey), float(history.ra[epoch]), float(history.dec[epoch])
    if scale is None or not np.isfinite([ra, dec]).all():
        return
    cards = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 17.0, "CRPIX2": 17.0, "CRVAL1": ra, "CRVAL2": dec,
        "CDELT1": -scale / 3600, "CDELT2": scale / 3600, "CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS",
    }  # fmt: skip
    header.update(cards)


def _columns(history: History, epochs: NDArray[np.int64]) -> Any:
    from astropy.io import fits

    columns = (
        ("MJD", "D", "d", history.mjd), ("BAND", "1A", "", np.array([BANDS[code] for code in history.band])),
        ("FLUX", "E", "nJy", history.flux), ("FLUX_ERROR", "E", "nJy", history.flux_error),
        ("SOURCE_ID", "K", "", history.source_id.astype(np.int64)), ("RA", "D", "deg", history.ra),
        ("DEC", "D", "deg", history.dec), ("FLAGS", "J", "", history.flags.astype(np.int32)),
    )  # fmt: skip
    return [fits.Column(name, form, unit or None, array=values[epochs]) for name, form, unit, values in columns]


def _written(parts: Any) -> bytes:
    out = io.BytesIO()
    parts.writeto(out)
    return out.getvalue()


def picture(pixels: NDArray[np.float16], look: Look) -> bytes:
    """One stamp as a PNG."""
    return _png(_scaled(look.grey(pixels)[::-1], look.scale))


def strip(stamps: NDArray[np.float16], look: Look) -> bytes:
    """Stamps side by side as a PNG, each with its own cuts, because bands and nights differ."""
    panels = [look.grey(stamp)[::-1] for stamp in stamps]
    blank = np.full((len(panels[0]), GAP), BLANK, np.uint8)
    row = [part for panel in panels for part in (panel, blank)][:-1]
    return _png(_scaled(np.concatenate(row, 1), look.scale))


def film(stamps: NDArray[np.float16], look: Look, frame_ms: int) -> bytes:
    """Stamps one after the other as a GIF, all with the same cuts."""
    from PIL import Image

    frames = [Image.fromarray(_scaled(panel[::-1], look.scale)) for panel in look.grey(stamps)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=frame_ms, loop=0, optimize=False)
    return out.getvalue()


def _scaled(grey: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    if grey.size * scale * scale > MOST_PIXELS:
        raise Problem(422, f"a picture has at most {MOST_PIXELS} pixels: take a smaller scale")
    return np.ascontiguousarray(grey.repeat(scale, 0).repeat(scale, 1))


def _png(grey: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(grey).save(out, "PNG")
    return out.getvalue()


def epoch_of(history: History, source_id: str) -> int:
    """The epoch of a source.

    Raises:
        Problem: there is none.
    """
    sources = [str(source) for source in history.source_id.tolist()]
    if source_id not in sources:
        raise Problem(404, "this object has no such source: its list of epochs shows all")
    return sources.index(source_id)


def check_kind(kind: str) -> str:
    """Check that a kind of image exists, and return it.

    Raises:
        Problem: there is no such kind.
    """
    if kind not in IMAGE_KINDS:
        raise Problem(422, f"kind is one of {', '.join(IMAGE_KINDS)}")
    return kind


def chosen(history: History, kind: str, bands: str, last: int) -> NDArray[np.float16]:
    """The stamps of a kind in some bands (all bands if empty): the newest `last` of them.

    Raises:
        Problem: there are none.
    """
    epochs, pixels = of_kind(history, check_kind(kind))
    wanted = np.isin(history.band[epochs], [BANDS.index(band) for band in bands if band in BANDS])
    found = pixels[wanted] if bands else pixels
    if not len(found):
        raise Problem(404, "this object has no stamps in these bands")
    return found[-last:]
