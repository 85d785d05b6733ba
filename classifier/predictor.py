"""Serving: sequences in, probabilities out, on one device in one precision, both said and never changed in silence.

The fast path of the 3D-CNN folds batch norm into the convolutions, leaves the zero planes out, runs channels-last and,
where the processor has it natively, in bfloat16. Tokens of full groups come back to the caller, who may keep them: a
token never changes, so a new stamp costs one group.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from . import checkpoint
from .convention import LONGEST, MAP, Config, ConvEntion, _stacked
from .errors import ModelError
from .sequence import GROUP, GroupBatch, StampSequence, layout, uncached

NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # CPU flags; the last is 64-bit Arm's
CHUNKS = (32, 16, 8, 4, 2, 1)  # groups at once: few shapes, so that kernels are chosen once, and no padding
CUDA_CHUNKS = (1024, 256, 64, 16)
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, LONGEST)  # groups a sequence is padded to


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        probabilities: float32 [classes], calibrated, sum 1.
        tokens: group index -> token, of the full groups that were computed just now.
    """

    probabilities: NDArray[np.float32]
    tokens: dict[int, NDArray[np.generic]]


class FoldedFeatures(nn.Module):
    """The 3D-CNN for inference: batch norm folded in, 2-D convolutions over the planes that are not zero."""

    def __init__(self, model: ConvEntion, dtype: torch.dtype) -> None:
        super().__init__()
        features = model.features
        self.dtype, self.bands = dtype, model.config.band_embedding != "none"
        self.register_buffer("embedding", features.embedding.weight.detach().to(dtype))
        kernels = []
        for i in (1, 2, 3, 4):
            w, b = _folded(getattr(features, f"conv{i}"), getattr(features, f"norm{i}"))
            self.register_buffer(f"bias{i}", b.to(dtype))
            kernels.append(w.to(dtype))
        w1, w2, w3, w4 = kernels
        self._keep("first", [w1[:, :, 2], _stacked(w1), w1[:, :, 0]])
        second = [w2[:, :, 2:], w2[:, :, 1:], w2, w2[:, :, :2], w2[:, :, :1]]
        self._keep("second", [_stacked(w) for w in second])
        self._keep("rest", [_stacked(w3), _stacked(w4)])

    def _keep(self, name: str, kernels: Sequence[Tensor]) -> None:
        for index, kernel in enumerate(kernels):
            self.register_buffer(f"{name}{index}", kernel.contiguous(memory_format=torch.channels_last))

    def forward(self, pixels: Tensor, bands: Tensor) -> Tensor:
        """[g, 3, 32, 32] scaled pixels and [g, 3] band ids -> tokens [g, channels, 9, 9]."""
        g = len(pixels)
        planes = pixels.to(self.dtype)[:, :, None]
        if self.bands:
            size = planes.shape[-1]
            planes = torch.cat([planes, self.embedding[bands].view(g, GROUP, 1, size, size)], 2)  # type: ignore[index]
        whole = planes.flatten(1, 2).contiguous(memory_format=torch.channels_last)
        width = planes.shape[2]
        a = self._conv(whole[:, :width], "first0", 1, 2, 2)
        b = self._conv(whole, "first1", 1, 2, 2)
        c = self._conv(whole[:, -width:], "first2", 1, 2, 2)
        ab, bc = torch.cat([a, b], 1), torch.cat([b, c], 1)
        abc = torch.cat([a, b, c], 1)
        inputs = (a, ab, abc, bc, c)
        five = [self._conv(x, f"second{i}", 2, 1, 2) for i, x in enumerate(inputs)]
        three = self._conv(torch.cat([torch.cat(five[i : i + 3], 1) for i in range(3)]), "rest0", 3, 1, 0)
        return self._conv(torch.cat(torch.split(three, g), 1), "rest1", 4, 1, 0)

    def _conv(self, x: Tensor, kernel: str, layer: int, stride: int, padding: int) -> Tensor:
        bias = getattr(self, f"bias{layer}")
        return functional.conv2d(x, getattr(self, kernel), bias, stride, padding).relu_()


