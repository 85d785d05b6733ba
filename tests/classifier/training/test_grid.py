"""Grids: order, time left, rows that fail, and tables that say what the runs' JSON says."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from data_tools import made
from safetensors.torch import load_file

from skyheed.classifier import cli
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models.family import known_presets
from skyheed.classifier.training import dataset, grid, grid_table, protocol, selection, train

ROOT = Path(__file__).parents[3]
CONFIGS = Path(protocol.__file__).parents[1] / "configs"
EVEN = ("ConvEntion, 2-D", "vector", "ICT-ConvEntion, 2-D", "CNN+GRU", "SuperNNova", "ConvEntion, 3-D")


def table_file(tmp_path: Path, runs: str) -> Path:
    file = tmp_path / "t.toml"
    common = 'name = "tiny"\narchive = "x"\nsteps = 1\nbatch = 4\nevery = 1\nthreads = 1\nautocast = false\n'
    file.write_text(f"[common]\n{common}{runs}")
    return file


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "load", lambda *_, **__: made([4 + n % 7 for n in range(32)]))


def test_further_seeds_come_after_the_first_of_every_row_and_stand_in_its_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "AT_ONCE", 0.0)
    file = table_file(
        tmp_path,
        '[[run]]\nname = "A"\nmodel = "lstm"\nseeds = [1, 2]\npublished = [55.24, 40.33]\n'
        '[[run]]\nname = "B"\nmodel = "lstm"\nrate = 0.1\n',
    )
    with caplog.at_level(logging.INFO, "skyheed.train"):
        said = grid.run_table(file, tmp_path / "out", {}, "make it")
    started = [m for m in caplog.messages if m.startswith("run ")]
    assert [m.split(";")[0] for m in started] == ["run 1 of 3: a", "run 2 of 3: b", "run 3 of 3: a-seed2"]
    assert "left" not in started[0]
    assert "minutes left" in started[1]
    found = json.loads((tmp_path / "out" / "table.json").read_text())
    assert {name: len(made_) for name, made_ in found.items()} == {"A": 2, "B": 1}
    assert [one["training"]["protocol"]["seed"] for one in found["A"]] == [1, 2]
    assert said == grid_table.text(found) == (tmp_path / "out" / "table.md").read_text()
    a, b = said.splitlines()[2:4]
    assert a.startswith("| A")
    assert " | 2: 0." in a
    assert a.endswith(" | 55.24 / 40.33 |")
    assert grid_table.UNLIKE in said.splitlines()[0]
    assert b.startswith("| B")
    assert a.count(" | ") == b.count(" | ") == said.splitlines()[0].count(" | ")


def test_whatever_a_row_fails_of_the_others_are_made_and_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train.run

    def fails(config: Any, *given: Any, **named: Any) -> Any:
        if config.model == "sits-bert":
            raise MemoryError("no room")
        return run(config, *given, **named)

    monkeypatch.setattr(train, "run", fails)
    file = table_file(
        tmp_path, '[[run]]\nname = "breaks"\nmodel = "sits-bert"\n[[run]]\nname = "works"\nmodel = "lstm"\n'
    )
    with pytest.raises(ModelError, match=r"1 of 2 runs failed.*MemoryError: no room"):
        grid.run_table(file, tmp_path / "out", {}, "")
    said = (tmp_path / "out" / "table.md").read_text()
    assert "| works" in said
    assert "Failed: breaks: MemoryError: no room" in said


KILLED = """
import sys
from pathlib import Path
from data_tools import made
from skyheed.classifier.training import dataset, grid
dataset.load = lambda *_, **__: made([4 + n % 7 for n in range(32)])
grid.run_table(Path(sys.argv[1]), Path(sys.argv[2]), {}, "")
"""


def test_a_grid_that_is_killed_goes_on_in_the_middle_of_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "steps = 400\nevery = 10\n"
    file = table_file(
        tmp_path, f'[[run]]\nname = "A"\nmodel = "lstm"\n[[run]]\nname = "B"\nmodel = "lstm"\nrate = 0.01\n{slow}'
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(file), str(tmp_path / "out")], env=environ)
    deadline, log = time.monotonic() + 200, tmp_path / "out" / "b" / "log.csv"
    while not (log.is_file() and len(log.read_text().splitlines()) > 4) and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    done = (tmp_path / "out" / "a" / "model.json").read_bytes()
    known = len(log.read_text().splitlines()) - 1
    assert not (tmp_path / "out" / "b" / "model.json").exists()
    update, steps = train.Trainer._update, []
    monkeypatch.setattr(train.Trainer, "_update", lambda *given: steps.append(1) or update(*given))
    grid.run_table(file, tmp_path / "out", {}, "")
    assert 0 < len(steps) <= 400 - 10 * (known - 1)  # what was measured last may not have been saved
    monkeypatch.undo()
    monkeypatch.setattr(dataset, "load", lambda *_, **__: made([4 + n % 7 for n in range(32)]))
    assert (tmp_path / "out" / "a" / "model.json").read_bytes() == done
    grid.run_table(file, tmp_path / "undisturbed", {}, "")
    logs = [(tmp_path / part / "b" / "log.csv").read_text().splitlines()[1:] for part in ("out", "undisturbed")]
    assert 4 <= known < len(logs[1]) == 40
    # a step that was measured just before the kill, but not yet saved, may be measured twice
    assert list(dict.fromkeys(line.split(",")[1] for line in logs[0])) == [line.split(",")[1] for line in logs[1]]
    assert len(logs[0]) <= 41
    both = [load_file(tmp_path / part / "b" / "weights.safetensors") for part in ("out", "undisturbed")]
    for name, value in both[1].items():
        torch.testing.assert_close(both[0][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("seeds = [1, 1]", "seeds is .*: give a list of different whole numbers"),
        ("seeds = 3", "seeds is 3: give a list"), ('seeds = ["a"]', "seed is 'a': give a whole number"),
        ('published = ["much"]', "published is .*: give accuracy and macro-F1 in percent"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_is_refused(tmp_path: Path, keys: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        grid.rows(table_file(tmp_path, f'[[run]]\nname = "a"\n{keys}\n'), {})


@pytest.mark.parametrize("names", [("a", "A"), ("a b", "a-b"), ("a", "a seed2"), ("a-seed2", "a")])
def test_no_two_runs_share_a_folder(tmp_path: Path, names: tuple[str, str]) -> None:
    runs = "".join(f"[[run]]\nname = {json.dumps(name)}\nseeds = [1, 2]\n" for name in names)
    with pytest.raises(ModelError, match="two runs would share the folder a"):
        grid.rows(table_file(tmp_path, runs), {})


@pytest.mark.parametrize(("classes", "balanced", "trained"), [(4, 0.26, False), (4, 0.3, True), (3, 0.34, False)])
def test_a_row_that_guesses_is_untrained(classes: int, balanced: float, trained: bool) -> None:
    (one,) = json.loads((ROOT / "docs" / "models" / "quick.json").read_text())["CNN+GRU"]
    one |= {"classes": ["x"] * classes, "at_the_end": one["at_the_end"] | {"balanced_accuracy": balanced}}
    line = grid_table.text({"CNN+GRU": [one]}).splitlines()[2]
    assert line.startswith("| CNN+GRU |" if trained else "| CNN+GRU (untrained: not above its class prior) |")


def test_a_run_of_several_seeds_may_start_from_as_many(tmp_path: Path) -> None:
    file = table_file(tmp_path, '[[run]]\nname = "a"\nstart = "runs/first{seed}"\nseeds = [1, 2, 5]\n')
    (row,) = grid.rows(file, {})
    assert [c.start for c in row.configs] == ["runs/first", "runs/first-seed2", "runs/first-seed5"]
    every = {row.name: row for row in grid.rows(CONFIGS / "adapt.toml", {})}
    for name in ("AdaBN, shifted", "AdaBN, mixture", "AdaBN, real"):
        made_by = [grid._Run(every["source only"], n).folder for n in range(3)]
        assert [c.start for c in every[name].configs] == [f"runs/adapt/{folder}" for folder in made_by]


def test_the_figure_shows_the_scores_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    found = json.loads((ROOT / "docs" / "models" / "quick.json").read_text())
    rows = {name: found[name] for name in ("vector", "SCONE")}
    monkeypatch.setattr(pyplot, "close", lambda _: None)
    grid_table.figure(rows, tmp_path / "table.png")
    axis = pyplot.gcf().axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["SCONE", "vector"]  # the best on top
    points = {(round(float(x), 4), int(y)) for line in axis.lines for x, y in line.get_xydata()}
    first, *others = [one["at_the_end"]["macro_f1"] for one in rows["vector"]]
    early = [rows["vector"][0]["after_stamps"][n]["macro_f1"] for n in ("3", "12")]
    assert points >= {
        (round(score, 4), 1) for score in (first, *others, *early, *rows["vector"][0]["at_the_end"]["macro_f1_68"])
    }
    assert (round(rows["SCONE"][0]["at_the_end"]["macro_f1"], 4), 0) in points


def test_rows_of_all_epochs_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def load(*_: Any, visits: bool = False, **__: Any) -> Any:
        asked.append(visits)
        return made([4 + n % 7 for n in range(32)])

    monkeypatch.setattr(dataset, "load", load)
    more = 'epochs = "all"\nnetwork = { photometry = true }\n'
    file = table_file(tmp_path, f'[[run]]\nname = "A"\nmodel = "lstm"\n[[run]]\nname = "B"\nmodel = "lstm"\n{more}')
    said = grid.run_table(file, tmp_path / "out", {}, "")
    assert asked == [False, True]
    assert "| A |" in said
    assert "| B † |" in said
    assert said.rstrip().endswith(grid_table.MARKED)
    with pytest.raises(ModelError, match="epochs is all, but vector would not read them: give a light-curve model"):
        grid.rows(table_file(tmp_path, '[[run]]\nname = "a"\nmodel = "vector"\nepochs = "all"\n'), {})
    with pytest.raises(ModelError, match="epochs is 'some': use alerts or all"):
        grid.rows(table_file(tmp_path, '[[run]]\nname = "a"\nmodel = "lstm"\nepochs = "some"\n'), {})


@pytest.mark.parametrize("name", known_presets())
def test_a_model_is_trained_by_its_name_as_in_its_row(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[protocol.Protocol] = []
    monkeypatch.setattr(grid, "run", lambda config, *_: seen.append(config) or [])
    words = [name, "--archive", "sky", "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(cli.train, words).exit_code == 0
    (one,) = seen
    assert (one.model, one.name, one.archive, one.network, one.objective) == (name, name, "sky", {}, {})
    assert (one.steps, one.objects, one.bands, one.epochs) == (500, 1200, "", "alerts")
    assert one.rate == {"cnn-gru": 0.0003, "supernnova": 0.015}.get(name, one.rate)


def test_a_model_that_there_is_not_is_told() -> None:
    with pytest.raises(ModelError, match="neither a file resnet nor a model of that name"):
        grid.of_model("resnet", {})


def test_every_model_has_a_row() -> None:
    every = grid.rows(CONFIGS / "seeds.toml", {})
    assert {config.model for row in every for config in row.configs} == set(known_presets())
    assert all(config.epochs == "alerts" or "all epochs" in row.name for row in every for config in row.configs)


@pytest.mark.parametrize("name", ["quick", "even"])
def test_the_committed_table_is_that_of_the_runs(name: str) -> None:
    found = json.loads((ROOT / "docs" / "models" / f"{name}.json").read_text())
    assert grid_table.text(found).strip() in (ROOT / "docs" / "models.md").read_text()


def test_every_system_of_the_even_protocol_has_the_same_objects_and_time(tmp_path: Path) -> None:
    rows = grid.rows(CONFIGS / "even.toml", {})
    assert tuple(row.name for row in rows)[: len(EVEN)] == EVEN  # the most important first
    assert {row.configs[0].model for row in rows} == set(known_presets())
    same = {key: [] for key in ("cpu_seconds", "patience", "objects", "validation", "stamps", "every", "threads")}
    data = made([6] * 64)
    seen = []
    for row in rows:
        (config,) = row.configs
        for key, values in same.items():
            values.append(getattr(config, key))
        seen.append([part.tolist() for part in selection.stages(config, data)])
    assert all(len(set(values)) == 1 for values in same.values())
    assert same["cpu_seconds"][0] == 7200
    assert same["patience"][0] > 0
    assert all(one == seen[0] for one in seen)
    common = tomllib.loads((CONFIGS / "even.toml").read_text())["common"]
    assert common["steps"] > 7200 * 100  # the time ends a row, not the steps


def test_a_run_ends_early_when_nothing_gets_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.Trainer, "_measure", lambda self, stage, step, loss: step <= 2)
    monkeypatch.setattr(train.Trainer, "finish", lambda self, command: SimpleNamespace(done=self.done, left=self.model))
    steps: list[int] = []
    monkeypatch.setattr(train.Trainer, "_update", lambda self, optimiser, loss: steps.append(1) or 0.0)
    config = protocol.Protocol(
        "none", model="lstm", steps=1000, cpu_seconds=7200, every=2, patience=3, batch=4, threads=1, autocast=False
    )
    train.run(config, tmp_path, "", dataset.load())
    assert len(steps) == 2 + 3 * 2


def test_a_second_stage_has_its_own_time_when_the_first_one_ended_early(tmp_path: Path) -> None:
    config = protocol.Protocol(
        "none", model="lstm", steps=10**6, fine_steps=10**6, cpu_seconds=1000, batch=4, threads=1, autocast=False
    )
    trainer = train.Trainer(config, dataset.load(), tmp_path)
    trainer.clock.cpu_seconds = 100.0  # the first stage did not get better any more
    assert trainer.clock.share("whole") == pytest.approx(100 / 850, rel=0.05)
    trainer.clock.begun["fine"] = 100.0
    trainer.clock.cpu_seconds = 175.0
    assert trainer.clock.share("fine") == pytest.approx(0.5, abs=0.05)
    trainer.clock.cpu_seconds = 250.0
    assert trainer.clock.share("fine") >= 1
