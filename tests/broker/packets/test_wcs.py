"""FITS keywords that change the geometry: applied as astropy applies them, or refused with BAD_FITS."""

import gzip
import io
import math
import random
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from test_stamps import make_fits, sky_stamp
from test_surveys import observe, reason_of, ztf_packet

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.packets.fits import read_image

SCALE, TURN = 0.2 / 3600, math.radians(40)
COS, SIN = math.cos(TURN), math.sin(TURN)
PLACE = {
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 32.5, "CRPIX2": 31.0, "CRVAL1": 150.0, "CRVAL2": 2.0,
}  # fmt: skip
CD = {"CD1_1": -SCALE * COS, "CD1_2": SCALE * SIN, "CD2_1": SCALE * SIN, "CD2_2": SCALE * COS}
CDELT = {"CDELT1": -SCALE, "CDELT2": SCALE}
PC = {"PC1_1": COS, "PC1_2": -SIN, "PC2_1": SIN, "PC2_2": COS}
OLD = {"PC001001": COS, "PC001002": -SIN, "PC002001": SIN, "PC002002": COS}
SWAPPED = {
    **PLACE, "CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": 2.0, "CRVAL2": 150.0,
    "CD1_1": CD["CD2_1"], "CD1_2": CD["CD2_2"], "CD2_1": CD["CD1_1"], "CD2_2": CD["CD1_2"],
}  # fmt: skip
TPV, SIP = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV"}, {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"}

