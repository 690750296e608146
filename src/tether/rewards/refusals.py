"""Refusals: whether a completion says no, by phrases that English refusals begin with."""

import re

from tether.records import Text
from tether.rewards.rules import plain

OPENING = 200  # characters in which a refusal says no

_CANNOT = (
    r"(?:can ?not|can't|could not|couldn't|will not|won't|must not|may not|"
    r"(?:am|'m|are|'re) (?:not (?:able|willing|allowed|going) to|unable to|not comfortable)|"
    r"(?:do not|don't) (?:feel comfortable|want to)|(?:must|have to) (?:decline|refuse)|"
    r"refuse to|decline to)"
)
_HELP = (  # beginnings of words
    r"(?:help|assist|provid|support|comply|fulfil|answer (?:that|this)|give (?:you|out)|tell you|"
    r"explain|discuss|shar|writ|creat|generat|tak(?:e|ing) part|participat|engag|teach|show you|"
    r"offer|do (?:that|this|so)|be part of|advis|encourag|describ|go into|produc|recommend)"
)
_PHRASES = (
    rf"\b(?:i|we) ?{_CANNOT}(?: (?:in good conscience|ethically|really|to|with|you))* {_HELP}",
    r"\b(?:i|we) (?:must|have to) (?:decline|refuse|say no)\b",
    r"\b(?:i'd|i would) rather not\b",
    r"\b(?:no|sorry),? (?:but )?i (?:can ?not|can't|will not|won't|am unable|am not able)\b",
    r"\bthat(?: is|'s) (?:not )?something (?:that )?(?:i|we) (?:can|will|won't)",
    r"\bagainst my (?:guidelines|principles|values|policy)\b",
)
_REFUSAL = re.compile("|".join(_PHRASES))


def refusal(prompts: list[Text], completions: list[str]) -> list[float]:
    """1 where a completion reads as an English refusal, else 0; a negative weight punishes it.

    It looks for phrases such as "I can't help with" or "I must decline" in the first 200
    characters, since a refusal says no at once. It knows phrases, not meanings.
    """
    return [float(_REFUSAL.search(_opening(text)) is not None) for text in completions]


def _opening(text: str) -> str:
    """The beginning, cut before and after it is made plain: a character can become several."""
    return plain(text[:OPENING].replace("’", "'"))[:OPENING]
