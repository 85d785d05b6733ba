"""How fast the model answers: as published, whole sequences, and updates of one group.

All in one run, in turns, so that ratios hold on a machine that is busy with other things. The reference computes what
the published code computes, with the same weights: Conv3d in float32 over all 33 groups, padding included, and the
network M of the attention on every pair of positions. (It folds the groups into the batch, which the
published code does not; that is faster.)

The ceiling of the 3D-CNN is the machine's own matrix product, measured here in the same precision and threads.

    python benchmarks/inference.py [--device auto] [--precision auto] [--threads N] [--rounds 5] [--quick]

Behind it come the rows of `families.py`: every served family, runtime and precision, or with --model only those of some
models; --only-families leaves out what comes before. The very last line is one JSON document.

    python benchmarks/inference.py --only-families --model sdss/vector --model ztf/fusion --rounds 3
"""

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import families
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from skyheed.classifier import taxonomy
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.checkpoint import Calibration, Info
from skyheed.classifier.models.convention.counts import operations, sequence_operations
from skyheed.classifier.models.convention.groups import GROUP, collate
from skyheed.classifier.models.convention.network import Attention, Config, ConvEntion, Features
from skyheed.classifier.models.convention.predictor import Predictor
from skyheed.classifier.serving import load

SCALING = Scaling((3.0, 1.2, 1.7, 2.6, 7.9, 8.0), 1.0)
STAMPS = 99
SHORTER = (3, 12, 48)  # stamps
REFERENCES, SEQUENCES, UPDATES, GROUPS = 8, 8, 64, 64  # at once


def sequence(seed: int, stamps: int = STAMPS) -> History:
    """Noise; what is in the stamps makes no difference to the time."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(0, 2, (stamps, 32, 32)).astype(np.float16)
    return History.of_stamps(np.sort(rng.uniform(0, 90, stamps)), rng.integers(0, 5, stamps).astype(np.uint8), pixels)


def reference(model: ConvEntion, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits as the published code computes them, for the weights of a stream model: group after group, Conv3d."""
    pixels, bands, days, present = (batch[key] for key in ("pixels", "bands", "days", "present"))
    tokens = [plain_features(model.features, pixels[:, i], bands[:, i]) for i in range(pixels.shape[1])]
    x = torch.stack(tokens, 1) + model.position[:, :, None, None]  # type: ignore[index]
    known = present.float()
    x = x + model.when(torch.cat([torch.log1p(days) * known, known], -1))[..., None, None]
    for block in model.blocks:
        x = x + every_pair(block.attention, block.norm1(x))  # type: ignore[arg-type, operator]
        x = x + block.feed(block.norm2(x).flatten(0, 1)).view_as(x)  # type: ignore[operator]
    logits: Tensor = model.head(x.amax(1).flatten(1))
    return logits


def plain_features(features: Features, pixels: Tensor, bands: Tensor) -> Tensor:
    """Tokens of one group of every sequence."""
    x = features.images(pixels, bands).transpose(1, 2)
    for i in (1, 2, 3, 4):
        x = functional.relu(getattr(features, f"norm{i}")(getattr(features, f"conv{i}")(x)))
    return x.squeeze(2)


def every_pair(attention: Attention, x: Tensor) -> Tensor:
    """M on Q_i + K_j of all pairs at once, softmax over j, weighted sum of V: O(n^2) in time and memory."""
    b, n, d, *size = x.shape
    q, k, v = attention.qkv(x.flatten(0, 1)).view(b, n, 3 * d, *size).chunk(3, 2)
    pairs = (q[:, :, None] + k[:, None]).view(b * n * n, d, *size)
    weights = attention.logits(pairs).view(b, n, n, attention.heads, 1, *size).softmax(2)
    mixed = (weights * v.view(b, 1, n, attention.heads, -1, *size)).sum(2)
    out: Tensor = attention.out(mixed.view(b * n, d, *size))
    return out.view_as(x)


def peak(device: torch.device, dtype: torch.dtype, size: int = 2048) -> Callable[[], None]:
    """A matrix product of 2 size^3 operations."""
    a, b = torch.randn(size, size, device=device).to(dtype), torch.randn(size, size, device=device).to(dtype)
    return lambda: _wait(a @ b)


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def processor() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@click.command()
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option("--threads", type=int, help="Of the CPU; all cores by default.")
@click.option("--rounds", default=5, show_default=True, help="Every measurement is made so often, in turns.")
@click.option("--quick", is_flag=True, help="At most two rounds, and of the families updates and wholes of 12 stamps.")
@click.option("--model", "names", multiple=True, help="Of the rows of families.py; all by default.")
@click.option("--only-families", is_flag=True, help="Only the rows of families.py.")
@click.option("--archive", "archives", multiple=True, type=click.Path(path_type=Path), help="As for families.py.")
def main(
    device: str, precision: str, threads: int | None, rounds: int, quick: bool, names: tuple[str, ...],
    only_families: bool, archives: tuple[Path, ...],
) -> None:  # fmt: skip
    """Measure reference, whole sequences and updates in turns."""
    rounds = min(rounds, 2) if quick else rounds
    found = {} if only_families else against_reference(device, precision, threads, rounds)
    if only_families or found["device"] == "cpu":
        found["families"] = families.table(names, archives, rounds, quick)
    click.echo(json.dumps(found))


