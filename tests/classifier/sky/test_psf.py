"""The point-spread function: the width it is asked for, its flux, its shift, and the noise that it gathers."""

import numpy as np
import pytest

from skyheed.classifier.sky.psf import noise_area
from skyheed.classifier.sky.render import point_images
from skyheed.classifier.sky.surveys import survey_named

SDSS = survey_named("sdss")
NOWHERE = np.zeros((2, 1))


@pytest.fixture
def round_psf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyheed.classifier.sky.render.ELLIPTICITY", 0.0)


@pytest.mark.usefixtures("round_psf")
@pytest.mark.parametrize("fwhm", [1.2, 2.0, 3.0])
def test_a_point_source_has_unit_flux_and_the_width_that_was_asked_for(fwhm: float) -> None:
    image = np.asarray(point_images(np.random.default_rng(1), SDSS, np.array([fwhm]), NOWHERE)[0], float)
    middle = SDSS.size // 2
    assert image.sum() == pytest.approx(1, abs=0.03)  # a part of the wings is outside the stamp
    assert np.unravel_index(image.argmax(), image.shape) == (middle, middle)
    row = image[middle, middle:]
    half = np.interp(-0.5 * row[0], -row, np.arange(len(row)))  # pixels from the centre to half of the peak
    assert 2 * half * SDSS.pixel == pytest.approx(fwhm, rel=0.08)


@pytest.mark.usefixtures("round_psf")
def test_an_offset_moves_the_centroid_by_as_much() -> None:
    offset = np.array([[0.5], [-0.3]])
    width = np.array([1.5])
    images = [point_images(np.random.default_rng(1), SDSS, width, o)[0].astype(float) for o in (NOWHERE, offset)]
    y, x = np.indices(images[0].shape)
    window = np.hypot(x - SDSS.size // 2, y - SDSS.size // 2) < 10
    for axis, expected in ((x, 0.5), (y, -0.3)):
        shift = [(axis * image)[window].sum() / image[window].sum() for image in images]
        assert (shift[1] - shift[0]) * SDSS.pixel == pytest.approx(expected, abs=0.02)


@pytest.mark.usefixtures("round_psf")
@pytest.mark.parametrize("fwhm", [1.2, 2.5])
def test_the_noise_area_is_that_of_the_images(fwhm: float) -> None:
    image = np.asarray(point_images(np.random.default_rng(1), SDSS, np.array([fwhm]), NOWHERE)[0], float)
    assert float(noise_area(fwhm, SDSS.pixel)) == pytest.approx(1 / (image**2).sum(), rel=0.1)
