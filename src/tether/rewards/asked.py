"""A judge as a reward: its answer to a question about each completion, as log-odds."""

from collections.abc import Callable
from pathlib import Path

from tether.config import RewardConfig
from tether.config_file import from_table, read_toml
from tether.data.formats import read_completions
from tether.models.language_model import load
from tether.records import Message, Text
from tether.rewards.endpoint import EndpointJudge, load_endpoint_judge
from tether.rewards.judge import Comparison, Wording, ask, ask_of_one
from tether.rewards.local_judge import LocalJudge, against, holds, log_odds
from tether.sections import ComputeConfig


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
    words = _words(config.wording)
    judge = _endpoint(config, words) if config.endpoint.base_url else _local(config, compute, words)
    if config.references:
        records = read_completions(config.references)
        first = {str(record.prompt): record.completions[0] for record in reversed(records)}
        return against(judge, config.question, first)
    if isinstance(judge, LocalJudge):
        return holds(judge, config.question)
    return lambda prompts, completions: [
        log_odds(p)
        for p in judge.probabilities(
            [
                _said(ask_of_one(*row, config.question, words))
                for row in zip(prompts, completions, strict=True)
            ],
            words.yes_no,
        )
    ]


def _words(constitution: str) -> Wording:
    if not constitution:
        return Wording()
    table = read_toml(Path(constitution)).get("wording", {})
    return from_table(Wording, table, f"{constitution}: wording.")


def _local(config: RewardConfig, compute: ComputeConfig, words: Wording) -> LocalJudge:
    return LocalJudge(load(config.path, compute), words)


def _endpoint(config: RewardConfig, words: Wording) -> EndpointJudge:
    def asks(comparison: Comparison) -> list[Message]:
        return _said(ask(comparison, words))

    folder = Path(config.endpoint.cache).parent
    return load_endpoint_judge(config.endpoint, folder, asks, letters=words.letters, show=False)


def _said(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]
