"""The way into a project: items from completions, control items, and labels made elsewhere."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from tether.errors import ConfigError, DataError
from tether.feedback.arguments import ProjectFile
from tether.feedback.elsewhere import read_labels
from tether.feedback.judgments import Item, item_key, stored_order
from tether.feedback.labels import (
    MOST_COMPLETIONS,
    insert_labels,
    item_of,
    read_label,
    read_rows,
    split,
)
from tether.feedback.store import Mode, NextItem, Project, Store, is_project
from tether.progress import console
from tether.records import Ranking, Text, from_dict, shown
from tether.sections import not_negative, require

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """Make a feedback project from completions, or add to one.

    What is left out of the settings of the project itself (name and below) is the default for a
    new one, and stays as it is in one that exists.
    """

    path: ProjectFile
    """The project: a file NAME.db, which is made where there is none"""
    data: tuple[str, ...] = ()
    """Completions (what `tether generate` wrote), samples of an evaluation (samples.jsonl), pairs
    or rankings, or labels; - = standard input. Several files: the completions of a prompt come
    together in one item"""
    labels: Literal["none", "records", "csv", "label-studio", "argilla"] = "none"
    """Whose labels to take too: none, of the texts alone; records: our own, with a labeler"""
    gold: str = ""
    """Control items with a known answer: rankings, pairs, or completions with a label"""
    instructions: str = ""
    """Markdown file that labelers see; a text that differs becomes a new version"""
    pairs: int = 0
    """In pair mode: pairs drawn of each prompt's completions; 0 = all"""
    name: str | None = None
    """Shown to labelers; the name of the file where left out"""
    criterion: str | None = None
    """What is judged: helpful (default), honest, harmless, or your own"""
    mode: Mode | None = None
    """rank (default): order all completions; pair: the better of two; thumbs: up or down"""
    num_labelers: int | None = None
    """Different labelers an item (3)"""
    repeat_share: float | None = None
    """Share of a labeler's items shown to the same labeler a second time (0.05)"""
    gold_share: float | None = None
    """Share of what a labeler sees that are control items (0.05)"""
    next_item: NextItem | None = None
    """random; least (default): what the fewest have judged; active: what is least certain"""
    random_share: float | None = None
    """Share of active choices made at random (0.2)"""
    lease_minutes: float | None = None
    """How long an item waits for the labeler who has it (30)"""
    seed: int | None = None
    """Of the order in which labelers see completions, and of the pairs drawn (0)"""

    def __post_init__(self) -> None:
        rule = "must be a file name that ends in .db"
        require(is_project(self.path), "path", self.path, rule)
        not_negative("pairs", self.pairs)
        rule = 'can be read with labels = "records" or "none" alone; name a file'
        plain = self.labels in ("none", "records") or "-" not in self.data
        require(plain, "data", "-", rule)


class Imported(NamedTuple):
    """What an import brought: new items, control items and judgments; prompts skipped."""

    items: int
    gold: int
    judgments: int
    skipped: int


def import_feedback(config: ImportConfig) -> Imported:
    """Make a project, or add to it; whatever was there already is not added again.

    Everything is read and checked before anything is written.

    Raises:
        ConfigError: A setting differs from that of the project that exists.
        DataError: A row cannot be read, or an item does not fit the mode.
    """
    something = bool(config.data or config.gold or config.instructions)
    require(something, "data", config.data, "must name at least one file")
    there = Path(config.path).exists()
    store = Store(config.path) if there else None
    project = _project(config, None if store is None else store.project)
    text = _read_instructions(config.instructions)
    gold = list(_gold(config.gold, project.mode)) if config.gold else []
    if config.labels == "none":
        rows = (candidates(row, where) for where, row in read_rows(config.data))
        items, skipped = make_items(rows, project, pairs=config.pairs)
        labels = []
    else:
        items, skipped = [], 0
        every = (label for path in config.data for label in read_labels(path, config.labels))
        labels = [part for label in every for part in split(label, project.mode)]
    if config.data and not (items or labels or skipped):
        raise DataError(f"{' '.join(config.data)}: holds no record; a JSON line is needed")
    if store is None:
        store = Store.create(config.path, project, text)
    elif config.instructions:
        store.set_instructions(text)
    with store.write() as db:
        new_gold = store.insert_items(db, gold)
        new_items = store.insert_items(db, [*items, *map(item_of, labels)])
        found = Imported(new_items, new_gold, insert_labels(db, labels), skipped)
    _tell(config.path, found)
    return found


def _tell(path: str, found: Imported) -> None:
    console.print(
        f"{path}: {found.items} items, {found.gold} control items and {found.judgments} judgments "
        "added"
    )
    if found.skipped:
        console.print(f"{found.skipped} prompts skipped: they have no two different completions")


