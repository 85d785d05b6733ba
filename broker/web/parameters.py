"""Query parameters of lists, the stream and pictures, with the same names everywhere."""

from typing import Annotated, Literal

from fastapi import Depends, Query

from skyheed.broker.web.images import Look
from skyheed.broker.web.index import LONGEST_LIST
from skyheed.broker.web.problems import Problem
from skyheed.broker.web.search import Filters, SearchError, Typed, cone_of, understand

LONGEST = 512  # characters of a text in a query
LONGEST_CURSOR = 6_144  # characters; in a list sorted by id it holds the last one
Cursor = Annotated[
    str, Query(max_length=LONGEST_CURSOR, description="`next` of the previous page; empty for the first one")
]
Sort = Annotated[
    str,
    Query(
        max_length=20, pattern="^-?(newest|probability|epochs|days|night|first|id)$",
        description="newest, probability, epochs, days, night, first or id; with a - in front for the reverse order",
    ),
]  # fmt: skip
Limit = Annotated[int, Query(ge=1, le=LONGEST_LIST, description="rows of a page, at most 500")]
Night = Annotated[int | None, Query(ge=0, le=100_000, description="whole MJD; the newest night by default")]
Model = Annotated[str, Query(max_length=LONGEST, description="a model's name; the first one by default")]
Class = Annotated[
    str, Query(alias="class", max_length=200, description="a class of the model; its top class by default")
]
Count = Annotated[int | None, Query(ge=0, le=10_000, description="number of epochs")]
Share = Annotated[float | None, Query(ge=0, le=1, allow_inf_nan=False, description="of the top class")]
Days = Annotated[
    float | None, Query(ge=0, le=100_000, allow_inf_nan=False, description="from the first epoch to the last")
]


def filters(
    class_: Annotated[str, Query(alias="class", max_length=LONGEST, description="top class")] = "",
    min_probability: Share = None,
    max_probability: Share = None,
    bands: Annotated[str, Query(max_length=6, description="letters; objects must have all of them")] = "",
    min_epochs: Count = None,
    max_epochs: Count = None,
    min_days: Days = None,
    max_days: Days = None,
    declined: Annotated[
        Literal["yes", "no", "all"], Query(description="only declined objects, none of them, or all")
    ] = "all",
    model: Annotated[str, Query(max_length=LONGEST, description="a model's name, or * for all")] = "",
    cone: Annotated[str, Query(max_length=100, description="ra,dec,radius: degrees, degrees, arcseconds")] = "",
    night: Annotated[int | None, Query(ge=0, le=100_000, description="whole MJD of the last epoch")] = None,
    since_ms: Annotated[int | None, Query(ge=0, le=10**14, description="classified since, Unix ms")] = None,
) -> Filters:
    """The filters in a query.

    Raises:
        Problem: a filter is invalid.
    """
    try:
        return Filters(
            class_, min_probability, max_probability, bands, min_epochs, max_epochs, min_days, max_days, declined,
            model, cone_of(cone) if cone else None, night, since_ms,
        )  # fmt: skip
    except SearchError as error:
        raise Problem(422, str(error)) from error


def typed(q: Annotated[str, Query(max_length=LONGEST, description="id, part of one, or position")] = "") -> Typed:
    """What was typed into the search box.

    Raises:
        Problem: it looks like a position but is not a valid one.
    """
    try:
        return understand(q)
    except SearchError as error:
        raise Problem(422, str(error)) from error


def look(
    stretch: Annotated[
        Literal["linear", "asinh", "log", "sqrt"], Query(description="curve between the cuts")
    ] = "linear",
    low: Annotated[float, Query(ge=0, le=100, allow_inf_nan=False, description="percentile shown as white")] = 1.0,
    high: Annotated[float, Query(ge=0, le=100, allow_inf_nan=False, description="percentile shown as black")] = 99.5,
    scale: Annotated[int, Query(ge=1, le=16, description="picture pixels per stamp pixel")] = 1,
) -> Look:
    """How to render a stamp as a picture."""
    return Look(stretch, low, high, scale)


Wanted = Annotated[Filters, Depends(filters)]
Search = Annotated[Typed, Depends(typed)]
Looking = Annotated[Look, Depends(look)]
Kind = Annotated[Literal["science", "difference", "template"], Query(description="of image")]
Bands = Annotated[str, Query(max_length=6, pattern="^[ugrizy]*$", description="letters; all bands by default")]
