"""What a survey's class says of its objects beyond their packets: the size of a pixel, and pages at other brokers.

Only addresses: nothing is requested from them, and whether they still lead to the object has not been tried.
"""

from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote

from skyheed.broker.packets.surveys import survey_class


def pixel_arcsec(survey: str) -> float | None:
    """Arcseconds of a pixel's side; None if the survey does not say."""
    return _said(survey)[0]


def brokers(survey: str, object_id: str) -> list[tuple[str, str]]:
    """(name, URL) of the object at other brokers; empty for a survey that names none."""
    return [(name, address.replace("{}", quote(object_id, safe=""))) for name, address in _said(survey)[1].items()]


@lru_cache(64)
def _said(survey: str) -> tuple[float | None, Mapping[str, str]]:
    """Of the survey whose packets they are: `ztf` for the replay `ztf.night20`; nothing if it is not installed here."""
    found = survey_class(survey.partition(".")[0])
    return getattr(found, "pixel_arcsec", None), getattr(found, "pages", {})
