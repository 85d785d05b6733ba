"""The table and figure of a grid, made only from the facts that its runs wrote as JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skyheed.classifier.models.checkpoint import Info
from skyheed.classifier.models.family import family
from skyheed.classifier.safe_names import caption, table_cell

EARLY = (3, 6, 12, 30)  # numbers of stamps whose scores have a column of their own
STAMPS = (3, 12, 48, 99)  # numbers of stamps at which the cost of an update is given
UNLIKE = "other data, not comparable"
UNTRAINED = " (untrained: not above its class prior)"
MARK = "†"  # of rows whose models see more than the others
MARKED = f" {MARK} all epochs: light curves with every visit, also those of which no stamp was sent."
_KEPT = ("macro_f1", "macro_f1_68", "accuracy")
Facts = Mapping[str, Any]  # facts of one run
Grid = Mapping[str, Sequence[Facts]]  # runs of each row, one per seed; the first one's scores are shown


def facts(info: Info, published: Sequence[float] = ()) -> dict[str, Any]:
    """The facts needed for the table and the figure.

    Args:
        published: accuracy and macro-F1 in percent that others reported for such a system, on other data.
    """
    early = info.metrics["after_stamps"]
    training = {key: value for key, value in info.training.items() if key != "archive"}
    return {
        "name": info.name, "family": info.family, "digest": info.digest, "parameters": parameters(info),
        "multiply_adds": operations(info), "training": training, "archive": info.training.get("archive", {}),
        "data": info.metrics["data"], "classes": list(info.classes), "at_the_end": info.metrics["at_the_end"],
        "per_class": info.metrics["per_class"], "confusion": info.metrics["confusion"],
        "after_stamps": {n: {key: of[key] for key in _KEPT if key in of} for n, of in early.items()},
        "published": list(published),
    }  # fmt: skip


def parameters(info: Info) -> int:
    """Number of parameters when served."""
    own = family(info.family)
    return own.served_parameters(own.build(own.configure(info.config)))


def operations(info: Info) -> dict[str, int]:
    """Multiply-adds of an update of a history that has reached this many stamps."""
    own = family(info.family)
    config = own.configure(info.config)
    return {str(n): own.operations(config, n) for n in STAMPS if n <= config.stamps}


def text(found: Grid, failed: Mapping[str, str] | None = None) -> str:
    """One line per row: scores with 68 % intervals, calibration, cost, and published scores on other data."""
    early = " | ".join(f"at {n}" for n in EARLY)
    columns = (
        f"run | accuracy | macro-F1 | {early} | seeds | class recall, least to most | log-loss | ECE (by chance) | "
        f"parameters | multiply-adds at 12 stamps | minutes | published accuracy / F1, {UNLIKE}"
    )
    lines = [f"| {columns} |", "|---" * (columns.count(" | ") + 1) + "|"]
    lines += [_line(name, made) for name, made in found.items()]
    lines += ["", _about(found)]
    lines += [f"\nFailed: {table_cell(name)}: {table_cell(why)}" for name, why in (failed or {}).items()]
    return "\n".join(lines) + "\n"


def _about(found: Grid) -> str:
    first = [made[0] for made in found.values()]
    protocols = sorted({one["name"].rpartition(": ")[0] for one in first})
    machines = sorted({str(one["training"].get("device", "?")) for one in first})
    more = any(_sees_all(one) for one in first)
    return (
        f"Protocol: {'; '.join(protocols)}. Test objects: {'; '.join(sorted({one['data'] for one in first}))}. "
        "Intervals: 68 %, bootstrap over objects. Early scores are macro-F1. Seeds: how many, and mean and scatter of "
        "their macro-F1. Minutes are CPU time of a run, measurements included, on "
        f"{'; '.join(machines)}.{MARKED if more else ''}"
    )


def _sees_all(one: Facts) -> bool:
    """Whether a light-curve model had more epochs than image models have."""
    return bool(one["training"].get("protocol", {}).get("epochs") == "all")


def _line(name: str, made: Sequence[Facts]) -> str:
    one = made[0]
    end, recalls = one["at_the_end"], _recalls(one)
    cells = [
        table_cell(name) + f" {MARK}" * _sees_all(one) + UNTRAINED * (not trained(one)),
        _shown(end, "accuracy"), _shown(end, "macro_f1"),
        *(_shown(one["after_stamps"].get(str(n), {}), "macro_f1") for n in EARLY), _seeds(made),
        f"{min(recalls):.2f} to {max(recalls):.2f}" if recalls else "", f"{end['log_loss']:.3f}",
        f"{end['ece']:.3f} ({end['ece_expected']:.3f})", f"{one['parameters']:,}",
        f"{one['multiply_adds']['12'] / 1e6:,.1f} M", f"{minutes(one):.0f}",
        " / ".join(f"{value:.2f}" for value in one.get("published", ())),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _shown(scores: Mapping[str, Any], name: str) -> str:
    if name not in scores:
        return ""
    low, high = scores[f"{name}_68"]
    return f"{scores[name]:.3f} ± {(high - low) / 2:.3f}"


def _seeds(made: Sequence[Facts]) -> str:
    if len(made) < 2:
        return ""
    values = [one["at_the_end"]["macro_f1"] for one in made]
    return f"{len(made)}: {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def minutes(one: Facts) -> float:
    """CPU time of a run."""
    return float(one["training"].get("cpu_seconds", one["training"]["seconds"])) / 60


def _recalls(one: Facts) -> list[float]:
    return [own["recall"] for own in one["per_class"].values() if own.get("recall") is not None]


def trained(one: Facts) -> bool:
    """Whether the balanced accuracy is better than chance."""
    end = one["at_the_end"]
    return bool(end.get("balanced_accuracy", 1.0) > 1.05 / max(len(one["classes"]), 1))


def figure(found: Grid, path: Path) -> None:
    """Final macro-F1 with its interval, and macro-F1 at 3 and 12 stamps, one line per run, the best on top."""
    from matplotlib import pyplot

    runs = sorted(found.items(), key=lambda row: row[1][0]["at_the_end"]["macro_f1"])
    drawn, axis = pyplot.subplots(figsize=(7.5, 1.2 + 0.34 * len(runs)), layout="constrained")
    for y, (_, made) in enumerate(runs):
        end, after = made[0]["at_the_end"], made[0]["after_stamps"]
        axis.plot(end["macro_f1_68"], [y, y], color="#33658a", lw=2.5, solid_capstyle="round")
        axis.plot(end["macro_f1"], y, "o", color="#33658a", label="all stamps" if not y else None)
        others = [one["at_the_end"]["macro_f1"] for one in made[1:]]
        axis.plot(others, [y] * len(others), "o", mfc="none", color="#33658a", ms=5)
        for n, mark, colour in ((12, "D", "#86bbd8"), (3, "s", "#f6ae2d")):
            if str(n) in after:
                label = f"{n} stamps" if not y else None
                axis.plot(after[str(n)]["macro_f1"], y, mark, color=colour, ms=5, label=label)
    axis.set_yticks(range(len(runs)), [caption(name) for name, _ in runs], fontsize=8)
    axis.set_xlabel("macro-F1 on confirmed test objects\n(68 % intervals; open circles: other seeds)")
    axis.grid(axis="x", color="0.9")
    axis.legend(loc="lower right", fontsize=8, frameon=False)
    drawn.savefig(path, dpi=110)
    pyplot.close(drawn)
