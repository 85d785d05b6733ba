"""`skyheed archive`: make, read and check archives of stamp sequences."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import click

from skyheed.classifier import output_paths
from skyheed.classifier.archives.card import card_text
from skyheed.classifier.archives.check import validate as validate_archive
from skyheed.classifier.archives.mixture import read_mixture
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.reaper import temporary_folder
from skyheed.classifier.safe_names import printable, printable_lines


@click.group()
def archive() -> None:
    """Make, read and check archives of stamp sequences.

    \b
    Example:  skyheed archive simulate --survey ztf --objects 500 -o sky
              skyheed archive info sky
    """


@archive.command()
@click.option("--survey", default="sdss", show_default=True, help="sdss, ztf or lsst.")
@click.option("--objects", type=int, default=8249, show_default=True, help="How many objects.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same bytes.")
@click.option("--seasons", type=int, default=3, show_default=True, help="Seasons the objects are spread over.")
@click.option(
    "--balanced", is_flag=True, help="Equal classes and no wrong labels, instead of the published class counts."
)
@click.option(
    "--template",
    type=click.Path(path_type=Path),
    help="Spectral template of SNe Ia (Hsiao's FITS file, a SALT3 folder) instead of our own light curves.",
)
@click.option(
    "--scenes", type=click.Path(path_type=Path),
    help="Real packets, or their archive (build-packets), on whose templates the objects are painted (ztf, lsst).",
)  # fmt: skip
@click.option(
    "--shift",
    metavar="NAME=NUMBER,...",
    help="Conditions other than the survey's: noise and seeing are factors, zero_point an added scatter; "
    "noise=1.4,seeing=1.3,zero_point=0.05.",
)
@click.option(
    "--mixture",
    metavar="CLASS=SHARE,...",
    help="Class shares, without wrong labels: AGN=0.2,SNIa=0.1,Variable=0.6,SNOther=0.1.",
)
@click.option(
    "--most", type=click.IntRange(1), default=12, show_default=True, help="Maximum alerts per object (ztf, lsst)."
)
@click.option("--processes", type=click.IntRange(1), help="Processes; by default one per core.")
@click.option("--overwrite", is_flag=True, help="Replace an archive of that name.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory to create.")
@click.pass_obj
def simulate(
    reads_packets: Callable[[str, Path, Path], None] | None,
    survey: str,
    objects: int,
    seed: int,
    seasons: int,
    balanced: bool,
    template: Path | None,
    scenes: Path | None,
    shift: str | None,
    mixture: str | None,
    most: int,
    processes: int | None,
    overwrite: bool,
    output: Path,
) -> None:
    """Simulate a survey: light curves, hosts, weather, and every stamp.

    \b
    Example:  skyheed archive simulate --survey sdss --objects 8249 --seed 1 -o sky
    """
    from skyheed.classifier.sky import simulate as run
    from skyheed.classifier.sky.domain_shift import NO_SHIFT, read_shift

    conditions, shares = read_shift(shift) if shift else NO_SHIFT, read_mixture(mixture) if mixture else None
    with contextlib.ExitStack() as stack:
        if scenes and reads_packets and not (scenes / "card.json").exists():
            packets, scenes = scenes, stack.enter_context(temporary_folder("skyheed-scenes-")) / scenes.name
            reads_packets(survey, packets, scenes)
        run(
            survey, objects, seed, output,
            seasons=seasons, balanced=balanced, template=template, most=most, scenes=scenes, shift=conditions,
            mixture=shares, processes=processes, overwrite=overwrite,
        )  # fmt: skip
    click.echo(f"{output}: {Archive(output).card['stamps']} stamps of {objects} objects")


@archive.command("build-sdss")
@click.option("--candidates", required=True, type=click.Path(path_type=Path), help="The SDSS-II candidate table.")
@click.option("--frames", required=True, type=click.Path(path_type=Path), help="Folder with frame-* or fpC-* files.")
@click.option("--fields", type=click.Path(path_type=Path), help="CSV of the survey's fields, to find missing frames.")
@click.option("--missing", type=click.Path(path_type=Path), help="Write the missing frames into this file.")
@click.option("--window", type=float, default=150, show_default=True, help="Days before and after the peak.")
@click.option("--overwrite", is_flag=True, help="Replace an archive of that name.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory to create.")
def build_sdss(
    candidates: Path,
    frames: Path,
    fields: Path | None,
    missing: Path | None,
    window: float,
    overwrite: bool,
    output: Path,
) -> None:
    """Cut stamps of the SDSS-II candidates out of real SDSS frames.

    \b
    Frames:   https://data.sdss.org/sas/dr17/eboss/photoObj/frames/301/RUN/CAMCOL/frame-BAND-RUN-CAMCOL-FIELD.fits.bz2
    Fields:   run `skyheed archive fields-query` in CasJobs and pass its CSV with --fields; --missing FILE then
              lists the frames to fetch, one path below .../frames/301/ a line, even if there are none yet.
    Example:  skyheed archive build-sdss --candidates JLA2014_SDSS_DS17_HEAD.FITS.gz --frames frames -o real
    """
    from skyheed.classifier.sources.candidates import build, frames_to_fetch

    if missing and not fields:
        raise click.UsageError("--missing needs the survey's fields: pass their CSV with --fields")
    if missing:
        output_paths.check_file(missing)
    if fields:
        wanted = frames_to_fetch(candidates, frames, fields, window)
        click.echo(f"{len(wanted)} frames of these candidates are missing")
        if missing:
            missing.write_text("".join(f"{name.file}\n" for name in wanted))
    report = build(output, candidates, frames, window=window, overwrite=overwrite)
    click.echo(f"{output}: {report.written} objects; {len(report.without_frames)} candidates are on too few frames")


@archive.command("fields-query")
def fields_query() -> None:
    """Print the SQL query whose result `build-sdss --fields` reads.

    \b
    Example:  skyheed archive fields-query > fields.sql
    """
    from skyheed.classifier.sources.candidates import FIELDS_QUERY

    click.echo(FIELDS_QUERY, nl=False)


@archive.command("build-lightcurves")
@click.argument("sources", metavar="CLASS=PATH...", nargs=-1, required=True)
@click.option("--survey", default="sdss", show_default=True, help="Whose stamps to paint: sdss, ztf or lsst.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed for hosts, neighbours, seeing and noise.")
@click.option("--whole", is_flag=True, help="Keep all seasons, not each object's best one.")
@click.option("--overwrite", is_flag=True, help="Replace an archive of that name.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory to create.")
def build_lightcurves(
    sources: tuple[str, ...], survey: str, seed: int, whole: bool, overwrite: bool, output: Path
) -> None:
    """Paint real light curves (SNANA text or CSV) into stamps: real photometry, cadence and errors.

    \b
    Example:  skyheed archive build-lightcurves SNIa=snia_lightcurves Variable=rrlyrae/light-curves -o real
    """
    from skyheed.classifier.sources.lightcurves import build

    places = []
    for source in sources:
        label, equals, path = source.partition("=")
        if not equals:
            raise click.UsageError(f"{source!r} is not CLASS=PATH, for example SNIa=snia_lightcurves")
        places.append((label, Path(path)))
    written, left_out = build(output, places, survey=survey, seed=seed, whole=whole, overwrite=overwrite)
    click.echo(f"{output}: {written} objects; {len(left_out)} left out for too few measurements in {survey}'s bands")


@archive.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the data card as JSON.")
@click.option("--croissant", "as_croissant", is_flag=True, help="Print Croissant metadata, which new archives hold.")
def info(path: Path, as_json: bool, as_croissant: bool) -> None:
    """Print an archive's data card.

    \b
    Example:  skyheed archive info sky
    """
    found = Archive(path)
    if as_croissant:
        from skyheed.classifier.archives.croissant import croissant

        click.echo(json.dumps(croissant(found.card, found.path), indent=1))
        return
    click.echo(json.dumps(found.card, indent=1) if as_json else _card(found))


def _card(found: Archive) -> str:
    try:
        return printable_lines(card_text(found.card))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArchiveError(f"{found.path}/card.json is damaged ({error!r}): get the archive again") from error


@archive.command()
@click.argument("path", type=click.Path(path_type=Path))
def validate(path: Path) -> None:
    """Read and check everything; exit status 1 if anything is wrong.

    \b
    Example:  skyheed archive validate sky
    """
    problems = validate_archive(path)
    for problem in problems:
        click.echo(printable(problem))
    if problems:
        raise click.exceptions.Exit(1)
    click.echo(f"{path}: sound")


@archive.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--to", "form", type=click.Choice(["archive", "npz", "fits", "hats"]), required=True, help="Format to write."
)
@click.option("--class", "labels", multiple=True, metavar="CLASS", help="AGN, SNIa, Variable or SNOther; repeatable.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), help="Only this split.")
@click.option("--object", "objects", multiple=True, metavar="ID", help="Only this object; repeatable.")
@click.option("--every", type=click.IntRange(1), default=1, help="Keep one object in this many.")
@click.option(
    "--mixture", metavar="CLASS=SHARE,...", help="Drop objects until the classes of each split have these shares."
)
@click.option("--alerts-only", is_flag=True, help="Only what an alert stream would have sent.")
@click.option("--most", type=click.IntRange(1), help="Keep only this many first stamps of each object.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory to create.")
def convert(
    path: Path,
    form: str,
    labels: tuple[str, ...],
    split: str | None,
    objects: tuple[str, ...],
    every: int,
    mixture: str | None,
    alerts_only: bool,
    most: int | None,
    output: Path,
) -> None:
    """Write an archive, or a part of it, as a smaller archive, NumPy files, FITS files with a WCS or a HATS catalogue.

    \b
    Example:  skyheed archive convert sky --to fits --object sdss-sim1-000007 -o look
    """
    from skyheed.classifier.archives.convert import convert as run

    shares = read_mixture(mixture) if mixture else None
    count = run(
        path,
        output,
        form,
        labels=labels,
        split=split,
        objects=objects,
        every=every,
        mixture=shares,
        alerts_only=alerts_only,
        most=most,
    )
    click.echo(f"{output}: {count} objects")
