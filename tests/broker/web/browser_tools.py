"""A survey's stream with its page, and somebody who opens it in a browser: for the browser tests and the pictures."""

import contextlib
import json
import shutil
import signal
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from process_tools import Program, until
from stream_tools import answers, publish, settings_for

from skyheed.broker import app as daemon
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MARKS = [
    pytest.mark.kafka, pytest.mark.redis,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the PATH (Debian: apt install chromium)"),
]  # fmt: skip
MODEL = "convention"  # declines what has fewer than three stamps, whatever a survey's default is
WAIT_MS = 20_000
SIZES = {"wide": (1440, 900), "middle": (1024, 800), "phone": (390, 844)}
FILM = "() => document.querySelector('#film canvas').toDataURL()"


@dataclass
class Stack:
    """A survey's stream, and the page of it."""

    settings: Settings
    topic: str
    folder: Path
    port: int
    words: Sequence[str]
    index: Sequence[str]
    runs: list[Program] = field(default_factory=list)
    sent: int = 0

    @contextlib.contextmanager
    def streaming(self) -> Iterator["Stack"]:
        """With ingest and worker running."""
        publish(self.settings, self.topic, [], partitions=2)
        ingest = Program(self.folder / "ingest", "ingest", *self.words, "--debounce", "0")
        work = Program(self.folder / "work", "work", *self.words)
        try:
            yield self
        finally:
            started = [ingest, work, *self.runs]  # the page too, where a test ended without stopping it
            for run in started:
                run.process.send_signal(signal.SIGTERM)
            for run in started:
                run.process.wait(30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """The page, on the same port every time."""
        run = Program(
            self.folder / f"serve{len(self.runs)}", "serve", *self.words, *self.index, "--port", str(self.port)
        )
        self.runs.append(run)
        until(lambda: self._answers() or run.process.poll() is not None, 60, run.said)
        assert run.process.poll() is None, run.said

    def _answers(self) -> bool:
        try:
            with fetched(f"{self.url}/api/v1/state") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        run = self.runs[-1]
        run.process.send_signal(signal.SIGTERM)
        run.process.wait(30)

    def classify(self, packets: Sequence[bytes]) -> None:
        """Through Kafka, ingest and worker; returns when nothing is pending."""
        self.sent += publish(self.settings, self.topic, packets, partitions=2)
        ledger = daemon.connect_store(self.settings)[2]
        until(lambda: ledger.books().consumed >= self.sent and ledger.books().pending == 0, 90, "classifying")

    def get(self, path: str) -> Any:
        with fetched(f"{self.url}{path}") as answer:
            return json.load(answer)

    def indexed(self) -> None:
        """Wait until the page has read all that has been published."""
        wanted = len(answers(self.settings))
        until(lambda: self.get("/api/v1/state")["index"]["classifications"] >= wanted, 30, "the index")


def fetched(url: str) -> Any:
    return urllib.request.urlopen(url, timeout=10)


def start_stack(
    survey: str, kafka: embedded.Server, redis: embedded.Server, folder: Path, topic: str = "page-simulated",
    models: Sequence[str] = (MODEL,),
) -> Stack:  # fmt: skip
    settings = settings_for(
        kafka.address, redis.url, survey, topic, **{"topics.classifications": f"{topic}-classifications"}
    )
    file = folder / "page.toml"
    file.write_text(
        f'[topics]\nclassifications = "{topic}-classifications"\n[ingest]\ntopics = ["{topic}"]\n'
        + "".join(f'[[work.models]]\nmodel = "{survey}/{model}"\nname = "{model}"\n' for model in models)
    )
    words = ["--survey", survey, "--kafka", kafka.address, "--redis", redis.url, "--config", str(file)]
    index = ["--index", str(folder / "index.sqlite")]
    return Stack(settings, topic, folder, embedded.free_port(), words, index)


@dataclass
class Reader:
    """Somebody who opens pages; what went wrong in their browser is kept."""

    browser: Any
    wrong: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)
    expected: str = ""  # what may go wrong in this test

    def open(self, url: str, size: str = "wide", scheme: str = "light") -> Any:
        width, height = SIZES[size]
        context = self.browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        page.on("request", self._asked)
        page.add_init_script(SHIFTS)
        return visit(page, url) if url != "about:blank" else page

    def _asked(self, request: Any) -> None:
        host = urllib.parse.urlsplit(request.url).hostname
        if request.url.startswith("http") and host != "127.0.0.1":
            self.foreign.append(request.url)


def visit(page: Any, url: str) -> Any:
    """Go on to another page."""
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    return page


SHIFTS = """
window.shifted = 0;
new PerformanceObserver((list) => { for (const e of list.getEntries()) window.shifted += e.value; })
  .observe({ type: "layout-shift", buffered: true });
"""


def an_object(stack: Stack) -> dict[str, Any]:
    """The whole answer about a simulated object with all its epochs."""
    rows = stack.get("/api/v1/objects?q=ztf-sim&sort=epochs&declined=no&limit=50")["rows"]
    return dict(stack.get(f"/api/v1/objects/{rows[0]['path']}"))


def open_object(reader: Reader, stack: Stack, found: dict[str, Any], size: str = "wide") -> Any:
    page = reader.open(f"{stack.url}/object/{found['path']}", size)
    holds(page, "document.querySelector('#film').getAttribute('aria-valuetext')")
    return page


def holds(page: Any, expression: str, argument: object = None) -> None:
    """Poll until it is true in the page; Playwright's own wait evaluates text, which our policy forbids."""
    until(lambda: page.evaluate(expression, argument), WAIT_MS / 1000, expression)


def epoch_of(page: Any) -> int:
    return int(page.locator("#film").get_attribute("aria-valuenow"))


def names(page: Any) -> list[str]:
    """The objects of a list, from above."""
    return list(page.locator("#rows tbody th").all_inner_texts())
