"""Verbs that run daemons, the single-machine stack and the page, or move packets and classifications."""

import logging
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from skyheed.broker import logs, night_replay
from skyheed.broker.commands.options import MODELS, models_place, options, settings_from
from skyheed.broker.errors import ConfigError
from skyheed.broker.settings import FORMATS, Settings
from skyheed.classifier import output_paths
from skyheed.classifier.safe_names import printable


@click.command()
@click.option("--objects", type=int, default=200, show_default=True, help="Objects to simulate.")
@click.option("--rate", type=float, default=300.0, show_default=True, help="Alerts a second.")
@click.option("--seed", type=int, default=2026, show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False), default="demo.png", show_default=True)
@MODELS
@click.option("--serve", "show_page", is_flag=True, help="Show the page from the start and keep it until Ctrl-C.")
def demo(objects: int, rate: float, seed: int, output: str, model: tuple[str, ...], show_page: bool) -> None:
    """Simulate an SDSS season, classify it live through embedded servers, and score it.

    \b
    Example:  skyheed demo
              skyheed demo --serve
              skyheed demo --model convention --model vector --model supernnova
    """
    from skyheed.broker.local import demo as show

    output_paths.check_picture(output, ConfigError)
    logs.set_up(level=logging.WARNING)
    sys.exit(0 if show.run(objects, rate, seed, output, model, show_page) else 1)


@click.command()
@options("config", "survey", "kafka", "redis")
@click.option(
    "--topic", "topics", multiple=True, metavar="NAME", help="Topic, or pattern that begins with ^; repeatable."
)
@click.option("--group", metavar="NAME", help="Kafka consumer group.")
@click.option("--stamp", type=click.Choice(["science", "difference", "template"]), help="Which stamp to keep.")
@click.option("--debounce", type=float, metavar="SECONDS", help="Wait this long for the other stamps of a visit.")
@click.option("--metrics-port", type=int, help="Serve Prometheus metrics on this port.")
@click.option("--processes", type=int, help="Number of reading processes, each a member of the group.")
@click.option("--drain", is_flag=True, help="Stop once everything present at the start has been read.")
@click.option("--since", metavar="TIME", help="Replay: only messages from this time on (UTC; ISO or MJD).")
@click.option("--until", metavar="TIME", default="", help="Replay: only messages before this time; now by default.")
@click.option(
    "--into", metavar="NAME", default="", help="Replay: name of its key space; derived from the times by default."
)
def ingest(drain: bool, since: str | None, until: str, into: str, **given: Any) -> None:
    """Read alert packets from Kafka and keep each object's stamps in Redis.

    With --since, replays a range of the topics, by Kafka's timestamps, into the survey SURVEY.NAME, with its own keys,
    books, group and topics, and then stops; the live stream is not touched.

    \b
    Example:  skyheed ingest --survey ztf --topic '^ztf_.*_programid1$' --kafka host:9092 --redis redis://host
              skyheed ingest --survey ztf --topic alerts --since 2026-11-20T16:00 --until 2026-11-21T16:00
    """
    from skyheed.broker import app as daemon

    if (until or into) and since is None:
        raise click.UsageError("--until and --into belong to a replay: add --since TIME")
    if since is not None and given["group"]:
        raise click.UsageError("a replay uses its own Kafka group: leave out --group")
    given["topics"] = list(given["topics"]) or None
    run = partial(daemon.run_ingest, drain=drain) if since is None else partial(_replayed, since, until, into)
    run(
        settings_from(
            given,
            topics="ingest.topics",
            group="ingest.group",
            stamp="ingest.stamp",
            debounce="ingest.debounce_s",
            processes="ingest.processes",
            metrics_port="ingest.metrics_port",
        )
    )


def _replayed(since: str, until: str, into: str, settings: Settings) -> None:
    from skyheed.broker import app as daemon

    night = night_replay.night_of(since, until, time.time_ns() // 1_000_000)
    own = night_replay.apart(settings, into or night.name)
    daemon.run_ingest(own, True, night)
    click.echo(f"replayed into {own.survey}; next: skyheed work --survey {own.survey} --drain")


@click.command()
@options("config", "survey", "kafka", "redis")
@MODELS
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Where the models run; cuda without a GPU is refused at the start.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="Arithmetic; auto chooses what the CPU does best.",
)
@click.option("--threads", type=int, help="CPU threads; by default all cores.")
@click.option(
    "--prior", metavar="N,N,…", help="Class prior of this stream, in the order of the model's classes, instead of the "
    "checkpoint's; 1,1,1,1 is uniform. `skyheed check` names the classes."
)  # fmt: skip
@click.option("--batch-size", type=int, help="Objects per batch.")
@click.option("--interval", type=float, metavar="SECONDS", help="Look for due objects at least this often.")
@click.option("--min-stamps", type=int, help="Decline objects with fewer stamps.")
@click.option("--format", "format_", type=click.Choice(FORMATS), help="What to publish.")
@click.option("--metrics-port", type=int, help="Serve Prometheus metrics on this port.")
@click.option("--drain", is_flag=True, help="Stop when no object is pending.")
def work(drain: bool, **given: Any) -> None:
    """Classify due objects and publish the classifications.

    \b
    Example:  skyheed work --survey ztf --device cuda --kafka host:9092 --redis redis://host
    """
    from skyheed.broker import app as daemon

    own = ("device", "precision", "threads", "prior", "batch_size", "min_stamps", "metrics_port")
    places = {name: f"work.{name}" for name in own}
    places["model"] = models_place(given)
    places |= {"interval": "work.interval_s", "format_": "work.format"}
    daemon.run_work(settings_from(given, **places), drain)


