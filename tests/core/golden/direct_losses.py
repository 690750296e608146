import pytest
import torch

from .numbers import INF, NAN, close, floats

# Three pairs at β = 0.5
#   log-ratios   chosen 1, -0.5, 0   rejected -2, 1, -0.5
#   r = β·these  0.5, -0.25, 0       -1, 0.5, -0.25
#   h = 1.5, -0.75, 0.25      -ln σ(h) = 0.2014133, 1.1368710, 0.5759394        sum 1.9142237
#   p = 0.9, 0.25, 0.5        -ln σ(-h) = -ln σ(h) + h, so q adds (1-q) h to each
#   ε = 0.1: q = p·0.9 + (1-p)·0.1 = 0.82, 0.3, 0.5

CHOSEN, REFERENCE_CHOSEN = floats(-3, -5, -2), floats(-4, -4.5, -2)
REJECTED, REFERENCE_REJECTED = floats(-6, -3, -7), floats(-4, -4, -6.5)
LOGPROBS = (CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)
PROBABILITY, WEIGHT = floats(0.9, 0.25, 0.5), floats(2, 0.5, 1)


def check_dpo(direct_losses):
    result = direct_losses.dpo(*LOGPROBS, beta=0.5)
    close(result.loss, 0.6380746)
    close(result.accuracy, 0.6666667)
    close(result.margin_mean, 0.3333333)
    close(result.chosen_mean, 0.0833333)
    close(result.rejected_mean, -0.25)
    # 0.4028266 + 0.5684355 + 0.5759394 = 1.5472015
    result = direct_losses.dpo(*LOGPROBS, beta=0.5, weight=WEIGHT)
    close(result.loss, 0.4420576)  # over 3.5
    close(result.chosen_mean, 0.25)  # (2·0.5 - 0.5·0.25) / 3.5
    close(direct_losses.dpo(*LOGPROBS, beta=0.5, weight=WEIGHT, num_pairs=16).loss, 0.0967001)


def check_dpo_with_uncertain_labels(direct_losses):
    loss = direct_losses.dpo
    # 1.9142237 + 0.15 - 0.5625 + 0.125
    close(loss(*LOGPROBS, beta=0.5, probability=PROBABILITY).loss, 0.5422412)
    # 1.9142237 + 0.1·(1.5 - 0.75 + 0.25)
    close(loss(*LOGPROBS, beta=0.5, label_smoothing=0.1).loss, 0.6714079)
    # 1.9142237 + 0.18·1.5 - 0.7·0.75 + 0.5·0.25; gradient β (σ(h) - q) / 3 with
    # σ(h) = 0.8175745, 0.3208213, 0.5621765
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    result = loss(
        chosen, rejected, *LOGPROBS[2:], beta=0.5, probability=PROBABILITY, label_smoothing=0.1
    )
    close(result.loss, 0.5947412)
    result.loss.backward()
    close(chosen.grad, -0.0004043, 0.0034702, 0.0103628)
    close(rejected.grad, 0.0004043, -0.0034702, -0.0103628)
    assert not result.chosen_mean.requires_grad


def check_direct_losses_widen_low_precision(direct_losses):
    # bfloat16 has 8 bits: 16 - 0.0625 = 15.9375 would be rounded to 16
    one, other = (torch.tensor([x], dtype=torch.bfloat16) for x in (-0.0625, -16))
    result = direct_losses.dpo(one, other, other, other, beta=1.0)
    assert result.loss.dtype == torch.float32
    close(result.margin_mean, 15.9375)
    assert direct_losses.orpo(one, other, beta=0.1).loss.dtype == torch.float32


