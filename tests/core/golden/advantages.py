import pytest
import torch

from .numbers import INF, NAN, bools, close, floats


def check_token_rewards(advantages):
    penalties = floats([0.1, 0.2, 0.3, NAN], [INF, 0.5, 1e6, 0.25])
    rewards = advantages.token_rewards(floats(2, -3), penalties, bools("1110", "0101"))
    close(rewards, [-0.1, -0.2, 1.7, 0], [0, -0.5, 0, -3.25])


def check_rewards_to_go(advantages):
    rewards = floats([1, NAN, 3, 4, NAN])
    # from the end: 4; 3 + 4/2; 1 + 5/2
    close(advantages.rewards_to_go(rewards, bools("10110"), discount=0.5), [3.5, 0, 5, 4, 0])


def check_gae(advantages):
    # γ = 0.9, γλ = 0.45
    # row 1  t=2: δ = 2 - (-1)        =  3      Â = 3                        R = 2
    #        t=1: δ = 0 + 0.9(-1) - 1 = -1.9    Â = -1.9 + 0.45·3 = -0.55    R = 0.45
    #        t=0: δ = 1 + 0.9·1 - 0.5 =  1.4    Â = 1.4 - 0.45·0.55 = 1.1525 R = 1.6525
    # row 2  t=3: δ = 3 - 0.5         =  2.5    Â = 2.5                      R = 3
    #        t=1: δ = -1 + 0.45 - 2   = -2.55   Â = -2.55 + 0.45·2.5 = -1.425 R = 0.575
    rewards = floats([1, 0, 2, NAN], [1e6, -1, NAN, 3])
    values = floats([0.5, 1, -1, 1e6], [NAN, 2, 1e6, 0.5])
    mask = bools("1110", "0101")
    advantage, returns = advantages.gae(rewards, values, mask, discount=0.9, trace_decay=0.5)
    close(advantage, [1.1525, -0.55, 3, 0], [0, -1.425, 0, 2.5])
    close(returns, [1.6525, 0.45, 2, 0], [0, 0.575, 0, 3])
    # Row 2 was cut where the next state is worth 4: its δ at t=3 grows by 0.9·4 to 6.1, and Â at
    # t=1 becomes -2.55 + 0.45·6.1
    advantage, returns = advantages.gae(
        rewards, values, mask, discount=0.9, trace_decay=0.5, bootstrap=floats(0, 4)
    )
    close(advantage, [1.1525, -0.55, 3, 0], [0, 0.195, 0, 6.1])
    close(returns, [1.6525, 0.45, 2, 0], [0, 2.195, 0, 6.6])


def check_gae_without_trace_or_discount(advantages):
    # λ = 0: δ = 1 + 0.9·2 - 4 and 3 - 2; γ = 0: r - V, whatever λ; γ = λ = 1: sums less V
    rewards, values, mask = floats([1, 3]), floats([4, 2]), bools("11")
    close(advantages.gae(rewards, values, mask, discount=0.9, trace_decay=0.0)[0], [-1.2, 1])
    close(advantages.gae(rewards, values, mask, discount=0.0, trace_decay=0.5)[0], [-3, 1])
    close(advantages.gae(rewards, values, mask, discount=1.0, trace_decay=1.0)[0], [0, 1])


def check_gae_keeps_the_precision_of_rewards(advantages):
    # 1.01 in bfloat16 is 1.0078125
    values = torch.zeros(1, 1, dtype=torch.bfloat16)
    advantage, returns = advantages.gae(torch.tensor([[1.01]]), values, bools("1"))
    assert advantage.dtype == returns.dtype == torch.float32
    close(advantage, [1.01])


def check_gae_of_a_score_on_eos(advantages):
    # V = 0, γ = 1, λ = 0.95, completion t₀ t₁ EOS and one pad: 0.95², 0.95, 1
    mask = bools("1110")
    rewards = advantages.token_rewards(floats(1), floats([0, 0, 0, 0]), mask)
    advantage, _ = advantages.gae(rewards, floats([0, 0, 0, 0]), mask)
    close(advantage, [0.9025, 0.95, 1, 0])


# Two groups of three, 1, 2, 6 and 5, 1, 0.5
#   means 3 and 13/6, deviations -2, -1, 3 and 17/6, -7/6, -10/6, squares 14 and 438/36
#   std with K-1: √7 = 2.6457513 and √6.0833333 = 2.4664414; plus 10⁻⁴ 2.6458513, 2.4665414
#   of all six: mean 15.5/6 = 2.5833333, deviations -1.5833333, -0.5833333, 3.4166667, 2.4166667,
#   -1.5833333, -2.0833333, squares 27.2083333, variance 4.5347222, std 2.1294887
GROUPS = floats([1, 2, 6], [5, 1, 0.5])


def check_group_normalized(advantages):
    close(
        advantages.group_normalized(GROUPS),
        [-0.7559004, -0.3779502, 1.1338506],
        [1.1487069, -0.4729970, -0.6757100],
    )
    close(
        advantages.group_normalized(GROUPS, divide_by_std=False),
        [-2, -1, 3],
        [2.8333333, -1.1666667, -1.6666667],
    )


def check_leave_one_out(advantages):
    # 1 - (2+6)/2, 2 - (1+6)/2, 6 - (1+2)/2; 5 - 1.5/2, 1 - 5.5/2, 0.5 - 6/2
    close(advantages.leave_one_out(GROUPS), [-3, -1.5, 4.5], [4.25, -1.75, -2.5])


def check_batch_baseline(advantages):
    close(
        advantages.batch_baseline(GROUPS),
        [-0.7435274, -0.2739312, 1.6044540],
        [1.1348577, -0.7435274, -0.9783256],
    )
    close(
        advantages.batch_baseline(GROUPS, divide_by_std=False),
        [-1.5833333, -0.5833333, 3.4166667],
        [2.4166667, -1.5833333, -2.0833333],
    )
    close(advantages.batch_baseline(floats([1], [3])), [-1], [1])


def check_equal_scores_are_no_advantage(advantages):
    # 0.1 cannot be written in binary, and the mean of seven of them in float32 is not 0.1
    equal = torch.full((2, 7), 0.1)
    for function in (
        advantages.group_normalized,
        advantages.leave_one_out,
        advantages.batch_baseline,
    ):
        assert (function(equal) == 0).all()
    for function in (advantages.group_normalized, advantages.batch_baseline):
        assert (function(equal, divide_by_std=False) == 0).all()


def check_advantages_errors(advantages):
    for function in (advantages.leave_one_out, advantages.group_normalized):
        with pytest.raises(ValueError, match="nothing to compare with; sample 2 or more"):
            function(floats([1], [2]))

    rewards, mask = floats([1, 2], [3, 4]), bools("11", "00")
    with pytest.raises(ValueError, match="mask row 1 has no completion token"):
        advantages.token_rewards(floats(1, 1), rewards, mask)
    for bad in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match=r"discount=.* must be in \[0, 1\]"):
            advantages.gae(rewards, rewards, mask, discount=bad)
        with pytest.raises(ValueError, match=r"trace_decay=.* must be in \[0, 1\]"):
            advantages.gae(rewards, rewards, mask, trace_decay=bad)
