"""The models of a worker: as the settings list them, and how they are loaded."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from stream_tools import save_checkpoint

from skyheed.broker import config, worker_models
from skyheed.broker.cli import skyheed
from skyheed.broker.errors import ConfigError
from skyheed.broker.settings import Settings
from skyheed.classifier.models.priors import PRIOR

LOAD = """
from skyheed.broker import config, worker_models
worker_models.load_models(config.load(overrides={"survey": "ztf"}, environ={}))
"""


def display(**environ: str) -> str:
    """What libgomp says of its settings when torch loads it, in a process that loads the default model."""
    kept = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_DISPLAY_ENV": "true", **environ}
    done = subprocess.run([sys.executable, "-c", LOAD], env=kept, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_threads_of_torch_sleep_while_they_wait() -> None:
    """Spinning, they took twice the computation's own CPU time from ingest and servers on the same two cores."""
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in display()


def test_an_operator_may_let_them_spin() -> None:
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in display(OMP_WAIT_POLICY="ACTIVE")


def settings_of(folder: Path, text: str) -> Settings:
    (folder / "models.toml").write_text(f'survey = "sdss"\n[work]\nthreads = 1\nprecision = "float32"\n{text}')
    return config.load(folder / "models.toml", environ={})


def test_a_table_of_models_says_where_each_publishes_and_which_prior_it_assumes(tmp_path: Path) -> None:
    place = save_checkpoint(tmp_path, "sdss")
    tables = "".join(
        f'[[work.models]]\nmodel = "{place}"\nname = "{name}"\n{more}\n'
        for name, more in (("a", ""), ("b", ""), ("c", 'topic = "mine"\nprior = "1,2,3,4"'), ("d", 'topic = "mine"'))
    )
    models = worker_models.load_models(settings_of(tmp_path, tables))
    assert [(m.name, m.topic, m.shared) for m in models] == [
        ("a", "skyheed.classifications.sdss", False), ("b", "skyheed.classifications.sdss.b", False),
        ("c", "mine", True), ("d", "mine", True),
    ]  # fmt: skip
    versions = [m.model.info.version for m in models]
    assert versions[2].endswith(f"{PRIOR}1-2-3-4")
    assert not any(PRIOR in versions[n] for n in (0, 1, 3))


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    place = save_checkpoint(tmp_path, "sdss")
    with pytest.raises(ConfigError, match=r"two models are called test-sdss: give one of them another name"):
        worker_models.load_models(settings_of(tmp_path, f'[[work.models]]\nmodel = "{place}"\n' * 2))


def test_one_model_or_a_table_of_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"work.model and work.prior are for one model, \[\[work.models\]\]"):
        settings_of(tmp_path, 'model = "sdss"\n[[work.models]]\nmodel = "sdss/vector"\n')
    with pytest.raises(ConfigError, match="1 to 48 letters, digits, - and _, not 'a b'"):
        settings_of(tmp_path, '[[work.models]]\nmodel = "sdss/vector"\nname = "a b"\n')


ONE, SEVERAL = (
    '[work]\nmodel = "sdss"\n',
    '[[work.models]]\nmodel = "sdss"\n[[work.models]]\nmodel = "sdss/supernnova"\n',
)


@pytest.mark.parametrize("text", [ONE, SEVERAL], ids=["one in the file", "several in the file"])
@pytest.mark.parametrize(
    ("verb", "chosen"),
    [
        ("work", ["sdss/vector"]), ("work", ["sdss/vector", "sdss/fusion"]), ("serve", ["sdss/vector"]),
        ("serve", ["sdss/vector", "sdss/fusion"]), ("prior", ["sdss/vector"]),
    ],
)  # fmt: skip
def test_models_on_the_command_line_take_the_place_of_those_in_the_file(
    verb: str, text: str, chosen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def note(settings: Settings, *_: Any, **__: Any) -> dict[str, Any]:
        seen.append([m.model for m in settings.models])
        return {}

    for place in ("app.run_work", "serve.run", "prior.report"):
        monkeypatch.setattr(f"skyheed.broker.{place}", note)
    monkeypatch.setattr("skyheed.broker.prior.text", str)
    (tmp_path / "f.toml").write_text(f'survey = "sdss"\n{text}')
    words = [verb, "--config", str(tmp_path / "f.toml"), *(word for model in chosen for word in ("--model", model))]
    done = CliRunner().invoke(skyheed, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert seen == [chosen]


def test_a_model_of_the_environment_takes_the_place_of_those_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text(SEVERAL)
    found = config.load(tmp_path / "f.toml", environ={"SKYHEED_MODEL": "sdss/vector"})
    assert [m.model for m in found.models] == ["sdss/vector"]
    both = config.load(tmp_path / "f.toml", {"work.models": ["a", "b"]}, environ={"SKYHEED_MODEL": "sdss/vector"})
    assert [m.model for m in both.models] == ["a", "b"]
