"""An archive as training data: normalised stamps in one memory map, and random views of sequences."""

import hashlib
import itertools
import json
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.archives.extras import Extras
from skyheed.classifier.archives.histories import KINDS, band_codes, model_stamps
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import BANDS, FORCED, LONGEST, History, Photometry
from skyheed.classifier.progress import progress_bar
from skyheed.classifier.stamp import PREPROCESSING, STAMP_SIZE

QUIET = 1e-3  # sky noise below that of any real stamp, in the stamps' units
_RADIUS = np.hypot(*(np.indices((STAMP_SIZE, STAMP_SIZE)) - (STAMP_SIZE - 1) / 2))
_RING = (_RADIUS > 10) & (_RADIUS < 14)  # also lies within a rotated stamp of 30x30 pixels
LOOKED_BACK = 31.0  # days that the photometry of a packet reaches back, approximately
CACHE = 5  # increment when the cached arrays change


@dataclass(frozen=True)
class Dataset:
    """The alert sequences of an archive, in memory-mapped arrays.

    Attributes:
        object_ids, label, true_class, split, origin, kind: [objects] text; kind is the archive's `type`.
        confirmed: bool [objects].
        start: [objects + 1], index of each object's first stamp.
        mjd, band: [stamps]; stamps: float16 [stamps, 32, 32] as `stamp.normalise` returns them.
        flux: float32 [stamps, 2], nJy: of the difference as measured, and of the source without noise (NaN: unknown).
        flux_error: float32 [stamps], nJy, of the measured flux.
        images: further kinds (difference, template), shaped like `stamps`; zeros where a stamp has none.
        extras: photometry and context from each object's packets, aligned with its stamps; () if the archive has none.
        reach: days before the first stamp of a view from which photometry is given.
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
    images: Mapping[str, NDArray[np.float16]] = field(default_factory=dict)
    extras: Sequence[Extras] = ()
    reach: float = LOOKED_BACK

    def history(self, index: int, first: int = 0, last: int | None = None) -> History:
        """The epochs `first` to `last` of an object."""
        a, b = self.start[index], self.start[index + 1]
        rows = slice(a + first, b if last is None else min(a + last, b))
        return self.rows(np.arange(rows.start, rows.stop), self.pixels(rows), index)

    def pixels(self, rows: slice | NDArray[np.int64]) -> dict[str, NDArray[np.float16]]:
        """Images for some stamps, by kind."""
        return {"science": self.stamps[rows], **{kind: pixels[rows] for kind, pixels in self.images.items()}}

    def rows(self, rows: NDArray[np.int64], images: Mapping[str, NDArray[np.float16]], index: int) -> History:
        """Some stamps of an object, in ascending order, with these pixels, and the context known at the last one."""
        photometry, context = self._beside(index, int(rows[0]), int(rows[-1]))
        return History(
            self.mjd[rows], self.band[rows], images, flux=self.flux[rows, 0], flux_error=self.flux_error[rows],
            photometry=photometry, context=context, object_id=self.object_ids[index], survey=self.survey,
        )  # fmt: skip

    def _beside(self, index: int, first: int, last: int) -> tuple[Photometry | None, Mapping[str, float]]:
        """Photometry and context as a stream that starts at stamp `first` would have them at stamp `last`."""
        if not self.extras:
            return None, {}
        own, begin = self.extras[index], int(self.start[index])
        points = own.until(last - begin)
        late = points.mjd < self.mjd[first] - self.reach
        return points.take(np.flatnonzero(~late)) if first > begin else points, own.context[last - begin]

    def length(self, index: int) -> int:
        """Number of stamps of an object."""
        return int(self.start[index + 1] - self.start[index])

    def object_of(self, row: int) -> int:
        """The object to which a row of the arrays belongs."""
        return int(np.searchsorted(self.start, row, "right")) - 1

    def choose(self, split: str, confirmed: bool | None = None) -> NDArray[np.int64]:
        """Indices of the objects in a split (or "all") that have stamps; all, or only (un)confirmed ones."""
        keep = np.array([split in (s, "all") for s in self.split]) & (np.diff(self.start) > 0)
        if confirmed is not None:
            keep &= self.confirmed == confirmed
        return np.flatnonzero(keep)


def load(archive: str | Path, cache: str | Path | None = None, bands: str = "", visits: bool = False) -> Dataset:
    """Normalise every alert stamp of an archive once; later calls read the cache.

    Args:
        cache: folder for the normalised stamps; by default next to the archive.
        bands: keep only these; empty for all.
        visits: give every measurement of the archive as photometry, also those for which no alert was sent.

    Raises:
        ArchiveError: there is no such archive, it has no alerts, or `visits` is set and its packets have photometry.
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
        flux, flux_error, kept = rows["flux"], rows["flux_error"], rows["kept"]
    objects = source.objects.to_pydict()
    found = Dataset(
        objects["object_id"], objects["class"], objects["true_class"], objects["split"], objects["origin"],
        np.array(objects["confirmed"]), start, mjd, band, np.load(stamps, mmap_mode="r"), flux,
        objects["survey"][0], flux_error, objects["type"],
        {kind: np.load(_of_kind(stamps, kind), mmap_mode="r") for kind in _kinds(source)}, _extras(source, kept),
    )  # fmt: skip
    if visits:
        found = _with_visits(found, source)
    return only(found, bands) if bands else found


