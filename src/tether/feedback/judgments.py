"""What one person said about one item: the unit that consensus, agreement and quality work on."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tether.records import PreferencePair, Ranking, Text, Thumb

Ranks = list[float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """What was judged: a prompt with its completions, in the order in which they are stored.

    `sources[i]` names the model that wrote completion i, "" where unknown; labelers never see it.
    `gold` holds the known ranks of a control item. `category` is a free label.
    """

    key: str
    prompt: Text
    completions: list[Text]
    sources: list[str]
    category: str = ""
    gold: Ranks | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgment:
    """The ranks that one labeler gave to the completions of one item.

    `ranks[i]` belongs to completion i as stored, whatever the labeler saw first: 1 is best, equal
    is a tie, None is a fail. Thumbs are ranks of one completion: up is [1], down is [None].

    Attributes:
        item: `Item.key`.
        labeler: Who judged.
        group: The group of the labeler, "" for none.
        ranks: See above.
        strength: How clear a pairwise choice was: 3 much better, 2 better, 1 slightly, 0 a tie;
            None in other modes.
        shown: `shown[p]` is the completion that stood at place p of the labeler's page; None where
            that is unknown.
        seconds: From the item's appearance to its submission; None where unknown.
        repeat: True where the same labeler had judged this item before, by plan.
    """

    item: str
    labeler: str
    ranks: Ranks
    group: str = ""
    strength: int | None = None
    shown: list[int] | None = None
    seconds: float | None = None
    repeat: bool = False


def item_key(prompt: Text, completions: Sequence[Text]) -> str:
    """A name of an item that depends on its texts alone: 16 hex digits."""
    text = json.dumps([prompt, list(completions)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stored_order(completions: Sequence[Text]) -> list[int]:
    """The order in which an item stores completions: by their texts, so that it tells nothing."""
    return sorted(range(len(completions)), key=lambda i: json.dumps(completions[i]))


def from_records(
    records: Iterable[Ranking | PreferencePair | Thumb],
) -> tuple[dict[str, Item], list[Judgment]]:
    """Items and judgments of a file's records.

    The completions of an item are stored in sorted order, so that labelers of a pair (which puts
    the chosen completion first) are seen to speak of the same item, and no order tells who won.
    A second record of a labeler on an item counts as a repeat.
    """
    items: dict[str, Item] = {}
    judgments: list[Judgment] = []
    seen: set[tuple[str, str]] = set()
    for record in records:
        completions, ranks = _ranked(record)
        order = stored_order(completions)
        texts = [completions[i] for i in order]
        key = item_key(record.prompt, texts)
        category = record.category if isinstance(record, Ranking) else ""
        blank = [""] * len(texts)
        items.setdefault(
            key,
            Item(
                key=key, prompt=record.prompt, completions=texts, sources=blank, category=category
            ),
        )
        again = bool(record.labeler) and (key, record.labeler) in seen
        seen.add((key, record.labeler))
        judgments.append(
            Judgment(
                item=key, labeler=record.labeler, ranks=[ranks[i] for i in order], repeat=again
            )
        )
    return items, judgments


def _ranked(record: Ranking | PreferencePair | Thumb) -> tuple[list[Text], Ranks]:
    if isinstance(record, Ranking):
        return record.completions, record.ranks
    if isinstance(record, PreferencePair):
        even = record.probability == 0.5
        return [record.chosen, record.rejected], [1.0, 1.0 if even else 2.0]
    return [record.completion], [1.0 if record.label else None]
