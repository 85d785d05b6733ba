"""Classifies whole archives: one part in, one Parquet part out, so that any number of machines can share the work.

    skyheed score sky/sdss --out scores --model sdss --shard 3/64 --epochs 1,3,6,last

Parts are written atomically, and a restarted run skips finished ones. A folder belongs to one model with one class
prior and one choice of epochs; others are refused.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyheed.classifier.archives.damage import BoundedFile, damaged
from skyheed.classifier.archives.extras import Extras, extras_of
from skyheed.classifier.archives.format import MOST_STAMPS, NORMALISED, OBJECTS_PER_PART, part_path, rows_of
from skyheed.classifier.archives.histories import KINDS, history_of, history_of_rows
from skyheed.classifier.archives.nested import is_nested, unnested
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.bounded_files import open_regular, read_file
from skyheed.classifier.errors import ArchiveError, ModelError
from skyheed.classifier.history import History
from skyheed.classifier.models.base import Model
from skyheed.classifier.prediction import Prediction
from skyheed.classifier.progress import progress_bar

MANIFEST = "score.json"
MOST_MANIFEST = 2**20
MOST_ROWS = OBJECTS_PER_PART * MOST_STAMPS  # of a part
BATCH = 64  # histories computed at a time
_OBJECTS, _ROWS = b"skyheed_objects", b"skyheed_rows"  # keys of a part's metadata: its input, its contents


@dataclass(frozen=True)
class Epochs:
    """After how many epochs a history is classified: these numbers of them, every one, or its end."""

    numbers: tuple[int, ...] = ()
    every: bool = False
    last: bool = True

    @classmethod
    def parse(cls, text: str) -> "Epochs":
        """From "all", "last", or comma-separated numbers and "last".

        Raises:
            ModelError: it is none of these.
        """
        parts = [part.strip() for part in text.split(",")]
        numbers = [part for part in parts if part not in ("all", "last")]
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in numbers):
            raise ModelError(f"epochs must be all, last, or numbers such as 1,3,6,last, not {text!r}")
        return cls(tuple(sorted({int(part) for part in numbers})), "all" in parts, "last" in parts)

    def of(self, length: int) -> list[int]:
        """The prefixes of a history of this many epochs, in ascending order."""
        found = set(range(1, length + 1)) if self.every else {n for n in self.numbers if n <= length}
        return sorted(found | ({length} if self.last else set()))

    def __str__(self) -> str:
        return ",".join((["all"] if self.every else list(map(str, self.numbers))) + (["last"] if self.last else []))


class Scorer:
    """A model as a function of tables, for Ray's `map_batches`, LSDB's `map_partitions` and the like.

    Args:
        model: from `load_model`.
        epochs: after how many epochs each history is classified.

    A table has the columns of an archive's part (`skyheed.classifier.archives.format`); all rows of an object must be
    in the same table, in any order. Or a row is an object with nested epochs (`skyheed.classifier.archives.hats`). The
    result has a row for each object and number of epochs: object_id, survey, n_stamps, last_mjd (days TAI), p_<class>,
    top_class, status, reason, model, weights_digest.
    """

    def __init__(self, model: Model, epochs: str = "last") -> None:
        self.model, self.epochs = model, Epochs.parse(epochs)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The classifications of the objects in a table.

        Raises:
            ArchiveError: the table is not part of an archive.
        """
        return self.classify(_histories(table, str(self.model.info.surveys[0])))

    def classify(self, histories: Sequence[History]) -> pa.Table:
        """The classifications of histories; for each object by ascending number of epochs."""
        cuts = [(h, n) for h in histories for n in self.epochs.of(len(h))]
        found: list[Prediction] = []
        for at in range(0, len(cuts), BATCH):
            found += self.model.predict([h.until(epochs=n) for h, n in cuts[at : at + BATCH]])
        return self._table([h for h, _ in cuts], [n for _, n in cuts], found)

    def _table(self, histories: Sequence[History], epochs: Sequence[int], found: Sequence[Prediction]) -> pa.Table:
        classes = self.model.classes
        table = np.array([p.probabilities if p.reason is None else [np.nan] * len(classes) for p in found], np.float32)
        table = table.reshape(len(found), len(classes))
        sure = [p.reason is None for p in found]
        columns = {
            "object_id": pa.array([h.object_id for h in histories], pa.string()),
            "survey": pa.array([h.survey for h in histories], pa.string()),
            "n_stamps": pa.array(epochs, pa.int32()),
            "last_mjd": pa.array([float(h.mjd[n - 1]) for h, n in zip(histories, epochs, strict=True)], pa.float64()),
            **{f"p_{name}": _probability(table[:, i], sure) for i, name in enumerate(classes)},
            "top_class": pa.array([classes[int(p.probabilities.argmax())] if ok else None for p, ok in
                                   zip(found, sure, strict=True)], pa.string()),
            "status": pa.array([str(p.status) for p in found], pa.string()),
            "reason": pa.array([None if p.reason is None else str(p.reason) for p in found], pa.string()),
            "model": pa.array([self.model.info.name] * len(found), pa.string()),
            "weights_digest": pa.array([self.model.info.digest] * len(found), pa.string()),
        }  # fmt: skip
        return pa.table(columns)


