"""How strong each model is by what people said of its completions: Davidson's model over models.

    P(a beats b) = eˢᵃ / D,   P(tie) = ν e^((sₐ + s_b)/2) / D,   D = eˢᵃ + eˢᵇ + ν e^((sₐ + s_b)/2)

Without ties that is Bradley and Terry's model. Every pair of completions of two models, in pairs
and in rankings, is a game between them; two fails are none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from rich.table import Table
from rich.text import Text as Cell

from tether.errors import DataError
from tether.feedback.davidson import Floats, fit, posterior
from tether.feedback.judgments import Item, Judgment, item_key
from tether.feedback.store import Store
from tether.feedback.strengths import rank_discount, votes
from tether.feedback.tally import one_voice, pairs_of, tally
from tether.progress import results

RIDGE = 0.25  # precision of the prior of strengths: two in three lie within 2 of the mean
RESAMPLES = 1000
Z95 = 1.96


@dataclass(frozen=True, kw_only=True, slots=True)
class Rating:
    """One model. `strength` is in log-odds, of mean 0 over the models, with a 95 % interval.

    `wins`, `ties` and `losses` are of pairs of completions.
    """

    model: str
    strength: float
    low: float
    high: float
    wins: float
    ties: float
    losses: float


class Ratings(NamedTuple):
    """The models, best first."""

    models: list[Rating]
    games: float
    """Pairs of completions of two models that were compared"""
    ties: float
    """Share of the games that were ties"""


def ratings(items: Mapping[str, Item], judgments: Sequence[Judgment], *, seed: int = 0) -> Ratings:
    """The strength of every source of the items, with intervals.

    A completion that several models wrote ("a, b" in its sources) counts for each in part. The
    votes on a prompt hang together, so an interval comes from drawing the prompts anew, each with
    all that was said about it. Few votes of one mind would leave nothing to draw from: where the
    posterior of the strengths is wider, its interval is taken.

    Raises:
        DataError: No two completions of two known models were compared.
    """
    found = _games(items, one_voice(judgments))
    if not found:
        raise DataError("no two completions of two known models have been compared yet")
    names = sorted({name for game in found for name in (game.first, game.second)})
    counts = _counts(found, names)  # (prompts, P, 3)
    whole = counts.sum(axis=0)[None]
    [top] = fit([whole], ridge=RIDGE)
    best = posterior(whole, top, ridge=RIDGE)
    draws = np.random.default_rng(seed).multinomial(
        len(counts), np.full(len(counts), 1 / len(counts)), size=RESAMPLES
    )
    drawn = np.einsum("rn,npo->rpo", draws, counts)
    [anew] = fit([drawn], ridge=RIDGE, nu=top.nu)
    low, high = np.quantile(anew.scores, (0.025, 0.975), axis=0)
    spread = Z95 * np.sqrt(np.diagonal(best.covariance[0]))
    center = top.scores[0]
    low, high = np.minimum(low, center - spread), np.maximum(high, center + spread)
    rows = [
        Rating(
            model=name,
            strength=float(center[i]),
            low=float(low[i]),
            high=float(high[i]),
            **_record(whole[0], i, len(names)),
        )
        for i, name in enumerate(names)
    ]
    rows.sort(key=lambda one: (-one.strength, one.model))
    games = float(whole.sum())
    return Ratings(rows, games, float(whole[..., 1].sum()) / games)


class _Game(NamedTuple):
    """What was said of two models on one prompt: the first won, a tie, the second won."""

    prompt: str
    first: str
    second: str
    outcome: Float[np.ndarray, " 3"]


def _games(items: Mapping[str, Item], judgments: Sequence[Judgment]) -> list[_Game]:
    games: list[_Game] = []
    for block in tally(items, judgments).blocks:
        if block.thumbs or not len(block.judgment):
            continue
        cast = block.of_items(votes(block, rank_discount(block)))  # (n, P, 3)
        for key, said in zip(block.keys, cast, strict=True):
            games += _of_item(items[key], said)
    return games


def _of_item(item: Item, said: Float[np.ndarray, "P 3"]) -> list[_Game]:
    prompt = item_key(item.prompt, [])
    written = [[name for name in source.split(", ") if name] for source in item.sources]
    games: list[_Game] = []
    for (i, j), outcome in zip(combinations(range(len(written)), 2), said, strict=True):
        met = [(a, b) for a in written[i] for b in written[j] if a != b]
        if met and outcome.any():
            games += [_Game(prompt, a, b, outcome / len(met)) for a, b in met]
    return games


def _counts(games: Sequence[_Game], names: Sequence[str]) -> Float[np.ndarray, "n P 3"]:
    """The outcomes of each prompt, for every pair of models (0, 1), (0, 2), …, (1, 2), …"""
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(g.prompt for g in games))}
    place = {name: i for i, name in enumerate(names)}
    number = {pair: i for i, pair in enumerate(combinations(range(len(names)), 2))}
    counts = np.zeros((len(prompts), len(number), 3))
    for game in games:
        a, b = place[game.first], place[game.second]
        outcome = game.outcome if a < b else game.outcome[::-1]
        counts[prompts[game.prompt], number[min(a, b), max(a, b)]] += outcome
    return counts


def _record(counts: Floats, model: int, size: int) -> dict[str, float]:
    first, second = pairs_of(size)
    ahead, behind = counts[first == model].sum(axis=0), counts[second == model].sum(axis=0)
    won, tied, lost = (ahead + behind[::-1]).tolist()
    return {"wins": won, "ties": tied, "losses": lost}


def print_ratings(path: str) -> None:
    """Print how strong the models of a project are."""
    store = Store(path)
    found = ratings(store.items(), store.judgments())
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for title in ("strength", "95 %", "won", "tied", "lost"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in found.models:
        said = (f"{number:g}" for number in map(_short, (one.wins, one.ties, one.losses)))
        interval = f"{one.low:+.2f} … {one.high:+.2f}"
        table.add_row(Cell(one.model), f"{one.strength:+.2f}", interval, *said)
    results.print(table)
    results.print(
        f"{_short(found.games):g} comparisons of two models; ties {found.ties:.0%}. Strengths are "
        "log-odds of winning, 0 the mean of the models."
    )


def _short(number: float) -> float:
    return round(number, 1)
