"""The table of adaptation runs, from what runs wrote."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skyheed.classifier.training import adaptation_table

TRUTH = np.repeat(np.arange(4), 25)


def run(folder: Path, method: str, right: float, real: bool = False, objects: str = "o") -> Path:
    """A run whose model is right about a share of 100 objects of each archive that it was measured on."""
    folder.mkdir(parents=True)
    said = np.where(np.arange(100) % 25 < 25 * right, TRUTH, (TRUTH + 2) % 4)
    measured: dict[str, Any] = {
        "archive": "target", "survey": "ztf", "real": real, "classes": ["AGN", "SNIa", "Variable", "SNOther"],
        "objects": [f"{objects}{n}" for n in range(100)], "truth": TRUTH.tolist(),
        "first": (0.1 + 0.6 * np.eye(4)[said]).tolist(), "a_distance": {"all": [0.5, 0.1], "AGN": [0.2, 0.3]},
        "unsupervised": {"neighbourhood_density": 3.0}, "shares": [0.25] * 4,
    }  # fmt: skip
    (folder / "objective.json").write_text(json.dumps({"measured": [measured]}))
    protocol = {"training": {"protocol": {"objective": {"name": "adapt", "method": method}}}}
    (folder / "model.json").write_text(json.dumps(protocol))
    return folder


def test_a_table_of_paired_differences_over_seeds(tmp_path: Path) -> None:
    runs = {
        "source only": [run(tmp_path / "s1", "none", 0.6), run(tmp_path / "s2", "none", 0.64)],
        "better": [run(tmp_path / "b1", "dann", 0.8), run(tmp_path / "b2", "dann", 0.8)],
    }
    assert adaptation_table.write(runs, tmp_path)
    page = (tmp_path / adaptation_table.TABLE).read_text()
    assert (tmp_path / adaptation_table.FIGURE).stat().st_size > 5000
    first, second = (line for line in page.splitlines() if line.startswith(("| source", "| better")))
    assert "0.600 [" in first
    assert "0.640" in first
    assert "0.60 / 0.60 / 0.60 / 0.60" in first
    assert "+0.180 [" in second  # the mean of 0.20 and 0.16
    assert "AGN 0.20 ± 0.30" in second


def test_real_objects_are_scored_by_groups(tmp_path: Path) -> None:
    (rows,) = adaptation_table.read({"one": [run(tmp_path / "r", "none", 0.6, real=True)]}).values()
    truth, p = rows[0].said()
    assert set(truth) == {0, 1, 2}
    assert p.shape == (100, 3)
    assert adaptation_table.interval(truth, p)[0] == pytest.approx(
        (0.6 + 1.0 + 0.6) / 3
    )  # Ia and other SN are one group
    assert "recall AGN / SN / Variable" in adaptation_table.text({"target": rows})


def test_runs_on_different_objects_are_not_compared_and_others_have_no_table(tmp_path: Path) -> None:
    runs = {"a": [run(tmp_path / "a", "none", 0.6)], "b": [run(tmp_path / "b", "dann", 0.6, objects="p")]}
    with pytest.raises(ValueError, match="different objects"):
        adaptation_table.write(runs, tmp_path)
    (tmp_path / "plain").mkdir()
    assert not adaptation_table.write({"plain": [tmp_path / "plain"]}, tmp_path / "plain")
