"""A check of difference stamps: is there a point source, or what a bad subtraction, a cosmic ray or noise leaves?

Six numbers describe the shape of what is in the middle, most of them relative to its own flux, so that a very bright
source is not unusual. A quadratic function of them is the log-odds of artefacts against point sources, both simulated
(`training.screening`, `sky.artefacts`); no real stamp is needed. One stamp is a weak witness: the mean over a history
decides.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skyheed.classifier.stamp import STAMP_SIZE

SHAPES = ("signal", "residual", "offset", "sharpness", "negative", "trough")
LARGEST = 20.0  # log-odds are cut to this
WIDEST = 6.0  # sigma, to which shapes are cut
FEWEST = 32  # known pixels in the ring, without which nothing is said
_CENTRE = STAMP_SIZE // 2
_INNER, _SIDE = 11, 15  # pixels: what shapes are measured in, and the same with a border for smoothing
_OUTSIDE, _THINNED = 8, 4  # the ring begins at this many pixels from the middle; one pixel in so many is looked at
_WIDTHS = (0.6, 1.0, 1.5, 2.3)  # sigma of Gaussians, pixels; together they fit PSFs with wings
_SHIFT, _SMOOTH = 1.2, 0.8  # sigma of the derivatives that stand for an offset; of the filter for troughs
_NOISE = 1.4826  # standard deviation over the median absolute deviation
_REACH = 2.9  # pixels, of that filter
_TROUGH = 2.5  # sigma of the noise: troughs as deep as this occur around any source


class Screen(nn.Module):
    """See the module; before anything was fitted, every stamp is typical."""

    gain: Tensor
    mean: Tensor
    scatter: Tensor
    square: Tensor
    linear: Tensor
    constant: Tensor
    limit: Tensor
    looked_at: Tensor
    inner: Tensor
    basis: Tensor
    inverse: Tensor
    filter: Tensor
    totals: Tensor
    moment: Tensor
    aperture: Tensor
    core: Tensor
    near: Tensor
    smooth: Tensor

    def __init__(self) -> None:
        super().__init__()
        n = len(SHAPES)
        fitted = {
            "gain": torch.ones(1), "mean": torch.zeros(n), "scatter": torch.ones(n), "square": torch.zeros(n, n),
            "linear": torch.zeros(n), "constant": torch.zeros(1), "limit": torch.ones(1),
        }  # fmt: skip
        for name, value in fitted.items():
            self.register_buffer(name, value)
        for name, array in _fixed().items():
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Log-odds [m] of artefacts for scaled difference stamps [m, 32, 32]; the lowest if a stamp says nothing."""
        shapes, known = self.shapes(images)
        x = ((shapes - self.mean) / self.scatter).clamp(-WIDEST, WIDEST)
        # elementwise products and sums, so that results are bitwise independent of the batch
        odds = (x[:, :, None] * self.square * x[:, None]).sum((1, 2)) + (x * self.linear).sum(1) + self.constant
        return torch.where(known, odds.clamp(-LARGEST, LARGEST), -LARGEST)

    def far(self, odds: Tensor, valid: Tensor) -> Tensor:
        """How unlike simulated objects the stamps of a history are, [b]; above 1 they are unlike.

        Args:
            odds: [b, n] of `forward`, of its epochs; valid: bool [b, n], which places hold one.
        """
        mean = (odds * valid).sum(1) / valid.sum(1)
        return (mean - self.limit).clamp(max=LARGEST).exp()

    def shapes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`SHAPES` [m, 6] of scaled difference stamps [m, 32, 32], and for which of them there are any.

        signal: asinh of the signal-to-noise ratio. residual: what a point source leaves of the pixels, relative to
        them. offset: from the middle, pixels. sharpness: brightest pixel over the flux (log). negative: flux of the
        other sign over that of the source's. trough: depth of the deepest trough over the source's height.
        """
        pixels, known = self._in_noise(images)
        cut = pixels[:, self.inner]
        matched = (cut * self.filter).sum(1)  # torch 2.13 exports a matrix times a vector to ONNX wrongly
        sign = torch.where(matched < 0, -1.0, 1.0)[:, None]
        cut, matched, smooth = cut * sign, matched.abs(), pixels @ self.smooth.T * sign
        residual, offset = self._fit(cut)
        peak = (cut * self.core).amax(1).clamp(min=0.1)
        inside = cut * self.aperture
        negative = inside.clamp(max=0).sum(1).abs() / inside.clamp(min=0).sum(1).clamp(min=1)
        depth = -(smooth * self.aperture).amin(1) - _TROUGH
        trough = depth.clamp(min=0) / (smooth * self.near).amax(1).clamp(min=3)
        sharpness = (peak / matched.clamp(min=2)).log()
        return torch.stack([torch.asinh(matched), residual, offset, sharpness, negative, trough], 1), known

    def _in_noise(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The middle's linear pixels [m, 225] in units of the noise, 0 where there are none; where it is known, [m]."""
        pixels = torch.sinh(images.float().flatten(1)[:, self.looked_at] / self.gain)
        around, middle = pixels[:, : -(_SIDE**2)], pixels[:, -(_SIDE**2) :]
        there = around != 0
        count = there.sum(1)
        level = _median(around, there, count)
        noise = _NOISE * _median((around - level[:, None]).abs(), there, count)
        known = (count >= FEWEST) & (noise > 0)
        standing = (middle - level[:, None]) / torch.where(known, noise, 1.0)[:, None]
        return torch.where((middle != 0) & known[:, None], standing, 0.0), known

    def _fit(self, cut: Tensor) -> tuple[Tensor, Tensor]:
        """Residual and offset of a point source fitted to the middle, [m, 121] pixels in units of their noise."""
        part = cut @ self.inverse.T
        left = ((cut - part @ self.basis.T).square() * self.aperture).sum(1)
        whole = (cut.square() * self.aperture).sum(1)
        count, terms = self.aperture.sum(), self.basis.shape[1]
        residual = ((left - count + terms).clamp(min=0) / (whole - count).clamp(min=16)).sqrt()
        moment = part[:, len(_WIDTHS) :].square().sum(1).sqrt() * self.moment
        return residual, (moment / (part * self.totals).sum(1).clamp(min=4)).clamp(max=4)


