"""The rules that `test_config` does not try with a file: what each one refuses, and that its bounds are accepted."""

from typing import Any

import pytest

from skyheed.broker import config
from skyheed.broker.errors import ConfigError
from skyheed.broker.settings_rules import LONGEST_MODEL_NAME, model_name_fault


def load(**overrides: Any) -> config.Settings:
    return config.load(overrides={name.replace("__", "."): value for name, value in overrides.items()}, environ={})


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"redis__keep_pixels": "never"}, "redis.keep_pixels must be one of always, until-seen"),
        ({"redis__books_idle_days": 0.0}, "redis.books_idle_days must be 0.01 to"),
        ({"redis__wait_replicas": -1}, "redis.wait_replicas must be 0"),
        ({"redis__wait_s": 11.0}, "redis.wait_s must be 0.1 to 10"),
        ({"redis__ca_file": "ca.pem"}, "need TLS: write rediss://"),
        ({"redis__url": "rediss://h", "redis__key_file": "k.pem"}, "redis.key_file needs redis.certificate_file"),
        ({"metrics__key_file": "k.pem"}, "metrics.key_file needs metrics.certificate_file"),
        ({"ingest__quiet_s": -0.5}, "ingest.quiet_s must be 0 to 86400, or -1"),
        ({"ingest__processes": 65}, "ingest.processes must be 1 to 64"),
        ({"ingest__metrics_port": 65_535, "ingest__processes": 2}, "too high for ingest.processes"),
        ({"ingest__least_score": 1.1}, "ingest.least_score must be 0"),
        ({"ingest__solar_system_arcsec": 31.0}, "ingest.solar_system_arcsec must be 0 to 30"),
        ({"ingest__join_arcsec": 5.1}, "ingest.join_arcsec must be 0"),
        ({"ingest__topics": ["skyheed.deadletter.ztf"]}, "ingest.topics: "),
        ({"topics__classifications": "a", "topics__dead_letters": "a"}, "must differ"),
        ({"work__batch_bytes": 65_535}, "work.batch_bytes must be 65536 to"),
        ({"work__batch_s": 0.001}, "work.batch_s must be 0.01 to 60"),
        ({"work__min_stamps": 100}, "work.min_stamps must be 0 to 99"),
        ({"work__format": "json"}, "work.format must be avro or elasticc"),
    ],
    ids=lambda given: given if isinstance(given, str) else ", ".join(given),
)
def test_what_cannot_work_is_one_sentence(overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load(survey="ztf", **overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        {"redis__wait_replicas": 100, "redis__wait_s": 10.0},
        {"redis__max_stamps": 99, "redis__shards": 4096, "redis__ttl_days": 0.01},
        {"redis__url": "rediss://h", "redis__certificate_file": "c.pem", "redis__key_file": "k.pem"},
        {"ingest__quiet_s": -1.0, "ingest__least_score": -1.0, "ingest__solar_system_arcsec": 30.0},
        {"ingest__metrics_port": 65_535, "ingest__join_arcsec": 5.0, "ingest__batch_bytes": 65_536},
        {"work__min_stamps": 99, "work__format": "elasticc", "work__lease_s": 86_400.0, "work__threads": 1024},
    ],
    ids=", ".join,
)
def test_the_bounds_themselves_are_taken(overrides: dict[str, Any]) -> None:
    load(survey="ztf", **overrides)


def test_names_of_models() -> None:
    assert not model_name_fault("ztf_fusion-2")
    assert not model_name_fault("a" * LONGEST_MODEL_NAME)
    for name in ("", "a b", "a.b", "é", "a" * (LONGEST_MODEL_NAME + 1)):
        assert "1 to 48 letters, digits, - and _" in model_name_fault(name)
