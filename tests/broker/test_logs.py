"""What `--log-json` says: fields as values, tracebacks kept, one object a line whatever a packet holds."""

import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skyheed.broker import logs

log = logging.getLogger("skyheed.test")
EVIL = 'a\n2026 ERROR "forged" \x1b[31m\u202e'


@contextlib.contextmanager
def as_json() -> Iterator[None]:
    logs.set_up(as_json=True)
    try:
        yield
    finally:
        logging.basicConfig(force=True)


def entries(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_fields_stand_apart_and_in_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    with as_json():
        logs.event(log, "batch", consumed=7, model="a b", seconds=0.12345)
    (entry,) = entries(capsys)
    assert entry["message"] == "batch consumed=7 model=a b seconds=0.123"
    assert entry["fields"] == {"consumed": 7, "model": "a b", "seconds": 0.12345}
    assert (entry["level"], entry["logger"]) == ("info", "skyheed.test")


def test_fields_of_others_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with as_json():
        log.warning("plain %s", "words", extra={"request": 5, "path": Path("/x")})
    (entry,) = entries(capsys)
    assert entry["fields"] == {"request": 5, "path": "/x"}


def test_tracebacks_and_stacks_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with as_json():
        try:
            raise ValueError(EVIL)
        except ValueError:
            log.exception("a packet %s", EVIL)
        log.warning("from here", stack_info=True)
        log.error("no error is in hand", exc_info=True)
    first, second, third = entries(capsys)
    assert first["message"] == f"a packet {EVIL}"
    assert (first["error"]["type"], first["error"]["message"]) == ("ValueError", EVIL)
    assert "test_logs.py" in first["error"]["traceback"]
    assert first["error"]["traceback"].startswith("Traceback")
    assert "test_logs.py" in second["stack"]
    assert "error" not in third


def test_text_lines_are_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up()
    try:
        logs.event(log, "batch", consumed=7, seconds=1.0)
    finally:
        logging.basicConfig(force=True)
    assert capsys.readouterr().err.rstrip().endswith("INFO skyheed.test batch consumed=7 seconds=1.000")


def test_a_verb_logs_json_whose_every_line_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "one.avro").write_bytes(b"Obj\x01")
    words = ["--log-json", "replay", "ztf", str(tmp_path / "one.avro"), "--kafka", "127.0.0.1:1"]
    child = subprocess.Popen([sys.executable, "-m", "skyheed.broker.cli", *words], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    lines = [child.stderr.readline(), child.stderr.readline()]
    child.terminate()
    child.wait()
    child.stderr.close()
    assert all({"time", "level", "logger", "message"} <= json.loads(line).keys() for line in lines)


def test_of_libraries_only_warnings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with as_json():
        for name in logs.CHATTY:
            logging.getLogger(f"{name}.inside").info("small talk")
            logging.getLogger(f"{name}.inside").warning("a warning")
        logging.getLogger("a_plug_in").info("news")
    said = capsys.readouterr().err
    assert "small talk" not in said
    assert said.count("a warning") == len(logs.CHATTY)
    assert "news" in said
