import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tests.tiny import CHAT_TEMPLATE, save_tiny, word_tokenizer

from tether.config import GenerateConfig
from tether.engine.decode import completion_text, generate_tokens
from tether.engine.generate import generate
from tether.engine.sampling import GENERATION
from tether.errors import ConfigError, DataError, ModelError
from tether.models.chat import encode_prompt
from tether.models.language_model import load, save
from tether.records import read_jsonl, write_jsonl
from tether.sections import ComputeConfig, LoraConfig, SamplingConfig

CPU = ComputeConfig(device="cpu")
ASKED = [
    {"prompt": "the cat sees", "category": "animals"},
    {"prompt": "why"},
    {"prompt": "tell me about a big red bird please"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model"), kind="gpt2"))


@pytest.fixture
def config(tmp_path, model):
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, ASKED)) + "\n")
    return GenerateConfig(
        model=model,
        prompts=str(file),
        out=str(tmp_path / "out"),
        num=3,
        seed=1,
        compute=CPU,
        sampling=SamplingConfig(max_new_tokens=20, temperature=0.9),
    )


def written(folder):
    return [row for _, row in read_jsonl(folder / "completions.jsonl")]


def test_one_row_a_prompt_with_its_completions(config, model):
    rows = written(generate(config))
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in ASKED]
    assert [row.get("category") for row in rows] == ["animals", None, None]
    assert {row["model"] for row in rows} == {model}
    # Row i·num + k of one long list of prompts, each three times
    language_model = load(model, CPU)
    ids = [encode_prompt(language_model.tokenizer, a["prompt"]) for a in ASKED for _ in range(3)]
    sampled = generate_tokens(language_model, ids, config.sampling, seed=1, step=GENERATION)
    texts = [
        completion_text(language_model, prompt, s.token_ids, finished=s.finished)
        for prompt, s in zip(ids, sampled, strict=True)
    ]
    assert [text for row in rows for text in row["completions"]] == texts
    assert [end for row in rows for end in row["finished"]] == [s.finished for s in sampled]
    assert {s.finished for s in sampled} == {True, False}
    assert len(set(texts)) == 9
    assert not any("<eos>" in text for text in texts)


def test_the_result_counts_what_was_written(config):
    out = generate(config)
    result = json.loads((out / "result.json").read_text())
    assert (result["prompts"], result["completions"]) == (3, 9)
    ended = sum(end for row in written(out) for end in row["finished"])
    words = sum(len(text.split()) for row in written(out) for text in row["completions"])
    # every token is a word here, but the end tokens, and pads or unknowns now and then
    assert result["tokens"] >= words + ended


def test_a_second_call_changes_nothing(config):
    out = generate(config)
    before = (out / "completions.jsonl").stat().st_mtime_ns
    assert generate(config) == out
    assert (out / "completions.jsonl").stat().st_mtime_ns == before


def test_the_same_seed_gives_the_same_and_another_one_others(config, tmp_path):
    first = written(generate(config))
    again = dataclasses.replace(config, out=str(tmp_path / "again"))
    other = dataclasses.replace(config, out=str(tmp_path / "other"), seed=2)
    assert written(generate(again)) == first
    assert written(generate(other)) != first


