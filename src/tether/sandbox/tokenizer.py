"""A word tokenizer for the sandbox, as a standard Hugging Face tokenizer.

A token is a word with the space before it, a punctuation mark, or a turn mark with the line break
before it. Tokens joined give the text, and the text splits into the same tokens again, whatever
their order: a turn mark opens with a capital or a line break, a word with a space.
"""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tether.sandbox.texts import TEXTS, words

SPLIT = r"\n?[A-Z][a-z]*:| ?[a-z]+|[^a-zA-Z]"
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def vocabulary(sentences: Sequence[str] = (), marks: Sequence[str] = ()) -> list[str]:
    """Every token of the sandbox, special tokens first; a token's place is its id.

    `sentences` and `marks` are those of a variant that says more.
    """
    topics = [text for topic in TEXTS.topics for text in (topic.phrase, *topic.steps)]
    frames = [sentence for frame in TEXTS.frames for sentence in frame]
    texts = [*TEXTS.forms, *TEXTS.endings, *frames, *TEXTS.sentences, *topics, *sentences]
    turns = ["Person:", "\nPerson:", "\nHelper:", ",", ".", "?", ":"]
    return [*SPECIAL, *turns, *marks, *sorted({" " + word for word in words(texts)})]


def build_tokenizer(
    tokens: Sequence[str] | None = None, split: str = SPLIT
) -> PreTrainedTokenizerFast:
    """The tokenizer: `<s>` opens every text, `</s>` is left to who writes the end.

    Args:
        tokens: Every token, special ones first; None = the sandbox's.
        split: Regular expression of what a text is split into.
    """
    ids = {token: i for i, token in enumerate(tokens or vocabulary())}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(split), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", ids["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
