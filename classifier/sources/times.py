"""Times in tables that people write: MJDs, or what they wrote instead."""

import math

from skyheed.classifier.sources.tables import Column, Sheet, is_sentinel

MJD_RANGE = 15020.0, 88069.0  # the years 1900 to 2100
MJD_TEXT = "an MJD of 1900 to 2100"


def mjd(sheet: Sheet, row: int, column: Column, value: float, advice: str) -> float:
    """`value`, read from this cell, as an MJD; NaN where it is not known (also -9, 0, 99999 and the like).

    Args:
        advice: what to do with a Julian date.

    Raises:
        ArchiveError: it is not an MJD.
    """
    if math.isnan(value) or MJD_RANGE[0] < value < MJD_RANGE[1]:
        return value
    if is_sentinel(value):
        return math.nan
    hint = f": it looks like a Julian date, {advice}" if 2.4e6 < value < 2.5e6 else ""
    sheet.fail(row, column, f"{value:.10g} is not {MJD_TEXT}{hint}")
