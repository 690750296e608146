"""Sections that the settings of several stages share: compute, optimizer, sampling, KL, value."""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from tether.validation import not_negative, positive, require, share


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """A Ray cluster, for backend = "ray"."""

    address: str = ""
    """Of a running cluster: "auto" or host:port; "" = one on this machine"""
    trainers: int = 1
    """Processes that train, each a Ray worker"""
    rollouts: int = 1
    """Workers that sample for an online method, beside the trainers"""
    trainer_gpus: float = 0.0
    """GPUs of each trainer"""
    rollout_gpus: float = 0.0
    """GPUs of each rollout worker"""
    worker_cpus: float = 1.0
    """CPUs of each of them"""
    max_failures: int = 3
    """How often training starts again from its last checkpoint after a worker has died"""
    timeout: float = 60.0
    """Seconds to wait for the cluster to place all workers"""

    def __post_init__(self) -> None:
        rule = 'is for clients; use "auto" on a machine of the cluster, as `ray job submit` does'
        client = self.address.startswith("ray://")
        require(not client, "compute.cluster.address", self.address, rule)
        positive("trainers", self.trainers)
        positive("timeout", self.timeout)
        for name in ("rollouts", "trainer_gpus", "rollout_gpus", "worker_cpus", "max_failures"):
            not_negative(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class ServersConfig:
    """vLLM servers that sample for an online method, each in an environment of its own."""

    urls: tuple[str, ...] = ()
    """Addresses such as http://127.0.0.1:8000; () = sampling by tether itself"""
    transfer: Literal["file", "nccl"] = "file"
    """How weights get there: by files in `folder`, or from GPU to GPU"""
    folder: str = ""
    """Folder that trainer and servers share, for transfer = "file"; "" = the stage's own"""
    timeout: float = 600.0
    """Seconds that a call may take"""
    retries: int = 3
    """Calls made anew after a server did not answer; then another server takes over"""
    tolerance: float = 0.01
    """Largest mean difference (nats a token) of log-probs that the probe after a sync allows"""

    def __post_init__(self) -> None:
        positive("timeout", self.timeout)
        positive("tolerance", self.tolerance)
        not_negative("retries", self.retries)


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig:
    """Where and how precisely the tensors are computed, and who gets it: never what comes out."""

    device: str = "auto"
    """"auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", …"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision; weights and optimizer stay float32. auto: bfloat16 on GPUs"""
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    """Attention code. On CPUs in bfloat16, "eager" is faster for short texts"""
    threads: int = 0
    """CPU threads; 0 = torch's own choice"""
    gradient_checkpointing: bool = False
    """Compute activations anew in the backward pass instead of keeping them: less memory, slower"""
    offload: bool = False
    """On a GPU: models that are frozen wait in the CPU's memory until they are asked"""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that get the figures of training as well; each needs its package"""
    push_to: str = ""
    """OWNER/NAME on the Hugging Face hub that gets the finished model; "" = nobody"""
    push_private: bool = True
    """Whether a repository that is made for it is private"""
    parallel: Literal["fsdp", "ddp"] = "fsdp"
    """Several processes (torchrun, Ray): shard weights and optimizer, or keep them in each"""
    backend: Literal["local", "ray"] = "local"
    """Where training runs: in this process (or torchrun's), or on a Ray cluster"""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray cluster"""
    servers: ServersConfig = field(default_factory=ServersConfig)
    """Rollout servers"""

    def __post_init__(self) -> None:
        not_negative("threads", self.threads)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    learning_rate: float = 1e-5
    """Peak learning rate"""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay after the warm-up, by optimizer step"""
    final_fraction: float = 0.0
    """Learning rate at the last step, as a share of the peak"""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up"""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates"""
    eps: float = 1e-5
    """Adam's ε; 1e-5 rather than 1e-8 keeps early PPO steps small where gradients are tiny"""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices only"""
    max_grad_norm: float = 1.0
    """Gradient norm above which gradients are scaled down; 0 = off"""

    def __post_init__(self) -> None:
        positive("optimizer.learning_rate", self.learning_rate)
        share("optimizer.final_fraction", self.final_fraction)
        not_negative("optimizer.warmup_steps", self.warmup_steps)
        for i, beta in enumerate(self.betas):
            rule = "must be at least 0 and below 1"
            require(0 <= beta < 1, f"optimizer.betas[{i}]", beta, rule)
        positive("optimizer.eps", self.eps)
        not_negative("optimizer.weight_decay", self.weight_decay)
        not_negative("optimizer.max_grad_norm", self.max_grad_norm)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """A low-rank adapter: W + (α/r)·B·A is used, A and B are trained, W stays frozen."""

    rank: int = 0
    """r; 0 = no adapter, all weights are trained"""
    alpha: float = 0.0
    """α; 0 = twice the rank"""
    targets: tuple[str, ...] = ()
    """Names of the modules that get one, such as q_proj; none = every linear layer but the head"""
    quantize: Literal["none", "4bit"] = "none"
    """"4bit": the frozen base in 4 bits (needs a GPU and the extra `bnb`)"""

    def __post_init__(self) -> None:
        not_negative("lora.rank", self.rank)
        not_negative("lora.alpha", self.alpha)
        rule = "needs an adapter to train; set lora.rank (16 is usual)"
        for name, off in (("alpha", 0.0), ("targets", ()), ("quantize", "none")):
            value = getattr(self, name)
            require(self.rank > 0 or value == off, f"lora.{name}", value, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How completions are drawn from a policy."""

    temperature: float = 1.0
    """Logits are divided by it, in sampling and in every log-prob"""
    max_new_tokens: int = 64
    """Longest completion, in tokens, its end token included"""
    top_p: float = 1.0
    """Must stay 1: truncated sampling is another distribution than the one PPO differentiates"""
    top_k: int = 0
    """Must stay 0, for the same reason"""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end a completion, besides those the model names"""
    batch_size: int = 256
    """Rows decoded together; changes speed and memory, never the completions' distribution"""
    lag: int = 0
    """1: online methods sample the next rollout batch while they train on one; 0 = in turns"""
    max_importance: float = 2.0
    """With lag = 1: limit of the ratio π_old / sampler that corrects for the older policy"""

    def __post_init__(self) -> None:
        positive("sampling.max_importance", self.max_importance)
        rule = "must be 0 or 1: what an older policy sampled is refused"
        require(self.lag in (0, 1), "sampling.lag", self.lag, rule)
        positive("sampling.temperature", self.temperature)
        positive("sampling.max_new_tokens", self.max_new_tokens)
        positive("sampling.batch_size", self.batch_size)
        why = "would sample from another distribution than the one trained on; leave it at"
        require(self.top_p == 1.0, "sampling.top_p", self.top_p, f"{why} 1.0 (use temperature)")
        require(self.top_k == 0, "sampling.top_k", self.top_k, f"{why} 0 (use temperature)")


@dataclass(frozen=True, kw_only=True, slots=True)
class KLConfig:
    """The tether: what distance from the reference costs."""

    beta: float = 0.05
    """β, reward units per nat; 0 = no tether"""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Per-token estimator of the sampled KL"""
    placement: Literal["reward", "loss"] = "reward"
    """"reward": subtracted from each token's reward; "loss": a loss term with unbiased gradient"""
    target: float = 0.0
    """Adaptive β: aim at this KL per sequence (nats); 0 = β stays fixed"""
    horizon: int = 10_000
    """Adaptive β: sequences over which β may change by about a fifth"""

    def __post_init__(self) -> None:
        not_negative("kl.beta", self.beta)
        not_negative("kl.target", self.target)
        positive("kl.horizon", self.horizon)
        rule = "needs kl.beta above 0 to start from; set kl.beta (0.05 is usual) or kl.target = 0"
        require(self.target == 0 or self.beta > 0, "kl.target", self.target, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class PtxConfig:
    """Pretraining or SFT texts beside the rollouts, so that what they taught is not unlearned."""

    data: str = ""
    """Demonstrations or plain texts; "" = none"""
    coefficient: float = 0.1
    """Weight of their mean negative log-prob a token in the loss"""
    batch_size: int = 0
    """Texts an optimizer step; 0 = as many as the minibatch has completions"""

    def __post_init__(self) -> None:
        positive("policy_loss.ptx.coefficient", self.coefficient)
        not_negative("policy_loss.ptx.batch_size", self.batch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyLossConfig:
    """The clipped policy loss on the ratio ρ = π/π_old, the entropy bonus, and texts mixed in."""

    clip: float = 0.2
    """ε: below 1 − ε and above 1 + ε the ratio earns nothing more"""
    clip_high: float = 0.0
    """ε above 1, where it is to differ from the one below (0.28 is usual); 0 = the same"""
    dual_clip: float = 0.0
    """c: a token with a negative advantage costs at most c·|A| (3 is usual); 0 = off"""
    level: Literal["token", "sequence"] = "token"
    """"sequence": one ratio a completion, the geometric mean of its tokens' (GSPO)"""
    entropy_coefficient: float = 0.0
    """c2 in L = L_policy + c1·L_value − c2·H"""
    advantage: str = ""
    """Advantages by a function of yours, path/to/file.py:function; "" = the method's own"""
    ptx: PtxConfig = field(default_factory=PtxConfig)
    """Gradients of pretraining or SFT texts mixed in, against the alignment tax"""

    def __post_init__(self) -> None:
        positive("policy_loss.clip", self.clip)
        not_negative("policy_loss.clip_high", self.clip_high)
        not_negative("policy_loss.entropy_coefficient", self.entropy_coefficient)
        dual, rule = self.dual_clip, "must be above 1, or 0 for none"
        fits = dual == 0 or (dual > 1 and math.isfinite(dual))
        require(fits, "policy_loss.dual_clip", dual, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class GAEConfig:
    """Generalized advantage estimation from the value model."""

    discount: float = 1.0
    """γ"""
    trace_decay: float = 0.95
    """λ"""
    bootstrap: bool = False
    """Add the value after the cut to the last reward of a completion that was cut"""
    standardize: bool = True
    """Give the advantages of a rollout batch mean 0 and std 1 over its tokens"""

    def __post_init__(self) -> None:
        share("gae.discount", self.discount)
        share("gae.trace_decay", self.trace_decay)


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueConfig:
    """The value model: estimates the return from every completion token on."""

    init: str = ""
    """Reward model directory it starts from; "" = the reward if that is a model, else the policy"""
    shared: bool = False
    """True: one linear head on the policy's own backbone instead of a second model"""
    learning_rate: float = 1e-5
    """Peak learning rate of the value model (a shared backbone uses the policy's)"""
    clip: float = 0.2
    """Values may move this far from those of the rollout before the loss flattens; 0 = off"""
    coefficient: float = 0.1
    """c1 in L = L_policy + c1·L_value − c2·H"""

    def __post_init__(self) -> None:
        positive("value.learning_rate", self.learning_rate)
        not_negative("value.clip", self.clip)
        not_negative("value.coefficient", self.coefficient)
        rule = "is unused with value.shared = true; set one of them"
        require(not (self.shared and self.init), "value.init", self.init, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class StopConfig:
    """When to stop before the last step. 0 = off."""

    kl: float = 0.0
    """Stop once the KL per sequence (nats, mean of a rollout batch) exceeds this"""
    score: float = 0.0
    """Stop once the mean score of a rollout batch reaches this"""
    update_kl: float = 0.0
    """End an update's epochs early once the per-token KL to the sampling policy exceeds this"""
    patience: int = 0
    """Stop after so many looks of the monitor without a better held-out score; the best model
    becomes the result"""

    def __post_init__(self) -> None:
        not_negative("stop.kl", self.kl)
        not_negative("stop.update_kl", self.update_kl)
        not_negative("stop.patience", self.patience)


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnsConfig:
    """Columns of a data file that hold our fields under other names; "" = the field's own name."""

    prompt: str = ""
    """Prompt: a string, or chat messages"""
    completion: str = ""
    """Completion worth imitating, or with a label one that was judged"""
    chosen: str = ""
    """The better completion of a pair"""
    rejected: str = ""
    """The other one"""
    completions: str = ""
    """Completions of one prompt, a list"""
    ranks: str = ""
    """Their ranks, 1 = best"""
    label: str = ""
    """True where a completion was liked"""
    text: str = ""
    """Plain text, without a prompt"""
    messages: str = ""
    """A conversation: a list of messages"""
    weight: str = ""
    """Weight of the row in the loss"""
    margin: str = ""
    """By how much chosen is better"""
    probability: str = ""
    """Chance that chosen is the better one"""
    labeler: str = ""
    """Who judged"""
    category: str = ""
    """Label by which results are broken down"""

    @property
    def named(self) -> dict[str, str]:
        """The columns that are named, by our field."""
        pairs = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: column for name, column in pairs.items() if column}

    def __post_init__(self) -> None:
        taken: dict[str, str] = {}
        for name, column in self.named.items():
            rule = f"is columns.{taken.get(column)} already; a column fills one field"
            require(column not in taken, f"columns.{name}", column, rule)
            taken[column] = name
