"""The `judge` stage: pairs of completions, each judged by a drawn principle, as preference pairs.

Every pair is asked about in both orders; what comes out is a probability rather than a verdict,
which `tether reward` and `tether dpo` take as it is.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tether.config import JudgeConfig
from tether.constitution.agreement import Labels, Report, labels_of, plain, report
from tether.constitution.blocks import JsonRow, in_blocks
from tether.constitution.principles import Constitution, file_of, read_constitution
from tether.data.formats import read_comparisons, read_completions
from tether.data.shapes import our_fields
from tether.data.sources import read_rows
from tether.errors import DataError
from tether.feedback.prepare import ImportConfig, import_feedback
from tether.feedback.store import is_project
from tether.models.language_model import load
from tether.progress import Steps, console
from tether.records import (
    PreferencePair,
    Ranking,
    Text,
    pairs,
    to_dict,
    write_jsonl,
)
from tether.rewards.endpoint import EndpointJudge, load_endpoint_judge
from tether.rewards.judge import Comparison, Judge, ask, both_orders, in_turns
from tether.rewards.local_judge import LocalJudge
from tether.rundir import StageFolder, fingerprint


class Pair(NamedTuple):
    """Two different completions of a prompt, in the order of the file."""

    prompt: Text
    first: str
    second: str


def judge(config: JudgeConfig) -> Path:
    """Judge pairs of completions and write preference pairs into `config.out`.

    Writes `judgments.jsonl`, every pair with its principle and what the judge said;
    `ai_pairs.jsonl`, the preference pairs with their probability; and `pairs.jsonl`, these and the
    helpful comparisons behind them. `result.json` says how often the order decided and, where
    people have judged too, how well the judge agrees with them.

    Raises:
        ConfigError: The constitution has no preference question.
        DataError: There are no pairs, or none is left.
    """
    own = file_of(config.constitution)
    inputs = [config.data, config.judge, own, config.human, config.helpful]
    folder = StageFolder(config, "judge", inputs)
    if folder.finished:
        return folder.path
    constitution = read_constitution(config.constitution)
    constitution.require("preference")
    asked, labels = read_pairs(config)
    helpful = read_comparisons(config.helpful) if config.helpful else []
    asks = the_judge(config, constitution, folder.path)
    folder.begin()
    # A judge behind an endpoint has a bar of its own, with what it has cost.
    own_bar = isinstance(asks, EndpointJudge)
    with nullcontext() if own_bar else Steps(folder.path.name, len(asked)) as progress:

        def work(number: int, block: Sequence[Pair]) -> list[JsonRow]:
            if isinstance(asks, LocalJudge):
                asks.step = number
            return judgments(asks, constitution, block, config.seed)

        advance = progress.advance if progress else lambda _: None
        rows = in_blocks(folder, asked, config.block, work, advance)
    hashes = {"model": fingerprint(config.judge), "constitution": constitution.hash}
    chosen = preference_pairs(rows, config)
    if not chosen:
        raise DataError(
            f"{config.data}: none of {len(rows)} pairs is left; the judge was never surer than "
            f"0.5 ± {config.abstain}, or no question fits its positions: lower abstain, or take "
            "another judge"
        )
    write_jsonl(folder.path / "judgments.jsonl", ({**row, **hashes} for row in rows))
    write_jsonl(folder.path / "ai_pairs.jsonl", map(to_dict, chosen))
    write_jsonl(folder.path / "pairs.jsonl", map(to_dict, [*chosen, *helpful]))
    if config.project:
        add_to_project(config.project, folder.path / "ai_pairs.jsonl", constitution.name)
    found = report(rows, labels)
    tell(found, len(chosen))
    return folder.finish(pairs=len(chosen), helpful=len(helpful), **found.facts(), **hashes)


def add_to_project(project: str, pairs: Path, criterion: str) -> None:
    """Add pairs to a feedback project, in which the judge is a labeler among the others.

    One that does not exist is made, of pairs. A judgment that is there already is not added again.
    """
    new: dict[str, Any] = {"mode": "pair", "criterion": criterion}
    settings = {} if Path(project).exists() else new
    import_feedback(ImportConfig(path=project, data=(str(pairs),), labels="records", **settings))


def the_judge(config: JudgeConfig, constitution: Constitution, folder: Path) -> Judge:
    """The judge that the settings name, with the constitution's words and examples."""
    words = constitution.wording
    examples = worked_out(constitution, config.examples, reasoning=config.reasoning)
    if config.endpoint.base_url:
        return load_endpoint_judge(
            config.endpoint,
            folder,
            lambda comparison: in_turns(ask(comparison, words), examples),
            letters=words.letters,
        )
    return LocalJudge(
        load(config.model, config.compute),
        words,
        examples,
        reasoning=config.sampling if config.reasoning else None,
        clamp=config.clamp,
        seed=config.seed,
    )


def worked_out(constitution: Constitution, count: int, *, reasoning: bool) -> list[tuple[str, str]]:
    """The constitution's first comparisons as (question, answer), the answer with its lead."""
    words = constitution.wording
    found: list[tuple[str, str]] = []
    for each in constitution.judgments[:count]:
        question = constitution.by_id(each.principle).preference
        asked = ask(Comparison(each.prompt, each.first, each.second, question), words)
        thought = f"{words.reasoning} {each.reasoning}" if reasoning else ""
        found.append((asked, f"{thought}{words.answer} {each.answer}"))
    return found


