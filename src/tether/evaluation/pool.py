"""The `pool` stage: many scored samples of the reference for a few prompts.

Every policy that is near the reference is a reweighting of such samples, so they tell how much
score any policy could have at a given KL (`core.tilt`).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from tether.config import PoolConfig
from tether.data.formats import read_prompts
from tether.engine.decode import check_lengths, completion_text, generate_tokens
from tether.engine.sampling import POOL
from tether.models.chat import encode_prompt
from tether.models.language_model import LanguageModel, load
from tether.pools import Pooled
from tether.progress import Steps
from tether.records import Prompt, write_jsonl
from tether.rewards.load import Reward, check_rules, load_reward
from tether.rundir import StageFolder

ROWS_AT_ONCE = 4096  # completions sampled and scored before they are written


def make_pool(config: PoolConfig) -> Path:
    """Sample `num` completions of each prompt and score them, into `OUT/pool.jsonl`.

    Written prompt by prompt, so that memory does not grow with the pool.
    """
    paths = [path for scorer in config.scorers for path in scorer.paths]
    folder = StageFolder(config, "pool", [config.model, config.prompts, *paths])
    if folder.finished:
        return folder.path
    prompts = read_prompts(config.prompts, config.columns)
    prompts = prompts[: config.num_prompts or len(prompts)]
    scorers = {each.name: load_reward(each, config.compute) for each in config.scorers}
    check_rules(list(scorers.values()), [record.prompt for record in prompts])
    model = load(config.model, config.compute)
    ids = [encode_prompt(model.tokenizer, record.prompt) for record in prompts]
    check_lengths(ids, model.max_positions, config.sampling.max_new_tokens)
    folder.begin()
    with Steps(folder.path.name, len(prompts) * config.num) as progress:
        rows = (
            dataclasses.asdict(each)
            for each in pooled(config, model, prompts, ids, scorers, progress)
        )
        write_jsonl(folder.path / "pool.jsonl", rows)
    return folder.finish(prompts=len(prompts), completions=len(prompts) * config.num)


def pooled(
    config: PoolConfig,
    model: LanguageModel,
    prompts: Sequence[Prompt],
    ids: list[list[int]],
    scorers: dict[str, Reward],
    progress: Steps,
) -> Iterator[Pooled]:
    """The prompts with their samples, a few prompts at a time.

    Completion k of prompt i is a function of (model, prompt, seed, num, i, k).
    """
    num, size = config.num, max(1, ROWS_AT_ONCE // config.num)
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]
        rows = [row for row in ids[start : start + size] for _ in range(num)]
        sampled = generate_tokens(
            model,
            rows,
            config.sampling,
            seed=config.seed,
            step=POOL + start,
            on_rows=progress.advance,
        )
        texts = [
            completion_text(model, row, sample.token_ids, finished=sample.finished)
            for row, sample in zip(rows, sampled, strict=True)
        ]
        asked = [record.prompt for record in some for _ in range(num)]
        scores = {name: each.normalize(each.raw(asked, texts)) for name, each in scorers.items()}
        for i, record in enumerate(some):
            part = slice(i * num, (i + 1) * num)
            yield Pooled(
                prompt=record.prompt,
                category=record.category,
                completions=texts[part],
                finished=[sample.finished for sample in sampled[part]],
                token_ids=[sample.token_ids for sample in sampled[part]],
                logprobs=[sum(sample.logprobs) for sample in sampled[part]],
                scores={name: each[part] for name, each in scores.items()},
            )
