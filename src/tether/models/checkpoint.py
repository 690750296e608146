"""Checkpoints: everything needed to go on, whole or not at all, in safetensors and JSON.

    checkpoints/step-000120/  shard-00001-model-00001-of-00001.safetensors, …   tensors, or parts
                              state.json                                        step, β
                              checksums.json                                    SHA-256 of each file

Data order and sampling are functions of (seed, step), so weights, optimizer moments, the step and
a few numbers are all the state there is. Of several processes each writes the parts that it holds
(torch's distributed checkpoint); what all hold is written once. Any number of processes can read
it again.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from tether import parallel
from tether.disk import (
    aside_of,
    checkpoint_steps,
    fresh_aside,
    full_disk_told,
    put_in_place,
    step_of,
)
from tether.progress import console

T = TypeVar("T")
KEPT = 2  # the newest, to go on from, and one for the case that it is damaged
FILE_SIZE = 1 << 32  # bytes of tensors, of which each process puts its part into one file
STATE, CHECKSUMS = "state.json", "checksums.json"


def save_checkpoint(
    folder: Path,
    step: int,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Write `folder/step-000120/`; once it is on the disk, all but the newest two are removed.

    All processes that train together call it.

    Args:
        folder: The stage's `checkpoints/`.
        step: Steps done.
        modules: Modules whose parameters are trained, by name; a tied parameter is stored once.
        optimizer: Its moments are stored in full precision.
        state: Whatever else must be restored, as JSON values.

    Raises:
        DiskError: The disk is full; the checkpoints that were there still are.
    """
    path = folder / f"step-{step:06d}"
    aside = aside_of(path)
    parameters = _parameters(modules)

    def seal() -> None:
        (aside / STATE).write_text(json.dumps({**state, "step": step}), encoding="utf-8")
        sums[STATE] = _sha256(aside / STATE)
        (aside / CHECKSUMS).write_text(json.dumps(sums, indent=2), encoding="utf-8")
        put_in_place(aside, path)
        _prune(folder, step)

    with full_disk_told(path):
        try:
            _by_first(lambda: fresh_aside(path))
            _write_tensors(aside, parameters | _moments(parameters, optimizer))
            sums = _checksums(aside)
            _by_first(seal)
        except BaseException:
            if parallel.leads():
                shutil.rmtree(aside, ignore_errors=True)
            raise


def load_checkpoint(
    folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Restore the newest good checkpoint in place and return its state; None where there is none.

    One that is damaged is told of, and the one before is taken. All processes that train together
    call it.
    """
    path = _newest_good(folder)
    if path is None:
        return None
    parameters = _parameters(modules)
    moments = _moments_to_fill(path, parameters)
    _read_tensors(path, parameters | moments)
    _restore_moments(optimizer, parameters, moments)
    return parallel.told(json.loads((path / STATE).read_text(encoding="utf-8")))


# --- names of tensors -----------------------------------------------------------------------------


def _parameters(modules: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Trained parameters by name; `named_parameters` leaves out the second name of a tied one."""
    return {
        f"{role}.{name}": parameter
        for role, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def _moments(
    parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The optimizer's moments, named for their parameters, however its groups are cut."""
    return {
        f"optimizer.{name}.{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _moments_to_fill(path: Path, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Tensors for the moments of a checkpoint, sharded as their parameters are."""
    moments: dict[str, Tensor] = {}
    stored = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    for key, tensor in stored.items():
        parameter = parameters.get(key.removeprefix("optimizer.").rpartition(".")[0])
        if parameter is None or not isinstance(tensor, TensorStorageMetadata):
            continue
        dtype, like = tensor.properties.dtype, parameter.detach()
        a_number_each = tensor.size == like.shape
        moments[key] = torch.zeros_like(like) if a_number_each else torch.zeros(tensor.size)
        moments[key] = moments[key].to(dtype)
    return moments


def _restore_moments(
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter],
    moments: dict[str, Tensor],
) -> None:
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = {parameter: number for number, parameter in enumerate(grouped)}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in moments.items():
        of, _, key = name.removeprefix("optimizer.").rpartition(".")
        state.setdefault(numbers[parameters[of]], {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


# --- files ----------------------------------------------------------------------------------------


def _write_tensors(folder: Path, tensors: dict[str, Any]) -> None:
    """Write what each process holds into files of its own."""
    values = {name: tensor.detach() for name, tensor in tensors.items()}
    if parallel.count() == 1:  # the same file, without putting it together in memory
        return save_file(values, folder / "shard-00001-model-00001-of-00001.safetensors")
    writer = HuggingFaceStorageWriter(str(folder), _numbers_of_files(values), save_distributed=True)
    return _distributed(lambda: dcp.save(values, storage_writer=writer))


def _numbers_of_files(tensors: dict[str, Tensor]) -> dict[str, int]:
    """The file of each tensor, from 1; a file is put together in memory, so it must end."""
    numbers, size = {}, 0
    for name, tensor in tensors.items():
        numbers[name] = 1 + size // FILE_SIZE
        size += tensor.numel() * tensor.element_size()
    return numbers


def _read_tensors(folder: Path, tensors: dict[str, Any]) -> None:
    """Fill tensors in place, each process its own part."""
    reader = HuggingFaceStorageReader(str(folder))
    values = {name: tensor.detach() for name, tensor in tensors.items()}
    alone = parallel.count() == 1
    _distributed(lambda: dcp.load(values, storage_reader=reader, no_dist=alone))


def _distributed(work: Callable[[], Any]) -> None:
    """Save or load; what fails in one process is raised in all, as itself."""
    parallel.join()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            work()
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from None


def _in_all(work: Callable[[], T]) -> T:
    """Do it in every process; what it raises in one is raised in all."""
    value, error = None, None
    try:
        value = work()
    except Exception as raised:
        error = raised
    for raised in parallel.together([error]):
        if raised is not None:
            raise raised
    return cast(T, value)


def _by_first(work: Callable[[], Any]) -> None:
    """Let the first process do it while the others wait; what it raises is raised in all."""
    _in_all(lambda: work() if parallel.leads() else None)


def _prune(folder: Path, step: int) -> None:
    """Remove all but the newest checkpoints; those after `step` are damaged, so older than it."""
    steps = checkpoint_steps(folder)
    done = [path for path in steps if step_of(path) <= step]
    for path in {*steps} - {*done[-KEPT:]}:
        shutil.rmtree(path)


def _newest_good(folder: Path) -> Path | None:
    for path in reversed(parallel.told(checkpoint_steps(folder))):
        damage = _damage(path)
        if not damage:
            return path
        text = f"{path} is damaged ({damage}); the checkpoint before it is used, if there is one"
        console.print(text, soft_wrap=True)
    return None


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint, in a few words; "" where nothing is."""
    sums = parallel.told(_read_checksums(path))
    names = parallel.part(sorted(sums))
    found = parallel.together([_damage_of(path / name, sums[name]) for name in names])
    return next(filter(None, found), "") if STATE in sums else f"{CHECKSUMS} cannot be read"


def _read_checksums(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads((path / CHECKSUMS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _damage_of(file: Path, checksum: str) -> str:
    try:
        return "" if _sha256(file) == checksum else f"{file.name} has another checksum"
    except OSError as error:
        return f"{file.name}: {error.strerror}"


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that is there, read back by the processes together."""
    names = parallel.told(sorted(file.name for file in folder.iterdir()))
    sums = _in_all(lambda: [_sha256(folder / name) for name in parallel.part(names)])
    return dict(zip(names, parallel.together(sums), strict=True))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
