"""Where the simulated ZTF sky differs from the real one: what a packet's stamps and photometry show, side by side.

    skyheed archive simulate --survey ztf --objects 400 --seed 21 --balanced -o sky/ztf
    python benchmarks/sky_gap.py sky/ztf [--real ../shared/data/ztf ../shared/data/ztf-unlabelled] [--plot gap.png]

Prints Markdown: for each quantity, band and class 16, 50 and 84 % of the real and of the simulated packets, how many
they are, and the Kolmogorov-Smirnov distance (0: alike, 1: apart); then the same of the context and photometry of one
packet an object. Real and simulated stamps are measured by the same functions; real labels are those of `index.csv` in
a folder of packets, where there is one. A detection that is in several files counts once, and of an object of either
kind at most `--each` packets are taken. Without real packets the simulated ones are shown alone.
"""

import argparse
import csv
import io
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from skyheed.broker.archive_packets import build
from skyheed.broker.errors import PacketError
from skyheed.broker.packets.fits import read_image
from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.history import DETECTION, UPPER_LIMIT, History
from skyheed.classifier.sky.image_statistics import SNR, gaussian, peaks, sky_noise, star_width
from skyheed.classifier.sky.psf import noise_area
from skyheed.classifier.sky.surveys import ZTF

# As index.csv and as archives name them; a real packet of another label, or of none, counts in `ALL` alone.
CLASSES = {
    "AGN": "AGN", "SNIa": "SN", "SNother": "SN", "SNOther": "SN", "Variable/stellar": "Variable",
    "Variable": "Variable",
}  # fmt: skip
ALL = "all"
NEIGHBOUR = 5.0  # standard deviations of the science stamp's noise above which a source in the template counts
BANDS = {1: "g", 2: "r", 3: "i"}
QUANTITIES = {
    "fwhm": "FWHM of stars (pixels)",
    "phase": "place of the source in its pixel (pixels, both axes)",
    "log_noise": "sky noise (ln nJy a pixel, less the band's median)",
    "magnitude": "magnitude of the difference",
    "limit": "limiting magnitude, 5 sigma",
}
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Alert:
    """One packet: its images in one unit, [ny, nx], and what it says of itself.

    Attributes:
        sign: 1, or -1 where `difference` is dark at the source.
        njy: of one unit of the images.
        limit: AB magnitude of a point source at 5 sigma.
    """

    object_id: str
    label: str
    band: str
    science: NDArray[np.float32]
    difference: NDArray[np.float32]
    sign: int
    njy: float
    magnitude: float
    limit: float


def real_alerts(folders: Iterable[Path], each: int) -> Iterator[Alert]:
    """Every detection once, of an object at most `each`."""
    seen: set[int] = set()
    kept: Counter[str] = Counter()
    for folder in folders:
        labels = labels_of(folder / "index.csv")
        for file in sorted(folder.glob("**/*.avro")):
            for record in fastavro.reader(io.BytesIO(file.read_bytes())):
                candidate, name = record["candidate"], str(record["objectId"])
                number = int(candidate.get("candid") or record.get("candid") or 0)
                if number in seen or kept[name] >= each:
                    continue
                alert = _real(record, candidate, labels.get(name, ""))
                if alert is not None:
                    seen.add(number)
                    kept[name] += 1
                    yield alert


def labels_of(index: Path) -> dict[str, str]:
    """Object -> label; of several rows of an object the one that has a label."""
    if not index.is_file():
        return {}
    with index.open(newline="") as rows:
        return {row["objectId"]: row["coarse"] for row in csv.DictReader(rows) if row["coarse"]}


def _real(record: dict[str, Any], candidate: dict[str, Any], label: str) -> Alert | None:
    zero_point = candidate.get("magzpsci")
    try:
        images = [read_image(record[name]["stampData"]).pixels for name in ("cutoutScience", "cutoutDifference")]
    except (PacketError, TypeError, KeyError):
        return None
    if zero_point is None or not 15 < zero_point < 35 or any(image.shape != (ZTF.size, ZTF.size) for image in images):
        return None
    science, difference = (np.where(np.abs(image) < 1e30, image, np.nan).astype(np.float32) for image in images)
    return Alert(
        str(record["objectId"]), CLASSES.get(label, ""), BANDS.get(candidate["fid"], "?"), science, difference, 1,
        3631e9 * 10 ** (-0.4 * zero_point), _number(candidate.get("magpsf")), _number(candidate.get("diffmaglim")),
    )  # fmt: skip


def _number(value: float | None) -> float:
    return math.nan if value is None or value < -900 else float(value)


