"""The alignment tax: what training took from what the model could do before.

Held-out texts: how well they are still predicted. And tasks of lm-evaluation-harness, where that
is installed (https://github.com/EleutherAI/lm-evaluation-harness), through its own Python API.
"""

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tether.data.batches import device_batches
from tether.errors import ConfigError
from tether.evaluation.blocks import Block, Measure, measure
from tether.models import adapters
from tether.models.chat import encode
from tether.models.language_model import LanguageModel, completion_logprobs
from tether.models.place import at_work
from tether.records import Demonstration, Text
from tether.statistics import Interval

ROWS_PER_BATCH = 64
TASK_BATCH = 16


# --- perplexity -----------------------------------------------------------------------------------


class Loss(NamedTuple):
    """How well one text is predicted; the end token counts as one of its tokens."""

    nats: float  # −log π(completion | prompt), summed
    tokens: int
    bytes: int  # of the completion in UTF-8


@torch.no_grad()
def text_losses(language_model: LanguageModel, texts: Sequence[Demonstration]) -> list[Loss | None]:
    """−log-prob of each completion after its prompt; None where it exceeds the positions."""
    rows = [encode(language_model.tokenizer, each.prompt, each.completion) for each in texts]
    fits = [i for i, row in enumerate(rows) if len(row.ids) <= language_model.max_positions]
    found: list[Loss | None] = [None] * len(rows)
    for chunk, batch in device_batches([rows[i] for i in fits], ROWS_PER_BATCH):
        chosen = [fits[i] for i in chunk]
        logprobs, _ = completion_logprobs(language_model, batch)
        parts = logprobs.cpu().split([rows[i].num_completion for i in chosen])
        for i, part in zip(chosen, parts, strict=True):
            size = len(plain_text(texts[i].completion).encode())
            found[i] = Loss(-float(part.double().sum()), len(part), size)
    return found


def plain_text(text: Text) -> str:
    """What a text says, without who says it."""
    return text if isinstance(text, str) else "\n".join(each["content"] for each in text)


def text_block(
    losses: Mapping[str, Sequence[Loss | None]], baseline: str, *, seed: int = 0
) -> Block:
    """Nats a token of held-out texts by policy, paired by text; lower predicts them better.

    Where policies count a text's tokens differently, nats a byte take their place, since tokens of
    different tokenizers cannot be compared.

    Raises:
        ConfigError: No text fits into the positions of all policies.
    """
    names = list(losses)
    rows = list(zip(*losses.values(), strict=True))
    kept = [row for row in rows if all(each is not None and each.bytes for each in row)]
    if not kept:
        raise ConfigError(
            f"blocks.texts: none of {len(rows)} texts fits into the positions of every policy; "
            "give shorter ones"
        )
    alike = all(len({each.tokens for each in row}) == 1 for row in kept)
    unit = "token" if alike else "byte"
    nats: dict[str, NDArray[np.float64]] = {
        name: np.array([row[i].nats / (row[i].tokens if alike else row[i].bytes) for row in kept])
        for i, name in enumerate(names)
    }
    name = f"nats a {unit}"
    measures = [
        measure(
            name,
            policy,
            nats[policy],
            None if policy == baseline else nats[baseline],
            better="low",
            seed=seed,
        )
        for policy in names
    ]
    left_out = len(rows) - len(kept)
    return Block(
        title="Held-out texts",
        meaning=f"−log-prob of texts that no stage saw, in nats a {unit}, the mean over texts, and "
        "as perplexity. A rise over the baseline is the price of what was trained since.",
        baseline=baseline,
        measures=measures + [perplexity(each, unit) for each in measures],
        note=f"{len(kept)} texts" + (f"; {left_out} too long, left out" if left_out else ""),
    )


def perplexity(nats: Measure, unit: str) -> Measure:
    """The same as perplexity, exp(nats), with its interval."""
    value = Interval(*(math.exp(end) for end in nats.value))
    return Measure(name=f"perplexity a {unit}", policy=nats.policy, value=value, better="low")


