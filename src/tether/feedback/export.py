"""The way out of a project: what its labelers say, as rows that methods train on."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

from tether.errors import DataError
from tether.feedback.arguments import ProjectFile
from tether.feedback.judgments import Item, Judgment, Ranks
from tether.feedback.reliability import reliabilities
from tether.feedback.store import Store
from tether.feedback.strengths import agreed
from tether.feedback.tally import one_voice, tally
from tether.progress import console
from tether.records import (
    Message,
    PreferencePair,
    Prompt,
    Ranking,
    Text,
    Thumb,
    to_dict,
    write_jsonl,
)
from tether.sections import require, share

Row = dict[str, Any]
To = Literal["pairs", "rankings", "thumbs", "hh", "openai"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Write what the labelers of a project say as records, for training here or elsewhere."""

    path: ProjectFile
    """The project: a file NAME.db"""
    to: To
    """pairs, rankings, thumbs: our records; hh: HH-RLHF's transcripts; openai: OpenAI's pairs"""
    out: str
    """JSONL file; with a test share FILE.test beside it"""
    labelers: tuple[str, ...] = ()
    """Only what these people say; none = everybody"""
    groups: tuple[str, ...] = ()
    """Only what the people of these groups say; none = all"""
    test_share: float = 0.0
    """Share of the prompts (never of the pairs) that goes to FILE.test"""
    each: bool = False
    """True: rows of each labeler alone, under their name, instead of the consensus"""

    def __post_init__(self) -> None:
        share("test_share", self.test_share)
        require(bool(self.out), "out", self.out, "must name a file")


def export_feedback(config: ExportConfig) -> list[Path]:
    """Write `config.out`, and with a test share also FILE.test; return what was written.

    A prompt is in the one or the other by its own text: a later export parts prompts alike.

    Raises:
        DataError: Nothing is decided, or a labeler or group is unknown.
    """
    store = Store(config.path)
    found = _export(store, config.to, config.labelers, config.groups, config.each)
    require_some(found, store, config.to)
    test = [row for prompt, row in found if in_test(prompt, config.test_share)]
    train = [row for prompt, row in found if not in_test(prompt, config.test_share)]
    written = {Path(config.out): train}
    if config.test_share:
        written[Path(f"{config.out}.test")] = test
    for path, rows in written.items():
        write_jsonl(path, rows)
        console.print(f"{path}: {len(rows)} rows")
    return list(written)


def export(
    store: Store | str | Path,
    to: To,
    *,
    labelers: Sequence[str] = (),
    groups: Sequence[str] = (),
    each: bool = False,
) -> list[Row]:
    """What the labelers of a project say, as rows. Control items are left out.

    One labeler has one voice on an item: the second judgment of a planned repeat does not count.

    pairs: one row for each pair that is decided, with the `probability` (above 1/2) that chosen
    beats rejected, ties split, the `margin` between their consensus scores and `num_labelers`.
    rankings: the ranks by consensus score, null where more than half failed a completion; those
    of a single labeler are their own. thumbs: the label of the majority, its `weight` the share of
    the labelers who gave it. Where completions were ranked, down is what more than half failed,
    and up is what comes first, unless all are equal; its weight is the share who put it first.
    What more than half failed is never chosen, so two fails make no pair. hh, openai: the pairs
    without their figures.

    Args:
        store: The project, open or by its path.
        to: Kind of the rows.
        labelers: Only these people's judgments; empty for everybody's.
        groups: Only those of these groups; empty for all.
        each: True gives rows of each labeler alone, with `labeler`, as `groups.by_labeler` parts
            them.

    Returns:
        The rows, item by item; none where nothing is decided.

    Raises:
        DataError: A labeler or group is unknown.
    """
    return [row for _, row in _export(_opened(store), to, labelers, groups, each)]


def prompts(store: Store | str | Path) -> list[Row]:
    """The prompts of a project's items, each once, without those of control items."""
    rows = {
        json.dumps(item.prompt): to_dict(Prompt(prompt=item.prompt, category=item.category))
        for item in _opened(store).items().values()
        if item.gold is None
    }
    return list(rows.values())


