"""Models without weights, and the dry run that they live in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tether.footprint.dry_run import DryRun, idle_kernels
from tether.models.language_model import (
    Device,
    LanguageModel,
    load_config,
    load_tokenizer,
    pick_device,
)
from tether.models.scalar_head import Centering, RewardModel, head_of
from tether.sections import ComputeConfig

NEVER_ENDS = frozenset([-1])  # no token of a dry run ends a completion


@contextmanager
def dry_run(path: str, compute: ComputeConfig) -> Iterator[tuple[DryRun, Device]]:
    """A dry run around the model at `path`, and the place for all models in it.

    Shapes live on the CPU, also those of what will run on a GPU, where C kernels are absent.
    """
    place = pick_device(compute)
    dry = DryRun(load_config(path).get_text_config().vocab_size)
    with idle_kernels(absent=place.device.type != "cpu"), dry:
        yield dry, place._replace(device=torch.device("cpu"))


def language_model(path: str, place: Device, *, trainable: bool = False) -> LanguageModel:
    """The language model at `path` without its weights."""
    model = AutoModelForCausalLM.from_config(
        load_config(path), dtype=torch.float32, attn_implementation=place.attention
    )
    model.eval().requires_grad_(trainable)  # dropout is 0 in training, too
    return LanguageModel(model, load_tokenizer(path), NEVER_ENDS, place)


def reward_model(
    path: str, place: Device, *, trainable: bool = False, heads: int = 1
) -> RewardModel:
    """The reward model at `path`, or one on the backbone of the model there."""
    config = load_config(path)
    config.num_labels = heads
    model = AutoModelForSequenceClassification.from_config(
        config, dtype=torch.float32, attn_implementation=place.attention
    )
    model.eval().requires_grad_(trainable)
    head, reads_both_ways = head_of(model)
    centering = Centering(0.0, 1.0)
    return RewardModel(model, head, place, load_tokenizer(path), centering, encoder=reads_both_ways)