def _probability(column: NDArray[np.float32], sure: Sequence[bool]) -> pa.Array:
    """Null if the model declines: a decline has no probabilities."""
    return pa.array(column, pa.float32(), mask=~np.array(sure, bool))


def _histories(table: pa.Table, survey: str) -> list[History]:
    """The histories in rows of a part's table, objects in order of appearance.

    The table's metadata gives the stamps' shape and form; without it they are assumed square and the survey's own.
    """
    if is_nested(table):
        table = unnested(table)
    names = [name for name in KINDS.values() if name in table.column_names]
    if "object_id" not in table.column_names or "stamp" not in names:
        raise ArchiveError("the table has no object_id or no stamp: give rows of an archive's stamps")
    facts = table.schema.metadata or {}
    normalised = facts.get(b"stamp_form") == NORMALISED.encode()
    with damaged():
        shape = _shape(facts, table.schema.field(names[0]).type)
        objects = list(_by_object(table))
    found = []
    for object_id, own in objects:
        rows = rows_of(own, names, shape)
        extras = extras_of(own)
        alerts = np.flatnonzero(rows["alert"])
        history = _history(rows[alerts], extras.take(alerts) if extras else None, normalised, object_id, survey)
        if history is not None:
            found.append(history)
    return found


def _history(
    rows: NDArray[np.void], extras: Extras | None, normalised: bool, object_id: str, survey: str
) -> History | None:
    return history_of_rows(rows, extras, normalised, object_id=object_id, survey=survey) if len(rows) else None