def _opened(store: Store | str | Path) -> Store:
    return store if isinstance(store, Store) else Store(store)


def _export(
    store: Store, to: To, labelers: Sequence[str], groups: Sequence[str], each: bool
) -> list[tuple[Text, Row]]:
    """Rows with their prompts."""
    rule = "belongs to pairs, rankings and thumbs alone, which have a field for the labeler"
    require(not each or to in ("pairs", "rankings", "thumbs"), "each", each, rule)
    items = {key: item for key, item in store.items().items() if item.gold is None}
    said = one_voice(store.judgments(labelers, groups))
    said = [judgment for judgment in said if judgment.item in items]
    if each:
        outcomes = [_Outcome(items[one.item], [one], _own(one)) for one in said]
    else:
        found = opinions(items, said)
        by_item: dict[str, list[Judgment]] = {}
        for judgment in said:
            by_item.setdefault(judgment.item, []).append(judgment)
        outcomes = [_Outcome(items[key], by_item[key], found[key]) for key in by_item]
    make = {"rankings": _rankings, "thumbs": _thumbs}.get(to, _pairs)
    return [
        (outcome.item.prompt, _shaped(to, record))
        for outcome in outcomes
        for record in make(outcome, store.project.criterion, each)
    ]


def require_some(rows: Sequence[object], store: Store, what: str) -> None:
    """Refuse to go on with nothing.

    Raises:
        DataError: There are no rows.
    """
    if not rows:
        raise DataError(
            f"{store.path}: holds no {what}: its judgments decide none; label some items with "
            f"`tether label {store.path}`"
        )


# --- what labelers say together -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opinion:
    """Of K completions: `scores`, and `beats[i][j]`, the probability that i beats j, ties split."""

    scores: list[float]
    beats: list[list[float]]


def opinions(items: Mapping[str, Item], judgments: Sequence[Judgment]) -> dict[str, Opinion]:
    """The consensus on each item that was judged; who is unreliable counts less in it."""
    tallied = tally(items, judgments)
    trust = zip(tallied.labelers, reliabilities(tallied), strict=True)
    weights = {name: one.weight for name, one in trust}
    found = agreed(items, judgments, weights)
    return {key: Opinion(one.scores, one.beats) for key, one in found.items()}


