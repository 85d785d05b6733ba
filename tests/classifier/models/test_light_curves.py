"""Inputs of models of light curves and of frames: nights, photometry, Gaussian process; SITS-BERT pre-trained."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from zoo_tools import SCALING, batch, history, lively, logits

from skyheed.classifier.history import History, Photometry
from skyheed.classifier.models import gaussian_process, light_curves, scone
from skyheed.classifier.models.base import Network, parameters
from skyheed.classifier.models.family import preset
from skyheed.classifier.models.light_curves import Config
from skyheed.classifier.models.sits_bert import Mending, PublishedNorm, SitsBert, contaminate


def made(name: str, **values: Any) -> Network:
    torch.manual_seed(1)
    own = preset(name)
    network = own.family.build(own.family.configure({**own.network, **values}))
    return lively(network)


def night(bands: list[int], hours: float = 0.0) -> History:
    """Epochs minutes apart."""
    seen = history(len(bands), bands=bands)
    return replace(seen, mjd=59_000 + hours / 24 + np.arange(len(bands)) * 0.003)


def test_a_night_is_a_row_and_bands_that_are_not_asked_for_make_none() -> None:
    seen = replace(history(6, bands=[1, 2, 5, 1, 5, 3]), mjd=59_000 + np.array([0, 0.01, 0.02, 3, 5, 9.0]))
    rows = light_curves.rows(seen, Config(bands="gri"))
    assert rows.days.tolist() == [0, 3, 9]
    assert rows.gaps.tolist() == [0, 3, 6]
    assert rows.seen.tolist() == [[True, True, False], [True, False, False], [False, False, True]]
    assert rows.flux[0].tolist() == [seen.flux[0], seen.flux[1], 0]
    assert rows.flux_error[2].tolist() == [0, 0, seen.flux_error[5]]
    none = light_curves.rows(seen, Config(bands="u"))
    assert (none.days.tolist(), none.flux.tolist(), none.seen.tolist()) == ([0], [[0]], [[False]])


def test_fluxes_are_scaled_by_the_unit_of_their_band() -> None:
    rows = light_curves.rows(night([0, 4]), Config(bands="uz"), SCALING)
    plain = light_curves.rows(night([0, 4]), Config(bands="uz"))
    np.testing.assert_allclose(rows.flux, np.arcsinh(plain.flux / [200, 700]), rtol=1e-6)


def test_points_up_to_the_last_epoch_join_in_once() -> None:
    seen = replace(history(3, bands=[2]), mjd=np.array([59_000, 59_005, 59_010.0]))
    points = Photometry(
        np.array([58_990, 59_005, 59_007, 59_011.0]), np.array([2, 2, 1, 2], np.uint8),
        np.array([1, 2, 3, 4], np.float32), np.full(4, 9, np.float32), np.zeros(4, np.uint8),
    )  # fmt: skip
    joined = light_curves.with_photometry(replace(seen, photometry=points))
    assert joined.mjd.tolist() == [58_990, 59_000, 59_005, 59_007, 59_010]
    assert joined.flux.tolist() == [1, seen.flux[0], seen.flux[1], 3, seen.flux[2]]
    assert light_curves.with_photometry(seen) is seen
    for name in ("lstm", "supernnova", "sits-bert", "scone"):
        network = made(name, photometry=True)
        assert preset(name).family.needs(network.config).photometry
        said = logits(network, [seen, replace(seen, photometry=points)])
        assert (said[0] - said[1]).abs().max() > 1e-6


def test_a_frame_has_a_channel_for_each_band_of_the_night() -> None:
    network = made("cnn-gru")
    seen = night([2, 0, 4])
    given = batch(network, [seen])
    assert given["frames"].shape == (1, 1, 5, 32, 32)
    scaled = SCALING(seen.images["science"], seen.band)
    for epoch, channel in enumerate((2, 0, 4)):
        np.testing.assert_array_equal(given["frames"][0, 0, channel].numpy(), scaled[epoch])
    assert float(given["frames"][0, 0, [1, 3]].abs().max()) == 0
    only = batch(made("cnn-gru", bands="g"), [history(5, bands=[1, 2])])
    assert only["frames"].shape == (1, 3, 1, 32, 32)


def test_of_two_stamps_of_a_band_the_better_one_is_shown() -> None:
    seen = replace(night([2, 2]), flux_error=np.array([50, 40], np.float32))
    given = batch(made("cnn-gru"), [seen])
    scaled = SCALING(seen.images["science"], seen.band)
    np.testing.assert_array_equal(given["frames"][0, 0, 2].numpy(), scaled[1])


def test_times_tell_a_gap_of_a_night_from_one_of_a_year() -> None:
    seen = history(3, bands=[2])
    later = replace(seen, mjd=seen.mjd + np.array([0, 365, 730]))
    for name, more in (("cnn-gru", 3 * 256 * 7), ("cnn-lstm", 4 * 256 * 7)):
        plain, timed = made(name), made(name, times=True)
        assert parameters(timed) - parameters(plain) == more
        assert torch.equal(*logits(plain, [seen, later]))
        both = logits(timed, [seen, later])
        assert (both[0] - both[1]).abs().max() > 1e-6


def test_the_published_norm_divides_by_the_unbiased_scatter() -> None:
    x = torch.randn(3, 16)
    expected = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(PublishedNorm(16)(x), expected)


def test_published_pooling_lets_padding_in() -> None:
    seen = [history(9), history(2, 1)]
    published = made("sits-bert", published_pooling=True)
    assert (logits(published, seen)[1] - logits(published, seen[1:])[0]).abs().max() > 1e-3


def test_fifteen_percent_of_the_nights_are_contaminated_and_no_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    valid = torch.arange(40) < torch.arange(1, 2001)[:, None] % 40 + 1
    nights = torch.zeros(2000, 40, 10)
    dirty, chosen = contaminate(nights, valid, generator)
    assert not chosen[~valid].any()
    assert float(chosen[valid].float().mean()) == pytest.approx(0.15, abs=0.01)
    assert (dirty[~chosen] == 0).all()
    noise = dirty[chosen]
    negative = (noise <= 0).all(1)
    assert ((noise >= 0).all(1) | negative).all()
    assert float(negative.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert noise.abs().max() <= 0.5


def test_only_contaminated_nights_carry_the_loss_of_pre_training() -> None:
    network = made("sits-bert", dropout=0.0)
    assert isinstance(network, SitsBert)
    mending = Mending(network)
    given = batch(network, [history(9, n, bands=[2]) for n in range(8)])
    loss = mending(given, torch.Generator().manual_seed(3))
    dirty, chosen = contaminate(given["nights"], given["valid"], torch.Generator().manual_seed(3))
    found = mending.mend(network.tokens({**given, "nights": dirty}))
    torch.testing.assert_close(loss, (found - given["nights"])[chosen].square().mean())
    optimiser = torch.optim.Adam([*network.parameters(), *mending.parameters()], 1e-3)
    generator = torch.Generator().manual_seed(4)
    losses = []
    for _ in range(60):
        loss = mending(given, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:5])


def test_nothing_contaminated_costs_nothing() -> None:
    network = made("sits-bert")
    assert isinstance(network, SitsBert)
    given = batch(network, [history(1)])
    losses = [float(Mending(network)(given, torch.Generator().manual_seed(n)).detach()) for n in range(8)]
    assert 0 in losses
    assert np.isfinite(losses).all()


def curve(days: np.ndarray[Any, Any], errors: float) -> tuple[np.ndarray[Any, Any], ...]:
    wavelength = gaussian_process.WAVELENGTHS[np.arange(len(days)) % 5]
    flux = 1000 * np.exp(-(((days - 20) / 15) ** 2)) * (1 + wavelength / 10_000)
    return days, wavelength, flux, np.full(len(days), errors)


def test_the_process_passes_through_points_without_noise_and_is_unsure_far_away() -> None:
    days, wavelength, flux, error = curve(np.arange(0.0, 40, 2), 1e-3)
    process = gaussian_process.fit(days, wavelength, flux, error)
    mean, scatter = process(days, wavelength)
    np.testing.assert_allclose(mean, flux, atol=1)
    assert scatter.max() < 2
    _, away = process(np.array([20.0, 45, 60, 400]), np.full(4, 6000.0))
    assert (np.diff(away) > 0).all()
    assert away[-1] == pytest.approx(np.sqrt(process.amplitude), rel=1e-3)


def test_the_process_is_the_textbook_one() -> None:
    days, wavelength, flux, error = curve(np.arange(0.0, 30, 3), 50.0)
    process = gaussian_process.fit(days, wavelength, flux, error)

    def kernel(a: tuple[float, float], b: tuple[float, float]) -> float:
        r2 = ((a[0] - b[0]) / process.length) ** 2 + ((a[1] - b[1]) / 6000) ** 2
        return float(process.amplitude * (1 + np.sqrt(3 * r2)) * np.exp(-np.sqrt(3 * r2)))

    places = list(zip(days, wavelength, strict=True))
    at = (11.0, 5000.0)
    covariance = np.array([[kernel(a, b) for b in places] for a in places]) + np.diag(error**2)
    cross = np.array([kernel(at, b) for b in places])
    mean, scatter = process(np.array([at[0]]), np.array([at[1]]))
    assert mean[0] == pytest.approx(cross @ np.linalg.solve(covariance, flux), rel=1e-6)
    assert scatter[0] ** 2 == pytest.approx(process.amplitude - cross @ np.linalg.solve(covariance, cross), rel=1e-5)


def test_the_fit_is_where_the_likelihood_is_largest() -> None:
    days, wavelength, flux, error = curve(np.arange(0.0, 40, 2), 30.0)
    best = gaussian_process.fit(days, wavelength, flux, error)

    def minus_log(amplitude: float, length: float) -> float:
        cov = gaussian_process.kernel(days, wavelength, days, wavelength, amplitude, length) + np.diag(error**2)
        return float(flux @ np.linalg.solve(cov, flux) + np.linalg.slogdet(cov)[1]) / 2

    least = minus_log(best.amplitude, best.length)
    for a, b in ((1.2, 1), (0.8, 1), (1, 1.2), (1, 0.8)):
        assert minus_log(a * best.amplitude, b * best.length) > least


def test_the_window_begins_before_the_first_epoch_and_nothing_of_later_is_in_it() -> None:
    config = scone.Config()
    whole = replace(history(12), mjd=59_000 + np.arange(12) * 4.0)
    early = whole.until(epochs=6)
    made_early = scone.image(early, config)
    changed = replace(whole, flux=np.where(np.arange(12) >= 6, 1e6, whole.flux).astype(np.float32))
    np.testing.assert_array_equal(scone.image(changed.until(epochs=6), config), made_early)
    assert made_early.shape == (2, 32, 180)
    assert (made_early[:, :, :41] != 0).any((0, 1)).all()  # 20 days before to 20 days after the first
    assert (made_early[:, :, 41:] == 0).all()
    assert np.abs(made_early[0]).max() == pytest.approx(1)
    later = replace(whole, mjd=whole.mjd + 1000.25)
    np.testing.assert_allclose(scone.image(later, config), scone.image(whole, config), atol=1e-5)


def test_a_light_curve_a_day_later_in_its_window_is_an_image_a_bin_further() -> None:
    seen = replace(history(12), mjd=59_000.25 + np.arange(12) * 4.0)
    assert seen.flux is not None
    assert seen.flux_error is not None
    columns = [column.tobytes() for column in (seen.mjd, seen.band, seen.flux, seen.flux_error)]
    begin, end = float(seen.mjd[0]), float(seen.mjd[-1])
    plain, later = (scone._image(first, end, 180, *columns) for first in (begin, begin - 1))
    np.testing.assert_allclose(later[:, :, 1:], plain[:, :, :-1], atol=1e-5)
    assert np.abs(later - plain).max() > 0.01


def test_of_an_object_older_than_the_window_the_newest_days_are_seen() -> None:
    config = scone.Config()
    old = replace(history(60), mjd=59_000 + np.arange(60) * 5.0)
    seen = scone.image(old, config)
    assert (seen != 0).any((0, 1)).all()
    flared = replace(old, flux=np.where(np.arange(60) == 59, 3e5, old.flux).astype(np.float32))
    assert np.unravel_index(np.abs(scone.image(flared, config)[0]).argmax(), (32, 180))[1] > 175


def test_images_are_made_once() -> None:
    network = made("scone")
    seen = [history(8, 100 + n) for n in range(3)]
    before = scone._image.cache_info()
    first, again = (batch(network, seen)["image"] for _ in range(2))
    after = scone._image.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (3, 3)
    assert torch.equal(first, again)
    assert after.maxsize == scone.CACHED
    with pytest.raises(ValueError, match="read-only"):
        scone.image(seen[0], scone.Config())[0] = 1


def test_the_published_number_with_176_days() -> None:
    assert parameters(made("scone", bins=176)) == 22_284
