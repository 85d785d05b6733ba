"""The report of an evaluation as a folder: JSON, a page of text, and figures."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skyheed.classifier.evaluation import scores, shares
from skyheed.classifier.history import BANDS
from skyheed.classifier.safe_names import caption, printable, table_cell
from skyheed.classifier.training.dataset import Dataset

SHOWN = 10  # stamps of each object in the figure of failures
EARLY, MIDDLE = 3, 12  # stamps after which the confusion matrix is shown, alongside that for all stamps
_WITH_INTERVAL = ("accuracy", "balanced_accuracy", "macro_f1")
_COMPARED = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
_TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200)  # stamps or days
_ECE = (
    "In brackets after ECE: the ECE that perfect calibration with the same probabilities would show by chance; only a "
    "larger one indicates poor calibration."
)
_SAME = (
    "All models saw the same objects, with the same gaps if they take the same bands; each interval is that of one "
    "model alone."
)


def write(found: dict[str, Any], folder: Path, data: Dataset | None = None) -> None:
    """`report.json`, `README.md`, `scores.png`, `missing.png`; with the data `failures.png`; and `comparison.png`.

    `comparison.png` is written if models were compared.
    """
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    found = scores.without_nan(found)
    (folder / "report.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    (folder / "README.md").write_text(text(found))
    _plot_scores(found, folder / "scores.png")
    if "missing" in found:
        _plot_models({found["model"]: found}, found["data"], ("missing",), folder / "missing.png")
    if found.get("against"):
        _plot_models(_models(found), found["data"], ("missing", "after_stamps"), folder / "comparison.png")
    if data is not None and found.get("worst"):
        _plot_failures(found, data, folder / "failures.png")


def write_shares(found: dict[str, Any], folder: Path) -> str:
    """`shares.json` and `README.md` with class shares alone, if no object has a label; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shares.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    page = "\n".join([f"# {shares.TITLE}", "", *shares.lines(found)]) + "\n"
    (folder / "README.md").write_text(page)
    return page


def _models(found: Mapping[str, Any]) -> dict[str, Any]:
    """All models that were compared, the reported one first."""
    return {found.get("label", found["model"]): found, **found.get("against", {})}


def text(found: dict[str, Any]) -> str:
    """The page as Markdown."""
    lines = [f"# {printable(found['model'])} on {printable(found['data'])}", ""]
    if "command" in found:
        lines += [f"Made by `{printable(found['command'])}`.", ""]
    lines += ["Intervals are the central 68 % of bootstrap draws of the objects.", _ECE, ""]
    lines += _table([*_cuts(found), ("all stamps", found["at_the_end"])])
    lines += ["", "## Classes, all stamps", ""]
    lines += _rows("class", ("objects", "precision", "recall", "f1"), found["per_class"])
    for name, matrix in _matrices(found):
        lines += ["", f"## Confusion, {name} (rows: truth)", "", *_confusion(found["classes"], matrix)]
    if "until_sure" in found:
        lines += ["", "## Until the right class stays above 0.75", ""]
        lines += _rows("class", ("objects", "share_sure", "median_days", "median_stamps"), found["until_sure"])
    if "missing" in found:
        lines += ["", "## With missing observations (`missing.png`)", "", *_table(_gaps(found))]
    if found.get("against"):
        lines += ["", "## Models side by side (`comparison.png`)", "", *_comparison(_models(found))]
    if "shares" in found:
        lines += ["", f"## {shares.TITLE}", "", *shares.lines(found["shares"])]
    if found.get("worst"):
        lines += ["", "## Most confidently wrong (`failures.png`)", ""]
        worst = {w["object_id"]: w for w in found["worst"]}
        lines += _rows("object", ("truth", "answer", "probability", "stamps"), worst)
    return "\n".join(lines) + "\n"


