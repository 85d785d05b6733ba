"""Every verb has help with an example and stands in the README; errors are one sentence; the verbs work in a row."""

import json
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import click
import pytest
import redis as redis_py
from click.testing import CliRunner
from process_tools import run_verb
from state_tools import deliveries, observation
from stream_tools import ingest_all, numbered, publish, save_checkpoint, sdss_alert, settings_for

from skyheed.broker import app as daemon
from skyheed.broker import cli, config, replay
from skyheed.broker import health as check
from skyheed.broker.config import ENVIRONMENT
from skyheed.broker.errors import Reason
from skyheed.broker.local import embedded
from skyheed.broker.plugins import plugins
from skyheed.broker.settings import Settings

ROOT = Path(__file__).parents[2]


def verbs() -> list[str]:
    return cli.skyheed.list_commands(click.Context(cli.skyheed))


def commands(path: tuple[str, ...] = (), group: click.Group = cli.skyheed) -> list[tuple[str, ...]]:
    """Every verb, and every verb of those that are groups."""
    context, found = click.Context(group), []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += commands((*path, name), command)
    return found


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_help_has_an_example_that_can_be_typed(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli.skyheed, [*path, "--help"], terminal_width=200)
    assert result.exit_code == 0, result.output
    examples = re.findall(r"^ +(?:Example:)? +(skyheed .*)$", result.output, re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(example.partition(" > ")[0])[1:]
        command: click.Command = cli.skyheed
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None, example
            command = found
        asked = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"}
        assert asked <= {o for p in command.params for o in (*p.opts, *p.secondary_opts)}, example


def test_help_groups_the_verbs() -> None:
    text = CliRunner().invoke(cli.skyheed, ["--help"]).output
    titles = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert titles == ["Options", "Run", "Look", "Data", "Models"]
    grouped = [name for names in cli.GROUPS.values() for name in names]
    assert sorted(grouped) == verbs()
    for title, names in cli.GROUPS.items():
        own = re.split(r"^\w+:$", text.partition(f"\n{title}:")[2], flags=re.MULTILINE)[0]
        assert re.findall(r"^  ([\w-]+)  ", own, re.MULTILINE) == list(names)


@pytest.mark.parametrize("verb", verbs())
def test_the_readme_names_every_verb(verb: str) -> None:
    assert f"skyheed {verb}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("variable", sorted(ENVIRONMENT))
def test_every_variable_is_documented(variable: str) -> None:
    assert variable in (ROOT / "docs" / "operating.md").read_text()


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_documented(reason: Reason) -> None:
    assert f"`{reason}`" in (ROOT / "docs" / "operating.md").read_text()


@pytest.mark.parametrize(("verb", "group"), [("forward", "skyheed.sinks"), ("backfill", "skyheed.providers")])
def test_the_help_names_every_system_that_comes_with_us(verb: str, group: str) -> None:
    said = " ".join(CliRunner().invoke(cli.skyheed, [verb, "--help"]).output.split()).replace("- ", "-")
    assert [name for name in plugins(group) if not re.search(rf"[ ,]{re.escape(name)}[ ,]", said)] == []


def test_every_verb_that_drains_is_documented() -> None:
    context = click.Context(cli.skyheed)
    commands = {verb: cli.skyheed.get_command(context, verb) for verb in verbs()}
    drains = {verb for verb, c in commands.items() if c and any(p.name == "drain" for p in c.params)}
    text = (ROOT / "docs" / "operating.md").read_text()
    assert drains == {"ingest", "work", "subscribe", "forward", "backfill"}
    assert all(f"| `{verb}` | " in text for verb in drains)


@pytest.mark.parametrize("verb", ["ingest", "work", "up", "check"])
def test_server_verbs_take_both_servers(verb: str) -> None:
    command = cli.skyheed.get_command(click.Context(cli.skyheed), verb)
    assert command is not None
    assert {"kafka", "redis", "config", "survey"} <= {p.name for p in command.params}


@pytest.mark.parametrize("option", ["--most", "--processes"])
def test_a_count_of_none_is_refused_by_a_simulation(option: str, tmp_path: Path) -> None:
    words = ["archive", "simulate", "--survey", "ztf", "--objects", "2", option, "0", "-o", str(tmp_path / "a")]
    refused = CliRunner().invoke(cli.skyheed, words)
    assert (refused.exit_code, "0 is not in the range x>=1" in refused.output) == (2, True)


def test_an_expected_error_is_one_sentence_and_status_1() -> None:
    result = run_verb("ingest", "--survey", "hubble")
    assert result.returncode == 1
    assert result.stderr.startswith("skyheed: ")
    assert "hubble" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_password_on_the_command_line_is_refused_and_not_repeated() -> None:
    result = run_verb("audit", "--survey", "ztf", "--redis", "redis://me:hunter2@127.0.0.1:1")
    assert result.returncode == 1
    assert "SKYHEED_REDIS_PASSWORD" in result.stderr
    assert "hunter2" not in result.stdout + result.stderr


def test_a_missing_extra_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "from broker import cli; sys.argv = ['skyheed', 'audit', '--survey', 'ztf']; cli.main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "pip install 'skyheed[broker]'" in result.stderr


def test_the_subscriber_needs_no_torch_and_no_redis() -> None:
    code = (
        "import sys\nfor name in ('torch', 'redis', 'astropy', 'pyarrow'): sys.modules[name] = None\n"
        "from broker.subscribe import Subscriber"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_unknown_parts_of_check_are_named() -> None:
    result = CliRunner().invoke(cli.skyheed, ["check", "--only", "weather"])
    assert result.exit_code == 2
    assert "weather" in result.output


def test_a_file_that_cannot_be_written_is_one_sentence(kafka: embedded.Server) -> None:
    settings = settings_for(kafka.address, "redis://127.0.0.1:1", "sdss", "unused")
    publish(settings, "unwritable", [])
    words = ["--kafka", kafka.address, "--topic", "unwritable", "--format", "csv", "-o", "/proc/answers.csv"]
    result = run_verb("subscribe", *words, "--drain")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("skyheed: /proc/answers.csv: ")
    assert "Traceback" not in result.stderr


def test_a_metrics_port_in_use_is_one_sentence(kafka: embedded.Server, valkey: embedded.Server) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        result = run_verb(
            "ingest", "--survey", "sdss", "--kafka", kafka.address, "--redis", valkey.url, "--drain",
            "--metrics-port", str(taken.getsockname()[1]),
        )  # fmt: skip
    assert result.returncode == 1
    assert "choose another --metrics-port" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_replay_takes_schemas_and_topic_from_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def send(_options: object, _survey: object, _paths: object, topic: str, **options: Any) -> int:
        given.update(options, topic=topic)
        return 3

    monkeypatch.setattr(replay, "replay", send)
    file = tmp_path / "skyheed.toml"
    file.write_text(f'[registry]\ndirectory = "{tmp_path}"\n[ingest]\ntopics = ["^ztf_.*"]\n')
    result = CliRunner().invoke(cli.skyheed, ["replay", "lsst", str(tmp_path), "--config", str(file)])
    assert result.output == "sent 3 alerts to skyheed.alerts.lsst\n"
    assert f"directory {tmp_path}" in given["schemas"].describe()


# --- looking after it ----------------------------------------------------------------------------------------------


def line_of(settings: Settings, part: str) -> check.Line:
    [line] = check.check(settings, [part])
    return line


def test_who_only_reads_notices_a_wrong_number_of_shards(valkey: embedded.Server, tmp_path: Path) -> None:
    settings = settings_for("127.0.0.1:1", valkey.url, "sdss", "unused")
    daemon.read_store(settings)[2].ping()
    words = ["--survey", "sdss", "--redis", valkey.url]
    assert CliRunner().invoke(cli.skyheed, ["audit", *words]).exit_code == 0
    file = tmp_path / "skyheed.toml"
    file.write_text("[redis]\nshards = 8\n")
    for verb in (["audit"], ["object", "o1"], ["check", "--only", "queue"]):
        result = CliRunner().invoke(cli.skyheed, [*verb, *words, "--config", str(file)])
        assert result.exit_code == 1
        assert "set redis.shards = 16" in result.output + str(result.exception)


def test_who_only_reads_writes_nothing(valkey: embedded.Server) -> None:
    settings = settings_for("127.0.0.1:1", valkey.url, "sdss", "unused")
    assert check.reading(settings)[2].books().balanced
    assert line_of(settings, "queue").ok
    with redis_py.Redis.from_url(valkey.url) as client:
        assert client.keys() == []


def test_check_says_what_a_worker_here_would_compute_on(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.load(overrides={"survey": "sdss"}, environ={})
    monkeypatch.setattr("skyheed.classifier.serving.native_bfloat16", lambda: "")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = line_of(settings, "model")
    assert line.ok
    assert re.search(r"fusion-sdss .*; a worker here computes on cpu x\d+, float32 .*no native bf", line.sentence)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "no torch, so no worker" in line_of(settings, "model").sentence


def test_check_says_why_the_registry_is_not_well() -> None:
    settings = config.load(overrides={"survey": "lsst", "registry.url": "http://127.0.0.1:9"}, environ={})
    line = line_of(settings, "schema")
    assert not line.ok
    assert "http://127.0.0.1:9 does not answer: " in line.sentence
    assert "refused" in line.sentence


def test_check_tells_a_backlog_from_an_ingest_that_hangs(
    kafka: embedded.Server, valkey: embedded.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(kafka.address, valkey.url, "sdss", "backlog")
    publish(settings, "backlog", [sdss_alert("L", n) for n in range(5)])
    with monkeypatch.context() as patch:
        patch.setattr(check, "STANDS_S", 1.0)
        line = line_of(settings, "lag")
    assert not line.ok
    # the embedded broker counts a batch as one message
    assert re.match(r"\d alerts not yet read in 3 partitions, and group group-backlog is not advancing", line.sentence)
    monkeypatch.setattr(check, "STANDS_S", 60.0)
    reader = threading.Thread(target=ingest_all, args=(settings,))
    reader.start()
    assert line_of(settings, "lag").ok
    reader.join()
    assert line_of(settings, "lag") == check.Line("lag", True, "0 alerts not yet read in 3 partitions")
    # nobody works: the objects wait
    assert line_of(settings, "oldest").ok
    monkeypatch.setattr(check, "OLDEST_S", 0.0)
    monkeypatch.setattr(check, "STANDS_S", 1.0)
    line = line_of(settings, "oldest")
    assert (line.ok, "none is claimed: is a worker running?" in line.sentence) == (False, True), line


@pytest.mark.redis
def test_a_queue_that_is_late_is_well_while_it_is_worked_off(
    valkey: embedded.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config.with_servers(config.load(overrides={"survey": "sdss"}, environ={}), "127.0.0.1:1", valkey.url)
    store, queue, _ = daemon.connect_store(settings)
    store.store(deliveries([observation(f"o{n}") for n in range(40)]))
    time.sleep(1.1)  # debounce
    monkeypatch.setattr(check, "OLDEST_S", 0.0)
    monkeypatch.setattr(check, "STANDS_S", 20.0)
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.2):
            queue.claim(1, 60.0)

    thread = threading.Thread(target=work)
    thread.start()
    line = line_of(settings, "oldest")
    done.set()
    thread.join()
    assert (line.ok, "is being worked through" in line.sentence) == (True, True), line


# --- the verbs in a row --------------------------------------------------------------------------------------------


def test_the_verbs_in_a_row(kafka: embedded.Server, valkey: embedded.Server, tmp_path: Path) -> None:
    night, schemas = tmp_path / "night", tmp_path / "schemas"
    night.mkdir()
    schemas.mkdir()
    for n in range(6):
        (night / f"{n}.avro").write_bytes(sdss_alert(f"C{n % 2}", n))
    (night / "cut.avro").write_bytes(sdss_alert("C0", 6)[:-500])
    packet, schema = numbered(sdss_alert("C1", 7), 7)
    (night / "numbered.bin").write_bytes(packet)
    file = tmp_path / "skyheed.toml"
    file.write_text(
        f'survey = "sdss"\n[kafka]\n"bootstrap.servers" = "{kafka.address}"\n[redis]\nurl = "{valkey.url}"\n'
        f'[registry]\ndirectory = "{schemas}"\n[topics]\nprefix = "chain"\n'
        '[ingest]\ntopics = ["^chain\\\\.alerts\\\\..*"]\ngroup = "chain"\ndebounce_s = 0\n'
        f'[work]\nmodel = "{save_checkpoint(tmp_path, "sdss")}"\nthreads = 1\n'
    )

    def run(*words: str, status: int = 0) -> str:
        result = run_verb(*words, SKYHEED_CONFIG=str(file))
        assert result.returncode == status, result.stderr
        assert "Traceback" not in result.stderr
        return result.stdout + (result.stderr if status else "")

    assert "chain.deadletter.sdss" in run("deadletter", "list", status=1)  # there is no such topic yet
    assert run("replay", "sdss", str(night)) == "sent 8 alerts to chain.alerts.sdss\n"
    run("ingest", "--drain")
    books = json.loads(run("audit", "--json"))
    assert (books["consumed"], books["stored"], books["rejected"], books["pending"]) == (8, 6, 2, 2)
    assert "the prior 1,2 does not give each of AGN, " in run("work", "--drain", "--prior", "1,2", status=1)
    run("work", "--drain", "--prior", "1,1,1,2")
    found = [json.loads(line) for line in run("subscribe", "--drain", "--format", "json").splitlines()]
    assert sorted((r["object_id"], r["n_stamps"], r["status"]) for r in found) == [
        ("C0", 3, "CLASSIFIED"), ("C1", 3, "CLASSIFIED"),
    ]  # fmt: skip
    assert {r["provenance"]["model_version"].partition("+")[2] for r in found} == {"prior.1-1-1-2"}
    assert json.JSONDecoder().raw_decode(run("object", "C1"))[0]["n_stamps"] == 3
    [letter] = run("deadletter", "list", "--reason", "unknown_schema_id").splitlines()
    assert "no schema 7 in the registry" in letter
    (schemas / "7.avsc").write_text(json.dumps(schema))
    assert {"stored=1", "still_rejected=1"} <= set(run("redrive").split())
    daemon.connect_store(config.load(file, environ={}))[2].consumed({"chain.alerts.sdss/0": [10**6]})
    assert "1 without an outcome: offsets 1000000" in run("audit", status=1)


def test_a_signal_inside_a_call_of_librdkafka_ends_the_program_as_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """C code that calls Python turns the exception of a signal handler into a SystemError."""

    def wrapped() -> None:
        raise SystemError("returned a result with an exception set") from SystemExit(143)

    monkeypatch.setattr(cli, "skyheed", wrapped)
    monkeypatch.setattr(cli.terminal, "prepare", lambda: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 143


@pytest.mark.parametrize(("verb", "extra"), [("ingest", "broker"), ("demo", "all"), ("up", "all")])
def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(
    verb: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'redis'", name="redis")

    monkeypatch.setattr(cli, "skyheed", missing)
    monkeypatch.setattr(cli.terminal, "prepare", lambda: None)
    monkeypatch.setattr(sys, "argv", ["skyheed", verb])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert capsys.readouterr().err == f"skyheed: redis is not installed: pip install 'skyheed[{extra}]'\n"
