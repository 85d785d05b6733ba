"""Training: photometric labels first, then spectroscopic ones; random views of sequences; the best epoch is kept.

A run is a TOML file (`Protocol`); everything it used ends up in the checkpoint. Read this file from top to bottom.
"""

import copy
import csv
import math
import os
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from . import archive, checkpoint, dataset, evaluate, taxonomy
from .checkpoint import Calibration, Info
from .convention import Config, ConvEntion
from .dataset import Augmentation, Dataset
from .errors import ModelError
from .predictor import WIDTHS, Predictor, choose
from .sequence import Scaling, StampSequence, layout, uncached

CALIBRATE_AT = (1, 2, 3, 5, 8, 13, 20, 30, 50, 99)
SELECT_AT = (6, 20, 60)  # stamps at which the validation's macro-F1 is averaged to select an epoch


@dataclass(frozen=True)
class Protocol:
    """One run; the keys of the TOML file.

    Attributes:
        archive: what to learn from.
        name: of the checkpoint and in every figure that comes of it.
        objects: use so many training objects, evenly of each class; 0 for all.
        steps: optimiser steps on photometric and spectroscopic labels.
        prefixes: beginnings of every view that are classified beside it.
        photometry: weight of the loss that has tokens tell fluxes; 0 as published.
        balanced: draw classes equally often (weighted random sampling), and correct the prior afterwards.
        average: how slowly the weights that are measured follow those that learn, per step.
        prior: relative frequency of each class that the served probabilities assume.
        autocast: bfloat16 where the processor has it natively.
    """

    archive: str
    name: str = "convention"
    version: str = "1"
    bands: str = ""
    variant: str = "stream"
    attention: str = "linear"
    band_embedding: str = "learned"
    classes: tuple[str, ...] = taxonomy.CLASSES
    objects: int = 0
    steps: int = 1500
    fine_steps: int = 300
    batch: int = 32
    rate: float = 2e-3
    weight_decay: float = 0.05
    dropout: float = 0.3
    longest: int = 36
    whole: float = 0.06
    truncate: float = 0.4
    drop: float = 0.3
    balanced: bool = True
    prefixes: int = 3
    photometry: float = 0.3
    prior: tuple[float, ...] = ()
    average: float = 0.99
    every: int = 200
    seed: int = 1
    device: str = "auto"
    autocast: bool = True
    threads: int = 0


def read(path: str | Path, changes: Mapping[str, Any] | None = None) -> Protocol:
    """A protocol from its file, with some keys changed.

    Raises:
        ModelError: unreadable, or an unknown key.
    """
    try:
        given = tomllib.loads(Path(path).read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"cannot read the training configuration {path}: {error}") from error
    unknown = set(given) - {f.name for f in fields(Protocol)}
    if unknown:
        raise ModelError(f"{path}: unknown key {sorted(unknown)[0]}")
    given |= dict(changes or {})
    given |= {key: tuple(given[key]) for key in ("classes", "prior") if key in given}
    return Protocol(**given)


def run(protocol: Protocol, output: str | Path, command: str = "") -> Info:
    """Train, calibrate, measure, and write the checkpoint; an interrupted run goes on where it stopped.

    Args:
        output: the checkpoint's directory; `progress.pt` and `log.csv` lie in it meanwhile.
    """
    torch.manual_seed(protocol.seed)
    if protocol.threads:
        torch.set_num_threads(protocol.threads)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    data = dataset.load(protocol.archive, bands=protocol.bands)
    trainer = Trainer(protocol, data, output)
    photometric, spectroscopic = _stages(protocol, data)
    trainer.stage("photometric", photometric, protocol.steps, protocol.rate)
    trainer.stage("spectroscopic", spectroscopic, protocol.fine_steps, protocol.rate / 4)
    return trainer.finish(command)


