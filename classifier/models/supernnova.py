"""SuperNNova, plain and Bayesian (Möller & de Boissière 2020, MNRAS 491, 4277), on light curves.

Two bidirectional LSTM layers of width 32, the mean over the nights, one dense layer. In the Bayesian form every weight
of the LSTM and of the dense layer has a mean and a standard deviation, learned by Bayes by backprop (Blundell et al.
2015, ICML); in serving, 50 draws are averaged, and their scatter is reported.

Deviations: light curves begin with the first alert, not 30 days before the peak, which is unknown at early times. The
prior mixture is evaluated weight by weight; the published code evaluates it on sums over whole tensors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.models import base, light_curves
from skyheed.classifier.models.base import Arrays, Batch, Network
from skyheed.classifier.nights import padded
from skyheed.classifier.prediction import Needs

SMALL = 1e-5
SHARE, WIDE, NARROW = 0.75, math.exp(-1), math.exp(-7)  # of the prior: 0.75 N(0, e^-1) + 0.25 N(0, e^-7)
_SCATTER = math.sqrt(SHARE * WIDE**2 + (1 - SHARE) * NARROW**2)
RHO = tuple(math.log(math.expm1(_SCATTER / n)) for n in (4, 3))  # range of the initial values of rho


@dataclass(frozen=True)
class Config(light_curves.Config):
    """Configuration of the network.

    Attributes:
        bayes: weights with a mean and a standard deviation.
        hidden: state size in each direction.
        draws: number of draws of the weights, averaged when serving.
        divergence: weight of the KL divergence between the weights and their prior. The published value is 1, for a
            far larger data set than those used here: with a few thousand objects the divergence of 45,000 weights
            outweighs the likelihood, and nothing is learned (docs/models.md).
    """

    bayes: bool = False
    hidden: int = 32
    dropout: float = 0.05
    draws: int = 50
    divergence: float = 1.0


class SuperNNova(Network):
    """See the module."""

    config: Config
    low: Tensor
    mean: Tensor
    scatter: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.width = config, 2 * config.hidden
        n = len(config.bands)
        self.register_buffer("low", torch.zeros(3))  # of fluxes, errors and days, in this order
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("scatter", torch.ones(3))
        lstm = nn.LSTM(
            2 * n + 1 + 2**n - 1, config.hidden, 2, batch_first=True, bidirectional=True, dropout=config.dropout
        )
        head = nn.Linear(self.width, config.classes)
        self.lstm: nn.Module = BayesianLstm(lstm) if config.bayes else lstm
        self.head: nn.Module = BayesianLinear(head) if config.bayes else head
        self.dropout = nn.Dropout(config.dropout)

    def fit_inputs(self, histories: Sequence[History], scaling: Scaling) -> None:
        """Statistics of the logarithms of fluxes, errors and days, over all bands together; missing ones count as 0."""
        curves = [light_curves.rows(h, self.config) for h in histories]
        for n, columns in enumerate(zip(*((c.flux, c.flux_error, c.gaps) for c in curves), strict=True)):
            values = torch.from_numpy(np.concatenate([c.ravel() for c in columns]).astype(np.float64))
            self.low[n] = values.min()
            logs = (values - values.min() + SMALL).log()
            self.mean[n], self.scatter[n] = logs.mean(), logs.std().clamp(min=SMALL)

    def collate(self, histories: Sequence[History], scaling: Scaling) -> Arrays:
        """See `Network.collate`; fluxes are in nJy and are scaled by the network.

        Returns:
            measured: float32 [b, n, 2 bands + 1]: fluxes, errors, days since the previous night.
            filters: int64 [b, n], which combination of bands the night has. valid: bool [b, n].
        """
        curves = [light_curves.rows(h, self.config) for h in histories]
        tables = [np.concatenate([c.flux, c.flux_error, c.gaps[:, None]], 1) for c in curves]
        bits = 1 << np.arange(len(self.config.bands))
        return {
            "measured": padded(tables), "valid": light_curves.lengths_valid(curves),
            "filters": padded([(c.seen @ bits).astype(np.float32) for c in curves]).astype(np.int64),
        }  # fmt: skip

    def scaled(self, batch: Batch) -> Tensor:
        """Input of the LSTM, [b, n, 2 bands + 1 + combinations]."""
        n = len(self.config.bands)
        group = torch.tensor([0] * n + [1] * n + [2], device=self.low.device)
        logs = (batch["measured"] - self.low[group]).clamp(min=0).add(SMALL).log()
        combination = functional.one_hot(batch["filters"], 2**n)[:, :, 1:]  # none of the bands: all zeros
        return torch.cat([(logs - self.mean[group]) / self.scatter[group], combination.to(logs.dtype)], 2)

    def encode(self, batch: Batch) -> Tensor:
        """See `Network.encode`."""
        valid = batch["valid"]
        lengths = valid.sum(1).cpu()
        packed = pack_padded_sequence(self.scaled(batch), lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=valid.shape[1])
        mean: Tensor = (out * valid[:, :, None]).sum(1) / valid.sum(1, keepdim=True)
        return mean

    def classify(self, encoded: Tensor) -> Tensor:
        """See `Network.classify`."""
        out: Tensor = self.head(self.dropout(encoded))
        return out

    def predictive(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Mean probabilities over all draws, as logits, and the scatter for the most probable class."""
        if not self.config.bayes:
            return self(batch), None
        # the same draws every time, so that an object is always classified in the same way
        with Seeded(self):
            drawn = torch.stack([self(batch).softmax(1) for _ in range(self.config.draws)])
        mean = drawn.mean(0)
        spread = drawn.std(0).gather(1, mean.argmax(1, keepdim=True))[:, 0]
        return mean.clamp(min=1e-30).log(), spread

    def regularisation(self) -> Tensor:
        """KL divergence from the prior, for the last draw of the weights, divided by the number of training objects."""
        if not isinstance(self.lstm, BayesianLstm) or not isinstance(self.head, BayesianLinear):
            return super().regularisation()
        divergence = self.lstm.weights.divergence() + self.head.weights.divergence()
        return self.config.divergence * divergence / self.objects


