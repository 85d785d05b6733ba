"""Domain adaptation: losses that align the features of a source (simulated stamps) and a target (real stamps).

Pure functions and modules that take features [n, d]; the caller decides what is adapted and where the target comes
from. What each is for, and its limits:

    reverse, DomainHead   DANN (Ganin et al. 2016, JMLR 17): harmful where class shares differ in the target.
    of_classes            DANN on some source classes only, after GammaLearn (Dell'aiera et al. 2023): the remedy.
    conditioned           CDAN (Long et al. 2018, NeurIPS): the head sees features times probabilities.
    coral                 DeepCORAL (Sun & Saenko 2016).
    mkmmd                 DAN (Long et al. 2015, ICML); unbiased, so it may be negative.
    jdot                  DeepJDOT (Damodaran et al. 2018, ECCV): inherits the class shares of the source batch.
    adapt_batch_norm      AdaBN (Li et al. 2018): batch statistics of the target; the baseline that others must beat.
    a_distance            how separable the domains are (Ben-David et al. 2010): 0 not at all, 2 perfectly.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from skyheed.classifier.models.base import Batch, Network


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reverse(x: Tensor, strength: float) -> Tensor:
    """The identity in the forward pass; in the backward pass gradients are multiplied by minus the strength."""
    out: Tensor = _Reverse.apply(x, strength)  # type: ignore[no-untyped-call]
    return out


def strength(step: int, steps: int, silent: float = 0.0) -> float:
    """Strength of adaptation at a step, rising from 0 to 1; 0 during an initial share `silent` of the steps."""
    share = min(max((step / steps - silent) / (1 - silent), 0.0), 1.0)
    return 2 / (1 + math.exp(-10 * share)) - 1


class DomainHead(nn.Module):
    """Predicts from features whether they belong to the source (0) or the target (1)."""

    def __init__(self, features: int, hidden: int = 100) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, features: Tensor) -> Tensor:
        """Features [n, d] -> logits [n, 2]."""
        out: Tensor = self.layers(features)
        return out


def domain_loss(
    head: nn.Module, source: Tensor, target: Tensor, strength: float, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the domains: the head learns to separate them, the feature extractor to make them inseparable.

    Args:
        source, target: features [n, d] and [m, d].
        weights: [n + m], the source's first; None weights all equally. Samples with weight 0 contribute nothing.
    """
    logits = head(reverse(torch.cat([source, target]), strength))
    domain = torch.arange(len(logits), device=logits.device) >= len(source)
    each = functional.cross_entropy(logits, domain.long(), reduction="none")
    if weights is None:
        return each.mean()
    return (each * weights).sum() / weights.sum().clamp(min=1e-12)


@torch.no_grad()
def domain_accuracy(head: nn.Module, source: Tensor, target: Tensor, weights: Tensor | None = None) -> float:
    """Share of the samples whose domain the head tells, mean of both domains: 0.5 if it tells none apart.

    Near 1 the alignment is too weak; near 0.5 the features are aligned, or the head is too weak to say so.

    Args:
        weights: as for `domain_loss`.
    """
    logits = head(torch.cat([source, target]))
    domain = torch.arange(len(logits), device=logits.device) >= len(source)
    right = (logits.argmax(1).bool() == domain).float()
    each = torch.ones_like(right) if weights is None else weights
    shares = [(right * each)[side].sum() / each[side].sum().clamp(min=1e-12) for side in (domain, ~domain)]
    return float(sum(shares)) / 2


def of_classes(labels: Tensor, classes: Sequence[int], target: int) -> Tensor:
    """Weights for `domain_loss`: 1 for source samples of these classes and for the whole target, 0 otherwise.

    Args:
        labels: [n], of the source.
        target: number of target samples.
    """
    own = torch.isin(labels, torch.tensor(list(classes), device=labels.device))
    return torch.cat([own, torch.ones(target, dtype=torch.bool, device=labels.device)]).float()


def conditioned(features: Tensor, logits: Tensor) -> Tensor:
    """Input of CDAN's head: the outer product of features [n, d] and probabilities [n, c], [n, d c]."""
    return (features[:, :, None] * logits.softmax(1).detach()[:, None]).flatten(1)


def certainty(logits: Tensor) -> Tensor:
    """CDAN's sample weights [n]: 1 + exp(-entropy), normalised to mean 1."""
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).detach()
    weights = 1 + (-entropy).exp()
    return weights / weights.mean()


