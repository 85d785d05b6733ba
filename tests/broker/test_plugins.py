from importlib.metadata import EntryPoint

import pytest

from skyheed.broker import plugins
from skyheed.broker.errors import ConfigError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plug-ins: one that gives its options back, one whose package needs what is not installed."""
    points = [
        EntryPoint("whole", "builtins:dict", "group"),
        EntryPoint("broken", "skyheed_needs_nothing_of_this_name.x:Y", "group"),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: [p for p in points if p.group == group])


@pytest.mark.usefixtures("installed")
def test_a_plugin_gets_its_options() -> None:
    assert plugins.plugins("group") == ["broken", "whole"]
    assert plugins.plugin("group", "sink", "whole", {"a": "1"}) == {"a": "1"}


@pytest.mark.usefixtures("installed")
def test_one_that_is_not_there_and_one_that_cannot_be_loaded_are_one_sentence() -> None:
    with pytest.raises(ConfigError, match="there is no sink 'other': choose one of broken, whole"):
        plugins.plugin("group", "sink", "other", {})
    with pytest.raises(ConfigError, match="the sink broken needs skyheed_needs_nothing_of_this_name: pip install"):
        plugins.plugin("group", "sink", "broken", {})


def test_options_have_defaults_and_unknown_ones_are_named() -> None:
    assert plugins.take({"url": "u"}, {"url": "", "rate": "2"}, "sinks.x") == {"url": "u", "rate": "2"}
    with pytest.raises(ConfigError, match=r"unknown setting sinks\.x\.urll; known here: rate, url"):
        plugins.take({"urll": "u"}, {"url": "", "rate": "2"}, "sinks.x")


@pytest.mark.parametrize(
    ("table", "name", "hint"),
    [
        ("sinks.x", "url", r"set sinks\.x\.url$"),
        ("sinks.x", "token", r"set sinks\.x\.token \(or token_file, or SKYHEED_FORWARD_TOKEN\)"),
        ("providers.x", "token", r"set providers\.x\.token \(or token_file, or SKYHEED_BACKFILL_TOKEN\)"),
        ("sinks.x", "alert_password", r"set sinks\.x\.alert_password \(or alert_password_file\)"),
    ],
)
def test_a_missing_option_says_where_it_can_be_set(table: str, name: str, hint: str) -> None:
    assert plugins.required({name: "v"}, name, table, "something") == "v"
    for options in ({}, {name: ""}):
        with pytest.raises(ConfigError, match=rf"^{table} needs something: {hint}"):
            plugins.required(options, name, table, "something")
