"""Many runs under one protocol: the blocks and models of one configuration, or the rows of an ablation table."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier import value_checks
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models.checkpoint import Info
from skyheed.classifier.safe_names import file_name
from skyheed.classifier.training import adaptation_table, dataset, grid_table, protocol, selection, train
from skyheed.classifier.training.dataset import Dataset
from skyheed.classifier.training.protocol import Protocol

log = logging.getLogger("skyheed.train")
VALIDATION = 8  # one in this many training objects of a block is used for selection and calibration
AT_ONCE = 5.0  # seconds; a shorter run is taken to have existed already
# keys of rows that change what a model is by its name, or what it learns from
UNLIKE_MODEL = {"network", "objective", "bands", "classes", "epochs", "batch"}
SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")


def run(config: Protocol, output: Path, command: str) -> list[Info]:
    """Every model of every block (one if there are no blocks), each in its own folder; finished ones are kept.

    With blocks, `summary.json` holds the mean and the scatter of the scores over them.
    """
    if not config.blocks:
        return [train.run(config, output, command)]
    data = selection.load(config)
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

    Objects are split as a whole, before any resampling, so none is on both sides.
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
    """Mean and standard deviation of the final scores over models."""
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
    """One row of the table: its name, its changes to the common protocol, and published scores.

    Attributes:
        configs: one per seed.
        published: accuracy and macro-F1 in percent, on other data.
    """

    name: str
    configs: tuple[Protocol, ...]
    published: tuple[float, ...] = ()


def rows(path: Path, changes: Mapping[str, Any]) -> list[Row]:
    """The runs of a table: `[common]` with keys of a protocol, and `[[run]]` with a name and its changes.

    A run may also have `seeds`, a list with one model each, and `published`, the scores that others reported. In its
    `start`, `{seed}` becomes "" for the first seed and "-seed2" and so on for the others, as folders of runs end.

    Raises:
        ModelError: it cannot be read, or does not have that form.
    """
    given = protocol.load(path)
    common, runs = given.get("common", {}), given.get("run")
    sound = isinstance(common, dict) and isinstance(runs, list) and runs and all(isinstance(r, dict) for r in runs)
    if not sound or set(given) - {"common", "run"}:
        raise ModelError(f"{path}: a table has one [common] and several [[run]]")
    found = [_row(path, number, common, own, changes) for number, own in enumerate(given["run"], 1)]
    folders = [run.folder for run in _in_order(found)]
    if twice := sorted({folder for folder in folders if folders.count(folder) > 1}):
        raise ModelError(
            f"{path}: two runs would share the folder {twice[0]}: they have the same name, names that differ in "
            "punctuation only, or one that ends like a seed of the other"
        )
    return found


def of_model(name: str, changes: Mapping[str, Any]) -> Protocol:
    """The protocol with which a model has its row in the table of models.

    Raises:
        ModelError: no model of that name has one.
    """
    path = Path(__file__).parents[1] / "configs" / "seeds.toml"
    given = protocol.load(path)
    plain = [own for own in given["run"] if own["model"] == name and not set(own) & UNLIKE_MODEL]
    if not plain:
        raise ModelError(f"there is neither a file {name} nor a model of that name: see skyheed model list")
    own = {key: value for key, value in plain[0].items() if key not in ("name", "seeds", "published")}
    return protocol.from_mapping({**given["common"], **own, "name": name, **changes}, name)


def _row(path: Path, number: int, common: Mapping[str, Any], own: Mapping[str, Any], changes: Mapping[str, Any]) -> Row:
    if "name" not in own:
        raise ModelError(f"{path}: run {number} has no name")
    where = f"{path}, run {own['name']}"
    keys = {**common, **own, **changes}
    keys["name"] = ": ".join([common["name"], own["name"]] if "name" in common else [own["name"]])
    seeds, published = keys.pop("seeds", []), keys.pop("published", [])
    if not isinstance(seeds, list) or len(set(seeds)) < len(seeds):
        raise ModelError(f"{where}: seeds is {seeds}: give a list of different whole numbers")
    if not isinstance(published, list) or not all(value_checks.is_number(value) for value in published):
        raise ModelError(f"{where}: published is {published}: give accuracy and macro-F1 in percent")
    configs = [protocol.from_mapping(_of_seed(keys, n, seed), where) for n, seed in enumerate(seeds)]
    return Row(own["name"], tuple(configs or [protocol.from_mapping(keys, where)]), tuple(published))


def _of_seed(keys: Mapping[str, Any], number: int, seed: object) -> dict[str, Any]:
    made = {**keys, "seed": seed}
    if isinstance(start := keys.get("start"), str):
        made["start"] = start.replace("{seed}", _ending(number, seed))
    return made


@dataclass(frozen=True)
class _Run:
    """One model of a row; further seeds are run after all rows have their first."""

    row: Row
    number: int

    @property
    def folder(self) -> str:
        seed = self.row.configs[self.number].seed
        return _folder(self.row.name) + _ending(self.number, seed)


def _ending(number: int, seed: object) -> str:
    """What the folder of a row's further models ends with."""
    return f"-seed{seed}" if number else ""


