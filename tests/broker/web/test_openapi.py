"""The OpenAPI document is what the server does: every operation fuzzed from it (schemathesis)."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from test_page_api import API, eventually
from web_tools import keep, page_of, page_settings, publish_news

from skyheed.broker import app as daemon
from skyheed.broker.local import embedded

schemathesis = pytest.importorskip("schemathesis")
pytestmark = [pytest.mark.kafka, pytest.mark.redis]
EXAMPLES = 12
LONG_EXAMPLES = 150
ENDLESS = f"{API}/events"


@pytest.fixture(scope="module")
def page(kafka: embedded.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with embedded.start_valkey() as valkey:
        made = page_settings(kafka.address, valkey, tmp_path_factory.mktemp("model"))
        daemon.prepare_topics(made, threading.Event())
        publish_news(made, {"a": 4, "b": 40})
        keep(made, {"a": 4, "b": 40})
        with page_of(made, tmp_path_factory.mktemp("page")) as client:
            eventually(lambda: client.get(f"{API}/state").json()["index"]["objects"] == 2)
            yield client


def fuzz(page: httpx.Client, examples: int) -> int:
    """Ask every operation strange things; how many operations there are."""
    document = page.get(f"{API}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=str(page.base_url).rstrip("/"))
    count = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == ENDLESS:
            continue
        count += 1

        @settings(
            max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate], derandomize=True,
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            _check(case, case.call(timeout=60))

        ask()
    return count


def _check(case: Any, answer: Any) -> None:
    """The answer is one that the document tells of."""
    where = f"{case.method} {answer.request.url}: {answer.status_code} {answer.content[:300]!r}"
    assert answer.status_code not in (500, 502), where
    case.validate_response(
        answer,
        checks=[
            schemathesis.checks.not_a_server_error,
            schemathesis.specs.openapi.checks.response_schema_conformance,
            schemathesis.specs.openapi.checks.status_code_conformance,
        ],
    )
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == ["application/problem+json"], where
        said = json.loads(answer.content)
        assert said["status"] == answer.status_code, where
        assert said["detail"], where


def test_every_operation(page: httpx.Client) -> None:
    assert fuzz(page, EXAMPLES) >= 20


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_operation_for_longer(page: httpx.Client) -> None:
    fuzz(page, LONG_EXAMPLES)


def test_the_document_needs_nothing_from_elsewhere(page: httpx.Client) -> None:
    document = page.get(f"{API}/openapi.json").json()
    assert document["openapi"].startswith("3.")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("summary"), (method, path)
            assert operation.get("description"), (method, path)
    assert page.get("/docs").status_code == 404, "it would load scripts of others"
