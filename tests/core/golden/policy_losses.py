import pytest
import torch

from .numbers import INF, LOGITS, NAN, bools, close, floats

# The policy loss of six tokens at ε = 0.2
#   ρ     Â    ρÂ    clip(ρ)Â   loss          ρ - 1 - ln ρ
#   0.5    2   1.0    1.6      -1.0            0.1931472
#   1.1   -3  -3.3   -3.3       3.3            0.0046898
#   1.5    1   1.5    1.2      -1.2 clipped    0.0945349
#   1.5   -1  -1.5   -1.2       1.5            0.0945349
#   0.5   -4  -2.0   -3.2       3.2 clipped    0.1931472
#   2      3   6.0    3.6      -3.6 clipped    0.3068528
#   sums: ρ 7.1, loss 2.2, clipped 3, k3 0.8869068

LOG_RATIO = floats([0.5, 1.1, 1.5, 1.5], [9, 0.5, 2, 9]).log()
OLD_LOGPROBS = floats([-1, -2, -0.5, -3], [NAN, -0.25, -1.5, INF])
ADVANTAGES = floats([2, -3, 1, -1], [1e6, -4, 3, NAN])
TOKENS = bools("1111", "0110")


def check_clipped_policy_loss(policy_losses):
    logprobs = (OLD_LOGPROBS + LOG_RATIO).requires_grad_()
    result = policy_losses.clipped_policy_loss(logprobs, OLD_LOGPROBS, ADVANTAGES, TOKENS)
    close(result.loss, 0.3666667)
    close(result.clip_fraction, 0.5)
    close(result.approx_kl, 0.1478178)
    close(result.ratio_mean, 1.1833333)
    close(result.ratio_max, 2.0)
    result.loss.backward()  # -ρÂ/6 where not clipped
    close(logprobs.grad, [-1 / 6, 0.55, 0, 0.25], [0, 0, 0, 0])


def check_policy_loss_of_a_device_batch(policy_losses):
    # Half of an optimizer batch of 12 tokens; ε = 0.6 clips only the last, to 1.6·3:
    # -1 + 3.3 - 1.5 + 1.5 + 2 - 4.8 = -0.5
    result = policy_losses.clipped_policy_loss(
        OLD_LOGPROBS + LOG_RATIO, OLD_LOGPROBS, ADVANTAGES, TOKENS, clip=0.6, num_tokens=12
    )
    close(result.loss, -0.0416667)
    close(result.clip_fraction, 0.0833333)
    close(result.approx_kl, 0.0739089)
    close(result.ratio_mean, 0.5916667)
    close(result.ratio_max, 2.0)


def check_largest_ratio_is_of_a_token(policy_losses):
    old = floats([-1, -2])
    result = policy_losses.clipped_policy_loss(old + LOG_RATIO[0, :1], old, old, bools("10"))
    close(result.ratio_max, 0.5)


def check_policy_loss_with_a_higher_upper_clip(policy_losses):
    # ε⁺ = 0.45: clip(ρ)Â of the third, fourth and sixth token is 1.45, -1.45 and 4.35
    # -1 + 3.3 - 1.45 + 1.5 + 3.2 - 4.35 = 1.2; clipped: the third, fifth and sixth
    logprobs = (OLD_LOGPROBS + LOG_RATIO).requires_grad_()
    result = policy_losses.clipped_policy_loss(
        logprobs, OLD_LOGPROBS, ADVANTAGES, TOKENS, clip_high=0.45
    )
    close(result.loss, 0.2)
    close(result.clip_fraction, 0.5)
    # ε⁺ = 0.05: the second costs 3.3 still; third -1.05, sixth -3.15: 2.8
    result = policy_losses.clipped_policy_loss(
        logprobs, OLD_LOGPROBS, ADVANTAGES, TOKENS, clip_high=0.05
    )
    close(result.loss, 0.4666667)


def check_policy_loss_with_a_dual_clip(policy_losses):
    # c = 1.25: the fourth token, ρ = 1.5 and Â = -1, costs 1.25 instead of 1.5, the second
    # 3.3 < 3.75 and the fifth 3.2 < 5: sum 2.2 - 0.25
    logprobs = (OLD_LOGPROBS + LOG_RATIO).requires_grad_()
    result = policy_losses.clipped_policy_loss(
        logprobs, OLD_LOGPROBS, ADVANTAGES, TOKENS, dual_clip=1.25
    )
    close(result.loss, 0.325)
    close(result.clip_fraction, 0.6666667)
    close(result.approx_kl, 0.1478178)
    close(result.ratio_mean, 1.1833333)
    result.loss.backward()
    close(logprobs.grad, [-1 / 6, 0.55, 0, 0], [0, 0, 0, 0])
    # A clip below it counts once: ρ = 0.5 costs 0.8·4 by ε, and no more than 1.25·4
    low = policy_losses.clipped_policy_loss(
        *(x[1:, 1:2] for x in (logprobs, OLD_LOGPROBS, ADVANTAGES, TOKENS)), dual_clip=1.25
    )
    close(low.loss, 3.2)
    close(low.clip_fraction, 1.0)