def check_robust_dpo(direct_losses):
    # -[(1-ε) ln σ(h) - ε ln σ(-h)] / (1-2ε) = -ln σ(h) - ε h / (1-2ε): 1.9142237 - 0.2·1/0.6
    result = direct_losses.robust_dpo(*LOGPROBS, beta=0.5, label_smoothing=0.2)
    close(result.loss, 0.5269635)
    close(result.margin_mean, 0.3333333)
    close(result.rejected_mean, -0.25)
    # 1.5472015 - (2·1.5 - 0.5·0.75 + 0.25)/3 = 0.5888681, over 16
    result = direct_losses.robust_dpo(
        *LOGPROBS, beta=0.5, label_smoothing=0.2, weight=WEIGHT, num_pairs=16
    )
    close(result.loss, 0.0368043)


def check_ipo(direct_losses):
    # h = 3, -1.5, 0.5 and t = 1/(2·0.25) = 2: 1 + 12.25 + 2.25 = 15.5; swapped 25, 0.25, 6.25
    chosen = CHOSEN.clone().requires_grad_()
    result = direct_losses.ipo(chosen, *LOGPROBS[1:], beta=0.25)
    close(result.loss, 5.1666667)
    close(result.margin_mean, 0.1666667)  # β·2/3
    close(result.chosen_mean, 0.0416667)
    result.loss.backward()  # 2 (h - t) / 3
    close(chosen.grad, 0.6666667, -2.3333333, -1)
    # (0.9 + 2.5) + (3.0625 + 0.1875) + (1.125 + 3.125) = 10.9
    loss = direct_losses.ipo(*LOGPROBS, beta=0.25, probability=PROBABILITY).loss
    close(loss, 3.6333333)
    # 2·1 + 0.5·12.25 + 2.25 = 10.375
    result = direct_losses.ipo(*LOGPROBS, beta=0.25, weight=WEIGHT, num_pairs=16)
    close(result.loss, 0.6484375)


def check_simpo(direct_losses):
    # β = 2, γ = 0.4: d = 1, -1.2, 0.2
    #    d - γ = 0.6, -1.6, -0.2     -ln σ = 0.4374880, 1.7839007, 0.7981389   sum 3.0195276
    #   -d - γ = -1.4, 0.8, -0.6     -ln σ = 1.6204174, 0.3711007, 1.0374880
    #   p: 0.5557809 + 0.7243007 + 0.9178134 = 2.1978950
    means = floats(-0.5, -1.2, -0.8), floats(-1, -0.6, -0.9)
    result = direct_losses.simpo(*means, beta=2.0, margin=0.4)
    close(result.loss, 1.0065092)
    close(result.margin_mean, 0.0)
    close(result.accuracy, 0.6666667)
    close(result.chosen_mean, -1.6666667)
    loss = direct_losses.simpo(*means, beta=2.0, margin=0.4, probability=PROBABILITY).loss
    close(loss, 0.7326317)
    # 0.8749759 + 0.8919504 + 0.7981389 = 2.5650652
    result = direct_losses.simpo(*means, beta=2.0, margin=0.4, weight=WEIGHT, num_pairs=16)
    close(result.loss, 0.1603166)


# Probabilities per token 1/2, 1/5, 3/4 and 1/5, 3/5, 1/2
#   odds     1, 1/4, 3 and 1/4, 3/2, 1      quotient k = 4, 1/6, 3
#   -ln σ(ln k) = ln(1 + 1/k) = ln 5/4, ln 7, ln 4/3 = 0.2231436, 1.9459101, 0.2876821
#   -ln π_chosen = 0.6931472, 1.6094379, 0.2876821 (sum 2.5902672)
#   loss at β = 0.5: 0.8047190, 2.5823930, 0.4315231                         sum 3.8186351
#   swapped: ln 5, ln 5/3, ln 2 + 0.5 (ln 5, ln 7/6, ln 4) = 2.4141569, 0.5879010, 1.3862944
#   p: 0.9656627 + 1.0865240 + 0.9089087 = 2.9610955

ORPO = floats(1 / 2, 1 / 5, 3 / 4).log(), floats(1 / 5, 3 / 5, 1 / 2).log()