class Weights(nn.Module):
    """Weights that are drawn again in every pass: mean + softplus(rho) times noise.

    Args:
        shapes: name -> shape.
    """

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        super().__init__()
        self.mu = nn.ParameterDict({n: nn.Parameter(torch.empty(s).uniform_(-0.05, 0.05)) for n, s in shapes.items()})
        self.rho = nn.ParameterDict({n: nn.Parameter(torch.empty(s).uniform_(*RHO)) for n, s in shapes.items()})
        self.generator: torch.Generator | None = None  # torch's global one unless draws are to be reproducible
        self.drawn: dict[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "drawn": {}, "generator": None}  # drawn tensors cannot be copied

    def scatter(self, name: str) -> Tensor:
        """Standard deviation of the weights of that name."""
        return functional.softplus(self.rho[name]) + SMALL

    def draw(self) -> dict[str, Tensor]:
        """Weights by name; they are remembered for `divergence`."""
        self.drawn = {}
        for name, mu in self.mu.items():
            noise = torch.empty_like(mu).normal_(generator=self.generator)
            self.drawn[name] = mu + self.scatter(name) * noise
        return self.drawn

    def divergence(self) -> Tensor:
        """log q(w) - log p(w), summed over the last draw of the weights; draws if there is none."""
        drawn = self.drawn or self.draw()
        total = [(_log_normal(w - self.mu[name], self.scatter(name)) - log_prior(w)).sum() for name, w in drawn.items()]
        return torch.stack(total).sum()


def log_prior(weights: Tensor, share: float = SHARE, wide: float = WIDE, narrow: float = NARROW) -> Tensor:
    """Logarithm of the prior density of each weight: a mixture of two normal distributions with mean 0."""
    first = _log_normal(weights, torch.tensor(wide)) + math.log(share)
    if share == 1:
        return first
    return torch.logaddexp(first, _log_normal(weights, torch.tensor(narrow)) + math.log(1 - share))


def _log_normal(x: Tensor, scatter: Tensor) -> Tensor:
    return -((x / scatter) ** 2) / 2 - scatter.log() - math.log(2 * math.pi) / 2


class BayesianLstm(nn.Module):
    """An LSTM whose weights and biases are all random; one draw per pass and batch."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.weights = Weights({name: p.shape for name, p in lstm.named_parameters()})
        self._cell = (lstm.requires_grad_(False),)  # in a tuple, so that its own weights are not part of the model

    def forward(self, x: Any) -> Any:
        """As `nn.LSTM`."""
        cell = self._cell[0].train(self.training)
        return functional_call(cell, self.weights.draw(), (x,))


class BayesianLinear(nn.Module):
    """A dense layer with random weights; its bias is fixed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weights = Weights({"weight": linear.weight.shape})
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`."""
        return functional.linear(x, self.weights.draw()["weight"], self.bias)


class Seeded:
    """Draws of a network's weights that do not depend on earlier draws."""

    def __init__(self, network: nn.Module, seed: int = 0) -> None:
        self._weights = [m for m in network.modules() if isinstance(m, Weights)]
        self._generator = torch.Generator(next(network.parameters()).device).manual_seed(seed)

    def __enter__(self) -> None:
        for weights in self._weights:
            weights.generator = self._generator

    def __exit__(self, *_: object) -> None:
        for weights in self._weights:
            weights.generator, weights.drawn = None, {}


class SuperNNovaFamily(base.Family):
    """SuperNNova, plain and Bayesian."""

    name = "supernnova"
    summary = "bidirectional LSTMs on light curves, plain or Bayesian (Möller & de Boissière 2020, MNRAS 491, 4277)"
    config = Config
    network = SuperNNova
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "supernnova": {}, "supernnova-bayes": {"bayes": True, "divergence": 0.005}
    }  # fmt: skip

    def needs(self, config: Config) -> Needs:
        """See `Family.needs`."""
        return Needs(images=(), photometry=config.photometry, most=config.stamps)

    def operations(self, config: Config, stamps: int) -> int:
        """See `Family.operations`; all nights are recomputed, once for each draw."""
        n, hidden = len(config.bands), config.hidden
        night = 8 * hidden * (2 * n + 2**n + hidden) + 8 * hidden * (2 * hidden + hidden)
        once: int = light_curves.expected_rows(config, stamps) * night + 2 * hidden * config.classes
        return once * (config.draws if config.bayes else 1)
