"""Thumbs up and down from rankings, for `tether kto`."""

from collections.abc import Iterator
from typing import Any


def from_rankings(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """A thumb for each completion: up in the better half of its ranking, down in the other.

    One in the middle gets none, and a fail (a rank of null) is always down.
    """
    return {"thumbs": [thumb for row in rows for thumb in _thumbs(row)]}


def _thumbs(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    ranked = sorted(rank for rank in row["ranks"] if rank is not None)
    if not ranked:
        return
    middle = (ranked[0] + ranked[-1]) / 2
    for completion, rank in zip(row["completions"], row["ranks"], strict=True):
        if rank is None or rank != middle:
            liked = rank is not None and rank < middle
            yield {"prompt": row["prompt"], "completion": completion, "label": liked}
