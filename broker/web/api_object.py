"""The JSON API for one object: its data, its stamps, and classifications by today's models."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response

from skyheed.broker.observation import BANDS
from skyheed.broker.web import images, lists, openapi
from skyheed.broker.web.components import Here
from skyheed.broker.web.object_ids import LONGEST, object_of
from skyheed.broker.web.parameters import Bands, Class, Kind, Looking, Model
from skyheed.broker.web.problems import Problem
from skyheed.broker.web.recompute import Task
from skyheed.broker.web.responses import as_json, respond
from skyheed.broker.web.rows import PREFIX
from skyheed.classifier.safe_names import file_name

router = APIRouter(prefix=f"{PREFIX}/objects", responses=openapi.PROBLEMS)
MOST_STRIP = 24


def _object(key: Annotated[str, Path(max_length=2 * LONGEST, description="`path` of a row")]) -> str:
    try:
        return object_of(key)
    except ValueError as error:
        raise Problem(422, str(error)) from error


Name = Annotated[str, Depends(_object)]
Source = Annotated[str, Path(max_length=20, pattern=r"^\d{1,20}$")]


@router.get("/{key}", response_model=openapi.Object, summary="An object")
def describe(request: Request, web: Here, name: Name) -> Response:
    """Epochs, photometry, context, and every classification as it was published."""
    return as_json(request, web.objects.describe(name))


@router.get("/{key}/atlas/{kind}", response_class=Response, summary="All stamps of a kind, for the page",
            responses=openapi.FILES)  # fmt: skip
def atlas(
    request: Request, web: Here, name: Name, kind: Annotated[Literal["science", "difference", "template"], Path()]
) -> Response:
    """Four bytes with the length of a JSON header (little-endian), the header, and float16 pixels [m, 32, 32]."""
    history, revision = web.objects.history(name)
    return respond(request, images.atlas(history, kind, revision), "application/octet-stream")


@router.get("/{key}/stamps.npz", response_class=Response, summary="A NumPy archive", responses=openapi.FILES)
def npz(request: Request, web: Here, name: Name) -> Response:
    """Epochs, photometry and stamps of every kind."""
    history, _ = web.objects.history(name)
    return respond(request, images.npz(history), "application/x-npz", name=f"{file_name(name)}.npz")


@router.get("/{key}/stamps.fits", response_class=Response, summary="FITS cubes", responses=openapi.FILES)
def cube(request: Request, web: Here, name: Name) -> Response:
    """A cube [epoch, y, x] for each kind of image, and tables of the epochs."""
    history, _ = web.objects.history(name)
    return respond(request, images.fits_cube(history), "application/fits", name=f"{file_name(name)}.fits")


@router.get("/{key}/stamps.gif", response_class=Response, summary="The stamps as an animation", responses=openapi.FILES)
def film(
    request: Request, web: Here, name: Name, look: Looking, kind: Kind = "science", bands: Bands = "",
    ms: Annotated[int, Query(ge=20, le=5000, description="milliseconds per frame")] = 200,
) -> Response:  # fmt: skip
    """One frame per epoch, all with the same cuts."""
    history, _ = web.objects.history(name)
    content = images.film(images.chosen(history, kind, bands, len(history)), look, ms)
    return respond(request, content, "image/gif")


@router.get(
    "/{key}/strip.png", response_class=Response, summary="The last stamps side by side", responses=openapi.FILES
)
def strip(
    request: Request, web: Here, name: Name, look: Looking, kind: Kind = "science", bands: Bands = "",
    last: Annotated[int, Query(ge=1, le=MOST_STRIP)] = 6,
) -> Response:  # fmt: skip
    """Stamps side by side, each with its own cuts."""
    history, _ = web.objects.history(name)
    return respond(request, images.strip(images.chosen(history, kind, bands, last), look), "image/png")


@router.get("/{key}/light-curve.csv", response_class=Response, summary="Epochs and photometry", responses=openapi.FILES)
def light_curve(request: Request, web: Here, name: Name) -> Response:
    """One line per epoch or photometry point."""
    found = web.objects.describe(name)
    if found["epochs"] is None:
        waits = found["waits_for_redis"]
        raise Problem(503 if waits else 404, found["notice"], {"Retry-After": "5"} if waits else None)
    return respond(request, lists.light_curve(found), "text/csv; charset=utf-8", name=f"{file_name(name)}.csv")


@router.get("/{key}/stamps/{source_id}.{form}", response_class=Response, summary="One stamp", responses=openapi.FILES)
def stamp(
    request: Request, web: Here, name: Name, look: Looking, source_id: Source,
    form: Annotated[Literal["png", "fits"], Path()], kind: Kind = "science",
) -> Response:  # fmt: skip
    """A picture, or a FITS image with coordinates."""
    history, _ = web.objects.history(name)
    epoch = images.epoch_of(history, source_id)
    epochs, pixels = images.of_kind(history, kind)
    if epoch not in epochs:
        raise Problem(404, f"this epoch was sent without a {kind} stamp")
    pixels = pixels[list(epochs).index(epoch)]
    if form == "png":
        return respond(request, images.picture(pixels, look), "image/png")
    content = images.fits_one(history, kind, epoch, pixels)
    return respond(request, content, "application/fits", name=f"{file_name(name)}-{source_id}.fits")


# --- recomputed now


def _ask(web: Here, name: str, task: str, model: str, given: dict[str, Any]) -> dict[str, Any]:
    history, revision = web.objects.history(name)
    return {"revision": revision, **web.pool.run(Task(task, model, history, given))}


@router.get("/{key}/prefixes", response_model=openapi.Prefixes, summary="After every epoch, recomputed now")
def prefixes(request: Request, web: Here, name: Name, model: Model = "") -> Response:
    """Classifications by today's model after the first epoch, the first two, and so on."""
    return as_json(request, _ask(web, name, "prefixes", model, {}))


@router.post("/{key}/what-if", response_model=openapi.WhatIf, summary="With parts switched off, recomputed now")
def what_if(request: Request, web: Here, name: Name, asked: openapi.WhatIfBody) -> Response:
    """Classification by today's model without some epochs, nights, bands or kinds of input."""
    off = asked.off
    codes = [BANDS.index(band) for band in off.bands]
    given = {"sources": off.sources, "nights": off.nights, "bands": codes, "kinds": off.kinds}
    return as_json(request, _ask(web, name, "what_if", asked.model, given))


@router.get("/{key}/influence", response_model=openapi.Influence, summary="Of every epoch, recomputed now")
def influence(
    request: Request, web: Here, name: Name, model: Model = "",
    class_: Class = "",
) -> Response:  # fmt: skip
    """Log-odds of a class with all epochs minus those without a given epoch; for the top class by default."""
    return as_json(request, _ask(web, name, "influence", model, {"class": class_}))


@router.get("/{key}/saliency", response_model=openapi.Saliency, summary="Of one epoch's pixels, recomputed now")
def saliency(
    request: Request, web: Here, name: Name, source_id: Annotated[str, Query(pattern=r"^\d{1,20}$")],
    model: Model = "", class_: Class = "",
) -> Response:  # fmt: skip
    """How much each patch of the stamp supports a class."""
    history, revision = web.objects.history(name)
    given = {"class": class_, "epoch": images.epoch_of(history, source_id)}
    return as_json(request, {"revision": revision, **web.pool.run(Task("saliency", model, history, given))})
