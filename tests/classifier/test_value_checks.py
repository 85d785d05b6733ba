"""Checks of single values: each refusal names the key, the value and what to write."""

from collections.abc import Callable

import pytest

from skyheed.classifier import value_checks
from skyheed.classifier.errors import ModelError

REFUSED: dict[str, Callable[[], None]] = {
    "key is 3: give a number, between 0 and 1": lambda: value_checks.number("key", 3, 0, 1),
    "key is nan: give a number": lambda: value_checks.number("key", float("nan")),
    "key is True: give a whole number, 1 or more": lambda: value_checks.count("key", True, 1),
    "key is 0: give a whole number, 1 or more": lambda: value_checks.count("key", 0, 1),
    "key is 1: give true or false": lambda: value_checks.switch("key", 1),
    "key is 'c': use a or b": lambda: value_checks.choice("key", "c", ["a", "b"]),
    "key has -1: give finite numbers above 0": lambda: value_checks.positive("key", 1.0, -1),
    "key is '': give a text": lambda: value_checks.text("key", ""),
    "bands is 'gg': give letters of": lambda: value_checks.bands("gg"),
    "classes is AGN: give two or more, each once": lambda: value_checks.classes(["AGN"]),
    "classes has 'Nova': known are": lambda: value_checks.classes(["AGN", "Nova"]),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_refusal_names_key_value_and_remedy(sentence: str) -> None:
    with pytest.raises(ModelError) as refusal:
        REFUSED[sentence]()
    assert str(refusal.value).startswith(sentence)


def test_valid_values_pass_and_long_ones_are_shortened() -> None:
    value_checks.number("key", 1, 0, 1)
    value_checks.count("key", 1, 1)
    value_checks.bands("gri")
    value_checks.classes(["AGN", "SNIa"])
    assert len(value_checks.shown("x" * 10_000)) < 100
