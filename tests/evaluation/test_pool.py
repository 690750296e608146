import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.evaluation.test_compare import SAMPLING, SCORERS
from tests.tiny import save_tiny
from tether.config import PoolConfig, ScorerConfig
from tether.errors import ConfigError, DataError
from tether.evaluation import pool as pool_module
from tether.evaluation.pool import make_pool
from tether.pools import Pooled, read_pool
from tether.records import write_jsonl

PROMPTS = [
    {"prompt": "the cat", "category": "harmless"},
    {"prompt": "who likes the big red dog", "category": "harmful"},
    {"prompt": "a"},
]


def settings(folder, **changes):
    if not (folder / "one").exists():
        save_tiny(folder / "one")
    (folder / "scorers.py").write_text(SCORERS)
    write_jsonl(folder / "asked.jsonl", PROMPTS)
    values = {
        "model": str(folder / "one"),
        "prompts": str(folder / "asked.jsonl"),
        "scorers": tuple(
            ScorerConfig(name=name, path=f"{folder}/scorers.py:{name}")
            for name in ("length", "vowels")
        ),
        "num": 12,
        "sampling": SAMPLING,
        "out": str(folder / "pool"),
        **changes,
    }
    return PoolConfig(**values)


def made(config):
    return read_pool(f"{make_pool(config)}/pool.jsonl")


def test_a_pool_holds_scored_samples_of_every_prompt(tmp_path):
    pool = made(settings(tmp_path))
    assert [(row.prompt, row.category) for row in pool] == [
        (each["prompt"], each.get("category", "")) for each in PROMPTS
    ]
    for row in pool:
        assert len(row.completions) == len(row.finished) == len(row.token_ids) == 12
        for text, length, vowels in zip(
            row.completions, row.scores["length"], row.scores["vowels"], strict=True
        ):
            assert length == 10 * len(text.split())  # unclipped
            assert vowels == sum(letter in "aeiou" for letter in text)
        assert len(set(row.completions)) > 4
    assert {flag for row in pool for flag in row.finished} == {True, False}
    result = json.loads((tmp_path / "pool/result.json").read_text())
    assert (result["prompts"], result["completions"]) == (3, 36)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_whole_completions_by_plain_transformers(tmp_path, temperature):
    config = settings(
        tmp_path, sampling=SAMPLING.__class__(max_new_tokens=5, temperature=temperature)
    )
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    model = AutoModelForCausalLM.from_pretrained(config.model)
    for row in made(config):
        prompt = tokenizer(row.prompt)["input_ids"]
        for token_ids, logprob in zip(row.token_ids[:4], row.logprobs[:4], strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + token_ids])).logits[0, len(prompt) - 1 : -1]
            steps = (logits.double() / temperature).log_softmax(-1)
            exact = steps.gather(-1, torch.tensor(token_ids)[:, None]).sum().item()
            assert logprob == pytest.approx(exact, abs=1e-4)


def test_no_two_prompts_share_their_random_numbers(tmp_path, monkeypatch):
    """Also where every chunk starts with its row 0."""
    monkeypatch.setattr(pool_module, "ROWS_AT_ONCE", 12)
    write_jsonl(tmp_path / "same.jsonl", [{"prompt": "the cat"}] * 2)
    one, two = made(settings(tmp_path, prompts=str(tmp_path / "same.jsonl")))
    assert one.completions != two.completions
    assert len(set(one.token_ids[0])) >= 1


def test_only_the_first_prompts_are_used(tmp_path):
    assert len(made(settings(tmp_path, num_prompts=2))) == 2
    everything = settings(tmp_path, num_prompts=0, out=str(tmp_path / "all"))
    assert len(made(everything)) == 3


def test_a_finished_pool_is_kept_and_a_long_prompt_refused_before_it_starts(tmp_path):
    config = settings(tmp_path)
    before = (make_pool(config) / "pool.jsonl").stat().st_mtime_ns
    assert (make_pool(config) / "pool.jsonl").stat().st_mtime_ns == before
    write_jsonl(tmp_path / "long.jsonl", [{"prompt": "the " * 62}])
    long = settings(tmp_path, prompts=str(tmp_path / "long.jsonl"), out=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"prompt 1 has 62 tokens"):
        make_pool(long)
    assert not (tmp_path / "other").exists()


ROW = {
    "prompt": "p",
    "category": "",
    "completions": ["a", "b"],
    "finished": [True, False],
    "token_ids": [[1], [2]],
    "logprobs": [-1.0, -2.0],
    "scores": {"gold": [0.5, math.pi]},
}


def test_a_row_is_read(tmp_path):
    write_jsonl(tmp_path / "pool.jsonl", [ROW])
    (row,) = read_pool(str(tmp_path / "pool.jsonl"))
    assert row == Pooled(**ROW)
    assert row.of("gold").tolist() == [0.5, math.pi]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no prompt"),
        ([{"prompt": "p"}], r"pool\.jsonl:1: not a prompt of a pool .*run `tether pool` again"),
        ([{**ROW, "logprobs": [1.0]}], r"pool\.jsonl:1: a prompt's lists have lengths \[1, 2\]"),
        (
            [
                ROW,
                {
                    **ROW,
                    **{k: ROW[k][:1] for k in ("completions", "finished", "token_ids", "logprobs")},
                    "scores": {"gold": [1.0]},
                },
            ],
            r"holds \[1, 2\] completions a prompt",
        ),
    ],
)
def test_what_is_no_pool_is_refused(tmp_path, rows, message):
    write_jsonl(tmp_path / "pool.jsonl", rows)
    with pytest.raises(DataError, match=message):
        read_pool(str(tmp_path / "pool.jsonl"))
