"""From public shapes of rows to our fields: one small function a shape, tried in order."""

import re
from itertools import takewhile
from os.path import commonprefix
from typing import Any

from tether.errors import DataError
from tether.records import Message, shown

Row = dict[str, Any]


def our_fields(row: Row, where: str) -> Row:
    """The row with our fields beside its own, where it is of a public shape.

    Raises:
        DataError: It is of such a shape but for one thing, which the message names.
    """
    try:
        for shape in SHAPES:
            if fields := shape(row):
                return {**row, **fields}
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return row


def hh_transcripts(row: Row) -> Row | None:
    """HH-RLHF: chosen and rejected are whole dialogues, equal up to an assistant's turn."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if {"prompt", "instruction", "conversations", "messages"} & row.keys():
        return None
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return None
    if "\n\nAssistant:" not in chosen:
        return None
    shared = commonprefix([chosen, rejected])  # noqa: RUF071 (character by character is meant)
    end = shared.rfind("\n\nAssistant:")
    if end < 0:
        raise DataError("chosen and rejected share no dialogue up to an '\\n\\nAssistant:' turn")
    end += len("\n\nAssistant:")
    return {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}


def conversation_pair(row: Row) -> Row | None:
    """Message lists chosen and rejected that hold the prompt as the messages they share.

    Where they share none, a prompt that is a string becomes the user's message. `messages` beside
    it (UltraFeedback as pairs) are the chosen ones once more; without a prompt they are the prompt.
    """
    chosen, rejected = row.get("chosen"), row.get("rejected")
    elsewhere = "prompt" not in row and bool({"messages", "conversations"} & row.keys())
    if elsewhere or not isinstance(row.get("prompt", ""), str):
        return None
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        return None
    chosen, rejected = _turns(chosen), _turns(rejected)
    both = zip(chosen, rejected, strict=False)
    shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], both)]
    # Equal answers are no part of the prompt: it ends where the assistant begins to speak.
    while shared and shared[-1]["role"] == "assistant":
        shared.pop()
    n = len(shared)
    if n == 0 and "prompt" not in row:
        raise DataError("chosen and rejected share no first message that could be the prompt")
    prompt = shared or [{"role": "user", "content": row["prompt"]}]
    return {"prompt": prompt, "chosen": chosen[n:], "rejected": rejected[n:]}


def conversation(row: Row) -> Row | None:
    """ShareGPT (`conversations`) and `messages`; a last assistant's turn is the completion.

    With chosen and rejected, one turn each or a list, the conversation is their prompt. A `prompt`
    beside it may be the first thing that the user says (UltraChat).
    """
    turns = row.get("conversations", row.get("messages"))
    if not isinstance(turns, list) or ("prompt" in row and not _begins(turns, row["prompt"])):
        return None
    turns = _turns(turns)
    if isinstance(row.get("system"), str) and row["system"]:
        turns.insert(0, {"role": "system", "content": row["system"]})
    if {"chosen", "rejected"} <= row.keys():
        return {
            "prompt": turns,
            "chosen": _turns(row["chosen"]),
            "rejected": _turns(row["rejected"]),
        }
    if turns and turns[-1]["role"] == "assistant":
        return {"prompt": turns[:-1], "completion": turns[-1:]}
    return {"prompt": turns}


def _begins(turns: list[Any], prompt: Any) -> bool:
    """Whether the first of two or more messages, but for a system's, is a prompt."""
    said = [turn for turn in turns if isinstance(turn, dict) and turn.get("role") != "system"]
    return len(said) > 1 and isinstance(prompt, str) and said[0].get("content") == prompt


def openai_preference(row: Row) -> Row | None:
    """OpenAI: `input.messages`, `preferred_output`, `non_preferred_output`."""
    given = row.get("input")
    if not isinstance(given, dict) or "messages" not in given:
        return None
    fields: Row = {"prompt": _turns(given["messages"])}
    if {"preferred_output", "non_preferred_output"} <= row.keys():
        fields["chosen"] = _turns(row["preferred_output"])
        fields["rejected"] = _turns(row["non_preferred_output"])
    return fields


