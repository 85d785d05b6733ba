"""What the table of models says about the published claims, each with its error. Reads docs/models/quick.json.

    python benchmarks/claims.py

A row is the mean over its seeds. Its error has two parts: the test objects (half the 68 % bootstrap interval) and
chance in training, which only rows of several seeds show: their scatter, pooled over all such rows, divided by the
root of the number of seeds. Rows are compared as if their test objects were independent, which is cautious: they are
the same. A difference of less than twice its error decides nothing. docs/models.md has the table.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

QUICK = Path(__file__).parents[1] / "docs" / "models" / "quick.json"
Facts = Mapping[str, Any]
Grid = Mapping[str, Sequence[Facts]]
ICT, CONTROL = "ICT-ConvEntion, 2-D", "ICT-ConvEntion, 2-D, cross-entropy alone"
TWO_D, THREE_D, RNNS = "ConvEntion, 2-D", "ConvEntion, 3-D", ("CNN+GRU", "CNN+LSTM")


@dataclass(frozen=True)
class Comparison:
    """Whether one row is better than another.

    Attributes:
        claim: shown with the first of the comparisons that test it.
        score: `macro_f1`, or `least` or `spread` of the class recalls.
        stamps: after how many; 0 for all.
        more: whether the claim says that the first row has more of it.
    """

    claim: str
    first: str
    second: str
    score: str = "macro_f1"
    stamps: int = 0
    more: bool = True


COMPARISONS = (
    Comparison("images beat light curves", TWO_D, "LSTM", stamps=3),
    Comparison("", "gamma-PhysNet encoder", "SITS-BERT", stamps=3),
    Comparison("", TWO_D, "LSTM"),
    Comparison("", "ConvEntion, 2-D, twice the views", "LSTM, all epochs"),
    *(Comparison("ConvEntion beats both image RNNs" * (not n), TWO_D, name) for n, name in enumerate(RNNS)),
    *(Comparison("", "ConvEntion, paper", name) for name in RNNS),
    *(Comparison("", THREE_D, name) for name in RNNS),
    *(Comparison("", TWO_D, f"{name}, g") for name in RNNS),
    Comparison("the 3-D CNN beats the 2-D one", THREE_D, TWO_D),
    *(Comparison("five bands beat g alone" * (not n), name, f"{name}, g") for n, name in enumerate((THREE_D, *RNNS))),
    Comparison("ICT improves ConvEntion", ICT, TWO_D),
    Comparison("", ICT, CONTROL),
    Comparison("", "ICT-ConvEntion, 3-D", THREE_D),
    Comparison("ICT narrows the spread of recalls", ICT, TWO_D, "spread", more=False),
    Comparison("", ICT, CONTROL, "spread", more=False),
    Comparison("ICT helps rare classes", ICT, TWO_D, "least"),
    Comparison("", ICT, CONTROL, "least"),
    Comparison("three classes are easier than four", f"{TWO_D}, three classes", TWO_D),
    Comparison("", "LSTM, three classes", "LSTM"),
)


def recalls(one: Facts) -> dict[str, tuple[float, float]]:
    """Recall of each class, with the error that its number of test objects gives."""
    found = {}
    for name, own in one["per_class"].items():
        share, objects = own["recall"], own["objects"]
        found[name] = share, math.sqrt(max(share * (1 - share), 0.25 / objects) / objects)
    return found


def value(one: Facts, score: str, stamps: int) -> tuple[float, float]:
    """A score of one run, and its error from the test objects."""
    if score in ("least", "spread"):
        (least, error), *_, (most, further) = sorted(recalls(one).values())
        return (least, error) if score == "least" else (most - least, math.hypot(error, further))
    scores = one["after_stamps"][str(stamps)] if stamps else one["at_the_end"]
    low, high = scores[f"{score}_68"]
    return scores[score], (high - low) / 2


def scatter(grid: Grid, score: str, stamps: int) -> float:
    """Standard deviation from seed to seed, pooled over all rows that have several."""
    rows = [[value(one, score, stamps)[0] for one in made] for made in grid.values() if len(made) > 1]
    squares = sum(float(np.var(row)) * len(row) for row in rows)
    return math.sqrt(squares / sum(len(row) - 1 for row in rows))


def measured(grid: Grid, name: str, score: str, stamps: int) -> tuple[float, float]:
    """Mean of a row over its seeds, and its error."""
    found = [value(one, score, stamps) for one in grid[name]]
    objects = float(np.mean([error for _, error in found]))
    chance = scatter(grid, score, stamps) / math.sqrt(len(found))
    return float(np.mean([own for own, _ in found])), math.hypot(objects, chance)


def verdict(difference: float, error: float) -> str:
    """What a difference says of a claim that it is above zero."""
    if abs(difference) < 2 * error:
        return "not decided"
    return "**holds**" if difference > 0 else "**does not hold**"


def line(grid: Grid, one: Comparison) -> str:
    """One row of the table."""
    sides = [measured(grid, name, one.score, one.stamps) for name in (one.first, one.second)]
    (first, error), (second, further) = sides
    difference, both = first - second, math.hypot(error, further)
    said = verdict(difference if one.more else -difference, both)
    names = [f"{n} {m:.3f}" for n, (m, _) in zip((one.first, one.second), sides, strict=True)]
    scores = {"macro_f1": "macro-F1", "least": "least recall", "spread": "spread of recalls"}
    what = scores[one.score] + (f" at {one.stamps} stamps" if one.stamps else "")
    return f"| {one.claim} | {what} | {names[0]}; {names[1]} | {difference:+.3f} ± {both:.3f} | {said} |"


def table(grid: Grid) -> str:
    """All comparisons, in Markdown."""
    rows = [line(grid, one) for one in COMPARISONS]
    return "\n".join(["| claim | score | rows | difference | result |", "|---|---|---|---|---|", *rows]) + "\n"


def main() -> None:
    """Print the table, and the scatter that it assumes."""
    grid = json.loads(QUICK.read_text())
    print(table(grid))
    for score, stamps in (("macro_f1", 0), ("macro_f1", 3), ("accuracy", 0), ("least", 0), ("spread", 0)):
        when = f" at {stamps} stamps" if stamps else ""
        print(f"scatter from seed to seed of {score}{when}: {scatter(grid, score, stamps):.3f}")


if __name__ == "__main__":
    main()
