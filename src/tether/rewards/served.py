"""A reward that is served over HTTP.

    POST URL   {"prompts": [...], "completions": [...]}   →   {"scores": [...]}

Prompts are strings or lists of chat messages, completions are strings; one score comes back for
each, in the same order. What the server loads and computes with is its own affair.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from tether.errors import ServerError
from tether.records import Text
from tether.rewards.calls import Server, Wait, finish, read_key, short
from tether.servers import ServedConfig
from tether.validation import web_address


def served_reward(
    url: str, config: ServedConfig, wait: Wait = asyncio.sleep
) -> Callable[[list[Text], list[str]], list[float]]:
    """A reward function that asks a server, in batches of `config.batch_size`.

    `rewards.load.checked` goes around it, as around any function, and refuses what is not finite.

    Args:
        url: http or https, without user, password or query.
        config: Batches, timeout, tries, and the variable with the bearer token.
        wait: What waits between tries.

    Raises:
        ConfigError: The url or the token cannot be used.
    """
    web_address("reward.path", url)
    server = Server(
        url=url,
        key=read_key(config.key_env),
        timeout=config.timeout,
        attempts=config.attempts,
        wait=wait,
    )

    async def ask(prompts: list[Text], completions: list[str]) -> list[float]:
        scores: list[float] = []
        async with server.client() as client:
            for start in range(0, len(completions), config.batch_size):
                part = slice(start, start + config.batch_size)
                body = {"prompts": prompts[part], "completions": completions[part]}
                answer = await server.persist(lambda body=body: server.post(client, body))
                scores += scores_in(answer, len(body["completions"]), url)
        return scores

    return lambda prompts, completions: finish(ask(prompts, completions))


def scores_in(answer: Any, count: int, url: str) -> list[float]:
    """The scores of an answer.

    Raises:
        ServerError: It is not {"scores": [...]} with one number for each completion.
    """
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list) or not all(map(is_number, scores)):
        raise ServerError(
            f'reward {url!r} answered {short(str(answer))}; it must answer {{"scores": [...]}} '
            "with numbers"
        )
    if len(scores) != count:
        raise ServerError(
            f"reward {url!r} returned {len(scores)} scores for {count} completions; it must "
            "return one for each"
        )
    return [float(score) for score in scores]


def is_number(value: Any) -> bool:
    """A JSON number that a float can hold; NaN and infinity are left to `checked`."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 1 << 1000)
