"""Simulated sources on real templates: what stands still is the packet's, what changes is the simulation's."""

from pathlib import Path

import numpy as np
import pytest

from skyheed.classifier.archives.check import validate
from skyheed.classifier.archives.extras import Extras, no_points
from skyheed.classifier.archives.reader import Archive, ArchiveObject, ArchiveWriter, split_of, stamp_rows
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.sky import simulate
from skyheed.classifier.sky.injection import name_in, scenes_of, suits, turned_about_the_source
from skyheed.classifier.sky.surveys import survey_named
from skyheed.classifier.training import dataset

STAR = {"reference_distance": 0.2, "reference_magnitude": 15.5, "catalogue_1_distance": 0.2, "catalogue_1_star": 0.98}
GALAXY = {"reference_distance": 0.3, "reference_magnitude": 17.0, "catalogue_1_distance": 0.3, "catalogue_1_star": 0.02}
EMPTY = {"catalogue_1_distance": 20.0, "catalogue_1_star": 0.9}
ZTF = survey_named("ztf")


def packets(path: Path, survey: str = "ztf", corners: float = 0.0, **kinds: dict[str, float]) -> Path:
    """An archive as `build-packets` makes it: each object with a template that is told from all others.

    Args:
        corners: pixels; beyond this width of a square turned by 45 degrees the template is blank.
    """
    rng = np.random.default_rng(1)
    y, x = np.indices((32, 32)) - 16
    seen = np.abs(x) + np.abs(y) < corners / 2 if corners else np.ones((32, 32), bool)
    with ArchiveWriter(path, {"command": "test"}, normalised=True) as writer:
        for number, (name, context) in enumerate(kinds.items()):
            template = rng.normal(0, 150, (1, 32, 32)).astype(np.float32)
            template[0, 20, 9] += 40_000 + 20_000 * number  # a neighbour
            template *= seen
            science = template + rng.normal(0, 900, template.shape).astype(np.float32)
            columns = {
                "source_id": [number + 1], "mjd": [59_000.0], "band": ["r"], "detected": True, "alert": True,
                "flux": [3e4], "flux_error": [3e3], "psf_fwhm": [np.nan], "sky_noise": [900.0], "zero_point": [np.nan],
            }  # fmt: skip
            images = {"stamp": science, "template": template, "difference": science - template}
            rows = stamp_rows(images, {key: np.asarray(value) for key, value in columns.items()})
            thing = ArchiveObject(name, "", "", False, np.nan, 10.0, 20.0, 59_000, "real", survey)
            context = {**context, "galactic_latitude": 41.0, "detections": 900.0}
            writer.add(thing, rows, Extras([no_points()], [context]))
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scenes = {f"star{n}": STAR for n in range(6)} | {f"galaxy{n}": GALAXY for n in range(6)} | {"empty": EMPTY}
    return packets(tmp_path_factory.mktemp("real") / "p", **scenes)