def check_orpo(direct_losses):
    chosen, rejected = (x.clone().requires_grad_() for x in ORPO)
    result = direct_losses.orpo(chosen, rejected, beta=0.5)
    close(result.loss, 1.2728784)
    close(result.chosen_mean, -0.4317112)  # -0.5·2.5902672/3
    close(result.rejected_mean, -0.4689018)
    result.loss.backward()
    # 1/(1+k) = 1/5, 6/7, 1/4 over 1-π: chosen (-1 - β·0.4, 1.0714286, 1)/3, rejected β·...
    close(chosen.grad, -0.4, -0.5119048, -0.5)
    close(rejected.grad, 0.0416667, 0.3571429, 0.0833333)
    close(direct_losses.orpo(*ORPO, beta=0.5, probability=PROBABILITY).loss, 0.9870318)
    # 1.6094379 + 1.2911965 + 0.4315231 = 3.3321575
    result = direct_losses.orpo(*ORPO, beta=0.5, weight=WEIGHT, num_pairs=16)
    close(result.loss, 0.2082598)


def check_orpo_of_certain_tokens(direct_losses):
    # π = 1 counts as 1 - 10⁻⁶ in the odds: ln 10⁶ = 13.8155106. Chosen at odds 1:
    # ln 2 + 0.5·ln(1 + 10⁶) = 7.6009030; the rejected one is pushed down with 0.5·10⁶
    chosen, rejected = floats(0.5).log(), floats(0).requires_grad_()
    result = direct_losses.orpo(chosen, rejected, beta=0.5)
    close(result.loss, 7.6009030)
    result.loss.backward()
    torch.testing.assert_close(rejected.grad, floats(5e5), rtol=1e-5, atol=0)
    # Both certain: equal odds. The chosen one has -1 - 0.5·0.5·10⁶
    chosen = floats(0).requires_grad_()
    result = direct_losses.orpo(chosen, floats(0), beta=0.5)
    close(result.loss, 0.3465736)
    result.loss.backward()
    torch.testing.assert_close(chosen.grad, floats(-250001), rtol=1e-5, atol=0)


# Four completions, the first two liked, at β = 0.5 and KL 1.2, so beside 0.6
#   log-ratio 2, -1, 1.5, -2     r = 1, -0.5, 0.75, -1     ±(r - 0.6) = 0.4, -1.1, -0.15, 1.6
#   1 - σ = 0.4013123, 0.7502601, 0.5374298, 0.1679816
#   λ = 1.5, 0.5: 0.6019685, 1.1253902, 0.2687149, 0.0839908                 sum 2.0800644
#   w = 2, 0.5, 1, 3: 1.2039370, 0.5626951, 0.2687149, 0.2519724             sum 2.2873194

