"""A reward of your own: answers that get to the point and do not repeat the question.

    python examples/changing_one_thing/reward.py MODEL PROMPTS.jsonl OUT

A reward is a function of texts, so it needs no tokenizer and may call anything: a parser, a
compiler, a service. Higher is better, and only differences count.
"""

import sys

import tether

FEW = 20  # words


def to_the_point(prompts: list, completions: list[str]) -> list[float]:
    """1 for a short answer in words of its own; a word above FEW, or a repeated one, costs 0.05."""
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        asked, said = set(str(prompt).lower().split()), completion.lower().split()
        repeated = sum(word in asked for word in said)
        scores.append(1.0 - 0.05 * (max(len(said) - FEW, 0) + repeated))
    return scores


def main(model: str, prompts: str, out: str, **settings) -> None:
    """Tune MODEL by it with GRPO."""
    reward = tether.RewardConfig(path=f"{__file__}:to_the_point")
    config = tether.GRPOConfig(model=model, prompts=prompts, out=out, rewards=(reward,), **settings)
    print(tether.Result(tether.train_grpo(config)))


if __name__ == "__main__":
    main(*sys.argv[1:])
