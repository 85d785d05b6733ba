"""Many runs under one protocol: the blocks and models of one configuration, or the rows of a table of ablations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import dataset, protocol, train
from .checkpoint import Info
from .dataset import Dataset
from .errors import ModelError
from .names import file_name
from .protocol import Protocol

VALIDATION = 8  # one in so many of a block's training objects selects and calibrates
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
    for row in rows(path, changes):
        found[row.name] = run(row.config, output / _folder(row.name), command)
        (output / "table.md").write_text(table(found))
        (output / "table.json").write_text(json.dumps({n: [i.metrics for i in m] for n, m in found.items()}) + "\n")
    return table(found)


def _folder(name: str) -> str:
    return file_name("".join(c if c.isalnum() else "-" for c in name.lower()))


def table(found: Mapping[str, Sequence[Info]]) -> str:
    """One line per run: parameters, seconds, and scores with bootstrap intervals over objects (of the first model)."""
    lines = [
        "| run | parameters | minutes | accuracy | macro-F1 | macro-F1 at 5 stamps | log-loss | ECE (by chance) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, made in found.items():
        end, early = made[0].metrics["at_the_end"], made[0].metrics["after_stamps"].get("5", {})
        cells = [
            name, f"{parameters(made[0]):,}", f"{made[0].training['seconds'] / 60:.0f}", _shown(end, "accuracy"),
            _shown(end, "macro_f1"), _shown(early, "macro_f1"), f"{end['log_loss']:.3f}",
            f"{end['ece']:.3f} ({end['ece_expected']:.3f})",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    common = {made[0].name.rpartition(": ")[0] for made in found.values()}
    data = {made[0].metrics["data"] for made in found.values()}
    about = f"Protocol: {'; '.join(sorted(common))}. Test objects: {'; '.join(sorted(data))}."
    return "\n".join(lines) + f"\n\n{about} Intervals: 68 %, bootstrap over objects.\n"


def parameters(info: Info) -> int:
    """Of the model."""
    from .convention import Config, layers

    return sum(count for _, count in layers(Config(**info.config)))


def _shown(scores: Mapping[str, Any], name: str) -> str:
    if name not in scores:
        return ""
    low, high = scores[f"{name}_68"]
    return f"{scores[name]:.3f} ({low:.3f} to {high:.3f})"
