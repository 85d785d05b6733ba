"""An archive as training data: normalised stamps in one memory map, and random views of sequences."""

import hashlib
import json
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.archives.histories import model_stamp
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.history import BANDS, LONGEST, History
from skyheed.classifier.progress import progress_bar
from skyheed.classifier.scaling import Scaling
from skyheed.classifier.stamp import PREPROCESSING, STAMP_SIZE

QUIET = 1e-3  # sky noise that no real stamp has, in the stamps' units
_RADIUS = np.hypot(*(np.indices((STAMP_SIZE, STAMP_SIZE)) - (STAMP_SIZE - 1) / 2))
_RING = (_RADIUS > 10) & (_RADIUS < 14)  # within a turned stamp of 30x30 pixels, too
CACHE = 4  # raised when the cached arrays change


@dataclass(frozen=True)
class Dataset:
    """The alert sequences of an archive, in memory-mapped arrays.

    Attributes:
        object_ids, label, true_class, split, origin, kind: [objects] text; kind is the archive's `type`.
        confirmed: bool [objects].
        start: [objects + 1], where each object's stamps begin.
        mjd, band: [stamps]; stamps: float16 [stamps, 32, 32] as `stamp.normalise` returns them.
        flux: float32 [stamps, 2], nJy: of the difference as measured, and of the source without noise (NaN: unknown).
        flux_error: float32 [stamps], nJy, of the measured one.
    """

    object_ids: list[str]
    label: list[str]
    true_class: list[str]
    split: list[str]
    origin: list[str]
    confirmed: NDArray[np.bool_]
    start: NDArray[np.int64]
    mjd: NDArray[np.float64]
    band: NDArray[np.uint8]
    stamps: NDArray[np.float16]
    flux: NDArray[np.float32]
    survey: str
    flux_error: NDArray[np.float32]
    kind: list[str]

    def history(self, index: int, first: int = 0, last: int | None = None) -> History:
        """The epochs `first` to `last` of an object."""
        a, b = self.start[index], self.start[index + 1]
        rows = slice(a + first, b if last is None else min(a + last, b))
        return self.rows(rows, self.stamps[rows], index)

    def rows(self, rows: slice | NDArray[np.int64], stamps: NDArray[np.float16], index: int) -> History:
        """Some of the stamps of an object, with these pixels."""
        return History.of_stamps(
            self.mjd[rows], self.band[rows], stamps, flux=self.flux[rows, 0], flux_error=self.flux_error[rows],
            object_id=self.object_ids[index], survey=self.survey,
        )  # fmt: skip

    def length(self, index: int) -> int:
        """Stamps of an object."""
        return int(self.start[index + 1] - self.start[index])

    def object_of(self, row: int) -> int:
        """Whose stamp a row of the arrays is."""
        return int(np.searchsorted(self.start, row, "right")) - 1

    def choose(self, split: str, confirmed: bool | None = None) -> NDArray[np.int64]:
        """Indices of the objects of a split (or of "all") that have stamps; of all labels, confirmed, or others."""
        keep = np.array([split in (s, "all") for s in self.split]) & (np.diff(self.start) > 0)
        if confirmed is not None:
            keep &= self.confirmed == confirmed
        return np.flatnonzero(keep)


def load(archive: str | Path, cache: str | Path | None = None, bands: str = "") -> Dataset:
    """Normalise every alert stamp of an archive once; the second time the cache is read.

    Args:
        cache: folder for the normalised stamps; beside the archive by default.
        bands: keep only these; empty for all.

    Raises:
        ArchiveError: there is no such archive, or it has no alerts.
    """
    source = Archive(archive)
    facts = [source.card, PREPROCESSING, CACHE]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    folder = Path(cache) if cache else Path(archive) / "normalised"
    folder.mkdir(parents=True, exist_ok=True)
    stamps, table = folder / f"{key[:16]}.npy", folder / f"{key[:16]}.npz"
    if not table.exists():
        _normalise(source, stamps, table)
    with np.load(table) as rows:
        mjd, band, start = rows["mjd"], rows["band"], rows["start"]
        flux, flux_error = rows["flux"], rows["flux_error"]
    objects = source.objects.to_pydict()
    found = Dataset(
        objects["object_id"], objects["class"], objects["true_class"], objects["split"], objects["origin"],
        np.array(objects["confirmed"]), start, mjd, band, np.load(stamps, mmap_mode="r"), flux,
        objects["survey"][0], flux_error, objects["type"],
    )  # fmt: skip
    return only(found, bands) if bands else found


def _normalise(source: Archive, stamps: Path, table: Path) -> None:
    counts = [len(rows) for _, rows in source.each(kinds=(), alerts_only=True)]
    if not sum(counts):
        raise ArchiveError(f"{source.path} holds no stamp that an alert stream would send")
    out = np.lib.format.open_memmap(stamps, "w+", np.float16, (sum(counts), STAMP_SIZE, STAMP_SIZE))
    mjd, band, start = np.empty(sum(counts)), np.empty(sum(counts), np.uint8), [0]
    flux = np.empty((sum(counts), 3))  # measured, without noise, error
    code = {letter: number for number, letter in enumerate(BANDS)}
    at = 0
    for _, rows in progress_bar(source.each(alerts_only=True), "normalising stamps", len(counts), unit=" objects"):
        for row in rows:
            out[at] = model_stamp(row["stamp"], float(row["rotation"]), source.normalised)
            if not out[at].any():  # off the edge of the chip: the stream sets it aside, too
                continue
            mjd[at], band[at] = row["mjd"], code[str(row["band"])]
            flux[at] = row["flux"], row["source_flux"], row["flux_error"]
            at += 1
        start.append(at)
    out.flush()
    # the table comes last, and whole: without it the stamps are made again
    half = table.with_suffix(".half.npz")
    flux = flux[:at].astype(np.float32)
    np.savez(half, mjd=mjd[:at], band=band[:at], flux=flux[:, :2], flux_error=flux[:, 2], start=np.array(start))
    half.replace(table)


