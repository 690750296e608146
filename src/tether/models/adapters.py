"""LoRA adapters: several on one frozen backbone, each under the name of its role.

    h = W·x + s·B·A·x,   s = α/r,   W frozen, A and B trained, B = 0 at the start

peft puts the layers in and defines the files. Which adapter computes is chosen for each forward
pass by `using`; "" is the base alone. Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685.
peft takes two seconds to import, so only what needs it does.
"""

import contextlib
import copy
import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tether.errors import ConfigError, ModelError
from tether.models.place import Device
from tether.rundir import fingerprint
from tether.sections import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD = "base_model.model.score.weight"  # the head of a reward model, in the file
MATRICES = ("lora_A", "lora_B")
OF_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
PLAIN = {"bias": "none", "use_dora": False, "lora_bias": False, "trainable_token_indices": None}


# --- which adapter computes -----------------------------------------------------------------------


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that hold adapters, by name."""
    return (
        (name, module) for name, module in model.named_modules() if hasattr(module, MATRICES[0])
    )


def active(model: nn.Module) -> str:
    """Name of the adapter that computes now; "" = none."""
    if not getattr(model, "peft_config", None):
        return ""
    for _, layer in lora_layers(model):
        return "" if layer.disable_adapters else layer.active_adapters[0]
    return ""


@contextlib.contextmanager
def using(model: nn.Module, adapter: str) -> Iterator[None]:
    """Context in which one adapter computes, or with "" none of them."""
    before = active(model)
    if before != adapter:
        _switch(model, adapter)
    try:
        yield
    finally:
        if before != adapter:
            _switch(model, before)


def _switch(model: nn.Module, adapter: str) -> None:
    """Make an adapter compute. peft would also stop the training of all others."""
    for _, layer in lora_layers(model):
        flags = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
        layer.enable_adapters(bool(adapter))
        if adapter:
            layer.set_adapter(adapter)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def recomputed_alike(model: nn.Module) -> Any:
    """For torch's checkpoints: what is computed anew uses the adapter of the first time."""

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), using(model, active(model))

    return contexts


def parameters(model: nn.Module, adapter: str) -> list[nn.Parameter]:
    """A and B of every layer of an adapter; with "" all parameters of the model."""
    return list(_matrices(model, adapter).values()) if adapter else list(model.parameters())


def _matrices(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """A and B of every layer, by their names in peft's files."""
    return {
        f"base_model.model.{name}.{matrix}.weight": getattr(layer, matrix)[adapter].weight
        for name, layer in lora_layers(model)
        for matrix in MATRICES
        if adapter in getattr(layer, matrix)
    }


# --- putting adapters on --------------------------------------------------------------------------


def prepare(
    model: PreTrainedModel,
    path: str,
    role: str,
    *,
    trainable: bool,
    lora: LoraConfig,
    seed: int = 0,
) -> str:
    """Put on a model what it needs for its role, and choose what of it is trained.

    With `lora.rank` an adapter is trained: a new one, or the one that `path` holds. Without,
    all weights are; an adapter that `path` holds is first folded into them. A model that is not
    trainable computes with the adapter that `path` holds.

    Args:
        model: The model at `base_of(path)`.
        path: A model directory or that of an adapter.
        role: Name of the adapter.
        trainable: False freezes everything.
        lora: What adapter to train.
        seed: Of the new adapter's A.

    Returns:
        The role where the model got an adapter, else "".

    Raises:
        ConfigError: lora.targets fit nothing, or lora is not what the adapter at `path` is like.
        ModelError: The adapter at `path` does not fit the model.
    """
    model.requires_grad_(False)
    held = is_adapter(path)
    if held:
        if trainable and lora.rank:
            _require_alike(path, lora)
        attach_from(model, role, path, trainable=trainable)
    elif trainable and lora.rank:
        attach(model, role, lora, seed=seed)
    if trainable and not lora.rank:
        if held:
            fold(model, role)
        model.requires_grad_(True)
        return ""
    return role if held or (trainable and lora.rank) else ""


def attach(model: PreTrainedModel, name: str, lora: LoraConfig, *, seed: int) -> None:
    """Put a new adapter on a frozen model; as B is 0, it computes what the model did.

    Raises:
        ConfigError: A target names no linear layer, or one that peft does not adapt.
    """
    from peft import LoraConfig as PeftConfig

    linear = linear_layers(model)
    short = sorted({layer.rpartition(".")[2] for layer in linear})
    for target in lora.targets:
        if not any(f".{layer}".endswith(f".{target}") for layer in linear):
            raise ConfigError(
                f"lora.targets={lora.targets!r}: {target!r} is no linear layer of this "
                f"{type(model).__name__}; it has {', '.join(short)}"
            )
    config = PeftConfig(
        r=lora.rank,
        lora_alpha=cast(int, lora.alpha or 2 * lora.rank),
        target_modules=list(lora.targets) or short,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear.values()),
    )
    try:
        _inject(model, name, config, trainable=True, seed=seed)
    except ValueError as error:  # parts that fused kernels read past their layers, as in Mamba
        raise ConfigError(f"lora.targets={sorted(config.target_modules or ())}: {error}") from None


