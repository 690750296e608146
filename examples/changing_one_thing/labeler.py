"""A labeler of your own among the simulated ones: it likes answers that are polite.

    python examples/changing_one_thing/labeler.py COMPLETIONS.jsonl file.py:function OUT

What it likes is a function of texts, as a reward is; how carefully it looks is `noise`, and
`length_weight` lets it love length. Others judge by the score that you call the true one.
"""

import sys

import tether

POLITE = {"please", "thanks", "thank", "sorry", "welcome", "kindly"}


def politeness(prompts: list, completions: list[str]) -> list[float]:
    """Polite words of each completion, at most three of them."""
    return [
        float(min(sum(word.strip(".,!?") in POLITE for word in text.lower().split()), 3))
        for text in completions
    ]


LABELERS = (
    tether.Labeler(name="polite", scorer=f"{__file__}:politeness", noise=0.3),
    tether.Labeler(name="careful", noise=0.15),
    tether.Labeler(name="hasty", noise=0.5),
)


def main(data: str, scorer: str, out: str, labelers: tuple = LABELERS) -> None:
    """Have COMPLETIONS ranked; OUT/rankings.jsonl is what they agree on."""
    config = tether.SimulateConfig(data=data, scorer=scorer, out=out, labelers=labelers)
    print(tether.Result(tether.simulate(config)))


if __name__ == "__main__":
    main(*sys.argv[1:])
