"""Makes the pictures of docs/page.md: a simulated ZTF season through a whole stack, and the page of it.

    .venv/bin/python tests/broker/web/pictures.py

Needs Playwright for Python (in the extra `dev`) and a chromium on the PATH; takes a few minutes.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "tests" / part) for part in ("", "broker/web", "broker/packets")]

import numpy as np  # noqa: E402
from browser_tools import CHROMIUM, MODEL, Stack, holds, start_stack, visit  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402
from ztf_sky import alerts, named  # noqa: E402

from skyheed.broker.local import embedded  # noqa: E402
from skyheed.classifier.sky import simulate  # noqa: E402

FOLDER = ROOT / "docs" / "page"
OBJECTS, SEED, MOST, PORTIONS = 40, 8, 60, 24
PICTURES = [
    ("object", "object", 1440, 1240, "light"),
    ("object-dark", "object", 1024, 1240, "dark"),
    ("object-phone", "object", 390, 1240, "light"),
    ("live", "", 1440, 800, "light"),
    ("status", "status", 1440, 2060, "light"),
]


def fill(stack: Stack, folder: Path) -> None:
    """A season in portions, so that objects are classified many times; a packet that is none."""
    simulate("ztf", OBJECTS, SEED, folder, seasons=1, balanced=True, most=MOST)
    packets = alerts(folder, MOST)
    for part in np.array_split(np.arange(len(packets)), PORTIONS):
        stack.classify([packets[n] for n in part])
    stack.classify([b"no packet at all", named("ZTF26few", 1)])


def chosen(stack: Stack) -> str:
    """A supernova with many epochs."""
    rows = stack.get("/api/v1/objects?sort=epochs&declined=no&limit=20")["rows"]
    best = max(rows, key=lambda row: (row["n_stamps"] > 25, row["top_class"].startswith("SN"), row["top_probability"]))
    return f"object/{best['path']}"


def everything(page: Any) -> None:
    """The influence bars, and an epoch in the middle."""
    page.get_by_role("button", name="show the influence of each stamp").click()
    page.locator("#influence-row").wait_for(timeout=60_000)
    page.locator("#film").focus()
    for _ in range(page.evaluate("Math.round(document.querySelector('#film').getAttribute('aria-valuemax') * 0.6)")):
        page.keyboard.press("ArrowLeft")
    page.evaluate("document.activeElement.blur()")


def take(browser: Any, stack: Stack, name: str, path: str, width: int, height: int, scheme: str) -> None:
    """One picture of the top of a page."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = visit(context.new_page(), f"{stack.url}/{path}")
    page.wait_for_timeout(1500)
    if path.startswith("object"):
        everything(page)
        if scheme == "dark":
            page.get_by_text("recomputed now", exact=True).click()
            holds(page, "[...document.querySelectorAll('#classes .note')].every(note => !note.textContent)")
        page.wait_for_timeout(1000)
        page.evaluate("scrollTo(0, 0)")
    if path == "status":
        page.locator("#drift svg").first.wait_for(timeout=60_000)  # looked at in the background
    page.screenshot(path=FOLDER / f"{name}.png")
    context.close()


def take_all(stack: Stack) -> None:
    """Every picture of a stack that is filled."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, path, *rest in PICTURES:
            take(browser, stack, name, chosen(stack) if path == "object" else path, *rest)
        browser.close()


def main() -> None:
    """Simulate, stream, and take the pictures."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place, embedded.start_kafka() as kafka, embedded.start_valkey() as valkey:
        stack = start_stack("ztf", kafka, valkey, Path(place), models=("fusion", MODEL))
        with stack.streaming():
            stack.start()
            fill(stack, Path(place) / "sky")
            stack.indexed()
            take_all(stack)
            stack.stop()


if __name__ == "__main__":
    main()