def coral(source: Tensor, target: Tensor) -> Tensor:
    """Squared difference of the covariances of features [n, d] and [m, d], divided by 4 d^2."""
    difference = source.T.cov() - target.T.cov()
    return difference.square().sum() / (4 * source.shape[1] ** 2)


def mkmmd(source: Tensor, target: Tensor, scales: Iterable[int] = (-3, -2, -1, 0, 1)) -> Tensor:
    """Unbiased maximum mean discrepancy of features [n, d] and [m, d] with a sum of Gaussian kernels.

    Args:
        scales: kernel widths, as powers of two times the mean squared distance over all pairs.
    """
    z, a, b = torch.cat([source, target]), len(source), len(target)
    apart = _squared_distances(z, z)
    mean = apart.detach().sum() / (len(z) * (len(z) - 1))
    kernel = torch.stack([torch.exp(-apart / (2 * 2.0**p * mean.clamp(min=1e-12))) for p in scales]).sum(0)
    kernel = kernel - torch.diag(torch.diag(kernel))
    within = kernel[:a, :a].sum() / (a * (a - 1)) + kernel[a:, a:].sum() / (b * (b - 1))
    return within - 2 * kernel[:a, a:].mean()


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances [n, m] between the rows of [n, d] and [m, d]."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


def jdot(
    source: Tensor, labels: Tensor, target: Tensor, logits: Tensor, alpha: float = 0.1, beta: float = 0.1
) -> Tensor:
    """DeepJDOT's loss for batches of equal size: features, and classifications of the target, under optimal pairing.

    With equal masses an optimal transport plan is a pairing, so it is found exactly.

    Args:
        source, labels: features [n, d] and classes [n].
        target, logits: features [n, d] and logits [n, classes].
        alpha, beta: weights of squared feature distances and of cross-entropies; the defaults suit features of unit
            length.

    Raises:
        ValueError: the batches differ in size.
    """
    if len(source) != len(target):
        raise ValueError(f"{len(source)} samples of the source and {len(target)} of the target: give as many of each")
    apart = _squared_distances(source, target)
    rows, columns = pairing(apart, labels, logits, alpha, beta)
    return alpha * apart[rows, columns].mean() + beta * functional.cross_entropy(logits[columns], labels[rows])


@torch.no_grad()
def pairing(apart: Tensor, labels: Tensor, logits: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """Rows and columns [n] of the cheapest pairing: feature distances [n, n] plus squared error of the classes."""
    wanted = functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    cost = alpha * apart + beta * _squared_distances(wanted, logits.softmax(1))
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(rows).to(apart.device), torch.from_numpy(columns).to(apart.device)


@torch.no_grad()
def adapt_batch_norm(network: Network, batches: Iterable[Batch]) -> Network:
    """A copy of a network with batch statistics from these batches, equally weighted; weights are unchanged."""
    made = copy.deepcopy(network).eval()
    norms = [m for m in made.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    for batch in batches:
        made.encode(batch)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    return made.eval()


def a_distance(
    source: np.ndarray[Any, Any], target: np.ndarray[Any, Any], seed: int = 0, steps: int = 400
) -> tuple[float, float]:
    """How well a small network separates features [n, d] of two domains, and the 1-sigma error of that.

    The network is trained on half of each and tested on the other half; rows are objects. Also measure it within each
    class: over all classes it includes the difference of class shares.
    """
    rng = np.random.default_rng(seed)
    count = min(len(source), len(target)) // 2 * 2
    halves = [np.split(x[rng.permutation(len(x))[:count]], 2) for x in (source, target)]
    (x, y), (others, wanted) = (_labelled(halves[0][n], halves[1][n]) for n in (0, 1))
    mean, width = x.mean(0), x.std(0).clamp(min=1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = DomainHead(x.shape[1])
        optimiser = torch.optim.Adam(head.parameters(), 1e-3, weight_decay=1e-3)
        for _ in range(steps):
            optimiser.zero_grad()
            functional.cross_entropy(head((x - mean) / width), y).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    with torch.no_grad():
        wrong = float((head((others - mean) / width).argmax(1) != wanted).float().mean())
    error = math.sqrt(max(wrong * (1 - wrong), 1 / len(others)) / len(others))
    return distance_of(wrong), 4 * error


def distance_of(wrong: float) -> float:
    """The A-distance for a given error rate e of the domain classifier: 2 (1 - 2 e), at least 0."""
    return max(0.0, 2 * (1 - 2 * wrong))


def _labelled(source: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
    both = torch.from_numpy(np.concatenate([source, target]).astype(np.float32))
    return both, torch.cat([torch.zeros(len(source)), torch.ones(len(target))]).long()
