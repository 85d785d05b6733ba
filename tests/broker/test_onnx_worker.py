"""A worker that serves an export to ONNX, on a machine without torch."""

import json
import logging
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from stream_tools import answers, ingest_all, last_answers, publish, save_checkpoint, sdss_alert, settings_for

from skyheed.broker import app as daemon
from skyheed.broker import health, prior
from skyheed.broker.local import embedded
from skyheed.broker.work import history_of
from skyheed.classifier import serving
from skyheed.classifier.models.onnx.export import export

NO_TORCH = """
import sys
sys.modules["torch"] = None  # whoever imports it fails
from skyheed.broker.cli import main
main()
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its export."""
    logging.getLogger("torch.__trace").setLevel(logging.CRITICAL)  # thousands of lines, which pytest would keep
    folder = tmp_path_factory.mktemp("models")
    made = save_checkpoint(folder, "sdss")
    return made, export(made, folder / "onnx")


def skyheed(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", NO_TORCH, *words], capture_output=True, text=True, timeout=250)


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.timeout(600)
def test_a_worker_serves_an_export_without_torch(
    kafka: embedded.Server, valkey: embedded.Server, places: tuple[Path, Path]
) -> None:
    topic = f"alerts-{uuid.uuid4().hex[:8]}"
    where = {"topics.classifications": f"out-{topic}", "topics.dead_letters": f"dead-{topic}"}
    settings = settings_for(kafka.address, valkey.url, "sdss", topic, **where)
    publish(settings, topic, [sdss_alert(name, n) for name in ("A", "B", "C") for n in range(4 if name != "C" else 1)])
    ingest_all(settings)
    config = places[0].parent / "night.toml"
    config.write_text(
        f'survey = "sdss"\n[kafka]\n"bootstrap.servers" = "{kafka.address}"\n[redis]\nurl = "{valkey.url}"\n'
        f'[ingest]\ntopics = ["{topic}"]\ngroup = "group-{topic}"\n'
        f'[topics]\nclassifications = "out-{topic}"\ndead_letters = "dead-{topic}"\n'
    )
    ran = skyheed("work", "--config", str(config), "--model", str(places[1]), "--drain")
    assert ran.returncode == 0, ran.stderr
    assert "onnxruntime" in ran.stderr
    found = last_answers(answers(settings))
    assert found["C"].reason == "too_few_stamps"
    store, _, _ = daemon.read_store(settings)
    model = serving.load(places[0], survey="sdss", device="cpu", precision="float32", threads=1)
    for name in ("A", "B"):
        sequence = store.sequence(name)
        assert sequence is not None
        (expected,) = model.predict([history_of(sequence, "sdss")])
        np.testing.assert_allclose(
            [p.probability for p in found[name].probabilities], expected.probabilities, atol=1e-5
        )
        assert found[name].provenance.weights_digest == model.info.digest


def test_health_and_prior_know_an_export(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for("k:9092", "redis://r:6379", "sdss", "t", **{"work.model": str(places[1])})
    (line,) = health.check(settings, ["model"])
    assert line.ok
    assert "a worker here computes by onnxruntime" in line.sentence
    (info,) = prior._infos(settings)
    assert info.digest == serving.load(places[1], survey="sdss").info.digest
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (line,) = health.check(settings, ["model"])
    assert "has no onnxruntime" in line.sentence
    assert "torch" not in line.sentence
    assert json.loads((places[1] / "onnx.json").read_text())["model"]["digest"] == info.digest
