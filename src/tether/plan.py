"""`tether plan`: what the stages of a recipe would hold in memory, told before anything starts.

A model that an earlier stage has yet to make has the shape of the model which that stage starts
from, so a whole recipe can be planned at once.
"""

import importlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from tether import pipeline
from tether.config import (
    FitConfig,
    GenerateConfig,
    OnlineConfig,
    PreferenceConfig,
    RewardModelConfig,
    SFTConfig,
    SimulateConfig,
    StageConfig,
)
from tether.config_file import from_table, read_toml, to_table
from tether.errors import ConfigError
from tether.progress import console, results

if TYPE_CHECKING:
    from tether.footprint.parts import Footprint
    from tether.footprint.processes import Placement

ONLINE = ("ppo", "grpo", "rloo", "reinforce", "online-dpo", "best-of-n")
OFFLINE = ("dpo", "ipo", "simpo", "orpo", "kto")
KINDS = ("sft", "reward", *OFFLINE, "generate", *ONLINE)  # the others hold little, or what these do
PARTS = ("weights", "gradients", "optimizer", "sampling copy", "gathered")
PARTS += ("KV cache", "activations", "logits")
COMPILED = "oneDNN's compiled bfloat16 products are not counted (100 MiB in a long run of the demo)"
HOLES = 1.25  # most that a process was seen to hold over the sum: freed memory it cannot use again


class Planned(NamedTuple):
    """A stage with its estimate; memory in bytes, None where the system does not tell.

    `process` and `data` are 0 where models live in another memory, that of a GPU. The estimate is
    that of one process of those that train.
    """

    name: str
    footprint: "Footprint"
    process: int
    data: int
    device: str
    free: int | None
    placement: "Placement | None" = None

    @property
    def together(self) -> int:
        """Processes that share the memory of this machine: on GPUs each has its own."""
        if self.placement is None or self.placement.ray or self.device.startswith("cuda"):
            return 1
        return self.placement.trainers

    @property
    def total(self) -> int:
        """The peak, with the process itself and its data."""
        return self.process + self.data + self.footprint.peak.parts.total()


def plan(
    recipe: str | Path,
    out: str | Path = "",
    overrides: tuple[str, ...] = (),
    processes: int = 1,
) -> None:
    """Print processes, peak memory and batches of a recipe's stages, and run none of them.

    Args:
        recipe: TOML file with `seed` and `[[stage]]` tables.
        out: The run directory that `tether run` would be given; what is finished there is used.
        overrides: As for `pipeline.run`.
        processes: Those that torchrun would start.

    Raises:
        ConfigError: A setting is wrong, or a stage would not fit into the GPU's memory.
    """
    table = read_toml(Path(recipe))
    pipeline.override(table, overrides)
    stages = pipeline.plan(table, Path(out or Path("runs") / Path(recipe).stem))
    if not any(stage.kind in KINDS for stage in stages):
        raise ConfigError(
            f"{str(recipe)!r} has no stage to plan; give it one of {', '.join(KINDS)}"
        )
    for kind in KINDS:
        pipeline.runner(kind)  # imports what the run would import
    process = importlib.import_module("tether.footprint.machine").process_memory()
    with tempfile.TemporaryDirectory() as aside:
        planned = estimates(stages, process, Path(aside), processes)
    results.print(memory_table(planned), Text(), batch_table(planned), Text())
    for line in remarks(planned):
        results.print(Text(line, style="dim"))
    for each in planned:
        check_room(each)


# --- from a recipe to estimates -------------------------------------------------------------------


def estimates(
    stages: list[pipeline.Stage], process: int, aside: Path, processes: int = 1
) -> list[Planned]:
    """Estimate every stage that has a model.

    Args:
        stages: The recipe, resolved.
        process: Bytes of this process without any model.
        aside: A temporary folder; the sandbox's world is made there if it has not been made yet.
        processes: Those that torchrun would start.
    """
    spread = importlib.import_module("tether.footprint.processes")
    machine = importlib.import_module("tether.footprint.machine")
    planned: list[Planned] = []
    like: dict[str, str] = {}  # path that is yet to be made → one that is like it
    unfinished: dict[Path, StageConfig] = {}  # by folder
    for stage in stages:
        config = moved(stage.config, like)
        if stage.kind in KINDS:
            device, free = machine.free_memory(config.compute)
            placement = spread.Placement.of(config, processes)
            config = spread.in_passes(config, placement)
            found = spread.in_each(footprint(config, unfinished), config, placement)
            on_gpu = device.startswith("cuda")
            if config.compute.precision == "bfloat16" and not on_gpu:
                found.notes.append(COMPILED)
            beside = (0, 0) if on_gpu else (process, found.data)
            planned.append(Planned(stage.name, found, *beside, device, free, placement))
        if stage.result.exists():
            continue
        out = Path(stage.config.out)
        unfinished[out] = config
        if stage.kind == "sandbox":
            make = pipeline.runner(stage.kind)
            like[str(out)] = str(make(replace(config, out=str(aside / stage.name))))
        elif isinstance(config, FitConfig | OnlineConfig):
            like[str(out / "model")] = config.model
    return planned


