"""Scores against sums by hand, and sequences cut as a stream shows them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from data_tools import made
from model_tools import info, lively, write
from sklearn import metrics as sklearn_metrics

from skyheed.classifier import cli, serving
from skyheed.classifier.errors import ModelError
from skyheed.classifier.evaluation import evaluate, report, scores
from skyheed.classifier.history import History
from skyheed.classifier.models import priors
from skyheed.classifier.models.checkpoint import Calibration, Info
from skyheed.classifier.models.convention.network import Config
from skyheed.classifier.prediction import Needs, Prediction
from skyheed.classifier.serving import Served, choose
from skyheed.classifier.training import dataset
from skyheed.classifier.training.dataset import Dataset


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Counting:
    """Says class 0 with a probability that grows with the stamps it sees, and remembers what it saw."""

    def __init__(self) -> None:
        self.info: Info = info(Config())
        self.needs = Needs(span=3)
        self.seen: list[History] = []

    def classify(self, sequences: Sequence[History]) -> list[Prediction]:
        self.seen += sequences
        first = [min(0.1 * len(s.mjd), 0.97) for s in sequences]
        return [Prediction(np.array([p, *[(1 - p) / 3] * 3], np.float32)) for p in first]


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


def test_the_calibration_error_does_not_depend_on_the_order_of_the_objects() -> None:
    truth = np.arange(300) * 2 // 300  # an archive in the order of its classes
    same = np.tile([0.55, 0.45], (300, 1))
    shuffled = np.random.default_rng(1).permutation(300)
    assert scores.calibration_error(truth, same) == pytest.approx(0.05)
    truth, p = some_answers(300)
    p = np.round(p, 1) / np.round(p, 1).sum(1, keepdims=True)  # answers of which many are equal
    in_order = np.argsort(truth)
    found = [scores.calibration_error(truth[o], p[o]) for o in (in_order, in_order[::-1], shuffled)]
    assert found == pytest.approx([found[0]] * 3, abs=1e-12)
    expected = [scores.calibrated_error(p[o]) for o in (in_order, shuffled)]
    assert expected[0] == pytest.approx(expected[1], abs=1e-12)


def test_without_equal_answers_the_calibration_error_is_that_of_bins_of_equal_mass() -> None:
    truth, p = some_answers(137)
    top, right = p.max(1), p.argmax(1) == truth
    bins = np.array_split(np.argsort(top), 13)
    assert scores.calibration_bins(truth, p) == [(top[b].mean(), right[b].mean(), len(b)) for b in bins]
    by_hand = sum(abs(top[b].mean() - right[b].mean()) * len(b) for b in bins) / 137
    assert scores.calibration_error(truth, p) == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("objects", [30, 100, 935])
def test_the_expected_calibration_error_is_that_of_calibrated_answers(objects: int) -> None:
    p = np.random.default_rng(5).dirichlet([1, 1, 1, 1], objects)
    rng = np.random.default_rng(6)
    labels = (rng.random((200, objects, 1)) > p.cumsum(1)[None, :, :3]).sum(2)
    by_hand = np.mean([scores.calibration_error(y, p) for y in labels])
    assert scores.calibrated_error(p) == pytest.approx(by_hand, rel=0.1)
    assert scores.with_intervals(labels[0], p)["ece_expected"] == pytest.approx(by_hand, rel=0.1)


def test_a_sharpened_answer_is_far_above_its_expected_calibration_error() -> None:
    truth, p = some_answers(935)
    sharp = scores.scores(truth, p**4 / (p**4).sum(1, keepdims=True))
    assert sharp["ece"] > 4 * sharp["ece_expected"]


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


@pytest.mark.parametrize(("length", "sure"), [(7, 0.0), (8, 1.0), (10, 1.0)])
def test_the_last_stamps_of_a_sequence_are_judged_too(length: int, sure: float) -> None:
    # 0.1 a stamp passes 0.75 at 8, which is the last one of eight
    found = evaluate.until_sure(Counting(), made([length]), np.array([0]), np.array([0]))["AGN"]
    assert found["share_sure"] == sure
    assert found.get("median_stamps") == {7: None, 8: 8, 10: 9}[length]


def test_a_sequence_of_two_stamps_is_judged_at_its_end() -> None:
    model = Counting()
    evaluate.until_sure(model, made([2]), np.array([0]), np.array([0]))
    assert [len(s.mjd) for s in model.seen] == [1, 2]


def test_a_class_that_the_model_does_not_know_is_one_sentence() -> None:
    data, model = made([5] * 8), Counting()
    strange = replace(data, true_class=["TDE", *data.true_class[1:]], label=["TDE", *data.label[1:]])
    with pytest.raises(ModelError, match=r"class TDE, but the model knows AGN, SNIa, Variable, SNOther: leave"):
        evaluate.report(model, strange, np.arange(8))
    with pytest.raises(ModelError, match="class TDE"):
        evaluate.class_prior("train", strange, True, model.info)
    assert not model.seen


def test_no_object_to_evaluate_is_one_sentence() -> None:
    nothing = np.array([], np.int64)
    for made_by in (evaluate.report, evaluate.full_report):
        with pytest.raises(ModelError, match="there are no objects to evaluate"):
            made_by(Counting(), made([5] * 8), nothing)


def test_the_prior_comes_as_numbers_or_from_the_training_objects() -> None:
    data, classes = made([5] * 40), Counting().info.classes
    counts = np.bincount([classes.index(data.label[i]) for i in data.choose("train", True)], minlength=4)
    np.testing.assert_allclose(evaluate.class_prior("train", data, True, info(Config(), classes=classes)), counts)
    given = evaluate.class_prior("1,1,2,4", data, True, info(Config(), classes=classes))
    np.testing.assert_allclose(given, [1, 1, 2, 4])


def test_another_prior_shifts_the_odds_and_nothing_else(tmp_path: Path) -> None:
    config, data = Config(), made([6])
    model = Served(lively(config), info(config, calibration=Calibration()), choose("cpu", "float32"))
    before = evaluate.at_the_end(model, data, np.array([0]))[0]
    model.info = priors.assuming(model.info, (0.5, 0.5, 1.0, 2.0))
    after = evaluate.at_the_end(model, data, np.array([0]))[0]
    np.testing.assert_allclose(after / after[0], before / before[0] * [1, 1, 2, 4], rtol=1e-4)


def test_missing_observations_leave_fewer_stamps() -> None:
    model = Counting()
    evaluate.missing(model, made([20]), np.array([0]), np.array([0]), (0.0, 0.9))
    assert [len(s.mjd) for s in model.seen] == [20, 2]


def test_missing_observations_have_intervals_and_are_the_same_for_every_model() -> None:
    data, indices, truth = made([20] * 24), np.arange(24), np.arange(24) % 4
    first, second = Counting(), Counting()
    found = [evaluate.missing(model, data, indices, truth, (0.0, 0.4)) for model in (first, second)]
    assert set(found[0]) == {"0.0", "0.4"}
    for s in found[0].values():
        assert s["macro_f1_68"][0] <= s["macro_f1"] <= s["macro_f1_68"][1]
    assert [s.mjd.tolist() for s in first.seen] == [s.mjd.tolist() for s in second.seen]


def test_kept_tokens_make_no_difference_to_a_report(tmp_path: Path) -> None:
    data = made([7, 4])
    config = Config()
    served = serving.load(write(tmp_path), survey="sdss", precision="float32", threads=1)
    whole = Served(lively(config), info(config), choose("cpu", "float32"))
    cuts = [[1, 3, 7], [2, 4]]
    for a, b in zip(
        evaluate.answers(served, data, np.array([0, 1]), cuts),
        evaluate.answers(whole, data, np.array([0, 1]), cuts), strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("config", [Config(variant="paper", time="position"), Config(cnn="2d", time="position")])
def test_other_forms_of_the_model_are_evaluated_too(tmp_path: Path, config: Config) -> None:
    model = evaluate.loaded(str(write(tmp_path, config)), "sdss", "cpu", "auto")
    alone = model.classify([made([5]).history(0)])[0].probabilities
    np.testing.assert_allclose(alone.sum(), 1, atol=1e-6)
    with pytest.raises(ModelError, match="not for ztf"):
        evaluate.loaded(str(tmp_path), "ztf", "cpu", "auto")


def strict(path: Path) -> dict[str, Any]:
    """JSON as other languages read it: without NaN."""

    def refused(word: str) -> None:
        raise AssertionError(f"{path} holds {word}")

    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=refused)
    return found


@pytest.fixture(scope="module")
def whole_data() -> Dataset:
    return made([3 + n % 12 for n in range(96)])


@pytest.fixture(scope="module")
def whole_report(whole_data: Dataset) -> dict[str, Any]:
    return evaluate.full_report(Counting(), whole_data, np.arange(96))


def test_the_report_folder_holds_everything(tmp_path: Path, whole_data: Dataset, whole_report: dict[str, Any]) -> None:
    report.write(whole_report | {"command": "skyheed evaluate x y"}, tmp_path, whole_data)
    pictures = ["failures.png", "missing.png", "scores.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", *pictures[:2], "report.json", pictures[2]]
    page, raw = (tmp_path / "README.md").read_text(), strict(tmp_path / "report.json")
    assert "sdss, simulated, 96 objects" in page
    assert "skyheed evaluate x y" in page
    assert set(raw["after_days"]) == {str(d) for d in evaluate.DAYS}
    assert set(raw["after_stamps"]) == {"1", "2", "3", "5", "6", "8", "12"}
    assert raw["at_the_end"]["objects"] == 96 == np.sum(raw["confusion"])
    assert len(raw["worst"]) == 12


def test_every_cut_has_every_score_and_the_page_shows_three_confusions(whole_report: dict[str, Any]) -> None:
    found = whole_report
    for s in [found["at_the_end"], *found["after_stamps"].values(), *found["after_days"].values()]:
        assert {"accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier", "ece", "ece_expected"} <= set(s)
    for s in [*found["after_stamps"].values(), *found["after_days"].values()]:
        assert np.sum(s["confusion"]) == s["objects"]
        assert set(s["per_class"]) == set(found["classes"])
    page = report.text(found)
    for name in ("3 stamps", "12 stamps", "all stamps"):
        assert f"## Confusion, {name} (rows: truth)" in page
    end = found["at_the_end"]
    assert f"{end['ece']:.3f} ({end['ece_expected']:.3f})" in page


def test_a_score_that_does_not_exist_is_null_and_the_page_leaves_it_empty(tmp_path: Path) -> None:
    data = made([5] * 40)
    found = evaluate.full_report(Counting(), data, np.arange(0, 40, 2))  # only AGN and Variable
    assert found["per_class"]["SNIa"] == {"objects": 0, "precision": None, "recall": None, "f1": None}
    assert found["per_class"]["Variable"]["precision"] is None
    assert evaluate.report(Counting(), data, np.arange(0, 40, 2)).items() <= found.items()
    assert json.loads(json.dumps(found)) == found  # a checkpoint is read as it was written
    found["at_the_end"]["log_loss"] = float("nan")
    report.write(found, tmp_path)
    raw = strict(tmp_path / "report.json")
    assert raw["at_the_end"]["log_loss"] is None
    assert raw["per_class"]["SNIa"]["f1"] is None
    page = report.text(raw)
    assert "| SNIa | 0 |  |  |  |" in page
    assert "None" not in page
    assert page == (tmp_path / "README.md").read_text()
    report.write(raw, tmp_path / "again")


def titles(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """File name -> title, of every picture that is saved from now on."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    found: dict[str, str] = {}
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: found.update({path.name: self.get_suptitle()}))
    return found


