"""Verbs that show classifications, health, the books, objects, dead letters and the layout."""

import json
import sys
from typing import Any

import click

from skyheed.broker.commands.options import options, settings_from
from skyheed.broker.errors import ConfigError, StreamError
from skyheed.classifier import output_paths
from skyheed.classifier.safe_names import printable


@click.command()
@options("config", "survey", "kafka")
@click.option("--topic", metavar="NAME", help="Classification topic; skyheed.classifications.SURVEY by default.")
@click.option("--class", "classes", multiple=True, metavar="NAME", help="Only records with this top class; repeatable.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="Only records of this model; repeatable.")
@click.option("--min-probability", type=float, default=0.0, help="Only if the top class is at least this probable.")
@click.option("--format", "format_", type=click.Choice(["table", "json", "csv", "parquet"]), default="table")
@click.option("--group", metavar="NAME", help="Remember the position under this Kafka group.")
@click.option("--from", "start", type=click.Choice(["beginning", "latest"]), default="beginning", show_default=True)
@click.option("--drain", is_flag=True, help="Stop once everything present at the start has been read.")
@click.option(
    "--timeout", type=float, metavar="SECONDS", help="Give up after this long without Kafka or without a record."
)
@click.option("--skip-bad", is_flag=True, help="Skip records that are not classifications, with a warning.")
@click.option(
    "--raw-csv", is_flag=True, help="Leave CSV text unchanged, even what a spreadsheet would execute as a formula."
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False),
    help="Write to this file instead of the screen; with --group, append to it.",
)  # fmt: skip
def subscribe(**given: Any) -> None:
    """Read classifications as a table, JSON, CSV or Parquet.

    \b
    Example:  skyheed subscribe --topic skyheed.classifications.ztf --class SNIa --min-probability 0.8
              skyheed subscribe --survey ztf --group nightly --drain --format csv -o classifications.csv
    """
    from skyheed.broker import record_writers
    from skyheed.broker import subscribe as client

    settings = settings_from(given)
    topic = given["topic"] or (settings.survey and settings.classification_topic)
    if not topic:
        raise click.UsageError("no topic given: add --topic NAME or --survey NAME")
    if given["output"]:
        output_paths.check_file(given["output"], ConfigError)
    stream = client.Subscriber(
        settings.kafka["bootstrap.servers"], topic=topic, group=given["group"], start=given["start"],
        options=settings.kafka, classes=given["classes"], models=given["models"],
        min_probability=given["min_probability"],
        drain=given["drain"], skip_bad=given["skip_bad"], timeout=given["timeout"],
    )  # fmt: skip
    try:
        with stream:
            record_writers.write(stream, given["format_"], given["output"], raw_csv=given["raw_csv"])
    except StreamError as error:
        raise StreamError(f"{error}; --skip-bad skips such records") from error
    if stream.bad:
        click.echo(f"skipped {stream.bad} records that are not classifications", err=True)


@click.command()
@options("config", "survey", "kafka", "redis")
@click.option(
    "--only", metavar="PART,…", help="Check only these: kafka, redis, schema, model, lag, queue, oldest, daemons."
)
def check(only: str | None, **given: Any) -> None:
    """Report the health of every part, one line each; exit status 1 if any is unhealthy.

    \b
    Example:  skyheed check --survey ztf --kafka host:9092 --redis redis://host
    """
    from skyheed.broker import health as health

    parts = only.split(",") if only else list(health.PARTS)
    if unknown := set(parts) - set(health.PARTS):
        raise click.UsageError(f"unknown part {unknown.pop()!r}; choose from {', '.join(health.PARTS)}")
    lines = health.check(settings_from(given), parts)
    for line in lines:
        click.echo(f"{'ok  ' if line.ok else 'BAD '} {line.part:<7} {printable(line.sentence)}")
    sys.exit(0 if all(line.ok for line in lines) else 1)


@click.command()
@options("config", "survey", "redis")
@click.option("--json", "as_json", is_flag=True, help="Print the books as one JSON document.")
def audit(as_json: bool, **given: Any) -> None:
    """Print the books; exit status 1 if they do not balance.

    \b
    Example:  skyheed audit --survey ztf --redis redis://host
    """
    from skyheed.broker import health as health

    books = health.reading(settings_from(given))[2].books()
    click.echo(json.dumps(books.to_json()) if as_json else books.to_text())
    sys.exit(0 if books.balanced else 1)


