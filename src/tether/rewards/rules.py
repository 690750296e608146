"""Rewards by rules: small functions of texts, each with its equation and its bounds.

A rule is called with prompts, completions and its own settings, and refuses settings that cannot
work before it looks at a text: called with no texts at all it checks them and nothing else. Every
rule takes time in proportion to the text, whatever the text, but `format`, which says how it is
bounded.
"""

import re
import unicodedata
import zlib
from collections.abc import Sequence
from typing import Literal

import regex

from tether.errors import CheckError, ConfigError
from tether.records import Text
from tether.sections import not_negative, positive, require

_WORD = re.compile(r"\w+")
FORMAT_SECONDS = 1.0


def length(
    prompts: list[Text],
    completions: list[str],
    *,
    least: int = 0,
    most: int = 0,
    slack: int = 0,
    unit: Literal["words", "characters"] = "words",
) -> list[float]:
    """1 within a window of lengths, falling to 0 over `slack` units outside of it; in [0, 1].

        score = max(0, 1 - d / (slack + 1)),  d = max(least - n, n - most, 0)

    Args:
        prompts: Not read.
        completions: n is the number of their words (runs of letters and digits), or characters.
        least: Shortest length that is fine.
        most: Longest length that is fine; 0 = any.
        slack: Units outside the window that still earn a part.
        unit: What is counted.

    Raises:
        ConfigError: The window is empty or not set.
    """
    for name, value in (("least", least), ("most", most), ("slack", slack)):
        not_negative(name, value)
    rule = "must be above 0, or least must: without a window every length is fine"
    require(least > 0 or most > 0, "most", most, rule)
    require(most == 0 or most >= least, "most", most, f"must be at least least={least}, or 0")

    def score(text: str) -> float:
        n = len(text) if unit == "characters" else sum(1 for _ in _WORD.finditer(text))
        outside = max(least - n, n - most if most else 0, 0)
        return max(0.0, 1 - outside / (slack + 1))

    return [score(text) for text in completions]


def repetition(
    prompts: list[Text],
    completions: list[str],
    *,
    by: Literal["ngrams", "compression"] = "ngrams",
    n: int = 3,
    free: float = 0.0,
) -> list[float]:
    """Minus the share of a completion that repeats itself, beyond `free`; in [-1, 0].

        score = -max(0, r - free) / (1 - free)
        ngrams:       r = 1 - (distinct n-grams of words) / (n-grams)
        compression:  r = max(0, 1 - (bytes after deflate) / (bytes))

    Compression sees repeated spans of any length, but ordinary text can be compressed, too, the
    longer the more: set `free` to what good completions of the usual length have.

    Args:
        prompts: Not read.
        completions: Their words are compared in the same case.
        by: What is measured.
        n: Words in an n-gram.
        free: Share that costs nothing.

    Raises:
        ConfigError: A setting is out of range.
    """
    positive("n", n)
    require(0 <= free < 1, "free", free, "must be at least 0 and below 1")
    repeated = _compressible if by == "compression" else lambda text: _repeated_ngrams(text, n)
    return [min(0.0, free - repeated(text)) / (1 - free) for text in completions]


def _repeated_ngrams(text: str, n: int) -> float:
    words = _WORD.findall(text.casefold())
    ngrams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _compressible(text: str) -> float:
    data = text.encode("utf-8", "surrogatepass")
    return max(0.0, 1 - len(zlib.compress(data, wbits=-15)) / len(data)) if data else 0.0


def banned(
    prompts: list[Text], completions: list[str], *, phrases: tuple[str, ...], most: int = 1
) -> list[float]:
    """Minus how often banned phrases occur, as a share of `most`; in [-1, 0].

        score = -min(occurrences, most) / most

    A phrase is found as whole words in any case and any spacing; Unicode's ways of writing the same
    (full-width letters, ligatures) are the same. Words of scripts without spaces are not parted,
    so a phrase within a run of them is not found; `format` can search for those.

    Args:
        prompts: Not read.
        completions: Texts that are searched.
        phrases: What they should not hold.
        most: Occurrences that cost a whole point.

    Raises:
        ConfigError: There is no phrase, an empty one, or `most` is not above 0.
    """
    positive("most", most)
    patterns = [_phrase(phrase) for phrase in _some(phrases)]
    counts = (sum(_count(each, text) for each in patterns) for text in map(plain, completions))
    return [-min(count, most) / most for count in counts]


def required(
    prompts: list[Text], completions: list[str], *, phrases: tuple[str, ...]
) -> list[float]:
    """Share of the required phrases that occur, found as `banned` finds them; in [0, 1].

    Args:
        prompts: Not read.
        completions: Texts that are searched.
        phrases: What they should hold.

    Raises:
        ConfigError: There is no phrase, or an empty one.
    """
    patterns = [_phrase(phrase) for phrase in _some(phrases)]
    found = (
        [each.search(text) is not None for each in patterns] for text in map(plain, completions)
    )
    return [sum(each) / len(patterns) for each in found]


def plain(text: str) -> str:
    """Text in one case, one spacing and one way of writing each character (NFKC)."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _phrase(phrase: str) -> re.Pattern[str]:
    """Finds a phrase in plain text where no letter, digit or underscore touches it."""
    return re.compile(rf"(?<!\w){re.escape(plain(phrase))}(?!\w)")


def _count(pattern: re.Pattern[str], text: str) -> int:
    return sum(1 for _ in pattern.finditer(text))


def _some(phrases: Sequence[str]) -> Sequence[str]:
    require(len(phrases) > 0, "phrases", phrases, 'must name one at least: phrases = ["as an AI"]')
    for phrase in phrases:
        require(plain(phrase) != "", "phrases", phrase, "must hold a word or a mark each")
    return phrases


def format(
    prompts: list[Text],
    completions: list[str],
    *,
    pattern: str,
    search: bool = False,
    longest: int = 10_000,
) -> list[float]:
    r"""1 where a completion, without the white space around it, has a form; else 0.

    The pattern must match the whole text (`search`: a part), `.` matches line breaks, too. Some
    patterns, such as `(a+)+b`, take time without end on some texts. Two bounds hold: a text of more
    than `longest` characters is no match and is not tried, and a single match that takes more than
    a second stops the run.

    Args:
        prompts: Not read.
        completions: Texts that are matched.
        pattern: Regular expression (of the package `regex`: Python's, with additions).
        search: True = a match anywhere will do.
        longest: Characters above which a text counts as no match.

    Raises:
        ConfigError: The pattern is not a regular expression.
        CheckError: A match took more than a second.
    """
    positive("longest", longest)
    try:
        compiled = regex.compile(pattern, regex.DOTALL)
    except regex.error as error:
        raise ConfigError(f"pattern={pattern!r} is not a regular expression: {error}") from None
    match = compiled.search if search else compiled.fullmatch

    def score(text: str) -> float:
        try:
            fits = len(text) <= longest and match(text.strip(), timeout=FORMAT_SECONDS)
        except TimeoutError:
            raise CheckError(
                f"pattern={pattern!r} took more than {FORMAT_SECONDS:g} s on the completion "
                f"{text[:80]!r}; write its repeats so that they can match in one way only, or "
                f"lower longest={longest}"
            ) from None
        return float(bool(fits))

    return [score(text) for text in completions]
