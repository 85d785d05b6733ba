import math
import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skyheed.broker.observation import Flag
from skyheed.broker.results.formats import load_schema
from skyheed.classifier import stamp as module
from skyheed.classifier.stamp import (
    STAMP_SIZE,
    STAMP_UNIT_NJY,
    EmptyStampError,
    StampError,
    normalise,
)

NORTH_UP = ((-1.0, 0.0), (0.0, 1.0))
ZTF = ((-1.0, 0.0), (0.0, -1.0))


def flat(ny, nx, sky=10.0):
    return np.full((ny, nx), sky, np.float32)


def matrix(angle, scale=0.2, mirrored=False):
    """(dx, dy) -> (east, north): north lies `angle` degrees from +y, to the left."""
    a = math.radians(angle)
    east, north = (-math.cos(a), -math.sin(a)), (-math.sin(a), math.cos(a))
    if mirrored:
        east, north = (math.cos(a), -math.sin(a)), (math.sin(a), math.cos(a))
    return tuple(tuple(scale * v for v in row) for row in (east, north))


def put(image, x, y, to_sky, west, north, value):
    """Set the pixel that lies `west` and `north` pixels of (x, y) on the sky."""
    m = np.array(to_sky, float)
    m /= math.sqrt(abs(np.linalg.det(m)))
    dx, dy = np.linalg.solve(m, [-west, north])
    image[round(y + dy), round(x + dx)] = value


def test_flag_bits_are_those_of_the_published_schema():
    schema = load_schema("classification", "v1", "classification.avsc")
    (doc,) = [field["doc"] for field in schema["fields"] if field["name"] == "flags"]
    told = {name: int(bit) for bit, name in re.findall(r"(\d+) (negative|padded|pixels filled|nominal|rotated)", doc)}
    assert told == {
        "negative": Flag.NEGATIVE, "padded": Flag.PADDED, "pixels filled": Flag.FILLED,
        "nominal": Flag.NOMINAL_ZERO_POINT, "rotated": Flag.ROTATED,
    }  # fmt: skip
    assert len({int(flag) for flag in Flag}) == len(Flag) == 7


def test_golden_sdss_64():
    image = flat(64, 64, 7.0)
    image[32, 32] = 507.0  # the source
    image[35, 30] = 57.0  # 3 pixels north and 2 pixels east of it
    stamp, flags = normalise(image, 1.0, (32.0, 32.0), NORTH_UP)
    expected = np.zeros((32, 32), np.float16)
    expected[16, 16], expected[19, 14] = 5.0, 0.5
    assert stamp.dtype == np.float16
    assert flags == 0
    np.testing.assert_array_equal(stamp, expected)


def test_golden_ztf_63_rows_run_south():
    image = flat(63, 63, 150.0)
    image[31, 31] = 250.0
    image[28, 29] = 151.0  # 3 rows before the source: north; 2 columns before: east
    stamp, flags = normalise(image, 100.0, None, ZTF)
    expected = np.zeros((32, 32), np.float16)
    expected[16, 16], expected[19, 14] = 100.0, 1.0
    assert flags == 0
    np.testing.assert_array_equal(stamp, expected)


def test_golden_ztf_chip_edge():
    # 58 rows: the 5 rows before the first are off the chip, so the source is in row 26
    image = flat(58, 63, 96.0)
    image[26, 31] = 196.0
    image[0, 31] = 106.0  # 26 rows north of the source: outside of the stamp
    image[11, 31] = 116.0  # 15 rows north: the stamp's last row
    stamp, flags = normalise(image, 100.0, (31, 26), ZTF)
    expected = np.zeros((32, 32), np.float16)
    expected[16, 16], expected[31, 16] = 100.0, 20.0
    assert flags == 0
    np.testing.assert_array_equal(stamp, expected)


def test_golden_lsst_30_padded():
    image = flat(30, 30, -3.0)
    image[15, 15] = 997.0
    image[0, 0] = 197.0
    stamp, flags = normalise(image, 1.0, (14.6, 15.3), NORTH_UP)
    expected = np.zeros((32, 32), np.float16)
    expected[16, 16], expected[1, 1] = 10.0, 2.0
    assert flags == Flag.PADDED
    np.testing.assert_array_equal(stamp, expected)


