"""An archive as a HATS catalogue of objects, which LSDB and hats open (https://www.ivoa.net/documents/Notes/HATS/).

    DIR/
      hats.properties, partition_info.csv            what there is and where
      dataset/Norder=K/Dir=D/Npix=N.parquet          the objects of one HEALPix pixel, by `_healpix_29`
      dataset/_metadata, dataset/_common_metadata
      card.json, README.md                           the archive's data card

A row is an object: its columns of objects.parquet, `stamp_shape` ("ny,nx") and `stamp_form` of its images, and nested
(struct of lists, as nested-pandas has them) `epochs`, the columns of its stamps, and `photometry`, where the archive
has it. An image is little-endian float16 [ny, nx] in units of its epoch's `stamp_unit` (nJy), as in the archive:

    np.frombuffer(row["stamp"], "<f2").reshape(ny, nx) * row["stamp_unit"]
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyheed.classifier.archives.card import card_text
from skyheed.classifier.archives.extras import CONTEXT, PHOTOMETRY, Extras, arrays_of
from skyheed.classifier.archives.format import KINDS, OBJECT_SCHEMA, STAMP_COLUMNS, stamp_table
from skyheed.classifier.archives.nested import EPOCHS, FACTS
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.progress import progress_bar
from skyheed.classifier.reaper import reaper, remove_folder
from skyheed.classifier.safe_names import printable

INDEX, INDEX_ORDER = "_healpix_29", 29
HIGHEST_ORDER = 12  # of a partition; a pixel of it is 51 arcsec wide
BYTES_PER_PARTITION = 2**28  # of images, about
OBJECTS_PER_GROUP = 32
_OWN = ("part", "row_group", "stamps")  # of the table of objects: the archive's own layout, and what `n_stamps` says
Pixel = tuple[int, int]  # order, number


def write_hats(
    archive: Archive, out: Path, chosen: Sequence[str], *, alerts_only: bool = False, progress: bool = True
) -> int:
    """Write the chosen objects of an archive as a catalogue that gets its name only when it is complete.

    Returns:
        the number of objects written; those without a stamp (`alerts_only`) are left out.

    Raises:
        ArchiveError: hats is not installed, or there is nothing to write.
    """
    try:
        from hats.pixel_math import compute_spatial_index
    except ModuleNotFoundError as error:
        raise ArchiveError(f"--to hats needs {error.name}: pip install 'skyheed[hats]'") from error
    rows = [archive.object(name) for name in chosen]
    index = np.asarray(compute_spatial_index([row["ra"] for row in rows], [row["dec"] for row in rows]), np.int64)
    temporary = out.parent / f".{out.name}.partial-{os.getpid()}"
    reaper.folder(temporary)
    try:
        count = _write(archive, temporary, rows, index, alerts_only, progress)
        _describe(archive, temporary, out.name, count)
        os.rename(temporary, out)
    finally:
        remove_folder(temporary)
    return count


def partitions(index: NDArray[np.int64], most: int) -> dict[Pixel, NDArray[np.int64]]:
    """The largest pixels that hold at most this many objects -> the objects in them, in the order of `index`.

    Args:
        index: pixel of each object, at `INDEX_ORDER`.
    """
    order = np.argsort(index, kind="stable")
    found: dict[Pixel, NDArray[np.int64]] = {}
    waiting = [(0, order)]
    while waiting:
        level, members = waiting.pop()
        pixels = index[members] >> 2 * (INDEX_ORDER - level)
        for pixel in np.unique(pixels):
            own = members[pixels == pixel]
            if len(own) <= most or level == HIGHEST_ORDER:
                found[level, int(pixel)] = own
            else:
                waiting.append((level + 1, own))
    return dict(sorted(found.items()))


def _write(
    archive: Archive, out: Path, rows: Sequence[dict[str, Any]], index: NDArray[np.int64], alerts_only: bool,
    progress: bool,
) -> int:  # fmt: skip
    bar = iter(progress_bar(range(len(rows)), "converting", show=progress, unit=" objects"))
    count = 0
    for pixel, members in partitions(index, _most(archive, rows)).items():
        tables = _tables(archive, [(rows[n], int(index[n])) for n in members], alerts_only, bar)
        count += _write_partition(partition_path(out, pixel), tables)
    next(bar, None)
    if not count:
        raise ArchiveError("no object of the archive has a stamp that an alert stream would have sent")
    return count


def _most(archive: Archive, rows: Sequence[dict[str, Any]]) -> int:
    """Objects of a partition."""
    ny, nx = archive.image_shape
    stamps = sum(row["stamps"] for row in rows) / len(rows)
    return max(int(BYTES_PER_PARTITION / (stamps * ny * nx * 2 * len(archive.kinds))), 1)


def partition_path(out: Path, pixel: Pixel) -> Path:
    order, number = pixel
    return out / "dataset" / f"Norder={order}" / f"Dir={number // 10_000 * 10_000}" / f"Npix={number}.parquet"


def _tables(
    archive: Archive, members: Sequence[tuple[dict[str, Any], int]], alerts_only: bool, bar: Iterator[int]
) -> Iterator[pa.Table]:
    for row, place in members:
        next(bar, None)
        name = row["object_id"]
        stamps, extras = archive.epochs(name, kinds=archive.kinds, alerts_only=alerts_only)
        if len(stamps):
            yield _row(row, place, stamp_table(name, stamps, extras, archive.normalised), extras)


def _row(row: Mapping[str, Any], place: int, stamps: pa.Table, extras: Extras | None) -> pa.Table:
    """The table of one object, of one row."""
    columns = {INDEX: pa.array([place], pa.int64())}
    columns |= {f.name: pa.array([row[f.name]], f.type) for f in OBJECT_SCHEMA if f.name not in _OWN}
    columns["n_stamps"] = pa.array([stamps.num_rows], pa.int32())
    nested = [*STAMP_COLUMNS, "stamp_unit", *KINDS, *(name for name in stamps.column_names if name.startswith(CONTEXT))]
    columns[EPOCHS] = _nested({name: stamps[name] for name in nested if name in stamps.column_names})
    if extras is not None:
        prefix = f"{PHOTOMETRY}_"
        points = {k.removeprefix(prefix): pa.array(v) for k, v in arrays_of(extras).items() if k.startswith(prefix)}
        columns[PHOTOMETRY] = _nested(points)
    facts = {key: value for key, value in stamps.schema.metadata.items() if key.startswith(b"stamp_")}
    columns |= {name: pa.array([facts[name.encode()].decode()]) for name in FACTS}
    return pa.table(columns).replace_schema_metadata(facts)


def _nested(columns: Mapping[str, Any]) -> pa.StructArray:
    """Columns as one value: a struct of lists."""
    lists = []
    for column in columns.values():
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if pa.types.is_fixed_size_binary(whole.type):  # which pandas cannot take in
            whole = whole.cast(pa.binary())
        lists.append(pa.ListArray.from_arrays(pa.array([0, len(whole)], pa.int32()), whole))
    return pa.StructArray.from_arrays(lists, list(columns))


def _write_partition(path: Path, tables: Iterator[pa.Table]) -> int:
    count, waiting, writer = 0, [], None
    try:
        for table in tables:
            if writer is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = pq.ParquetWriter(path, table.schema, compression="zstd", compression_level=1)
            waiting.append(table)
            count += 1
            if len(waiting) == OBJECTS_PER_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting and writer is not None:
            writer.write_table(pa.concat_tables(waiting))
    finally:
        if writer is not None:
            writer.close()
    return count


def _describe(archive: Archive, out: Path, name: str, count: int) -> None:
    """The files by which readers find their way."""
    from hats.catalog import PartitionInfo, TableProperties
    from hats.io.parquet_metadata import write_parquet_metadata
    from hats.pixel_math import HealpixPixel

    files = sorted(out.glob("dataset/Norder=*/Dir=*/Npix=*.parquet"))
    pixels = [HealpixPixel(*(int(part.partition("=")[2]) for part in (f.parts[-3], f.stem))) for f in files]
    PartitionInfo.from_healpix(pixels).write_to_file(catalog_path=out)
    write_parquet_metadata(out)
    properties = {
        "obs_collection": name, "dataproduct_type": "object", "hats_nrows": count, "hats_col_ra": "ra",
        "hats_col_dec": "dec", "hats_col_healpix": INDEX, "hats_col_healpix_order": INDEX_ORDER,
        "hats_order": max(pixel.order for pixel in pixels),
        "moc_sky_fraction": sum(1 / (12 * 4**pixel.order) for pixel in pixels),
        "hats_estsize": sum(f.stat().st_size for f in files) // 1024,
        "hats_creation_date": printable(archive.card["date"]),
        "hats_builder": f"skyheed {printable(archive.card['code_version'])}",
        "hats_version": "v1.0",
    }  # fmt: skip
    TableProperties.model_validate(properties).to_properties_file(out)
    (out / "card.json").write_text(json.dumps(archive.card, indent=1) + "\n")
    (out / "README.md").write_text(card_text(archive.card))
