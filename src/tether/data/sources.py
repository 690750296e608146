"""Rows of files and of data sets on the Hugging Face hub, one at a time, whatever their format.

    .jsonl, .jsonl.gz         one JSON object a line
    .json, .json.gz           a list of JSON objects, or one after the other
    .csv, .tsv (also .gz)     the first line names the columns
    .parquet                  needs the extra `datasets`
    owner/name[:config]:split a data set on the hub; needs the extra `datasets`
    a folder                  its .jsonl, .jsonl.gz and .parquet files

Nothing is held but the rows under way, so a file may be larger than the memory.
"""

import csv
import difflib
import gzip
import importlib
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from tether.errors import DataError
from tether.records import read_jsonl, require_whole_characters, shown
from tether.sections import ColumnsConfig

Row = dict[str, Any]
FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")  # all but the last also with .gz
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+){0,2}")
CHUNK = 1 << 20  # characters of a .json file read at a time
LONGEST = 64 << 20  # characters of one JSON object
BETWEEN = re.compile(r"[\s,\[\]]*")  # the objects of a list
PLAIN = {"prompt", "completion", "chosen", "rejected", "text", "instruction", "input", "output"}


def read_rows(path: str | Path, columns: ColumnsConfig | None = None) -> Iterator[tuple[Row, str]]:
    """Every row of a file, a folder or a data set on the hub, with where it stands, for messages.

    Args:
        path: What to read.
        columns: Columns that hold our fields under other names.

    Raises:
        DataError: It cannot be read, or a row lacks a column that is named.
    """
    named = columns.named if columns else {}
    for file in _files(Path(path)):
        kind = _kind(file)
        for row, where in _RAW[kind](file):
            row = _renamed(row, named, where) if named else row
            yield (_read_cells(row) if kind in (".csv", ".tsv") else row), where


def count_lines(path: str | Path) -> int:
    """Lines of a plain JSON Lines file or of a folder of such; 0 = not known without reading."""
    files = _files(Path(path))
    if not all(file.name.endswith(".jsonl") and file.is_file() for file in files):
        return 0
    total = 0
    for file in files:
        with file.open("rb") as lines:
            total += sum(part.count(b"\n") for part in iter(partial(lines.read, CHUNK), b""))
    return total


def is_hub_id(path: str | Path) -> bool:
    """True for the id of a data set on the hub; what is there on the disk is none."""
    found = HUB_ID.fullmatch(str(path))
    return found is not None and not Path(path).exists() and _kind(Path(path)) == "hub"


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [file for kind in ("*.jsonl", "*.jsonl.gz", "*.parquet") for file in path.glob(kind)]
    return sorted(found)


def _kind(path: Path) -> str:
    """The format, by the name; "hub" for an id, .jsonl for every other file."""
    name = path.name.removesuffix(".gz").lower()
    kind = next((kind for kind in FILES if name.endswith(kind)), "")
    if kind:
        return kind
    return "hub" if HUB_ID.fullmatch(str(path)) and not path.exists() else ".jsonl"


def _renamed(row: Row, named: dict[str, str], where: str) -> Row:
    for field, column in named.items():
        if column not in row:
            near = difflib.get_close_matches(column, row, n=1)
            mend = f"; did you mean {near[0]!r}?" if near else ""
            found = ", ".join(map(repr, row)) or "none"
            raise DataError(
                f"{where}: columns.{field}={column!r} must be a column of the file, "
                f"which has {found}{mend}"
            )
    left = {name: value for name, value in row.items() if name not in named.values()}
    return {**left, **{field: row[column] for field, column in named.items()}}


# --- the formats ----------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[Row, str]]:
    for number, row in read_jsonl(path):
        yield row, f"{path}:{number}"


