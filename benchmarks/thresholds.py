"""Purity and completeness by threshold for every shipped model, on simulated objects that none has seen.

    python benchmarks/thresholds.py --objects 300 --out docs/thresholds

For each survey it simulates `--objects` objects, the same number of each class, lets every shipped model classify them
after so many stamps, and writes docs/thresholds/<survey>-<model>.json, which the page "Purity and completeness" shows.
"""

import argparse
import json
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray

from skyheed import load_model
from skyheed.classifier import scoring
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.models.checkpoint import shipped_names
from skyheed.classifier.sky import simulate

SEED = 7_261_126  # of no training or validation archive
THRESHOLDS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
EPOCHS = ("3", "6", "last")


def curve(p: NDArray[Any], mine: NDArray[Any]) -> list[dict[str, float | int | None]]:
    """At each threshold, how many objects are chosen, how many of them are of the class, and of how many there are.

    Args:
        p: [n] probability of the class, NaN where the model declines.
        mine: bool [n], whether the object is of the class.
    """
    rows: list[dict[str, float | int | None]] = []
    for threshold in THRESHOLDS:
        chosen = np.nan_to_num(p, nan=-1.0) >= threshold
        right = int((chosen & mine).sum())
        rows.append(
            {
                "threshold": threshold, "chosen": int(chosen.sum()), "right": right, "of": int(mine.sum()),
                "purity": round(right / int(chosen.sum()), 4) if chosen.any() else None,
                "completeness": round(right / int(mine.sum()), 4) if mine.any() else None,
            }
        )  # fmt: skip
    return rows


def measure(name: str, archive: Archive, folder: Path) -> dict[str, Any]:
    """All curves of one model on one archive."""
    model = load_model(name, device="cpu", precision="float32")
    scoring.score(archive, folder, scoring.Scorer(model, ",".join(EPOCHS)))
    rows = ds.dataset(folder, format="parquet", exclude_invalid_files=True).to_table().to_pandas()
    label = {name: archive.object(name)["class"] for name in archive.object_ids}
    longest = rows.groupby("object_id")["n_stamps"].transform("max")
    found = {}
    for epochs in EPOCHS:
        own = rows[rows["n_stamps"] == (longest if epochs == "last" else int(epochs))]
        mine = np.array([label[i] for i in own["object_id"]])
        found[epochs] = {c: curve(own[f"p_{c}"].to_numpy(float), mine == c) for c in model.classes}
    info = model.info
    return {"model": name, "name": info.name, "version": info.version, "weights": info.digest, "after": found}


def main() -> None:
    """Simulate, classify, write."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--objects", type=int, default=300)
    asked.add_argument("--survey", action="append", help="only this one; repeatable")
    asked.add_argument("--out", type=Path, default=Path("docs/thresholds"))
    given = asked.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    shipped = [name for name in shipped_names() if "/" in name]
    for survey in given.survey or sorted({name.split("/")[0] for name in shipped}):
        with TemporaryDirectory() as folder:
            where = Path(folder) / "sky"
            simulate(survey, given.objects, SEED, where, balanced=True, processes=1)
            command = f"python benchmarks/thresholds.py --objects {given.objects} --survey {survey}"
            for name in (name for name in shipped if name.startswith(f"{survey}/")):
                made = measure(name, Archive(where), Path(folder) / name.replace("/", "-"))
                made |= {"data": f"{survey}, simulated, {given.objects} objects, equal classes, seed {SEED}",
                         "command": command, "date": date.today().isoformat()}  # fmt: skip
                (given.out / f"{name.replace('/', '-')}.json").write_text(json.dumps(made, indent=1) + "\n")
                print(name, "done", flush=True)


if __name__ == "__main__":
    main()
