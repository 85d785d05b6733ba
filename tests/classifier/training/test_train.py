"""Training: stages, resuming, folds, tables and random views; few steps on small data."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from data_tools import made

from skyheed.classifier import cli, serving
from skyheed.classifier.errors import ModelError
from skyheed.classifier.evaluation import evaluate
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.convention.network import ConvEntion
from skyheed.classifier.training import calibration, dataset, grid, protocol, run_state, selection, train
from skyheed.classifier.training.dataset import Augmentation
from skyheed.classifier.training.protocol import Protocol
from skyheed.classifier.training.token_bank import Bank

SMALL = Protocol(
    "none", name="small", short_steps=3, steps=2, head_steps=3, fine_steps=1, fine_head_steps=2, batch=4, short_batch=8,
    head_batch=8, longest=9, bank_views=1, every=2, threads=1, autocast=False,
)  # fmt: skip
LENGTHS = [4 + n % 7 for n in range(32)]
FEW = LENGTHS[:16]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def weights(path: Path) -> dict[str, Any]:
    return checkpoint.load_state(path)


def test_a_run_makes_a_checkpoint_with_everything_it_used(tmp_path: Path) -> None:
    made_ = train.run(SMALL, tmp_path, "skyheed train x -o y", made(LENGTHS))
    assert made_ == checkpoint.read_info(tmp_path)
    assert made_.training["command"] == "skyheed train x -o y"
    assert made_.training["protocol"]["short_steps"] == 3
    assert made_.surveys == ("sdss",)
    assert made_.bands == "ugriz"
    assert made_.metrics["at_the_end"]["objects"] > 0
    stages = {line.split(",")[0] for line in (tmp_path / "log.csv").read_text().splitlines()[1:]}
    assert stages == {"short", "whole", "head", "fine", "fine_head"}
    assert not (tmp_path / "progress.pt").exists()


def test_tokens_are_made_again_only_if_the_3d_cnn_has_changed(tmp_path: Path) -> None:
    trainer = train.Trainer(SMALL, made(LENGTHS), tmp_path)
    everything, confirmed = selection.stages(SMALL, trainer.data)
    first = trainer._bank_of(confirmed)
    assert trainer._bank_of(confirmed[:3]) is first
    more = trainer._bank_of(everything)
    assert more is not first
    with torch.no_grad():
        trainer.model.features.conv4.weight.mul_(1.01)
    assert trainer._bank_of(everything) is not more


def test_a_finished_run_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(SMALL, steps=0, head_steps=0, fine_steps=0, fine_head_steps=0)
    first = train.run(short, tmp_path, "", made(LENGTHS))
    monkeypatch.setattr(train, "Trainer", None)
    assert train.run(short, tmp_path, "", made(LENGTHS)) == first


@pytest.mark.parametrize(("stage", "stops_at"), [("views", 3), ("classify", 8)])
def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, stops_at: int
) -> None:
    one = replace(
        SMALL, short_steps=4, steps=0, head_steps=4, fine_steps=0, fine_head_steps=2, dropout=0.3, average=0.5
    )
    whole = train.run(one, tmp_path / "whole", "", made(FEW))
    interrupt(monkeypatch, stage, stops_at)
    with pytest.raises(KeyboardInterrupt):
        train.run(one, tmp_path / "cut", "", made(FEW))
    monkeypatch.undo()
    assert not (tmp_path / "cut" / checkpoint.MODEL).exists()
    again = train.run(one, tmp_path / "cut", "", made(FEW))
    for name, tensor in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "cut")[name], tensor, rtol=1e-4, atol=1e-5)
    assert again.metrics["confusion"] == whole.metrics["confusion"]


def interrupt(monkeypatch: pytest.MonkeyPatch, stage: str, stops_at: int) -> None:
    """Ctrl-C in the training step of that number, as seen by the model's (or the trainer's) method."""
    owner: Any = ConvEntion if stage == "classify" else train.Trainer
    step, count = getattr(owner, stage), itertools.count(1)

    def stops(self: Any, *given: Any) -> torch.Tensor:
        if getattr(self, "training", True) and next(count) == stops_at:
            raise KeyboardInterrupt
        return cast(torch.Tensor, step(self, *given))

    monkeypatch.setattr(owner, stage, stops)


def test_a_finished_run_is_not_overwritten_by_another(tmp_path: Path) -> None:
    short = replace(SMALL, steps=0, head_steps=0, fine_steps=0, fine_head_steps=0)
    first = train.run(short, tmp_path, "", made(FEW))
    log = (tmp_path / "log.csv").read_text()
    with pytest.raises(ModelError, match="of another configuration: choose another output"):
        train.run(replace(short, rate=1e-4), tmp_path, "", made(FEW))
    assert checkpoint.read_info(tmp_path) == first
    assert (tmp_path / "log.csv").read_text() == log
    assert not (tmp_path / "candidate").exists()


def test_a_run_knows_its_archive_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(SMALL, steps=0, head_steps=0, fine_steps=0, fine_head_steps=0)
    monkeypatch.setattr(run_state, "card", lambda _: {"digest": "before"})
    train.run(short, tmp_path / "done", "", made(FEW))
    trainer = train.Trainer(short, made(FEW), tmp_path)
    trainer._keep(torch.optim.AdamW(trainer.model.parameters()))
    monkeypatch.setattr(run_state, "card", lambda _: {"digest": "after"})
    with pytest.raises(ModelError, match="trained on another archive of that name"):
        train.run(short, tmp_path / "done", "", made(FEW))
    with pytest.raises(ModelError, match="another configuration or archive"):
        train.Trainer(short, made(FEW), tmp_path)


def test_damaged_progress_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "progress.pt").write_bytes(b"no progress at all")
    with pytest.raises(ModelError, match=r"damaged.*remove it to start again"):
        train.Trainer(SMALL, made(FEW), tmp_path)


@pytest.mark.parametrize(
    ("split", "message"), [("train", "learn from"), ("validation", "select on"), ("test", "test on")]
)
def test_what_an_archive_lacks_is_said_before_training(tmp_path: Path, split: str, message: str) -> None:
    data = made(FEW)
    without = replace(data, split=["other" if s == split else s for s in data.split])
    with pytest.raises(ModelError, match=f"no .*objects in its split {split} to {message}"):
        train.run(SMALL, tmp_path, "", without)


def test_a_class_that_the_run_does_not_know_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="objects of class SNIa, the run knows AGN, Variable"):
        train.run(replace(SMALL, classes=("AGN", "Variable")), tmp_path, "", made(FEW))


def test_a_run_without_a_step_makes_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no stage has any step"):
        train.run(Protocol("none", autocast=False), tmp_path, "", made(FEW))
    assert not (tmp_path / checkpoint.MODEL).exists()


def test_the_second_stage_is_selected_on_confirmed_labels(tmp_path: Path) -> None:
    data = made(FEW)
    sure = np.array([s != "validation" or i % 8 < 2 for i, s in enumerate(data.split)])
    data = replace(data, confirmed=sure)
    trainer = train.Trainer(SMALL, data, tmp_path)
    asked: list[Any] = []

    def remember(_model: Any, _data: Any, chosen: Any, stamps: Any) -> dict[int, Any]:
        asked.append(chosen)
        return {n: (np.arange(len(chosen)), np.full((len(chosen), 4), 0.25)) for n in stamps}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skyheed.classifier.evaluation.evaluate.after_stamps", remember)
        trainer._measure("head", 2, 1.0)
        trainer.best = 0.9
        assert trainer._measure("fine_head", 0, 1.0)  # what the stage has to beat replaces what all labels gave
        assert trainer.best < 0.9
    assert asked[0].tolist() == trainer.validation.tolist()
    assert asked[1].tolist() == [i for i in trainer.validation if sure[i]]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_second_stage_rehearses_a_share_of_all_labels(tmp_path: Path, share: float) -> None:
    data = made(FEW)
    sure = np.array([s != "train" or i % 2 == 0 for i, s in enumerate(data.split)])
    trainer = train.Trainer(replace(SMALL, rehearse=share), replace(data, confirmed=sure), tmp_path)
    everything, confirmed = selection.stages(trainer.protocol, trainer.data)
    assert len(confirmed) < len(everything)
    drawn = trainer._draw(confirmed, 2000, np.random.default_rng(0), everything if share else train.NOTHING)
    assert len(drawn) == 2000
    # half of what is rehearsed is confirmed by chance
    assert np.mean(~sure[drawn]) == pytest.approx(share / 2, abs=0.1)
    assert set(drawn.tolist()) == set((everything if share else confirmed).tolist())


def test_progress_of_another_configuration_is_refused(tmp_path: Path) -> None:
    trainer = train.Trainer(SMALL, made(FEW), tmp_path)
    trainer._keep(torch.optim.AdamW(trainer.model.parameters()))
    with pytest.raises(ModelError, match="another configuration"):
        train.Trainer(replace(SMALL, rate=1e-4), made(FEW), tmp_path)


def test_progress_from_before_a_key_was_known_goes_on(tmp_path: Path) -> None:
    trainer = train.Trainer(SMALL, made(FEW), tmp_path)
    trainer._keep(torch.optim.AdamW(trainer.model.parameters()))
    saved = torch.load(tmp_path / "progress.pt", weights_only=True)
    del saved["protocol"]["stamps"]
    torch.save(saved | {"best": 0.5}, tmp_path / "progress.pt")
    assert train.Trainer(SMALL, made(FEW), tmp_path).best == 0.5
    with pytest.raises(ModelError, match="another configuration"):
        train.Trainer(replace(SMALL, stamps=24), made(FEW), tmp_path)


def test_a_run_can_start_from_another_checkpoint(tmp_path: Path) -> None:
    first = train.run(SMALL, tmp_path / "first", "", made(FEW))
    second = replace(SMALL, start=str(tmp_path / "first"), seed=2)
    trainer = train.Trainer(second, made(FEW), tmp_path / "second")
    for name, tensor in weights(tmp_path / "first").items():
        assert trainer.model.state_dict()[name].equal(tensor)
        assert trainer.best_state[name].equal(tensor)
    done = train.run(second, tmp_path / "second", "", made(FEW))
    assert done.training["started_from"] == f"small 1 {first.digest[:12]}"
    with pytest.raises(ModelError, match=r"cannot start from .*attention='linear'.*attention='mlp'"):
        train.Trainer(replace(second, attention="mlp"), made(FEW), tmp_path / "third")


def test_it_learns_what_there_is_to_learn(tmp_path: Path) -> None:
    easy = replace(SMALL, short_steps=2, steps=0, head_steps=300, fine_steps=0, fine_head_steps=0)
    easy = replace(easy, head_batch=32, head_rate=3e-3, every=100, average=0.9, dropout=0.0)
    found = train.run(easy, tmp_path, "", made([3] * 128))
    assert found.training["selected_macro_f1"] > 0.6  # chance: 0.25


@pytest.mark.parametrize(
    "changes",
    [
        {"variant": "paper", "time": "position"}, {"attention": "mlp"}, {"cnn": "2d"}, {"band_embedding": "none"},
        {"band_embedding": "fixed"}, {"time": "position"}, {"bands": "g"}, {"balanced": False},
        {"classes": ("AGN", "SN", "Variable")},
    ],
)  # fmt: skip
def test_every_ablation_runs(tmp_path: Path, changes: dict[str, Any]) -> None:
    one = replace(SMALL, short_steps=0, steps=1, head_steps=0, fine_steps=0, fine_head_steps=0, **changes)
    data = dataset.only(made(LENGTHS), one.bands) if one.bands else made(LENGTHS)
    found = train.run(one, tmp_path, "", data)
    assert found.classes == one.classes
    assert {key: found.config[key] for key in protocol.SHARED} == {key: getattr(one, key) for key in protocol.SHARED}
    assert found.bands == (one.bands or "ugriz")
    assert (tmp_path / "log.csv").read_text().count("whole") == 1


def test_objects_keep_to_their_side_of_every_fold() -> None:
    data = made(LENGTHS)
    sides = []
    for block in range(4):
        part = grid.folds(data, 4, block)
        test, rest = set(part.choose("test")), set(part.choose("train")) | set(part.choose("validation"))
        assert not test & rest
        assert len(test | rest) == 32
        assert {data.label[i] for i in test} == set(data.label)
        sides.append(test)
    assert set.union(*sides) == set(range(32))
    assert sum(map(len, sides)) == 32


def test_blocks_and_models_are_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "load", lambda *_, **__: made(LENGTHS))
    one = replace(SMALL, steps=1, short_steps=0, head_steps=0, fine_steps=0, fine_head_steps=0, blocks=2, models=1)
    grid.run(one, tmp_path, "")
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["models"] == 2
    assert 0 <= found["accuracy"]["mean"] <= 1


def test_a_table_is_run_once_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "load", lambda *_, **__: made(LENGTHS))
    file = tmp_path / "t.toml"
    file.write_text(
        '[common]\nname = "convention-tiny"\narchive = "x"\n'
        "steps = 1\nbatch = 4\nevery = 1\nthreads = 1\nautocast = false\n"
        '[[run]]\nname = "Stream, linear"\n[[run]]\nname = "paper"\nvariant = "paper"\ntime = "position"\n'
    )
    result = CliRunner().invoke(cli.train, [str(file), "--grid", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "1,253,108" in result.output
    assert "Protocol: convention-tiny. Test objects: sdss, simulated" in result.stdout
    assert "| Stream, linear" in (tmp_path / "out" / "table.md").read_text()
    monkeypatch.setattr(train, "Trainer", None)
    again = CliRunner().invoke(cli.train, [str(file), "--grid", "-o", str(tmp_path / "out")])
    assert again.stdout == result.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 1", "archive is missing"), ('archive = "x"\nstep = 1', "unknown key step"),
        ('archive = "x"\nprior = [1.0, 2.0]', "2 values for 4 classes"), ("archive = ", "cannot read"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ModelError, match=message):
        protocol.read(tmp_path / "c.toml")


@pytest.mark.parametrize("path", sorted(Path(train.__file__).parents[1].glob("configs/*.toml")), ids=lambda p: p.name)
def test_shipped_configurations_can_be_read(path: Path) -> None:
    assert grid.rows(path, {}) if "[[run]]" in path.read_text() else protocol.read(path)


def test_few_objects_are_chosen_evenly_and_on_their_own_side(tmp_path: Path) -> None:
    few = replace(SMALL, objects=8, validation=4)
    trainer = train.Trainer(few, made([6] * 64), tmp_path)
    everything, confirmed = selection.stages(few, trainer.data)
    assert np.bincount(trainer.labels[everything]).tolist() == [2, 2, 2, 2]
    assert np.bincount(trainer.labels[trainer.validation]).tolist() == [1, 1, 1, 1]
    assert set(everything) <= set(trainer.data.choose("train"))
    assert set(trainer.validation) <= set(trainer.data.choose("validation"))
    assert set(confirmed) <= set(everything)
    skewed = made([6] * 64)
    skewed = replace(skewed, label=["AGN" if i % 16 < 13 else skewed.label[i] for i in range(64)])
    natural, _ = selection.stages(replace(few, objects=16, balanced=False), skewed)
    assert len(natural) == 16
    assert np.mean([skewed.label[i] == "AGN" for i in natural]) > 0.6
    assert (
        train.Trainer(SMALL, made([6] * 64), tmp_path).validation.tolist() == trainer.data.choose("validation").tolist()
    )


def test_classes_are_drawn_equally_often_unless_told_otherwise(tmp_path: Path) -> None:
    data = made([4] * 64)
    indices = np.array([i for i in range(64) if i % 4 == 0 or i < 8])  # 16 of class 0, 2 of the others
    for balanced, share in ((True, 0.25), (False, 16 / 22)):
        trainer = train.Trainer(replace(SMALL, balanced=balanced), data, tmp_path)
        drawn = trainer._draw(indices, 4000, np.random.default_rng(0))
        assert (trainer.labels[drawn] == 0).mean() == pytest.approx(share, abs=0.03)


def test_views_are_sound_and_short_ones_occur() -> None:
    data, rng = made([120, 2, 1]), np.random.default_rng(0)
    augmentation = Augmentation(longest=30, whole=0.1)
    lengths = []
    for index in [0] * 300 + [1, 2] * 20:
        view, rows = augmentation.view(data, index, rng)
        view.check(99)
        assert (np.diff(rows) > 0).all()
        assert data.start[index] <= rows[0] <= rows[-1] < data.start[index + 1]
        lengths.append(len(rows))
    assert min(lengths[:300]) <= 3
    assert max(lengths) > 30
    assert np.mean(np.array(lengths) > 30) < 0.15


def test_a_turned_view_has_the_same_pixels() -> None:
    data, rng = made([3]), np.random.default_rng(0)
    view, rows = Augmentation(truncate=0, late=0, drop=0).view(data, 0, rng)
    for shown, stored in zip(view.images["science"], data.stamps[rows], strict=True):
        assert sorted(shown.ravel()) == sorted(stored.ravel())


def test_what_the_bank_holds_of_an_object_does_not_depend_on_the_others() -> None:
    def first_pixels(pixels: np.ndarray, _bands: np.ndarray) -> np.ndarray:
        return np.repeat(pixels[:, 0, :9, :9][:, None], 8, 1).astype(np.float32)

    def tokens(indices: list[int]) -> np.ndarray:
        bank = Bank(
            first_pixels, made([10, 7, 9]), np.array(indices), Augmentation(), Scaling((1.0,) * 6, 1.0), 2, (1,), 3
        )
        return bank.draw(np.array([2, 2, 2]), 0.3, 0.5, np.random.default_rng(0)).tokens

    np.testing.assert_array_equal(tokens([0, 1, 2]), tokens([2]))


def test_the_bank_gives_the_tokens_of_the_view() -> None:
    data, rng = made([10, 7]), np.random.default_rng(0)

    def mean_of_stamps(pixels: np.ndarray, bands: np.ndarray) -> np.ndarray:
        return np.broadcast_to((bands > 0).sum(1)[:, None, None, None], (len(pixels), 8, 9, 9)).astype(np.float32)

    bank = Bank(
        mean_of_stamps, data, np.array([0, 1]), Augmentation(truncate=0, late=0), Scaling((1.0,) * 6, 1.0), 2, (1, 2), 3
    )
    seen = set()
    for _ in range(50):
        drawn = bank.draw(np.array([0, 1]), 0.3, 0.5, rng)
        count = drawn.present.sum(-1)
        assert (drawn.tokens[..., 0, 0, 0] == count).all()  # each token comes with its own stamps
        assert (drawn.valid == (count > 0)).all()
        assert (drawn.days >= 0).all()
        assert (drawn.days[:, 0, 0] == 0).all()
        seen |= set(count.ravel().tolist())
    assert seen == {0, 1, 2, 3}


def test_a_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (4000, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = np.array([rng.choice(4, p=row) for row in p])
    assert calibration.temperature(logits, truth, np.ones(4000)) == pytest.approx(1, rel=0.1)
    assert calibration.temperature(3 * logits, truth, np.ones(4000)) == pytest.approx(3, rel=0.1)


def test_describe_prints_the_published_count() -> None:
    found = json.loads(CliRunner().invoke(cli.model, ["describe", "--variant", "paper", "--json"]).output)
    assert found["parameters"] == 1_253_108 == sum(row["parameters"] for row in found["layers"])
    text = CliRunner().invoke(cli.model, ["describe", "convention-paper", "--classes", "3"]).output
    assert "1,252,851" in text


def test_one_failing_row_does_not_cost_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "load", lambda *_, **__: made(LENGTHS))
    file = tmp_path / "t.toml"
    file.write_text(
        '[common]\nname = "tiny"\narchive = "x"\nsteps = 1\nbatch = 4\nevery = 1\nthreads = 1\nautocast = false\n'
        '[[run]]\nname = "breaks"\nstart = "nowhere"\n[[run]]\nname = "works"\nmodel = "convention-2d"\n'
    )
    result = CliRunner().invoke(cli.train, [str(file), "--grid", "-o", str(tmp_path / "out")])
    assert result.exit_code != 0
    assert "1 of 2 runs failed" in str(result.exception)
    assert "no model nowhere" in str(result.exception)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| works" in table
    assert "489,996" in table
    assert (tmp_path / "out" / "table.png").stat().st_size > 5000


def test_a_run_ends_when_its_cpu_time_is_gone(tmp_path: Path) -> None:
    one = replace(
        SMALL, steps=100_000, short_steps=0, head_steps=0, fine_steps=50_000, fine_head_steps=0, cpu_seconds=6
    )
    done = train.run(one, tmp_path, "", made(LENGTHS))
    stages = {line.split(",")[0] for line in (tmp_path / "log.csv").read_text().splitlines()[1:]}
    assert stages == {"whole", "fine"}  # the second stage has its share of the time
    assert done.training["cpu_seconds"] < 60


def test_a_dry_run_says_sizes_steps_and_time_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "load", lambda *_, **__: made(LENGTHS))
    file = tmp_path / "t.toml"
    file.write_text('archive = "x"\nsteps = 7\nbatch = 4\nthreads = 1\nautocast = false\nmodel = "convention-2d"\n')
    result = CliRunner().invoke(cli.train, [str(file), "--dry-run", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "489,996 parameters" in result.output
    assert "steps: steps 7" in result.output
    assert not (tmp_path / "out").exists()


OWN = """
[taxonomy]
version = "student-1"
[taxonomy.classes.Even]
id = 7
of = ["type-0", "type-2", "type-4"]
[taxonomy.classes.Odd]
id = 9
of = ["type-1", "type-3", "type-5"]
"""


def test_own_classes_are_trained_scored_and_stand_in_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dataset, "load", lambda *_, **__: made(LENGTHS))
    (tmp_path / "own.toml").write_text(
        'archive = "x"\nsteps = 2\nbatch = 4\nevery = 2\nthreads = 1\nautocast = false\nmodel = "convention-2d"\n' + OWN
    )
    run = protocol.read(tmp_path / "own.toml")
    assert run.classes == ("Even", "Odd")
    done = train.run(run, tmp_path / "out", "")
    assert "belong to no class and are left out" in caplog.text  # types 6 and 7
    assert (done.classes, done.taxonomy) == (("Even", "Odd"), "student-1")
    assert dict(done.class_ids) == {"Even": 7, "Odd": 9}
    served = serving.load(tmp_path / "out", survey="sdss", precision="float32")
    data = selection.of_known_classes(made(LENGTHS), run)
    p = served.classify([data.history(0)])[0].probabilities
    assert p.shape == (2,)
    assert evaluate.truth_of(data, np.array([0, 1, 2, 3]), served.info).tolist() == [0, 1, 0, 1]
    with pytest.raises(ModelError, match="none of its own"):
        evaluate.truth_of(data, np.array([6]), served.info)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"student-1"', "1", "give version"), ("id = 9", "id = 7", "have 7 in their id"),
        ('of = ["type-1"', 'of = ["type-0"', "have type-0 in their of"), ("id = 7", "id = 0", "Even: give id"),
        ("id = 7", "id = 300", "Even: give id"), ("[taxonomy.classes.Odd]", "[taxonomy.other]", "give version"),
    ],
)  # fmt: skip
def test_a_taxonomy_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in OWN
    (tmp_path / "own.toml").write_text('archive = "x"\nsteps = 2\n' + OWN.replace(old, new))
    with pytest.raises(ModelError, match=message):
        protocol.read(tmp_path / "own.toml")
