"""Serving: sequences in, probabilities out, on one device in one precision, both said and never changed in silence.

Tokens of full groups come back to the caller, who may keep them: a token never changes, so a new stamp costs one group.
Whether a token was kept or computed just now, and what else was in the batch, makes no difference to an answer.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from . import checkpoint
from .convention import Config, ConvEntion
from .errors import ModelError
from .fast import FORM, CpuTokens, CudaTokens, FoldedFeatures
from .sequence import BANDS, GROUP, StampSequence, layout, uncached

NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # CPU flags; the last is 64-bit Arm's
CPU_INFO = Path("/proc/cpuinfo")
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24)  # groups that sequences are padded to; longer ones to the longest
TOGETHER = 16  # sequences behind the 3D-CNN at once on a CPU, as many as its caches hold beside other work
Token = NDArray[np.generic]


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        probabilities: float32 [classes], calibrated, sum 1.
        tokens: group index -> token, of the full groups that were computed just now.
    """

    probabilities: NDArray[np.float32]
    tokens: dict[int, Token]


class Predictor:
    """A checkpoint ready to serve.

    Args:
        model: checkpoint directory, or the name of shipped weights.
        survey: whose stamps will come.
        device: auto, cpu or cuda.
        precision: auto, float32 or bfloat16; of the 3D-CNN, the rest is float32.
        batch_size: sequences that are warmed up for.
        threads: of the CPU; None for all cores.
        any_survey: serve stamps of a survey that the model was not trained for.
        prior: mixture of classes that probabilities assume instead of the checkpoint's, as for `checkpoint.mixture`.

    Raises:
        ModelError: the checkpoint, survey, device, precision or prior cannot be used.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        survey: str,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 64,
        threads: int | None = None,
        any_survey: bool = False,
        prior: str = "",
    ) -> None:
        self.info = checkpoint.read_info(model)
        checkpoint.check_survey(self.info, survey, any_survey=any_survey)
        if prior:
            self.info = checkpoint.assuming(self.info, checkpoint.mixture(prior, self.info.classes))
        if threads:
            torch.set_num_threads(threads)
        self.device, self.precision, self.chosen = choose(device, precision)
        self.batch_size = batch_size
        self._model = load_model(model, self.info).to(self.device)
        config = self._model.config
        if (config.variant, config.cnn) != ("stream", "3d"):
            raise ModelError(
                f"the model {self.info.name} is {config.variant} with a {config.cnn} CNN, which has no tokens to keep: "
                "serve a stream model with a 3d CNN"
            )
        # bfloat16 values fit into float16; every token is rounded alike, whether it was kept or computed just now
        self.token_dtype = np.dtype("<f2" if self.precision == "bfloat16" else "<f4")
        self.token_model = self._token_model()
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        features = FoldedFeatures(self._model, dtype).to(self.device)
        on_gpu = self.device.type == "cuda"
        self.tokens_of = CudaTokens(features, self.device) if on_gpu else CpuTokens(features)
        self._token_shape = (config.channels, config.map, config.map)
        self._widths = (*(w for w in WIDTHS if w < config.tokens), config.tokens)
        self._known = np.array([band in self.info.bands for band in BANDS])

    def _token_model(self) -> str:
        """Changes with everything that a token depends on."""
        info = self.info
        facts = [info.digest, info.preprocessing, asdict(info.scaling), self.precision, self.device.type, FORM]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def token_bytes(self, token: Token) -> bytes:
        """A token as it is kept."""
        return token.astype(self.token_dtype, copy=False).tobytes()

    def token_from(self, raw: bytes) -> Token:
        """A token as it was kept."""
        return np.frombuffer(raw, self.token_dtype).reshape(self._token_shape)

    def warm_up(self) -> None:
        """Compute once in the common shapes, so that the first alerts do not wait for it."""
        band = BANDS.index(self.info.bands[0])
        for count in {1, self.batch_size}:
            for width in self._widths[:3]:
                n = min(width * GROUP, self.info.max_stamps)
                pixels = np.zeros((n, *self._pixels()), np.float16)
                self.classify([StampSequence(np.arange(n, dtype=float), np.full(n, band, np.uint8), pixels)] * count)

    def _pixels(self) -> tuple[int, int]:
        return self._model.config.size, self._model.config.size

    @torch.inference_mode()
    def classify(self, sequences: Sequence[StampSequence]) -> list[Prediction]:
        """Probabilities of each sequence; only groups without a cached token are computed.

        Raises:
            ValueError: the parts of a sequence do not fit together.
            ModelError: a sequence has a band that the model does not know.
        """
        if not sequences:
            return []
        for sequence in sequences:
            check(sequence, self.info, self._known)
        computed = self.tokens(sequences)
        logits = np.empty((len(sequences), len(self.info.classes)), np.float32)
        for width, rows in self._batches(sequences):
            logits[rows] = self._logits([sequences[r] for r in rows], [computed[r] for r in rows], width)
        probabilities = self.info.calibration(logits, np.array([len(s.mjd) for s in sequences]))
        return [Prediction(p, _full(s, c)) for p, s, c in zip(probabilities, sequences, computed, strict=True)]

    def tokens(self, sequences: Sequence[StampSequence]) -> list[dict[int, Token]]:
        """The tokens that are not cached, of each sequence: one batch of groups."""
        groups = [uncached(s, self.info.scaling) for s in sequences]
        pixels, bands = np.concatenate([g.pixels for g in groups]), np.concatenate([g.bands for g in groups])
        flat = np.empty((0, *self._token_shape), self.token_dtype)
        if len(pixels):
            flat = self.tokens_of(pixels, bands).astype(self.token_dtype)
        found: list[dict[int, Token]] = []
        at = 0
        for sequence in sequences:
            missing = [i for i in range(sequence.groups) if i not in sequence.tokens]
            found.append(dict(zip(missing, flat[at : at + len(missing)], strict=True)))
            at += len(missing)
        return found

    def _batches(self, sequences: Sequence[StampSequence]) -> list[tuple[int, list[int]]]:
        """A width, and rows whose sequences are padded to it: long ones do not make short ones pay."""
        rows: dict[int, list[int]] = {}
        for row, sequence in enumerate(sequences):
            rows.setdefault(next(w for w in self._widths if w >= sequence.groups), []).append(row)
        most = TOGETHER if self.device.type == "cpu" else len(sequences)
        return [(width, own[at : at + most]) for width, own in rows.items() for at in range(0, len(own), most)]

    def _logits(
        self, sequences: Sequence[StampSequence], computed: Sequence[dict[int, Token]], width: int
    ) -> NDArray[np.float32]:
        where = layout(sequences, width)
        tokens = np.zeros((len(sequences), width, *self._token_shape), self.token_dtype)
        for row, (sequence, fresh) in enumerate(zip(sequences, computed, strict=True)):
            known = {**sequence.tokens, **fresh}
            tokens[row, : len(known)] = np.stack([known[group] for group in range(len(known))])
        valid = None if where.valid.all() else torch.from_numpy(where.valid).to(self.device)  # nothing to mask out
        days, present = (torch.from_numpy(a).to(self.device) for a in (where.days, where.present))
        logits = self._model.classify(torch.from_numpy(tokens).to(self.device).float(), valid, days, present)
        found: NDArray[np.float32] = logits.cpu().numpy()
        return found


def check(sequence: StampSequence, info: checkpoint.Info, known: NDArray[np.bool_]) -> None:
    """Refuse what a model cannot take.

    Args:
        known: bool [bands], which of `BANDS` the model knows.

    Raises:
        ValueError: the parts of the sequence do not fit together.
        ModelError: it has a band that the model does not know.
    """
    sequence.check(info.max_stamps)
    if not known[sequence.band].all():
        strange = BANDS[int(sequence.band[~known[sequence.band]][0])]
        raise ModelError(f"the model {info.name} knows bands {info.bands}, not {strange}: leave those stamps out")


def _full(sequence: StampSequence, computed: dict[int, Token]) -> dict[int, Token]:
    return {group: token for group, token in computed.items() if GROUP * group + GROUP <= len(sequence.mjd)}


def load_model(name: str | Path, info: checkpoint.Info) -> ConvEntion:
    """The network of a checkpoint, ready to compute.

    Raises:
        ModelError: the weights do not fit the configuration.
    """
    try:
        network = ConvEntion(Config(**info.config))
        network.load_state_dict(checkpoint.load_state(name))
    except (RuntimeError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"the weights of {info.name} do not fit its configuration ({first}): get it again") from error
    return network.eval()


def choose(device: str, precision: str) -> tuple[torch.device, str, str]:
    """Device, precision, and a sentence that says what was chosen and why.

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
        return torch.device("cuda"), chosen, f"cuda {torch.cuda.get_device_name()}, {chosen} ({why})"
    native = native_bfloat16()
    if precision == "auto":
        chosen = "bfloat16" if native else "float32"
        why = f"the processor has {native}" if native else "the processor has no native bfloat16"
    else:
        chosen, why = precision, "as asked for"
    return torch.device("cpu"), chosen, f"cpu x{torch.get_num_threads()}, {chosen} ({why})"


def native_bfloat16() -> str:
    """The CPU's flag for native bfloat16 arithmetic, or empty: elsewhere bfloat16 is slower than float32."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return ""
    flags = next((line.split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    return next((flag for flag in NATIVE_BFLOAT16 if flag in flags), "")
