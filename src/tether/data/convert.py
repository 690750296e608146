"""`tether data convert`: the records of a file in another shape, and what that shape cannot hold.

Each row that is written is read back at once and set beside the record that it was made of, so
that nothing is lost or altered without being told.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from tether.data.formats import Record, Use, project_rows, read_row
from tether.data.shapes import USED, our_fields
from tether.data.sources import count_lines, read_rows
from tether.errors import DataError
from tether.feedback.export import transcript
from tether.feedback.store import is_project
from tether.progress import counted, results
from tether.records import (
    Completions,
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    Ranking,
    Text,
    Thumb,
    pairs,
    shown,
    to_dict,
    write_jsonl,
)
from tether.sections import ColumnsConfig, require

Row = dict[str, Any]
To = Literal[
    "prompts",
    "demonstrations",
    "pairs",
    "rankings",
    "thumbs",
    "completions",
    "hh",
    "openai",
    "alpaca",
    "sharegpt",
    "chat",
]
USES: dict[To, Use] = {
    "prompts": "prompts",
    "demonstrations": "demonstrations",
    "pairs": "comparisons",
    "rankings": "comparisons",
    "thumbs": "thumbs",
    "completions": "completions",
    "hh": "comparisons",
    "openai": "comparisons",
}
"""What a kind of row is made of; alpaca, sharegpt and chat hold whatever a row is."""
FIELDS = {
    each.name
    for kind in (Prompt, Demonstration, PreferencePair, Ranking, Thumb, Completions)
    for each in fields(kind)
}
NAMES = {
    Prompt: "prompts",
    Demonstration: "demonstrations",
    PreferencePair: "pairs",
    Ranking: "rankings",
    Thumb: "thumbs",
    Completions: "completions",
}
NEXT = {
    Prompt: "generate --model DIR --prompts {out} --out DIR",
    Demonstration: "sft --model DIR --data {out} --out DIR",
    PreferencePair: "reward --model DIR --data {out} --out DIR",
    Ranking: "reward --model DIR --data {out} --out DIR",
    Thumb: "kto --model DIR --data {out} --out DIR",
    Completions: "score --data {out} --reward DIR|FILE.py:F --out DIR",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    """Write the records of a file in another shape, and say what that shape cannot hold."""

    path: Annotated[Positional[str], arg(metavar="FILE")]
    """What every --data reads: a file, a folder, a feedback project, a data set on the hub"""
    to: To
    """Our records: prompts, demonstrations, pairs, rankings, thumbs, completions. Public shapes:
    hh and openai (pairs); alpaca, sharegpt and chat (demonstrations, pairs, thumbs or prompts)"""
    out: str
    """File to write, .jsonl or .jsonl.gz"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Columns of the file that hold our fields under other names"""

    def __post_init__(self) -> None:
        rule = "must end in .jsonl or .jsonl.gz"
        require(self.out.endswith((".jsonl", ".jsonl.gz")), "out", self.out, rule)


@dataclass
class Told:
    """What to tell of a conversion: rows read, records by type, fields left out and changed."""

    rows: int = 0
    empty: int = 0
    records: Counter[type] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)


def convert_data(config: Annotated[ConvertConfig, arg(name="")]) -> None:
    """Write the records of a file in another shape, and say what that shape cannot hold."""
    told = convert(config)
    what = ", ".join(f"{num} {NAMES[kind]}" for kind, num in told.records.items())
    lines = [f"{config.out}: {what} of {told.rows} rows"]
    if told.empty:
        lines.append(f"{told.empty} rows decide nothing: their completions are all tied")
    for name, num in told.left_out.most_common():
        lines.append(f"{name!r} of {num} rows left out: {config.to} has no place for it")
    form = "as a transcript" if config.to == "hh" else "as messages"
    for name, num in told.changed.most_common():
        lines.append(f"{name!r} of {num} records written {form}, and read back so")
    (kind, _), *_ = told.records.most_common(1)
    lines.append(f"next  tether {NEXT[kind].format(out=config.out)}")
    results.print("\n".join(lines), markup=False, soft_wrap=True)


