"""The demo's scores and picture."""

from pathlib import Path

import numpy as np
import pytest

from skyheed.broker.local import demo_report

CLASSES = ("AGN", "SNIa", "Variable", "SNOther")


def test_scores_of_a_known_matrix() -> None:
    truth = ["AGN", "AGN", "SNIa", "Variable"]
    answer = ["AGN", "SNIa", "SNIa", "Variable"]
    matrix = demo_report.confusion(truth, answer, CLASSES)
    found = demo_report.score("the end", matrix)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert found.accuracy == 0.75
    # F1: AGN 2/3, SNIa 2/3, Variable 1; SNOther does not occur and does not count
    assert found.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_no_objects_give_no_score() -> None:
    found = demo_report.score("3 stamps", np.zeros((4, 4), np.int64))
    assert np.isnan(found.accuracy)
    assert np.isnan(found.macro_f1)


def test_latency_percentiles() -> None:
    assert demo_report.latency(list(range(101))) == {"p50": 50.0, "p99": 99.0}


def test_the_text_names_every_class_and_cutoff() -> None:
    matrix = np.eye(4, dtype=np.int64)
    text = demo_report.text({"convention": [demo_report.score("3 stamps", matrix)]})
    assert "3 stamps" in text
    assert "100.0%" in text
    assert "convention" not in text
    shown = demo_report.matrix_text(matrix, CLASSES)
    assert all(name in shown for name in CLASSES)
    assert demo_report.matrix_text(matrix, CLASSES, "vector").splitlines()[0].strip() == "vector"


def test_several_models_stand_in_one_table() -> None:
    good, bad = np.eye(4, dtype=np.int64), np.eye(4, dtype=np.int64)[::-1]
    scores = {
        "convention": [demo_report.score("3 stamps", good), demo_report.score("the last stamp", good)],
        "vector": [demo_report.score("3 stamps", bad), demo_report.score("the last stamp", good)],
    }
    head, *lines = demo_report.text(scores).splitlines()
    assert head.split() == ["model", "after", "objects", "accuracy", "macro-F1"]
    assert [line.split()[0] for line in lines] == ["convention"] * 2 + ["vector"] * 2
    assert [line.split()[-1] for line in lines] == ["100.0%", "100.0%", "0.0%", "100.0%"]
    assert demo_report.summary(scores["vector"]) == {"accuracy": 1.0, "macro_f1": 1.0}


def test_the_picture_is_written(tmp_path: Path) -> None:
    track = demo_report.Track(
        "object", "SNIa", [0.0, 3.0], np.array([[0.2, 0.4, 0.2, 0.2], [0, 1, 0, 0]], np.float32),
        np.random.default_rng(1).normal(size=(3, 32, 32)).astype(np.float32), ["g 0 d", "r 0 d", "i 3 d"],
    )  # fmt: skip
    path = tmp_path / "demo.png"
    demo_report.plot(path, [track, track], np.eye(4, dtype=np.int64), CLASSES, "a title")
    assert path.read_bytes().startswith(b"\x89PNG")
