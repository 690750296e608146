import json
import math
import subprocess
import sys

import pytest
import torch
from tests.tiny import byte_bpe_tokenizer, save_tiny, tiny_llama, word_tokenizer
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from tether.data.batches import Row, device_batches, pack, pad
from tether.errors import ModelError
from tether.models.language_model import completion_logprobs, load, save
from tether.models.scalar_head import (
    Centering,
    load_reward_model,
    new_reward_model,
    save_reward_model,
    value_model_from_backbone,
    value_model_from_reward,
)
from tether.sections import ComputeConfig

CPU = ComputeConfig(device="cpu")
KINDS = {
    "gpt2": {"kind": "gpt2"},
    "llama": {"kind": "llama", "num_key_value_heads": 2},
    "llama-gqa": {"kind": "llama", "num_attention_heads": 4, "num_key_value_heads": 2},
}
CASES = [(kind, pad_is_eos) for kind in KINDS for pad_is_eos in (False, True)]
NAMES = [f"{kind}-{'pad=eos' if same else 'pad'}" for kind, same in CASES]
EOS = 1

# End tokens inside the rows, and one as a prompt's last; every row ends with one.
ROWS = [
    Row([7, 5, 9, 4, EOS], 0),
    Row([4, EOS, 6, 8, 23, 10, 11, EOS], 3),
    Row([12, EOS], 1),
    Row([5, 5, 5, 13, 20, 6, 19, 18, 3, 16, 22, 22, 9, 8, 7, 21, 4, EOS], 5),
    Row([EOS, EOS, 14, EOS], 2),
    Row([15, 16, 17, 18, 19, 20, 21, 22, EOS], 8),
    Row([25, 4, EOS], 1),
    Row([6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, EOS], 1),
]
ALL = list(range(len(ROWS)))
LAYOUTS = {
    "one by one": [([i], pad([row])) for i, row in enumerate(ROWS)],
    "one by one, left": [([i], pad([row], side="left")) for i, row in enumerate(ROWS)],
    "right": [(ALL, pad(ROWS))],
    "left": [(ALL, pad(ROWS, side="left"))],
    "packed": [(ALL, pack(ROWS))],
    "two packs": [(ALL, pack(ROWS[:3], ROWS[3:]))],
    **{f"device batches of {n}": list(device_batches(ROWS, n)) for n in (0, 1, 2, 3, 5)},
}
each_layout = pytest.mark.parametrize("name", LAYOUTS)


