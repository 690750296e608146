"""`tether data check`: what a model will see of a file, and what is wrong with the file.

Records are rendered, tokenized and truncated by the functions that training uses, one at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.text import Text as Line
from transformers import PreTrainedTokenizerBase
from tyro.conf import Positional

from tether.data import formats
from tether.data.batches import Row
from tether.data.survey import Hashes, Lengths, is_empty, loosely, shown_numbers
from tether.errors import ConfigError, DataError
from tether.models.language_model import load_config, load_tokenizer, max_positions
from tether.models.templates import DATE, asks_date, tell_of_plain
from tether.models.truncation import Fitted, fit_completions, fit_demonstration, fit_prompt
from tether.progress import results
from tether.records import (
    Demonstration,
    PreferencePair,
    Prompt,
    Ranking,
    Text,
    Thumb,
    pairs,
    to_dict,
)

Use = Literal["pairs", "thumbs", "demonstrations", "prompts"]
Record = Ranking | PreferencePair | Thumb | Demonstration | Prompt
CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\ufffd")

READ: dict[Use, Callable[[str], Sequence[Record]]] = {
    "pairs": formats.read_comparisons,
    "thumbs": formats.read_thumbs,
    "demonstrations": formats.read_demonstrations,
    "prompts": formats.read_prompts,
}
"""In the order in which they are tried: whatever asks for more, first"""
FOR = {
    "pairs": "reward, dpo, ipo, simpo, orpo",
    "thumbs": "kto, reward with loss = binary",
    "demonstrations": "sft",
    "prompts": "generate, ppo and its kin",
}


def check(
    file: Positional[str],
    *,
    model: str = "",
    use: Use | None = None,
    max_length: int = 0,
    rows: int = 3,
    against: str = "",
    turns: Literal["all", "last"] = "all",
) -> None:
    """Show what a model will see of a data file, and what is wrong with the file.

    With a model, some records are printed as it reads them, with what is trained on in colour (or
    in ⟦⟧ where the output is no terminal), and all are counted: their lengths, and what training
    would truncate or drop. Nothing is trained, no weights are loaded.

    Args:
        file: Demonstrations, pairs, rankings, labelled completions or prompts.
        model: Model directory or hub id, for its tokenizer and chat template; "" = count only.
        use: As what to read the file; by default as the first that it can be of pairs, thumbs,
            demonstrations and prompts.
        max_length: Longest row in tokens, as training has it; 0 = the model's positions.
        rows: Records to print.
        against: Another file, such as the test split: prompts that are in both are counted.
        turns: Of chats as demonstrations, the assistant's turns that are trained on.
    """
    use, records = _read(file, use)
    name = {"pairs": "comparisons"}.get(use, use)
    _say(f"{file}: {len(records)} {name} (for {FOR[use]})")
    view = View.of(model, max_length, turns) if model else None
    if view:
        _say(f"read by the tokenizer of {model}; {view.described(records)}")
    found = Found()
    for number, record in enumerate(records, start=1):
        seen = found.add(number, record, view)
        if seen and view and number <= rows:
            _print_record(view, number, seen)
    _report(found, use, view)
    if against:
        _tell_of_leaks(file, against)


def _read(file: str, use: Use | None) -> tuple[Use, Sequence[Record]]:
    """The records, as what was asked for or as the first that they can be."""
    refusal: DataError | None = None
    for each, read in READ.items():
        if use in (None, each):
            try:
                return each, read(file)
            except DataError as error:
                refusal = error
    assert refusal
    raise refusal


# --- one record as the model sees it --------------------------------------------------------------


class Seen(NamedTuple):
    """The token rows of a record, whether turns were left out for them, and which pairs it has."""

    rows: list[Row]
    truncated: bool
    pairs: list[tuple[int, int]]


@dataclass(frozen=True)
class View:
    """How records become rows."""

    tokenizer: PreTrainedTokenizerBase
    limit: int
    turns: Literal["all", "last"]

    @classmethod
    def of(cls, model: str, max_length: int, turns: Literal["all", "last"]) -> "View":
        """The view of a model, of which no weights are read."""
        if max_length < 0:
            raise ConfigError(f"max_length={max_length!r} must be at least 0")
        config_of = load_config(model) if not _is_adapter(model) else None
        positions = max_positions(config_of) if config_of else 1 << 30
        return cls(load_tokenizer(model), min(max_length or positions, positions), turns)

    def described(self, records: Sequence[Record]) -> str:
        """Template, date and limit, in words."""
        own = self.tokenizer.chat_template is not None
        told = [f"at most {self.limit} tokens" if self.limit < 1 << 30 else "no limit of tokens"]
        if own or tell_of_plain(self.tokenizer, (each.prompt for each in records[:1])):
            told.append("its own chat template" if own else "the plain chat template")
        if asks_date(self.tokenizer):
            told.append(f"which is told the date {DATE.isoformat()}")
        return ", ".join(told)

    def see(self, record: Record) -> Seen:
        """The rows of a record, as training makes them."""
        if isinstance(record, Prompt):
            ids, cut = fit_prompt(self.tokenizer, record.prompt, self.limit)
            return Seen([Row(ids, len(ids))], cut, [])
        if isinstance(record, Demonstration):
            texts = record.prompt, record.completion
            fitted = fit_demonstration(self.tokenizer, *texts, self.limit, self.turns)
            return Seen(*fitted, [])
        fitted: Fitted = fit_completions(
            self.tokenizer, record.prompt, completions_of(record), self.limit
        )
        return Seen(*fitted, pairs_of(record))


def _is_adapter(model: str) -> bool:
    folder = Path(model)
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def completions_of(record: Record) -> list[Text]:
    """The completions of a record, none of a prompt."""
    if isinstance(record, PreferencePair):
        return [record.chosen, record.rejected]
    if isinstance(record, Ranking):
        return list(record.completions)
    return [] if isinstance(record, Prompt) else [record.completion]


def pairs_of(record: Record) -> list[tuple[int, int]]:
    """Indices (better, worse) of the completions that a record tells apart."""
    if isinstance(record, Ranking):
        return pairs(record)
    return [(0, 1)] if isinstance(record, PreferencePair) else []


def marked(
    tokenizer: PreTrainedTokenizerBase, row: Row, start: int = 0
) -> Iterator[tuple[str, bool]]:
    """The text of a row from a token on in pieces, each with whether it is trained on."""
    mask = row.mask
    changes = [i for i in range(start + 1, len(row.ids)) if mask[i] != mask[i - 1]]
    before = str(tokenizer.decode(row.ids[:start]))
    for end in [*changes, len(row.ids)]:
        text = str(tokenizer.decode(row.ids[:end]))
        # Decoded together with what is before it, or a piece would lose its leading blank.
        whole = text.startswith(before)
        piece = text[len(before) :] if whole else str(tokenizer.decode(row.ids[start:end]))
        yield piece.translate(CONTROL), bool(mask[end - 1])
        before, start = text, end


def _print_record(view: View, number: int, seen: Seen) -> None:
    notes = [f"{' and '.join(str(len(row.ids)) for row in seen.rows)} tokens"]
    notes += ["its oldest turns left out"] if seen.truncated else []
    notes += ["too long"] if any(len(row.ids) > view.limit for row in seen.rows) else []
    _say(f"\nrecord {number}: {', '.join(notes)}", style="bold")
    for i, row in enumerate(seen.rows):
        line = Line("against  " if i else "")  # whose prompt has been shown
        for text, trained in marked(view.tokenizer, row, row.first if i else 0):
            if results.is_terminal:
                line.append(text, style="bold green" if trained else "dim")
            else:
                line.append(f"⟦{text}⟧" if trained else text)
        results.print(line, soft_wrap=True)


# --- all records ----------------------------------------------------------------------------------


@dataclass
class Found:
    """What was counted of the records."""

    records: Hashes = field(default_factory=Hashes)
    prompts: Hashes = field(default_factory=Hashes)
    lengths: dict[str, Lengths] = field(default_factory=dict)
    empty: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)
    same: list[int] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    liked: int = 0
    longer: int = 0
    pairs: int = 0

    def add(self, number: int, record: Record, view: View | None) -> Seen | None:
        """Count one record, and return it as the model sees it; None where that cannot be."""
        self.records.add(to_dict(record))
        self.prompts.add(record.prompt)
        completions = completions_of(record)
        if any(is_empty(each) for each in completions):
            self.empty.append(number)
        self.liked += isinstance(record, Thumb) and record.label
        if view is None:
            self._length("prompt", _characters(record.prompt))
            lengths = [_characters(each) for each in completions]
            for length in lengths:
                self._length("completion", length)
            self._count_pairs(pairs_of(record), lengths)
            return None
        try:
            seen = view.see(record)
        except DataError as error:
            self.refused.append((number, str(error)))
            return None
        self._count_rows(number, seen, view.limit)
        return seen

    def _count_rows(self, number: int, seen: Seen, limit: int) -> None:
        self._length("prompt", seen.rows[0].num_prompt)
        for row in seen.rows:
            if len(row.ids) > row.num_prompt:
                self._length("completion", row.num_completion)
                self._length("together", len(row.ids))
        if seen.truncated:
            self.truncated.append(number)
        if any(len(row.ids) > limit for row in seen.rows):
            self.too_long.append(number)
        if any(seen.rows[one].ids == seen.rows[other].ids for one, other in seen.pairs):
            self.same.append(number)
        self._count_pairs(seen.pairs, [row.num_completion for row in seen.rows])

    def _count_pairs(self, found: list[tuple[int, int]], lengths: list[int]) -> None:
        self.pairs += len(found)
        self.longer += sum(lengths[better] > lengths[worse] for better, worse in found)

    def _length(self, name: str, length: int) -> None:
        self.lengths.setdefault(name, Lengths()).add(length)


def _characters(text: Text) -> int:
    said = [text] if isinstance(text, str) else [message["content"] for message in text]
    return sum(map(len, said))


def _report(found: Found, use: Use, view: View | None) -> None:
    total = len(found.records)
    _say("")
    _say(f"lengths in {'tokens' if view else 'characters'}", style="bold")
    _say("".join(f"{name:>8}" for name in ("", "", "min", "5%", "25%", "50%", "75%", "95%", "max")))
    for name, lengths in found.lengths.items():
        _say(f"  {name:<14}" + "".join(f"{length:>8,}" for length in lengths.quantiles()))
        _say(f"  {'':<14}     0 {lengths.histogram()} {lengths.quantiles()[-1]:,}")
    _say("")
    _say("records", style="bold")
    for label, value in _counts(found, use, view):
        _say(f"  {label:<34} {value}")
    for number, refusal in found.refused[:3]:
        _say(f"  record {number}: {refusal}")
    if use == "thumbs":
        _say(f"  {'liked, disliked':<34} {found.liked:,}, {total - found.liked:,}")
    if found.pairs:
        share = found.longer / found.pairs
        _say(f"  {'pairs in which the longer one won':<34} {share:.0%} of {found.pairs:,}")


def _counts(found: Found, use: Use, view: View | None) -> Iterator[tuple[str, str]]:
    copies = found.records.repeats()
    first = f" (record {copies.first[1]} is record {copies.first[0]})" if copies.first else ""
    yield "different prompts", f"{found.prompts.distinct:,} of {len(found.prompts):,}"
    yield "copies of earlier records", f"{copies.number:,}{first}"
    if use != "prompts":
        yield "with an empty completion", _numbered(found.empty)
    if view is None:
        return
    yield "truncated: oldest turns left out", _numbered(found.truncated)
    yield "too long, left out", _numbered(found.too_long)
    if use == "pairs":
        yield "with a pair of equal tokens", _numbered(found.same)
    if found.refused:
        yield "that cannot be rendered", _numbered([number for number, _ in found.refused])


def _numbered(numbers: list[int]) -> str:
    return f"{len(numbers):,}" + (f" ({', '.join(shown_numbers(numbers))})" if numbers else "")


def _tell_of_leaks(file: str, against: str) -> None:
    ours, theirs = _prompts(file), _prompts(against)
    both = ours.within(theirs)
    _say("")
    _say(
        f"leakage: {len(both):,} of {len(ours):,} prompts are also in {against}, but for case and "
        f"spacing" + (f" (records {', '.join(shown_numbers(both))})" if both else "")
    )


def _prompts(file: str) -> Hashes:
    """What the prompts of a file are known by; texts without a prompt by what they say."""
    try:
        return Hashes(loosely(each.prompt) for each in formats.read_prompts(file))
    except DataError:
        each = formats.read_demonstrations(file)
        return Hashes(loosely(one.prompt or one.completion) for one in each)


def _say(text: str, **style: Any) -> None:
    results.print(text, markup=False, soft_wrap=True, **style)
