"""Where a stamp's pixels are on the sky: the WCS keywords of its FITS header, applied or refused, never ignored.

Applied, to within 1e-6 pixel of `astropy.wcs`: CD, PC with CDELT, CDELT with CROTA2, the old PC001001, CUNIT,
LONPOLE, axes in either order, the projections TAN and SIN. Everything else that would distort or rotate the image
(SIP, TPV and PV terms, distortion tables, other projections, other equinoxes, contradictory keywords) is refused.

Calabretta & Greisen 2002, A&A 395, 1077 (paper II); Greisen & Calabretta 2002, A&A 395, 1061 (paper I).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

Matrix = tuple[tuple[float, float], tuple[float, float]]
Cards = Mapping[bytes, bytes]

KEYS = frozenset(
    b"WCSAXES CTYPE1 CTYPE2 CUNIT1 CUNIT2 CRPIX1 CRPIX2 CRVAL1 CRVAL2 CDELT1 CDELT2 CROTA1 CROTA2 LONPOLE"
    b" CD1_1 CD1_2 CD2_1 CD2_2 PC1_1 PC1_2 PC2_1 PC2_2 PC001001 PC001002 PC002001 PC002002"
    b" RADESYS RADECSYS EQUINOX EPOCH".split()
)
# Keywords of distortions and parameters: SIP (A_1_0), PV1_1, distortion tables (CPDIS1, DP1, D2IMDIS1).
BEND = re.compile(rb"P[VS]\d+_\d+|[AB]_(ORDER|DMAX|\d_\d)|C[PQ](DIS|ERR)\d|D[PQ]\d|D2IM(DIS|ERR|ARR)\d?")
BENDS = frozenset(b"PV PS A_ B_ CP CQ D2 DP DQ".split())  # their first letters, checked first for every card
RECORDS = frozenset((b"DP", b"DQ"))  # keywords that may be repeated: each card is one field of a record
_UNITS = {
    b"": 1.0, b"deg": 1.0, b"degree": 1.0, b"degrees": 1.0, b"arcmin": 1 / 60, b"arcsec": 1 / 3600,
    b"mas": 1 / 3.6e6, b"rad": 180 / math.pi,
}  # fmt: skip
_TANGENTIAL, _ORTHOGRAPHIC = b"TAN", b"SIN"
# If the meridians converge by less than this between reference and source, no pixel of a stamp moves by 0.02 pixel.
_PARALLEL = 0.05  # degrees
_NUMBERS = KEYS - frozenset(b"WCSAXES CTYPE1 CTYPE2 CUNIT1 CUNIT2 RADESYS RADECSYS EQUINOX EPOCH".split())
_PLACED = frozenset((b"CRVAL1", b"CRVAL2", b"CTYPE1", b"CTYPE2"))
_CD, *_ = _FORMS = tuple(
    tuple(form % at for at in ((1, 1), (1, 2), (2, 1), (2, 2))) for form in (b"CD%d_%d", b"PC%d_%d", b"PC%03d%03d")
)
_STEP = 1e-4  # degrees: short compared with the image, long compared with the rounding of positions


class Unapplied(ValueError):
    """A header whose geometry is not supported here: its image cannot be rotated to north."""


@dataclass(frozen=True, slots=True)
class Wcs:
    """Reference pixel (from 0), reference position (deg) and matrix (pixels -> deg to the east and north)."""

    pixel: tuple[float, float]
    ra: float
    dec: float
    matrix: Matrix
    tangential: bool = True  # otherwise orthographic (SIN)

    def pixel_of(self, ra: float, dec: float) -> tuple[float, float]:
        """(x, y), from 0, of a position (deg); NaN for a position on the far side of the sky."""
        turn, here, there = math.radians(ra - self.ra), math.radians(self.dec), math.radians(dec)
        cosine = math.sin(here) * math.sin(there) + math.cos(here) * math.cos(there) * math.cos(turn)
        (a, b), (c, d) = self.matrix
        determinant = a * d - b * c
        if cosine <= 0 or not determinant:
            return math.nan, math.nan
        away = cosine if self.tangential else 1.0
        east = math.degrees(math.cos(there) * math.sin(turn) / away)
        north = math.sin(there) * math.cos(here) - math.cos(there) * math.sin(here) * math.cos(turn)
        north = math.degrees(north / away)
        x = (d * east - b * north) / determinant
        y = (a * north - c * east) / determinant
        return self.pixel[0] + x, self.pixel[1] + y

    def matrix_at(self, ra: float, dec: float) -> Matrix:
        """Pixels -> deg to the east and north at a position (deg), where the meridian may have another direction."""
        turn = (ra - self.ra + 180) % 360 - 180
        steepest = max(abs(math.sin(math.radians(dec))), abs(math.sin(math.radians(self.dec))))
        if abs(turn) * steepest < _PARALLEL or abs(dec) + _STEP >= 90:
            return self.matrix
        x, y = self.pixel_of(ra, dec)
        to_east = self.pixel_of(ra + _STEP / math.cos(math.radians(dec)), dec)
        to_north = self.pixel_of(ra, dec + _STEP)
        return _inverse(
            ((to_east[0] - x) / _STEP, (to_north[0] - x) / _STEP), ((to_east[1] - y) / _STEP, (to_north[1] - y) / _STEP)
        )


def _inverse(first: tuple[float, float], second: tuple[float, float]) -> Matrix:
    determinant = first[0] * second[1] - first[1] * second[0]
    if not determinant:
        raise Unapplied("its matrix is singular")
    return (
        (second[1] / determinant, -first[1] / determinant),
        (-second[0] / determinant, first[0] / determinant),
    )


def read(cards: Cards) -> Wcs | None:
    """The WCS of a header (values as bytes, text without quotation marks); None if it says nothing about the sky.

    Raises:
        Unapplied: it uses something that is not supported here, or contradicts itself.
        ValueError: a number is invalid, or not finite.
    """
    try:
        return _read(cards)
    except Unapplied:
        for key in cards.keys() & _NUMBERS:
            number(cards, key, 0.0)
        raise


def _read(cards: Cards) -> Wcs | None:
    if cards.keys().isdisjoint(_PLACED):
        return None
    if missing := [key for key in (b"CRVAL1", b"CRVAL2") if key not in cards]:
        raise Unapplied(f"its WCS has no {missing[0].decode()}")
    if cards.get(b"WCSAXES", b"2") != b"2":
        raise Unapplied(f"its WCS has {_shown(cards[b'WCSAXES'])} axes")
    first_is_ra, projection = _axes(cards)
    _refuse_bends(cards, projection, 1 if first_is_ra else 2)
    _check_system(cards)
    units = [_unit(cards, i) for i in (1, 2)]
    matrix = [[units[i] * value for value in row] for i, row in enumerate(_matrix(cards))]
    values = [units[i - 1] * number(cards, b"CRVAL%d" % i, 0.0) for i in (1, 2)]
    if not first_is_ra:
        matrix.reverse()
        values.reverse()
    ra, dec = values
    if not abs(dec) <= 90:
        raise Unapplied(f"its reference declination is {dec:g} degrees")
    pole = number(cards, b"LONPOLE", 0.0 if dec >= 90 else 180.0)
    return Wcs(
        (number(cards, b"CRPIX1", 0.0) - 1, number(cards, b"CRPIX2", 0.0) - 1),
        ra, dec, _turned(matrix, math.radians(pole - 180)), projection != _ORTHOGRAPHIC,
    )  # fmt: skip


def _axes(cards: Cards) -> tuple[bool, bytes]:
    """Whether right ascension comes first, and the projection; Rubin's stamps have no CTYPE and are tangential."""
    names = [cards.get(key) for key in (b"CTYPE1", b"CTYPE2")]
    if names == [None, None]:
        return True, _TANGENTIAL
    axes = [(name or b"")[:5].rstrip(b"-") for name in names]
    codes = {(name or b"")[5:].strip() for name in names}
    if sorted(axes) != [b"DEC", b"RA"] or len(codes) > 1:
        raise Unapplied(f"its axes are {_shown(names[0])} and {_shown(names[1])}, not RA and DEC of one projection")
    (code,) = codes
    if code.removesuffix(b"-SIP") not in (_TANGENTIAL, _ORTHOGRAPHIC, b"TPV"):
        raise Unapplied(f"its projection is {_shown(code)}: TAN and SIN are read")
    return axes[0] == b"RA", code.removesuffix(b"-SIP")


