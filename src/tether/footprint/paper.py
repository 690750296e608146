"""Sizing on paper: the memory of a method on N GPUs, from the shape of a model alone.

Whole numbers and equations; no model is made and torch is not imported, so that any size can be
asked for anywhere. How tether works is taken as it is: weights, gradients and Adam's moments are
float32 and sharded over the GPUs that train (`fully_shard` of each decoder layer and of the rest
at the root), frozen models likewise; products are bfloat16; adapters (LoRA) are whole in each
process. `tests/footprint/test_paper.py` works two cases out by hand and sets the sums beside a
dry run of the real code.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tether.footprint.cards import CARDS, Card
from tether.footprint.shapes import Shape, load_shape
from tether.validation import not_negative, positive, require, share

FLOAT32, BFLOAT16, MOMENTS = 4, 2, 8  # bytes; the moments are two float32
LOGIT_ROWS, LOGITS = 1024, 1 << 25  # positions, or logits, that exist at once: whichever is more
PREFILL_TOKENS = 8192  # prompt tokens that are read at once before decoding
CACHE_STEP = 64  # a cache's room is a multiple of so many positions
SERVED = (1, 2, 4, 8)  # GPUs that the weights of a server can be split over
SERVER_SHARE = 0.9  # of a card's memory that a vLLM server takes
PARTS = (
    *("weights", "gradients", "optimizer", "frozen models", "sampling copy", "gathered"),
    *("bfloat16 copies", "activations", "KV cache", "logits"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """A LoRA adapter instead of all weights."""

    rank: int = 0
    """r; 0 = all weights are trained"""

    def __post_init__(self) -> None:
        not_negative("lora.rank", self.rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """Shares of a card's rates that are reached."""

    products: float = 0.4
    """Of bfloat16 operations; training of 1.2B parameters on one H200 reached 0.43"""
    memory: float = 0.3
    """Of the memory's rate while decoding; 1.2B parameters on one H200 reached 0.31"""
    links: float = 0.7
    """Of the links between GPUs; an assumption"""

    def __post_init__(self) -> None:
        for name in ("products", "memory", "links"):
            positive(f"shares.{name}", getattr(self, name))
            share(f"shares.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class SizingConfig:
    """A training step on paper: what it holds on each GPU and how long it takes at the least.

    Nothing is loaded and no GPU is needed. `tether plan RECIPE.toml` plans the stages of a recipe,
    to the batch, instead. What does not fit is told with what would help, and exit code 2.
    """

    size: str
    """"1B", "8B", "70B" (Llama 3), or a model directory, whose config.json is read"""
    gpus: int = 8
    """All GPUs, those of rollout servers among them"""
    method: Literal["sft", "reward", "dpo", "ppo", "grpo"] = "ppo"
    """How it is trained; grpo stands for the methods without a value model, dpo for its family"""
    card: Literal["H100", "H200", "A100-80", "RTX4090"] = "H100"
    """What GPUs they are"""
    servers: int = 0
    """GPUs that sample in vLLM servers and train nothing; 0 = the policy samples where it trains"""
    lora: Adapter = field(default_factory=Adapter)
    """LoRA"""
    gradient_checkpointing: bool = False
    """Compute activations anew in the backward pass instead of keeping them"""
    batch_size: int = 512
    """Examples a step on all GPUs: completions (ppo, grpo), texts (sft) or pairs (reward, dpo)"""
    device_batch_size: int = 4
    """Rows of a forward pass on each GPU; a pair is two rows"""
    epochs: int = 0
    """Passes over each batch; 0 = 4 in ppo, else 1"""
    prompt_tokens: int = 512
    """Tokens of every prompt"""
    completion_tokens: int = 512
    """Tokens of every completion"""
    sampling_batch_size: int = 256
    """Rows that a GPU decodes together"""
    reward_models: int = 1
    """Reward models in ppo and grpo, each as large as the policy; 0 = a rule or a function"""
    gpus_per_machine: int = 8
    """GPUs that reach each other without a network"""
    shares: Shares = field(default_factory=Shares)
    """What is reached of the card's rates"""

    def __post_init__(self) -> None:
        for name in ("gpus", "batch_size", "device_batch_size", "prompt_tokens"):
            positive(name, getattr(self, name))
        for name in ("completion_tokens", "sampling_batch_size", "gpus_per_machine"):
            positive(name, getattr(self, name))
        for name in ("servers", "epochs", "reward_models"):
            not_negative(name, getattr(self, name))
        rule = f"must leave a GPU to train on; there are gpus={self.gpus}"
        require(self.servers < self.gpus, "servers", self.servers, rule)
        samples = self.method in ("ppo", "grpo")
        rule = f"sample for ppo and grpo; leave it at 0 for {self.method}"
        require(samples or self.servers == 0, "servers", self.servers, rule)


class Job(NamedTuple):
    """Settings with the shape of the model and the card that they name."""

    config: SizingConfig
    shape: Shape
    card: Card

    @classmethod
    def of(cls, config: SizingConfig) -> "Job":
        """Look both up.

        Raises:
            ConfigError: The size is none, or servers cannot hold the weights.
        """
        job = cls(config, load_shape(config.size), CARDS[config.card])
        rule = f"must be a multiple of {job.split}: over so many GPUs a server splits its weights"
        require(config.servers % job.split == 0, "servers", config.servers, rule)
        return job

    @property
    def trainers(self) -> int:
        """GPUs that train, and over which everything is sharded."""
        return self.config.gpus - self.config.servers

    @property
    def sharded(self) -> bool:
        """Whether weights are spread over several GPUs."""
        return self.trainers > 1

    @property
    def online(self) -> bool:
        """Whether the method samples."""
        return self.config.method in ("ppo", "grpo")

    @property
    def epochs(self) -> int:
        """Passes over each batch."""
        return self.config.epochs or (4 if self.config.method == "ppo" else 1)

    @property
    def rows(self) -> int:
        """Rows of one batch on each training GPU."""
        side = 2 if self.config.method in ("dpo", "reward") else 1
        return -(-self.config.batch_size * side // self.trainers)

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.config.prompt_tokens + self.config.completion_tokens

    @property
    def device_rows(self) -> int:
        """Rows of one forward pass on a GPU."""
        return min(self.config.device_batch_size, self.rows)

    @property
    def device_batches(self) -> int:
        """Forward passes over the batch on each GPU."""
        return -(-self.rows // self.device_rows)

    @property
    def split(self) -> int:
        """GPUs that a server splits its weights over: so few that they take half of the memory."""
        size = BFLOAT16 * self.shape.parameters
        return next((n for n in SERVED if size / n <= self.card.memory / 2), SERVED[-1])


class Held(NamedTuple):
    """Parameters of the roles, each sharded but those of adapters, which are whole."""

    trained: int
    adapters: int
    frozen: int
    frozen_adapters: int


def held(job: Job) -> Held:
    """What the roles of a method hold.

    Full fine-tuning: each role is a model of its own: the policy P, the value and reward models
    P less the head. LoRA: one frozen backbone, and for every role but the reference an adapter.
    DPO's reference is not among them: it is there before the first step only.
    """
    config, shape = job.config, job.shape
    policy, scalar, rank = shape.parameters, shape.scalar, config.lora.rank
    rewards = config.reward_models if job.online else 0
    if rank:
        one = shape.adapter(rank)
        scored = one + shape.width  # with a head of one number
        own = {"reward": scored, "ppo": one + scored}.get(config.method, one)
        base = shape.backbone if config.method == "reward" else policy
        return Held(0, own, base, rewards * scored)
    trained = {"reward": scalar, "ppo": policy + scalar}.get(config.method, policy)
    return Held(trained, 0, policy + rewards * scalar if job.online else 0, 0)


def memory(job: Job) -> dict[str, Counter[str]]:
    """Bytes on each training GPU by phase and part, at the phase's peak.

    In each phase: `resident`, and in it

        generate  the policy's weights in bfloat16 and the KV cache (without rollout servers)
        score     a gathered layer and the root, one layer's activations, logits of a chunk
        reference the same, before DPO's first step: its reference is there, moments are not
        train     gradients, gathered layers, activations of all layers, logits of a chunk
    """
    phases: dict[str, Counter[str]] = {}
    here = resident(job)
    if job.online:
        if not job.config.servers:
            phases["generate"] = here + generating(job)
        phases["score"] = here + scoring(job)
    if job.config.method == "dpo":
        before = here.copy()
        del before["optimizer"]
        if not job.config.lora.rank:
            before["frozen models"] = FLOAT32 * job.shape.parameters // job.trainers
        phases["reference"] = before + scoring(job)
    phases["train"] = here + training(job)
    return phases


def peak(job: Job) -> int:
    """Most bytes that a training GPU holds."""
    return max(parts.total() for parts in memory(job).values())


def resident(job: Job) -> Counter[str]:
    """Bytes held in every phase on each of N training GPUs.

    weights 4 (trained / N + adapters)      optimizer 8 (trained / N + adapters)
    frozen  4 (frozen / N + adapters of frozen roles)
    sampling copy 4 P, whole, where N > 1 and no servers sample
    """
    roles, num = held(job), job.trainers
    own = roles.trained // num + roles.adapters
    copied = job.sharded and job.online and not job.config.servers
    return Counter(
        {
            "weights": FLOAT32 * own,
            "optimizer": MOMENTS * own,
            "frozen models": FLOAT32 * (roles.frozen // num + roles.frozen_adapters),
            "sampling copy": FLOAT32 * job.shape.parameters if copied else 0,
        }
    )


def generating(job: Job) -> Counter[str]:
    """Bytes of decoding R rows together, by the policy itself.

    Layers and head in bfloat16, 2 (stack + V D); the cache of R full rows, bfloat16; float32
    logits of one position each, 4 R V; one layer's activations of the prompts read at once.
    """
    config, shape = job.config, job.shape
    rows = min(config.sampling_batch_size, job.rows)
    prompts = min(PREFILL_TOKENS, rows * config.prompt_tokens)
    return Counter(
        {
            "bfloat16 copies": BFLOAT16 * (shape.stack + shape.head),
            "KV cache": rows * cache_bytes(job),
            "logits": FLOAT32 * rows * shape.vocabulary,
            "activations": prompts * kept_by_layer(shape, sharded=False),
        }
    )


def cache_bytes(job: Job) -> int:
    """Bytes of one full row's keys and values in bfloat16: 2 · 2 L K d · positions."""
    return BFLOAT16 * job.shape.cached * (job.length + -job.length % CACHE_STEP)


def scoring(job: Job) -> Counter[str]:
    """Bytes of a forward pass without gradients over one device batch.

    Gathered where sharded: the root and two layers (one is fetched ahead), float32. One layer and
    the head in bfloat16, one layer's activations, float32 logits of a chunk of positions.
    """
    shape = job.shape
    return Counter(
        {
            "gathered": FLOAT32 * (root(shape) + 2 * shape.layer) * job.sharded,
            "bfloat16 copies": BFLOAT16 * (shape.layer + shape.head),
            "activations": _device_tokens(job) * kept_by_layer(shape, sharded=job.sharded),
            "logits": FLOAT32 * _chunk(job) * shape.vocabulary,
        }
    )


def training(job: Job) -> Counter[str]:
    """Bytes of forward and backward pass over one device batch; in PPO of both models at once.

    gradients        4 (trained / N + adapters), which the first device batch leaves there
    gathered         where sharded: roots and two layers, float32; of what is trained, their
                     gradients beside them
    bfloat16 copies  2 bytes for each parameter of a layer: autograd keeps what it multiplied
                     by. With checkpointing one layer's. For the head two copies, 4 V D, and where
                     it is trained the sum of its gradient and a chunk's in both precisions,
                     10 V D
    activations      `kept_by_layer` times layers; with checkpointing what goes between layers,
                     and one layer's
    logits           4 bytes in the chunk's logits, 2 in their gradient
    """
    config, shape, roles = job.config, job.shape, held(job)
    full = config.lora.rank == 0
    passes = 2 if config.method == "ppo" else 1
    headed = config.method != "reward"
    roots = root(shape) if headed else shape.scalar - shape.stack
    if full and passes == 2:
        roots += shape.scalar - shape.stack
    gathered = FLOAT32 * (roots + 2 * shape.layer) * job.sharded
    tokens, each = _device_tokens(job), kept_by_layer(shape, sharded=job.sharded)
    copies, kept = BFLOAT16 * shape.stack, shape.layers * each
    if config.gradient_checkpointing:
        copies, kept = BFLOAT16 * shape.layer, shape.layers * between(shape, job.sharded) + each
    head = (4 + 10 * full) * shape.head * headed
    return Counter(
        {
            "gradients": FLOAT32 * (roles.trained // job.trainers + roles.adapters),
            "gathered": gathered * (2 if full else 1),
            "bfloat16 copies": passes * copies + head,
            "activations": passes * tokens * kept,
            "logits": (FLOAT32 + BFLOAT16) * _chunk(job) * shape.vocabulary * headed,
        }
    )


def root(shape: Shape) -> int:
    """Parameters of the policy outside of its layers: embedding, last norm and head."""
    return shape.parameters - shape.stack


def kept_by_layer(shape: Shape, *, sharded: bool) -> int:
    """Bytes a token that one decoder layer keeps for its backward pass.

    With O = H d numbers of queries and K d of keys, products in bfloat16:

        own forward   12 D + 4 O + 4 K d + 6 I          (two float32 sums, two norms; queries,
                      keys, values and what attention gives; gate, up and their product)
        sharded       26 D + 4 O + 4 K d + 4 H + 8 I    (transformers' forward: each norm keeps its
                      float32 input twice, each product its own bfloat16 copy of the input)
    """
    queries, keys = shape.heads * shape.head_size, shape.key_heads * shape.head_size
    attention = 4 * queries + 4 * keys
    if sharded:
        return 26 * shape.width + attention + 4 * shape.heads + 8 * shape.inner
    return 12 * shape.width + attention + 6 * shape.inner


def between(shape: Shape, sharded: bool) -> int:
    """Bytes a token between two layers: float32, in the own forward a bfloat16 addition beside."""
    return (FLOAT32 if sharded else FLOAT32 + BFLOAT16) * shape.width


def server_rows(job: Job) -> int:
    """Rows that one server (of `job.split` GPUs) decodes together: what it is sent, or can hold.

    The memory it takes, less its weights in bfloat16, over the cache of a full row.
    """
    room = SERVER_SHARE * job.split * job.card.memory - BFLOAT16 * job.shape.parameters
    asked = -(-job.config.batch_size * job.split // job.config.servers)
    return max(min(asked, int(room // cache_bytes(job))), 0)


def _device_tokens(job: Job) -> int:
    return job.device_rows * job.length


def _chunk(job: Job) -> int:
    most = max(LOGIT_ROWS, LOGITS // job.shape.vocabulary)
    return min(most, job.device_rows * job.config.completion_tokens)
