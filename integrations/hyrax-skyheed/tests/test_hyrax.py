"""Against skyheed itself: the same archive, the same model, the same probabilities."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("hyrax", reason="hyrax is not installed (it brings some 200 packages)")
from hyrax import Hyrax
from hyrax_skyheed import SkyheedArchive, SkyheedModel

from skyheed import load_model
from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.models.checkpoint import resolve
from skyheed.classifier.sky import simulate

FIELDS = "epochs mjd band flux flux_error science difference template points context".split()


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sky") / "archive"
    simulate("ztf", 8, 3, folder, seasons=1, balanced=True, processes=1, progress=False)
    return folder


def config(model: str) -> dict[str, Any]:
    nothing = {"name": ""}
    return {"hyrax_skyheed": {"SkyheedModel": {"model": model, "precision": "float32"}},
            "optimizer": nothing, "criterion": nothing, "scheduler": nothing}  # fmt: skip


def batch_of(data: SkyheedArchive) -> tuple[torch.Tensor, ...]:
    items = {name: np.stack([getattr(data, f"get_{name}")(i) for i in range(len(data))]) for name in FIELDS}
    return tuple(torch.from_numpy(part) for part in SkyheedModel.prepare_inputs({"data": items}))


@pytest.mark.parametrize("name", ["ztf/fusion", "ztf/convention"])
def test_hyrax_gets_what_skyheed_says(sky: Path, name: str) -> None:
    data, archive = SkyheedArchive({}, data_location=sky), Archive(sky)
    assert [data.get_object_id(i) for i in range(len(data))] == archive.object_ids
    model = SkyheedModel(config(name))
    found = model.infer_batch(batch_of(data)).numpy()
    expected = load_model(name, precision="float32").predict([history_of(archive, i) for i in archive.object_ids])
    assert model.classes == tuple(load_model(name).classes)
    for row, prediction in zip(found, expected, strict=True):
        if prediction.reason:
            assert np.isnan(row).all()
        else:
            np.testing.assert_allclose(row, prediction.probabilities, atol=1e-5)
    assert any(not prediction.reason for prediction in expected)


RUN = """
[general]
results_dir = "{results}"
[model]
name = "hyrax_skyheed.SkyheedModel"
[hyrax_skyheed.SkyheedModel]
model = "{model}"
[data_request.infer.data]
dataset_class = "hyrax_skyheed.SkyheedArchive"
data_location = "{sky}"
primary_id_field = "object_id"
fields = {fields}
[infer]
model_weights_file = "{weights}"
[data_loader]
batch_size = 3
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "said"), [("ztf/fusion", "ztf/fusion"), ("ztf/convention", "")])
def test_the_verb_infer_stores_what_skyheed_says(sky: Path, tmp_path: Path, name: str, said: str) -> None:
    """The whole verb with Hyrax's own configuration, loader, engine and store; the checkpoint is named either way."""
    weights, run = resolve(name) / "weights.safetensors", tmp_path / "run.toml"
    run.write_text(RUN.format(results=tmp_path / "results", model=said, sky=sky, fields=FIELDS, weights=weights))
    results = Hyrax(config_file=run, setup_logging=False).infer()
    found = {results.get_object_id(i): results[i]["data"] for i in range(len(results))}
    archive = Archive(sky)
    assert list(results.ids()) == archive.object_ids
    expected = load_model(name, precision="float32").predict([history_of(archive, i) for i in archive.object_ids])
    for object_id, prediction in zip(archive.object_ids, expected, strict=True):
        if prediction.reason:
            assert np.isnan(found[object_id]).all()
        else:
            np.testing.assert_allclose(found[object_id], prediction.probabilities, atol=1e-5)
    [used] = (tmp_path / "results").glob("*/inference_weights.pth")
    assert torch.load(used, weights_only=True)["weights"] == load_model(name).info.digest


def test_weights_are_those_of_the_checkpoint_that_hyrax_is_told_of(sky: Path, tmp_path: Path) -> None:
    model = SkyheedModel(config(""))
    with pytest.raises(RuntimeError, match="model_weights_file"):
        model.infer_batch(batch_of(SkyheedArchive({}, data_location=sky)))
    model.load(resolve("ztf/fusion") / "weights.safetensors")
    model.save(tmp_path / "inference_weights.pth")
    assert torch.load(tmp_path / "inference_weights.pth", weights_only=True)["model"] == "fusion-ztf"
    with pytest.raises(RuntimeError, match="skyheed train"):
        model.train_batch(())


def test_an_archive_has_to_be_named() -> None:
    with pytest.raises(ValueError, match="data_location"):
        SkyheedArchive({})
