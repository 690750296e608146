"""Pairwise choices of three people into one ranking of five answers a prompt."""

from collections import defaultdict
from typing import Any

MODELS = 5
"""Only prompts that so many models answered become rankings."""


def prepare(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows with `instruction`, `input`, `cmp_key`, `response1/2`, `annotator1/2/3` into rankings.

    A choice is one vote for the answer chosen, a tie half a vote for each. Answers are ranked by
    the share of votes they won, since not every pair of models was compared; equal shares are a
    tie. Where two models gave the same answer, it has the votes of both.
    """
    prompts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        prompts[prompt_of(row)].append(row)
    rankings = [
        ranking(prompt, compared)
        for prompt, compared in prompts.items()
        if len({model for row in compared for model in models(row)}) >= MODELS
    ]
    return {"rankings": [each for each in rankings if len(set(each["ranks"])) > 1]}


def prompt_of(row: dict[str, Any]) -> str:
    """What was asked: the instruction and its input, parted by blank lines."""
    parts = [str(row["instruction"]), str(row["input"])]
    return "\n\n".join(part for part in parts if part) + "\n\n"


def models(row: dict[str, Any]) -> list[str]:
    """Names of the two models that a row compares."""
    return row["cmp_key"].split("_")


def ranking(prompt: str, compared: list[dict[str, Any]]) -> dict[str, Any]:
    """One prompt's answers with their ranks: one more than the number of those that won more."""
    won: dict[str, float] = defaultdict(float)
    votes: dict[str, int] = defaultdict(int)
    for row in compared:
        first, second = str(row["response1"]), str(row["response2"])
        for choice in (row["annotator1"], row["annotator2"], row["annotator3"]):
            for number, answer in enumerate((first, second), start=1):
                won[answer] += 0.5 if choice == 0 else float(choice == number)
                votes[answer] += 1
    shares = {answer: won[answer] / votes[answer] for answer in won}
    ranks = [1 + sum(other > share for other in shares.values()) for share in shares.values()]
    return {"prompt": prompt, "completions": list(shares), "ranks": ranks}
