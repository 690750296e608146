"""The parity probe: does a sampler compute with the policy's weights?

A weight sync can report success and be wrong: the version is the new one, the texts are plausible,
and a part of the model still computes with the old weights. So a few tokens are sampled after every
sync and scored again by the policy: their log-probs must agree.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from tether import parallel
from tether.config import OnlineConfig
from tether.data.batches import Row, device_batches
from tether.engine.samplers import Drawn, Request, Sampler
from tether.engine.sampling import PROBE
from tether.errors import CheckError
from tether.models.language_model import LanguageModel, completion_logprobs
from tether.sections import SamplingConfig

PROMPTS, TOKENS = 4, 16  # for each who samples
PROBED = 256  # prompts of a run that it takes some of
MOST = 5.0  # one token may differ by so many times the tolerance of the mean


class Gap(NamedTuple):
    """How far two computations of log-probs are apart (nats a token): the mean, the largest."""

    mean: float
    max: float


def probe_with(
    config: OnlineConfig, policy: LanguageModel, prompt_ids: Sequence[list[int]]
) -> Callable[[Sampler, int], None]:
    """The probe of a run, to be asked with a sampler and the version of its weights."""
    some = list(prompt_ids[:PROBED])
    tolerance = config.compute.servers.tolerance

    def check(sampler: Sampler, version: int) -> None:
        probe(sampler, policy, some, config.sampling, tolerance, version)

    return check


def probe(
    sampler: Sampler | None,
    policy: LanguageModel,
    prompt_ids: list[list[int]],
    sampling: SamplingConfig,
    tolerance: float,
    version: int,
) -> Gap:
    """Sample a few tokens right after a sync and score them with the policy.

    Every process of a training must call it; the first one alone asks the sampler.

    Args:
        sampler: Who samples; needed in the first process only.
        policy: The policy whose weights it was given.
        prompt_ids: Prompts to take some of, as token ids.
        sampling: The temperature, and the tokens that end a completion.
        tolerance: Largest mean difference, nats a token; a single token may differ by five times
            as much.
        version: What the weights are known as.

    Raises:
        CheckError: They differ by more; says by how much and who.
        ServerError: Nobody answered.
    """
    drawn, prompts = None, []
    if parallel.leads():
        assert sampler is not None
        num = PROMPTS * sampler.places
        prompts = [prompt_ids[i % len(prompt_ids)] for i in range(num)]
        short = replace(sampling, max_new_tokens=min(TOKENS, sampling.max_new_tokens))
        drawn = sampler.sample(Request(prompts, list(range(num)), short, seed=0, step=PROBE))
    drawn, prompts = parallel.told((drawn, prompts))
    assert drawn is not None
    return compare(drawn, policy, prompts, sampling.temperature, tolerance, version)


@torch.no_grad()
def compare(
    drawn: Drawn,
    policy: LanguageModel,
    prompt_ids: list[list[int]],
    temperature: float,
    tolerance: float,
    version: int,
) -> Gap:
    """Score completions with the policy and compare with what their sampler said; as `probe`."""
    if drawn.version != version:
        raise CheckError(
            f"the sampler computes with the weights of step {drawn.version}, but {version} are due"
        )
    pairs = list(zip(prompt_ids, drawn.sampled, strict=True))
    rows = [Row(ids + sampled.token_ids, len(ids)) for ids, sampled in pairs]
    gaps = [torch.empty(0)] * len(rows)
    for chunk, batch in device_batches(rows, 0):
        ours = completion_logprobs(policy, batch, temperature=temperature)[0].float().cpu()
        parts = ours.split([rows[i].num_completion for i in chunk])
        for i, part in zip(chunk, parts, strict=True):
            gaps[i] = (part - torch.tensor(drawn.sampled[i].logprobs)).abs()
    by = drawn.by or ("the sampler",) * len(rows)
    found = {who: torch.cat([g for g, b in zip(gaps, by, strict=True) if b == who]) for who in by}
    for who, gap in found.items():
        if not (gap.mean() <= tolerance and gap.max() <= MOST * tolerance):
            raise CheckError(
                f"{who} samples from something else than the policy: after the weights of step "
                f"{version} were sent, its log-probs are off by {gap.mean():.2g} nats a token "
                f"(mean; tolerance={tolerance:g}) and {gap.max():.2g} (max; {MOST * tolerance:g}) "
                f"over {len(gap)} tokens; start it anew, or see what it changes of the model"
            )
    every = torch.cat(list(found.values()))
    return Gap(float(every.mean()), float(every.max()))