@pytest.fixture(scope="module")
def painted(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    out = tmp_path_factory.mktemp("painted") / "a"
    return Archive(simulate("ztf", 12, 3, out, balanced=True, scenes=real, processes=1, progress=False))


def test_archive_is_sound_and_in_the_splits_of_its_scenes(painted: Archive) -> None:
    assert validate(painted.path) == []
    assert painted.normalised
    for row in painted.objects.to_pylist():
        scene = row["parameters"].split('"scene": "')[1].split('"')[0]
        assert row["split"] == split_of(scene) == split_of(row["object_id"])
        assert row["origin"] == "painted"
        kind = {"Variable": "star", "AGN": "galaxy"}.get(row["class"], "")
        assert scene.startswith(kind or ("galaxy", "empty"))
    assert len(dataset.load(painted.path).stamps) == painted.card["stamps"]


def test_what_stands_still_is_the_packets(painted: Archive, real: Path) -> None:
    """The template is the scene's, turned; the science image holds it, and the difference does not."""
    templates = {
        name: Archive(real).stamps(name, kinds=("template",))[0]["template"] for name in Archive(real).object_ids
    }
    for row, stamps in painted.each(kinds=("stamp", "template", "difference")):
        scene = row["parameters"].split('"scene": "')[1].split('"')[0]
        turns = [turned_about_the_source(templates[scene], k, f) for k in range(4) for f in (False, True)]
        assert min(np.abs(stamps["template"][0] - t).max() for t in turns) < 200
        y, x = np.unravel_index(np.argmax(stamps["template"][0]), (32, 32))
        near = slice(max(y - 2, 0), y + 3), slice(max(x - 2, 0), x + 3)
        assert (stamps["stamp"][(slice(None), *near)].max((1, 2)) > 4000).all()
        assert (np.abs(stamps["difference"][:, y, x]) < 6 * stamps["sky_noise"]).all()


def test_the_change_is_where_it_should_be_and_as_bright_as_it_says(painted: Archive) -> None:
    for _, stamps in painted.each(kinds=("difference",)):
        cut = stamps["difference"][:, 12:21, 12:21].sum((1, 2))
        noise = 9 * stamps["sky_noise"]
        assert (np.abs(cut - 0.9 * stamps["flux"]) < 5 * noise + 0.15 * np.abs(stamps["flux"])).all()


def test_rubins_small_turned_stamps_are_painted_on_too(tmp_path: Path) -> None:
    scenes = packets(tmp_path / "p", "lsst", a=EMPTY, b=EMPTY, c=EMPTY, corners=30 * 2**0.5)
    made = Archive(
        simulate("lsst", 6, 3, tmp_path / "a", mixture={"SNIa": 0.5, "SNOther": 0.5}, scenes=scenes, processes=1,
                 progress=False)
    )  # fmt: skip
    for row, stamps in made.each(kinds=("stamp", "template", "difference")):
        cut = stamps["difference"][:, 10:23, 10:23].sum((1, 2))
        assert (np.abs(cut - stamps["flux"]) < 5 * 13 * stamps["sky_noise"] + 0.15 * np.abs(stamps["flux"])).all()
        for kind in ("stamp", "template", "difference"):
            assert (stamps[kind][:, 0, 0] == 0).all(), row["object_id"]  # what the turned camera did not see
    with pytest.raises(
        ArchiveError, match=r"none of the 3 scenes suits the class (AGN|Variable); they suit SNIa, SNOther"
    ):
        simulate("lsst", 8, 3, tmp_path / "b", balanced=True, scenes=scenes, processes=1, progress=False)


def test_context_is_the_scenes_with_the_sources_own_past(painted: Archive) -> None:
    for name in painted.object_ids:
        extras = painted.extras(name)
        assert extras is not None
        counts = [context["detections"] for context in extras.context]
        assert (np.diff(counts) >= 1).all()
        for context, row in zip(extras.context, painted.stamps(name, kinds=()), strict=True):
            assert context["galactic_latitude"] == 41.0
            if "reference_magnitude" in context:
                magnitude = 31.4 - 2.5 * np.log10(abs(row["flux"]))
                assert context["magnitude_over_reference"] == pytest.approx(
                    magnitude - context["reference_magnitude"], abs=1e-3
                )


def test_variables_have_the_flux_that_the_template_shows(painted: Archive) -> None:
    """15.5 mag is 2.3 mJy: what a star of that brightness shows in r on average."""
    seen = [
        np.median(stamps["source_flux"])
        for row, stamps in painted.each(kinds=())
        if row["class"] == "Variable" and row["type"] not in ("CV", "flare")
    ]
    assert all(5e5 < flux < 8e6 for flux in seen)


@pytest.mark.parametrize(
    ("context", "kinds"),
    [
        (STAR, {"Variable"}), (GALAXY, {"AGN", "SNIa", "SNOther"}), (EMPTY, {"SNIa", "SNOther"}),
        ({**GALAXY, "catalogue_1_distance": 4.0, "reference_distance": 4.0}, {"SNIa", "SNOther"}),
        ({**STAR, "catalogue_1_star": 0.6}, set()),
    ],
)  # fmt: skip
def test_what_may_lie_where(context: dict[str, float], kinds: set[str]) -> None:
    assert suits(context) == kinds


def test_turning_leaves_the_source_in_its_pixel() -> None:
    image = np.zeros((32, 32), np.float32)
    image[16, 16] = 1
    for quarters in range(4):
        for flipped in (False, True):
            assert turned_about_the_source(image, quarters, flipped)[16, 16] == 1


def test_names_lead_into_a_split() -> None:
    assert {split_of(name_in(split, "ztf-sim1-000001")) == split for split in ("train", "validation", "test")} == {True}


def test_scenes_that_cannot_be_used_are_refused_before_the_work(real: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="sends no templates"):
        simulate("sdss", 4, 3, tmp_path / "a", scenes=real, progress=False)
    with pytest.raises(ArchiveError, match="of ztf, not of lsst"):
        simulate("lsst", 4, 3, tmp_path / "a", scenes=real, progress=False)
    plain = simulate("ztf", 1, 3, tmp_path / "plain", processes=1, progress=False)
    with pytest.raises(ArchiveError, match="archive build-packets"):
        scenes_of(plain, ZTF)
    stars = packets(tmp_path / "stars", star=STAR)
    with pytest.raises(ArchiveError, match="none of the 1 scenes suits the class"):
        simulate("ztf", 4, 3, tmp_path / "b", balanced=True, scenes=stars, processes=1, progress=False)
