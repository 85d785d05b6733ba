"""The stamp normaliser: turns a stamp of any survey, real or simulated, into model input.

Training and serving call the same function, so that they cannot drift apart. What it does, in order: the
background (median of the image's border) is subtracted; the image is turned so that rows run from south to north
and columns from east to west; 32 x 32 pixels about the source are cut out at the survey's own pixel scale, padded with
background beyond the image; the unit becomes `STAMP_UNIT_NJY`. Pixels that are not finite become
background. Everything that depends on the model (asinh, standardisation) is left to the model.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.errors import ClassifierError

PREPROCESSING = "stamp-1"  # recorded with every classification; raise it when any value below changes
STAMP_SIZE = 32  # pixels; the source is in pixel [16, 16]
# The linear unit of a stamp's pixels. Sky noise is about 0.2 (Rubin), 1 (SDSS) or 13 (ZTF) units a pixel, and the
# largest float16, 65504, is 14.4 mag (AB) in a single pixel.
STAMP_UNIT_NJY = 100.0

PADDED, FILLED, ROTATED = 2, 4, 16  # bits of `broker.observation.Flag`, which has further ones

BORDER = 2  # pixels: width of the frame whose median is the background
# Rotations this close to a multiple of 90 degrees are made by flips only: at the edge of a stamp (16 pixels) an
# error of 1 degree is 0.3 pixel, less than what interpolation blurs.
_EXACT = math.sin(math.radians(1.0))
_LARGEST = float(np.finfo(np.float16).max)
_TURNED_TOGETHER = 24  # images whose interpolation stays in a core's cache
_NO_PIXEL = np.float32(-3.4e38)  # values below, such as the lowest float32, mean "no pixel" in ZTF's templates
_SMALL_SUM = 1e36
_CENTRE = STAMP_SIZE // 2
SHARP = 6  # of the 11 significant bits of a float16, for stamps other than science
_SPARE = np.uint16((1 << (11 - SHARP)) - 1)
_HALF_STEP = np.uint16(1 << (10 - SHARP))
_LARGEST_ROUND = np.uint16(0x7BE0)  # 64512
_V, _U = np.indices((STAMP_SIZE, STAMP_SIZE), dtype=np.float32) - _CENTRE

Matrix = Sequence[Sequence[float]] | NDArray[np.float64]
NORTH_UP = ((-1.0, 0.0), (0.0, 1.0))  # (dx, dy) -> (east, north) with north up and east left


class StampError(ClassifierError):
    """The source lies outside its image, or the image's geometry or scale is invalid."""


class EmptyStampError(StampError):
    """No finite pixel about the source."""


def middle(shape: tuple[int, ...]) -> tuple[float, float]:
    """(x, y) of the middle pixel of an image [ny, nx], from 0: `n // 2`, even for an even side.

    Archives, ZTF, Rubin and the model's own stamps all have the source there; (n - 1) / 2 would be half a pixel off
    for an even side.
    """
    ny, nx = shape
    return nx // 2, ny // 2


def turned(degrees: float) -> NDArray[np.float64]:
    """(dx, dy) -> (east, north), [2, 2], of an image whose +y axis points this many degrees east of north."""
    if not degrees:
        return np.array(NORTH_UP)
    a = math.radians(degrees)
    return np.array([[-math.cos(a), math.sin(a)], [math.sin(a), math.cos(a)]])


Stamp = tuple[NDArray[np.float16], int]


def normalise(
    image: NDArray[np.float32],
    njy_per_count: float,
    centre: tuple[float, float] | None = None,
    to_sky: Matrix | None = None,
) -> Stamp:
    """Bring one image to the model's size, orientation and unit.

    Args:
        image: [ny, nx], any linear unit; may contain NaN, or -3.4e38 with the same meaning.
        njy_per_count: nJy per pixel unit.
        centre: (x, y) of the source, pixels from 0, in the image; `middle` by default.
        to_sky: [2, 2], (dx, dy) in pixels -> (east, north) in any unit; north up, east left by default.

    Returns:
        float16 [32, 32] in `STAMP_UNIT_NJY`, and the bits PADDED, FILLED and ROTATED.

    Raises:
        StampError, EmptyStampError
    """
    made = normalise_all(image[None], njy_per_count, centre, to_sky)[0]
    if made is None:
        raise EmptyStampError("the stamp has no finite pixel about the source")
    return made


