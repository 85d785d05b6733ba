"""Histories of packets that bring several images, photometry and context: merged alike in every order."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from skyheed.broker.observation import Observation
from skyheed.classifier.history import (
    DETECTION,
    FORCED,
    MOST_POINTS,
    POINT_COLUMNS,
    UPPER_LIMIT,
    History,
    Photometry,
)

Point = tuple[float, int, float, float, int]  # MJD, band, flux, error, kind


def photometry(*points: Point) -> Photometry:
    columns = zip(*sorted(points), strict=True) if points else ([],) * 5
    kinds = (np.float64, np.uint8, np.float32, np.float32, np.uint8)
    return Photometry(*(np.array(c, k) for c, k in zip(columns, kinds, strict=True)))


def points_of(found: Photometry) -> list[Point]:
    return list(zip(*(getattr(found, name).tolist() for name in POINT_COLUMNS), strict=True))


def stamp(value: float) -> np.ndarray:
    return np.full((32, 32), value, np.float16)


def seen(n: int, **more: object) -> Observation:
    made = Observation("one", n, 60_000.0 + n, "r", 10.0, 20.0, 5.0, 1.0, stamp(n), 0, "ztf")
    return replace(made, **more)  # type: ignore[arg-type]


def test_images_of_every_kind_and_zeros_where_one_was_not_sent() -> None:
    packets = [
        seen(1, images={"difference": stamp(10), "template": stamp(20)}),
        seen(2, images={"template": stamp(21)}),
        seen(3),
    ]  # fmt: skip
    history = History.by_object(packets)["one"]
    assert list(history.images) == ["science", "difference", "template"]
    assert history.images["science"][:, 0, 0].tolist() == [1, 2, 3]
    assert history.images["difference"][:, 5, 5].tolist() == [10, 0, 0]
    assert history.images["template"][:, 5, 5].tolist() == [20, 21, 0]
    history.check(99)
    assert list(History.by_object([seen(1)])["one"].images) == ["science"]
    assert history.until(epochs=1).images["template"].shape == (1, 32, 32)


def test_points_of_all_packets_once_in_any_order() -> None:
    packets = [
        seen(1, photometry=photometry((59_999.0, 1, 3, 1, DETECTION), (60_001.0, 1, 5, 1, DETECTION))),
        seen(2, photometry=photometry((59_999.000001, 1, 3, 1, DETECTION), (59_999.0, 1, 3.5, 0.5, FORCED))),
        seen(3, photometry=photometry((59_999.0, 0, 0, 2, UPPER_LIMIT), (60_003.0, 1, 7, 1, DETECTION))),
        seen(4),
    ]
    wanted = [
        (59_999.0, 0, 0, 2, UPPER_LIMIT), (59_999.0, 1, 3, 1, DETECTION), (59_999.0, 1, 3.5, 0.5, FORCED),
        (60_001.0, 1, 5, 1, DETECTION), (60_003.0, 1, 7, 1, DETECTION),
    ]  # fmt: skip
    for order in itertools.permutations(packets):
        found = History.by_object(order)["one"].photometry
        assert found is not None
        assert points_of(found) == [pytest.approx(point, abs=1e-6) for point in wanted]
    early = History.by_object(packets)["one"].until(epochs=1).photometry
    assert early is not None
    assert len(early) == 4


def test_of_two_values_of_a_point_the_better_one_stays() -> None:
    values = [(60_000.0, 1, flux, error, DETECTION) for flux, error in ((3.0, 1.0), (9.0, 0.5), (10.0, 0.5))]
    for order in itertools.permutations(values):
        assert points_of(Photometry.merged([photometry(point) for point in order])) == [values[2]]


def test_the_newest_points_are_kept_and_none_from_the_future() -> None:
    many = [(59_000.0 + n, 1, float(n), 1.0, FORCED) for n in range(MOST_POINTS + 20)]
    merged = Photometry.merged([photometry(*many[150:]), photometry(*many[:200])])
    assert points_of(merged) == many[20:]
    later = seen(1, photometry=photometry((60_001.0, 1, 5, 1, DETECTION), (60_001.1, 1, 5, 1, DETECTION)))
    found = History.by_object([later])["one"].photometry
    assert found is not None
    assert len(found) == 1


def test_a_point_at_the_time_of_its_epoch_is_there_however_it_is_rounded() -> None:
    for part in np.linspace(0, 1e-5, 23):
        mjd = 60_001.0 + float(part)
        own = seen(1, mjd=mjd, photometry=photometry((mjd, 1, 5, 1, DETECTION)))
        history = History.by_object([own, seen(2)])["one"].until(epochs=1)
        assert history.photometry is not None
        assert len(history.photometry) == 1


def test_context_is_that_of_the_newest_epoch() -> None:
    packets = [
        seen(1, context={"age_days": 1.0, "visits": 5.0}), seen(2, context={"age_days": 2.0}),
        seen(3, mjd=60_002.0, context={"age_days": 3.0}),
    ]  # fmt: skip
    for order in itertools.permutations(packets):  # two at one time: that of the larger source id
        assert History.by_object(order)["one"].context == {"age_days": 3.0}
    assert History.by_object([seen(1)])["one"].context == {}
    assert History.by_object([seen(1)])["one"].photometry is None


def test_points_without_any() -> None:
    found = History.by_object([seen(1, photometry=photometry())])["one"].photometry
    assert found is not None
    assert len(found) == 0
    assert math.isfinite(History.by_object([seen(1)])["one"].mjd[0])


def test_an_earlier_history_knows_the_context_of_its_own_last_epoch() -> None:
    packets = [seen(n, context={"detections": float(n)}) for n in (1, 2, 3)]
    history = History.by_object(packets)["one"]
    assert [history.until(epochs=n).context for n in (1, 2, 3)] == [{"detections": float(n)} for n in (1, 2, 3)]
    assert history.until(epochs=2).until(epochs=1).context == {"detections": 1.0}
    newest_alone = replace(history, contexts=())  # as a store gives it
    assert newest_alone.until(epochs=2).context == {}
    assert newest_alone.newest(1).context == {"detections": 3.0}
