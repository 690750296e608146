"""Language: whether a policy answers in the language it was asked in.

The detector is py3langid (an optional extra): naive Bayes over byte n-grams, 139 languages, without
network or pickle. It needs a few words; of shorter texts it says nothing rather than guess.
"""

import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
from jaxtyping import Shaped

from tether.errors import ConfigError
from tether.evaluation.blocks import Block, Measure, measures
from tether.evaluation.samples import Group, Sample, as_text, overall
from tether.records import Text

Answered = Shaped[np.ndarray, "P N"]  # codes of languages
Detector = Callable[[str], str]
"""The ISO 639-1 code of a text's language; "" where that is not known."""

# Those that are widely written. Of relatives that short texts cannot tell apart one stands for all:
# no Malay beside Indonesian, no Nynorsk beside Bokmål, no Cantonese beside Mandarin, no creoles.
LANGUAGES = (
    "af am ar az be bg bn ca cs cy da de el en eo es et eu fa fi fr ga gl gu he hi hr hu hy id is "
    "it ja ka kk km kn ko lo lt lv mk ml mn mr my ne nl no pa pl ps pt ro ru si sk sl so sq sr sv "
    "sw ta te tg th tl tr uk ur uz vi xh yo zh zu zxx"
)
SAME = {"hr": "sh", "sr": "sh"}  # Serbo-Croatian
CONFIDENCE = 0.5  # below it a language is not known
NO_LANGUAGE = "zxx"  # numbers, code, markup
FEWEST = 10  # prompts of a language for a figure of its own
EXAMPLES = 5  # of each policy


@cache
def load_detector() -> Detector:
    """The detector of languages.

    Raises:
        ConfigError: py3langid is not installed.
    """
    if importlib.util.find_spec("py3langid") is None:
        raise ConfigError("blocks.language=True needs py3langid; pip install 'tether[language]'")
    from py3langid.langid import (  # pyright: ignore[reportMissingImports]
        MODEL_FILE,
        LanguageIdentifier,
    )

    identifier = LanguageIdentifier.from_model_file(
        MODEL_FILE, norm_probs=True, min_confidence=CONFIDENCE
    )
    identifier.set_languages(LANGUAGES.split())

    def detect(text: str) -> str:
        found = str(identifier.classify(text)[0])
        return "" if found in ("und", NO_LANGUAGE) else SAME.get(found, found)

    return detect


def languages(
    samples: Sequence[Sample],
    detect: Detector,
    *,
    baseline: str,
    apart: Sequence[str] = (),
    seed: int = 0,
) -> Block:
    """Share of the completions in the language of their prompt, and in another one.

    The two need not add up to 1: what is too short to have a language is in neither. Prompts
    without one are left out.

    Args:
        samples: Of every policy on the same prompts.
        detect: The detector.
        baseline: The policy that the others are compared with.
        apart: Categories of prompts that are left out.
        seed: Of the bootstrap over prompts.
    """
    groups = overall(samples, apart)
    asked = [detect(_question(row[0].prompt)) for row in groups[baseline]]
    known = [i for i, language in enumerate(asked) if language]
    chosen = {name: [group[i] for i in known] for name, group in groups.items()}
    asked = [asked[i] for i in known]
    answered = {name: _detected(group, detect) for name, group in chosen.items()}
    return Block(
        title="Language",
        meaning=(
            "Share of completions in the language of their prompt, and in another one; healthy is "
            "nearly all and nearly none. What has too few words is in neither."
        ),
        baseline=baseline,
        measures=_shares(answered, np.array(asked), baseline, seed) if known else [],
        note=_note(asked, len(groups[baseline])),
        examples=_elsewhere(chosen, asked, answered),
    )


def _shares(
    answered: dict[str, Answered], asked: Shaped[np.ndarray, " P"], baseline: str, seed: int
) -> list[Measure]:
    """On all prompts, then on those of each language with enough of them."""
    each = partial(measures, baseline=baseline, unit="share", seed=seed)
    told = asked[:, None]
    same = {name: found == told for name, found in answered.items()}
    other = {name: (found != told) & (found != "") for name, found in answered.items()}
    counts = Counter(asked.tolist())
    frequent = [name for name, n in counts.most_common() if n >= FEWEST and len(counts) > 1]
    return [
        *each("in the prompt's language", same, better="high"),
        *each("in another language", other, better="low"),
        *(
            share
            for language in frequent
            for share in each(
                f"asked in {language}, answered in it",
                {name: found[asked == language] for name, found in same.items()},
                better="high",
            )
        ),
    ]


def _question(prompt: Text) -> str:
    """What was asked last: of a conversation the last message of the user's."""
    if isinstance(prompt, str):
        return prompt
    asked = [message["content"] for message in prompt if message["role"] == "user"]
    return asked[-1] if asked else ""


def _detected(group: Group, detect: Detector) -> Answered:
    found = [[detect(sample.completion) for sample in row] for row in group]
    return np.array(found, dtype=np.str_).reshape(len(group), -1 if group else 0)


def _note(asked: Sequence[str], num_prompts: int) -> str:
    counts = ", ".join(f"{name} {n}" for name, n in Counter(asked).most_common())
    return (
        f"{len(asked)} of {num_prompts} prompts are in a language that py3langid is sure of "
        f"({counts or 'none'}). It errs on short texts, on near relatives and on texts full of "
        "names or code."
    )


def _elsewhere(
    groups: dict[str, Group], asked: Sequence[str], answered: dict[str, Answered]
) -> list[dict[str, str]]:
    """Completions in another language than their prompt, a few of each policy."""
    found: list[dict[str, str]] = []
    for policy, group in groups.items():
        wrong = [
            (sample, language, str(other))
            for row, language, others in zip(group, asked, answered[policy], strict=True)
            for sample, other in zip(row, others, strict=True)
            if other not in ("", language)
        ]
        found += [
            {
                "policy": policy,
                "languages": f"{language} → {other}",
                "prompt": as_text(sample.prompt),
                "completion": sample.completion,
            }
            for sample, language, other in wrong[:EXAMPLES]
        ]
    return found
