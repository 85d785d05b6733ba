"""Pre-training of the `vit` encoder without labels: a masked auto-encoder (He et al. 2022, CVPR) for stamps.

Most patches of a stamp are hidden and predicted from the others. Stamps are mostly sky, whose noise is unpredictable,
so the loss compares scaled pixels, optionally weighted by each patch's signal. The published form, which normalises
each patch to unit variance and so makes noise the target, is also available.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from skyheed.classifier.models.attention import Block
from skyheed.classifier.models.transformers import Vit, grid, windows

HIDDEN = 0.75  # share of the patches

Target = Literal["pixels", "signal", "normalised"]


class MaskedAutoencoder(nn.Module):
    """The decoder for an encoder; it is discarded after pre-training.

    Args:
        encoder: is trained, too; its images have one channel.
        target: scaled pixels; the same, weighted by each patch's signal; or normalised patches, as published.
    """

    places: Tensor
    encoder: Vit

    def __init__(
        self, encoder: Vit, target: Target = "pixels", width: int = 64, layers: int = 2, heads: int = 2
    ) -> None:
        super().__init__()
        object.__setattr__(self, "encoder", encoder)  # not a submodule: the network saves and trains it
        self.target = target
        self.narrow, self.token = nn.Linear(encoder.width, width), nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.pixels = nn.LayerNorm(width), nn.Linear(width, encoder.patch**2)
        self.register_buffer("places", grid(encoder.side, width), persistent=False)

    @property
    def shown(self) -> int:
        """Patches that the encoder sees."""
        return self.encoder.side**2 - round(HIDDEN * self.encoder.side**2)

    def order(self, owners: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random order of patches for each stamp; the first ones are visible.

        Args:
            owners: int64 [m]; stamps with the same number hide the same patches (tubes in a sequence).
        """
        drawn, which = torch.unique(owners.cpu(), return_inverse=True)
        noise = torch.rand(len(drawn), self.encoder.side**2, generator=generator)
        return noise.argsort(1)[which].to(self.places.device)

    def latent(self, images: Tensor, order: Tensor) -> Tensor:
        """Class token and visible patches [m, 1 + shown, width] of images [m, 1, 32, 32]."""
        patches = self.encoder.patches(images)
        shown = order[:, : self.shown, None].expand(-1, -1, patches.shape[2])
        return self.encoder.attend(patches.gather(1, shown))

    def reconstruct(self, latent: Tensor, order: Tensor) -> Tensor:
        """The predicted pixels of every patch, in their original order, [m, patches, 16]."""
        x = self.narrow(latent)
        hidden = self.token.expand(len(x), order.shape[1] - self.shown, -1)
        back = order.argsort(1)[:, :, None].expand(-1, -1, x.shape[2])
        placed = torch.cat([x[:, 1:], hidden], 1).gather(1, back) + self.places
        x = torch.cat([x[:, :1], placed], 1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.pixels(self.norm(x[:, 1:]))
        return out

    def targets(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Target pixels of every patch [m, patches, 16], and the weights of the patches [m, patches]."""
        patches = windows(images.permute(0, 2, 3, 1), self.encoder.patch).view(len(images), -1, self.encoder.patch**2)
        if self.target == "normalised":
            variance, mean = torch.var_mean(patches, 2, keepdim=True)
            patches = (patches - mean) / (variance + 1e-6).sqrt()
        weights = torch.ones_like(patches[:, :, 0])
        if self.target == "signal":
            power = patches.square().mean(2)
            weights = power / power.median(1, keepdim=True).values.clamp(min=1e-6)  # mostly sky: weight about one
            weights = weights.clamp(0.1, 10)
        return patches, weights

    def forward(self, images: Tensor, order: Tensor | None = None, owners: Tensor | None = None) -> Tensor:
        """The loss for stamps [m, 1, 32, 32]: the weighted mean square error of the hidden patches.

        Args:
            order: of the patches of each stamp; drawn if not given, for each stamp or for each of its owners.
        """
        order = self.order(torch.arange(len(images)) if owners is None else owners) if order is None else order
        found = self.reconstruct(self.latent(images, order), order)
        wanted, weights = self.targets(images)
        hidden = torch.zeros_like(weights).scatter_(1, order[:, self.shown :], 1.0) * weights
        out: Tensor = ((found - wanted).square().mean(2) * hidden).sum() / hidden.sum()
        return out
