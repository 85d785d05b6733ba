"""The documentation site: complete where it is generated, and built without a warning."""

import configparser
import dataclasses
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml

from skyheed.broker import config, metrics
from skyheed.broker.cli import CLASSIFIER_VERBS, skyheed
from skyheed.broker.errors import Reason
from skyheed.broker.serve import PORT
from skyheed.broker.settings import IngestSettings, ModelSettings, RedisSettings, WorkSettings
from skyheed.classifier.models import checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_names_everything_and_shows_no_secret(generate: ModuleType, tmp_path: Path) -> None:
    generate.write(tmp_path)
    text = {path.stem: path.read_text() for path in tmp_path.iterdir()}
    for table in (RedisSettings, IngestSettings, WorkSettings, ModelSettings):
        assert all(
            f"| `{field.name}` |" in text["settings"] for field in dataclasses.fields(table) if field.name != "models"
        )
    assert all(variable in text["settings"] for variable in config.ENVIRONMENT)
    rows = re.findall(r"^\| `(\S+)` \| .* \| (.*) \|$", text["settings"], re.MULTILINE)
    assert len(rows) > 80
    assert [name for name, meaning in rows if not meaning] == []
    published = text["schemas"].split("\n## ")[1]
    assert "What we publish" in published
    assert [row for row in published.splitlines() if row.startswith("| `") and row.endswith("|  |")] == []
    assert all(f":prog: skyheed {verb}\n" in text["cli"] for verb in CLASSIFIER_VERBS)
    assert "fixed for the lifetime of the data" in text["settings"]  # a comment of the code
    assert all(f"- `{reason}`" in text["reasons"] for reason in Reason)
    assert "`provenance.weights_digest`" in text["schemas"]
    assert all(f"`{family.name}`" in text["metrics"] for family in metrics.WorkMetrics("x").registry.collect())
    assert "## GET /api/v1/objects" in text["openapi"]
    assert "| `cursor` | query |" in text["openapi"]
    for name in checkpoint.shipped_names():
        if "/" in name:
            assert f"### {name}\n\n{checkpoint.read_info(name).name}" in text["thresholds"]
    simulated, real = text["thresholds"].split("## Real objects")
    assert "simulated" in simulated
    assert "simulated" not in real
    assert set(text["index"].split()) >= set(text) - {"index"}


def test_curves_say_when_nobody_is_chosen(generate: ModuleType) -> None:
    rows = [{"threshold": 0.5, "chosen": 4, "right": 3, "of": 6, "purity": 0.75, "completeness": 0.5}]
    nobody = [{**rows[0], "chosen": 0, "right": 0, "purity": None, "completeness": 0.0}]
    assert "| 0.5 | 0.75 / 0.50 (4) | – / 0.00 (0) |" in generate._curves({"AGN": rows, "SNIa": nobody})


def test_every_alert_has_its_page_in_the_runbook() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    sections = {line[3:] for line in (ROOT / "docs" / "runbook.md").read_text().splitlines() if line.startswith("## ")}
    assert alerts == {name for name in sections if name.startswith("Skyheed")}


@pytest.mark.parametrize("daemon", ["ingest", "work"])
def test_units_start_the_verb_and_leave_time_to_end(daemon: str) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(ROOT / "deploy" / "systemd" / f"skyheed-{daemon}.service")
    assert unit["Service"]["ExecStart"].endswith(f"skyheed {daemon}")
    assert int(unit["Service"]["TimeoutStopSec"]) >= 30
    assert unit["Service"]["NoNewPrivileges"] == "yes"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_site_builds_without_a_warning_and_its_notebooks_run(tmp_path: Path) -> None:
    pytest.importorskip("myst_nb", reason="needs pip install -e '.[docs]'")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", ROOT / "docs", tmp_path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-3000:]
    commands = set(re.findall(r'<section id="([a-z0-9-]+)"', (tmp_path / "reference" / "cli.html").read_text()))
    assert {f"skyheed-{verb}" for verb in skyheed.list_commands(click.Context(skyheed))} <= commands
    assert {"skyheed-archive-build-packets", "skyheed-model-export", "skyheed-deadletter-list"} <= commands
    for name in ("first-night", "your-own-model", "add-a-survey", "score-an-archive"):
        assert "cell_output" in (tmp_path / "tutorials" / f"{name}.html").read_text()


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set((ROOT / "docs" / "index.md").read_text().split())
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} <= listed


