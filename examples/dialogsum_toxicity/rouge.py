"""ROUGE-L of a summary to the human one: how much of its wording it has, in the same order.

    P = LCS / words of the completion    R = LCS / words of the reference    F = 2PR / (P + R)

LCS is the longest common subsequence of words (Lin 2004, https://aclanthology.org/W04-1013), in
lower case, without stemming. The references are found by prompt.
"""

import re
from pathlib import Path

from tether.errors import DataError
from tether.functions import load_function
from tether.records import Text

WORD = re.compile(r"[a-z0-9]+")

references = load_function(f"{Path(__file__).with_name('prepare.py')}:references")


def rouge_l(prompts: list[Text], completions: list[str]) -> list[float]:
    """F of each completion, from 0 to 1.

    Raises:
        DataError: A prompt is none of the dialogues'.
    """
    known = references()
    for prompt in prompts:
        if prompt not in known:
            raise DataError(f"no human summary of the prompt {str(prompt)[:80]!r}; prepare it anew")
    pairs = zip(prompts, completions, strict=True)
    return [f_score(words(known[str(prompt)]), words(text)) for prompt, text in pairs]


def words(text: str) -> list[str]:
    """Words and numbers in lower case."""
    return WORD.findall(text.lower())


def f_score(reference: list[str], summary: list[str]) -> float:
    """F of the longest common subsequence; 0 where nothing is common."""
    # 2PR / (P + R) = 2 LCS / (words of both)
    common = longest_common(reference, summary)
    return 2 * common / (len(reference) + len(summary)) if common else 0.0


def longest_common(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = row
        row = [0]
        for i, other in enumerate(second, start=1):
            row.append(before[i - 1] + 1 if word == other else max(before[i], row[-1]))
    return row[-1]
