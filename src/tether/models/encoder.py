"""Encoders (BERT and its kin) as reward models and classifiers: bidirectional, with their own head.

They go through transformers' own forward with an attention mask, since without one every token
would see the padding. Prompt and completion are a text pair where the tokenizer has a template for
one ("[CLS] prompt [SEP] completion [SEP]"), else one text; a prompt "" leaves the completion alone.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tether.data.batches import Row
from tether.errors import ModelError
from tether.models.language_model import Device, max_positions
from tether.records import Text


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Text, completion: Text, limit: int) -> Row:
    """Token ids of a prompt and its completion with the tokenizer's own special tokens.

    Above `limit` tokens the prompt loses its beginning, then the completion its end. Of messages
    their contents are read, a line each.

    Returns:
        The row; its `num_prompt` counts the tokens of the first segment (token type 0), which is
        the whole row where there is no second one.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} is a slow one (no tokenizer.json); "
            "convert it to a fast tokenizer"
        )
    first, second = plain(prompt), plain(completion)
    added = tokenizer.num_special_tokens_to_add
    paired = bool(first) and added(pair=True) > added(pair=False)
    encoding = tokenizer(
        first if paired else first + second,
        second if paired else None,
        return_offsets_mapping=True,
        verbose=False,
    )
    ids, segments = list(encoding["input_ids"]), encoding.sequence_ids()  # None at special tokens
    if not paired:
        ends = [end for _, end in encoding["offset_mapping"]]
        beyond = [end > len(first) for end in ends]
        segments = [i if i is None else int(b) for i, b in zip(segments, beyond, strict=True)]
    cut = _beyond(segments, len(ids) - limit)
    kept = [i for i in range(len(ids)) if i not in cut]
    types = encoding.get("token_type_ids") or [0] * len(ids)
    return Row([ids[i] for i in kept], sum(types[i] == 0 for i in kept))


def _beyond(segments: Sequence[int | None], excess: int) -> set[int]:
    """Which `excess` tokens to drop: the first of the prompt, then the last of the completion."""
    if excess <= 0:
        return set()
    prompt = [i for i, segment in enumerate(segments) if segment == 0]
    completion = [i for i, segment in enumerate(segments) if segment == 1]
    return set([*prompt, *reversed(completion)][:excess])


def plain(text: Text) -> str:
    """A text, or the contents of messages, a line each."""
    return text if isinstance(text, str) else "\n".join(m["content"] for m in text)


def logits(
    model: PreTrainedModel, place: Device, pad_id: int, rows: Sequence[Row]
) -> Float[Tensor, "N L"]:
    """All outputs of a sequence classifier for each row, in one forward pass, in float32."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id)  # RoBERTa numbers its positions by the pads
    mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
        types[i, row.num_prompt : len(row.ids)] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = types
    with place.autocast():
        found = model(**{name: tensor.to(place.device) for name, tensor in inputs.items()}).logits
    return found.float()


def longest(model: PreTrainedModel) -> int:
    """Longest row, in tokens; RoBERTa's positions start behind that of the pad."""
    tables = [m for n, m in model.named_modules() if n.endswith("position_embeddings")]
    for table in tables:
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            return table.num_embeddings - table.padding_idx - 1
    return max_positions(model.config)


def last_layer(model: PreTrainedModel) -> nn.Linear:
    """The linear layer of an encoder's head that gives one number a label.

    Raises:
        ModelError: There is none.
    """
    backbone = set(model.base_model.modules())
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in backbone]
    layers = [layer for layer in layers if layer.out_features == model.config.num_labels]
    if not layers:
        raise ModelError(f"{type(model).__name__} ends in no linear layer that could score")
    return layers[-1]
