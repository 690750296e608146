"""Reward scores of a project's completions, from which active choice knows where it is unsure."""

import json
import math
from collections.abc import Sequence
from typing import Any, cast

from tether.errors import DataError
from tether.feedback.disputed import uncertainty_of_scores
from tether.feedback.judgments import Item
from tether.feedback.store import Store
from tether.records import Text, read_jsonl, shown

Row = dict[str, Any]


def import_scores(store: Store, paths: Sequence[str]) -> tuple[int, int]:
    """Take the scores that `tether score` wrote, of one reward model a file or of several.

    Returns:
        How many items got an uncertainty (`disputed.uncertainty_of_scores`), and how many did not
        because a completion of theirs has no score.

    Raises:
        DataError: A row has no completions with a score each.
    """
    scorers = [_read(path) for path in paths]
    items = store.items()
    found: dict[str, float] = {}
    for key, item in items.items():
        tables = [_scores_of(item, scorer) for scorer in scorers]
        complete = [table for table in tables if table is not None]
        if complete:
            found[key] = uncertainty_of_scores(complete)
    store.set_uncertainties(found)
    return len(found), len(items) - len(found)


def _read(path: str) -> dict[str, float]:
    """The score of each prompt with completion."""
    scores: dict[str, float] = {}
    for line, row in read_jsonl(path):
        texts, values = _list(row.get("completions")), _list(row.get("scores"))
        if not texts or len(texts) != len(values) or not all(map(_is_number, values)):
            rule = "must hold a number for each completion; write it with `tether score`"
            raise DataError(f"{path}:{line}: scores={shown(row.get('scores'))} {rule}")
        for text, value in zip(texts, values, strict=True):
            scores[_name(row.get("prompt", ""), text)] = float(value)
    return scores


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _scores_of(item: Item, scorer: dict[str, float]) -> list[float] | None:
    names = [_name(item.prompt, text) for text in item.completions]
    return [scorer[name] for name in names] if all(name in scorer for name in names) else None


def _name(prompt: Text, completion: Text) -> str:
    return json.dumps([prompt, completion], sort_keys=True)
