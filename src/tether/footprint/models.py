"""Models without weights, and the dry run that they live in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tether.footprint.dry_run import DryRun, idle_kernels
from tether.models import adapters
from tether.models.language_model import (
    FULL,
    Device,
    LanguageModel,
    load_config,
    load_tokenizer,
    pick_device,
)
from tether.models.scalar_head import Centering, RewardModel, head_of
from tether.sections import ComputeConfig, LoraConfig

NEVER_ENDS = frozenset([-1])  # no token of a dry run ends a completion


@contextmanager
def dry_run(path: str, compute: ComputeConfig) -> Iterator[tuple[DryRun, Device]]:
    """A dry run around the model at `path`, and the place for all models in it.

    Shapes live on the CPU, also those of what will run on a GPU, where C kernels are absent.
    """
    place = pick_device(compute)
    dry = DryRun(load_config(adapters.base_of(path)).get_text_config().vocab_size)
    with idle_kernels(absent=place.device.type != "cpu"), dry:
        yield dry, place._replace(device=torch.device("cpu"))


def language_model(
    path: str, place: Device, *, trainable: bool = False, lora: LoraConfig = FULL
) -> LanguageModel:
    """The language model at `path` without its weights."""
    model = AutoModelForCausalLM.from_config(
        load_config(adapters.base_of(path)),
        dtype=torch.float32,
        attn_implementation=place.attention,
    )
    model.eval()  # dropout is 0 in training, too
    adapter = adapters.prepare(model, path, "policy", trainable=trainable, lora=lora)
    return LanguageModel(model, load_tokenizer(path), NEVER_ENDS, place, adapter)


def reward_beside(
    policy: LanguageModel, path: str, lora: LoraConfig, role: str
) -> RewardModel | None:
    """A reward model as an adapter on the policy's backbone; None where it is a model of its own.

    What an earlier stage is yet to make looks like the base that it starts from, and is taken to be
    an adapter like the policy's.
    """
    if not (policy.adapter and adapters.on(policy.model, path)):
        return None
    name = adapters.free_name(policy.model, role)
    if adapters.is_adapter(path):
        adapters.attach_from(policy.model, name, path, trainable=role == "value")
    else:
        adapters.attach(policy.model, name, lora, seed=0)
        for parameter in adapters.parameters(policy.model, name):
            parameter.requires_grad_(role == "value")
    head = torch.nn.Linear(policy.model.config.get_text_config().hidden_size, 1, bias=False)
    head.requires_grad_(role == "value")
    centering, tokenizer = Centering(0.0, 1.0), policy.tokenizer
    return RewardModel(policy.model, head, policy.place, tokenizer, centering, adapter=name)


def reward_model(
    path: str, place: Device, *, trainable: bool = False, lora: LoraConfig = FULL, heads: int = 1
) -> RewardModel:
    """The reward model at `path`, or one on the backbone of the model there."""
    config = load_config(adapters.base_of(path))
    config.num_labels = heads
    model = AutoModelForSequenceClassification.from_config(
        config, dtype=torch.float32, attn_implementation=place.attention
    )
    model.eval()
    adapter = adapters.prepare(model, path, "reward", trainable=trainable, lora=lora)
    head, encoder = head_of(model)
    head.requires_grad_(trainable)
    tokenizer, centering = load_tokenizer(path), Centering(0.0, 1.0)
    return RewardModel(model, head, place, tokenizer, centering, encoder=encoder, adapter=adapter)
