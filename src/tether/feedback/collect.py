"""The `collect` stage: completions go to labelers, and all judgments given so far come out.

People judge at the labeling page while the stage waits; simulated labelers judge through the same
project in the same way. Judgments that come later are taken by the next round's stage.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tether.config import USUAL_LABELERS, CollectConfig
from tether.feedback.assignment import Answer, next_assignment, submit
from tether.feedback.export import To, export
from tether.feedback.people import local_person
from tether.feedback.prepare import ImportConfig, import_feedback
from tether.feedback.simulated import Labeler, known_scores, rank, utilities
from tether.feedback.store import Store
from tether.progress import Steps, console
from tether.records import Text, write_jsonl
from tether.rundir import StageFolder

SECONDS_BETWEEN_LOOKS = 2.0


def collect(config: CollectConfig) -> Path:
    """Add completions to a feedback project, have them judged, and write every judgment so far.

    Writes into `config.out`: `pairs.jsonl` (with the probability that the chosen one is better)
    and `rankings.jsonl` (the consensus), or `thumbs.jsonl`; and `judgments.jsonl`, each labeler's.

    Raises:
        DataError: There are no completions.
        ConfigError: The project exists and asks something else of its labelers.
    """
    folder = StageFolder(config, "collect", [*config.data, config.scorer])
    if folder.finished:
        return folder.path
    store = _add(config)
    folder.begin()
    if config.scorer:
        scores = scores_of(store, config.scorer, config.scale)
        judge_all(store, USUAL_LABELERS, scores, config.seed)
    else:
        wait_for_people(store, config.enough)
    counts: dict[str, int] = {}
    for name, to, each in OUTPUTS[config.mode]:
        rows = export(store, to, labelers=config.labelers, groups=config.groups, each=each)
        counts[name] = len(rows)
        write_jsonl(folder.path / f"{name}.jsonl", rows)
    return folder.finish(**counts, project=str(store.path))


_COMPARED: tuple[tuple[str, To, bool], ...] = (
    ("pairs", "pairs", False),
    ("rankings", "rankings", False),
    ("judgments", "rankings", True),
)
OUTPUTS: dict[str, tuple[tuple[str, To, bool], ...]] = {
    "rank": _COMPARED,
    "pair": _COMPARED,
    "thumbs": (("thumbs", "thumbs", False), ("judgments", "thumbs", True)),
}
"""By mode: file, kind of its rows, and whether each labeler speaks alone in it."""


def _add(config: CollectConfig) -> Store:
    """Add the completions to the project that the rounds share, made where it is missing."""
    bare = Path(config.project).name == config.project
    path = Path(config.out).parent / config.project if bare else Path(config.project)
    settings: dict[str, Any] = {}
    if not path.exists():
        # Simulated labelers need no control of their attention, and every run the same items.
        shares = dict.fromkeys(("repeat_share", "gold_share"), 0.0) if config.scorer else {}
        settings = {"name": path.resolve().parent.name, "seed": config.seed, **shares}
    import_feedback(
        ImportConfig(
            path=str(path),
            data=config.data,
            criterion=config.criterion,
            mode=config.mode,
            num_labelers=config.num_labelers,
            **settings,
        )
    )
    return Store(path)


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


def scores_of(store: Store, scorer: str, scale: float) -> Scores:
    """The known score of every completion in the project, by prompt and completion as text.

    Raises:
        CheckError: As `known_scores`.
    """
    pairs = sorted(
        {
            (as_text(item.prompt), as_text(one))
            for item in store.items().values()
            for one in item.completions
        }
    )
    prompts, texts = [prompt for prompt, _ in pairs], [text for _, text in pairs]
    return dict(zip(pairs, known_scores(scorer, scale, prompts, texts), strict=True))


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
