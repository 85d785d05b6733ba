"""Archives of packets from many hands: whole, empty, cut short, hostile."""

import gzip
import io
import logging
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from server_tools import HOME, NEEDS_APACHE  # noqa: F401
from test_replay import SDSS, packet, tarred

from skyheed.broker import replay
from skyheed.broker.errors import ConfigError
from skyheed.broker.kafka.client import BatchConsumer
from skyheed.broker.local import embedded
from skyheed.broker.packets import files as packet_files
from skyheed.broker.packets.files import DEEPEST, LARGEST
from skyheed.broker.packets.index import PacketIndex

APPLE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(180)
PACKETS = [packet(i, 53600.0 + i) for i in range(6)]


def taken(*paths: Path) -> tuple[list[bytes], list[str]]:
    """The packets of these inputs, and what is said to be damaged."""
    with PacketIndex(SDSS) as index:
        for path in paths:
            index.add(path)
        return [index.payload(i) for i in range(len(index))], list(index.damaged)


def mac_tar() -> bytes:
    files = {"./": b"", "night/": b""}
    for number, data in enumerate(PACKETS):
        files |= {f"./night/._{number}.avro": APPLE, f"./night/{number}.avro": data}
    files |= {"__MACOSX/night/0.avro": APPLE, ".Trashes/0.avro": APPLE, "night/.DS_Store": APPLE, "._x.tar": APPLE}
    return tarred(files)


@pytest.mark.parametrize("packed", [False, True])
def test_what_macos_adds_is_passed_over(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("a.tar.gz" if packed else "a.tar")
    path.write_bytes(gzip.compress(mac_tar()) if packed else mac_tar())
    assert taken(path) == (PACKETS, [])
    folder = tmp_path / "folder"
    (folder / "__MACOSX").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "sub.avro").mkdir()  # a folder of that name
    for number, data in enumerate(PACKETS):
        (folder / f"{number}.avro").write_bytes(data)
        for name in (f"._{number}.avro", f"__MACOSX/{number}.avro", f".hidden/{number}.avro"):
            (folder / name).write_bytes(APPLE)
    assert taken(folder) == (PACKETS, [])


def test_directories_links_and_devices_in_a_tar_are_no_packets(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("d.avro", tarfile.DIRTYPE), ("l.avro", tarfile.SYMTYPE), ("h.avro", tarfile.LNKTYPE),
                           ("p.avro", tarfile.FIFOTYPE), ("c.avro", tarfile.CHRTYPE)):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in ("../../0.avro", "/tmp/1.avro"):  # where they would be unpacked is of no matter
            info = tarfile.TarInfo(name)
            info.size = len(PACKETS[0])
            archive.addfile(info, io.BytesIO(PACKETS[0]))
    assert taken(tmp_path / "a.tar") == ([PACKETS[0]] * 2, [])


