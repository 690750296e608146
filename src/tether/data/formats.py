"""Read prompts, demonstrations, comparisons and completions, in our shape or a public one.

A row in a public shape is first rewritten to our fields (`shapes`), then read as a record. Fields
that the record does not have are ignored. A path that ends in .db is a feedback project, whose
labelers' consensus is read; everything else is read by `sources`.

What is read is a list, or where it is large a shelf, which holds it on the disk.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tether import records
from tether.data.shapes import our_fields
from tether.data.shelf import shelved
from tether.data.sources import read_rows
from tether.errors import DataError
from tether.feedback import export
from tether.feedback.store import Store, is_project
from tether.records import (
    Completions,
    Demonstration,
    PreferencePair,
    Prompt,
    Ranking,
    Thumb,
    from_dict,
)
from tether.sections import ColumnsConfig

Row = dict[str, Any]
Record = Prompt | Demonstration | Ranking | PreferencePair | Thumb | Completions
Use = Literal["prompts", "demonstrations", "comparisons", "rankings", "thumbs", "completions"]


@dataclass(frozen=True, slots=True)
class _Reading:
    """How rows are read for one use: what one record is called, its maker, the shapes it takes."""

    what: str
    make: Callable[[Row, str], Any]
    shapes: str


def read_prompts(path: str | Path, columns: ColumnsConfig | None = None) -> Sequence[Prompt]:
    """The prompts of a file, a folder's files or a data set on the hub.

    Args:
        path: What `sources.read_rows` reads, or a feedback project.
        columns: Columns that hold our fields under other names.

    Raises:
        DataError: A file is missing or empty, or a row has no prompt in any shape we know.
    """
    return _read(path, "prompts", columns)


def read_demonstrations(
    path: str | Path, columns: ColumnsConfig | None = None
) -> Sequence[Demonstration]:
    """The demonstrations of a file or folder; of a whole chat, all that the assistant says.

    A {"text": ...} row has the prompt "". Of a preference pair the chosen completion is read.

    Raises:
        DataError: A file is missing or empty, or a row has no demonstration in a shape we know.
    """
    return _read(path, "demonstrations", columns)


def read_comparisons(
    path: str | Path, columns: ColumnsConfig | None = None, *, whole: bool = False
) -> Sequence[Ranking | PreferencePair]:
    """The rankings and preference pairs of a file or folder, in the order of its rows.

    A feedback project gives pairs with a probability, or with `whole` its rankings.

    Raises:
        DataError: A file is missing or empty, or a row has no comparison in a shape we know.
    """
    return _read(path, "rankings" if whole and is_project(path) else "comparisons", columns)


def read_thumbs(path: str | Path, columns: ColumnsConfig | None = None) -> Sequence[Thumb]:
    """The completions of a file or folder that were liked or not, in the order of its rows.

    A {"text": ..., "label": ...} row has the prompt "". A preference pair is read as one of each.
    Where it has a probability p that the chosen completion is the better one, both are read as
    both, with weights p and 1 - p. A feedback project gives its thumbs; one that ranks completions
    and has failed none gives its pairs.

    Raises:
        DataError: A file is missing or empty, or a row has no label in a shape we know.
    """
    return _read(path, "thumbs", columns)


def read_completions(
    path: str | Path, columns: ColumnsConfig | None = None
) -> Sequence[Completions]:
    """What models answered; without the field `finished` every completion ended by itself.

    Raises:
        DataError: A file is missing or empty, or a row has no completion in a shape we know.
    """
    return _read(path, "completions", columns)


def read_each(
    path: str | Path, use: Use, columns: ColumnsConfig | None = None
) -> Iterator[tuple[Any, str]]:
    """The same records one at a time, with where each stands, for messages. None is held.

    Raises:
        DataError: A file is missing, or a row has nothing for this use in a shape we know.
    """
    rows = project_rows(Path(path), use) if is_project(path) else read_rows(path, columns)
    for row, where in rows:
        for record in read_row(row, where, use):
            yield record, where


def read_row(row: Row, where: str, use: Use) -> list[Any]:
    """The records of one row: one, but of a pair that is read as thumbs.

    Raises:
        DataError: It has nothing for this use in a shape we know.
    """
    reading = _READINGS[use]
    found = reading.make(our_fields(row, where), where)
    if found is None:
        names = ", ".join(map(repr, row)) or "none"
        raise DataError(
            f"{where}: no {reading.what} in the fields {names}; the shapes read: {reading.shapes}"
        )
    return found if isinstance(found, list) else [found]


def uses(
    path: str | Path, names: Sequence[Use], columns: ColumnsConfig | None = None
) -> dict[Use, int | DataError]:
    """For each use the number of records that a file has, or why it cannot be used so.

    The file is read once, however many uses are asked about.

    Raises:
        DataError: The file cannot be read.
    """
    if is_project(path):
        return {name: _count_of_project(path, name) for name in names}
    found: dict[Use, int | DataError] = dict.fromkeys(names, 0)
    for row, where in read_rows(path, columns):
        for name, count in found.items():
            if isinstance(count, int):
                try:
                    found[name] = count + len(read_row(row, where, name))
                except DataError as error:
                    found[name] = error
        if not any(isinstance(count, int) for count in found.values()):
            break
    return {name: count or _empty(path) for name, count in found.items()}


def _count_of_project(path: str | Path, name: Use) -> int | DataError:
    try:
        return len(_read(path, name))
    except DataError as error:
        return error


def _read(path: str | Path, use: Use, columns: ColumnsConfig | None = None) -> Sequence[Any]:
    found = shelved((each for each, _ in read_each(path, use, columns)), _dump, _load)
    if not found:
        raise _empty(path)
    return found


def _empty(path: str | Path) -> DataError:
    return DataError(f"{path}: holds no record; at least one row is needed")


def _dump(record: Record) -> tuple[str, Row]:
    return type(record).__name__, {name: getattr(record, name) for name in record.__slots__}


def _load(plain: tuple[str, Row]) -> Record:
    name, fields = plain
    return getattr(records, name)(**fields)


def project_rows(path: Path, use: Use) -> Iterator[tuple[Row, str]]:
    """Rows of what the labelers of a feedback project say, for one use.

    Raises:
        DataError: It holds judgments, not what is asked for, or none that decides anything.
    """
    store, what = Store(path), _READINGS[use].what
    if use == "prompts":
        rows = export.prompts(store)
    elif use == "comparisons":
        rows = export.export(store, "pairs")
    elif use == "rankings":
        rows = export.export(store, "rankings")
    elif use == "thumbs":
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


_COMPARED = (
    "prompt + completions + ranks; prompt + chosen + rejected, the prompt also as instruction, "
    "conversations or messages; chosen + rejected that begin alike (HH-RLHF, messages); "
    "input.messages + preferred_output + non_preferred_output (OpenAI); "
    "instruction + completions with response and overall_score (UltraFeedback) or responses with "
    "output and a preference (AlpacaEval); instruction + response1 + response2 + annotator1 "
    "(PandaLM); input + output_1 + output_2 + label (LLMBar)"
)
_READINGS: dict[Use, _Reading] = {
    "prompts": _Reading(
        "prompt",
        _prompt,
        "prompt; instruction [+ input] (Alpaca); conversations (ShareGPT); messages; "
        "chosen + rejected that begin alike (HH-RLHF, messages); input.messages (OpenAI)",
    ),
    "demonstrations": _Reading(
        "demonstration",
        _demonstration,
        "prompt + completion; text; instruction [+ input] + output (Alpaca); conversations "
        "(ShareGPT) or messages that end with the assistant; a preference pair, of which chosen "
        "is read",
    ),
    "comparisons": _Reading("comparison", _comparison, _COMPARED),
    "rankings": _Reading("ranking", _comparison, _COMPARED),
    "thumbs": _Reading(
        "liked or disliked completion",
        _thumbs,
        "prompt + completion + label (true, false, 1 or 0); text + label; conversations "
        "(ShareGPT) or messages that end with the assistant + label; instruction + output + "
        "label; a preference pair, read as one of each",
    ),
    "completions": _Reading(
        "completion",
        _completions,
        "prompt + completions [+ finished]; prompt + completion; instruction + output",
    ),
}
"""What there is to read, by use."""