KTO = floats(-3, -5, -1, -4), floats(-5, -4, -2.5, -2), torch.tensor([True, True, False, False])
KTO_SETTINGS = {"beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.5}


def check_kto(direct_losses):
    policy = KTO[0].clone().requires_grad_()
    kl = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    result = direct_losses.kto(policy, *KTO[1:], kl, **KTO_SETTINGS)
    close(result.loss, 0.5200161)
    close(result.accuracy, 0.5)  # right, wrong, wrong, right
    close(result.desirable_share, 0.5)
    close(result.desirable_mean, 0.125)
    close(result.undesirable_mean, -0.0625)
    assert not any(statistic.requires_grad for statistic in result[1:])
    # ∓λ β σ(1-σ) / 4, with σ(1-σ) = 0.2402607, 0.1873699, 0.2485990, 0.1397638
    result.loss.backward()
    close(policy.grad, -0.0450489, -0.0351318, 0.0155374, 0.0087352)
    assert kl.grad is None
    weight = floats(2, 0.5, 1, 3)
    result = direct_losses.kto(*KTO, kl.detach(), **KTO_SETTINGS, weight=weight)
    close(result.loss, 0.3518953)  # over 6.5
    close(result.accuracy, 0.7692308)  # 5
    close(result.desirable_share, 0.3846154)  # 2.5
    close(result.desirable_mean, 0.2692308)  # 2 - 0.25
    close(result.undesirable_mean, -0.3461538)  # 0.75 - 3
    result = direct_losses.kto(*KTO, 3.0, **KTO_SETTINGS, weight=weight)
    close(result.accuracy, 0.6153846)  # beside 1.5: wrong, wrong, right, right
    result = direct_losses.kto(*KTO, 1.2, **KTO_SETTINGS, weight=weight, num_examples=16)
    close(result.loss, 0.1429575)
    close(result.accuracy, 0.3125)
    close(result.desirable_share, 0.15625)
    close(result.desirable_mean, 0.109375)
    close(result.undesirable_mean, -0.140625)


def check_kto_below_zero_kl(direct_losses):
    # β = 0.25, beside 0: r = 0, -0.25, 0.375, -0.5, the first on the baseline
    # σ(0) + σ(0.25) + σ(0.375) + σ(-0.5) = 0.5 + 0.5621765 + 0.5926666 + 0.3775407 = 2.0323838
    policy, reference, desirable = KTO
    policy = torch.cat([reference[:1], policy[1:]])
    result = direct_losses.kto(policy, reference, desirable, -3.0, beta=0.25)
    close(result.loss, 0.5080959)
    close(result.accuracy, 0.375)  # on it, wrong, wrong, right


def check_direct_losses_errors(direct_losses):
    losses = direct_losses
    for bad in (0.0, -0.1, INF, NAN):
        for call in (
            lambda beta: losses.dpo(*LOGPROBS, beta=beta),
            lambda beta: losses.robust_dpo(*LOGPROBS, beta=beta, label_smoothing=0.1),
            lambda beta: losses.ipo(*LOGPROBS, beta=beta),
            lambda beta: losses.simpo(*LOGPROBS[:2], beta=beta, margin=0.5),
            lambda beta: losses.orpo(*ORPO, beta=beta),
            lambda beta: losses.kto(*KTO, 0.0, beta=beta),
        ):
            with pytest.raises(ValueError, match=rf"beta={bad} must be above 0.*0\.1 is usual"):
                call(bad)
    for bad in (-0.1, 0.6, NAN):
        with pytest.raises(ValueError, match=rf"label_smoothing={bad} must be in \[0, 0\.5\],"):
            losses.dpo(*LOGPROBS, beta=0.1, label_smoothing=bad)
    for bad in (-0.1, 0.5, NAN):
        with pytest.raises(ValueError, match=rf"label_smoothing={bad} must be in \[0, 0\.5\),"):
            losses.robust_dpo(*LOGPROBS, beta=0.1, label_smoothing=bad)
    for bad in (-0.1, INF, NAN):
        with pytest.raises(ValueError, match=f"margin={bad} must be 0 or more"):
            losses.simpo(*LOGPROBS[:2], beta=2.0, margin=bad)
        with pytest.raises(ValueError, match=f"^desirable_weight={bad} must be 0 or more"):
            losses.kto(*KTO, 0.0, beta=0.1, desirable_weight=bad)
        with pytest.raises(ValueError, match=f"undesirable_weight={bad} must be 0 or more"):
            losses.kto(*KTO, 0.0, beta=0.1, undesirable_weight=bad)
    for bad in (-0.05, 1.05):  # in [0, 1] after smoothing
        with pytest.raises(ValueError, match=rf"probability={bad} must be in \[0, 1\]"):
            losses.dpo(*LOGPROBS, beta=0.1, label_smoothing=0.25, probability=floats(0.5, bad, 1))
    with pytest.raises(ValueError, match="num_examples=0 must be above 0"):
        losses.kto(*KTO, 0.0, beta=0.1, num_examples=0)
