"""HH-RLHF transcripts into demonstrations and pairs, no dialogue on two sides."""

import hashlib
from typing import Any

from tether.data.shapes import hh_transcripts

DEMONSTRATIONS = 0.3  # share of the dialogues whose chosen replies are imitated


def prepare(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Demonstrations from some dialogues, preference pairs from the others.

    Dialogues that open with the same words of the human stay together. So the pairs that reward
    model and DPO hold out are of dialogues that supervised fine-tuning has not seen either.
    Rows with an empty reply, or with two equal ones, are left out.
    """
    demonstrations: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for row in rows:
        pair = hh_transcripts(row)
        if pair is None or not all(pair[name].strip() for name in ("chosen", "rejected")):
            continue
        if pair["chosen"].strip() == pair["rejected"].strip():
            continue
        if share_of(opening(pair["prompt"])) < DEMONSTRATIONS:
            demonstrations.append({"prompt": pair["prompt"], "completion": pair["chosen"]})
        else:
            pairs.append(pair)
    return {"demonstrations": demonstrations, "pairs": pairs}


def opening(prompt: str) -> str:
    """What the human says first."""
    return prompt.split("\n\nAssistant:")[0].removeprefix("\n\nHuman:").strip().lower()


def share_of(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, spread evenly."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
