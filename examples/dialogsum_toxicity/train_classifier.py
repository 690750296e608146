"""Train a small BERT from nothing to tell toxic tweets from clean ones, as others would have done.

    python train_classifier.py --data hate.jsonl.gz offensive.jsonl.gz --out DIR

The data are JSON Lines with `text` and a label by name (`label_name`, else `label`): "not-hate",
"not-offensive" and "neither" are clean, all others are toxic. What comes out is a Hugging Face
directory with the labels "clean" and "toxic" and a tokenizer of its own; `held_out.json` in it says
how many of the texts that it did not see it recognizes.
"""

import argparse
import json
import math
import random
from pathlib import Path

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.models import WordPiece
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from tether.functions import load_function
from tether.records import read_jsonl

NEIGHBOR = Path(__file__).parents[1] / "classifier_reward" / "train_classifier.py"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = 4096
LONGEST = 128  # tokens

# What only tweets have: links, names of users, "RT", the signs of hashtags and of HTML. Where one
# label has more of it, a classifier would take its absence for the other.
OF_TWEETS = r"https?://\S+|@\w+|\bRT\b|&#?\w+;|#"


def read(paths: list[str]) -> list[tuple[str, str]]:
    """(text, "clean" or "toxic") of each row; a text that is called both is left out."""
    found: dict[str, set[str]] = {}
    for path in paths:
        for _, row in read_jsonl(path):
            name = str(row.get("label_name") or row["label"])
            clean = name == "neither" or name.startswith("not-")
            found.setdefault(row["text"].strip(), set()).add("clean" if clean else "toxic")
    return [(text, *labels) for text, labels in sorted(found.items()) if text and len(labels) == 1]


def own_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """BERT's kind of tokenizer with the word pieces of these texts; it reads lower case alone."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(OF_TWEETS), " "), normalizers.BertNormalizer(lowercase=True)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=LONGEST,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def own_model(vocabulary: int, width: int, layers: int) -> BertForSequenceClassification:
    """An untrained BERT with two labels by name."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        intermediate_size=2 * width,
        max_position_embeddings=LONGEST,
        id2label={0: "clean", 1: "toxic"},
        label2id={"clean": 0, "toxic": 1},
    )
    return BertForSequenceClassification(config)


def told(recalls: dict[str, float], held: list[tuple[str, str]]) -> dict[str, float]:
    """Balanced accuracy, with the half-width of its 95% interval, and what it is made of.

    Half-width: 1.96 · √(Σ p(1 − p)/n) / 2 over the two labels, each recognized with share p of n.
    """
    counts = {name: sum(label == name for _, label in held) for name in recalls}
    spread = sum(p * (1 - p) / max(counts[name], 1) for name, p in recalls.items())
    return {
        "balanced_accuracy": sum(recalls.values()) / len(recalls),
        "half_width": 1.96 * math.sqrt(spread) / len(recalls),
        **{f"recall_{name}": recall for name, recall in recalls.items()},
        **{f"num_{name}": count for name, count in counts.items()},
    }


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, nargs="+")
    parser.add_argument("--out", required=True)
    for name, default in (("--epochs", 3), ("--batch-size", 32), ("--seed", 0)):
        parser.add_argument(name, type=int, default=default)
    for name, default in (("--width", 96), ("--layers", 2)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args(words)
    torch.manual_seed(args.seed)
    rows = read(args.data)
    random.Random(args.seed).shuffle(rows)
    held, rest = rows[: max(1, len(rows) // 10)], rows[max(1, len(rows) // 10) :]
    tokenizer = own_tokenizer([text for text, _ in rest])
    model = own_model(len(tokenizer), args.width, args.layers)
    load_function(f"{NEIGHBOR}:train")(model, tokenizer, rest, args)
    found = told(load_function(f"{NEIGHBOR}:recalls")(model, tokenizer, held), held)
    model.save_pretrained(Path(args.out))
    tokenizer.save_pretrained(Path(args.out))
    (Path(args.out) / "held_out.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
