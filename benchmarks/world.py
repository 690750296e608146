"""The small world in which both sides work: random models, a tokenizer, prompts and data on disk.

Nothing here is learned, since speed does not depend on what the weights are, but on how long
completions get. So one hidden dimension is held constant all through the network, and what the end
token has in that column of the (tied) embedding sets how likely it is, at every position alike.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

PAD, EOS, UNK = range(3)
SPECIAL = ["<pad>", "<eos>", "<unk>"]
MEAN_LENGTH = 40  # of varied completions, if they were not cut: P(end token) is 1/40
CONSTANT = 0.1  # what every word has in the constant dimension
NEVER = -40.0  # nats below an average word
WRITE_SCALE = 0.02  # of what layers add to the other dimensions: keeps the norm the same everywhere

NUM_PROMPTS, NUM_TEXTS, NUM_PAIRS = 512, 512, 256


@dataclass(frozen=True)
class Size:
    """Shape of a Llama model."""

    width: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    key_heads: int = 0  # 0 = as many as heads


SIZES = {"5m": Size(256, 5, 4, 688, 4096), "15m": Size(288, 6, 6, 768, 32_000)}


def build(folder: Path, size: Size, lengths: str) -> None:
    """Write models, prompts, texts and pairs into a folder.

    Args:
        folder: Gets `policy/`, `reward/`, `prompts.jsonl`, `texts.jsonl` and `pairs.jsonl`.
        size: Shape of all models.
        lengths: "fixed": prompts of 32 tokens, the end token never sampled. "varied": prompts of
            8 to 32 tokens, completions that end after about 32 tokens.
    """
    logging.disable_progress_bar()
    torch.manual_seed(0)
    tokenizer = build_tokenizer(size.vocabulary)
    for name, model in (("policy", build_policy(size, lengths)), ("reward", build_reward(size))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rng = np.random.default_rng(0)
    shortest = 32 if lengths == "fixed" else 8
    prompts = [words(rng, size, shortest, 32) for _ in range(NUM_PROMPTS)]
    _write(folder / "prompts.jsonl", ({"prompt": prompt} for prompt in prompts))
    texts = [words(rng, size, 32, 256) for _ in range(NUM_TEXTS)]
    _write(folder / "texts.jsonl", ({"text": text} for text in texts))
    _write(folder / "pairs.jsonl", (pair(rng, size) for _ in range(NUM_PAIRS)))


def build_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token a word, `w3` to `w4095`; decoding and encoding again gives the same tokens."""
    ids = {name: i for i, name in enumerate(SPECIAL)}
    ids |= {f"w{i}": i for i in range(len(SPECIAL), vocabulary)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_policy(size: Size, lengths: str) -> LlamaForCausalLM:
    """A language model that ends nowhere ("fixed") or with P = 1/40 at each token ("varied")."""
    model = LlamaForCausalLM(_config(size))
    _hold_dimension_constant(model)
    _set_end(model, NEVER if lengths == "fixed" else -math.log(MEAN_LENGTH - 1))
    return model


def build_reward(size: Size) -> LlamaForSequenceClassification:
    """A reward model of the same size with a random head."""
    return LlamaForSequenceClassification(_config(size, num_labels=1))


def _config(size: Size, **changes: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads or size.heads,
        intermediate_size=size.inner,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        **changes,
    )


@torch.no_grad()
def _hold_dimension_constant(model: LlamaForCausalLM) -> None:
    """Give every token the same value in dimension 0, and let no layer write there."""
    embedding = model.model.embed_tokens.weight
    embedding[: len(SPECIAL)] = 0.0
    embedding[:, 0] = CONSTANT
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight *= WRITE_SCALE
            weight[0] = 0.0


@torch.no_grad()
def _set_end(model: LlamaForCausalLM, log_odds: float) -> None:
    """Set the mean log-odds (nats) of the end token; the other special tokens never come.

    A special token's embedding is 0 outside the constant dimension, so its logit is its entry
    there times the normalized constant. Entries are rounded to bfloat16, so that a cast of the
    weights leaves the lengths as they are.
    """
    embedding = model.model.embed_tokens.weight
    ids = torch.randint(len(SPECIAL), len(embedding), (16, 64))
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, 1:]
    logits = model.lm_head(hidden)[..., len(SPECIAL) :]
    level, constant = logits.logsumexp(-1).mean(), hidden[..., 0].mean()
    for token, odds in ((PAD, NEVER), (UNK, NEVER), (EOS, log_odds)):
        embedding[token, 0] = ((level + odds) / constant).bfloat16().float()


def words(rng: np.random.Generator, size: Size, least: int, most: int) -> str:
    """Between `least` and `most` random words, parted by blanks."""
    count = int(rng.integers(least, most + 1))
    return " ".join(f"w{i}" for i in rng.integers(len(SPECIAL), size.vocabulary, count))


def pair(rng: np.random.Generator, size: Size) -> dict[str, str]:
    """A preference pair: a prompt of 32 tokens, two completions of 32 to 96."""
    chosen, rejected = (" " + words(rng, size, 32, 96) for _ in range(2))
    return {"prompt": words(rng, size, 32, 32), "chosen": chosen, "rejected": rejected}


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
