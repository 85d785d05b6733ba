"""Secrets stand in no command line and in no log, whatever verb is given them, however it goes wrong."""

from pathlib import Path

import pytest
from process_tools import Program, until

from skyheed.broker import config

MARK = "hidden"
SECRETS = {
    name: f"{MARK}-{name.lower()}"
    for name in config.ENVIRONMENT
    if name.endswith(("_PASSWORD", "_TOKEN", "_SECRET"))
}  # fmt: skip
SETTINGS = """
survey = "ztf"
[kafka]
"bootstrap.servers" = "127.0.0.1:9"
"security.protocol" = "SASL_PLAINTEXT"
"sasl.mechanism" = "SCRAM-SHA-512"
"sasl.username" = "us"
[redis]
url = "redis://us@127.0.0.1:9"
[registry]
url = "http://127.0.0.1:9"
user = "us"
[ingest]
topics = ["alerts"]
processes = 2
[sinks.webhook]
url = "http://127.0.0.1:9/hidden-path"
[sinks.hop]
topic = "group.topic"
servers = "127.0.0.1:9"
security = "SASL_PLAINTEXT"
user = "us"
password = "hidden-hop"
[sinks.lasair]
topic = "ours"
url = "http://127.0.0.1:9"
[providers.alerce]
url = "http://127.0.0.1:9"
"""
VERBS = [
    "ingest", "forward --to webhook", "forward --to hop", "forward --to lasair", "backfill --from alerce", "redrive",
    "check", "audit", "layout", "object a", "deadletter list", "retire m",
]  # fmt: skip
SLOW = ["work", "serve --port 0 --processes 1"]


@pytest.mark.parametrize("verbs", [VERBS, pytest.param(SLOW, marks=pytest.mark.long)], ids=["light", "with torch"])
def test_no_secret_shows_in_a_command_line_or_a_log(tmp_path: Path, verbs: list[str]) -> None:
    (tmp_path / "own.toml").write_text(SETTINGS)
    programs = {
        verb: Program(tmp_path / str(n), *verb.split(), "--config", str(tmp_path / "own.toml"), environ=SECRETS)
        for n, verb in enumerate(verbs)
    }
    lines = {line for program in programs.values() for line in program.left().values()}

    def waits(program: Program) -> bool:
        lines.update(program.left().values())
        said = program.said
        return program.process.poll() is not None or "unavailable" in said or "the page is at" in said

    try:
        for verb, program in programs.items():
            until(lambda program=program: waits(program), 120, verb)  # type: ignore[misc]
    finally:
        for program in programs.values():
            program.process.terminate()
        for program in programs.values():
            program.process.wait(60)
    said = {verb: program.said for verb, program in programs.items()}
    assert len(lines) >= len(verbs), lines
    assert not [line for line in lines if MARK in line]
    assert not {
        verb: text for verb, text in said.items() if MARK in text or "Traceback" in text or "Usage:" in text or not text
    }
