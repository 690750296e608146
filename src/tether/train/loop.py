"""What training loops share: optimizer, schedule, loops over examples, one optimizer step."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tether import parallel, stopping
from tether.config import FitConfig, OnlineConfig
from tether.data.batches import step_indices
from tether.errors import CheckError
from tether.models.checkpoint import load_checkpoint, save_checkpoint
from tether.models.language_model import active_dropout
from tether.progress import Steps
from tether.rundir import StageFolder
from tether.sections import OptimizerConfig


def fit(
    config: FitConfig,
    folder: StageFolder,
    model: nn.Module,
    num_examples: int,
    backward: Callable[[list[int]], dict[str, float]],
    evaluate: Callable[[], dict[str, float]],
    save: Callable[[Path], None],
) -> int:
    """Optimizer steps over examples, with schedule, metrics, checkpoints and resume.

    Args:
        config: The stage's settings.
        folder: The stage's folder; training goes on from its newest checkpoint.
        model: What is trained.
        num_examples: Examples to train on.
        backward: Accumulates the gradient of the examples with these indices; returns what to log.
        evaluate: Figures on held-out examples.
        save: Writes the model as it is now into a folder.

    Returns:
        The number of optimizer steps.
    """
    model.train()
    check_no_dropout(model)
    total = config.max_steps or math.ceil(config.epochs * num_examples / config.batch_size)
    peak = config.optimizer.learning_rate
    optimizer = make_optimizer([(model.parameters(), peak)], config.optimizer)
    state = load_checkpoint(folder.checkpoints, {"model": model}, optimizer)
    start = state["step"] if state else 0
    folder.begin(start, total)

    def checkpoint(step: int) -> None:
        save_checkpoint(folder.checkpoints, step, {"model": model}, optimizer, {})

    with stopping.after_phases(), Steps(folder.path.name, total, start) as progress:
        for step in range(start, total):
            factor = learning_rate_factor(step, total, config.optimizer)
            set_learning_rates(optimizer, factor)
            figures = backward(step_indices(num_examples, config.batch_size, config.seed, step))
            clip = config.optimizer.max_grad_norm
            (norm,) = optimizer_step(optimizer, [model.parameters()], clip)
            row = {"step": step + 1, **figures, "grad_norm": norm, "learning_rate": factor * peak}
            if (step + 1) % config.evaluate_every == 0 or step + 1 == total:
                row |= evaluate()
            folder.log(row)
            progress.advance(**{name: row[name] for name in ("loss", "accuracy") if name in row})
            if config.keep_every and (step + 1) % config.keep_every == 0 and step + 1 < total:
                folder.keep_model(step + 1, save)
            if step + 1 < total:
                folder.stop_if_asked(partial(checkpoint, step + 1), parallel.any_of)
            if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0:
                checkpoint(step + 1)
    model.eval()
    return total


def improve_in_minibatches(
    config: OnlineConfig,
    optimizer: torch.optim.Optimizer,
    sets: Iterable[Iterable[nn.Parameter]],
    num_examples: int,
    backward: Callable[[list[int], int], dict[str, Tensor]],
    step: int,
) -> dict[str, float]:
    """Epochs of minibatches of one rollout; returns the mean metrics of its minibatches.

    Args:
        config: `epochs`, `minibatches` and when an update ends early.
        optimizer: Steps once a minibatch.
        sets: Parameters, each set to be clipped to its own norm; the second is the value model's.
        num_examples: What a rollout has to learn from: completions, or prompts.
        backward: (examples of a minibatch, its number in this step) accumulates their gradient;
            returns what to log.
        step: The rollout batch, from 0.
    """
    history: list[dict[str, Tensor]] = []
    sets = [list(parameters) for parameters in sets]
    for epoch in range(config.epochs):
        for minibatch in minibatches(config, num_examples, step, epoch):
            row = backward(minibatch, len(history))
            norms = optimizer_step(optimizer, sets, config.optimizer.max_grad_norm)
            names = ("grad_norm", "value_grad_norm")
            row |= {name: torch.tensor(norm) for name, norm in zip(names, norms, strict=False)}
            history.append(row)
            if 0 < config.stop.update_kl < row.get("approx_kl", 0.0):
                return mean_of(history)
    return mean_of(history)


def minibatches(config: OnlineConfig, num_examples: int, step: int, epoch: int) -> list[list[int]]:
    """The examples of a rollout in an order of (seed, step, epoch), cut into minibatches."""
    order = np.random.default_rng([config.seed, step, epoch]).permutation(num_examples)
    return [part.tolist() for part in np.split(order, config.minibatches)]


def summed(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums of metrics over the device batches of all processes."""
    return {name: parallel.summed(metric) for name, metric in sums.items()}


def add_up(sums: dict[str, Tensor], metrics: dict[str, Tensor]) -> None:
    """Add a device batch's share of each metric to what there is."""
    for name, metric in metrics.items():
        metric = metric.detach().cpu()
        sums[name] = sums[name] + metric if name in sums else metric


def make_optimizer(
    modules: Iterable[tuple[Iterable[nn.Parameter], float]], config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW over groups of (parameters, peak learning rate); weight decay on matrices only.

    Shards and whole parameters are in groups of their own, since torch updates a group at once.
    """
    groups = []
    for parameters, rate in modules:
        trained = [p for p in parameters if p.requires_grad]
        for sharded in (False, True):
            alike = [p for p in trained if parallel.is_shard(p) == sharded]
            matrices = [p for p in alike if p.ndim >= 2]
            vectors = [p for p in alike if p.ndim < 2]
            for part, decay in ((matrices, config.weight_decay), (vectors, 0.0)):
                if part:
                    groups.append({"params": part, "lr": rate, "peak": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True)


def learning_rate_factor(step: int, total: int, config: OptimizerConfig) -> float:
    """Share of the peak learning rate at optimizer step `step` (0, 1, …) of `total`.

    Linear warm-up over `warmup_steps`, then the schedule down to `final_fraction`.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    left = 1 - (step - config.warmup_steps) / max(total - config.warmup_steps, 1)
    shape = left if config.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2
    return config.final_fraction + (1 - config.final_fraction) * shape


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def optimizer_step(
    optimizer: torch.optim.Optimizer, norms: Iterable[Iterable[nn.Parameter]], max_norm: float
) -> list[float]:
    """Clip each set of parameters to its own gradient norm, step, and clear the gradients.

    Of several processes each brings its part of the gradients, and all take the same step.

    Returns:
        The gradient norm of each set before clipping.

    Raises:
        CheckError: A gradient is NaN or infinite; the weights are still those of the last step.
    """
    limit = max_norm or math.inf
    found = []
    for parameters in map(list, norms):
        parallel.sum_gradients(parameters)
        found.append(parallel.clip(parameters, limit))
    if not all(math.isfinite(norm) for norm in found):
        raise CheckError(
            f"gradient norms {found} are not finite; lower optimizer.learning_rate "
            "or look for broken examples in the data"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return found


def check_no_dropout(*models: nn.Module) -> None:
    """Stop where dropout is on: log-probs would differ from one pass to the next."""
    for model in models:
        if names := active_dropout(model):
            raise CheckError(
                f"dropout is on in {names[0]} of {type(model).__name__}; "
                "set every dropout rate in its config.json to 0"
            )


def mean_of(rows: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean of each statistic over minibatches, as numbers."""
    names = rows[0].keys() if rows else []
    return {name: float(torch.stack([row[name].detach() for row in rows]).mean()) for name in names}
