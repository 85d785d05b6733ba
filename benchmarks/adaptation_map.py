"""t-SNE of the features of two archives' first alerts by several checkpoints, side by side: a picture, no measurement.

python benchmarks/adaptation_map.py runs/adapt/source-only runs/adapt/dann--together--real \\
    --source sky/source --target sky/ztf-real -o map.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skyheed.classifier import taxonomy
from skyheed.classifier.history import History
from skyheed.classifier.models import checkpoint
from skyheed.classifier.serving import load_network
from skyheed.classifier.training import dataset

MOST = 400  # objects of each archive
COLOURS = {"AGN": "#c1292e", "SN": "#235789", "Variable": "#f1a208", "": "#999999"}
BATCH = 64


@torch.inference_mode()
def features(name: str, histories: Sequence[History]) -> NDArray[np.float32]:
    """Representations [n, width] of histories by a model."""
    info = checkpoint.read_info(name)
    network = load_network(name, info).eval()
    made = []
    for at in range(0, len(histories), BATCH):
        arrays = network.collate(histories[at : at + BATCH], info.scaling)
        made.append(network.encode({key: torch.from_numpy(a) for key, a in arrays.items()}).numpy())
    return np.concatenate(made)


def placed(both: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, 2]: principal components to 50 dimensions, then t-SNE with a fixed seed."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    z = (both - both.mean(0)) / (both.std(0) + 1e-6)
    z = PCA(min(50, *z.shape), random_state=0).fit_transform(z)
    found: NDArray[np.float32] = TSNE(perplexity=30, init="pca", random_state=0).fit_transform(z)
    return found


def draw(axis: Any, xy: NDArray[np.float32], source: int, groups: list[str]) -> None:
    """Simulated objects as dots, real or other ones as crosses, coloured by class."""
    for group, colour in COLOURS.items():
        own = np.array([g == group for g in groups])
        for part, mark, size in ((np.arange(len(xy)) < source, ".", 12), (np.arange(len(xy)) >= source, "x", 16)):
            axis.scatter(*xy[own & part].T, marker=mark, s=size, color=colour, linewidths=0.8, alpha=0.8)
    axis.set(xticks=[], yticks=[])


def main() -> None:
    """Draw the picture."""
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--source", required=True, help="archive whose test objects are dots")
    parser.add_argument("--target", required=True, help="archive whose objects are crosses")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    bands = checkpoint.read_info(given.checkpoints[0]).bands
    parts = [dataset.load(path, bands=bands) for path in (given.source, given.target)]
    chosen = [data.choose(split)[:MOST] for data, split in zip(parts, ("test", "all"), strict=True)]
    groups = [
        taxonomy.merge_supernovae(data.label[i]) if data.label[i] else ""
        for data, own in zip(parts, chosen, strict=True)
        for i in own
    ]
    alerts = [data.history(int(i), 0, 1) for data, own in zip(parts, chosen, strict=True) for i in own]
    figure, axes = pyplot.subplots(
        1, len(given.checkpoints), figsize=(5 * len(given.checkpoints), 5.3), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], given.checkpoints, strict=True):
        both = features(name, alerts)
        draw(axis, placed(both), len(chosen[0]), groups)
        axis.set_title(Path(name).name)
    figure.suptitle(
        "dots: source; crosses: target; red AGN, blue SN, yellow variables, grey without a label", fontsize=9
    )
    figure.savefig(given.output, dpi=100)


if __name__ == "__main__":
    main()
