"""Writes docs/reference/ from the code: settings, environment, schemas, reason codes, metrics, limits of the API."""

import ast
import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from skyheed.broker import config, metrics
from skyheed.broker.cli import CLASSIFIER_VERBS, skyheed
from skyheed.broker.errors import Reason
from skyheed.broker.settings import ModelSettings, Settings
from skyheed.classifier import context
from skyheed.classifier.models import checkpoint
from skyheed.classifier.prediction import Declined

THRESHOLDS = Path(__file__).parent / "thresholds"
SCHEMAS = {
    "classification/v1/classification.avsc": "What we publish",
    "sdss_alert/v1": "SDSS alerts that `replay` sends",
    "ztf/reader.avsc": "What is read of a ZTF packet",
    "lsst/reader.avsc": "What is read of a Rubin/LSST packet",
    "elasticc/v0_9_1/brokerClassification.avsc": 'ELAsTiCC\'s message (`work.format = "elasticc"`)',
}


def write(folder: Path) -> None:
    """Write every page, and the list of them."""
    folder.mkdir(exist_ok=True)
    pages = {
        "cli": cli(), "settings": settings(), "schemas": schemas(), "reasons": reasons(), "metrics": exported(),
        "context": contexts(), "python": PYTHON, "openapi": openapi(), "thresholds": thresholds(),
    }  # fmt: skip
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:  # an unchanged page is not built again
            path.write_text(text)
    listing = "\n".join(pages)
    (folder / "index.md").write_text(f"# Reference\n\n```{{toctree}}\n:maxdepth: 1\n\n{listing}\n```\n")


def cli() -> str:
    """Every verb, from the command line itself; sphinx-click does not find those that are imported on use."""
    context = click.Context(skyheed)
    for verb in CLASSIFIER_VERBS:
        skyheed.get_command(context, verb)  # which completes `archive`
    places = {"skyheed": "skyheed.broker.cli:skyheed"}
    places |= {f"skyheed {verb}": f"{module}:{name}" for verb, (module, name, _) in sorted(CLASSIFIER_VERBS.items())}
    directives = [f".. click:: {place}\n   :prog: {prog}\n   :nested: full\n" for prog, place in places.items()]
    return "# Command line\n\n```{eval-rst}\n" + "\n".join(directives) + "```\n"


PYTHON = """# Python

```{eval-rst}
.. automodule:: skyheed
   :members:
   :imported-members:
```
"""


