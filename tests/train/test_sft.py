import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import CHAT_TEMPLATE, EOS, byte_bpe_tokenizer
from tests.train import toys
from tests.train.toys import DEMONSTRATIONS, DEVICE_BATCHES, KINDS, MODELS
from tether.data.batches import Row
from tether.errors import CheckError, DataError
from tether.models.language_model import load
from tether.records import Demonstration, write_jsonl
from tether.sections import ComputeConfig, OptimizerConfig
from tether.train.sft import held_out_loss, losses, tokenize, train_sft


def plainly_loaded(path):
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def plain_batch(tokenizer, rows):
    """Padded ids, attention mask and labels, written without any of our code."""
    ids, labels = [], []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        whole = [*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id]
        assert whole[: len(prompt)] == prompt
        ids.append(torch.tensor(whole))
        labels.append(torch.tensor([-100] * len(prompt) + whole[len(prompt) :]))
    real = [torch.ones_like(row) for row in ids]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, True, 3), pad(real, True, 0), pad(labels, True, -100)


def our_rows(language_model, rows):
    records = [Demonstration(**row) for row in rows]
    return tokenize(language_model, records, 0, "toy")[0]


# --- the loss -------------------------------------------------------------------------------------


@MODELS
def test_loss_is_that_of_plain_transformers_with_labels(tmp_path, kind, pad_is_eos):
    path = toys.save(tmp_path, kind, pad_is_eos)
    plain, tokenizer = plainly_loaded(path)
    ids, real, labels = plain_batch(tokenizer, DEMONSTRATIONS)
    with torch.no_grad():
        expected = plain(input_ids=ids, attention_mask=real, labels=labels).loss
        on_everything = plain(
            input_ids=ids, attention_mask=real, labels=ids.masked_fill(real == 0, -100)
        ).loss
    train_sft(toys.sft(tmp_path, path, held_out=0.0))
    [row] = toys.metrics(tmp_path / "sft")
    assert row["loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert row["tokens"] == (labels != -100).sum().item() == 37
    assert abs(row["loss"] - on_everything.item()) > 5e-3  # so the prompt is no part of it


@KINDS
def test_weights_multiply_the_loss_of_their_rows(tmp_path, kind):
    path = toys.save(tmp_path, kind)
    weight = torch.tensor([2.0, 0.5, 1, 1, 9, 1, 0.25, 1])
    plain, tokenizer = plainly_loaded(path)
    ids, real, labels = plain_batch(tokenizer, DEMONSTRATIONS)
    with torch.no_grad():
        logits = plain(input_ids=ids, attention_mask=real).logits[:, :-1]
    nats = torch.nn.functional.cross_entropy(logits.mT, labels[:, 1:], reduction="none")
    counts = (labels[:, 1:] != -100).sum(1)
    expected = (weight * nats.sum(1)).sum() / (weight * counts).sum()
    rows = our_rows(load(path, ComputeConfig()), DEMONSTRATIONS)
    parts = losses(load(path, ComputeConfig()), list(zip(rows, weight.tolist(), strict=True)), 3)
    assert sum(part.item() for part in parts) == pytest.approx(expected.item(), abs=1e-5)
    assert expected.item() != pytest.approx((nats.sum() / counts.sum()).item(), abs=0.01)


@KINDS
def test_a_model_of_constant_logits_costs_log_v(tmp_path, kind):
    language_model = load(toys.save(tmp_path, kind), ComputeConfig())
    with torch.no_grad():
        language_model.model.get_output_embeddings().weight.zero_()
    rows = our_rows(language_model, DEMONSTRATIONS)
    expected = math.log(len(language_model.tokenizer))
    assert held_out_loss(language_model, rows) == pytest.approx(expected, abs=1e-6)
    parts = losses(language_model, [(row, 1.0) for row in rows], 0)
    assert sum(part.item() for part in parts) == pytest.approx(expected, abs=1e-6)


# --- device batches -------------------------------------------------------------------------------


@MODELS
def test_device_batches_change_neither_loss_nor_gradient(tmp_path, kind, pad_is_eos):
    language_model = load(toys.save(tmp_path, kind, pad_is_eos), ComputeConfig(), trainable=True)
    rows = our_rows(language_model, DEMONSTRATIONS)
    examples = [(row, 0.5 + i) for i, row in enumerate(rows)]
    found = []
    for size in DEVICE_BATCHES:
        parts = list(losses(language_model, examples, size))
        assert len(parts) == (8 // size if size else 1)
        total = sum(parts)
        total.backward()
        found.append((total.item(), toys.gradients(language_model.model)))
    for loss, gradient in found:
        assert loss == pytest.approx(found[-1][0], abs=1e-6)
        toys.assert_same(gradient, found[-1][1], atol=3e-6)


@KINDS
def test_device_batches_give_the_same_parameters_after_a_step(tmp_path, kind):
    path, stepped = toys.save(tmp_path, kind), []
    for size in DEVICE_BATCHES:
        out = str(tmp_path / f"sft-{size}")
        train_sft(toys.sft(tmp_path, path, out=out, device_batch_size=size))
        stepped.append((toys.weights(out), toys.metrics(out)[0]))
    last, row = stepped[-1]
    for found, metrics in stepped:
        toys.assert_same(found, last, atol=1e-6)
        assert metrics["loss"] == pytest.approx(row["loss"], abs=1e-6)
        assert metrics["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-5)
    start = AutoModelForCausalLM.from_pretrained(path).state_dict()
    assert max((last[name] - start[name]).abs().max() for name in last) > 5e-4


# --- which rows train -----------------------------------------------------------------------------


@pytest.mark.parametrize("empty", ["", []])
def test_an_empty_completion_is_refused(tmp_path, empty):
    rows = [*DEMONSTRATIONS, {"prompt": "why ", "completion": empty}]
    data = toys.write_rows(tmp_path / "d.jsonl", rows)
    config = toys.sft(tmp_path, toys.save(tmp_path), data=data)
    with pytest.raises(DataError, match=r"demonstration 9 has no completion|completion=\[\]"):
        train_sft(config)
    assert not (tmp_path / "sft").exists()


def test_every_row_ends_with_one_end_token_that_is_learned(tmp_path):
    language_model = load(toys.save(tmp_path, pad_is_eos=True), ComputeConfig())
    for row in our_rows(language_model, DEMONSTRATIONS):
        eos = language_model.tokenizer.eos_token_id
        assert row.ids.count(eos) == 1
        assert row.ids[-1] == eos


@KINDS
def test_long_and_weightless_rows_are_skipped_and_counted(tmp_path, kind):
    long = {"prompt": "why ", "completion": "cat " * 70}  # 64 positions
    weightless = {"prompt": "why ", "completion": "dog", "weight": 0.0}
    data = toys.write_rows(tmp_path / "d.jsonl", [long, *DEMONSTRATIONS[:3], weightless])
    train_sft(toys.sft(tmp_path, toys.save(tmp_path, kind), data=data, batch_size=4))
    found = toys.result(tmp_path / "sft")
    assert (found["skipped"], found["demonstrations"], found["steps"]) == (2, 3, 1)


def test_max_length_counts_prompt_completion_and_end(tmp_path):
    language_model = load(toys.save(tmp_path), ComputeConfig())
    records = [Demonstration(prompt="the cat ", completion="sees it")]  # 4 words and the end
    assert tokenize(language_model, records, 5, "d.jsonl")[1] == 0
    with pytest.raises(DataError, match=r"d.jsonl: every demonstration exceeds 4 tokens .* raise"):
        tokenize(language_model, records, 4, "d.jsonl")


def test_held_out_prompts_are_not_trained_on(tmp_path):
    rows = [{**row, "prompt": f"{row['prompt']}{word} "} for row in DEMONSTRATIONS for word in "ab"]
    data = toys.write_rows(tmp_path / "d.jsonl", rows * 2)  # every prompt twice
    config = toys.sft(tmp_path, toys.save(tmp_path), data=data, held_out=0.25, max_steps=3)
    train_sft(config)
    found = toys.result(tmp_path / "sft")
    assert (found["demonstrations"], found["held_out"]) == (24, 8)
    last = toys.metrics(tmp_path / "sft")[-1]
    assert found["held_out_loss"] == last["held_out_loss"]
    assert last["held_out_perplexity"] == pytest.approx(math.exp(last["held_out_loss"]))


def test_text_without_a_prompt_is_learned_from_its_second_token_on(tmp_path):
    language_model = load(toys.save(tmp_path), ComputeConfig())
    [row] = our_rows(language_model, [{"prompt": "", "completion": "the cat sees"}])
    assert (len(row.ids), row.num_completion) == (4, 3)


# --- the run --------------------------------------------------------------------------------------


@MODELS
def test_it_learns_to_answer(tmp_path, kind, pad_is_eos):
    path = toys.save(tmp_path, kind, pad_is_eos)
    optimizer = OptimizerConfig(learning_rate=2e-2, schedule="constant")
    train_sft(toys.sft(tmp_path, path, max_steps=60, optimizer=optimizer))
    model, tokenizer = plainly_loaded(tmp_path / "sft" / "model")
    for row in DEMONSTRATIONS:
        ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False
        )[0]
        assert tokenizer.decode(whole[ids.shape[1] :]) == f"{row['completion']} <eos>"
    rows = toys.metrics(tmp_path / "sft")
    assert rows[-1]["loss"] < 0.05 < 1 < rows[0]["loss"]


@pytest.mark.parametrize("size", [1, 3])
def test_batches_of_one_and_uneven_ones(tmp_path, size):
    config = toys.sft(tmp_path, toys.save(tmp_path), batch_size=size, max_steps=0, epochs=1.0)
    train_sft(config)
    rows = toys.metrics(tmp_path / "sft")
    assert [row["step"] for row in rows] == list(range(1, math.ceil(8 / size) + 1))
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_learning_rate_falls_linearly_to_the_final_share(tmp_path):
    optimizer = OptimizerConfig(learning_rate=0.5, warmup_steps=1, final_fraction=0.2)
    train_sft(toys.sft(tmp_path, toys.save(tmp_path), max_steps=5, optimizer=optimizer))
    rates = [row["learning_rate"] for row in toys.metrics(tmp_path / "sft")]
    assert rates == pytest.approx([0.5, 0.5, 0.4, 0.3, 0.2])


def test_a_diverging_run_stops_in_one_sentence_and_keeps_no_model(tmp_path, monkeypatch):
    path = toys.save(tmp_path)

    def broken(*arguments):
        for part in losses(*arguments):
            yield part * math.inf

    monkeypatch.setattr("tether.train.sft.losses", broken)
    with pytest.raises(CheckError, match=r"are not finite; lower optimizer\.learning_rate"):
        train_sft(toys.sft(tmp_path, path))
    assert {file.name for file in (tmp_path / "sft").iterdir()} == {"config.toml"}


def test_a_finished_stage_is_kept_as_it_is(tmp_path):
    config = toys.sft(tmp_path, toys.save(tmp_path))
    file = train_sft(config) / "model" / "model.safetensors"
    before = file.stat().st_mtime_ns
    assert train_sft(config) == tmp_path / "sft"
    assert file.stat().st_mtime_ns == before
    assert not (tmp_path / "sft" / "checkpoints").exists()


def test_the_loss_of_no_rows_is_none(tmp_path):
    language_model = load(toys.save(tmp_path), ComputeConfig())
    assert held_out_loss(language_model, []) is None
    assert held_out_loss(language_model, [Row([4, 5, 1], 1)]) > 0


# --- chats ----------------------------------------------------------------------------------------


def chat(*texts):
    roles = ("user", "assistant") * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def train_on(tmp_path, path, rows, **settings):
    write_jsonl(tmp_path / "chats.jsonl", rows)
    train_sft(
        toys.sft(
            tmp_path, path, data=str(tmp_path / "chats.jsonl"), batch_size=len(rows), **settings
        )
    )


def trained_on(tmp_path, rows, **settings):
    """The tokens of the first optimizer batch, its loss, and that of plain transformers."""
    tokenizer = byte_bpe_tokenizer(bos=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    path = toys.save(tmp_path, tokenizer=tokenizer)
    train_on(tmp_path, path, rows, **settings)
    [row] = toys.metrics(tmp_path / "sft")
    return path, row


@pytest.mark.parametrize("turns", ["all", "last"])
def test_a_chat_teaches_what_the_assistant_says(tmp_path, turns):
    rows = [
        {"messages": chat("why", "the cat", "who", "a dog sat")},
        {"messages": chat("the mat", "then")},
    ]
    path, row = trained_on(tmp_path, rows, turns=turns)
    plain, tokenizer = plainly_loaded(path)
    # Written out, in pieces that no token reaches over: the pieces with an end are said by it.
    first = ["[user]\nwhy\n[assistant]\n", f"the cat{EOS}", "\n[user]\nwho\n[assistant]\n"]
    pieces = [[*first, f"a dog sat{EOS}"], ["[user]\nthe mat\n[assistant]\n", f"then{EOS}"]]
    total, count = 0.0, 0
    for texts in pieces:
        parts = [tokenizer(text)["input_ids"] for text in texts]
        whole = tokenizer("".join(texts))["input_ids"]
        assert [i for part in parts for i in part] == whole
        said = [EOS in text for text in texts]
        if turns == "last":
            said[:-1] = [False] * (len(said) - 1)
        ids = torch.tensor([whole])
        labels = [i if own else -100 for own, part in zip(said, parts, strict=True) for i in part]
        with torch.no_grad():
            loss = plain(input_ids=ids, labels=torch.tensor([labels])).loss
        own = sum(label != -100 for label in labels)
        total, count = total + loss.item() * own, count + own
    assert row["tokens"] == count
    assert row["loss"] == pytest.approx(total / count, abs=1e-5)


def test_long_chats_lose_turns_instead_of_being_skipped(tmp_path, capsys):
    rows = [
        {"messages": chat("why", "the cat " * 6, "who", "a dog sat")},
        {"messages": chat("a", "b")},
    ]
    _, row = trained_on(tmp_path, rows, max_length=32)
    told = " ".join(capsys.readouterr().err.split())
    assert "1 of 2 demonstrations truncated: their oldest turns are left out" in told
    assert toys.result(tmp_path / "sft")["skipped"] == 0
    tokenizer = plainly_loaded(tmp_path / "sft" / "model")[1]
    assert row["tokens"] == sum(
        len(tokenizer(f"{t}{EOS}")["input_ids"]) for t in ("a dog sat", "b")
    )


def test_the_plain_template_is_saved_with_what_was_trained_on_it(tmp_path):
    path = toys.save(tmp_path, tokenizer=byte_bpe_tokenizer(bos=False))
    train_on(tmp_path, path, [{"messages": chat("a", "b")}])
    tokenizer = plainly_loaded(tmp_path / "sft" / "model")[1]
    text = tokenizer.apply_chat_template(chat("a"), add_generation_prompt=True, tokenize=False)
    assert text == "User:\na\n\nAssistant:\n"