APPLIED = {
    "CD": {**PLACE, **CD},
    "CD with CDELT, which does not count": {**PLACE, **CD, "CDELT1": 1.0, "CDELT2": 1.0},
    "a part of CD": {**PLACE, "CD1_1": -SCALE, "CD2_2": SCALE},
    "PC": {**PLACE, **CDELT, **PC},
    "a part of PC": {**PLACE, **CDELT, "PC1_2": 0.1},
    "pixels of other sides": {**PLACE, "CDELT1": -SCALE, "CDELT2": 1.2 * SCALE, **PC},
    "PC001001": {**PLACE, **CDELT, **OLD},
    "CROTA2": {**PLACE, **CDELT, "CROTA2": -40.0},
    "CROTA1 and CROTA2": {**PLACE, **CDELT, "CROTA1": 33.0, "CROTA2": 33.0},
    "CROTA2, pixels of other sides": {**PLACE, "CDELT1": -SCALE, "CDELT2": 1.2 * SCALE, "CROTA2": 25.0},
    "CROTA2 of a matrix that agrees": {**PLACE, **CDELT, **CD, "CROTA2": -40.0},
    "CROTA2 of nothing": {**PLACE, **CDELT, **PC, "CROTA2": 0.0},
    "axes swapped": SWAPPED,
    "arcseconds": {
        **PLACE, "CUNIT1": "arcsec", "CUNIT2": "arcsec", "CRVAL1": 150.0 * 3600, "CRVAL2": 7200.0,
        **{key: value * 3600 for key, value in CD.items()},
    },
    "radians and degrees": {
        **PLACE, "CUNIT1": "rad", "CUNIT2": "deg", "CRVAL1": math.radians(150), **PC,
        "CDELT1": -math.radians(SCALE), "CDELT2": SCALE,
    },
    "LONPOLE": {**PLACE, **CD, "LONPOLE": 180.0, "LATPOLE": 2.0},
    "LONPOLE of 0": {**PLACE, **CD, "LONPOLE": 0.0},
    "LONPOLE of 33": {**PLACE, **CD, "LONPOLE": 33.0},
    "axes swapped, LONPOLE of 33": {**SWAPPED, "LONPOLE": 33.0},
    "SIN": {**PLACE, **CD, "CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN"},
    "SIN, far from its reference": {
        **PLACE, **CD, "CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN", "CRPIX1": -20000.0, "CRPIX2": 9000.0,
    },
    "far from its reference": {**PLACE, **CD, "CRPIX1": -20000.0, "CRPIX2": 9000.0},
    "far from its reference, near the pole": {**PLACE, **CD, "CRVAL2": 85.0, "CRPIX1": -20000.0, "CRPIX2": 9000.0},
    "at the pole": {**PLACE, **CD, "CRVAL2": 90.0},
    "across the meridian": {**PLACE, **CD, "CRVAL1": 0.0005},
    "TAN-SIP of nothing": {**PLACE, **CD, **SIP},
    "TAN-SIP of zeros": {**PLACE, **CD, **SIP, "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 0.0, "B_0_2": 0.0},
    "TPV of what is": {**PLACE, **CD, **TPV, "PV1_0": 0.0, "PV1_1": 1.0, "PV2_1": 1.0},
    "PV of what is": {**PLACE, **CD, "PV1_1": 0.0, "PV1_2": 90.0, "PV2_1": 0.0},
    "FK5": {**PLACE, **CD, "RADESYS": "FK5", "EQUINOX": 2000.0},
    "ICRS": {**PLACE, **CD, "RADESYS": "ICRS"},
}  # fmt: skip
REFUSED = {
    "native latitude in PV": {**PLACE, **CD, "PV1_2": 0.0},
    "native latitude in PV, axes swapped": {**SWAPPED, "PV2_2": 0.0},
    "LONPOLE in PV": {**PLACE, **CD, "PV1_3": 0.0},
    "LATPOLE in PV": {**PLACE, **CD, "PV1_4": 0.0},
    "TPV": {**PLACE, **CD, **TPV, "PV1_1": 1.01, "PV2_1": 1.0},
    "TPV without terms": {**PLACE, **CD, **TPV},
    "TPV, cubic": {**PLACE, **CD, **TPV, "PV1_1": 1.0, "PV2_1": 1.0, "PV1_7": 1e-5},
    "SCAMP's PV in TAN": {**PLACE, **CD, "PV1_1": 1.0, "PV2_1": 1.0, "PV1_4": 0.01},
    "SIP": {**PLACE, **CD, **SIP, "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-4, "B_0_2": 1e-4},
    "SIP without its name": {**PLACE, **CD, "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-4},
    "slant SIN": {**PLACE, **CD, "CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN", "PV2_1": 0.1, "PV2_2": 0.1},
    "distortion table": {**PLACE, **CD, "CPDIS1": "LOOKUP"},
    "another pair of projections": {**PLACE, **CD, "CTYPE2": "DEC--SIN"},
    "one CTYPE": {key: value for key, value in {**PLACE, **CD}.items() if key != "CTYPE2"},
    "no projection": {**PLACE, **CD, "CTYPE1": "RA", "CTYPE2": "DEC"},
    "linear": {**PLACE, **CD, "CTYPE1": "LINEAR", "CTYPE2": "LINEAR"},
    "galactic": {**PLACE, **CD, "CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"},
    "ecliptic": {**PLACE, **CD, "CTYPE1": "ELON-TAN", "CTYPE2": "ELAT-TAN"},
    "twice RA": {**PLACE, **CD, "CTYPE2": "RA---TAN"},
    "CD and PC": {**PLACE, **CD, **CDELT, **PC},
    "PC in both spellings": {**PLACE, **CDELT, **PC, **OLD},
    "CROTA2 against CD": {**PLACE, **CD, **CDELT, "CROTA2": 10.0},
    "CROTA2 against PC": {**PLACE, **CDELT, **PC, "CROTA2": 10.0},
    "CROTA1 alone": {**PLACE, **CDELT, "CROTA1": 10.0},
    "CROTA2 of swapped axes": {**SWAPPED, **CDELT, "CROTA2": 10.0},
    "no scale": PLACE,
    "one CDELT": {**PLACE, "CDELT1": -SCALE},
    "singular": {**PLACE, "CD1_1": SCALE, "CD1_2": SCALE, "CD2_1": SCALE, "CD2_2": SCALE},
    "unit": {**PLACE, **CD, "CUNIT1": "hourangle", "CUNIT2": "deg"},
    "meters": {**PLACE, **CD, "CUNIT1": "m", "CUNIT2": "m"},
    "B1950": {**PLACE, **CD, "RADESYS": "FK4", "EQUINOX": 1950.0},
    "B1950, by its equinox": {**PLACE, **CD, "EQUINOX": 1950.0},
    "an equinox of date": {**PLACE, **CD, "RADESYS": "FK5", "EQUINOX": 2026.0},
    "three axes": {**PLACE, **CD, "WCSAXES": 3},
    "no CRVAL2": {key: value for key, value in {**PLACE, **CD}.items() if key != "CRVAL2"},
    "beyond the pole": {**PLACE, **CD, "CRVAL2": 91.0},
} | {
    code: {**PLACE, **CD, "CTYPE1": f"RA---{code}", "CTYPE2": f"DEC--{code}"}
    for code in ("ZPN", "ZEA", "STG", "ARC", "AIT", "CAR", "TNX", "ZPX", "NCP", "GLS", "DSS", "TAB", "XPH", "HPX")
}  # fmt: skip


def astropy_of(cards: dict[str, object]) -> WCS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WCS(fits.getheader(io.BytesIO(make_fits(np.zeros((60, 64), np.float32), cards))))


def to_pixel(reference: WCS, ra: float, dec: float) -> tuple[float, float]:
    world = (dec, ra) if reference.wcs.lat == 0 else (ra, dec)
    x, y = reference.wcs_world2pix(*world, 0)
    return float(x), float(y)


@pytest.mark.parametrize("form", APPLIED)
def test_geometry_is_astropys(form: str) -> None:
    cards = APPLIED[form]
    reference = astropy_of(cards)
    wcs = read_image(make_fits(np.zeros((60, 64), np.float32), cards)).header.wcs
    assert wcs is not None
    for x, y in [(0, 0), (63, 59), (31.5, 12.25)]:
        world = [float(value) for value in reference.wcs_pix2world(x, y, 0)]
        ra, dec = world[::-1] if reference.wcs.lat == 0 else world
        assert wcs.pixel_of(ra, dec) == pytest.approx((x, y), abs=1e-6)
        north, scale = direction(lambda a, d: to_pixel(reference, a, d), ra, dec)
        (a, b), (c, d) = wcs.matrix_at(ra, dec)
        to_north = np.linalg.inv([[a, b], [c, d]])[:, 1]
        ours = math.degrees(math.atan2(*to_north))
        assert (ours - north + 180) % 360 - 180 == pytest.approx(0, abs=0.06)
        assert math.sqrt(abs(a * d - b * c)) == pytest.approx(scale, rel=2e-2)


def direction(place: object, ra: float, dec: float) -> tuple[float, float]:
    """Where north is in the image, degrees from +y to +x, and degrees per pixel."""
    step = 1e-5
    x, y = place(ra, dec)  # type: ignore[operator]
    north = np.subtract(place(ra, dec + step), (x, y)) / step  # type: ignore[operator]
    east = np.subtract(place(ra + step / math.cos(math.radians(dec)), dec), (x, y)) / step  # type: ignore[operator]
    area = abs(north[0] * east[1] - north[1] * east[0])
    return math.degrees(math.atan2(north[0], north[1])), 1 / math.sqrt(area)


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_not_applied_is_refused(form: str) -> None:
    image = read_image(make_fits(np.ones((60, 64), np.float32), REFUSED[form]))
    with pytest.raises(PacketError) as refused:
        sky_stamp(image, 1.0, 150.0, 2.0)
    assert refused.value.reason is Reason.BAD_FITS
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("form", APPLIED)
def test_a_neighbour_to_the_north_is_above_the_source(form: str) -> None:
    """The same through the whole way of a stamp: two sources, drawn where astropy has them."""
    cards = APPLIED[form]
    reference = astropy_of(cards)
    world = [float(value) for value in reference.wcs_pix2world(30, 28, 0)]
    ra, dec = world[::-1] if reference.wcs.lat == 0 else world
    y, x = np.indices((60, 64))
    pixels = np.zeros((60, 64))
    for north, peak in ((0.0, 1000.0), (9 * SCALE, 500.0)):
        px, py = to_pixel(reference, ra, dec + north)
        pixels += peak * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 3)
    stamp, _ = sky_stamp(read_image(make_fits(pixels.astype(np.float32), cards)), 1.0, ra, dec)
    assert np.unravel_index(stamp.argmax(), stamp.shape) == (16, 16)
    above = stamp.astype(float).copy()
    above[:21] = 0
    row, column = np.unravel_index(above.argmax(), stamp.shape)
    assert (row, column) == (pytest.approx(25, abs=1), pytest.approx(16, abs=1))


def test_ztf_stamps_with_a_wcs_of_another_broker_are_turned_by_it() -> None:
    y, x = np.indices((63, 63))
    pixels = sum(peak * np.exp(-((x - 31) ** 2 + (y - row) ** 2) / 3) for row, peak in ((31, 1000), (40, 500)))
    cards = {**PLACE, "CRPIX1": 32.0, "CRPIX2": 32.0, "CDELT1": -1.0 / 3600, "CDELT2": 1.0 / 3600}

    def packet(cards: dict[str, object]) -> bytes:
        cutout = {"fileName": "f.gz", "stampData": gzip.compress(make_fits(pixels.astype(np.float32), cards))}
        return ztf_packet(top={"cutoutScience": cutout}, ra=150.0, dec=2.0)

    plain, told = (observe("ztf", packet(one)).stamp.astype(float) for one in ({}, cards))
    assert plain[7, 16] > 10 * abs(told[7, 16])
    assert told[25, 16] > 10 * abs(plain[25, 16])
    assert reason_of("ztf", packet({**cards, "CTYPE1": "RA---ZPN", "CTYPE2": "DEC--ZPN"})) is Reason.BAD_FITS


def random_header(dice: random.Random) -> dict[str, object]:
    """Keywords as they come, also those that contradict each other."""
    turn, side = dice.uniform(-math.pi, math.pi), dice.choice([1.0, 1.0, 1.1])
    cos, sin, flip = math.cos(turn), math.sin(turn), dice.choice([-1, 1])
    pc = (cos, -sin, sin, cos)
    cd = (flip * SCALE * cos, -SCALE * sin, flip * SCALE * sin, SCALE * cos)
    projection = dice.choice(["TAN", "TAN", "TAN", "SIN", "ZEA", "TPV", "TAN-SIP"])
    ra, dec = dice.choice([0.0, 150.0, 359.9999, -10.0]), dice.choice([2.0, -60.0, 80.0, 89.99, 90.0, -90.0])
    header: dict[str, object] = {**PLACE, "CRVAL1": ra, "CRVAL2": dec}
    header |= {"CTYPE1": f"RA---{projection}", "CTYPE2": f"DEC--{projection}"}
    maybe: list[tuple[float, dict[str, object]]] = [
        (0.5, dict(zip(("CD1_1", "CD1_2", "CD2_1", "CD2_2"), cd, strict=True))),
        (0.5, {"CDELT1": flip * SCALE, "CDELT2": SCALE * side}),
        (0.2, dict(zip(("PC1_1", "PC1_2", "PC2_1", "PC2_2"), pc, strict=True))),
        (0.1, dict(zip(("PC001001", "PC001002", "PC002001", "PC002002"), pc, strict=True))),
        (0.3, {"CROTA2": dice.choice([0.0, math.degrees(turn), 30.0])}),
        (0.1, {"CROTA1": dice.choice([0.0, 30.0])}),
        (0.2, {"LONPOLE": dice.choice([0.0, 180.0, 90.0, 33.0, -180.0, 360.0])}),
        (0.2, {"LATPOLE": dice.choice([0.0, 90.0])}),
        (0.15, {dice.choice(["PV1_0", "PV1_1", "PV1_2", "PV1_3", "PV2_1", "PV2_2"]): dice.choice([0.0, 1.0, 90.0])}),
        (0.1, {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": dice.choice([0.0, 1e-4])}),
        (0.2, {"CTYPE1": f"DEC--{projection}", "CTYPE2": f"RA---{projection}", "CRVAL1": dec, "CRVAL2": ra}),
    ]
    for chance, cards in maybe:
        if dice.random() < chance:
            header |= cards
    return header


def test_any_mixture_of_keywords_is_astropys_or_refused() -> None:
    dice, agreed = random.Random(5), 0
    for _ in range(600):
        cards = random_header(dice)
        wcs = read_image(make_fits(np.ones((60, 64), np.float32), cards)).header.wcs
        if wcs is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference = WCS(fits.Header(cards))
        for x, y in [(0, 0), (63, 59)]:
            world = [float(value) for value in reference.all_pix2world(x, y, 0)]
            ra, dec = world[::-1] if reference.wcs.lat == 0 else world
            assert wcs.pixel_of(ra, dec) == pytest.approx((x, y), abs=1e-3), cards
        agreed += 1
    assert agreed > 100
