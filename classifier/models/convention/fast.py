"""The 3D-CNN for inference: batch norm folded into the convolutions, in one precision, on a CPU or a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from skyheed.classifier.models.convention.network import ConvEntion, PlaneKernels, plane_kernels, through_planes

FORM = 2  # increment when tokens are computed differently, so that old and new ones are not mixed


class FoldedFeatures(nn.Module):
    """`convention.Features` in evaluation mode, with its weights folded, split and laid out once.

    Rounding to bfloat16 is avoided where the error would be the same in every stamp and so would not average out.
    Pixels and their kernels enter as rounded values plus remainders: a small change of bright pixels often
    distinguishes objects. Biases are exact: see `with_exact_biases`.

    Args:
        model: provides the weights; it is not changed.
        dtype: float32 or bfloat16, of weights and maps. Sums and tokens are float32 in both cases.
    """

    last_bias: Tensor

    def __init__(self, model: ConvEntion, dtype: torch.dtype) -> None:
        super().__init__()
        features = model.features
        self.dtype, self.bands = dtype, model.config.band_embedding != "none"
        self.group_shape = (model.config.group, model.config.size, model.config.size)
        size = model.config.size
        self.register_buffer("embedding", features.embedding.weight.detach().to(dtype).view(-1, size, size))
        pairs = [folded(getattr(features, f"conv{i}"), getattr(features, f"norm{i}")) for i in (1, 2, 3, 4)]
        if dtype == torch.bfloat16:
            pairs = with_exact_biases(pairs)
            pairs[0] = _with_remainders(pairs[0][0], dtype), pairs[0][1]
        # the last bias is added in float32
        self.register_buffer("last_bias", pairs[3][1].view(-1, 1, 1))
        # sums of kernels are computed in float32 and rounded once
        planes = plane_kernels([w for w, _ in pairs], [*(b for _, b in pairs[:3]), None])
        self.counts = [len(layer) for layer in planes.kernels]
        for i, count in enumerate(self.counts):
            for k in range(count):
                bias = planes.biases[i][k]
                self.register_buffer(f"kernel{i}_{k}", planes.kernels[i][k].to(dtype))
                self.register_buffer(f"bias{i}_{k}", None if bias is None else bias.to(dtype))

    def planes(self) -> PlaneKernels:
        """The folded convolutions."""
        kernels, biases = (
            [[getattr(self, f"{name}{i}_{k}") for k in range(count)] for i, count in enumerate(self.counts)]
            for name in ("kernel", "bias")
        )
        return PlaneKernels(kernels, biases)

    def forward(self, pixels: Tensor, bands: Tensor) -> Tensor:
        """[g, t, 32, 32] scaled pixels and [g, t] band ids, t = group -> tokens [g, channels, 9, 9]."""
        parts = [pixels.to(self.dtype)]
        if self.dtype == torch.bfloat16:
            parts += [(pixels - parts[0].float()).to(self.dtype), parts[0]]
        if self.bands:
            parts.append(self.embedding[bands])  # type: ignore[index]
        # stacked as channels-last images: planes and channels are contiguous
        images = torch.stack([part.permute(0, 2, 3, 1) for part in parts], -1).permute(0, 3, 4, 1, 2)
        return through_planes(images, self.planes(), self._between)

    def _between(self, layer: int, maps: Tensor) -> Tensor:
        if layer == 3:
            maps = maps.to(self.last_bias.dtype) + self.last_bias
        return functional.relu_(maps)


def folded(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution, merged with the batch norm that follows."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    assert conv.bias is not None
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    weight = conv.weight.detach() * scale[:, None, None, None, None]
    return weight, (conv.bias.detach() - norm.running_mean) * scale + norm.bias.detach()


def _with_remainders(kernel: Tensor, dtype: torch.dtype) -> Tensor:
    """The first layer's kernel, for the channels rounded pixel, its remainder, rounded pixel again, and band."""
    pixel, band = kernel[:, :1], kernel[:, 1:]
    return torch.cat([pixel, pixel, pixel - pixel.to(dtype).to(pixel.dtype), band], 1)


