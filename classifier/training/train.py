"""Training: photometric labels first, then spectroscopic ones; random views of sequences; the best weights are kept.

A run is a TOML file (`protocol.Protocol`); everything that it used is recorded in the checkpoint.
"""

import copy
import json
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from skyheed.classifier import taxonomy
from skyheed.classifier.errors import ModelError
from skyheed.classifier.evaluation import evaluate, scores
from skyheed.classifier.history import BANDS
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.base import Model
from skyheed.classifier.models.checkpoint import Calibration, Info
from skyheed.classifier.models.convention.fast import CpuTokens, CudaTokens, FoldedFeatures
from skyheed.classifier.models.convention.network import ConvEntion
from skyheed.classifier.progress import progress_bar
from skyheed.classifier.serving import Where, choose
from skyheed.classifier.training import dataset, input_sample, objectives, run_state, selection
from skyheed.classifier.training.averaging import follow, warmed
from skyheed.classifier.training.calibration import fit
from skyheed.classifier.training.clock import Clock
from skyheed.classifier.training.dataset import Augmentation, Dataset
from skyheed.classifier.training.objectives import Views
from skyheed.classifier.training.protocol import Protocol
from skyheed.classifier.training.selection import Indices
from skyheed.classifier.training.token_bank import Bank, TokenMaker

SELECT_AT = (3, 10, 30, 99)  # numbers of stamps over which the validation macro-F1 is averaged to select weights
LOG, NOTES = "log.csv", "objective.jsonl"  # scores, and metrics of the objective
REPORT = "objective.json"  # measurements of the objective after training
STATISTICS = 500  # objects from which networks take input statistics
log = logging.getLogger("skyheed.train")
NOTHING: Indices = np.empty(0, np.int64)
Step = Callable[[np.random.Generator], Tensor]  # the loss of one step


def run(protocol: Protocol, output: str | Path, command: str = "", data: Dataset | None = None) -> Info:
    """Train, calibrate, measure, and write the checkpoint; an interrupted run resumes where it stopped.

    Args:
        output: the checkpoint's directory; during training it also contains `progress.pt`, `log.csv` and
            `objective.jsonl` (if the objective logs anything).
        data: used instead of reading the protocol's archive.

    Returns:
        The checkpoint's Info; an existing checkpoint of the same protocol and archive is returned unchanged.

    Raises:
        ModelError: the output contains another run, or the archive lacks objects that the run needs.
    """
    if (Path(output) / checkpoint.MODEL).is_file():
        return run_state.finished(Path(output), protocol)
    torch.manual_seed(protocol.seed)
    if protocol.threads:
        torch.set_num_threads(protocol.threads)
    Path(output).mkdir(parents=True, exist_ok=True)
    trainer = Trainer(protocol, data or selection.load(protocol), Path(output))
    everything, confirmed = selection.stages(protocol, trainer.data)
    trainer.end_to_end("short", everything, protocol.short_steps, short=True)
    trainer.end_to_end("whole", everything, protocol.steps)
    trainer.head("head", everything, protocol.head_steps)
    rehearsed = everything if protocol.rehearse else NOTHING
    trainer.end_to_end("fine", confirmed, protocol.fine_steps, slower=4, rehearsed=rehearsed)
    trainer.head("fine_head", confirmed, protocol.fine_head_steps, slower=4, rehearsed=rehearsed)
    return trainer.finish(command)