def _json(path: Path) -> Iterator[tuple[Row, str]]:
    """A list of objects, or objects one after the other, without reading the whole file."""
    decode = json.JSONDecoder().raw_decode
    rest, line, open_lists = "", 1, 0
    with _text(path) as text:
        for chunk in chain(iter(partial(text.read, CHUNK), ""), [""]):
            rest, at = rest + chunk, 0
            while True:
                between = BETWEEN.match(rest, at)[0]  # pyright: ignore[reportOptionalSubscript]
                open_lists += between.count("[") - between.count("]")
                line, at = line + between.count("\n"), at + len(between)
                where = f"{path}:{line}"
                if at == len(rest):
                    break
                try:
                    row, end = decode(rest, at)
                except (ValueError, RecursionError) as error:
                    if chunk and len(rest) <= LONGEST:
                        break  # an object goes on in the next chunk
                    raise DataError(f"{where}: not JSON ({error}); objects are needed") from None
                if not isinstance(row, dict):
                    raise DataError(f"{where}: {shown(row)} is not a JSON object, as rows must be")
                require_whole_characters(row, rest[at:end], where)
                yield row, where
                line, at = line + rest.count("\n", at, end), end
            rest = rest[at:]
        if open_lists:
            raise DataError(f"{path}:{line}: ends within its list, without ']'; is it complete?")


def _table(path: Path) -> Iterator[tuple[Row, str]]:
    """Rows of cells, which are strings; `_read_cells` reads what they hold."""
    csv.field_size_limit(1 << 30)
    mark = "\t" if _kind(path) == ".tsv" else ","
    with _text(path) as text:
        reader, line = csv.DictReader(text, delimiter=mark, strict=True), 1
        try:
            names = reader.fieldnames or ()
            if len(set(names)) < len(names):
                raise DataError(f"{path}:1: names a column twice among {shown(names)}")
            line = reader.line_num + 1
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}:{line}: must have {len(names)} cells, as many as the first line "
                        f"names columns; put cells that hold {mark!r} in quotes"
                    )
                yield row, f"{path}:{line}"
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}:{line}: not a table of cells ({error})") from None


def _read_cells(row: Row) -> Row:
    """Cells as JSON where they hold messages, or are of a column that is no text."""
    return {name: _cell(name, value) for name, value in row.items()}


def _cell(name: str, text: str) -> Any:
    listed = text.startswith("[{")
    if name in PLAIN and not listed:
        return text
    try:
        value = json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except (ValueError, RecursionError):
        return text if text else None
    return text if name in PLAIN and not _are_messages(value) else value


def _are_messages(value: Any) -> bool:
    turns = value if isinstance(value, list) else []
    return bool(turns) and all(isinstance(x, dict) and {"role", "from"} & x.keys() for x in turns)


def _parquet(path: Path) -> Iterator[tuple[Row, str]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    parquet = _module("pyarrow.parquet", f"{path}: a Parquet file")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield row, f"{path}: row {number}"
    except (OSError, ValueError) as error:  # what pyarrow raises is one of these
        raise DataError(f"{path}: cannot be read ({_first_line(error)})") from None


def _hub(path: Path) -> Iterator[tuple[Row, str]]:
    """Rows of a data set on the hub, as they arrive; its split is "train" where none is named."""
    name, *rest = str(path).split(":")
    module = _module("datasets", f"{path}: no such file; as a data set on the hub it")
    *config, split = rest or ["train"]
    http = importlib.import_module("httpx")
    number = 0
    try:
        for row in module.load_dataset(name, *config, split=split, streaming=True):
            number += 1
            yield dict(row), f"{path}: row {number}"
    except (OSError, ValueError, RuntimeError, http.HTTPError) as error:
        raise DataError(
            f"{path}: no such file, and as OWNER/NAME[:CONFIG]:SPLIT on the hub it cannot be read "
            f"({_first_line(error)})"
        ) from None


def _module(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(f"{what} needs the extra: pip install 'tether[datasets]'") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """A text file, compressed where its name ends in .gz."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield TextIOWrapper(file, encoding="utf-8-sig", newline="")  # pyright: ignore
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


_RAW = {
    ".jsonl": _lines,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
    "hub": _hub,
}
