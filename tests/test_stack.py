"""Daemons as child processes: what reaches their command lines."""

import pytest

from broker import config, stack


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