def scored_completions(row: Row) -> Row | None:
    """UltraFeedback: `completions` with `response` and `overall_score`; unscored ones are left out.

    AlpacaEval's lists are `responses` with `output` and a preference. The rank of a completion is
    one more than the number of those that score higher.
    """
    rated = row.get("completions", row.get("responses"))
    if "instruction" not in row or not isinstance(rated, list):
        return None
    if not all(isinstance(one, dict) and {"response", "output"} & one.keys() for one in rated):
        raise DataError('completions must be a list of {"response": ..., "overall_score": ...}')
    scored = [(one.get("response", one.get("output")), _score(one)) for one in rated]
    scored = [(text, score) for text, score in scored if score is not None]
    scores = [score for _, score in scored]
    return {
        "prompt": _instruction(row),
        "completions": [text for text, _ in scored],
        "ranks": [1 + sum(other > score for other in scores) for score in scores],
    }


def _score(rated: Row) -> float | None:
    names = [name for name in rated if name.endswith("preference")]
    values = [rated.get(name) for name in ("overall_score", "score", *names)]
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return numbers[0] if numbers else None


def annotated_pair(row: Row) -> Row | None:
    """PandaLM: `response1`, `response2`, and of each annotator 1 or 2, the better one, or 0.

    The probability that the chosen one is better is its share of the votes, ties split.
    """
    said = [vote for name, vote in row.items() if name.startswith("annotator")]
    if not {"response1", "response2", "instruction"} <= row.keys() or not said:
        return None
    if wrong := [vote for vote in said if vote not in (0, 1, 2)]:
        raise DataError(
            f"annotator={shown(wrong[0])} must be 1 or 2, the better one, or 0 for a tie"
        )
    first = sum(1.0 if vote == 1 else 0.5 if vote == 0 else 0.0 for vote in said) / len(said)
    better, worse = ("response1", "response2") if first >= 0.5 else ("response2", "response1")
    return {
        "prompt": _instruction(row),
        "chosen": _text(row[better]),
        "rejected": _text(row[worse]),
        "probability": max(first, 1 - first),
        "num_labelers": len(said),
    }


def _text(value: Any) -> Any:
    """A text that was taken for a number or for true when the file was written, as a text."""
    return str(value) if isinstance(value, int | float) else value


def alpaca(row: Row) -> Row | None:
    """Alpaca: `instruction`, `input` (behind a blank line), `output` or `response`.

    Self-Instruct's evaluation has `human_output`, and in `responses` what models wrote, by name.
    """
    given, answers = row.get("input") or "", row.get("responses")
    if "prompt" in row or not isinstance(row.get("instruction"), str) or not isinstance(given, str):
        return None
    fields: Row = {"prompt": _instruction(row)}
    answer = next((name for name in ("output", "response", "human_output") if name in row), None)
    if answer:
        fields["completion"] = row[answer]
    if isinstance(answers, dict):
        fields["completions"] = list(answers.values())
    return fields


def _instruction(row: Row) -> str:
    instruction, given = row["instruction"], row.get("input") or ""
    return f"{instruction}\n\n{given}" if given else instruction


def labelled_outputs(row: Row) -> Row | None:
    """LLMBar: `input`, `output_1`, `output_2`, and in `label` the number of the better one."""
    if not {"input", "output_1", "output_2", "label"} <= row.keys():
        return None
    if row["label"] not in (1, 2):
        raise DataError(f"label={shown(row['label'])} must be 1 or 2, the better of the outputs")
    return {
        "prompt": row["input"],
        "completions": [row["output_1"], row["output_2"]],
        "ranks": [1, 2] if row["label"] == 1 else [2, 1],
    }


USED = re.compile(
    r"instruction|input|output|response|human_output|responses|conversations|messages|system|text"
    r"|preferred_output|non_preferred_output|response[12]|output_[12]|annotator\w*|subset"
)
"""Columns that public shapes consist of."""
SHAPES = (
    hh_transcripts,
    conversation_pair,
    conversation,
    openai_preference,
    scored_completions,
    annotated_pair,
    labelled_outputs,
    alpaca,
)

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}


def _turns(value: Any) -> list[Message]:
    """Messages from one turn or a list of them, {"from", "value"} or {"role", "content"}."""
    turns: list[Message] = []
    for turn in value if isinstance(value, list) else [value]:
        named = turn if isinstance(turn, dict) else {}
        role = named.get("role", named.get("from"))
        content = named.get("content", named.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(
                f'{shown(turn)} is no turn of a conversation: {{"role": ..., "content": ...}} '
                'or {"from": ..., "value": ...} with strings is needed'
            )
        others = {key: text for key, text in named.items() if isinstance(text, str)}
        for key in ("from", "value"):
            others.pop(key, None)
        turns.append({**others, "role": _ROLES.get(role, role), "content": content})
    return turns
