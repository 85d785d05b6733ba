"""`skyheed archive build-packets`: packets become an archive, joined by name and place, with labels."""

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from real_data import real_data
from test_surveys import ztf_packet

from skyheed.broker.archive_packets import build, labels_of
from skyheed.broker.cli import skyheed
from skyheed.broker.errors import ConfigError
from skyheed.broker.packets.reader import read_packet
from skyheed.classifier.archives.check import validate
from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import UNLABELLED, Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.history import History

RA, DEC = 204.3369, 61.986
ARCSEC = 1 / 3600


def lay(folder: Path, *packets: bytes) -> Path:
    folder.mkdir()
    for number, packet in enumerate(packets):
        (folder / f"{number}.avro").write_bytes(packet)
    return folder


def packet(name: str = "ZTF20abfcszi", candid: int = 1, night: int = 0, north: float = 0, **more: float) -> bytes:
    jd = 2_458_882.5 + night
    return ztf_packet(top=[("objectId", name)], candid=candid, jd=jd, ra=RA, dec=DEC + north * ARCSEC, **more)


def test_objects_are_joined_by_name_and_by_place(tmp_path: Path) -> None:
    """A field's edge gives one star two names; 3 arcsec away is another star."""
    folder = lay(
        tmp_path / "p", packet("ZTF20a", 1, 3), packet("ZTF20a", 2, 1), packet("ZTF20b", 3, 2, north=1.5),
        packet("ZTF20c", 4, 0, north=4.5), packet("ZTF20a", 2, 1),
    )  # fmt: skip
    report = build(tmp_path / "a", "ztf", [folder])
    archive = Archive(tmp_path / "a")
    assert (report.objects, report.stamps) == (2, 4)
    assert {name: archive.object(name)["stamps"] for name in archive.object_ids} == {"ZTF20a": 3, "ZTF20c": 1}
    assert archive.stamps("ZTF20a")["source_id"].tolist() == [2, 3, 1]
    assert validate(archive.path) == []


def test_history_is_the_one_that_a_stream_keeps(tmp_path: Path) -> None:
    packets = [packet(candid=n + 1, night=n, magpsf=19.0 - n / 4) for n in range(3)]
    build(tmp_path / "a", "ztf", [lay(tmp_path / "p", *packets)])
    streamed = History.by_object([o for p in packets for o in read_packet(p, "ztf")], "ztf")["ZTF20abfcszi"]
    kept = history_of(Archive(tmp_path / "a"), "ZTF20abfcszi")
    for name in ("mjd", "band", "flux", "flux_error", "source_id"):
        assert getattr(kept, name).tolist() == pytest.approx(getattr(streamed, name).tolist()), name
    assert set(streamed.images) <= set(kept.images)
    for kind, stamps in streamed.images.items():
        assert np.allclose(kept.images[kind], stamps, atol=1e-2, rtol=2e-3), kind
    assert dict(kept.context) == pytest.approx(dict(streamed.context))
    for name in ("mjd", "flux", "kind") if streamed.photometry else ():
        assert getattr(kept.photometry, name) == pytest.approx(getattr(streamed.photometry, name)), name