def _in_order(every: Sequence[Row]) -> list[_Run]:
    return sorted((_Run(row, n) for row in every for n in range(len(row.configs))), key=lambda run: run.number)


def run_table(path: Path, output: Path, changes: Mapping[str, Any], command: str) -> str:
    """Do every run of a table that is missing; `table.md`, `table.json` and `table.png` are written after each.

    If runs adapt to another sky, so are `adaptation.md` and `adaptation.png`.

    Returns:
        The table.

    Raises:
        ModelError: some runs failed; the others were completed.
    """
    every = rows(path, changes)
    todo = _in_order(every)
    output.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Any]] = {}
    folders: dict[str, list[Path]] = {}
    failed: dict[str, str] = {}
    clock = _Clock(len(todo))
    for number, one in enumerate(todo, 1):
        log.info("run %d of %d: %s%s", number, len(todo), one.folder, clock.left(number))
        began = time.monotonic()
        try:
            made = run(one.row.configs[one.number], output / one.folder, command)
        except Exception as error:  # an error of any kind must not stop the other rows
            failed[one.folder] = f"{type(error).__name__}: {error}".splitlines()[0]
            log.exception("run %s failed", one.folder)
            continue
        clock.add(time.monotonic() - began)
        found.setdefault(one.row.name, []).extend(grid_table.facts(info, one.row.published) for info in made)
        folders.setdefault(one.row.name, []).append(output / one.folder)
        _write({row.name: found[row.name] for row in every if row.name in found}, output, failed)
        if time.monotonic() - began > AT_ONCE:  # intervals take seconds: not for runs that existed already
            adaptation_table.write(_ordered(folders, every), output)
    adaptation_table.write(_ordered(folders, every), output)
    if failed:
        raise ModelError(f"{len(failed)} of {len(todo)} runs failed: {failed}; the others are in {output}/table.md")
    return (output / "table.md").read_text()


def _ordered(folders: Mapping[str, Sequence[Path]], every: Sequence[Row]) -> dict[str, Sequence[Path]]:
    """The folders of the rows that have any, in the order of the table."""
    return {row.name: folders[row.name] for row in every if row.name in folders}


class _Clock:
    """Estimates the time that the remaining runs may take, from those that this process has completed."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._took: list[float] = []

    def add(self, seconds: float) -> None:
        """Add the time of a run; one that existed already is ignored."""
        if seconds > AT_ONCE:
            self._took.append(seconds)

    def left(self, number: int) -> str:
        """The estimate in words, before the run of that number."""
        if not self._took:
            return ""
        left = (self._runs - number + 1) * float(np.mean(self._took)) / 60
        return f"; about {left:.0f} minutes left, {np.mean(self._took) / 60:.0f} a run"


def _write(found: Mapping[str, Sequence[Any]], output: Path, failed: Mapping[str, str]) -> None:
    (output / "table.json").write_text(json.dumps(found) + "\n")
    (output / "table.md").write_text(grid_table.text(found, failed))
    grid_table.figure(found, output / "table.png")


def _folder(name: str) -> str:
    return file_name("".join(c if c.isalnum() else "-" for c in name.lower()))