def _median(values: Tensor, known: Tensor, count: Tensor) -> Tensor:
    """The median [m] (the lower of two) of the known values [m, k]."""
    ordered = torch.where(known, values, torch.inf).sort(1).values
    middle = ((count - 1).clamp(min=0) // 2)[:, None]
    found = ordered.gather(1, middle)[:, 0]
    return torch.where(count > 0, found, 0.0)


def _fixed() -> dict[str, NDArray[np.generic]]:
    """Arrays that are not fitted.

    looked_at: places in a stamp: a thinned ring, then the middle, 15 x 15. inner [121]: places of the inner 11 x 11
    pixels in the middle; smooth [121, 225]: the middle -> the same, smoothed. basis [121, 6], inverse: functions fitted
    to them; filter [121]: one of them, for detection; totals [6], moment: their sums, and the first moment of a
    derivative. aperture, core, near [121]: 1 within some distance of the middle.
    """
    v, u = np.indices((STAMP_SIZE, STAMP_SIZE)) - _CENTRE
    ring = np.flatnonzero((np.hypot(u, v) > _OUTSIDE) & ((u + 2 * v) % _THINNED == 0))
    middle = np.flatnonzero((abs(u) <= _SIDE // 2) & (abs(v) <= _SIDE // 2))
    y, x = np.indices((_INNER, _INNER)).reshape(2, -1) - float(_INNER // 2)
    r = np.hypot(x, y)
    functions = [np.exp(-0.5 * (r / width) ** 2) for width in _WIDTHS]
    functions += [d * np.exp(-0.5 * (r / _SHIFT) ** 2) for d in (x, y)]
    basis = np.stack([f / np.sqrt((f * f).sum()) for f in functions], 1)
    apart = np.hypot(u.flat[middle] - x[:, None], v.flat[middle] - y[:, None])
    smooth = np.exp(-0.5 * (apart / _SMOOTH) ** 2) * (apart < _REACH)
    numbers = {
        "smooth": smooth / np.sqrt((smooth**2).sum(1, keepdims=True)), "basis": basis, "filter": basis[:, 1],
        "inverse": np.linalg.pinv(basis), "totals": basis.sum(0), "moment": np.abs(x @ basis[:, [len(_WIDTHS)]]),
        "aperture": r <= 4.3, "core": r <= 2.3, "near": r <= 1.6,
    }  # fmt: skip
    places = {"looked_at": np.concatenate([ring, middle]), "inner": (apart == 0).argmax(1)}
    return places | {n: a.astype(np.float32) for n, a in numbers.items()}
