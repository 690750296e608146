"""Hugging Face causal language models in and out, and the one forward pass that all stages use.

Everything that calls a model goes through `hidden_states`: it alone decides about attention masks
and positions. (transformers isolates packed rows only when no attention mask is passed and the
cache is off; with either it silently lets rows see each other.)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from tether import parallel
from tether.core import kl, logprobs
from tether.data.batches import Batch
from tether.errors import ModelError
from tether.kernels import head
from tether.models import adapters, layouts, llama, logits
from tether.models.place import Device, at_work, pick_device, rest
from tether.models.templates import template_facts
from tether.models.vocabulary import give_every_token_a_row, load_tokenizer, stop_ids
from tether.rundir import write_json
from tether.sections import ComputeConfig, LoraConfig

# What it warns of (a head that is new, a bar for one small file) is meant to be so here.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

LOGITS_AT_ONCE = 1 << 25  # numbers; 128 MiB in float32
FULL = LoraConfig()  # no adapter
USUAL = ComputeConfig()  # the best device there is


@dataclass
class LanguageModel:
    """A causal language model with what is needed to sample and score with it.

    It computes with the adapter of that name on its backbone, which others may share; "" = none.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]
    place: Device
    adapter: str = ""

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        """Its adapter's parameters, or all where it has none."""
        return adapters.parameters(self.model, self.adapter)

    @property
    def max_positions(self) -> int:
        """Longest row, in tokens."""
        return max_positions(self.model.config)

    @property
    def head_weight(self) -> Tensor | None:
        """Weight (V, D) of the head; None where it does more than multiply by it."""
        head, config = self.model.get_output_embeddings(), self.model.config
        if (
            not isinstance(head, nn.Linear)
            or type(head) is not nn.Linear
            or head.bias is not None
            or logits.changes(config)
        ):
            return None
        return head.weight

    def head(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Logits of hidden states, in float32."""
        with torch.autocast(self.place.device.type, enabled=False):
            found = cast(nn.Module, self.model.get_output_embeddings())(hidden.float())
        return logits.transform(self.model.config, found)

    def hidden_states(self, batch: Batch, where: Bool[Tensor, "B S"]) -> Float[Tensor, "N D"]:
        """Last hidden states of the tokens of a batch where `where` is True, row after row."""
        return hidden_states(self.model, self.place, batch, where, self.adapter)


def load(
    path: str,
    compute: ComputeConfig = USUAL,
    *,
    trainable: bool = False,
    lora: LoraConfig = FULL,
    seed: int = 0,
    shard: bool = False,
) -> LanguageModel:
    """Load a causal language model and its tokenizer; dropout is set to 0.

    What is trained is said in `adapters.prepare`: with `lora.rank` an adapter named "policy", else
    all weights. A directory of an adapter is loaded on its base.

    Args:
        path: Hugging Face directory or hub id, or directory of a LoRA adapter.
        compute: Device and precision. Weights are float32 whatever the compute precision.
        trainable: False freezes the weights.
        lora: The adapter to train.
        seed: Of a new adapter.
        shard: True spreads the weights over the processes, where there are several.

    Raises:
        ModelError: No such directory, or no causal language model whose tokenizer fits it.
        ConfigError: `lora` does not fit the model, the adapter or the machine.
    """
    place, base = pick_device(compute), adapters.base_of(path)
    first = parallel.before_sharding(place, compute.parallel) if shard else place
    model = from_pretrained(AutoModelForCausalLM, base, first, lora=lora if trainable else FULL)
    tokenizer, adapted = load_tokenizer(path), base != path or (trainable and lora.rank > 0)
    give_every_token_a_row(model, tokenizer, adapted=adapted)
    language_model = LanguageModel(model, tokenizer, stop_ids(model, tokenizer), place)
    _check_head(language_model)
    language_model.adapter = adapters.prepare(
        model, path, "policy", trainable=trainable, lora=lora, seed=seed
    )
    if shard:
        parallel.shard(model, compute.parallel, place.device)
    rest(model, place)
    return language_model


def from_pretrained(
    auto: Any,
    path: str,
    place: Device,
    *,
    lora: LoraConfig = FULL,
    new_head: tuple[str, ...] = (),
    **changes: Any,
) -> PreTrainedModel:
    """A model of the auto class, in float32, without dropout, on its device.

    Args:
        auto: One of transformers' `AutoModelFor…`.
        path: Hugging Face directory or hub id.
        place: Where to compute.
        lora: Says whether the weights are to be quantized.
        new_head: Parts of the names of weights that the directory need not hold.
        changes: New values of fields of the model's configuration.

    Raises:
        ModelError: It cannot be read, or lacks weights (transformers would draw them at random).
    """
    config = load_config(path)
    if auto == AutoModelForCausalLM and config.is_encoder_decoder:
        kind = config.model_type
        raise ModelError(
            f"model={path!r} is an encoder-decoder ({kind}); give a decoder-only model"
        )
    _set_noise_off(config)
    for name, value in changes.items():
        setattr(config, name, value)
    settings = {"attn_implementation": place.attention, **adapters.quantized(lora, place)}
    model = _read(auto, path, config, settings, new_head)
    model.to(place.device)  # pyright: ignore[reportArgumentType]
    if hasattr(model, "score") or auto == AutoModelForCausalLM:
        layouts.keeps_apart(model)  # found out now, while every process loads the same model
    if place.checkpointing:  # for transformers' own forward; which is deprecated the older name
        name = "activation_checkpointing_enable"
        enable = getattr(model, name, None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False, "context_fn": adapters.recomputed_alike(model)})
        model.eval()
    return model


def _read(
    auto: Any,
    path: str,
    config: PretrainedConfig,
    settings: dict[str, Any],
    new_head: tuple[str, ...],
) -> PreTrainedModel:
    try:
        model, found = auto.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **settings,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        if "Unrecognized configuration class" in reason:
            kind = "causal model" if auto == AutoModelForCausalLM else "sequence classifier"
            reason = f"transformers has no {kind} of {config.model_type!r}"
        raise ModelError(f"model={path!r} cannot be loaded: {reason}") from None
    unfit = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    unfit = {name for name in unfit if not any(part in name for part in new_head)}
    name = type(model).__name__
    if unfit:
        raise ModelError(
            f"model={path!r} has no fitting weights for {min(unfit)!r} ({len(unfit)} in all) of a "
            f"{name}; give a directory that was saved as one"
        )
    if model.base_model is model:
        raise ModelError(f"model={path!r}: {name} has no backbone apart from its head")
    return model


def load_config(path: str) -> PretrainedConfig:
    """The configuration of a model directory or hub id.

    Raises:
        ModelError: Nothing there that transformers could read.
    """
    folder = Path(path)
    if folder.is_file():
        raise ModelError(
            f"model={path!r} is a file; give a Hugging Face model directory "
            "(for a reward also path/to/file.py:function)"
        )
    if not folder.is_dir() and (folder.is_absolute() or path.count("/") != 1 or path[0] == "."):
        raise ModelError(f"model={path!r} does not exist; give a Hugging Face directory or hub id")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"model={path!r} has no config.json; give a Hugging Face model directory")
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"model={path!r} cannot be loaded: {reason}") from None


def save(language_model: LanguageModel, folder: Path, facts: dict[str, Any]) -> None:
    """Write a Hugging Face directory (safetensors) with the tokenizer and our `tether.json`.

    Of a model with an adapter the adapter alone is written, in peft's format. Of several processes
    all must call it, and the first one writes.
    """
    model = language_model.model
    whole = parallel.whole_state(model) if parallel.is_sharded(model) else None
    if not parallel.leads():
        return
    if language_model.adapter:
        adapters.save(model, language_model.adapter, folder)
    else:
        model.save_pretrained(folder, state_dict=whole)
    language_model.tokenizer.save_pretrained(folder)
    facts = {**facts, **template_facts(language_model.tokenizer)}
    write_json(folder / "tether.json", facts)


def max_positions(config: PretrainedConfig) -> int:
    """Positions of a model, in tokens; a large number where it names none."""
    text, names = config.get_text_config(), ("max_position_embeddings", "max_seq_len")
    return next((n for name in names if (n := getattr(text, name, None))), 1 << 30)


def hidden_states(
    model: PreTrainedModel,
    place: Device,
    batch: Batch,
    where: Bool[Tensor, "B S"],
    adapter: str = "",
) -> Float[Tensor, "N D"]:
    """Last hidden states of the tokens of a batch where `where` is True, row after row.

    `adapter` is the one that computes; "" = none.
    """
    batch, where = batch.to(place.device), where.to(place.device)
    sharded = parallel.is_sharded(model)
    lean = llama.lean(model, adapter) if batch.attention_mask is None and not sharded else None
    if lean:
        sequences = llama.Sequences.of(batch, where)
        if int(sequences.offsets.diff().max()) <= lean.window:
            count = len(sequences.wanted)
            if place.dtype == torch.bfloat16:
                sequences = sequences.filled(llama.ROWS)
            layers = llama.layers(lean, place.dtype, adapter)
            anew = place.checkpointing and torch.is_grad_enabled()
            return llama.hidden_states(lean, sequences, layers, checkpointing=anew)[:count]
    batch, where = layouts.as_it_can_read(model, batch, where)
    if place.checkpointing:
        model.train(torch.is_grad_enabled())  # transformers checkpoints in this mode only
    with place.autocast(), adapters.using(model, adapter):
        inputs: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "attention_mask": batch.attention_mask,
            "use_cache": False,
        }
        if sharded:
            return cast(Any, model).backbone(**inputs)[where]
        return model.base_model(**inputs).last_hidden_state[where]


def predicting(batch: Batch) -> Bool[Tensor, "B S"]:
    """True on the tokens from which the completion tokens are predicted."""
    return F.pad(batch.completion_mask[:, 1:], (0, 1))


def completion_logprobs(
    language_model: LanguageModel,
    batch: Batch,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probs and entropies (nats) of the completion tokens of a batch, row after row.

    N is the number of completion tokens. Logits exist only for them, and only in chunks. The
    entropies are 0 unless asked for.
    """
    with at_work(language_model.model, language_model.place):
        hidden = language_model.hidden_states(batch, predicting(batch))
        return logprobs_and_entropies(
            language_model, batch, hidden, temperature=temperature, with_entropy=with_entropy
        )


def logprobs_and_entropies(
    language_model: LanguageModel,
    batch: Batch,
    hidden: Float[Tensor, "N D"],
    *,
    temperature: float,
    with_entropy: bool,
    entropy_grad: bool = False,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """The same from the hidden states that predict the completion tokens."""
    token_ids = batch.input_ids[batch.completion_mask].to(hidden.device)
    settings: dict[str, Any] = {
        "temperature": temperature,
        "chunk": max(
            1024, LOGITS_AT_ONCE // language_model.model.config.get_text_config().vocab_size
        ),
        "with_entropy": with_entropy,
        "entropy_grad": entropy_grad,
    }
    weight = language_model.head_weight
    if weight is None or not head.available(weight):
        return logprobs.from_hidden(hidden, language_model.head, token_ids, **settings)
    dtype = language_model.place.dtype
    return head.logprobs_and_entropies(hidden, weight, token_ids, dtype=dtype, **settings)


@torch.no_grad()
def completion_kl(
    policy: LanguageModel, reference: LanguageModel, batch: Batch, *, temperature: float = 1.0
) -> Float[Tensor, " N"]:
    """Exact KL(policy ‖ reference) over the vocabulary (nats) at each completion token."""
    where = predicting(batch)
    with at_work(policy.model, policy.place), at_work(reference.model, reference.place):
        ours = policy.hidden_states(batch, where)
        theirs = reference.hidden_states(batch, where)
        chunks = zip(ours.split(1024), theirs.split(1024), strict=True)
        pairs = ((policy.head(a), reference.head(b)) for a, b in chunks)
        return torch.cat([kl.exact(a / temperature, b / temperature) for a, b in pairs])


def _set_noise_off(config: PretrainedConfig) -> None:
    """Set every dropout rate and the noise on a router to 0: either makes ratios differ from 1."""
    for part in (config, config.get_text_config()):
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(part, name, 0.0)


def active_dropout(model: nn.Module) -> list[str]:
    """Names of modules whose dropout is on."""
    rates = [(name, getattr(m, "attention_dropout", 0.0)) for name, m in model.named_modules()]
    rates += [(name, m.p) for name, m in model.named_modules() if isinstance(m, nn.Dropout)]
    return [name for name, rate in rates if isinstance(rate, float) and rate > 0]


@torch.no_grad()
def _check_head(language_model: LanguageModel) -> None:
    """Make sure that no token sees ahead and that `head` gives the model's own logits."""
    model, device = language_model.model, language_model.place.device
    if layouts.sees_ahead(model):
        name = type(model).__name__
        raise ModelError(
            f"model={model.name_or_path!r} is a {name}, in which tokens see what follows them, so "
            "it cannot be sampled from; give a decoder-only model"
        )
    ids = torch.tensor([[next(iter(language_model.stop_ids)), 0, 1]], device=device)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    ours = language_model.head(hidden[0])
    theirs = model(input_ids=ids, use_cache=False).logits[0].float()
    if not torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3):
        name = type(model).__name__
        raise ModelError(f"model={model.name_or_path!r}: {name} computes logits in an unknown way")
