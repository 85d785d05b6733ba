"""The two parts of `vector` and `fusion` that are used in serving and exported: the encoder, and the rest."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from skyheed.classifier.models.attention import Block
from skyheed.classifier.models.base import Batch
from skyheed.classifier.models.fusion.network import Fusion
from skyheed.classifier.models.vector import Vector


class Encoder(nn.Module):
    """Stamps -> their vectors.

    Args:
        network: folded, in evaluation mode; the same applies to the other classes here.
    """

    def __init__(self, network: Vector) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, band: Tensor) -> Tensor:
        """Scaled stamps [m, kinds, 32, 32] of the bands [m] -> [m, per stamp] float32."""
        return self.network.per_stamp(images, band).float()


class Said(nn.Module):
    """Representations -> outputs."""

    def __init__(self, network: Vector) -> None:
        super().__init__()
        self.network = network
        # read once: a value-dependent branch cannot be part of a graph
        self.fitted = isinstance(network, Fusion) and bool(network.fitted.on)

    def forward(self, encoded: Tensor, values: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Outputs for histories.

        Args:
            encoded: [b, width of representations]; values: [b, n, at least per stamp]; valid: bool [b, n].

        Returns:
            logits [b, classes], and far [b] if the network computes it.
        """
        network = self.network
        if not isinstance(network, Fusion):
            return {"logits": network.classify(encoded)}
        logits = network.simulated(encoded)
        if self.fitted:
            logits = network.fitted.decided(*network.inputs_of_fitted(encoded), logits)
        return {"logits": logits, "far": network.far(encoded, values, valid)}


class Among(nn.Module):
    """Vectors of stamps and photometric points -> outputs; nothing after the encoder is cached."""

    def __init__(self, network: Vector) -> None:
        super().__init__()
        self.network, self.said = network, Said(network)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """A batch of `Inputs.without_images`, and vectors [b, n, per stamp]."""
        vectors, valid = batch["vectors"], batch["valid"]
        y = self.network.behind(vectors[:, :, : self.network.config.width], batch)
        encoded = _last(self.network.represent(y, batch), valid)
        return self.said(encoded, vectors, valid)  # type: ignore[no-any-return]


class Behind(nn.Module):
    """Cached values -> outputs, and the values of some epochs; all earlier values must be known."""

    def __init__(self, network: Vector) -> None:
        super().__init__()
        self.network, self.said, self.width = network, Said(network), network.config.width

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Outputs after the last epoch, and `fresh`.

        Args:
            batch: values [b, n + 1, keeps], whose last place receives unused values; times [b, n + 1, 3]; valid
                bool [b, n]; epochs to compute [b, k], ascending, padded with n; context if the network uses it.

        Returns:
            logits, and fresh [b, k, keeps - width]: keys and values of each layer, and the output, for those epochs.
        """
        values, epochs, width = batch["values"], batch["epochs"], self.width
        x = _taken(values[:, :, :width], epochs) + self.network.time(_taken(batch["times"], epochs))
        seen = torch.arange(values.shape[1], device=x.device) <= epochs[:, None, :, None]
        fresh: list[Tensor] = []
        for block in self.network.blocks:
            assert isinstance(block, Block)
            q, *own = block.project(x)
            pair = []
            for part in own:
                fresh.append(self._rounded(part.transpose(1, 2).flatten(2)))
                every = self._put(values, len(fresh), fresh[-1], epochs)
                pair.append(every.view(*every.shape[:2], block.heads, -1).transpose(1, 2))
            x = block.finish(x, functional.scaled_dot_product_attention(q, pair[0], pair[1], seen))
        fresh.append(self._rounded(self.network.norm(x)))
        y = self._put(values, len(fresh), fresh[-1], epochs)[:, :-1]
        said = self.said(_last(self.network.represent(y, batch), batch["valid"]), values[:, :-1], batch["valid"])
        return {**said, "fresh": torch.cat(fresh, 2)}

    def _put(self, values: Tensor, part: int, what: Tensor, epochs: Tensor) -> Tensor:
        """Replace one part of the values at these epochs."""
        own = values[:, :, part * self.width : (part + 1) * self.width]
        return own.scatter(1, epochs[:, :, None].expand(-1, -1, self.width), what)

    def _rounded(self, what: Tensor) -> Tensor:
        return what.half().float() if self.network.config.kept == "float16" else what.float()


def _taken(values: Tensor, epochs: Tensor) -> Tensor:
    """The epochs [b, k] from values [b, n, c], [b, k, c]."""
    return values.gather(1, epochs[:, :, None].expand(-1, -1, values.shape[2]))


def _last(values: Tensor, valid: Tensor) -> Tensor:
    """The values [b, n, c] at each history's last valid epoch, [b, c]."""
    return _taken(values, valid.sum(1, keepdim=True) - 1)[:, 0]
