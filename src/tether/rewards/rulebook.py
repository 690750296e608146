"""Rules by name: from a recipe's `rule` and `settings` to a function of texts."""

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterable

from tether.config import RewardConfig
from tether.config_file import convert
from tether.errors import ConfigError
from tether.records import Text
from tether.rewards.answers import answer
from tether.rewards.citations import citations
from tether.rewards.json_form import json_form
from tether.rewards.refusals import refusal
from tether.rewards.rules import banned, format, length, repetition, required

RULES: dict[str, Callable[..., list[float]]] = {
    "length": length,
    "repetition": repetition,
    "banned": banned,
    "required": required,
    "format": format,
    "json": json_form,
    "answer": answer,
    "citations": citations,
    "refusal": refusal,
}
"""Every rule; what it takes besides prompts and completions are its settings."""


def load_rule(config: RewardConfig) -> Callable[[list[Text], list[str]], list[float]]:
    """The rule of a reward with its settings, which have all been checked, and its files read.

    Raises:
        ConfigError: No such rule or setting (with the nearest name), or a setting cannot work.
        DataError: A file that it reads cannot be used.
    """
    bound = bind_rule(config)
    try:
        bound([], [])  # a rule refuses its settings before it looks at texts
    except ConfigError as error:
        raise ConfigError(f"the rule {config.rule!r}: {error}") from None
    return bound


def bind_rule(config: RewardConfig) -> Callable[[list[Text], list[str]], list[float]]:
    """The same without reading files: names and types of the settings are right.

    Raises:
        ConfigError: No such rule or setting, a setting is missing or of another type.
    """
    if config.rule not in RULES:
        raise ConfigError(
            f"reward.rule={config.rule!r} is not a rule; {_nearest(config.rule, RULES)}"
        )
    rule = RULES[config.rule]
    hints = typing.get_type_hints(rule)
    known = {
        name: parameter
        for name, parameter in inspect.signature(rule).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name, value in config.settings.items():
        if name not in known:
            raise ConfigError(
                f"reward.settings.{name}={value!r} is not a setting of the rule {config.rule!r}; "
                f"{_nearest(name, known)}"
            )
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in config.settings:
            raise ConfigError(
                f"reward.settings.{name} is missing; the rule {config.rule!r} needs it"
            )
    settings = {
        name: convert(hints[name], value, f"reward.settings.{name}")
        for name, value in config.settings.items()
    }
    return functools.partial(rule, **settings)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
