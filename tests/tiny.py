"""Tiny tokenizers and models, built in memory: no file and no network is needed."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram, WordLevel
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

BOS, EOS, PAD, UNK = "<bos>", "<eos>", "<pad>", "<unk>"
TEXT = (
    "the a cat dog bird sees likes helps fears big small red kind rude please thanks yes no "
    "sorry cannot who why what tell me about it"
)
WORDS = TEXT.split()
SENTENCES = [
    "the cat sat on the mat and the dog sat on the log",
    "Human: how do I bake bread?\n\nAssistant: mix flour, water and yeast, then bake.",
    "the theory of the other theater, they gather together there",
]
CHAT_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for m in messages %}{{ '[' + m['role'] + ']\\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\\n' }}{% endif %}"
)


def word_tokenizer(
    words: Sequence[str] = WORDS, pad_is_eos: bool = False, bos: bool = False
) -> PreTrainedTokenizerFast:
    """One id a word, words parted by blanks; `bos=True` opens every text with <bos>."""
    names = [UNK, EOS] + [BOS] * bos + [PAD] * (not pad_is_eos)
    vocabulary = {token: i for i, token in enumerate([*names, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _finish(tokenizer, pad_is_eos=pad_is_eos, bos=bos, unk_token=UNK)


def byte_bpe_tokenizer(pad_is_eos: bool = False, bos: bool = True) -> PreTrainedTokenizerFast:
    """GPT-2's kind: bytes and merges of them; reads every text, merges reach over words' parts."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[EOS] + [BOS] * bos + [PAD] * (not pad_is_eos),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return _finish(tokenizer, pad_is_eos=pad_is_eos, bos=bos)


def metaspace_tokenizer(pad_is_eos: bool = False, bos: bool = True) -> PreTrainedTokenizerFast:
    """Llama-2's kind: blanks become "▁", one is put in front, unknown characters fall to bytes."""
    tokenizer = Tokenizer(BPE(unk_token=UNK, byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()])
    names = [UNK, EOS] + [BOS] * bos + [PAD] * (not pad_is_eos)
    names += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return _finish(tokenizer, pad_is_eos=pad_is_eos, bos=bos, unk_token=UNK)


def unigram_tokenizer(bos: bool = True, ends: bool = False) -> PreTrainedTokenizerFast:
    """T5's and Gemma's kind: likely pieces, blanks become "▁"; `ends` adds <eos> to every text."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=[UNK, EOS, BOS, PAD], unk_token=UNK, show_progress=False
    )
    tokenizer.train_from_iterator([*SENTENCES * 5, TEXT], trainer)
    added = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
    text = " ".join([BOS] * bos + ["$A"] + [EOS] * ends)
    tokenizer.post_processor = processors.TemplateProcessing(single=text, special_tokens=added)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        **({"bos_token": BOS} if bos else {}),
    )


def _finish(
    tokenizer: Tokenizer, *, pad_is_eos: bool, bos: bool, **names: str
) -> PreTrainedTokenizerFast:
    if bos:
        names["bos_token"] = BOS
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=EOS if pad_is_eos else PAD,
        clean_up_tokenization_spaces=False,
        **names,
    )


def tiny_llama(vocab: int, *, seed: int = 0, **settings) -> LlamaForCausalLM:
    """Two layers, rotary positions; weights so large that tokens differ by whole nats."""
    config = LlamaConfig(
        **{
            "vocab_size": vocab,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
            "bos_token_id": None,
            "eos_token_id": None,
            "tie_word_embeddings": False,
            **settings,
        }
    )
    return _seeded(LlamaForCausalLM, config, seed)


def tiny_gpt2(vocab: int, *, seed: int = 0, dropout: float = 0.0, **settings) -> GPT2LMHeadModel:
    """Two layers, absolute positions, tied embeddings; `dropout` acts everywhere in train mode."""
    config = GPT2Config(
        **{
            "vocab_size": vocab,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 64,
            "initializer_range": 0.2,
            "resid_pdrop": dropout,
            "embd_pdrop": dropout,
            "attn_pdrop": dropout,
            "bos_token_id": None,
            "eos_token_id": None,
            **settings,
        }
    )
    return _seeded(GPT2LMHeadModel, config, seed)


def encoder_tokenizer(pair: bool = True) -> PreTrainedTokenizerFast:
    """BERT's kind: [CLS] one [SEP], and [CLS] one [SEP] other [SEP] unless `pair=False`."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: i for i, token in enumerate([*names, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if pair:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_encoder(
    folder: Path, kind: str = "bert", labels: int = 0, *, pair: bool = True, **settings
) -> Path:
    """Write a tiny encoder and its tokenizer: a bare backbone, or a classifier with `labels`."""
    tokenizer = encoder_tokenizer(pair)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "distilbert":
        shape = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2}
    else:
        shape["intermediate_size"] = 48
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        max_position_embeddings=24,
        pad_token_id=0,
        initializer_range=0.2,
        **{**shape, **({"num_labels": labels} if labels else {}), **settings},
    )
    auto = AutoModelForSequenceClassification if labels else AutoModel
    _seeded(auto.from_config, config, 3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def _seeded(model_class, config, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config).eval()


def save_tiny(
    folder: Path,
    kind: str = "llama",
    pad_is_eos: bool = False,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **settings,
) -> Path:
    """Write a Hugging Face directory with a tiny model and its tokenizer; returns the folder."""
    if tokenizer is None:
        tokenizer = word_tokenizer(pad_is_eos=pad_is_eos)
    make = {"llama": tiny_llama, "gpt2": tiny_gpt2}[kind]
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    folder = Path(folder)
    make(len(tokenizer), **ids, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
