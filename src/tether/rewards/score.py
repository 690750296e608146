"""The `score` stage: a reward's scores of completions, written beside them."""

from pathlib import Path
from typing import Any

import numpy as np

from tether.config import ScoreConfig
from tether.data.formats import read_completions
from tether.progress import console
from tether.records import to_dict, write_jsonl
from tether.rewards.load import load_reward
from tether.rundir import StageFolder


def score(config: ScoreConfig) -> Path:
    """Score completions into `OUT/scores.jsonl`: the records with `scores`, and `raw_scores`.

    `scores` are normalized, clipped and weighted as PPO would see them.
    """
    folder = StageFolder(config, "score", [config.data, *config.reward.paths])
    if folder.finished:
        return folder.path
    records = read_completions(config.data, config.columns)
    reward = load_reward(config.reward, config.compute)
    prompts = [record.prompt for record in records for _ in record.completions]
    completions = [text for record in records for text in record.completions]
    raw, scores, disagreement = reward.judge(prompts, completions)
    folder.begin()
    rows: list[dict[str, Any]] = []
    start = 0
    for record in records:
        part = slice(start, start := start + len(record.completions))
        rows.append({**to_dict(record), "scores": scores[part], "raw_scores": raw[part]})
    write_jsonl(folder.path / "scores.jsonl", rows)
    mean, spread = float(np.mean(scores)), float(np.std(scores))
    console.print(f"{len(scores)} completions, score {mean:.4g} ± {spread:.4g} (mean ± std)")
    known = {} if disagreement is None else {"disagreement": disagreement}
    return folder.finish(completions=len(scores), mean=mean, std=spread, **known)
