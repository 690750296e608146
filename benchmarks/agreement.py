"""Consensus and agreement on labels that people gave.

    python benchmarks/agreement.py DATA_DIR

DATA_DIR holds pandalm_human/pairs_3_annotators.jsonl.gz, hate_offensive_davidson/tweets.jsonl.gz
and vader_human_ratings/*.jsonl.gz.
"""

import sys
import time
from pathlib import Path

import numpy as np

from tether.feedback.agreement import category_counts, fleiss_kappa, krippendorff_alpha, ratings
from tether.feedback.consensus import kendall_tau
from tether.feedback.judgments import Item, Judgment
from tether.feedback.labelers import assess, weights
from tether.feedback.strengths import agreed
from tether.records import read_jsonl

PEOPLE = ("annotator1", "annotator2", "annotator3")
RANKS = {0: (1.0, 1.0), 1: (1.0, 2.0), 2: (2.0, 1.0)}  # a tie, the first, the second


def pandalm(path: Path) -> None:
    """Agreement on pairs of two models; rankings of five from the pairs of a prompt."""
    rows = [row for _, row in read_jsonl(path)]
    votes = ratings([[row[person] for person in PEOPLE] for row in rows])
    alpha = krippendorff_alpha(votes, "nominal")
    print(
        f"pandalm: {len(rows)} pairs, Fleiss' κ {fleiss_kappa(category_counts(votes)):.4f}, "
        f"Krippendorff's α {alpha.mean:.3f} [{alpha.low:.3f}, {alpha.high:.3f}]"
    )
    items, judgments = by_prompt(rows)
    start = time.process_time()
    quality = assess(items, judgments)
    for one in quality:  # no flags: models stood in a fixed order, so places tell of models
        eta = one.reliability
        print(
            f"  {one.labeler}: reliability {eta.mean:.2f} [{eta.low:.2f}, {eta.high:.2f}], weight "
            f"{one.weight:.2f}, ties {one.tie_rate:.0%}"
        )
    found = agreed(items, judgments, weights(quality))
    spent = time.process_time() - start
    same = decided = 0
    taus, unlike = [], 0
    for one in found.values():
        shares, scores = np.array(one.shares), np.array(one.scores)
        first, second = np.triu_indices(len(scores), 1)
        lead = shares[first, second] - 0.5
        clear = np.abs(lead) > 1e-9
        same += np.sum((np.sign(scores[first] - scores[second]) == np.sign(lead)) & clear)
        decided += np.sum(clear)
        if len(scores) == 5:
            wins = shares.sum(axis=1)
            taus.append(kendall_tau(scores.round(6), wins.round(6)))
            unlike += np.argmax(scores) not in np.flatnonzero(wins == wins.max())
    print(
        f"  {len(found)} prompts, {len(taus)} of them with 5 models, in {spent:.2f} CPU s: scores "
        f"order {same / decided:.1%} of {decided} pairs as the majority does; Kendall's τ-b with "
        f"the share of votes won {np.mean(taus):.3f}; another best in {unlike}"
    )


def by_prompt(rows: list[dict]) -> tuple[dict[str, Item], list[Judgment]]:
    """An item for each prompt, with a completion of each model; judgments saw two of them."""
    models: dict[str, dict[str, str]] = {}
    for row in rows:
        key = f"{row['instruction']}\n{row['input']}"
        for model, text in zip(
            row["cmp_key"].split("_"), (row["response1"], row["response2"]), strict=True
        ):
            models.setdefault(key, {})[model] = text
    items = {
        key: Item(key=key, prompt=key, completions=list(texts.values()), sources=list(texts))
        for key, texts in models.items()
    }
    judgments = []
    for row in rows:
        item = items[f"{row['instruction']}\n{row['input']}"]
        shown = [item.sources.index(model) for model in row["cmp_key"].split("_")]
        for person in PEOPLE:
            ranks: list[float | None] = [None] * len(item.completions)
            for place, rank in zip(shown, RANKS[row[person]], strict=True):
                ranks[place] = rank
            judgments.append(Judgment(item=item.key, labeler=person, ranks=ranks, shown=shown))
    return items, judgments


def hate(path: Path) -> None:
    """The majority of three and more, from how many gave each label."""
    rows = [row for _, row in read_jsonl(path)]
    names = ("hate", "offensive", "neither")
    counts = np.array([[row[f"n_{name}"] for name in names] for row in rows])
    labels = np.array([names.index(row["label"]) for row in rows])
    top = counts == counts.max(axis=1, keepdims=True)
    clear = top.sum(axis=1) == 1
    right = np.argmax(counts, axis=1) == labels
    units = [np.repeat(np.arange(3), row).tolist() for row in counts.tolist()]
    start = time.process_time()
    alpha = krippendorff_alpha(ratings(units), "nominal")
    print(
        f"hate_offensive: {len(rows)} tweets, {clear.sum()} with a majority, of which "
        f"{np.mean(right[clear]):.2%} are as labeled ({(~right[clear]).sum()} not); of the "
        f"{(~clear).sum()} others the label is among the most given in "
        f"{top[~clear, labels[~clear]].sum()}; Fleiss' κ {fleiss_kappa(counts):.3f}, α "
        f"{alpha.mean:.3f} [{alpha.low:.3f}, {alpha.high:.3f}], "
        f"{time.process_time() - start:.2f} CPU s"
    )


def vader(path: Path) -> None:
    """Ratings from -4 to 4 by people without names."""
    units = [row["ratings"] for _, row in read_jsonl(path)]
    fewest, median = min(map(len, units)), np.median([len(unit) for unit in units])
    texts = [f"vader {path.name.split('.')[0]}: {len(units)} items, {fewest}+ ratings ({median:g})"]
    for metric in ("nominal", "ordinal", "interval"):
        start = time.process_time()
        alpha = krippendorff_alpha(ratings(units), metric)
        texts.append(
            f"{metric} α {alpha.mean:.3f} [{alpha.low:.3f}, {alpha.high:.3f}] in "
            f"{time.process_time() - start:.2f} CPU s"
        )
    print(", ".join(texts))


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    pandalm(folder / "pandalm_human" / "pairs_3_annotators.jsonl.gz")
    hate(folder / "hate_offensive_davidson" / "tweets.jsonl.gz")
    for path in sorted((folder / "vader_human_ratings").glob("*.jsonl.gz")):
        vader(path)


if __name__ == "__main__":
    main()
