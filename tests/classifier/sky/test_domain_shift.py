"""Skies in other conditions and with other class shares, and parts of archives that have such shares."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skyheed.classifier.archives.convert import convert
from skyheed.classifier.archives.mixture import counts, read_mixture, thinned, written
from skyheed.classifier.archives.reader import CLASSES, Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.sky import simulate
from skyheed.classifier.sky.domain_shift import NO_SHIFT, Shift, read_shift, survey_under
from skyheed.classifier.sky.objects import Wish
from skyheed.classifier.sky.simulation import plan, simulate_object
from skyheed.classifier.sky.surveys import survey_named


def test_a_shift_is_read_and_written_alike() -> None:
    made = read_shift("noise=1.4,seeing=1.3,zero_point=0.05")
    assert made == Shift(1.4, 1.3, 0.05)
    assert str(made) == "noise=1.4,seeing=1.3,zero_point=0.05"
    assert str(NO_SHIFT) == ""
    assert read_shift("seeing=0.8") == Shift(seeing=0.8)


@pytest.mark.parametrize(
    "text", ["noise", "noise=", "moon=2", "noise=0", "noise=nan", "seeing=1,seeing=2", "zero_point=-1", ""]
)
def test_a_shift_that_cannot_be_is_one_sentence(text: str) -> None:
    with pytest.raises(ArchiveError) as caught:
        read_shift(text)
    assert "\n" not in str(caught.value)


def test_the_shifted_survey_has_other_bands_and_is_made_once() -> None:
    shift, plain = Shift(1.4, 1.3, 0.05), survey_named("ztf")
    other = survey_under("ztf", shift)
    assert other is survey_under("ztf", shift)
    assert survey_under("ztf") is plain
    for letter, band in plain.bands.items():
        assert other.bands[letter].seeing == pytest.approx(1.3 * band.seeing)
        assert other.bands[letter].sky_noise == pytest.approx(1.4 * band.sky_noise)
    assert other.calibration_error == pytest.approx(np.hypot(plain.calibration_error, 0.05))


def test_exposures_in_shifted_conditions_are_noisier_and_wider() -> None:
    rows = {}
    for name, shift in (("plain", NO_SHIFT), ("shifted", Shift(1.4, 1.3))):
        survey = survey_under("ztf", shift)
        made = [simulate_object(survey, 9, n, Wish("Variable", "Variable", True), 3)[1] for n in range(6)]
        rows[name] = {key: np.median(np.concatenate([m[key] for m in made])) for key in ("psf_fwhm", "sky_noise")}
    assert rows["shifted"]["psf_fwhm"] > 1.15 * rows["plain"]["psf_fwhm"]
    assert rows["shifted"]["sky_noise"] > 1.2 * rows["plain"]["sky_noise"]


def test_class_shares_of_a_simulation() -> None:
    shares = read_mixture("AGN=2,SNIa=1,Variable=6,SNOther=1")
    assert shares == {"AGN": 0.2, "SNIa": 0.1, "Variable": 0.6, "SNOther": 0.1}
    assert written(shares) == "AGN=0.2,SNIa=0.1,Variable=0.6,SNOther=0.1"
    wishes = plan(203, 1, balanced=False, mixture=shares)
    assert Counter(w.label for w in wishes) == counts(203, shares)
    assert sum(counts(203, shares).values()) == 203
    assert all(w.label == w.truth for w in wishes)
    with pytest.raises(ArchiveError, match="give one or the other"):
        plan(8, 1, balanced=True, mixture=shares)
    for text in ("AGN=-1", "AGN=0", "Comet=1", "AGN"):
        with pytest.raises(ArchiveError):
            read_mixture(text)


def test_without_a_mixture_the_plan_is_what_it_was() -> None:
    assert Counter(w.label for w in plan(10, 1, balanced=True)) == {"AGN": 3, "SNIa": 3, "Variable": 2, "SNOther": 2}
    assert Counter(w.label for w in plan(8249, 1, balanced=False))["Variable"] == 3225


def test_a_part_with_other_shares_is_as_large_as_can_be_and_always_the_same() -> None:
    rows: list[Any] = [
        {"object_id": f"o{n}", "class": CLASSES[n % 4], "split": "test" if n % 3 else "train"} for n in range(240)
    ]
    shares = read_mixture("AGN=0.25,Variable=0.5,SNIa=0.25")
    made = thinned(rows, shares)
    assert [r["object_id"] for r in made] == [r["object_id"] for r in thinned(rows[::-1], shares)][::-1]
    for split, each in (("train", 20), ("test", 40)):
        assert Counter(r["class"] for r in made if r["split"] == split) == {
            "AGN": each // 2, "Variable": each, "SNIa": each // 2
        }  # fmt: skip
    with pytest.raises(ArchiveError, match="has no SNIa"):
        thinned([r for r in rows if r["class"] != "SNIa"], shares)


def test_a_shifted_archive_says_so_and_its_parts_are_cut(tmp_path: Path) -> None:
    shift = Shift(1.4, 1.3)
    path = simulate(
        "ztf", 8, 3, tmp_path / "a", seasons=1, balanced=True, most=4, shift=shift, processes=1, progress=False
    )
    assert "--shift noise=1.4,seeing=1.3" in Archive(path).card["command"]
    assert "shifted" in (path / "README.md").read_text()
    assert convert(path, tmp_path / "b", "archive", every=2, most=1, progress=False) == 4
    part = Archive(tmp_path / "b")
    assert part.objects["stamps"].to_pylist() == [1] * 4
    assert "--every 2 --most 1" in part.card["command"]
    first = part.object_ids[0]
    whole, cut = Archive(path).extras(first, alerts_only=True), part.extras(first, alerts_only=True)
    assert whole is not None
    assert cut is not None
    assert cut.context == [whole.context[0]]
    with pytest.raises(ArchiveError, match="so --shift would do nothing"):
        simulate("ztf", 4, 3, tmp_path / "c", scenes=path, shift=shift, progress=False)
