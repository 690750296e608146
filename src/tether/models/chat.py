"""From prompts and completions to token ids, with the boundary between them.

The whole text is tokenized in one go and the ids are parted by character offsets: tokenizing the
two parts alone and joining them gives ids that the model never sees elsewhere ("th" + "e" is not
"the"). Chat messages are rendered by the tokenizer's own chat template (`templates`), in which the
assistant's turns are found (`turns`).
"""

from typing import Literal

from transformers import PreTrainedTokenizerBase

from tether.data.batches import Row
from tether.errors import DataError, ModelError
from tether.models.templates import render
from tether.models.turns import Span, conversation
from tether.records import Text, shown


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> list[int]:
    """Token ids after which a completion starts; [] for "" where the tokenizer adds no BOS.

    Messages are rendered with the chat template up to where the assistant begins to speak.

    Raises:
        DataError: The chat template refuses the messages.
        ModelError: The tokenizer has no character offsets.
    """
    if isinstance(prompt, str):
        return _tokenize(tokenizer, prompt)[0]
    return _tokenize(tokenizer, render(tokenizer, prompt, open_turn=True), rendered=True)[0]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Text,
    completion: Text,
    *,
    end: bool = True,
    turns: Literal["all", "last"] = "all",
) -> Row:
    """Token ids of a prompt and its completion, tokenized as one text.

    A token belongs to the prompt if its last character does; one that reaches over the boundary
    belongs to the completion. Special tokens that the tokenizer puts in front are the prompt's.
    Of a completion of several messages, what is between the assistant's turns is in the row's gaps;
    a turn reaches to its last special token, which is the one that ends it.

    Args:
        tokenizer: A fast tokenizer (one that tells character offsets).
        prompt: A string, or messages.
        completion: A string (after messages: what the assistant says), or messages.
        end: Close the completion with exactly one EOS; False for a completion that was cut.
        turns: Of messages: the assistant's turns that are the completion, all or the last one.

    Raises:
        DataError: The prompt is a string and the completion is messages, the other is empty, or
            the chat template refuses the messages.
        ModelError: The tokenizer cannot do it; the message says why and what to do.
    """
    if not isinstance(prompt, str):
        text, spans = conversation(tokenizer, prompt, completion, end=end, last=turns == "last")
    elif isinstance(completion, str):
        text = prompt + completion
        spans = [Span(len(prompt), len(text))]
    else:
        raise DataError(
            f"completion={shown(completion)} is a list of messages but the prompt is a "
            "string: write both as messages, or both as strings"
        )
    rendered = not isinstance(prompt, str)
    ids, ends = _tokenize(tokenizer, text, rendered=rendered)
    firsts = [sum(last <= span.start for last in ends) for span in spans]
    stops = [sum(last <= span.stop for last in ends) for span in spans[:-1]]
    if end:
        ids = _close(ids, firsts[-1], _eos(tokenizer), cut_tail=rendered)
    return _row(tokenizer, ids, firsts, stops)


def _row(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], firsts: list[int], stops: list[int]
) -> Row:
    """The row whose turns start at `firsts`; all but the last, which ends it, stop at `stops`."""
    if not stops:
        return Row(ids, firsts[0])
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(i for i, token in added if token.special)}
    kept: list[tuple[int, int]] = []
    for first, stop in zip(firsts, stops, strict=False):
        ending = [i + 1 for i in range(first, stop) if ids[i] in special]
        kept.append((first, ending[-1] if ending else stop))
    kept = [(first, stop) for first, stop in kept if first < stop]
    starts = [first for first, _ in kept[1:]] + [firsts[-1]]
    gaps = tuple((stop, start) for (_, stop), start in zip(kept, starts, strict=False))
    num_prompt = kept[0][0] if kept else firsts[-1]
    return Row(ids, num_prompt, tuple(gap for gap in gaps if gap[0] < gap[1]))


def _close(ids: list[int], num_prompt: int, eos: int, *, cut_tail: bool) -> list[int]:
    """End the completion with one EOS; `cut_tail` drops what a template writes behind its EOS."""
    completion = ids[num_prompt:]
    while cut_tail and eos in completion and completion[-1] != eos:
        completion.pop()
    if completion[-1:] != [eos]:
        completion.append(eos)
    return ids[:num_prompt] + completion


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, text: str, *, rendered: bool = False
) -> tuple[list[int], list[int]]:
    """Ids and the offset of each one's end; a BOS at most once, no EOS the tokenizer adds itself.

    A text that a template rendered, or that opens with the BOS, holds its special tokens already.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} is a slow one (no tokenizer.json), which "
            "does not tell where in the text a token stands: convert it to a fast tokenizer"
        )
    has_bos = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
    encoding = tokenizer(
        text,
        add_special_tokens=not (rendered or has_bos),
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids, spans = list(encoding["input_ids"]), list(encoding["offset_mapping"])
    opened = int(bool(ids) and ids[0] == tokenizer.bos_token_id)  # which OPT's EOS is as well
    if len(ids) > opened and ids[-1] == tokenizer.eos_token_id and spans[-1][0] == spans[-1][1]:
        ids, spans = ids[:-1], spans[:-1]  # it covers no character, so it was not in the text
    return ids, [end for _, end in spans]


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if not isinstance(tokenizer.eos_token_id, int):
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no eos_token, so a completion cannot "
            "be closed: name one in its tokenizer_config.json"
        )
    return tokenizer.eos_token_id
