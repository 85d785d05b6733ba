"""The memory of what came recent: bounded, and never shorter than it promises."""

from skyheed.broker.recently_seen import Recent


def test_the_newest_names_are_remembered_and_memory_is_bounded() -> None:
    recent = Recent(100)
    for number in range(1000):
        recent.put(f"name {number}", number=number)
        assert len(recent) <= 200
        assert recent.get(f"name {max(0, number - 99)}") == max(0, number - 99)
    assert recent.get("name 0") is None


def test_a_name_put_again_has_its_newest_number() -> None:
    recent = Recent(2)
    recent.put("a", number=1)
    recent.put("b")
    recent.put("a", number=2)
    assert recent.get("a") == 2


def test_parts_of_a_name_do_not_run_together() -> None:
    recent = Recent(10)
    recent.put("a", "bc")
    assert recent.get("ab", "c") is None
    assert recent.get("a", "bc") == 0
    assert recent.get(b"a", b"bc") == 0  # text and its bytes are the same name
    recent.put("lone surrogate \ud800")
    assert recent.get("lone surrogate \ud800") == 0
