"""A wall of stamps of an archive, to be looked at: some objects of each class, in time and in every band.

    python benchmarks/sky_wall.py ARCHIVE wall.png [--kind difference] [--per-class 2]

Left: six r stamps from the first alert on, evenly spaced in time. Right: one stamp per band, of the visit in which the
object stands out most. Grey is asinh of the pixel over twice the sky noise; north is up, east left, but where the
camera turns.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from skyheed.classifier.archives.reader import CLASSES, Archive
from skyheed.classifier.sky import SURVEYS

IN_TIME = 6


def stamps_to_show(stamps: np.ndarray, bands: str) -> list[np.void | None]:
    """Six r stamps in time, None where there are fewer, and one per band at the most significant visit."""
    alerts = stamps[stamps["alert"]]
    red = alerts[alerts["band"] == "r"]
    some = np.unique(np.linspace(0, len(red) - 1, IN_TIME).astype(int)) if len(red) else []
    shown: list[np.void | None] = [*(red[at] for at in some), *[None] * (IN_TIME - len(some))]
    best = alerts["mjd"][np.argmax(np.abs(alerts["flux"] / alerts["flux_error"]))]
    for band in bands:
        of_band = stamps[stamps["band"] == band]
        if len(of_band):
            shown.append(of_band[np.argmin(np.abs(of_band["mjd"] - best))])
    return shown


def draw(axis: Any, stamp: np.void, kind: str, peak: float) -> None:
    relative = np.arcsinh(stamp[kind] / stamp["sky_noise"] / 2)
    top = max(3.3, float(np.nanpercentile(relative, 99.7)))
    axis.imshow(relative, origin="lower", cmap="gray", vmin=-1.2, vmax=top, interpolation="nearest")
    significance = stamp["flux"] / stamp["flux_error"]
    day, sigmas = (round(float(value)) for value in (stamp["mjd"] - peak, significance))
    axis.set_title(f"{stamp['band']} {day:+d} d {sigmas:+d}σ", fontsize=5, pad=1)


def wall(archive: Archive, kind: str, per_class: int) -> plt.Figure:
    survey = archive.card["surveys"][0]
    bands = "".join(SURVEYS[survey].bands)
    names = [row["object_id"] for label in CLASSES for row in _some(archive, label, per_class)]
    columns = IN_TIME + len(bands)
    figure, axes = plt.subplots(len(names), columns, figsize=(columns * 0.72, len(names) * 0.8), dpi=110, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, name in zip(axes, names, strict=True):
        thing = archive.object(name)
        shown = stamps_to_show(archive.stamps(name, kinds=(kind,)), bands)
        for axis, stamp in zip(row, shown, strict=False):
            if stamp is not None:
                draw(axis, stamp, kind, thing["peak_mjd"])
        redshift = f"\nz={thing['redshift']:.2f}" if np.isfinite(thing["redshift"]) else ""
        row[0].text(
            -0.08, 0.5, f"{thing['type']}{redshift}", fontsize=5, ha="right", va="center", transform=row[0].transAxes
        )
    figure.subplots_adjust(0.05, 0.0, 1, 0.985, 0.04, 0.16)
    return figure


def _some(archive: Archive, label: str, count: int) -> list[dict[str, Any]]:
    """The first objects that truly are of a class, each of another type as far as that goes."""
    rows = [row for row in archive.objects.to_pylist() if row["true_class"] == label]
    first = {row["type"]: row for row in reversed(rows)}
    rest = [row for row in rows if row is not first[row["type"]]]
    return [*sorted(first.values(), key=rows.index), *rest][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--kind", default="stamp", choices=["stamp", "template", "difference"])
    parser.add_argument("--per-class", type=int, default=2)
    given = parser.parse_args()
    figure = wall(Archive(given.archive), given.kind, given.per_class)
    figure.canvas.draw()
    # 48 greys show no steps in a galaxy and keep the file small.
    Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3]).convert("L").quantize(48).save(
        given.output, optimize=True
    )


if __name__ == "__main__":
    main()