def with_random_head(reward, seed=5):
    """A new head is 0; draw one that tells rows apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        reward.head.weight.copy_(torch.randn(reward.head.weight.shape, generator=generator))
    return reward


@pytest.fixture(scope="module", params=CASES, ids=NAMES)
def reward(request, tmp_path_factory):
    kind, pad_is_eos = request.param
    folder = save_tiny(tmp_path_factory.mktemp("model"), pad_is_eos=pad_is_eos, **KINDS[kind])
    return with_random_head(new_reward_model(str(folder), CPU))


def plain_hidden(model, row):
    with torch.no_grad():
        ids = torch.tensor([row.ids])
        return model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]


# --- scores and values in every layout ------------------------------------------------------------


@each_layout
def test_scores_are_plain_transformers_in_every_layout(reward, name):
    # transformers alone on each unpadded row: its `.logits` are the head at the last token. Both
    # are sums of h·w in float32, so each may be off by some of their roundings of 6e-8 a term.
    with torch.no_grad():
        wanted = [float(reward.model(input_ids=torch.tensor([r.ids])).logits) for r in ROWS]
        terms = [plain_hidden(reward.model, r)[-1] * reward.head.weight[0] for r in ROWS]
        found = dict[int, float]()
        for order, batch in LAYOUTS[name]:
            found.update(zip(order, reward.scores(batch).tolist(), strict=True))
    for i in ALL:
        assert found[i] == pytest.approx(wanted[i], abs=1e-6 * float(terms[i].abs().sum()))
    assert len({round(score, 3) for score in wanted}) == len(ROWS)


@each_layout
def test_a_value_is_read_before_its_token_in_every_layout(reward, name):
    # V(s_t) stands at the token before a_t, so a row of n completion tokens has n values, the
    # first at the last prompt token and none at the end token.
    value = value_model_from_reward(reward)
    with torch.no_grad():
        found = {}
        for order, batch in LAYOUTS[name]:
            counts = [ROWS[i].num_completion for i in order]
            found.update(zip(order, value.values(batch).split(counts), strict=True))
    for i, row in enumerate(ROWS):
        places = plain_hidden(reward.model, row)[row.first - 1 : len(row.ids) - 1]
        wanted = places @ reward.head.weight[0]
        torch.testing.assert_close(found[i], wanted, atol=1e-5, rtol=0, msg=f"row {i}")


def test_a_row_of_a_pack_never_sees_another(reward):
    first, second = ROWS[1], ROWS[3]
    changed = first._replace(ids=[9, 23, 22, 21, 20, 19, 18, EOS])
    with torch.no_grad():
        before, after = (reward.scores(pack([row, second])).tolist() for row in (first, changed))
    assert abs(before[0] - after[0]) > 0.1
    assert before[1] == pytest.approx(after[1], abs=1e-6)


# --- a new reward model ---------------------------------------------------------------------------


def pad_free(**settings):
    tokenizer = word_tokenizer(**settings)
    tokenizer.pad_token = None
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "pad_id"),
    [
        (word_tokenizer(), 2),  # its own, kept
        (word_tokenizer(pad_is_eos=True), 29),  # 29 words and special tokens before it
        (pad_free(pad_is_eos=True), 29),
        (byte_bpe_tokenizer(pad_is_eos=True), len(byte_bpe_tokenizer(pad_is_eos=True))),
    ],
    ids=["own", "pad=eos", "none", "bytes"],
)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_its_pad_token_is_not_its_end_token(tmp_path, kind, tokenizer, pad_id):
    before = len(tokenizer)
    folder = save_tiny(tmp_path, kind=kind, tokenizer=tokenizer)
    made = new_reward_model(str(folder), CPU)
    assert made.tokenizer.pad_token_id == made.model.config.pad_token_id == pad_id
    assert made.tokenizer.eos_token_id != pad_id
    embeddings = made.model.get_input_embeddings().num_embeddings
    assert embeddings == made.model.config.vocab_size == max(before, pad_id + 1)
    assert made.tokenizer.padding_side == "right"


def test_there_may_be_room_for_the_pad_token(tmp_path):
    # Vocabularies are often padded to a round number; then no row is added.
    folder = save_tiny(tmp_path, pad_is_eos=True, vocab_size=40)
    made = new_reward_model(str(folder), CPU)
    assert made.tokenizer.pad_token_id == 29
    assert made.model.get_input_embeddings().num_embeddings == 40


def test_it_starts_at_zero_on_the_models_backbone(tmp_path):
    folder = save_tiny(tmp_path, pad_is_eos=True)
    made, base = new_reward_model(str(folder), CPU), load(str(folder), CPU).model
    assert made.centering is None
    with torch.no_grad():
        assert made.scores(pad(ROWS)).tolist() == [0.0] * len(ROWS)
    for row in ROWS:
        ours, theirs = (plain_hidden(model, row) for model in (made.model, base))
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


# --- a value model --------------------------------------------------------------------------------


def test_it_starts_as_the_centred_reward_model(reward):
    hidden = torch.randn(5, reward.head.in_features)
    with torch.no_grad():
        raw = reward.numbers(hidden)
        as_it_is = value_model_from_reward(reward).numbers(hidden)
        reward.centering = Centering(0.75, 2.5)
        centred = value_model_from_reward(reward).numbers(hidden)
        reward.centering = None
    assert torch.equal(as_it_is, raw)
    torch.testing.assert_close(centred, (raw - 0.75) / 2.5, atol=1e-5, rtol=0)


def test_a_bias_of_the_reward_head_is_kept(reward):
    # (w·h + 0.5 - 0.1) / 2 = (w·h) / 2 + 0.2
    biased = nn.Linear(reward.head.in_features, 1)
    with torch.no_grad():
        biased.weight.copy_(reward.head.weight)
        biased.bias.fill_(0.5)
    head, reward.head, reward.centering = reward.head, biased, Centering(0.1, 2.0)
    made = value_model_from_reward(reward)
    reward.head, reward.centering = head, None
    hidden = torch.randn(3, head.in_features)
    with torch.no_grad():
        wanted = (hidden @ head.weight[0]) / 2 + 0.2
        torch.testing.assert_close(made.numbers(hidden), wanted, atol=1e-5, rtol=0)


def test_without_a_reward_model_it_starts_at_zero(tmp_path):
    policy = load(str(save_tiny(tmp_path)), CPU)
    value = value_model_from_backbone(policy.model, policy.place)
    assert value.model is policy.model
    assert value.values(pad(ROWS)).tolist() == [0.0] * sum(row.num_completion for row in ROWS)


# --- saving and loading ---------------------------------------------------------------------------


@pytest.mark.parametrize("centering", [None, Centering(-1.25, 0.5)])
def test_what_is_saved_is_what_was_there(reward, tmp_path, centering):
    reward.centering = centering
    save_reward_model(reward, tmp_path / "out", {"made_by": "a test"})
    reward.centering = None
    again = load_reward_model(str(tmp_path / "out"), CPU)
    assert again.centering == centering
    assert json.loads((tmp_path / "out" / "tether.json").read_text())["made_by"] == "a test"
    with torch.no_grad():
        assert torch.equal(again.scores(pad(ROWS)), reward.scores(pad(ROWS)))
    assert not any(p.requires_grad for p in again.model.parameters())
    trainable = load_reward_model(str(tmp_path / "out"), CPU, trainable=True)
    assert all(p.requires_grad for p in trainable.model.parameters())
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".safetensors", ".json"}


def test_a_reward_model_of_others_has_no_centring(reward, tmp_path):
    reward.model.save_pretrained(tmp_path)
    reward.tokenizer.save_pretrained(tmp_path)
    assert load_reward_model(str(tmp_path), CPU).centering is None


def classifier(folder, **settings):
    config = LlamaConfig(
        **{**tiny_llama(len(word_tokenizer())).config.to_dict(), "pad_token_id": 2, **settings}
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def test_two_labels_are_refused(tmp_path):
    path = classifier(tmp_path, id2label={0: "rude", 1: "kind"})
    with pytest.raises(ModelError, match=r"has 2 labels \['rude', 'kind'\] and none was named"):
        load_reward_model(path, CPU)


def test_a_causal_model_is_no_reward_model(tmp_path):
    with pytest.raises(ModelError, match=r"is no reward model .*LlamaForCausalLM.*tether reward"):
        load_reward_model(str(save_tiny(tmp_path)), CPU)


def test_a_reward_model_without_its_head_is_refused(tmp_path):
    # It says that it is one, but holds the weights of a causal model.
    folder = save_tiny(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "score"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"no fitting weights for 'score.weight'"):
        load_reward_model(str(folder), CPU)


def test_a_missing_directory(tmp_path):
    for make in (load_reward_model, new_reward_model):
        with pytest.raises(ModelError, match="missing' does not exist"):
            make(str(tmp_path / "missing"), CPU)


# --- exported models: plain transformers, no tether -----------------------------------------------

# Reads {"reward": [[folder, texts, sides], ...], "policy": [[folder, rows], ...]}; writes scores
# and log-probs of completion tokens, computed as anyone would with transformers alone.
READER = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

asked, found = json.load(sys.stdin), {"reward": [], "policy": []}
torch.set_grad_enabled(False)
for folder, texts, sides in asked["reward"]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    texts = [text + tokenizer.eos_token for text in texts]
    scores = {"alone": [model(**tokenizer(t, return_tensors="pt")).logits.item() for t in texts]}
    for side in sides:
        for size in (3, len(texts)):
            parts = [texts[i:i + size] for i in range(0, len(texts), size)]
            inputs = [tokenizer(p, return_tensors="pt", padding=True, padding_side=side)
                      for p in parts]
            scores[f"{side} {size}"] = [s for x in inputs for s in model(**x).logits[:, 0].tolist()]
    ids = [tokenizer.pad_token_id, tokenizer.eos_token_id, model.config.pad_token_id]
    found["reward"].append([scores, ids, model.config.num_labels])
for folder, rows in asked["policy"]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    logprobs = []
    for ids, num_prompt, _ in rows:
        every = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = max(num_prompt, 1)
        logprobs += [every[t - 1, ids[t]].item() for t in range(start, len(ids))]
    found["policy"].append(logprobs)
found["tether"] = [name for name in sys.modules if name.partition(".")[0] == "tether"]
json.dump(found, sys.stdout)
"""
TEXTS = [
    "the cat sees a dog",
    "the cat sees a dog and helps",
    "no",
    "tell me about the big red bird please thanks",
    "",
    "why a cat likes the small kind dog what who",
    "a",
]