@pytest.mark.parametrize(
    "nothing", [tarred({}), gzip.compress(tarred({})), gzip.compress(b"")], ids=["tar", "tar in gzip", "gzip"]
)
def test_an_empty_night_does_not_stop_the_rest(
    tmp_path: Path, nothing: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ztf_public_20260401.tar.gz").write_bytes(gzip.compress(tarred({"0.avro": PACKETS[0]})))
    empty = tmp_path / "ztf_public_20260402.tar.gz"
    empty.write_bytes(nothing)
    (tmp_path / "ztf_public_20260403.tar.gz").write_bytes(gzip.compress(tarred({"1.avro": PACKETS[1]})))
    caplog.set_level(logging.WARNING, "skyheed.replay")
    assert taken(*sorted(tmp_path.glob("*.gz"))) == (PACKETS[:2], [])
    assert f"{empty} holds nothing" in caplog.text
    assert taken(tmp_path) == (PACKETS[:2], [])
    with pytest.raises(ConfigError, match="nothing to replay"):
        replay.replay({"bootstrap.servers": "127.0.0.1:1"}, SDSS, [empty], "alerts")


def test_tars_inside_tars(tmp_path: Path) -> None:
    inner = tarred({"3.avro": PACKETS[3], "._4.avro": APPLE})
    middle = tarred({"2.avro": PACKETS[2], "inner.tar.gz": gzip.compress(inner)})
    (tmp_path / "a.tar").write_bytes(tarred({"0.avro": PACKETS[0], "m.tar": middle, "1.avro": PACKETS[1]}))
    assert taken(tmp_path / "a.tar") == ([PACKETS[0], PACKETS[2], PACKETS[3], PACKETS[1]], [])
    deep = tarred({"0.avro": PACKETS[0]})
    for _ in range(DEEPEST + 1):
        deep = tarred({"1.avro": PACKETS[1], "deeper.tar": deep})
    (tmp_path / "b.tar").write_bytes(deep)
    found, damaged = taken(tmp_path / "b.tar")
    assert found == [PACKETS[1]] * (DEEPEST + 1)
    assert len(damaged) == 1
    assert "archives deep" in damaged[0]


def test_a_cut_tar_keeps_what_came_before_the_cut_and_says_how_much(tmp_path: Path) -> None:
    data = tarred({f"{i}.avro": p for i, p in enumerate(PACKETS)})
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    path = tmp_path / "a.tar"
    third = members[3]
    ends = [m.offset_data + m.size for m in members]
    for cut, whole in [
        (third.offset, 3), (third.offset + 100, 3), (third.offset_data, 3), (third.offset_data + 100, 3),
        (ends[3] - 1, 3), (ends[3], 4), (ends[5], 6),
    ]:  # fmt: skip
        path.write_bytes(data[:cut])
        found, damaged = taken(path)
        assert found == PACKETS[:whole], cut
        assert len(damaged) == 1
        assert f"{path} is damaged" in damaged[0]
        assert f"{whole} packets before that are kept" in damaged[0]


@pytest.mark.parametrize("harm", ["cut", "checksum", "bits"])
def test_a_damaged_gzip_stream_keeps_what_was_read(tmp_path: Path, harm: str) -> None:
    data = gzip.compress(tarred({f"{i}.avro": p for i, p in enumerate(PACKETS)}), 0)
    path = tmp_path / "a.tar.gz"
    if harm == "cut":
        data = data[: len(data) // 2]
    elif harm == "checksum":
        data = data[:-8] + b"12345678"
    else:
        data = data[: len(data) * 2 // 3] + b"\xff" * 400 + data[len(data) * 2 // 3 + 400 :]
    path.write_bytes(data)
    found, damaged = taken(path)
    assert found[:2] == PACKETS[:2]
    assert len(damaged) == 1
    assert f"{len(found)} packets before that are kept" in damaged[0]


def test_a_damaged_night_in_a_folder_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "1.tar").write_bytes(b"x" * 3000)
    (tmp_path / "2.tar").write_bytes(tarred({"0.avro": PACKETS[0]})[:-11000])
    (tmp_path / "3.tar").write_bytes(tarred({"1.avro": PACKETS[1]}))
    found, damaged = taken(tmp_path)
    assert found == [PACKETS[1]]
    assert len(damaged) == 2


# --- bounds --------------------------------------------------------------------------------------------------------


def huge(name: str, size: int) -> bytes:
    """A header that promises `size` bytes; an 11 kB archive of 100 TiB."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(512)


def test_a_member_that_promises_more_than_there_is(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for size in (LARGEST + 1, 100 * 2**40, 2**62):
        first = tarred({"0.avro": PACKETS[0]})[: 512 + -(-len(PACKETS[0]) // 512) * 512]
        path.write_bytes(first + huge("1.avro", size))
        found, damaged = taken(path)
        assert found == PACKETS[:1]
        assert "more than packets have" in damaged[0]


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_header_that_promises_more_than_there_is(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("long")
    info.size, info.type = 100 * 2**40, kind
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(ConfigError, match="damaged or not a tar archive"):
        taken(tmp_path / "a.tar")


def test_a_chain_of_long_names(tmp_path: Path) -> None:
    info = tarfile.TarInfo("long")
    info.size, info.type = 4, b"L"
    link = info.tobuf(tarfile.GNU_FORMAT) + b"name".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(link * 5000 + bytes(1024))
    with pytest.raises(ConfigError, match="damaged or not a tar archive"):
        taken(tmp_path / "a.tar")


def test_sparse_members_are_left_out(tmp_path: Path) -> None:
    info = tarfile.TarInfo("0.avro")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**50)}
    info.size = 512
    data = info.tobuf(tarfile.PAX_FORMAT) + b"1\n0\n1125899906842624\n".ljust(512, b"\0") + bytes(1024)
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ConfigError, match=r"left out|damaged"):
        taken(tmp_path / "a.tar")


def test_gzip_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packet_files, "UNPACKING_FREE", 2**20)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(tarred({"0.avro": PACKETS[0]})[:-10240] + bytes(40 * 2**20), 9))
    found, damaged = taken(path)
    assert len(found) <= 1
    assert f"more than {packet_files.MOST_UNPACKING} times its size" in damaged[0]


def test_unpacking_leaves_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(tarred({"0.avro": PACKETS[0]})))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(packet_files, "SPARE", usage.free + 2**30)
    with pytest.raises(ConfigError, match="no room to unpack"):
        taken(path)


def test_pipes_devices_and_links_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "0.avro").write_bytes(PACKETS[0])
    (folder / "same.avro").symlink_to(folder / "0.avro")
    (tmp_path / "secret.avro").write_bytes(b"not to be sent")
    (folder / "out.avro").symlink_to(tmp_path / "secret.avro")
    (folder / "zero.avro").symlink_to("/dev/zero")
    (folder / "round.avro").symlink_to(folder / "round.avro")
    os.mkfifo(folder / "pipe.avro")
    caplog.set_level(logging.WARNING, "skyheed.replay")
    assert taken(folder) == ([PACKETS[0]] * 2, [])
    assert "1 links" in caplog.text
    for path in (folder / "pipe.avro", Path("/dev/zero"), folder / "missing.avro"):
        with pytest.raises(ConfigError, match=str(path)):
            taken(path)


def test_a_file_larger_than_memory_is_left_out(tmp_path: Path) -> None:
    with (tmp_path / "a.avro").open("wb") as file:
        file.truncate(LARGEST + 1)
    (tmp_path / "b.avro").write_bytes(PACKETS[1])
    found, damaged = taken(tmp_path)
    assert found == PACKETS[1:2]
    assert "a.avro has" in damaged[0]


def test_names_with_anything_in_them(tmp_path: Path) -> None:
    folder = tmp_path / 'a night\'s "é" [1]* $x %20'
    folder.mkdir()
    (folder / "0 é.avro").write_bytes(PACKETS[0])
    (folder / "b 'c'.tar.gz").write_bytes(gzip.compress(tarred({"x y/1 é\n.avro": PACKETS[1]})))
    assert taken(folder) == (PACKETS[:2], [])


@pytest.mark.parametrize(
    "text", ["{}", "[" * 30_000, '{"fingerprint": "f", "sent": -3}', '{"fingerprint": "f", "sent": "x"}']
)
def test_a_state_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "state").write_text(text)
    with pytest.raises(ConfigError, match="not the state file of a replay"):
        replay.Progress(tmp_path / "state", "f")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not an ordinary file"):
        replay.Progress(tmp_path / "pipe", "f")


# --- the whole way -------------------------------------------------------------------------------------------------


@pytest.mark.kafka
def test_a_cut_night_is_sent_up_to_its_cut_and_said(kafka: embedded.Server, tmp_path: Path) -> None:
    data = tarred({f"{i}.avro": p for i, p in enumerate(PACKETS)})
    (tmp_path / "1.tar").write_bytes(data[: len(data) // 2])
    (tmp_path / "2.tar").write_bytes(tarred({}))
    (tmp_path / "3.tar").write_bytes(tarred({"9.avro": packet(9, 53609.0)}))
    options, topic = {"bootstrap.servers": kafka.address}, f"alerts.cut.{os.getpid()}"
    with pytest.raises(ConfigError, match=rf"sent \d+ alerts to {topic}, but .*1\.tar is damaged") as said:
        replay.replay(options, SDSS, [tmp_path], topic)
    with BatchConsumer(options, [topic], group=None, drain=True) as consumer:
        values = []
        while not consumer.drained():
            values += [m.value() for m in consumer.consume(100, 0.2)]
    assert sorted(values) == sorted([*PACKETS[: len(values) - 1], packet(9, 53609.0)])  # of several partitions
    assert f"sent {len(values)} alerts" in str(said.value)
    assert len(values) >= 3