def _with_visits(data: Dataset, source: Archive) -> Dataset:
    """The same data whose photometry at an epoch is all that was measured up to it, from the first visit on.

    Raises:
        ArchiveError: the archive has photometry of its own.
    """
    if data.extras:
        raise ArchiveError(
            f"the packets of {source.path} have photometry: leave epochs out and let the model read that"
        )
    everything = progress_bar(source.each(kinds=()), "reading visits", len(data.object_ids), unit=" objects")
    extras = [
        _visits(rows, data.mjd[start:end])
        for (_, rows), start, end in zip(everything, data.start[:-1], data.start[1:], strict=True)
    ]
    return replace(data, extras=extras, reach=np.inf)


def _visits(rows: NDArray[np.void], epochs: NDArray[np.float64]) -> Extras:
    """The measurements in rows of `Archive.stamps`, each with the first epoch (MJD) that is not before it."""
    known = rows[np.isfinite(rows["flux"]) & np.isfinite(rows["flux_error"])]
    points = Photometry(
        known["mjd"].copy(),
        band_codes(known["band"]),
        known["flux"].copy(),
        known["flux_error"].copy(),
        np.full(len(known), FORCED, np.uint8),
    )
    ends = np.searchsorted(points.mjd, epochs, "right")
    parts = [points.take(slice(a, b)) for a, b in itertools.pairwise([0, *ends.tolist()])]
    return Extras(parts, [{}] * len(epochs))


def _kinds(source: Archive) -> list[str]:
    """Kinds of images that accompany the science stamps."""
    return [kind for kind, name in KINDS.items() if kind != "science" and name in source.kinds]


def _of_kind(stamps: Path, kind: str) -> Path:
    return stamps.with_name(f"{stamps.stem}-{kind}.npy")


def _extras(source: Archive, kept: NDArray[np.bool_]) -> list[Extras]:
    """Photometry and context from the packets of the alerts with usable stamps."""
    found, at = [], 0
    for name in source.object_ids:
        own = source.extras(name, alerts_only=True)
        if own is None:
            return []
        found.append(own.take(kept[at : at + len(own)]))
        at += len(own)
    return found


def _normalise(source: Archive, stamps: Path, table: Path) -> None:
    counts = [len(rows) for _, rows in source.each(kinds=(), alerts_only=True)]
    if not sum(counts):
        raise ArchiveError(f"{source.path} holds no stamp that an alert stream would send")
    names = {"science": KINDS["science"], **{kind: KINDS[kind] for kind in _kinds(source)}}
    files = {kind: stamps if kind == "science" else _of_kind(stamps, kind) for kind in names}
    shape = (sum(counts), STAMP_SIZE, STAMP_SIZE)
    out = {kind: np.lib.format.open_memmap(path, "w+", np.float16, shape) for kind, path in files.items()}
    kept = np.zeros(sum(counts), bool)
    mjd, band, start = np.empty(sum(counts)), np.empty(sum(counts), np.uint8), [0]
    flux = np.empty((sum(counts), 3))  # measured, without noise, error
    at = seen = 0
    everything = source.each(kinds=tuple(names.values()), alerts_only=True)
    for _, rows in progress_bar(everything, "normalising stamps", len(counts), unit=" objects"):
        made = {kind: model_stamps(rows, name, source.normalised) for kind, name in names.items()}
        usable = made["science"].any(axis=(1, 2))  # off the edge of the chip: the stream skips it, too
        kept[seen : seen + len(rows)] = usable
        seen += len(rows)
        rows, end = rows[usable], at + int(usable.sum())
        for kind, pixels in made.items():
            out[kind][at:end] = pixels[usable]
        mjd[at:end], band[at:end] = rows["mjd"], band_codes(rows["band"])
        flux[at:end] = np.stack([rows[name] for name in ("flux", "source_flux", "flux_error")], 1)
        at = end
        start.append(at)
    for pixels in out.values():
        pixels.flush()
    # written last, and in one piece: without it the stamps are computed again
    half = table.with_suffix(".half.npz")
    flux = flux[:at].astype(np.float32)
    np.savez(
        half, mjd=mjd[:at], band=band[:at], flux=flux[:, :2], flux_error=flux[:, 2], start=np.array(start), kept=kept
    )
    half.replace(table)


