"""Serving ConvEntion: the CNN folded and in bfloat16 where that is native; tokens of full groups are kept.

A token never changes, so a new stamp costs one group. Whether a token was kept or computed just now, and what else was
in the batch, makes no difference to a prediction.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray

from skyheed.classifier.history import History
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.convention.fast import FORM, CpuTokens, CudaTokens, FoldedFeatures
from skyheed.classifier.models.convention.groups import check_kept, groups, layout, uncached
from skyheed.classifier.models.convention.network import ConvEntion, padded_width
from skyheed.classifier.prediction import Prediction
from skyheed.classifier.serving import Served, Where

TOGETHER = 16  # histories behind the CNN at once on a CPU, as many as its caches hold beside other work
Token = NDArray[np.generic]


class Predictor(Served):
    """ConvEntion's stream variant; see `Served`."""

    network: ConvEntion
    narrow = True

    def __init__(self, network: ConvEntion, info: checkpoint.Info, where: Where) -> None:
        super().__init__(network, info, where)
        config = network.config
        self._group = config.group
        # bfloat16 values fit into float16; every token is rounded alike, whether it was kept or computed just now
        self.token_dtype = np.dtype("<f2" if self.precision == "bfloat16" else "<f4")
        self.kept_as = self._kept_as()
        features = FoldedFeatures(network, torch.bfloat16 if self.precision == "bfloat16" else torch.float32)
        features.to(self.device)
        on_gpu = self.device.type == "cuda"
        self.tokens_of = CudaTokens(features, self.device) if on_gpu else CpuTokens(features)
        self._token_shape = (config.channels, config.map, config.map)

    def _kept_as(self) -> str:
        info = self.info
        facts = [info.digest, info.preprocessing, _pixel_scaling(info), self.precision, self.device.type, FORM]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def check(self, history: History) -> None:
        """See `Served.check`."""
        super().check(history)
        check_kept(history, self._group)

    @torch.inference_mode()
    def _classify(self, histories: Sequence[History]) -> list[Prediction]:
        computed = self.tokens(histories)
        logits = np.empty((len(histories), len(self.classes)), np.float32)
        for width, rows in self._batches(histories):
            logits[rows] = self._logits([histories[r] for r in rows], [computed[r] for r in rows], width)
        probabilities = self.calibrated(logits, histories)
        return [
            Prediction(p, keep=self._full(h, c)) for p, h, c in zip(probabilities, histories, computed, strict=True)
        ]

    def tokens(self, histories: Sequence[History]) -> list[dict[int, Token]]:
        """The tokens that are not kept, of each history: one batch of groups."""
        made = [uncached(h, self.info.scaling, self._group) for h in histories]
        pixels, bands = np.concatenate([g.pixels for g in made]), np.concatenate([g.bands for g in made])
        flat = np.empty((0, *self._token_shape), self.token_dtype)
        if len(pixels):
            flat = self.tokens_of(pixels, bands).astype(self.token_dtype)
        found: list[dict[int, Token]] = []
        at = 0
        for history in histories:
            missing = [i for i in range(groups(history, self._group)) if i not in history.kept]
            found.append(dict(zip(missing, flat[at : at + len(missing)], strict=True)))
            at += len(missing)
        return found

    def _batches(self, histories: Sequence[History]) -> list[tuple[int, list[int]]]:
        """A width, and rows whose histories are padded to it: long ones do not make short ones pay."""
        rows: dict[int, list[int]] = {}
        for row, history in enumerate(histories):
            width = padded_width(groups(history, self._group), self.network.config.tokens)
            rows.setdefault(width, []).append(row)
        most = TOGETHER if self.device.type == "cpu" else len(histories)
        return [(width, own[at : at + most]) for width, own in rows.items() for at in range(0, len(own), most)]

    def _logits(
        self, histories: Sequence[History], computed: Sequence[dict[int, Token]], width: int
    ) -> NDArray[np.float32]:
        where = layout(histories, width, self._group)
        tokens = np.zeros((len(histories), width, *self._token_shape), self.token_dtype)
        for row, (history, fresh) in enumerate(zip(histories, computed, strict=True)):
            known = {**{group: self._token(raw) for group, raw in history.kept.items()}, **fresh}
            tokens[row, : len(known)] = np.stack([known[group] for group in range(len(known))])
        valid = None if where.valid.all() else torch.from_numpy(where.valid).to(self.device)  # nothing to mask out
        days, present = (torch.from_numpy(a).to(self.device) for a in (where.days, where.present))
        logits = self.network.logits(torch.from_numpy(tokens).to(self.device).float(), valid, days, present)
        found: NDArray[np.float32] = logits.cpu().numpy()
        return found

    def _token(self, raw: bytes) -> Token:
        return np.frombuffer(raw, self.token_dtype).reshape(self._token_shape)

    def _full(self, history: History, computed: dict[int, Token]) -> dict[int, bytes]:
        n = self._group
        return {group: token.tobytes() for group, token in computed.items() if n * group + n <= len(history)}


def _pixel_scaling(info: checkpoint.Info) -> dict[str, object]:
    """What of the scaling a token depends on."""
    return {key: value for key, value in asdict(info.scaling).items() if key != "flux_unit"}