def attach_from(model: PreTrainedModel, name: str, path: str, *, trainable: bool) -> None:
    """Put the adapter of a directory on the model that is its base.

    Raises:
        ModelError: It is not plain LoRA, or fits another model.
    """
    from peft import LoraConfig as PeftConfig

    config = cast(Any, PeftConfig.from_pretrained(path))
    config.lora_dropout, config.modules_to_save, config.init_lora_weights = 0.0, None, True
    other = f"adapter {path!r} does not fit {type(model).__name__} {model.name_or_path!r}"
    try:
        _inject(model, name, config, trainable=trainable, seed=0)
    except ValueError:
        targets = sorted(config.target_modules or ())
        raise ModelError(f"{other}: it has no {targets}; name the adapter's own base") from None
    stored = read_weights(path)
    matrices = _matrices(model, name)
    if strange := (stored.keys() ^ matrices.keys()) - {HEAD}:
        raise ModelError(f"{other}: {min(strange)!r} is in one of them only; name its own base")
    with torch.no_grad():
        for key, parameter in matrices.items():
            if parameter.shape != stored[key].shape:
                there, here = list(stored[key].shape), list(parameter.shape)
                raise ModelError(f"{other}: {key!r} is {there} and would have to be {here}")
            parameter.copy_(stored[key])


