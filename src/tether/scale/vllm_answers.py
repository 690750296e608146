"""What a vLLM server answers, checked: nothing that is not as asked gets into a rollout."""

import math
from typing import Any, NamedTuple, TypeGuard

from tether.engine.decode import Sampled
from tether.errors import ServerError
from tether.rewards.calls import SHOWN, MayPass

MEND = "see that it is vLLM 0.32 or newer, started as docs/rollout-servers.md says"


class Facts(NamedTuple):
    """What a server says of itself: the model's name, and its longest row (tokens)."""

    model: str
    longest: int


class Asked(NamedTuple):
    """What completions were asked for: `most` tokens at most, ended early by `stops` alone."""

    prompts: list[list[int]]
    most: int
    stops: frozenset[int]
    vocab_size: int


def read_facts(url: str, answer: Any) -> Facts:
    """The first model of /v1/models.

    Raises:
        ServerError: It names none.
    """
    try:
        first = answer["data"][0]
        name, longest = first["id"], first["max_model_len"]
    except (TypeError, KeyError, IndexError):
        name, longest = None, None
    if not isinstance(name, str) or not isinstance(longest, int):
        raise wrong(url, "/v1/models", answer, "must name a model and its max_model_len")
    return Facts(name, longest)


def read_version(url: str, answer: Any) -> str:
    """The name of its weights, of /weight_info.

    Raises:
        ServerError: There is none.
    """
    version = answer.get("weight_version") if isinstance(answer, dict) else None
    if not isinstance(version, str):
        raise wrong(url, "weight_version", version, "must be a text")
    return version


def read_completions(url: str, answer: Any, asked: Asked) -> list[Sampled]:
    """The completions of /v1/completions, in the order of the prompts.

    Raises:
        MayPass: A completion was broken off.
        ServerError: Names the field, its value and the rule.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    rule = f"must be a list of {len(asked.prompts)}, one a prompt"
    if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
        raise wrong(url, "choices", choices, rule)
    if len(choices) != len(asked.prompts):
        raise wrong(
            url, "len(choices)", len(choices), f"must be {len(asked.prompts)}, one a prompt"
        )
    by_index = {choice.get("index"): choice for choice in choices}
    if by_index.keys() != set(range(len(choices))):
        given = [choice.get("index") for choice in choices]
        raise wrong(url, "choices[].index", given, f"must be 0 to {len(choices) - 1}")
    return [_completion(url, by_index[i], i, asked) for i in range(len(choices))]


def _completion(url: str, choice: dict[str, Any], number: int, asked: Asked) -> Sampled:
    """One of them."""

    def refused(field: str, value: object, rule: str) -> ServerError:
        return wrong(url, f"{field} of choices[{number}]", value, rule)

    reason, ids = choice.get("finish_reason"), choice.get("token_ids")
    given, prompt = choice.get("prompt_token_ids"), asked.prompts[number]
    if reason not in ("stop", "length"):
        raise MayPass(f"a completion that was broken off: finish_reason={reason!r}")
    if given != prompt:
        raise refused("prompt_token_ids", given, f"must be {_shown(prompt)}")
    if not _whole_numbers(ids) or not all(0 <= token < asked.vocab_size for token in ids):
        raise refused("token_ids", ids, f"must be token ids below {asked.vocab_size}")
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
    if not _finite_numbers(logprobs):
        raise refused("token_logprobs", logprobs, "must be finite numbers")
    if len(logprobs) != len(ids):
        rule = f"must be {len(ids)}, one a token"
        raise refused("len(token_logprobs)", len(logprobs), rule)
    finished = ids[-1] in asked.stops
    if finished != (reason == "stop") or any(token in asked.stops for token in ids[:-1]):
        rule = f"must be 'stop' where token_ids={ids} end in one of {sorted(asked.stops)}, only"
        raise refused("finish_reason", reason, rule)
    if len(ids) > asked.most or (not finished and len(ids) < asked.most):
        raise refused("len(token_ids)", len(ids), f"must be {asked.most} where it was cut")
    return Sampled(ids, [float(value) for value in logprobs], finished)


def _whole_numbers(values: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of whole numbers, at least one."""
    return isinstance(values, list) and bool(values) and all(type(v) is int for v in values)


def _finite_numbers(values: Any) -> TypeGuard[list[float]]:
    """Whether it is a list of finite numbers."""
    return isinstance(values, list) and all(
        type(v) in (int, float) and math.isfinite(v) for v in values
    )


def wrong(url: str, field: str, value: object, rule: str) -> ServerError:
    """One line of an answer that is not as asked."""
    return ServerError(f"{url} answered {field} = {_shown(value)}, which {rule}; {MEND}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
