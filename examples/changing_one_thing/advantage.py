"""An advantage function of your own: only who beats the median of the prompt is praised.

    python examples/changing_one_thing/advantage.py MODEL PROMPTS.jsonl REWARD OUT

It gets the rewards of each prompt's completions, the KL penalty already subtracted, and returns
as many advantages; so it can replace those of GRPO, RLOO and REINFORCE++. (For PPO it gets rewards,
values and mask of every token, and returns advantages and returns, like `tether.gae`.)
"""

import sys

from torch import Tensor

import tether


def above_the_median(rewards: Tensor) -> Tensor:
    """Rewards (N, K) less the median of their row, in mean absolute deviations of the batch.

    A median is not moved by one completion that broke the reward, as the mean of GRPO is.
    """
    distances = rewards - rewards.quantile(0.5, dim=1, keepdim=True)
    return distances / (distances.abs().mean() + 1e-4)


def main(model: str, prompts: str, reward: str, out: str, **settings) -> None:
    """Tune MODEL by it, in place of GRPO's own."""
    loss = tether.PolicyLossConfig(advantage=f"{__file__}:above_the_median")
    config = tether.GRPOConfig(
        **{"model": model, "prompts": prompts, "out": out, "policy_loss": loss, **settings},
        rewards=(tether.reward_named(reward),),
    )
    print(tether.Result(tether.train_grpo(config)))


if __name__ == "__main__":
    main(*sys.argv[1:])
