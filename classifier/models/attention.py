"""The Transformer block that several networks here are made of (Vaswani et al. 2017; pre-norm as Xiong et al. 2020)."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Self-attention and two dense layers, each preceded by a LayerNorm and added to its input.

    Args:
        width: width of a token.
        heads: number of attention heads.
        dropout: of attention weights and of both additions.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens [b, n, width], each [b, heads, n, width / heads]."""
        parts: Tensor = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Tokens [b, n, width] and what they attended to, [b, heads, n, width / heads], -> tokens."""
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        out: Tensor = x + self.dropout(self.down(functional.gelu(self.up(self.norm2(x)))))
        return out

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Tokens [b, n, width] -> the same.

        Args:
            mask: bool, broadcastable to [b, heads, n, n]: which keys a query sees.
            causal: every token sees itself and those before it.
        """
        q, k, v = self.project(x)
        rate = self.rate if self.training else 0.0
        return self.finish(x, functional.scaled_dot_product_attention(q, k, v, mask, rate, causal))


def sinusoids(places: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Sines and cosines [..., width] of places [...], with wavelengths from 2 pi to 2 pi `longest`."""
    powers = torch.arange(0, width, 2, device=places.device, dtype=torch.float32) / width
    angles = places[..., None].float() * longest**-powers
    return torch.cat([angles.sin(), angles.cos()], -1)


def block_operations(width: int, tokens: int, seen: int) -> int:
    """Multiply-adds of one block for this many tokens, each attending to `seen` tokens."""
    return tokens * (12 * width**2 + 2 * seen * width)