def written_pages() -> list[Path]:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "integrations").rglob("*.md")]
    made = {"_build", "reference", "jupyter_execute", ".jupyter_cache", ".venv"}
    return [page for page in pages if not made & set(page.relative_to(ROOT).parts)]


@pytest.mark.parametrize("page", written_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for place in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = place.partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        there = (page.parent / path) if path else page
        assert there.exists(), place
        if heading and there.suffix == ".md":
            assert heading in {_anchor(line) for line in there.read_text().splitlines() if line.startswith("#")}, place


def test_the_packages_for_other_systems_name_the_port_of_the_page() -> None:
    files = [*(ROOT / "integrations").glob("*/README.md"), *(ROOT / "integrations").glob("*-skyheed/*/**/*.py")]
    texts = [
        path.read_text() for path in [*files, *(ROOT / "docs" / "hosts").glob("*.md")] if "tests" not in path.parts
    ]
    ports = [port for text in texts for port in re.findall(r"http://127\.0\.0\.1:(\d+)", text)]
    assert len(ports) >= 5
    assert set(ports) == {str(PORT)}


def test_what_contributing_says_that_one_adds_is_what_is_there() -> None:
    rows = {
        row[0].strip(): row[1] + row[2]
        for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines()
        if line.startswith("| ") and len(row := line.strip("|").split("|")) == 3
    }
    places = re.findall(r"`((?:broker|classifier|schemas|docs|tests)/[\w./]*)`", " ".join(rows.values()))
    assert len(places) > 15
    for place in places:
        assert (ROOT / place).exists(), place

    def listed(row: str) -> set[str]:
        [today] = re.findall(r"today ((?:`[\w/.]+`(?:, )?)+)", rows[row])
        return {name.strip("`/ ").removesuffix(".py") for name in today.split(",") if name.strip()}

    def installed(group: str) -> set[str]:
        text = re.search(
            rf'\[project.entry-points."{group}"\]\n(.*?)\n\n', (ROOT / "pyproject.toml").read_text(), re.DOTALL
        )
        assert text
        return {line.partition(":")[0].split(" = ")[1].strip('"') for line in text[1].splitlines()}

    for row, group, folder in (
        ("a model family", "skyheed.models", "skyheed.classifier.models."),
        ("a survey", "skyheed.surveys", "skyheed.broker.packets.surveys."),
        ("a sink", "skyheed.sinks", "skyheed.broker.sinks."),
    ):
        assert listed(row) == {place.removeprefix(folder).split(".")[0] for place in installed(group)}, row


def test_the_map_of_the_broker_names_every_file_and_folder_once() -> None:
    text = (ROOT / "broker" / "__init__.py").read_text()
    named = re.findall(r"`(\w+)`", text)
    entries = [e for e in (ROOT / "broker").iterdir() if not e.name.startswith("__")]
    there = {e.stem for e in entries if e.suffix == ".py" or (e.is_dir() and (e / "__init__.py").exists())}
    assert sorted(named) == sorted(there)


def _anchor(heading: str) -> str:
    """As the site and GitHub make it."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("#").strip().lower()).replace(" ", "-")


def test_every_host_has_a_page_that_says_what_was_tried() -> None:
    pages = [page for page in (ROOT / "docs" / "hosts").glob("*.md") if page.stem != "index"]
    assert {page.stem for page in pages} >= {
        "lasair", "skyportal", "fastdb", "hopskotch", "webhook", "ampel", "tom", "hyrax",
        "fink", "pitt-google", "boom", "alerce", "antares",
    }  # fmt: skip
    listed = (ROOT / "docs" / "hosts" / "index.md").read_text().split()
    for page in pages:
        assert page.stem in listed
        assert "tried" in page.read_text().lower()