def simulated_alerts(archive: Archive, each: int) -> Iterator[Alert]:
    """Some alerts of every object, evenly spaced."""
    for thing in archive.objects.to_pylist():
        rows = archive.stamps(thing["object_id"], kinds=("stamp", "difference"), alerts_only=True)
        for row in (
            rows[np.unique(np.linspace(0, len(rows) - 1, min(each, len(rows))).astype(int))] if len(rows) else []
        ):
            flux = float(row["flux"])
            error = ZTF.error_scale * float(row["sky_noise"]) * math.sqrt(noise_area(row["psf_fwhm"], ZTF.pixel))
            yield Alert(
                thing["object_id"], CLASSES[thing["true_class"]], str(row["band"]), row["stamp"], row["difference"],
                1 if flux > 0 else -1, 1.0, magnitude(abs(flux)), magnitude(5 * error),
            )  # fmt: skip


def magnitude(flux: float) -> float:
    """AB magnitude of a flux in nJy."""
    return 31.4 - 2.5 * math.log10(flux)


# --- what is measured -------------------------------------------------------------------------------------------------


def place_in_pixel(difference: NDArray[np.float32]) -> tuple[float, float]:
    """(x, y) of the source, pixels from the middle one; NaN where it is too faint to say."""
    middle, noise = ZTF.size // 2, sky_noise(difference)
    cut = difference[middle - 4 : middle + 5, middle - 4 : middle + 5]
    if not np.isfinite(cut).all() or cut[3:6, 3:6].max() - np.nanmedian(difference) < SNR * noise:
        return math.nan, math.nan
    fit = gaussian(cut, noise)
    return (fit[0], fit[1]) if fit else (math.nan, math.nan)


@dataclass(frozen=True)
class Measured:
    """What was measured of each alert: columns of `QUANTITIES` [n], `phase` [n, 2]."""

    band: NDArray[np.str_]
    label: NDArray[np.str_]
    columns: dict[str, Values]

    def of(self, quantity: str, band: str, label: str) -> Values:
        """The known values of a quantity in a band, of a class or of all."""
        chosen = (self.band == band) & ((self.label == label) | (label == ALL))
        values = self.columns[quantity][chosen].ravel()
        return np.asarray(values[np.isfinite(values)])


def measure(alerts: Iterable[Alert]) -> Measured:
    """Every quantity of every alert."""
    rows = [(a.band, a.label, *_measure(a)) for a in alerts]
    band, label = (np.array([row[i] for row in rows], str) for i in (0, 1))
    width, noise, place, bright, limit = (np.array([row[i] for row in rows], float) for i in range(2, 7))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_noise = np.log(noise)
    for each in np.unique(band):
        log_noise[band == each] -= np.nanmedian(log_noise[band == each])
    columns = {"fwhm": width, "phase": place.reshape(-1, 2), "log_noise": log_noise}
    return Measured(band, label, {**columns, "magnitude": bright, "limit": limit})


def _measure(alert: Alert) -> tuple[float, float, tuple[float, float], float, float]:
    noise = sky_noise(alert.science)
    place = place_in_pixel(alert.sign * alert.difference)
    return star_width(alert.science, noise), noise * alert.njy, place, alert.magnitude, alert.limit


# --- what packets say alongside their images -------------------------------------------------------------------------


def packets_archive(folders: Sequence[Path], out: Path) -> Archive:
    """The real packets as `skyheed archive build-packets` keeps them."""
    labels = next((folder / "index.csv" for folder in folders if (folder / "index.csv").is_file()), None)
    build(out, "ztf", folders, labels=labels)
    return Archive(out)


