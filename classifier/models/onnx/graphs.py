"""Networks split into graphs: the encoder, whose outputs are cached, and the head. Inputs and outputs are named
arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from skyheed.classifier.errors import ModelError
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import DETECTION, History, Photometry
from skyheed.classifier.models.base import Batch, Network
from skyheed.classifier.models.convention.fast import FoldedFeatures
from skyheed.classifier.models.convention.network import ConvEntion
from skyheed.classifier.models.fusion.network import Fusion
from skyheed.classifier.models.lstm import Lstm
from skyheed.classifier.models.onnx.folder import ENCODER, HEAD, OPSET
from skyheed.classifier.models.vector import Vector
from skyheed.classifier.models.vector_parts import Among, Behind, Encoder

# Axes of the inputs: names stand for any length, numbers for a fixed one
B, N = "histories", "epochs"


@dataclass(frozen=True)
class Cut:
    """A graph to be written.

    Attributes:
        module: takes a dict of tensors and returns one.
        example: example inputs.
        axes: input -> its axes in order; a name, or a number where the length is fixed.
        outputs: their names.
    """

    module: nn.Module
    example: Batch
    axes: Mapping[str, Sequence[str | int]]
    outputs: Sequence[str]


class Named(nn.Module):
    """Wraps a module with positional arguments as one that takes a dict."""

    def __init__(self, module: nn.Module, inputs: Sequence[str], output: str) -> None:
        super().__init__()
        self.module, self.inputs, self.output = module, inputs, output

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """See the module."""
        return {self.output: self.module(*(batch[name] for name in self.inputs))}


def cut(network: Network) -> tuple[str, dict[str, Cut]]:
    """The kind of an export (`predictor.KINDS`), and its graphs.

    Raises:
        ModelError: the network cannot be exported.
    """
    if isinstance(network, ConvEntion) and network.config.variant == "stream":
        return "groups", _groups(network)
    if isinstance(network, Vector):
        return "fusion" if isinstance(network, Fusion) else "stamps", _stamps(network.fold())
    if isinstance(network, Lstm):
        n = 2 * len(network.config.bands) + 1
        example = {"nights": torch.randn(2, 5, n), "valid": torch.ones(2, 5, dtype=torch.bool)}
        return "nights", {HEAD: Cut(Nights(network), example, {"nights": (B, N, n), "valid": (B, N)}, ("logits",))}
    raise ModelError(
        f"{type(network).__name__} has no form in ONNX here: export a model of the families convention (not its paper "
        "variant), vector, fusion or lstm"
    )


class Nights(nn.Module):
    """A network with one LSTM layer; for export only.

    The LSTM is written as ONNX's own operator: torch.export would unroll it for one length of the series.
    """

    weight: Tensor
    recurrent: Tensor
    bias: Tensor

    def __init__(self, network: Lstm) -> None:
        super().__init__()
        self.network, cell = network, network.rnn
        # order of the gates: i, f, g, o in torch, and i, o, f, c in ONNX
        order = torch.cat([torch.arange(network.width) + network.width * gate for gate in (0, 3, 1, 2)])
        parts = [w.detach()[order] for _, w in cell.named_parameters()]
        self.register_buffer("weight", parts[0][None])
        self.register_buffer("recurrent", parts[1][None])
        self.register_buffer("bias", torch.cat(parts[2:])[None])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """See the class."""
        x, width = batch["nights"].transpose(0, 1), self.network.width
        given = (x, self.weight, self.recurrent, self.bias)
        y = torch.onnx.ops.symbolic(
            "LSTM",
            given,
            {"hidden_size": width},
            dtype=x.dtype,
            shape=(x.shape[0], 1, x.shape[1], width),
            version=OPSET,
        )
        last = batch["valid"].sum(1)[None, :, None].expand(1, -1, width) - 1
        return {"logits": self.network.classify(y[:, 0].gather(0, last)[0])}


def _groups(network: ConvEntion) -> dict[str, Cut]:
    config = network.config
    t, size, token = config.group, config.size, (config.channels, config.map, config.map)
    b, n = 2, 4
    encoder = Cut(
        Named(FoldedFeatures(network, torch.float32), ("pixels", "bands"), "tokens"),
        {"pixels": torch.randn(3, t, size, size), "bands": torch.randint(1, 6, (3, t))},
        {"pixels": ("groups", t, size, size), "bands": ("groups", t)}, ("tokens",),
    )  # fmt: skip
    valid, days = torch.ones(b, n, dtype=torch.bool), torch.rand(b, n, t)
    head = Cut(
        Named(_TokenLogits(network), ("tokens", "valid", "days", "present"), "logits"),
        {"tokens": torch.randn(b, n, *token), "valid": valid, "days": days, "present": days > 0.1},
        {"tokens": (B, "groups", *token), "valid": (B, "groups"), "days": (B, "groups", t),
         "present": (B, "groups", t)}, ("logits",),
    )  # fmt: skip
    return {ENCODER: encoder, HEAD: head}


class _TokenLogits(nn.Module):
    def __init__(self, network: ConvEntion) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, valid: Tensor, days: Tensor, present: Tensor) -> Tensor:
        return self.network.logits(tokens, valid, days, present)


def _stamps(network: Vector) -> dict[str, Cut]:
    kinds = len(network.config.kinds)
    encoder = Cut(
        Named(Encoder(network), ("images", "band"), "vectors"),
        {"images": torch.randn(3, kinds, 32, 32), "band": torch.randint(0, 5, (3,))},
        {"images": ("stamps", kinds, 32, 32), "band": ("stamps",)}, ("vectors",),
    )  # fmt: skip
    said = ("logits", "far") if isinstance(network, Fusion) else ("logits",)
    if network.config.photometry:
        return {ENCODER: encoder, HEAD: _among(network, said)}
    return {ENCODER: encoder, HEAD: _behind(network, said)}


def _among(network: Vector, said: Sequence[str]) -> Cut:
    arrays = _example(network)
    axes: dict[str, Sequence[str | int]] = {
        "vectors": (B, N, network.config.per_stamp), "times": (B, N, 3), "valid": (B, N),
        "points": (B, "points", arrays["points"].shape[2]), "point_band": (B, "points"), "points_valid": (B, "points"),
        "order": (B, "epochs and points"), "place": (B, N),
    }  # fmt: skip
    b, n = arrays["valid"].shape
    example = {"vectors": torch.randn(b, n, network.config.per_stamp), **arrays}
    return Cut(Among(network), *_with_beside(network, example, axes), said)


def _behind(network: Vector, said: Sequence[str]) -> Cut:
    arrays, config = _example(network), network.config
    b, n = arrays["valid"].shape
    example = {
        **arrays, "values": torch.randn(b, n + 1, config.keeps), "times": torch.rand(b, n + 1, 3),
        "epochs": torch.tensor([[n - 2, n - 1]] * b),
    }  # fmt: skip
    axes: dict[str, Sequence[str | int]] = {
        "values": (B, "epochs + 1", config.keeps), "times": (B, "epochs + 1", 3), "valid": (B, N), "epochs": (B, "new"),
    }  # fmt: skip
    return Cut(Behind(network), *_with_beside(network, example, axes), (*said, "fresh"))


def _with_beside(
    network: Vector, example: Batch, axes: dict[str, Sequence[str | int]]
) -> tuple[Batch, dict[str, Sequence[str | int]]]:
    beside = network.inputs.beside_of({k: v.numpy() for k, v in example.items()})
    axes |= {name: (B, *value.shape[1:]) for name, value in beside.items()}
    return {name: example[name] for name in axes}, axes


def _example(network: Vector) -> Batch:
    """A batch without images."""
    n, points = 5, 3
    rng = np.random.default_rng(0)
    seen = History(
        np.arange(n, dtype=np.float64), np.zeros(n, np.uint8), flux=rng.normal(100, 9, n).astype(np.float32),
        flux_error=np.ones(n, np.float32),
    )  # fmt: skip
    values = rng.normal(100, 9, points).astype(np.float32)
    kinds = np.full(points, DETECTION, np.uint8)
    several = Photometry(
        np.arange(points, dtype=np.float64) + 0.5, np.zeros(points, np.uint8), values, np.ones_like(values), kinds
    )
    histories = [replace(seen, photometry=several)] * 2
    arrays = network.inputs.without_images(histories, Scaling((1.0,) * 6, 1.0, (1.0,) * 6))
    return {name: torch.from_numpy(a) for name, a in arrays.items()}
