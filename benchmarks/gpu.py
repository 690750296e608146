"""What tether does on one GPU: generation, SFT, PPO and GRPO beside what the card could do.

Random Llamas of 125M parameters (vocabulary of 32,000) and of Llama 3.2 1B's shape; prompts of 128
tokens and completions of exactly 256, bfloat16. Nothing is compared with TRL here; generation is
with transformers. All times are wall seconds with the GPU idle before and after; everything is
done once to warm up (kernels are compiled then) and the next is told.

    python benchmarks/gpu.py                               # about four minutes on an H100
    python benchmarks/gpu.py --sizes 125m --parts generate sft
"""

import json
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import roofline
import torch
import transformers
import tyro
import world
from transformers import AutoModelForCausalLM

from tether.config import GRPOConfig, OnlineConfig, PPOConfig, RewardConfig
from tether.data.batches import Row
from tether.engine import graphs
from tether.engine.decode import generate_tokens
from tether.models.language_model import load
from tether.sections import ComputeConfig, KLConfig, OptimizerConfig, SamplingConfig, ValueConfig
from tether.train import loop, online, sft

SIZES = {
    "tiny": world.Size(32, 2, 2, 48, 200),  # to try this script on a CPU
    "125m": world.Size(768, 12, 12, 2560, 32_000),
    "1b": world.Size(2048, 16, 32, 8192, 128_256, key_heads=8),
}
Part = Literal["machine", "generate", "transformers", "sft", "ppo", "grpo"]
PARTS: tuple[Part, ...] = ("machine", "generate", "transformers", "sft", "ppo", "grpo")
LEARNING_RATE = 1e-6  # lengths stay as they are


@dataclass
class Options:
    """What to measure."""

    sizes: tuple[str, ...] = ("125m", "1b")
    """Models: 125m, 1b"""
    parts: tuple[Part, ...] = PARTS
    """What to do with each"""
    batch: int = 256
    """Prompts decoded together; rows of a rollout"""
    prompt: int = 128
    """Tokens of a prompt"""
    new: int = 256
    """Tokens of a completion"""
    rows: int = 32
    """Rows a forward and backward pass; of SFT also rows an optimizer step"""
    device: str = "cuda"
    """Where; "cpu" only to try this script"""
    json: str = ""
    """A file for all figures, a line each"""