@click.command()
@options("config", "survey", "kafka", "redis")
@click.option("--topic", "topics", multiple=True, metavar="NAME", help="Alert topic; skyheed.alerts.SURVEY by default.")
@MODELS
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where the models run.")
@click.option("--data", type=click.Path(file_okay=False), help="Keep the embedded Valkey's state and the logs here.")
@click.option("--serve", "show_page", is_flag=True, help="Also serve the page.")
def up(data: str | None, show_page: bool, **given: Any) -> None:
    """Run everything on this machine: servers (embedded unless given), ingest and worker. Ctrl-C drains and stops.

    \b
    Example:  skyheed up --survey sdss
              skyheed up --survey ztf --topic ztf_20260401_programid1 --kafka host:9092 --redis redis://host
    """
    from skyheed.broker.local import up as stack

    given["topics"] = list(given["topics"]) or None
    models = list(given["model"])
    settings = settings_from(given, topics="ingest.topics", device="work.device", model=models_place(given))
    stack.run(settings, given.get("config"), data, models, show_page)


@click.command()
@options("config", "survey", "kafka", "redis")
@MODELS
@click.option("--prior", metavar="N,N,…", help="Class prior for recomputed classifications, as for `work`.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; a non-local one needs --token-file."
)
@click.option("--port", type=click.IntRange(0, 65_535), default=8010, show_default=True, help="0 takes a free one.")
@click.option(
    "--token-file", type=click.Path(dir_okay=False), help="File with the token that opens the page, one line."
)
@click.option(
    "--name", "names", multiple=True, metavar="HOST", help="Another host name of this page, such as that of a proxy."
)
@click.option("--index", type=click.Path(dir_okay=False), help="The page's index file; in the user's cache by default.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that recompute.")
def serve(**given: Any) -> None:
    """Serve the page and its JSON API: live classifications, objects, search, status.

    Objects are shown with all their stamps. The page is read-only.

    \b
    Example:  skyheed serve --survey ztf --kafka host:9092 --redis redis://host
              skyheed serve --survey ztf --host 0.0.0.0 --name alerts.example.org --token-file token
    """
    from skyheed.broker import serve as page

    settings = settings_from(given, model=models_place(given), prior="work.prior")
    token = page.read_token(Path(given["token_file"])) if given["token_file"] else ""
    index = Path(given["index"]) if given["index"] else None
    chosen = page.Options(given["host"], given["port"], tuple(given["names"]), token, index, given["processes"])
    page.run(settings, chosen, lambda url: click.echo(f"the page is at {url}"))


@click.command()
@options("config", "kafka")
@click.argument("survey")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--topic", metavar="NAME", help="Topic to write to; skyheed.alerts.SURVEY by default.")
@click.option(
    "--speed", type=float, metavar="FACTOR", help="Speed relative to real time: 3600 replays an hour in a second."
)
@click.option("--rate", type=float, metavar="ALERTS/S", help="Alerts per second.")
@click.option("--state", type=click.Path(dir_okay=False), help="Remember the position in this file and resume from it.")
@click.option("--shuffle", type=int, metavar="SEED", help="Send in random order (for tests).")
@click.option("--duplicate", type=float, default=0.0, metavar="FRACTION", help="Send this fraction twice (for tests).")
def replay(survey: str, paths: tuple[str, ...], topic: str | None, **given: Any) -> None:
    """Send an archive (sdss) or packet files (ztf, lsst) to Kafka in survey-time order.

    Packet files may be in folders and tar archives.

    \b
    Example:  skyheed replay ztf ztf_public_20260401.tar.gz --rate 200
              skyheed replay sdss ./archive --speed 86400
    """
    from skyheed.broker import app as daemon
    from skyheed.broker import replay as player

    settings = settings_from({**given, "survey": survey})
    # not ingest.topics: those may be patterns, or another owner's
    topic = topic or settings.alert_topic
    if fault := settings.outputs.fault(topic):
        raise ConfigError(f"--topic: {fault}")
    sent = player.replay(
        settings.kafka, daemon.survey_of(settings), paths, topic,
        speed=given["speed"], rate=given["rate"], state=given["state"], shuffle=given["shuffle"],
        duplicate=given["duplicate"], schemas=daemon.schema_source(settings),
    )  # fmt: skip
    click.echo(f"sent {sent} alerts to {topic}")


