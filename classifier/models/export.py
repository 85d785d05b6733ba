"""A checkpoint as a Hugging Face folder: `huggingface_hub` can upload it unchanged and `load_model` reads it.

README.md             the model card, with YAML front matter made from model.json
config.json           what the Hub displays for a model
model.json, weights.safetensors   the unchanged files of the checkpoint
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from skyheed.classifier import output_paths
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models.checkpoint import MODEL, WEIGHTS, Info, read_info, resolve
from skyheed.classifier.safe_names import printable, table_cell

README, CONFIG = "README.md", "config.json"


def to_hugging_face(name: str, folder: Path) -> Path:
    """Write the folder for a checkpoint.

    Args:
        name: checkpoint directory, or the name of shipped weights.
        folder: created if it does not exist; existing files of the same names are replaced.

    Raises:
        ModelError: there is no such model, or the folder cannot be written.
    """
    info, source = read_info(name), resolve(name)
    output_paths.check_folder(folder, ModelError)
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() == source.resolve():
        raise ModelError(f"{folder} is the checkpoint itself: choose another folder")
    for file in (MODEL, WEIGHTS):
        shutil.copyfile(source / file, folder / file)
    (folder / CONFIG).write_text(json.dumps(_config(info), indent=1) + "\n")
    (folder / README).write_text(card(info))
    return folder


def card(info: Info) -> str:
    """The model card: front matter for the Hub, then what users need to know."""
    front = yaml.safe_dump(_front_matter(info), sort_keys=False)  # ASCII: the rest is escaped
    return f"---\n{front}---\n\n" + "\n".join(_lines(info)) + "\n"


def _config(info: Info) -> dict[str, Any]:
    return {
        "model_type": "skyheed", "architectures": [info.family], "num_labels": len(info.classes),
        "id2label": {str(n): label for n, label in enumerate(info.classes)}, "skyheed": dict(info.config),
    }  # fmt: skip


def _front_matter(info: Info) -> dict[str, Any]:
    tags = ["astronomy", "time-domain", "alert-stream", "image-time-series", info.family, *info.surveys]
    found: dict[str, Any] = {
        "license": "bsd-3-clause", "library_name": "skyheed", "tags": tags, "language": "en",
        "model_name": f"{info.name} {info.version}",
    }  # fmt: skip
    if results := _results(info):
        found["model-index"] = [{"name": info.name, "results": results}]
    return found


def _results(info: Info) -> list[dict[str, Any]]:
    end = info.metrics.get("at_the_end", {})
    known = [{"type": name, "value": end[name]} for name in ("accuracy", "macro_f1", "ece") if name in end]
    if not known:
        return []
    data = printable(str(info.metrics.get("data", "unknown")))
    task = {"type": "other", "name": "early classification of alert histories"}
    return [{"task": task, "dataset": {"type": "other", "name": data}, "metrics": known}]


def _lines(info: Info) -> Iterator[str]:
    yield printable(f"# {info.name} {info.version}") + "\n"
    into = f"Classifies histories of {', '.join(info.surveys)} alerts (bands {info.bands}) into "
    into += f"{', '.join(info.classes)}; family `{info.family}` of skyheed, weights {info.digest[:12]}."
    yield printable(into) + "\n"
    yield '```python\nfrom skyheed import load_model\n\nmodel = load_model("path/to/this/folder")\n```\n'
    yield "## Learned from\n"
    yield from _training(info.training)
    yield "\n## Measured\n"
    yield f"On {printable(str(info.metrics.get('data', 'nothing')))}.\n"
    yield from _measured(info)
    versions = printable(f"preprocessing {info.preprocessing}, taxonomy {info.taxonomy}")
    yield f"\nProbabilities are calibrated; {versions}."


def _training(training: Mapping[str, Any]) -> Iterator[str]:
    archive = training.get("archive", {})
    made = str(archive.get("command", "")) if isinstance(archive, Mapping) else ""
    if "simulate" in made:
        yield "**Simulated data**, not observations."
    for title, value in (
        ("Data", made),
        ("Training", training.get("command", "")),
        ("Device", training.get("device", "")),
    ):
        if value:
            yield f"- {title}: `{printable(str(value))}`"
    for note in training.get("learned_from", ()):
        yield f"- {printable(str(note))}"


def _measured(info: Info) -> Iterator[str]:
    rows: Mapping[str, Mapping[str, Any]] = info.metrics.get("per_class", {})
    if rows:
        yield "| class | objects | precision | recall |\n|---|---|---|---|"
    for name, row in rows.items():
        numbers = [row.get(key) for key in ("objects", "precision", "recall")]
        yield f"| {table_cell(name)} | " + " | ".join("–" if n is None else f"{n:.4g}" for n in numbers) + " |"
