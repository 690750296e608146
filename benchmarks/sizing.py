"""Sizing on paper: the table of docs/scaling.md, for three sizes on 1, 8 and 64 H100s.

Nothing is measured and nothing is loaded: `tether plan --size` prints each row with its parts, its
bounds and its assumptions.
"""

from collections.abc import Iterator

from tether.footprint.paper import Adapter, Job, SizingConfig, peak
from tether.footprint.roofline import times
from tether.footprint.sizing import fits, gb, seconds

SIZES, GPUS = ("1B", "8B", "70B"), (1, 8, 64)
PHASES = ("generate", "sync", "score", "train", "update")
RANK = 16


def rows(size: str, gpus: int) -> Iterator[Job]:
    """SFT, PPO, PPO with a quarter of the GPUs as servers, PPO by LoRA without and with these."""
    ways = [("sft", 0, False), ("ppo", 0, False), ("ppo", 0, True)]
    split = Job.of(SizingConfig(size=size)).split
    for method, rank, serve in [*ways, ("ppo", RANK, False), ("ppo", RANK, True)]:
        if serve and (gpus == 1 or size == "1B"):
            continue
        config = SizingConfig(
            size=size,
            gpus=gpus,
            method=method,
            lora=Adapter(rank=rank),
            servers=max(gpus // 4, split) if serve else 0,
            gradient_checkpointing=True,
        )
        yield Job.of(config)


def row(job: Job) -> str:
    """One row: memory of the fullest phase, and times where it fits."""
    config = job.config
    way = config.method + (f", LoRA {config.lora.rank}" if config.lora.rank else "")
    way += f", {config.servers} serve" if config.servers else ""
    cells = [config.size, str(config.gpus), way, gb(peak(job)), "no", *[""] * (len(PHASES) + 2)]
    if fits(job):
        least = {each.phase: each.seconds for each in times(job)}
        likely = sum(each.seconds for each in times(job, config.shares))
        spent = [seconds(least[name]) if name in least else "" for name in PHASES]
        cells[4:] = ["yes", *spent, seconds(sum(least.values())), seconds(likely)]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """The whole table in Markdown."""
    titles = ("model", "GPUs", "method", "GB a GPU", "fits", *PHASES, "a step", "at the shares")
    head = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    return "\n".join(head + [row(job) for size in SIZES for num in GPUS for job in rows(size, num)])


if __name__ == "__main__":
    print(table())
