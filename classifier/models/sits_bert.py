"""SITS-BERT on light curves (Yuan & Lin 2021, IEEE JSTARS 14, 474): a Transformer pre-trained to denoise them.

Deviations: flux errors are also inputs, so that a missing band (error 0) differs from a flux of 0; days are counted
from the first night, without limit; max pooling over time ignores padding, unless `published_pooling` is on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.models import base, light_curves
from skyheed.classifier.models.attention import Block, block_operations, sinusoids
from skyheed.classifier.models.base import Arrays, Batch, Network
from skyheed.classifier.nights import padded
from skyheed.classifier.prediction import Needs

CONTAMINATED = 0.15  # fraction of the nights altered in pre-training
UNIT = 3.0  # brings asinh(flux / unit) to order one, as the noise amplitude assumes


@dataclass(frozen=True)
class Config(light_curves.Config):
    """Configuration of the network.

    Attributes:
        hidden: width of a token.
        published_pooling: include padding in the maximum over time, as the published code does.
    """

    hidden: int = 128
    layers: int = 3
    heads: int = 8
    dropout: float = 0.1
    published_pooling: bool = False


class PublishedNorm(nn.LayerNorm):
    """Divides by the unbiased standard deviation + 1e-6."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same."""
        out: Tensor = self.weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.bias
        return out


class PublishedBlock(Block):
    """As published: the norm above, GELU in its tanh form, additional dropout on the output of the block."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, dropout)
        self.norm1, self.norm2 = PublishedNorm(width), PublishedNorm(width)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """See `Block.finish`."""
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        inner = functional.gelu(self.up(self.norm2(x)), approximate="tanh")
        out: Tensor = self.dropout(x + self.dropout(self.down(self.dropout(inner))))
        return out


class SitsBert(Network):
    """See the module."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.width = config, config.hidden
        half = config.hidden // 2
        self.features = 2 * len(config.bands)
        self.embed, self.dropout = nn.Linear(self.features, half), nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            PublishedBlock(config.hidden, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.head = nn.Linear(config.hidden, config.classes)

    def collate(self, histories: Sequence[History], scaling: Scaling) -> Arrays:
        """See `Network.collate`.

        Returns:
            nights: float32 [b, n, 2 bands], asinh of fluxes and errors. days: float32 [b, n]. valid: bool [b, n].
        """
        curves = [light_curves.rows(h, self.config, scaling) for h in histories]
        tables = [np.concatenate([c.flux, c.flux_error], 1) / UNIT for c in curves]
        return {
            "nights": padded(tables),
            "days": padded([c.days for c in curves]),
            "valid": light_curves.lengths_valid(curves),
        }

    def tokens(self, batch: Batch) -> Tensor:
        """One token per night, [b, n, width], after all blocks."""
        half = self.config.hidden // 2
        days = sinusoids(batch["days"], half).to(batch["nights"].dtype)
        x = self.dropout(torch.cat([self.embed(batch["nights"]), days], 2))
        for block in self.blocks:
            x = block(x, batch["valid"][:, None, None])
        out: Tensor = x
        return out

    def encode(self, batch: Batch) -> Tensor:
        """See `Network.encode`."""
        x = self.tokens(batch)
        if not self.config.published_pooling:
            x = x.masked_fill(~batch["valid"][:, :, None], float("-inf"))
        return x.amax(1)

    def classify(self, encoded: Tensor) -> Tensor:
        """See `Network.classify`."""
        out: Tensor = self.head(encoded)
        return out


class Mending(nn.Module):
    """The pre-training objective: recover some nights, as they were before noise was added, from the others.

    Args:
        network: is trained, too; the parameters of `mend` are discarded.
    """

    network: SitsBert

    def __init__(self, network: SitsBert) -> None:
        super().__init__()
        object.__setattr__(self, "network", network)  # not a submodule: it is saved and trained separately
        self.mend = nn.Linear(network.width, network.features)

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Mean square error of the contaminated nights; 0 if there are none."""
        clean = batch["nights"]
        dirty, chosen = contaminate(clean, batch["valid"], generator)
        found = self.mend(self.network.tokens({**batch, "nights": dirty}))
        wrong: Tensor = (found - clean).square().mean(2)
        return (wrong * chosen).sum() / chosen.sum().clamp(min=1)


def contaminate(nights: Tensor, valid: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Nights [b, n, f] with noise added to some of the valid ones [b, n], and which ones these are, bool [b, n].

    Half of them get noise from U(-0.5, 0), half from U(0, 0.5).
    """
    chosen, sign = torch.rand(2, *valid.shape, generator=generator).to(valid.device)
    noise = 0.5 * torch.rand(nights.shape, generator=generator).to(nights)
    which = (chosen < CONTAMINATED) & valid
    noise = torch.where((sign < 0.5)[:, :, None], -noise, noise)
    return nights + noise * which[:, :, None], which


class SitsBertFamily(base.Family):
    """SITS-BERT."""

    name = "sits-bert"
    summary = "a Transformer over the nights of a light curve, pre-trained to denoise it (Yuan & Lin 2021)"
    config = Config
    network = SitsBert
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"sits-bert": {"objective": {"name": "pretrained"}}}

    def needs(self, config: Config) -> Needs:
        """See `Family.needs`."""
        return Needs(images=(), photometry=config.photometry, most=config.stamps)

    def operations(self, config: Config, stamps: int) -> int:
        """See `Family.operations`; all nights are recomputed."""
        n = light_curves.expected_rows(config, stamps)
        inputs = n * 2 * len(config.bands) * config.hidden // 2
        return inputs + config.layers * block_operations(config.hidden, n, n) + config.hidden * config.classes
