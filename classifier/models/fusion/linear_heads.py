"""Linear heads fitted to labelled real objects, one for every combination of available modalities.

A few dozen objects determine a few hundred weights under strong ridge regularisation (`training.few_shot`), so the
heads are stored as plain arrays and are not trained by gradients.
"""

import torch
from torch import Tensor, nn

MODALITIES = ("images", "light curve", "surroundings")  # in the order of their bits
COMBINATIONS = 2 ** len(MODALITIES)
WIDEST = 3.0  # sigma: inputs beyond this are clipped to it, so that no single number dominates


class Fitted(nn.Module):
    """Probabilities of groups of classes, such as all supernovae, from standardised numbers.

    If nothing was fitted it is switched off, and the network alone decides.

    Args:
        inputs: numbers.
        classes: of the network; there are no more groups than classes.
    """

    on: Tensor
    group: Tensor
    mean: Tensor
    scatter: Tensor
    weight: Tensor
    bias: Tensor
    sharpness: Tensor

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("on", torch.zeros(1))
        self.register_buffer("group", torch.arange(classes))
        self.register_buffer("sharpness", torch.ones(1))  # of the network's logits within a group
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scatter", torch.ones(inputs))
        self.register_buffer("weight", torch.zeros(COMBINATIONS, classes, inputs))
        self.register_buffer("bias", torch.zeros(COMBINATIONS, classes))

    def standardised(self, numbers: Tensor) -> Tensor:
        """[b, inputs], NaN where unknown -> the same in units of their scatter, 0 where unknown."""
        found = ((numbers - self.mean) / self.scatter).clamp(-WIDEST, WIDEST)
        return found.nan_to_num(0.0)

    def forward(self, numbers: Tensor, known: Tensor, logits: Tensor) -> Tensor:
        """Logits [b, classes]: those of the network, with the probabilities of groups replaced.

        Args:
            numbers: [b, inputs]; known: bool [b, MODALITIES]; logits: [b, classes] of the network.
        """
        return self.decided(numbers, known, logits) if bool(self.on) else logits

    def decided(self, numbers: Tensor, known: Tensor, logits: Tensor) -> Tensor:
        """The same if it is switched on."""
        logits = logits * self.sharpness
        bits = torch.tensor([1, 2, 4], device=known.device)
        row = (known.long() * bits).sum(1)
        # elementwise products and sums, so that results are bitwise independent of the batch
        groups = (self.weight[row] * self.standardised(numbers)[:, None]).sum(2) + self.bias[row]
        member = self.group[:, None] == torch.arange(groups.shape[1], device=logits.device)  # [classes, groups]
        groups = groups.masked_fill(~member.any(0), -torch.inf)
        together = torch.logsumexp(logits[:, :, None].masked_fill(~member, -torch.inf), 1)
        made: Tensor = groups.log_softmax(1)[:, self.group] + logits - together[:, self.group]
        return made
