"""Every verb has help with an example and stands in the README; errors are one sentence."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from broker import cli
from broker.config import ENVIRONMENT

ROOT = Path(__file__).parent.parent


def verbs() -> list[str]:
    return cli.skyheed.list_commands(click.Context(cli.skyheed))


def skyheed(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "broker.cli", *words], capture_output=True, text=True, timeout=60, cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environ}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("verb", verbs())
def test_help_has_an_example(verb: str) -> None:
    result = CliRunner().invoke(cli.skyheed, [verb, "--help"])
    assert result.exit_code == 0, result.output
    assert f"skyheed {verb}" in result.output


@pytest.mark.parametrize("verb", verbs())
def test_the_readme_names_every_verb(verb: str) -> None:
    assert f"skyheed {verb}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("variable", sorted(ENVIRONMENT))
def test_every_variable_is_documented(variable: str) -> None:
    assert variable in (ROOT / "docs" / "operating.md").read_text()


@pytest.mark.parametrize("verb", ["ingest", "work", "up", "check"])
def test_server_verbs_take_both_servers(verb: str) -> None:
    command = cli.skyheed.get_command(click.Context(cli.skyheed), verb)
    assert command is not None
    assert {"kafka", "redis", "config", "survey"} <= {p.name for p in command.params}


def test_an_expected_error_is_one_sentence_and_status_1() -> None:
    result = skyheed("ingest", "--survey", "hubble")
    assert result.returncode == 1
    assert result.stderr.startswith("skyheed: ")
    assert "hubble" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_password_on_the_command_line_is_refused_and_not_repeated() -> None:
    result = skyheed("audit", "--survey", "ztf", "--redis", "redis://me:hunter2@127.0.0.1:1")
    assert result.returncode == 1
    assert "SKYHEED_REDIS_PASSWORD" in result.stderr
    assert "hunter2" not in result.stdout + result.stderr


def test_a_missing_extra_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "from broker import cli; sys.argv = ['skyheed', 'audit', '--survey', 'ztf']; cli.main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "pip install 'skyheed[broker]'" in result.stderr


def test_the_subscriber_needs_no_torch_and_no_redis() -> None:
    code = (
        "import sys\nfor name in ('torch', 'redis', 'astropy', 'pyarrow'): sys.modules[name] = None\n"
        "from broker.subscribe import Subscriber"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_unknown_parts_of_check_are_named() -> None:
    result = CliRunner().invoke(cli.skyheed, ["check", "--only", "weather"])
    assert result.exit_code == 2
    assert "weather" in result.output