# --- pairs ----------------------------------------------------------------------------------------


def read_pairs(config: JudgeConfig) -> tuple[list[Pair], Labels]:
    """Pairs to be judged, and what people say of them: in `human`, or in the data itself.

    Raises:
        DataError: No prompt has two different completions.
    """
    human = read_comparisons(config.human) if config.human else []
    if _is_compared(config):
        records = read_comparisons(config.data, config.columns)
        labels = labels_of([*records, *human])
        found = [pair for record in records for pair in _pairs_of(record)]
        asked = list({_key(pair): pair for pair in found}.values())
    else:
        labels = labels_of(human)
        asked = [
            pair
            for i, record in enumerate(read_completions(config.data, config.columns))
            for pair in draw_pairs(record.prompt, record.completions, config, i)
        ]
    if not asked:
        raise DataError(
            f"{config.data}: no prompt has two different completions; generate with --num 2 or more"
        )
    return asked, labels


def _is_compared(config: JudgeConfig) -> bool:
    """Whether the data holds comparisons rather than completions alone."""
    if is_project(config.data):
        return True
    row, where = next(read_rows(config.data, config.columns), ({}, ""))
    return bool({"rejected", "ranks"} & our_fields(row, where).keys())


def _pairs_of(record: Ranking | PreferencePair) -> list[Pair]:
    if isinstance(record, PreferencePair):
        texts = [(record.chosen, record.rejected)]
    else:
        texts = [(record.completions[i], record.completions[j]) for i, j in pairs(record)]
    return [Pair(record.prompt, plain(a), plain(b)) for a, b in texts if a != b]


def _key(pair: Pair) -> tuple[str, str, str]:
    """Equal for the same two completions of the same prompt, in whichever order."""
    first, second = sorted((pair.first, pair.second))
    return json.dumps(pair.prompt), first, second


def draw_pairs(
    prompt: Text, completions: Sequence[str], config: JudgeConfig, number: int
) -> list[Pair]:
    """All pairs of a prompt's different completions, or `num_pairs` of them, drawn by the seed."""
    distinct = list(dict.fromkeys(text for text in completions if text.strip()))
    found = [Pair(prompt, a, b) for a, b in combinations(distinct, 2)]
    if 0 < config.num_pairs < len(found):
        found = Random(f"{config.seed} pairs {number}").sample(found, config.num_pairs)
    return found


# --- judgments ------------------------------------------------------------------------------------


def judgments(
    judge: Judge, constitution: Constitution, block: Sequence[Pair], seed: int
) -> list[JsonRow]:
    """What a judge says of each pair, by a principle drawn for it.

    A judge in this process also tells which questions it has no room for, and its `mass`.
    """
    local = judge if isinstance(judge, LocalJudge) else None
    rows: list[JsonRow] = []
    asked: list[tuple[JsonRow, Comparison]] = []
    for pair in block:
        first, second = sorted((pair.first, pair.second))
        # Drawn by the pair, whatever the order of its completions.
        principle = constitution.draw("preference", seed, str([pair.prompt, first, second]))
        comparison = Comparison(*pair, principle.preference)
        rows.append({**pair._asdict(), "principle": principle.id})
        if local is None or local.fits(comparison):
            asked.append((rows[-1], comparison))
        else:
            rows[-1]["problem"] = "too long"
    before = len(local.mass) if local else 0
    verdicts = both_orders(judge, [comparison for _, comparison in asked])
    for i, ((row, _), verdict) in enumerate(zip(asked, verdicts, strict=True)):
        row.update(verdict._asdict())
        if local:  # first all questions in one order, then in the other
            row["mass"] = (local.mass[before + i] + local.mass[before + len(asked) + i]) / 2
    return rows


def preference_pairs(rows: Iterable[JsonRow], config: JudgeConfig) -> list[PreferencePair]:
    """The pairs on which the judge does not abstain, the likely better completion as chosen."""
    name = Path(config.model or config.endpoint.model)
    name = name.parent.name if name.name == "model" else name.name
    found: list[PreferencePair] = []
    for row in rows:
        if "problem" in row or abs(row["probability"] - 0.5) < config.abstain:
            continue
        p, first, second = row["probability"], row["first"], row["second"]
        better, worse = (first, second) if p >= 0.5 else (second, first)
        found.append(
            PreferencePair(
                prompt=row["prompt"],
                chosen=better,
                rejected=worse,
                probability=max(p, 1 - p),
                criterion=row["principle"],
                labeler=f"ai:{name}",
            )
        )
    return found


def tell(found: Report, kept: int) -> None:
    """Print what came out and how far it can be believed."""
    console.print(f"{found.judged} pairs judged, {kept} kept, {found.too_long} too long")
    if found.flipped is not None:
        console.print(
            f"  the order decides {found.flipped:.0%}; whichever comes first has "
            f"{found.first_place:.2f} on average"
        )
    if found.mass is not None:
        console.print(f"  the letters have {found.mass:.3f} of the model's probability")
    if found.agreement is not None:
        console.print(
            f"  agrees with people on {found.agreement:.0%} of {found.labeled} pairs; log-loss "
            f"{found.log_loss:.3f} nats, calibration error {found.calibration_error:.3f}"
        )
