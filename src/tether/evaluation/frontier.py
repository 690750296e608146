"""Measured policies beside the best that a pool of the reference's samples shows reachable.

Where too few samples of the pool carry the tilt at a policy's KL, the policy's own samples are
added with the weights of a mixture; that needs log π - log π_ref of all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from tether.config import EvaluateConfig, PolicyConfig, PoolConfig
from tether.config_file import from_table, read_toml
from tether.core import tilt
from tether.data.batches import Row, device_batches
from tether.errors import ConfigError
from tether.evaluation.overoptimization import (
    ENOUGH,
    NEAR,
    Chosen,
    Frontier,
    Law,
    Measured,
    Tilted,
    Tilts,
    fit_law,
)
from tether.evaluation.summary import Sample
from tether.models.chat import encode_prompt
from tether.models.language_model import completion_logprobs, load
from tether.pools import Pooled, read_pool
from tether.progress import Steps
from tether.records import Prompt
from tether.rundir import fingerprint
from tether.statistics import cluster_bootstrap

ROWS_PER_BATCH = 64
CHOSEN = [1 << power for power in range(1, 31)]  # n of best-of-n, as far as the pool goes


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """The prompts that a pool and an evaluation share."""

    rows: list[Pooled]
    numbers: list[int]
    """Of each prompt in the evaluation"""
    proxy: str
    gold: str
    """ "" = no scorer but the proxy"""

    @property
    def scorers(self) -> list[str]:
        """The proxy, and gold where there is one."""
        return [name for name in (self.proxy, self.gold) if name]

    def scores(self, scorer: str) -> Float[np.ndarray, "P N"]:
        """One scorer's scores of all samples."""
        return np.stack([row.of(scorer) for row in self.rows])

    def start(self, scorer: str) -> Float[np.ndarray, " P"]:
        """The reference's mean score of each prompt."""
        return self.scores(scorer).mean(axis=1)


# --- the pool that fits an evaluation -------------------------------------------------------------


def pool_for(config: EvaluateConfig, prompts: Sequence[Prompt]) -> Pool | None:
    """The prompts of the evaluation's pool that it asks, too; None where it has no pool.

    Prompts that the evaluation reports apart are left out, as they are of its overall figures.

    Raises:
        ConfigError: The pool does not fit: another reference, scorer or sampling, or fewer than
            two prompts in common.
        DataError: The pool cannot be read.
    """
    if not config.pool:
        return None
    pool = read_pool(config.pool)
    scorers = [scorer.name for scorer in config.scorers]
    proxy = config.proxy or scorers[-1]
    gold = next((name for name in scorers if name != proxy), "")
    for name in filter(None, (proxy, gold)):
        if any(name not in row.scores for row in pool):
            known = ", ".join(pool[0].scores)
            raise _unfit(config, f"has no scores of {name!r} but of {known}; score it anew")
    _check_origin(config, (proxy, gold))
    asked = {
        str(record.prompt): number
        for number, record in enumerate(prompts)
        if record.category not in config.apart
    }
    rows = [row for row in pool if str(row.prompt) in asked]
    if len(rows) < 2:
        raise _unfit(
            config,
            f"shares {len(rows)} of its {len(pool)} prompts with {config.prompts!r}; at least 2 "
            "are needed, and 64 tell something",
        )
    if all(len(set(row.scores[proxy])) == 1 for row in rows):
        raise _unfit(
            config, f"has one {proxy!r} score for all samples of a prompt; nothing to gain"
        )
    numbers = [asked[str(row.prompt)] for row in rows]
    return Pool(rows=rows, numbers=numbers, proxy=proxy, gold=gold)


def _check_origin(config: EvaluateConfig, scorers: tuple[str, str]) -> None:
    """Refuse a pool of another reference, sampling or scorer, where its folder tells of them."""
    path = Path(config.pool).with_name("config.toml")
    if not path.is_file():
        return
    table = read_toml(path)
    inputs = table.pop("inputs", {})
    table.pop("process", None)
    if table.pop("kind", "") != "pool":
        return
    made = from_table(PoolConfig, {**table, "out": str(path.parent)}, "")
    if inputs.get(made.model) != fingerprint(config.reference):
        raise _unfit(config, f"was sampled from {made.model!r}, not reference={config.reference!r}")
    for name in ("temperature", "max_new_tokens", "stop_token_ids"):
        there, here = getattr(made.sampling, name), getattr(config.sampling, name)
        if there != here:
            raise _unfit(config, f"was sampled with {name}={there!r}, not sampling.{name}={here!r}")
    prints = {each.name: [inputs.get(path) for path in each.paths] for each in made.scorers}
    for each in config.scorers:
        if each.name in scorers and prints[each.name] != [fingerprint(x) for x in each.paths]:
            raise _unfit(config, f"was scored by another {each.name!r} than {each.title!r}")


def _unfit(config: EvaluateConfig, why: str) -> ConfigError:
    return ConfigError(f"pool={config.pool!r} {why}")


