"""Sizing on paper: the least time of a step's phases, and what each is bound by.

A phase takes as long as the slowest of what it does at the same time: products, reading memory,
moving weights between GPUs. Attention's operations are counted; norms, softmax, launches and
waiting are not.
"""

from typing import NamedTuple

from tether.footprint.paper import (
    BFLOAT16,
    FLOAT32,
    Job,
    Shares,
    held,
    server_rows,
)

WHOLE = Shares(products=1.0, memory=1.0, links=1.0)
UPDATE_BYTES = 28  # AdamW reads weight, gradient, two moments, and writes all but the gradient


class Time(NamedTuple):
    """Seconds of a phase a step, and what bounds it."""

    phase: str
    seconds: float
    bound: str


def times(job: Job, shares: Shares = WHOLE) -> list[Time]:
    """Every phase of a step, where `shares` of the card's rates are reached."""
    phases = [generate(job, shares), sync(job, shares)] if job.online else []
    if job.online or job.config.method == "dpo":
        phases.append(score(job, shares))
    phases += [train(job, shares), update(job, shares)]
    return [each for each in phases if each.seconds]


def generate(job: Job, shares: Shares) -> Time:
    """Prompts, then one pass of all rows for each token of the completions.

        prefill  2 · stack · prompt tokens + attention, at the rate of products
        a token  max((2 M + cache · rows) / memory's rate, (2 M · rows + attention) / products')

    with M = layers and head in bfloat16 and the cache half grown. Rows that do not fit together
    wait for the next wave. On servers, the bytes and operations of one are split over its GPUs.
    """
    config, shape, card = job.config, job.shape, job.card
    rows, most, split = job.rows, config.sampling_batch_size, 1
    if config.servers:
        split = job.split
        rows, most = -(-config.batch_size * split // config.servers), server_rows(job)
    if not most:
        return Time("generate", float("inf"), "nothing: a server cannot hold a row")
    waves = -(-rows // most)
    together = -(-rows // waves)
    read = shape.stack + shape.head
    context = config.prompt_tokens + config.completion_tokens / 2
    moved = BFLOAT16 * (read + together * shape.cached * context)
    looked = 4 * shape.layers * shape.heads * shape.head_size * context
    by_memory = moved / (split * card.bandwidth * shares.memory)
    by_products = together * (2 * read + looked) / (split * card.flops * shares.products)
    prompts = rows * (
        2 * shape.stack * config.prompt_tokens + shape.attention(config.prompt_tokens)
    )
    prefill = prompts / (split * card.flops * shares.products)
    decode = waves * config.completion_tokens * max(by_memory, by_products)
    bound = "memory" if by_memory > by_products else "products"
    return Time("generate", prefill + decode, bound if decode > prefill else "products")


def sync(job: Job, shares: Shares) -> Time:
    """The trained weights for the sampler, float32: gathered, and sent on to servers by one GPU.

    An adapter is whole in every process, so that a copy beside it needs no gathering; servers get
    plain weights, with the adapter folded in.
    """
    config, size = job.config, FLOAT32 * job.shape.parameters
    gathered = job.sharded and (config.servers or not config.lora.rank)
    seconds = ring(job, size, shares) if gathered else 0.0
    if config.servers:
        near = config.gpus <= config.gpus_per_machine
        seconds += size / ((job.card.link if near else job.card.network) * shares.links)
    return Time("sync", seconds, "links")


def score(job: Job, shares: Shares) -> Time:
    """Forward passes over all rows: policy and reference with the head, value and reward without.

    2 operations a weight and token (the head: a completion token), and attention. Each pass over a
    device batch gathers the model, 4 bytes a parameter.
    """
    config, shape = job.config, job.shape
    headed = 2 if job.online else 1
    scalar = config.reward_models + (config.method == "ppo") if job.online else 0
    row = 2 * shape.stack * job.length + shape.attention(job.length)
    flops = (headed + scalar) * row + headed * 2 * shape.head * config.completion_tokens
    size = headed * shape.parameters + scalar * shape.scalar
    moved = job.device_batches * ring(job, FLOAT32 * size, shares)
    return _slower("score" if job.online else "reference", job, job.rows * flops, moved, shares)


def train(job: Job, shares: Shares) -> Time:
    """Forward and backward passes of what is trained, in PPO of policy and value model.

    Operations a weight and token: forward 2, gradient of the input 2, of the weight 2 (not of a
    frozen one under an adapter), forward anew with checkpointing 2, for the head always (its logits
    are not kept). Every device batch gathers a model forward, its layers once more backward, and
    sums the gradients of what is trained and sharded: 4 bytes a parameter each.
    """
    config, shape = job.config, job.shape
    full = config.lora.rank == 0
    models, headed = (2 if config.method == "ppo" else 1), config.method != "reward"
    weight = 6 if full else 4
    anew = 2 * config.gradient_checkpointing
    row = (weight + anew) * shape.stack * job.length
    row += (6 + anew) // 2 * shape.attention(job.length)
    flops = models * row + headed * (weight + 2) * shape.head * config.completion_tokens
    size = (shape.parameters if headed else shape.scalar) + (models - 1) * shape.scalar
    gathered = FLOAT32 * (size + models * shape.stack + (size if full else 0))
    moved = job.device_batches * ring(job, gathered, shares)
    return _slower("train", job, job.epochs * job.rows * flops, job.epochs * moved, shares)


def update(job: Job, shares: Shares) -> Time:
    """One AdamW step: 28 bytes for each parameter trained here, at the memory's whole rate.

    Its kernel is fused, so that only the memory bounds it; one optimizer step an epoch.
    """
    roles = held(job)
    size = roles.trained // job.trainers + roles.adapters
    return Time("update", job.epochs * UPDATE_BYTES * size / job.card.bandwidth, "memory")


def ring(job: Job, size: int, shares: Shares) -> float:
    """Seconds to gather (or to sum and scatter) `size` bytes over N training GPUs.

        max((N − 1) / N · size / link, (N − g) / N · size / (g · network))   for N > g

    A GPU receives all but its own part over the link. What comes from other machines enters a
    machine once, through the network adapters of its g GPUs side by side.
    """
    num, group = job.trainers, min(job.config.gpus_per_machine, job.trainers)
    inside = (num - 1) / num * size / job.card.link
    outside = (num - group) / num * size / (group * job.card.network)
    return max(inside, outside) / shares.links


def _slower(name: str, job: Job, flops: int, moved: float, shares: Shares) -> Time:
    """Products and links at the same time."""
    computed = flops / (job.card.flops * shares.products)
    return Time(name, max(computed, moved), "links" if moved > computed else "products")
