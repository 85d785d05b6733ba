"""Serving: histories in, predictions out, on one device in one precision, both said and never changed in silence.

What was kept of earlier predictions, and what else is in a batch, makes no difference to a prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from skyheed.classifier.errors import ModelError
from skyheed.classifier.history import BANDS, History
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.base import Model, Network, family
from skyheed.classifier.prediction import Declined, Estimate, Needs, Prediction
from skyheed.classifier.stamp import STAMP_SIZE

NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # CPU flags; the last is 64-bit Arm's
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Where:
    """On what a model computes: device, float32 or bfloat16, and a sentence that says what was chosen and why."""

    device: torch.device
    precision: str
    chosen: str


class Served:
    """A checkpoint that is computed whole, in float32, for every prediction; families with a faster form extend it.

    Attributes:
        info: its card.
        needs: what it reads of a history.
        classes: in the order of the probabilities.
        kept_as: changes with everything that what is kept depends on; "" where nothing is.
    """

    kept_as = ""
    narrow = False  # whether a part of it is computed in bfloat16 where that was chosen

    def __init__(self, network: Network, info: checkpoint.Info, where: Where) -> None:
        if not self.narrow and where.precision != "float32":
            place = where.chosen.rpartition(", ")[0]
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # 10 bits
            where = Where(where.device, "float32", f"{place}, float32 (all that this model computes in)")
        self.info, self.where = info, where
        self.device, self.precision, self.chosen = where.device, where.precision, where.chosen
        self.classes = tuple(info.classes)
        self.needs: Needs = replace(family(info.family).needs(network.config), most=info.max_stamps)
        self.network = network.eval().to(where.device)
        self._known = np.array([band in info.bands for band in BANDS])

    def predict(self, histories: Sequence[History]) -> list[Prediction]:
        """What the model says of each history; of one that is longer than it takes, of the newest epochs.

        Raises:
            ValueError: the parts of a history do not fit together.
        """
        reasons = [self.declines(h) for h in histories]
        wanted = [h.newest(self.needs.most) for h, why in zip(histories, reasons, strict=True) if why is None]
        made = iter(self.judge(wanted))
        found = [next(made) if why is None else Prediction.declined(why) for why in reasons]
        return [p if p.reason or np.isfinite(p.probabilities).all() else _not_finite() for p in found]

    def judge(self, histories: Sequence[History]) -> list[Prediction]:
        """What the model says of histories that it can take; a family may decline some for what it finds in them."""
        return self.classify(histories)

    def declines(self, history: History) -> Declined | None:
        """Why a history cannot be classified, if it cannot."""
        if len(history) < self.needs.fewest:
            return Declined.TOO_FEW_STAMPS
        if not self._known[history.band].all():
            return Declined.BANDS_UNKNOWN
        return None

    def classify(self, histories: Sequence[History]) -> list[Prediction]:
        """Probabilities of each history, however short it is.

        Raises:
            ValueError: the parts of a history do not fit together.
            ModelError: a history has a band that the model does not know.
        """
        if not histories:
            return []
        for history in histories:
            self.check(history)
        return self._classify(histories)

    def check(self, history: History) -> None:
        """Refuse what the model cannot take, as `classify` says."""
        history.check(self.needs.most)
        if not self._known[history.band].all():
            strange = BANDS[int(history.band[~self._known[history.band]][0])]
            bands = self.info.bands
            raise ModelError(f"the model {self.info.name} knows bands {bands}, not {strange}: leave those stamps out")

    @torch.inference_mode()
    def _classify(self, histories: Sequence[History]) -> list[Prediction]:
        arrays = self.network.collate(histories, self.info.scaling)
        logits, spread = self.network.predictive({k: torch.from_numpy(a).to(self.device) for k, a in arrays.items()})
        found = self.calibrated(logits.float().cpu().numpy(), histories)
        if spread is None:
            return [Prediction(p) for p in found]
        # of the most probable class, how far a network that knows its own uncertainty scatters
        errors = spread.float().cpu().tolist()
        return [
            Prediction(p, estimates={"probability": Estimate(float(p.max()), e)})
            for p, e in zip(found, errors, strict=True)
        ]

    def calibrated(self, logits: NDArray[np.float32], histories: Sequence[History]) -> NDArray[np.float32]:
        """[b, classes] logits -> probabilities."""
        found: NDArray[np.float32] = self.info.calibration(logits, np.array([len(h) for h in histories]))
        return found

    def warm_up(self, batch_size: int = 64) -> None:
        """Compute once in the common shapes, so that the first alerts do not wait for it."""
        for count in {1, batch_size}:
            for n in (1, 3, 6, 9):
                self.classify([self.blank(min(n, self.needs.most))] * count)

    def blank(self, epochs: int) -> History:
        """A history of nothing in the model's first band."""
        band = np.full(epochs, BANDS.index(self.info.bands[0]), np.uint8)
        images = {kind: np.zeros((epochs, STAMP_SIZE, STAMP_SIZE), np.float16) for kind in self.needs.images}
        flux = np.zeros(epochs, np.float32)
        return History(np.arange(epochs, dtype=float), band, images, flux=flux, flux_error=flux + 1)


