"""Sequences as padded batches."""

from dataclasses import replace

import numpy as np
import pytest
from model_tools import SCALING, sequence

from skyheed.classifier.history import History
from skyheed.classifier.models.convention.groups import GROUP, check_kept, collate, layout, uncached
from skyheed.classifier.stamp import PREPROCESSING


def test_groups_are_cut_in_the_order_of_time_and_filled_up_without_stamps() -> None:
    given = sequence(7)
    pixels, bands, valid, days, present = collate([given], SCALING).values()
    assert pixels.shape == (1, 3, 3, 32, 32)
    assert valid.all()
    assert present.ravel().tolist() == [True] * 7 + [False] * 2
    assert (pixels[~present] == 0).all()
    assert (bands.ravel() == [*(given.band + 1), 0, 0]).all()
    np.testing.assert_allclose(days.ravel()[:7], given.mjd - given.mjd[0], rtol=1e-6)
    assert (days[~present] == 0).all()


def test_pixels_are_scaled_by_the_noise_of_their_band() -> None:
    given = sequence(4)
    expected = np.arcsinh(given.images["science"][1].astype(float) / SCALING.softening[given.band[1]]) * SCALING.gain
    np.testing.assert_allclose(uncached(given, SCALING).pixels[0, 1], expected, rtol=1e-5, atol=1e-5)


def test_the_largest_pixels_stay_finite() -> None:
    given = sequence(1)
    given.images["science"][0, :2] = np.finfo(np.float16).max
    given.images["science"][0, 2:4] = -np.finfo(np.float16).max
    assert np.abs(uncached(given, SCALING).pixels).max() < 15


def test_a_batch_is_padded_to_its_longest_or_as_told() -> None:
    given = [sequence(2), sequence(8)]
    assert layout(given).valid.tolist() == [[True, False, False], [True, True, True]]
    wide = layout(given, 5)
    assert wide.valid.shape == (2, 5)
    assert not wide.valid[:, 3:].any()
    assert not wide.present[0, 0, 2]


def test_only_groups_without_a_token_are_made() -> None:
    whole = sequence(8)
    kept = np.array([True] * 3 + [False] * 3 + [True] * 2)
    part = History.of_stamps(whole.mjd, whole.band, whole.images["science"][kept], {1: b"token"}, GROUP)
    part.check(99)
    check_kept(part)
    every, some = uncached(whole, SCALING), uncached(part, SCALING)
    assert (some.pixels == every.pixels[[0, 2]]).all()
    assert (some.bands == every.bands[[0, 2]]).all()


def test_a_sequence_with_all_tokens_has_nothing_to_make() -> None:
    whole = sequence(3)
    none = History.of_stamps(whole.mjd, whole.band, whole.images["science"][:0], {0: b"token"}, GROUP)
    none.check(99)
    check_kept(none)
    assert uncached(none, SCALING).pixels.shape == (0, 3, 32, 32)


def test_a_sequence_longer_than_the_model_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 9 epochs here, not 10"):
        sequence(10).check(9)


@pytest.mark.parametrize("mjd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_times_that_are_not_finite_are_refused(mjd: float, at: int) -> None:
    given = sequence(5)
    given.mjd[at] = mjd
    with pytest.raises(ValueError, match="MJDs of a history are finite"):
        given.check(99)


def test_times_out_of_order_are_refused_and_equal_ones_are_not() -> None:
    given = sequence(5)
    given.mjd[3] = given.mjd[2]
    given.check(99)
    given.mjd[3] = given.mjd[1]
    with pytest.raises(ValueError, match="in time order: sort its epochs"):
        given.check(99)


@pytest.mark.parametrize("code", [6, 255])
def test_codes_of_no_band_are_refused(code: int) -> None:
    given = sequence(4)
    given.band[1] = code
    with pytest.raises(ValueError, match="band codes are 0 to 5, the places in ugrizy"):
        given.check(99)


def test_negative_codes_are_refused() -> None:
    given = sequence(4)
    with pytest.raises(ValueError, match="band codes"):
        replace(given, band=np.array([0, 1, -1, 2], np.int8)).check(99)  # type: ignore[arg-type]


@pytest.mark.parametrize("pixel", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0, 0), (6, 31, 31), (3, 16, 16)])
def test_pixels_that_are_not_finite_are_refused(pixel: float, at: tuple[int, int, int]) -> None:
    given = sequence(7)
    given.images["science"][at] = pixel
    with pytest.raises(ValueError, match="pixels that are not finite"):
        given.check(99)


def test_every_finite_pixel_is_taken() -> None:
    given, limits = sequence(1), np.finfo(np.float16)
    given.images["science"][0, 0, :6] = limits.max, limits.min, limits.tiny, limits.smallest_subnormal, -0.0, 0.0
    given.check(99)
    stamps = np.asfortranarray(given.images["science"])
    replace(given, images={"science": np.rot90(stamps, 1, (1, 2))}).check(99)


def test_pixels_of_another_precision_are_refused() -> None:
    given = sequence(3)
    with pytest.raises(ValueError, match="stamps must be float16, not float32"):
        replace(given, images={"science": given.images["science"].astype(np.float32)}).check(99)  # type: ignore[arg-type]


def test_the_version_names_the_normaliser() -> None:
    from skyheed.classifier.models.convention.groups import VERSION

    assert VERSION.startswith(f"{PREPROCESSING}/")
