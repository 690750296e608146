"""Questions with known options, read from our shape of rows or from a public one.

    {"prompt", "options", "answer"}      the options are completions of the prompt, as they stand
    {"question", "options", "answer"}    the options get letters, and every option each letter once

`answer` is the number of the right option, from 0. Rows of one `group` ask the same in different
words, and `view` is the option that the asker is known to hold.

Two shapes of Anthropic's evaluations are read as well (https://github.com/anthropics/evals):
behaviours, whose answer is what the behaviour would say, and winogenerated, whose answer is the
pronoun of most people in the occupation.
"""

import re
from importlib.resources import files
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal, NamedTuple

from tether.errors import DataError
from tether.records import Text, read_jsonl, read_text, shown

OWN = ("hhh", "pronouns", "sycophancy")
"""The sets that come with the package."""

_CHOICE = re.compile(r"^ *\(([A-H])\) *(.+?) *$", re.MULTILINE)
_SHAPES = (
    "prompt + options, question + options, question + answer_matching_behavior + "
    "answer_not_matching_behavior, sentence_with_blank + pronoun_options"
)


class Way(NamedTuple):
    """One way to put a question: what is asked, and what each option says as the completion."""

    asked: Text
    said: tuple[str, ...]
    is_question: bool
    """True: put to the model as a question to be answered; False: continued as it stands"""


class Question(NamedTuple):
    """A question in all the ways in which it is put; its probabilities are the mean over them."""

    ways: tuple[Way, ...]
    answer: int | None = None
    """Number of the option that is looked for"""
    means: Literal["right", "behaviour", "stereotype"] = "right"
    """What that option is"""
    category: str = ""
    group: str = ""
    view: int | None = None
    """Number of the option that the asker holds"""


def read_questions(path: str) -> list[Question]:
    """The questions of a file, or of a set of ours by its name.

    Raises:
        DataError: The file is missing or empty, or a row is no question in a shape we know.
    """
    place = files("tether.evaluation") / "probe_sets" / f"{path}.jsonl" if path in OWN else path
    questions = [_question(row, f"{path}:{number}") for number, row in read_jsonl(Path(str(place)))]
    if not questions:
        raise DataError(f"{path}: holds no question; at least one JSON line is needed")
    return questions


def _question(row: dict[str, Any], where: str) -> Question:
    try:
        if "answer_matching_behavior" in row:
            return _behaviour(row)
        if "sentence_with_blank" in row:
            return _pronoun(row)
        if "options" in row and ("prompt" in row or "question" in row):
            return _own(row)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: {shown(row)} is no question: {error}") from None
    found = ", ".join(map(repr, row)) or "none"
    raise DataError(f"{where}: no question in the fields {found}; the shapes read: {_SHAPES}")


def _own(row: dict[str, Any]) -> Question:
    options = row["options"]
    if not isinstance(options, list) or not all(isinstance(each, str) for each in options):
        raise TypeError("options must be a list of strings")
    if not 2 <= len(set(options)) == len(options) <= len(ascii_uppercase):
        raise ValueError("options must be 2 to 26 different texts")
    if "prompt" in row:
        ways = (Way(read_text(row["prompt"]), tuple(options), is_question=False),)
    else:
        ways = lettered(row["question"], options)
    return Question(
        ways=ways,
        answer=_number(row, "answer", len(options)),
        category=str(row.get("category", "")),
        group=str(row.get("group", "")),
        view=_number(row, "view", len(options)),
    )


def _number(row: dict[str, Any], name: str, count: int) -> int | None:
    value = row.get(name)
    if value is not None and (type(value) is not int or not 0 <= value < count):
        raise ValueError(f"{name}={value!r} must be the number of an option, 0 to {count - 1}")
    return value


def lettered(question: str, options: list[str]) -> tuple[Way, ...]:
    """A question of letters, put as often as it has options, each of them standing first once.

    A model that loves one letter, or the first place, then gives every option the same.
    """
    ways: list[Way] = []
    count = len(options)
    for shift in range(count):
        places = [(i + shift) % count for i in range(count)]  # option at each letter
        lines = [f"({ascii_uppercase[at]}) {options[i]}" for at, i in enumerate(places)]
        letters = tuple(f"({ascii_uppercase[places.index(i)]})" for i in range(count))
        ways.append(Way("\n".join([question, "", *lines]), letters, is_question=True))
    return tuple(ways)


def _behaviour(row: dict[str, Any]) -> Question:
    """Anthropic's behaviours: both orders where the question has two choices, else as it stands."""
    matching, other = row["answer_matching_behavior"], row["answer_not_matching_behavior"]
    question, category = str(row["question"]), str(row.get("behavior", ""))
    choices = dict(_CHOICE.findall(question))
    letters = [answer.strip().strip("()") for answer in (matching, other)]
    if len(choices) == 2 and set(letters) == set(choices):
        stem = question[: question.rindex("(A)")].rstrip()
        ways = lettered(stem, [choices[letter] for letter in letters])
    else:
        ways = (Way(question, (matching.strip(), other.strip()), is_question=True),)
    return Question(ways=ways, answer=0, means="behaviour", category=category)


def _pronoun(row: dict[str, Any]) -> Question:
    """Winogenerated: the sentence with his and with her pronoun; which do most people there have?

    The gender-neutral pronoun is left out.
    """
    his, hers = row["pronoun_options"][:2]
    said = tuple(row["sentence_with_blank"].replace("_", each) for each in (his, hers))
    women = float(row["BLS_percent_women_2019"]) > 50
    return Question(
        ways=(Way("", said, is_question=False),),
        answer=int(women),
        means="stereotype",
        category="work of women" if women else "work of men",
    )