def _inject(model: PreTrainedModel, name: str, config: Any, *, trainable: bool, seed: int) -> None:
    """Let peft put an adapter in, without a change to what else is trained; none computes yet."""
    from peft import inject_adapter_in_model

    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # several adapters on one model are meant
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, name)
    for parameter in model.parameters():
        parameter.requires_grad_(flags.get(parameter, trainable))
    _switch(model, "")


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers below the head, by name, whether they hold adapters or not.

    In a mixture of experts without those that peft takes for the experts' own, which transformers
    keeps as one block of numbers.
    """
    base, prefix = model.base_model, model.base_model_prefix
    mixture = any(p.dim() == 3 and ".experts." in name for name, p in base.named_parameters())
    found: dict[str, nn.Module] = {}
    for name, module in base.named_modules(prefix=prefix):
        own = name.removesuffix(".base_layer")
        if mixture and own.rpartition(".")[2] in OF_EXPERTS:
            continue
        if isinstance(module, nn.Linear | Conv1D) and ".lora_" not in name:
            found[own] = module
    return found


def fold(model: PreTrainedModel, adapter: str) -> None:
    """Add an adapter to the weights, W + s·B·A, and take all adapters off."""
    for name, layer in list(lora_layers(model)):
        layer.merge(adapter_names=[adapter])
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config


def quantized(lora: LoraConfig, place: Device) -> dict[str, Any]:
    """What loads a base in 4 bits where `lora.quantize` asks for it.

    Raises:
        ConfigError: There is no GPU, or no bitsandbytes.
    """
    if lora.quantize == "none":
        return {}
    if place.device.type != "cuda":
        raise ConfigError(f"lora.quantize={lora.quantize!r} needs a GPU; set it to 'none' here")
    if importlib.util.find_spec("bitsandbytes") is None:
        told = "needs bitsandbytes; pip install 'tether[bnb]'"
        raise ConfigError(f"lora.quantize={lora.quantize!r} {told}")
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=place.dtype
    )
    return {"quantization_config": settings, "device_map": {"": place.device}}


# --- directories ----------------------------------------------------------------------------------


def is_adapter(path: str) -> bool:
    """Whether a directory holds an adapter and not a model."""
    folder = Path(path)
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(path: str) -> str:
    """The base that an adapter directory names; of anything else `path` itself.

    Raises:
        ModelError: The base is not there, or the adapter is of another kind than plain LoRA.
    """
    if not is_adapter(path):
        return path
    settings = json.loads((Path(path) / CONFIG).read_text(encoding="utf-8"))
    strange = [
        name for name, plain in PLAIN.items() if settings.get(name, plain) not in (plain, None)
    ]
    if settings.get("peft_type") != "LORA" or strange:
        kind = ", ".join([str(settings.get("peft_type")), *strange])
        raise ModelError(f"adapter {path!r} is {kind}; only plain LoRA can be used")
    base = settings.get("base_model_name_or_path") or ""
    if not base or (Path(base).is_absolute() and not Path(base).is_dir()):
        raise ModelError(
            f"the base {base!r} of adapter {path!r} is not there; put it back, or name its place "
            f"as base_model_name_or_path in {Path(path) / CONFIG}"
        )
    return base


def on(model: PreTrainedModel, path: str) -> bool:
    """Whether an adapter directory is of the base that a model was loaded from.

    That is so where it names the same place, or one with the same files.
    """
    own, base = base_of(path), str(model.name_or_path)
    same = own == base or Path(own).resolve() == Path(base).resolve()
    return same or fingerprint(own) == fingerprint(base)


def free_name(model: nn.Module, role: str) -> str:
    """The role, or the first of role-2, role-3, … that no adapter of the model has."""
    taken = getattr(model, "peft_config", {})
    names = (role, *(f"{role}-{i}" for i in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def read_weights(path: str) -> dict[str, Tensor]:
    """All tensors of an adapter directory.

    Raises:
        ModelError: Its file is missing or cannot be read.
    """
    try:
        return load_file(Path(path) / WEIGHTS)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"adapter {path!r} has no usable {WEIGHTS}: {reason}") from None


def save(
    model: PreTrainedModel, adapter: str, folder: Path, *, score: nn.Linear | None = None
) -> None:
    """Write an adapter in peft's format, with the head of a reward model where there is one."""
    tensors = {key: p.detach().cpu().contiguous() for key, p in _matrices(model, adapter).items()}
    config = copy.deepcopy(cast(Any, model).peft_config[adapter])
    config.task_type = "CAUSAL_LM" if score is None else "SEQ_CLS"
    if score is not None:
        tensors[HEAD] = score.weight.detach().cpu().contiguous()
        config.modules_to_save = ["score"]
    base = str(model.name_or_path)
    config.base_model_name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    config.target_modules = sorted(config.target_modules)
    config.inference_mode = True
    config.save_pretrained(folder)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _require_alike(path: str, lora: LoraConfig) -> None:
    """Refuse settings of a new adapter that the one to be trained on does not have.

    Raises:
        ConfigError: Names the first that differs.
    """
    there = json.loads((Path(path) / CONFIG).read_text(encoding="utf-8"))
    asked: dict[str, tuple[float, float]] = {"rank": (lora.rank, there["r"])}
    if lora.alpha:
        asked["alpha"] = (lora.alpha, there["lora_alpha"])
    for name, (here, held) in asked.items():
        if here != held:
            raise ConfigError(
                f"lora.{name}={here!r} but the adapter {path!r}, which is to be trained on, has "
                f"{held}; set lora.{name} = {held}, or `tether merge` it first"
            )
    if lora.targets and sorted(lora.targets) != sorted(there["target_modules"]):
        held = sorted(there["target_modules"])
        raise ConfigError(
            f"lora.targets={lora.targets!r} but the adapter {path!r}, which is to be trained on, "
            f"has {held}; leave them out, or `tether merge` it first"
        )
