"""Citations: claims that cite a source which bears them out earn, all others lose.

The sources stand in the prompt, where the policy reads them too: a line that begins with a name in
brackets, such as `[1]` or `[doc-3]`, is the source of that name, with the lines that follow it up
to the next one or to an empty line.

Whether a source bears a claim out is decided by words alone, which is as simple as it sounds: a
paraphrase in other words counts as unsupported, a claim with the source's words in another order
as supported. docs/rewards.md says how often that is right.
"""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from tether.records import Text
from tether.sections import require, share

Verdict = Literal["supported", "unsupported", "invented", "missing"]

EARNS: dict[Verdict, float] = {
    "supported": 1.0,
    "missing": -0.5,
    "unsupported": -1.0,
    "invented": -1.0,
}
"""What a claim earns by its verdict."""

_NAME = r"[^\W_](?:[\w.-]{0,30})"
_CITATION = re.compile(rf"\[({_NAME}(?: ?[,;] ?{_NAME}){{0,20}})\]")
_SOURCE = re.compile(rf"[ \t]*\[({_NAME})\]:?[ \t]*(.*)")
_BEHIND = re.compile(rf" ?{_CITATION.pattern}\.?")
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)]*+(?=\s|\[|$)")
_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?")
_NEGATIONS = frozenset(
    re.findall(r"\w+", "no not never none neither nor nothing nobody without cannot")
)
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about above after again all also although am an and any are as at be because been "
        "before being between both but by can could did do does doing during each either few for "
        "from further had has have having he her here hers him his how i if in into is it its "
        "itself just may me might more most must my of off on once only or other our out over own "
        "per same she should so some such than that the their them then there these they this "
        "those through to too under until up upon us very was we were what when where whether "
        "which while who whom whose why will with would you your according source sources says "
        "said states",
    )
)


class Sentence(NamedTuple):
    """What is read of a sentence.

    Attributes:
        words: Its content words, stemmed, numbers among them.
        names: Those of them with a capital that do not begin the sentence.
        negated: Whether it has an odd number of negations.
        cited: The names of the sources that it cites, in lower case.
    """

    words: frozenset[str]
    names: frozenset[str]
    negated: bool
    cited: tuple[str, ...]


Sources = dict[str, list[Sentence]]
"""The sentences of each source, by its name in lower case."""


