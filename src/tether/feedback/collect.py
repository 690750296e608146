"""The `collect` stage: completions go to labelers, and all judgments given so far come out.

People judge at the labeling page while the stage waits; simulated labelers judge through the same
project in the same way. Judgments that come later are taken by the next round's stage.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tether.config import CollectConfig
from tether.errors import CheckError, ConfigError
from tether.feedback.assignment import Answer, next_assignment, submit
from tether.feedback.export import export
from tether.feedback.people import local_person
from tether.feedback.prepare import import_items
from tether.feedback.simulated import Labeler, default_labelers, rank, utilities
from tether.feedback.store import Project, Store
from tether.functions import load_function
from tether.progress import Steps, console
from tether.records import Completions, Text, from_dict, read_jsonl, write_jsonl
from tether.rundir import StageFolder

SECONDS_BETWEEN_LOOKS = 2.0


def collect(config: CollectConfig) -> Path:
    """Add completions to a feedback project, have them judged, and write every judgment so far.

    Writes into `config.out`: `pairs.jsonl` (with the probability that the chosen one is better),
    `rankings.jsonl` (the consensus), `thumbs.jsonl`, and `judgments.jsonl` (each labeler's own).

    Raises:
        DataError: There are no completions.
        ConfigError: The project exists and asks something else of its labelers.
    """
    folder = StageFolder(config, "collect", [config.data, config.scorer])
    if folder.finished:
        return folder.path
    rows = read_jsonl(config.data)
    records = [from_dict(Completions, row, f"{config.data}:{line}") for line, row in rows]
    store = open_project(config)
    import_items(store, records)
    folder.begin()
    if config.scorer:
        scores = known_scores(store, config.scorer, config.scale)
        judge_all(store, default_labelers(), scores, config.seed)
    else:
        wait_for_people(store, config.enough)
    only = {"labelers": config.labelers, "groups": config.groups}
    counts: dict[str, int] = {}
    for name, to, each in OUTPUTS:
        rows = export(store, to, each=each, **only)
        counts[name] = len(rows)
        write_jsonl(folder.path / f"{name}.jsonl", rows)
    return folder.finish(**counts, project=str(store.path))


OUTPUTS = (
    ("pairs", "pairs", False),
    ("rankings", "rankings", False),
    ("thumbs", "thumbs", False),
    ("judgments", "rankings", True),
)
"""File, shape, and whether each labeler speaks for himself."""


def open_project(config: CollectConfig) -> Store:
    """The project that the rounds of a recipe share, made where it is missing."""
    bare = Path(config.project).name == config.project
    path = Path(config.out).parent / config.project if bare else Path(config.project)
    people = not config.scorer
    asked = Project(
        name=path.parent.name or path.stem,
        criterion=config.criterion,
        mode=config.mode,
        num_labelers=config.num_labelers,
        repeat_share=0.05 if people else 0.0,
        gold_share=0.05 if people else 0.0,
        seed=config.seed,
    )
    if not path.exists():
        return Store.create(path, asked)
    store = Store(path)
    for name in ("criterion", "mode", "num_labelers"):
        there, here = getattr(store.project, name), getattr(asked, name)
        if there != here:
            raise ConfigError(f"{name}={here!r} but {path} has {there!r}; use that, or a new file")
    return store


def wait_for_people(store: Store, enough: float) -> None:
    """Show how far labeling is, until a share of the judgments wanted is there."""
    wanted, there = progress(store)
    if there < enough * wanted:
        console.print(f"waiting for labels: `tether label {store.path}` opens the page for people")
    with Steps("labels", total=wanted, start=there) as steps:
        while there < enough * wanted:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            before, (wanted, there) = there, progress(store)
            steps.advance(there - before)


def progress(store: Store) -> tuple[int, int]:
    """Judgments wanted of the items that are not retired (or control items), and those there."""
    query = (
        "SELECT coalesce(sum(needed), 0), coalesce(sum(min(needed, (SELECT count(*) FROM "
        "assignments AS a WHERE a.item = items.id AND a.repeat = 0 AND a.state = 'done'))), 0) "
        "FROM items WHERE retired = 0 AND gold IS NULL"
    )
    wanted, there = store.read().execute(query).fetchone()
    return wanted, there


# --- simulated labelers ---------------------------------------------------------------------------

Scores = Mapping[tuple[str, str], float]


def known_scores(store: Store, scorer: str, scale: float) -> Scores:
    """The known score of every completion in the project, by prompt and completion as text.

    Raises:
        CheckError: The scorer does not return one finite number for each completion.
    """
    texts = {
        (as_text(item.prompt), as_text(one))
        for item in store.items().values()
        for one in item.completions
    }
    pairs = sorted(texts)
    prompts, completions = [prompt for prompt, _ in pairs], [text for _, text in pairs]
    scores = [float(score) * scale for score in load_function(scorer)(prompts, completions)]
    if len(scores) != len(pairs) or not all(map(math.isfinite, scores)):
        raise CheckError(
            f"scorer {scorer!r} returned {len(scores)} scores for {len(pairs)} completions, "
            f"{sum(map(math.isfinite, scores))} of them finite; it must return one number for each"
        )
    return dict(zip(pairs, scores, strict=True))


def judge_all(store: Store, labelers: Sequence[Labeler], scores: Scores, seed: int) -> None:
    """Let simulated labelers judge in turn until nothing is left for any of them."""
    waiting = [(one, local_person(store, one.name).id) for one in labelers]
    wanted, there = progress(store)
    with Steps("labels", total=wanted, start=there) as steps:
        while waiting:
            for labeler, person in list(waiting):
                given = next_assignment(store, person)
                if given is None:
                    waiting.remove((labeler, person))
                    continue
                prompt, texts = as_text(given.prompt), list(map(as_text, given.completions))
                # Noise depends on who judges what, not when: a run that was killed goes on alike.
                text = json.dumps([seed, labeler.name, prompt, sorted(texts)])
                stream = np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))
                golds = [scores[prompt, text] for text in texts]
                values = utilities(labeler, texts, golds, stream)
                submit(store, person, simulated_answer(given.id, store.project.mode, values))
                steps.advance()


def simulated_answer(assignment: int, mode: str, values: Sequence[float]) -> Answer:
    """What a labeler of these utilities answers: ranks, the better of two, or up where above 0."""
    strength = None
    if mode == "thumbs":
        ranks: list[float | None] = [1.0 if value > 0 else None for value in values]
    else:
        ranks = rank(values)
    if mode == "pair":
        apart = abs(values[0] - values[1])
        strength = 0 if apart == 0 else 1 + (apart > 0.5) + (apart > 1.5)
    return Answer(
        assignment=assignment,
        submission=f"simulated {assignment}",
        verdict="ranked",
        ranks=ranks,
        strength=strength,
    )


def as_text(text: Text) -> str:
    """A prompt or completion as scorers read it: chat messages one after the other."""
    return text if isinstance(text, str) else "\n\n".join(one["content"] for one in text)