def against_reference(device: str, precision: str, threads: int | None, rounds: int) -> dict[str, Any]:
    """ConvEntion with random weights against the published computation; see `measure`."""
    torch.manual_seed(0)
    config = Config()
    model = ConvEntion(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        info = Info("bench", "0", config.to_dict(), taxonomy.CLASSES, "ugriz", ("any",), SCALING, Calibration())
        checkpoint.save(folder, model.state_dict(), info)
        predictor = load(folder, survey="any", device=device, precision=precision, threads=threads)
    with torch.inference_mode():
        return measure(model.to(predictor.device), predictor, rounds)


def measure(model: ConvEntion, predictor: Predictor, rounds: int) -> dict[str, Any]:
    """Print the table; what the JSON line says of it."""
    sequences = [sequence(seed) for seed in range(UPDATES)]
    batch = {k: torch.from_numpy(a).to(predictor.device) for k, a in collate(sequences[:REFERENCES], SCALING).items()}
    known = predictor.classify(sequences)
    last = STAMPS // GROUP - 1
    grown = [
        History.of_stamps(
            s.mjd, s.band, s.images["science"][GROUP * last :], {g: t for g, t in k.keep.items() if g < last}, GROUP
        )
        for s, k in zip(sequences, known, strict=True)
    ]
    padded = collate(sequences[:2], SCALING)
    pixels, bands = padded["pixels"].reshape(-1, GROUP, 32, 32)[:GROUPS], padded["bands"].reshape(-1, GROUP)[:GROUPS]
    dtype = torch.bfloat16 if predictor.precision == "bfloat16" else torch.float32
    calls: dict[str, Callable[[], object]] = {
        "peak": peak(predictor.device, dtype),
        "reference": lambda: reference(model, batch).cpu(),
        "sequence": lambda: predictor.classify(sequences[:SEQUENCES]),
        "update": lambda: predictor.classify(grown),
        "groups": lambda: predictor.tokens_of(pixels, bands),
    }
    for stamps in SHORTER:  # as many stamps in all as the whole sequences have
        batch_of = [sequence(seed, stamps) for seed in range(SEQUENCES * STAMPS // stamps)]
        calls[f"{stamps} stamps"] = lambda shorter=batch_of: predictor.classify(shorter)  # type: ignore[misc]
    plain = reference(model, batch).softmax(1).cpu().numpy()
    off = max(abs(plain[i] - known[i].probabilities).max() for i in range(REFERENCES))
    again = max(
        abs(a.probabilities - b.probabilities).max() for a, b in zip(predictor.classify(grown), known, strict=True)
    )
    click.echo(
        f"{predictor.chosen}; answers differ from the reference by {off:.1e}, updates from whole ones by {again:.1e}"
    )
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            taken[name].append(seconds(call))
    taken = {name: values[1:] for name, values in taken.items()}  # the first round chooses kernels
    return report(model.config, predictor, taken, len(pixels))


def report(config: Config, predictor: Predictor, taken: dict[str, list[float]], groups: int) -> dict[str, Any]:
    """Rates are medians; ratios are medians of the ratios within a round; the peak is the best product seen."""
    counts = {"reference": REFERENCES, "sequence": SEQUENCES, "update": UPDATES}
    rate = {name: count / statistics.median(taken[name]) for name, count in counts.items()}
    ratio = {
        name: statistics.median(
            (taken["reference"][r] / REFERENCES) / (taken[name][r] / counts[name]) for r in range(len(taken[name]))
        )
        for name in ("sequence", "update")
    }
    whole, group = sequence_operations(config), operations(config)
    behind = whole["fast"] - config.tokens * group["fast"]
    work = {"reference": whole["plain"], "sequence": whole["fast"], "update": group["fast"] + behind}
    best = 2 * 2048**3 / min(taken["peak"])
    cnn = 2 * group["fast"] * groups / statistics.median(taken["groups"])
    click.echo(f"{'':12}{'objects/s':>12}{'ratio':>8}{'Mmultiply-adds':>16}{'Gflop/s':>10}")
    for name in counts:
        click.echo(
            f"{name:12}{rate[name]:12.1f}{ratio.get(name, 1):8.1f}{work[name] / 1e6:16,.0f}"
            f"{2 * work[name] * rate[name] / 1e9:10.1f}"
        )
    # 1: a stamp of a shorter sequence costs what one of a whole sequence costs, so padding costs nothing
    shorter = {
        str(stamps): statistics.median(
            (short / (SEQUENCES * STAMPS // stamps * stamps)) / (whole / (SEQUENCES * STAMPS))
            for short, whole in zip(taken[f"{stamps} stamps"], taken["sequence"], strict=True)
        )
        for stamps in SHORTER
    }
    costs = ", ".join(f"{cost:.2f} at {stamps}" for stamps, cost in shorter.items())
    click.echo(f"Shorter sequences, time per stamp against whole ones: {costs} stamps")
    click.echo(f"3D-CNN {cnn / 1e9:.0f} Gflop/s of {best / 1e9:.0f} (matrix product, {predictor.precision})")
    name = torch.cuda.get_device_name() if predictor.device.type == "cuda" else processor()
    return {
        "cpu": f"{name} x{torch.get_num_threads()}",
        "device": predictor.device.type,
        "precision": predictor.precision,
        "reference_per_s": round(rate["reference"], 2),
        "sequence_per_s": round(rate["sequence"], 2),
        "sequence_ratio": round(ratio["sequence"], 2),
        "update_per_s": round(rate["update"], 1),
        "update_ratio": round(ratio["update"], 1),
        "peak_gflops": round(best / 1e9, 1),
        "fraction_of_peak": round(cnn / best, 3),
        "shorter_per_stamp": {stamps: round(cost, 2) for stamps, cost in shorter.items()},
    }


if __name__ == "__main__":
    main()
