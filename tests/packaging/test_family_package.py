"""A model family, and a survey, that a package of someone else's brings: trains, is saved, loads and serves."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    reader_schema = {"type": "record", "name": "tiny", "fields": [
        {"name": "id", "type": ["null", "string"], "default": None},
        {"name": "mjd", "type": ["null", "double"], "default": None}]}
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
USE = """
import io, sys
sys.path.insert(0, TESTS)
import fastavro, numpy as np
from data_tools import made
from pathlib import Path
from skyheed import History, load_model, read_packet
from skyheed.broker.packets.surveys.links import pixel_arcsec
from skyheed.broker.web.positions import links
from skyheed.classifier.training import protocol, train
run = protocol.from_mapping(dict(archive="x", name="plus", model="mean-stamp", network={"hidden": 5}, steps=3, batch=4,
                                 every=3, threads=1, autocast=False), "test")
done = train.run(run, Path("out"), "", made([6, 5, 7, 6] * 8))
assert (done.family, done.config["hidden"]) == ("mean-stamp", 5)
model = load_model("out")
(p,) = model.predict([made([6]).history(0)])
assert abs(sum(p.probabilities) - 1) < 1e-5
fields = [{"name": "id", "type": "string"}, {"name": "mjd", "type": "double"}]
schema = {"type": "record", "name": "a", "fields": fields}
out = io.BytesIO()
fastavro.writer(out, schema, [{"id": "one", "mjd": 60000.0}])
(seen,) = read_packet(out.getvalue(), survey="tiny")
assert History.by_object([seen])["one"].survey == "tiny"
page = links("tiny", "one two", 1.0, 2.0)
assert {"name": "Elsewhere", "url": "https://e.example/one%20two?a={b}", "group": "broker"} in page
assert (pixel_arcsec("tiny"), pixel_arcsec("tiny.night20")) == (0.25, 0.25)
assert pixel_arcsec("bare") is None and {one["group"] for one in links("bare", "x", 1.0, 2.0)} == {"sky"}
print("all of it works")
"""


@pytest.mark.timeout(300)
def test_a_family_and_a_survey_from_an_outside_package(tmp_path: Path) -> None:
    source, site = tmp_path / "astro-plus", tmp_path / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "astro_plus.py").write_text(PACKAGE)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, timeout=120, capture_output=True)
    (wheel,) = tmp_path.glob("astro_plus-*.whl")
    # an environment of its own that sees what is installed here, and the package
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, timeout=120, capture_output=True)
    code = f"TESTS = {str(ROOT / 'tests')!r}\n" + USE
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all of it works" in done.stdout