@click.command()
@options("config", "survey", "kafka", "redis")
@click.option("--reason", metavar="CODE", help="Only packets set aside for this reason.")
def redrive(reason: str | None, **given: Any) -> None:
    """Send packets that were set aside through the pipeline again, after a fix; those that still fail stay set aside.

    \b
    Example:  skyheed redrive --survey ztf --reason unknown_schema_id
    """
    from skyheed.broker import app as daemon

    counts = daemon.run_redrive(settings_from(given), reason)
    click.echo(" ".join(f"{name}={count}" for name, count in sorted(counts.items())) or "no packet was set aside")


@click.command()
@options("config", "survey", "kafka", "redis")
@click.option(
    "--to",
    "sink",
    required=True,
    metavar="SINK",
    help="lasair, skyportal, fastdb, hop, webhook, or the name of a plug-in.",
)
@click.option("--topic", metavar="NAME", help="Classification topic; skyheed.classifications.SURVEY by default.")
@click.option("--class", "classes", multiple=True, metavar="NAME", help="Only records with this top class; repeatable.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="Only records of this model; repeatable.")
@click.option("--min-probability", type=float, default=0.0, help="Only if the top class is at least this probable.")
@click.option("--rate", type=float, metavar="N/S", help="At most this many per second.")
@click.option("--group", metavar="NAME", help="Remember the position under this Kafka group.")
@click.option("--metrics-port", type=int, help="Serve Prometheus metrics on this port.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent, as JSON, and send nothing.")
@click.option("--drain", is_flag=True, help="Stop once everything present at the start has been sent.")
def forward(sink: str, topic: str | None, dry_run: bool, drain: bool, **given: Any) -> None:
    """Send classifications to another system. Its options are in [sinks.NAME] of the configuration.

    \b
    Example:  skyheed forward --survey lsst --to lasair --class SNIa --min-probability 0.8 --config night.toml
    """
    from skyheed.broker import exchange
    from skyheed.broker.results.record import Wanted

    places = {"rate": "forward.rate", "group": "forward.group", "metrics_port": "forward.metrics_port"}
    wanted = Wanted(given.pop("classes"), given.pop("models"), given.pop("min_probability"))
    settings = settings_from(given, **places)
    if not (topic or settings.survey):
        raise click.UsageError("no topic given: add --topic NAME or --survey NAME")
    counts = exchange.run_forward(settings, sink, topic or settings.classification_topic, wanted, drain, dry_run)
    click.echo(" ".join(f"{name}={count}" for name, count in counts.items()), err=dry_run)


@click.command()
@options("config", "survey", "kafka", "redis")
@click.option(
    "--from",
    "provider",
    required=True,
    metavar="PROVIDER",
    help="alerce, babamul, babamul-ztf, fink, fink-ztf, rubin, or the name of a plug-in.",
)
@click.option("--topic", "topics", multiple=True, metavar="NAME", help="Alert topic or pattern, as for ingest.")
@click.option("--rate", type=float, metavar="N/S", help="At most this many requests per second.")
@click.option("--most", type=int, help="Request at most this many earlier detections per packet, newest first.")
@click.option("--group", metavar="NAME", help="Kafka consumer group.")
@click.option("--metrics-port", type=int, help="Serve Prometheus metrics on this port.")
@click.option("--drain", is_flag=True, help="Stop once everything present at the start has been examined.")
def backfill(provider: str, drain: bool, **given: Any) -> None:
    """Fetch the packets of earlier detections whose stamps are missing, from a provider.

    They are published to skyheed.alerts.SURVEY.backfill; add it to the topics of ingest.

    \b
    Example:  skyheed backfill --survey lsst --from rubin --topic lsst-alerts-v10.0 --config night.toml
    """
    from skyheed.broker import exchange

    given["topics"] = list(given["topics"]) or None
    places = {name: f"backfill.{name}" for name in ("rate", "most", "group", "metrics_port")}
    counts = exchange.run_backfill(settings_from(given, topics="ingest.topics", **places), provider, drain)
    click.echo(" ".join(f"{name}={count}" for name, count in counts.items()))


@click.command()
@options("config", "survey", "redis")
@click.argument("model")
def retire(model: str, **given: Any) -> None:
    """Remove a model that no worker runs any more: queue, books, results in Redis.

    What it published stays on its topic.

    \b
    Example:  skyheed retire convention --survey ztf
    """
    from skyheed.broker import health as health

    if not health.reading(settings_from(given))[0].retire(model):
        raise click.ClickException(f"no model {printable(model)} has joined: skyheed audit lists those that have")
    click.echo(f"{printable(model)} is retired")


VERBS = (demo, up, ingest, work, serve, replay, redrive, forward, backfill, retire)
