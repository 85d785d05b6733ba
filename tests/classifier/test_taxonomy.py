"""The classes and their ids."""

from skyheed.classifier import taxonomy
from skyheed.classifier.archives import reader as archive


def test_every_class_has_an_id_of_its_own() -> None:
    names = {*taxonomy.CLASSES, *taxonomy.THREE_CLASSES}
    assert names <= set(taxonomy.CLASS_IDS)
    assert len({taxonomy.CLASS_IDS[name] for name in names} | {taxonomy.NOT_CLASSIFIED}) == len(names) + 1


def test_ids_are_those_of_elasticc() -> None:
    assert [taxonomy.CLASS_IDS[name] for name in taxonomy.CLASSES] == [2332, 2222, 2100, 2221]
    assert taxonomy.NOT_CLASSIFIED == 300


def test_three_classes_merge_the_supernovae_only() -> None:
    assert [taxonomy.merge_supernovae(name) for name in taxonomy.CLASSES] == ["AGN", "SN", "Variable", "SN"]
    assert set(map(taxonomy.merge_supernovae, taxonomy.CLASSES)) == set(taxonomy.THREE_CLASSES)


def test_supernovae_are_one_class_among_those_who_do_not_tell_them_apart() -> None:
    assert taxonomy.among("SNIa", taxonomy.CLASSES) == "SNIa"
    assert taxonomy.among("SNIa", taxonomy.THREE_CLASSES) == "SN"
    assert taxonomy.among("AGN", taxonomy.THREE_CLASSES) == "AGN"


def test_archives_have_the_same_classes() -> None:
    assert tuple(archive.CLASSES) == taxonomy.CLASSES