def _project(config: ImportConfig, there: Project | None) -> Project:
    given: dict[str, Any] = {one.name: getattr(config, one.name) for one in fields(Project)}
    given = {name: value for name, value in given.items() if value is not None}
    if there is None:
        given.setdefault("name", Path(config.path).stem)
        return Project(**given)
    for name, value in given.items():
        old = getattr(there, name)
        rule = f"but {config.path} was made with {old!r}; leave it out, or name a new file"
        require(value == old, name, value, rule)
    return there


def _read_instructions(path: str) -> str:
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"instructions={path!r} cannot be read ({error})") from None


def _gold(path: str, mode: Mode) -> Iterator[Item]:
    for where, row in read_rows([path]):
        for part in split(read_label(row, where), mode):
            yield item_of(part, gold=True)


# --- rows to items --------------------------------------------------------------------------------


class Candidates(NamedTuple):
    """Completions of one prompt; `where` tells where they are from, "FILE:LINE"."""

    prompt: Text
    completions: Sequence[Text]
    category: str = ""
    model: str = ""
    where: str = "completions"


def make_items(
    records: Iterable[Candidates], project: Project, *, pairs: int = 0
) -> tuple[list[Item], int]:
    """Items of a project's mode.

    All completions of a prompt come together, whichever model or file they are from; a text that
    several models wrote is one completion. Rank: one item a prompt; pair: one for each pair of
    its completions, or for some drawn by the seed; thumbs: one a completion.

    Returns:
        The items, and the number of prompts without two different completions (rank and pair).

    Raises:
        DataError: A prompt has more completions than can be ranked.
    """
    items: list[Item] = []
    skipped = 0
    for answers in _gather(records):
        size = len(answers.texts)
        if project.mode == "thumbs":
            items += [answers.item([i]) for i in range(size)]
        elif size < 2:
            skipped += 1
        elif project.mode == "rank":
            if size > MOST_COMPLETIONS:
                raise DataError(
                    f"{answers.where}: prompt={shown(answers.prompt)} has {size} different "
                    f"completions; at most {MOST_COMPLETIONS} can be ranked, one a number key: "
                    'give fewer, or make a project of mode = "pair"'
                )
            items.append(answers.item(range(size)))
        else:
            items += map(answers.item, _drawn(answers, pairs, project.seed))
    return items, skipped


@dataclass(slots=True)
class _Answers:
    """The completions of one prompt, each text once, with the models that wrote it."""

    prompt: Text
    category: str
    where: str
    texts: dict[str, Text] = field(default_factory=dict[str, Text])
    models: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def add(self, text: Text, model: str) -> None:
        key = json.dumps(text)
        self.texts.setdefault(key, text)
        models = self.models.setdefault(key, [])
        if model and model not in models:
            models.append(model)

    def item(self, chosen: Sequence[int]) -> Item:
        keys = [list(self.texts)[i] for i in chosen]
        keys = [keys[i] for i in stored_order([self.texts[key] for key in keys])]
        texts = [self.texts[key] for key in keys]
        return Item(
            key=item_key(self.prompt, texts),
            prompt=self.prompt,
            completions=texts,
            sources=[", ".join(self.models[key]) for key in keys],
            category=self.category,
        )


def _gather(records: Iterable[Candidates]) -> Iterable[_Answers]:
    found: dict[str, _Answers] = {}
    for record in records:
        key = json.dumps(record.prompt, sort_keys=True)
        answers = found.setdefault(key, _Answers(record.prompt, record.category, record.where))
        answers.where = record.where
        for text in record.completions:
            answers.add(text, record.model)
    return found.values()


def candidates(row: Row, where: str) -> Candidates:
    """The texts of a row of completions, of a demonstration, a pair or a ranking.

    Raises:
        DataError: A field is missing or breaks its rule.
    """
    if "completions" in row:
        texts = row["completions"]
    elif {"chosen", "rejected"} <= row.keys():
        texts = [row["chosen"], row["rejected"]]
    elif "completion" in row:
        texts = [row["completion"]]
    else:
        found = ", ".join(map(repr, row)) or "none"
        raise DataError(
            f"{where}: no completion in the fields {found}; needed is prompt with completions "
            "(what `tether generate` writes), with completion, or with chosen + rejected"
        )
    blank = [None] * len(cast("list[Any]", texts)) if isinstance(texts, list) else []
    read = from_dict(Ranking, {**row, "completions": texts, "ranks": blank}, where)
    model = row.get("model", row.get("policy"))  # a policy: samples of an evaluation
    by = model if isinstance(model, str) else ""
    return Candidates(read.prompt, read.completions, read.category, by, where)


def _drawn(answers: _Answers, number: int, seed: int) -> list[tuple[int, int]]:
    """All pairs of a prompt's completions, or as many as are wanted, the same every time."""
    keys = list(answers.texts)
    order = sorted(range(len(keys)), key=keys.__getitem__)  # whatever came first
    every = list(combinations(order, 2))
    if not 0 < number < len(every):
        return every
    prompt = json.dumps(answers.prompt, sort_keys=True)
    return random.Random(f"pairs/{seed}/{prompt}").sample(every, number)