def test_chat_prompts_are_rendered(config, tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    save_tiny(tmp_path / "chat", tokenizer=tokenizer)
    asked = [{"role": "user", "content": "why"}]
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": asked}) + "\n")
    out = generate(dataclasses.replace(config, model=str(tmp_path / "chat"), num=1))
    assert written(out)[0]["prompt"] == asked
    assert len(written(out)[0]["completions"]) == 1


def test_a_chat_that_is_too_long_loses_its_oldest_turns(config, tmp_path, capsys):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    save_tiny(tmp_path / "chat", tokenizer=tokenizer)
    texts = (("user", "the " * 50), ("assistant", "no"), ("user", "why"))
    long = [{"role": role, "content": content} for role, content in texts]
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": long}) + "\n")
    config = dataclasses.replace(config, model=str(tmp_path / "chat"), num=1)
    found = written(generate(config))
    assert "1 of 1 prompts truncated" in " ".join(capsys.readouterr().err.split())
    assert found[0]["prompt"] == long
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": long[2:]}) + "\n")
    short = written(generate(dataclasses.replace(config, out=str(tmp_path / "short"))))
    assert found[0]["completions"] == short[0]["completions"]


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        ('{"prompt": "why"}\n{"prompt": \n', DataError, "prompts.jsonl:2: not JSON"),
        ('{"prompt": "why"}\n{"question": "why"}\n', DataError, "prompts.jsonl:2: .*prompt"),
        ("", DataError, "prompts.jsonl"),
        # of four prompts, the third is too long: 45 + 20 of 64 positions
        (
            "\n".join(json.dumps({"prompt": "the " * n}) for n in (1, 44, 45, 1)),
            ConfigError,
            "prompt 3 has 45 tokens; with sampling.max_new_tokens=20 it exceeds the model's 64",
        ),
        ('{"prompt": "why"}\n{"prompt": ""}\n', ConfigError, "prompt 2 has no token to start"),
    ],
    ids=["not json", "no prompt", "empty file", "too long", "empty prompt"],
)
def test_bad_prompts_are_one_clear_line_and_nothing_is_written(config, lines, error, message):
    Path(config.prompts).write_text(lines)
    with pytest.raises(error, match=message) as raised:
        generate(config)
    assert "\n" not in str(raised.value)
    assert not Path(config.out).exists()


def test_a_missing_model_or_file_writes_nothing(config, tmp_path):
    missing = str(tmp_path / "missing")
    with pytest.raises(ModelError, match="missing' does not exist"):
        generate(dataclasses.replace(config, model=missing))
    with pytest.raises(DataError, match="missing"):
        generate(dataclasses.replace(config, prompts=missing))
    assert not (tmp_path / "out").exists()


# --- adapters -------------------------------------------------------------------------------------


def adapter_of(base, folder, seed):
    """An adapter that changes a good deal."""
    policy = load(str(base), ComputeConfig(), trainable=True, lora=LoraConfig(rank=2))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.own_parameters:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    save(policy, folder, {})
    return str(folder)


def test_one_base_answers_with_several_adapters(tmp_path):
    base = save_tiny(tmp_path / "base")
    prompts = tmp_path / "prompts.jsonl"
    write_jsonl(prompts, [{"prompt": "the cat "}, {"prompt": "who "}])
    one, two = (adapter_of(base, tmp_path / name, n) for n, name in enumerate(("one", "two")))

    def rows(out, model, *adapters):
        config = GenerateConfig(
            model=str(model),
            prompts=str(prompts),
            adapters=adapters,
            num=3,
            out=str(tmp_path / out),
            sampling=SamplingConfig(max_new_tokens=8),
        )
        return [row for _, row in read_jsonl(generate(config) / "completions.jsonl")]

    both = rows("both", base, one, two)
    assert [(row["prompt"], row["model"]) for row in both] == [
        ("the cat ", one),
        ("who ", one),
        ("the cat ", two),
        ("who ", two),
    ]
    # Each answers as it does alone, loaded as a model.
    assert both == [*rows("one-alone", one), *rows("two-alone", two)]
    assert both[0]["completions"] != both[2]["completions"]


def test_an_adapter_of_another_base_is_refused(tmp_path):
    base, other = save_tiny(tmp_path / "base"), save_tiny(tmp_path / "other", seed=4)
    prompts = tmp_path / "prompts.jsonl"
    write_jsonl(prompts, [{"prompt": "the cat "}])
    for path in (adapter_of(other, tmp_path / "adapter", 0), str(other)):
        config = GenerateConfig(
            model=str(base), prompts=str(prompts), adapters=(path,), out=str(tmp_path / "out")
        )
        with pytest.raises(ConfigError, match="is no adapter of model="):
            generate(config)