# --- the frontier ---------------------------------------------------------------------------------


def frontier(
    config: EvaluateConfig,
    pool: Pool,
    samples: Sequence[Sample],
    kept: Sequence[dict[str, Any]],
) -> Frontier:
    """The frontier of a pool, and every measured policy beside it.

    Args:
        config: Settings of the evaluation.
        pool: What `pool_for` found.
        samples: Of all policies, on all prompts of the evaluation.
        kept: Rows of kept.jsonl.
    """
    start = {name: pool.start(name) for name in pool.scorers}
    tilts = Tilts.of(pool.scores(pool.proxy), start[pool.proxy])
    chosen = [n for n in CHOSEN if n <= tilts.scores.shape[1]]
    best_of = {n: tilt.best_of_n(tilts.scores, n) for n in chosen}
    points = _kept_points(pool, kept)
    points += [_point(config, policy, pool, samples) for policy in config.policies]
    order = {policy.name: i for i, policy in enumerate(config.policies)}
    points.sort(key=lambda point: (order[point.policy], point.step is None, point.step))
    return Frontier(
        proxy=pool.proxy,
        gold=pool.gold,
        num_prompts=len(pool.rows),
        num_samples=tilts.scores.shape[1],
        cap=float(np.log(tilts.scores.shape[1])),
        start={name: float(each.mean()) for name, each in start.items()},
        tilted=[_tilted(pool, tilts, float(beta)) for beta in tilts.betas[::3]],
        chosen=[_chosen(pool, n, weights) for n, weights in best_of.items()],
        measured=[_measured(config, pool, tilts, point) for point in points],
        laws=_laws(config, pool, best_of, points),
    )


def _tilted(pool: Pool, tilts: Tilts, beta: float) -> Tilted:
    weights = tilt.weights(tilts.scores, beta)
    return Tilted(beta=beta, kl=float(tilt.kl(weights).mean()), **_under(pool, weights))


def _chosen(pool: Pool, n: int, weights: Float[np.ndarray, "P N"]) -> Chosen:
    kl, bound = float(tilt.kl(weights).mean()), tilt.best_of_n_bound(n)
    return Chosen(n=n, kl=kl, bound=bound, **_under(pool, weights))


def _under(pool: Pool, weights: Float[np.ndarray, "P N"]) -> dict[str, Any]:
    """Effective samples and mean scores under weights of the pool's samples."""
    scores = {name: pool.scores(name) for name in pool.scorers}
    return {
        "ess": float(tilt.effective_samples(weights).mean()),
        "scores": {n: float(tilt.expected(weights, each).mean()) for n, each in scores.items()},
    }


# --- measured policies ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """What was measured of one model on the pool's prompts."""

    policy: str
    step: int | None
    kl: Float[np.ndarray, " P"]
    gains: dict[str, Float[np.ndarray, " P"]]
    kl_by: Literal["samples", "ranks", "bound"] = "samples"
    model: str = ""
    """Where its own samples may join the pool; "" = they may not"""
    proxies: Float[np.ndarray, "P M"] | None = None
    """Proxy scores of its samples"""
    log_ratios: Float[np.ndarray, "P M"] | None = None
    """log π - log π_ref of the same samples"""


def _kept_points(pool: Pool, kept: Sequence[dict[str, Any]]) -> list[Point]:
    """A point for each model that a run kept."""
    rows = {(row["policy"], row["step"], row["prompt_index"]): row for row in kept}
    found: list[Point] = []
    for policy, step in dict.fromkeys((policy, step) for policy, step, _ in rows):
        own = [rows[policy, step, number] for number in pool.numbers]
        gains = {
            name: np.array([row["scores"][name] for row in own]) - pool.start(name)
            for name in pool.scorers
        }
        kl = np.array([row["kl"] for row in own])
        found.append(Point(policy=policy, step=step, kl=kl, gains=gains))
    return found


def _point(
    config: EvaluateConfig, policy: PolicyConfig, pool: Pool, samples: Sequence[Sample]
) -> Point:
    """The point of a policy itself."""
    own: dict[int, list[Sample]] = {number: [] for number in pool.numbers}
    for sample in samples:
        if sample.policy == policy.name and sample.prompt_index in own:
            own[sample.prompt_index].append(sample)
    scores = {name: _matrix(own, lambda each, n=name: each.scores[n]) for name in pool.scorers}
    gains = {name: each.mean(axis=1) - pool.start(name) for name, each in scores.items()}
    log_ratios = _matrix(own, lambda each: each.log_ratio)
    if policy.best_of > 1:
        kl, kl_by = _kl_of_best(config, policy, pool, log_ratios)
        return Point(policy=policy.name, step=None, kl=kl, gains=gains, kl_by=kl_by)
    return Point(
        policy=policy.name,
        step=None,
        kl=_matrix(own, lambda each: each.kl).mean(axis=1),
        gains=gains,
        model=policy.model,
        proxies=scores[pool.proxy],
        log_ratios=log_ratios,
    )


