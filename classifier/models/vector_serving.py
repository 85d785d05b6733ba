"""Serving `vector`: the encoder folded, and an update computed from what was kept of the epochs before."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from skyheed.classifier.history import History
from skyheed.classifier.models import kept
from skyheed.classifier.models.attention import Block
from skyheed.classifier.models.base import Arrays, Batch
from skyheed.classifier.models.checkpoint import Info
from skyheed.classifier.models.vector import Vector, layout
from skyheed.classifier.nights import padded
from skyheed.classifier.prediction import Prediction
from skyheed.classifier.scaling import Scaling
from skyheed.classifier.serving import Served, Where

FORM = 1  # raised when kept things are computed in another way, so that old ones are not mixed with new ones
TOGETHER = 256  # stamps that are encoded at once


class VectorServed(Served):
    """See the module; float32."""

    network: Vector

    def __init__(self, network: Vector, info: Info, where: Where) -> None:
        super().__init__(network.eval().fold(), info, where)
        facts = [info.digest, info.preprocessing, asdict(info.scaling), network.config.kept, where.device.type, FORM]
        self.kept_as = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self._update = Updates(self.network)

    @torch.inference_mode()
    def _classify(self, histories: Sequence[History]) -> list[Prediction]:
        logits, keep = self._update(histories, self.info.scaling)
        probabilities = self.calibrated(logits.float().cpu().numpy(), histories)
        return [Prediction(p, keep=own) for p, own in zip(probabilities, keep, strict=True)]


class Updates:
    """What a network says of histories, from what was kept of them.

    Args:
        network: in evaluation mode, where it computes.
    """

    def __init__(self, network: Vector) -> None:
        self.network, self.config = network, network.config

    def __call__(self, histories: Sequence[History], scaling: Scaling) -> tuple[Tensor, list[dict[int, bytes]]]:
        """Logits [b, classes] of histories that may hold what was kept, and what is to be kept of their new epochs."""
        encoded, keep = self.encoded(histories, scaling)
        return self.network.classify(encoded), keep

    def encoded(self, histories: Sequence[History], scaling: Scaling) -> tuple[Tensor, list[dict[int, bytes]]]:
        """Representations [b, width] of histories that may hold what was kept, and what is to be kept of new epochs.

        Only stamps without a kept vector are encoded, and only epochs behind the first new one go through the blocks.

        Raises:
            ValueError: what was kept does not belong to its epochs, and their images are not here.
        """
        device, dtype = next(self.network.parameters()).device, np.dtype(self.config.kept)
        found = [kept.Found(h, self.config.keeps, dtype) for h in histories]
        missing = [~f.stamps for f in found]
        self._encode_missing(histories, found, scaling, device)
        changed = missing if self.config.photometry else [np.arange(len(f.own)) >= f.whole for f in found]
        encoded = torch.empty(len(histories), self.network.width, device=device)
        for rows in _alike(changed):
            chosen = [histories[r] for r in rows]
            batch = {name: torch.from_numpy(a).to(device) for name, a in self._without_images(chosen, scaling).items()}
            y = self._continued([found[r] for r in rows], batch, device)
            last = batch["valid"].sum(1) - 1
            encoded[rows] = self.network.represent(y, batch)[torch.arange(len(rows), device=device), last]
        return encoded, [_new(f, c, dtype) for f, c in zip(found, changed, strict=True)]

    def _without_images(self, histories: Sequence[History], scaling: Scaling) -> Arrays:
        batch = layout(histories) | (self.network.photometry(histories, scaling) if self.config.photometry else {})
        return batch | self.network.beside(histories)

    def _encode_missing(
        self, histories: Sequence[History], found: Sequence[kept.Found], scaling: Scaling, device: torch.device
    ) -> None:
        """Fill in the stamps' vectors that are not known."""
        epochs = [np.flatnonzero(~f.stamps) for f in found]
        images = np.concatenate([self.network.pixels(h, e, scaling) for h, e in zip(histories, epochs, strict=True)])
        band = np.concatenate([h.band[e] for h, e in zip(histories, epochs, strict=True)]).astype(np.int64)
        vectors = np.empty((len(images), self.config.width), self.config.kept)
        for at in range(0, len(images), TOGETHER):
            rows = slice(at, at + TOGETHER)
            pixels, bands = (torch.from_numpy(a[rows]).to(device) for a in (images, band))
            vectors[rows] = self.network.stamp_vectors(pixels, bands).float().cpu().numpy()
        ends = np.cumsum([len(e) for e in epochs])[:-1]
        for f, e, own in zip(found, epochs, np.split(vectors, ends), strict=True):
            f.values[e, : self.config.width] = own

    def _continued(self, found: Sequence[kept.Found], batch: Batch, device: torch.device) -> Tensor:
        """Outputs [b, n, width] of histories of which all stamps' vectors are known; fills in what is to be kept."""
        width, n = self.config.width, batch["valid"].shape[1]
        values = torch.from_numpy(padded([f.values for f in found], n + 1)).to(device)
        if self.config.photometry:
            return self.network.behind(values[:, :n, :width], batch)
        new = max(len(f.own) - f.whole for f in found)
        if new:
            begin, length = torch.tensor([(f.whole, len(f.own)) for f in found], device=device)[:, :, None].unbind(1)
            epochs = begin + torch.arange(new, device=device)
            self._extend(values, functional.pad(batch["times"], (0, 0, 0, 1)), epochs.where(epochs < length, n))
            for f, filled in zip(found, values.cpu().numpy(), strict=True):
                f.values[f.whole :] = filled[f.whole : len(f.own)]
        return values[:, :n, -width:]

    def _extend(self, values: Tensor, times: Tensor, epochs: Tensor) -> None:
        """Compute keys, values and outputs of some epochs in place; all that they see before them is known.

        Args:
            values: [b, n + 1, keeps]; the last place is for what nobody looks at.
            times: [b, n + 1, 3].
            epochs: [b, k], rising.
        """
        width = self.config.width
        x = _taken(values[:, :, :width], epochs) + self.network.time(_taken(times, epochs))
        seen = torch.arange(values.shape[1], device=x.device) <= epochs[:, None, :, None]
        for layer, block in enumerate(self.network.blocks):
            assert isinstance(block, Block)
            q, *own = block.project(x)
            pair = []
            for at, fresh in enumerate(own, 1 + 2 * layer):
                self._put(values[:, :, at * width : (at + 1) * width], fresh.transpose(1, 2).flatten(2), epochs)
                every = values[:, :, at * width : (at + 1) * width]
                pair.append(every.view(*every.shape[:2], block.heads, -1).transpose(1, 2))
            x = block.finish(x, functional.scaled_dot_product_attention(q, pair[0], pair[1], seen))
        self._put(values[:, :, -width:], self.network.norm(x), epochs)

    def _put(self, where: Tensor, what: Tensor, epochs: Tensor) -> None:
        rounded = what.half().float() if self.config.kept == "float16" else what.float()
        where.scatter_(1, epochs[:, :, None].expand(-1, -1, where.shape[2]), rounded)


def _taken(values: Tensor, epochs: Tensor) -> Tensor:
    """Of [b, n, c] the epochs [b, k], [b, k, c]."""
    return values.gather(1, epochs[:, :, None].expand(-1, -1, values.shape[2]))


def _alike(changed: Sequence[NDArray[np.bool_]]) -> list[list[int]]:
    """Rows of histories that have about as much to compute: long ones do not make short ones pay."""
    rows: dict[int, list[int]] = {}
    for row, own in enumerate(changed):
        rows.setdefault(int(own.sum()).bit_length(), []).append(row)
    return list(rows.values())


def _new(found: kept.Found, changed: NDArray[np.bool_], dtype: np.dtype[Any]) -> dict[int, bytes]:
    """What is to be kept of the epochs that were computed just now."""
    return {
        int(n): kept.pack(found.own[n], found.upto[n], found.values[n].astype(dtype)) for n in np.flatnonzero(changed)
    }
