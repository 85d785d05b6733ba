"""ConvEntion: image time series classification by convolutional attention (Bairouk et al. 2023, A&A 673, A141).

- Stamps of all bands in one sequence; each carries its band as a learned image (band embedding).
- A 3D-CNN turns every group of 3 stamps into one token, a map of d=8 channels and 9x9 pixels.
- Two blocks of multi-head convolutional attention and a convolutional feed-forward part, with residuals.
- The maximum over time, two dense layers, one logit per class.

Two variants with the same layers:
    paper   as published and released: zero padding that everything sees, LayerNorm over time, band u = padding.
    stream  what we serve: padding is masked everywhere, bands have embeddings distinct from padding, normalisation is
            per token, days since the first stamp enter beside the position. A full group's token never changes.
Two kinds of attention:
    linear  as published: one convolution on Q_i + K_j. The softmax over j cancels Q_i, so every position gets the same
            mean of V, computed here exactly in O(n).
    mlp     a nonlinearity between that convolution and the logits: truly query-dependent, O(n) convolutions.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .sequence import GROUP

SIZE = 32  # pixels of a stamp on a side
MAP = 9  # pixels of a token on a side
LONGEST = 33  # groups
BAND_ROWS = 10  # rows of the published band embedding


@dataclass(frozen=True)
class Config:
    """The model's shape; the defaults with variant="paper" are the published one."""

    classes: int = 4
    variant: Literal["paper", "stream"] = "stream"
    attention: Literal["linear", "mlp"] = "linear"
    band_embedding: Literal["learned", "fixed", "none"] = "learned"
    channels: int = 8
    heads: int = 4
    layers: int = 2
    hidden: int = 256
    dropout: float = 0.3
    attention_hidden: int = 16  # channels between the two layers of the mlp attention

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Features(nn.Module):
    """The 3D-CNN: groups of 3 stamps -> tokens; weights as published, computed on the planes that are not zero.

    Padding in time makes 5 planes out of 3 and 40 % of the multiplications are by zero; written as 2-D convolutions
    over the real planes they are left out, exactly.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(BAND_ROWS, SIZE * SIZE, padding_idx=0)
        if config.band_embedding == "fixed":
            levels = torch.linspace(0, 1, BAND_ROWS)[:, None].expand(-1, SIZE * SIZE)
            self.embedding.weight = nn.Parameter(levels.clone(), requires_grad=False)
        inputs = 1 if config.band_embedding == "none" else 2
        self.conv1 = nn.Conv3d(inputs, 64, (3, 11, 11), stride=2, padding=2)
        self.conv2 = nn.Conv3d(64, 128, (3, 5, 5), padding=2)
        self.conv3 = nn.Conv3d(128, 64, 3)
        self.conv4 = nn.Conv3d(64, config.channels, 3)
        self.norm1, self.norm2 = nn.BatchNorm3d(64), nn.BatchNorm3d(128)
        self.norm3, self.norm4 = nn.BatchNorm3d(64), nn.BatchNorm3d(config.channels)

    def images(self, pixels: Tensor, bands: Tensor) -> Tensor:
        """[g, 3, 32, 32] pixels and [g, 3] band ids -> [g, 3, c, 32, 32] input planes."""
        planes = pixels[:, :, None]
        if self.config.band_embedding == "none":
            return planes
        embedded = self.embedding(bands).view(*bands.shape, 1, SIZE, SIZE).to(planes.dtype)
        return torch.cat([planes, embedded], 2)

    def forward(self, pixels: Tensor, bands: Tensor) -> Tensor:
        """[g, 3, 32, 32] scaled pixels and [g, 3] band ids -> tokens [g, channels, 9, 9]."""
        x = self.images(pixels, bands)
        x = functional.relu(self.norm1(self._first(x)))
        x = functional.relu(self.norm2(self._second(x)))
        x = functional.relu(self.norm3(_windows(self.conv3, x)))
        x = functional.relu(self.norm4(_windows(self.conv4, x)))
        return x.squeeze(2)

    def _first(self, x: Tensor) -> Tensor:
        """conv1: stride 2 on [0, 0, a, b, c, 0, 0] sees (0, 0, a), (a, b, c) and (c, 0, 0)."""
        w, bias = self.conv1.weight, self.conv1.bias

        def conv(planes: Tensor, kernel: Tensor) -> Tensor:
            return functional.conv2d(planes, kernel, bias, stride=2, padding=2)

        whole = conv(x.flatten(1, 2), _stacked(w))
        return torch.stack([conv(x[:, 0], w[:, :, 2]), whole, conv(x[:, 2], w[:, :, 0])], 2)

    def _second(self, x: Tensor) -> Tensor:
        """conv2: stride 1 on [0, 0, a, b, c, 0, 0] gives five planes from one, two, three, two and one of them."""
        w, bias = self.conv2.weight, self.conv2.bias
        a = x.transpose(1, 2)
        planes = []
        for first, last in ((0, 1), (0, 2), (0, 3), (1, 3), (2, 3)):
            width = last - first
            kernel = w[:, :, 3 - width :] if first == 0 else w[:, :, :width]
            planes.append(functional.conv2d(a[:, first:last].flatten(1, 2), _stacked(kernel), bias, padding=2))
        return torch.stack(planes, 2)


def _stacked(kernel: Tensor) -> Tensor:
    """A Conv3d kernel [out, in, t, k, k] as the Conv2d kernel of t planes side by side [out, t in, k, k]."""
    return kernel.transpose(1, 2).flatten(1, 2)


def _windows(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """A Conv3d without padding in time as one batch of 2-D ones, [g, c, t, y, x] -> [g, out, t - 2, y', x']."""
    g, _, t = x.shape[:3]
    a = x.transpose(1, 2)
    stacked = torch.stack([a[:, i : i + GROUP].flatten(1, 2) for i in range(t - GROUP + 1)], 1).flatten(0, 1)
    y = functional.conv2d(stacked, _stacked(conv.weight), conv.bias)
    return y.view(g, t - GROUP + 1, *y.shape[1:]).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head convolutional self-attention over [b, n, d, 9, 9]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, self.heads = config.channels, config.heads
        self.kind, self.channels = config.attention, d
        self.qkv = nn.Conv2d(d, 3 * d, 1)
        # linear attention never uses the first third of qkv and the bias here: softmax over j cancels them. They are
        # kept so that the count is the published one.
        out = config.heads if config.attention == "linear" else config.attention_hidden
        self.logits = nn.Conv2d(d, out, 5, padding=2)
        if config.attention == "mlp":
            self.score = nn.Conv2d(config.attention_hidden, config.heads, 1)
        self.out = nn.Conv2d(d, d, 3, padding=1)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """[b, n, d, h, w], valid [b, n] or None for no mask -> the same shape."""
        b, n = x.shape[:2]
        q, k, v = self.qkv(x.flatten(0, 1)).view(b, n, 3 * self.channels, *x.shape[3:]).chunk(3, 2)
        if self.kind == "linear":
            mixed = self._linear(k, v, valid).expand(b, n, *x.shape[2:])
        else:
            mixed = self._mlp(q, k, v, valid)
        out: Tensor = self.out(mixed.flatten(0, 1)).view_as(x)
        return out

    def _linear(self, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
        """The exact O(n) form: one weighted mean of V for all positions, [b, 1, d, h, w]."""
        b, n = k.shape[:2]
        logits = self.logits(k.flatten(0, 1)).view(b, n, self.heads, *k.shape[3:])
        weights = _softmax(logits, valid, 1)
        shared = v.view(b, n, self.heads, -1, *v.shape[3:])
        return (weights[:, :, :, None] * shared).sum(1).flatten(1, 2)[:, None]

    def _mlp(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
        """conv(Q_i + K_j) = conv(Q_i) + conv(K_j): n convolutions each, then pointwise for every pair."""
        b, n = k.shape[:2]
        a = functional.conv2d(q.flatten(0, 1), self.logits.weight, self.logits.bias, padding=2)
        c = functional.conv2d(k.flatten(0, 1), self.logits.weight, None, padding=2)
        a, c = (t.view(b, n, *t.shape[1:]) for t in (a, c))
        shared = v.view(b, n, self.heads, -1, *v.shape[3:])
        mixed = []
        for i in range(n):  # one query at a time: the n^2 maps are never all in memory
            pairs = functional.leaky_relu(a[:, i : i + 1] + c)
            logits = self.score(pairs.flatten(0, 1)).view(b, n, self.heads, *k.shape[3:])
            mixed.append((_softmax(logits, valid, 1)[:, :, :, None] * shared).sum(1).flatten(1, 2))
        return torch.stack(mixed, 1)


def _softmax(logits: Tensor, valid: Tensor | None, dim: int) -> Tensor:
    if valid is not None:
        logits = logits.masked_fill(~valid[:, :, None, None, None], -math.inf)
    return logits.softmax(dim)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d = config.channels
        shape = [LONGEST, d, MAP, MAP] if config.variant == "paper" else [d, MAP, MAP]
        self.norm1, self.norm2 = nn.LayerNorm(shape), nn.LayerNorm(shape)
        self.attention = Attention(config)
        self.feed = nn.Sequential(
            nn.Conv2d(d, 2 * d, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(2 * d),
            nn.Conv2d(2 * d, d, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(d),
        )  # fmt: skip

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """[b, n, d, h, w] -> the same."""
        x = x + self.attention(self.norm1(x), valid)
        y = self.norm2(x)
        if valid is None:
            plain: Tensor = x + self.feed(y.flatten(0, 1)).view_as(x)
            return plain
        fed = torch.zeros_like(x)
        fed[valid] = self.feed(y[valid]).to(x.dtype)  # batch statistics never see padding
        return x + fed


class ConvEntion(nn.Module):
    """The whole model; see the module's docstring."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.features = Features(config)
        if config.variant == "stream":
            # days of the group's three stamps (log), and which of them there are, as a shift of every channel
            self.when = nn.Linear(2 * GROUP, config.channels)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(config.channels * MAP * MAP, config.hidden), nn.ReLU(),
            nn.Dropout(config.dropout), nn.Linear(config.hidden, config.classes),
        )  # fmt: skip
        self.register_buffer("position", positions(LONGEST, config.channels), persistent=False)

    def forward(self, pixels: Tensor, bands: Tensor, valid: Tensor, days: Tensor, present: Tensor) -> Tensor:
        """Logits [b, classes].

        Args:
            pixels: [b, n, 3, 32, 32] scaled; zero where there is no stamp.
            bands: [b, n, 3] band ids.
            valid: bool [b, n], groups with a stamp.
            days: [b, n, 3] since the first stamp.
            present: bool [b, n, 3], steps with a stamp.
        """
        if self.config.variant == "paper":
            tokens = self.features(pixels.flatten(0, 1), published_bands(bands).flatten(0, 1))
            return self.classify(tokens.view(*valid.shape, *tokens.shape[1:]), None, days, present)
        kept = self.features(pixels[valid], bands[valid])
        tokens = kept.new_zeros(*valid.shape, *kept.shape[1:])
        tokens[valid] = kept
        return self.classify(tokens, valid, days, present)

    def classify(self, tokens: Tensor, valid: Tensor | None, days: Tensor, present: Tensor) -> Tensor:
        """Logits [b, classes] of tokens [b, n, channels, 9, 9]."""
        x = tokens + self.position[: tokens.shape[1], :, None, None].to(tokens.dtype)  # type: ignore[index]
        if self.config.variant == "stream":
            known = present.to(x.dtype)
            shift = self.when(torch.cat([torch.log1p(days.to(x.dtype).clamp(min=0)) * known, known], -1))
            x = x + shift[..., None, None]
        for block in self.blocks:
            x = block(x, valid)
        if valid is not None:
            x = x.masked_fill(~valid[:, :, None, None, None], -math.inf)
        logits: Tensor = self.head(x.amax(1).flatten(1))
        return logits


