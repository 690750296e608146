"""What this machine could do in one thread, and which share of it tether's PPO reaches.

The machine: rates of the matrix products that a model consists of (forward, gradient of the input,
gradient of the weights) and of reading and copying memory. tether: CPU seconds of generation and
training of one PPO iteration on fixed lengths, as in `ppo_vs_trl.py`, against the seconds that
these matrix products alone would take at the rates measured before. Attention, norms, the softmax
and the optimizer are not counted as work, so 100% cannot be reached.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import alternate
import torch
import tyro
import world
from ppo_vs_trl import WORK
from rich.console import Console
from rich.table import Table

PROMPT = 32  # tokens of every prompt in a world of fixed lengths
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BUFFER = 1 << 28  # bytes; far more than any cache holds


class Product(NamedTuple):
    """A weight of the model, (n, k), and how often it stands there."""

    name: str
    k: int
    n: int
    times: int


class Rates(NamedTuple):
    """FLOP/s of y = x Wᵀ, of dX = dY W and of dW = dYᵀ X."""

    forward: float
    dx: float
    dw: float


@dataclass
class Options:
    """What to measure."""

    model: Literal["5m", "15m"] = "5m"
    """Parameters of each model"""
    tether: str = "bf16,fp32"
    """Variants of tether, parted by commas"""
    alternations: int = 3
    """Timed iterations"""


def products(size: world.Size) -> list[Product]:
    """The matrix products of one pass, those of the same input as one; the head last."""
    width, inner, layers = size.width, size.inner, size.layers
    keys = width * (size.key_heads or size.heads) // size.heads
    return [
        Product("query, key, value", width, width + 2 * keys, layers),
        Product("attention output", width, width, layers),
        Product("gate, up", width, 2 * inner, layers),
        Product("down", inner, width, layers),
        Product("head", width, size.vocabulary, 1),
    ]


def seconds(function: Callable[[], object]) -> float:
    """Least CPU seconds of one call, from five samples of at least 20 ms."""
    function()
    samples, calls = [], 1
    while len(samples) < 5:
        start = time.process_time()
        for _ in range(calls):
            function()
        taken = time.process_time() - start
        if taken >= 0.02:
            samples.append(taken / calls)
        else:
            calls *= 2
    return min(samples)


def rates(rows: int, product: Product, dtype: torch.dtype) -> Rates:
    """Rates of a product with `rows` rows of input."""
    x = torch.randn(rows, product.k, dtype=dtype)
    weight = torch.randn(product.n, product.k, dtype=dtype)
    y = torch.randn(rows, product.n, dtype=dtype)
    flops = 2 * rows * product.k * product.n
    return Rates(
        flops / seconds(lambda: torch.nn.functional.linear(x, weight)),
        flops / seconds(lambda: y @ weight),
        flops / seconds(lambda: y.T @ x),
    )


def pass_seconds(rows: int, product: Product, found: Rates, *, training: bool) -> float:
    """Seconds of a product at its measured rates, each for 2·rows·k·n FLOPs."""
    flops = 2 * rows * product.k * product.n * product.times
    return sum(flops / rate for rate in (found if training else found[:1]))


def bandwidth() -> tuple[float, float]:
    """Bytes a second read, and copied (read and written, each counted)."""
    source, target = (torch.ones(BUFFER // 4) for _ in range(2))
    return BUFFER / seconds(source.sum), 2 * BUFFER / seconds(lambda: target.copy_(source))


class Limits(NamedTuple):
    """Floating-point operations of an iteration's phases and the seconds they need at the least."""

    training_flops: float
    training_seconds: float
    generation_flops: float
    generation_seconds: float