def _folded(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch norm behind it."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    assert conv.bias is not None
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    weight = conv.weight.detach() * scale[:, None, None, None, None]
    return weight, (conv.bias.detach() - norm.running_mean) * scale + norm.bias.detach()


class Predictor:
    """A checkpoint ready to serve.

    Args:
        model: checkpoint directory, or the name of shipped weights.
        survey: whose stamps will come.
        device: auto, cpu or cuda.
        precision: auto, float32 or bfloat16; of the 3D-CNN, the rest is float32.
        batch_size: sequences that are warmed up for.
        threads: of the CPU; None for all cores.

    Raises:
        ModelError: the checkpoint, survey, device or precision cannot be used.
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
    ) -> None:
        self.info = checkpoint.read_info(model)
        checkpoint.check_survey(self.info, survey)
        if self.info.config.get("variant") != "stream":
            raise ModelError(
                f"the model {self.info.name} is of the paper variant, which cannot be served: it sees padding"
            )
        if threads:
            torch.set_num_threads(threads)
        self.device, self.precision, self.chosen = choose(device, precision)
        self._dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        # bfloat16 tokens fit into float16; every token is rounded alike, whether it was kept or computed just now
        self.token_dtype = np.dtype("<f2" if self.precision == "bfloat16" else "<f4")
        self.token_model = f"{self.info.digest[:16]}-{self.precision}"
        self.batch_size = batch_size
        self._model = _load(model, self.info).to(self.device)
        self._features = FoldedFeatures(self._model, self._dtype).to(self.device)
        self._token_shape = (self._model.config.channels, MAP, MAP)
        self._known = np.array([band in self.info.bands for band in "ugrizy"])

    def token_bytes(self, token: NDArray[np.generic]) -> bytes:
        """A token as it is kept."""
        return token.astype(self.token_dtype, copy=False).tobytes()

    def token_from(self, raw: bytes) -> NDArray[np.generic]:
        """A token as it was kept."""
        return np.frombuffer(raw, self.token_dtype).reshape(self._token_shape)

    def warm_up(self) -> None:
        """Compute once in every shape, so that the first alerts do not wait for it."""
        empty = np.zeros((LONGEST * GROUP, 32, 32), np.float16)
        band = np.full(LONGEST * GROUP, "ugrizy".index(self.info.bands[0]), np.uint8)
        for count in {1, self.batch_size}:
            for width in WIDTHS[:3]:
                n = width * GROUP
                self.classify([StampSequence(np.arange(n, dtype=float), band[:n], empty[:n])] * count)

    @torch.inference_mode()
    def classify(self, sequences: Sequence[StampSequence]) -> list[Prediction]:
        """Probabilities of each sequence; only groups without a cached token are computed.

        Raises:
            ValueError: a sequence is malformed or has a band that the model does not know.
        """
        if not sequences:
            return []
        for sequence in sequences:
            self._check(sequence)
        computed = self._tokens(sequences)
        logits = np.empty((len(sequences), len(self.info.classes)), np.float32)
        for rows in _alike(sequences):
            logits[rows] = self._classify([sequences[r] for r in rows], [computed[r] for r in rows])
        stamps = np.array([len(s.mjd) for s in sequences])
        probabilities = self.info.calibration(logits, stamps)
        return [Prediction(p, _full(s, c)) for p, s, c in zip(probabilities, sequences, computed, strict=True)]

    def _check(self, sequence: StampSequence) -> None:
        sequence.check(self.info.max_stamps)
        if not self._known[sequence.band].all():
            raise ValueError(f"the model {self.info.name} knows bands {self.info.bands} only")

    def _tokens(self, sequences: Sequence[StampSequence]) -> list[dict[int, NDArray[np.generic]]]:
        """The tokens that are not cached, of each sequence."""
        groups = [uncached(s, self.info.scaling) for s in sequences]
        flat = self._compute(
            GroupBatch(np.concatenate([g.pixels for g in groups]), np.concatenate([g.bands for g in groups]))
        )
        found, at = [], 0
        for sequence, group in zip(sequences, groups, strict=True):
            missing = [i for i in range(sequence.groups) if i not in sequence.tokens]
            found.append(dict(zip(missing, flat[at : at + len(missing)], strict=True)))
            at += len(group.pixels)
        return found

    def _compute(self, groups: GroupBatch) -> NDArray[np.generic]:
        """Tokens [g, channels, 9, 9] of scaled groups."""
        total = len(groups.pixels)
        out = np.empty((total, *self._token_shape), self.token_dtype)
        at = 0
        while at < total:
            size = next((c for c in CHUNKS if c <= total - at), 1)
            pixels = torch.from_numpy(groups.pixels[at : at + size]).to(self.device)
            bands = torch.from_numpy(groups.bands[at : at + size]).to(self.device)
            out[at : at + size] = self._features(pixels, bands).float().cpu().numpy()
            at += size
        return out

    def _classify(
        self, sequences: Sequence[StampSequence], computed: Sequence[dict[int, NDArray[np.generic]]]
    ) -> NDArray[np.float32]:
        width = next(w for w in WIDTHS if w >= max(s.groups for s in sequences))
        where = layout(sequences, width)
        tokens = np.zeros((len(sequences), width, *self._token_shape), np.float32)
        for row, (sequence, fresh) in enumerate(zip(sequences, computed, strict=True)):
            for group, token in (*sequence.tokens.items(), *fresh.items()):
                tokens[row, group] = token
        arrays = (tokens, where.valid, where.days, where.present)
        logits = self._model.classify(*(torch.from_numpy(a).to(self.device) for a in arrays))
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result


def _full(sequence: StampSequence, computed: dict[int, NDArray[np.generic]]) -> dict[int, NDArray[np.generic]]:
    return {group: token for group, token in computed.items() if GROUP * group + GROUP <= len(sequence.mjd)}


def _alike(sequences: Sequence[StampSequence]) -> list[list[int]]:
    """Rows whose sequences are padded to the same width: long ones do not make short ones pay."""
    rows: dict[int, list[int]] = {}
    for row, sequence in enumerate(sequences):
        rows.setdefault(next(w for w in WIDTHS if w >= sequence.groups), []).append(row)
    return list(rows.values())


def _load(model: str | Path, info: checkpoint.Info) -> ConvEntion:
    try:
        network = ConvEntion(Config(**info.config))
        network.load_state_dict(checkpoint.load_state(model))
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"the weights of {info.name} do not fit its configuration: {error}") from error
    return network.eval()


def choose(device: str, precision: str) -> tuple[torch.device, str, str]:
    """Device, precision, and a sentence that says what was chosen and why.

    Raises:
        ModelError: cuda was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda was asked for, but torch sees no GPU: install a CUDA build, or use --device cpu")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        chosen = "bfloat16" if precision == "auto" else precision
        return torch.device("cuda"), chosen, f"cuda {torch.cuda.get_device_name()}, {chosen}"
    native = native_bfloat16()
    if precision == "auto":
        chosen = "bfloat16" if native else "float32"
        why = f"has {native}" if native else "has no native bfloat16"
    else:
        chosen, why = precision, "as asked for"
    return torch.device("cpu"), chosen, f"cpu x{torch.get_num_threads()}, {chosen} ({why})"


def native_bfloat16() -> str:
    """The CPU's flag for native bfloat16 arithmetic, or empty: elsewhere bfloat16 is slower than float32."""
    if not os.path.exists("/proc/cpuinfo"):
        return ""
    flags = Path("/proc/cpuinfo").read_text().split()
    return next((flag for flag in NATIVE_BFLOAT16 if flag in flags), "")
