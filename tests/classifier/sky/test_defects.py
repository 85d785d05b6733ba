"""Defects: they leave the source alone, follow the survey's columns, and saturation clips and bleeds."""

import numpy as np
import pytest
from test_sky import exposures

from skyheed.classifier.sky import defects
from skyheed.classifier.sky.surveys import survey_named

SDSS = survey_named("sdss")
MIDDLE = SDSS.size // 2


@pytest.mark.parametrize("kind", ["COSMIC_RAY", "BAD_COLUMN", "CHIP_EDGE"])
def test_a_defect_changes_most_stamps_when_it_is_sure_and_never_the_source(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for name in ("COSMIC_RAY", "BAD_COLUMN", "CHIP_EDGE"):
        monkeypatch.setattr(defects, name, 1e9 if name == kind else 0.0)
    images = np.ones((40, SDSS.size, SDSS.size), np.float32)
    defects.add_defects(np.random.default_rng(3), SDSS, exposures(SDSS, 8), images)
    assert (images != 1).any((1, 2)).mean() > 0.7  # a cosmic ray may miss the stamp, or hit the source
    near = slice(MIDDLE - 3, MIDDLE + 4)
    assert (images[:, near, near] == 1).all()


def test_without_defects_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COSMIC_RAY", "BAD_COLUMN", "CHIP_EDGE"):
        monkeypatch.setattr(defects, name, 0.0)
    images = np.random.default_rng(1).normal(0, 1, (10, SDSS.size, SDSS.size)).astype(np.float32)
    before = images.copy()
    defects.add_defects(np.random.default_rng(3), SDSS, exposures(SDSS, 2), images)
    np.testing.assert_array_equal(images, before)


def test_a_saturated_star_is_clipped_and_bleeds_along_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COSMIC_RAY", "BAD_COLUMN", "CHIP_EDGE"):
        monkeypatch.setattr(defects, name, 0.0)
    images = np.zeros((5, SDSS.size, SDSS.size), np.float32)
    images[0, MIDDLE, MIDDLE] = 1e12
    defects.add_defects(np.random.default_rng(3), SDSS, exposures(SDSS, 1), images)
    full = images.max()
    assert 0 < full < 1e12
    y, x = np.nonzero(images[0] == full)
    assert len(x) > 5
    assert min(np.ptp(x), np.ptp(y)) == 0  # one line of pixels