def test_labels_come_from_the_first_row_that_says_anything(tmp_path: Path) -> None:
    table = tmp_path / "index.csv"
    table.write_text("objectId,candid,coarse\nZTF20a,1,\nZTF20a,2,SNother\nZTF20b,3,TDE\nZTF20c,4,\n")
    folder = lay(tmp_path / "p", *(packet(f"ZTF20{x}", n, 0, north=60 * n) for n, x in enumerate("abc", 1)))
    report = build(tmp_path / "a", "ztf", [folder], labels=table)
    rows = {name: Archive(tmp_path / "a").object(name) for name in ("ZTF20a", "ZTF20b", "ZTF20c")}
    assert [(row["class"], row["type"], row["confirmed"]) for row in rows.values()] == [
        ("SNOther", "SNother", True), (UNLABELLED, "TDE", False), (UNLABELLED, "", False),
    ]  # fmt: skip
    assert report.labelled == 1
    assert report.other_labels == {"TDE": 1}
    assert all(row["origin"] == "real" for row in rows.values())
    readme = (tmp_path / "a" / "README.md").read_text()
    assert "| unknown | none |" in readme
    assert "| photometric |" not in readme


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfobjectId,class\r\nA,AGN\r\nB,null\r\n", b"Object ID;Class\nA;AGN\nB;-99\n",
        b"OID\tLABEL\nA\tAGN\n\n",
        "diaObjectId,coarse\nA,AGN\n".encode("utf-16"), b"# by hand\nclass,objectId\nAGN,A\nAGN,A\n",
    ],
)  # fmt: skip
def test_labels_are_read_as_people_write_them(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.csv").write_bytes(text)
    assert labels_of(tmp_path / "x.csv") == {"A": "AGN"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"name,kind\na,AGN\n", "not a table of labels with the columns objectId, class: it has no objectId"),
        (b"objectId,class\nA,AGN\nB\n", "line 3 has 1 cells"), (b"objectId,class\nA,AGN,x\n", "line 2 has 3 cells"),
        (b"objectId,class\n,AGN\n", "line 2, column objectId: the object labelled AGN has no name"),
        (b"objectId,class\nA,AGN\nA,SNIa\n", "line 3, column class: A is SNIa here and AGN in an earlier row"),
        (b"diaObjectId,class\n1.7e+17,AGN\n", "line 2, column diaObjectId: 1.7e+17 is a rounded number"),
        (b"objectId,class\n", "has no rows"), (b"", "is empty"), (b"objectId,class\nA,\xe9\n", "not text in UTF-8"),
        (b"objectId,class\nA,A\x1bN\n", r"line 2, column class: A\x1bN"),
        (b"objectId,class,class\nA,B,C\n", "2 columns"),
    ],
)  # fmt: skip
def test_a_table_of_labels_that_is_not_understood_is_one_sentence(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "x.csv").write_bytes(text)
    with pytest.raises(ConfigError, match=re.escape(words)):
        labels_of(tmp_path / "x.csv")


def test_bad_packets_are_counted_and_nothing_usable_is_an_error(tmp_path: Path) -> None:
    folder = lay(tmp_path / "p", packet(), b"no packet", packet(candid=2, fid=9))
    report = build(tmp_path / "a", "ztf", [folder])
    assert report.stamps == 1
    assert sum(report.reasons.values()) == 2
    with pytest.raises(ArchiveError, match="no packet of ztf"):
        build(tmp_path / "b", "ztf", [lay(tmp_path / "q", b"no packet")])


def test_command(tmp_path: Path) -> None:
    folder = lay(tmp_path / "p", packet(), packet(candid=2, fid=9))
    out = CliRunner().invoke(skyheed, ["archive", "build-packets", "ztf", str(folder), "-o", str(tmp_path / "a")])
    assert out.exit_code == 0, out.output
    assert "1 stamps of 1 objects, 0 of them with a class" in out.output
    assert "left out: 1 " in out.output


def test_scenes_can_be_packets(tmp_path: Path) -> None:
    """The command line makes their archive by itself, and says what is wrong with them."""
    words = ["archive", "simulate", "--survey", "ztf", "--objects", "4", "--balanced", "--processes", "1", "--scenes"]
    folder = lay(tmp_path / "p", packet())
    out = CliRunner().invoke(skyheed, [*words, str(folder), "-o", str(tmp_path / "a")])
    assert out.exit_code != 0
    assert "no packet whose template can be painted on" in str(out.exception) + out.output  # flat stamps without noise
    real = real_data("ztf-unlabelled")
    out = CliRunner().invoke(skyheed, [*words, str(real / "from-parquet"), "-o", str(tmp_path / "b")])
    assert out.exit_code == 0, out.output
    assert {row["origin"] for row in Archive(tmp_path / "b").objects.to_pylist()} == {"painted"}
    assert "--scenes from-parquet" in Archive(tmp_path / "b").card["command"]


def test_real_packets(tmp_path: Path) -> None:
    folder = real_data("ztf")
    report = build(tmp_path / "a", "ztf", [folder / "kowalski", folder / "pipeline"], labels=folder / "index.csv")
    assert report.objects > 20
    assert validate(tmp_path / "a") == []
    assert build(tmp_path / "b", "lsst", [real_data("rubin", "wire")]).stamps > 30