def published_bands(bands: Tensor) -> Tensor:
    """Band ids of the released code: u, g, r … are 0, 1, 2 …, and 0 is padding, too (its flaw, kept in `paper`)."""
    return (bands - 1).clamp(min=0)


def positions(count: int, channels: int) -> Tensor:
    """The sinusoidal table [count, channels] (Vaswani et al. 2017), constant over the map."""
    at = torch.arange(count, dtype=torch.float64)[:, None]
    k = torch.arange(channels)
    angle = at / 10000 ** (2 * (k // 2) / channels)
    return torch.where(k % 2 == 0, angle.sin(), angle.cos()).float()


def layers(config: Config) -> list[tuple[str, int]]:
    """(name, parameters) of every layer that has any, in order."""
    model = ConvEntion(config)
    rows = []
    for name, module in model.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if own:
            rows.append((name, own))
    return rows


def dead_parameters(config: Config) -> int:
    """Parameters that provably never matter: Q and the bias of the logits under linear attention."""
    if config.attention != "linear":
        return 0
    d = config.channels
    return config.layers * (d * d + d + config.heads)


def operations() -> dict[str, int]:
    """Multiply-adds of one group: over all planes as a plain Conv3d computes them, and without the zero planes."""
    per_plane = {
        "conv1": 13 * 13 * 64 * 2 * 11 * 11,
        "conv2": 13 * 13 * 128 * 64 * 25,
        "conv3": 11 * 11 * 64 * 128 * 9,
        "conv4": 9 * 9 * 8 * 64 * 9,
    }
    plain = {"conv1": 9, "conv2": 15, "conv3": 9, "conv4": 3}
    needed = {"conv1": 5, "conv2": 9, "conv3": 9, "conv4": 3}
    return {
        "plain": sum(per_plane[name] * plain[name] for name in plain),
        "needed": sum(per_plane[name] * needed[name] for name in needed),
    }


def published(classes: int = 4) -> Config:
    """The configuration of the paper: 1,253,108 parameters for 4 classes."""
    return replace(Config(), variant="paper", classes=classes)
