"""Convolutional encoders: stamp -> features. Stamps are encoded independently, so that their features never change."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from skyheed.classifier.history import BANDS
from skyheed.classifier.stamp import STAMP_SIZE

MAP = STAMP_SIZE // 4  # pixels on a side of the maps produced by the convolutional encoders
CHANNELS = 8  # of those maps
FEATURES = CHANNELS * MAP**2


class Encoder(nn.Module):
    """The common interface of encoders.

    Attributes:
        features: number of features per stamp.
        operations: multiply-adds per stamp.
    """

    features: int
    operations: int

    def forward(self, images: Tensor, band: Tensor) -> Tensor:
        """Images [m, channels, 32, 32] of the bands [m] -> features [m, features]."""
        raise NotImplementedError

    def fold(self) -> None:
        """Convert to the serving form with the same values; most have none."""


class Branches(nn.Module):
    """A convolution with parallel 1x1 convolution and, where shapes allow, identity branches, each with batch norm.

    For serving they are folded into one convolution (RepVGG: Ding et al. 2021, CVPR).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.wide = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.point = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.wide_norm, self.point_norm = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.same_norm = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.folded: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[m, inputs, y, x] -> [m, outputs, y', x'], before the ReLU."""
        if self.folded is not None:
            whole: Tensor = self.folded(x)
            return whole
        out: Tensor = self.wide_norm(self.wide(x)) + self.point_norm(self.point(x))
        return out if self.same_norm is None else out + self.same_norm(x)

    def fold(self) -> None:
        """Replace all branches by one convolution, using the present statistics of the batch norms."""
        if self.folded is not None:
            return
        kernel = self.wide.kernel_size[0]
        middle = [kernel // 2] * 4
        parts = [(self.wide.weight, self.wide_norm), (functional.pad(self.point.weight, middle), self.point_norm)]
        if self.same_norm is not None:
            unit = torch.eye(len(self.wide.weight)).to(self.wide.weight)[:, :, None, None]
            parts.append((functional.pad(unit, middle), self.same_norm))
        weights, biases = zip(*(_normed(weight.detach(), norm) for weight, norm in parts), strict=True)
        inputs, outputs = self.wide.in_channels, self.wide.out_channels
        folded = nn.Conv2d(inputs, outputs, kernel, self.stride, kernel // 2).to(self.wide.weight)
        with torch.no_grad():
            folded.weight.copy_(sum(weights))
            assert folded.bias is not None
            folded.bias.copy_(sum(biases))
        self.folded = folded
        folded.weight.data = folded.weight.data.contiguous(memory_format=torch.channels_last)  # faster on CPUs
        del self.wide, self.point, self.wide_norm, self.point_norm, self.same_norm


def _normed(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution without bias, merged with the batch norm that follows."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
    return weight * scale[:, None, None, None], norm.bias.detach() - norm.running_mean * scale


class RepVgg(Encoder):
    """Nine convolutions, 5x5 and 3x3, none separable: 18 million multiply-adds per stamp.

    No strides greater than 2 above 16x16 pixels, as PSFs span 2 to 3 pixels; the map stays 8x8 to the end, so that the
    position of the source in its host is preserved.

    Args:
        channels: number of image channels.
        film: scale and shift the first layer's channels by band (FiLM: Perez et al. 2018, AAAI).
    """

    features = FEATURES

    def __init__(self, channels: int, film: bool = False) -> None:
        super().__init__()
        self.stem = Branches(channels, 32, 5, 2)
        narrow = [Branches(32, 32) for _ in range(3)]
        self.layers = nn.ModuleList([*narrow, Branches(32, 64, 3, 2), *(Branches(64, 64) for _ in range(4))])
        self.last = nn.Conv2d(64, CHANNELS, 1)
        self.film = nn.Embedding(len(BANDS), 64) if film else None
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
        wide, small = (2 * MAP) ** 2, MAP**2
        self.operations = wide * (25 * channels * 32 + 3 * 9 * 32 * 32)
        self.operations += small * (9 * 32 * 64 + 4 * 9 * 64 * 64 + 64 * CHANNELS)

    def forward(self, images: Tensor, band: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        x = self.stem(images)
        if self.film is not None:
            scale, shift = self.film(band)[:, :, None, None].chunk(2, 1)
            x = x * (1 + scale) + shift
        x = functional.relu(x)
        for layer in self.layers:
            x = functional.relu(layer(x))
        out: Tensor = self.last(x).flatten(1)
        return out

    def fold(self) -> None:
        """See `Encoder.fold`."""
        for module in self.modules():
            if isinstance(module, Branches):
                module.fold()


class Small(Encoder):
    """Three convolutions on the central 24 x 24 pixels; 0.7 million multiply-adds per stamp with three kinds.

    The centre contains what distinguishes classes at the first alert (Carrasco-Davis et al. 2021, AJ 162, 231, use
    21 x 21 of ZTF's 63 x 63 pixels). Group norm, because batch statistics of simulated and real stamps differ.

    Args:
        channels: number of image channels.
        batch_norm: use it instead of group norm, for methods that adapt its statistics.
    """

    features = 32 * 6**2

    def __init__(self, channels: int, batch_norm: bool = False) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if batch_norm else partial(nn.GroupNorm, 4)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 5, 2, 2), norm(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1), norm(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 1, 1), norm(32), nn.ReLU(),
        )  # fmt: skip
        self.operations = 12**2 * 25 * channels * 16 + 6**2 * 9 * (16 * 32 + 32 * 32)

    def forward(self, images: Tensor, band: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        edge = (STAMP_SIZE - 24) // 2
        out: Tensor = self.layers(images[:, :, edge:-edge, edge:-edge]).flatten(1)
        return out


class DualAttention(nn.Module):
    """Scales maps by channel, and then by position (gamma-PhysNet: Jacquemont et al. 2021, VISAPP)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.squeeze, self.excite = (
            nn.Linear(channels, channels // reduction),
            nn.Linear(channels // reduction, channels),
        )
        self.reduce, self.norm = nn.Conv2d(channels, channels // 2, 1, bias=False), nn.BatchNorm2d(channels // 2)
        self.place = nn.Conv2d(channels // 2, 1, 1)

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Factors for maps [m, c, y, x]: by channel [m, c, 1, 1] in (0, 1), by position [m, 1, y, x] in (1, 2)."""
        by_channel = self.excite(functional.relu(self.squeeze(x.mean((2, 3))))).sigmoid()[:, :, None, None]
        by_place: Tensor = self.place(functional.relu(self.norm(self.reduce(x)))).sigmoid()
        return by_channel, 1 + by_place

    def forward(self, x: Tensor) -> Tensor:
        """Maps [m, c, y, x] -> the same."""
        by_channel, by_place = self.factors(x)
        out: Tensor = x * by_channel * by_place
        return out


class Residual(nn.Module):
    """A pre-activation residual layer (He et al. 2016); the first one in a network has no activation before it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, first: bool = False) -> None:
        super().__init__()
        self.norm1 = None if first else nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1)
        change = stride > 1 or inputs != outputs
        self.short_norm = nn.BatchNorm2d(inputs) if change else None
        self.short = nn.Conv2d(inputs, outputs, 3, stride, 1) if change else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [m, inputs, y, x] -> [m, outputs, y / stride, x / stride]."""
        y = x if self.norm1 is None else functional.relu(self.norm1(x))
        y = self.conv2(functional.relu(self.norm2(self.conv1(y))))
        if self.short is None or self.short_norm is None:
            same: Tensor = x + y
            return same
        out: Tensor = self.short(functional.relu(self.short_norm(x))) + y
        return out


class PhysNet(Encoder):
    """gamma-PhysNet's backbone with dual attention (Jacquemont et al. 2021), for stamps of 32x32 pixels.

    296,338 parameters with two image channels; a 1x1 convolution turns its 64 maps of 8x8 pixels into features.
    """

    features = FEATURES

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, 1, 1), nn.ReLU()]
        inputs = 16
        for stage, outputs in enumerate((16, 32, 64)):
            layers.append(Residual(inputs, outputs, 1 + (stage > 0), first=not stage))
            layers += [Residual(outputs, outputs), Residual(outputs, outputs), DualAttention(outputs)]
            inputs = outputs
        self.backbone = nn.Sequential(*layers, nn.ReLU())
        self.last = nn.Conv2d(64, CHANNELS, 1)
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, mode="fan_out", nonlinearity="relu")
        self.operations = physnet_operations(channels)

    def forward(self, images: Tensor, band: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        out: Tensor = self.last(self.backbone(images)).flatten(1)
        return out


def physnet_operations(channels: int) -> int:
    """Multiply-adds per stamp of gamma-PhysNet's backbone and the last convolution."""
    total = STAMP_SIZE**2 * 9 * channels * 16
    inputs = 16
    for stage, outputs in enumerate((16, 32, 64)):
        pixels = (STAMP_SIZE >> stage) ** 2
        own = 9 * outputs * outputs
        change = 9 * inputs * outputs
        first = change + own + (change if stage else 0)
        attention = outputs * (outputs // 2) + outputs // 2
        total += pixels * (first + 4 * own + attention) + 2 * outputs * (outputs // 16)
        inputs = outputs
    return total + MAP**2 * 64 * CHANNELS