def with_exact_biases(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The same convolutions with biases of 6 bits, so that their multiples by 1, 2 and 3 are exact in bfloat16.

    Each channel is scaled by up to 2 % and the next layer's kernel is scaled back, as ReLU commutes with positive
    factors. The last layer keeps its bias.
    """
    made = list(pairs)
    for i in range(len(pairs) - 1):
        (weight, bias), (following, after) = made[i], made[i + 1]
        fraction, exponent = torch.frexp(bias)
        exact = torch.ldexp((fraction * 64).round() / 64, exponent)
        scale = torch.where(bias == 0, 1, exact / bias)
        made[i] = weight * scale[:, None, None, None, None], exact
        made[i + 1] = following / scale[None, :, None, None, None], after
    return made


class CpuTokens:
    """Tokens of any number of groups on a CPU, in chunks of a few shapes: no padding, and kernels are chosen once."""

    sizes = (64, 32, 16, 8, 4, 2, 1)

    def __init__(self, features: FoldedFeatures) -> None:
        self._features = features

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.float32], bands: NDArray[np.int64]) -> NDArray[np.float32]:
        """[g, t, 32, 32] scaled pixels and [g, t] band ids -> float32 [g, channels, 9, 9]."""
        made, at = [], 0
        while at < len(pixels):
            size = next(s for s in self.sizes if s <= len(pixels) - at)
            rows = slice(at, at + size)
            made.append(self._features(torch.from_numpy(pixels[rows]), torch.from_numpy(bands[rows])).float())
            at += size
        tokens: NDArray[np.float32] = torch.cat(made).numpy()
        return tokens


@dataclass
class _Slot:
    """Buffers for one chunk on a GPU: pinned ones on the host, fixed ones on the device, and the captured graph."""

    pixels: torch.Tensor
    bands: torch.Tensor
    tokens: torch.Tensor
    device_pixels: torch.Tensor
    device_bands: torch.Tensor
    device_tokens: torch.Tensor
    graph: torch.cuda.CUDAGraph
    done: torch.cuda.Event


class CudaTokens:
    """Tokens on a GPU: chunks of a few fixed shapes, each a CUDA graph, two of them in flight at a time.

    While one chunk is computed, the next one is copied through pinned memory on a separate stream.
    """

    sizes = (16, 128, 1024)

    def __init__(self, features: FoldedFeatures, device: torch.device) -> None:
        self._features, self._device = features, device
        self._slots: dict[tuple[int, int], _Slot] = {}
        self._streams = [torch.cuda.Stream(device), torch.cuda.Stream(device)]  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.float32], bands: NDArray[np.int64]) -> NDArray[np.float32]:
        """[g, t, 32, 32] scaled pixels and [g, t] band ids -> float32 [g, channels, 9, 9]."""
        chunks, at = [], 0
        while at < len(pixels):
            size = next((s for s in self.sizes if s >= len(pixels) - at), self.sizes[-1])
            chunks.append((at, min(at + size, len(pixels)), size))
            at += size
        made: list[NDArray[np.float32]] = []
        for turn, chunk in enumerate(chunks):
            if turn > 1:
                made.append(self._collect(chunks[turn - 2], turn % 2))
            self._send(chunk, turn % 2, pixels, bands)
        made += [self._collect(chunks[turn], turn % 2) for turn in range(max(len(chunks) - 2, 0), len(chunks))]
        return np.concatenate(made)

    def _send(
        self, chunk: tuple[int, int, int], lane: int, pixels: NDArray[np.float32], bands: NDArray[np.int64]
    ) -> None:
        start, end, size = chunk
        slot = self._slots.get((size, lane)) or self._slots.setdefault((size, lane), self._capture(size))
        # rows beyond the chunk keep old values: their tokens are not read, and rows are independent
        slot.pixels[: end - start].copy_(torch.from_numpy(pixels[start:end]))
        slot.bands[: end - start].copy_(torch.from_numpy(bands[start:end]))
        with torch.cuda.stream(self._streams[lane]):
            slot.device_pixels.copy_(slot.pixels, non_blocking=True)
            slot.device_bands.copy_(slot.bands, non_blocking=True)
            slot.graph.replay()
            slot.tokens.copy_(slot.device_tokens, non_blocking=True)
            slot.done.record(self._streams[lane])

    def _collect(self, chunk: tuple[int, int, int], lane: int) -> NDArray[np.float32]:
        start, end, size = chunk
        slot = self._slots[size, lane]
        slot.done.synchronize()
        tokens: NDArray[np.float32] = slot.tokens[: end - start].numpy().copy()
        return tokens

    def _capture(self, size: int) -> _Slot:
        shape = (size, *self._features.group_shape)
        pixels, bands = (
            torch.zeros(shape, device=self._device),
            torch.zeros(shape[:2], dtype=torch.long).to(self._device),
        )
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):  # kernels must be chosen before the graph is captured
            for _ in range(3):
                self._features(pixels, bands)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            tokens = self._features(pixels, bands).float()
        torch.cuda.synchronize(self._device)
        here, ids, back = (torch.zeros(t.shape, dtype=t.dtype, pin_memory=True) for t in (pixels, bands, tokens))
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        return _Slot(here, ids, back, pixels, bands, tokens, graph, done)
