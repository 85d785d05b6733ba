"""Exports to ONNX: the same answers by onnxruntime, and without torch."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_tools import shown
from test_fusion import labelled
from zoo_tools import SCALING, history, lively, photometry

from skyheed.classifier import serving, taxonomy
from skyheed.classifier.errors import ModelError
from skyheed.classifier.history import History
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.base import Model, Network
from skyheed.classifier.models.checkpoint import Calibration, Info
from skyheed.classifier.models.family import family
from skyheed.classifier.models.fusion.network import Fusion
from skyheed.classifier.models.onnx.export import export
from skyheed.classifier.prediction import Declined
from skyheed.classifier.training import few_shot

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
long = pytest.mark.long
ONE = {"layers": 1}  # block as good as two, and exported in half the time
CASES = {
    "convention": ("convention", ONE), "vector": ("vector", ONE), "fusion": ("fusion", ONE), "lstm": ("lstm", {}),
    "convention-2d": ("convention", {"cnn": "2d"}), "screened": ("fusion", {**ONE, "screen": True}),
    "vector-float16": ("vector", {"kept": "float16", "pooling": "attention", "context": True}),
    "physnet": ("vector", {"encoder": "physnet", "band": "image"}),
    "film": ("vector", {"band": "film", "images": "all", "photometry": True}),
}  # fmt: skip
QUICK = ["convention", "vector", "fusion", "lstm"]
EVERY = [*QUICK, *(pytest.param(name, marks=long) for name in CASES if name not in QUICK)]


def network_of(name: str) -> tuple[str, Network]:
    own, values = CASES[name]
    torch.manual_seed(5)
    network = family(own).build(family(own).configure(values))
    network.fit_inputs([history_for(own, n) for n in range(2, 8)], SCALING)
    if isinstance(network, Fusion):
        views = labelled()
        few_shot.install(network, few_shot.fit(views, 3, 0.1), [0, 1, 2, 1])
        few_shot.install_familiar(network, views, views.rows(slice(0)), 3)
        if network.screen is not None:
            network.screen.linear.copy_(torch.linspace(0.2, 0.5, 6))
    return own, lively(network)


def history_for(own: str, n: int, seed: int = 0) -> History:
    seen = history(n, seed)
    images = {**seen.images, "difference": seen.images["science"], "template": seen.images["science"] * 0}
    context = {"detections": 3.0, "visits": 11.0, "reference_distance": 1.5}
    points = photometry(seen, seed % 9) if seed else None
    return replace(seen, images=images if own == "fusion" else seen.images, photometry=points, context=context)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Checkpoint and export of a case, each written once."""
    made: dict[str, tuple[Path, Path]] = {}
    logging.getLogger("torch.__trace").setLevel(logging.CRITICAL)  # thousands of lines, which pytest would keep

    def of(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            own, network = network_of(name)
            about = Info(
                "test", "1", network.config.to_dict(), taxonomy.CLASSES, "ugriz", ("sdss",), SCALING, family=own,
                calibration=Calibration((1.0, 10.0), (1.2, 0.8), (2.0, 1.0, 0.5, 0.5)),
            )  # fmt: skip
            checkpoint.save(folder / "checkpoint", network.state_dict(), about)
            made[name] = folder / "checkpoint", export(folder / "checkpoint", folder / "onnx")
        return made[name]

    return of


def both(places: tuple[Path, Path], **values: Any) -> tuple[Model, Model]:
    given: dict[str, Any] = {"survey": "sdss", "precision": "float32", "device": "cpu", **values}
    return serving.load(places[0], **given), serving.load(places[1], **given)


@pytest.mark.parametrize("name", EVERY)
def test_onnxruntime_says_what_torch_says(name: str, exported: Callable[[str], tuple[Path, Path]]) -> None:
    ours, theirs = both(exported(name))
    own = CASES[name][0]
    seen = [history_for(own, n, seed) for seed, n in enumerate((1, 3, 4, 7, 12, 30))]
    expected = np.stack([p.probabilities for p in ours.classify(seen)])
    found = np.stack([p.probabilities for p in theirs.classify(seen)])
    alone = np.stack([theirs.classify([h])[0].probabilities for h in seen])
    tolerance = 2e-3 if CASES[name][1].get("kept") == "float16" else 1e-5  # a float16 may be rounded the other way
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(alone, expected, rtol=0, atol=tolerance)
    assert np.ptp(expected, 0).max() > 0.01  # the model tells these apart
    assert theirs.needs == ours.needs
    assert theirs.classes == ours.classes
    if not ours.needs.span:
        assert not theirs.kept_as
        return
    assert theirs.kept_as != ours.kept_as  # what the one keeps is not taken for the other's
    early = theirs.classify([h.until(epochs=len(h) - 1) for h in seen[1:]])
    later = [shown(h, dict(p.keep), ours.needs.span) for h, p in zip(seen[1:], early, strict=True)]
    updated = np.stack([p.probabilities for p in theirs.classify(later)])
    np.testing.assert_allclose(updated, expected[1:], rtol=0, atol=tolerance)


def test_the_graphs_say_of_themselves_what_they_are(exported: Callable[[str], tuple[Path, Path]]) -> None:
    import onnx

    folder = exported("vector")[1]
    about = checkpoint.read_info(exported("vector")[0])
    card = json.loads((folder / "onnx.json").read_text())
    for part in ("encoder", "head"):
        graph = onnx.load(folder / f"{part}.onnx")
        onnx.checker.check_model(graph, full_check=True)
        said = {p.key: p.value for p in graph.metadata_props}
        assert said["skyheed.digest"] == about.digest
        assert said["skyheed.preprocessing"] == about.preprocessing
        assert json.loads(said["skyheed.classes"]) == list(about.classes)
        assert json.loads(said["skyheed.calibration"])["prior"] == [2.0, 1.0, 0.5, 0.5]
        assert json.loads(said["skyheed.scaling"])["gain"] == SCALING.gain
        assert graph.opset_import[0].version == card["opset"]
    assert card["graphs"]["encoder"]["inputs"] == {
        "images": ["float", ["stamps", 1, 32, 32]], "band": ["int64", ["stamps"]]
    }  # fmt: skip
    assert card["graphs"]["head"]["inputs"]["epochs"] == ["int64", ["histories", "new"]]
    assert card["model"]["classes"] == list(about.classes)


def test_another_prior_holds_for_an_export_too(exported: Callable[[str], tuple[Path, Path]]) -> None:
    ours, theirs = both(exported("lstm"), prior="1,2,3,4")
    assert theirs.info.version == ours.info.version == "1+prior.1-2-3-4"
    seen = [history_for("lstm", 4)]
    np.testing.assert_allclose(
        theirs.predict(seen)[0].probabilities, ours.predict(seen)[0].probabilities, rtol=0, atol=1e-5
    )


def test_what_is_unlike_training_is_declined_by_both(exported: Callable[[str], tuple[Path, Path]]) -> None:
    ours, theirs = both(exported("fusion"))
    strange = history_for("fusion", 2)
    strange = replace(strange, context={"reference_magnitude": 23.0, "galactic_latitude": 60.0, "age_days": 1e4})
    assert [m.predict([strange])[0].reason for m in (ours, theirs)] == [Declined.UNLIKE_TRAINING] * 2


@long
def test_both_say_the_same_of_difference_stamps(exported: Callable[[str], tuple[Path, Path]]) -> None:
    ours, theirs = both(exported("screened"))
    seen = [history_for("fusion", n, seed) for seed, n in enumerate((1, 4, 7))]
    far = [m._said(seen)[1] for m in (ours, theirs)]  # type: ignore[attr-defined]
    np.testing.assert_allclose(far[0], far[1], rtol=1e-3)
    assert np.ptp(far[0]) > 0


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails
import numpy as np
from skyheed import History, load_model
model = load_model(sys.argv[1])
mjd = 59000 + 3.0 * np.arange(4)
stamps = np.random.default_rng(0).normal(0, 2, (4, 32, 32)).astype(np.float16)
flux = np.float32([100, 300, 200, 50])
history = History.of_stamps(mjd, np.uint8([1, 2, 1, 2]), stamps, flux=flux, flux_error=np.ones(4, np.float32))
found = model.predict([history])[0]
assert not [name for name in sys.modules if name.startswith(("safetensors", "torch.", "onnxscript"))]
print(*(float(p) for p in found.probabilities))
"""


@pytest.mark.parametrize("name", QUICK)
def test_predictions_need_no_torch(name: str, exported: Callable[[str], tuple[Path, Path]]) -> None:
    ours, folder = exported(name)
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(folder)], capture_output=True, text=True, timeout=200
    )
    assert ran.returncode == 0, ran.stderr
    stamps = np.random.default_rng(0).normal(0, 2, (4, 32, 32)).astype(np.float16)
    flux = np.array([100, 300, 200, 50], np.float32)
    seen = History.of_stamps(
        59000 + 3.0 * np.arange(4), np.array([1, 2, 1, 2], np.uint8), stamps, flux=flux,
        flux_error=np.ones(4, np.float32),
    )  # fmt: skip
    expected = serving.load_model(ours, device="cpu", precision="float32").predict([seen])[0].probabilities
    np.testing.assert_allclose([float(p) for p in ran.stdout.split()], expected, rtol=0, atol=1e-5)


def test_what_cannot_be_is_refused_in_one_sentence(
    exported: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    ours, folder = exported("lstm")
    with pytest.raises(ModelError, match="is an export to ONNX: leave the runtime out"):
        serving.load(folder, survey="sdss", runtime="torch")
    with pytest.raises(ModelError, match="there is no runtime tensorrt: use auto, torch, onnx"):
        serving.load(folder, survey="sdss", runtime="tensorrt")
    with pytest.raises(ModelError, match="computes on the CPU in float32 here: leave out cuda"):
        serving.load(folder, survey="sdss", device="cuda")
    with pytest.raises(ModelError, match="was trained for sdss, not for ztf"):
        serving.load(folder, survey="ztf")
    with pytest.raises(ModelError, match="SuperNNova has no form in ONNX here: export a model of the families"):
        export("sdss/supernnova", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in folder.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / "head.onnx").write_bytes((folder / "head.onnx").read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=r"head\.onnx does not match its onnx\.json: export the model again"):
        serving.load(damaged, survey="sdss")
    (damaged / "onnx.json").write_text('{"format": 9}')
    with pytest.raises(ModelError, match=r"onnx\.json cannot be read \(this version reads format 1\)"):
        serving.load(damaged, survey="sdss")
    assert ours


def test_a_checkpoint_is_served_by_onnxruntime_when_asked(exported: Callable[[str], tuple[Path, Path]]) -> None:
    ours = exported("lstm")[0]
    model = serving.load(ours, survey="sdss", runtime="onnx", threads=1)
    assert model.chosen.startswith("cpu x1, float32 by onnxruntime ")
    plain = serving.load(ours, survey="sdss", device="cpu")
    seen = [history_for("lstm", 4)]
    np.testing.assert_allclose(
        model.predict(seen)[0].probabilities, plain.predict(seen)[0].probabilities, rtol=0, atol=1e-5
    )
