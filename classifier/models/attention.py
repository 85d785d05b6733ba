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
        q, k, v = self._of_heads(self.qkv(self.norm1(x)), 3)
        return q, k, v

    def _of_heads(self, values: Tensor, parts: int) -> Tensor:
        """[b, n, parts width] -> [parts, b, heads, n, width / heads]."""
        out: Tensor = values.view(*values.shape[:2], parts, self.heads, -1).permute(2, 0, 3, 1, 4)
        return out

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

    def at(self, x: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        """`forward` for some tokens only, which saves the work for all others in a network's last block.

        Args:
            x: all tokens [b, n, width]; places: of those wanted, [b, m]; mask: bool [b, 1, n, n].

        Returns:
            Tokens [b, m, width], equal to those of `forward` up to rounding.
        """
        width, normed = x.shape[2], self.norm1(x)
        chosen = places[:, :, None].expand(-1, -1, width)
        [q] = self._of_heads(functional.linear(normed.gather(1, chosen), *self._part(0, width)), 1)
        k, v = self._of_heads(functional.linear(normed, *self._part(width, 3 * width)), 2)
        seen = mask.gather(2, places[:, None, :, None].expand(-1, -1, -1, mask.shape[3]))
        rate = self.rate if self.training else 0.0
        return self.finish(x.gather(1, chosen), functional.scaled_dot_product_attention(q, k, v, seen, rate))

    def _part(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Rows of the weight and of the bias of `qkv`."""
        return self.qkv.weight[start:end], self.qkv.bias[start:end]


def sinusoids(places: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Sines and cosines [..., width] of places [...], with wavelengths from 2 pi to 2 pi `longest`."""
    powers = torch.arange(0, width, 2, device=places.device, dtype=torch.float32) / width
    angles = places[..., None].float() * longest**-powers
    return torch.cat([angles.sin(), angles.cos()], -1)


def block_operations(width: int, tokens: int, seen: int) -> int:
    """Multiply-adds of one block for this many tokens, each attending to `seen` tokens."""
    return tokens * (12 * width**2 + 2 * seen * width)
