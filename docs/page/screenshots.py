"""Makes the pictures of docs/page.md from a page that runs, such as that of `skyheed demo --serve`.

    python docs/page/screenshots.py http://127.0.0.1:8010

Needs Playwright for Python (in the extra `dev`) and a chromium on the PATH.
"""

import json
import shutil
import sys
import urllib.request
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

FOLDER = Path(__file__).parent
READY = "body[data-ready]"


def longest_object(base: str) -> str:
    """The path key of a classified object with many epochs, and of several classes over time."""
    with urllib.request.urlopen(f"{base}/api/v1/objects?sort=epochs&declined=no&limit=20", timeout=30) as answer:
        rows = json.load(answer)["rows"]
    return str(max(rows, key=lambda row: (row["top_class"].startswith("SN"), row["top_probability"] < 0.97))["path"])


def take(browser: Browser, url: str, name: str, width: int, height: int, scheme: str = "light") -> None:
    """One picture of the top of a page."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    settle(page)
    if "object" in name and width > 600:
        show_everything(page)
    page.screenshot(path=FOLDER / f"{name}.png")
    context.close()


def settle(page: Page) -> None:
    """Wait until all is drawn."""
    page.wait_for_selector(READY)
    page.wait_for_load_state("load")
    page.wait_for_timeout(1500)


def show_everything(page: Page) -> None:
    """Influence bars, and an epoch in the middle."""
    page.get_by_role("button", name="show the influence of each stamp").click()
    page.wait_for_selector("#influence-row:visible, #whatif .notice", timeout=60_000)
    page.locator("#film").focus()
    for _ in range(12):
        page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(500)


def main(base: str) -> None:
    """All pictures."""
    path = longest_object(base)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        take(browser, f"{base}/object/{path}", "object", 1440, 1400)
        take(browser, f"{base}/object/{path}", "object-dark", 1024, 1400, "dark")
        take(browser, f"{base}/object/{path}", "object-phone", 390, 844)
        take(browser, f"{base}/", "live", 1440, 800)
        take(browser, f"{base}/status", "status", 1440, 1100)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
