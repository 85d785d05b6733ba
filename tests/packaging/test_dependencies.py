"""docs/dependencies.md names what pyproject.toml asks for, with the same ranges, and what the code imports is there."""

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TEXT = (ROOT / "docs" / "dependencies.md").read_text()
ROW = re.compile(r"^\| ([A-Za-z0-9-]+) \| (\S+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def wanted() -> dict[str, str]:
    """Distribution -> range, of all extras but our own."""
    project = PYPROJECT["project"]
    entries = [*project["dependencies"], *(e for extra in project["optional-dependencies"].values() for e in extra)]
    found = {}
    for entry in entries:
        name, _, least = entry.partition(">=")
        if not name.startswith("skyheed"):
            found[name.partition("[")[0]] = f">={least}"
    return found


def described() -> dict[str, tuple[str, str, str]]:
    return {row[1]: (row[2], row[3], row[4]) for row in ROW.finditer(TEXT) if row[1] != "distribution"}


def test_the_table_is_what_pyproject_asks_for() -> None:
    ranges = {name: row[0] for name, row in described().items()}
    assert {name: ranges.get(name) for name in wanted()} == wanted()
    assert set(ranges) - set(wanted()) == {
        "hiredis",
        "markupsafe",
        "pydantic",
    }  # come with redis[hiredis], jinja2, fastapi


def test_every_dependency_has_a_reason_and_what_would_replace_it() -> None:
    for name, (_, reason, instead) in described().items():
        assert len(reason) > 3, name
        assert instead, name


def test_what_is_imported_is_described() -> None:
    """Every module that the project imports comes with Python, is ours, or belongs to a distribution of the table
    or to one that those bring with them."""
    owners = packages_distributions()
    named = {plain(name) for name in described()}
    named |= {needed for name in named for needed in needs(name)}
    for module, path in sorted(imported().items()):
        distributions = {plain(name) for name in owners.get(module, [])}
        assert not distributions or distributions & named, f"{path} imports {module} of {distributions}"


def needs(name: str) -> set[str]:
    """What a distribution brings with it, such as starlette with fastapi."""
    try:
        entries = requires(name) or []
    except PackageNotFoundError:
        return set()
    return {plain(re.split(r"[^A-Za-z0-9._-]", e)[0]) for e in entries if "extra ==" not in e}


def plain(name: str) -> str:
    """As PyPI compares names."""
    return re.sub("[-_.]+", "-", name).lower()


def imported() -> dict[str, Path]:
    """Module -> a file that imports it."""
    found: dict[str, Path] = {}
    for folder in ("broker", "classifier", "skyheed", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                found |= {name.split(".")[0]: path for name in names}
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, "skyheed", ""}}


def test_pins_are_in_their_ranges() -> None:
    pins = dict(
        line.strip().lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    for name, least in wanted().items():
        pin = pins.get(name.lower())
        if pin is not None:
            assert numbers(pin) >= numbers(least.removeprefix(">=")), name


def numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)][:3]