def _cuts(found: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    cuts = [("stamps " + n, s) for n, s in found["after_stamps"].items()]
    return cuts + [("days " + n, s) for n, s in found.get("after_days", {}).items()]


def _gaps(found: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{100 * float(fraction):.0f} % missing", s) for fraction, s in found["missing"].items()]


def _matrices(found: Mapping[str, Any]) -> list[tuple[str, list[list[int]]]]:
    """The confusion matrices at early times, in the middle and at the end."""
    cuts = {int(n): s["confusion"] for n, s in found["after_stamps"].items() if "confusion" in s}
    shown = sorted({min(cuts, key=lambda n: abs(n - wanted)) for wanted in (EARLY, MIDDLE)}) if cuts else []
    return [*((f"{n} stamp{'s' * (n > 1)}", cuts[n]) for n in shown), ("all stamps", found["confusion"])]


def _confusion(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[str]:
    lines = ["| | " + " | ".join(map(table_cell, classes)) + " |", "|---" * (len(classes) + 1) + "|"]
    return lines + [
        f"| {table_cell(name)} | " + " | ".join(map(str, row)) + " |" for name, row in zip(classes, matrix, strict=True)
    ]


def _table(cuts: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    lines = [
        "| after | objects | accuracy | balanced accuracy | macro-F1 | log-loss | Brier | ECE |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, s in cuts:
        cells = [*(_with_interval(s, key) for key in _WITH_INTERVAL), _number(s["log_loss"]), _number(s["brier"])]
        cells.append(f"{_number(s['ece'])} ({_number(s.get('ece_expected'))})")
        lines.append(f"| {name} | {s['objects']} | " + " | ".join(cells) + " |")
    return lines


def _comparison(models: Mapping[str, dict[str, Any]]) -> list[str]:
    """One line for each number of stamps and each fraction of missing observations, two columns for each model."""
    named = {
        name: dict([*_cuts({"after_stamps": found["after_stamps"]}), *_gaps(found)]) for name, found in models.items()
    }
    columns = [f"{score}, {table_cell(name)}" for name in named for score in _COMPARED.values()]
    lines = ["| | objects | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for cut, first in next(iter(named.values())).items():
        cells = [_with_interval(own[cut], key) if cut in own else "" for own in named.values() for key in _COMPARED]
        lines.append(f"| {cut} | {first['objects']} | " + " | ".join(cells) + " |")
    return [*lines, "", _SAME]


def _with_interval(s: Mapping[str, Any], key: str) -> str:
    low, high = s[key + "_68"]
    return f"{_number(s[key])} ({_number(low)} to {_number(high)})"


def _number(value: float | None) -> str:
    """Empty for an undefined score."""
    return "" if value is None else f"{value:.3f}"


def _rows(first: str, keys: Sequence[str], rows: Mapping[str, Any]) -> list[str]:
    lines = [f"| {first} | " + " | ".join(key.replace("_", " ") for key in keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for name, row in rows.items():
        cells = ["" if row.get(key) is None else table_cell(row[key]) for key in keys]
        lines.append(f"| {table_cell(name)} | " + " | ".join(cells) + " |")
    return lines


def _plot_scores(found: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(15, 9), layout="constrained")
    figure.suptitle(_title(found))
    _plot_series(axes[0, 0], found["after_stamps"], "stamps")
    _plot_series(axes[0, 1], found.get("after_days", {}), "days since the first stamp")
    _plot_calibration(axes[0, 2], found)
    for axis in axes[1]:
        axis.axis("off")
    for axis, (name, matrix) in zip(axes[1], _matrices(found), strict=False):
        axis.axis("on")
        _plot_matrix(axis, found["classes"], matrix, f"after {name}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=4)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _title(found: Mapping[str, Any]) -> str:
    return f"{caption(found['model'])} on {caption(found['data'], 0)}"


def _plot_series(axis: Any, series: Mapping[str, Any], label: str) -> None:
    for key, name in _COMPARED.items():
        _plot_curve(axis, series, key, label=name)
    cuts = [float(n) for n in series]
    for style, key, name in ((".-", "ece", "ECE"), (":", "ece_expected", "ECE if calibrated")):
        axis.plot(cuts, np.array([s.get(key) for s in series.values()], float), style, color="C2", label=name)
    _stretch(axis, [int(n) for n in series])
    axis.set(xlabel=label, ylim=(0, 1))


def _stretch(axis: Any, cuts: Sequence[int]) -> None:
    """Logarithmic axis with room for day 0; a series without cuts stays empty."""
    axis.set_xscale("symlog", linthresh=1)
    ticks = [n for n in _TICKS if cuts and min(cuts) <= n <= max(cuts)]
    axis.set_xticks(ticks, [str(n) for n in ticks])


def _plot_curve(axis: Any, series: Mapping[str, Any], key: str, **how: Any) -> None:
    """A score and its interval against the cuts of a series."""
    cuts = [float(n) for n in series]
    found = np.array([[s[key], *s[f"{key}_68"]] for s in series.values()], float).reshape(-1, 3)
    (line,) = axis.plot(cuts, found[:, 0], ".-", **how)
    axis.fill_between(cuts, found[:, 1], found[:, 2], alpha=0.2, color=line.get_color())


def _plot_calibration(axis: Any, found: Mapping[str, Any]) -> None:
    end = found["at_the_end"]
    axis.plot([0, 1], [0, 1], ":", color="grey")
    for confidence, right, count in found.get("calibration", []):
        axis.plot(confidence, right, "o", color="C0", ms=2 + count**0.5 / 2)
    ece = f"ECE {_number(end['ece'])} (if calibrated {_number(end.get('ece_expected'))})"
    axis.set(xlabel="probability of the top class", ylabel="fraction that was right", title=f"all stamps\n{ece}")


def _plot_matrix(axis: Any, classes: Sequence[str], counts: Sequence[Sequence[int]], title: str) -> None:
    matrix = np.array(counts, float)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (y, x), value in np.ndenumerate(matrix):
        axis.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if shares[y, x] > 0.5 else "black")
    ticks, names = range(len(classes)), [caption(name) for name in classes]
    axis.set_xticks(ticks, names)
    axis.set_yticks(ticks, names)
    axis.set(xlabel="classified as", ylabel="truth", title=title)


_AXES = {"missing": "share of observations left out", "after_stamps": "stamps"}


def _plot_models(models: Mapping[str, dict[str, Any]], data: str, rows: Sequence[str], path: Path) -> None:
    """Accuracy and macro-F1 of every model, one row per series."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(rows),
        2,
        figsize=(11, 1 + 4 * len(rows) + 0.25 * len(models)),
        squeeze=False,
        layout="constrained",
        sharey="col",
    )
    figure.suptitle(textwrap.fill(f"{' against '.join(map(caption, models))} on {caption(data, 0)}", 120))
    for row, series in zip(axes, rows, strict=True):
        for axis, (key, score) in zip(row, _COMPARED.items(), strict=True):
            for name, found in models.items():
                _plot_curve(axis, found[series], key, label=caption(name))
            axis.set(xlabel=_AXES[series], ylabel=score)
            if series == "after_stamps":
                _stretch(axis, [int(n) for own in models.values() for n in own[series]])
    if len(models) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _plot_failures(found: Mapping[str, Any], data: Dataset, path: Path) -> None:
    from matplotlib import pyplot

    worst = found["worst"]
    figure, axes = pyplot.subplots(
        len(worst), SHOWN, figsize=(SHOWN * 1.1, 0.5 + len(worst) * 1.25), squeeze=False, layout="constrained"
    )
    figure.suptitle(f"{_title(found)}: most confidently wrong")
    for row, wrong in zip(axes, worst, strict=True):
        shown = data.history(data.object_ids.index(wrong["object_id"]))
        steps = np.unique(np.linspace(0, len(shown.mjd) - 1, SHOWN).astype(int))
        for axis in row:
            axis.axis("off")
        for axis, step in zip(row, steps, strict=False):
            axis.imshow(np.arcsinh(shown.images["science"][step].astype(np.float32)), origin="lower", cmap="gray")
            axis.set_title(f"{BANDS[shown.band[step]]} {shown.mjd[step] - shown.mjd[0]:.0f} d", fontsize=6)
        said = f"{wrong['truth']}, classified as {wrong['answer']} {wrong['probability']:.2f}"
        row[0].text(0, -6, caption(said), fontsize=6)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