# --- tasks ----------------------------------------------------------------------------------------


def require_harness() -> None:
    """Refuse tasks where lm-evaluation-harness is not installed.

    Raises:
        ConfigError: It is not.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "blocks.tasks needs lm-evaluation-harness, which is not installed: "
            "`pip install lm-eval`, or leave the tasks out"
        )


def run_tasks(language_model: LanguageModel, tasks: Sequence[str]) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` found of a model that is loaded already.

    A task is a name that the harness knows, or a .yaml file of yours. A model with a chat template
    is asked in a chat.

    Raises:
        ConfigError: The harness is not installed, or knows no such task.
    """
    require_harness()
    harness = import_module("lm_eval")
    wrapped = import_module("lm_eval.models.huggingface").HFLM
    model, place = language_model.model, language_model.place
    with at_work(model, place), adapters.using(model, language_model.adapter), place.autocast():
        outside = wrapped(
            pretrained=model, tokenizer=language_model.tokenizer, batch_size=TASK_BATCH
        )
        try:
            return harness.simple_evaluate(
                model=outside,
                tasks=list(tasks),
                bootstrap_iters=0,
                apply_chat_template=language_model.tokenizer.chat_template is not None,
            )
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"blocks.tasks={list(tasks)!r}: lm-evaluation-harness refuses them ({error}); "
                "`lm-eval ls tasks` lists what it knows"
            ) from error


def task_block(found: Mapping[str, dict[str, Any]], baseline: str, *, seed: int = 0) -> Block:
    """Every metric of every task by policy, paired by the task's documents.

    Metrics that are no mean over documents stand without interval and difference.
    """
    measures = [
        _of_metric(found, policy, task, metric, baseline, seed)
        for task, metric in metrics(found[baseline])
        for policy in found
    ]
    return Block(
        title="Tasks",
        meaning="Tasks of lm-evaluation-harness, with intervals over their documents. A fall below "
        "the baseline is the price of what was trained since.",
        baseline=baseline,
        measures=measures,
    )


def metrics(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(task, "metric,filter") of every number among the results."""
    return [
        (task, name)
        for task, values in found["results"].items()
        for name, value in values.items()
        if "," in name and "_stderr," not in name and isinstance(value, int | float)
    ]


def _of_metric(
    found: Mapping[str, dict[str, Any]],
    policy: str,
    task: str,
    metric: str,
    baseline: str,
    seed: int,
) -> Measure:
    word = metric.removesuffix(",none")
    name = f"{task}: {word.replace(',', ', ')}"
    higher = found[policy].get("higher_is_better", {}).get(task, {}).get(metric.split(",")[0])
    better: Literal["high", "low", ""] = {True: "high", False: "low"}.get(higher, "")  # pyright: ignore[reportAssignmentType]
    value = float(found[policy]["results"][task][metric])
    ours, theirs = (by_document(found[name], task, metric) for name in (policy, baseline))
    if not ours or ours.keys() != theirs.keys() or not _is_mean(ours, value):
        interval = Interval(value, math.nan, math.nan)
        return Measure(name=name, policy=policy, value=interval, better=better)
    ids = list(ours)
    before = None if policy == baseline else np.array([theirs[i] for i in ids])
    return measure(name, policy, np.array([ours[i] for i in ids]), before, better=better, seed=seed)


def by_document(found: Mapping[str, Any], task: str, metric: str) -> dict[Any, float]:
    """The metric of each document by its id; empty where the harness kept no number for it."""
    name, _, filtered = metric.partition(",")
    return {
        row["doc_id"]: float(row[name])
        for row in found.get("samples", {}).get(task, [])
        if row.get("filter", "none") == filtered and isinstance(row.get(name), int | float)
    }


def _is_mean(values: Mapping[Any, float], value: float) -> bool:
    return math.isclose(float(np.mean(list(values.values()))), value, rel_tol=1e-6, abs_tol=1e-9)