@pytest.mark.parametrize("side", [30, 31, 63, 64])
@pytest.mark.parametrize("angle", [None, 0, 90, 180, 270, 0.5, 89.4, 180.7, 20, 45, 137, 300])
def test_the_source_is_by_default_in_pixel_half_the_side(side, angle):
    image = flat(side, side)
    image[side // 2, side // 2] += 1000.0
    stamp, _ = normalise(image, 1.0, None, None if angle is None else module.turned(angle))
    assert module.middle(image.shape) == (side // 2, side // 2)
    assert float(stamp[16, 16]) == 10.0


@pytest.mark.parametrize("angle", [0, 30, 90, 200.5])
def test_an_image_is_turned_about_its_middle_by_where_its_y_axis_points(angle):
    """A mark 6 pixels up: so far east and north of the source as the angle says."""
    y, x = np.indices((30, 30)) - 15.0
    image = 100 * np.exp(-(x**2 + (y - 6) ** 2) / 4).astype(np.float32)
    stamp, _ = normalise(image, 1.0, None, module.turned(angle))
    light = np.clip(np.asarray(stamp, float), 0, None)
    v, u = np.indices((32, 32)) - 16
    assert (light * -u).sum() / light.sum() == pytest.approx(6 * math.sin(math.radians(angle)), abs=0.1)
    assert (light * v).sum() / light.sum() == pytest.approx(6 * math.cos(math.radians(angle)), abs=0.1)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("angle", [0, 90, 180, 270, 0.5, 89.4, 180.7, -0.9])
def test_right_angles_are_exact(angle, mirrored):
    to_sky = matrix(angle, 5e-5, mirrored)
    exact = matrix(90 * round(angle / 90), 1.0, mirrored)
    image = np.zeros((47, 51), np.float32)
    marks = {(0, 0): 100.0, (2, 7): 200.0, (-5, 3): 300.0, (-1, -9): 400.0}
    for (west, north), value in marks.items():
        put(image, 25, 23, exact, west, north, value)
    stamp, flags = normalise(image, 1.0, (25, 23), to_sky)
    assert flags == 0
    assert {(w, n): 100 * float(stamp[16 + n, 16 + w]) for w, n in marks} == marks
    assert np.count_nonzero(stamp) == len(marks)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("angle", [30.0, 45.0, 128.0, 200.0, 301.5])
def test_turning_a_plane_is_exact(angle, mirrored):
    # bilinear interpolation of a plane is the plane; its border's median is taken off like any background
    to_sky = matrix(angle, mirrored=mirrored)
    y, x = np.indices((80, 80))
    cx, cy = 40.3, 38.9
    sky = np.array(to_sky) / 0.2
    east = sky[0, 0] * (x - cx) + sky[0, 1] * (y - cy)
    north = sky[1, 0] * (x - cx) + sky[1, 1] * (y - cy)
    stamp, flags = normalise((500 + 10 * east + 4 * north).astype(np.float32), STAMP_UNIT_NJY, (cx, cy), to_sky)
    v, u = np.indices((32, 32)) - 16
    expected = -10.0 * u + 4.0 * v
    difference = stamp.astype(float) - expected
    assert flags == Flag.ROTATED
    assert np.ptp(difference) < 0.3  # float16 steps of 0.125 at 200
    assert abs(difference.mean() - difference[16, 16]) < 0.1


def test_turning_keeps_a_source_in_its_place():
    y, x = np.indices((64, 64))
    to_sky = np.array(matrix(37.0))
    m = to_sky / 0.2
    dx, dy = np.linalg.solve(m, [5.0, 3.0])  # 5 pixels east, 3 pixels north of the centre
    image = 1e4 * np.exp(-((x - 31.2 - dx) ** 2 + (y - 32.4 - dy) ** 2) / 8)
    stamp, flags = normalise(image.astype(np.float32), 1.0, (31.2, 32.4), to_sky)
    weight = stamp.astype(float)
    v, u = np.indices((32, 32)) - 16
    assert flags == Flag.ROTATED
    assert (weight * u).sum() / weight.sum() == pytest.approx(-5.0, abs=0.02)
    assert (weight * v).sum() / weight.sum() == pytest.approx(3.0, abs=0.02)
    assert weight.sum() == pytest.approx(image.sum() / STAMP_UNIT_NJY, rel=0.01)  # the flux stays


def test_turned_corners_outside_are_background():
    stamp, flags = normalise(flat(30, 30, 55.0), 1.0, None, matrix(45))
    assert flags == Flag.ROTATED | Flag.PADDED
    np.testing.assert_array_equal(stamp, 0)


def test_nan_becomes_background():
    image = flat(63, 63, 20.0)
    image[:25] = np.nan
    image[40, 40] = np.inf
    image[31, 31] = 120.0
    stamp, flags = normalise(image, 1.0)
    expected = np.zeros((32, 32), np.float16)
    expected[16, 16] = 1.0
    assert flags == Flag.FILLED
    np.testing.assert_array_equal(stamp, expected)


def test_nan_in_a_turned_image():
    image = flat(64, 64, 20.0)
    image[33, 33] = np.nan
    stamp, flags = normalise(image, 1.0, None, matrix(20))
    assert flags == Flag.FILLED | Flag.ROTATED
    np.testing.assert_array_equal(stamp, 0)


def test_background_without_a_border():
    image = np.full((40, 40), np.nan, np.float32)
    image[10:30, 10:30] = 42.0
    stamp, flags = normalise(image, 1.0)
    assert flags == Flag.FILLED
    np.testing.assert_array_equal(stamp, 0)


@pytest.mark.parametrize("hole", [slice(None), slice(2, -2)])
@pytest.mark.parametrize("to_sky", [NORTH_UP, matrix(33)])
def test_a_stamp_of_nan_is_empty(hole, to_sky):
    image = flat(60, 60)
    image[hole, hole] = np.nan
    with pytest.raises(EmptyStampError):
        normalise(image, 1.0, None, to_sky)


def test_bright_pixels_stay_finite():
    image = flat(40, 40, 0.0)
    image[20, 20], image[10, 10] = 3e38, -3e38
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stamp, _ = normalise(image, 1e6)
    assert stamp[16, 16] == 65504
    assert stamp[6, 6] == -65504
    assert np.isfinite(stamp).all()


@pytest.mark.parametrize("centre", [(-0.6, 3), (3, 40.1), (math.nan, 3), (1e300, 3)])
def test_a_source_outside_is_refused(centre):
    with pytest.raises(StampError, match="outside"):
        normalise(flat(40, 40), 1.0, centre)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_senseless_scale_is_refused(scale):
    with pytest.raises(StampError, match="nJy per count"):
        normalise(flat(40, 40), scale)


@pytest.mark.parametrize(
    "to_sky",
    [
        ((0, 0), (0, 0)),
        ((1, 1), (1, 1)),
        ((1, 0), (0, 1e-9)),
        ((math.nan, 0), (0, 1)),
        ((math.inf, 0), (0, 1)),
        ((1e300, 0), (0, 1e300)),
        ((1e-200, 1e-300), (1e-300, 1e-200)),
    ],
)
def test_a_senseless_wcs_is_refused(to_sky):
    with pytest.raises(StampError, match=r"WCS|square"):
        normalise(flat(40, 40), 1.0, None, to_sky)


def test_the_image_is_left_alone_and_byte_order_does_not_matter():
    image = np.random.default_rng(3).normal(50, 5, (63, 63)).astype(np.float32)
    image[3, 3] = np.nan
    before = image.copy()
    native, _ = normalise(image, 2.0, (30, 33), ZTF)
    swapped, _ = normalise(image.astype(">f4"), 2.0, (30, 33), ZTF)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(native, swapped)


@settings(max_examples=150, deadline=None)
@given(
    image=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=50)),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    angle=st.floats(-400, 400),
    mirrored=st.booleans(),
)
def test_any_image_gives_a_finite_stamp_or_a_stamp_error(image, share, angle, mirrored):
    ny, nx = image.shape
    try:
        stamp, flags = normalise(image, 3.0, (share[0] * (nx - 1), share[1] * (ny - 1)), matrix(angle, 1e-5, mirrored))
    except StampError:
        return
    assert stamp.shape == (STAMP_SIZE, STAMP_SIZE)
    assert np.isfinite(stamp).all()
    assert 0 <= flags < 32
