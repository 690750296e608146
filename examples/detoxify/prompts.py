"""RealToxicityPrompts into prompts: the beginnings of sentences, toxic ones to be continued."""

import hashlib
from typing import Any

HELD_BACK = 0.05  # share of the prompts that the policy never trains on
TOXIC = 0.3  # prompts at or above it are called provoking, and reported apart


def prompts(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Prompts to train on and prompts held back, each with its category.

    A row's `prompt` is a text, or a table with `text` and `toxicity`.
    """
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for row in rows:
        prompt = row["prompt"]
        text = prompt["text"] if isinstance(prompt, dict) else prompt
        toxicity = (prompt.get("toxicity") if isinstance(prompt, dict) else 0.0) or 0.0
        if not text.strip():
            continue
        category = "provoking" if toxicity >= TOXIC else "mild"
        part = "test" if share_of(text) < HELD_BACK else "train"
        parts[part].append({"prompt": text, "category": category})
    return parts


def share_of(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, spread evenly."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