class Trainer:
    """A model in training, with its data and its log."""

    def __init__(self, protocol: Protocol, data: Dataset, output: Path) -> None:
        data = selection.of_known_classes(data, protocol)
        selection.check_data(protocol, data)
        self.protocol, self.data, self.output = protocol, data, output
        where = choose(protocol.device, "auto" if protocol.autocast else "float32")
        self.device, self.precision, self.chosen = where.device, where.precision, where.chosen
        self.scaling = dataset.fit_scaling(data, data.choose("train").tolist(), seed=protocol.seed)
        self.flux_unit = dataset.flux_unit(data)
        self.validation = selection.evenly(data.choose("validation"), data, protocol, protocol.validation)
        names = [selection.label(data, i, protocol) for i in range(len(data.object_ids))]
        self.labels = np.array([protocol.classes.index(name) if name in protocol.classes else -1 for name in names])
        self.family = protocol.family
        self.config = self.family.configure(protocol.configuration())
        self.model = self.family.build(self.config).to(self.device)
        self.started_from = self._start() if protocol.start else self._fit_inputs()
        self.mean = copy.deepcopy(self.model).eval()  # the exponential mean of the weights
        self.objective = objectives.make(
            objectives.Setting(self.model, self.mean, data, self.scaling, protocol, self.precision == "bfloat16")
        )
        self.averaged = 0  # number of steps in the mean
        self.best, self.best_state = -1.0, _copied(self.mean)
        self.done: dict[str, int] = {}
        self.clock = Clock(protocol)
        self._saved_optimiser: dict[str, Any] | None = None
        self._waited = 0  # measurements in this stage since the last improvement
        self._bank: tuple[dict[str, Tensor], Indices, Bank] | None = None
        self._resume()

    def _start(self) -> str:
        """Load the weights of another checkpoint.

        Returns:
            Its name, version and digest.

        Raises:
            ModelError: it has another architecture.
        """
        info = checkpoint.read_info(self.protocol.start)
        if info.family != self.family.name:
            raise ModelError(
                f"cannot start from {self.protocol.start}: it is of the family {info.family}, this run is of "
                f"{self.family.name}"
            )
        if (other := self.family.configure(info.config)) != self.config:
            raise ModelError(f"cannot start from {self.protocol.start}: it is {other}, this run is {self.config}")
        self.model.load_state_dict(checkpoint.load_state(self.protocol.start))
        return f"{info.name} {info.version} {info.digest[:12]}"

    def _fit_inputs(self) -> str:
        """Let the network take statistics of its inputs; it starts from random weights.

        Returns:
            "", as there is no starting checkpoint.
        """
        chosen = self.data.choose("train")
        some = np.random.default_rng(self.protocol.seed).permutation(chosen)[:STATISTICS]
        self.model.objects = len(chosen)
        self.model.fit_inputs([self.data.history(int(i)) for i in some], self.scaling)
        return ""

    def end_to_end(
        self, name: str, indices: Indices, steps: int, *, short: bool = False, slower: float = 1,
        rehearsed: Indices = NOTHING,
    ) -> None:  # fmt: skip
        """Train all layers, on random views of sequences."""
        p = self.protocol
        if self._over(name, indices, steps):
            return
        augmentation = Augmentation(p.longest, p.whole, p.truncate, p.stamps, drop=p.drop)
        if short:  # any stretch of the light curve, so that tokens are trained on all of it
            augmentation = Augmentation(p.short_longest, 0.0, p.truncate, p.stamps, late=0.7, drop=p.drop, dense=0.9)
        batch = p.short_batch if short else p.batch
        parameters = objectives.groups(self.model, self.objective)

        def step(rng: np.random.Generator) -> Tensor:
            self.model.train()
            chosen = self._draw(indices, batch, rng, rehearsed)
            views = [self.views(chosen, augmentation, rng) for _ in range(self.objective.views)]
            return self.objective.loss(views, rng)

        self._learn(name, steps, p.rate / slower, parameters, step)

    def head(self, name: str, indices: Indices, steps: int, *, slower: float = 1, rehearsed: Indices = NOTHING) -> None:
        """Freeze the 3D-CNN and train the layers after it on tokens as they are served."""
        p = self.protocol
        if self._over(name, indices, steps):
            return
        network = cast(ConvEntion, self.model)
        bank = self._bank_of(np.union1d(indices, rehearsed))
        parameters = [q for n, q in self.model.named_parameters() if not n.startswith("features.")]

        def step(rng: np.random.Generator) -> Tensor:
            self.model.train()
            drawn = bank.draw(self._draw(indices, p.head_batch, rng, rehearsed), 0.1, p.truncate + 0.2, rng)
            arrays = (
                torch.from_numpy(a).to(self.device) for a in (drawn.tokens, drawn.valid, drawn.days, drawn.present)
            )
            logits = network.logits(*arrays)
            return functional.cross_entropy(logits, self._target(drawn.objects))

        self._learn(name, steps, p.head_rate / slower, parameters, step)

    def _bank_of(self, indices: Indices) -> Bank:
        """Tokens of views of these objects; reused from an earlier stage if the 3D-CNN has not changed since."""
        features = _copied(cast(ConvEntion, self.model).features)
        if self._bank is not None:
            known, of, bank = self._bank
            if all(known[n].equal(t) for n, t in features.items()) and np.isin(indices, of).all():
                return bank
        p = self.protocol
        augmentation = Augmentation(p.longest, 1.0, 0.0, p.stamps, late=0.05, drop=p.drop)
        seed = (p.seed, _number("bank"))
        bank = Bank(
            self._token_maker(), self.data, indices, augmentation, self.scaling, p.bank_views, seed, self.config.group
        )
        self._bank = (features, indices, bank)
        return bank

    def _over(self, name: str, indices: Indices, steps: int) -> bool:
        return not len(indices) or self.done.get(name, 0) >= steps

    def _token_maker(self) -> TokenMaker:
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        features = FoldedFeatures(cast(ConvEntion, self.model.eval()), dtype).to(self.device)
        on_gpu = self.device.type == "cuda"
        make: TokenMaker = CudaTokens(features, self.device) if on_gpu else CpuTokens(features)
        return torch.inference_mode()(make)

    def _learn(self, name: str, steps: int, rate: float, parameters: Iterable[Any], step: Step) -> None:
        """The steps of one stage; the learning rate rises and falls once."""
        begun = self.done.get(name, 0)
        self.clock.begin(name)
        optimiser = torch.optim.AdamW(parameters, rate, weight_decay=self.protocol.weight_decay)
        if begun and self._saved_optimiser is not None:
            optimiser.load_state_dict(self._saved_optimiser)
        elif name.startswith("fine") and (self.best >= 0 or self.started_from):
            self._measure(name, 0, math.nan)  # what the stage has to beat, on the labels it uses
        self._waited = self._waited if begun else 0
        bar = progress_bar(range(begun, steps), name, steps, initial=begun, unit="step")
        loss_mean = math.nan
        for at in bar:
            now = rate * _rise_and_fall(min(max(at / steps, self.clock.share(name)), 1))
            for group in optimiser.param_groups:
                group["lr"] = now * group.get("speed", 1)
            loss = self._update(optimiser, step(self._generator(name, at)))
            loss_mean = loss if math.isnan(loss_mean) else 0.98 * loss_mean + 0.02 * loss
            bar.set_postfix(loss=f"{loss_mean:.3f}", best=f"{self.best:.3f}", refresh=False)
            out_of_time = self.clock.share(name) >= 1
            if (at + 1) % self.protocol.every == 0 or at + 1 == steps or out_of_time:
                self._waited = 0 if self._measure(name, at + 1, loss_mean) else self._waited + 1
                enough = self._waited == self.protocol.patience > 0 or out_of_time
                self.done[name] = steps if enough else at + 1
                self._keep(optimiser)
                if enough:
                    break
        self.model.load_state_dict(self.best_state)
        self.mean.load_state_dict(self.best_state)
        self._saved_optimiser = None
        self._keep(optimiser)  # a run that stops here also continues from the best weights

    def _generator(self, stage: str, at: int) -> np.random.Generator:
        """A generator for one step, including torch's dropout, so that a resumed run makes the same random draws."""
        seed = [self.protocol.seed, _number(stage), at]
        torch.manual_seed(int(np.random.default_rng([*seed, 1]).integers(2**62)))
        return np.random.default_rng(seed)

    def _update(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> float:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimiser.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimiser.step()
        self._average()
        return float(loss.detach())

    def views(self, chosen: Indices, augmentation: Augmentation, rng: np.random.Generator) -> Views:
        """A random view of each of these objects."""
        histories, rows = zip(*(augmentation.view(self.data, int(i), rng) for i in chosen), strict=True)
        return Views(histories, rows, self.labels[chosen])

    def _target(self, chosen: Indices) -> Tensor:
        return torch.from_numpy(self.labels[chosen]).to(self.device)

    def _average(self) -> None:
        """Update the exponential mean of weights and statistics, which is what is measured, selected and served."""
        self.averaged += 1
        follow(self.mean, self.model, warmed(self.protocol.average, self.averaged))

    def _draw(self, indices: Indices, batch: int, rng: np.random.Generator, rehearsed: Indices = NOTHING) -> Indices:
        """Draw this many objects; in the second stage a fraction comes from all objects used in the first."""
        again = int((rng.random(batch) < self.protocol.rehearse).sum()) if len(rehearsed) else 0
        return np.concatenate([self._drawn(indices, batch - again, rng), self._drawn(rehearsed, again, rng)])

    def _drawn(self, indices: Indices, batch: int, rng: np.random.Generator) -> Indices:
        if not batch:
            return NOTHING
        if not self.protocol.balanced:
            return rng.choice(indices, batch)
        counts = np.bincount(self.labels[indices], minlength=len(self.protocol.classes))
        weights = 1 / counts[self.labels[indices]]
        return rng.choice(indices, batch, p=weights / weights.sum())

    def _measure(self, stage: str, step: int, loss: float) -> bool:
        """Score the mean weights on the validation objects (confirmed ones in the second stage); keep the best."""
        chosen = self.validation
        if stage.startswith("fine"):
            confirmed = chosen[self.data.confirmed[chosen]]
            chosen = confirmed if len(confirmed) else chosen
        found = evaluate.after_stamps(self._candidate(Calibration()), self.data, chosen, SELECT_AT)
        f1 = {
            n: scores.macro_f1(scores.confusion(self.labels[chosen][rows], p.argmax(1), self.config.classes))
            for n, (rows, p) in found.items()
            if len(rows)
        }
        mean = float(np.mean(list(f1.values())))
        row = {"stage": stage, "step": step, "loss": round(loss, 4), "macro_f1": round(mean, 4)}
        run_state.add_row(self.output / LOG, row | {f"at_{n}": round(f1.get(n, math.nan), 4) for n in SELECT_AT})
        self._note(stage, step)
        better = mean > self.best or not step  # a stage measured on different labels starts without a previous best
        if better:
            self.best, self.best_state = mean, _copied(self.mean)
        return better

    def _note(self, stage: str, step: int) -> None:
        """Write the objective's metrics of the last step, if any."""
        if not (told := self.objective.log()):
            return
        with (self.output / NOTES).open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **told}) + "\n")
        if alarm := self.objective.alarm():
            log.warning("%s, step %d: %s", stage, step, alarm)

    def _candidate(self, calibration: Calibration) -> Model:
        """The mean weights as they would be served."""
        where = Where(self.device, self.precision, self.chosen)
        return self.family.serve(copy.deepcopy(self.mean), self._info(calibration), where)

    def _info(self, calibration: Calibration) -> Info:
        p = self.protocol
        bands = p.bands or "".join(b for i, b in enumerate(BANDS) if (self.data.band == i).any())
        return Info(
            p.name, p.version, self.config.to_dict(), p.classes, bands, (self.data.survey,), self.scaling, calibration,
            max_stamps=p.stamps, family=self.family.name, **self._taxonomy(),
        )  # fmt: skip

    def _taxonomy(self) -> dict[str, Any]:
        own = taxonomy.from_mapping(self.protocol.taxonomy)
        return {"taxonomy": own.version, "class_ids": dict(own.ids), "members": dict(own.members)}

    def _keep(self, optimiser: torch.optim.Optimizer) -> None:
        state = {
            "waited": self._waited, "model": _copied(self.model), "mean": _copied(self.mean), "averaged": self.averaged,
            "best": self.best, "best_state": self.best_state, "objective": self.objective.state_dict(),
            "done": self.done, "optimiser": optimiser.state_dict(), **self.clock.state_dict(),
        }  # fmt: skip
        run_state.write(self.output, self.protocol, state)

    def _resume(self) -> None:
        found = run_state.read(self.output, self.protocol)
        if not found:
            for name in (LOG, NOTES):
                (self.output / name).unlink(missing_ok=True)
            return
        self.model.load_state_dict(found["model"])
        self.mean.load_state_dict(found["mean"])
        self.objective.load_state_dict(found["objective"])
        self.averaged, self.best, self.best_state = found["averaged"], found["best"], found["best_state"]
        self.done, self._saved_optimiser, self._waited = found["done"], found["optimiser"], found.get("waited", 0)
        self.clock.load_state_dict(found)

    def finish(self, command: str) -> Info:
        """Calibrate on the validation objects, score on the test objects, write the checkpoint.

        Raises:
            ModelError: no stage has any steps.
        """
        if self.best < 0:
            raise ModelError("no stage has any step: give short_steps, steps or head_steps")
        self.mean.load_state_dict(self.best_state)
        self.objective.finish()
        self.best_state = _copied(self.mean)
        told = self.objective.report(self.validation)
        labels = self.labels[self.validation]
        calibration = fit(self._candidate(Calibration()), self.data, self.validation, labels, self.protocol)
        metrics = evaluate.report(self._candidate(calibration), self.data, self.data.choose("test", True))
        if told := told | self.objective.measure(self._candidate(calibration)):
            (self.output / REPORT).write_text(json.dumps(told, indent=1) + "\n")
        self.clock.count()
        training = {
            "command": command, "protocol": run_state.plain(self.protocol), "seconds": round(self.clock.seconds),
            "cpu_seconds": round(self.clock.cpu_seconds),
            "device": self.chosen, "torch": torch.__version__, "skyheed": version("skyheed"),
            "objects": len(selection.stages(self.protocol, self.data)[0]), "selected_macro_f1": round(self.best, 4),
            "archive": run_state.card(self.protocol.archive), "inputs": input_sample.of_archive(self.protocol.archive),
            "started_from": self.started_from,
        }  # fmt: skip
        info = replace(self._info(calibration), training=training, metrics=metrics)
        made = checkpoint.save(self.output, self.best_state, info)
        (self.output / run_state.PROGRESS).unlink(missing_ok=True)
        return made


def _number(name: str) -> int:
    return int.from_bytes(name.encode(), "little") % 2**32


def _copied(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().cpu() for name, tensor in module.state_dict().items()}


def _rise_and_fall(at: float) -> float:
    """One cycle: linear warm-up over a tenth, then a cosine to zero."""
    return (at / 0.1 if at < 0.1 else 0.5 * (1 + math.cos(math.pi * (at - 0.1) / 0.9))) + 1e-3
