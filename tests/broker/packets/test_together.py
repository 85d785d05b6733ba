"""Stamps of many packets made together: the same bits as alone, and what is wrong stays with its packet."""

import gzip
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.observation import Observation
from skyheed.broker.packets import stamps
from skyheed.broker.packets.reader import PacketReader
from skyheed.broker.packets.stamps import Unfinished, Waiting, WantedStamps
from skyheed.broker.packets.surveys import base
from skyheed.classifier.stamp import NORTH_UP, EmptyStampError, normalise, normalise_at, place, rounded

RNG = np.random.default_rng(11)
TURNED = ((0.7, 0.7), (-0.7, 0.7))


def image_of(kind: str, side: int = 63) -> np.ndarray:
    """Noise, or noise with what real stamps have: NaN, ZTF's lowest float32, very large values."""
    pixels = RNG.normal(100, 5, (side, side)).astype(np.float32)
    if kind == "nan":
        pixels[RNG.integers(0, side, 200), RNG.integers(0, side, 200)] = np.nan
    if kind == "lowest":
        pixels[3, 4] = -3.40282347e38
    if kind == "large":
        pixels[20:40, 20:40] = 3e38
    if kind == "empty":
        pixels[:] = np.nan
    if kind == "no border":
        pixels[[0, 1, -2, -1]] = np.nan
        pixels[:, [0, 1, -2, -1]] = np.inf
    return pixels


@pytest.mark.parametrize("to_sky", [NORTH_UP, ((-1.0, 0.0), (0.0, -1.0)), TURNED])
@pytest.mark.parametrize("centre", [None, (3.0, 60.0)])
def test_the_same_bits_as_alone(to_sky: Any, centre: Any) -> None:
    kinds = ["whole", "nan", "whole", "lowest", "large", "empty", "no border", "whole"] * 3
    images = np.stack([image_of(kind) for kind in kinds])
    scales = RNG.uniform(0.01, 90, len(kinds))
    made = normalise_at(images, scales, [place((63, 63), 1.0, centre, to_sky)] * len(images))
    assert [one is None for one in made] == [kind == "empty" for kind in kinds]
    for pixels, scale, one in zip(images, scales, made, strict=True):
        if one is not None:
            stamp, flags = normalise(pixels, float(scale), centre, to_sky)
            assert one[1] == flags
            assert one[0].tobytes() == stamp.tobytes()