def _refuse_bends(cards: Cards, projection: bytes, longitude: int) -> None:
    """Raise for terms that distort or rotate the image, unless their values have no effect.

    Args:
        longitude: the number of the axis of right ascension, whose PV terms say where the native pole is.
    """
    if projection == b"TPV":
        plain = {b"PV1_1": 1.0, b"PV2_1": 1.0}
        if not plain.keys() <= cards.keys():
            raise Unapplied("its projection is TPV without PV1_1 and PV2_1")
    else:
        plain = {b"PV%d_2" % longitude: 90.0, b"PV%d_3" % longitude: math.nan, b"PV%d_4" % longitude: math.nan}
    for key in cards:
        if not BEND.fullmatch(key):
            continue
        if key[:2] in (b"A_", b"B_", b"PV"):
            least = plain.get(key, 0.0)
            if key.endswith((b"_ORDER", b"_DMAX")) or number(cards, key, least) == least:
                continue
        raise Unapplied(f"{key.decode('ascii', 'replace')} bends or turns the image, which is not applied here")


def _check_system(cards: Cards) -> None:
    """Raise unless the system is ICRS, or FK5 of J2000, which agrees to 0.03 arcsec."""
    system = cards.get(b"RADESYS", cards.get(b"RADECSYS", b"")).upper()
    equinox = number(cards, b"EQUINOX", number(cards, b"EPOCH", 2000.0)) if system != b"ICRS" else 2000.0
    if system not in (b"", b"ICRS", b"FK5") or equinox != 2000:
        raise Unapplied(f"its positions are in {_shown(system) or 'the system'} of equinox {equinox:g}, not ICRS")


