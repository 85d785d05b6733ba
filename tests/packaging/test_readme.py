"""README's examples, as far as they run without a network and without Kafka."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import real_data

from skyheed import History
from skyheed.broker.cli import skyheed

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SHELL = [line.strip() for line in re.findall(r"^    (.*)$", TEXT, re.MULTILINE)]


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.split("\n")[0])
def test_every_name_that_an_example_imports_is_there(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), "README.md", "exec"), {})


def test_classifying_packets_that_you_have_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = [code for code in PYTHON if "read_packet" in code]
    packets = [path for path in real_data.ztf_files() if path.suffix == ".avro"][:3]
    (tmp_path / "packets").mkdir()
    for path in packets:
        (tmp_path / "packets" / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), found)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(found["histories"]) >= 1
    assert isinstance(found["early"], History)
    assert len(found["early"]) == 1
    for own in found["model"].predict(list(found["histories"].values())):
        assert own.reason or np.isclose(own.probabilities.sum(), 1)


def test_reading_classifications_uses_what_a_record_has() -> None:
    (code,) = [code for code in PYTHON if "Subscriber" in code]
    from skyheed import Classification

    used = {node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)}
    assert used
    assert all(hasattr(Classification, name) or name in Classification.__annotations__ for name in used)


def verbs() -> list[list[str]]:
    """Every command line of ours that README shows, in blocks, in the text and in the tables."""
    shown = [line.split("#")[0] for line in SHELL if line.startswith("skyheed ")]
    shown += re.findall(r"`(skyheed [^`]+)`", TEXT)
    return [shlex.split(line.replace("\\|", "|")) for line in shown]


@pytest.mark.parametrize("words", verbs(), ids=" ".join)
def test_every_command_and_option_that_is_shown_is_known(words: list[str]) -> None:
    command: click.Command = skyheed
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, f"no verb {rest[0]}"
        command, rest = found, rest[1:]
    options = {name for parameter in command.params for name in parameter.opts + parameter.secondary_opts}
    asked = {word for word in rest if word.startswith("--")}
    assert asked <= options | {"--help", "--version"}


def test_every_file_that_readme_names_is_there() -> None:
    places = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT)
    assert len(places) > 15
    assert [place for place in places if "://" not in place and not (ROOT / place).exists()] == []
