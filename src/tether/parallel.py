"""Several processes that train one model; in one process nothing here does anything.

Every process reads the same data and so knows the whole batch. The forward passes over it are
dealt out like cards, each loss is divided by the counts of the whole batch, and gradients are
summed: so one process and many do the same arithmetic, but for the order of the sums.

With `compute.parallel = "fsdp"` the weights, gradients and moments of a model are sharded as well
(torch's `fully_shard`): each decoder layer by itself, the rest of the model at its root. A sharded
forward or backward pass gathers weights from all processes, so all must make as many; where the
passes do not come out even, some are made again and count 0. Adapters (LoRA) and heads to one
number are small and stay whole in every process.
"""

import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from tether.ranks import alone, count, leads, local_rank, rank

__all__ = ["alone", "count", "leads", "local_rank", "rank"]

T = TypeVar("T")
Place = TypeVar("Place", bound=Any)  # models.place.Device
PATIENCE = timedelta(hours=2)  # one process may compute alone for so long while others wait
BUCKET = 1 << 24  # numbers that are summed over the processes in one go


# --- coming together ------------------------------------------------------------------------------


def join() -> None:
    """Join the processes that the environment names, once; alone there is nothing to join."""
    if count() > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)


def leave() -> None:
    """Leave the group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait() -> None:
    """Wait until every process has come here."""
    if count() > 1:
        join()
        dist.all_reduce(torch.zeros(1))


# --- work dealt out -------------------------------------------------------------------------------


def rows_a_pass(num_rows: int, limit: int) -> int:
    """Rows of a forward pass so that every process gets one; `limit` as in device_batch_size."""
    if count() == 1:
        return limit
    share = -(-num_rows // count())
    return max(min(limit or share, share), 1)


def dealt(passes: Iterable[T]) -> Iterator[tuple[T, float]]:
    """This process's part of the passes over a batch, each with what it counts: 1, or 0.

    All processes get as many: those for which none is left make the last one again, which counts 0.
    """
    if count() == 1:
        yield from ((one, 1.0) for one in passes)  # each is made when its turn comes
        return
    every = list(passes)
    for start in range(0, len(every), count()):
        own = start + rank()
        yield (every[own], 1.0) if own < len(every) else (every[-1], 0.0)


def part(items: Sequence[T]) -> list[T]:
    """This process's part of what needs no passes in step: every n-th item."""
    return list(items[rank() :: count()])


def together(own: list[T]) -> list[T]:
    """The items of all processes in order, from `part` of them in each."""
    if count() == 1:
        return own
    parts: list[Any] = [None] * count()
    join()
    dist.all_gather_object(parts, own)
    every: list[T | None] = [None] * sum(len(each) for each in parts)
    for first, each in enumerate(parts):
        every[first :: count()] = each
    return cast(list[T], every)


def told(value: T) -> T:
    """What the first process says, in all of them."""
    if count() == 1:
        return value
    box: list[Any] = [value]
    join()
    dist.broadcast_object_list(box)
    return box[0]


def any_of(flag: bool) -> bool:
    """True in all processes where it is so in one."""
    return bool(summed(torch.tensor(float(flag)))) if count() > 1 else flag


def summed(tensor: Tensor) -> Tensor:
    """Sum over the processes; the tensor itself where there is one."""
    if count() == 1:
        return tensor
    join()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def summed_figures(figures: dict[str, float]) -> dict[str, float]:
    """Sum of each figure over the processes, in float64."""
    if count() == 1:
        return figures
    total = summed(torch.tensor(list(figures.values()), dtype=torch.float64))
    return dict(zip(figures, total.tolist(), strict=True))


