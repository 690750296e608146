"""Rankings cut to 100, 1,000 and 10,000 preference pairs, for reward models of different skill."""

from typing import Any

SIZES = (100, 1_000, 10_000)

Row = dict[str, Any]


def subsets(rows: list[Row]) -> dict[str, list[Row]]:
    """The first rankings that hold about so many pairs, as pairs-100, pairs-1000, pairs-10000.

    Whole prompts are taken, so that held-out prompts of one set are not trained on in another way.
    """
    chosen: dict[str, list[Row]] = {f"pairs-{size}": [] for size in SIZES}
    for size in SIZES:
        pairs = 0
        for row in rows:
            if pairs >= size:
                break
            pairs += count_pairs(row["ranks"])
            chosen[f"pairs-{size}"].append(row)
    return chosen


def count_pairs(ranks: list[float | None]) -> int:
    """Pairs of a ranking that are no tie; a fail (None) loses to every rank and ties with fails."""
    order = [float("inf") if rank is None else rank for rank in ranks]
    return sum(a != b for i, a in enumerate(order) for b in order[i + 1 :])
