"""The position and time of every packet in files, folders and archives; packets are read on demand."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from skyheed.broker.errors import ConfigError, PacketError
from skyheed.broker.packets.container import Decoder, SchemaSource, split_container
from skyheed.broker.packets.files import PACKETS, TARS, PacketFiles
from skyheed.broker.packets.surveys import Survey
from skyheed.classifier.reaper import make_folder, remove_folder
from skyheed.classifier.safe_names import printable

WHOLE = -1  # instead of a record's number: the whole message is the packet
ALERT_COLUMNS = (
    "source_id", "mjd", "band", "stamp", "flux", "flux_error", "psf_fwhm", "zero_point", "sky_noise",
)  # fmt: skip


class PacketIndex:
    """Where every packet lies on disk and when it was taken.

    If a packet's time cannot be read (a damaged packet), it gets the time of the previous one; ingest will handle it.

    Args:
        schemas: where writer schemas come from, for packets that refer to theirs by number.
    """

    def __init__(self, survey: Survey, schemas: SchemaSource | None = None) -> None:
        self._survey = survey
        self._decoder = Decoder(survey.reader_schema, schemas=schemas or SchemaSource())
        self._files: list[Path] = []
        self._mjd, self._file = array("d"), array("l")
        self._offset, self._length, self._record = array("q"), array("q"), array("l")
        self._folder = make_folder("skyheed-replay-")
        self._found = PacketFiles(self._folder)
        self._split = lru_cache(8)(self._split_now)  # records of one file are close together in time, too

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        remove_folder(self._folder)

    def __len__(self) -> int:
        return len(self._mjd)

    @property
    def mjd(self) -> NDArray[np.float64]:
        """Time of every packet in the order of the archive, days, MJD TAI."""
        times = np.array(self._mjd)
        known = np.flatnonzero(np.isfinite(times))
        if not len(known):
            return np.zeros(len(times))
        last = np.searchsorted(known, np.arange(len(times)), "right") - 1
        return np.asarray(times[known[np.maximum(last, 0)]])

    @property
    def unknown_times(self) -> int:
        """How many packets have no readable time."""
        return int(np.count_nonzero(~np.isfinite(np.array(self._mjd))))

    def fingerprint(self) -> str:
        """A text that changes with the inputs: survey, and names, sizes and modification times of the files."""
        return hashlib.sha256(json.dumps([self._survey.name, self._found.inputs]).encode()).hexdigest()[:16]

    @property
    def damaged(self) -> list[str]:
        """What could not be read completely, one sentence each; what was read of it is kept."""
        return self._found.damaged

    def add(self, path: Path) -> None:
        """Add a file, a folder, a tar archive or an archive of stamp sequences; an empty archive adds nothing.

        Raises:
            ConfigError: there is nothing to replay.
        """
        before, empty, damaged = len(self), len(self._found.empty), len(self.damaged)
        if (path / "objects.parquet").exists():
            self._spool(path, _archive_alerts(self._survey.name, path))
        else:
            for file, offset, length in self._found.packets(path):
                self._add_packet(self._number(file), offset, length)
        if len(self) > before or len(self._found.empty) > empty:
            return
        if len(self.damaged) > damaged:
            raise ConfigError(self.damaged[damaged])
        raise ConfigError(f"{path} holds no packets: files must end with {', '.join(PACKETS + TARS)}")

    def payload(self, index: int) -> bytes:
        """The packet as it is sent to Kafka."""
        where = (self._file[index], self._offset[index], self._length[index])
        record = self._record[index]
        return self._read(*where) if record == WHOLE else self._split(*where)[record]

    def _number(self, path: Path) -> int:
        if not self._files or self._files[-1] != path:
            self._files.append(path)
        return len(self._files) - 1

    def _add_packet(self, file: int, offset: int, length: int) -> None:
        data = self._read(file, offset, length)
        times = self._times(data)
        for record, mjd in enumerate(times):
            self._put(mjd, file, offset, length, record if len(times) > 1 else WHOLE)

    def _put(self, mjd: float, file: int, offset: int, length: int, record: int) -> None:
        for column, value in (
            (self._file, file), (self._offset, offset), (self._length, length), (self._record, record),
        ):  # fmt: skip
            column.append(value)
        self._mjd.append(mjd)

    def _spool(self, folder: Path, alerts: Iterable[tuple[float, bytes]]) -> None:
        """Alerts made from an archive, kept in a temporary file."""
        for path in sorted(folder.rglob("*.parquet")):
            self._found.note(path)
        spool = self._folder / f"{len(self._files)}.alerts"
        number, offset = self._number(spool), 0
        with spool.open("wb") as out:
            for mjd, alert in alerts:
                out.write(alert)
                self._put(mjd, number, offset, len(alert), WHOLE)
                offset += len(alert)

    def _times(self, data: bytes) -> list[float]:
        """The time of every record; a single NaN for a file without any readable time."""
        try:
            times = [self._time(record) for record in self._decoder.decode(data)]
        except PacketError:
            pieces = _pieces(data)
            times = [self._times(piece)[0] for piece in pieces] if len(pieces) > 1 else []
        return times or [float("nan")]

    def _time(self, record: dict[str, Any]) -> float:
        try:
            return float(self._survey.time(record))
        except PacketError:
            return float("nan")

    def _read(self, file: int, offset: int, length: int) -> bytes:
        with self._files[file].open("rb") as source:
            return _read_at(source, offset, length)

    def _split_now(self, file: int, offset: int, length: int) -> list[bytes]:
        return _pieces(self._read(file, offset, length))


def _archive_alerts(survey: str, folder: Path) -> Iterator[tuple[float, bytes]]:
    """Time and alert packet of every stamp of an archive of stamp sequences.

    Raises:
        ConfigError: there are no packets for another survey.
    """
    from skyheed.broker.packets.surveys.sdss import Sdss, alert_from_archive
    from skyheed.classifier.archives.reader import Archive

    if survey != Sdss.name:
        raise ConfigError(f"{folder} is an archive of stamp sequences: replay it as {Sdss.name}, not as {survey}")
    for thing, stamps in Archive(folder).each(alerts_only=True):
        if thing["survey"] != survey:
            raise ConfigError(f"{folder} holds {thing['survey']} stamps, which cannot be made into packets")
        where = {name: thing[name] for name in ("object_id", "ra", "dec")}
        for row in stamps:
            try:
                alert = alert_from_archive(**where, **{name: row[name] for name in ALERT_COLUMNS})
            except (ValueError, OverflowError) as error:
                raise ConfigError(f"{folder}, object {printable(thing['object_id'])}: no alert: {error}") from error
            yield float(row["mjd"]), alert


def _read_at(source: BinaryIO, offset: int, length: int) -> bytes:
    source.seek(offset)
    return source.read(length)


def _pieces(data: bytes) -> list[bytes]:
    try:
        return split_container(data)
    except PacketError:
        return [data]