# --- gradients ------------------------------------------------------------------------------------


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients of whole parameters over the processes; those of shards are sums already.

    A parameter without a gradient here counts 0 where another process has one.
    """
    if count() == 1:
        return
    whole = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
    used = summed(torch.tensor([float(p.grad is not None) for p in whole])).tolist()
    for bucket in _buckets([p for p, times in zip(whole, used, strict=True) if times]):
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for p, grad in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            p.grad = grad.view_as(p)


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(p.numel() for p in bucket) + parameter.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def clip(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale gradients down to a norm of `limit`; returns the norm before, of all shards together.

    Source: as `torch.nn.utils.clip_grad_norm_`, which takes whole parameters only or shards only.
    """
    held = [p for p in parameters if p.grad is not None]
    shards = [p for p in held if isinstance(p, DTensor)]
    if not shards:
        return float(nn.utils.clip_grad_norm_(held, limit))
    whole = [p for p in held if not isinstance(p, DTensor)]
    norms = [whole_tensor(_norm(each)) for each in (shards, whole) if each]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    for each in (shards, whole):
        nn.utils.clip_grads_with_norm_(each, limit, norm)
    return float(norm)


def _norm(parameters: Sequence[Tensor]) -> Tensor:
    return nn.utils.get_total_norm([cast(Tensor, p.grad) for p in parameters])


# --- sharded models -------------------------------------------------------------------------------


def before_sharding(place: Place, kind: str) -> Place:
    """Where to load a model that will be sharded: in the CPU's memory, which holds it whole."""
    sharded = count() > 1 and kind == "fsdp"
    return place._replace(device=torch.device("cpu")) if sharded else place


def shard(model: nn.Module, kind: str, device: torch.device) -> None:
    """Shard a model over the processes, for `kind` "fsdp", and bring it to its device.

    Its forward pass is then `model.backbone(**inputs)`, the last hidden states, and `.reshard()`
    lets go of the weights that a pass without gradients has gathered. A model without a list of
    decoder layers (an encoder) stays whole.
    """
    layers = decoder_layers(model)
    if count() == 1 or kind != "fsdp" or isinstance(model, FSDPModule):
        return
    if layers is None:
        model.to(device)
        return
    join()
    mesh = init_device_mesh(device.type, (count(),))
    small = {p for n, p in model.named_parameters() if ".lora_" in n or n.startswith("score.")}
    for parameter in small:
        parameter.data = parameter.data.to(device)
    for layer in layers:  # each comes to the device, whole, and is cut before the next
        fully_shard(layer, mesh=mesh, ignored_params=small)

    setattr(model, "backbone", types.MethodType(_backbone, model))  # noqa: B010
    # The root's own weights, embeddings and head, stay gathered from a forward pass to its backward
    # pass, since the head is read outside of any forward.
    fully_shard(model, mesh=mesh, reshard_after_forward=False, ignored_params=small)
    register_fsdp_forward_method(model, "backbone")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are divided by counts of all processes
            module.set_force_sum_reduction_for_comms(True)


def _backbone(model: Any, **inputs: Any) -> Tensor:
    return model.base_model(**inputs).last_hidden_state


def decoder_layers(model: nn.Module) -> nn.ModuleList | None:
    """The layers of a decoder; None of what has none."""
    base = getattr(model, "base_model", model)
    config: Any = getattr(model, "config", None)
    count = getattr(config, "num_hidden_layers", None) if config else None
    found = [m for _, m in base.named_children() if isinstance(m, nn.ModuleList)]
    inside = [m for child in base.children() for m in child.children()]
    found += [m for m in inside if isinstance(m, nn.ModuleList)]
    return next((each for each in found if len(each) == count), None)


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is a shard of a larger one."""
    return isinstance(tensor, DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Whether weights of a model are spread over the processes."""
    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Let go of gathered weights, so that the next pass gathers what they are then."""
    if not is_sharded(model):
        return
    for module in model.modules():
        if isinstance(module, FSDPModule):
            cast(Callable[[], None], module.reshard)()


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor with all its shards, without gradient; every process must ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The whole state dict of a sharded model, on the CPU of the first process; {} in others.

    A tied weight is one tensor under both of its names, as in the model.
    """
    reshard(model)
    state: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in known:
            full = whole_tensor(tensor)
            known[id(tensor)] = full.cpu() if leads() else full.new_empty(0)
        state[name] = known[id(tensor)]
    return state if leads() else {}
