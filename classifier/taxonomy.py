"""The classes that the models tell apart, and the nearest classes of the ELAsTiCC taxonomy.

Source: LSSTDESC/elasticc, taxonomy/taxonomy.ipynb (class ids); Bairouk et al. 2023, A&A 673, A141 (the four classes).
"""

from collections.abc import Sequence

NAME = "elasticc"
VERSION = "elasticc-0.9.1/skyheed-1"
CLASSES = ("AGN", "SNIa", "Variable", "SNOther")
# SNOther is ELAsTiCC's "SN-like / Other": Ib/c, II, SLSN together have no class of their own there. Variable is the
# taxonomy's root of everything that varies; our class holds periodic stars, flares and long-period variables.
CLASS_IDS = {"AGN": 2332, "SNIa": 2222, "Variable": 2000, "SNOther": 2221, "SN": 2220}
NOT_CLASSIFIED = 300
# The three-class problem of the slides: all supernovae are one class.
THREE_CLASSES = ("AGN", "SN", "Variable")


def merge_supernovae(name: str) -> str:
    """A class of the four-class problem in the three-class one."""
    return "SN" if name in ("SNIa", "SNOther") else name


def among(name: str, classes: Sequence[str]) -> str:
    """A class as those who tell `classes` apart call it: kinds of supernovae are one, unless they know them."""
    return name if name in classes else merge_supernovae(name)
