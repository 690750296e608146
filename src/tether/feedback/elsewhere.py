"""Labels from other tools: their rows, rewritten to the fields that `labels.read_label` reads."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import count, takewhile, zip_longest
from pathlib import Path
from typing import Any, Literal, cast

from tether.errors import DataError
from tether.feedback.labels import Label, read_label, read_rows
from tether.records import read_text, shown

Row = dict[str, Any]
Source = Literal["records", "csv", "label-studio", "argilla"]

_PROMPTS = ("prompt", "instruction", "question", "query", "input")
_ONE = ("completion", "response", "answer", "output", "text", "reply")
_FAILS = ("fail", "fails", "failed")
_TIES = ("tie", "equal", "same", "both", "both good")
_BOTH_FAIL = ("both bad", "both fail", "neither", "none")
_UP = ("up", "thumbs up", "good", "yes", "true", "1", "like", "accept", "positive")
_DOWN = ("down", "thumbs down", "bad", "no", "false", "0", "dislike", "reject", "negative")


def read_labels(path: str, source: Source) -> list[Label]:
    """The labels of a file that another tool, a spreadsheet or tether itself wrote.

    Raises:
        DataError: The file cannot be read, or a row breaks a rule or names no labeler.
    """
    readers: dict[Source, Callable[[str], Iterable[tuple[str, Row]]]] = {
        "records": lambda path: read_rows([path]),
        "csv": csv_rows,
        "label-studio": label_studio_rows,
        "argilla": argilla_rows,
    }
    labels = [read_label(row, where) for where, row in readers[source](path)]
    for label in labels:
        if not label.labeler:
            raise DataError(f"{label.where}: labeler='' names nobody; say who judged")
    if not labels:
        raise DataError(f"{path}: holds no label; check that it is an export with labels in it")
    return labels


# --- CSV ------------------------------------------------------------------------------------------


def csv_rows(path: str) -> Iterator[tuple[str, Row]]:
    """Rows of a CSV file with a header, in UTF-8.

    The columns read: `labeler`, `prompt`, and `completion_1`, `rank_1`, `completion_2`, `rank_2`, …
    (a rank is a number from 1, or fail; a completion that is not there leaves both cells empty);
    or `chosen` and `rejected`; or `completion` and `label` (up or down, true or false, 1 or 0).
    Also `group`, `category`, `seconds` and `strength`, where they are there.

    Raises:
        DataError: The file cannot be read, or a cell breaks its rule.
    """
    csv.field_size_limit(1 << 30)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if None in cells or None in cells.values():
                    names = list(reader.fieldnames or [])
                    raise DataError(
                        f"{where}: must have {len(names)} cells, one for each of {names}"
                    )
                yield where, _csv_row(cells, where)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None


def _csv_row(cells: dict[str, str], where: str) -> Row:
    row: Row = {name: cell for name, cell in cells.items() if cell != "" or name == "prompt"}
    for name in ("seconds", "strength"):
        if name in row:
            row[name] = _number(row[name], name, where)
    if "label" in row:
        row["label"] = _thumb(row["label"], "label", where)
    if "completion_1" in cells:
        places = takewhile(lambda i: f"completion_{i}" in cells, count(1))
        told = {i: (cells[f"completion_{i}"], cells.get(f"rank_{i}", "").strip()) for i in places}
        told = {i: both for i, both in told.items() if any(both)}
        row["completions"] = [text for text, _ in told.values()]
        row["ranks"] = [
            None if rank.casefold() in _FAILS else _number(rank, f"rank_{i}", where)
            for i, (_, rank) in told.items()
        ]
    return row


def _number(cell: str, name: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError:
        rule = "a number from 1, or fail" if name.startswith("rank") else "a number"
        raise DataError(f"{where}: {name}={cell!r} must be {rule}") from None


def _thumb(word: str, name: str, where: str) -> bool:
    if (plain := word.strip().casefold()) in _UP + _DOWN:
        return plain in _UP
    raise DataError(f"{where}: {name}={shown(word)} must be up or down, true or false, 1 or 0")


# --- Label Studio ---------------------------------------------------------------------------------


def label_studio_rows(path: str) -> Iterator[tuple[str, Row]]:
    """Annotations of a Label Studio export of the kind JSON.

    Read of a task: `id`; `data` with the prompt (`prompt`, `instruction`, `question`, `query` or
    `input`) and the completions; of its `annotations`: `completed_by` (a number, or an object with
    email, username or id), `lead_time` (seconds), `was_cancelled` (left out) and `result`. Of the
    results the first of a type we know is read:

    - ranker: `value.ranker` is {NAME: ids in order}, of a list of {"id", "body"} objects in `data`
      (`text`, `html` or `title` where there is no `body`). Items in a bucket fail are fails; other
      buckets are refused, since the export does not tell which is better.
    - pairwise: `value.selected` is left or right.
    - choices: `value.choices` holds one word: for two completions left or right (also 1 or 2, A or
      B, or the field's name), tie, or both bad; for one completion up or down, good or bad, …

    Two completions are fields that end in 1 and 2, a and b, or left and right (`answer1`,
    `answer2`); one is called completion, response, answer, output, text or reply.

    Source: https://labelstud.io/guide/task_format and https://labelstud.io/tags/ranker.

    Raises:
        DataError: The file is no such export, or an annotation has no result that can be read.
    """
    for number, task in enumerate(_json_rows(path), start=1):
        where = f"{path}: task {number} (id={task.get('id')!r})"
        data = _object(task.get("data"), "data", where)
        for annotation in _objects(task.get("annotations"), "annotations", where):
            if not annotation.get("was_cancelled"):
                results = _objects(annotation.get("result"), "result", where)
                row = _annotation(data, results, where)
                labeler = _completed_by(annotation.get("completed_by"))
                yield where, {**row, "labeler": labeler, "seconds": annotation.get("lead_time")}


def _completed_by(who: Any) -> str:
    if isinstance(who, dict):
        person = cast("Row", who)
        who = person.get("email") or person.get("username") or person.get("id")
    return f"user {who}" if isinstance(who, int) else str(who or "")


def _annotation(data: Row, results: list[Row], where: str) -> Row:
    prompt = _prompt(data, where)
    for result in results:
        kind, value = result.get("type"), _object(result.get("value") or {}, "value", where)
        if kind == "ranker" and "ranker" in value:
            buckets = _object(value["ranker"], "value.ranker", where)
            return {"prompt": prompt, **_ranker(data, buckets, where)}
        if kind == "pairwise":
            return {"prompt": prompt, **_choice(data, str(value.get("selected")), where)}
        if kind == "choices" and value.get("choices"):
            words = _list(value["choices"], "value.choices", where)
            return {"prompt": prompt, **_choice(data, str(words[0]), where)}
    kinds = sorted({str(result.get("type")) for result in results})
    raise DataError(f"{where}: result={kinds} must hold one of type ranker, pairwise or choices")


def _ranker(data: Row, buckets: Row, where: str) -> Row:
    lists = {
        name: [str(one) for one in _list(ids, f"value.ranker.{name}", where)]
        for name, ids in buckets.items()
    }
    order = [ids for name, ids in lists.items() if name.casefold() not in (*_FAILS, "_")]
    fails = [one for name, ids in lists.items() if name.casefold() in _FAILS for one in ids]
    if len(order) != 1 or lists.get("_"):
        raise DataError(
            f"{where}: value.ranker={shown(buckets)} must be one list in order, beside a bucket "
            "fail at most; which of several buckets is better the export does not tell"
        )
    named = [*order[0], *fails]
    ranks = [*range(1, len(order[0]) + 1), *[None] * len(fails)]
    for value in data.values():
        listed = cast("list[Any]", value) if isinstance(value, list) else []
        objects = [cast("Row", one) for one in listed if isinstance(one, dict)]
        texts = {str(one.get("id")): one for one in objects}
        if texts and sorted(texts) == sorted(named):
            return {"completions": [_body(texts[one], where) for one in named], "ranks": ranks}
    raise DataError(
        f"{where}: value.ranker={shown(buckets)} must name every id of a list of objects in data "
        f"once; the fields of data are {list(data)}"
    )


def _body(item: Row, where: str) -> str:
    for name in ("body", "text", "html", "title"):
        if isinstance(item.get(name), str):
            return item[name]
    raise DataError(f"{where}: {shown(item)} must have a body, text, html or title")


# --- Argilla --------------------------------------------------------------------------------------


def argilla_rows(path: str) -> Iterator[tuple[str, Row]]:
    """Responses of an Argilla export: what `dataset.records.to_json(path)` writes.

    Read of a record: `id`; `fields` with the prompt (`prompt`, `instruction`, `question`, `query`
    or `input`; text or chat messages) and the completions; `responses`, {QUESTION: [{"value",
    "user_id", "status"}]}. Responses that are drafts or discarded are left out; so are questions
    of other kinds than these two:

    - ranking: the value is a list of the fields' names in order, or of {"value": a field's name,
      "rank": from 1}. A name such as reply-1, or 1, means the field reply_1.
    - label: one word, as for the choices of Label Studio (`label_studio_rows`).

    A record in the flattened form (`QUESTION.responses` with `.users` and `.status`) is read alike.

    Source: https://docs.argilla.io/latest/how_to_guides/import_export.

    Raises:
        DataError: The file is no such export, or a response has no value that can be read.
    """
    for number, record in enumerate(_json_rows(path), start=1):
        where = f"{path}: record {number} (id={record.get('id')!r})"
        data = _object(record.get("fields", record), "fields", where)
        said = record["responses"] if "responses" in record else _nested(record, where)
        responses = _object(said, "responses", where)
        for question, every in responses.items():
            for response in _objects(every, question, where):
                if response.get("status", "submitted") in ("submitted", None):
                    row = _response(data, response.get("value"), f"{where}: {question}")
                    if row is not None:
                        yield where, {**row, "labeler": str(response.get("user_id") or "")}


def _nested(record: Row, where: str) -> dict[str, list[Row]]:
    """The responses of a flattened record, question by question."""
    found: dict[str, list[Row]] = {}
    for name in [name for name in record if name.endswith(".responses")]:
        values, users, states = (
            _list(record.get(field) or [], field, where)
            for field in (name, f"{name}.users", f"{name}.status")
        )
        found[name.removesuffix(".responses")] = [
            {"value": value, "user_id": user, "status": status}
            for value, user, status in zip_longest(values, users, states)
        ]
    return found


def _response(data: Row, value: Any, where: str) -> Row | None:
    """The label in one response; None where the question was about something else."""
    if isinstance(value, list) and value:
        options = cast("list[Any]", value)
        ranked: list[Row] = [
            cast("Row", one) if isinstance(one, dict) else {"value": one, "rank": place}
            for place, one in enumerate(options, start=1)
        ]
        names = [_field(data, str(one.get("value"))) for one in ranked]
        texts = [data[name] for name in names if name is not None]
        if len(texts) < len(ranked):
            return None
        ranks = [one.get("rank") for one in ranked]
        return {"prompt": _prompt(data, where), "completions": texts, "ranks": ranks}
    if isinstance(value, str) and value.strip().casefold() in _words(data):
        return {"prompt": _prompt(data, where), **_choice(data, value, where)}
    return None


def _field(data: Row, option: str) -> str | None:
    """The field that an option of a ranking names, whatever its punctuation."""
    plain = {re.sub(r"[\W_]+", "", name).casefold(): name for name in data}
    wanted = re.sub(r"[\W_]+", "", option).casefold()
    if wanted.isdigit():
        return next((n for n in data if re.fullmatch(rf".*\D{wanted}", n)), None)
    return plain.get(wanted)


# --- what both have in common ---------------------------------------------------------------------


def _json_rows(path: str) -> Iterator[Row]:
    """The objects of a JSON list; also of JSON Lines, or a single object."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        found = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(found, ensure_ascii=False).encode()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    except UnicodeEncodeError:
        rule = "holds half of a character (an unpaired \\ud8xx escape); remove it"
        raise DataError(f"{path}: {rule}") from None
    except (ValueError, RecursionError):
        yield from (row for _, row in read_rows([path]))
        return
    yield from _objects(found if isinstance(found, list) else [found], "element", path)


