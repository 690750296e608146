"""RealToxicityPrompts into prompts: beginnings of sentences, provoking ones to train on."""

import hashlib
from typing import Any

HELD_BACK = 0.02  # share of the prompts that the policy never trains on
PROVOKING = 0.3  # prompts of a toxicity above it are trained on; of the others some are held back


def prompts(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Provoking prompts to train on, and both kinds held back, each with its category.

    A row's `prompt` is a table with `text` and `toxicity`, or a text, which counts as provoking.
    """
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for row in rows:
        prompt = row["prompt"]
        text, toxicity = prompt, 1.0
        if isinstance(prompt, dict):
            text, toxicity = prompt["text"], prompt.get("toxicity") or 0.0
        if not text.strip():
            continue
        category = "provoking" if toxicity > PROVOKING else "mild"
        if share_of(text) < HELD_BACK:
            parts["test"].append({"prompt": text, "category": category})
        elif category == "provoking":
            parts["train"].append({"prompt": text, "category": category})
    return parts


def share_of(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, spread evenly."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
