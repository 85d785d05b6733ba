"""Many runs under one protocol: the blocks and models of one configuration, or the rows of a table of ablations."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.errors import ArchiveError, ModelError
from skyheed.classifier.models.checkpoint import Info
from skyheed.classifier.models.family import family
from skyheed.classifier.names import caption, file_name, table_cell
from skyheed.classifier.training import dataset, protocol, train
from skyheed.classifier.training.dataset import Dataset
from skyheed.classifier.training.protocol import Protocol

log = logging.getLogger("skyheed.train")
VALIDATION = 8  # one in so many of a block's training objects selects and calibrates
EARLY = (3, 6, 12, 30)  # stamps whose scores have a column of their own
STAMPS = (3, 12, 48, 99)  # stamps at which the cost of an update is told
SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")


def run(config: Protocol, output: Path, command: str) -> list[Info]:
    """Every model of every block (one, without blocks), each in a folder of its own; finished ones are kept.

    With blocks, `summary.json` holds the mean and the scatter of the scores over them.
    """
    if not config.blocks:
        return [train.run(config, output, command)]
    data = dataset.load(config.archive, bands=config.bands)
    made = []
    for block in range(config.blocks):
        part = folds(data, config.blocks, block)
        for model in range(config.models):
            one = replace(config, seed=config.seed + 100 * block + model)
            made.append(train.run(one, output / f"block{block}-model{model}", command, part))
    (output / "summary.json").write_text(json.dumps(summary(made), indent=1) + "\n")
    return made


def folds(data: Dataset, blocks: int, block: int) -> Dataset:
    """The data with one block of its objects as test set; every class and kind of label is spread over all blocks.

    Objects keep to their side: whole objects are dealt out, before anything is drawn more than once.
    """
    split = np.full(len(data.object_ids), "train", dtype=object)
    kinds = [f"{label} {sure}" for label, sure in zip(data.label, data.confirmed, strict=True)]
    for kind in sorted(set(kinds)):
        members: NDArray[np.int64] = np.flatnonzero(np.array(kinds) == kind)
        order = members[np.argsort([dataset.shuffled(data.object_ids[i]) for i in members])]
        split[order[block::blocks]] = "test"
        rest = np.array([i for i in order if split[i] == "train"])
        split[rest[::VALIDATION]] = "validation"
    return replace(data, split=split.tolist())


def summary(made: Sequence[Info]) -> dict[str, Any]:
    """Mean and standard deviation over models of the scores at the end."""
    ends = [info.metrics["at_the_end"] for info in made]
    return {
        "models": len(made),
        **{
            name: {"mean": round(float(np.mean(v)), 4), "scatter": round(float(np.std(v)), 4)}
            for name in SHOWN
            if (v := [end[name] for end in ends])
        },
    }


@dataclass(frozen=True)
class Row:
    """One row of the table: its name, and how it differs from the common protocol."""

    name: str
    config: Protocol


def rows(path: Path, changes: Mapping[str, Any]) -> list[Row]:
    """The runs of a table: `[common]` keys of a protocol, and `[[run]]` with a name and what is different.

    Raises:
        ModelError: unreadable, or not of that form.
    """
    given = protocol.load(path)
    common, runs = given.get("common", {}), given.get("run")
    sound = isinstance(common, dict) and isinstance(runs, list) and runs and all(isinstance(r, dict) for r in runs)
    if not sound or set(given) - {"common", "run"}:
        raise ModelError(f"{path}: a table has one [common] and several [[run]]")
    found = []
    for number, own in enumerate(given["run"], 1):
        if "name" not in own:
            raise ModelError(f"{path}: run {number} has no name")
        name = ": ".join([common["name"], own["name"]] if "name" in common else [own["name"]])
        keys = {**common, **own, **changes, "name": name}
        found.append(Row(own["name"], protocol.from_mapping(keys, f"{path}, run {own['name']}")))
    if len({_folder(row.name) for row in found}) < len(found):
        raise ModelError(f"{path}: two runs have the same name, or names that differ in punctuation only")
    return found


def run_table(path: Path, output: Path, changes: Mapping[str, Any], command: str) -> str:
    """Every run of a table that is not there yet; `table.md` and `table.json` are written after each.

    Returns:
        The table.
    """
    found: dict[str, list[Info]] = {}
    output.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    every = rows(path, changes)
    for number, row in enumerate(every, 1):
        log.info("run %d of %d: %s", number, len(every), row.name)
        try:
            found[row.name] = run(row.config, output / _folder(row.name), command)
        except (ModelError, ArchiveError, RuntimeError, ValueError) as error:  # one row must not cost the others
            failed[row.name] = str(error).splitlines()[0]
            log.error("run %s failed: %s", row.name, failed[row.name])
            continue
        _write(found, output)
    if failed:
        raise ModelError(f"{len(failed)} of {len(every)} runs failed: {failed}; the others stand in {output}/table.md")
    return table(found)


def _write(found: Mapping[str, Sequence[Info]], output: Path) -> None:
    (output / "table.md").write_text(table(found))
    (output / "table.json").write_text(json.dumps({n: [_facts(i) for i in m] for n, m in found.items()}) + "\n")
    figure(found, output / "table.png")


def _facts(info: Info) -> dict[str, Any]:
    """What the table and the figure are made of."""
    return {
        "parameters": parameters(info), "multiply_adds": operations(info), "training": info.training,
        "metrics": info.metrics, "family": info.family,
    }  # fmt: skip


def _folder(name: str) -> str:
    return file_name("".join(c if c.isalnum() else "-" for c in name.lower()))


def table(found: Mapping[str, Sequence[Info]]) -> str:
    """One line per run: scores with bootstrap intervals over objects (of the first model), calibration, and cost."""
    early = " | ".join(f"at {n}" for n in EARLY)
    lines = [
        f"| run | accuracy | macro-F1 | {early} | class recall, least to most | log-loss | ECE (by chance) | "
        "parameters | multiply-adds at 12 stamps | minutes |",
        "|---" * (len(EARLY) + 9) + "|",
        *(_line(name, made) for name, made in found.items()),
    ]
    common = {made[0].name.rpartition(": ")[0] for made in found.values()}
    data = {made[0].metrics["data"] for made in found.values()}
    about = (
        f"Protocol: {'; '.join(sorted(common))}. Test objects: {'; '.join(sorted(data))}. Intervals: 68 %, bootstrap "
        f"over objects. Early scores are macro-F1. Minutes are CPU time of the run on {'; '.join(_machines(found))}."
    )
    return "\n".join(lines) + f"\n\n{about}\n"


def _line(name: str, made: Sequence[Info]) -> str:
    info = made[0]
    end, recalls = info.metrics["at_the_end"], _recalls(info)
    untrained = "" if _trained(end) else " (untrained: not above its class prior)"
    cells = [
        table_cell(name) + untrained, _shown(end, "accuracy"), _shown(end, "macro_f1"),
        *(_early(info, n) for n in EARLY), f"{min(recalls):.2f} to {max(recalls):.2f}" if recalls else "",
        f"{end['log_loss']:.3f}", f"{end['ece']:.3f} ({end['ece_expected']:.3f})", f"{parameters(info):,}",
        f"{operations(info)['12'] / 1e6:,.1f} M", f"{_seconds(info) / 60:.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _seconds(info: Info) -> float:
    return float(info.training.get("cpu_seconds", info.training["seconds"]))


def _early(info: Info, stamps: int) -> str:
    scores = info.metrics["after_stamps"].get(str(stamps))
    return f"{scores['macro_f1']:.3f}" if scores else ""


def _recalls(info: Info) -> list[float]:
    return [own["recall"] for own in info.metrics["per_class"].values() if own.get("recall") is not None]


def _trained(end: Mapping[str, Any]) -> bool:
    """Whether the balanced accuracy is above that of guessing."""
    return bool(end.get("balanced_accuracy", 1.0) > 1.05 / max(end.get("classes", 4), 1))


def _machines(found: Mapping[str, Sequence[Info]]) -> list[str]:
    return sorted({str(made[0].training.get("device", "?")) for made in found.values()})


def figure(found: Mapping[str, Sequence[Info]], path: Path) -> None:
    """Macro-F1 at the end with its interval beside that at 3 and 12 stamps, a row a run, the best on top."""
    from matplotlib import pyplot

    runs = sorted(found.items(), key=lambda row: row[1][0].metrics["at_the_end"]["macro_f1"])
    drawn, axis = pyplot.subplots(figsize=(7.5, 1.2 + 0.34 * len(runs)), layout="constrained")
    for y, (_, made) in enumerate(runs):
        end, after = made[0].metrics["at_the_end"], made[0].metrics["after_stamps"]
        axis.plot(end["macro_f1_68"], [y, y], color="#33658a", lw=2.5, solid_capstyle="round")
        axis.plot(end["macro_f1"], y, "o", color="#33658a", label="all stamps" if not y else None)
        for n, mark, colour in ((12, "D", "#86bbd8"), (3, "s", "#f6ae2d")):
            if str(n) in after:
                label = f"{n} stamps" if not y else None
                axis.plot(after[str(n)]["macro_f1"], y, mark, color=colour, ms=5, label=label)
    axis.set_yticks(range(len(runs)), [caption(name) for name, _ in runs], fontsize=8)
    axis.set_xlabel("macro-F1 on confirmed test objects (68 % intervals)")
    axis.grid(axis="x", color="0.9")
    axis.legend(loc="lower right", fontsize=8, frameon=False)
    drawn.savefig(path, dpi=110)
    pyplot.close(drawn)


def parameters(info: Info) -> int:
    """That are served."""
    from skyheed.classifier.models.base import parameters as counted

    own = family(info.family)
    return counted(own.build(own.configure(info.config)))


def operations(info: Info) -> dict[str, int]:
    """Multiply-adds of an update of a history that has come to so many stamps."""
    own = family(info.family)
    config = own.configure(info.config)
    return {str(n): own.operations(config, n) for n in STAMPS if n <= config.stamps}


def _shown(scores: Mapping[str, Any], name: str) -> str:
    if name not in scores:
        return ""
    low, high = scores[f"{name}_68"]
    return f"{scores[name]:.3f} ({low:.3f} to {high:.3f})"