def _own(judgment: Judgment) -> Opinion:
    """What a single labeler says, as certain."""
    order = [math.inf if rank is None else rank for rank in judgment.ranks]
    beats = [[(a < b) + (a == b) / 2 for b in order] for a in order]
    return Opinion([sum(row) for row in beats], beats)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What the labelers of one item say."""

    item: Item
    judgments: list[Judgment]
    opinion: Opinion

    def failed(self, i: int) -> float:
        """Share of the labelers who failed a completion."""
        return sum(one.ranks[i] is None for one in self.judgments) / len(self.judgments)

    def first(self, i: int) -> float:
        """Share of the labelers who put a completion first, alone or with others."""
        firsts = [min((r for r in one.ranks if r is not None), default=0) for one in self.judgments]
        both = zip(self.judgments, firsts, strict=True)
        return sum(one.ranks[i] == best for one, best in both) / len(self.judgments)

    @property
    def ranks(self) -> Ranks:
        """By score, from 1, equal ones equal; None for a fail. Those of one labeler are theirs."""
        if len(self.judgments) == 1:
            return self.judgments[0].ranks
        scores = [round(score, 6) for score in self.opinion.scores]
        passed = [score for i, score in enumerate(scores) if self.failed(i) <= 0.5]
        return [
            None if self.failed(i) > 0.5 else 1.0 + sum(other > score for other in passed)
            for i, score in enumerate(scores)
        ]


# --- records --------------------------------------------------------------------------------------


def _pairs(outcome: _Outcome, criterion: str, each: bool) -> Iterator[PreferencePair]:
    texts, scores = outcome.item.completions, outcome.opinion.scores
    for i, j in permutations(range(len(texts)), 2):
        probability = round(outcome.opinion.beats[i][j], 6)
        if probability > 0.5 and outcome.failed(i) <= 0.5:
            yield PreferencePair(
                prompt=outcome.item.prompt,
                chosen=texts[i],
                rejected=texts[j],
                margin=None if each else round(scores[i] - scores[j], 6),
                probability=None if each else probability,
                criterion=criterion,
                labeler=outcome.judgments[0].labeler if each else "",
                num_labelers=None if each else len(outcome.judgments),
            )


def _rankings(outcome: _Outcome, criterion: str, each: bool) -> Iterator[Ranking]:
    if len(outcome.item.completions) > 1:
        yield Ranking(
            prompt=outcome.item.prompt,
            completions=outcome.item.completions,
            ranks=outcome.ranks,
            criterion=criterion,
            labeler=outcome.judgments[0].labeler if each else "",
            category=outcome.item.category,
            num_labelers=None if each else len(outcome.judgments),
        )


def _thumbs(outcome: _Outcome, criterion: str, each: bool) -> Iterator[Thumb]:
    texts, ranks = outcome.item.completions, outcome.ranks
    passed = [rank for rank in ranks if rank is not None]
    ranked = len(texts) > 1
    equal = ranked and len(passed) == len(texts) and len(set(passed)) == 1
    for i, rank in enumerate(ranks):
        down = outcome.failed(i)
        up = 0.0 if equal or (ranked and rank != min(passed, default=None)) else outcome.first(i)
        if down != 0.5 and (weight := down if down > 0.5 else up) > 0:
            yield Thumb(
                prompt=outcome.item.prompt,
                completion=texts[i],
                label=down < 0.5,
                weight=round(weight, 6),
                criterion=criterion,
                labeler=outcome.judgments[0].labeler if each else "",
            )


# --- the shapes of others -------------------------------------------------------------------------


def _shaped(to: To, record: PreferencePair | Ranking | Thumb) -> Row:
    if isinstance(record, PreferencePair) and to == "hh":
        sides = {"chosen": record.chosen, "rejected": record.rejected}
        return {side: transcript(record.prompt, text) for side, text in sides.items()}
    if isinstance(record, PreferencePair) and to == "openai":
        return {
            "input": {"messages": _messages(record.prompt, "user")},
            "preferred_output": _messages(record.chosen, "assistant"),
            "non_preferred_output": _messages(record.rejected, "assistant"),
        }
    return to_dict(record)


def _messages(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def transcript(prompt: Text, completion: Text) -> str:
    r"""A dialogue as HH-RLHF writes it: turns open with "\n\nHuman:" or "\n\nAssistant:".

    The format has no way to quote, so what would open a turn within a text loses its blank line
    ("\n\nHuman:" becomes "\nHuman:"): a completion cannot put words into the human's mouth. A
    prompt that is such a transcript already stays as it is. A system message opens the human turn
    that follows.
    """
    if isinstance(prompt, str) and re.fullmatch(r"\n\nHuman:.*\n\nAssistant: ?", prompt, re.DOTALL):
        start = prompt.removesuffix(" ")
    else:
        start = _turns(_messages(prompt, "user")) + "\n\nAssistant:"
    if isinstance(completion, str):
        body = _quiet(completion)
        return start + (body if body[:1].isspace() else f" {body}")
    return start + _turns(completion).removeprefix("\n\nAssistant:")


def _turns(messages: Sequence[Message]) -> str:
    text, opening = "", ""
    for number, message in enumerate(messages, start=1):
        if message["role"] == "system" and number < len(messages):
            opening += message["content"] + "\n\n"
            continue
        name = "Human" if message["role"] in ("user", "system") else "Assistant"
        text += f"\n\n{name}: {_quiet(opening + message['content'])}"
        opening = ""
    return text


def _quiet(text: str) -> str:
    return re.sub(r"\n{2,}(?=(?:Human|Assistant):)", "\n", text)


def in_test(prompt: Text, test_share: float) -> bool:
    """True for a share of all prompts, by a hash of the text: the same ones every time."""
    text = json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    place = int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / 16**13
    return place < test_share
