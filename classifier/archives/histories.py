"""An archive's object as a model's history: the same as a stream would keep from its packets."""

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.archives.extras import Extras
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.history import BANDS, History
from skyheed.classifier.safe_names import printable
from skyheed.classifier.stamp import STAMP_SIZE, STAMP_UNIT_NJY, middle, normalise_all, turned

# An archive calls the science image `stamp`.
KINDS = {"science": "stamp", "difference": "difference", "template": "template"}
_LARGEST = float(np.finfo(np.float16).max)


def history_of(archive: Archive, object_id: str, *, epochs: int | None = None, alerts_only: bool = True) -> History:
    """An object's history after this many of its alerts, or after all.

    Args:
        alerts_only: what an alert stream would have sent; otherwise every exposure of the archive is an epoch.

    Raises:
        ArchiveError: the archive does not have the object, or nothing of it that can be used.
    """
    names = tuple(name for name in KINDS.values() if name in archive.kinds)
    rows, extras = archive.epochs(object_id, kinds=names, alerts_only=alerts_only)
    row = archive.object(object_id)
    place = {"object_id": object_id, "survey": row["survey"], "ra": row["ra"], "dec": row["dec"]}
    found = history_of_rows(rows, extras, archive.normalised, epochs=epochs, **place)
    if found is None:
        raise ArchiveError(f"{archive.path}: object {object_id} has no alert with a usable stamp")
    return found


def history_of_rows(
    rows: NDArray[np.void], extras: Extras | None, normalised: bool, *, epochs: int | None = None,
    object_id: str = "", survey: str = "", ra: float = np.nan, dec: float = np.nan,
) -> History | None:  # fmt: skip
    """The same of an object's rows in time order (`Archive.stamps`); None if none of them can be used.

    Raises:
        ArchiveError: a band that there is not.
    """
    if not len(rows):
        return None
    images = {
        kind: model_stamps(rows, name, normalised) for kind, name in KINDS.items() if name in (rows.dtype.names or ())
    }
    usable = np.flatnonzero(images["science"].any(axis=(1, 2)))[:epochs]
    if not len(usable):
        return None
    rows = rows[usable]
    return History(
        mjd=rows["mjd"].copy(), band=band_codes(rows["band"]),
        images={kind: stamps[usable] for kind, stamps in images.items()},
        flux=rows["flux"].copy(), flux_error=rows["flux_error"].copy(), source_id=rows["source_id"].astype(np.uint64),
        photometry=extras.until(usable[-1]) if extras else None, context=extras.context[usable[-1]] if extras else {},
        contexts=[extras.context[n] for n in usable] if extras else (),
        object_id=object_id, survey=survey, ra=np.full(len(rows), ra), dec=np.full(len(rows), dec),
    )  # fmt: skip


def band_codes(bands: NDArray[np.str_]) -> NDArray[np.uint8]:
    """The numbers of bands that are given by their letters.

    Raises:
        ArchiveError: a band that there is not.
    """
    if strange := sorted(set(bands.tolist()) - set(BANDS)):
        raise ArchiveError(f"a stamp is of the band {printable(strange[0])!r}: known are {', '.join(BANDS)}")
    return np.array([BANDS.index(band) for band in bands], np.uint8)


def model_stamps(rows: NDArray[np.void], name: str, normalised: bool = False) -> NDArray[np.float16]:
    """The model-ready stamps of some rows of an archive.

    Args:
        rows: [n] of `Archive.stamps`.
        name: of the images, of `archives.format.KINDS`.
        normalised: they are model-ready already (`Archive.normalised`).

    Returns:
        float16 [n, 32, 32]; zeros where there is no image.
    """
    if normalised:
        return np.clip(np.nan_to_num(rows[name] / STAMP_UNIT_NJY), -_LARGEST, _LARGEST).astype(np.float16)
    made = np.zeros((len(rows), STAMP_SIZE, STAMP_SIZE), np.float16)
    for rotation in np.unique(rows["rotation"]):  # a season's images mostly have one, and are made together
        alike = np.flatnonzero(rows["rotation"] == rotation)
        images = rows[name][alike]
        stamps = normalise_all(images, 1.0, middle(images.shape[1:]), turned(float(rotation)))
        for n, stamp in zip(alike, stamps, strict=True):
            if stamp is not None:  # off the edge of the chip: a stream sets it aside, too
                made[n] = stamp[0]
    return made
