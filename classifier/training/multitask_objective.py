"""The objective multitask: class, peak flux, phase and redshift from one representation (`multitask`).

Beginnings are classified as usual; regressions are trained on whole views. The regression heads are discarded after
training: their effect on the classification remains, and their accuracy is written alongside the checkpoint.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skyheed.classifier import value_checks
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ModelError
from skyheed.classifier.evaluation import scores
from skyheed.classifier.history import History
from skyheed.classifier.training import multitask
from skyheed.classifier.training.averaging import follow, warmed
from skyheed.classifier.training.ict import representations
from skyheed.classifier.training.objectives import Objective, Setting, Views

BALANCES = ("uncertainty", "fixed")
FIXED = {"class": 1.0, **dict.fromkeys(multitask.REGRESSIONS, 0.3)}
CUTS = (3, 6, 12, 30, 99)  # numbers of stamps after which the regressions are measured
EDGES = (1, 4, 7, 13, 31, 100)  # bins of stamps that each contain one cut, or shorter whole sequences
FLUX_EDGES = (0.0, 3.5, 4.0, 4.5, 5.0, 9.0)  # bins of log10 of the peak flux in nJy; 4.5 is magnitude 20.2
BATCH = 32
Truth = Mapping[str, NDArray[np.float64]]


class MultiTask(Objective):
    """See the module.

    Args:
        balance: weight tasks by learned uncertainties, or fixed: 1 for the class, 0.3 for the others.
        scales: task -> factor of its loss before it is balanced; 1 unless given. Uncertainties compensate it in time.

    Raises:
        ModelError: an invalid setting.
    """

    steps: Tensor

    def __init__(
        self, setting: Setting, balance: str = "uncertainty", scales: Mapping[str, float] | None = None, **settings: Any
    ) -> None:
        super().__init__(setting)
        if settings:
            raise ModelError(f"the objective multitask has no setting {min(settings)}: it knows balance and scales")
        value_checks.choice("balance", balance, BALANCES)
        self.scales = _scales(scales or {})
        self.heads = multitask.Heads(setting.network.width).to(setting.device)
        self.mean_heads = copy.deepcopy(self.heads).eval().requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=setting.device))
        learned = balance == "uncertainty"
        self.balance = multitask.Balance(self.scales).to(setting.device) if learned else None
        self.truth = truth_of(setting)
        self._log: dict[str, float] = {}

    def loss(self, views: Sequence[Views], generator: np.random.Generator) -> Tensor:
        """See `Objective.loss`."""
        network, (seen,) = self.setting.network, views
        follow(self.mean_heads, self.heads, warmed(self.setting.protocol.average, int(self.steps)))
        self.steps += 1
        batch = self.setting.batch(seen.histories)
        with torch.autocast(self.setting.device.type, torch.bfloat16, enabled=self.setting.autocast):
            encoded, rows, whole = representations(network, batch, self.setting.protocol.prefixes, generator)
        encoded = encoded.float()
        labels = self.setting.target(seen.labels)[rows]
        wanted = {name: torch.from_numpy(v).to(encoded.device) for name, v in self.wanted(seen).items()}
        made, present = multitask.losses(network.classify(encoded), labels, self.heads(encoded[whole]), wanted)
        self._log = {name: float(loss.detach()) for name, loss in made.items()}
        total = network.regularisation()
        if self.balance is None:
            return total + sum(self.scales[name] * FIXED[name] * loss for name, loss in made.items())
        self._log |= self.balance.log()
        balanced: Tensor = self.balance(made, present)
        return total + balanced

    def wanted(self, seen: Views) -> dict[str, NDArray[np.float32]]:
        """Regression targets for views, NaN where there is none."""
        index = np.array([self.setting.data.object_of(int(rows[0])) for rows in seen.rows])
        last = np.array([h.mjd[-1] for h in seen.histories])
        return self._wanted(index, last)

    def _wanted(self, index: NDArray[np.int64], last: NDArray[np.float64]) -> dict[str, NDArray[np.float32]]:
        known = {"flux": self.truth["flux"][index], "phase": last - self.truth["peak_mjd"][index]}
        known["redshift"] = self.truth["redshift"][index]
        return {name: multitask.transformed(name, values) for name, values in known.items()}

    def log(self) -> dict[str, float]:
        """The loss of every task and, if learned, the logarithms of the uncertainties."""
        return self._log

    def quick(self) -> Sequence[nn.Parameter]:
        """The uncertainties, which at the rate of the network would hardly move in a short run."""
        return list(self.balance.parameters()) if self.balance is not None else ()

    @torch.inference_mode()
    def report(self, indices: NDArray[np.int64]) -> dict[str, Any]:
        """Bias and resolution of each regression, in the units of `multitask.TRANSFORMS`.

        Returns:
            task -> rows by number of stamps, and `by_peak_flux`: task -> rows by log10 of the peak flux in nJy, of
            histories with their last stamps.
        """
        data = self.setting.data
        pairs = [(int(i), min(cut, data.length(int(i)))) for i in indices for cut in CUTS]
        pairs = sorted(set(pairs))
        found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in multitask.REGRESSIONS}
        last = []
        for at in range(0, len(pairs), BATCH):
            histories = [data.history(i).until(epochs=n) for i, n in pairs[at : at + BATCH]]
            last += [h.mjd[-1] for h in histories]
            for name, value in self._told(histories).items():
                found[name].append(value)
        wanted = self._wanted(np.array([i for i, _ in pairs]), np.array(last))
        stamps = np.array([n for _, n in pairs])
        last_of = np.array([n == min(CUTS[-1], data.length(i)) for i, n in pairs])
        told = {name: np.concatenate(parts) for name, parts in found.items()}
        curves: dict[str, Any] = {
            name: multitask.resolution(told[name], wanted[name], stamps, EDGES) for name in multitask.REGRESSIONS
        }
        curves["by_peak_flux"] = {
            name: multitask.resolution(told[name][last_of], wanted[name][last_of], wanted["flux"][last_of], FLUX_EDGES)
            for name in multitask.REGRESSIONS
        }
        made: dict[str, Any] = scores.without_nan(curves)
        return made

    def _told(self, histories: Sequence[History]) -> dict[str, NDArray[np.float32]]:
        encoded = self.setting.mean.encode(self.setting.batch(histories)).float()
        return {name: value.cpu().numpy() for name, value in self.mean_heads.eval()(encoded).items()}


def _scales(given: Mapping[str, float]) -> dict[str, float]:
    """A factor for every task.

    Raises:
        ModelError: an unknown task, or a value that is none.
    """
    tasks = ("class", *multitask.REGRESSIONS)
    if not isinstance(given, Mapping) or set(given) - set(tasks):
        raise ModelError(f"scales is {value_checks.shown(given)}: give numbers for {', '.join(tasks)}")
    value_checks.positive("scales", *given.values())
    return {**dict.fromkeys(tasks, 1.0), **given}


def truth_of(setting: Setting) -> Truth:
    """Peak flux (nJy, without noise), MJD of the peak and redshift of every object; NaN: unknown, or no peak.

    Raises:
        ModelError: the archive does not contain them.
    """
    data = setting.data
    table = Archive(setting.protocol.archive).objects.to_pydict()
    rows = {name: n for n, name in enumerate(table["object_id"])}
    if not set(data.object_ids) <= set(rows):
        raise ModelError(f"{setting.protocol.archive} has no peaks and redshifts for these objects")
    order = [rows[name] for name in data.object_ids]
    peak, redshift = (np.array(table[key], np.float64)[order] for key in ("peak_mjd", "redshift"))
    flux = np.full(len(order), np.nan)
    for n, (a, b) in enumerate(zip(data.start[:-1], data.start[1:], strict=True)):
        own = data.flux[a:b, 1]
        if np.isfinite(peak[n]) and np.isfinite(own).any():
            flux[n] = np.nanmax(own)
    return {"flux": flux, "peak_mjd": peak, "redshift": redshift}