def settings() -> str:
    """Every key of the configuration file with its default and the comment that stands alongside it in the code."""
    parts = ["# Settings\n", "One TOML file; see {doc}`../operating` for how they are given.\n"]
    for field in dataclasses.fields(Settings):
        value = getattr(Settings(), field.name)
        if dataclasses.is_dataclass(value):
            parts.append(f"## [{field.name}]\n\n{_table(type(value))}")
    parts.append("## [[work.models]]\n\n" + _table(ModelSettings))
    rows = "\n".join(f"| `{name}` | `{'.'.join(place)}` |" for name, place in config.ENVIRONMENT.items())
    parts.append(f"## Environment\n\n| variable | setting |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def _table(kind: type) -> str:
    comments = dict(_comments(kind))
    rows = []
    for field in dataclasses.fields(kind):
        if field.name != "models":
            default = "" if "password" in field.name else f"`{field.default!r}`"
            rows.append(f"| `{field.name}` | {default} | {comments.get(field.name, '')} |")
    return "| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _comments(kind: type) -> Iterator[tuple[str, str]]:
    """The comment at the end of each field's line."""
    source = inspect.getsource(kind)
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            _, _, comment = lines[(node.end_lineno or node.lineno) - 1].partition("  # ")
            yield node.target.id, comment.replace("|", "\\|")


def schemas() -> str:
    """The fields of every schema with their documentation."""
    root = files("skyheed.schemas")
    parts = ["# Avro schemas\n"]
    for place, title in SCHEMAS.items():
        found = root.joinpath(place)
        paths = [found] if found.is_file() else [p for p in found.iterdir() if p.name.endswith(".avsc")]
        for path in paths:
            schema = json.loads(path.read_text())
            parts.append(f"## {title}\n\n`schemas/{place}`: {schema.get('doc', '')}\n")
            parts.append("| field | type | meaning |\n|---|---|---|\n" + "\n".join(_fields(schema)) + "\n")
    return "\n".join(parts)


def _fields(schema: dict[str, Any], before: str = "") -> Iterator[str]:
    for field in schema["fields"]:
        kind, inner = _kind(field["type"])
        doc = field.get("doc", "").replace("|", "\\|")
        yield f"| `{before}{field['name']}` | {kind} | {doc} |"
        if inner is not None:
            yield from _fields(inner, f"{before}{field['name']}.")


def _kind(kind: Any) -> tuple[str, dict[str, Any] | None]:
    """A type in words, and the record in it."""
    if isinstance(kind, list):
        found = [_kind(one) for one in kind]
        return " or ".join(name for name, _ in found), next((inner for _, inner in found if inner), None)
    if isinstance(kind, str):
        return kind, None
    if kind["type"] == "record":
        return "record", kind
    if kind["type"] in ("array", "map"):
        name, inner = _kind(kind["items" if kind["type"] == "array" else "values"])
        return f"{kind['type']} of {name}", inner
    return str(kind.get("logicalType", kind["type"])), None


def reasons() -> str:
    """Reason codes of packets and of declined objects."""
    packets = "\n".join(f"- `{reason}`" for reason in Reason)
    declined = "\n".join(f"- `{reason}`" for reason in Declined)
    return (
        "# Reason codes\n\nWhat each means and what helps stands in {doc}`../operating`.\n\n"
        f"## Packets: set aside or skipped\n\n{packets}\n\n## Objects: not classified\n\n{declined}\n"
    )


def exported() -> str:
    """Every Prometheus metric with its help text."""
    daemons = {"ingest": metrics.IngestMetrics("x"), "work": metrics.WorkMetrics("x")}
    parts = ["# Metrics\n"]
    for name, measured in daemons.items():
        rows = [
            f"| `{family.name}` | {family.type} | {family.documentation} |" for family in measured.registry.collect()
        ]
        parts.append(f"## {name}\n\n| metric | type | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def contexts() -> str:
    """The numbers of a packet's context, and where each survey says them."""
    rows = [
        f"| `{q.name}` | {q.unit} | {q.meaning} | " + "; ".join(f"{s}: {f}" for s, f in q.fields.items()) + " |"
        for q in context.QUANTITIES
    ]
    head = "# Context of an object\n\n| name | unit | meaning | from |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def openapi() -> str:
    """The JSON API of the page, from the application itself."""
    from skyheed.broker.web import app
    from skyheed.broker.web.components import Web

    nothing: Any = None  # no server is asked for the document
    document = app.make(Web(Settings(), *[nothing] * 5)).openapi()
    parts = [
        "# JSON API\n", document["info"]["description"], "",
        "The document itself is at `/api/v1/openapi.json` of `skyheed serve`.\n",
    ]  # fmt: skip
    for path, methods in document["paths"].items():
        for method, said in methods.items():
            parts.append(f"## {method.upper()} {path}\n\n{said.get('description') or said.get('summary', '')}\n")
            if rows := [_parameter(one) for one in said.get("parameters", ())]:
                parts.append("| parameter | in | type | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
            answers = [f"| {status} | {one['description']} |" for status, one in said["responses"].items()]
            parts.append("| status | answer |\n|---|---|\n" + "\n".join(answers) + "\n")
    return "\n".join(parts)


def _parameter(one: dict[str, Any]) -> str:
    kinds = [part.get("type", "") for part in one["schema"].get("anyOf", [one["schema"]])]
    kind = " or ".join(kind for kind in kinds if kind and kind != "null")
    meaning = one.get("description", "").replace("|", "\\|").replace("\n", " ")
    return f"| `{one['name']}` | {one['in']} | {kind} | {meaning} |"


NO_THRESHOLDS = "Those by threshold have not been measured yet; `benchmarks/thresholds.py` makes them."
BY_THRESHOLD = (
    "Those by threshold are made by `benchmarks/thresholds.py`: an object is chosen where the probability of the class "
    "is at least the threshold; one that the model declines is never chosen, but counts in the completeness."
)
CHOSEN_AFTER = ("1", "3", "6", "12")  # epochs, besides the last


def thresholds() -> str:
    """Purity and completeness of every shipped model: from its card, and by threshold from docs/thresholds/*.json."""
    files = [json.loads(path.read_text()) for path in sorted(THRESHOLDS.glob("*.json"))]
    measured = {one["model"]: one for one in files}
    names = [name for name in checkpoint.shipped_names() if "/" in name]
    cards = {name: checkpoint.read_info(name) for name in names}
    parts = [
        "# Purity and completeness\n\n"
        "Of every shipped model, simulated objects first, then real ones. Purity depends on how often the classes "
        "occur, so that no figure here holds for a stream with other class shares. The tables by epochs are what each "
        "model's card holds: an object is chosen for its most probable class. "
        f"{BY_THRESHOLD if measured else NO_THRESHOLDS}\n\n"
        "## Simulated objects\n"
    ]
    for name, info in cards.items():
        said = f"{info.name} {info.version}, weights `{info.digest[:12]}`; {info.metrics['data']}"
        parts.append(f"### {name}\n\n{said}. Purity / completeness:\n\n{_of_card(info.metrics)}")
        one = measured.get(name)
        if one and one["weights"] == info.digest:
            parts.append(_by_threshold(one))
    parts.append("## Real objects\n")
    for name, info in cards.items():
        if "real" in info.metrics:
            parts.append(f"### {name}\n\n{_real(info.metrics['real'])}")
    parts.append("More on real objects, and what they are: {doc}`../real-sky`.\n")
    return "\n".join(parts)


def _of_card(metrics: Mapping[str, Any]) -> str:
    rows = {f"{n} epochs": metrics["after_stamps"][n] for n in CHOSEN_AFTER if n in metrics["after_stamps"]}
    rows["the last"] = metrics
    lines = ["| after | " + " | ".join(metrics["classes"]) + " |", "|---" * (len(metrics["classes"]) + 1) + "|"]
    for after, own in rows.items():
        scores = [own["per_class"][name] for name in metrics["classes"]]
        cells = [f"{_share(one['precision'])} / {_share(one['recall'])} (of {one['objects']})" for one in scores]
        lines.append(f"| {after} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _by_threshold(one: Mapping[str, Any]) -> str:
    parts = [f"By threshold, {one['data']} (`{one['command']}`, {one['date']}): purity / completeness (chosen)\n"]
    for epochs, classes in one["after"].items():
        after = "the last epoch" if epochs == "last" else f"{epochs} epochs"
        parts.append(f"After {after}:\n\n{_curves(classes)}")
    return "\n".join(parts)


def _curves(classes: Mapping[str, list[dict[str, Any]]]) -> str:
    head = [f"{name} (of {rows[0]['of']})" for name, rows in classes.items()]
    lines = ["| threshold | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for rows in zip(*classes.values(), strict=True):
        cells = [f"{_share(row['purity'])} / {_share(row['completeness'])} ({row['chosen']})" for row in rows]
        lines.append(f"| {rows[0]['threshold']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _real(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Real packets: completeness alone, because their class shares depend on who labelled them."""
    lines = [
        "Real labelled packets, by cross-validation; completeness of AGN, SN and variables, and their mean with its "
        "95 % interval. There are too few for purity or for thresholds.\n",
        "| what the model was given | seen | objects | AGN | SN | variable | mean |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for seen, blocks in scores.items():
        for block, own in blocks.items():
            if isinstance(own, Mapping) and len(own.get("recall", ())) == 3:
                low, high = own["balanced_accuracy_95"]
                cells = [block, seen.replace("_", " "), own["objects"], *map(_share, own["recall"])]
                mean = f"{_share(own['balanced_accuracy'])} ({_share(low)} to {_share(high)})"
                lines.append("| " + " | ".join(map(str, [*cells, mean])) + " |")
    return "\n".join(lines) + "\n"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