def _unit(cards: Cards, axis: int) -> float:
    """Degrees of one unit of an axis."""
    written = cards.get(b"CUNIT%d" % axis, b"").strip()
    if written.lower() not in _UNITS:
        raise Unapplied(f"CUNIT{axis} is {_shown(written)}")
    return _UNITS[written.lower()]


def _matrix(cards: Cards) -> list[list[float]]:
    """Pixels -> intermediate world coordinates, in the units of the axes."""
    forms = [form for form in _FORMS if not cards.keys().isdisjoint(form)]
    if len(forms) > 1:
        raise Unapplied(f"it has both {forms[0][0].decode()} and {forms[1][0].decode()}")
    scales = [number(cards, b"CDELT%d" % i, 1.0) for i in (1, 2)]
    angle = _rotation(cards)
    if not forms:
        if not (b"CDELT1" in cards and b"CDELT2" in cards):
            raise Unapplied("its WCS has no scale: neither CD nor PC nor CDELT")
        return _rotated(scales, angle)
    unit = 0.0 if forms[0] is _CD else 1.0
    entries = [number(cards, key, unit * default) for key, default in zip(forms[0], (1, 0, 0, 1), strict=True)]
    matrix = [entries[:2], entries[2:]]
    if unit:
        matrix = [[scales[i] * entry for entry in row] for i, row in enumerate(matrix)]
    if angle and not _agree(matrix, _rotated(scales, angle)):
        raise Unapplied(f"CROTA2 is {math.degrees(angle):g} degrees, which its matrix contradicts")
    return matrix


def _rotation(cards: Cards) -> float:
    """CROTA2, radians, with which CROTA1 must agree; it belongs to the axis of declination, which must be second."""
    first, second = (number(cards, key, 0.0) for key in (b"CROTA1", b"CROTA2"))
    if b"CROTA1" in cards and first not in (0.0, second):
        raise Unapplied(f"CROTA1 is {first:g} and CROTA2 {second:g}")
    if second and cards.get(b"CTYPE1", b"RA").startswith(b"DEC"):
        raise Unapplied("CROTA2 is given for axes in the order DEC, RA")
    return math.radians(second)


def _rotated(scales: list[float], angle: float) -> list[list[float]]:
    """Paper II, equation 189."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return [[scales[0] * cosine, -scales[1] * sine], [scales[0] * sine, scales[1] * cosine]]


def _agree(one: list[list[float]], other: list[list[float]]) -> bool:
    largest = max(abs(entry) for row in one for entry in row)
    return all(
        math.isclose(a, b, rel_tol=0, abs_tol=1e-4 * largest)
        for row, row_ in zip(one, other, strict=True) for a, b in zip(row, row_, strict=True)
    )  # fmt: skip


def _turned(matrix: list[list[float]], angle: float) -> Matrix:
    """The matrix for a native longitude of the pole other than 180 degrees."""
    (a, b), (c, d) = matrix
    if not angle:
        return (a, b), (c, d)
    cosine, sine = math.cos(angle), math.sin(angle)
    return (cosine * a + sine * c, cosine * b + sine * d), (cosine * c - sine * a, cosine * d - sine * b)


def number(cards: Cards, key: bytes, default: float) -> float:
    """A card's number.

    Raises:
        ValueError: not a number, or not a finite one.
    """
    if key not in cards:
        return default
    found = float(cards[key].replace(b"D", b"E").replace(b"_", b"x"))  # Python's 1_0 is not a number of FITS
    if not math.isfinite(found):
        raise ValueError(f"{key.decode()} is {found}")
    return found


def _shown(value: bytes | None) -> str:
    return ascii((value or b"").decode("latin-1")[:20])[1:-1]
