"""ConvEntion: image time series classification by convolutional attention (Bairouk et al. 2023, A&A 673, A141).

- Stamps of all bands in one sequence; each carries its band as a learned image (band embedding).
- A 3D-CNN turns every group of 3 stamps into one token, a map of d=8 channels and 9x9 pixels.
- Two blocks of multi-head convolutional attention and a convolutional feed-forward part, with residuals.
- The maximum over time, two dense layers, one logit per class.

Two variants with the same layers:
    paper   as published and released: unmasked zero padding, LayerNorm over time, band u = padding.
    stream  the variant served: padding is masked everywhere, bands have embeddings distinct from padding, normalisation
            is per token, days since the first stamp are added to the position. A full group's token never changes.
Two kinds of attention:
    linear  as published: one convolution on Q_i + K_j. The softmax over j cancels Q_i, so every position gets the same
            mean of V, computed here exactly in O(n).
    mlp     a nonlinearity between that convolution and the logits: truly query-dependent, O(n) convolutions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.models.base import Arrays, Batch, Network
from skyheed.classifier.models.convention.config import Config as Config
from skyheed.classifier.models.convention.groups import GROUP, collate, groups, padded_width

FILL = 32  # in training, the number of groups is a multiple of this


class Features(nn.Module):
    """The 3D-CNN: groups of 3 stamps -> tokens; weights as published, computed only on non-zero planes.

    Padding in time makes 5 planes out of 3, so that 40 % of the multiplications are by zero; 2-D convolutions over the
    real planes omit them without changing the result.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rows = max(10, config.bands + 1)
        self.embedding = nn.Embedding(rows, config.size**2, padding_idx=0)
        if config.band_embedding == "fixed":
            levels = torch.linspace(0, 1, rows)[:, None].expand(-1, config.size**2)
            self.embedding.weight = nn.Parameter(levels.clone(), requires_grad=False)
        inputs = 1 if config.band_embedding == "none" else 2
        t = config.group  # one plane in, one plane out for the 2-D form
        pad = 2 if t == GROUP else 0
        self.conv1 = nn.Conv3d(inputs, 64, (t, 11, 11), stride=2, padding=(pad, 2, 2))
        self.conv2 = nn.Conv3d(64, 128, (t, 5, 5), padding=(pad, 2, 2))
        self.conv3 = nn.Conv3d(128, 64, (t, 3, 3))
        self.conv4 = nn.Conv3d(64, config.channels, (t, 3, 3))
        self.norm1, self.norm2 = nn.BatchNorm3d(64), nn.BatchNorm3d(128)
        self.norm3, self.norm4 = nn.BatchNorm3d(64), nn.BatchNorm3d(config.channels)

    def images(self, pixels: Tensor, bands: Tensor) -> Tensor:
        """[g, t, y, x] pixels and [g, t] band ids -> [g, t, c, y, x] input planes."""
        planes = pixels[:, :, None]
        if self.config.band_embedding == "none":
            return planes
        embedded = self.embedding(bands).view(*bands.shape, 1, *pixels.shape[2:]).to(planes.dtype)
        return torch.cat([planes, embedded], 2)

    def forward(self, pixels: Tensor, bands: Tensor) -> Tensor:
        """[g, t, y, x] scaled pixels and [g, t] band ids, t = 3 (2d: 1) -> tokens [g, channels, y', x']."""
        convolutions = (self.conv1, self.conv2, self.conv3, self.conv4)
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        images = self.images(pixels, bands)
        planes = plane_kernels([conv.weight for conv in convolutions], [conv.bias for conv in convolutions])
        # planes are stacked along the batch, so the statistics are those of BatchNorm3d
        return through_planes(images, planes, lambda i, x: _normed(norms[i], x))


def _normed(norm: nn.BatchNorm3d, x: Tensor) -> Tensor:
    """Batch norm and ReLU of planes [t g, c, y, x]; a BatchNorm3d would refuse the shape."""
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    momentum = norm.momentum or 0.0
    y = functional.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, momentum, norm.eps
    )
    return functional.relu_(y)


@dataclass(frozen=True)
class PlaneKernels:
    """The 3D-CNN as 2-D convolutions: channels-last kernels and biases of each, layer by layer (`plane_kernels`)."""

    kernels: list[list[Tensor]]
    biases: list[list[Tensor | None]]