def _matrix(
    own: dict[int, list[Sample]], value: Callable[[Sample], float | None]
) -> Float[np.ndarray, "P M"]:
    return np.array([[value(each) for each in group] for group in own.values()], dtype=np.float64)


def _kl_of_best(
    config: EvaluateConfig,
    policy: PolicyConfig,
    pool: Pool,
    log_ratios: Float[np.ndarray, "P M"],
) -> tuple[Float[np.ndarray, " P"], Literal["ranks", "bound"]]:
    """KL of best-of-n by prompt: of the reference exactly, by ranks in the pool; else a bound.

    KL(best of n ‖ π_ref) ≤ log n - (n-1)/n + E[log π/π_ref] over the chosen completions
    """
    best_by = config.best_by or config.scorers[-1].name
    same = fingerprint(policy.model) == fingerprint(config.reference)
    if same and best_by in pool.rows[0].scores and policy.best_of <= len(pool.rows[0].completions):
        return tilt.kl(tilt.best_of_n(pool.scores(best_by), policy.best_of)), "ranks"
    bound = tilt.best_of_n_bound(policy.best_of)
    return np.maximum(bound + log_ratios.mean(axis=1), 0.0), "bound"


def _measured(config: EvaluateConfig, pool: Pool, tilts: Tilts, point: Point) -> Measured:
    """A point beside the best that the pool, or the pool and its own samples, show reachable."""
    gain, by = point.gains[pool.proxy], "pool"
    reached = tilts.reached(point.kl, gain, config.seed)
    if reached.best is None and point.model and point.kl.mean() >= NEAR:
        reached = _with_own(config, pool, tilts, point).reached(point.kl, gain, config.seed)
        by = "mixture"
    return Measured(
        policy=point.policy,
        step=point.step,
        kl=cluster_bootstrap(point.kl, seed=config.seed),
        kl_by=point.kl_by,
        gains={n: cluster_bootstrap(each, seed=config.seed) for n, each in point.gains.items()},
        best=reached.best,
        efficiency=reached.efficiency,
        ess=reached.ess,
        by=by if reached.best is not None else "",
    )


def _with_own(config: EvaluateConfig, pool: Pool, tilts: Tilts, point: Point) -> Tilts:
    """The pool's samples and the policy's own together, weighted as those of the mixture."""
    assert point.proxies is not None
    assert point.log_ratios is not None
    scores = np.concatenate([tilts.scores, point.proxies], axis=1)
    ratios = np.concatenate([_log_ratios(config, pool, point.model), point.log_ratios], axis=1)
    return Tilts.of(scores, tilts.start, tilt.mixture_base(ratios, tilts.scores.shape[1]))


@torch.no_grad()
def _log_ratios(config: EvaluateConfig, pool: Pool, path: str) -> Float[np.ndarray, "P N"]:
    """By how much the model at `path` prefers the pool's samples: log π - log π_ref, nats each."""
    model = load(path, config.compute)
    prompts = [encode_prompt(model.tokenizer, row.prompt) for row in pool.rows]
    rows = [
        Row(prompt + token_ids, len(prompt))
        for prompt, row in zip(prompts, pool.rows, strict=True)
        for token_ids in row.token_ids
    ]
    found = np.zeros(len(rows))
    with Steps("pool", len(rows)) as progress:
        for chunk, batch in device_batches(rows, ROWS_PER_BATCH):
            logprobs, _ = completion_logprobs(model, batch, temperature=config.sampling.temperature)
            counts = [rows[i].num_completion for i in chunk]
            found[chunk] = [float(each.sum()) for each in logprobs.split(counts)]
            progress.advance(len(chunk))
    return found.reshape(len(prompts), -1) - np.array([row.logprobs for row in pool.rows])


# --- laws -----------------------------------------------------------------------------------------


def _laws(
    config: EvaluateConfig,
    pool: Pool,
    best_of: dict[int, Float[np.ndarray, "P N"]],
    points: Sequence[Point],
) -> list[Law]:
    """The laws that gold follows: over the models of each run, and over n of best-of-n."""
    if not pool.gold:
        return []
    found: list[Law | None] = []
    for policy in dict.fromkeys(point.policy for point in points if point.step is not None):
        own = [point for point in points if point.policy == policy]
        kl = np.stack([point.kl for point in own])
        gold = np.stack([point.gains[pool.gold] for point in own])
        found.append(fit_law(policy, "rl", kl, gold, seed=config.seed))
    scores, start = pool.scores(pool.gold), pool.start(pool.gold)
    known = [w for w in best_of.values() if tilt.effective_samples(w).mean() >= ENOUGH]
    if known:
        kl = np.stack([tilt.kl(each) for each in known])
        gold = np.stack([tilt.expected(each, scores) - start for each in known])
        found.append(fit_law("best of n", "bon", kl, gold, seed=config.seed))
    return [law for law in found if law is not None]
