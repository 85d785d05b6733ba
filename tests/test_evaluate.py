"""Scores against sums by hand, and sequences cut as a stream shows them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from data_tools import made
from model_tools import info, lively, write
from sklearn import metrics as sklearn_metrics

from classifier import evaluate, report, scores
from classifier.checkpoint import Calibration, Info
from classifier.convention import Config
from classifier.dataset import Dataset
from classifier.errors import ModelError
from classifier.evaluate import Whole
from classifier.predictor import Prediction, Predictor
from classifier.sequence import StampSequence


class Counting:
    """Says class 0 with a probability that grows with the stamps it sees, and remembers what it saw."""

    def __init__(self) -> None:
        self.info: Info = info(Config())
        self.seen: list[StampSequence] = []

    def classify(self, sequences: Sequence[StampSequence]) -> list[Prediction]:
        self.seen += sequences
        first = [min(0.1 * len(s.mjd), 0.97) for s in sequences]
        return [Prediction(np.array([p, *[(1 - p) / 3] * 3], np.float32), {}) for p in first]


def some_answers(objects: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([1, 1, 1, 1], objects)
    truth = np.array([rng.choice(4, p=row) for row in p])
    return truth, p


def test_scores_are_those_of_scikit_learn() -> None:
    truth, p = some_answers()
    found, answer = scores.scores(truth, p), p.argmax(1)
    assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, answer), abs=1e-4)
    assert found["balanced_accuracy"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(truth, answer), abs=1e-4)
    assert found["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(truth, answer, average="macro"), abs=1e-4)
    assert found["log_loss"] == pytest.approx(sklearn_metrics.log_loss(truth, p), abs=1e-4)


def test_a_class_that_never_occurs_is_left_out_of_the_means() -> None:
    matrix = scores.confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 4)
    assert scores.balanced_accuracy(matrix) == pytest.approx(0.75)
    assert scores.macro_f1(matrix) == pytest.approx(2 / 3)


def test_brier_by_hand() -> None:
    assert scores.brier(np.array([1]), np.array([[0.2, 0.8]])) == pytest.approx(0.08)


def test_honest_probabilities_are_calibrated_and_sharpened_ones_are_not() -> None:
    truth, p = some_answers(4000)
    sharp = p**4 / (p**4).sum(1, keepdims=True)
    assert scores.calibration_error(truth, p) < 0.04
    assert scores.calibration_error(truth, sharp) > 0.15


def test_intervals_hold_the_score_and_shrink_with_objects() -> None:
    few, many = (scores.with_intervals(*some_answers(n)) for n in (50, 2000))
    for found in (few, many):
        low, high = found["accuracy_68"]
        assert low <= found["accuracy"] <= high
    assert np.ptp(many["accuracy_68"]) < np.ptp(few["accuracy_68"]) / 3


def test_cuts_are_the_newest_stamps_of_the_beginning() -> None:
    data, model = made([120, 5]), Counting()
    p = evaluate.answers(model, data, np.array([0, 1]), [[2, 120], [5]])
    assert [len(s.mjd) for s in model.seen] == [2, 5, 99]
    assert model.seen[-1].mjd[0] == data.mjd[21]
    assert p[0].shape == (2, 4)
    assert p[1][0, 0] == pytest.approx(0.5)


def test_days_count_from_the_first_stamp() -> None:
    data = made([4])
    data.mjd[:] = [100.0, 100.5, 103.0, 180.0]
    model = Counting()
    evaluate.after_days(model, data, np.array([0]), (0, 1, 4, 256))
    assert [len(s.mjd) for s in model.seen] == [1, 2, 3, 4]


def test_only_objects_with_as_many_stamps_are_scored_at_a_cut() -> None:
    found = evaluate.after_stamps(Counting(), made([3, 8, 1]), np.array([0, 1, 2]), (1, 3, 8))
    assert {n: rows.tolist() for n, (rows, _) in found.items()} == {1: [0, 1, 2], 3: [0, 1], 8: [1]}


def test_sure_means_from_then_on() -> None:
    data = made([12, 12])
    found = evaluate.until_sure(Counting(), data, np.array([0, 1]), np.array([0, 1]))
    # 0.1 a stamp passes 0.75 at 8: seen at 9; the other class never
    assert found["all"]["share_sure"] == 0.5
    assert found["AGN"]["median_stamps"] == 9
    assert found["AGN"]["median_days"] == pytest.approx(data.mjd[8] - data.mjd[0], abs=0.01)
    assert found["SNIa"] == {"objects": 1, "share_sure": 0.0}


def test_the_prior_comes_as_numbers_or_from_the_training_objects() -> None:
    data, classes = made([5] * 40), Counting().info.classes
    counts = np.bincount([classes.index(data.label[i]) for i in data.choose("train", True)], minlength=4)
    np.testing.assert_allclose(evaluate.mixture("train", data, True, classes), counts * 4 / counts.sum())
    np.testing.assert_allclose(evaluate.mixture("1,1,2,4", data, True, classes), [0.5, 0.5, 1, 2])
    for wrong in ("1,2,3", "1,2,3,x", "1,2,3,0"):
        with pytest.raises(ModelError, match="does not give each of"):
            evaluate.mixture(wrong, data, True, classes)


def test_another_prior_shifts_the_odds_and_nothing_else(tmp_path: Path) -> None:
    config, data = Config(), made([6])
    model = Whole(lively(config), info(config, calibration=Calibration()))
    before = evaluate.at_the_end(model, data, np.array([0]))[0]
    evaluate.assume(model, (0.5, 0.5, 1.0, 2.0))
    after = evaluate.at_the_end(model, data, np.array([0]))[0]
    np.testing.assert_allclose(after / after[0], before / before[0] * [1, 1, 2, 4], rtol=1e-4)


def test_missing_observations_leave_fewer_stamps() -> None:
    model = Counting()
    evaluate.missing(model, made([20]), np.array([0]), np.array([0]), (0.0, 0.9))
    assert [len(s.mjd) for s in model.seen] == [20, 2]


def test_kept_tokens_make_no_difference_to_a_report(tmp_path: Path) -> None:
    data = made([7, 4])
    config = Config()
    served = Predictor(write(tmp_path), survey="sdss", precision="float32", threads=1)
    whole = Whole(lively(config), info(config))
    cuts = [[1, 3, 7], [2, 4]]
    for a, b in zip(
        evaluate.answers(served, data, np.array([0, 1]), cuts),
        evaluate.answers(whole, data, np.array([0, 1]), cuts), strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("config", [Config(variant="paper", time="position"), Config(cnn="2d", time="position")])
def test_models_that_cannot_be_served_can_be_evaluated(tmp_path: Path, config: Config) -> None:
    model, how = evaluate.loaded(str(write(tmp_path, config)), "sdss", "cpu", "auto")
    assert "whole sequences" in how
    alone = model.classify([StampSequence(*_one(made([5]), 0))])[0].probabilities
    np.testing.assert_allclose(alone.sum(), 1, atol=1e-6)
    with pytest.raises(ModelError, match="not for ztf"):
        evaluate.loaded(str(tmp_path), "ztf", "cpu", "auto")


def _one(data: Dataset, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shown = data.sequence(index)
    return shown.mjd, shown.band, shown.stamps


def test_the_report_folder_holds_everything(tmp_path: Path) -> None:
    data = made([3 + n % 9 for n in range(48)])
    found = evaluate.full_report(Counting(), data, np.arange(48))
    found["command"] = "skyheed evaluate x y"
    report.write(found, tmp_path, data)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "failures.png", "report.json", "scores.png"]
    page, raw = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "report.json").read_text())
    assert "sdss, simulated, 48 objects" in page
    assert "skyheed evaluate x y" in page
    assert set(raw["after_days"]) == {str(d) for d in evaluate.DAYS}
    assert set(raw["after_stamps"]) == {"1", "2", "3", "5", "6", "8"}
    assert raw["at_the_end"]["objects"] == 48 == np.sum(raw["confusion"])
    assert len(raw["worst"]) == 12
