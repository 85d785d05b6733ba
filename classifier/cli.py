"""`skyheed model`, `skyheed train` and `skyheed evaluate`."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from skyheed.classifier import output_paths
from skyheed.classifier.errors import ArchiveError, ModelError
from skyheed.classifier.safe_names import printable, printable_lines

PATH = click.Path(path_type=Path)


@click.group()
def model() -> None:
    """List and describe models, show and export their checkpoints.

    \b
    Example:  skyheed model list
              skyheed model info ztf/fusion
    """


@model.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_models(as_json: bool) -> None:
    """List the models that can be trained: needs, cost, and shipped weights.

    \b
    Example:  skyheed model list
    """
    from skyheed.classifier import model_list

    found = model_list.listing()
    click.echo(json.dumps(found, indent=1) if as_json else model_list.text(found))


@model.command()
@click.argument("name", default="convention")
@click.option("--variant", type=click.Choice(["paper", "stream"]), help="For ConvEntion: as published, or as served.")
@click.option("--attention", type=click.Choice(["linear", "mlp"]), help="Attention of ConvEntion.")
@click.option("--classes", type=int, default=4, show_default=True, help="How many classes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def describe(name: str, variant: str | None, attention: str | None, classes: int, as_json: bool) -> None:
    """Print what a model (a name of `skyheed model list`) needs, its layers, parameters and operations.

    \b
    Example:  skyheed model describe convention --variant paper
    """
    from skyheed.classifier import model_list

    changes = {key: value for key, value in (("variant", variant), ("attention", attention)) if value}
    found = model_list.description(name, classes, changes)
    click.echo(json.dumps(found, indent=1) if as_json else model_list.table(found))


@model.command()
@click.argument("checkpoint")
@click.option("--json", "as_json", is_flag=True, help="Print model.json.")
def info(checkpoint: str, as_json: bool) -> None:
    """Print the card of a checkpoint (a directory, or the name of shipped weights).

    \b
    Example:  skyheed model info ztf/fusion
    """
    from skyheed.classifier.models.checkpoint import MODEL, read_info, resolve

    found = read_info(checkpoint)
    if as_json:
        click.echo(printable_lines((resolve(checkpoint) / MODEL).read_text()), nl=False)
        return
    lines = [f"{found.name} {found.version}, weights {found.digest[:12]}, for {', '.join(found.surveys)}"]
    lines += [f"bands {found.bands}; classes {', '.join(found.classes)}; preprocessing {found.preprocessing}"]
    lines += [f"trained by: {found.training.get('command', 'unknown')}"]
    click.echo("\n".join(map(printable, lines)))


@model.command()
@click.argument("checkpoint")
@click.option(
    "--to", "form", type=click.Choice(["hf", "onnx"]), default="hf", show_default=True,
    help="hf: a Hugging Face folder; onnx: graphs for onnxruntime, without torch.",
)  # fmt: skip
@click.option("-o", "--output", type=PATH, required=True, help="Folder to create.")
def export(checkpoint: str, form: str, output: Path) -> None:
    """Write a checkpoint in another system's format.

    \b
    Example:  skyheed model export sdss --to hf -o skyheed-sdss
    Example:  skyheed model export ztf --to onnx -o skyheed-ztf-onnx
    """
    if form == "onnx":
        from skyheed.classifier.models.onnx.export import export as to_onnx

        click.echo(f"onnx: {to_onnx(checkpoint, output)}")
        return
    from skyheed.classifier.models.export import to_hugging_face

    click.echo(f"hf: {to_hugging_face(checkpoint, output)}")


@click.command()
@click.argument("config", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Directory of the checkpoint (or of the grid's runs).")
@click.option("--archive", type=PATH, help="Train on this archive instead of the configuration's.")
@click.option(
    "--grid", is_flag=True, help="CONFIG describes many runs; finished ones are kept, and the table is written."
)
@click.option("--dry-run", is_flag=True, help="Print what would be trained and how long it would take, then stop.")
def train(config: Path, output: Path, archive: Path | None, grid: bool, dry_run: bool) -> None:
    """Train a model from a configuration file; an interrupted run resumes where it stopped.

    Instead of a file, CONFIG may be a name of `skyheed model list`: that model is then trained as for the table of
    models, which takes seconds to some tens of minutes of CPU time.

    \b
    Example:  skyheed train classifier/configs/quick.toml -o runs/quick
              skyheed train vector --archive sky/sdss -o runs/vector
    """
    from skyheed.classifier.training import estimate, protocol
    from skyheed.classifier.training import grid as grids

    def read(config: Path, changes: dict[str, Any]) -> protocol.Protocol:
        named = not config.suffix and not config.exists()
        return grids.of_model(str(config), changes) if named else protocol.read(config, changes)

    changes = {"archive": str(archive)} if archive else {}
    command = " ".join(["skyheed", *sys.argv[1:]])
    if dry_run:
        runs = [row.configs[0] for row in grids.rows(config, changes)] if grid else [read(config, changes)]
        click.echo("\n\n".join(estimate.text(one) for one in runs))
        return
    output_paths.check_folder(output, ModelError)
    if grid:
        click.echo(grids.run_table(config, output, changes, command))
        return
    for done in grids.run(read(config, changes), output, command):
        end = done.metrics["at_the_end"]
        click.echo(f"accuracy {end['accuracy']:.3f}, macro-F1 {end['macro_f1']:.3f} on {done.metrics['data']}")


@click.command("few-shot")
@click.argument("checkpoint")
@click.argument("archive", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Directory of the fitted checkpoint.")
@click.option("--version", default="", help="Name of the fitted checkpoint; by default CHECKPOINT's with -real.")
def few_shot(checkpoint: str, archive: Path, output: Path, version: str) -> None:
    """Fit a model of the family fusion to an archive of real packets, some of them labelled. Scores come from grouped
    cross-validation: no object is scored by a fit that included it.

    \b
    Example:  skyheed few-shot runs/fusion-ztf real-ztf -o runs/fusion-ztf-real
    """
    from skyheed.classifier.training import real_fit

    output_paths.check_folder(output, ModelError)
    made = real_fit.run(checkpoint, archive, output, " ".join(["skyheed", *sys.argv[1:]]), version)
    click.echo(real_fit.text(made.metrics["real"], made.training["few_shot"]["groups"]))
    click.echo(f"\nWritten to {output}; more, such as the learning curve, is in its model.json.")


@click.command()
@click.argument("checkpoint")
@click.argument("archive", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Directory of the checkpoint with a screen.")
@click.option("--version", default="", help="Name of that checkpoint; by default CHECKPOINT's with -screened.")
def screen(checkpoint: str, archive: Path, output: Path, version: str) -> None:
    """Let a model of the family fusion decline alerts whose difference stamps look like artefacts: bad subtractions,
    cosmic rays, noise. It learns this from an archive of simulated objects that it was not trained on, and from
    simulated artefacts; nothing else of it changes.

    \b
    Example:  skyheed screen ztf/fusion sky/ztf-held -o runs/fusion-ztf-screened
    """
    from skyheed.classifier.training import screening

    output_paths.check_folder(output, ModelError)
    made = screening.run(checkpoint, archive, output, " ".join(["skyheed", *sys.argv[1:]]), version)
    click.echo(json.dumps(made.training["screen"], indent=1))


@click.command()
@click.argument("checkpoint")
@click.argument("archive", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the report.")
@click.option("--split", default="test", show_default=True, help="train, validation, test or all.")
@click.option("--confirmed/--all-labels", default=True, show_default=True, help="Only objects with confirmed labels.")
@click.option(
    "--prior", help="Class prior that probabilities assume, instead of the checkpoint's: numbers in the order "
    "of its classes, as 906,1988,3225,2130, or train: that of the archive's training objects with confirmed labels.",
)  # fmt: skip
@click.option(
    "--against", multiple=True, metavar="CHECKPOINT",
    help="Compare with this checkpoint, on the same objects with the same gaps: scores over stamps and over "
    "the share of missing observations. Repeatable.",
)  # fmt: skip
@click.option(
    "--estimate-prior", is_flag=True,
    help="Estimate the class frequencies among all objects of the split, labelled or not, by EM and BBSE with "
    "intervals. Never applied: pass the estimate to --prior to use it.",
)  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--precision", default="auto", show_default=True, help="auto, float32 or bfloat16.")
def evaluate(
    checkpoint: str, archive: Path, output: Path, split: str, confirmed: bool, prior: str | None,
    against: tuple[str, ...], estimate_prior: bool, device: str, precision: str,
) -> None:  # fmt: skip
    """Score a model on an archive, early and late; writes a report folder.

    \b
    Example:  skyheed evaluate sdss sky/sdss -o runs/report

    --against compares models, such as those that know the days of observations with those that know only their order
    (time = "days" and time = "position" in the training configuration). Objects without a stamp in the bands of
    every model are left out, and --prior holds for all of them.

    \b
    Example:  skyheed evaluate runs/days sky/sdss -o runs/times --against runs/position --against runs/both
    """
    from skyheed.classifier.evaluation import evaluate as evaluation
    from skyheed.classifier.evaluation import report
    from skyheed.classifier.models import priors

    output_paths.check_folder(output, ModelError)
    entries = evaluation.entries((checkpoint, *against), archive, device, precision)
    shares, labelled = None, evaluation.any_label(entries[0], split)
    if estimate_prior:
        try:
            shares = evaluation.estimated_shares(entries[0], split)
        except ModelError as error:
            why = f"{error}; --split all takes every object of an archive"
            if not labelled:
                raise ModelError(why) from None
            click.echo(f"no class shares: {why}", err=True)  # the scores can be computed nevertheless
    if shares and not labelled:
        click.echo(report.write_shares(shares, output), nl=False)
        return
    chosen = evaluation.common(entries, split, confirmed)
    for entry in entries:
        click.echo(f"{entry.label}: {entry.how}")
        if evaluation.may_be_in_sample(entry, chosen):
            click.echo(
                f"{entry.label} was fitted to labelled real objects: if these are among them, its scores here are too "
                "good; those of held-out objects are in its model.json (metrics, real)", err=True,
            )  # fmt: skip
        if prior:
            counts = evaluation.class_prior(prior, entry.data, confirmed, entry.model.info)
            entry.model.info = priors.assuming(entry.model.info, counts)
    found = evaluation.compare(entries, chosen)
    found["command"] = " ".join(["skyheed", *sys.argv[1:]])
    found |= {"shares": shares} if shares else {}
    report.write(found, output, entries[0].data)
    click.echo(report.text(found))


@click.command()
@click.argument("archive", type=PATH)
@click.option(
    "--out", "output", type=PATH, required=True, help="Folder for the scores: one Parquet file for each part."
)
@click.option("--model", "name", help="Checkpoint directory, or shipped weights; by default the survey's.")
@click.option("--epochs", default="last", show_default=True, help="all, last, or numbers such as 1,3,6,last.")
@click.option(
    "--shard", default="1/1", metavar="I/N", help="Every Nth part starting with the Ith: one machine's share."
)
@click.option(
    "--prior",
    default="",
    help="Class prior in the order of the classes, instead of the checkpoint's; 1,1,1,1 is uniform.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--precision", default="auto", show_default=True, help="auto, float32 or bfloat16.")
@click.option("--threads", type=int, help="CPU threads; by default all cores.")
@click.option("--runtime", default="auto", show_default=True, help="auto, torch or onnx.")
@click.option("--check", is_flag=True, help="Only check that the folder holds the scores of the whole archive.")
def score(archive: Path, output: Path, name: str | None, epochs: str, shard: str, check: bool, **given: Any) -> None:
    """Classify every object of an archive; an interrupted run resumes where it stopped.

    \b
    Example:  skyheed score sky/sdss --out scores --model sdss --epochs 1,3,6,last
    """
    from skyheed.classifier import scoring, serving
    from skyheed.classifier.archives.reader import Archive

    data = Archive(archive)
    if check:
        problems = scoring.check(data, output)
        click.echo("\n".join(problems) or f"{output}: every part of {archive} is scored")
        raise SystemExit(1 if problems else 0)
    output_paths.check_folder(output, ModelError)
    if not data.card["surveys"]:
        raise ArchiveError(f"{archive} holds no objects: there is nothing to score")
    survey = data.card["surveys"][0]
    model = serving.load(name or survey, survey=survey, **given)
    rows = scoring.score(data, output, scoring.Scorer(model, epochs), _shard(shard))
    click.echo(f"{output}: {rows} new rows by {model.info.name} {model.info.version}, {model.chosen}")


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise ModelError(f"--shard must be I/N with I from 1 to N, such as 3/64, not {text}")
    return int(number), int(of)
