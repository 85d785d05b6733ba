"""Scaled fluxes and pixels."""

import numpy as np

from skyheed.classifier.flux_scaling import Scaling, asinh


def test_asinh_is_exact_enough_for_every_pixel_that_a_stamp_can_hold() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    pixels = every[np.isfinite(every)].astype(np.float32)
    for factor in (1e-3, 1.0, 1e3):
        x = pixels * np.float32(factor)
        true = np.arcsinh(x.astype(np.float64))
        assert (np.abs(asinh(x) - true) < 3e-7 * (1 + np.abs(true))).all()
        assert (np.signbit(asinh(x)) == np.signbit(x)).all()


def test_pixels_are_in_units_of_their_bands_noise() -> None:
    scaling = Scaling((1.0, 2.0, 4.0, 1.0, 1.0, 1.0), 0.5)
    pixels = np.full((3, 32, 32), 8, np.float16)
    scaled = scaling(pixels, np.array([0, 1, 2], np.uint8))
    np.testing.assert_allclose(scaled[:, 0, 0], 0.5 * np.arcsinh([8.0, 4.0, 2.0]), rtol=1e-6)
    assert scaled.dtype == np.float32
