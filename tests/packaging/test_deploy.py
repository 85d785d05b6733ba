"""Every command, option, variable and setting in deploy/ exists in the program, in Valkey and in Kafka."""

import copy
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from server_tools import HOME, NEEDS_APACHE, start_apache_kafka

from skyheed.broker import app as daemon
from skyheed.broker import cli, config, metrics
from skyheed.broker import health as check
from skyheed.broker.kafka import client as kafka_client
from skyheed.broker.kafka import topics
from skyheed.broker.kafka.client import ensure_topics
from skyheed.broker.local import embedded
from skyheed.broker.local import processes as stack
from skyheed.broker.serve import PORT
from skyheed.broker.web.guard import FREE

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE_FILES = sorted(DEPLOY.glob("compose*.yaml"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DAEMONS = ("ingest", "work", "serve", "forward", "backfill")
METRICS = ("ingest", "work", "forward", "backfill")
# further secrets of each, and those that it does not need
OWN = {
    "forward": {"SKYHEED_FORWARD_TOKEN", "SKYHEED_FORWARD_SECRET"},
    "backfill": {"SKYHEED_BACKFILL_TOKEN"},
}
INPUT = {"SKYHEED_KAFKA_INPUT_USER", "SKYHEED_KAFKA_INPUT_PASSWORD"}
REGISTRY = {"SKYHEED_REGISTRY_USER", "SKYHEED_REGISTRY_PASSWORD"}
UNUSED = {"work": INPUT, "serve": REGISTRY, "forward": INPUT | REGISTRY | {"SKYHEED_REDIS_PASSWORD"}}


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


def with_defaults(text: str) -> str:
    """The text as compose fills it in without an environment."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def compose_commands() -> list[tuple[str, list[str]]]:
    found = []
    for path in COMPOSE_FILES:
        for name in DAEMONS:
            service = services(path).get(name, {})
            health = service.get("healthcheck", {}).get("test", ["CMD", "skyheed"])
            assert health[0] == "CMD"
            probe = health[2:] if health[1] == "skyheed" else []
            given = [with_defaults(word) for word in service.get("command", [])]
            found += [(f"{path.name}:{name}", words) for words in (given, probe) if words]
    return found


def systemd_commands() -> list[tuple[str, list[str]]]:
    found = []
    for path in UNITS:
        [line] = re.findall(r"^ExecStart=/opt/skyheed/bin/skyheed (.*)$", path.read_text(), re.MULTILINE)
        found.append((path.name, shlex.split(line.replace("%i", "lasair").replace("${STATE_DIRECTORY}", "/tmp"))))
    return found


def kubernetes_commands() -> list[tuple[str, list[str]]]:
    found = []
    for container in (c for path in MANIFESTS for d in documents(path) for c in containers(d)):
        probe = container["readinessProbe"].get("exec", {}).get("command", ["skyheed"])
        assert probe[0] == "skyheed"
        found += [(f"kubernetes:{container['name']}", words) for words in (container["args"], probe[1:]) if words]
    return found


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = document.get("spec", {})
    found: list[dict[str, Any]] = spec.get("template", {}).get("spec", {}).get("containers", [])
    return found


@pytest.mark.parametrize(("where", "words"), [*compose_commands(), *kubernetes_commands(), *systemd_commands()])
def test_every_command_parses(where: str, words: list[str]) -> None:
    check_command(words)


def test_all_commands_were_found() -> None:
    assert len(compose_commands()) == 8
    assert len(kubernetes_commands()) == 7
    assert [words[0] for _, words in systemd_commands()] == sorted(DAEMONS)


def test_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(click.UsageError):
        check_command(["work", "--devise", "cuda"])


def test_every_variable_is_read_by_the_program() -> None:
    known = {*config.ENVIRONMENT, config.CONFIG_VARIABLE}
    for path in [*DEPLOY.rglob("*.yaml"), DEPLOY / "environment.example"]:
        used = set(re.findall(r"SKYHEED_[A-Z_]+", path.read_text()))
        assert used <= known, f"{path.name}: {used - known}"


def test_every_variable_of_compose_stands_in_the_example() -> None:
    example = set(re.findall(r"^(\w+)=", (DEPLOY / "environment.example").read_text(), re.MULTILINE))
    for path in COMPOSE_FILES:
        used = set(re.findall(r"\$\{(\w+)", path.read_text()))
        assert used <= example, f"{path.name}: {used - example}"


def settings_files(tmp_path: Path) -> list[Path]:
    """The settings that compose mounts and those in the ConfigMap."""
    [text] = [d["data"]["skyheed.toml"] for path in MANIFESTS for d in documents(path) if d["kind"] == "ConfigMap"]
    (tmp_path / "kubernetes.toml").write_text(text)
    return [DEPLOY / "skyheed.toml", tmp_path / "kubernetes.toml"]


@pytest.mark.parametrize("survey", ["ztf", "lsst", "sdss"])
def test_the_survey_of_the_environment_brings_its_own_topics(survey: str, tmp_path: Path) -> None:
    for path in settings_files(tmp_path):
        settings = config.load(path, environ={"SKYHEED_SURVEY": survey})
        assert daemon.alert_topics(settings) == [f"skyheed.alerts.{survey}"]


def test_health_checks_judge_the_daemon_and_not_only_its_servers() -> None:
    wanted = {"ingest": "lag", "work": "oldest"}
    probes = [words for _, words in [*compose_commands(), *kubernetes_commands()] if "check" in words]
    parts = [set(words[-1].split(",")) for words in probes]
    assert len(parts) == 4
    assert all(found <= set(check.PARTS) for found in parts)
    stack = services(DEPLOY / "compose.yaml")
    for name, part in wanted.items():
        assert part in stack[name]["healthcheck"]["test"][-1].split(",")
        seconds = int(stack[name]["healthcheck"]["timeout"].removesuffix("s"))
        assert seconds > check.STANDS_S + topics.REQUEST_S
    assert sorted(p for found in parts for p in found & set(wanted.values())) == ["lag", "lag", "oldest", "oldest"]


def test_settings_and_compose_agree_on_addresses_and_ports() -> None:
    settings = config.load(DEPLOY / "skyheed.toml", environ={})
    stack = services(DEPLOY / "compose.yaml")
    kafka = settings.kafka["bootstrap.servers"]
    assert f"INSIDE://{kafka}" in stack["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert settings.redis.url.split("://")[1].split(":")[0] in stack
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    ports = {job["job_name"]: job["dns_sd_configs"][0]["port"] for job in jobs}
    assert ports == {name: getattr(settings, name).metrics_port for name in METRICS}


@pytest.mark.redis
def test_valkey_starts_with_the_options_of_compose_and_loses_nothing(tmp_path: Path) -> None:
    program, *options = map(with_defaults, services(DEPLOY / "compose.yaml")["valkey"]["command"])
    assert program == "valkey-server"
    port = embedded.free_port()
    command = [embedded.valkey_binary(), *options, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(tmp_path)]
    with embedded.Server("Valkey", command, port, embedded.answers_redis, tmp_path / "log") as server:
        health = check.state.health(check.state.connect(server.url))
    assert (health.eviction_policy, health.append_only, health.max_memory) == ("noeviction", True, 4 * 2**30)


def kafka_properties() -> dict[str, str]:
    """What the image makes of KAFKA_* variables: lower case, _ for a dot."""
    environment = services(DEPLOY / "compose.yaml")["kafka"]["environment"]
    assert all(name.startswith("KAFKA_") and "__" not in name for name in environment)
    return {name.removeprefix("KAFKA_").lower().replace("_", "."): value for name, value in environment.items()}


def test_listeners_of_kafka_fit_together() -> None:
    properties, stack = kafka_properties(), services(DEPLOY / "compose.yaml")
    listening = dict(word.split("://", 1) for word in properties["listeners"].split(","))
    advertised = dict(word.split("://", 1) for word in properties["advertised.listeners"].split(","))
    protocols = dict(word.split(":") for word in properties["listener.security.protocol.map"].split(","))
    controller = properties["controller.listener.names"]
    assert set(protocols) == set(listening) == {*advertised, controller}
    assert properties["inter.broker.listener.name"] in advertised
    assert properties["controller.quorum.voters"] == f"{properties['node.id']}@kafka{listening[controller]}"
    assert all(address.endswith(listening[name]) for name, address in advertised.items())
    outside = advertised["OUTSIDE"]
    assert stack["kafka"]["ports"] == [f"{outside}:{outside.rpartition(':')[2]}"]
    assert f"kafka:{properties['log.dirs']}" in stack["kafka"]["volumes"]


@pytest.mark.kafka
@pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)
def test_kafka_knows_the_settings_of_compose_and_starts_with_them(tmp_path: Path) -> None:
    properties = kafka_properties()
    command = ["java", "-XX:+UseSerialGC", "-cp", f"{HOME}/libs/*", "kafka.server.KafkaConfig"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert set(properties) <= set(re.findall(r'id="([\w.]+)"', listed))
    server = start_apache_kafka(HOME, tmp_path)
    here = {"9092": server.address.rpartition(":")[2], "19092": str(embedded.free_port())}
    here["9093"] = str(embedded.free_port())
    lines = [f"{name}={value}" for name, value in properties.items()]
    text = re.sub(r":(9092|19092|9093)\b", lambda found: f":{here[found[1]]}", "\n".join(lines))
    text = text.replace("kafka:", "127.0.0.1:").replace("://:", "://127.0.0.1:")
    text = text.replace(properties["log.dirs"], str(tmp_path / "log"))
    (tmp_path / "server.properties").write_text(text)
    with server:
        ensure_topics({"bootstrap.servers": server.address}, {"alerts": daemon.ALERT_TOPIC}, 1, -1)


def test_images_of_others_are_pinned_by_digest() -> None:
    """What is ours is built by whoever runs it."""
    images = [service["image"] for path in COMPOSE_FILES for service in services(path).values() if "image" in service]
    images += re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    others = [image for image in images if not image.startswith("skyheed")]
    assert len(others) == 6
    assert all(re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+(-slim)?@sha256:[0-9a-f]{64}", image) for image in others), others


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


def test_health_checks_of_the_page_and_of_metrics_ask_where_they_answer() -> None:
    stack, settings = services(DEPLOY / "compose.yaml"), config.load(DEPLOY / "skyheed.toml", environ={})
    ports = {"serve": PORT, "forward": settings.forward.metrics_port, "backfill": settings.backfill.metrics_port}
    for name, port in ports.items():
        [code] = stack[name]["healthcheck"]["test"][3:]
        compile(code, name, "exec")
        assert f"http://127.0.0.1:{port}/" in code
        container = next(c for p in MANIFESTS for d in documents(p) for c in containers(d) if c["name"] == name)
        [listening] = container["ports"]
        assert (listening["containerPort"], container["livenessProbe"]["httpGet"]["port"]) == (port, listening["name"])
    assert "/login".startswith(FREE), "a probe has no token"


def test_the_page_keeps_its_index_where_it_may_write() -> None:
    stack = services(DEPLOY / "compose.yaml")["serve"]
    folder = str(Path(stack["command"][stack["command"].index("--index") + 1]).parent)
    assert f"page:{folder}" in stack["volumes"]
    assert f"install -d -o skyheed -m 0700 {folder}" in (DEPLOY / "Dockerfile").read_text()
    container = next(c for p in MANIFESTS for d in documents(p) for c in containers(d) if c["name"] == "serve")
    assert folder in [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_give_daemons_no_rights_that_they_do_not_need(path: Path) -> None:
    text = path.read_text()
    for line in ("User=skyheed", "NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes",
                 "CapabilityBoundingSet=", "KillSignal=SIGTERM", "Restart=on-failure"):  # fmt: skip
        assert f"\n{line}\n" in text, line
    assert int(re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[0]) > 2 * (5.0 + kafka_client.CLOSE_S)


def test_containers_have_no_rights_that_they_do_not_need() -> None:
    for name in DAEMONS:
        service = services(DEPLOY / "compose.yaml")[name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
    for service in services(DEPLOY / "compose.yaml").values():
        assert service["logging"]["options"]["max-size"]
        assert ":" in service["image"]
        assert not service["image"].endswith(":latest")
    assert re.search(r"^USER skyheed$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    for document in (d for path in MANIFESTS for d in documents(path) if d["kind"] == "Deployment"):
        pod = document["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not container["image"].endswith(":latest")


def test_kubernetes_takes_every_secret_from_the_secret_and_spreads_and_keeps_its_pods() -> None:
    found = [d for path in MANIFESTS for d in documents(path)]
    kinds = [d["kind"] for d in found]
    several = [d["metadata"]["name"] for d in found if d["kind"] == "Deployment" and d["spec"]["replicas"] > 1]
    budgets = [d["metadata"]["name"] for d in found if d["kind"] == "PodDisruptionBudget"]
    assert several == budgets == ["skyheed-ingest", "skyheed-work"]
    assert kinds.count("Deployment") == len(DAEMONS)
    policies = [
        d["spec"]["podSelector"]["matchExpressions"][0]["values"] for d in found if d["kind"] == "NetworkPolicy"
    ]
    assert sorted(name for names in policies for name in names) == sorted(f"skyheed-{name}" for name in DAEMONS)
    for document in (d for d in found if d["kind"] == "Deployment"):
        spec = document["spec"]["template"]["spec"]
        assert document["spec"]["selector"]["matchLabels"] == document["spec"]["template"]["metadata"]["labels"]
        assert spec.get("topologySpreadConstraints") or document["spec"]["replicas"] == 1
        (container,) = spec["containers"]
        taken = {e["name"] for e in container["env"] if "valueFrom" in e}
        secrets = {name for name in config.ENVIRONMENT if name.endswith(("_USER", "_PASSWORD", "_TOKEN", "_SECRET"))}
        shared = {name for name in secrets if name.endswith(("_USER", "_PASSWORD"))}
        own = OWN.get(container["name"], set())
        assert taken == (shared - UNUSED.get(container["name"], set())) | own
        assert not any("value" in e and e["name"] in secrets for e in container["env"])
        assert container["livenessProbe"]["httpGet"]["port"] == container["ports"][0]["name"]
    work = next(c for d in found for c in containers(d) if c["name"] == "work")
    [text] = [d["data"]["skyheed.toml"] for d in found if d["kind"] == "ConfigMap"]
    assert work["resources"]["requests"]["cpu"] == str(tomllib.loads(text)["work"]["threads"])


@pytest.mark.skipif(not importlib.util.find_spec("check_jsonschema"), reason="needs check-jsonschema")
def test_compose_files_are_what_compose_takes(tmp_path: Path) -> None:
    """By the schema of the Compose Specification, which that package holds."""
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((DEPLOY / "compose.yaml").read_text().replace("read_only:", "readonly:"))
    for files, status in ((COMPOSE_FILES, 0), ([wrong], 1)):
        done = subprocess.run([*words, *map(str, files)], capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stdout + done.stderr


@pytest.mark.skipif(not importlib.util.find_spec("kubernetes_validate"), reason="needs kubernetes-validate")
def test_manifests_are_what_kubernetes_takes() -> None:
    import kubernetes_validate

    found = [d for path in MANIFESTS for d in documents(path) if not d["apiVersion"].startswith("keda.sh/")]
    version = kubernetes_validate.latest_version()
    for document in found:
        kubernetes_validate.validate(document, version, strict=True)
    wrong = copy.deepcopy(next(d for d in found if d["kind"] == "Deployment"))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def scaled() -> list[dict[str, Any]]:
    return [d for path in MANIFESTS for d in documents(path) if d["kind"] == "ScaledObject"]


def test_autoscaling_is_what_keda_takes() -> None:
    """A field that the models do not know would be lost on the way through them."""
    keda = pytest.importorskip("cloudcoil.models.keda.v1alpha1", reason="needs cloudcoil-models-keda")
    for document in scaled():
        assert through(keda.ScaledObject, document) == document
    wrong = copy.deepcopy(scaled()[0])
    wrong["spec"]["maxReplicas"] = 3
    assert through(keda.ScaledObject, wrong) != wrong
    wrong["spec"]["triggers"] = "prometheus"
    with pytest.raises(ValueError, match="triggers"):
        through(keda.ScaledObject, wrong)


def through(model: Any, document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = model.model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
    return found


def test_autoscaling_scales_what_is_there_by_metrics_that_exist() -> None:
    deployments = {d["metadata"]["name"]: d for p in MANIFESTS for d in documents(p) if d["kind"] == "Deployment"}
    assert [d["spec"]["scaleTargetRef"]["name"] for d in scaled()] == ["skyheed-ingest", "skyheed-work"]
    for document in scaled():
        spec = document["spec"]
        replicas = deployments[spec["scaleTargetRef"]["name"]]["spec"]["replicas"]
        assert 1 <= spec["minReplicaCount"] == replicas == spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
        # https://keda.sh/docs/latest/scalers/prometheus: all values are strings
        [trigger] = spec["triggers"]
        assert trigger["type"] == "prometheus"
        assert set(trigger["metadata"]) == {"serverAddress", "query", "threshold"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        assert set(re.findall(r"skyheed_\w+", trigger["metadata"]["query"])) <= metrics.names()


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (Debian's package prometheus)")
def test_autoscaling_asks_prometheus_what_it_understands(tmp_path: Path) -> None:
    """One number for a survey, of the model that has most to do."""
    rules = [
        {"record": d["metadata"]["name"].replace("-", ":"), "expr": d["spec"]["triggers"][0]["metadata"]["query"]}
        for d in scaled()
    ]
    series = {
        'skyheed_consumer_lag_messages{survey="ztf",partition="t/0",instance="a"}': 900,
        'skyheed_consumer_lag_messages{survey="ztf",partition="t/1",instance="b"}': 100,
        'skyheed_consumer_lag_messages{survey="lsst",partition="t/1",instance="c"}': 7,
        'skyheed_queue_objects{survey="ztf",model="m",state="due",instance="a"}': 40,
        'skyheed_queue_objects{survey="ztf",model="m",state="due",instance="b"}': 41,
        'skyheed_queue_objects{survey="ztf",model="m",state="new",instance="b"}': 9,
        'skyheed_queue_objects{survey="ztf",model="m",state="in_flight",instance="b"}': 500,
        'skyheed_queue_objects{survey="ztf",model="n",state="new",instance="b"}': 3,
    }
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "keda", "rules": rules}]}))
    tests = [{
        "interval": "1m",
        "input_series": [{"series": name, "values": f"{value}+0x5"} for name, value in series.items()],
        "promql_expr_test": [
            {"expr": "skyheed:ingest", "eval_time": "3m", "exp_samples": [{"labels": "skyheed:ingest", "value": 1000}]},
            {"expr": "skyheed:work", "eval_time": "3m", "exp_samples": [{"labels": "skyheed:work", "value": 50}]},
        ],
    }]  # fmt: skip
    (tmp_path / "test.yml").write_text(json.dumps({"rule_files": ["rules.yml"], "tests": tests}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_daemons_have_more_time_to_end_than_they_need() -> None:
    """Five seconds, and Kafka's own for a broker that is unavailable."""
    needed = 5.0 + kafka_client.CLOSE_S
    for name in DAEMONS:
        assert int(services(DEPLOY / "compose.yaml")[name]["stop_grace_period"].removesuffix("s")) > 2 * needed
    for document in (d for path in MANIFESTS for d in documents(path) if d["kind"] == "Deployment"):
        assert document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 2 * needed
    assert needed < stack.STOP_S


def bytes_of(size: str) -> int:
    """Of compose's 512m and 4gb, and of Kubernetes' 2Gi: both count in powers of 2."""
    number, unit = re.fullmatch(r"(\d+)([kmg])i?b?", size.lower()).groups()  # type: ignore[union-attr]
    return int(number) * 2 ** {"k": 10, "m": 20, "g": 30}[unit]


def test_every_container_has_a_limit_of_memory_that_it_can_live_with() -> None:
    stack = services(DEPLOY / "compose.yaml")
    limits = {name: bytes_of(with_defaults(service["mem_limit"])) for name, service in stack.items()}
    here = {c["name"]: c["resources"] for path in MANIFESTS for d in documents(path) for c in containers(d)}
    assert {name: bytes_of(own["limits"]["memory"]) for name, own in here.items()} == {n: limits[n] for n in DAEMONS}
    assert all(bytes_of(own["requests"]["memory"]) < bytes_of(own["limits"]["memory"]) for own in here.values())
    assert limits["valkey"] == 2 * bytes_of(with_defaults("${VALKEY_MAXMEMORY:-4gb}"))
    assert "VALKEY_MAXMEMORY:-4gb" in (DEPLOY / "compose.yaml").read_text()
    # docs/limits.md, "What one daemon holds in memory", with the four partitions that we make by default
    settings = config.load(environ={})
    fetched = 64 * 2**20 + settings.topics.partitions * 115 * 2**20
    assert 120 * 2**20 + settings.ingest.batch_bytes + fetched < limits["ingest"] / 2
    table = (DEPLOY.parent / "docs" / "sizing.md").read_text().partition("## Memory of the containers")[2]
    said = re.findall(r"^\| ([\w, ]+) \| (\d+) GiB", table, re.MULTILINE)
    assert {name: int(size) * 2**30 for names, size in said for name in names.split(", ")} == {
        name: size for name, size in limits.items() if name not in ("prometheus", "grafana")
    }


PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(not PROMTOOL, reason="needs promtool (Debian's package prometheus)")
def test_the_alert_rules_ring_and_stay_quiet_as_they_should() -> None:
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", str(Path(__file__).with_name("alerts_test.yml"))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_job_of_a_rule_is_scraped_on_compose_and_on_kubernetes() -> None:
    rules = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    wanted = {job for jobs in re.findall(r'job=~?"([\w|]+)"', rules) for job in jobs.split("|")}
    assert wanted == set(METRICS)
    for name in ("prometheus.yml", "kubernetes.yml"):
        jobs = yaml.safe_load((DEPLOY / "prometheus" / name).read_text())["scrape_configs"]
        assert {job["job_name"] for job in jobs} == wanted
    labels = [d["spec"]["template"]["metadata"]["labels"]["app"] for p in MANIFESTS for d in documents(p)
              if d["kind"] == "Deployment"]  # fmt: skip
    assert sorted(labels) == sorted(f"skyheed-{name}" for name in DAEMONS)


def test_settings_of_containers_listen_on_all_addresses_and_others_on_none_but_this_machine(tmp_path: Path) -> None:
    for path in settings_files(tmp_path):
        settings = config.load(path, environ={})
        assert {getattr(settings, name).metrics_host for name in METRICS} == {"0.0.0.0"}
    assert {getattr(config.load(environ={}), name).metrics_host for name in METRICS} == {"127.0.0.1"}


def test_files_of_secrets_are_ignored_by_git_and_docker_in_every_folder() -> None:
    root = DEPLOY.parent
    for name in (".env", "deploy/.env", "deploy/kubernetes/.env.production"):
        ignored = subprocess.run(["git", "check-ignore", "-q", name], cwd=root, check=False)
        assert ignored.returncode == 0, name
    assert {"**/.env", "**/.env.*"} <= set((root / ".dockerignore").read_text().splitlines())
    example = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "environment.example").read_text(), re.MULTILINE))
    assert not [
        name for name, value in example.items() if value and name.endswith(("_PASSWORD", "_USER", "_TOKEN", "_SECRET"))
    ]


def test_every_metric_of_dashboard_and_alerts_exists() -> None:
    known = metrics.names()
    dashboard = json.loads((DEPLOY / "grafana" / "skyheed.json").read_text())
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    expressions = [t["expr"] for p in dashboard["panels"] for t in p["targets"]]
    expressions += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    used = set(re.findall(r"skyheed_\w+", " ".join(expressions)))
    assert len(used) >= 8
    assert used <= known, used - known
