"""The picture of what a model gets wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from skyheed.classifier.sky import simulate

SOURCE = Path(__file__).resolve().parents[3] / "benchmarks" / "failures.py"


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("failures") / "sky"
    simulate("ztf", 8, 3, path, seasons=1, balanced=True, processes=1, progress=False)
    return path


def run(*given: str | Path) -> list[str]:
    done = subprocess.run([sys.executable, str(SOURCE), *map(str, given)], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("without", ["images", "photometry", "context"])
def test_every_object_has_a_row(sky: Path, tmp_path: Path, without: str) -> None:
    *recalls, drawn = run(tmp_path / "wall.png", sky, "--epochs", "2", "--all", "--without", without)
    assert [line.split(":")[0] for line in recalls] == ["AGN", "SN", "Variable"]
    assert sum(int(line.split(" of ")[1].split()[0]) for line in recalls) == 8
    assert drawn.endswith(": 8 objects")
    assert (tmp_path / "wall.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_ones_alone(sky: Path, tmp_path: Path) -> None:
    said = run(tmp_path / "wall.png", sky)
    right = sum(int(line.split(": ")[1].split(" of ")[0]) for line in said[:3])
    assert (tmp_path / "wall.png").exists() == (right < 8)
    assert len(said) == (3 if right == 8 else 4)