def plane_kernels(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> PlaneKernels:
    """Kernels for `through_planes`, from four Conv3d kernels [out, in, t, k, k] and their biases [out], t = 3 or 1."""
    if weights[0].shape[2] == 1:
        flat = [w[:, :, 0].contiguous(memory_format=torch.channels_last) for w in weights]
        return PlaneKernels([[w] for w in flat], [[b] for b in biases])
    w1, (u0, u1, u2), (v0, v1, v2), w4 = weights[0], weights[1].unbind(2), weights[2].unbind(2), weights[3]
    kernels = (
        # padding by two in time, stride 2: the windows are 0 0 a, a b c and c 0 0
        [_stacked(w1[:, :, 2:]), _stacked(w1), _stacked(w1[:, :, :1])],
        [u2, u1, u0, u2 + u1, u1 + u0, u2 + u0],
        [v0, v1, v2, v0 + v1, v0 + v2, v1 + v2],
        [_stacked(w4)],
    )
    # multiples of the bias such that one remains in every plane after the products are added and subtracted
    shares = ((1, 1, 1), (1, 0, 1, 2, 2, 3), (1, 1, 1, 0, 0, 0), (1,))
    return PlaneKernels(
        [[k.contiguous(memory_format=torch.channels_last) for k in layer] for layer in kernels],
        [
            [None if bias is None or not share else share * bias for share in row]
            for bias, row in zip(biases, shares, strict=True)
        ],
    )


def through_planes(images: Tensor, planes: PlaneKernels, between: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The 3D-CNN as channels-last 2-D convolutions over non-zero planes.

    conv2 multiplies each of three planes by each of three kernels: a product of two polynomials in time, for which six
    products of planes suffice instead of nine (Karatsuba & Ofman 1962). conv3 is its transpose.

    Args:
        images: [g, t, c, y, x], t = 3, or 1 for kernels of one plane.
        between: (layer from 0, [planes g, c, y, x]) -> the same shape: the operations after each convolution.

    Returns:
        Tokens [g, channels, y', x'].
    """
    if len(planes.kernels[0]) == 1:
        return _through_one(images[:, 0], planes, between)
    c = images.shape[2]
    whole = images.flatten(1, 2).contiguous(memory_format=torch.channels_last)

    def layer(i: int, inputs: Sequence[Tensor], stride: int, padding: int) -> list[Tensor]:
        parts = zip(inputs, planes.kernels[i], planes.biases[i], strict=True)
        return [functional.conv2d(x, k, bias, stride, padding) for x, k, bias in parts]

    def after(i: int, outputs: list[Tensor]) -> tuple[Tensor, ...]:
        joined = between(i, torch.cat(outputs))
        return joined.view(len(outputs), -1, *joined.shape[1:]).unbind()

    a, b, d = after(0, layer(0, (whole[:, :c], whole, whole[:, -c:]), 2, 2))
    aa, bb, dd, ab, bd, ad = layer(1, (a, b, d, a + b, b + d, a + d), 1, 2)
    x0, x1, x2, x3, x4 = after(1, [aa, ab - aa - bb, ad - aa - dd + bb, bd - bb - dd, dd])
    own = (x0 - x1 - x2, x2 - x1 - x3, x4 - x2 - x3)
    y0, y1, y2, y01, y02, y12 = layer(2, (*own, x1, x2, x3), 1, 0)
    three = after(2, [y0 + y01 + y02, y1 + y01 + y12, y2 + y02 + y12])
    (token,) = after(3, layer(3, (torch.cat(three, 1),), 1, 0))
    return token


def _through_one(x: Tensor, planes: PlaneKernels, between: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The 2-D CNN: every stamp [g, c, y, x] by itself."""
    x = x.contiguous(memory_format=torch.channels_last)
    for i, (stride, padding) in enumerate(((2, 2), (1, 2), (1, 0), (1, 0))):
        x = between(i, functional.conv2d(x, planes.kernels[i][0], planes.biases[i][0], stride, padding))
    return x


def _stacked(kernel: Tensor) -> Tensor:
    """A Conv3d kernel [out, in, t, k, k] as the Conv2d kernel of t planes side by side [out, t in, k, k]."""
    return kernel.transpose(1, 2).flatten(1, 2)


class Attention(nn.Module):
    """Multi-head convolutional self-attention over [b, n, y, x, d]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, self.heads = config.channels, config.heads
        self.kind, self.channels = config.attention, d
        self.qkv = nn.Conv2d(d, 3 * d, 1)
        # linear attention uses neither the first third of qkv nor the biases of K and of the logits: softmax over j
        # cancels them. They are kept so that the parameter count matches the published one.
        out = config.heads if config.attention == "linear" else config.attention_hidden
        self.logits = nn.Conv2d(d, out, 5, padding=2)
        if config.attention == "mlp":
            self.score = nn.Conv2d(config.attention_hidden, config.heads, 1)
        self.out = nn.Conv2d(d, d, 3, padding=1)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """[b, n, y, x, d], valid [b, n] or None for no mask -> the same shape."""
        mixed = self._linear(x, valid) if self.kind == "linear" else self._mlp(x, valid)
        return as_maps(self.out(as_images(mixed)), mixed).expand_as(x)

    def _linear(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """The exact O(n) form: one weighted mean of V for all positions, [b, 1, y, x, d].

        K is never computed: the preceding 1x1 convolution is merged into the kernel of the logits' convolution. The
        biases contribute equally for every j, so the softmax over j cancels them.
        """
        d, images = self.channels, as_images(x)
        kernel = torch.einsum("okyx,kc->ocyx", self.logits.weight, self.qkv.weight[d : 2 * d, :, 0, 0])
        # a head's logits repeated for each of its channels: costs nothing in the convolution and avoids a broadcast
        kernel = kernel.repeat_interleave(d // self.heads, 0)
        logits = as_maps(functional.conv2d(images, kernel, padding=2), x)
        bias = None if self.qkv.bias is None else self.qkv.bias[2 * d :]
        values = as_maps(functional.conv2d(images, self.qkv.weight[2 * d :], bias), x)
        return (_softmax(logits, valid) * values).sum(1, keepdim=True)

    def _mlp(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """conv(Q_i + K_j) = conv(Q_i) + conv(K_j): n convolutions each, then pointwise operations for every pair."""
        q, k, v = self.qkv(as_images(x)).chunk(3, 1)
        a = as_maps(self.logits(q), x)
        c = as_maps(functional.conv2d(k, self.logits.weight, None, padding=2), x)
        values = as_maps(v, x).reshape(*x.shape[:-1], self.heads, -1)
        mixed = []
        for i in range(x.shape[1]):  # one query at a time, so that the n^2 maps are never all in memory
            pairs = functional.leaky_relu(a[:, i : i + 1] + c)
            weights = _softmax(as_maps(self.score(as_images(pairs)), x), valid)
            mixed.append((weights[..., None] * values).sum(1).flatten(-2))
        return torch.stack(mixed, 1)


def _softmax(logits: Tensor, valid: Tensor | None) -> Tensor:
    """Softmax over time."""
    if valid is not None:
        logits = logits.masked_fill(~valid[:, :, None, None, None], -math.inf)
    return logits.softmax(1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d = config.channels
        shape = [d, config.map, config.map]
        if config.variant == "paper":
            shape = [config.tokens, *shape]
        self.norm1, self.norm2 = nn.LayerNorm(shape), nn.LayerNorm(shape)
        self.attention = Attention(config)
        self.feed = nn.Sequential(
            nn.Conv2d(d, 2 * d, 3, padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(2 * d),
            nn.Conv2d(2 * d, d, 3, padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(d),
        )  # fmt: skip

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """[b, n, y, x, d] -> the same."""
        x = x + self.attention(normed(x, self.norm1), valid)
        y = normed(x, self.norm2)
        if valid is None or not self.training:
            return x + as_maps(self.feed(as_images(y)), x)
        fed, kept = torch.zeros_like(y), y[valid]  # batch statistics exclude padding
        answers = self.feed(as_images(filled(kept, 8 * FILL)[None]))[: len(kept)]
        fed[valid] = answers.permute(0, 2, 3, 1).to(x.dtype)
        return x + fed


def as_images(maps: Tensor) -> Tensor:
    """[b, n, y, x, d] -> [b n, d, y, x] without a copy: channels-last, in which CPUs convolve 2 to 30 times faster."""
    return maps.flatten(0, 1).permute(0, 3, 1, 2)


def as_maps(images: Tensor, like: Tensor) -> Tensor:
    """[b n, d, y, x] -> [b, n, y, x, d], with b and n of `like`; channels-last images are not copied."""
    return images.permute(0, 2, 3, 1).reshape(*like.shape[:2], *images.shape[2:], -1)


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """A LayerNorm with shape [(n,) d, y, x], applied to maps [b, n, y, x, d]."""
    weight, bias = norm.weight.movedim(-3, -1), norm.bias.movedim(-3, -1)
    return functional.layer_norm(x, weight.shape, weight.contiguous(), bias.contiguous(), norm.eps)


def filled(x: Tensor, multiple: int) -> Tensor:
    """Rows of x, with the first ones repeated up to a multiple: libraries compile new kernels for each new shape."""
    more = -len(x) % multiple
    return x[torch.arange(len(x) + more, device=x.device) % len(x)] if more else x


class ConvEntion(Network):
    """The whole model; see the module's docstring."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.width = config, config.hidden
        self.features = Features(config)
        self.position_used = config.variant == "paper" or config.time != "days"
        self.days_used = config.variant == "stream" and config.time != "position"
        if self.days_used:
            # days of the group's stamps (log), and which stamps are present, as a shift of every channel
            self.when = nn.Linear(2 * config.group, config.channels)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(config.channels * config.map**2, config.hidden), nn.ReLU(),
            nn.Dropout(config.dropout), nn.Linear(config.hidden, config.classes),
        )  # fmt: skip
        self.register_buffer("position", positions(config.tokens, config.channels), persistent=False)

    def collate(self, histories: Sequence[History], scaling: Scaling) -> Arrays:
        """Pixels [b, n, t, 32, 32] scaled, band ids, days and present [b, n, t], valid bool [b, n]; t stamps per group.

        The paper's variant depends on its padding, which is always complete.
        """
        own, most = max(groups(h, self.config.group) for h in histories), self.config.tokens
        width = most if self.config.variant == "paper" else padded_width(own, most)
        return collate(histories, scaling, width, self.config.group)

    def encode(self, batch: Batch) -> Tensor:
        """See `Network`; takes a batch from `collate`."""
        valid, days, present = batch["valid"], batch["days"], batch["present"]
        tokens = self.tokens(batch["pixels"], batch["bands"], valid)
        return self.encoded(tokens, None if self.config.variant == "paper" else valid, days, present)

    def classify(self, encoded: Tensor) -> Tensor:
        """See `Network`."""
        logits: Tensor = self.head[3:](encoded)
        return logits

    def tokens(self, pixels: Tensor, bands: Tensor, valid: Tensor) -> Tensor:
        """Tokens [b, n, channels, y, x]; those of padding are zero in the stream variant, computed in the paper's."""
        if self.config.variant == "paper":
            return self._padded_tokens(pixels, published_bands(bands), valid)
        count = int(valid.sum())
        shown, ids = pixels[valid], bands[valid]
        if self.training:
            shown, ids = filled(shown, FILL), filled(ids, FILL)
        kept: Tensor = self.features(shown, ids)[:count]
        tokens = kept.new_zeros(*valid.shape, *kept.shape[1:])
        tokens[valid] = kept
        return tokens

    def _padded_tokens(self, pixels: Tensor, bands: Tensor, valid: Tensor) -> Tensor:
        """Tokens including padding, as published; in evaluation those of padding are identical, so one is computed."""
        if self.training:
            computed: Tensor = self.features(pixels.flatten(0, 1), bands.flatten(0, 1))
            return computed.view(*valid.shape, *computed.shape[1:])
        kept: Tensor = self.features(torch.cat([pixels[valid], torch.zeros_like(pixels[:1, 0])]),
                                     torch.cat([bands[valid], torch.zeros_like(bands[:1, 0])]))  # fmt: skip
        tokens = kept[-1].repeat(*valid.shape, 1, 1, 1)
        tokens[valid] = kept[:-1]
        return tokens

    def logits(self, tokens: Tensor, valid: Tensor | None, days: Tensor, present: Tensor) -> Tensor:
        """Logits [b, classes] from tokens [b, n, channels, y, x]."""
        return self.classify(self.encoded(tokens, valid, days, present))

    def encoded(self, tokens: Tensor, valid: Tensor | None, days: Tensor, present: Tensor) -> Tensor:
        """The representation [b, hidden] from tokens [b, n, channels, y, x]."""
        x = tokens.movedim(2, -1).contiguous()  # channels last from here to the dense layers
        if self.position_used:
            x = x + self.position[: x.shape[1], None, None].to(x.dtype)  # type: ignore[index]
        if self.days_used:
            known = present.to(x.dtype)
            shift = self.when(torch.cat([torch.log1p(days.to(x.dtype).clamp(min=0)) * known, known], -1))
            x = x + shift[:, :, None, None]
        for block in self.blocks:
            x = block(x, valid)
        if valid is not None:
            x = x.masked_fill(~valid[:, :, None, None, None], -math.inf)
        found: Tensor = self.head[:3](x.amax(1).movedim(-1, 1).flatten(1))
        return found


def published_bands(bands: Tensor) -> Tensor:
    """Band ids of the released code: u, g, r … are 0, 1, 2 …, and 0 is also padding (its flaw, kept in `paper`)."""
    return (bands - 1).clamp(min=0)


def positions(count: int, channels: int) -> Tensor:
    """The sinusoidal table [count, channels] (Vaswani et al. 2017), constant over the map."""
    at = torch.arange(count, dtype=torch.float64)[:, None]
    k = torch.arange(channels)
    angle = at / 10000 ** (2 * (k // 2) / channels)
    return torch.where(k % 2 == 0, angle.sin(), angle.cos()).float()
