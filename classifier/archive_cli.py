"""`skyheed archive`: make, read and check archives of stamp sequences."""

import json
from pathlib import Path

import click

from .archive import Archive
from .archive_check import validate as validate_archive


@click.group()
def archive() -> None:
    """Make, read and check archives of stamp sequences."""


@archive.command()
@click.option("--survey", default="sdss", show_default=True, help="sdss, ztf or lsst.")
@click.option("--objects", type=int, default=8249, show_default=True, help="How many objects.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same bytes.")
@click.option("--seasons", type=int, default=3, show_default=True, help="Seasons the objects are spread over.")
@click.option("--balanced", is_flag=True, help="Equal classes, no wrong labels, instead of the published mixture.")
@click.option("--processes", type=int, help="Processes; by default one per core.")
@click.option("--overwrite", is_flag=True, help="Replace an archive of that name.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory to make.")
def simulate(
    survey: str,
    objects: int,
    seed: int,
    seasons: int,
    balanced: bool,
    processes: int | None,
    overwrite: bool,
    output: Path,
) -> None:
    """Simulate a survey: light curves, hosts, weather, and every stamp.

    \b
    Example:  skyheed archive simulate --survey sdss --objects 8249 --seed 1 -o sky
    """
    from .sky import simulate as run

    run(
        survey, objects, seed, output,
        seasons=seasons, balanced=balanced, processes=processes, overwrite=overwrite,
    )  # fmt: skip
    click.echo(f"{output}: {Archive(output).card['stamps']} stamps of {objects} objects")


@archive.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the data card as JSON.")
def info(path: Path, as_json: bool) -> None:
    """Print an archive's data card."""
    found = Archive(path)
    click.echo(json.dumps(found.card, indent=1) if as_json else (path / "README.md").read_text())


@archive.command()
@click.argument("path", type=click.Path(path_type=Path))
def validate(path: Path) -> None:
    """Read everything and check it; exit status 1 if something is wrong."""
    problems = validate_archive(path)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.exceptions.Exit(1)
    click.echo(f"{path}: sound")
