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
_END = re.compile(r"[.!?…]+[\"'”’)]*(?=\s|\[|$)")
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?")
_NEGATIONS = frozenset(
    re.findall(r"\w+", "no not never none neither nor nothing nobody without cannot")
)
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about above after again all also although am an and any are as at be because been before "
        "being between both but by can could did do does doing during each either few for from "
        "further had has have having he her here hers him his how i if in into is it its itself just "
        "may me might more most must my of off on once only or other our out over own per same she "
        "should so some such than that the their them then there these they this those through to "
        "too under until up upon us very was we were what when where whether which while who whom "
        "whose why will with would you your according source sources says said states",
    )
)


class Claim(NamedTuple):
    """A sentence that says something, and the names of the sources it cites."""

    text: str
    cited: tuple[str, ...]


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


def _score(sources: dict[str, str], claims: list[Claim], support: float) -> float:
    verdicts = [verdict(claim, sources, support=support) for claim in claims]
    earned = [0.0 if found == "missing" and not sources else EARNS[found] for found in verdicts]
    return sum(earned) / len(earned) if earned else 0.0


def verdict(claim: Claim, sources: dict[str, str], *, support: float = 0.75) -> Verdict:
    """What becomes of a claim.

    invented: a name that is cited is none of the sources'. missing: nothing is cited. Else let
    W(x) be the content words of x, stemmed, and s_1 … s_n the one sentence of each cited source
    that shares most of them with the claim c. c is supported where

        |W(c) ∩ (W(s_1) ∪ … ∪ W(s_n))| / |W(c)| ≥ support

    and every number of c is in one of those sentences, as many of them are negated as c is (by the
    parity of its "not", "no", "never", …), and each shares a third of W(c) at least, so that
    citing everything is no way to be right.
    """
    if not claim.cited:
        return "missing"
    if any(name not in sources for name in claim.cited):
        return "invented"
    words = content_words(claim.text)
    nearest = [_nearest(words, sources[name]) for name in claim.cited]
    found = [words & content_words(sentence) for sentence in nearest]
    covered = frozenset[str]().union(*found)
    numbers = {word for word in words if word[0].isdigit()}
    negated = {_negated(sentence) for sentence in nearest}
    good = (
        len(words) > 0
        and len(covered) >= support * len(words)
        and numbers <= covered
        and negated == {_negated(claim.text)}
        and all(3 * len(part) >= len(words) for part in found)
    )
    return "supported" if good else "unsupported"


def sources_in(prompt: Text) -> dict[str, str]:
    """The sources of a prompt by their names, in lower case; of chat messages, those of all."""
    text = prompt if isinstance(prompt, str) else "\n\n".join(m["content"] for m in prompt)
    sources: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        if found := _SOURCE.match(line):
            current = sources.setdefault(found[1].casefold(), [])
            line = found[2]
        if not line.strip():
            current = None
        elif current is not None:
            current.append(line)
    return {name: "\n".join(lines) for name, lines in sources.items() if lines}


def claims_in(text: str, claim_words: int = 3) -> list[Claim]:
    """The claims of a completion in order; a citation right behind the period is the sentence's."""
    claims = [_claim(sentence) for sentence in _sentences(text)]
    return [
        claim
        for claim in claims
        if claim.cited
        or (len(content_words(claim.text)) >= claim_words and not claim.text.endswith("?"))
    ]


def _claim(sentence: str) -> Claim:
    groups = (re.split(r"[,;]", found) for found in _CITATION.findall(sentence))
    names = dict.fromkeys(name.strip().casefold() for group in groups for name in group)
    return Claim(_CITATION.sub(" ", sentence).strip(), tuple(names))


def _sentences(text: str) -> Iterable[str]:
    """Sentences of a text, line by line, each with the citations behind its period."""
    for line in text.splitlines():
        start = 0
        for end in _END.finditer(line):
            if end.start() < start:
                continue
            stop = _behind_citations(line, end.end())
            yield line[start:stop]
            start = stop
        if line[start:].strip():
            yield line[start:]


def _behind_citations(line: str, at: int) -> int:
    """The place behind the citations that follow, unless a sentence goes on with them."""
    stop = at
    while found := re.compile(rf" ?{_CITATION.pattern}\.?").match(line, stop):
        stop = found.end()
    following = line[stop : stop + 2].strip()
    return at if stop > at and following and not following[0].isupper() else stop


def _nearest(words: frozenset[str], source: str) -> str:
    """The sentence of a source that shares most of the words; the first of equals."""
    return max(_sentences(source), key=lambda each: len(words & content_words(each)))


def content_words(text: str) -> frozenset[str]:
    """Stemmed words and numbers of a text that are no function words or negations."""
    words = (word.casefold().replace("’", "'") for word in _WORD.findall(text))
    return frozenset(
        stem(word) for word in words if word not in _FUNCTION_WORDS and not _negates(word)
    )


def stem(word: str) -> str:
    """A word without its ending, numbers without their commas: rough, but the same for both sides.

    "mills" → "mill", "opened" → "open", "opening" → "open", "1,000" → "1000".
    """
    if word[0].isdigit():
        return re.sub(r",(?=\d{3})", "", word)
    word = word.removesuffix("'s")
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word.removesuffix(ending).removesuffix("e")
    return word.removesuffix("e") if len(word) > 3 else word


def _negates(word: str) -> bool:
    return word in _NEGATIONS or word.endswith("n't")


def _negated(text: str) -> bool:
    """Whether a text has an odd number of negations."""
    words = (word.casefold().replace("’", "'") for word in _WORD.findall(text))
    return sum(map(_negates, words)) % 2 == 1