def normalise_all(
    images: NDArray[np.float32],
    njy_per_count: float,
    centre: tuple[float, float] | None = None,
    to_sky: Matrix | None = None,
) -> list[Stamp | None]:
    """`normalise` for images of one shape, place and scale, [n, ny, nx], at once; None for one without finite pixels.

    Raises:
        StampError
    """
    _, ny, nx = images.shape
    how = place((ny, nx), njy_per_count, centre, to_sky)
    return normalise_at(images, np.full(len(images), njy_per_count), [how] * len(images))


class Place(NamedTuple):
    """Where a stamp is in its image, and the image's orientation.

    Attributes:
        shape: (ny, nx) of the image.
        x, y: of the source, pixels from 0.
        a, b, c, d: steps to the west and north -> steps in the image, x = a u + b v, y = c u + d v.
    """

    shape: tuple[int, int]
    x: float
    y: float
    a: float
    b: float
    c: float
    d: float

    @property
    def turned(self) -> bool:
        """Whether the image is interpolated; otherwise flips suffice."""
        return not _near_right_angle(self.a, self.b, self.c, self.d)

    @property
    def group(self) -> object:
        """The same for places of stamps that `normalise_at` can make together."""
        return self.shape if self.turned else self


def place(
    shape: tuple[int, int], njy_per_count: float, centre: tuple[float, float] | None, to_sky: Matrix | None
) -> Place:
    """The place of a stamp, as for `normalise`, after checking that one can be made there.

    Raises:
        StampError
    """
    ny, nx = shape
    x, y = middle(shape) if centre is None else centre
    if not (-0.5 <= x <= nx - 0.5 and -0.5 <= y <= ny - 0.5):
        raise StampError(f"the source at ({x:.1f}, {y:.1f}) lies outside its {nx} x {ny} image")
    if not 0 < njy_per_count < math.inf:
        raise StampError(f"{njy_per_count} nJy per count")
    to_sky = NORTH_UP if to_sky is None else to_sky
    # a survey whose stamps all have the same geometry has one tuple for all
    a, b, c, d = _pixels_of_alike(to_sky) if isinstance(to_sky, tuple) else _pixels_of(to_sky)
    made = Place((ny, nx), x, y, a, b, c, d)
    if min(ny, nx) < 2 and made.turned:
        raise StampError(f"an image of {nx} x {ny} pixels cannot be turned")
    return made


@np.errstate(over="ignore", invalid="ignore")
def normalise_at(
    images: NDArray[np.float32], njy_per_count: NDArray[np.float64], where: Sequence[Place]
) -> list[Stamp | None]:
    """`normalise` for images [n, ny, nx] of one `Place.group`, each with its own scale [n], at once.

    Images with missing pixels take much longer and are made separately, so that they do not slow the others. The
    result does not depend on which images are made together.
    """
    whole = np.abs(images.sum(axis=(1, 2))) < _SMALL_SUM
    if whole.all() or not whole.any():
        return _normalise(images, njy_per_count, where, bool(whole.all()))
    made: list[Stamp | None] = [None] * len(images)
    for kind in (True, False):
        rows = np.flatnonzero(whole == kind)
        own = [where[n] for n in rows.tolist()]
        for n, stamp in zip(rows.tolist(), _normalise(images[rows], njy_per_count[rows], own, kind), strict=True):
            made[n] = stamp
    return made


