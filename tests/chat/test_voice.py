import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.chat.voices import save_chat
from tests.tiny import byte_bpe_tokenizer, save_tiny
from tether.chat.voice import harmless, load_voice, shade
from tether.engine.decode import completion_text, generate_tokens
from tether.engine.sampling import CHAT
from tether.errors import ConfigError
from tether.models.chat import encode_prompt
from tether.models.language_model import load
from tether.sections import ComputeConfig, SamplingConfig

ASKED = {"temperature": 1.0, "max_new_tokens": 12, "seed": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    plain = {"tokenizer": byte_bpe_tokenizer()}
    return {
        "policy": str(save_tiny(root / "policy", **plain)),
        "reference": str(save_tiny(root / "reference", seed=5, **plain)),
        "words": str(save_tiny(root / "words")),
        "chat": str(save_chat(root / "chat")),
        "no-system": str(
            save_chat(
                root / "no-system",
                "{% for m in messages %}{% if m['role'] != 'system' %}"
                "{{ m['content'] }}{% endif %}{% endfor %}",
            )
        ),
        "refuses": str(
            save_chat(
                root / "refuses",
                "{% if messages[0]['role'] == 'system' %}"
                "{{ raise_exception('no system') }}{% endif %}{{ messages[0]['content'] }}",
            )
        ),
    }


def test_the_answer_is_what_generate_would_have_written(folders):
    voice = load_voice("m", folders["policy"], device="cpu")
    model = load(folders["policy"], ComputeConfig(device="cpu"))
    ids = encode_prompt(model.tokenizer, "the cat")
    sampling = SamplingConfig(max_new_tokens=12)
    [whole] = generate_tokens(model, [ids], sampling, seed=3, step=CHAT)
    answer = list(voice.answer("the cat", **ASKED))
    text = completion_text(model, ids, whole.token_ids, finished=whole.finished)
    assert "".join(piece.text for piece in answer) == text
    assert [token.id for piece in answer for token in piece.tokens] == whole.token_ids


def test_differences_by_plain_transformers(folders):
    """Per piece: the sum over its tokens of log π - log π_ref, from whole forwards."""
    voice = load_voice("m", folders["policy"], folders["reference"], device="cpu")
    answer = list(voice.answer("the cat", temperature=2.0, max_new_tokens=12, seed=3))
    found = voice.differences("the cat", answer)
    prompt = byte_bpe_tokenizer()("the cat").input_ids
    ids = prompt + [token.id for piece in answer for token in piece.tokens]
    told = {}
    for name in ("policy", "reference"):
        model = AutoModelForCausalLM.from_pretrained(folders[name]).eval()
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        told[name] = [logprobs[i - 1, ids[i]].item() for i in range(len(prompt), len(ids))]
    each = [a - b for a, b in zip(told["policy"], told["reference"], strict=True)]
    expected, start = [], 0
    for piece in answer:
        expected.append(sum(each[start : start + len(piece.tokens)]))
        start += len(piece.tokens)
    assert found == pytest.approx(expected, abs=1e-4)
    assert max(map(abs, found)) > 1


def test_without_a_reference_there_is_no_difference(folders):
    voice = load_voice("m", folders["policy"], device="cpu")
    assert not voice.compares
    assert voice.differences("the cat", list(voice.answer("the cat", **ASKED))) == []


@pytest.mark.parametrize(
    ("name", "chats", "takes_system"),
    [
        ("policy", False, False),
        ("chat", True, True),
        ("no-system", True, False),
        ("refuses", True, False),
    ],
)
def test_what_the_template_has_room_for(folders, name, chats, takes_system):
    voice = load_voice("m", folders[name], device="cpu")
    assert (voice.chats, voice.takes_system) == (chats, takes_system)


def test_an_answer_is_no_longer_than_what_is_left(folders):
    voice = load_voice("m", folders["policy"], device="cpu")  # 64 positions
    prompt = "the cat " * 8
    ids = byte_bpe_tokenizer()(prompt).input_ids
    answer = list(voice.answer(prompt, temperature=1.0, max_new_tokens=500, seed=0))
    assert 0 < sum(len(piece.tokens) for piece in answer) <= 64 - len(ids)
    with pytest.raises(ConfigError, match="64 positions; start anew"):
        list(voice.answer("the cat " * 60, **ASKED))


def test_a_reference_with_other_tokens_is_refused(folders):
    with pytest.raises(ConfigError, match="another vocabulary"):
        load_voice("m", folders["policy"], folders["words"], device="cpu")


def test_shades():
    found = [shade(x) for x in (0.0, 0.09, -0.09, 0.1, -0.5, 1.49, -1.5, 9.0)]
    assert found == [0, 0, 0, 1, -2, 2, -3, 3]


def test_nothing_steers_the_terminal():
    assert harmless("a\x1b[31mred\x07\r\nb\tc\x9b2J") == "a\ufffd[31mred\ufffd\ufffd\nb\tc\ufffd2J"