def _not_finite() -> Prediction:
    return Prediction.declined(Declined.NOT_FINITE)


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
) -> Model:
    """A checkpoint ready to serve.

    Args:
        model: checkpoint directory, or shipped weights: SURVEY, SURVEY/MODEL, or MODEL of the survey.
        survey: whose stamps will come.
        device: auto, cpu or cuda.
        precision: auto, float32 or bfloat16; of the part that a family computes so, the rest is float32.
        threads: of the CPU; None for all cores.
        any_survey: serve stamps of a survey that the model was not trained for.
        fewest: epochs below which a history is declined; None for as few as the model needs.
        prior: class prior that probabilities assume instead of the checkpoint's, as for `checkpoint.class_prior`.

    Raises:
        ModelError: the checkpoint, survey, device, precision or prior cannot be used.
    """
    info = checkpoint.read_info(model, survey)
    checkpoint.check_survey(info, survey, any_survey=any_survey)
    if prior:
        info = checkpoint.assuming(info, checkpoint.class_prior(prior, info.classes))
    if threads:
        torch.set_num_threads(threads)
    made: Model = family(info.family).serve(load_network(model, info, survey), info, choose(device, precision))
    if fewest:
        made.needs = replace(made.needs, fewest=fewest)
    return made


def load_model(name: str | Path, *, device: str = "auto", precision: str = "auto", prior: str = "") -> Model:
    """A model by name, to classify the histories of its survey.

    Args:
        name: SURVEY (its default), SURVEY/MODEL, or a checkpoint directory.
        device, precision, prior: as for `load`.

    Raises:
        ModelError: there is none, or it cannot be used so.
    """
    survey = checkpoint.read_info(name).surveys[0]
    return load(name, survey=survey, device=device, precision=precision, prior=prior)


def load_network(name: str | Path, info: checkpoint.Info, survey: str = "") -> Network:
    """The network of a checkpoint, ready to compute.

    Raises:
        ModelError: the weights do not fit the configuration.
    """
    own = family(info.family)
    try:
        network = own.build(own.configure(info.config))
        network.load_state_dict(checkpoint.load_state(name, survey))
    except (RuntimeError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"the weights of {info.name} do not fit its configuration ({first}): get it again") from error
    return network.eval()


def choose(device: str, precision: str) -> Where:
    """Device and precision.

    Raises:
        ModelError: they are unknown, or cuda was asked for and there is none.
    """
    if device not in ("auto", "cpu", "cuda") or precision not in ("auto", "float32", "bfloat16"):
        raise ModelError(
            f"device {device} with precision {precision} is not possible: use auto, cpu or cuda, and auto, float32 or "
            "bfloat16"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda was asked for, but torch sees no GPU: install a CUDA build, or use device cpu")
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
    """The CPU's flag for native bfloat16 arithmetic, or empty: elsewhere bfloat16 is slower than float32."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return ""
    flags = next((line.split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    return next((flag for flag in NATIVE_BFLOAT16 if flag in flags), "")
