"""From the bytes of one alert packet to its observations; used by daemons, notebooks and other hosts."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

from skyheed.broker.errors import ConfigError, PacketError, Reason, SkipPacket
from skyheed.broker.observation import Observation
from skyheed.broker.packets.container import Decoder, Headers
from skyheed.broker.packets.stamps import Unfinished, Waiting
from skyheed.broker.packets.surveys import Survey, load_survey
from skyheed.broker.packets.surveys.base import FILTERS, InSteps, Wanted
from skyheed.broker.registry.schemas import SchemaSource

Begun = Observation | Unfinished


class Check(Protocol):
    """Refuses an observation that cannot be kept."""

    def __call__(self, observation: Observation) -> None:
        """Raises PacketError, or another exception for values that no survey adapter should have let through."""


class Decodes(Protocol):
    """A `Decoder`, or an equivalent."""

    def decode(self, payload: bytes, headers: Headers | None = ...) -> list[dict[str, Any]]:
        """The records of one message, wanted fields only."""


class PacketReader:
    """Reads the packets of one survey.

    Args:
        check: applied to every observation.
    """

    def __init__(self, survey: Survey, decoder: Decodes, check: Check | None = None) -> None:
        self.survey = survey
        self.decoder = decoder
        self._check = check
        # a subclass of one of our surveys may override `observation`
        self._in_steps = getattr(type(survey), "observation", None) is InSteps.observation

    def observations(
        self, value: bytes | None, headers: Headers | None = None, meanwhile: Callable[[], None] = lambda: None
    ) -> list[Observation]:
        """The observations of one message; a message with several records is accepted or refused as a whole.

        Args:
            meanwhile: called before every record, because a message may hold thousands of large stamps. An exception
                from it ends the reading and says nothing about the message.

        Raises:
            SkipPacket: no record of the message is needed.
            PacketError: some record cannot be used.
            ServiceError: the schema registry denies access.
        """
        waiting = Waiting()
        begun = self.begin(value, headers, meanwhile, waiting)
        waiting.make()
        return self.finish(begun)

    def begin(
        self, value: bytes | None, headers: Headers | None, meanwhile: Callable[[], None], waiting: Waiting
    ) -> list[Begun]:
        """The same without the stamps, which wait to be made together with others; pass the result to `finish`.

        Raises:
            As `observations`.
        """
        begun: list[Begun] = []
        skip: SkipPacket | None = None
        for record in self._records(value, headers):
            meanwhile()
            try:
                begun.append(self._begin(record, waiting))
            except SkipPacket as reason:
                skip = reason
            except Exception:
                self.finish(begun)  # errors in an earlier record are reported first
                raise
        if not begun:
            raise skip or PacketError(Reason.EMPTY, "the container holds no record")
        return begun

    def finish(self, begun: Sequence[Begun]) -> list[Observation]:
        """The observations that were begun; stamps that still wait are made.

        Raises:
            PacketError: as `observations`.
        """
        found = [one if isinstance(one, Observation) else one.observation() for one in begun]
        for seen in found if self._check else ():
            self._check(seen)  # type: ignore[misc]  # a survey may come from another package
        return found

    def good(self, value: bytes, errors: list[Exception]) -> list[Observation]:
        """The observations of the good records of one message; the errors of the others are added to `errors`.

        Raises:
            PacketError: the message cannot be read at all.
        """
        kept: list[Observation] = []
        for record in self._records(value, None):
            try:
                kept += self.finish([self._begin(record, Waiting())])
            except (SkipPacket, PacketError) as error:
                errors.append(error)
        return kept

    def _records(self, value: bytes | None, headers: Headers | None) -> list[dict[str, Any]]:
        if not value:
            raise PacketError(Reason.EMPTY, "the message has no value")
        return self.decoder.decode(value, headers) if headers else self.decoder.decode(value)

    def _begin(self, record: Mapping[str, Any], waiting: Waiting) -> Begun:
        if not self._in_steps:
            return self.survey.observation(dict(record))
        begun: Unfinished = self.survey.begin(dict(record))  # type: ignore[attr-defined]
        waiting.add(begun.wanted, begun.points)
        return begun


def read_packet(
    payload: bytes, survey: str, *, stamp: str | None = None, bands: str | None = None, schemas: str | None = None,
    errors: list[Exception] | None = None, images: Sequence[str] | None = None, skip: Collection[str] = FILTERS,
    least_score: float | None = None, solar_system_arcsec: float | None = None,
) -> list[Observation]:  # fmt: skip
    """The observations of one alert packet, from Kafka or a file.

    Args:
        survey: sdss, ztf, lsst, or one from an installed package.
        stamp: science, difference or template; None for the survey's default.
        bands: letters of the bands to keep; None for all.
        schemas: directory of writer schemas for Confluent-framed packets (Rubin); None for the installed ones.
        errors: return the good records of a packet with several, and append the errors of the others to this list.
        images: kinds of stamps to read; None for all that the survey sends, or only for `stamp` if it is not science.
        skip: which valid packets to skip, of not_public, artefact and solar_system; () for none.
        least_score: real-bogus score (0 to 1) below which a detection is an artefact; None for the survey's own.
        solar_system_arcsec: a detection this close to a known solar-system object is one; None for the survey's own.

    Raises:
        SkipPacket: the packet is valid, but none of its records is needed (without `errors`).
        PacketError: the packet, or (without `errors`) some record of it, cannot be used; its `reason` says why.
        ConfigError: no such survey, stamp, band, kind of image or filter.
    """
    kinds = None if images is None else tuple(images)
    wanted = Wanted(kinds, True, True, tuple(skip), least_score, solar_system_arcsec)
    reader = _reader(survey, stamp, bands, schemas, wanted)
    found = reader.observations(payload) if errors is None else reader.good(payload, errors)
    return [replace(seen, survey=reader.survey.name) for seen in found]


@lru_cache(16)
def _reader(
    survey: str, stamp: str | None, bands: str | None, schemas: str | None, wanted: Wanted | None = None
) -> PacketReader:
    if not isinstance(survey, str):
        raise ConfigError("survey must be a name, such as ztf")
    found = load_survey(survey, stamp, bands, wanted)
    return PacketReader(found, Decoder(found.reader_schema, schemas=SchemaSource(directory=schemas or "")))
