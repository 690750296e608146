"""The records that stages exchange, and their JSON Lines files.

    Prompt          what a policy is asked
    Demonstration   a prompt and a completion worth imitating
    PreferencePair  two completions of a prompt, the better one first
    Ranking         several completions of a prompt with their ranks
    Thumb           one completion, liked or not
    Completions     what a model answered to a prompt

A record is written as one JSON object a line, under its field names, without the fields that
hold their default. Prompts and completions are strings or lists of chat messages.
"""

import dataclasses
import gzip
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, TypeVar, cast

from tether.disk import aside_of, full_disk_told
from tether.errors import DataError

Message = dict[str, str]  # at least "role" and "content"
Text = str | list[Message]  # a prompt or a completion


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What a policy is asked; `category` is a free label by which results are broken down."""

    prompt: Text
    category: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """A completion worth imitating; its loss is multiplied by `weight`."""

    prompt: Text
    completion: Text
    weight: float = 1.0

    def __post_init__(self) -> None:
        _require(self.weight >= 0, "weight", self.weight, "must be ≥ 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferencePair:
    """`chosen` is preferred to `rejected` as a completion of `prompt`.

    `margin` is by how much (reward units), `probability` the chance in [0, 1] that chosen really
    beats rejected, `criterion` what was judged, `labeler` who judged. Where `num_labelers` is
    given, margin and probability are both their consensus, and training takes the probability.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    margin: float | None = None
    probability: float | None = None
    weight: float = 1.0
    criterion: str = ""
    labeler: str = ""
    category: str = ""
    num_labelers: int | None = None

    def __post_init__(self) -> None:
        _require(self.weight >= 0, "weight", self.weight, "must be ≥ 0")
        if self.probability is not None:
            in_range = 0 <= self.probability <= 1
            _require(in_range, "probability", self.probability, "must be in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Several completions of one prompt in order of preference.

    `ranks[i]` belongs to `completions[i]`: 1 is best, equal ranks are a tie, None is a fail (below
    every rank; between two fails there is no order). `num_labelers` is of how many labelers the
    ranks are the consensus.
    """

    prompt: Text
    completions: list[Text]
    ranks: list[float | None]
    criterion: str = ""
    labeler: str = ""
    category: str = ""
    num_labelers: int | None = None

    def __post_init__(self) -> None:
        same = len(self.ranks) == len(self.completions)
        _require(same, "ranks", self.ranks, f"must hold {len(self.completions)} ranks, one each")


@dataclass(frozen=True, kw_only=True, slots=True)
class Thumb:
    """One completion that was liked (`label=True`) or not."""

    prompt: Text
    completion: Text
    label: bool
    weight: float = 1.0
    criterion: str = ""
    labeler: str = ""

    def __post_init__(self) -> None:
        _require(self.weight >= 0, "weight", self.weight, "must be ≥ 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Completions:
    """What `model` answered to a prompt; `finished[i]` is True where completion i ended by itself.

    A completion that is not finished was cut at the length limit.
    """

    prompt: Text
    completions: list[str]
    finished: list[bool]
    category: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        same = len(self.finished) == len(self.completions)
        rule = f"must hold {len(self.completions)} values, one a completion"
        _require(same, "finished", self.finished, rule)


Record = TypeVar("Record", Prompt, Demonstration, PreferencePair, Ranking, Thumb, Completions)


def pairs(ranking: Ranking) -> list[tuple[int, int]]:
    """All index pairs (winner, loser) that a ranking decides.

    Ties decide nothing; a fail loses against every rank and decides nothing against a fail.
    """
    order = [math.inf if rank is None else rank for rank in ranking.ranks]
    indices = range(len(order))
    return [(i, j) for i in indices for j in indices if order[i] < order[j]]


# --- records and rows -----------------------------------------------------------------------------


def to_dict(
    record: Prompt | Demonstration | PreferencePair | Ranking | Thumb | Completions,
) -> dict[str, Any]:
    """The JSON object of a record, without the fields that hold their default."""
    values = {field: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {field.name: value for field, value in values.items() if value != field.default}


def from_dict(cls: type[Record], row: dict[str, Any], where: str) -> Record:
    """Read one record from a row; other fields of the row are ignored, null means the default.

    Args:
        cls: The record type.
        row: One JSON object.
        where: "FILE:LINE", which opens every error message.

    Raises:
        DataError: A field is missing or breaks its rule.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        read, rule = _READERS[field.type]
        value = row.get(field.name)
        if value is not None:
            try:
                values[field.name] = read(value)
            except (TypeError, ValueError):
                raise DataError(f"{where}: {field.name}={shown(value)} must be {rule}") from None
        elif field.default is MISSING:
            found = ", ".join(repr(key) for key in row) or "none"
            raise DataError(
                f"{where}: a {cls.__name__} needs the field {field.name!r}, {rule}; "
                f"the fields found are {found}"
            )
    try:
        return cls(**values)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def read_text(value: object) -> Text:
    """A string, or a list of chat messages of which the string values are kept.

    Raises:
        TypeError: `value` is neither.
    """
    if isinstance(value, str):
        return value
    return [_read_message(message) for message in _read_list(value)]


def _read_message(value: object) -> Message:
    if not isinstance(value, dict):
        raise TypeError
    items = cast("dict[str, object]", value).items()
    message = {key: text for key, text in items if isinstance(text, str)}
    if not {"role", "content"} <= message.keys():
        raise TypeError
    return message


def _read_list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError
    return cast("list[object]", value)


def _read_string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _read_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _read_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _read_count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TypeError
    return value


def _list_of(read: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda value: [read(item) for item in _read_list(value)]


# How the JSON value of a field is read, by the field's type, and the rule an error message states.
_READERS: dict[Any, tuple[Callable[[object], Any], str]] = {
    str: (_read_string, "a string"),
    bool: (_read_bool, "true or false"),
    float: (_read_number, "a finite number"),
    float | None: (_read_number, "a finite number"),
    int | None: (_read_count, "a whole number from 1"),
    Text: (read_text, 'a string or a list of messages {"role": ..., "content": ...}'),
    list[str]: (_list_of(_read_string), "a list of strings"),
    list[bool]: (_list_of(_read_bool), "a list of true and false"),
    list[Text]: (_list_of(read_text), "a list of strings or of message lists"),
    list[float | None]: (
        _list_of(lambda value: None if value is None else _read_number(value)),
        "a list of numbers, null for a fail",
    ),
}


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise DataError(f"{name}={shown(value)} {rule}")


def shown(value: object) -> str:
    """A value as an error message shows it: its repr, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# --- JSON Lines -----------------------------------------------------------------------------------


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, row) for every line of a JSON Lines file that is not blank.

    The file is UTF-8, gzip-compressed where its name ends in ".gz".

    Raises:
        DataError: The file cannot be read, or a line is not a JSON object.
    """
    path = Path(path)
    try:
        with _open_to_read(path) as lines:
            yield from read_lines(lines, str(path))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def read_lines(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """What `read_jsonl` yields, of lines from elsewhere; `name` opens every error message.

    Raises:
        DataError: A line is not a JSON object.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _parse(line, f"{name}:{number}")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all: aside, synced, then renamed.

    The folder is made where it is missing; a name that ends in ".gz" is compressed.
    """
    path = Path(path)
    aside = aside_of(path)
    with full_disk_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                _write_rows(file, rows, compress=path.suffix == ".gz")
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def write_records(
    path: str | Path,
    records: Iterable[Prompt | Demonstration | PreferencePair | Ranking | Thumb | Completions],
) -> None:
    """Write records as a JSON Lines file, in the way of `write_jsonl`."""
    write_jsonl(path, map(to_dict, records))


def _open_to_read(path: Path) -> BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _write_rows(file: BufferedIOBase, rows: Iterable[dict[str, Any]], *, compress: bool) -> None:
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    encoded = (line.encode() for line in lines)
    if not compress:
        file.writelines(encoded)
        return
    # No time and no file name inside, so that equal rows give equal bytes.
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as zipped:
        zipped.writelines(encoded)


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig")
        row: Any = json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); one object a line is needed") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: {shown(row)} is not a JSON object; one a line is needed")
    row = cast("dict[str, Any]", row)
    require_whole_characters(row, text, where)
    return row


def require_whole_characters(row: dict[str, Any], text: str, where: str) -> None:
    """Refuse a row, read from the JSON `text`, that holds what UTF-8 cannot write.

    Raises:
        DataError: It holds half of a character.
    """
    if "\\ud" in text.lower() and _has_half_a_character(row):
        raise DataError(
            f"{where}: holds half of a character (an unpaired \\ud8xx escape), "
            "which no tokenizer reads; remove it"
        )


def _has_half_a_character(row: dict[str, Any]) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
