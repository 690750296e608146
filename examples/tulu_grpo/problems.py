"""Problems with a worked solution into prompts that ask for a final answer, and that answer."""

import hashlib
from typing import Any

ASK = "{question}\n\nThink step by step, and write the final number in \\boxed{{}}."
HELD_BACK = 0.1  # share of the problems that the policy never trains on


def problems(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """A message and its answer for each problem, in two files: to train on, and held back.

    The answer is what follows the last "####", as in GSM8K; a row without one is left out.
    """
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for row in rows:
        solution, mark, answer = row["answer"].rpartition("####")
        if not (mark and solution.strip() and answer.strip()):
            continue
        message = {"role": "user", "content": ASK.format(question=row["question"].strip())}
        problem = {"prompt": [message], "answer": answer.strip().replace(",", "")}
        parts["test" if share_of(row["question"]) < HELD_BACK else "train"].append(problem)
    return parts


def share_of(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, spread evenly."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
