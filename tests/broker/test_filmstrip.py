"""The film strip: which epochs it shows, where, and which way up."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skyheed.broker import filmstrip
from skyheed.broker.filmstrip import GAP, HEAD, MARGIN, SCALE, FilmStrips, columns_of, draw
from skyheed.broker.state.client import Claim
from skyheed.broker.state.sequence import HEADER, StoredSequence

SIDE = 32 * SCALE + GAP


def sequence(*epochs: tuple[float, int]) -> StoredSequence:
    """Epochs (MJD, band's code); each stamp is bright in its north-east corner."""
    header = np.zeros(len(epochs), HEADER)
    header["mjd"], header["band"] = zip(*epochs, strict=True)
    header["source_id"] = np.arange(len(epochs)) + 10
    stamps = np.zeros((len(epochs), 32, 32), np.float16)
    stamps[:, -8:, :8] = 100  # rows south to north, columns east to west
    return StoredSequence("a", 1, Claim("a", 0, ""), header, stamps, {})


def picture(found: StoredSequence, kept: Any = None) -> np.ndarray:
    kept = np.ones(len(found.header), bool) if kept is None else kept
    return np.array(Image.open(io.BytesIO(draw(found, kept, "a strip"))))


def test_lanes_are_bands_and_columns_are_visits() -> None:
    image = picture(sequence((100.0, 1), (100.01, 2), (101.0, 2)))
    assert image.shape == (HEAD + 2 * SIDE, MARGIN + 2 * SIDE)
    dark = [
        [
            (image[HEAD + SIDE * lane :, MARGIN + SIDE * column :][: 32 * SCALE, : 32 * SCALE] < 128).any()
            for column in range(2)
        ]
        for lane in range(2)
    ]
    assert dark == [[True, False], [True, True]]  # no second epoch in g


def test_north_is_up_and_east_left() -> None:
    image = picture(sequence((100.0, 1)))[HEAD : HEAD + 64, MARGIN : MARGIN + 64]
    assert (image[:16, :16] == 0).all()
    assert (image[16:, 16:] == 255).all()


@pytest.mark.parametrize(
    ("epochs", "columns"),
    [
        ([(0.0, 1), (0.01, 2), (0.015, 3)], [0, 0, 0]),
        ([(0.0, 1), (0.01, 1)], [0, 1]),
        ([(0.0, 1), (0.015, 2), (0.03, 3)], [0, 0, 1]),
    ],
)
def test_columns(epochs: list[tuple[float, int]], columns: list[int]) -> None:
    mjd, band = map(np.array, zip(*epochs, strict=True))
    assert columns_of(mjd, band) == columns


def test_the_newest_of_many_epochs_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filmstrip, "MOST_EPOCHS", 3)
    assert picture(sequence(*[(float(n), 1) for n in range(9)])).shape[1] == MARGIN + 3 * SIDE


def test_epochs_whose_stamps_are_not_kept_are_left_out() -> None:
    whole = sequence((100.0, 1), (101.0, 1), (102.0, 1))
    partly = replace(whole, stamps=whole.stamps[1:2], gone=frozenset({0, 2}))

    class Store:
        def sequence(self, object_id: str) -> StoredSequence | None:
            return partly

    strips = FilmStrips(Store())  # type: ignore[arg-type]
    found = strips.of("a", [10, 11, 12], "t")
    assert found is not None
    assert Image.open(io.BytesIO(found)).size[0] == MARGIN + SIDE
    assert strips.of("a", [10, 12], "t") is None


def test_only_what_was_classified_is_drawn() -> None:
    class Store:
        def sequence(self, object_id: str) -> StoredSequence | None:
            return sequence((100.0, 1), (101.0, 1), (102.0, 1)) if object_id == "a" else None

    strips = FilmStrips(Store())  # type: ignore[arg-type]
    found = strips.of("a", [10, 11], "t")
    assert found is not None
    assert Image.open(io.BytesIO(found)).size[0] == MARGIN + 2 * SIDE
    assert strips.of("a", [99], "t") is None
    assert strips.of("b", [10], "t") is None
