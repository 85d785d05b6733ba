"""The public face `skyheed`: its example, what it does not load, and a hostile neighbour alongside the built wheel."""

import io
import re
import subprocess
import sys
from pathlib import Path

import fastavro
import numpy as np
import pytest
from real_data import real_data
from stream_tools import record_of, sdss_alert

import skyheed
from skyheed import History, PacketError, SkipPacket, load_model, read_packet
from skyheed.classifier.prediction import Declined, Status

ROOT = Path(__file__).parents[2]


def test_packets_from_files_become_predictions() -> None:
    """The lines of the README on real packets."""
    paths = sorted(real_data("ztf", "sequence_tde_ZTF20abfcszi").glob("*.avro"))
    observations = [o for path in paths for o in read_packet(path.read_bytes(), survey="ztf")]
    histories = History.by_object(observations)
    assert list(histories) == ["ZTF20abfcszi"]
    model = load_model("ztf")
    (history,) = histories.values()
    (p,) = model.predict([history])
    assert (history.survey, len(history)) == ("ztf", len(paths))
    assert p.status is Status.CLASSIFIED
    assert set(dict(zip(model.classes, p.probabilities, strict=True))) == {"AGN", "SNIa", "Variable", "SNOther"}
    early = history.until(epochs=1)
    (declined,) = model.predict([early])
    if model.needs.fewest > 1:
        assert (declined.status, declined.reason) == (Status.NOT_CLASSIFIED, Declined.TOO_FEW_STAMPS)
        assert len(declined.probabilities) == 0


def test_the_readmes_lines_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "read_packet" in block]
    (tmp_path / "packets").symlink_to(real_data("ztf", "sequence_tde_ZTF20abfcszi"))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "ZTF20abfcszi CLASSIFIED None {" in capsys.readouterr().out


def test_order_and_repeats_make_no_difference() -> None:
    packets = [sdss_alert("one", n) for n in range(4)] + [sdss_alert("two", n) for n in range(2)]
    seen = [o for packet in packets for o in read_packet(packet, "sdss")]
    rng = np.random.default_rng(1)
    mixed = [seen[i] for i in rng.permutation([*range(6), 0, 3, 5])]
    straight, shuffled = History.by_object(seen), History.by_object(mixed)
    assert set(straight) == set(shuffled) == {"one", "two"}
    for name, history in straight.items():
        assert history.mjd.tolist() == shuffled[name].mjd.tolist()
        assert (history.images["science"] == shuffled[name].images["science"]).all()
    assert len(straight["one"].until(mjd=float(straight["one"].mjd[1]))) == 2


def test_a_bad_packet_says_why() -> None:
    with pytest.raises(PacketError) as error:
        read_packet(b"", "sdss")
    assert error.value.reason == "empty_message"
    found: list[Exception] = []
    assert len(read_packet(sdss_alert("x", 1), "sdss", bands="g", errors=found)) + len(found) == 1
    with pytest.raises(SkipPacket):
        read_packet(sdss_alert("x", 0), "sdss", bands="g")


def test_of_a_packet_of_several_records_the_good_ones_come_and_the_others_say_why() -> None:
    schema, record = record_of(sdss_alert("x", 1))
    out = io.BytesIO()
    several = [record | {"sourceId": 1}, record | {"sourceId": 2, "ra": float("nan")}, record | {"sourceId": 3}]
    fastavro.writer(out, fastavro.parse_schema(schema, named_schemas={}), several)
    found: list[Exception] = []
    good = read_packet(out.getvalue(), "sdss", errors=found)
    assert [seen.source_id for seen in good] == [1, 3]
    (why,) = found
    assert isinstance(why, PacketError)
    assert why.reason == "bad_position"
    with pytest.raises(PacketError, match="position"):
        read_packet(out.getvalue(), "sdss")


def test_the_subscriber_loads_neither_torch_nor_redis() -> None:
    code = (
        "import sys, skyheed; from skyheed import Subscriber, Classification, read_packet, History; "
        "print(sorted({'torch', 'redis', 'pyarrow', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_everything_that_is_promised_is_there() -> None:
    for name in skyheed.__all__:
        assert getattr(skyheed, name)
    assert set(skyheed.__all__) <= set(dir(skyheed))
    with pytest.raises(AttributeError, match="nothing"):
        skyheed.nothing  # noqa: B018


NEIGHBOURS = ("schemas.py", "broker.py", "classifier.py", "registry.py", "errors.py", "config.py")
SCRIPT = """
from skyheed import History, Subscriber, read_packet
import skyheed.broker.cli
from pathlib import Path
seen = read_packet(Path("packet.avro").read_bytes(), survey="sdss")
print(len(History.by_object(seen)), Subscriber.__name__, skyheed.__file__)
"""


def test_the_wheel_works_beside_a_users_own_modules_of_our_folders_names(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, timeout=120, capture_output=True)
    (wheel,) = tmp_path.glob("skyheed-*.whl")
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, timeout=120, capture_output=True)
    mine = tmp_path / "my analysis"
    mine.mkdir()
    for name in NEIGHBOURS:
        (mine / name).write_text("raise SystemExit('the user\\'s own module was taken')\n")
    (mine / "packet.avro").write_bytes(sdss_alert("one", 1))
    (mine / "main.py").write_text(SCRIPT)
    environ = {"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=mine, env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[:2] == ["1", "Subscriber"]
    assert str(target) in done.stdout
