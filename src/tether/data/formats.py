"""Read prompts, demonstrations, comparisons and completions, in our shape or a public one.

A row in a public shape is first rewritten to our fields (one small function a shape, tried in the
order of `SHAPES`), then read as a record. Fields that the record does not have are ignored. A path
that ends in .db is a feedback project, whose labelers' consensus is read.
"""

from collections.abc import Callable, Iterator
from itertools import takewhile
from os.path import commonprefix
from pathlib import Path
from typing import Any, TypeVar

from tether.errors import DataError
from tether.feedback import export
from tether.feedback.store import Store, is_project
from tether.records import (
    Completions,
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    Ranking,
    Thumb,
    from_dict,
    read_jsonl,
    shown,
)

Row = dict[str, Any]
Read = TypeVar("Read")

_PROMPTS = (
    "prompt; instruction [+ input] (Alpaca); conversations (ShareGPT); messages; "
    "chosen + rejected that begin alike (HH-RLHF, messages); input.messages (OpenAI)"
)
_DEMONSTRATIONS = (
    "prompt + completion; text; instruction [+ input] + output (Alpaca); conversations (ShareGPT) "
    "or messages that end with the assistant; a preference pair, of which chosen is read"
)
_COMPARISONS = (
    "prompt + completions + ranks; prompt + chosen + rejected, the prompt also as instruction, "
    "conversations or messages; chosen + rejected that begin alike (HH-RLHF, messages); "
    "input.messages + preferred_output + non_preferred_output (OpenAI); "
    "instruction + completions with response and overall_score (UltraFeedback); "
    "input + output_1 + output_2 + label (LLMBar)"
)
_THUMBS = (
    "prompt + completion + label (true, false, 1 or 0); text + label; conversations (ShareGPT) or "
    "messages that end with the assistant + label; instruction + output + label; a preference "
    "pair, read as one of each"
)
_COMPLETIONS = "prompt + completions [+ finished]; prompt + completion; instruction + output"


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a file, or of every .jsonl and .jsonl.gz file in a folder.

    Raises:
        DataError: A file is missing or empty, or a row has no prompt in any shape we know.
    """
    return _read(path, _prompt, "prompt", _PROMPTS)


def read_demonstrations(path: str | Path) -> list[Demonstration]:
    """The demonstrations of a file or folder; of a whole chat, all that the assistant says.

    A {"text": ...} row has the prompt "". Of a preference pair the chosen completion is read.

    Raises:
        DataError: A file is missing or empty, or a row has no demonstration in a shape we know.
    """
    return _read(path, _demonstration, "demonstration", _DEMONSTRATIONS)


def read_comparisons(path: str | Path, *, whole: bool = False) -> list[Ranking | PreferencePair]:
    """The rankings and preference pairs of a file or folder, in the order of its rows.

    A feedback project gives pairs with a probability, or with `whole` its rankings.

    Raises:
        DataError: A file is missing or empty, or a row has no comparison in a shape we know.
    """
    what = "ranking" if whole and is_project(path) else "comparison"
    return _read(path, _comparison, what, _COMPARISONS)


def read_thumbs(path: str | Path) -> list[Thumb]:
    """The completions of a file or folder that were liked or not, in the order of its rows.

    A {"text": ..., "label": ...} row has the prompt "". A preference pair is read as one of each.
    Where it has a probability p that the chosen completion is the better one, both are read as
    both, with weights p and 1 - p. A feedback project gives its thumbs; one that ranks completions
    and has failed none gives its pairs.

    Raises:
        DataError: A file is missing or empty, or a row has no label in a shape we know.
    """
    rows = _read(path, _thumbs, "liked or disliked completion", _THUMBS)
    return [thumb for thumbs in rows for thumb in thumbs]


def read_completions(path: str | Path) -> list[Completions]:
    """What models answered; without the field `finished` every completion ended by itself.

    Raises:
        DataError: A file is missing or empty, or a row has no completion in a shape we know.
    """
    return _read(path, _completions, "completion", _COMPLETIONS)


def _read(
    path: str | Path, make: Callable[[Row, str], Read | None], what: str, shapes: str
) -> list[Read]:
    path = Path(path)
    records: list[Read] = []
    for row, where in _project_rows(path, what) if is_project(path) else _rows(path):
        record = make(_our_fields(row, where), where)
        if record is None:
            found = ", ".join(map(repr, row)) or "none"
            raise DataError(f"{where}: no {what} in the fields {found}; the shapes read: {shapes}")
        records.append(record)
    if not records:
        raise DataError(f"{path}: holds no record; at least one JSON line is needed")
    return records


def _rows(path: Path) -> Iterator[tuple[Row, str]]:
    files = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")]) if path.is_dir() else [path]
    for file in files:
        for number, row in read_jsonl(file):
            yield row, f"{file}:{number}"


def _project_rows(path: Path, what: str) -> Iterator[tuple[Row, str]]:
    store = Store(path)
    if what == "prompt":
        rows = export.prompts(store)
    elif what == "comparison":
        rows = export.export(store, "pairs")
    elif what == "ranking":
        rows = export.export(store, "rankings")
    elif what == "liked or disliked completion":
        rows = export.export(store, "thumbs")
        if store.project.mode != "thumbs" and all(row["label"] for row in rows):
            rows = export.export(store, "pairs")
    else:
        raise DataError(
            f"{path}: no {what} can be read from a feedback project, which holds judgments; write "
            f"records with `tether feedback export {path} --to pairs --out FILE`"
        )
    store.close()
    export.require_some(rows, store, f"{what}s")
    for number, row in enumerate(rows, start=1):
        yield row, f"{path}: {what} {number}"


# --- from our fields to a record; None where they do not suffice ----------------------------------


def _prompt(row: Row, where: str) -> Prompt | None:
    return from_dict(Prompt, row, where) if "prompt" in row else None


def _demonstration(row: Row, where: str) -> Demonstration | None:
    if "text" in row and not {"prompt", "completion"} & row.keys():
        row = {**row, "prompt": "", "completion": row["text"]}
    if "completion" not in row and "chosen" in row:
        row = {**row, "completion": row["chosen"]}
    elif isinstance(row.get("conversations", row.get("messages")), list):
        row = _from_first_answer(row)
    return from_dict(Demonstration, row, where) if {"prompt", "completion"} <= row.keys() else None


def _from_first_answer(row: Row) -> Row:
    """A whole chat, which teaches all that the assistant says after the user has begun."""
    prompt, completion = row.get("prompt"), row.get("completion", [])
    if not isinstance(prompt, list) or not isinstance(completion, list):
        return row
    turns = [*prompt, *completion]
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    roles = [turn["role"] for turn in turns]
    begun = roles.index("user") if "user" in roles else 0
    if "assistant" not in roles[begun:]:
        return row
    first = roles.index("assistant", begun)
    return {**row, "prompt": turns[:first], "completion": turns[first:]}


def _comparison(row: Row, where: str) -> Ranking | PreferencePair | None:
    if row.get("category") is None and isinstance(row.get("subset"), str):
        row = {**row, "category": row["subset"]}  # RewardBench, LLMBar
    if {"prompt", "completions", "ranks"} <= row.keys():
        return from_dict(Ranking, row, where)
    if {"prompt", "chosen", "rejected"} <= row.keys():
        return from_dict(PreferencePair, row, where)
    return None


def _thumbs(row: Row, where: str) -> list[Thumb] | None:
    if "text" in row and not {"prompt", "completion"} & row.keys():
        row = {**row, "prompt": "", "completion": row["text"]}
    if {"prompt", "completion", "label"} <= row.keys():
        label = row["label"]
        is_number = isinstance(label, int | float) and label in (0, 1)
        return [from_dict(Thumb, {**row, "label": bool(label) if is_number else label}, where)]
    if not {"prompt", "chosen", "rejected"} <= row.keys():
        return None
    pair = from_dict(PreferencePair, row, where)
    sure = 1.0 if pair.probability is None else pair.probability
    return [
        Thumb(
            prompt=pair.prompt,
            completion=completion,
            label=label,
            weight=pair.weight * share,
            criterion=pair.criterion,
            labeler=pair.labeler,
        )
        for completion, liked in ((pair.chosen, sure), (pair.rejected, 1 - sure))
        for label, share in ((True, liked), (False, 1 - liked))
        if share > 0
    ]


def _completions(row: Row, where: str) -> Completions | None:
    if {"prompt", "completion"} <= row.keys() and "completions" not in row:
        text = from_dict(Demonstration, row, where).completion
        row = {**row, "completions": [text if isinstance(text, str) else text[-1]["content"]]}
    if not {"prompt", "completions"} <= row.keys():
        return None
    if row.get("finished") is None and isinstance(row["completions"], list):
        row = {**row, "finished": [True] * len(row["completions"])}
    return from_dict(Completions, row, where)


# --- from public shapes to our fields -------------------------------------------------------------


def _our_fields(row: Row, where: str) -> Row:
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
    if "prompt" in row or not isinstance(chosen, str) or not isinstance(rejected, str):
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

    Where they share none, a prompt that is a string becomes the user's message.
    """
    chosen, rejected = row.get("chosen"), row.get("rejected")
    plain = (
        isinstance(row.get("prompt", ""), str) and not {"messages", "conversations"} & row.keys()
    )
    if not plain or not isinstance(chosen, list) or not isinstance(rejected, list):
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

    With chosen and rejected, one turn each or a list, the conversation is their prompt.
    """
    turns = row.get("conversations", row.get("messages"))
    if "prompt" in row or not isinstance(turns, list):
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


def ultrafeedback(row: Row) -> Row | None:
    """UltraFeedback: `completions` with `response` and `overall_score`; unscored ones are left out.

    The rank of a completion is one more than the number of those that score higher.
    """
    rated = row.get("completions")
    if "instruction" not in row or not isinstance(rated, list):
        return None
    if not all(isinstance(one, dict) and "response" in one for one in rated):
        raise DataError('completions must be a list of {"response": ..., "overall_score": ...}')
    rated = [one for one in rated if isinstance(one.get("overall_score"), int | float)]
    scores = [one["overall_score"] for one in rated]
    return {
        "prompt": row["instruction"],
        "completions": [one["response"] for one in rated],
        "ranks": [1 + sum(other > score for other in scores) for score in scores],
    }


def alpaca(row: Row) -> Row | None:
    """Alpaca: `instruction`, `input` (behind a blank line), `output` or `response`."""
    instruction, given = row.get("instruction"), row.get("input") or ""
    if "prompt" in row or not isinstance(instruction, str) or not isinstance(given, str):
        return None
    fields: Row = {"prompt": f"{instruction}\n\n{given}" if given else instruction}
    if "output" in row or "response" in row:
        fields["completion"] = row.get("output", row.get("response"))
    return fields


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


SHAPES = (
    hh_transcripts,
    conversation_pair,
    conversation,
    openai_preference,
    ultrafeedback,
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
        turns.append({"role": _ROLES.get(role, role), "content": content})
    return turns
