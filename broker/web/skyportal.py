"""`/alerts` and `/alerts/{id}` as SkyPortal's generic broker plug-in (its broker_apis/generic.py) reads them: the
contents of `data`. Other parameters belong to SkyPortal and are ignored."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from skyheed.broker.web import lists, openapi
from skyheed.broker.web.components import Here
from skyheed.broker.web.object_ids import LONGEST, object_of
from skyheed.broker.web.problems import Problem
from skyheed.broker.web.responses import as_json
from skyheed.broker.web.search import Cone, Filters, SearchError, Typed

router = APIRouter(responses=openapi.PROBLEMS, tags=["SkyPortal"])


@router.get("/alerts", response_model=dict[str, Any], summary="Alerts, for SkyPortal")
def alerts(
    request: Request, web: Here,
    object_id: Annotated[str, Query(alias="objectId", max_length=LONGEST)] = "",
    ra: Annotated[float | None, Query(ge=0, le=360, allow_inf_nan=False)] = None,
    dec: Annotated[float | None, Query(ge=-90, le=90, allow_inf_nan=False)] = None,
    radius: Annotated[float, Query(gt=0, le=3600, allow_inf_nan=False, description="arcseconds")] = 5.0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Response:  # fmt: skip
    """The newest objects, with a given id or around a position."""
    if (ra is None) != (dec is None):
        raise Problem(422, "ra and dec belong together: give both, in degrees")
    try:
        cone = Cone(ra, dec, radius) if ra is not None and dec is not None else None
    except SearchError as error:
        raise Problem(422, str(error)) from error
    typed = Typed("id", object_id) if object_id else Typed("all")
    found = lists.page(web, Filters(cone=cone), typed, "newest", limit, "")
    return as_json(request, {"data": [_alert(row) for row in found.rows]})


@router.get("/alerts/{alert_id:path}", response_model=dict[str, Any], summary="One alert, for SkyPortal")
def alert(request: Request, web: Here, alert_id: Annotated[str, Path(max_length=2 * LONGEST)]) -> Response:
    """An object with its epochs and its classifications."""
    try:
        found = web.objects.describe(object_of(alert_id))
    except ValueError as error:
        raise Problem(422, str(error)) from error
    rows = found.pop("rows")
    return as_json(
        request, {"data": {"id": found["object_id"], "objectId": found["object_id"], **found, "alerts": rows}}
    )


def _alert(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["object_id"], "objectId": row["object_id"], "candid": row["classification_id"],
        "classification": row["top_class"], "probability": row["top_probability"],
        "classifications": row["probabilities"], **row,
    }  # fmt: skip