def limits(size: world.Size, found: dict[tuple[str, int], Rates]) -> Limits:
    """Limits for one precision, given the rates by (product, rows).

    Training: policy and value model see prompt and completion of every row in each epoch, the head
    of the policy sees completion tokens only; 6 FLOPs a weight and token. Generation: a pass over
    the prompts without the head, then one a token for all rows; 2 FLOPs a weight and token.
    """
    batch, new, epochs = WORK["batch_size"], WORK["max_new_tokens"], WORK["epochs"]
    rows = batch // WORK["minibatches"]
    steps = epochs * WORK["minibatches"]
    total = Limits(0.0, 0.0, 0.0, 0.0)
    for product in products(size):
        head = product.name == "head"
        tokens, models = (rows * new, 1) if head else (rows * (PROMPT + new), 2)
        weights = product.k * product.n * product.times
        rate = found[product.name, tokens]
        training = steps * models * pass_seconds(tokens, product, rate, training=True)
        decode = new * pass_seconds(batch, product, found[product.name, batch], training=False)
        prompts = 0 if head else batch * PROMPT
        decode += pass_seconds(prompts, product, rate, training=False)
        part = Limits(
            6 * steps * models * weights * tokens,
            training,
            2 * weights * (batch * new + prompts),
            decode,
        )
        total = Limits(*(a + b for a, b in zip(total, part, strict=True)))
    return total


def measure_rates(size: world.Size, console: Console) -> dict[str, dict[tuple[str, int], Rates]]:
    """Rates of all products at the rows of a decode step and of a minibatch, by precision."""
    rows = WORK["batch_size"] // WORK["minibatches"]
    table = Table(title="matrix products, GFLOP/s: forward / input's gradient / weights' gradient")
    for name in ("product", "rows × k × n", *DTYPES):
        table.add_column(name, justify="left" if name == "product" else "right")
    found: dict[str, dict[tuple[str, int], Rates]] = {name: {} for name in DTYPES}
    for product in products(size):
        tokens = rows * (WORK["max_new_tokens"] + (0 if product.name == "head" else PROMPT))
        for m in (WORK["batch_size"], tokens):
            cells = []
            for name, dtype in DTYPES.items():
                found[name][product.name, m] = rates(m, product, dtype)
                cells.append(" / ".join(f"{r / 1e9:.0f}" for r in found[name][product.name, m]))
            table.add_row(product.name, f"{m} × {product.k} × {product.n}", *cells)
    console.print(table)
    return found


def measure_tether(options: Options) -> dict[str, tuple[float, float]]:
    """Median CPU seconds of generation and of training, by variant."""
    with tempfile.TemporaryDirectory() as name:
        world.build(Path(name), world.SIZES[options.model], "fixed")
        job = {**WORK, "task": "ppo", "world": name, "lengths": "fixed"}
        sides = alternate.tether_sides(options.tether)
        measured = alternate.measure(sides, job, Path(name), options.alternations)
    return {
        side.variant: (measured[side.label].phase("generate"), measured[side.label].phase("train"))
        for side in sides
    }


def main() -> None:
    """Measure the machine, then tether."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    console = Console(width=110, highlight=False)
    size, facts = world.SIZES[options.model], alternate.machine()
    console.print(f"{facts['cpu']}, {facts['cores']} cores, load {facts['load']}; one thread")
    found = measure_rates(size, console)
    read, copied = bandwidth()
    console.print(f"memory: read {read / 1e9:.1f} GB/s, copied {copied / 1e9:.1f} GB/s")
    console.print(reached(options, size, found))


def reached(
    options: Options, size: world.Size, found: dict[str, dict[tuple[str, int], Rates]]
) -> Table:
    """Measure tether, and set it beside its limits."""
    table = Table(title=f"tether, {options.model}: a PPO iteration")
    table.add_column("phase")
    for name in ("CPU s", "GFLOP", "GFLOP/s", "products alone s", "share", "weights GB/s"):
        table.add_column(name, justify="right")
    weights = sum(product.k * product.n * product.times for product in products(size))
    for variant, (generation, training) in measure_tether(options).items():
        limit = limits(size, found[variant])
        read = weights * DTYPES[variant].itemsize * WORK["max_new_tokens"] / generation
        for name, taken, flops, least, rate in (
            ("generate", generation, limit.generation_flops, limit.generation_seconds, read),
            ("train", training, limit.training_flops, limit.training_seconds, 0.0),
        ):
            cells = [f"{taken:.2f}", f"{flops / 1e9:.0f}", f"{flops / taken / 1e9:.1f}"]
            cells += [f"{least:.2f}", f"{least / taken:.0%}", f"{rate / 1e9:.1f}" if rate else ""]
            table.add_row(f"{name} {variant}", *cells)
    return table


if __name__ == "__main__":
    main()
