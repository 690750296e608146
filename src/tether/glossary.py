"""What each figure that training logs means, in a sentence, and what of it is healthy."""

from typing import NamedTuple


class Metric(NamedTuple):
    """How a figure is called and read."""

    title: str
    unit: str
    """"" where it is a plain number"""
    meaning: str
    healthy: str
    chart: str = ""
    """Of several figures that belong on one chart, its title"""


METRICS: dict[str, Metric] = {
    # --- online methods
    "score": Metric(
        "score",
        "normalized",
        "Mean sum of the rewards, in units of the reward's spread on the reference's answers.",
        "Rises, ever more slowly; where an audit falls meanwhile, the reward is being gamed.",
        "Score",
    ),
    "best_score": Metric(
        "best of n",
        "normalized",
        "Mean score of each prompt's best completion, the one that is learned.",
        "Lies above the score, by less as completions become alike.",
        "Score",
    ),
    "reward": Metric(
        "return",
        "normalized",
        "What a completion earns in all: its score less β times its KL and any penalty.",
        "Rises; where the score rises and this falls, the policy pays more for distance than the "
        "score is worth.",
    ),
    "kl": Metric(
        "KL",
        "nats a completion",
        "Distance from the reference: mean of log π − log π_ref, summed over a completion.",
        "Grows slowly from 0 and levels off; at tens of nats little of the reference is left.",
        "KL to the reference",
    ),
    "beta": Metric(
        "β",
        "normalized a nat",
        "The price of a nat of KL.",
        "Constant, or moved by the controller until the KL is near its target.",
        "β",
    ),
    "length": Metric(
        "length",
        "tokens",
        "Mean length of the completions.",
        "Steady; steady growth with the score is the commonest way to game a reward.",
        "Length",
    ),
    "finished": Metric(
        "finished",
        "share",
        "Share of completions that ended by themselves rather than at the length limit.",
        "Near 1, or at least not falling.",
    ),
    "entropy": Metric(
        "entropy",
        "nats a token",
        "How undecided the policy is about the next token.",
        "Falls slowly; near 0 it has collapsed on a few completions.",
        "Entropy",
    ),
    "policy_loss": Metric(
        "policy loss",
        "",
        "The clipped objective of the policy, negated, over the step's minibatches.",
        "Small and around 0; it does not fall like a loss of supervised training, and need not.",
        "Policy loss",
    ),
    "value_loss": Metric(
        "value loss",
        "",
        "Squared error of the value model's guess of the return.",
        "Falls in the first steps and then stays below the variance of the returns.",
        "Value loss",
    ),
    "clip_fraction": Metric(
        "policy",
        "share of tokens",
        "Share of tokens whose ratio to the sampling policy is clipped: they teach nothing.",
        "0.02 to 0.2; above 0.3 the steps are too large.",
        "Clip fraction",
    ),
    "value_clip_fraction": Metric(
        "value",
        "share of tokens",
        "Share of tokens whose value has moved further than the value clip allows.",
        "Below 0.3.",
        "Clip fraction",
    ),
    "explained_variance": Metric(
        "explained variance",
        "share",
        "Share of the returns' variance that the value model foretells.",
        "Above 0 within a few steps and rising; below 0 it is worse than a constant.",
        "Explained variance",
    ),
    "score_raw": Metric(
        "raw score",
        "",
        "Mean of the first reward before it is shifted, scaled and clipped.",
        "Moves with the score; where it alone goes on rising, scores are clipped.",
    ),
    "approx_kl": Metric(
        "update KL",
        "nats a token",
        "How far one step's updates move the policy from the one that sampled.",
        "0.001 to 0.02; more means that the steps are too large.",
        "Update KL",
    ),
    "logprob_gap": Metric(
        "log-prob gap",
        "nats a token",
        "Mean distance between the policy's log-probs and the sampler's over a step's updates.",
        "Starts near 0 in each step and grows with the updates; below 0.1.",
    ),
    "logprob_gap_mean": Metric(
        "sampler gap, mean",
        "nats a token",
        "Mean distance between the sampler's and the trainer's log-probs before an update.",
        "Below 0.005; in float32 near 1e-6.",
        "Sampler gap",
    ),
    "logprob_gap_max": Metric(
        "sampler gap, largest",
        "nats a token",
        "Largest distance between the sampler's and the trainer's log-probs before an update.",
        "Below 0.05.",
        "Sampler gap",
    ),
    "sampler_trusted": Metric(
        "sampler trusted",
        "1 = yes",
        "Whether the sampler's log-probs serve as those of the old policy.",
        "1; at 0 the trainer's own take their place, which costs a forward pass.",
    ),
    "disagreement": Metric(
        "disagreement",
        "normalized",
        "How far the members of a reward ensemble differ on the completions.",
        "Steady; where it rises, the policy has left what the rewards were trained on.",
    ),
    "decided": Metric(
        "decided",
        "share of prompts",
        "Share of prompts whose completions have different scores, so that there is a pair.",
        "Near 1; where it falls, the completions have become alike.",
    ),
    "ptx_loss": Metric(
        "pretraining loss",
        "nats a token",
        "Loss on the texts that are mixed in against forgetting.",
        "Steady; where it rises, the policy forgets them.",
    ),
    # --- training on a file
    "loss": Metric(
        "training",
        "nats",
        "The loss of the step's batch: per token (sft), per pair or per judgment (others).",
        "Falls and levels off; log 2 = 0.69 is where a preference loss starts.",
        "Loss",
    ),
    "held_out_loss": Metric(
        "held out",
        "nats",
        "The same loss on examples that are not trained on.",
        "Falls with the training loss; where it turns, training overfits.",
        "Loss",
    ),
    "held_out_perplexity": Metric(
        "held-out perplexity",
        "",
        "exp of the held-out loss: among how many tokens the model hesitates.",
        "Falls and levels off.",
    ),
    "accuracy": Metric(
        "training",
        "share",
        "Share of the batch's judgments that the model agrees with.",
        "Rises from 0.5; near 1 on training alone it learns by heart.",
        "Accuracy",
    ),
    "held_out_accuracy": Metric(
        "held out",
        "share",
        "Share of held-out judgments that the model agrees with.",
        "Rises to what labelers agree among themselves, often 0.65 to 0.8.",
        "Accuracy",
    ),
    "margin": Metric(
        "training",
        "β · nats",
        "Mean gap between the rewards of the chosen and of the rejected completion.",
        "Grows from 0 and levels off.",
        "Margin",
    ),
    "held_out_margin": Metric(
        "held out",
        "β · nats",
        "The same gap on held-out pairs.",
        "Grows with the margin in training.",
        "Margin",
    ),
    "chosen_reward": Metric(
        "chosen",
        "β · nats",
        "Of chosen completions, β times how much likelier they are than under the reference.",
        "Stays near 0 or rises; where it falls far, the policy unlearns good completions too.",
        "Implied rewards",
    ),
    "rejected_reward": Metric(
        "rejected",
        "β · nats",
        "Implied reward of the rejected completions.",
        "Falls below that of the chosen.",
        "Implied rewards",
    ),
    "desirable_reward": Metric(
        "liked",
        "β · nats",
        "Implied reward of the completions with a thumb up.",
        "Rises above that of the others.",
        "Implied rewards",
    ),
    "undesirable_reward": Metric(
        "disliked",
        "β · nats",
        "Implied reward of the completions with a thumb down.",
        "Falls.",
        "Implied rewards",
    ),
    "chosen_logprob": Metric(
        "chosen",
        "nats a completion",
        "Log-prob of the chosen completions.",
        "Steady; a slow fall is usual for dpo, a fast one ends in nonsense.",
        "Log-probs",
    ),
    "rejected_logprob": Metric(
        "rejected",
        "nats a completion",
        "Log-prob of the rejected completions.",
        "Falls faster than that of the chosen.",
        "Log-probs",
    ),
    "desirable_logprob": Metric(
        "liked",
        "nats a completion",
        "Log-prob of the completions with a thumb up.",
        "Steady or rising.",
        "Log-probs",
    ),
    "undesirable_logprob": Metric(
        "disliked",
        "nats a completion",
        "Log-prob of the completions with a thumb down.",
        "Falls.",
        "Log-probs",
    ),
    "chosen_fall": Metric(
        "chosen",
        "nats a token",
        "How much less likely the chosen completions have become than under the reference.",
        "Near 0 or below; above 0.1 a higher β or an nll term helps.",
        "Fall of log-probs",
    ),
    "rejected_fall": Metric(
        "rejected",
        "nats a token",
        "How much less likely the rejected completions have become than under the reference.",
        "Above that of the chosen.",
        "Fall of log-probs",
    ),
    # --- any training
    "grad_norm": Metric(
        "policy or model",
        "",
        "Norm of the gradient before it is clipped.",
        "Steady, without lasting growth; single spikes are what clipping is for.",
        "Gradient norm",
    ),
    "value_grad_norm": Metric(
        "value model",
        "",
        "Norm of the value model's gradient before it is clipped.",
        "Steady after the first steps.",
        "Gradient norm",
    ),
    "learning_rate": Metric(
        "learning rate", "", "Size of the optimizer's steps.", "As the schedule says."
    ),
    "tokens": Metric(
        "tokens",
        "tokens a step",
        "Completion tokens of the batch that are learned from.",
        "Varies with the lengths of the batch alone.",
    ),
    "seconds_generate": Metric(
        "sampling",
        "s",
        "Time a step spends on sampling completions.",
        "The largest part; grows with the length.",
        "Seconds by phase",
    ),
    "seconds_score": Metric(
        "scoring",
        "s",
        "Time a step spends on rewards, values and the reference's log-probs.",
        "Small against sampling, unless a reward is slow.",
        "Seconds by phase",
    ),
    "seconds_train": Metric(
        "updates", "s", "Time a step spends on updates.", "Steady.", "Seconds by phase"
    ),
    # --- the monitor
    "proxy": Metric(
        "proxy",
        "normalized",
        "The reward that is trained on, on the monitor's own prompts.",
        "Rises.",
        "Monitor: rewards",
    ),
    "audit": Metric(
        "audit",
        "",
        "A judge that is not trained on, on the monitor's own prompts.",
        "Rises with the proxy; where it turns and the proxy does not, the reward is being gamed.",
        "Monitor: rewards",
    ),
    "repetition": Metric(
        "repetition",
        "share",
        "Share of a completion's word groups that it has said before.",
        "Low and steady.",
        "Monitor: texts",
    ),
    "distinct_2": Metric(
        "distinct pairs",
        "share",
        "Share of word pairs, over all completions, that are different.",
        "Steady; a fall means that completions become alike.",
        "Monitor: texts",
    ),
    "best_step": Metric(
        "best step",
        "step",
        "The step whose model the monitor would keep.",
        "Moves along with training until the audit turns.",
        "Monitor: best step",
    ),
}
"""By the key of metrics.jsonl and monitor.jsonl, in the order of importance."""

FAMILIES: dict[str, Metric] = {
    "score_": Metric(
        "{}",
        "normalized",
        "Mean score of the reward {}, weighted.",
        "Those that should rise do; one that rises alone may be gamed.",
        "Score by reward",
    ),
    "rejected_": Metric(
        "{}",
        "share",
        "Share of completions that the filter {} rejects.",
        "Falls.",
        "Rejected by filters",
    ),
    "capped_": Metric(
        "{}",
        "share",
        "Share of completions whose score the filter {} bounds.",
        "Falls.",
        "Capped by filters",
    ),
}
"""By the beginning of a key whose rest is the name of a reward."""


def explain(key: str) -> Metric | None:
    """What a key means; None where nothing is known of it."""
    if key in METRICS:
        return METRICS[key]
    for start, of in FAMILIES.items():
        if key.startswith(start) and key != start:
            name = key.removeprefix(start)
            return of._replace(title=name, meaning=of.meaning.replace("{}", name))
    return None
