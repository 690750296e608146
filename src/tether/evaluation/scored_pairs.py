"""Pairs of completions of which one is better, as rewards are evaluated on them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tether.data.formats import read_comparisons
from tether.errors import DataError
from tether.records import PreferencePair, Ranking, Text, pairs
from tether.sections import ColumnsConfig


class Choice(NamedTuple):
    """One pair: which of two completions is better, by their numbers among all."""

    better: int
    worse: int
    prompt: int
    category: str
    first_wins: float
    """1 where the better one was listed first, 0 where second, ½ where the order is not known"""


class Pairs(NamedTuple):
    """Everything that is scored: each completion of a prompt once, and the pairs among them."""

    prompts: list[Text]
    texts: list[str]
    prompt_of: list[int]
    """Number of the prompt of each completion"""
    choices: list[Choice]
    dropped: int
    """Pairs whose two sides are the same, or of weight 0"""


def read_pairs(path: str, columns: ColumnsConfig | None = None) -> Pairs:
    """All pairs that a file's rankings and preference pairs decide.

    Raises:
        DataError: The file cannot be read, or decides nothing.
    """
    found = Pairs([], [], [], [], 0)
    prompts: dict[str, int] = {}
    places: dict[tuple[str, str], int] = {}
    dropped = 0

    def place(prompt: Text, completion: Text) -> int:
        prompt, text = parted(prompt, completion)
        key = (str(prompt), text)
        if key not in places:
            places[key] = len(found.texts)
            found.prompts.append(prompt)
            found.texts.append(text)
            found.prompt_of.append(prompts.setdefault(key[0], len(prompts)))
        return places[key]

    for record in read_comparisons(path, columns):
        for better, worse, first_wins in decided(record):
            one, two = place(record.prompt, better), place(record.prompt, worse)
            if one == two:
                dropped += 1
                continue
            category = record.category
            found.choices.append(Choice(one, two, found.prompt_of[one], category, first_wins))
    if not found.choices:
        raise DataError(
            f"{path}: decides between no two different completions; give pairs or rankings with a "
            "difference"
        )
    return found._replace(dropped=dropped)


def decided(record: Ranking | PreferencePair) -> list[tuple[Text, Text, float]]:
    """(better, worse, whether the first listed wins) of each pair that a record decides."""
    if isinstance(record, PreferencePair):  # always written with the better one first
        return [(record.chosen, record.rejected, 0.5)] if record.weight else []
    texts = record.completions
    return [(texts[i], texts[j], float(i < j)) for i, j in pairs(record)]


def parted(prompt: Text, completion: Text) -> tuple[Text, str]:
    """A completion's text, and the prompt with the messages that stand before its last one."""
    if isinstance(completion, str):
        return prompt, completion
    if not completion:
        raise DataError("completion=[] has no message: at least the assistant's is needed")
    before = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    return before + completion[:-1], completion[-1]["content"]


# --- numbers of pairs -----------------------------------------------------------------------------


def gaps(found: Pairs, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each pair: the value of the better one less that of the worse."""
    better, worse = np.array([choice[:2] for choice in found.choices]).T
    return values[better] - values[worse]


def lengths(found: Pairs) -> NDArray[np.float64]:
    """Characters of each completion."""
    return np.array([float(len(text)) for text in found.texts])


def spread(scores: NDArray[np.float64]) -> float:
    """Standard deviation of the scores; 1 where all are equal."""
    return float(scores.std()) or 1.0


def by_prompt(values: NDArray[np.float64], clusters: list[int]) -> NDArray[np.float64]:
    """Mean of the values of each prompt."""
    _, index = np.unique(clusters, return_inverse=True)
    return np.bincount(index, weights=values) / np.bincount(index)


def centred(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Values less the mean of their group."""
    return values - (np.bincount(groups, weights=values) / np.bincount(groups))[groups]