def convert(config: ConvertConfig) -> Told:
    """Write `config.out`, whole or not at all; returns what there is to tell of it.

    Raises:
        DataError: The file cannot be read, holds nothing of the kind, or has a record that the
            shape cannot hold at all.
    """
    told = Told()
    write_jsonl(config.out, _converted(config, told))
    return told


def _converted(config: ConvertConfig, told: Told) -> Iterator[Row]:
    if is_project(config.path):
        rows = project_rows(Path(config.path), USES.get(config.to, "comparisons"))
    else:
        rows = read_rows(config.path, config.columns)
    for row, where in counted(rows, "convert", count_lines(config.path)):
        told.rows += 1
        found = records_of(row, where, config.to)
        told.empty += not found
        told.left_out.update(_left_out(row, where, found) if found else ())
        for record in found:
            try:
                written = shaped(record, config.to)
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            told.records[type(record)] += 1
            told.changed.update(_changed(record, written, where))
            yield written
    if not told.records:
        raise DataError(f"{config.path}: gives no record of the kind {config.to!r}")


def records_of(row: Row, where: str, to: To) -> list[Record]:
    """The records of a row that a kind of row is made of.

    Raises:
        DataError: It has none.
    """
    records = read_row(row, where, USES.get(to) or _use(our_fields(row, where)))
    if to == "rankings":
        return [_as_ranking(record) for record in records]
    if to in ("thumbs", "prompts", "demonstrations", "completions"):
        return records
    return [part for record in records for part in _as_pairs(record)]


def _use(fields: Row) -> Use:
    """What a row is, by the fields that it has."""
    if {"rejected", "ranks"} & fields.keys():
        return "comparisons"
    if {"completion", "text"} & fields.keys():
        return "thumbs" if "label" in fields else "demonstrations"
    return "prompts"


def _as_pairs(record: Record) -> list[Record]:
    """All pairs that a ranking decides; every other record is itself."""
    if not isinstance(record, Ranking):
        return [record]
    names = ("prompt", "criterion", "labeler", "category", "num_labelers")
    shared = {name: getattr(record, name) for name in names}
    texts = record.completions
    return [PreferencePair(chosen=texts[i], rejected=texts[j], **shared) for i, j in pairs(record)]


def _as_ranking(record: Ranking | PreferencePair) -> Ranking:
    if isinstance(record, Ranking):
        return record
    names = ("prompt", "criterion", "labeler", "category", "num_labelers")
    shared = {name: getattr(record, name) for name in names}
    return Ranking(completions=[record.chosen, record.rejected], ranks=[1.0, 2.0], **shared)


# --- from records to rows -------------------------------------------------------------------------


def shaped(record: Record, to: To) -> Row:
    """The row of a record in a shape; fields that the shape has no name for keep ours.

    Raises:
        DataError: The shape cannot hold the record's texts.
    """
    row = to_dict(record)
    if to == "hh":
        return _hh(row)
    if to == "openai":
        row = _as_messages(row)
        return {
            "input": {"messages": row.pop("prompt")},
            "preferred_output": row.pop("chosen"),
            "non_preferred_output": row.pop("rejected"),
            **row,
        }
    if to == "alpaca":
        return _alpaca(row)
    if to in ("sharegpt", "chat"):
        return _conversation(row, sharegpt=to == "sharegpt")
    return row


def _hh(row: Row) -> Row:
    prompt, sides = row.pop("prompt"), [row.pop("chosen"), row.pop("rejected")]
    texts = [prompt, *sides]
    if all(isinstance(text, str) for text in texts) and TRANSCRIPT.fullmatch(prompt):
        chosen, rejected = (prompt + side for side in sides)
    else:
        chosen, rejected = (transcript(prompt, side) for side in sides)
    return {"chosen": chosen, "rejected": rejected, **row}


