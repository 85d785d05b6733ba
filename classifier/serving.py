"""Serving: histories in, predictions out, on one device in one precision, both reported and never changed silently.

A prediction depends neither on cached values nor on what else is in the batch.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from skyheed.classifier.base_predictor import BasePredictor
from skyheed.classifier.errors import ModelError
from skyheed.classifier.history import History
from skyheed.classifier.models import checkpoint, priors
from skyheed.classifier.models.family import family
from skyheed.classifier.prediction import Estimate, Prediction

if TYPE_CHECKING:
    import torch

    from skyheed.classifier.models.base import Model, Network

NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # CPU flags; the last is 64-bit Arm's
CPU_INFO = Path("/proc/cpuinfo")
RUNTIMES = ("auto", "torch", "onnx")


@dataclass(frozen=True)
class Where:
    """Where a model computes: device, float32 or bfloat16, and a sentence that explains the choice."""

    device: "torch.device"
    precision: str
    chosen: str


class Served(BasePredictor):
    """A checkpoint computed whole, in float32, for every prediction; families with a faster form extend it."""

    narrow = False  # whether part of it can be computed in bfloat16

    def __init__(self, network: "Network", info: checkpoint.Info, where: Where) -> None:
        import torch

        if not self.narrow and where.precision != "float32":
            place = where.chosen.rpartition(", ")[0]
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # 10 bits
            where = Where(where.device, "float32", f"{place}, float32 (all that this model computes in)")
        needs = replace(family(info.family).needs(network.config), most=info.max_stamps)
        super().__init__(info, needs, where.chosen)
        self.where, self.device, self.precision = where, where.device, where.precision
        self.network = network.eval().to(where.device)

    def _classify(self, histories: Sequence[History]) -> list[Prediction]:
        import torch

        arrays = self.network.collate(histories, self.info.scaling)
        with torch.inference_mode():
            batch = {k: torch.from_numpy(a).to(self.device) for k, a in arrays.items()}
            logits, spread = self.network.predictive(batch)
        found = self.calibrated(logits.float().cpu().numpy(), histories)
        if spread is None:
            return [Prediction(p) for p in found]
        # scatter of the top class's probability, for a network that estimates its own uncertainty
        errors = spread.float().cpu().tolist()
        return [
            Prediction(p, estimates={"probability": Estimate(float(p.max()), e)})
            for p, e in zip(found, errors, strict=True)
        ]


def load(
    model: str | Path,
    *,
    survey: str,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    any_survey: bool = False,
    prior: str = "",
    fewest: int | None = None,
    runtime: str = "auto",
) -> "Model":
    """A checkpoint ready to serve.

    Args:
        model: checkpoint directory, or shipped weights: SURVEY, SURVEY/MODEL, or MODEL of the survey; or the folder of
            an export to ONNX.
        survey: source of the stamps.
        device: auto, cpu or cuda.
        precision: auto, float32 or bfloat16; for the part that a family can compute so; the rest is float32.
        threads: of the CPU; None for all cores.
        any_survey: accept stamps of a survey that the model was not trained for.
        fewest: epochs below which a history is declined; None for the model's own minimum.
        prior: class prior that probabilities assume instead of the checkpoint's, as for `priors.class_prior`.
        runtime: torch; onnx (onnxruntime, on the CPU, without torch where `model` is an export); auto: onnx for an
            export, torch otherwise.

    Raises:
        ModelError: the checkpoint, survey, device, precision, prior or runtime cannot be used.
    """
    if runtime not in RUNTIMES:
        raise ModelError(f"there is no runtime {runtime}: use {', '.join(RUNTIMES)}")
    exported = checkpoint.is_export(model)
    if exported and runtime == "torch":
        raise ModelError(f"{model} is an export to ONNX: leave the runtime out, or give the checkpoint it was made of")
    info = checkpoint.card_of(model, survey)
    checkpoint.check_survey(info, survey, any_survey=any_survey)
    if prior:
        info = priors.assuming(info, priors.class_prior(prior, info.classes))
    if exported or runtime == "onnx":
        made = _by_onnxruntime(model, info, survey, device, precision, threads)
    else:
        made = _by_torch(model, info, survey, device, precision, threads)
    if fewest:
        made.needs = replace(made.needs, fewest=fewest)
    return made


def _by_torch(
    model: str | Path, info: checkpoint.Info, survey: str, device: str, precision: str, threads: int | None
) -> "Model":
    import torch

    if threads:
        torch.set_num_threads(threads)
    made: Model = family(info.family).serve(load_network(model, info, survey), info, choose(device, precision))
    return made


def _by_onnxruntime(
    model: str | Path, info: checkpoint.Info, survey: str, device: str, precision: str, threads: int | None
) -> "Model":
    from skyheed.classifier.models.onnx.predictor import served

    if device == "cuda" or precision == "bfloat16":
        raise ModelError(f"onnxruntime computes on the CPU in float32 here: leave out {device} and {precision}")
    if checkpoint.is_export(model):
        return served(Path(model), info, threads)
    from skyheed.classifier.models.onnx.export import export

    with tempfile.TemporaryDirectory(prefix="skyheed-onnx-") as folder:  # read completely before it is removed
        return served(export(checkpoint.resolve(model, survey), Path(folder) / "export"), info, threads)


def load_model(
    name: str | Path, *, device: str = "auto", precision: str = "auto", prior: str = "", runtime: str = "auto"
) -> "Model":
    """A model by name, to classify the histories of its survey.

    Args:
        name: SURVEY (its default), SURVEY/MODEL, a checkpoint directory, or the folder of an export to ONNX.
        device, precision, prior, runtime: as for `load`; an export needs only numpy and onnxruntime.

    Raises:
        ModelError: no such model, or it cannot be used in this way.
    """
    return load(
        name,
        survey=checkpoint.card_of(name).surveys[0],
        device=device,
        precision=precision,
        prior=prior,
        runtime=runtime,
    )


def load_network(name: str | Path, info: checkpoint.Info, survey: str = "") -> "Network":
    """The network of a checkpoint, ready to compute.

    Raises:
        ModelError: the weights do not fit the configuration.
    """
    from skyheed.classifier.models import fitting

    own, state = family(info.family), checkpoint.load_state(name, survey)
    config = own.configure(info.config)
    try:
        if not checkpoint.is_shipped(name, survey):  # it may load torch's compiler, which takes seconds
            fitting.check(lambda: own.build(config), state)
        network = own.build(config)
        network.load_state_dict(state)
    except ModelError as error:
        raise ModelError(f"the weights of {info.name} do not fit its configuration ({error}): get it again") from error
    except (RuntimeError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"the weights of {info.name} do not fit its configuration ({first}): get it again") from error
    return network.eval()


def choose(device: str, precision: str) -> Where:
    """Device and precision.

    Raises:
        ModelError: they are unknown, or cuda was requested and there is no GPU.
    """
    import torch

    if device not in ("auto", "cpu", "cuda") or precision not in ("auto", "float32", "bfloat16"):
        raise ModelError(
            f"device {device} with precision {precision} is not possible: use auto, cpu or cuda, and auto, float32 or "
            "bfloat16"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda was requested, but torch sees no GPU: install a CUDA build, or use device cpu")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        native_there = torch.cuda.is_bf16_supported(including_emulation=False)
        chosen = ("bfloat16" if native_there else "float32") if precision == "auto" else precision
        why = f"bfloat16 is {'' if native_there else 'not '}native there" if precision == "auto" else "as asked for"
        if chosen == "float32":  # not TF32, which has 10 bits
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        return Where(torch.device("cuda"), chosen, f"cuda {torch.cuda.get_device_name()}, {chosen} ({why})")
    native = native_bfloat16()
    if precision == "auto":
        chosen = "bfloat16" if native else "float32"
        why = f"the processor has {native}" if native else "the processor has no native bfloat16"
    else:
        chosen, why = precision, "as asked for"
    return Where(torch.device("cpu"), chosen, f"cpu x{torch.get_num_threads()}, {chosen} ({why})")


def native_bfloat16() -> str:
    """The CPU's flag for native bfloat16 arithmetic, or empty: without it bfloat16 is slower than float32."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return ""
    flags = next((line.split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    return next((flag for flag in NATIVE_BFLOAT16 if flag in flags), "")