def _stages(protocol: Protocol, data: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training objects of both stages: all labels, then those that spectroscopy confirmed."""
    everything, confirmed = data.choose("train"), data.choose("train", True)
    if protocol.objects:
        everything = _stratified(everything, data, protocol)
        confirmed = np.intersect1d(everything, confirmed)
    return everything, confirmed


def _stratified(indices: NDArray[np.int64], data: Dataset, protocol: Protocol) -> NDArray[np.int64]:
    rng = np.random.default_rng(protocol.seed)
    each = protocol.objects // len(protocol.classes)
    names = np.array([_label(data, i, protocol) for i in indices])
    chosen = [rng.permutation(indices[names == c])[:each] for c in protocol.classes]
    return np.sort(np.concatenate(chosen))


def _label(data: Dataset, index: int, protocol: Protocol) -> str:
    name = data.label[index]
    return name if name in protocol.classes else taxonomy.merge_supernovae(name)


class Trainer:
    """A model in training, with its data and its log."""

    def __init__(self, protocol: Protocol, data: Dataset, output: Path) -> None:
        self.protocol, self.data, self.output = protocol, data, output
        self.device, self.precision, self.chosen = choose(protocol.device, "auto" if protocol.autocast else "float32")
        self.scaling = dataset.fit_scaling(data, data.choose("train").tolist(), seed=protocol.seed)
        self.config = Config(
            classes=len(protocol.classes), variant=protocol.variant, attention=protocol.attention,  # type: ignore[arg-type]
            band_embedding=protocol.band_embedding, dropout=protocol.dropout,  # type: ignore[arg-type]
        )  # fmt: skip
        self.model = ConvEntion(self.config).to(self.device)
        self.mean, self.steps = copy.deepcopy(self.model).eval(), 0
        self.photometer = torch.nn.Linear(self.config.channels * self.config.map**2, 2 * self.config.group).to(
            self.device
        )
        self.flux_unit = dataset.flux_unit(data)
        self.labels = np.array([protocol.classes.index(_label(data, i, protocol)) for i in range(len(data.object_ids))])
        self.augmentation = Augmentation(protocol.longest, protocol.whole, protocol.truncate, drop=protocol.drop)
        self.best, self.best_state = -1.0, self._state()
        self.done: dict[str, int] = {}
        self.seconds = 0.0
        self._resume()

    def stage(self, name: str, indices: NDArray[np.int64], steps: int, rate: float) -> None:
        """Steps on one kind of labels, the learning rate rising and falling once."""
        begun = self.done.get(name, 0)
        if begun >= steps or not len(indices):
            return
        optimiser = torch.optim.AdamW(
            [*self.model.parameters(), *self.photometer.parameters()], rate, weight_decay=self.protocol.weight_decay
        )
        bar = tqdm(range(begun, steps), name, steps, begun, unit="step")
        loss_mean, began = 0.0, time.monotonic()
        for step in bar:
            for group in optimiser.param_groups:
                group["lr"] = rate * _rise_and_fall(step / steps)
            # each step has its own generator, so that a resumed run draws what it would have drawn
            loss = self._step(optimiser, indices, np.random.default_rng([self.protocol.seed, len(name), step]))
            loss_mean = loss if step == begun else 0.98 * loss_mean + 0.02 * loss
            bar.set_postfix(loss=f"{loss_mean:.3f}", best=f"{self.best:.3f}")
            if (step + 1) % self.protocol.every == 0 or step + 1 == steps:
                self.seconds += time.monotonic() - began
                self.done[name] = step + 1
                self._measure(name, step + 1, loss_mean)
                began = time.monotonic()
        self.model.load_state_dict(self.best_state)
        self.mean.load_state_dict(self.best_state)

    def _step(self, optimiser: torch.optim.Optimizer, indices: NDArray[np.int64], rng: np.random.Generator) -> float:
        chosen = self._draw(indices, rng)
        views, rows = zip(*(self.augmentation.view(self.data, int(i), rng) for i in chosen), strict=True)
        batch = (tensor.to(self.device) for tensor in collate(views, self.scaling))
        pixels, bands, valid, days, present = self.model.grouped(*batch)
        target = torch.from_numpy(self.labels[chosen]).to(self.device)
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            tokens = self.model.tokens(pixels, bands, valid)
        loss = self._photometry(tokens, valid, present, rows)
        seen, repeats = self._prefixes(valid, rng), 1 + self.protocol.prefixes
        again = (t.repeat(repeats, *[1] * (t.dim() - 1)) for t in (tokens.float(), days, present))
        tokens, days, present = again
        logits = self.model.classify(tokens, seen, days, present)
        loss = loss + functional.cross_entropy(logits, target.repeat(repeats))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimiser.step()
        self._average()
        return float(loss.detach())

    def _prefixes(self, valid: Tensor, rng: np.random.Generator) -> Tensor:
        """Which groups the views and their beginnings show, [(1 + prefixes) b, n].

        Tokens are the work and do not change, so every view is classified early, too, at no cost.
        """
        count = valid.sum(1).cpu().numpy()
        if self.config.variant == "paper" or not self.protocol.prefixes:
            return valid
        groups = np.exp(rng.uniform(0, np.log(count + 1), (self.protocol.prefixes, len(count)))).astype(np.int64)
        limit = torch.from_numpy(np.concatenate([count, *groups])).to(valid.device)
        return torch.arange(valid.shape[1], device=valid.device) < limit[:, None]

    def _photometry(self, tokens: Tensor, valid: Tensor, present: Tensor, rows: Sequence[NDArray[np.int64]]) -> Tensor:
        """The loss of a linear map from tokens to fluxes; the map is thrown away after training."""
        if not self.protocol.photometry:
            return torch.zeros((), device=tokens.device)
        where = np.concatenate(rows)  # of every stamp, in the order of `present`
        unit = np.array(self.flux_unit, np.float32)[self.data.band[where]]
        target = torch.from_numpy(np.arcsinh(self.data.flux[where] / unit[:, None])).to(tokens.device)
        found = self.photometer(tokens.float().flatten(2)).unflatten(2, (-1, 2))[present]
        known = target.isfinite()
        loss = functional.smooth_l1_loss(found[known], target[known])
        return self.protocol.photometry * loss

    def _average(self) -> None:
        """Exponential mean of weights and statistics over steps: what is measured, selected and served."""
        self.steps += 1
        keep = min(self.protocol.average, self.steps / (self.steps + 10))
        for mean, now in zip(self.mean.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - keep)

    def _draw(self, indices: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        if not self.protocol.balanced:
            return rng.choice(indices, self.protocol.batch)
        counts = np.bincount(self.labels[indices], minlength=len(self.protocol.classes))
        weights = 1 / counts[self.labels[indices]]
        return rng.choice(indices, self.protocol.batch, p=weights / weights.sum())

    def _measure(self, stage: str, step: int, loss: float) -> None:
        predictor = self._predictor(Calibration())
        chosen = self.data.choose("validation")
        found = evaluate.answers(predictor, self.data, chosen, SELECT_AT)
        truth = self.labels[chosen]
        f1 = {n: evaluate.macro_f1(truth[k], p.argmax(1)) for n, (k, p) in found.items()}
        mean = float(np.mean(list(f1.values())))
        if mean > self.best:
            self.best, self.best_state = mean, self._state()
        row = {
            "stage": stage,
            "step": step,
            "loss": round(loss, 4),
            **{f"macro_f1_{n}": round(v, 4) for n, v in f1.items()},
        }
        row["seconds"] = round(self.seconds, 1)
        log = self.output / "log.csv"
        new = not log.exists()
        with log.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        self._keep()

    def _predictor(self, calibration: Calibration) -> Predictor:
        return served(self.mean, self._info(calibration), self.output / "candidate")

    def _info(self, calibration: Calibration, **more: Any) -> Info:
        p = self.protocol
        bands = p.bands or "".join(b for i, b in enumerate("ugrizy") if (self.data.band == i).any())
        return Info(
            p.name, p.version, self.config.to_dict(), p.classes, bands, (self.data.survey,), self.scaling, calibration,
            **more,
        )  # fmt: skip

    def _state(self) -> dict[str, Tensor]:
        return _copied(self.mean.state_dict())

    def _keep(self) -> None:
        saved = {
            "model": _copied(self.model.state_dict()), "mean": self._state(), "steps": self.steps,
            "best": self.best_state, "score": self.best, "done": self.done,
        }  # fmt: skip
        temporary = self.output / ".progress.pt"
        torch.save({**saved, "seconds": self.seconds}, temporary)
        os.replace(temporary, self.output / "progress.pt")

    def _resume(self) -> None:
        path = self.output / "progress.pt"
        if path.exists():
            saved = torch.load(path, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.mean.load_state_dict(saved["mean"])
            self.steps = saved["steps"]
            self.best, self.best_state = saved["score"], saved["best"]
            self.done, self.seconds = saved["done"], saved["seconds"]

    def finish(self, command: str) -> Info:
        """Calibrate on the validation objects, score on the test objects, write the checkpoint."""
        self.mean.load_state_dict(self.best_state)
        calibration = calibrate(self._predictor(Calibration()), self.data, self.labels, self.protocol.prior)
        predictor = self._predictor(calibration)
        metrics = evaluate.report(predictor, self.data, self.data.choose("test", True), list(self.protocol.classes))
        training = {
            "command": command, "protocol": asdict(self.protocol), "seconds": round(self.seconds),
            "device": self.chosen, "skyheed": version("skyheed"), "objects": len(self.data.choose("train")),
            "selected_macro_f1": round(self.best, 4), "archive": _card(self.protocol.archive),
        }  # fmt: skip
        info = checkpoint.save(
            self.output, self.best_state, self._info(calibration, training=training, metrics=metrics)
        )
        (self.output / "progress.pt").unlink(missing_ok=True)
        return info


def _rise_and_fall(at: float) -> float:
    """One cycle: linear warm-up over a tenth, then a cosine to zero."""
    return at / 0.1 if at < 0.1 else 0.5 * (1 + math.cos(math.pi * (at - 0.1) / 0.9)) + 1e-3


def _card(path: str) -> dict[str, Any]:
    card = archive.Archive(path).card
    return {key: card[key] for key in ("command", "seed", "version", "survey") if key in card}


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().cpu() for name, tensor in state.items()}


def served(model: ConvEntion, info: Info, folder: Path) -> Predictor:
    """The model as it would be served, for measuring."""
    checkpoint.save(folder, model.state_dict(), replace(info, training={}, metrics={}))
    return Predictor(folder, survey=info.surveys[0])


def collate(views: Sequence[StampSequence], scaling: Scaling) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Padded tensors as `ConvEntion.forward` takes them."""
    where = layout(views, next((w for w in WIDTHS if w >= max(view.groups for view in views)), None))
    pixels = np.zeros((*where.valid.shape, 3, 32, 32), np.float32)
    bands = np.zeros((*where.valid.shape, 3), np.int64)
    for row, view in enumerate(views):
        groups = uncached(view, scaling)
        pixels[row, : view.groups], bands[row, : view.groups] = groups.pixels, groups.bands
    arrays = (pixels, bands, where.valid, where.days, where.present)
    return tuple(torch.from_numpy(a) for a in arrays)  # type: ignore[return-value]


def calibrate(predictor: Predictor, data: Dataset, labels: NDArray[np.int64], prior: Sequence[float]) -> Calibration:
    """A temperature for each number of stamps, on validation objects (Guo et al. 2017, arXiv 1706.04599).

    Objects are weighted so that classes count equally there, as they did in training; the prior comes on top.
    """
    chosen = data.choose("validation")
    found = evaluate.answers(predictor, data, chosen, CALIBRATE_AT)
    weight = 1 / np.bincount(labels[chosen], minlength=len(predictor.info.classes))[labels[chosen]]
    stamps, temperatures = [], []
    for n, (kept, p) in found.items():
        if len(kept) >= 50:
            stamps.append(float(n))
            temperatures.append(_temperature(np.log(p + 1e-9), labels[chosen][kept], weight[kept]))
    ratio = tuple(float(x) for x in np.asarray(prior) * len(prior) / np.sum(prior)) if len(prior) else ()
    return Calibration(tuple(stamps) or (1.0,), tuple(temperatures) or (1.0,), ratio)


def _temperature(logits: NDArray[np.float64], truth: NDArray[np.int64], weight: NDArray[np.float64]) -> float:
    grid = np.exp(np.linspace(np.log(0.3), np.log(5), 80))

    def loss(t: float) -> float:
        scaled = logits / t
        scaled = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
        return -float((weight * scaled[np.arange(len(truth)), truth]).sum())

    return float(min(grid, key=loss))
