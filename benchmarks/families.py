"""What a classification costs, by family, runtime and precision, on the same weights in the same run.

Each model is computed by torch in float32 (in bfloat16 where it has such a form; with its encoder in bfloat16 where
the processor has it), with its encoder by torch.compile, and with its linear layers in int8 (dynamic); by onnxruntime
in float32, with its linear layers in int8 (dynamic, weights by channel), and with its encoder in int8 (static, weights
by channel, calibrated on stamps of objects that are not scored). What cannot be computed here has a row with the
reason. Rows are taken in turns, in CPU time of one thread, so that ratios hold on a machine that is busy with other
things.

    python benchmarks/families.py [--quick] [--archive sky/sdss --archive sky/ztf] [--model sdss/vector]

An archive is one of `skyheed archive simulate`; without it nothing is said of scores. To see the AVX2 case on a newer
processor, hide what is newer from all runtimes (see avx2.c); ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY hide it from
torch alone. The very last line is one JSON document.
"""

import json
import logging
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torch import nn

from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.history import History, Photometry
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.family import family
from skyheed.classifier.models.onnx.export import export
from skyheed.classifier.models.onnx.folder import ENCODER
from skyheed.classifier.models.onnx.predictor import ByOnnx, Session
from skyheed.classifier.serving import load, native_bfloat16

MODELS = {"sdss/convention": "sdss", "sdss/vector": "sdss", "ztf/fusion": "ztf", "sdss/supernnova": "sdss"}
LENGTHS, TOGETHER = (3, 12, 48, 99), (1, 64)
QUICK = ("12 1 update", "12 64 update", "12 1 whole", "12 64 whole")
CALIBRATION = 24  # objects whose stamps set the ranges of int8
ENOUGH_S = 0.02  # that a timing takes at least
CONVOLUTIONS = "nearly all of its work is convolutions"


@dataclass(frozen=True)
class Variant:
    """One way to compute a model."""

    runtime: str
    precision: str
    model: Any
    start_s: float = 0.0  # wall time that it took to make it ready


@dataclass(frozen=True)
class Skipped:
    """One that cannot be computed here, and why."""

    runtime: str
    precision: str
    reason: str


def noise(model: Any, epochs: int, seed: int) -> History:
    """A history; what is in the stamps makes no difference to the time."""
    rng = np.random.default_rng(seed)
    n, points = epochs, 20
    images = {k: rng.normal(0, 2, (n, 32, 32)).astype(np.float16) for k in model.needs.images}
    band, mjd = (np.arange(n) % 2 + 1).astype(np.uint8), 59_000 + np.sort(rng.uniform(0, 90, n))
    flux = rng.uniform(100, 6000, n).astype(np.float32)
    several = Photometry(
        np.sort(rng.uniform(58_970, mjd[-1], points)), np.resize(np.array([1, 2], np.uint8), points),
        rng.normal(500, 300, points).astype(np.float32), np.full(points, 100, np.float32),
        np.arange(points, dtype=np.uint8) % 3,
    )  # fmt: skip
    context = {"detections": 3.0, "visits": 11.0, "reference_distance": 1.0, "galactic_latitude": 30.0}
    return History(
        mjd, band, images, flux=flux, flux_error=np.full(n, 90, np.float32),
        source_id=rng.integers(1, 2**60, n, np.uint64),
        photometry=several if model.needs.photometry else None, context=context if model.needs.context else {},
    )  # fmt: skip


