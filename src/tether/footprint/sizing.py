"""`tether plan --size`: a training step on paper, and what would help where it does not fit."""

from dataclasses import replace
from math import isinf

from rich import box
from rich.table import Table
from rich.text import Text

from tether.errors import ConfigError
from tether.footprint.paper import (
    PARTS,
    SERVER_SHARE,
    Adapter,
    Job,
    SizingConfig,
    held,
    memory,
    peak,
    server_rows,
)
from tether.footprint.roofline import times
from tether.progress import results

FEW_ROWS = 64  # decoded together, where memory is short
MOST_GPUS = 4096  # where looking for a number of GPUs that suffices ends


def command(arguments: list[str]) -> None:
    """`tether plan --size …`: parse and print."""
    import tyro

    flags = (tyro.conf.FlagCreatePairsOff,)
    size(tyro.cli(SizingConfig, args=arguments, prog="tether plan", config=flags))


def size(config: SizingConfig) -> None:
    """Print memory by phase and part, the time of each phase with what bounds it, and assumptions.

    Raises:
        ConfigError: It does not fit; the numbers, and what would help.
    """
    job = Job.of(config)
    results.print(Text(heading(job), style="bold"), Text())
    results.print(memory_table(job), Text(), time_table(job), Text())
    for line in assumptions(job):
        results.print(Text(line, style="dim"), soft_wrap=True)
    if not fits(job):
        raise ConfigError(refusal(job))


def fits(job: Job) -> bool:
    """Whether every training GPU holds its peak, and every server a row."""
    return peak(job) <= job.card.memory and (not job.config.servers or server_rows(job) > 0)


def heading(job: Job) -> str:
    """What is sized, in one line."""
    config = job.config
    what = f"LoRA of rank {config.lora.rank}" if config.lora.rank else "all weights"
    where = f"{job.trainers} × {config.card} train"
    if config.servers:
        where += f", {config.servers} sample in servers of {job.split}"
    elif job.online:
        where += " and sample"
    billions = job.shape.parameters / 1e9
    return f"{config.method}, {config.size} ({billions:.2f} billion parameters), {what}; {where}"


def memory_table(job: Job) -> Table:
    """One column a phase, one row a part, in GB (10⁹ bytes) on each GPU that trains."""
    phases = memory(job)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("GB on each training GPU", no_wrap=True)
    for name in phases:
        table.add_column(name, justify="right", no_wrap=True)
    for part in PARTS:
        if any(parts[part] for parts in phases.values()):
            table.add_row(part, *(gb(parts[part]) for parts in phases.values()))
    table.add_section()
    table.add_row("sum", *(gb(parts.total()) for parts in phases.values()), style="bold")
    table.add_row(f"of {gb(job.card.memory)}", *(_fit(job, p.total()) for p in phases.values()))
    return table


def _fit(job: Job, total: int) -> str:
    return "fits" if total <= job.card.memory else "too much"


