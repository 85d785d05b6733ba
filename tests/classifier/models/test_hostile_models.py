"""Model folders as a stranger could write them: one sentence, bounded memory and time, and nothing of theirs is run."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_tools import sequence
from safetensors.torch import load_file, save_file

from skyheed.classifier import serving
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models import checkpoint, fitting
from skyheed.classifier.models.family import families, family
from skyheed.classifier.prediction import Declined
from skyheed.classifier.serving import load_model

LOAD = """
import sys
from skyheed.classifier.errors import ModelError
from skyheed.classifier.serving import load_model
import torch
def peak():  # not ru_maxrss, which begins with the parent's
    return [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")][0] // 1024
before = peak()
try:
    load_model(sys.argv[1], device="cpu", precision="float32")
except ModelError as error:
    print(error)
print(peak() - before)
"""


@pytest.fixture(params=["sdss/vector", "sdss/convention", "sdss/supernnova", "ztf/fusion"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint.resolve(request.param), tmp_path / "model"))


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint.resolve("sdss/vector"), tmp_path / "model"))


def sign(folder: Path, **changes: Any) -> None:
    """Make the card say that all of this is as it should be, as anybody can."""
    card = json.loads((folder / "model.json").read_text()) | changes
    card["digest"] = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    card.pop(checkpoint.CARD_DIGEST, None)
    (folder / "model.json").write_text(json.dumps(card))


def alter(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "weights.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file({name: tensor.contiguous() for name, tensor in change(state).items()}, path)
    sign(folder)


HARMS: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "one is missing": lambda s: {n: t for n, t in s.items() if n != min(n for n in s if n.endswith("weight"))},
    "one too many": lambda s: {**s, "another": torch.zeros(3)},
    "other shapes": lambda s: {name: torch.zeros(*t.shape, 2) for name, t in s.items()},
    "one long row": lambda s: {name: t.reshape(-1) for name, t in s.items()},
    "none": lambda _: {},
}


@pytest.mark.parametrize("harm", HARMS)
def test_weights_of_another_network_are_one_sentence(model: Path, harm: str) -> None:
    alter(model, HARMS[harm])
    with pytest.raises(ModelError, match=r"the weights of .* do not fit its configuration"):
        load_model(model, device="cpu", precision="float32")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_decline(model: Path, value: float) -> None:
    alter(model, lambda s: {n: torch.full_like(t, value) if t.is_floating_point() else t for n, t in s.items()})
    [said] = load_model(model, device="cpu", precision="float32").predict([sequence(9, bands=2)])
    assert said.reason in (Declined.NOT_FINITE, Declined.UNLIKE_TRAINING, Declined.BANDS_UNKNOWN)


def config_of(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "model.json").read_text())
    sign(folder, config=card["config"] | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 10**9}, {"layers": 65_536}, {"width": 10**9}, {"width": 65_536}, {"heads": 1, "width": 60_000},
        {"stamps": 10**12}, {"stamps": 65_536}, {"points": 2**62}, {"classes": 65_536},
        {"layers": 65_536, "width": 65_536},
    ],
    ids=lambda changes: json.dumps(changes),
)  # fmt: skip
def test_a_configuration_that_claims_too_much_costs_little(vector: Path, changes: dict[str, Any]) -> None:
    config_of(vector, **changes)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", LOAD, str(vector)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    *sentence, grown = done.stdout.splitlines()
    assert sentence or changes == {"stamps": 65_536}, "it was loaded"
    assert int(grown) < 300, done.stdout
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("name", sorted(families()))
def test_every_family_is_built_without_memory_for_its_numbers(name: str) -> None:
    """Else its weights would be compared with its configuration only after it had made room for all of it."""
    own = family(name)
    network = own.build(own.configure({}))
    with torch.device("meta"):
        empty = own.build(own.configure({}))
    assert {n: t.shape for n, t in empty.state_dict().items()} == {n: t.shape for n, t in network.state_dict().items()}
    fitting.check(lambda: own.build(own.configure({})), network.state_dict())


def test_tables_that_a_configuration_asks_for_are_bounded(vector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tables(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(2**40), persistent=False)

    monkeypatch.setattr(family("vector").__class__, "build", lambda _self, _config: Tables())
    alter(vector, lambda _: {})
    with pytest.raises(ModelError, match="needs tables of 4398046511104 bytes"):
        load_model(vector, device="cpu", precision="float32")


class Bad:
    """What unpickling runs."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "model.json", "weights.pt", "pytorch_model.bin", "config.json"]
)
def test_pickles_are_not_loaded(vector: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(vector)
    (vector / name).write_bytes(pickle.dumps(Bad()))
    if name == "weights.safetensors":
        sign(vector)
    if name in ("weights.safetensors", "model.json"):
        with pytest.raises(ModelError, match=r"cannot be read|not weights that we wrote"):
            load_model(vector, device="cpu", precision="float32")
    else:
        assert load_model(vector, device="cpu", precision="float32").info.name
    assert not (vector / "owned").exists()


# --- exports to ONNX -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from skyheed.classifier.models.onnx.export import export

    return export("sdss/vector", tmp_path_factory.mktemp("onnx") / "export")


def graph(folder: Path, content: bytes) -> None:
    """Another graph, as the card says."""
    (folder / "head.onnx").write_bytes(content)
    card = json.loads((folder / "onnx.json").read_text())
    card["graphs"]["head"]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "onnx.json").write_text(json.dumps(card))


