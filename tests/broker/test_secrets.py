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
VERBS = {
    "ingest": "unavailable", "forward --to webhook": "unavailable", "forward --to hop": "unavailable", "forward --to lasair": "unavailable",
    "backfill --from alerce": "unavailable", "redrive": "unavailable", "check": "redis", "audit": "unavailable", "layout": "unavailable",
    "object a": "unavailable", "deadletter list": "unavailable", "retire m": "unavailable",
}  # fmt: skip
SLOW = {"work": "unavailable", "serve --port 0 --processes 1": "the page"}


@pytest.mark.parametrize(
    "verbs", [VERBS, pytest.param(SLOW, marks=pytest.mark.long)], ids=["light", "with torch"]
)  # fmt: skip
def test_no_secret_shows_in_a_command_line_or_a_log(tmp_path: Path, verbs: dict[str, str]) -> None:
    (tmp_path / "own.toml").write_text(SETTINGS)
    programs = {
        verb: Program(tmp_path / str(n), *verb.split(), "--config", str(tmp_path / "own.toml"), environ=SECRETS)
        for n, verb in enumerate(verbs)
    }
    lines = {line for program in programs.values() for line in program.left().values()}

    def waits(verb: str, program: Program) -> bool:
        lines.update(program.left().values())
        return program.process.poll() is not None or verbs[verb] in program.said

    try:
        for verb, program in programs.items():
            until(lambda verb=verb, program=program: waits(verb, program), 120, verb)  # type: ignore[misc]
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
