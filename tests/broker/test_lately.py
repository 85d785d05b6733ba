"""The memory of what came lately: bounded, and never shorter than it promises."""

from skyheed.broker.lately import Lately


def test_the_newest_names_are_remembered_and_memory_is_bounded() -> None:
    lately = Lately(100)
    for number in range(1000):
        lately.put(f"name {number}", number=number)
        assert len(lately) <= 200
        assert lately.get(f"name {max(0, number - 99)}") == max(0, number - 99)
    assert lately.get("name 0") is None


def test_a_name_put_again_has_its_newest_number() -> None:
    lately = Lately(2)
    lately.put("a", number=1)
    lately.put("b")
    lately.put("a", number=2)
    assert lately.get("a") == 2


def test_parts_of_a_name_do_not_run_together() -> None:
    lately = Lately(10)
    lately.put("a", "bc")
    assert lately.get("ab", "c") is None
    assert lately.get("a", "bc") == 0
    assert lately.get(b"a", b"bc") == 0  # text and its bytes are the same name
    lately.put("lone surrogate \ud800")
    assert lately.get("lone surrogate \ud800") == 0
