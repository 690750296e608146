"""Tokenizers: loading them, what ends a completion, and whether every token has an embedding."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from tether.errors import ModelError
from tether.models import adapters
from tether.progress import notice

GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # whose tokenizer.json says all


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or hub id; of an adapter without one, its base's."""
    if adapters.is_adapter(path) and not (Path(path) / "tokenizer_config.json").is_file():
        path = adapters.base_of(path)
    try:
        # Of Qwen2, Phi-3 and some others AutoTokenizer takes its own rules for splitting text, even
        # where the directory says that its tokenizer.json is all there is to it.
        named = get_tokenizer_config(path, trust_remote_code=False).get("tokenizer_class")
        auto = PreTrainedTokenizerFast if named in GENERIC else AutoTokenizer
        return auto.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"model={path!r} has no usable tokenizer: {reason}") from None


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends a completion: what the generation settings and the tokenizer name.

    Ids that have no embedding are left out, as the 50256 of a small GPT-2 with default settings.

    Raises:
        ModelError: None of them names one.
    """
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = {
        token
        for token in [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
        if isinstance(token, int) and token < num_rows(model)
    }
    if not ids:
        raise ModelError(
            f"model={model.name_or_path!r} names no end token; set eos_token in its tokenizer"
        )
    return frozenset(ids)


def num_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id; `len(tokenizer)` is less where ids were left out."""
    return 1 + max(tokenizer.get_vocab().values())


def give_every_token_a_row(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, adapted: bool
) -> None:
    """Lengthen embeddings that are shorter than the vocabulary, as after `add_tokens` alone.

    New rows are the mean of the others, so that two models loaded from one directory are the same
    and a token that was never trained on is as likely as a mean one. A pad token needs no row:
    no model reads it here.

    Args:
        model: Changed in place.
        tokenizer: Its tokenizer.
        adapted: Whether an adapter computes or is trained, so that no row may be added.

    Raises:
        ModelError: Rows are missing and may not be added.
    """
    rows = num_rows(model)
    pad, tokens = tokenizer.pad_token_id, tokenizer.get_vocab()
    missing = sorted((i, token) for token, i in tokens.items() if i >= rows and i != pad)
    if not missing:
        return
    what = (
        f"the tokenizer of {model.name_or_path!r} has {len(missing)} tokens ({missing[0][1]!r}, "
        f"id {missing[0][0]}) beyond the {rows} rows of its embeddings"
    )
    if adapted:
        raise ModelError(
            f"{what}, and an adapter trains no rows; set lora.rank = 0, or save the base after "
            "model.resize_token_embeddings(len(tokenizer))"
        )
    notice(f"{what}; rows are added, as the mean of the others")
    lengthen(model, num_ids(tokenizer))


def num_rows(model: PreTrainedModel) -> int:
    """Rows of the embeddings."""
    return _embeddings(model).num_embeddings


@torch.no_grad()
def lengthen(model: PreTrainedModel, rows: int) -> None:
    """Give embeddings and head so many rows; new ones are the mean of the others."""
    before = num_rows(model)
    model.resize_token_embeddings(rows, mean_resizing=False)
    head = model.get_output_embeddings()
    own = [_embeddings(model).weight, *(head.parameters() if head is not None else ())]
    parameters: dict[int, Tensor] = {id(each): each for each in own}  # tied ones once
    for each in parameters.values():
        each[before:] = each[:before].mean(0)


def _embeddings(model: PreTrainedModel) -> nn.Embedding:
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    return embeddings
