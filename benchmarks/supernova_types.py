"""Why some simulated SNe Ia are called other supernovae: the share that is right against what is known of each.

    skyheed archive simulate --survey ztf --objects 1200 --seed 203 --balanced --most 12 -o sky/ztf-held
    python benchmarks/supernova_types.py sky/ztf-held --model ztf/fusion --plot types.png

Of all supernovae with `--fewest` alerts or more, after all their alerts: recall of both types by days since the first
alert, signal to noise of the brightest alert, time of the first alert before or after maximum, and redshift. The
picture shows these, and the probability of type Ia at every alert for the objects that are most wrong.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from skyheed.classifier import serving
from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.history import History

TYPES = ("SNIa", "SNOther")
QUANTITIES = {
    "days": "days since the first alert", "signal": "signal to noise, brightest alert",
    "phase": "first alert, days after maximum", "redshift": "redshift",
}  # fmt: skip
PARTS = 4  # of each quantity, with as many objects each
WORST = 8


@dataclass(frozen=True)
class Seen:
    """One supernova: its type, its probability of type Ia among supernovae at every alert, and its quantities."""

    name: str
    type: str
    ia: NDArray[np.float64]
    quantities: dict[str, float]

    @property
    def right(self) -> bool:
        """Whether the type is right at the end."""
        return bool(self.ia[-1] > 0.5) == (self.type == "SNIa")


def look(archive: Archive, model: Any, fewest: int) -> list[Seen]:
    """All supernovae with that many alerts."""
    found = []
    classes = model.info.classes
    one, other = (classes.index(name) for name in TYPES)
    for name in archive.object_ids:
        row = archive.object(name)
        try:
            history = history_of(archive, name) if row["class"] in TYPES else None
        except ArchiveError:
            continue
        if history is None or len(history) < fewest:
            continue
        beginnings = [history.until(epochs=n) for n in range(1, len(history) + 1)]
        p = np.stack([said.probabilities for said in model.classify(beginnings)]).astype(float)
        found.append(Seen(name, row["class"], p[:, one] / (p[:, one] + p[:, other]), _quantities(history, row)))
    return found


def _quantities(history: History, row: Any) -> dict[str, float]:
    return {
        "days": float(history.mjd[-1] - history.mjd[0]),
        "signal": float(np.nanmax(np.abs(history.flux) / history.flux_error)),
        "phase": float(history.mjd[0] - row["peak_mjd"]), "redshift": float(row["redshift"]),
    }  # fmt: skip


def table(seen: list[Seen]) -> str:
    """Recall of both types by quarters of each quantity, as Markdown."""
    lines = ["| quantity | quarter | SN Ia right | other SNe right |", "|---|---|---|---|"]
    for key, title in QUANTITIES.items():
        for low, high, rows in _quarters(seen, key):
            shares = [_share([s for s in rows if s.type == kind]) for kind in TYPES]
            lines.append(f"| {title} | {low:.3g} to {high:.3g} | {shares[0]} | {shares[1]} |")
    return "\n".join(lines)


def _quarters(seen: list[Seen], key: str) -> list[tuple[float, float, list[Seen]]]:
    values = np.array([s.quantities[key] for s in seen])
    edges = np.quantile(values, np.linspace(0, 1, PARTS + 1))
    part = np.searchsorted(edges[1:-1], values, "right")
    return [
        (edges[n], edges[n + 1], [s for s, p in zip(seen, part, strict=True) if p == n]) for n in range(PARTS)
    ]  # fmt: skip


def _share(rows: list[Seen]) -> str:
    return f"{sum(s.right for s in rows)} of {len(rows)}"


def draw(seen: list[Seen], path: Path) -> None:
    """The picture."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    places = [axes[0, 0], axes[0, 1], axes[1, 0], axes[1, 1]]
    for axis, (key, title) in zip(places, QUANTITIES.items(), strict=True):
        for kind, colour in zip(TYPES, ("#c8553d", "#33658a"), strict=True):
            rows = [s for s in seen if s.type == kind]
            axis.plot([s.quantities[key] for s in rows], [s.ia[-1] for s in rows], ".", color=colour, ms=4, label=kind)
        axis.axhline(0.5, color="0.8", lw=1, zorder=0)
        axis.set(xlabel=title, ylabel="p(Ia), all alerts", ylim=(0, 1))
        if key == "signal":
            axis.set_xscale("log")
    axes[0, 0].legend(fontsize=8)
    for axis, kind in zip(axes[:, 2], TYPES, strict=True):
        rows = sorted((s for s in seen if s.type == kind), key=lambda s: s.ia[-1], reverse=kind != "SNIa")
        for s in rows[:WORST]:
            axis.plot(np.arange(1, len(s.ia) + 1), s.ia, lw=1)
        axis.axhline(0.5, color="0.8", lw=1, zorder=0)
        axis.set(title=f"the {WORST} most wrong {kind}", xlabel="alert", ylabel="p(Ia)", ylim=(0, 1))
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """See the module."""
    asked = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    asked.add_argument("archive")
    asked.add_argument("--model", default="ztf/fusion")
    asked.add_argument("--fewest", type=int, default=6)
    asked.add_argument("--plot", type=Path)
    given = asked.parse_args()
    archive = Archive(given.archive)
    model = serving.load(given.model, survey="ztf", device="cpu")
    seen = look(archive, model, given.fewest)
    for kind in TYPES:
        rows = [s for s in seen if s.type == kind]
        sure = sum((s.ia[-1] >= 0.8) == (kind == "SNIa") for s in rows)
        print(f"{kind}: {_share(rows)} right; {'0.8 or more' if kind == 'SNIa' else 'less than 0.8'} for {sure}")
    print("\n" + table(seen))
    if given.plot:
        draw(seen, given.plot)


if __name__ == "__main__":
    main()