def only(data: Dataset, bands: str) -> Dataset:
    """The same data with the stamps of some bands only."""
    keep = np.isin(data.band, [BANDS.index(b) for b in bands])
    if keep.all():  # keep the memory map
        return data
    start = np.concatenate([[0], np.cumsum(keep)])[data.start]
    extras = [own.take(keep[data.start[i] : data.start[i + 1]]) for i, own in enumerate(data.extras)]
    return replace(
        data, start=start, mjd=data.mjd[keep], band=data.band[keep], stamps=data.stamps[keep], flux=data.flux[keep],
        flux_error=data.flux_error[keep], images={kind: pixels[keep] for kind, pixels in data.images.items()},
        extras=extras,
    )  # fmt: skip


def shuffled(object_id: str) -> int:
    """A reproducible pseudo-random number to order objects by."""
    return zlib.crc32(f"fold:{object_id}".encode())


def fit_scaling(data: Dataset, indices: Sequence[int], sample: int = 4000, seed: int = 0) -> Scaling:
    """Softening (sky noise by band, from an outer ring of the stamps), gain and flux unit, from a sample of stamps.

    Raises:
        ArchiveError: there are no stamps, or a band has no noise.
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
    """Sky noise of stamps [n, 32, 32]: the median over stamps of the scatter in each ring; robust to neighbours."""
    ring = pixels[:, _RING].astype(np.float64)
    ring[ring == 0] = np.nan  # filled pixels: outside the image, or without measurement
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # for stamps with an empty ring
        deviation = np.abs(ring - np.nanmedian(ring, 1, keepdims=True))
        return float(np.nan_to_num(np.nanmedian(deviation) * 1.4826))


def flux_unit(data: Dataset) -> NDArray[np.float64]:
    """Flux unit [bands] in nJy: the scatter of the small difference fluxes in each band; close to their error."""
    unit = np.ones(len(BANDS))
    for code in np.unique(data.band):
        flux = np.abs(data.flux[data.band == code, 0])
        if np.isfinite(flux).any():
            unit[code] = max(float(np.nanpercentile(flux, 30)), 1e-3)
    return unit


@dataclass(frozen=True)
class Augmentation:
    """Random views of a sequence: the early parts that a stream shows, at any orientation.

    Attributes:
        longest: most stamps in most views.
        most: most stamps that the model accepts.
        whole: fraction of views that may have up to `most`.
        truncate: fraction of views that end at a random time (log-uniform in stamps), so that short ones are common.
        late: fraction of views that begin at a random stamp, like sequences that have outgrown the window.
        drop: in half of the views, stamps are dropped with a random probability up to this.
        dense: fraction of overlong views that are cut to a contiguous stretch; others are thinned over their full time.
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
        """One random view of an object, and the data set's stamps that it contains."""
        rows = self._rows(data.length(index), rng) + data.start[index]
        turns, mirrored, shift = self._turning(rng)
        images = {kind: turned(pixels, turns, mirrored, shift) for kind, pixels in data.pixels(rows).items()}
        return data.rows(rows, images, index), rows

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

    def _turning(self, rng: np.random.Generator) -> tuple[int, bool, tuple[int, int]]:
        turns, mirrored = int(rng.integers(4)), bool(rng.random() < 0.5)
        dy, dx = rng.integers(-self.shift, self.shift + 1, 2)
        return turns, mirrored, (int(dy), int(dx))


def turned(stamps: NDArray[np.float16], turns: int, mirrored: bool, shift: tuple[int, int]) -> NDArray[np.float16]:
    """Stamps [n, y, x] after quarter turns, a reflection, and a shift by pixels."""
    stamps = np.rot90(stamps, turns, (1, 2))
    if mirrored:
        stamps = stamps[:, :, ::-1]
    return np.ascontiguousarray(np.roll(stamps, shift, (1, 2)))
