"""The table and figure of a grid of adaptation runs, made only from the JSON that the runs wrote.

One table for each archive used for measurement; results on simulated and real archives are never combined.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.safe_names import caption, table_cell
from skyheed.classifier.training import adaptation_scores

REFERENCE = "none"  # the method whose row is the reference for comparisons
WHEN = "first"  # scores are given after this alert
DRAWS = 1000
TABLE, FIGURE = "adaptation.md", "adaptation.png"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """Results of the models of one row, one per seed, on one archive.

    Attributes:
        method: adaptation method.
        measured: results of `adaptation_scores.measure`, one per seed.
    """

    name: str
    method: str
    measured: tuple[Mapping[str, Any], ...]

    @property
    def grouped(self) -> bool:
        """Whether objects are real; for real ones only the groups AGN, supernovae and variables are certain."""
        return bool(self.measured[0]["real"])

    def said(self, number: int = 0) -> tuple[NDArray[np.int64], Floats]:
        """Truth and predicted probabilities for one seed's model."""
        return adaptation_scores.summary(dict(self.measured[number]), WHEN, self.grouped)


def read(runs: Mapping[str, Sequence[Path]]) -> dict[str, list[Row]]:
    """Archive -> rows, for those runs (row -> folders, one per seed) that were measured on it."""
    found: dict[str, list[Row]] = {}
    for name, folders in runs.items():
        reports = [json.loads((folder / "objective.json").read_text()) for folder in folders if _has(folder)]
        if not reports:
            continue
        method = _method(folders[0])
        for archive in dict.fromkeys(m["archive"] for report in reports for m in report["measured"]):
            own = tuple(m for report in reports for m in report["measured"] if m["archive"] == archive)
            found.setdefault(archive, []).append(Row(name, method, own))
    return found


def _has(folder: Path) -> bool:
    path = folder / "objective.json"
    return path.is_file() and "measured" in json.loads(path.read_text())


def _method(folder: Path) -> str:
    protocol = json.loads((folder / "model.json").read_text())["training"]["protocol"]
    return str(protocol["objective"].get("method", ""))


def write(runs: Mapping[str, Sequence[Path]], output: Path) -> bool:
    """Write `adaptation.md` and `adaptation.png` if any run was measured on an archive.

    Returns:
        whether any was.
    """
    if not (found := read(runs)):
        return False
    (output / TABLE).write_text(text(found))
    figure(found, output / FIGURE)
    return True


def text(found: Mapping[str, Sequence[Row]]) -> str:
    """A table for each archive."""
    return "\n\n".join(_table(archive, rows) for archive, rows in found.items()) + "\n"


def _table(archive: str, rows: Sequence[Row]) -> str:
    reference = next((row for row in rows if row.method == REFERENCE), None)
    one = rows[0]
    names = adaptation_scores.groups_of(one.measured[0]["classes"])[0] if one.grouped else one.measured[0]["classes"]
    columns = [
        "run", "balanced accuracy, first alert [95 %]", f"recall {' / '.join(names)}", "difference [95 %]",
        "other seeds", "log-loss", "A-distance", "neighbourhood density", "class shares by EM",
    ]  # fmt: skip
    head = (
        f"**{table_cell(archive)}**: {len(one.measured[0]['truth'])} objects with labels that nothing was adapted to."
    )
    lines = [head, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(_line(row, reference) for row in rows)])


