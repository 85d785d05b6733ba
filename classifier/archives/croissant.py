"""Croissant metadata of an archive, made from its data card (http://mlcommons.org/croissant/1.0): what Hugging Face,
Kaggle and other catalogues of data sets read."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from skyheed.classifier.archives.card import OBJECT_FIELDS, STAMP_FIELDS
from skyheed.classifier.archives.format import OBJECT_SCHEMA, STAMP_COLUMNS

FILE = "croissant.json"
OBJECTS, STAMPS = "objects.parquet", "stamps-files"
PARQUET = "application/x-parquet"
CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract", "field": "cr:field",
    "fileObject": "cr:fileObject", "fileProperty": "cr:fileProperty", "fileSet": "cr:fileSet", "format": "cr:format",
    "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key",
    "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path", "rai": "http://mlcommons.org/croissant/RAI/",
    "equivalentProperty": "cr:equivalentProperty", "samplingRate": "cr:samplingRate",
    "recordSet": "cr:recordSet", "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated",
    "replace": "cr:replace", "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source",
    "subField": "cr:subField", "transform": "cr:transform",
}  # fmt: skip
_SPLIT_FIELDS = {"ra": "ra, dec", "dec": "ra, dec", "flux_error": "flux, flux_error", "flux": "flux, flux_error"}


def croissant(card: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The metadata of an archive in `folder`, as JSON-LD.

    Args:
        card: the data card. An archive has no licence by default: `license` (an SPDX id or a URL), `url` and `cite_as`
            are taken from the card if present.
    """
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": _name(card),
        "description": _description(card),
        "version": f"{card['format']}.0.0",
        "datePublished": card["date"],
        "creator": {"@type": "sc:Organization", "name": f"skyheed {card['code_version']}"},
        **{theirs: card[ours] for ours, theirs in _OPTIONAL.items() if card.get(ours)},
        "distribution": list(_files(folder)),
        "recordSet": [
            _records("objects", _object_types(), OBJECT_FIELDS, {"fileObject": {"@id": OBJECTS}}),
            _records("stamps", _stamp_types(), STAMP_FIELDS, {"fileSet": {"@id": STAMPS}}),
        ],
    }


_OPTIONAL = {"license": "license", "url": "url", "cite_as": "citeAs"}


def _name(card: Mapping[str, Any]) -> str:
    return "-".join(["skyheed", *card["surveys"], "stamp-sequences"])


def _description(card: Mapping[str, Any]) -> str:
    made = str(card.get("made", "")).strip()
    first = f"{card['objects']} objects with {card['stamps']} image stamps of {', '.join(card['surveys'])}."
    return " ".join(part for part in (first, made, f"Made by `{card.get('command', 'unknown')}`.") if part)


def _files(folder: Path) -> Iterator[dict[str, Any]]:
    objects = folder / OBJECTS
    with objects.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    yield {
        "@type": "cr:FileObject", "@id": OBJECTS, "name": OBJECTS, "encodingFormat": PARQUET,
        "description": "One row for each object.", "contentUrl": OBJECTS, "sha256": digest,
        "contentSize": f"{objects.stat().st_size} B",
    }  # fmt: skip
    yield {
        "@type": "cr:FileSet", "@id": STAMPS, "name": STAMPS, "encodingFormat": PARQUET,
        "description": "One row for each stamp, one row group for each object.", "includes": "stamps/part-*.parquet",
    }  # fmt: skip


def _records(
    name: str, types: Mapping[str, str], meanings: Mapping[str, str], source: Mapping[str, Any]
) -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{name}/{column}",
            "name": column,
            "dataType": of,
            "description": _meaning(column, meanings),
            "source": {**source, "extract": {"column": column}},
        }
        for column, of in types.items()
    ]
    if name == "stamps":
        fields[0]["references"] = {"field": {"@id": "objects/object_id"}}
    key = {"@id": f"{name}/{'object_id' if name == 'objects' else 'source_id'}"}
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "key": key, "field": fields}


def _meaning(column: str, meanings: Mapping[str, str]) -> str:
    return meanings.get(column) or meanings.get(_SPLIT_FIELDS.get(column, ""), "") or _OTHER.get(column, column)


_OTHER = {
    "survey": "whose alerts", "stamps": "how many", "part": "which stamps/part-*.parquet",
    "row_group": "which row group of it", "object_id": "the survey's name for the object",
    "stamp_unit": "nJy; the unit of the pixels", "stamp": "pixels: binary float16, rows south to north, in stamp_unit",
}  # fmt: skip


def _object_types() -> dict[str, str]:
    return {f.name: _type(f.type) for f in OBJECT_SCHEMA}


def _stamp_types() -> dict[str, str]:
    """Columns that every archive has; the optional ones differ from archive to archive."""
    texts: Iterable[str] = ("band",)
    whole = {"source_id": "sc:Integer", "detected": "sc:Boolean", "alert": "sc:Boolean"}
    own = {name: "sc:Text" if name in texts else whole.get(name, "sc:Float") for name in STAMP_COLUMNS}
    return {"object_id": "sc:Text", **own, "stamp_unit": "sc:Float"}


def _type(of: pa.DataType) -> str:
    if pa.types.is_string(of):
        return "sc:Text"
    if pa.types.is_boolean(of):
        return "sc:Boolean"
    return "sc:Integer" if pa.types.is_integer(of) else "sc:Float"
