"""The tutorials' code cells run, in the order of the page; the site (`make docs`) shows what they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(?::[^\n]*\n)*(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", sorted(TUTORIALS.glob("*.md")), ids=lambda page: page.stem)
def test_the_cells_of_a_tutorial_run(page: Path, tmp_path: Path) -> None:
    cells = CELL.findall(page.read_text())
    assert len(cells) > 1
    script = tmp_path / "cells.py"
    script.write_text("\n".join(cells))
    environ = os.environ | {"TMPDIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.strip()