def time_table(job: Job) -> Table:
    """Seconds a step at the card's rates and at the shares of them, and what bounds each phase."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("seconds a step", no_wrap=True)
    for name in ("at the least", "bound by", "at the shares", "bound by"):
        table.add_column(name, justify="left" if name == "bound by" else "right", no_wrap=True)
    least, likely = times(job), times(job, job.config.shares)
    for a, b in zip(least, likely, strict=True):
        table.add_row(a.phase, seconds(a.seconds), a.bound, seconds(b.seconds), b.bound)
    table.add_section()
    sums = [seconds(sum(each.seconds for each in part)) for part in (least, likely)]
    table.add_row("sum", sums[0], "", sums[1], "", style="bold")
    return table


def assumptions(job: Job) -> list[str]:
    """What was taken for granted, one line each."""
    config, card, shares = job.config, job.card, job.config.shares
    lines = [
        f"{config.card}: {card.flops / 1e12:.0f} TFLOP/s in bfloat16, memory {gb(card.memory)} GB "
        f"at {card.bandwidth / 1e12:.2f} TB/s, {card.link / 1e9:.0f} GB/s to each card of a machine"
        f" of {config.gpus_per_machine}, {card.network / 1e9:g} GB/s a card between machines",
        f"shares of these: products {shares.products:g}, memory while decoding {shares.memory:g}, "
        f"links {shares.links:g}; phases one after the other, transfers beside products",
        f"a step: {config.batch_size} {_examples(job)}, prompts of {config.prompt_tokens} and "
        f"completions of {config.completion_tokens} tokens, all of full length; {job.rows} rows a "
        f"GPU in passes of {job.device_rows}; epochs {job.epochs}, an optimizer step in each",
        "float32: weights, gradients, moments (8 bytes), frozen models, and what is gathered (4 "
        f"bytes a parameter); products in bfloat16; activations "
        f"{'computed anew' if config.gradient_checkpointing else 'kept'}",
        f"trained: {held(job).trained + held(job).adapters:,} parameters; frozen: "
        f"{held(job).frozen + held(job).frozen_adapters:,}",
    ]
    if job.sharded:
        lines.append(
            f"sharded over {job.trainers}: one layer gathered and one fetched ahead; embedding, "
            "last norm and head stay gathered from forward to backward pass"
        )
    if job.sharded and job.online and not config.servers:
        lines.append("each process samples by a whole float32 copy of the policy")
    if config.servers:
        lines.append(
            f"a server: weights in bfloat16 over {job.split} GPUs, {SERVER_SHARE:.0%} of their "
            f"memory, room for {server_rows(job)} full rows of those it is sent"
        )
    return lines


def _examples(job: Job) -> str:
    if job.online:
        return "completions"
    return "texts" if job.config.method == "sft" else "pairs"


def refusal(job: Job) -> str:
    """One line: what is too much, and what would help."""
    if job.config.servers and not server_rows(job):
        return f"servers={job.config.servers}: a server of {job.split} GPUs cannot hold a row"
    name, parts = max(memory(job).items(), key=lambda item: item[1].total())
    found = mends(job)
    told = ", or ".join(f"{what} ({gb(total)} GB)" for what, total in found)
    return (
        f"gpus={job.config.gpus}: {name} needs {gb(parts.total())} GB on each {job.config.card}, "
        f"which has {gb(job.card.memory)}; "
        + (f"it would fit with {told}" if told else "no single setting makes it fit")
    )


def mends(job: Job) -> list[tuple[str, int]]:
    """What would make it fit, each with the bytes that it then needs.

    Single changes if any do, else all together, cheapest first, until it fits.
    """
    steps = _changes(job)
    single = [(what, step) for what, step in steps if fits(step)]
    if not single:
        single = _together(job, [what for what, _ in steps])
    return [(what, peak(step)) for what, step in single]


def _changes(job: Job) -> list[tuple[str, Job]]:
    """Changes that cost time rather than quality first; more GPUs last."""
    config, found = job.config, list[tuple[str, SizingConfig]]()
    if not config.gradient_checkpointing:
        found.append(("--gradient-checkpointing", replace(config, gradient_checkpointing=True)))
    if config.device_batch_size > 1:
        found.append(("--device-batch-size 1", replace(config, device_batch_size=1)))
    if job.online and not config.servers and config.sampling_batch_size > FEW_ROWS:
        changed = replace(config, sampling_batch_size=FEW_ROWS)
        found.append((f"--sampling-batch-size {FEW_ROWS}", changed))
    if job.online and not config.servers and job.trainers > job.split:
        most = max(config.gpus // 4 // job.split, 1) * job.split
        found.append((f"--servers {most}", replace(config, servers=most)))
    if not config.lora.rank:
        found.append(("--lora.rank 16", replace(config, lora=Adapter(rank=16))))
    jobs = [(what, job._replace(config=each)) for what, each in found]
    more = _more(job)
    return [*jobs, (f"--gpus {more.config.gpus}", more)] if more else jobs


def _more(job: Job) -> Job | None:
    """The same on the least power of two times as many GPUs that is enough; None if none is."""
    num = 2 * job.config.gpus
    while num <= MOST_GPUS:
        more = job._replace(config=replace(job.config, gpus=num))
        if fits(more):
            return more
        num *= 2
    return None


def _together(job: Job, names: list[str]) -> list[tuple[str, Job]]:
    """The changes one upon the other, until it fits; none where it never does."""
    done: list[str] = []
    for name in names:
        found = dict(_changes(job)).get(name)
        if found:
            job = found
            done.append(name)
        if fits(job):
            return [(" ".join(done), job)]
    more = _more(job)
    return [(" ".join([*done, f"--gpus {more.config.gpus}"]), more)] if more else []


def gb(size: int) -> str:
    """Bytes in GB (10⁹), as printed."""
    return f"{size / 1e9:.1f}" if size else ""


def seconds(number: float) -> str:
    """Seconds, as printed: two digits below ten."""
    if isinf(number):
        return "never"
    return f"{number:.2f}" if number < 10 else f"{number:,.0f}"
