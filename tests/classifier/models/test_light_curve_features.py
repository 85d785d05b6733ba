"""The features of all light curves of a batch, against those of one history at a time."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from plain_light_curve import light_curve
from real_data import ztf_files
from zoo_tools import history

from skyheed import History, read_packet
from skyheed.broker.errors import PacketError, SkipPacket
from skyheed.classifier.history import DETECTION, FORCED, UPPER_LIMIT, Photometry
from skyheed.classifier.models.fusion.light_curves import CURVE, curves


def both(histories: list[History]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of all at once, and one by one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = [light_curve(h) for h in histories]
        return curves(histories), np.array([[one.get(name, np.nan) for name in CURVE] for one in plain])


def any_history(rng: np.random.Generator) -> History:
    """Epochs and points of all kinds, some at the same time, some without a flux, some negative."""
    seen = history(int(rng.integers(1, 12)), int(rng.integers(1e6)), bands=(1, 2))
    flux = rng.normal(0, 2e4, len(seen)).astype(np.float32)
    flux[rng.random(len(seen)) < 0.2] = np.nan
    n = int(rng.integers(0, 80))
    mjd = np.sort(np.concatenate([rng.uniform(seen.mjd[0] - 30, seen.mjd[-1] + 3, n), rng.choice(seen.mjd, 2)]))
    mjd[rng.random(n + 2) < 0.1] += 5e-4
    columns = rng.integers(0, 4, n + 2), rng.normal(0, 2e4, n + 2), rng.uniform(10, 2e3, n + 2)
    kind = rng.choice([DETECTION, FORCED, UPPER_LIMIT], n + 2)
    order = np.argsort(mjd, kind="stable")
    points = Photometry(
        mjd[order], columns[0].astype(np.uint8), *(c.astype(np.float32) for c in columns[1:]), kind.astype(np.uint8)
    )
    return replace(seen, flux=flux, photometry=points if rng.random() < 0.8 else None)


def test_a_batch_has_the_features_of_each_history_alone() -> None:
    rng = np.random.default_rng(4)
    histories = [any_history(rng) for _ in range(400)]
    together, alone = both(histories)
    assert np.isfinite(alone).mean(0).min() > 0.03, "every feature is known of some"
    np.testing.assert_allclose(together, alone, rtol=1e-9, atol=1e-9)


def test_what_is_in_the_batch_makes_no_difference() -> None:
    rng = np.random.default_rng(5)
    histories = [any_history(rng) for _ in range(40)]
    with np.errstate(divide="ignore", invalid="ignore"):
        together, turned = curves(histories), curves(histories[::-1])[::-1]
        single = np.concatenate([curves([h]) for h in histories])
    np.testing.assert_array_equal(together, turned)
    np.testing.assert_array_equal(together, single)


def test_nothing_measured_is_nothing_known() -> None:
    bare = replace(history(3), flux=np.full(3, np.nan, np.float32), photometry=None)
    assert np.isnan(curves([bare])).all()
    assert np.isnan(both([bare, history(3)])[0][0]).all()


def test_real_objects_have_the_same_features_in_a_batch_as_alone() -> None:
    seen = []
    for path in ztf_files()[:150]:
        try:
            seen += list(read_packet(path.read_bytes(), survey="ztf"))
        except (SkipPacket, PacketError):
            continue
    together, alone = both(list(History.by_object(seen).values()))
    np.testing.assert_allclose(together, alone, rtol=1e-9, atol=1e-9)