@click.command()
@options("config", "survey", "kafka")
@click.option("--topic", "topics", multiple=True, metavar="NAME", help="Classification topic; repeatable.")
@click.option("--model", metavar="MODEL", help="Checkpoint, or shipped weights, that made the classifications.")
@click.option(
    "--last",
    type=click.IntRange(1),
    default=5000,
    show_default=True,
    help="Use this many of each model's newest objects.",
)
@click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds to wait for Kafka.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def prior(topics: tuple[str, ...], last: int, timeout: float, as_json: bool, **given: Any) -> None:
    """Report class frequencies in the stream, estimated from its classifications without labels. Changes nothing: the
    prior that classifications assume is set only by work.prior (`skyheed work --prior`).

    \b
    Example:  skyheed prior --survey ztf --kafka host:9092 --last 2000
    """
    from skyheed.broker import prior as shares

    settings = settings_from(given, model="work.model")
    wanted = topics or (settings.survey and (settings.classification_topic,))
    if not wanted:
        raise click.UsageError("no topic given: add --topic NAME or --survey NAME")
    found = shares.report(settings, wanted, last, timeout)
    click.echo(json.dumps(found) if as_json else shares.text(found))


@click.command("object")
@options("config", "survey", "redis")
@click.argument("object_id")
def object_(object_id: str, **given: Any) -> None:
    """Print an object's latest classification and how its classifications changed.

    \b
    Example:  skyheed object ZTF20abfcszi --survey ztf
    """
    from skyheed.broker import health as health
    from skyheed.broker.results import formats

    store = health.reading(settings_from(given))[0]
    models = store.models() or [""]
    found = {model: latest for model in models if (latest := store.latest(object_id, model)) is not None}
    if not found:
        raise click.ClickException(f"no classification of {printable(object_id)} is stored")
    for model, latest in found.items():
        if len(found) > 1:
            click.echo(f"# {printable(model)}")
        click.echo(json.dumps(formats.decode(latest).to_json(), indent=2))
        for line in store.history(object_id, model):
            click.echo(printable(line))


@click.command("layout")
@options("config", "survey", "redis")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change max_stamps, keep_pixels, bands or images; repeatable.",
)
def layout_(changes: tuple[str, ...], **given: Any) -> None:
    """Print the settings that all daemons of a survey share, as recorded in Redis.

    Change them only while all daemons are stopped.

    \b
    Example:  skyheed layout --survey ztf --set max_stamps=60
    """
    from skyheed.broker import app as daemon
    from skyheed.broker.state import client as state
    from skyheed.broker.state import layout

    settings = daemon.with_survey(settings_from(given))
    found = layout.Layout(state.connect_as(settings.redis), settings.survey)
    for change in changes:
        name, _, value = change.partition("=")
        found.change(name.strip(), value.strip())
    for name, value in found.recorded().items():
        click.echo(printable(f"{name:<15} {value}"))


@click.group()
def deadletter() -> None:
    """Inspect packets that were set aside.

    \b
    Example:  skyheed deadletter list --survey ztf --reason truncated
    """


@deadletter.command("list")
@options("config", "survey", "kafka")
@click.option("--reason", metavar="CODE", help="Only packets set aside for this reason.")
@click.option("--limit", type=int, default=50, show_default=True)
def deadletter_list(reason: str | None, limit: int, **given: Any) -> None:
    """List packets that were set aside, with reason, place and exception.

    \b
    Example:  skyheed deadletter list --survey ztf --reason truncated
    """
    from skyheed.broker import app as daemon
    from skyheed.broker.kafka import deadletter as letters

    settings = daemon.checked(settings_from(given))
    passed_over: list[int] = []
    for letter in letters.read(
        settings.kafka, settings.dead_letter_topic, reason, limit, unreadable=passed_over.append
    ):
        click.echo(letter.line())
    if any(passed_over):
        click.echo(f"skipped {sum(passed_over)} messages that are not dead letters", err=True)


VERBS = (subscribe, check, audit, prior, object_, deadletter, layout_)
