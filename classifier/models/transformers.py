"""Encoders of stamps made of Transformer blocks: ViT and Swin, small enough for 32x32 pixels."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from skyheed.classifier.models.attention import Block, block_operations, sinusoids
from skyheed.classifier.models.encoders import Encoder
from skyheed.classifier.stamp import STAMP_SIZE


class Vit(Encoder):
    """A vision Transformer (Dosovitskiy et al. 2021, ICLR): 4x4 patches, four blocks; the class token's output is used.

    Patches are no larger because PSFs span 2 to 3 pixels.
    """

    patch, layers, heads = 4, 4, 4
    places: Tensor

    def __init__(self, channels: int, width: int = 128) -> None:
        super().__init__()
        self.features = self.width = width
        self.side = STAMP_SIZE // self.patch
        self.embed = nn.Conv2d(channels, width, self.patch, self.patch)
        self.cls = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, self.heads) for _ in range(self.layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("places", grid(self.side, width), persistent=False)
        tokens = self.side**2
        self.operations = tokens * self.patch**2 * channels * width
        self.operations += self.layers * block_operations(width, tokens + 1, tokens + 1)

    def patches(self, images: Tensor) -> Tensor:
        """Images [m, c, 32, 32] -> tokens with positional encoding [m, patches, width]."""
        tokens: Tensor = self.embed(images).flatten(2).transpose(1, 2)
        return tokens + self.places

    def attend(self, tokens: Tensor) -> Tensor:
        """Some patches [m, k, width] -> class token and patches [m, 1 + k, width], after all blocks."""
        x = torch.cat([self.cls.expand(len(tokens), 1, -1), tokens], 1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out

    def forward(self, images: Tensor, band: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        return self.attend(self.patches(images))[:, 0]


def grid(side: int, width: int) -> Tensor:
    """Fixed sinusoids [side * side, width] for positions on a grid: half encode the row, half the column."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.cat([sinusoids(p.flatten(), width // 2) for p in (y, x)], -1)


class Swin(Encoder):
    """A shifted-window Transformer (Liu et al. 2021, ICCV): patches of 2x2, windows of 4x4 tokens, two stages.

    134,892 parameters with two image channels.
    """

    patch, window = 2, 4

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.features = 2 * width
        side = STAMP_SIZE // self.patch
        self.embed, self.norm0 = nn.Conv2d(channels, width, self.patch, self.patch), nn.LayerNorm(width)
        self.first = nn.Sequential(WindowBlock(width, 2, side, 0), WindowBlock(width, 2, side, 2))
        self.merge_norm, self.merge = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)
        self.second = nn.Sequential(WindowBlock(2 * width, 4, side // 2, 0), WindowBlock(2 * width, 4, side // 2, 2))
        self.norm = nn.LayerNorm(2 * width)
        self.operations = side**2 * self.patch**2 * channels * width + 2 * block_operations(width, side**2, 16)
        self.operations += (side // 2) ** 2 * 8 * width**2 + 2 * block_operations(2 * width, (side // 2) ** 2, 16)

    def forward(self, images: Tensor, band: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        x = self.first(self.norm0(self.embed(images).permute(0, 2, 3, 1)))
        joined = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)  # 2x2 tokens are merged
        x = self.second(self.merge(self.merge_norm(joined)))
        out: Tensor = self.norm(x).mean((1, 2))
        return out


class WindowBlock(nn.Module):
    """A block whose tokens attend within their window; windows are shifted in every second block.

    Args:
        side: tokens on a side of the map.
        shift: tokens by which the windows are shifted; tokens that are neighbours only because the map is rolled
            cyclically do not attend to each other.
    """

    mask: Tensor
    relative: Tensor

    def __init__(self, width: int, heads: int, side: int, shift: int, window: int = 4) -> None:
        super().__init__()
        self.block, self.shift, self.window = Block(width, heads), shift, window
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        dy, dx = (p.flatten()[:, None] - p.flatten()[None] + window - 1 for p in (y, x))
        self.register_buffer("relative", dy * (2 * window - 1) + dx, persistent=False)
        self.register_buffer("mask", self._mask(side), persistent=False)

    def _mask(self, side: int) -> Tensor:
        """bool [windows, 1, 16, 16]: pairs of tokens that are neighbours in the sky, not by rolling the map."""
        line = torch.arange(side)
        part = (line >= side - self.window).long() + (line >= side - self.shift).long() if self.shift else 0 * line
        region = windows((3 * part[:, None] + part[None])[None, :, :, None], self.window)[..., 0]
        return (region[:, :, None] == region[:, None])[:, None]

    def weights(self, x: Tensor) -> Tensor:
        """Attention weights [m * windows, heads, 16, 16] of a map [m, y, x, width]."""
        q, k, _ = self.block.project(windows(self._rolled(x, -self.shift), self.window))
        logits = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        weights: Tensor = (logits + self._bias(len(q))).softmax(-1)
        return weights

    def _bias(self, count: int) -> Tensor:
        """Bias of the logits, [count, heads, 16, 16]: by relative position; minus infinity across regions."""
        bias = self.bias[self.relative].permute(2, 0, 1)
        seen = torch.where(self.mask, bias, float("-inf"))
        repeated: Tensor = seen.repeat(count // len(seen), 1, 1, 1)
        return repeated

    def _rolled(self, x: Tensor, by: int) -> Tensor:
        rolled: Tensor = x.roll((by, by), (1, 2)) if by else x
        return rolled

    def forward(self, x: Tensor) -> Tensor:
        """A map of tokens [m, y, x, width] -> the same."""
        own = windows(self._rolled(x, -self.shift), self.window)
        q, k, v = self.block.project(own)
        attended = functional.scaled_dot_product_attention(q, k, v, self._bias(len(q)).to(q.dtype))
        out = unwindowed(self.block.finish(own, attended), x.shape[1], self.window)
        back: Tensor = self._rolled(out, self.shift)
        return back


def windows(x: Tensor, size: int) -> Tensor:
    """A map [m, y, x, c] split into windows [m * windows, size * size, c]."""
    m, side, _, c = x.shape
    cut = x.reshape(m, side // size, size, side // size, size, c)
    return cut.transpose(2, 3).reshape(-1, size * size, c)


def unwindowed(x: Tensor, side: int, size: int) -> Tensor:
    """The inverse of `windows`."""
    cut = x.reshape(-1, side // size, side // size, size, size, x.shape[-1])
    return cut.transpose(2, 3).reshape(-1, side, side, x.shape[-1])
