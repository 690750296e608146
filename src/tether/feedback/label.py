"""The `simulate` stage: simulated labelers rank completions, and their consensus."""

from itertools import islice
from pathlib import Path

from tether.config import SimulateConfig
from tether.errors import DataError
from tether.feedback.consensus import agreement, consensus
from tether.feedback.simulated import known_scores, simulate
from tether.progress import console
from tether.records import Completions, from_dict, read_jsonl, to_dict, write_jsonl
from tether.rundir import StageFolder


def label(config: SimulateConfig) -> Path:
    """Rank completions by simulated labelers around a known score.

    Writes `judgments.jsonl` (one ranking a labeler and prompt) and `rankings.jsonl` (their
    consensus) into `config.out`.

    Raises:
        DataError: There are no completions.
        CheckError: The score is not one finite number for each completion.
    """
    scorers = sorted({config.scorer, *(labeler.scorer for labeler in config.labelers)} - {""})
    folder = StageFolder(config, "simulate", [config.data, *scorers])
    if folder.finished:
        return folder.path
    rows = read_jsonl(config.data)
    records = [from_dict(Completions, row, f"{config.data}:{line}") for line, row in rows]
    if not records:
        raise DataError(f"{config.data}: holds no completions; write some with `tether generate`")
    prompts = [record.prompt for record in records for _ in record.completions]
    texts = [text for record in records for text in record.completions]
    scores: dict[str, list[list[float]]] = {}
    for scorer in scorers:
        flat = iter(known_scores(scorer, config.scale, prompts, texts))
        scores[scorer] = [list(islice(flat, len(record.completions))) for record in records]
    usual = scores.get(config.scorer, next(iter(scores.values())))
    judgments = simulate(records, usual, config.labelers, config.seed, own=scores)
    agreements = agreement(judgments)
    folder.begin()
    write_jsonl(folder.path / "judgments.jsonl", map(to_dict, judgments))
    write_jsonl(folder.path / "rankings.jsonl", map(to_dict, consensus(judgments)))
    console.print("agreement with the other labelers (Kendall's τ):")
    for name, tau in agreements.items():
        console.print(f"  {name:<18} {tau:+.2f}")
    return folder.finish(judgments=len(judgments), items=len(records), agreement=agreements)
