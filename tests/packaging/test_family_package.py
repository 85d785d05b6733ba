"""A model family, and a survey, that a package of someone else's brings: trains, is saved, loads and serves."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import fastavro
import pytest
from stream_tools import publish, settings_for

from skyheed.broker.local import embedded

ROOT = Path(__file__).parents[2]
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "astro-plus"
version = "0.1"
[project.entry-points."skyheed.models"]
mean-stamp = "astro_plus:MeanStamp"
[project.entry-points."skyheed.surveys"]
tiny = "astro_plus:Tiny"
bare = "astro_plus:Bare"
"""
PACKAGE = '''
import json
from dataclasses import dataclass
from importlib.resources import files
import numpy as np
import torch
from torch import nn
from skyheed import Observation
from skyheed.classifier.models.base import Config, Family, Network
from skyheed.classifier.prediction import Needs

@dataclass(frozen=True)
class Shape(Config):
    hidden: int = 8

class Net(Network):
    def __init__(self, config):
        super().__init__()
        self.config, self.width = config, config.hidden
        self.first, self.last = nn.Linear(1024, config.hidden), nn.Linear(config.hidden, config.classes)
    def collate(self, histories, scaling):
        means = [scaling(h.images["science"], h.band).mean(0).ravel() for h in histories]
        return {"mean": np.stack(means).astype(np.float32)}
    def encode(self, batch):
        return self.first(batch["mean"]).relu()
    def classify(self, encoded):
        return self.last(encoded)

class MeanStamp(Family):
    name, summary, config, network = "mean-stamp", "the mean of all stamps", Shape, Net
    presets = {"mean-stamp": {}}
    def needs(self, config):
        return Needs(images=("science",), fewest=1)
    def operations(self, config, stamps):
        return 1024 * config.hidden

class Bare:
    """Alerts of three numbers."""
    name, bands, stamp_kinds, default_stamp = "bare", "r", ("science",), "science"
    reader_schema = json.loads(files("astro_plus").joinpath("tiny.avsc").read_text())
    def __init__(self, stamp=None, bands=None):
        self.stamp = "science"
    def observation(self, record):
        stamp = np.zeros((32, 32), np.float16)
        return Observation(record["id"], 1, record["mjd"], "r", 1.0, 2.0, 3.0, 0.1, stamp, 0)
    def time(self, record):
        return record["mjd"]

class Tiny(Bare):
    """The same with what the page wants to know."""
    name, pixel_arcsec, pages = "tiny", 0.25, {"Elsewhere": "https://e.example/{}?a={b}"}
'''
SCHEMA = {
    "type": "record", "name": "tiny", "fields": [
        {"name": "id", "type": ["null", "string"], "default": None},
        {"name": "mjd", "type": ["null", "double"], "default": None},
    ],
}  # fmt: skip
USE = """
import sys
sys.path.insert(0, TESTS)
from dataclasses import replace
from data_tools import made
from pathlib import Path
from skyheed import History, load_model, read_packet
from skyheed.broker.packets.surveys.links import pixel_arcsec
from skyheed.broker.web.positions import links
from skyheed.classifier.training import protocol, train
run = protocol.from_mapping(dict(archive="x", name="plus", model="mean-stamp", network={"hidden": 5}, steps=3, batch=4,
                                 every=3, threads=1, autocast=False), "test")
done = train.run(run, Path("out"), "", replace(made([6, 5, 7, 6] * 8), survey="tiny"))
assert (done.family, done.config["hidden"]) == ("mean-stamp", 5)
model = load_model("out")
(p,) = model.predict([made([6]).history(0)])
assert abs(sum(p.probabilities) - 1) < 1e-5
(seen,) = read_packet(Path("packet.avro").read_bytes(), survey="tiny")
assert History.by_object([seen])["one"].survey == "tiny"
page = links("tiny", "one two", 1.0, 2.0)
assert {"name": "Elsewhere", "url": "https://e.example/one%20two?a={b}", "group": "broker"} in page
assert (pixel_arcsec("tiny"), pixel_arcsec("tiny.night20")) == (0.25, 0.25)
assert pixel_arcsec("bare") is None and {one["group"] for one in links("bare", "x", 1.0, 2.0)} == {"sky"}
print("all of it works")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the package, built as a wheel, and with what is installed here."""
    folder = tmp_path_factory.mktemp("environment")
    source = folder / "astro-plus" / "astro_plus"
    source.mkdir(parents=True)
    (source.parent / "pyproject.toml").write_text(PYPROJECT)
    (source / "__init__.py").write_text(PACKAGE)
    (source / "tiny.avsc").write_text(json.dumps(SCHEMA))
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source.parent)]
    _run([sys.executable, "-m", "pip", *build])
    (wheel,) = folder.glob("astro_plus-*.whl")
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")])
    own = folder / "venv" / "bin" / "python"
    _run([sys.executable, "-m", "pip", "--python", str(own), "install", "-q", "--no-index", "--no-deps", str(wheel)])
    here = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "here.pth").write_text("\n".join(here))
    return own


@pytest.fixture(scope="module")
def trained(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the lines of `USE` have run: its `out` is a checkpoint of the package's family."""
    folder = tmp_path_factory.mktemp("use")
    (folder / "packet.avro").write_bytes(packet("one", 60000.0))
    code = f"TESTS = {str(ROOT / 'tests')!r}\n" + USE
    assert "all of it works" in _run([str(python), "-c", code], folder)
    return folder


def packet(name: str, mjd: float) -> bytes:
    out = io.BytesIO()
    fields = [{"name": "id", "type": "string"}, {"name": "mjd", "type": "double"}]
    fastavro.writer(out, {"type": "record", "name": "a", "fields": fields}, [{"id": name, "mjd": mjd}])
    return out.getvalue()


def _run(command: list[str], folder: Path | None = None) -> str:
    environ = {"PATH": os.defpath, "HOME": "/tmp", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_family_and_a_survey_from_an_outside_package(trained: Path) -> None:
    assert json.loads((trained / "out" / "model.json").read_text())["family"] == "mean-stamp"


@pytest.mark.kafka
@pytest.mark.redis
def test_they_are_served(python: Path, trained: Path, kafka: embedded.Server, valkey: embedded.Server) -> None:
    """From Kafka to Kafka by the verbs alone: the package's survey is read and its family classifies."""
    publish(
        settings_for(kafka.address, valkey.url, "sdss", "tiny"), "tiny", [packet(n, 60000.0) for n in ("one", "two")]
    )
    program = [str(python), "-m", "skyheed.broker.cli"]
    servers = ["--survey", "tiny", "--kafka", kafka.address]
    (trained / "now.toml").write_text("[ingest]\ndebounce_s = 0.0\n")
    both = [*servers, "--redis", valkey.url, "--config", "now.toml", "--drain"]
    _run([*program, "ingest", *both, "--topic", "tiny", "--group", "tiny"], trained)
    _run([*program, "work", *both, "--model", "out"], trained)
    said = _run([*program, "subscribe", *servers, "--drain", "--format", "json"], trained)
    records = [json.loads(line) for line in said.splitlines()]
    assert {(r["object_id"], r["survey"], r["status"], r["model"]) for r in records} == {
        ("one", "tiny", "CLASSIFIED", "plus"), ("two", "tiny", "CLASSIFIED", "plus"),
    }  # fmt: skip
