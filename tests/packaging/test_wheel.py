"""The wheel holds what the program reads at run time."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)],
        check=True, timeout=120, capture_output=True,
    )  # fmt: skip
    [wheel] = folder.glob("skyheed-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize(
    "pattern",
    [
        "broker/state/lua/*.lua",
        "schemas/**/*.avsc",
        "classifier/weights/**/*.*",
        "**/py.typed",
        "broker/web/pages/*.html",
        "broker/web/static/**/*.*",
    ],
)
def test_data_files_are_in_the_wheel(names: set[str], pattern: str) -> None:
    wanted = {
        f"skyheed/{path.relative_to(ROOT)}"
        for package in ("broker", "classifier", "schemas")
        for path in ROOT.glob(pattern)
        if path.relative_to(ROOT).parts[0] == package and path.is_file()
    }
    assert wanted
    assert wanted <= names


def test_nothing_else_is_in_the_wheel(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.startswith("skyheed-")} == {"skyheed"}