def check_sequence_level_policy_loss(policy_losses):
    # Row 1: ρ = (0.5·1.1·1.5·1.5)^(1/4) = 1.2375^(1/4) = 1.0547179; row 2: (0.5·2)^(1/2) = 1
    # ε = 0.02, so 1.02 where Â > 0 in row 1
    #   -2.04, 3.1641536, -1.02, 1.0547179, 4, -3                                    sum 2.1588715
    logprobs = (OLD_LOGPROBS + LOG_RATIO).requires_grad_()
    settings = {"clip": 0.02, "sequence_level": True}
    result = policy_losses.clipped_policy_loss(
        logprobs, OLD_LOGPROBS, ADVANTAGES, TOKENS, **settings
    )
    close(result.loss, 0.3598119)
    close(result.clip_fraction, 0.3333333)
    close(result.approx_kl, 0.1478178)  # of tokens, as ever
    close(result.ratio_mean, 1.0364786)  # (4·1.0547179 + 2) / 6
    close(result.ratio_max, 1.0547179)
    # Each token of row 1: 1.0547179·(3+1)/4/6; of row 2: (4-3)/2/6
    result.loss.backward()
    close(logprobs.grad, [0.1757863] * 4, [0, 0.0833333, 0.0833333, 0])
    # Half of an optimizer batch, and a row without tokens
    mask = TOKENS & bools("0000", "1111")
    result = policy_losses.clipped_policy_loss(
        logprobs, OLD_LOGPROBS, ADVANTAGES, mask, num_tokens=12, **settings
    )
    close(result.loss, 0.0833333)
    close(result.ratio_mean, 0.1666667)
    logprobs.grad = None
    result.loss.backward()
    close(logprobs.grad, [0, 0, 0, 0], [0, 0.0416667, 0.0416667, 0])


def check_policy_loss_far_from_the_old_policy(policy_losses):
    # ln ρ = 1000 and -1000 count as 20 and -20; e²⁰ = 485165195.41. A token with Â < 0 that has
    # become likely is pushed down with that strength, not dropped.
    logprobs = floats([1000, -1000]).requires_grad_()
    result = policy_losses.clipped_policy_loss(
        logprobs, floats([0, 0]), floats([-1, 1]), bools("11")
    )
    close(result.loss, 242582597.70)
    close(result.ratio_max, 485165195.41)
    result.loss.backward()
    close(logprobs.grad, [242582597.70, -1.0305768e-9])
    assert logprobs.grad[0, 1] < 0


# The value loss of four tokens
#   V   V_old    R    (V-R)²   ε = 0.2: V̂   (V̂-R)²
#   1    0.5     2     1           0.7      1.69   clipped
#   2    2.1     1     1           2        1
#   0    1      -0.6   0.36        0.8      1.96   clipped
#   3    2       2.5   0.25        2.2      0.09
#   sum               2.61     sum of the larger 4.90

VALUES = floats([1, 2, NAN], [0, 3, 1e6])
OLD_VALUES = floats([0.5, 2.1, 0], [1, 2, NAN])
RETURNS = floats([2, 1, 1e6], [-0.6, 2.5, NAN])
VALUED = bools("110", "110")


def check_value_loss(policy_losses):
    values = VALUES.clone().requires_grad_()
    result = policy_losses.value_loss(values, OLD_VALUES, RETURNS, VALUED)
    close(result.loss, 0.32625)  # 2.61 / 8
    close(result.clip_fraction, 0.0)
    result.loss.backward()  # (V - R) / 4
    close(values.grad, [-0.25, 0.25, 0], [0.15, 0.125, 0])


def check_clipped_value_loss(policy_losses):
    values = VALUES.clone().requires_grad_()
    result = policy_losses.value_loss(values, OLD_VALUES, RETURNS, VALUED, clip=0.2)
    close(result.loss, 0.6125)  # 4.90 / 8
    close(result.clip_fraction, 0.5)
    result.loss.backward()
    close(values.grad, [0, 0.25, 0], [0, 0.125, 0])


def check_value_loss_of_a_device_batch(policy_losses):
    result = policy_losses.value_loss(VALUES, OLD_VALUES, RETURNS, VALUED, clip=0.2, num_tokens=10)
    close(result.loss, 0.245)
    close(result.clip_fraction, 0.2)


def check_explained_variance(policy_losses):
    # R = 1, 2, 6: variance 14/3; R - V = 1, 0, 2: variance 2/3; 1 - 1/7
    returns, values = floats([1, NAN, 2], [INF, 6, 0]), floats([0, 1e6, 2], [NAN, 4, 0])
    mask = bools("101", "010")
    close(policy_losses.explained_variance(values, returns, mask), 0.8571429)
    result = policy_losses.explained_variance(values.requires_grad_() / 10, returns / 10, mask)
    close(result, 0.8571429)  # in any unit
    assert not result.requires_grad
    constant = torch.full_like(values, 0.1)
    close(policy_losses.explained_variance(values, constant, mask), 0.0)


def check_entropy(policy_losses):
    result = policy_losses.entropy(LOGITS.bfloat16())
    assert result.dtype == torch.float32
    close(policy_losses.entropy(LOGITS), 0.9002561, 0.9502705)  # as in check_from_hidden


def check_policy_losses_errors(policy_losses):
    x, mask = floats([1, 2]), bools("11")
    for bad in (0.0, -0.2, NAN):
        with pytest.raises(ValueError, match=r"clip=.* must be above 0"):
            policy_losses.clipped_policy_loss(x, x, x, mask, clip=bad)
        with pytest.raises(ValueError, match=r"clip=.* must be above 0"):
            policy_losses.value_loss(x, x, x, mask, clip=bad)
        with pytest.raises(ValueError, match=r"clip_high=.* must be above 0"):
            policy_losses.clipped_policy_loss(x, x, x, mask, clip_high=bad)
    for bad in (0.5, 1.0, NAN):
        with pytest.raises(ValueError, match=f"dual_clip={bad} must be above 1"):
            policy_losses.clipped_policy_loss(x, x, x, mask, dual_clip=bad)
    with pytest.raises(ValueError, match="selects no token"):
        policy_losses.clipped_policy_loss(x, x, x, bools("00"))
    with pytest.raises(ValueError, match="selects no token"):
        policy_losses.value_loss(x, x, x, bools("00"))
