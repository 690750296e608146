"""What each figure that training logs means, in a sentence, and what of it is healthy.

The texts are in `glossary.toml`.
"""

import tomllib
from importlib.resources import files
from typing import NamedTuple


class Metric(NamedTuple):
    """How a figure is called and read."""

    title: str
    meaning: str
    healthy: str
    unit: str = ""
    """"" where it is a plain number"""
    chart: str = ""
    """Of several figures that belong on one chart, its title"""


_TEXTS = tomllib.loads((files("tether") / "glossary.toml").read_text(encoding="utf-8"))

METRICS = {key: Metric(**text) for key, text in _TEXTS.items() if not key.endswith("*")}
"""By the key of metrics.jsonl and monitor.jsonl, in the order of importance."""

FAMILIES = {key[:-1]: Metric(**text) for key, text in _TEXTS.items() if key.endswith("*")}
"""By the beginning of a key whose rest is the name of a reward."""


def explain(key: str) -> Metric | None:
    """What a key means; None where nothing is known of it."""
    if key in METRICS:
        return METRICS[key]
    for start, of in FAMILIES.items():
        if key.startswith(start) and key != start:
            name = key.removeprefix(start)
            return of._replace(title=name, meaning=of.meaning.replace("{}", name))
    return None
