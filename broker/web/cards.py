"""Models as the page shows them: the cards of models that this process can run, and what other models published.

A card is read as JSON, without torch and without loading the weights, which the worker checks.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from skyheed.broker import worker_models
from skyheed.broker.settings import Settings
from skyheed.classifier.bounded_files import read_file
from skyheed.classifier.errors import ClassifierError, ModelError
from skyheed.classifier.models import checkpoint, priors

log = logging.getLogger("skyheed.web")


class Cards:
    """The models in the settings, by their names for the survey."""

    def __init__(self, settings: Settings, can_compute: bool) -> None:
        self._survey = settings.base_survey
        self._known: dict[str, dict[str, Any]] = {}
        for asked in settings.models:
            place = asked.model or settings.base_survey
            try:
                card = _card(place, settings.base_survey)
                name = asked.name or worker_models.name_of(place, card["name"], card["surveys"])
                self._known[name] = _entry(name, card, _prior(asked.prior, card), can_compute)
            except (ClassifierError, KeyError, TypeError, ValueError) as error:
                log.warning("the card of the model %s cannot be read: %s", place, error)

    @property
    def names(self) -> list[str]:
        """The names of the models whose cards are available here."""
        return list(self._known)

    def ordered(self, published: Sequence[str]) -> list[str]:
        """Models that have published: those in the settings, in their order, then others."""
        return [n for n in self._known if n in published] + [n for n in published if n not in self._known]

    def entry(self, name: str, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One model; if its card is not available here, what its classifications say about it.

        Args:
            provenance: of its last classification.
        """
        said = dict(provenance or {})
        known = self._known.get(name)
        if known is None:
            return _EMPTY | {
                "name": name, "title": said.get("model_name", name), "version": said.get("model_version"),
                "digest": said.get("weights_digest"), "preprocessing": said.get("preprocessing"), "published": said,
            }  # fmt: skip
        same = not said or (said.get("weights_digest"), said.get("model_version")) == (
            known["digest"],
            known["version"],
        )
        return known | {"published": said or None, "same_as_published": same if said else None}

    def all(self, published: Mapping[str, Mapping[str, Any] | None]) -> list[dict[str, Any]]:
        """The models whose cards are available here, then others that have published."""
        names = [*self.names, *(name for name in published if name not in self._known)]
        return [self.entry(name, published.get(name)) for name in names]


_EMPTY: dict[str, Any] = {
    "family": None, "classes": [], "bands": "", "surveys": [], "prior": None, "needs": None, "recompute": False,
    "card": None, "calibration": None, "same_as_published": None,
}  # fmt: skip


def _card(place: str, survey: str) -> dict[str, Any]:
    path = checkpoint.resolve(place, survey) / checkpoint.MODEL
    card = json.loads(read_file(path, checkpoint.MOST_CARD, ModelError))
    if not isinstance(card, dict):
        raise ModelError(f"{path} is not a JSON object: get the checkpoint again")
    return card


def _prior(asked: str, card: Mapping[str, Any]) -> tuple[str, list[float] | None]:
    """The version and the class prior that the probabilities assume: the prior requested, or the checkpoint's own."""
    if not asked:
        return str(card["version"]), list(card["calibration"].get("prior") or []) or None
    counts = priors.class_prior(asked, card["classes"])
    name = "-".join(f"{count:g}" for count in counts)
    relative = [count * len(counts) / sum(counts) for count in counts]
    return f"{str(card['version']).partition(priors.PRIOR)[0]}{priors.PRIOR}{name}", relative


def _entry(name: str, card: dict[str, Any], prior: tuple[str, list[float] | None], can: bool) -> dict[str, Any]:
    version, weights = prior
    return {
        "name": name, "title": card["name"], "version": version, "family": card.get("family", "convention"),
        "digest": card["digest"], "preprocessing": card.get("preprocessing"), "classes": card["classes"],
        "bands": card["bands"], "surveys": card["surveys"],
        "prior": dict(zip(card["classes"], weights, strict=True)) if weights else None, "needs": _needs(card),
        "recompute": can, "card": card, "calibration": card["calibration"],
    }  # fmt: skip


def _needs(card: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the model reads of a history; None if its family cannot be loaded here (say, because it needs torch)."""
    from skyheed.classifier.models.family import family

    try:
        own = family(card.get("family", "convention"))
        needs = own.needs(own.configure(card["config"]))
    except (ClassifierError, ImportError):
        return None
    return {
        "images": list(needs.images), "photometry": needs.photometry, "context": needs.context,
        "fewest": needs.fewest, "most": min(needs.most, int(card.get("max_stamps", needs.most))),
    }  # fmt: skip
