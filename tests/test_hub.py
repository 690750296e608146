"""What a push sends, byte for byte, to a stand-in for the hub; and what it does where it fails."""

import json
import sys

import pytest
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.hub_server import Hub
from tests.tiny import save_tiny
from tests.train import toys
from tether import cli, pipeline
from tether.errors import ConfigError, ModelError, ServerError
from tether.hub import MARK, push
from tether.records import write_jsonl
from tether.sections import ComputeConfig

# huggingface_hub streams files in a way that its HTTP client would rather have otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_a-secret-of-the-tests"


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub().running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def model(tmp_path):
    return save_tiny(tmp_path / "tuned" / "model")


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["tether", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


def sft_words(tmp_path, *more):
    path = toys.save(tmp_path)
    write_jsonl(tmp_path / "data.jsonl", toys.DEMONSTRATIONS)
    words = ["sft", "--model", path, "--data", tmp_path / "data.jsonl", "--out", tmp_path / "tuned"]
    return [*words, "--max-steps", 1, "--batch-size", 4, *more]


# --- what arrives ---------------------------------------------------------------------------------


def test_the_folder_arrives_byte_for_byte(hub, model, tmp_path):
    (model / "checkpoints").mkdir()
    (model / "checkpoints" / "optimizer.safetensors").write_bytes(b"moments")
    (model / ".cache").mkdir()
    (model / ".cache" / "left").write_text("over")
    push(model, to="me/toy")
    sent = hub.files["me/toy"]
    kept = {k: v for k, v in contents(model).items() if not k.startswith(("checkpoints", ".cache"))}
    assert sent == kept
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= sent.keys()
    assert len(hub.lfs) == sum(len(body) >= 4096 for body in sent.values()) > 0
    for name, body in sent.items():
        (tmp_path / "there").mkdir(exist_ok=True)
        (tmp_path / "there" / name).write_bytes(body)
    AutoModelForCausalLM.from_pretrained(tmp_path / "there")
    AutoTokenizer.from_pretrained(tmp_path / "there")


def test_the_token_goes_into_the_header_and_nowhere_else(hub, model, tmp_path, capfd):
    push(model.parent, to="me/toy")
    assert hub.requests
    for method, path, headers, body in hub.requests:
        others = {k: v for k, v in headers.items() if k != "authorization"}
        assert TOKEN not in f"{path} {others} {body}"
        # Where large files go is another server's business: its address is the permission.
        assert headers.get("authorization") == (None if method == "PUT" else f"Bearer {TOKEN}")
    assert not any(TOKEN.encode() in body for body in contents(tmp_path).values())
    out = capfd.readouterr()
    assert TOKEN not in out.out + out.err
    assert f"to {hub.url}/me/toy" in " ".join(out.err.split()).replace(" /", "/")


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_is_private_unless_said_otherwise(hub, model, private):
    push(model, to="me/toy", private=private)
    assert hub.repos == {"me/toy": private}


def test_a_public_repository_gets_nothing_that_was_meant_to_be_private(hub, model):
    hub.repos["me/toy"] = False
    with pytest.raises(ServerError, match="'me/toy' is public"):
        push(model, to="me/toy")
    assert "me/toy" not in hub.files
    push(model, to="me/toy", private=False)
    assert "config.json" in hub.files["me/toy"]


def test_a_card_is_made_where_there_is_none(hub, model):
    facts = {"made_by": "tether sft", "model": "someone/base", "data": "d.jsonl"}
    (model / "tether.json").write_text(json.dumps(facts))
    push(model, to="me/toy")
    card = hub.files["me/toy"]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "\nbase_model: someone/base\n---\n" in card
    assert MARK in card
    assert card.endswith("# tuned\n\nTrained by `tether sft` from `someone/base`.\n")
    (model / "README.md").write_text("mine")
    push(model, to="me/toy")
    assert hub.files["me/toy"]["README.md"] == b"mine"


# --- commands -------------------------------------------------------------------------------------


def test_a_command_that_makes_a_model_pushes_it_once(hub, monkeypatch, tmp_path, capfd):
    words = sft_words(tmp_path, "--push-to", "me/toy")
    assert run(monkeypatch, *words) == 0
    sent = hub.files["me/toy"]
    assert sent == contents(tmp_path / "tuned" / "model")
    assert hub.repos == {"me/toy": True}
    count = len(hub.requests)
    assert run(monkeypatch, *words) == 0  # finished, and the same model is there
    assert len(hub.requests) == count
    elsewhere = [*words[:-1], "me/other", "--no-push-private"]
    assert run(monkeypatch, *elsewhere) == 0  # no other setting: the stage is finished as it is
    assert hub.files["me/other"] == sent
    assert hub.repos["me/other"] is False
    assert not any(TOKEN.encode() in body for body in contents(tmp_path).values())
    assert TOKEN not in "".join(capfd.readouterr())


def test_a_push_that_fails_keeps_the_model_and_says_how_to_go_on(hub, monkeypatch, tmp_path, capfd):
    hub.refuse = 403
    words = sft_words(tmp_path, "--push-to", "me/toy")
    assert run(monkeypatch, *words) == 2
    model = tmp_path / "tuned" / "model"
    [line] = [x for x in capfd.readouterr().err.splitlines() if x.startswith("tether: ")]
    assert f"{model} was not pushed to 'me/toy': " in line
    assert line.endswith(f"it is kept, and `tether push {model} --to me/toy` pushes it later")
    assert (tmp_path / "tuned" / "result.json").exists()
    hub.refuse = 0
    assert run(monkeypatch, "push", model, "--to", "me/toy") == 0
    assert hub.files["me/toy"] == contents(model)


def test_a_server_that_is_not_there_is_one_line(hub, monkeypatch, model):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ServerError, match=r"was not pushed to 'me/toy': .*it is kept, and `tether"):
        push(model, to="me/toy")


