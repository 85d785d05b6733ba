"""What the page is made of, without a browser: vendored files, colours, nothing inline, nothing from elsewhere."""

import hashlib
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import skyheed.broker as broker

WEB = Path(broker.__file__).parent / "web"
STATIC, PAGES = WEB / "static", WEB / "pages"
OURS = sorted([*STATIC.glob("*.js"), *STATIC.glob("*.css"), *PAGES.glob("*.html")])
VENDORED = [STATIC / "vendor", Path(__file__).parent / "vendor"]
# Machado, Oliveira & Fernandes 2009 (IEEE TVCG 15, 1291), severity 1.0, on linear RGB
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": np.array([[0.15229, 1.05258, -0.20487], [0.1145, 0.78628, 0.09922], [-0.00388, -0.04812, 1.052]]),
    "deutan": np.array([[0.36732, 0.86065, -0.22797], [0.28009, 0.6725, 0.04741], [-0.01182, 0.04294, 0.96888]]),
    "tritan": np.array([[1.25553, -0.07675, -0.17878], [-0.07841, 0.93081, 0.1476], [0.00473, 0.69137, 0.3039]]),
}  # fmt: skip
APART = 12.0  # CIE76 distance; 2.3 is just noticeable, and shape or name says it as well


@pytest.mark.parametrize("folder", VENDORED, ids=["static", "tests"])
def test_vendored_files_are_what_was_published(folder: Path) -> None:
    listed = json.loads((folder / "vendor.json").read_text())
    found = {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()} - {"vendor.json"}
    assert found == {f"{name}/{file}" for name, facts in listed.items() for file in facts["sha256"]}
    for name, facts in listed.items():
        assert "LICENSE" in facts["sha256"]
        for file, digest in facts["sha256"].items():
            assert hashlib.sha256((folder / name / file).read_bytes()).hexdigest() == digest, f"{name}/{file}"


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_nothing_is_inline_or_set_as_markup(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"<style|\sstyle=\"|\son\w+=\"|javascript:", text), "the CSP would refuse it"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    scripts = re.findall(r"<script(?![^>]*\bsrc=)[^>]*>", text)
    assert all('type="application/json"' in script for script in scripts), "a script of the page is a file"
    assert "| safe" not in text


def test_only_aladin_names_another_host() -> None:
    named = {
        (path.name, host) for path in OURS for host in re.findall(r"https?://([\w.-]+)", path.read_text())
    } - {("lib.js", "www.w3.org")}  # a namespace, not an address  # fmt: skip
    assert named == {("aladin.js", "aladin.cds.unistra.fr")}


def test_own_modules_are_small() -> None:
    lines = {path.name: len(path.read_text().splitlines()) for path in STATIC.glob("*.js")}
    assert max(lines.values()) < 420, lines


# --- colours ----------------------------------------------------------------------------------------------------------


def _colours(theme: int) -> dict[str, NDArray[np.float64]]:
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", (STATIC / "page.css").read_text())
    return {name: _linear(given[theme]) for name, *given in pairs}


def _linear(text: str) -> NDArray[np.float64]:
    c = np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def _contrast(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """WCAG 2.2 contrast ratio."""
    low, high = sorted(float(c @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def _lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 0.0))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast_aa(theme: int) -> None:
    colours = _colours(theme)
    texts = ["ink", "soft", "focus", "good", "bad", *(f"band-{band}" for band in "ugrizy")]
    weak = {
        (text, ground): round(_contrast(colours[text], colours[ground]), 2)
        for text in texts for ground in ("card", "paper", "raised")
        if _contrast(colours[text], colours[ground]) < 4.5
    }  # fmt: skip
    assert not weak
    assert _contrast(colours["edge"], colours["card"]) >= 3, "the border of a control"


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_are_told_apart(theme: int, deficiency: str) -> None:
    colours = _colours(theme)
    seen = {name: _lab(np.clip(DEFICIENCIES[deficiency] @ rgb, 0, 1)) for name, rgb in colours.items()}
    sets = [
        [f"band-{band}" for band in "ugrizy"], ["class-snia", "class-snother", "class-agn", "class-variable"]
    ]  # fmt: skip
    close = {
        (a, b): round(float(np.linalg.norm(seen[a] - seen[b])), 1)
        for names in sets for a, b in itertools.combinations(names, 2)
        if np.linalg.norm(seen[a] - seen[b]) < APART
    }  # fmt: skip
    assert not close
