"""Figures as JSON: intervals as {mean, low, high}, null where there is no number."""

import dataclasses
import math
from typing import Any

from tether.statistics import Interval


def or_none(value: float | None) -> float | None:
    """A finite number, else None."""
    return value if value is not None and math.isfinite(value) else None


def plain(value: Any) -> Any:
    """Dataclasses, intervals and tuples as values of strict JSON."""
    if isinstance(value, Interval):
        return {name: or_none(end) for name, end in value._asdict().items()}
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        return {name: plain(getattr(value, name)) for name in fields}
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def with_intervals(row: dict[str, Any]) -> dict[str, Any]:
    """A JSON object in which {mean, low, high} is an interval again."""
    return {name: _read(value) for name, value in row.items()}


def _read(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {"mean", "low", "high"}:
        return Interval(
            *(math.nan if value[end] is None else value[end] for end in Interval._fields)
        )
    return with_intervals(value)