def _by_object(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Each object's rows in time order."""
    table = table.append_column("_place", pa.array(np.arange(table.num_rows)))
    ids = table["object_id"].to_pylist()
    places: dict[str, list[int]] = {}
    for place, object_id in enumerate(ids):
        places.setdefault(object_id, []).append(place)
    for object_id, own in places.items():
        rows = table.take(pa.array(own)).drop_columns(["_place"])
        yield object_id, rows.sort_by([("mjd", "ascending"), ("source_id", "ascending")]).combine_chunks()


def _shape(facts: Mapping[bytes, bytes], kind: pa.DataType) -> tuple[int, int]:
    if b"stamp_shape" in facts:
        ny, nx = map(int, facts[b"stamp_shape"].decode().split(","))
        return ny, nx
    if not pa.types.is_fixed_size_binary(kind):
        raise ArchiveError(f"the stamps are {kind}, not the float16 bytes that archives hold")
    side = round((kind.byte_width / 2) ** 0.5)
    if 2 * side * side != kind.byte_width:
        raise ArchiveError(f"stamps of {kind.byte_width} bytes are not square, and the table does not say their shape")
    return side, side


# --- archives -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """What a folder of scores was made with, the same for all its parts."""

    model: str
    version: str
    weights_digest: str
    class_prior: tuple[float, ...]
    epochs: str
    archive_objects: int
    archive_stamps: int
    archive_date: str

    @classmethod
    def of(cls, scorer: Scorer, archive: Archive) -> "Manifest":
        info, card = scorer.model.info, archive.card
        prior = tuple(float(p) for p in info.calibration.prior)
        return cls(
            info.name, info.version, info.digest, prior, str(scorer.epochs),
            int(card["objects"]), int(card["stamps"]), str(card["date"]),
        )  # fmt: skip


def score(archive: Archive, output: Path, scorer: Scorer, shard: tuple[int, int] = (1, 1)) -> int:
    """Score the parts of a shard that are not scored yet; returns the number of rows written.

    Args:
        output: folder, created if missing.
        shard: (i, n): every n-th part, from the i-th on.

    Raises:
        ModelError: the folder holds scores of other weights, another prior, other epochs or another archive.
        ArchiveError: a part of the archive cannot be read.
    """
    output.mkdir(parents=True, exist_ok=True)
    _claim(output, Manifest.of(scorer, archive))
    parts = _parts(archive)
    mine = [number for place, number in enumerate(sorted(parts)) if place % shard[1] == shard[0] - 1]
    todo = [number for number in mine if not score_path(output, number).exists()]
    written = 0
    with progress_bar(None, "scoring", sum(len(parts[number]) for number in todo), unit="objects") as bar:
        for number in todo:
            written += _score_part(archive, number, parts[number], output, scorer)
            bar.update(len(parts[number]))
    return written


def check(archive: Archive, output: Path) -> list[str]:
    """What is wrong with a folder of scores, one sentence each; empty if every object of the archive has its rows."""
    problems = []
    for number, objects in sorted(_parts(archive).items()):
        path = score_path(output, number)
        if not path.exists():
            problems.append(f"{path.name} is missing: run `skyheed score` again with the same --out")
            continue
        if not _sound(path, set(objects), str(_manifest(output)["weights_digest"])):
            problems.append(f"{path.name} does not fit the archive or the model: remove it and run again")
    return problems


def _sound(path: Path, objects: set[str], digest: str) -> bool:
    """Whether a part holds the rows that were written, of these objects and by these weights."""
    texts = ["object_id", "weights_digest"]
    try:
        open_regular(path).close()
        with BoundedFile(path) as file:
            facts = file.schema_arrow.metadata or {}
            counts = [facts.get(key, b"").decode() for key in (_OBJECTS, _ROWS)]
            if counts != [str(len(objects)), str(file.metadata.num_rows)] or file.metadata.num_rows > MOST_ROWS:
                return False
            made = file.read(columns=texts)
    except (ArchiveError, OSError, ValueError, LookupError, pa.ArrowException):
        return False
    known = (objects, {digest})
    return made.column_names == texts and all(_only(made[name], own) for name, own in zip(texts, known, strict=True))


def _only(column: pa.ChunkedArray, known: set[str]) -> bool:
    """Whether the column holds these texts and no others; of a dictionary each text is looked at once."""
    if not pa.types.is_dictionary(column.type) or not pa.types.is_string(column.type.value_type):
        return False
    allowed = pa.array(sorted(known), pa.string())
    return not column.null_count and all(
        pc.all(pc.is_in(chunk.dictionary, allowed), min_count=0).as_py() for chunk in column.chunks
    )


def score_path(output: Path, number: int) -> Path:
    """Where the scores of a part are."""
    return output / f"part-{number:05d}.parquet"


def _score_part(archive: Archive, number: int, objects: Sequence[str], output: Path, scorer: Scorer) -> int:
    if not part_path(archive.path, number).exists():
        raise ArchiveError(f"{part_path(archive.path, number)} is missing")
    found = scorer.classify([h for h in map(lambda name: _usable(archive, name), objects) if h is not None])
    found = found.replace_schema_metadata({_OBJECTS: str(len(objects)), _ROWS: str(found.num_rows)})
    path = score_path(output, number)
    unfinished = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with unfinished.open("wb") as file:
        pq.write_table(found, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    return int(found.num_rows)


def _usable(archive: Archive, object_id: str) -> History | None:
    """An object that never caused an alert, or has no usable stamp, cannot be classified."""
    try:
        return history_of(archive, object_id)
    except ArchiveError as error:
        if "no alert with a usable stamp" in str(error):
            return None
        raise


def _parts(archive: Archive) -> dict[int, list[str]]:
    """The objects of each part, in its order."""
    found: dict[int, list[str]] = {}
    for object_id in archive.object_ids:
        found.setdefault(int(archive.object(object_id)["part"]), []).append(object_id)
    return found


def _claim(output: Path, manifest: Manifest) -> None:
    """Write the manifest, or check that the existing one is the same."""
    wanted = json.loads(json.dumps(asdict(manifest)))
    path = output / MANIFEST
    unfinished = output / f".{MANIFEST}.partial-{os.getpid()}"
    unfinished.write_text(json.dumps(wanted, indent=1) + "\n")
    try:
        os.link(unfinished, path)  # of several shards that start together, one wins
    except FileExistsError:
        there = _manifest(output)
        if other := [key for key in wanted if there.get(key) != wanted[key]]:
            raise ModelError(
                f"{output} holds scores with {other[0]} {there.get(other[0])}, not {wanted[other[0]]}: "
                "choose another --out"
            ) from None
    finally:
        unfinished.unlink()


def _manifest(output: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(read_file(output / MANIFEST, MOST_MANIFEST, ModelError))
    except (ModelError, ValueError) as error:
        raise ModelError(f"{output} holds no {MANIFEST}: run `skyheed score` into it first") from error
    return found
