"""The report of an evaluation as a folder: JSON, a page of text, and pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import Dataset
from .sequence import BANDS

SHOWN = 10  # stamps of each object in the picture of failures


def write(found: dict[str, Any], folder: Path, data: Dataset | None = None) -> None:
    """`report.json`, `README.md`, `scores.png`, and (with the data) `failures.png`."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "README.md").write_text(text(found))
    _plot_scores(found, folder / "scores.png")
    if data is not None and found.get("worst"):
        _plot_failures(found["worst"], data, folder / "failures.png")


def text(found: dict[str, Any]) -> str:
    """The page that a person reads."""
    lines = [f"# {found['model']} on {found['data']}", ""]
    if "command" in found:
        lines += [f"Made by `{found['command']}`.", ""]
    lines += ["Intervals are the central 68 % of bootstrap draws of the objects.", ""]
    cuts = [*(("stamps " + n, s) for n, s in found["after_stamps"].items())]
    cuts += [("days " + n, s) for n, s in found.get("after_days", {}).items()]
    lines += _table([*cuts, ("all stamps", found["at_the_end"])])
    lines += ["", "## Classes, all stamps", ""]
    lines += _rows("class", ("objects", "precision", "recall", "f1"), found["per_class"])
    lines += ["", "## Confusion, all stamps (rows: truth)", "", "| | " + " | ".join(found["classes"]) + " |"]
    lines += ["|---" * (len(found["classes"]) + 1) + "|"]
    for name, row in zip(found["classes"], found["confusion"], strict=True):
        lines.append(f"| {name} | " + " | ".join(map(str, row)) + " |")
    if "until_sure" in found:
        lines += ["", "## Until the right class stays above 0.75", ""]
        lines += _rows("class", ("objects", "share_sure", "median_days", "median_stamps"), found["until_sure"])
    if "missing" in found:
        lines += ["", "## With missing observations", ""]
        lines += _rows("missing", ("objects", "accuracy", "balanced_accuracy", "macro_f1"), found["missing"])
    if found.get("worst"):
        lines += ["", "## Most confidently wrong (`failures.png`)", ""]
        worst = {w["object_id"]: w for w in found["worst"]}
        lines += _rows("object", ("truth", "answer", "probability", "stamps"), worst)
    return "\n".join(lines) + "\n"


def _table(cuts: list[tuple[str, dict[str, Any]]]) -> list[str]:
    lines = [
        "| after | objects | accuracy | balanced accuracy | macro-F1 | log-loss | Brier | ECE |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, s in cuts:
        cells = [f"{s[key]:.3f} ({s[key + '_68'][0]:.3f} to {s[key + '_68'][1]:.3f})" for key in _WITH_INTERVAL]
        cells += [f"{s[key]:.3f}" for key in ("log_loss", "brier", "ece")]
        lines.append(f"| {name} | {s['objects']} | " + " | ".join(cells) + " |")
    return lines


_WITH_INTERVAL = ("accuracy", "balanced_accuracy", "macro_f1")


def _rows(first: str, keys: tuple[str, ...], rows: dict[str, Any]) -> list[str]:
    lines = [f"| {first} | " + " | ".join(key.replace("_", " ") for key in keys) + " |", "|---" * (len(keys) + 1) + "|"]
    return lines + [
        f"| {name} | " + " | ".join(str(row.get(key, "")) for key in keys) + " |" for name, row in rows.items()
    ]


def _plot_scores(found: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
    figure.suptitle(f"{found['model']} on {found['data']}")
    _plot_series(axes[0, 0], found["after_stamps"], "stamps")
    _plot_series(axes[0, 1], found.get("after_days", {}), "days since the first stamp")
    _plot_matrix(axes[1, 0], found)
    axes[1, 1].plot([0, 1], [0, 1], ":", color="grey")
    for confidence, right, count in found.get("calibration", []):
        axes[1, 1].plot(confidence, right, "o", color="C0", ms=2 + count**0.5 / 2)
    axes[1, 1].set(xlabel="probability of the answer", ylabel="share of right answers", title="calibration, all stamps")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _plot_series(axis: Any, series: dict[str, Any], label: str) -> None:
    cuts = [int(n) for n in series]
    for key in ("accuracy", "macro_f1", "ece"):
        axis.plot(cuts, [s[key] for s in series.values()], ".-", label=key.replace("_", " "))
        if key != "ece":
            low, high = zip(*(s[f"{key}_68"] for s in series.values()), strict=True) if series else ((), ())
            axis.fill_between(cuts, low, high, alpha=0.2)
    axis.set_xscale("symlog", linthresh=1)
    axis.set(xlabel=label, ylim=(0, 1))
    axis.legend()


def _plot_matrix(axis: Any, found: dict[str, Any]) -> None:
    matrix = np.array(found["confusion"], float)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (y, x), value in np.ndenumerate(matrix):
        axis.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if shares[y, x] > 0.5 else "black")
    ticks = range(len(found["classes"]))
    axis.set_xticks(ticks, found["classes"])
    axis.set_yticks(ticks, found["classes"])
    axis.set(xlabel="answer", ylabel="truth", title="all stamps")


def _plot_failures(worst: list[dict[str, Any]], data: Dataset, path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(worst), SHOWN, figsize=(SHOWN * 1.1, len(worst) * 1.25), squeeze=False, layout="constrained"
    )
    for row, wrong in zip(axes, worst, strict=True):
        shown = data.sequence(data.object_ids.index(wrong["object_id"]))
        steps = np.unique(np.linspace(0, len(shown.mjd) - 1, SHOWN).astype(int))
        for axis in row:
            axis.axis("off")
        for axis, step in zip(row, steps, strict=False):
            axis.imshow(np.arcsinh(shown.stamps[step].astype(np.float32)), origin="lower", cmap="gray")
            axis.set_title(f"{BANDS[shown.band[step]]} {shown.mjd[step] - shown.mjd[0]:.0f} d", fontsize=6)
        row[0].text(0, -6, f"{wrong['truth']}, said {wrong['answer']} {wrong['probability']:.2f}", fontsize=6)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
