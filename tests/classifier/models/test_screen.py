"""The check of difference stamps: its shapes, what it lets pass, and how it is learned and served."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fusion import FAMILY, made, saved, whole
from zoo_tools import SCALING

from skyheed.classifier import serving
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.fusion.screen import LARGEST, SHAPES, Screen
from skyheed.classifier.prediction import Declined
from skyheed.classifier.sky import artefacts
from skyheed.classifier.sky.simulation import simulate
from skyheed.classifier.training import screening
from skyheed.classifier.training.screening import Stamps

Y, X = np.indices((32, 32)) - 16.0


def psf(x: float = 0, y: float = 0, sigma: float = 1.1) -> np.ndarray:
    return np.exp(-0.5 * ((X - x) ** 2 + (Y - y) ** 2) / sigma**2)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (32, 32))


def shapes(*images: np.ndarray) -> list[dict[str, float]]:
    found, known = Screen().shapes(torch.from_numpy(np.arcsinh(np.stack(images)).astype(np.float32)))
    assert known.all()
    return [dict(zip(SHAPES, row, strict=True)) for row in found.tolist()]


def sources(count: int, seed: int) -> Stamps:
    """Point sources of both signs on noise, over a star in the template."""
    rng = np.random.default_rng(seed)
    flux = rng.choice([-1, 1], count) * np.exp(rng.uniform(np.log(4), np.log(300), count))
    places, widths = rng.uniform(-0.5, 0.5, (count, 2)), rng.uniform(0.9, 1.4, count)
    images = [f * psf(*p, s) + rng.normal(0, 1, (32, 32)) for f, p, s in zip(flux, places, widths, strict=True)]
    stars = [500 * psf(*p, s) for p, s in zip(places, widths, strict=True)]
    band = rng.integers(1, 3, count).astype(np.uint8)
    return Stamps(np.array(images, np.float16), np.array(stars, np.float16), band, np.arange(count) // 2)


def stamps(images: list[np.ndarray]) -> torch.Tensor:
    pixels = np.array(images, np.float16)
    return screening.scaled(SCALING, pixels, np.ones(len(pixels), np.uint8))


@pytest.fixture(scope="module")
def fitted() -> Screen:
    screen = Screen()
    screening.install(screen, sources(1200, 0), SCALING)
    return screen


def test_shapes_by_hand() -> None:
    one, moved, turned, dipole, pixel = shapes(
        200 * psf() + noise(0), 200 * psf(0.4) + noise(0), -200 * psf() - noise(0),
        60 * X * psf() + noise(0), 60 * (np.hypot(X, Y) == 0) + noise(0),
    )  # fmt: skip
    norm = np.sqrt((psf() ** 2).sum())  # of the best filter
    assert np.sinh(one["signal"]) == pytest.approx(200 * norm, rel=0.25)  # the noise is of some 200 pixels
    assert one["residual"] < 0.05
    assert one["offset"] < 0.05
    assert moved["offset"] == pytest.approx(0.4, abs=0.1)
    assert turned["signal"] == pytest.approx(one["signal"], abs=0.02)  # the sign of the source does not matter
    assert turned["negative"] < 0.1
    assert dipole["trough"] > 0.5 > one["trough"]
    assert dipole["negative"] > 0.5
    assert pixel["sharpness"] > one["sharpness"] + 0.5
    assert pixel["residual"] > 3 * one["residual"]


def test_a_brighter_source_has_the_same_shape_and_scale_does_not_matter() -> None:
    faint, bright = shapes(200 * psf() + noise(0), 20000 * psf() + noise(0))
    for name in SHAPES[1:]:
        assert bright[name] == pytest.approx(faint[name], abs=0.06)
    (scaled,) = shapes(7 * (200 * psf() + noise(0)))
    assert scaled == pytest.approx(faint, abs=1e-3)


def test_stamps_without_pixels_say_nothing(fitted: Screen) -> None:
    cut = 200 * psf() + noise(0)
    cut[:, :14] = 0  # the edge of a chip
    odds = fitted(stamps([np.zeros((32, 32)), np.where(X > 12, noise(1), 0), cut]))
    assert odds[0] == odds[1] == -LARGEST
    assert -LARGEST < float(odds[2]) < LARGEST


def test_what_is_learned_passes_sources_and_not_artefacts(fitted: Screen) -> None:
    own = sources(400, 7)
    passed = screening.odds_of(fitted, screening.scaled(SCALING, own.difference, own.band)) <= float(fitted.limit)
    assert passed.mean() > 0.95
    rng = np.random.default_rng(3)
    painted, kinds = artefacts.artefacts(rng, own.difference.astype(np.float32), own.template.astype(np.float32))
    assert len(painted) == len(own.band)  # every template has a star
    declined = screening.odds_of(fitted, stamps(list(painted))) > float(fitted.limit)
    for kind in range(len(artefacts.KINDS)):
        assert declined[kinds == kind].mean() > 0.6, artefacts.KINDS[kind]


def test_artefacts_are_where_a_detection_is_and_stand_out() -> None:
    own = sources(120, 5)
    none = np.zeros_like(own.template, np.float32)
    rng = np.random.default_rng(0)
    made_, kinds = artefacts.artefacts(rng, own.difference.astype(np.float32), none)
    assert set(kinds.tolist()) == {2, 3}  # without a star nothing is badly subtracted
    painted, kinds = artefacts.artefacts(rng, own.difference.astype(np.float32), own.template.astype(np.float32))
    assert set(kinds.tolist()) == {0, 1, 2, 3}
    for image in (*made_, *painted):
        away = np.abs(image[13:20, 13:20]).max() / artefacts.spread(image.astype(float))
        assert away > 3
    empty, _ = artefacts.artefacts(rng, none[:0], none[:0])
    assert empty.shape == (0, 32, 32)


def screened(fitted: Screen) -> tuple[object, dict[str, object]]:
    network = made(screen=True)
    assert network.screen is not None
    network.screen.load_state_dict(fitted.state_dict())
    return network, {"dipole": 40 * X * psf() + noise(0), "source": 40 * psf() + noise(0)}


def test_a_history_is_declined_by_the_mean_of_its_stamps_also_if_they_are_cached(
    fitted: Screen, tmp_path: Path
) -> None:
    network, looks = screened(fitted)
    model = serving.load(saved(network, tmp_path), survey="ztf")  # type: ignore[arg-type]

    def seen(*kinds: str) -> object:
        plain = whole(len(kinds))
        images = np.array([looks[kind] for kind in kinds], np.float16)
        return replace(plain, images={**plain.images, "difference": images})

    bad, good = seen("dipole"), seen("source")
    assert model.predict([bad])[0].reason == Declined.UNLIKE_TRAINING  # type: ignore[list-item]
    assert model.predict([good])[0].reason is None  # type: ignore[list-item]
    assert len(model.classify([bad])[0].probabilities) == 4  # type: ignore[list-item]
    assert model.predict([seen("source", "source", "source", "dipole")])[0].reason is None  # type: ignore[list-item]
    longer = seen("dipole", "dipole", "source")
    first = model.predict([longer.until(epochs=2)])[0]  # type: ignore[attr-defined]
    assert first.reason == Declined.UNLIKE_TRAINING
    images = {kind: pixels[2:] for kind, pixels in longer.images.items()}  # type: ignore[attr-defined]
    cached = replace(longer, images=images, shown=np.array([2]), kept=first.keep)  # type: ignore[type-var]
    assert model.predict([cached])[0].reason == model.predict([longer])[0].reason  # type: ignore[list-item]
    np.testing.assert_allclose(
        model.classify([cached])[0].probabilities,
        model.classify([longer])[0].probabilities,
        atol=1e-5,  # type: ignore[list-item]
    )


def test_a_checkpoint_gets_a_screen_and_nothing_else_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sky = simulate("ztf", 8, 3, tmp_path / "sky", seasons=1, balanced=True, most=6, processes=1, progress=False)
    old = saved(made(), tmp_path / "old")
    with pytest.raises(ModelError, match="fewer than 200 usable stamps"):
        screening.run(str(old), sky, tmp_path / "new")
    monkeypatch.setattr(screening, "FEWEST", 10)
    info = screening.run(str(old), sky, tmp_path / "new", "skyheed screen")
    assert info.version == "1-screened"
    assert info.training["screen"]["command"] == "skyheed screen"
    assert info.training["screen"]["archive"]["seed"] == 3
    before, after = checkpoint.load_state(old), checkpoint.load_state(tmp_path / "new")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name.split(".")[0] for name in set(after) - set(before)} == {"screen"}
    one, other = (serving.load(path, survey="ztf") for path in (old, tmp_path / "new"))
    np.testing.assert_array_equal(
        one.classify([whole(3)])[0].probabilities, other.classify([whole(3)])[0].probabilities
    )
    found = screening.stamps_of(Archive(sky))
    assert len(found.difference) == len(found.template) == len(found.band) == len(found.objects)
    assert np.bincount(found.objects).max() <= screening.EACH


def test_who_cannot_have_a_screen() -> None:
    with pytest.raises(ModelError, match="screen looks at difference stamps: set images to all"):
        FAMILY.configure({"screen": True, "images": "science"})
