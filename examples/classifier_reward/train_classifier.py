"""Train a small text classifier with torch and transformers alone, as others would have done.

    python train_classifier.py --data tweets.jsonl.gz --model DIR --out DIR

The data are JSON Lines with `text` and `label` (a name). What comes out is a Hugging Face directory
whose labels have names, so that tether can take one of them as reward: label = "neither".
"""

import argparse
import gzip
import json
import random
from collections import Counter
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MOST_TOKENS = 96


def read(path: str) -> list[tuple[str, str]]:
    """(text, label) of each row."""
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return [(row["text"], str(row["label"])) for row in rows]


def start(path: str, names: list[str]):
    """A classifier on the backbone of a language model, and its tokenizer.

    Plain transformers finds the last token of a text by looking for pads, so the pad must be a
    token that no text holds.
    """
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(
        path,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        dtype=torch.float32,
    )
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.padding_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def batches(rows: list[tuple[str, str]], size: int, seed: int):
    """Rows of similar length together, in an order that the seed decides."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    random.Random(seed).shuffle(parts)
    return parts


def logits_of(model, tokenizer, texts: list[str]) -> torch.Tensor:
    """Logits (texts, labels)."""
    cut = {"truncation": True, "max_length": MOST_TOKENS}
    return model(**tokenizer(texts, padding=True, return_tensors="pt", **cut)).logits


def train(model, tokenizer, rows, args) -> None:
    """Cross-entropy in which every class weighs the same, however rare it is."""
    ids = model.config.label2id
    counts = Counter(label for _, label in rows)
    weight = torch.tensor([len(rows) / len(counts) / counts[name] for name in ids])
    total = args.epochs * -(-len(rows) // args.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total)
    model.train()
    for epoch in range(args.epochs):
        for part in batches(rows, args.batch_size, args.seed + epoch):
            texts, labels = zip(*part, strict=True)
            target = torch.tensor([ids[label] for label in labels])
            logits = logits_of(model, tokenizer, list(texts))
            functional.cross_entropy(logits, target, weight=weight).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def recalls(model, tokenizer, rows) -> dict[str, float]:
    """Of each label, the share of its texts that get it."""
    found: dict[str, list[bool]] = {name: [] for name in model.config.label2id}
    for part in batches(rows, 64, 0):
        guesses = logits_of(model, tokenizer, [text for text, _ in part]).argmax(dim=1)
        for (_, label), guess in zip(part, guesses.tolist(), strict=True):
            found[label].append(model.config.id2label[guess] == label)
    return {name: sum(right) / max(len(right), 1) for name, right in found.items()}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data", "--model", "--out"):
        parser.add_argument(name, required=True)
    for name, default in (("--epochs", 3), ("--batch-size", 32), ("--seed", 0)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args(words)
    torch.manual_seed(args.seed)
    rows = sorted(set(read(args.data)))
    random.Random(args.seed).shuffle(rows)
    held = max(1, len(rows) // 10)
    model, tokenizer = start(args.model, sorted({label for _, label in rows}))
    train(model, tokenizer, rows[held:], args)
    model.save_pretrained(Path(args.out))
    tokenizer.save_pretrained(Path(args.out))
    for name, recall in recalls(model, tokenizer, rows[:held]).items():
        print(f"{name}: {recall:.3f} of its held-out texts are recognized")


if __name__ == "__main__":
    main()