@pytest.mark.parametrize("to", ["toy", "me/toy/more", "me/a toy", "../toy"])
def test_a_bad_name_is_refused_before_anything_runs(hub, monkeypatch, tmp_path, to, capfd):
    assert run(monkeypatch, *sft_words(tmp_path, "--push-to", to)) == 2
    assert "must be OWNER/NAME" in capfd.readouterr().err
    assert not (tmp_path / "tuned").exists()


def test_no_token_is_told_before_anything_runs(monkeypatch, tmp_path, capfd):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert run(monkeypatch, *sft_words(tmp_path, "--push-to", "me/toy")) == 2
    assert "put it into the environment variable HF_TOKEN" in capfd.readouterr().err
    assert not (tmp_path / "tuned").exists()


def test_a_folder_without_a_model_is_refused(hub, tmp_path):
    with pytest.raises(ModelError, match="holds no model"):
        push(tmp_path, to="me/toy")


# --- recipes --------------------------------------------------------------------------------------


def stages(*tables):
    plan = [{"model": "-", "data": "-", **table} for table in tables]
    return pipeline.plan({"stage": plan}, pipeline.Path("runs/x"))


def test_each_stage_of_a_recipe_names_its_own_place(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    one, other = ({"kind": "sft", "name": n, "compute": {"push_to": f"me/{n}"}} for n in "ab")
    pipeline.check_pushes(stages(one, other))
    with pytest.raises(ConfigError, match=r"b.compute.push_to='me/a' is also where a is pushed"):
        pipeline.check_pushes(stages(one, {**other, "compute": one["compute"]}))


def test_a_stage_that_makes_no_model_pushes_none(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    compute = ComputeConfig(push_to="me/toy")
    config = pipeline.STAGES["generate"](model="-", prompts="-", out="x", compute=compute)
    with pytest.raises(ConfigError, match="but generate makes no model; set it where one is"):
        pipeline.check_pushes([pipeline.Stage("generate", "generate", config)])
