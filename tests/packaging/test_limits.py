"""docs/limits.md says what the code does: defaults, every limit of the broker, tests that exist."""

import importlib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from skyheed.broker.settings import Settings

ROOT = Path(__file__).parents[2]
UNITS = {"": 1, "s": 1, "days": 1, "KiB": 2**10, "MiB": 2**20}
LIMIT = re.compile(
    r"^(_?(?:(?:MAX|MOST|LARGEST|LONGEST|DEEPEST)(?:_[A-Z_]+)?|REMEMBERED|BATCH_BYTES|KEPT(?:_NEW|_IDS)?|(?:COSTLY_)?RATE|CLIENTS"
    r"|SCANNED|COUNTED|FRAMES|WAITING|LETTERS_KEPT|LETTERS_READ|SKY_POINTS))\b.*=",
    re.MULTILINE,
)
# ranges of settings, and what runs on one's own machine
ELSEWHERE = ("broker/settings_rules.py", "broker/local/")
NO_LIMITS = {
    "broker/waiting.py LONGEST_WAIT_S", "broker/replay.py LONGEST_SLEEP_S",  # our own pace
    "broker/sinks/lasair.py LONGEST_VERSION",  # the host's
    "broker/packets/stamps.py MOST_BYTES",  # of what is made together, for the cache of a core
    "broker/archive_packets.py MOST_LABELS", "broker/archive_packets.py MOST_LETTERS",  # of one's own table
    "broker/packets/avro_patterns.py _LONGEST_USUAL",  # longer ones are read otherwise
    "broker/packets/surveys/base.py _MAX_MAG", "broker/packets/points.py MAX_FLUX_NJY",
    "broker/state/nodes.py LARGEST_FAN", "broker/state/sequence.py _LARGEST_FLUX",
}  # fmt: skip


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "limits.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if row[0] != "what" and not row[0].startswith("---")]


def value_of(where: str) -> Any:
    if " " in where:
        path, name = where.split(" ")
        return getattr(importlib.import_module("skyheed." + path.removesuffix(".py").replace("/", ".")), name)
    found: Any = Settings()
    for part in where.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[1].strip("`"))
def test_every_default_is_what_the_code_has(row: list[str]) -> None:
    what, where, default, protects, _ = row
    assert what
    assert protects
    number, _, unit = default.partition(" ")
    assert value_of(where.strip("`")) == pytest.approx(float(number) * UNITS[unit])


@pytest.mark.parametrize("name", ["limits", "security", "files"])
def test_every_test_that_is_named_is_there(name: str) -> None:
    found = list((ROOT / "tests").rglob("test_*.py"))
    known = {path.stem for path in found} | set(re.findall(r"def (test_\w+)\(", "".join(p.read_text() for p in found)))
    named = set(re.findall(r"\btest_\w+", (ROOT / "docs" / f"{name}.md").read_text()))
    assert len(named) > 3
    assert named <= known, named - known


def test_every_point_of_the_audit_has_a_test() -> None:
    rows_of_it = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows_of_it] == list(range(1, 16))
    assert all("`test_" in tests for _, tests in rows_of_it)


def test_every_limit_of_the_broker_stands_in_a_table() -> None:
    named = {row[1].strip("`") for row in rows()}
    files = (ROOT / "docs" / "files.md").read_text()
    missing = []
    for path in sorted((ROOT / "broker").rglob("*.py")):
        short = path.relative_to(ROOT).as_posix()
        if short.startswith(ELSEWHERE):
            continue
        for name in LIMIT.findall(path.read_text()):
            known = f"{short} {name}" in named | NO_LIMITS or (short in files and re.search(rf"(?<!\w){name}\b", files))
            if not known:
                missing.append(f"{short} {name}")
    assert not missing, f"add them to docs/limits.md: {missing}"


def test_every_setting_that_bounds_something_stands_in_a_table() -> None:
    named = {row[1].strip("`") for row in rows()}
    sizes = re.compile(r"(max_|batch_(size|bytes|records|s)$|_days$|^lease_s$)")
    settings = Settings()
    tables = [field.name for field in fields(settings) if is_dataclass(getattr(settings, field.name))]
    bounds = {
        f"{table}.{field.name}"
        for table in tables for field in fields(getattr(settings, table)) if sizes.search(field.name)
    }  # fmt: skip
    assert len(bounds) >= 10
    assert bounds <= named, bounds - named