def footprint(config: StageConfig, unfinished: dict[Path, StageConfig]) -> "Footprint":
    """The estimate of one stage, from what is there and what unfinished stages will make."""
    fit = importlib.import_module("tether.footprint.fit")
    rollout = importlib.import_module("tether.footprint.rollout")
    if isinstance(config, GenerateConfig):
        return rollout.of_generate(config, known=_is_there(config.prompts, unfinished))
    if isinstance(config, OnlineConfig):
        return rollout.of_online(config, known=_is_there(config.prompts, unfinished))
    assert isinstance(config, SFTConfig | RewardModelConfig | PreferenceConfig)
    known = _is_there(config.data, unfinished)
    if isinstance(config, PreferenceConfig):
        return fit.of_preference(config, known=known)
    if isinstance(config, SFTConfig):
        return fit.of_sft(config, known=known)
    source = unfinished.get(Path(config.data).parent)
    while isinstance(source, SimulateConfig):
        source = unfinished.get(Path(source.data).parent)
    ranked = isinstance(source, GenerateConfig) and _is_there(source.prompts, unfinished)
    return fit.of_reward(config, known=known, answers=source if ranked else None)


def _is_there(path: str, unfinished: dict[Path, StageConfig]) -> bool:
    """Whether a file can be read now; one that no stage will make is expected to be there."""
    return Path(path).exists() or Path(path).parent not in unfinished


def moved(config: StageConfig, like: dict[str, str]) -> Any:
    """The same settings with each path that is yet to be made replaced by the one it is like."""

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: inner if name == "out" else move(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [move(inner) for inner in value]
        old = next((o for o in like if f"{value}/".startswith(f"{o}/")), None)
        return value if old is None else like[old] + value.removeprefix(old)

    return from_table(type(config), move(to_table(config)))


# --- in print -------------------------------------------------------------------------------------


def memory_table(planned: list[Planned]) -> Table:
    """One column a stage, at the phase that holds most; one row a part, in MiB."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(Text("peak memory, MiB"), no_wrap=True)
    for each in planned:
        heading = Text(f"{each.name}\n{each.footprint.peak.name}")
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("process", *(_part(each.process) for each in planned))
    table.add_row("data", *(_part(each.data) for each in planned))
    for part in PARTS:
        table.add_row(part, *(_part(each.footprint.peak.parts[part]) for each in planned))
    table.add_section()
    table.add_row("sum", *(mib(each.total) for each in planned), style="bold")
    return table


def batch_table(planned: list[Planned]) -> Table:
    """One row a stage; "?" is what cannot be known yet."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(Text("batches"), no_wrap=True)
    titles = ("rollout", "optimizer", "device", "steps a rollout", "steps", "samples", "tokens")
    for title in titles:
        table.add_column(Text(title), justify="right")
    for each in planned:
        cut = each.footprint.batches
        cells = [_count(number, "") for number in (cut.rollout, cut.optimizer, cut.device)]
        cells.append(_count(cut.steps_per_rollout, ""))
        cells.append(_count(cut.steps, "?" if cut.optimizer else ""))
        cells.append(_count(cut.samples, "?"))
        most = "≤ " if cut.tokens_at_most else ""
        table.add_row(each.name, *cells, _count(cut.tokens, "?", most))
    return table


def _count(number: int | None, otherwise: str, before: str = "") -> str:
    return otherwise if number is None else f"{before}{number:,}"


def remarks(planned: list[Planned]) -> list[str]:
    """Processes, the other phases, what had to be assumed, and the memory there is."""
    lines: list[str] = []
    for each in planned:
        if each.placement:
            alike = "; memory is that of each trainer" * (each.placement.trainers > 1)
            lines.append(f"{each.name}: {each.placement.told()}{alike}")
        if len(each.footprint.phases) > 1:
            sums = (
                f"{name} {mib(each.process + each.data + parts.total())}"
                for name, parts in each.footprint.phases
            )
            lines.append(f"{each.name}: {', '.join(sums)} MiB by phase")
        lines += [f"{each.name}: {note}" for note in each.footprint.notes]
    free = {each.device: each.free for each in planned if each.free is not None}
    lines += [f"{device}: {mib(size)} MiB are free now" for device, size in free.items()]
    if any(each.process for each in planned):
        lines.append(
            "a process ends up to a quarter above its sum: memory freed in unusable pieces"
        )
    return lines


def check_room(planned: Planned) -> None:
    """Warn where a stage may need more memory than is free.

    Raises:
        ConfigError: It would run on a GPU, where nothing can be swapped out.
    """
    on_gpu = planned.device.startswith("cuda")
    need = planned.total if on_gpu else round(planned.total * planned.together * HOLES)
    if planned.free is None or need <= planned.free:
        return
    told = (
        f"compute.device={planned.device!r} has {mib(planned.free)} MiB free, but {planned.name} "
        f"needs {'about' if on_gpu else 'up to'} {mib(need)} MiB; {mend(planned.footprint)}"
    )
    if on_gpu:
        raise ConfigError(told)
    console.print(Text(f"warning: {told}"))


def mend(footprint: "Footprint") -> str:
    """What would help most, from the largest part of the peak."""
    ((part, _),) = footprint.peak.parts.most_common(1)
    if part == "KV cache":
        return "lower sampling.batch_size"
    if part == "sampling copy":
        return "let rollout servers sample (compute.servers.urls)"
    if part in ("weights", "gradients", "optimizer", "gathered"):
        return "take a smaller model"
    if footprint.batches.device > 1:
        return f"lower device_batch_size below {footprint.batches.device}"
    return "allow shorter rows (max_length, sampling.max_new_tokens)"


def _part(size: int) -> str:
    return mib(size) if size else ""


def mib(size: int) -> str:
    """Bytes in MiB, as printed."""
    return f"{round(size / (1 << 20)):,}"
