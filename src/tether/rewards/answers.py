"""Verifiable tasks: a completion is right where its final answer is the one on file.

The answers stand in a file of JSON lines, {"prompt": …, "answer": …}, looked up by the prompt: it
may be the very file of prompts that the policy is asked.
"""

import functools
import json
import math
import re
from collections import deque
from pathlib import Path
from typing import Literal

from tether.errors import DataError
from tether.records import Text, read_jsonl
from tether.rewards.rules import plain
from tether.sections import not_negative

_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-+−])?"  # a sign, but no minus between two numbers
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:e[-+]?\d{1,4}(?!\w))?",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"\banswer(?: is)?:?\s", re.IGNORECASE)


def answer(
    prompts: list[Text],
    completions: list[str],
    *,
    answers: str,
    match: Literal["number", "text"] = "number",
    tolerance: float = 1e-6,
) -> list[float]:
    r"""1 where the final answer is right, else 0.

    The final answer is what the last \boxed{…} holds. Without one it is, for numbers, the last
    number of the text; for texts, what follows the last "answer:" or "answer is" on its line, or
    else the last line. Numbers may be written 1000, 1,000, 1e3, $1000 or 1000.00, and are equal
    where

        |x - a| <= tolerance · max(1, |a|)

    Texts are equal in their letters and digits, in any case, spacing and punctuation.

    Args:
        prompts: Each needs an answer on file.
        completions: Texts with a final answer.
        answers: File of JSON lines with `prompt` and `answer`, a string or a number.
        match: How answers are compared.
        tolerance: Of numbers, relative where they are above 1.

    Raises:
        DataError: There is no such file, a row has no answer, or no number where one is needed.
        ConfigError: `tolerance` is negative.
    """
    not_negative("tolerance", tolerance)
    known = read_answers(answers, match)
    right = number_in if match == "number" else letters
    scores: list[float] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        if (wanted := known.get(key(prompt))) is None:
            raise DataError(f"{answers}: no answer for the prompt {str(prompt)[:80]!r}; add a row")
        found = right(final(completion, match))
        scores.append(float(_same(found, wanted, tolerance)))
    return scores


def _same(found: float | str | None, wanted: float | str, tolerance: float) -> bool:
    if isinstance(found, float) and isinstance(wanted, float):
        return abs(found - wanted) <= tolerance * max(1.0, abs(wanted))
    return found == wanted


def read_answers(path: str, match: Literal["number", "text"]) -> dict[str, float | str]:
    """The answers of a file by the `key` of their prompts, read once as long as it is the same.

    Raises:
        DataError: See `answer`.
    """
    if not Path(path).is_file():
        raise DataError(f"answers={path!r} does not exist; give JSON lines with prompt and answer")
    changed = Path(path).stat()
    return _read(path, match, changed.st_mtime_ns, changed.st_size)


@functools.lru_cache(maxsize=8)
def _read(path: str, match: str, time: int, size: int) -> dict[str, float | str]:
    known: dict[str, float | str] = {}
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        asked, given = row.get("prompt"), row.get("answer")
        if not (isinstance(asked, str | list) and isinstance(given, str | int | float)):
            raise DataError(f"{where}: needs prompt and answer, a string or a number")
        text = str(given)
        wanted = number_in(final(text, "number")) if match == "number" else letters(text)
        if wanted is None or wanted == "":
            raise DataError(
                f'{where}: answer={text[:80]!r} holds no {match}; mend it, or set match = "text"'
            )
        if known.setdefault(key(asked), wanted) != wanted:
            raise DataError(f"{where}: another answer to a prompt that has one; remove one of them")
    return known


def key(prompt: Text) -> str:
    """A prompt as a string to look it up by, without the white space around it."""
    if isinstance(prompt, str):
        return prompt.strip()
    return json.dumps([[message.get("role"), message.get("content")] for message in prompt])


def final(text: str, match: Literal["number", "text"]) -> str:
    """The part of a completion that is its final answer."""
    boxed = _last_box(text)
    if boxed is not None:
        return boxed
    if match == "number":
        return text
    lines = [line for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        if found := list(_ANSWER.finditer(line)):
            return line[found[-1].end() :]
    return lines[-1] if lines else ""


def _last_box(text: str) -> str | None:
    r"""What the last \boxed{…} holds, braces within braces included; None without a whole one."""
    _, found, rest = text.rpartition("\\boxed{")
    depth = 1
    for i, mark in enumerate(rest if found else ""):
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if depth == 0:
            return rest[:i]
    return None


def number_in(text: str) -> float | None:
    """The last number of a text; None without a finite one."""
    last = deque(_NUMBER.finditer(text), maxlen=1)
    if not last:
        return None
    value = float(last[0][0].replace(",", "").replace("−", "-"))
    return value if math.isfinite(value) else None


def letters(text: str) -> str:
    """A text as its words in lower case, parted by one space, without punctuation."""
    return " ".join(re.findall(r"\w+", plain(text)))
