"""Models of requests and responses, for the OpenAPI document. Responses are built as plain values and not validated
again; a test compares them with these models."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Shape(BaseModel):
    model_config = ConfigDict(extra="allow")


class Problem(_Shape):
    """Problem details (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="one sentence that says what to do")


_PROBLEM = {"model": Problem, "content": {"application/problem+json": {}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {**_PROBLEM, "description": text}
    for code, text in {
        400: "Not understood", 401: "The token is missing", 404: "Not known", 422: "Cannot be",
        429: "Too many requests", 500: "An internal error", 501: "A package is missing here",
        502: "A server refuses us", 503: "A server, or torch, is unavailable", 504: "The computation took too long",
    }.items()
}  # fmt: skip
FILES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
}
LISTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/csv": {"schema": {"type": "string"}},
            "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events, without end",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


class Part(_Shape):
    ok: bool
    sentence: str


class IndexState(_Shape):
    objects: int
    classifications: int
    behind: int | None
    sentence: str


class State(_Shape):
    survey: str
    version: str
    now_ms: int
    kafka: Part
    redis: Part
    index: IndexState
    recompute: Part


class Model(_Shape):
    name: str = Field(description="among the survey's models")
    title: str | None
    version: str | None
    digest: str | None = Field(description="SHA-256 of the weights")
    classes: list[str]
    bands: str
    surveys: list[str]
    prior: dict[str, float] | None
    needs: dict[str, Any] | None
    recompute: bool = Field(description="whether this server can recompute with it")
    card: dict[str, Any] | None
    calibration: dict[str, Any] | None
    same_as_published: bool | None = Field(
        default=None, description="whether the server's model is the one that published"
    )


class Models(_Shape):
    models: list[Model]


class Row(_Shape):
    object_id: str
    path: str = Field(description="the object's id as a segment of a URL")
    model: str
    revision: int
    classification_id: str
    status: Literal["CLASSIFIED", "NOT_CLASSIFIED"]
    reason: str | None
    reason_text: str | None
    top_class: str | None
    top_probability: float | None
    probabilities: dict[str, float]
    change: float | None = Field(description="of the top class's probability since this model's last classification")
    previous_class: str | None
    n_stamps: int
    stamps_per_band: dict[str, int]
    days: float
    ra: float | None
    dec: float | None
    first_mjd: float
    last_mjd: float
    flags: list[str]
    kafka_ms: int
    classified_ms: int
    strip: str


class Understood(_Shape):
    as_: str = Field(alias="as")
    text: str
    ra: float | None
    dec: float | None
    radius: float | None
    sentence: str


class Objects(_Shape):
    rows: list[Row]
    next: str | None
    count: int
    count_capped: bool
    understood: Understood


class Classifications(_Shape):
    rows: list[Row]
    last_event_id: str


class Published(_Shape):
    classification_id: str
    revision: int
    n_stamps: int
    mjd: float
    days: float
    classified_ms: int
    status: str
    reason: str | None
    probabilities: dict[str, float]


class Epochs(_Shape):
    source_id: list[str]
    mjd: list[float]
    utc: list[str]
    night: list[int]
    band: list[str]
    flux: list[float | None] = Field(description="nJy, of the difference")
    flux_error: list[float | None]
    mag: list[float | None] = Field(description="AB")
    mag_error: list[float | None]
    ra: list[float | None]
    dec: list[float | None]
    flags: list[list[str]]
    kafka_ms: list[int]
    ingest_ms: list[int]


class Object(_Shape):
    survey: str
    object_id: str
    path: str
    kind: Literal["as published"]
    revision: int
    source: Literal["redis", "index"]
    notice: str
    waits_for_redis: bool = Field(default=False, description="Redis is unavailable: try again later for the rest")
    ra: float | None
    dec: float | None
    epochs: Epochs | None
    images: dict[str, list[int]] = Field(description="kind of image: the epochs that have one")
    images_missing: int = Field(description="epochs whose images are not kept any more")
    photometry: dict[str, list[Any]] | None
    context: list[dict[str, Any]]
    models: list[Model]
    published: dict[str, list[Published]]
    latest: dict[str, dict[str, Any] | None]
    turned: dict[str, dict[str, Any] | None]
    links: list[dict[str, str]]
    neighbours: list[dict[str, Any]]


class Result(_Shape):
    status: str
    reason: str | None
    reason_text: str | None
    probabilities: dict[str, float]
    top_class: str | None
    top_probability: float | None


class _Recomputed(_Shape):
    kind: Literal["recomputed"]
    revision: int
    model: dict[str, Any]
    seconds: float


class Prefix(Result):
    epochs: int
    source_id: str
    mjd: float
    days: float


class Prefixes(_Recomputed):
    notice: str = Field(description="what differs from then; empty if nothing does")
    prefixes: list[Prefix]
    turned: dict[str, Any] | None
    sure: dict[str, Any] | None


class WhatIf(_Recomputed):
    whole: Result
    reduced: Result
    epochs: int
    off: int
    change: dict[str, float] | None = Field(description="of the log-odds of each class")


class Influence(_Recomputed):
    class_: str = Field(alias="class")
    whole: Result
    influence: list[dict[str, Any]]


class Saliency(_Recomputed):
    class_: str = Field(alias="class")
    source_id: str
    method: str
    maps: dict[str, list[list[float]]]


class Off(BaseModel):
    """What to switch off."""

    model_config = ConfigDict(extra="forbid")

    sources: list[str] = Field(default_factory=list, max_length=1000)
    nights: list[int] = Field(default_factory=list, max_length=1000, description="whole MJD")
    bands: list[Literal["u", "g", "r", "i", "z", "y"]] = Field(default_factory=list, max_length=6)
    kinds: list[Literal["science", "difference", "template", "photometry", "context"]] = Field(
        default_factory=list, max_length=5, description="of input; every epoch has its science stamp, which stays"
    )


class WhatIfBody(BaseModel):
    """A what-if request."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(default="", max_length=200, description="a name; the server's first by default")
    off: Off = Field(default_factory=Off)


class Sky(_Shape):
    night: int | None
    model: str
    models: list[str]
    nights: list[dict[str, int]]
    points: list[dict[str, Any]]
    classes: list[str]
    capped: bool


class Books(_Shape):
    consumed: int
    balanced: bool
    sentence: str
    explained: list[dict[str, Any]]


class Status(_Shape):
    state: State
    notices: list[str]
    books: Books | None
    queues: dict[str, dict[str, Any]] | None
    due: list[dict[str, Any]]
    daemons: list[dict[str, Any]]
    lag: list[dict[str, Any]]
    latency_ms: dict[str, int | None]
    throughput: list[dict[str, Any]]
    shares: list[dict[str, Any]]
    drift: list[dict[str, Any]] | None = Field(description="null until the stamps have been examined")
    drift_reference: dict[str, Any] | None
    dead_letters: dict[str, Any]
    models: list[Model]


class Letter(_Shape):
    letter: dict[str, Any]
    value_url: str
    headers: list[list[str]]
    hex: str
    fields: dict[str, str]
