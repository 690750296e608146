"""Collect: sample completions of a batch of prompts from the policy.

Who samples is hidden here: the policy itself, where it is whole; a whole copy of it, where it is
sharded over several processes; or a sampler elsewhere, which gets new weights before it is asked
and is probed after each time. With `sampling.lag = 1` the next rollout is sampled ahead, by the
policy as it is before it is trained on the present one.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from tether import parallel
from tether.data.batches import Row, lengths_mask, to_grid
from tether.data.rollout import Rollout
from tether.engine.decode import Sampled, completion_text
from tether.engine.samplers import Drawn, Request, Sampler, draw
from tether.errors import CheckError
from tether.models.language_model import LanguageModel
from tether.models.weights import copy_trained, plain, trained
from tether.records import Text
from tether.sections import SamplingConfig

Probe = Callable[[Sampler, int], None]
"""(sampler, version of its weights): stops the run where it does not sample from the policy."""


@dataclass
class Source:
    """Where completions come from.

    Attributes:
        policy: What is trained.
        copy: What samples in this process: the policy, or a whole copy where it is sharded.
        sampler: Who samples instead; None = this process.
        probe: Asked after each load of weights into a sampler.
        version: Steps that the policy has been trained for.
        loaded: The same of the weights that `copy` or the sampler has; -1 = none yet.
    """

    policy: LanguageModel
    copy: LanguageModel
    sampler: Sampler | None = None
    probe: Probe | None = None
    version: int = 0
    loaded: int = -1
    _pool: ThreadPoolExecutor | None = None
    _ahead: tuple[Request, "Future[Drawn]"] | None = None

    def draw(self, request: Request) -> Drawn:
        """Completions by the newest weights, or those that were sampled ahead for this request."""
        if self._ahead and self._ahead[0].step == request.step:
            drawn = self.drawn_ahead()
            self._ahead = None
            assert drawn is not None
            return drawn
        self.drawn_ahead()  # nobody is asked two things at once, or given weights meanwhile
        self._sync()
        drawn = parallel.told(self._ask(request))
        if self.sampler and self.probe and drawn.resent:
            self.probe(self.sampler, self.loaded)
        return drawn

    def draw_ahead(self, request: Request) -> None:
        """Begin to sample what `draw` will be asked for, by the weights as they are now."""
        self._sync()
        if self.sampler and parallel.leads():
            self._pool = self._pool or ThreadPoolExecutor(1)
            self._ahead = request, self._pool.submit(self.sampler.sample, request)
            return
        done: Future[Drawn] = Future()
        done.set_result(self._ask(request))
        self._ahead = request, done

    def drawn_ahead(self) -> Drawn | None:
        """What was sampled ahead, once it is there; None where nothing was."""
        if self._ahead is None:
            return None
        request, future = self._ahead
        drawn = parallel.told(future.result())
        future = Future()
        future.set_result(drawn)
        self._ahead = request, future
        return drawn

    def restore(self, request: Request, drawn: Drawn) -> None:
        """Take back what had been sampled ahead when a checkpoint was written."""
        done: Future[Drawn] = Future()
        done.set_result(drawn)
        self._ahead = request, done

    def close(self) -> None:
        """Let go of the sampler."""
        if self._pool:
            self._pool.shutdown()
        if self.sampler and parallel.leads():
            self.sampler.close()

    def _ask(self, request: Request) -> Drawn:
        if self.sampler:
            return self.sampler.sample(request) if parallel.leads() else Drawn([], self.loaded)
        own = request._replace(
            prompts=parallel.part(request.prompts), rows=parallel.part(request.rows)
        )
        return Drawn(parallel.together(draw(self.copy, own)), self.loaded)

    def _sync(self) -> None:
        """Bring the policy's weights to who samples, unless they are there."""
        if self.loaded == self.version:
            return
        if self.sampler:
            weights = plain(self.policy) if self.sampler.plain else trained(self.policy)
            if parallel.leads():
                self.sampler.load(weights, self.version)
            for _ in weights:  # the others only give their shards
                pass
        elif self.copy is not self.policy:
            copy_trained(self.policy, self.copy)
        self.loaded = self.version
        if self.sampler and self.probe:
            self.probe(self.sampler, self.version)


def collect(
    source: Source,
    prompts: list[Text],
    prompt_ids: list[list[int]],
    sampling: SamplingConfig,
    *,
    seed: int,
    step: int,
) -> Rollout:
    """Sample one completion a prompt; what is sampled is a function of (policy, seed, step).

    Args:
        source: Who samples.
        prompts: Prompts as the reward is to see them.
        prompt_ids: The same prompts as token ids.
        sampling: Temperature and length limit.
        seed: The stage's seed.
        step: The update this rollout is for.
    """
    drawn = source.draw(request_of(prompt_ids, sampling, seed=seed, step=step))
    return rollout_of(source.copy, prompts, prompt_ids, drawn)


def request_of(
    prompt_ids: list[list[int]], sampling: SamplingConfig, *, seed: int, step: int
) -> Request:
    """The request for a whole rollout batch."""
    return Request(prompt_ids, list(range(len(prompt_ids))), sampling, seed, step)


def rollout_of(
    policy: LanguageModel, prompts: list[Text], prompt_ids: list[list[int]], drawn: Drawn
) -> Rollout:
    """A rollout from what was sampled for its prompts."""
    sampled = drawn.sampled
    mask = lengths_mask([len(sample.token_ids) for sample in sampled])
    logprobs = torch.tensor([logprob for sample in sampled for logprob in sample.logprobs])
    return Rollout(
        prompts=prompts,
        completions=[
            completion_text(policy, ids, sample.token_ids, finished=sample.finished)
            for ids, sample in zip(prompt_ids, sampled, strict=True)
        ],
        rows=[
            Row(ids + sample.token_ids, len(ids))
            for ids, sample in zip(prompt_ids, sampled, strict=True)
        ],
        mask=mask,
        logprobs=to_grid(logprobs, mask),
        finished=torch.tensor([sample.finished for sample in sampled]),
        version=drawn.version,
    )


def check_lag(drawn: Rollout, trained: int, lag: int) -> None:
    """Refuse what an older policy sampled.

    Raises:
        CheckError: It is more than `lag` steps of training behind, or ahead.
    """
    if not 0 <= trained - drawn.version <= lag:
        raise CheckError(
            f"a rollout is of weights after step {drawn.version}, but the policy is after step "
            f"{trained} and sampling.lag={lag}: the sampler did not take over the weights"
        )


def to_state(request: Request, drawn: Drawn) -> dict[str, Any]:
    """What was sampled ahead, for a checkpoint, as JSON values (a float32 survives exactly)."""
    return {
        "step": request.step,
        "version": drawn.version,
        "sampled": list(map(list, drawn.sampled)),
    }


def from_state(state: dict[str, Any]) -> Drawn:
    """The same back from a checkpoint."""
    return Drawn([Sampled(*each) for each in state["sampled"]], state["version"])
