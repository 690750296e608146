"""Refusals: whether a completion says no, by phrases that English refusals begin with."""

import re

from tether.records import Text
from tether.rewards.rules import plain

OPENING = 200  # characters in which a refusal says no

_CANNOT = (
    r"(?:can ?not|can't|could not|couldn't|will not|won't|would not|must not|may not|"
    r"(?:am|'m|are|'re) (?:not (?:able|willing|allowed|going) to|unable to|not comfortable)|"
    r"(?:do not|don't) (?:feel comfortable|want to)|must decline|have to decline|have to refuse|"
    r"must refuse|refuse to|decline to)"
)
_HELP = (
    r"(?:help|assist|provide|provid|support|comply|fulfill?|answer (?:that|this)|give (?:you|out)|"
    r"tell you|explain|discuss|share|write|create|generate|take part|participate|engage|teach|"
    r"show you|offer|offering|do (?:that|this|so)|be part of|advise|give advice|encourage|describe|"
    r"go into|make that|produce|recommend)"
)
_PHRASES = (
    rf"\b(?:i|we) ?{_CANNOT}(?: (?:in good conscience|ethically|really|to|with|you))* {_HELP}",
    r"\b(?:i|we) (?:must|have to) (?:decline|refuse)\b",
    r"\b(?:i|we) (?:have to|must) say no\b",
    r"\b(?:i'd|i would) rather not\b",
    r"\b(?:no|sorry),? i (?:can ?not|can't|will not|won't)\b",
    r"\bthat(?: is|'s) (?:not )?something (?:that )?(?:i|we) "
    r"(?:can|can't|can ?not|will|will not|won't)\b",
    r"\b(?:i am|i'm|we are|we're)? ?(?:really |very |so )?sorry,? (?:but )?(?:i|we|this|that) "
    r"(?:can ?not|can't|won't|will not|am unable|am not able|is not something|isn't something)",
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