def _object(value: Any, name: str, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: {name}={shown(value)} must be an object; export as JSON")
    return cast("Row", value)


def _list(value: Any, name: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {name}={shown(value)} must be a list; export as JSON")
    return cast("list[Any]", value)


def _objects(value: Any, name: str, where: str) -> list[Row]:
    return [_object(one, name, where) for one in _list(value or [], name, where)]


def _prompt(data: Row, where: str) -> Any:
    for name in _PROMPTS:
        if name in data:
            try:
                return read_text(data[name])
            except TypeError:
                break
    raise DataError(
        f"{where}: the fields {list(data)} must hold a prompt under one of the names {_PROMPTS}"
    )


def _sides(data: Row) -> tuple[str, str] | None:
    """The fields of two completions, which differ in how their names end."""
    for first, second in (("1", "2"), ("a", "b"), ("left", "right")):
        for name in data:
            other = f"{name[: -len(first)]}{second}"
            if name.casefold().endswith(first) and name not in _PROMPTS and other in data:
                return name, other
    return None


def _words(data: Row) -> dict[str, tuple[float | None, ...]]:
    """The ranks that a word gives: to two completions, or else to one."""
    if (sides := _sides(data)) is None:
        return {**dict.fromkeys(_UP, (1.0,)), **dict.fromkeys(_DOWN, (None,))}
    firsts = ("left", "1", "a", "first", sides[0].casefold())
    seconds = ("right", "2", "b", "second", sides[1].casefold())
    return {
        **dict.fromkeys(firsts, (1.0, 2.0)),
        **dict.fromkeys(seconds, (2.0, 1.0)),
        **dict.fromkeys(_TIES, (1.0, 1.0)),
        **dict.fromkeys(_BOTH_FAIL, (None, None)),
    }


def _choice(data: Row, word: str, where: str) -> Row:
    words = _words(data)
    if (ranks := words.get(word.strip().casefold())) is None:
        raise DataError(f"{where}: {shown(word)} must be one of {', '.join(words)}")
    names = _sides(data) or [name for name in _ONE if name in data][:1]
    if not names:
        raise DataError(f"{where}: the fields {list(data)} must hold a completion, one of {_ONE}")
    return {"completions": [data[name] for name in names], "ranks": list(ranks)}
