"""Who samples for an online method: the policy's own process, Ray workers, or vLLM servers.

Whoever it is, completions come with the log-probs that they were sampled with and with the version
of the weights behind them: the steps of training these had seen.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from tether.engine.decode import Sampled, generate_tokens
from tether.models.language_model import LanguageModel
from tether.sections import SamplingConfig


class Request(NamedTuple):
    """Completions that are wanted.

    `rows` are the numbers of the prompts in the whole rollout batch: a completion is a function of
    (weights, prompt, seed, step, row), whoever samples it and beside whichever others.
    """

    prompts: list[list[int]]
    rows: list[int]
    sampling: SamplingConfig
    seed: int
    step: int


class Drawn(NamedTuple):
    """Completions in the order of the request, and the version of the weights they are of.

    `by` says who sampled each, where there are several; `resent` is True where weights were sent
    once more in between, to one that had lost them: then they are to be probed again.
    """

    sampled: list[Sampled]
    version: int
    by: tuple[str, ...] = ()
    resent: bool = False


@runtime_checkable
class Sampler(Protocol):
    """A sampler outside the trainer; only the first process of a training talks to it."""

    plain: bool
    """Whether it wants the weights of a plain Hugging Face model, adapters folded in, or else
    the trained parameters by their names"""
    places: int
    """How many sample side by side; a request of as many rows reaches each of them"""

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Take over weights (whole tensors, one after the other) before the next request.

        Raises:
            ServerError: It could not be done; says where and what to look at.
        """
        ...

    def sample(self, request: Request) -> Drawn:
        """Completions by the newest weights.

        Raises:
            ServerError: Nobody answered, after all retries.
        """
        ...

    def close(self) -> None:
        """Let go of workers and connections."""
        ...


def draw(language_model: LanguageModel, request: Request) -> list[Sampled]:
    """Completions by a model in this process."""
    return generate_tokens(
        language_model,
        request.prompts,
        request.sampling,
        seed=request.seed,
        step=request.step,
        rows=request.rows,
    )
