"""Late fusion of images, light curve and surroundings; missing inputs contribute nothing, so it works from the first
alert on.

A `vector` network takes stamps (science, difference, template) and photometric points as tokens in time order;
a small network for each kind of hand-chosen number (`features`) takes the light curve as a whole and the surroundings.
Their logits are added. In training, modalities are dropped at random, so that the network does not rely on any one of
them. All of this is learned from a simulation. Heads fitted to a few labelled real objects may then decide between
groups of classes (`linear_heads`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.models import vector
from skyheed.classifier.models.base import Batch
from skyheed.classifier.models.fusion.features import NUMBERS, SURROUNDINGS, table
from skyheed.classifier.models.fusion.inputs import Config as Config
from skyheed.classifier.models.fusion.inputs import FusionInputs
from skyheed.classifier.models.fusion.light_curves import CURVE
from skyheed.classifier.models.fusion.linear_heads import Fitted
from skyheed.classifier.models.fusion.novelty import Familiar
from skyheed.classifier.models.fusion.screen import Screen
from skyheed.classifier.prediction import Needs


class Late(nn.Module):
    """Logits from numbers of one kind; 0 if none is known."""

    def __init__(self, inputs: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2 * inputs, hidden), nn.Linear(hidden, classes, bias=False)
        self.middle, self.dropout = nn.Linear(hidden, hidden), nn.Dropout(dropout)

    def forward(self, numbers: Tensor, known: Tensor) -> Tensor:
        """Standardised numbers [b, inputs] and which are known -> [b, classes]."""
        x = torch.relu(self.inner(torch.cat([numbers, known.to(numbers.dtype)], 1)))
        x = torch.relu(self.middle(self.dropout(x)))
        out: Tensor = self.outer(x) * known.any(1, keepdim=True)
        return out


class Fusion(vector.Vector):
    """See the module."""

    config: Config
    reader = FusionInputs
    mean: Tensor
    scatter: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.sequence_width = 2 * config.width
        self.width = self.sequence_width + 2 * len(NUMBERS) + 1
        self.late = nn.ModuleDict({
            "curve": Late(len(CURVE), config.hidden, config.classes, config.dropout),
            "surroundings": Late(len(SURROUNDINGS), config.hidden, config.classes, config.dropout),
        })  # fmt: skip
        self.register_buffer("mean", torch.zeros(len(NUMBERS)))
        self.register_buffer("scatter", torch.ones(len(NUMBERS)))
        self.fitted = Fitted(len(NUMBERS) + config.classes, config.classes)
        self.familiar = Familiar(len(NUMBERS), config.classes)
        self.screen = Screen() if config.screen else None

    def _options(self, config: vector.Config) -> None:
        super()._options(config)
        self.context = None  # replaced by the numbers

    def fit_inputs(self, histories: Sequence[History], scaling: Scaling) -> None:
        """See `Network.fit_inputs`."""
        found = table(histories)
        for n in range(len(NUMBERS)):
            if len(known := found[np.isfinite(found[:, n]), n]):
                self.mean[n], self.scatter[n] = float(known.mean()), max(float(known.std()), 1e-3)

    def per_stamp(self, images: Tensor, band: Tensor) -> Tensor:
        """See `Vector.per_stamp`: the vector and, last, the log-odds of `Screen`."""
        vectors = self.stamp_vectors(images, band)
        if self.screen is None:
            return vectors
        odds: Tensor = self.screen(images[:, self.config.kinds.index("difference")])
        return torch.cat([vectors.float(), odds[:, None]], 1)

    def far(self, encoded: Tensor, values: Tensor, valid: Tensor) -> Tensor:
        """How unlike the training data histories are, [b]; above 1 they are declined.

        Args:
            encoded: representations; values: [b, n, at least per stamp] of `per_stamp`; valid: bool [b, n].
        """
        far: Tensor = self.familiar(self.numbers(encoded))
        if self.screen is None:
            return far
        return torch.maximum(far, self.screen.far(values[:, :, self.config.width], valid))

    def represent(self, outputs: Tensor, batch: Batch) -> Tensor:
        """See `Vector.represent`; the numbers are of the latest epoch, and are appended for each epoch."""
        own = super().represent(outputs, batch)
        numbers = batch["numbers"]
        known = numbers.isfinite()
        if self.training:
            known = self._withheld_numbers(known)
        standardised = ((numbers - self.mean) / self.scatter).clamp(-5, 5).nan_to_num(0.0) * known
        beside = torch.cat([standardised, known.to(own.dtype), batch["imaged"].to(own.dtype)], 1)
        return torch.cat([own, beside[:, None].expand(-1, own.shape[1], -1)], 2)

    def _withheld_numbers(self, known: Tensor) -> Tensor:
        """In training, which numbers stay known after one of the kinds, or some single numbers, are withheld."""
        b, n = len(known), len(SURROUNDINGS)
        kinds = torch.rand(b, 2, device=known.device) >= self.config.missing
        single = torch.rand(known.shape, device=known.device) >= self.config.missing / 4
        shown = torch.cat([kinds[:, :1].expand(-1, n), kinds[:, 1:].expand(-1, known.shape[1] - n)], 1)
        return known & shown & single

    def parts(self, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Splits representations: sequence [b, 2 width], numbers and which are known [b, NUMBERS], images [b, 1]."""
        sizes = [self.sequence_width, len(NUMBERS), len(NUMBERS), 1]
        sequence, numbers, known, imaged = torch.split(encoded, sizes, 1)
        return sequence, numbers, known > 0.5, imaged > 0.5

    def numbers(self, encoded: Tensor) -> Tensor:
        """The hand-chosen numbers [b, NUMBERS] of representations, in their own units; NaN where unknown."""
        _, numbers, known, _ = self.parts(encoded)
        return torch.where(known, numbers * self.scatter + self.mean, torch.nan)

    def simulated(self, encoded: Tensor) -> Tensor:
        """Logits [b, classes] as learned by gradient descent, without the fitted heads."""
        sequence, numbers, known, _ = self.parts(encoded)
        n = len(SURROUNDINGS)
        out: Tensor = self.head(self.dropout(sequence))
        out = out + self.late["surroundings"](numbers[:, :n], known[:, :n])
        out = out + self.late["curve"](numbers[:, n:], known[:, n:])
        return out

    def inputs_of_fitted(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers [b, NUMBERS + classes], NaN where unknown, and which kinds are known [b, MODALITIES]."""
        sequence, _, known, imaged = self.parts(encoded)
        n = len(SURROUNDINGS)
        said = self.head(sequence).log_softmax(1)
        said = said - said.mean(1, keepdim=True)
        numbers = self.numbers(encoded)
        kinds = torch.cat([imaged, known[:, n:].any(1, keepdim=True), known[:, :n].any(1, keepdim=True)], 1)
        return torch.cat([numbers, torch.where(imaged, said, torch.nan)], 1), kinds

    def classify(self, encoded: Tensor) -> Tensor:
        """See `Network.classify`."""
        logits = self.simulated(encoded)
        if self.training or not bool(self.fitted.on):
            return logits
        made: Tensor = self.fitted(*self.inputs_of_fitted(encoded), logits)
        return made

    def representations(self, batch: Batch, generator: np.random.Generator) -> tuple[Tensor, NDArray[np.int64]]:
        """See `Network.representations`: of whole histories only, as the numbers are of the latest epoch."""
        encoded = self.encode(batch)
        return encoded, np.arange(len(encoded))

    def beginnings(self, batch: Batch, generator: np.random.Generator) -> tuple[Tensor, NDArray[np.int64]]:
        """See `Network.beginnings`; in training also every beginning, classified from its stamps and points alone."""
        valid = batch["valid"]
        encoded, last = self.represent(self.outputs(batch), batch), valid.sum(1) - 1
        rows = torch.arange(len(last), device=last.device)
        whole = self.classify(encoded[rows, last])
        if not self.training:
            return whole, rows.cpu().numpy()
        early: Tensor = self.head(self.dropout(encoded[valid][:, : self.sequence_width]))
        of = [valid.nonzero()[:, 0].cpu().numpy(), rows.cpu().numpy()]
        return torch.cat([early, whole]), np.concatenate(of)


class FusionFamily(vector.VectorFamily):
    """Images, light curve and surroundings."""

    name = "fusion"
    summary = "late fusion of all kinds of stamps, the packet's photometry and context, from the first alert on"
    config = Config
    network = Fusion
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"fusion": {}}

    def needs(self, config: vector.Config) -> Needs:
        """See `Family.needs`."""
        return Needs(config.kinds, True, True, 1, config.stamps, span=1)