def test_images_turned_by_different_angles_are_made_together() -> None:
    """Rubin's packets each have their own orientation and source position."""
    kinds = ["whole", "nan", "whole", "lowest", "large", "empty", "no border", "whole"] * 6
    angles = np.radians(np.repeat(RNG.uniform(5, 85, len(kinds) // 2), 2))  # two images of each packet
    matrices = [((float(-np.cos(a)), float(np.sin(a))), (float(np.sin(a)), float(np.cos(a)))) for a in angles]
    centres = [(float(x), float(y)) for x, y in RNG.uniform(0, 29, (len(kinds), 2))]
    images, scales = np.stack([image_of(kind, 30) for kind in kinds]), RNG.uniform(0.01, 90, len(kinds))
    places = [place((30, 30), 1.0, *where) for where in zip(centres, matrices, strict=True)]
    assert {at.group for at in places} == {(30, 30)}
    made = normalise_at(images, scales, places)
    for pixels, scale, centre, to_sky, one in zip(images, scales, centres, matrices, made, strict=True):
        if one is None:
            with pytest.raises(EmptyStampError):
                normalise(pixels, float(scale), centre, to_sky)
        else:
            stamp, flags = normalise(pixels, float(scale), centre, to_sky)
            assert one[1] == flags
            assert one[0].tobytes() == stamp.tobytes()


def fits_of(pixels: np.ndarray) -> bytes:
    """A gzipped FITS file."""
    out = io.BytesIO()
    fits.PrimaryHDU(pixels).writeto(out)
    return gzip.compress(out.getvalue(), 1)


def packet_of(*kinds: str, side: int = 63) -> WantedStamps:
    names = ("science", "difference", "template")
    files = {name: fits_of(image_of(kind, side)) for name, kind in zip(names, kinds, strict=False)}
    return WantedStamps(files, 2.5, lambda _: (None, NORTH_UP))


def test_packets_of_many_kinds_wait_and_are_made_together() -> None:
    packets = [
        packet_of("whole", "nan", "whole"), packet_of("empty", "whole"), packet_of("nan", side=40),
        packet_of("whole", "empty", "lowest"), packet_of("large"),
    ]  # fmt: skip
    alone = []
    for wanted in packets:
        single = replace(wanted)
        try:
            alone.append(single.result())
        except PacketError as error:
            alone.append(error.reason)  # type: ignore[arg-type]
    waiting = Waiting()
    for wanted in packets:
        waiting.add(wanted)
    waiting.make()
    assert all(not wanted.files for wanted in packets), "their files are let go"
    for wanted, expected in zip(packets, alone, strict=True):
        if isinstance(expected, Reason):
            with pytest.raises(PacketError) as refused:
                wanted.result()
            assert refused.value.reason is expected is Reason.EMPTY_STAMP
            continue
        found, flags = wanted.result()
        assert flags == expected[1]
        assert list(found) == list(expected[0])
        assert all(found[kind].tobytes() == expected[0][kind].tobytes() for kind in found)
        further = list(found)[1:]
        assert all(np.array_equal(rounded(found[kind]), found[kind]) for kind in further)


def test_what_waits_is_bounded() -> None:
    waiting, most = Waiting(), 0
    for _ in range(200):
        waiting.add(packet_of("whole", "whole", "whole"))
        most = max(most, waiting._size)
    assert most < stamps.MOST_BYTES


def test_small_files_do_not_wait_without_end() -> None:
    waiting, most = Waiting(), 0
    for _ in range(200):
        waiting.add(WantedStamps({"science": b"x"}, 1.0, lambda _: (None, NORTH_UP)))
        most = max(most, len(waiting._wanted))
    assert most < stamps.MOST_FILES


def test_an_unexpected_error_is_told_of_its_packet_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [packet_of("whole", "whole") for _ in range(4)]
    bad, plain = wanted[2], stamps.normalise_at

    def failing(pixels: np.ndarray, scales: np.ndarray, at: Any) -> Any:
        if (scales == 7.0).any():
            raise ZeroDivisionError
        return plain(pixels, scales, at)

    bad.njy_per_count = 7.0
    monkeypatch.setattr(stamps, "normalise_at", failing)
    waiting = Waiting()
    for one in wanted:
        waiting.add(one)
    waiting.make()
    for one in wanted:
        if one is bad:
            with pytest.raises(ZeroDivisionError):
                one.result()
        else:
            assert set(one.result()[0]) == {"science", "difference"}


class Numbers(base.InSteps, base.BaseSurvey):
    """A survey of records that say what becomes of them."""

    name = "numbers"
    all_bands = "r"
    schema_file = "sdss_alert/v1/reader.avsc"

    def begin(self, record: dict[str, Any]) -> Unfinished:
        if record["is"] == "damaged":
            raise PacketError(Reason.NO_TIME, "damaged")
        if record["is"] == "fault":
            raise ZeroDivisionError
        wanted = packet_of(record["is"])
        return Unfinished(wanted, lambda made, flags: observation(made["science"], flags))


def observation(stamp: np.ndarray, flags: int) -> Observation:
    return Observation("object", 1, 60000.0, "r", 10.0, 20.0, 1.0, 1.0, stamp, flags)


class Listed:
    """A decoder whose messages are lists of records already."""

    def decode(self, payload: Any, headers: Any = None) -> list[dict[str, Any]]:
        return [{"is": kind} for kind in payload]


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (("whole", "empty", "damaged"), Reason.EMPTY_STAMP),
        (("whole", "damaged", "empty"), Reason.NO_TIME),
        (("empty", "fault"), Reason.EMPTY_STAMP),
        (("damaged", "fault"), Reason.NO_TIME),
    ],
)
def test_of_several_records_the_first_fault_is_told(records: Any, reason: Reason) -> None:
    reader = PacketReader(Numbers(), Listed())  # type: ignore[arg-type]
    waiting = Waiting()
    with pytest.raises(PacketError) as refused:
        reader.finish(reader.begin(records, None, lambda: None, waiting))
    assert refused.value.reason is reason


class Other(Numbers):
    """A survey of another package that made one of ours into its own."""

    def observation(self, record: dict[str, Any]) -> Observation:
        return replace(super().observation(record), object_id="other")


def test_a_subclass_with_an_observation_of_its_own_is_asked() -> None:
    reader = PacketReader(Other(), Listed())  # type: ignore[arg-type]
    assert [seen.object_id for seen in reader.observations(["whole"])] == ["other"]  # type: ignore[arg-type]