class Bench:
    """A model on disk, and what measures it."""

    def __init__(self, options: Options, name: str, folder: Path) -> None:
        self.options, self.name, self.folder = options, name, folder
        self.size = SIZES[name]
        self.compute = ComputeConfig(device=options.device, precision="bfloat16")
        with torch.device(options.device):
            world.build(folder, self.size, "fixed")
        rng = np.random.default_rng(1)
        texts = [world.words(rng, self.size, options.prompt, options.prompt) for _ in range(512)]
        lines = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
        (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
        drawn = rng.integers(len(world.SPECIAL), self.size.vocabulary, (512, options.prompt))
        self.prompts: list[list[int]] = drawn[: options.batch].tolist()

    @property
    def weights(self) -> tuple[int, int]:
        """Numbers in the weights of all layers, and of the head."""
        *layers, head = roofline.products(self.size)
        return sum(p.k * p.n * p.times for p in layers), head.k * head.n

    def machine(self) -> dict[str, float]:
        """Rates of the card: a large bfloat16 product, and memory copied (read and written)."""
        n = 8192 if self.options.device == "cuda" else 64
        a, b = (torch.randn(n, n, device=self.options.device).bfloat16() for _ in range(2))
        source = torch.randn(1 << (28 if n > 64 else 10), device=self.options.device)
        target = torch.empty_like(source)
        _, product, _ = timed(lambda: [a @ b for _ in range(20)])
        _, copied, _ = timed(lambda: [target.copy_(source) for _ in range(20)])
        return {
            "product_tflops": 20 * 2 * n**3 / product / 1e12,
            "copy_gb_s": 20 * 2 * source.nbytes / copied / 1e9,
        }

    def generate(self) -> dict[str, float]:
        """Completions with their log-probs, with CUDA graphs and with the same steps without."""
        policy = load(str(self.folder / "policy"), self.compute)
        settings = SamplingConfig(max_new_tokens=self.options.new, batch_size=self.options.batch)

        def run() -> object:
            return generate_tokens(policy, self.prompts, settings, seed=0)

        tokens = len(self.prompts) * self.options.new
        first, seconds, held = timed(run)
        found = {"tokens_s": tokens / seconds, "seconds": seconds, "first_s": first, "peak": held}
        kept, graphs.capture_graph = graphs.capture_graph, uncaptured
        found["without_graphs_tokens_s"] = tokens / timed(run)[1]
        graphs.capture_graph = kept
        return found

    def transformers(self) -> dict[str, float]:
        """transformers' own `generate`, which returns no log-probs here."""
        path = self.folder / "policy"
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        model.to(self.options.device)
        ids = torch.tensor(self.prompts, device=self.options.device)
        lengths = {"max_new_tokens": self.options.new, "min_new_tokens": self.options.new}

        def run() -> object:
            mask = torch.ones_like(ids)
            return model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, **lengths)

        _, seconds, held = timed(run)
        return {"tokens_s": ids.shape[0] * self.options.new / seconds, "peak": held}

    def sft(self) -> dict[str, float]:
        """Optimizer steps on rows of prompt and completion, all of whose tokens are learned."""
        language_model = load(str(self.folder / "policy"), self.compute, trainable=True)
        parameters = list(language_model.model.parameters())
        optimizer = loop.make_optimizer([(parameters, LEARNING_RATE)], OptimizerConfig())
        length = self.options.prompt + self.options.new
        drawn = torch.randint(len(world.SPECIAL), self.size.vocabulary, (self.options.rows, length))
        batch = [(Row(ids, 0), 1.0) for ids in drawn.tolist()]

        def run() -> None:
            for _ in range(5):
                for part in sft.losses(language_model, batch, self.options.rows):
                    part.backward()
                loop.optimizer_step(optimizer, [parameters], 1.0)

        first, seconds, held = timed(run)
        tokens = 5 * len(batch) * length
        body, head = self.weights
        attention = 2 * self.size.layers * self.size.width * length  # causal: half of 4·L·S·D
        flops = tokens * (6 * (body + head) + 3 * attention)
        found = {"tokens_s": tokens / seconds, "tflops": flops / seconds / 1e12}
        return {**found, "step_s": seconds / 5, "first_s": first, "peak": held}

    def ppo(self) -> dict[str, float]:
        """A rollout batch; 1 epoch of 4 minibatches; all four models of one size."""
        value = ValueConfig(learning_rate=LEARNING_RATE)
        settings = {"batch_size": self.options.batch, "minibatches": 4, "epochs": 1, "value": value}
        return self.online(PPOConfig, online.train_ppo, settings)

    def grpo(self) -> dict[str, float]:
        """Eight completions a prompt, one optimizer step; no value model."""
        kl = KLConfig(beta=0.04, estimator="k3", placement="loss")
        settings = {"batch_size": self.options.batch, "num": 8, "kl": kl}
        return self.online(GRPOConfig, online.train_grpo, settings)

    def online(
        self,
        kind: Callable[..., OnlineConfig],
        train: Callable[[Any], Path],
        settings: dict[str, Any],
    ) -> dict[str, float]:
        """The seconds of each phase of the second step, and what was held at most."""
        out = self.folder / kind.__name__
        count_anew()
        kept, online.Run.write = online.Run.write, lambda self, path: None
        config = kind(
            out=str(out),
            model=str(self.folder / "policy"),
            prompts=str(self.folder / "prompts.jsonl"),
            rewards=(RewardConfig(path=str(self.folder / "reward"), normalize=False),),
            compute=self.compute,
            steps=2,
            checkpoint_every=0,
            device_batch_size=self.options.rows,
            missing_eos_penalty=0.0,
            sampling=SamplingConfig(max_new_tokens=self.options.new, batch_size=self.options.batch),
            optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
            **settings,
        )
        try:
            train(config)
        finally:
            online.Run.write = kept
        first, second = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        told = ("logprob_gap_mean", "logprob_gap_max", "sampler_trusted", "kl", "length")
        found = {name: second[name] for name in told if name in second}
        for row, when in ((first, "first_"), (second, "")):
            for name in ("generate", "score", "train"):
                found[f"{when}{name}_s"] = row[f"seconds_{name}"]
        return {**found, "peak": peak()}


def timed(run: Callable[[], object]) -> tuple[float, float, float]:
    """Seconds of a first call and of a second, and the GiB held at most during the second."""
    taken = []
    for _ in range(2):
        count_anew()
        start = time.perf_counter()
        run()
        held = peak()
        taken.append(time.perf_counter() - start)
    return (*taken, held)


def count_anew() -> None:
    """Wait for the GPU, and forget what it has held."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def peak() -> float:
    """Wait for the GPU; the GiB that it has held at most, 0 on a CPU."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def uncaptured(run: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
    """What stands in for a CUDA graph: the step itself, each time."""
    hidden = run()
    return lambda: hidden.copy_(run()), hidden


def main() -> None:
    """Measure each part of each size; one that fails is told of, and the others go on."""
    options = tyro.cli(Options, description=__doc__)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    tell(options, {"device": device, **versions})
    for name in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(options, name, Path(folder))
            for part in options.parts:
                row: dict[str, Any] = {"size": name, "part": part}
                try:
                    row |= {k: round(v, 4) for k, v in getattr(bench, part)().items()}
                except Exception:
                    row["failed"] = traceback.format_exc()
                tell(options, row)
                torch.cuda.empty_cache()


def tell(options: Options, row: dict[str, Any]) -> None:
    """Print figures, and add them to the file."""
    line = json.dumps(row)
    print(line, flush=True)
    if options.json:
        with Path(options.json).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
