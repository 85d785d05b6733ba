"""Packets assembled from a broker's table of detections and its stamps, for brokers that do not keep packets.

They hold those fields of our reader schema that the broker provides, as an Avro container: they follow the same path
as packets of the survey, but lack what brokers do not repeat (such as earlier photometry).
"""

import io
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

import fastavro

KINDS = ("Science", "Template", "Difference")


def lsst_packet(source: Mapping[str, Any], stamps: Mapping[str, bytes]) -> bytes:
    """A packet for one LSST detection.

    Args:
        source: columns of its diaSource, by their names in the survey's schema; unread ones are dropped.
        stamps: FITS files by kind, of `KINDS`.
    """
    own = _known(source, "lsst", "diaSource")
    record = {"diaSource": own, "diaObject": {"diaObjectId": own.get("diaObjectId")}}
    return _packet("lsst", record | {f"cutout{kind}": data for kind, data in stamps.items() if data})


def ztf_packet(object_id: str, candidate: Mapping[str, Any], stamps: Mapping[str, bytes]) -> bytes:
    """A packet for one ZTF detection; arguments as for `lsst_packet`, with the fields of `candidate`."""
    own = _known(candidate, "ztf", "candidate")
    record = {"objectId": object_id, "candid": own.get("candid"), "candidate": own}
    return _packet("ztf", record | {f"cutout{kind}": {"stampData": data} for kind, data in stamps.items() if data})


def _packet(survey: str, record: Mapping[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(_schema(survey), named_schemas={}), [record])
    return out.getvalue()


@lru_cache(4)
def _schema(survey: str) -> dict[str, Any]:
    """Our reader schema, used as the writer's."""
    found: dict[str, Any] = json.loads(files("skyheed.schemas").joinpath(f"{survey}/reader.avsc").read_text())
    return found


def _known(values: Mapping[str, Any], survey: str, name: str) -> dict[str, Any]:
    """The values for which the schema's record of this name has fields; integers given as text become numbers."""
    [record] = [field["type"][1] for field in _schema(survey)["fields"] if field["name"] == name]
    types = {field["name"]: field["type"] for field in record["fields"]}
    return {key: _as(types[key], value) for key, value in values.items() if key in types}


def _as(types: list[Any], value: Any) -> Any:
    """A JSON value converted to the schema's type; null if it does not fit."""
    if isinstance(value, str) and "double" in types and "string" not in types:
        try:
            return float(value)
        except ValueError:
            return None
    if isinstance(value, bool) and "boolean" not in types:
        return int(value) if "long" in types else None
    if isinstance(value, float) and "double" not in types:
        return int(value) if "long" in types and value.is_integer() else None
    if isinstance(value, int) and not isinstance(value, bool) and "double" in types and "long" not in types:
        return float(value)
    return value if isinstance(value, str | int | float) else None