def test_every_picture_names_the_model_and_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_data: Dataset, whole_report: dict[str, Any]
) -> None:
    found = titles(monkeypatch)
    beside = {"label": "test 1, time both", "against": {"other 2, time position": whole_report}}
    report.write(whole_report | beside, tmp_path, whole_data)
    assert set(found) == {"scores.png", "missing.png", "comparison.png", "failures.png"}
    for name, title in found.items():
        assert "test 1" in title, name
        assert "sdss, simulated, 96 objects" in title, name
    assert "other 2, time position" in found["comparison.png"]


def entered(monkeypatch: pytest.MonkeyPatch, data: Dataset, *arguments: object) -> Any:
    """What `skyheed evaluate` does with this data as its archive."""
    monkeypatch.setattr(dataset, "load", lambda archive, bands="": dataset.only(data, bands))
    return CliRunner().invoke(cli.evaluate, [str(a) for a in arguments])


def test_models_are_drawn_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for time in ("days", "position"):
        write(tmp_path / time, Config(variant="stream", cnn="2d", time=time), version=time[0])  # type: ignore[arg-type]
    data = made([4 + n % 3 for n in range(24)])
    done = entered(
        monkeypatch, data, tmp_path / "days", "sky", "-o", tmp_path / "out", "--split", "all", "--all-labels",
        "--against", tmp_path / "position",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000
    raw = strict(tmp_path / "out" / "report.json")
    assert raw["label"] == "test d, time days"
    assert list(raw["against"]) == ["test p, time position"]
    other = raw["against"]["test p, time position"]
    for series in ("after_stamps", "missing"):
        assert list(other[series]) == list(raw[series])
        assert all(len(s["macro_f1_68"]) == 2 for s in other[series].values())
    # the order of the few stamps is all that one knows of the time, so that the answers differ
    assert other["missing"]["0.0"]["log_loss"] != raw["missing"]["0.0"]["log_loss"]
    for name in (raw["label"], *raw["against"]):
        assert f"macro-F1, {name}" in done.output
    assert f"{other['missing']['0.4']['macro_f1']:.3f}" in done.output.split("side by side")[1]


def test_what_cannot_be_compared_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, three = write(tmp_path / "one"), tmp_path / "three"
    write(three, Config(classes=3), classes=("AGN", "SN", "Variable"), calibration=Calibration())
    data = made([5] * 8)

    def said(*arguments: object) -> str:
        return str(entered(monkeypatch, data, one, "sky", "-o", tmp_path / "out", *arguments).exception)

    assert "compare models of the same classes" in said("--against", three)
    assert "given twice" in said("--against", one)
    assert "no confirmed object with stamps in its split moon: choose another with --split" in said("--split", "moon")
    unlabelled = replace(data, confirmed=np.zeros(8, bool))
    refused = entered(monkeypatch, unlabelled, one, "sky", "-o", tmp_path / "out").exception
    assert isinstance(refused, ModelError)
    assert "--all-labels" in str(refused)


def test_models_of_the_same_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [str(write(tmp_path / name, Config(), bands=bands)) for name, bands in (("a", "ugriz"), ("b", "g"))]
    data = made([5] * 8)
    data.band[:5], data.band[5:] = 0, 1  # the first object is not seen in g
    monkeypatch.setattr(dataset, "load", lambda archive, bands="": dataset.only(data, bands))
    found = evaluate.entries(folders, "sky", "cpu", "float32")
    assert [entry.label for entry in found] == [f"test 1, time both ({folder})" for folder in folders]
    assert evaluate.common(found, "all", False).tolist() == [1, 2, 3, 4, 5, 6, 7]
