"""Surveys: what an alert packet's record means. One module per survey, found through an entry point.

Other packages add a survey with an entry point in the group `skyheed.surveys` that names a class with this
interface; nothing else in skyheed refers to a survey by name. A subclass of `base.InSteps` is read
faster: its stamps are made together with those of other packets.
"""

from importlib.metadata import entry_points
from typing import Any, Protocol

from skyheed.broker.errors import ConfigError
from skyheed.broker.observation import Observation
from skyheed.broker.packets.surveys.base import Wanted as Wanted

GROUP = "skyheed.surveys"


class Survey(Protocol):
    """One survey's alerts.

    Attributes:
        name: as written in the configuration and in topic names.
        bands: the bands in use, letters of `broker.observation.BANDS`.
        stamp_kinds: the stamps that a packet carries, of science, template and difference.
        default_stamp, stamp: the kind that the model sees by default, and the kind now in use.
        reader_schema: Avro schema of the record's fields that are needed; all have defaults.

    It may have two more, for the page: `pixel_arcsec`, the side of a pixel, for scale bars and the position in FITS
    files; and `pages`, the address of an object at other brokers by their name, with {} for the object's id.
    """

    name: str
    bands: str
    stamp_kinds: tuple[str, ...]
    default_stamp: str
    stamp: str

    def __init__(self, stamp: str | None = None, bands: str | None = None) -> None:
        """Raises ConfigError for a stamp or band that the survey does not have."""

    @property
    def reader_schema(self) -> dict[str, Any]: ...

    def observation(self, record: dict[str, Any]) -> Observation:
        """The observation in a record, with a model-ready stamp.

        Raises:
            SkipPacket: it is valid, but not needed.
            PacketError: it cannot be used.
        """

    def time(self, record: dict[str, Any]) -> float:
        """Mid-exposure, MJD TAI; raises PacketError (NO_TIME)."""


def load_survey(name: str, stamp: str | None = None, bands: str | None = None, wanted: Wanted | None = None) -> Survey:
    """The survey of this name.

    Args:
        stamp: which stamp the model sees; None for the survey's default.
        bands: letters of the bands to keep; None for all of the survey's.
        wanted: further parts of a packet, and filters, for surveys with a method `want`; None to read only the stamp
            of every packet.

    Raises:
        ConfigError: unknown survey, stamp or band.
    """
    found = survey_class(name)
    if found is None:
        known = sorted({point.name for point in entry_points(group=GROUP)})
        raise ConfigError(f"unknown survey {name!r}; known are {', '.join(known)}")
    survey = found(stamp, bands)
    if wanted is not None and hasattr(survey, "want"):
        survey.want(wanted)
    return survey


def survey_class(name: str) -> type[Survey] | None:
    """The class of the survey of this name; None if no installed package has it."""
    for point in entry_points(group=GROUP, name=name):
        found: type[Survey] = point.load()
        return found
    return None
