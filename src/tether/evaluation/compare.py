"""The `evaluate` stage: the same prompts answered by several policies, scored and compared."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from tether.config import EvaluateConfig, PolicyConfig
from tether.data.batches import Row, device_batches
from tether.data.formats import read_prompts
from tether.engine.decode import Sampled, completion_text, encode_prompts, generate_tokens
from tether.engine.sampling import EVALUATION
from tether.errors import ConfigError
from tether.evaluation.block_table import print_blocks
from tether.evaluation.blocks import Block, adjusted, write_blocks
from tether.evaluation.every_block import blocks_of, check_blocks
from tether.evaluation.frontier import frontier, pool_for
from tether.evaluation.overoptimization import Frontier, write_frontier
from tether.evaluation.plane import print_efficiency
from tether.evaluation.summary import Kept, Sample, Summary, keep, summarize
from tether.evaluation.table import print_table
from tether.models.language_model import LanguageModel, completion_kl, completion_logprobs, load
from tether.progress import Steps, results
from tether.records import Prompt, write_jsonl
from tether.rewards.load import Reward, check_rules, load_reward
from tether.rundir import StageFolder, write_json

ROWS_PER_BATCH = 64


def evaluate(config: EvaluateConfig) -> Path:
    """Answer the prompts by every policy, score the answers, and print what was gained.

    Writes `samples.jsonl` (every answer with its scores), `summary.json` and `blocks.json` into
    `config.out`, models kept along a run into `kept.jsonl`; with a pool also `frontier.json`.
    All policies answer with the same random numbers.
    """
    folder = StageFolder(config, "evaluate", inputs_of(config))
    if folder.finished:
        return folder.path
    prompts = read_prompts(config.prompts, config.columns)
    pool = pool_for(config, prompts)
    scorers = {each.name: load_reward(each, config.compute) for each in config.scorers}
    check_blocks(config)
    check_rules(list(scorers.values()), [record.prompt for record in prompts])
    reference = load(config.reference, config.compute) if config.reference else None
    kept = [(p, step, path) for p in config.policies if p.curve for step, path in kept_models(p)]
    with Steps(folder.path.name, len(config.policies) + len(kept)) as progress:

        def answers_of(policy: PolicyConfig) -> list[Sample]:
            samples = answer(config, policy, prompts, scorers, reference)
            progress.advance()
            return samples

        samples = [sample for policy in config.policies for sample in answers_of(policy)]
        summary = summarize(
            samples,
            baseline=config.baseline or config.policies[0].name,
            scorers=list(scorers),
            pairs=config.compare,
            apart=config.apart,
            seed=config.seed,
        )
        points, along = follow(kept, answers_of, summary, config.seed)
    summary = replace(summary, kept=points, cpu_seconds=seconds_of(config.policies))
    blocks = adjusted(blocks_of(config, samples))
    reachable = frontier(config, pool, samples, along) if pool else None
    folder.begin()
    write_jsonl(folder.path / "samples.jsonl", [sample.to_dict() for sample in samples])
    write_jsonl(folder.path / "kept.jsonl", along)
    tell(folder.path, summary, blocks, reachable)
    return folder.finish(prompts=len(prompts), samples=len(samples))


def tell(folder: Path, summary: Summary, blocks: list[Block], reachable: Frontier | None) -> None:
    """Write what was found, and print it."""
    write_json(folder / "summary.json", summary.to_dict())
    write_blocks(folder, blocks)
    write_frontier(folder, reachable)
    print_table(summary, results)
    print_blocks(blocks, results)
    print_efficiency(folder, results)


def inputs_of(config: EvaluateConfig) -> list[str]:
    """Everything that an evaluation reads."""
    return [
        *(config.prompts, config.reference, config.pool, config.blocks.texts),
        *(policy.model for policy in config.policies),
        *(path for scorer in config.scorers for path in scorer.paths),
        *(probe.path for probe in config.blocks.probes),
    ]


def follow(
    kept: list[tuple[PolicyConfig, int, str]],
    answers_of: Callable[[PolicyConfig], list[Sample]],
    summary: Summary,
    seed: int,
) -> tuple[list[Kept], list[dict[str, Any]]]:
    """The figures of every kept model, over all prompts and by prompt (rows of kept.jsonl)."""
    points: list[Kept] = []
    rows: list[dict[str, Any]] = []
    for policy, step, path in kept:
        answers = answers_of(replace(policy, model=path))
        points.append(keep(policy.name, step, answers, summary, seed))
        rows += by_prompt(policy.name, step, answers, summary.scorers)
    return points, rows


def by_prompt(
    policy: str, step: int, samples: list[Sample], scorers: list[str]
) -> list[dict[str, Any]]:
    """Rows of kept.jsonl: a kept model's KL and mean scores on each prompt."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt_index, []).append(sample)
    rows: list[dict[str, Any]] = []
    for number, group in groups.items():
        known = [sample.kl for sample in group if sample.kl is not None]
        scores = {name: fmean([each.scores[name] for each in group]) for name in scorers}
        place = {"policy": policy, "step": step, "prompt_index": number}
        rows.append({**place, "kl": fmean(known) if known else None, "scores": scores})
    return rows


def kept_models(policy: PolicyConfig) -> list[tuple[int, str]]:
    """(step, directory) of the models that the policy's run kept (`keep_every`), by step.

    Raises:
        ConfigError: There are none.
    """
    folders = sorted((Path(policy.model).parent / "models").glob("step-*"))
    if not folders:
        raise ConfigError(
            f"policy {policy.name!r} has curve = true, but no models were kept beside "
            f"{policy.model!r}; train it with keep_every, or leave curve = false"
        )
    return [(int(each.name.removeprefix("step-")), str(each)) for each in folders]


