"""Every command, option, variable and setting in deploy/ exists in the program."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from broker import cli, config, metrics

DEPLOY = Path(__file__).parent.parent / "deploy"
COMPOSE_FILES = sorted(DEPLOY.glob("compose*.yaml"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


def services(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = documents(path)[0]["services"]
    return found


def check_command(words: list[str]) -> None:
    """Parse the words as the program would, without running the verb."""
    context = cli.skyheed.make_context("skyheed", list(words), resilient_parsing=False)
    name, command, rest = cli.skyheed.resolve_command(context, [*context._protected_args, *context.args])
    assert command is not None, name
    command.make_context(name, rest)


def compose_commands() -> list[tuple[str, list[str]]]:
    found = []
    for path in COMPOSE_FILES:
        for name in ("ingest", "work"):
            service = services(path).get(name, {})
            health = service.get("healthcheck", {}).get("test", ["CMD", "skyheed"])
            assert health[:2] == ["CMD", "skyheed"]
            found += [(f"{path.name}:{name}", words) for words in (service.get("command"), health[2:]) if words]
    return found


def kubernetes_commands() -> list[tuple[str, list[str]]]:
    found = []
    for container in (c for path in MANIFESTS for d in documents(path) for c in containers(d)):
        probe = container["readinessProbe"]["exec"]["command"]
        assert probe[0] == "skyheed"
        found += [(f"kubernetes:{container['name']}", words) for words in (container["args"], probe[1:])]
    return found


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = document.get("spec", {})
    found: list[dict[str, Any]] = spec.get("template", {}).get("spec", {}).get("containers", [])
    return found


@pytest.mark.parametrize(("where", "words"), [*compose_commands(), *kubernetes_commands()])
def test_every_command_parses(where: str, words: list[str]) -> None:
    check_command(words)


def test_all_commands_were_found() -> None:
    assert len(compose_commands()) == 5
    assert len(kubernetes_commands()) == 4


def test_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(click.UsageError):
        check_command(["work", "--devise", "cuda"])


def test_every_variable_is_read_by_the_program() -> None:
    known = {*config.ENVIRONMENT, config.CONFIG_VARIABLE}
    for path in [*DEPLOY.rglob("*.yaml"), DEPLOY / "environment.example"]:
        used = set(re.findall(r"SKYHEED_[A-Z_]+", path.read_text()))
        assert used <= known, f"{path.name}: {used - known}"


def test_the_settings_file_loads() -> None:
    settings = config.load(DEPLOY / "skyheed.toml", environ={})
    assert settings.ingest.topics
    assert tomllib.loads((DEPLOY / "skyheed.toml").read_text())["survey"] == settings.survey


def test_settings_and_compose_agree_on_addresses_and_ports() -> None:
    settings = config.load(DEPLOY / "skyheed.toml", environ={})
    stack = services(DEPLOY / "compose.yaml")
    kafka = settings.kafka["bootstrap.servers"]
    assert f"INSIDE://{kafka}" in stack["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert settings.redis.url.split("://")[1].split(":")[0] in stack
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    ports = {job["job_name"]: job["dns_sd_configs"][0]["port"] for job in jobs}
    assert ports == {"ingest": settings.ingest.metrics_port, "work": settings.work.metrics_port}


def test_valkey_keeps_what_it_acknowledged() -> None:
    words = services(DEPLOY / "compose.yaml")["valkey"]["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"


def test_every_file_that_compose_mounts_is_there() -> None:
    for service in services(DEPLOY / "compose.yaml").values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (DEPLOY / source).exists(), source


def test_the_dockerfile_copies_what_exists_and_installs_extras_that_exist() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    root = DEPLOY.parent
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in shlex.split(line)[:-1]:
            assert (root / source).exists(), source
    extras = re.search(r"\.\[([\w,]+)\]", text)
    assert extras
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert set(extras.group(1).split(",")) <= set(project["optional-dependencies"])
    assert 'ENTRYPOINT ["skyheed"]' in text
    assert "skyheed" in project["scripts"]


def test_every_metric_of_dashboard_and_alerts_exists() -> None:
    known = metrics.names()
    dashboard = json.loads((DEPLOY / "grafana" / "skyheed.json").read_text())
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    expressions = [t["expr"] for p in dashboard["panels"] for t in p["targets"]]
    expressions += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    used = set(re.findall(r"skyheed_\w+", " ".join(expressions)))
    assert len(used) >= 8
    assert used <= known, used - known
