"""The classes that models distinguish, and their ids.

The standard ones are the four of Bairouk et al. 2023 (A&A 673, A141) with the nearest classes of the ELAsTiCC taxonomy
(LSSTDESC/elasticc, taxonomy/taxonomy.ipynb). A training configuration may define its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skyheed.classifier.errors import ModelError

VERSION = "elasticc-0.9.1/skyheed-2"
CLASSES = ("AGN", "SNIa", "Variable", "SNOther")
# SNOther is ELAsTiCC's "SN-like / Other": Ib/c, II, SLSN together have no class of their own there. Variable is its
# "Variable / Other": our class holds periodic stars, flares and long-period variables. (2000, which release 0.1 gave
# it, is the parent of all of them and of AGN: a reader of the hierarchy counted wrongly.)
CLASS_IDS: Mapping[str, int] = {"AGN": 2332, "SNIa": 2222, "Variable": 2100, "SNOther": 2221, "SN": 2220}
NOT_CLASSIFIED = 300
# The three-class problem: all supernovae are one class.
THREE_CLASSES = ("AGN", "SN", "Variable")


@dataclass(frozen=True)
class Taxonomy:
    """Classes, their ids, and which archive labels belong to them.

    Attributes:
        version: as published with every classification.
        ids: class -> number.
        members: class -> types or classes of an archive's objects (columns `type`, `class`); empty: the standard ones.
    """

    version: str = VERSION
    ids: Mapping[str, int] = field(default_factory=lambda: dict(CLASS_IDS))
    members: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def class_of(self, label: str, kind: str, classes: Sequence[str]) -> str:
        """The class among `classes` of an object with this label and type; "" for none."""
        for name in self.members:
            if {label, kind} & set(self.members[name]):
                return name if name in classes else ""
        if self.members:
            return label if label in self.members else ""
        return among(label, classes)


STANDARD = Taxonomy()


def from_mapping(given: Mapping[str, Any]) -> Taxonomy:
    """A taxonomy from a table of a training configuration; empty: the standard one.

    Args:
        given: `version`, and `classes`: name -> {id, of: [types or classes of the archive]}.

    Raises:
        ModelError: it does not have that form.
    """
    if not given:
        return STANDARD
    own, version = given.get("classes"), given.get("version")
    sound = isinstance(own, Mapping) and own and all(isinstance(c, Mapping) for c in own.values())
    if set(given) != {"version", "classes"} or not sound or not isinstance(version, str) or not version:
        raise ModelError('taxonomy: give version = "name-1", and classes with an id and a list `of` types for each')
    assert isinstance(own, Mapping)
    for name, said in own.items():
        if set(said) != {"id", "of"} or not isinstance(said["of"], list | tuple) or not _is_id(said["id"]):
            raise ModelError(f"taxonomy.classes.{name}: give id (a number above 0) and of (a list of types)")
    _distinct(own)
    ids = {str(name): int(said["id"]) for name, said in own.items()}
    return Taxonomy(version, ids, {str(name): tuple(map(str, said["of"])) for name, said in own.items()})


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0 and value != NOT_CLASSIFIED


def _distinct(own: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse an id or a type that two classes claim."""
    for what, claimed in (("id", [c["id"] for c in own.values()]), ("of", [t for c in own.values() for t in c["of"]])):
        twice = sorted({str(value) for value in claimed if claimed.count(value) > 1})
        if twice:
            raise ModelError(f"taxonomy.classes: two classes have {twice[0]} in their {what}: give it to one")


def merge_supernovae(name: str) -> str:
    """A class of the four-class problem in the three-class one."""
    return "SN" if name in ("SNIa", "SNOther") else name


def among(name: str, classes: Sequence[str]) -> str:
    """A class in terms of `classes`: kinds of supernovae are merged unless `classes` distinguishes them."""
    return name if name in classes else merge_supernovae(name)