TRANSCRIPT = re.compile(r"\n\nHuman:.*\n\nAssistant:", re.DOTALL)


def _alpaca(row: Row) -> Row:
    for name in ("prompt", "completion", "chosen", "rejected"):
        if not isinstance(row.get(name, ""), str):
            raise DataError(
                f"{name}={shown(row[name])} is a list of messages, and alpaca holds strings; "
                "convert to chat or sharegpt"
            )
    answer = {"output": row.pop("completion")} if "completion" in row else {}
    return {"instruction": row.pop("prompt"), "input": "", **answer, **row}


def _conversation(row: Row, *, sharegpt: bool) -> Row:
    if not row["prompt"]:
        raise DataError(
            f"prompt={row['prompt']!r} opens no conversation; convert texts without a prompt to "
            "demonstrations or alpaca"
        )
    row = _as_messages(row)
    turns = row.pop("prompt") + row.pop("completion", [])
    for side in ("chosen", "rejected"):
        if side in row:
            row[side] = [_turn(turn, sharegpt) for turn in row[side]]
    name = "conversations" if sharegpt else "messages"
    return {name: [_turn(turn, sharegpt) for turn in turns], **row}


def _turn(message: Message, sharegpt: bool) -> Message:
    if not sharegpt:
        return message
    others = {key: text for key, text in message.items() if key not in ("role", "content")}
    role = {"user": "human", "assistant": "gpt"}.get(message["role"], message["role"])
    return {"from": role, "value": message["content"], **others}


def _as_messages(row: Row) -> Row:
    """The same with its texts as messages; a transcript and what goes on with it turn by turn."""
    turns = isinstance(row["prompt"], str) and TRANSCRIPT.fullmatch(row["prompt"]) is not None
    asked = {"prompt": _messages(row["prompt"], "user", turns)}
    sides = [name for name in ("completion", "chosen", "rejected") if name in row]
    return {**row, **asked, **{name: _messages(row[name], "assistant", turns) for name in sides}}


def _messages(text: Text, role: str, in_turns: bool) -> list[Message]:
    if not isinstance(text, str):
        return text
    if not in_turns:
        return [{"role": role, "content": text}]
    opening, *parts = re.split(r"\n\n(Human|Assistant): ?", text)
    names = {"Human": "user", "Assistant": "assistant"}
    said = [(names[name], part) for name, part in zip(parts[::2], parts[1::2], strict=True)]
    if role == "assistant":
        said = [(role, opening.removeprefix(" ")), *said]
    elif said[-1] == ("assistant", ""):
        said.pop()  # a prompt ends where the assistant begins to speak
    return [{"role": name, "content": part} for name, part in said]


# --- what is lost ---------------------------------------------------------------------------------


def _left_out(row: Row, where: str, records: list[Record]) -> list[str]:
    """Columns of a row that none of its records holds."""
    kept = [getattr(record, name) for record in records for name in record.__slots__]
    kept += [text for value in kept if isinstance(value, list) for text in value]
    every = our_fields(row, where)
    named = FIELDS & every.keys() - {"ranks", "finished", "label"}
    lost = [name for name in named if not _holds(kept, every[name])]
    return lost + [name for name in row if name not in FIELDS and not USED.fullmatch(name)]


def _holds(kept: list[Any], value: Any) -> bool:
    if value in (None, "", []) or value in kept:
        return True
    return isinstance(value, list) and all(part in kept for part in value)


def _changed(record: Record, written: Row, where: str) -> list[str]:
    """Fields of a record that its row does not give back."""
    use: dict[type, Use] = {
        Prompt: "prompts",
        Demonstration: "demonstrations",
        PreferencePair: "comparisons",
        Ranking: "comparisons",
        Thumb: "thumbs",
        Completions: "completions",
    }
    (back,) = read_row(written, where, use[type(record)])
    names = [each.name for each in fields(record)]
    return [name for name in names if getattr(record, name) != getattr(back, name)]
