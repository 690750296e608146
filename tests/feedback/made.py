"""Items and judgments made by simulated labelers, for the tests of what is computed from them."""

import numpy as np

from tether.feedback.judgments import Item, Judgment
from tether.feedback.simulated import Labeler, rank, utilities


def item(key, size, **fields):
    texts = [f"{key} {i}" for i in range(size)]
    return Item(key=key, prompt=key, completions=texts, sources=[""] * size, **fields)


def judge(key, labeler, ranks, **fields):
    return Judgment(item=key, labeler=labeler, ranks=ranks, **fields)


def crowd(noise):
    """Five good labelers, one who clicks at random, one who ranks in the reverse order."""
    return [
        *(Labeler(name=f"good {i}", noise=noise) for i in range(5)),
        Labeler(name="random", random=True),
        Labeler(name="reversed", gold_weight=-1.0, noise=noise),
    ]


def judged(seed, labelers, *, num_items=80, each=3, size=4, tie=0.0):
    """Items of known scores N(0, 1), and `each` labelers an item, drawn from the least busy."""
    generator = np.random.default_rng(seed)
    items, judgments, scores = {}, [], {}
    busy = np.zeros(len(labelers))
    for number in range(num_items):
        key = f"item {number}"
        items[key] = item(key, size)
        scores[key] = generator.normal(size=size)
        chosen = np.lexsort((generator.random(len(labelers)), busy))[:each]
        busy[chosen] += 1
        for labeler in (labelers[i] for i in sorted(chosen)):
            worth = utilities(labeler, items[key].completions, scores[key].tolist(), generator)
            shown = generator.permutation(size).tolist()
            judgments.append(judge(key, labeler.name, rank(worth, tie=tie), shown=shown))
    return items, judgments, scores