def _normalise(
    images: NDArray[np.float32], scales: NDArray[np.float64], where: Sequence[Place], whole: bool
) -> list[Stamp | None]:
    if not whole:
        images = np.where(images < _NO_PIXEL, np.float32(np.nan), images)
    background = _backgrounds(images)[:, None, None]
    cut: NDArray[np.floating[Any]]
    if where[0].turned:
        cut, inside = _turn(images, where, background)
        flags = [ROTATED] * len(cut)
    else:
        cut, pixels = _crop(*_flip(images, *where[0][1:]), background)
        inside, flags = [pixels] * len(cut), [0] * len(cut)
    flags = [own | (PADDED if count < STAMP_SIZE**2 else 0) for own, count in zip(flags, inside, strict=True)]
    filled = _fill(cut, background, inside)
    cut -= background
    cut *= (scales / STAMP_UNIT_NJY).astype(np.float32)[:, None, None]
    stamps = np.minimum(np.maximum(cut, -_LARGEST, out=cut), _LARGEST, out=cut).astype(np.float16)
    return [None if how is None else (stamp, own | how) for stamp, own, how in zip(stamps, flags, filled, strict=True)]


def rounded(stamp: NDArray[np.float16]) -> NDArray[np.float16]:
    """The stamp with `SHARP` significant bits a pixel, so that it takes little more than half the space.

    A pixel changes by 1.6 % of itself at most, which is far below its noise. The same for either sign.
    """
    bits = stamp.view(np.uint16)
    size = np.minimum(((bits & 0x7FFF) + _HALF_STEP) & ~_SPARE, _LARGEST_ROUND)
    made: NDArray[np.float16] = (size | (bits & 0x8000)).astype(np.uint16).view(np.float16)
    return made


def _whole(images: NDArray[np.floating[Any]]) -> bool:
    """Whether every pixel is certainly valid: one sum suffices, because a missing pixel spoils it."""
    return bool(abs(float(images.sum())) < _SMALL_SUM)


