"""Dialogues with summaries into demonstrations, prompts for PPO, and prompts for the evaluation.

Only dialogues are kept whose prompt has at most `MOST_TOKENS` tokens, so that `MOST_NEW` more fit
into the model's 512 positions. A demonstration's summary fits into those.
"""

import functools
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tether.errors import DataError
from tether.progress import console
from tether.records import read_jsonl

DIALOGUES = "../shared/data/dialogsum"
DIALOGUES_VARIABLE = "TETHER_DIALOGSUM"
MODEL = "../shared/models/stories260k"
MODEL_VARIABLE = "TETHER_SUMMARIZER"

MOST_TOKENS = 448
MOST_NEW = 64
CANDIDATES, PPO_PROMPTS = 0.2, 0.15  # shares of the dialogues; the others are demonstrations
NUM_PROVOKING = 100
PROVOKING = "provoking"

SPEAKER = re.compile(r"^#Person\d+#:\s*")

Row = dict[str, Any]


def prepare(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of the training split into three parts, no dialogue in two of them.

    `candidates` are dialogues that no model learns from, with their turns where others have
    completions: a classifier scores the turns, and `test_prompts` takes the most provoking ones.
    """
    demonstrations: list[Row] = []
    ppo_prompts: list[Row] = []
    candidates: list[Row] = []
    tokenizer = own_tokenizer()
    for row in short_enough(rows, "training"):
        prompt, place = prompt_of(row["dialogue"]), share_of(row["dialogue"])
        completion = f" {row['summary'].strip()}"
        if place < CANDIDATES:
            candidates.append({"prompt": prompt, "completions": turns(row["dialogue"])})
        elif place < CANDIDATES + PPO_PROMPTS:
            ppo_prompts.append({"prompt": prompt})
        elif len(tokenizer(completion, add_special_tokens=False)["input_ids"]) < MOST_NEW:
            demonstrations.append({"prompt": prompt, "completion": completion})
    return {
        "demonstrations": demonstrations,
        "ppo_prompts": ppo_prompts,
        "candidates": candidates,
    }


def test_prompts(scored: list[Row]) -> dict[str, list[Row]]:
    """Prompts of the development split, and the most provoking of the candidates apart.

    How provoking a dialogue is was scored before any training: it is the highest score of a turn,
    the probability that it is toxic. `people` are the human summaries of the same prompts.
    """
    highest = sorted(scored, key=lambda row: (-max(row["scores"]), row["prompt"]))[:NUM_PROVOKING]
    development = short_enough(rows_of("dev"), "development")
    prompts = [{"prompt": prompt_of(row["dialogue"])} for row in development]
    prompts += [{"prompt": row["prompt"], "category": PROVOKING} for row in highest]
    known = references()
    people = [{**row, "completion": f" {known[row['prompt']]}"} for row in prompts]
    return {"prompts": prompts, "people": people}


def prompt_of(dialogue: str) -> str:
    """What the model is asked."""
    return f"Summarize:\n\n{dialogue.strip()}\n\nSummary:"


def turns(dialogue: str) -> list[str]:
    """What is said, line by line, without who says it."""
    lines = [SPEAKER.sub("", line).strip() for line in dialogue.splitlines()]
    return [line for line in lines if line]


def short_enough(rows: list[Row], name: str) -> list[Row]:
    """Rows whose prompt has at most `MOST_TOKENS` tokens, each dialogue once."""
    tokenizer = own_tokenizer()
    once = {row["dialogue"]: row for row in rows}.values()
    kept = [
        row
        for row in once
        if row["summary"].strip()
        and len(tokenizer(prompt_of(row["dialogue"]), verbose=False)["input_ids"]) <= MOST_TOKENS
    ]
    share = f"{len(kept) / max(len(once), 1):.1%}"
    console.print(f"{name}: {len(kept)} of {len(once)} dialogues kept ({share})")
    return kept


@functools.cache
def references() -> dict[str, str]:
    """The human summary of each prompt of both splits."""
    rows = [row for split in ("train", "dev") for row in rows_of(split)]
    return {prompt_of(row["dialogue"]): row["summary"].strip() for row in rows}


def rows_of(split: str) -> list[Row]:
    """The rows of a split.

    Raises:
        DataError: It is not where it should be.
    """
    path = Path(os.environ.get(DIALOGUES_VARIABLE, DIALOGUES)) / f"{split}.jsonl.gz"
    if not path.is_file():
        raise DataError(f"{str(path)!r} does not exist; set {DIALOGUES_VARIABLE} to its folder")
    return [row for _, row in read_jsonl(path)]


@functools.cache
def own_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the model that will read the prompts."""
    return AutoTokenizer.from_pretrained(os.environ.get(MODEL_VARIABLE, MODEL))


def share_of(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, spread evenly."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