def seconds_of(policies: Sequence[PolicyConfig]) -> dict[str, float]:
    """CPU seconds by policy, where they are known."""
    seconds = {policy.name: cpu_seconds(policy.model) for policy in policies}
    return {name: found for name, found in seconds.items() if found is not None}


def cpu_seconds(model: str) -> float | None:
    """What the stage that made a model took; None where the model lies in no stage's folder."""
    result = Path(model).parent / "result.json"
    if Path(model).name != "model" or not result.is_file():
        return None
    return json.loads(result.read_text(encoding="utf-8")).get("cpu_seconds")


class Drawn(NamedTuple):
    """One completion with its scores."""

    prompt: int  # number of the prompt
    sampled: Sampled
    text: str
    scores: dict[str, float]


def answer(
    config: EvaluateConfig,
    policy: PolicyConfig,
    prompts: Sequence[Prompt],
    scorers: dict[str, Reward],
    reference: LanguageModel | None,
) -> list[Sample]:
    """One policy's scored answers to all prompts.

    Raises:
        ConfigError: The policy and the reference have different vocabularies.
    """
    language_model = load(policy.model, config.compute)
    texts = [record.prompt for record in prompts]
    ids = encode_prompts(language_model, texts, config.sampling.max_new_tokens)
    drawn = draw(config, policy, language_model, ids, prompts, scorers)
    distances = [Distance()] * len(drawn)
    if reference is not None:
        _require_same_vocabulary(language_model, reference, policy)
        rows = [Row(ids[d.prompt] + d.sampled.token_ids, len(ids[d.prompt])) for d in drawn]
        distances = distance(language_model, reference, rows, config.sampling.temperature)
    if policy.best_of > 1:  # chosen completions are not samples of the policy: no KL along them
        distances = [each._replace(kl=None) for each in distances]
    return [
        Sample(
            policy=policy.name,
            prompt_index=each.prompt,
            sample_index=number % config.num_samples,
            category=prompts[each.prompt].category,
            prompt=prompts[each.prompt].prompt,
            completion=each.text,
            finished=each.sampled.finished,
            num_tokens=len(each.sampled.token_ids),
            scores=each.scores,
            kl=distances[number].kl,
            reference_perplexity=distances[number].perplexity,
            log_ratio=distances[number].log_ratio(each.sampled.logprobs),
        )
        for number, each in enumerate(drawn)
    ]


def draw(
    config: EvaluateConfig,
    policy: PolicyConfig,
    language_model: LanguageModel,
    ids: Sequence[list[int]],
    prompts: Sequence[Prompt],
    scorers: dict[str, Reward],
) -> list[Drawn]:
    """Sample and score; of each `best_of` completions the one that `best_by` likes best."""
    index = [i for i in range(len(prompts)) for _ in range(config.num_samples * policy.best_of)]
    rows = [ids[i] for i in index]
    sampled = generate_tokens(
        language_model, rows, config.sampling, seed=config.seed, step=EVALUATION
    )
    texts = [
        completion_text(language_model, prompt, sample.token_ids, finished=sample.finished)
        for prompt, sample in zip(rows, sampled, strict=True)
    ]
    asked = [prompts[i].prompt for i in index]
    scores = {name: reward.normalize(reward.raw(asked, texts)) for name, reward in scorers.items()}
    every = [
        Drawn(prompt, sampled[k], texts[k], {name: scores[name][k] for name in scores})
        for k, prompt in enumerate(index)
    ]
    best_by = config.best_by or config.scorers[-1].name
    return [
        max(every[start : start + policy.best_of], key=lambda each: each.scores[best_by])
        for start in range(0, len(every), policy.best_of)
    ]


def _require_same_vocabulary(
    policy: LanguageModel, reference: LanguageModel, named: PolicyConfig
) -> None:
    if policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise ConfigError(
            f"policy {named.name!r} and the reference have different vocabularies, so there is no "
            'KL between them; set reference = "" or evaluate it apart'
        )


class Distance(NamedTuple):
    """How far a completion is from the reference; None = not measured."""

    kl: float | None = None  # nats per sequence
    perplexity: float | None = None  # of the completion under the reference
    logprob: float | None = None  # its log-prob there at the sampling temperature, nats

    def log_ratio(self, logprobs: list[float]) -> float | None:
        """How much likelier the policy finds it: log π - log π_ref, nats."""
        return None if self.logprob is None else sum(logprobs) - self.logprob


@torch.no_grad()
def distance(
    policy: LanguageModel, reference: LanguageModel, rows: list[Row], temperature: float
) -> list[Distance]:
    """KL per sequence (nats), perplexity and log-prob under the reference, of each row.

    The KL is exact over the vocabulary at every token of the policy's own samples, and summed:
    its mean over samples estimates KL(policy ‖ reference) with less noise than log-ratios do.
    """
    found: dict[int, Distance] = {}
    for chunk, batch in device_batches(rows, ROWS_PER_BATCH):
        kls = completion_kl(policy, reference, batch, temperature=temperature)
        logprobs, _ = completion_logprobs(reference, batch)
        sampling = logprobs
        if temperature != 1:
            sampling, _ = completion_logprobs(reference, batch, temperature=temperature)
        counts = [rows[i].num_completion for i in chunk]
        parts = zip(chunk, *(each.split(counts) for each in (kls, logprobs, sampling)), strict=True)
        for i, kl, logprob, sampled in parts:
            perplexity = math.exp(-float(logprob.mean()))
            found[i] = Distance(float(kl.sum()), perplexity, float(sampled.sum()))
    return [found[i] for i in range(len(rows))]
