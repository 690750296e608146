"""A judge as a reward: its answer to a question about each completion, as log-odds."""

from collections.abc import Callable
from pathlib import Path

from tether.data.formats import read_completions
from tether.models.language_model import load
from tether.records import Message, Text
from tether.rewards.endpoint import EndpointJudge, load_endpoint_judge
from tether.rewards.judge import Comparison, Wording, ask, ask_of_one
from tether.rewards.local_judge import LocalJudge, against, holds, log_odds
from tether.sections import ComputeConfig, RewardConfig

WORDS = Wording()


def load_judge_reward(
    config: RewardConfig, compute: ComputeConfig
) -> Callable[[list[Text], list[str]], list[float]]:
    """The reward that a judge gives, in nats.

        r = log(p / (1 - p)),   p = P(yes), or P(better than the prompt's reference completion)

    The judge is a model in this process (`path`) or behind `endpoint`; `references` are
    completions, the first of each prompt; without them `question` is one of yes or no.

    Raises:
        ConfigError, DataError, ModelError: The endpoint, the references or the model cannot be
            used.
    """
    judge = (
        _endpoint(config) if config.endpoint.base_url else LocalJudge(load(config.path, compute))
    )
    if config.references:
        records = read_completions(config.references)
        first = {str(record.prompt): record.completions[0] for record in reversed(records)}
        return against(judge, config.question, first)
    if isinstance(judge, LocalJudge):
        return holds(judge, config.question)
    return lambda prompts, completions: [
        log_odds(p)
        for p in judge.probabilities(
            [_statement(*row, config.question) for row in zip(prompts, completions, strict=True)],
            WORDS.yes_no,
        )
    ]


def _endpoint(config: RewardConfig) -> EndpointJudge:
    cache = Path(config.endpoint.cache)
    return load_endpoint_judge(config.endpoint, cache.parent, _comparison, show=False)


def _comparison(comparison: Comparison) -> list[Message]:
    return [{"role": "user", "content": ask(comparison, WORDS)}]


def _statement(prompt: Text, completion: str, question: str) -> list[Message]:
    return [{"role": "user", "content": ask_of_one(prompt, completion, question, WORDS)}]
