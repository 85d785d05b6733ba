"""The published claims: differences, their errors and verdicts, and the table of docs/models.md."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import claims  # noqa: E402


def one(macro_f1: float, recall: float = 0.5) -> dict[str, Any]:
    scores = {"macro_f1": macro_f1, "macro_f1_68": [macro_f1 - 0.03, macro_f1 + 0.03]}
    return {
        "at_the_end": scores, "after_stamps": {"3": scores},
        "per_class": {"a": {"recall": recall, "objects": 25}, "b": {"recall": 0.9, "objects": 100}},
    }  # fmt: skip


GRID = {"A": [one(0.5), one(0.6)], "B": [one(0.4), one(0.4)], "C": [one(0.3)]}


def test_seeds_scatter_and_single_runs_have_all_of_it() -> None:
    assert claims.scatter(GRID, "macro_f1", 0) == pytest.approx(0.05)  # one of two degrees of freedom has 0.005
    assert claims.measured(GRID, "A", "macro_f1", 0) == pytest.approx((0.55, math.hypot(0.03, 0.05 / math.sqrt(2))))
    assert claims.measured(GRID, "C", "macro_f1", 3) == pytest.approx((0.3, math.hypot(0.03, 0.05)))


def test_a_recall_is_as_sure_as_its_class_is_large() -> None:
    assert claims.value(one(0.5), "least", 0) == pytest.approx((0.5, 0.1))
    spread, error = claims.value(one(0.5), "spread", 0)
    assert (spread, error) == pytest.approx((0.4, math.hypot(0.1, 0.03)))
    assert claims.value(one(0.5, recall=0.0), "least", 0)[1] > 0  # none of 25 does not prove that there are none


@pytest.mark.parametrize(
    ("difference", "said"), [(0.19, "not decided"), (0.21, "**holds**"), (-0.21, "**does not hold**")]
)
def test_less_than_twice_the_error_decides_nothing(difference: float, said: str) -> None:
    assert claims.verdict(difference, 0.1) == said


def test_a_line_says_which_way_the_claim_goes() -> None:
    more = claims.line(GRID, claims.Comparison("up", "A", "C"))
    less = claims.line(GRID, claims.Comparison("down", "A", "C", more=False))
    assert more.startswith("| up | macro-F1 | A 0.550; C 0.300 | +0.250 ± 0.0")
    assert more.endswith("**holds** |")
    assert less.endswith("**does not hold** |")


def test_the_table_of_the_docs_is_made_from_the_committed_runs() -> None:
    grid = json.loads(claims.QUICK.read_text())
    text = (ROOT / "docs" / "models.md").read_text()
    assert claims.table(grid) in text
    for score, stamps in (("macro_f1", 0), ("macro_f1", 3), ("accuracy", 0)):
        assert f"{claims.scatter(grid, score, stamps):.3f}" in text
