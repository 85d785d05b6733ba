"""Daemons as child processes: what reaches their command lines."""

from pathlib import Path

import pytest

from skyheed.broker import config
from skyheed.broker.local import processes as stack


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", True),
        ("redis://:hidden@127.0.0.1:6379/0", False),
        ("redis://127.0.0.1:6379/0?password=hidden", False),
    ],
)
def test_a_url_with_a_password_never_reaches_a_command_line(url: str, shown: bool) -> None:
    settings = config.load(overrides={"survey": "ztf"}, environ={"SKYHEED_REDIS": url})
    words = stack.shared_arguments(settings, None)
    assert (url in words) is shown
    assert "hidden" not in " ".join(words)


def test_daemons_do_not_load_packages_from_where_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("broker", "classifier"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    daemon = stack.Daemon("ingest", ["--help"], tmp_path / "log")
    assert daemon.process.wait(60) == 0, daemon.last_words()
    daemon.stop()
    assert "Example" in (tmp_path / "log").read_text()
