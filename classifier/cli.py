"""`skyheed model`, `skyheed train` and `skyheed evaluate`."""

import json
import sys
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


@click.group()
def model() -> None:
    """Describe the model and its checkpoints."""


@model.command()
@click.option("--variant", type=click.Choice(["paper", "stream"]), default="paper", show_default=True)
@click.option("--attention", type=click.Choice(["linear", "mlp"]), default="linear", show_default=True)
@click.option("--classes", type=int, default=4, show_default=True, help="How many classes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def describe(variant: Any, attention: Any, classes: int, as_json: bool) -> None:
    """Print the layer table, the parameters and the operations."""
    from .convention import Config, description

    found = description(Config(variant=variant, attention=attention, classes=classes))
    click.echo(json.dumps(found, indent=1) if as_json else _table(found))


def _table(found: dict[str, Any]) -> str:
    lines = [f"{row['layer']:32}{row['parameters']:>10,}" for row in found["layers"]]
    lines.append(f"{'parameters':32}{found['parameters']:>10,}")
    lines.append(f"{'  that never matter':32}{found['dead_parameters']:>10,}")
    for name, counts in found["multiply_adds"].items():
        lines.append(f"{'multiply-adds, ' + name:32}" + "  ".join(f"{k} {v / 1e6:,.1f}M" for k, v in counts.items()))
    return "\n".join(lines)


@model.command()
@click.argument("checkpoint")
@click.option("--json", "as_json", is_flag=True, help="Print model.json.")
def info(checkpoint: str, as_json: bool) -> None:
    """Print what a checkpoint (a directory, or the name of shipped weights) says of itself."""
    from .checkpoint import MODEL, read_info, resolve

    found = read_info(checkpoint)
    if as_json:
        click.echo((resolve(checkpoint) / MODEL).read_text(), nl=False)
        return
    click.echo(f"{found.name} {found.version}, weights {found.digest[:12]}, for {', '.join(found.surveys)}")
    click.echo(f"bands {found.bands}; classes {', '.join(found.classes)}; preprocessing {found.preprocessing}")
    click.echo(f"trained by: {found.training.get('command', 'unknown')}")


@click.command()
@click.argument("config", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Directory of the checkpoint (or of the grid's runs).")
@click.option("--archive", type=PATH, help="Learn from this archive instead of the configuration's.")
@click.option("--grid", is_flag=True, help="CONFIG holds many runs; finished ones are kept, the table is written.")
def train(config: Path, output: Path, archive: Path | None, grid: bool) -> None:
    """Train a model as a configuration file says; an interrupted run goes on where it stopped.

    \b
    Example:  skyheed train classifier/configs/quick.toml -o runs/quick
    """
    from . import grid as grids
    from . import protocol

    changes = {"archive": str(archive)} if archive else {}
    command = " ".join(["skyheed", *sys.argv[1:]])
    if grid:
        click.echo(grids.run_table(config, output, changes, command))
        return
    for done in grids.run(protocol.read(config, changes), output, command):
        end = done.metrics["at_the_end"]
        click.echo(f"accuracy {end['accuracy']:.3f}, macro-F1 {end['macro_f1']:.3f} on {done.metrics['data']}")


@click.command()
@click.argument("checkpoint")
@click.argument("archive", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the report.")
@click.option("--split", default="test", show_default=True, help="train, validation, test or all.")
@click.option("--confirmed/--all-labels", default=True, show_default=True, help="Only objects with sure labels.")
@click.option(
    "--prior", help="Mixture of classes that probabilities assume, instead of the checkpoint's: numbers in the order "
    "of its classes, as 906,1988,3225,2130, or train: that of the archive's training objects with such labels.",
)  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--precision", default="auto", show_default=True, help="auto, float32 or bfloat16.")
def evaluate(
    checkpoint: str, archive: Path, output: Path, split: str, confirmed: bool, prior: str | None, device: str,
    precision: str,
) -> None:  # fmt: skip
    """Score a model on an archive, early and late; everything lands in one folder.

    \b
    Example:  skyheed evaluate sdss sky/sdss -o runs/report
    """
    from . import evaluate as evaluation
    from . import report
    from .checkpoint import read_info
    from .dataset import load

    data = load(archive, bands=read_info(checkpoint).bands)
    chosen = data.choose(split, True if confirmed else None)
    if not len(chosen):
        raise click.ClickException(f"{archive} has no such objects in its split {split}")
    model, how = evaluation.loaded(checkpoint, data.survey, device, precision)
    click.echo(how)
    if prior:
        evaluation.assume(model, evaluation.mixture(prior, data, confirmed, model.info.classes))
    found = evaluation.full_report(model, data, chosen)
    found["command"] = " ".join(["skyheed", *sys.argv[1:]])
    report.write(found, output, data)
    click.echo(report.text(found))
