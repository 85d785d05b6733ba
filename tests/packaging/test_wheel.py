"""The wheel holds what the program reads at run time."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LARGEST_WHEEL = 25 * 10**6  # bytes, weights included
HEAVY = ("torch", "redis", "confluent_kafka", "numpy", "fastavro", "pyarrow", "fastapi", "astropy", "matplotlib")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)],
        check=True, timeout=120, capture_output=True,
    )  # fmt: skip
    [wheel] = folder.glob("skyheed-*.whl")
    return wheel


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize(
    "pattern",
    [
        "broker/state/lua/**/*.lua",
        "schemas/**/*.avsc",
        "classifier/weights/**/*.*",
        "classifier/configs/*.toml",
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


def test_the_wheel_is_small_enough_for_an_index(wheel: Path) -> None:
    assert wheel.stat().st_size <= LARGEST_WHEEL


def test_help_loads_nothing_that_takes_time() -> None:
    """Which is what keeps it under 0.3 s; the time itself depends on what else the machine does."""
    asked = "import sys; sys.argv = ['skyheed', '--help']\nfrom skyheed.broker.cli import main\ntry: main()\n"
    asked += f"except SystemExit: pass\nprint([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=100)
    assert "ingest" in said.stdout
    assert said.stderr.splitlines()[-1] == "[]"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_installed_wheel_runs_the_demo(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, with the packages of the extras and without this checkout."""
    venv.create(tmp_path / "own", with_pip=False)
    own = tmp_path / "own" / "bin" / "python"
    site = subprocess.check_output(
        [own, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True
    ).strip()
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, str(wheel)]
    subprocess.run(install, check=True, timeout=120)
    packages = {sysconfig.get_paths()["purelib"], *(path for path in sys.path if path.endswith("site-packages"))}
    Path(site, "extras.pth").write_text("\n".join(sorted(packages)))
    environ = {"PATH": os.defpath, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    asked = [own, "-c", "import skyheed; print(skyheed.__file__)"]
    where = subprocess.check_output(asked, text=True, env=environ, cwd=tmp_path)
    assert where.startswith(site)
    ran = subprocess.run(
        [own, "-m", "skyheed.broker.cli", "demo", "--objects", "16"],
        cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout.splitlines()[-1])["objects"] == 16