def update(model: Any, whole: History, kept: Mapping[int, bytes]) -> History:
    """The history as a store gives it when its last epoch is new."""
    epochs = np.array([n for n in range(len(whole)) if n // model.needs.span not in kept], np.int64)
    return replace(whole, images={k: whole.pixels(k, epochs) for k in whole.images}, shown=epochs, kept=dict(kept))


def work(model: Any) -> dict[str, Callable[[], object]]:
    """What is timed, by name: EPOCHS stamps, TOGETHER objects, update or whole."""
    calls: dict[str, Callable[[], object]] = {}
    for epochs in sorted({min(n, model.needs.most) for n in LENGTHS}):
        for together in TOGETHER:
            wholes = [noise(model, epochs, seed) for seed in range(together)]
            few = wholes if together * epochs <= 64 * 12 else wholes[: max(1, 64 * 12 // epochs)]
            calls[f"{epochs} {together} whole"] = lambda h=few: model.classify(h)  # type: ignore[misc]
            if model.needs.span and epochs > 1:
                early = model.classify([h.until(epochs=epochs - 1) for h in wholes])
                late = [update(model, h, p.keep) for h, p in zip(wholes, early, strict=True)]
                calls[f"{epochs} {together} update"] = lambda h=late: model.classify(h)  # type: ignore[misc]
    return calls


def objects_of(name: str, epochs: int, together: int) -> int:
    """Objects in one call of `work`."""
    whole = name.endswith("whole") and together * epochs > 64 * 12
    return max(1, 64 * 12 // epochs) if whole else together


def peaks(size: int = 1024) -> dict[str, float]:
    """Operations a second of a matrix product in one thread, by precision: the best of some."""
    a = torch.randn(size, size)
    products: dict[str, Callable[[], object]] = {"float32": lambda: a @ a}
    if native_bfloat16():
        b = a.bfloat16()
        products["bfloat16"] = lambda: b @ b
    c = (20 * a).to(torch.int8)
    products["int8"] = lambda: torch._int_mm(c, c)
    found = {name: 2 * size**3 / min(_seconds(call) for _ in range(7)) for name, call in products.items()}
    if found["int8"] < found["float32"]:  # without kernels for this processor: no measure of what it can do
        del found["int8"]
    return found


def _seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def int8(folder: Path, model: ByOnnx, histories: Sequence[History]) -> ByOnnx:
    """The model with its encoder in int8, calibrated on the stamps of some histories."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static, shape_inference

    feeds: list[dict[str, NDArray[Any]]] = []
    own, encoder = model.sessions[ENCODER], _Recorder(model.sessions[ENCODER], feeds)
    model.sessions[ENCODER] = encoder  # type: ignore[assignment]
    for history in histories:
        model.classify([history])
    model.sessions[ENCODER] = own

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        rest = iter(feeds)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.rest, None)

    source, prepared, made = (str(folder / f"{name}.onnx") for name in ("encoder", "prepared", "int8"))
    shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, made, Reader(), per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv"], reduce_range="vnni" not in Path("/proc/cpuinfo").read_text(),
    )  # fmt: skip
    model.sessions[ENCODER] = Session(Path(made).read_bytes(), 1)
    return model


def int8_linear(folder: Path, model: ByOnnx) -> ByOnnx:
    """The model with the matrix products of all its graphs in int8, whose inputs are quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)  # it advises a preparation that these graphs need not
    for name in model.sessions:
        made = folder / f"{name}-linear.onnx"
        quantize_dynamic(
            folder / f"{name}.onnx", made, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
        model.sessions[name] = Session(made.read_bytes(), 1)
    return model


def torch_int8(model: Any) -> Any:
    """A model of stamps with all its linear layers in int8, by torch's own kernels."""
    from torch.ao.quantization import quantize_dynamic

    engine = model._update.engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        engine.encoder, engine.rest = (
            quantize_dynamic(part, {nn.Linear}, dtype=torch.qint8) for part in (engine.encoder, engine.rest)
        )
    return model


class _Narrow(nn.Module):
    """An encoder whose convolutions and products are in bfloat16."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.encoder(*given)  # type: ignore[no-any-return]


def torch_bfloat16(model: Any) -> Any:
    """A model of stamps with its encoder in bfloat16; what is behind it takes little of the time."""
    engine = model._update.engine
    engine.encoder = _Narrow(engine.encoder)
    return model


def torch_compiled(model: Any) -> Any:
    """The model with its encoder compiled; what is behind it has a new shape with nearly every batch."""
    made = partial(torch.compile, dynamic=True)
    if hasattr(model, "tokens_of"):
        model.tokens_of._features = made(model.tokens_of._features)
    else:
        model._update.engine.encoder = made(model._update.engine.encoder)
    return model


class _Recorder:
    """A session that remembers what it was given."""

    def __init__(self, session: Session, feeds: list[dict[str, NDArray[Any]]]) -> None:
        self.session, self.feeds = session, feeds

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.feeds.append({k: v for k, v in arrays.items() if k in self.session._inputs})
        return self.session(arrays)


def variants(
    name: str, survey: str, folder: Path, calibration: Sequence[History]
) -> tuple[list[Variant], list[Skipped]]:  # fmt: skip
    """All ways to compute a model, of which the first is what the others are compared with; and those left out."""
    given: dict[str, Any] = {"survey": survey, "device": "cpu", "threads": 1}
    plain = partial(load, name, precision="float32", **given)
    made = [Variant("torch", "float32", plain())]
    first = made[0].model
    if native_bfloat16() and getattr(first, "narrow", False):
        made.append(Variant("torch", "bfloat16", load(name, precision="bfloat16", **given)))
    if name.endswith("supernnova"):  # no form in ONNX, and a tenth of a millisecond
        return made, []
    where = export(name, folder / name)
    exported = partial(load, where, **given)
    narrow = "" if native_bfloat16() else "the processor has no native bfloat16"
    if not hasattr(first, "_update"):
        narrow = "it has a form in bfloat16"
    histories = calibration or [noise(first, 12, seed) for seed in range(900, 900 + CALIBRATION)]
    tries: list[tuple[str, str, Callable[[], Any], str]] = [
        ("torch", "bfloat16 encoder", lambda: torch_bfloat16(plain()), narrow),
        ("torch.compile", "float32", lambda: _started(torch_compiled(plain())), no_compiler()),
        ("torch", "int8 linear", lambda: torch_int8(plain()), "" if hasattr(first, "_update") else CONVOLUTIONS),
        ("onnxruntime", "float32", exported, ""),
        ("onnxruntime", "int8 linear", lambda: int8_linear(where, exported()), ""),
        ("onnxruntime", "int8", lambda: int8(where, exported(), histories), ""),
    ]
    skipped = []
    for runtime, precision, make, reason in tries:
        began = time.perf_counter()
        try:
            found = None if reason else make()
        except Exception as error:  # of any kind, as the runtime chooses: the other rows go on
            found, reason = None, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if found is None:
            skipped.append(Skipped(runtime, precision, reason))
        else:
            made.append(Variant(runtime, precision, found, time.perf_counter() - began))
    return made, skipped


def no_compiler() -> str:
    """Why torch.compile cannot be tried here; empty if it can."""
    return "" if shutil.which("g++") or shutil.which("clang++") else "no C++ compiler (g++ or clang++) was found"


def _started(model: Any) -> Any:
    """The model after it was compiled for one stamp and for many."""
    for count in (1, 2):
        model.classify([noise(model, 12 if model.needs.span > 1 else 1, seed) for seed in range(count)])
    return model


def labelled(path: Path, most: int) -> tuple[list[History], list[str]]:
    """Histories and classes of an archive's objects."""
    data = Archive(path)
    seen = [history_of(data, name) for name in data.object_ids]
    return [h.newest(most) for h in seen], [str(data.object(name)["class"]) for name in data.object_ids]


def agreement(
    model: Any, expected: NDArray[np.float32], histories: Sequence[History], truth: Any
) -> dict[str, float | None]:  # fmt: skip
    """Share of objects with the same top class, largest difference of a probability, macro-F1 if there are labels."""
    found = np.stack([p.probabilities for p in model.classify(histories)])
    names = np.array(model.classes)
    return {
        "same_top": float((found.argmax(1) == expected.argmax(1)).mean()),
        "largest_difference": float(np.abs(found - expected).max()),
        "macro_f1": float(f1_score(truth, names[found.argmax(1)], average="macro")) if truth is not None else None,
    }


def measured(made: Sequence[Variant], rounds: int, wanted: Sequence[str]) -> list[dict[str, float]]:
    """Objects a second of every variant, by name of the work."""
    calls = [{k: c for k, c in work(v.model).items() if not wanted or k in wanted} for v in made]
    taken: list[dict[str, list[float]]] = [{name: [] for name in own} for own in calls]
    for turn in range(rounds + 1):
        for name in calls[0]:
            for own, times in zip(calls, taken, strict=True):
                repeats, spent = 0, 0.0
                while spent < ENOUGH_S:
                    spent += _seconds(own[name])
                    repeats += 1
                if turn:  # the first round chooses kernels
                    times[name].append(spent / repeats)
    sizes = {name: objects_of(name, *map(int, name.split()[:2])) for name in calls[0]}
    return [{name: sizes[name] / statistics.median(times) for name, times in own.items()} for own in taken]


@click.command()
@click.option("--quick", is_flag=True, help="12 stamps, updates only, two rounds.")
@click.option("--archive", "archives", multiple=True, type=click.Path(path_type=Path), help="Simulated, with classes.")
@click.option("--model", "names", multiple=True, help="Of the shipped models; all by default.")
@click.option("--rounds", default=5, show_default=True, help="Every measurement is made so often, in turns.")
def main(quick: bool, archives: tuple[Path, ...], names: tuple[str, ...], rounds: int) -> None:
    """Measure every family."""
    click.echo(json.dumps(table(names, archives, min(rounds, 2) if quick else rounds, quick)))


def table(names: Sequence[str], archives: Sequence[Path], rounds: int, quick: bool) -> dict[str, Any]:
    """The rows of all models (those of `names` where there are any), printed as they come, and the machine's peaks."""
    torch.set_num_threads(1)
    own = peaks()
    click.echo("matrix product, one thread: " + ", ".join(f"{k} {v / 1e9:.0f} Gop/s" for k, v in own.items()))
    by_survey = {Archive(path).card["surveys"][0]: path for path in archives}
    wanted = QUICK if quick else ()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or MODELS:
            rows += rows_of(name, Path(folder), by_survey, rounds, wanted, own)
    return {"peak_gops": {k: round(v / 1e9, 1) for k, v in own.items()}, "rows": rows}


def rows_of(
    name: str, folder: Path, archives: Mapping[str, Path], rounds: int, wanted: Sequence[str],
    own_peaks: Mapping[str, float],
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of one model, printed."""
    survey, info = MODELS[name], checkpoint.read_info(name)
    histories, truth = labelled(archives[survey], info.max_stamps) if survey in archives else ([], [])
    made, skipped = variants(name, survey, folder, histories[:CALIBRATION])
    scored = histories[CALIBRATION:] or [noise(made[0].model, 12, seed) for seed in range(64)]
    labels = np.array(truth[CALIBRATION:]) if histories else None
    expected = np.stack([p.probabilities for p in made[0].model.classify(scored)])
    own = family(info.family)
    operations = 2 * own.operations(own.configure(info.config), 12)
    rows: list[dict[str, Any]] = []
    for variant, rates in zip(made, measured(made, rounds, wanted), strict=True):
        precision = variant.precision.split()[0]
        at = next((rates[k] for k in ("12 64 update", "12 64 whole") if k in rates), 0.0)
        row = {
            "model": name, "runtime": variant.runtime, "precision": variant.precision,
            "start_s": round(variant.start_s, 1), "objects_per_s": {k: round(v, 1) for k, v in rates.items()},
            "fraction_of_peak": round(at * operations / peak, 3) if (peak := own_peaks.get(precision)) else None,
            "agreement": agreement(variant.model, expected, scored, labels),
        }  # fmt: skip
        click.echo(f"{name} {variant.runtime} {variant.precision}: {row['objects_per_s']}")
        share = "" if row["fraction_of_peak"] is None else f"{row['fraction_of_peak']:.1%} of the peak, "
        click.echo(f"    {share}{row['agreement']}")
        rows.append(row)
    for one in skipped:
        click.echo(f"{name} {one.runtime} {one.precision}: not computed: {one.reason}")
        rows.append({"model": name, "runtime": one.runtime, "precision": one.precision, "skipped": one.reason})
    return rows


if __name__ == "__main__":
    main()