def only(data: Dataset, bands: str) -> Dataset:
    """The stamps of some bands."""
    keep = np.isin(data.band, [BANDS.index(b) for b in bands])
    if keep.all():  # the memory map stays one
        return data
    start = np.concatenate([[0], np.cumsum(keep)])[data.start]
    return Dataset(
        data.object_ids, data.label, data.true_class, data.split, data.origin, data.confirmed, start, data.mjd[keep],
        data.band[keep], data.stamps[keep], data.flux[keep], data.survey, data.flux_error[keep], data.kind,
    )  # fmt: skip


def shuffled(object_id: str) -> int:
    """A number that orders objects by chance, and always alike."""
    return zlib.crc32(f"fold:{object_id}".encode())


def fit_scaling(data: Dataset, indices: Sequence[int], sample: int = 4000, seed: int = 0) -> Scaling:
    """Softening (sky noise by band, from a ring in the stamps' outer parts), gain and unit of flux, from some stamps.

    Raises:
        ArchiveError: no stamps, or a band without noise.
    """
    if not len(indices):
        raise ArchiveError("no objects to take the sky noise from: the archive needs some in its split train")
    rng = np.random.default_rng(seed)
    rows = np.concatenate([np.arange(data.start[i], data.start[i + 1]) for i in indices])
    rows = np.sort(rng.choice(rows, min(sample, len(rows)), replace=False))
    pixels, band = np.asarray(data.stamps[rows], np.float32), data.band[rows]
    softening = np.ones(len(BANDS))
    for code in np.unique(band):
        softening[code] = sky_noise(pixels[band == code])
        if softening[code] < QUIET:
            raise ArchiveError(
                f"the stamps in {BANDS[code]} have no sky noise: make the archive again, or choose bands"
            )
    scaled = Scaling(tuple(softening.tolist()), 1.0)(pixels.astype(np.float16), band)
    unit = tuple(float(u) for u in flux_unit(data))
    return Scaling(tuple(float(s) for s in softening), float(1 / scaled.std()), unit)


def sky_noise(pixels: NDArray[np.float32]) -> float:
    """Sky noise of stamps [n, 32, 32]: the median over stamps of each ring's own scatter; neighbours do not count."""
    ring = pixels[:, _RING].astype(np.float64)
    ring[ring == 0] = np.nan  # filled in: beyond the image, or no measurement
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of stamps that are empty there
        deviation = np.abs(ring - np.nanmedian(ring, 1, keepdims=True))
        return float(np.nan_to_num(np.nanmedian(deviation) * 1.4826))


def flux_unit(data: Dataset) -> NDArray[np.float64]:
    """[bands] nJy: the scatter of the difference fluxes that are small, by band; about their error."""
    unit = np.ones(len(BANDS))
    for code in np.unique(data.band):
        flux = np.abs(data.flux[data.band == code, 0])
        if np.isfinite(flux).any():
            unit[code] = max(float(np.nanpercentile(flux, 30)), 1e-3)
    return unit


@dataclass(frozen=True)
class Augmentation:
    """Random views of a sequence: what a stream shows of it early, seen from any side.

    Attributes:
        longest: stamps that most views have at most.
        most: stamps that the model takes.
        whole: share of views that may have as many.
        truncate: share of views that end at a random time (log-uniform in stamps), so that short ones are first-class.
        late: share of views that begin at a random stamp, as sequences do that outgrew the window.
        drop: stamps of half of the views are left out with a random probability up to this.
        dense: share of too long views that are cut to a stretch; others are thinned out over their whole time.
        shift: pixels; neighbours move with the source.
    """

    longest: int = 36
    whole: float = 0.06
    truncate: float = 0.4
    most: int = LONGEST
    late: float = 0.1
    drop: float = 0.3
    dense: float = 0.7
    shift: int = 1

    def view(self, data: Dataset, index: int, rng: np.random.Generator) -> tuple[History, NDArray[np.int64]]:
        """One random view of an object, and which of the data set's stamps it shows."""
        rows = self._rows(data.length(index), rng) + data.start[index]
        return data.rows(rows, self._turn(data.stamps[rows], rng), index), rows

    def _rows(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        first = int(rng.integers(n)) if rng.random() < self.late else 0
        last = n
        if rng.random() < self.truncate:
            last = first + int(np.exp(rng.uniform(0, np.log(n - first + 1))))
        rows = np.arange(first, max(last, first + 1))
        if rng.random() < 0.5:
            rows = rows[rng.random(len(rows)) >= rng.uniform(0, self.drop)]
        if len(rows) == 0:
            rows = np.array([first])
        longest = self.most if rng.random() < self.whole else min(self.longest, self.most)
        if len(rows) <= longest:
            return rows
        if rng.random() < self.dense:
            start = int(rng.integers(len(rows) - longest + 1)) if rng.random() < 0.5 else 0
            return rows[start : start + longest]
        return np.sort(rng.choice(rows, longest, replace=False))

    def _turn(self, stamps: NDArray[np.float16], rng: np.random.Generator) -> NDArray[np.float16]:
        stamps = np.rot90(stamps, int(rng.integers(4)), (1, 2))
        if rng.random() < 0.5:
            stamps = stamps[:, :, ::-1]
        dy, dx = rng.integers(-self.shift, self.shift + 1, 2)
        return np.ascontiguousarray(np.roll(stamps, (int(dy), int(dx)), (1, 2)))