def _backgrounds(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """For each image the median (the upper of two middle values) of the valid pixels of its border, otherwise of the
    whole image."""
    borders = images.reshape(len(images), -1)[:, _border(images.shape[1:])]
    if _whole(borders):
        middle = borders.shape[1] // 2
        borders.partition(middle, axis=1)
        return borders[:, middle]
    return np.array([_background(*pair) for pair in zip(images, borders, strict=True)], np.float32)


def _background(image: NDArray[np.float32], border: NDArray[np.float32]) -> float:
    border = border[np.isfinite(border)]
    if not border.size:
        border = image[np.isfinite(image)]
    if not border.size:
        return 0.0
    middle = border.size // 2
    return float(np.partition(border, middle)[middle])


@lru_cache(64)
def _border(shape: tuple[int, ...]) -> NDArray[np.intp]:
    inner = np.ones(shape, bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = False
    return np.flatnonzero(inner)


def _pixels_of(to_sky: Matrix) -> tuple[float, float, float, float]:
    """The matrix (u, v) -> (dx, dy) from steps west and north to steps in the image, without change of scale."""
    (east_x, east_y), (north_x, north_y) = ((float(x), float(y)) for x, y in to_sky)
    determinant = east_x * north_y - east_y * north_x
    scale = math.sqrt(abs(determinant))
    if not 0 < scale < math.inf:
        raise StampError("the image's WCS matrix is singular")
    step = scale / determinant
    turned = (-north_y * step, -east_y * step, north_x * step, east_x * step)
    if not all(abs(entry) <= 2 for entry in turned):
        raise StampError("the pixels of the image are far from square")
    return turned


@lru_cache(64)
def _pixels_of_alike(to_sky: tuple[tuple[float, float], ...]) -> tuple[float, float, float, float]:
    return _pixels_of(to_sky)


def _near_right_angle(a: float, b: float, c: float, d: float) -> bool:
    return max(abs(b), abs(c)) < _EXACT or max(abs(a), abs(d)) < _EXACT


def _flip(
    images: NDArray[np.float32], x: float, y: float, a: float, b: float, c: float, d: float
) -> tuple[NDArray[np.float32], float, float]:
    """The images rotated by array views only, and the source's position in them."""
    if abs(a) < abs(b):
        images, x, y, a, d = images.swapaxes(1, 2), y, x, c, b
    if a < 0:
        images, x = images[:, :, ::-1], images.shape[2] - 1 - x
    if d < 0:
        images, y = images[:, ::-1], images.shape[1] - 1 - y
    return images, x, y


def _crop(
    images: NDArray[np.float32], x: float, y: float, background: NDArray[np.float32]
) -> tuple[NDArray[np.float32], int]:
    """The stamps about the pixel nearest to (x, y), and how many of their pixels lie within the images."""
    n, ny, nx = images.shape
    left, low = math.floor(x + 0.5) - _CENTRE, math.floor(y + 0.5) - _CENTRE
    if left >= 0 and low >= 0 and left + STAMP_SIZE <= nx and low + STAMP_SIZE <= ny:
        cut = images[:, low : low + STAMP_SIZE, left : left + STAMP_SIZE].astype(np.float32, order="C")
        return cut, STAMP_SIZE**2
    cut = np.empty((n, STAMP_SIZE, STAMP_SIZE), np.float32)
    cut[:] = background
    part = images[:, max(low, 0) : low + STAMP_SIZE, max(left, 0) : left + STAMP_SIZE]
    top, side = max(-low, 0), max(-left, 0)
    _, height, width = part.shape
    cut[:, top : top + height, side : side + width] = part
    return cut, height * width


def _turn(
    images: NDArray[np.float32], where: Sequence[Place], background: NDArray[np.float32]
) -> tuple[NDArray[np.float64], list[int]]:
    """The stamps, interpolated (bilinear) so that the source is exactly in the middle pixel, and how many of their
    pixels lie within the images."""
    parts = [slice(at, at + _TURNED_TOGETHER) for at in range(0, len(images), _TURNED_TOGETHER)]
    made = [_interpolate(images[part], where[part], background[part]) for part in parts]
    return np.concatenate([cut for cut, _ in made]), [count for _, inside in made for count in inside]


def _interpolate(
    images: NDArray[np.float32], where: Sequence[Place], background: NDArray[np.float32]
) -> tuple[NDArray[np.float64], list[int]]:
    n, ny, nx = images.shape
    rows = {place: row for row, place in enumerate(dict.fromkeys(where))}  # the stamps of a packet share theirs
    x, y, a, b, c, d = np.array([place[1:] for place in rows], np.float32).T[:, :, None, None]
    column, row = _U * a + _V * b + x, _U * c + _V * d + y
    inside = (column >= 0) & (column <= nx - 1) & (row >= 0) & (row <= ny - 1)
    left, low = np.clip(column, 0, nx - 2).astype(np.intp), np.clip(row, 0, ny - 2).astype(np.intp)
    of = np.array([rows[place] for place in where])
    right_share, high_share, inside = (column - left)[of], (row - low)[of], inside[of]
    at = (low * nx + left)[of] + (np.arange(n) * (ny * nx))[:, None, None]
    flat = images.reshape(-1)
    steps = np.diff(flat)
    lower = right_share * steps.take(at)
    lower += flat.take(at)
    at += nx
    cut = right_share * steps.take(at)
    cut += flat.take(at)
    cut -= lower
    cut *= high_share
    cut += lower
    return np.where(inside, cut, background), np.count_nonzero(inside, axis=(1, 2)).tolist()


def _fill(cut: NDArray[np.floating[Any]], background: NDArray[np.float32], inside: Sequence[int]) -> list[int | None]:
    """Replace missing pixels with background; returns FILLED or 0 for each stamp, None if no pixel is valid."""
    if _whole(cut):
        return [0] * len(cut)
    good = np.isfinite(cut)
    missing = STAMP_SIZE**2 - np.count_nonzero(good, axis=(1, 2))
    np.copyto(cut, background, where=~good)
    return [None if m >= n else FILLED if m else 0 for m, n in zip(missing.tolist(), inside, strict=True)]
