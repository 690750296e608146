"""A preference loss of your own: a hinge, which is content once a pair is far enough apart.

    python examples/changing_one_thing/preference_loss.py MODEL PAIRS.jsonl OUT

It gets the log-probs of the pairs under policy and reference, in nats, summed over tokens
(`pairs.chosen_tokens` of them), and returns the loss of each pair. Soft labels, weights, batches
and held-out figures are dealt with around it.
"""

import sys

from torch import Tensor

import tether


def hinge(pairs, beta: float) -> Tensor:
    """max(0, 1 − h), h = β (log-ratio of chosen − log-ratio of rejected).

    Source: Zhao et al. 2023 (SLiC-HF), https://arxiv.org/abs/2305.10425, with log-ratios to the
    reference in place of log-probs, as DPO has them.
    """
    chosen = pairs.chosen - pairs.reference_chosen
    rejected = pairs.rejected - pairs.reference_rejected
    return (1 - beta * (chosen - rejected)).clamp(min=0)


def main(model: str, data: str, out: str, **settings) -> None:
    """Tune MODEL by it, in place of DPO's own."""
    loss = f"{__file__}:hinge"
    config = tether.DPOConfig(model=model, data=data, out=out, loss=loss, **settings)
    print(tether.Result(tether.train_dpo(config)))


if __name__ == "__main__":
    main(*sys.argv[1:])
