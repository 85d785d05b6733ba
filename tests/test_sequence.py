"""Sequences as padded batches."""

import numpy as np
import pytest
from model_tools import SCALING, sequence

from classifier.sequence import StampSequence, collate, layout, uncached
from classifier.stamp import PREPROCESSING


def test_groups_are_cut_in_the_order_of_time_and_filled_up_without_stamps() -> None:
    given = sequence(7)
    pixels, bands, valid, days, present = collate([given], SCALING)
    assert pixels.shape == (1, 3, 3, 32, 32)
    assert valid.all()
    assert present.ravel().tolist() == [True] * 7 + [False] * 2
    assert (pixels[~present] == 0).all()
    assert (bands.ravel() == [*(given.band + 1), 0, 0]).all()
    np.testing.assert_allclose(days.ravel()[:7], given.mjd - given.mjd[0], rtol=1e-6)
    assert (days[~present] == 0).all()


def test_pixels_are_scaled_by_the_noise_of_their_band() -> None:
    given = sequence(4)
    expected = np.arcsinh(given.stamps[1].astype(float) / SCALING.softening[given.band[1]]) * SCALING.gain
    np.testing.assert_allclose(uncached(given, SCALING).pixels[0, 1], expected, rtol=1e-5, atol=1e-5)


def test_the_largest_pixels_stay_finite() -> None:
    given = sequence(1)
    given.stamps[0, :2] = np.finfo(np.float16).max
    given.stamps[0, 2:4] = -np.finfo(np.float16).max
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
    part = StampSequence(whole.mjd, whole.band, whole.stamps[kept], {1: np.zeros((8, 9, 9), np.float32)})
    part.check(99)
    every, some = uncached(whole, SCALING), uncached(part, SCALING)
    assert (some.pixels == every.pixels[[0, 2]]).all()
    assert (some.bands == every.bands[[0, 2]]).all()


def test_a_sequence_with_all_tokens_has_nothing_to_make() -> None:
    whole = sequence(3)
    none = StampSequence(whole.mjd, whole.band, whole.stamps[:0], {0: np.zeros((8, 9, 9), np.float32)})
    none.check(99)
    assert uncached(none, SCALING).pixels.shape == (0, 3, 32, 32)


def test_a_sequence_longer_than_the_model_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 9 stamps, not 10"):
        sequence(10).check(9)


def test_the_version_names_the_normaliser() -> None:
    from classifier.sequence import VERSION

    assert VERSION.startswith(f"{PREPROCESSING}/")
