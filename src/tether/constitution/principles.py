"""A constitution: principles by which a model criticizes, revises and compares completions.

It is a TOML file. `[[principle]]` tables hold the principles, `[[example]]` and `[[judgment]]`
tables worked-out transcripts that are put before the model's own, `[format]` and `[wording]` the
words around them. `default.toml` beside this file shows all of it.
"""

import dataclasses
import hashlib
import json
import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from tether.config_file import from_table, read_toml
from tether.errors import ConfigError
from tether.records import Text, shown
from tether.rewards.judge import Wording

DEFAULT = Path(__file__).with_name("default.toml")

Use = Literal["revision", "preference"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Principle:
    """One principle, and what it asks.

    Attributes:
        id: Its name in everything made by it.
        critique: Asks what is wrong with a completion.
        revision: Asks for a better one.
        preference: Asks which of two is better.
        weight: How often it is drawn, against the others.
        source: Where it comes from.
    """

    id: str
    critique: str = ""
    revision: str = ""
    preference: str = ""
    weight: float = 1.0
    source: str = ""

    def serves(self, use: Use) -> bool:
        """Whether it asks what is needed to revise, or to compare."""
        return self.preference != "" if use == "preference" else self.revision != ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A transcript of a critique and a revision by one of the principles."""

    prompt: str
    completion: str
    principle: str
    critique: str
    revision: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgment:
    """A comparison with its answer, the letter of the better completion."""

    prompt: str
    first: str
    second: str
    principle: str
    answer: str
    reasoning: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """The words of a transcript, for models without a chat template.

    Attributes:
        prompt: How an example's prompt is written, as yours are; with {prompt}.
        critique: Follows a completion; with {request}. The critique follows.
        revision: Follows the critique, or the completion; with {request}. The revision follows.
        between: Parts transcripts.
        stops: Texts that no answer holds: it is cut before the first.
        refusals: Phrases by which a refusal is known; case does not matter.
    """

    prompt: str = "Human: {prompt}\n\nAssistant:"
    critique: str = "\n\nCritique request: {request}\n\nCritique:"
    revision: str = "\n\nRevision request: {request}\n\nRevision:"
    between: str = "\n\n"
    stops: tuple[str, ...] = ("\n\nHuman:", "\n\nCritique request:", "\n\nRevision request:")
    refusals: tuple[str, ...] = (
        *("i cannot help", "i can't help", "i can not help", "i won't help", "i will not help"),
        *("i'm sorry, but", "i am sorry, but", "i'm not able to", "i am not able to"),
        *("i cannot assist", "i can't assist", "i must decline", "i have to decline"),
    )

    def refuses(self, completion: str) -> bool:
        """Whether a completion holds one of the phrases of a refusal."""
        text = completion.lower().replace("’", "'")
        return any(phrase.lower() in text for phrase in self.refusals)


@dataclass(frozen=True, kw_only=True, slots=True)
class Constitution:
    """Principles, examples and wording."""

    name: str
    principles: tuple[Principle, ...]
    examples: tuple[Example, ...] = ()
    judgments: tuple[Judgment, ...] = ()
    format: Format = field(default_factory=Format)
    wording: Wording = field(default_factory=Wording)

    @property
    def hash(self) -> str:
        """What identifies it: 16 hexadecimal digits of the SHA-256 of all its content."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def require(self, use: Use) -> None:
        """Refuse a constitution that no principle of which asks what is needed.

        Raises:
            ConfigError: Says what to add.
        """
        if any(principle.serves(use) for principle in self.principles):
            return
        asks = "`critique` and `revision`" if use == "revision" else "a `preference` question"
        raise ConfigError(
            f"constitution {self.name!r}: none of its {len(self.principles)} principles has {asks}"
            f"; add it to those that shall {'revise' if use == 'revision' else 'judge'}"
        )

    def draw(self, use: Use, seed: int, prompt: Text, round: int = 0) -> Principle:
        """A principle by weight, a function of (use, seed, prompt, round) and the constitution.

        Neither other prompts nor their order change what a prompt gets.
        """
        fitting = [each for each in self.principles if each.serves(use) and each.weight > 0]
        key = json.dumps([use, seed, prompt, round])
        draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
        left = draw * sum(principle.weight for principle in fitting)
        for principle in fitting:
            left -= principle.weight
            if left < 0:
                return principle
        return fitting[-1]

    def by_id(self, id: str) -> Principle:
        """The principle of that id."""
        return next(principle for principle in self.principles if principle.id == id)


# --- reading --------------------------------------------------------------------------------------

Part = TypeVar("Part", Principle, Example, Judgment)


def read_constitution(path: str | Path) -> Constitution:
    """Read and check a constitution; "default" is the one that comes with tether.

    Raises:
        ConfigError: One line with the file, the place, the value, the rule and the mend.
    """
    file = DEFAULT if str(path) == "default" else Path(path)
    table = read_toml(file)
    known = ("name", "principle", "example", "judgment", "format", "wording")
    for key in table:
        if key not in known:
            raise ConfigError(f"{file}: {key!r} is not a constitution's; it has {', '.join(known)}")
    constitution = Constitution(
        name=str(table.get("name", file.stem)),
        principles=_parts(Principle, table, "principle", file),
        examples=_parts(Example, table, "example", file),
        judgments=_parts(Judgment, table, "judgment", file),
        format=from_table(Format, _table(table, "format", file), f"{file}: format."),
        wording=from_table(Wording, _table(table, "wording", file), f"{file}: wording."),
    )
    _check_principles(constitution, file)
    _check_examples(constitution, file)
    _check_words(constitution, file)
    return constitution


def file_of(path: str) -> str:
    """The file of a constitution among a stage's inputs; "" of the one that comes with tether."""
    return "" if path == "default" else path


def _parts(cls: type[Part], table: dict[str, Any], key: str, file: Path) -> tuple[Part, ...]:
    rows = table.get(key, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{file}: {key}={shown(rows)} must be tables; write [[{key}]] above each")
    return tuple(from_table(cls, row, f"{file}: {key} {i}: ") for i, row in enumerate(rows, 1))


def _table(table: dict[str, Any], key: str, file: Path) -> dict[str, Any]:
    row = table.get(key, {})
    if not isinstance(row, dict):
        raise ConfigError(f"{file}: {key}={shown(row)} must be a table; write [{key}]")
    return row


def _check_principles(constitution: Constitution, file: Path) -> None:
    if not constitution.principles:
        raise ConfigError(f"{file}: has no [[principle]]; write at least one")
    seen: set[str] = set()
    for i, principle in enumerate(constitution.principles, start=1):
        where = f"{file}: principle {i}"
        if not principle.id.strip() or principle.id in seen:
            raise ConfigError(f"{where}: id={principle.id!r} must be a name of its own")
        seen.add(principle.id)
        if not (principle.weight >= 0 and math.isfinite(principle.weight)):
            raise ConfigError(
                f"{where}: weight={principle.weight!r} must be a number of at least 0; "
                "0 leaves the principle out"
            )
        if principle.critique and not principle.revision:
            raise ConfigError(
                f"{where}: critique={shown(principle.critique)} needs a `revision` that asks for "
                "the better completion"
            )
        if not (principle.revision or principle.preference):
            raise ConfigError(
                f"{where}: {principle.id!r} asks nothing; give it `critique` and `revision`, "
                "or a `preference` question"
            )
    if not any(principle.weight for principle in constitution.principles):
        raise ConfigError(f"{file}: every principle has weight=0; give one a weight above 0")


def _check_examples(constitution: Constitution, file: Path) -> None:
    uses: list[tuple[str, Sequence[Example | Judgment], Use]] = [
        ("example", constitution.examples, "revision"),
        ("judgment", constitution.judgments, "preference"),
    ]
    for kind, parts, use in uses:
        fitting = [each.id for each in constitution.principles if each.serves(use)]
        for i, part in enumerate(parts, start=1):
            if part.principle not in fitting:
                raise ConfigError(
                    f"{file}: {kind} {i}: principle={part.principle!r} must be the id of one with "
                    f"a {use}; there are {', '.join(fitting) or 'none'}"
                )
    letters = constitution.wording.letters
    for i, judgment in enumerate(constitution.judgments, start=1):
        if judgment.answer not in letters:
            raise ConfigError(
                f"{file}: judgment {i}: answer={judgment.answer!r} must be one of {list(letters)}"
            )


SLOTS = {
    "format": {"prompt": ("prompt",), "critique": ("request",), "revision": ("request",)},
    "wording": {
        "comparison": ("prompt", "first", "second", "question"),
        "statement": ("prompt", "completion", "question"),
    },
}
"""What each template must hold, once or more, and nothing else."""


def _check_words(constitution: Constitution, file: Path) -> None:
    for section, templates in SLOTS.items():
        for name, slots in templates.items():
            template = getattr(getattr(constitution, section), name)
            try:
                found = [slot for _, slot, _, _ in string.Formatter().parse(template) if slot]
            except ValueError as error:
                raise ConfigError(
                    f"{file}: {section}.{name}: {error}; write {{{{ for a brace"
                ) from None
            if set(found) != set(slots):
                wanted = ", ".join(f"{{{slot}}}" for slot in slots)
                raise ConfigError(
                    f"{file}: {section}.{name}={shown(template)} must hold {wanted} and no other "
                    "slot"
                )
    for name in ("letters", "yes_no"):
        answers = getattr(constitution.wording, name)
        if answers[0] == answers[1] or not all(answers):
            raise ConfigError(f"{file}: wording.{name}={answers!r} must be two different answers")
    alone = re.compile(r"^>", re.MULTILINE)
    for name in SLOTS["wording"]:
        if alone.search(getattr(constitution.wording, name)):
            raise ConfigError(
                f"{file}: wording.{name} must have no line that begins with >, which marks what is "
                "quoted"
            )
