"""The table of context numbers: names, ranges, what is not known, galactic latitude."""

import math

import numpy as np
import pytest

from skyheed.classifier import context

PLACES = [  # ra, dec, b (degrees), of the NASA Extragalactic Database's coordinate calculator
    (192.85948, 27.12825, 90.0),
    (266.40499, -28.93617, 0.0),  # the galactic centre
    (10.68479, 41.26907, -21.5733),  # M31
    (83.63308, 22.01450, -5.7843),  # the Crab nebula
    (187.70593, 12.39112, 74.4912),  # M87
]


def test_names_are_there_once_and_say_what_they_are() -> None:
    assert len(set(context.NAMES)) == len(context.NAMES) == len(context.CODES)
    assert context.CODES["reference_distance"] == 0  # stored in Redis and archives
    assert context.CODES["catalogue_3_ri"] == 18
    assert context.CODES["age_days"] == 22
    for quantity in context.QUANTITIES:
        assert quantity.meaning
        assert quantity.low < quantity.high
        assert not {"ra", "dec", "right_ascension"} & {quantity.name}


@pytest.mark.parametrize("missing", [None, math.nan, -999, -999.0, math.inf, -math.inf])
def test_what_is_not_known_is_absent(missing: float | None) -> None:
    values = dict.fromkeys(context.NAMES, missing)
    assert context.known(values) == {}
    assert context.known(values | {"reference_magnitude": 19}) == {"reference_magnitude": 19.0}


def test_a_value_at_the_end_of_its_range_is_known() -> None:
    assert context.known({"catalogue_1_star": 0, "galactic_latitude": 0.0, "catalogue_2_star": 1.0}) == {
        "catalogue_1_star": 0, "galactic_latitude": 0, "catalogue_2_star": 1,
    }  # fmt: skip
    assert context.known({"catalogue_1_star": 1.5, "detections": 0, "reference_distance": -0.1}) == {}


@pytest.mark.parametrize(("ra", "dec", "latitude"), PLACES)
def test_galactic_latitude(ra: float, dec: float, latitude: float) -> None:
    assert context.galactic_latitude(ra, dec) == pytest.approx(abs(latitude), abs=2e-3)


def test_check_refuses_other_names_and_values() -> None:
    context.check({"age_days": 3.0})
    with pytest.raises(ValueError, match="context has no 'ra'"):
        context.check({"ra": 3.0})
    for value in (math.nan, -999.0):
        with pytest.raises(ValueError, match="leave out unknown values"):
            context.check({"age_days": value})


def test_a_table_of_contexts_has_nan_where_nothing_is_known() -> None:
    found = context.table([{"age_days": 2.0}, {}], ["visits", "age_days"])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([[math.nan, 2], [math.nan, math.nan]], np.float32))
    assert context.table([]).shape == (0, len(context.NAMES))
