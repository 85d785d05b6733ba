"""The browser of the page's tests, and a reader in it whose every error fails the test."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from browser_tools import CHROMIUM, Reader


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A chromium that reaches this machine alone."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright for Python: pip install '.[dev]'")
    cut = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", cut])
        yield running
        running.close()


@pytest.fixture
def reader(browser: Any) -> Iterator[Reader]:
    """Every context fails on a request to another host, on a script error and on what the content policy refused."""
    made = Reader(browser)
    yield made
    for context in made.contexts:
        context.close()
    assert not made.foreign, "the page asked another host"
    assert not [said for said in made.wrong if not made.expected or not re.search(made.expected, said)]
