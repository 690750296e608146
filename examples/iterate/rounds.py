"""Prompts for three rounds of feedback, each its own third."""

from typing import Any

Rows = list[dict[str, Any]]


def thirds(rows: Rows) -> dict[str, Rows]:
    """Every third row for each round, so that each has prompts of every category."""
    return {f"round-{number + 1}": rows[number::3] for number in range(3)}