def _line(row: Row, reference: Row | None) -> str:
    truth, p = row.said()
    value, low, high = interval(truth, p)
    recall = [(p.argmax(1)[truth == c] == c).mean() for c in range(p.shape[1]) if (truth == c).any()]
    others = [adaptation_scores.balanced_accuracy(*row.said(n)) for n in range(1, len(row.measured))]
    own = row.measured[0]
    cells = [
        table_cell(row.name), f"{value:.3f} [{low:.2f}, {high:.2f}]", " / ".join(f"{r:.2f}" for r in recall),
        "" if reference is None or reference is row else _difference(row, reference),
        ", ".join(f"{o:.3f}" for o in others),
        f"{-np.log(np.clip(p[np.arange(len(truth)), truth], 1e-9, 1)).mean():.2f}",
        _apart(own),
        f"{own['unsupervised']['neighbourhood_density']:.2f}", " / ".join(f"{s:.2f}" for s in own["shares"]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _apart(own: Mapping[str, Any]) -> str:
    """A-distances over all objects and within those classes or groups that have enough objects."""
    found = own["a_distance"]
    if not found:
        return ""
    within = [f"{c} {found[c][0]:.2f} ± {found[c][1]:.2f}" for c in found if c not in ("all", "control")]
    return f"{found['all'][0]:.2f} ± {found['all'][1]:.2f}; {', '.join(within)}"


def interval(truth: NDArray[np.int64], p: Floats) -> tuple[float, float, float]:
    """Balanced accuracy with its 95 % interval, from resampling objects within each class."""
    draws = [adaptation_scores.balanced_accuracy(truth[r], p[r]) for r in _drawn(truth)]
    low, high = np.percentile(draws, (2.5, 97.5))
    return adaptation_scores.balanced_accuracy(truth, p), float(low), float(high)


def paired(row: Row, reference: Row) -> tuple[float, float, float]:
    """Difference of balanced accuracies on the same objects, averaged over the seeds common to both rows, with its 95 %
    interval over objects.

    Raises:
        ValueError: the rows were measured on different objects.
    """
    if row.measured[0]["objects"] != reference.measured[0]["objects"]:
        raise ValueError(f"{row.name} and {reference.name} were measured on different objects")
    seeds = range(min(len(row.measured), len(reference.measured)))
    pairs = [(row.said(n), reference.said(n)[1]) for n in seeds]
    truth = pairs[0][0][0]

    def difference(rows: Any) -> float:
        gains = [
            adaptation_scores.balanced_accuracy(truth[rows], p[rows])
            - adaptation_scores.balanced_accuracy(truth[rows], other[rows])
            for (_, p), other in pairs
        ]
        return float(np.mean(gains))

    low, high = np.percentile([difference(r) for r in _drawn(truth)], (2.5, 97.5))
    return difference(slice(None)), float(low), float(high)


def _difference(row: Row, reference: Row) -> str:
    value, low, high = paired(row, reference)
    return f"{value:+.3f} [{low:+.2f}, {high:+.2f}]"


def _drawn(truth: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero(truth == c) for c in np.unique(truth)]
    return [np.concatenate([rng.choice(r, len(r)) for r in rows]) for _ in range(DRAWS)]


def figure(found: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Balanced accuracy of every row and seed with its 95 % interval, one panel per archive."""
    from matplotlib import pyplot

    most = max(len(rows) for rows in found.values())
    drawn, axes = pyplot.subplots(
        1, len(found), figsize=(4.6 * len(found), 1.4 + 0.3 * most), layout="constrained", squeeze=False
    )
    for axis, (archive, rows) in zip(axes[0], found.items(), strict=True):
        for y, row in enumerate(reversed(rows)):
            value, low, high = interval(*row.said())
            colour = "#444444" if row.method == REFERENCE else "#33658a"
            axis.plot([low, high], [y, y], color=colour, lw=2, solid_capstyle="round")
            axis.plot(value, y, "o", color=colour)
            others = [adaptation_scores.balanced_accuracy(*row.said(n)) for n in range(1, len(row.measured))]
            axis.plot(others, [y] * len(others), "o", mfc="none", color=colour, ms=5)
            if row.method == REFERENCE:
                axis.axvline(value, color="0.8", lw=1, zorder=0)
        axis.set_yticks(range(len(rows)), [caption(row.name) for row in reversed(rows)], fontsize=8)
        axis.set(title=caption(archive), xlabel="balanced accuracy, first alert")
    drawn.suptitle("95 % intervals; open circles: other seeds", fontsize=9)
    drawn.savefig(path, dpi=110)
    pyplot.close(drawn)