def citations(
    prompts: list[Text], completions: list[str], *, support: float = 0.75, claim_words: int = 3
) -> list[float]:
    """Mean over a completion's claims of what each earns, in [-1, 1]; 0 without a claim.

        score = (1/C) Σ_c earns(c);  supported 1, missing -1/2, unsupported -1, invented -1

    A claim is a sentence with a citation, or with `claim_words` content words that is no question.
    Being a mean, the score does not grow with the number of claims. Where a prompt has no sources,
    nothing could have been cited: a claim without a citation then earns 0.

    Args:
        prompts: With the sources in them, each on a line that begins with its name in brackets.
        completions: With citations such as [1], [doc-3], [1][2] or [1, 2].
        support: Share of a claim's content words that its sources must hold, see `verdict`.
        claim_words: Content words that make a sentence without a citation a claim.

    Raises:
        ConfigError: `support` or `claim_words` is out of range.
    """
    share("support", support)
    require(claim_words > 0, "claim_words", claim_words, "must be 1 or more")
    return [
        _score(sources_in(prompt), claims_in(completion, claim_words), support)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _score(sources: Sources, claims: list[Sentence], support: float) -> float:
    verdicts: list[Verdict] = [verdict(claim, sources, support=support) for claim in claims]
    earns: dict[Verdict, float] = EARNS if sources else {**EARNS, "missing": 0.0}
    return sum(earns[found] for found in verdicts) / len(verdicts) if verdicts else 0.0


def verdict(claim: Sentence, sources: Sources, *, support: float = 0.75) -> Verdict:
    """What becomes of a claim.

    invented: a name that is cited is none of the sources'. missing: nothing is cited. Else let
    W(x) be the content words of x, stemmed, and s_1 … s_n the one sentence of each cited source
    that shares most of them with the claim c (of equals one negated as c is). c is supported where

        |W(c) ∩ (W(s_1) ∪ … ∪ W(s_n))| / |W(c)| ≥ support

    and every number of c is in one of those sentences, every name (a word with a capital that does
    not begin c) anywhere in the cited sources, c has an even number of negations ("not", "no",
    "never", …) where those sentences have, and each of them shares more than a third of W(c), so
    that citing everything is no way to be right.
    """
    if not claim.cited:
        return "missing"
    if any(name not in sources for name in claim.cited):
        return "invented"
    words = claim.words
    cited = [sources[name] for name in claim.cited]
    nearest = [_nearest(claim, sentences) for sentences in cited]
    found = [words & sentence.words for sentence in nearest]
    covered = frozenset[str]().union(*found)
    good = (
        len(words) > 0
        and len(covered) >= support * len(words)
        and {word for word in words if word[0].isdigit()} <= covered
        and claim.names <= frozenset().union(*(each.words for part in cited for each in part))
        and claim.negated == (sum(sentence.negated for sentence in nearest) % 2 == 1)
        and all(3 * len(part) > len(words) for part in found)
    )
    return "supported" if good else "unsupported"


def _nearest(claim: Sentence, sentences: list[Sentence]) -> Sentence:
    def closeness(each: Sentence) -> tuple[int, bool]:
        return len(claim.words & each.words), claim.negated == each.negated

    return max(sentences, key=closeness)


def sources_in(prompt: Text) -> Sources:
    """The sources of a prompt; of chat messages, those of all messages."""
    text = prompt if isinstance(prompt, str) else "\n\n".join(m["content"] for m in prompt)
    sources: Sources = {}
    current: list[Sentence] | None = None
    for line in text.splitlines():
        found = _SOURCE.match(line)
        if found:
            current = sources.setdefault(found[1].casefold(), [])
        elif not line.strip():
            current = None
        if current is not None:
            current += map(read, _sentences(found[2] if found else line))
    return {name: sentences for name, sentences in sources.items() if sentences}


def claims_in(text: str, claim_words: int = 3) -> list[Sentence]:
    """The claims of a completion in order; a citation right behind the period is the sentence's."""
    sentences = ((part.rstrip(), read(part)) for part in _sentences(text))
    return [
        sentence
        for part, sentence in sentences
        if sentence.cited or (len(sentence.words) >= claim_words and not part.endswith("?"))
    ]


def read(text: str) -> Sentence:
    """A sentence, with its citations taken out of its words."""
    groups = (re.split("[,;]", found) for found in _CITATION.findall(text))
    cited = dict.fromkeys(name.strip().casefold() for group in groups for name in group)
    written = _WORD.findall(_CITATION.sub(" ", text).replace("’", "'"))
    words = [word.casefold() for word in written]
    names = (word.casefold() for word in written[1:] if word[0].isupper())
    negated = sum(map(_negates, words)) % 2 == 1
    return Sentence(_content(words), _content(names), negated, tuple(cited))


def _sentences(text: str) -> Iterable[str]:
    """Sentences of a text, line by line, each with the citations behind its period."""
    for line in text.splitlines():
        start = 0
        for end in _END.finditer(line):
            if end.start() >= start:
                stop = _behind_citations(line, end.end())
                yield line[start:stop]
                start = stop
        if line[start:].strip():
            yield line[start:]


def _behind_citations(line: str, at: int) -> int:
    """The place behind the citations that follow, unless a sentence goes on with them."""
    stop = at
    while found := _BEHIND.match(line, stop):
        stop = found.end()
    following = line[stop : stop + 2].strip()
    return at if following and not following[0].isupper() else stop


def _content(words: Iterable[str]) -> frozenset[str]:
    """Words and numbers, stemmed, without function words and negations."""
    return frozenset(
        stem(word) for word in words if word not in _FUNCTION_WORDS and not _negates(word)
    )


def stem(word: str) -> str:
    """A word without its ending, a number without its commas: rough, but the same on both sides.

    "mills" → "mill", "opened" → "open", "baking" → "bak" as "bake" → "bak", "1,000" → "1000".
    """
    if word[0].isdigit():
        return re.sub(r",(?=\d{3})", "", word)
    word = word.removesuffix("'s")
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word.removesuffix(ending)
            break
    return word.removesuffix("e") if len(word) > 3 else word


def _negates(word: str) -> bool:
    return word in _NEGATIONS or word.endswith("n't")