def say(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((folder / "onnx.json").read_text())
    change(card)
    (folder / "onnx.json").write_text(json.dumps(card))


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


EXPORT_HARMS: dict[str, Callable[[Path], object]] = {
    "no graph": lambda f: graph(f, b"no graph"),
    "nothing": lambda f: graph(f, b""),
    "half a graph": lambda f: graph(f, (f / "head.onnx").read_bytes()[:-500]),
    "a graph that was changed": lambda f: (f / "head.onnx").write_bytes(b"x"),
    "a graph that is a pipe": lambda f: a_pipe(f / "head.onnx"),
    "a graph that is huge": lambda f: os.truncate(f / "head.onnx", 2**34),
    "a card that is a pipe": lambda f: a_pipe(f / "onnx.json"),
    "a card that is huge": lambda f: os.truncate(f / "onnx.json", 2**34),
    "a card that is deep": lambda f: (f / "onnx.json").write_text("[" * 10**6),
    "graphs of no names": lambda f: say(f, lambda c: c.update(graphs={})),
    "graphs in a list": lambda f: say(f, lambda c: c.update(graphs=[1])),
    "another kind": lambda f: say(f, lambda c: c.update(kind="groups")),
    "a kind of nobody": lambda f: say(f, lambda c: c.update(kind="../x")),
    "a kind that is none": lambda f: say(f, lambda c: c.update(kind=["nights"])),
    "a graph elsewhere": lambda f: say(f, lambda c: c["graphs"]["head"].update(file="../../../etc/passwd")),
    "a graph called 5": lambda f: say(f, lambda c: c["graphs"]["head"].update(file=5)),
    "a graph without a name": lambda f: say(f, lambda c: c["graphs"]["head"].update(file="")),
    "a graph called ..": lambda f: say(f, lambda c: c["graphs"]["head"].update(file="..")),
    "a graph with a zero in its name": lambda f: say(f, lambda c: c["graphs"]["head"].update(file="head\0.onnx")),
    "a graph with a line break in its name": lambda f: say(f, lambda c: c["graphs"]["head"].update(file="a\nb")),
    "a configuration of another family": lambda f: say(f, lambda c: c["model"].update(config={"layers": 3})),
    "values that are none": lambda f: say(f, lambda c: c["model"]["config"].update(width="many", points=[1])),
    "needs of nobody": lambda f: say(f, lambda c: c.update(needs={"images": 5})),
    "needs without end": lambda f: say(f, lambda c: c["needs"].update(most=-1, fewest="many")),
}


@pytest.mark.parametrize("harm", EXPORT_HARMS)
def test_an_export_that_is_none_is_one_sentence(whole: Path, tmp_path: Path, harm: str) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "export"))
    assert serving.load_model(folder).info.name
    EXPORT_HARMS[harm](folder)
    began = time.monotonic()
    with pytest.raises(ModelError) as refused:
        load_model(folder)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 600
    assert time.monotonic() - began < 30


def test_shipped_weights_are_loaded_without_torchs_compiler(tmp_path: Path) -> None:
    """It takes seconds to load, and leaves a folder among the temporary ones."""
    code = (
        "import sys; from skyheed import load_model; load_model('sdss/fusion'); print('torch._dynamo' in sys.modules)"
    )
    environ = {"PATH": os.defpath, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=True)
    assert done.stdout == "False\n"
    assert not list(tmp_path.iterdir())