def said(archive: Archive, seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """Quantity -> class -> values, of one packet an object: the only one, or one by chance."""
    rng, found = np.random.default_rng(seed), defaultdict[str, dict[str, list[float]]](lambda: defaultdict(list))
    for thing in archive.objects.to_pylist():
        extras = archive.extras(thing["object_id"])
        label = CLASSES.get(thing["true_class"] or thing["class"], "")
        if extras is None or not label:
            continue
        try:
            history = history_of(archive, thing["object_id"], epochs=1 + int(rng.integers(len(extras))))
        except ArchiveError:
            continue
        for name, value in {**history.context, **_shown(history)}.items():
            found[name][label].append(value)
    return found


def _shown(history: History) -> dict[str, float]:
    """What an object's newest packet shows: counts of its photometry, neighbours, the template's noise."""
    science, template = (history.images[kind][-1].astype(np.float32) for kind in ("science", "template"))
    noise, points = sky_noise(science), history.photometry
    assert points is not None
    recent = points.kind[points.mjd > history.mjd[-1] - ZTF.history_days]
    shown = {
        "detections in 30 days": float((recent == DETECTION).sum()),
        "upper limits in 30 days": float((recent == UPPER_LIMIT).sum()),
        "negative differences": float(history.flux[-1] < 0),
    }
    if template.any():
        shown["neighbours within 10 pixels in the template"] = float(len(peaks(template, noise, NEIGHBOUR)))
        shown["noise of the template over that of the science stamp"] = sky_noise(template) / noise
    return shown


def context_table(
    real: dict[str, dict[str, list[float]]] | None, simulated: dict[str, dict[str, list[float]]]
) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| quantity | class | real | simulated | KS distance |"
    yield "|---|---|---|---|---|"
    for name in simulated:
        for label in ("AGN", "SN", "Variable"):
            drawn = np.array(simulated[name].get(label, []))
            seen = np.array(real[name].get(label, []) if real and name in real else [])
            yield f"| {name} | {label} | {cell('', seen)} | {cell('', drawn)} | {distance(seen, drawn)} |"


# --- what is shown ----------------------------------------------------------------------------------------------------


def rows_of(quantity: str) -> Iterator[tuple[str, str]]:
    """(band, class) of the table's rows: what the camera does is the same for every class."""
    labels = ("AGN", "SN", "Variable", ALL) if quantity in ("magnitude", "fwhm") else (ALL,)
    yield from ((band, label) for band in "gr" for label in labels)


def cell(quantity: str, values: Values) -> str:
    """16, 50 and 84 % and the number; of places and noise their rms, which is what is compared."""
    if not len(values):
        return "none"
    if quantity == "phase":
        return f"rms {np.sqrt(np.mean(values**2)):.2f} ({len(values) // 2})"
    if quantity == "log_noise":
        return f"scatter {np.subtract(*np.percentile(values, [84, 16])) / 2:.2f} ({len(values)})"
    return " ".join(f"{v:.2f}" for v in np.percentile(values, [16, 50, 84])) + f" ({len(values)})"


def distance(one: Values, other: Values) -> str:
    """Kolmogorov-Smirnov distance; empty for fewer than 5 of either."""
    return f"{stats.ks_2samp(one, other).statistic:.2f}" if min(len(one), len(other)) >= 5 else ""


def table(real: Measured | None, simulated: Measured) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| quantity | band | class | real | simulated | KS distance |"
    yield "|---|---|---|---|---|---|"
    for quantity, name in QUANTITIES.items():
        for band, label in rows_of(quantity):
            drawn = simulated.of(quantity, band, label)
            seen = real.of(quantity, band, label) if real else np.empty(0)
            cells = (cell(quantity, seen), cell(quantity, drawn), distance(seen, drawn))
            yield f"| {name} | {band} | {label} | {' | '.join(cells)} |"


def plot(path: Path, real: Measured | None, simulated: Measured) -> None:
    """Histograms of every quantity by band, and of the magnitudes by class as well."""
    panels = [(quantity, band, ALL) for band in "gr" for quantity in QUANTITIES]
    panels += [("magnitude", band, label) for band in "gr" for label in ("AGN", "SN", "Variable")]
    columns = len(QUANTITIES)
    figure, axes = plt.subplots(-(-len(panels) // columns), columns, figsize=(3 * columns, 9), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, panel in zip(axes.flat, panels, strict=False):
        _histogram(axis, panel, [m.of(*panel) if m else np.empty(0) for m in (real, simulated)])
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def _histogram(axis: Any, panel: tuple[str, str, str], values: Sequence[Values]) -> None:
    quantity, band, label = panel
    everything = np.concatenate(values)
    if len(everything):
        bins = np.linspace(*np.percentile(everything, [0.5, 99.5]), 25)
        looks = ({"color": "k", "histtype": "step", "lw": 1.5}, {"color": "tab:orange", "alpha": 0.5})
        for name, shown, look in zip(("real", "simulated"), values, looks, strict=True):
            if len(shown):
                axis.hist(shown, bins, weights=np.full(len(shown), 1 / len(shown)), label=name, **look)
    axis.set_title(f"{band}, {label} (real {len(values[0])}, simulated {len(values[1])})", fontsize=8)
    axis.set_xlabel(QUANTITIES[quantity], fontsize=7)
    axis.tick_params(labelsize=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="a simulated ZTF archive")
    parser.add_argument("--real", type=Path, nargs="*", default=[Path("../shared/data/ztf")], help="folders of packets")
    parser.add_argument("--each", type=int, default=6, help="packets of an object, at most")
    parser.add_argument("--plot", type=Path, help="write a figure")
    given = parser.parse_args()
    folders = [folder for folder in given.real if folder.is_dir()]
    simulated = measure(simulated_alerts(Archive(given.archive), given.each))
    real = measure(real_alerts(folders, given.each)) if folders else None
    if real is None:
        print("no real packets at", ", ".join(map(str, given.real)))
    for line in table(real, simulated):
        print(line)
    print()
    with tempfile.TemporaryDirectory() as scratch:
        packets = said(packets_archive(folders, Path(scratch) / "real")) if folders else None
    for line in context_table(packets, said(Archive(given.archive))):
        print(line)
    if given.plot:
        plot(given.plot, real, simulated)


if __name__ == "__main__":
    main()
