"""The benchmarks: the world they run in, their arithmetic, and one round of tether's worker."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
alternate, figures, gpu, roofline, world = map(
    importlib.import_module, ("alternate", "figures", "gpu", "roofline", "world")
)

TINY = world.Size(width=32, layers=2, heads=2, inner=48, vocabulary=200)
WORK = {"batch_size": 4, "max_new_tokens": 8}


# --- the world ------------------------------------------------------------------------------------


def end_probability(model):
    """P(end token) after each token of random rows."""
    ids = torch.randint(len(world.SPECIAL), TINY.vocabulary, (32, 40))
    with torch.no_grad():
        probabilities = model(input_ids=ids).logits.softmax(-1)
    assert probabilities[..., [world.PAD, world.UNK]].max() < 1e-12
    return probabilities[..., world.EOS]


def test_a_policy_of_fixed_lengths_never_ends():
    assert end_probability(world.build_policy(TINY, "fixed")).max() < 1e-12


def test_a_policy_of_varied_lengths_ends_every_fortieth_token():
    found = end_probability(world.build_policy(TINY, "varied"))
    assert found.mean() == pytest.approx(1 / 40, rel=0.1)
    assert found.std() < 0.5 / 40


def test_a_dimension_is_constant_through_the_network():
    model = world.build_policy(TINY, "varied")
    ids = torch.randint(len(world.SPECIAL), TINY.vocabulary, (2, 9))
    with torch.no_grad():
        *hidden, _ = model(input_ids=ids, output_hidden_states=True).hidden_states
    for states in hidden:
        torch.testing.assert_close(states[..., 0], torch.full((2, 9), world.CONSTANT))


@pytest.mark.parametrize(("lengths", "shortest"), [("fixed", 32), ("varied", 8)])
def test_what_lies_on_disk(tmp_path, lengths, shortest):
    world.build(tmp_path, TINY, lengths)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")

    def counts(name, *fields):
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        return {len(tokenizer(row[field])["input_ids"]) for row in rows for field in fields}

    assert counts("prompts.jsonl", "prompt") == set(range(shortest, 33))
    assert {min(found := counts("texts.jsonl", "text")), max(found)} == {32, 256}
    assert counts("pairs.jsonl", "prompt") == {32}
    assert {min(found := counts("pairs.jsonl", "chosen", "rejected")), max(found)} == {32, 96}
    assert json.loads((tmp_path / "reward" / "config.json").read_text())["pad_token_id"] == 0


def test_words_are_decoded_and_encoded_alike():
    tokenizer = world.build_tokenizer(200)
    ids = [199, 3, 57, 57]
    assert tokenizer.decode(ids) == "w199 w3 w57 w57"
    assert tokenizer(tokenizer.decode(ids))["input_ids"] == ids


@pytest.mark.parametrize(("name", "millions"), [("5m", 5.0), ("15m", 15.2)])
def test_sizes_are_what_they_are_called(name, millions):
    with torch.device("meta"):
        model = world.LlamaForCausalLM(world._config(world.SIZES[name]))
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.05)


# --- arithmetic -----------------------------------------------------------------------------------


def measured(imported, *rows):
    names = ("cpu_s", "wall_s", "tokens", "rows", "peak_mib")
    rows = [dict(zip(names, row, strict=True)) | {"phases": {"train": row[0] / 2}} for row in rows]
    return figures.Measured({"imported_mib": imported, "torch": "2"}, rows)


OTHER = measured(300, (12.0, 13.0, 100, 4, 500), (10.0, 10.0, 200, 4, 700), (8.0, 9.0, 160, 4, 600))
OURS = measured(200, (4.0, 4.0, 100, 4, 300), (4.0, 5.0, 100, 4, 250), (2.0, 2.0, 80, 4, 300))


def test_ratios_by_hand():
    found = figures.ratios(OTHER, OURS)
    assert found.cpu == [3.0, 2.5, 4.0]  # 12/4, 10/4, 8/2
    assert found.per_token == pytest.approx((30 / 460) / (10 / 280))
    assert found.wall == 3.25  # of 13/4, 2, 9/2
    assert found.peak == pytest.approx(700 / 300)
    assert found.working == 4.0  # (700 - 300) / (300 - 200)
    assert figures.spread(found.cpu) == "2.50 / 3.00 / 4.00"


def test_a_side_by_hand():
    assert OTHER.mean_length == pytest.approx(460 / 12)
    assert OTHER.median("cpu_s") == 10.0
    assert (OTHER.phase("train"), OTHER.phase("score")) == (5.0, 0.0)


def test_the_tables_name_the_best_of_the_others(capsys):
    worse = measured(300, *[(20.0, 20.0, 100, 4, 500)] * 3)
    sides = {"A": worse, "B": OTHER, "ours": OURS}
    facts = {"cpu": "a processor", "cores": 2, "load": 0.5}
    figures.show("ppo", sides, [("A", "ours"), ("B", "ours")], facts)
    printed = capsys.readouterr().out
    assert "ours against the fastest of the others, B: 3.00 × (1.83 × a token)" in printed
    assert "2.50 / 3.00 / 4.00" in printed
    assert "torch 2" in printed
    assert "imported" not in printed


def test_limits_by_hand():
    # At 1 FLOP/s everywhere, seconds are FLOPs. 32 rollouts in 4 × 4 minibatches of 8 rows, each
    # of 32 prompt and 64 completion tokens: 768 a minibatch, 512 of them predicted.
    everywhere = dict.fromkeys(
        [(p.name, m) for p in roofline.products(TINY) for m in (32, 768, 512)],
        roofline.Rates(1.0, 1.0, 1.0),
    )
    found = roofline.limits(TINY, everywhere)
    body = 2 * (4 * 32 * 32 + 3 * 32 * 48)  # two layers
    head = 32 * 200
    training = 6 * 16 * (2 * body * 768 + head * 512)
    generation = 2 * 32 * (body * (32 + 64) + head * 64)
    assert found == (training, training, generation, generation)


def test_products_of_grouped_heads_by_hand():
    # Llama 3.2 1B: 32 query heads of 64 numbers share 8 key and 8 value heads.
    found = {product.name: (product.k, product.n) for product in roofline.products(gpu.SIZES["1b"])}
    assert found["query, key, value"] == (2048, 2048 + 2 * 512)
    assert found["head"] == (2048, 128_256)


@pytest.mark.parametrize("part", ["generate", "sft", "ppo", "grpo"])
def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path, part):
    options = gpu.Options(batch=16, prompt=5, new=4, rows=8, device="cpu")
    bench = gpu.Bench(options, "tiny", tmp_path)
    # two layers: q, k, v, out of 32 × 32 each, and three of 32 × 48; a head of 32 × 200
    assert bench.weights == (2 * (4 * 32 * 32 + 3 * 32 * 48), 6400)
    found = getattr(bench, part)()
    if part == "generate":
        assert found["tokens_s"] * found["seconds"] == pytest.approx(16 * 4)
    elif part == "sft":
        assert found["tokens_s"] * 5 * found["step_s"] == pytest.approx(5 * 8 * 9)
    else:
        assert found["length"] == 4.0


# --- workers --------------------------------------------------------------------------------------


def test_sides_that_differ_are_not_compared():
    with pytest.raises(RuntimeError, match=r"nothing can be compared: \{'steps': 16\}"):
        alternate._check_same([{"steps": 16}, {"steps": 16}, {"steps": 4}])


def test_a_worker_that_ends_says_why(tmp_path):
    (side,) = alternate.sides("nobody", "gate.py", sys.executable, "at all")
    with (
        pytest.raises(RuntimeError, match="worker of nobody at all has ended"),
        alternate.started(side, {}, tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("task", "more", "steps"),
    [("ppo", {"epochs": 2, "minibatches": 2}, 4), ("grpo", {"num": 2, "kl_beta": 0.04}, 1)],
)
def test_a_round_of_tethers_worker(tmp_path, task, more, steps):
    world.build(tmp_path, TINY, "fixed")
    job = {**WORK, **more, "task": task, "world": str(tmp_path), "lengths": "fixed"}
    (side,) = alternate.tether_sides("fp32")
    with alternate.started(side, job, tmp_path) as worker:
        row = worker.ask()
    assert worker.facts["torch"] == torch.__version__
    assert (row["rows"], row["tokens"], row["steps"]) == (4, 4 * 8, steps)
    assert set(row["phases"]) == {"generate", "score", "train"}
    assert sum(row["phases"].values()) == pytest.approx(row["cpu_s"], rel=0.05)
    assert row["peak_mib"] > worker.facts["imported_mib"] > 50
    assert worker.process.poll() is not None