def export(folder, kind, tokenizer):
    """A policy and a reward model of a kind, saved by tether; what tether says of them."""
    start = str(save_tiny(folder / "start", tokenizer=tokenizer, **KINDS[kind]))
    policy, reward = load(start, CPU), with_random_head(new_reward_model(start, CPU))
    reward.centering = Centering(0.5, 3.0)  # must not touch the raw scores
    save(policy, folder / "policy", {"made_by": "a test"})
    save_reward_model(reward, folder / "reward", {"made_by": "a test"})
    rows = [Row([*reward.tokenizer(text)["input_ids"], EOS], 0) for text in TEXTS]
    with torch.no_grad():
        return completion_logprobs(policy, pad(ROWS))[0].tolist(), reward.scores(
            pack(rows)
        ).tolist()


def test_they_load_and_score_alike_in_a_python_without_tether(tmp_path):
    tokenizers = {
        "own pad": word_tokenizer(),
        "pad is eos": word_tokenizer(pad_is_eos=True),
        "no pad": pad_free(pad_is_eos=True),
    }
    cases = [(kind, name) for kind in ("gpt2", "llama-gqa") for name in tokenizers]
    wanted = [export(tmp_path / f"{i}", kind, tokenizers[n]) for i, (kind, n) in enumerate(cases)]
    # GPT-2's positions count from the first column: padding it on the left needs position_ids,
    # which plain transformers does not make by itself.
    sides = [["right"] if kind == "gpt2" else ["right", "left"] for kind, _ in cases]
    numbered = range(len(cases))
    asked = {
        "reward": [[str(tmp_path / f"{i}" / "reward"), TEXTS, sides[i]] for i in numbered],
        "policy": [[str(tmp_path / f"{i}" / "policy"), ROWS] for i in numbered],
    }
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tether"] == []
    for i, (case, (logprobs, raw)) in enumerate(zip(cases, wanted, strict=True)):
        assert found["policy"][i] == pytest.approx(logprobs, abs=1e-5), case
        scores, (pad_id, eos_id, model_pad_id), labels = found["reward"][i]
        assert pad_id == model_pad_id != eos_id
        assert labels == 1
        assert len(scores) == 1 + 2 * len(sides[i])
        for layout, each in scores.items():
            assert each == pytest.approx(raw, abs=1e-5), (case, layout)
        assert math.dist(raw, [0.0] * len(raw)) > 1  # the head is not 0


def test_transformers_reads_a_pad_that_is_the_end_token_wrongly(tmp_path):
    # Why a pad token of its own is added: with pad == eos the score moves off the end token.
    folder = save_tiny(tmp_path / "start", pad_is_eos=True)
    reward = with_random_head(new_reward_model(str(folder), CPU))
    plain = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    plain.score.weight = reward.head.weight
    ids = torch.tensor([[5, 9, 4, EOS]])
    with torch.no_grad():
        ours = float(reward.scores(pad([Row(ids[0].tolist(), 2)])))
        theirs = float(plain(input_ids=ids).logits)
        one_earlier = float(plain(input_ids=ids[:, :-1]).logits)
    assert theirs == pytest.approx(one_earlier, abs=1e-5)
    assert abs(ours - theirs) > 0.1
