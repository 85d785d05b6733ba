"""Verbs in the classifier's groups that read packets."""

from pathlib import Path

import click


@click.command("build-packets")
@click.argument("survey")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--labels", type=click.Path(path_type=Path), help="A table: objectId, class (or coarse).")
@click.option("--schemas", metavar="FOLDER", help="Writer schemas of Rubin packets; the installed ones by default.")
@click.option("--overwrite", is_flag=True, help="Replace an existing archive of that name.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory to create.")
def build_packets(
    survey: str, paths: tuple[Path, ...], labels: Path | None, schemas: str | None, overwrite: bool, output: Path
) -> None:
    """Make an archive of real alert packets (files, folders, tar archives): all stamps, photometry and context.

    \b
    Example:  skyheed archive build-packets ztf packets --labels index.csv -o real
    """
    from skyheed.broker.archive_packets import build
    from skyheed.classifier.safe_names import printable

    report = build(output, survey, paths, labels=labels, overwrite=overwrite, schemas=schemas)
    click.echo(f"{output}: {report.stamps} stamps of {report.objects} objects, {report.labelled} of them with a class")
    if report.other_labels:
        named = ", ".join(f"{printable(label)} ({n})" for label, n in report.other_labels.most_common())
        click.echo(f"without a class, as their labels are not among the classes: {named}")
    for reason, count in report.reasons.most_common():
        click.echo(f"left out: {count} {reason}")
