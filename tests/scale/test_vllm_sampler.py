"""Sampling by servers: what they are asked, in which order, and what happens when they fail."""

import asyncio
import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.rewards.toy_server import cut_off, silence, status, text
from tests.scale.recorded import CALLS
from tests.scale.stub import StubVLLM, choice, made_up
from tests.tiny import save_tiny
from tether.engine.samplers import Request
from tether.errors import ConfigError, ServerError
from tether.models.language_model import load
from tether.models.weights import plain
from tether.scale.vllm_server import VLLMSampler, deal
from tether.sections import ComputeConfig, SamplingConfig, ServersConfig

SYNC = ["/pause", "/init_weight_transfer_engine", "/start_weight_update", "/update_weights"]
SYNC += ["/finish_weight_update", "/reset_prefix_cache", "/resume", "/weight_info"]
SAMPLING = SamplingConfig(max_new_tokens=3, stop_token_ids=(8,))
PROMPTS = [[10 + i, 5] for i in range(6)]


async def no_wait(seconds):
    await asyncio.sleep(0.001)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """30 tokens, of which 1 ends a completion."""
    folder = save_tiny(tmp_path_factory.mktemp("policy"), max_position_embeddings=512)
    return load(str(folder), ComputeConfig())


@pytest.fixture
def stubs():
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(StubVLLM().running()) for _ in range(2)]


@pytest.fixture
def make(policy, tmp_path):
    """A sampler over stubs, closed at the end."""
    made = []

    def sampler(stubs, **settings):
        urls = tuple(stub.url for stub in stubs)
        config = ServersConfig(urls=urls, **{"timeout": 30.0, "retries": 1, **settings})
        made.append(VLLMSampler(config, policy, tmp_path, wait=no_wait))
        return made[-1]

    yield sampler
    for each in made:
        each.close()


def request(prompts=PROMPTS, sampling=SAMPLING):
    return Request(prompts, list(range(len(prompts))), sampling, seed=0, step=3)


def loaded(sampler, policy, version=1):
    sampler.load(plain(policy), version)
    return sampler


# --- what they are asked --------------------------------------------------------------------------


def test_weights_go_there_in_the_order_of_vllm(make, policy, stubs):
    stub = stubs[0]
    sampler = loaded(make([stub]), policy, 7)
    meeting = ["/health", "/v1/models", "/weight_info", "/is_paused", *["/v1/completions"] * 2]
    assert stub.asked == [*meeting, *SYNC]
    sent = dict(zip(stub.asked, stub.sent, strict=True))
    folder = sent["/update_weights"]["update_info"]["path"]
    recorded = CALLS["update"]["request"]
    assert sent["/update_weights"] == {"update_info": {**recorded["update_info"], "path": folder}}
    assert sent["/finish_weight_update"].keys() == CALLS["finish"]["request"].keys()
    assert sent["/finish_weight_update"] == {"weight_version": stub.version}
    assert stub.version.endswith("-7")
    stub.asked.clear()
    loaded(sampler, policy, 8)  # it is known: nothing is asked twice
    assert stub.asked == SYNC


def test_the_files_hold_the_plain_weights_and_old_ones_go(make, policy, stubs, tmp_path):
    sampler = loaded(make(stubs), policy)
    expected = {name: tensor.detach().clone() for name, tensor in plain(policy)}
    [first] = (tmp_path / "rollout-weights").iterdir()
    loaded(sampler, policy, 2)
    [second] = (tmp_path / "rollout-weights").iterdir()
    assert first != second
    [file] = second.iterdir()
    found = load_file(file)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    sampler.close()
    assert not (tmp_path / "rollout-weights").exists()


def test_large_weights_are_written_in_several_files(make, policy, stubs, tmp_path, monkeypatch):
    monkeypatch.setattr("tether.scale.weight_files.SHARD", 9000)
    loaded(make(stubs), policy)
    files = sorted((tmp_path / "rollout-weights").glob("*/*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 12_000 for file in files)
    names = [name for file in files for name in load_file(file)]
    assert sorted(names) == sorted(name for name, _ in plain(policy))


def test_completions_are_asked_for_by_temperature_alone(make, policy, stubs):
    stub = stubs[0]
    sampler = loaded(make([stub]), policy)
    stub.asked.clear(), stub.sent.clear()
    sampler.sample(request([[9, 5]], SamplingConfig(temperature=0.7, max_new_tokens=3)))
    [body] = [b for path, b in zip(stub.asked, stub.sent, strict=True) if "completions" in path]
    assert body == {
        "model": "policy",
        "prompt": [[9, 5]],
        "max_tokens": 3,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": [1],
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
    }  # and no seed: it ends the engine on CPUs
    recorded = CALLS["stopped"]["request"]
    assert body.keys() == recorded.keys()


def test_rows_come_back_in_order_from_all_servers(make, policy, stubs):
    def ends(body):
        made = made_up(body)
        first = body["prompt"][0]
        made[0] = choice(0, first, [first[0], 8], [-0.25, -2.0], finished=True)
        return made

    stubs[1].complete = ends
    drawn = loaded(make(stubs), policy, 5).sample(request())
    # 6 rows, 2 servers: a row a call, taken in turn.
    assert drawn.by == tuple(stubs[i % 2].url for i in range(6))
    for i, one in enumerate(drawn.sampled):
        cut = ([10 + i] * 3, [-0.5] * 3, False)
        ended = ([10 + i, 8], [-0.25, -2.0], True)
        assert one == (ended if i % 2 else cut)
    assert (drawn.version, drawn.resent) == (5, False)


@given(rows=st.integers(0, 300), hands=st.integers(1, 9), most=st.integers(1, 80))
def test_dealing_leaves_nobody_idle_and_nothing_out(rows, hands, most):
    parts = deal(list(range(rows)), hands, most)
    assert [row for part in parts for row in part] == list(range(rows))
    assert all(0 < len(part) <= most for part in parts)
    assert len(parts) >= min(rows, hands)
    assert len({len(part) for part in parts[:-1]}) <= 1


def test_calls_are_as_short_as_an_answer_must_be(make, policy, stubs, monkeypatch):
    monkeypatch.setattr("tether.scale.vllm_server.TOKENS_A_CALL", 50)
    prompts = [[9, 5]] * 64  # of 2 + 3 tokens: 10 rows a call, though 8 calls would do
    stub = stubs[0]
    sampler = loaded(make([stub]), policy)
    stub.asked.clear()
    assert len(sampler.sample(request(prompts)).sampled) == 64
    assert stub.count("/v1/completions") == 8
    monkeypatch.setattr("tether.scale.vllm_server.TOKENS_A_CALL", 20)
    stub.asked.clear()
    sampler.sample(request(prompts))
    assert stub.count("/v1/completions") == 16


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [status(500), status(503), cut_off, text("[1"), silence])
def test_what_may_pass_is_tried_again(make, policy, stubs, failure):
    stub = stubs[0]
    sampler = loaded(make([stub], timeout=1.0 if failure is silence else 30.0), policy)
    stub.asked.clear()
    stub.next["/v1/completions"] = failure
    assert len(sampler.sample(request([[9, 5]])).sampled) == 1
    assert stub.count("/v1/completions") == 2


def test_another_takes_over_the_rows_of_one_that_died(make, policy, stubs):
    sampler = loaded(make(stubs), policy)

    def die(body):
        stubs[1].gone = True
        return cut_off(body)

    stubs[1].next["/v1/completions"] = die
    drawn = sampler.sample(request())
    assert set(drawn.by) == {stubs[0].url}
    assert [one.token_ids[0] for one in drawn.sampled] == [10, 11, 12, 13, 14, 15]


def test_another_takes_over_from_one_that_hangs(make, policy, stubs):
    sampler = loaded(make(stubs, timeout=0.5, retries=0), policy)
    stubs[0].hangs = True
    assert set(sampler.sample(request()).by) == {stubs[1].url}


def test_one_that_comes_back_gets_the_newest_weights_before_it_is_asked(make, policy, stubs):
    sampler = loaded(make(stubs), policy, 1)
    stubs[1].gone = True
    sampler.load(plain(policy), 2)
    assert set(sampler.sample(request()).by) == {stubs[0].url}
    stubs[1].gone = False
    stubs[1].restart()
    stubs[1].asked.clear()
    drawn = sampler.sample(request())
    assert set(drawn.by) == {stubs[0].url, stubs[1].url}
    assert (drawn.version, drawn.resent) == (2, True)
    assert stubs[1].version.endswith("-2")
    asked = stubs[1].asked
    synced = asked.index("/resume")
    assert asked[:synced].count("/v1/completions") == 2  # its vocabulary is looked at anew
    assert asked[synced:].count("/v1/completions") == 3
    assert sampler.sample(request()).resent is False


def test_one_that_was_started_anew_unseen_gets_them_too(make, policy, stubs):
    sampler = loaded(make(stubs[:1]), policy, 4)
    stubs[0].restart()
    drawn = sampler.sample(request())
    assert (drawn.version, drawn.resent) == (4, True)
    assert stubs[0].version.endswith("-4")


def test_a_run_with_one_server_waits_for_it(make, policy, stubs):
    stub = stubs[0]
    sampler = loaded(make([stub]), policy, 4)
    stub.gone = True
    looks = 0

    async def patient(seconds):
        nonlocal looks
        looks += 1
        stub.gone = looks < 5
        await asyncio.sleep(0.001)

    sampler.wait = sampler.servers[0].wait = patient
    assert len(sampler.sample(request()).sampled) == 6
    assert looks >= 5


def test_an_update_that_was_left_halfway_is_ended_first(make, policy, stubs):
    stub = stubs[0]
    stub.active = stub.paused = True
    loaded(make([stub]), policy, 9)
    assert stub.version.endswith("-9")
    assert not stub.active
    assert not stub.paused
    assert stub.asked.index("/v1/completions") > stub.asked.index("/resume")  # it would not answer


@pytest.mark.parametrize("sampling", [False, True], ids=["weights", "sampling"])
def test_when_nobody_answers_it_says_who_and_how_to_start_one(make, policy, stubs, sampling):
    sampler = make(stubs, timeout=0.3)
    if sampling:
        loaded(sampler, policy)
    for stub in stubs:
        stub.gone = True
    said = f"no rollout server answers .{stubs[0].url}: a broken connection .*{stubs[1].url}.*"
    with pytest.raises(ServerError, match=f"{said}VLLM_SERVER_DEV_MODE=1"):
        sampler.sample(request()) if sampling else loaded(sampler, policy)


def test_training_goes_on_while_one_server_takes_weights(make, policy, stubs):
    stubs[0].gone = True
    assert set(loaded(make(stubs), policy).sample(request()).by) == {stubs[1].url}


# --- servers that are not what they have to be ----------------------------------------------------


@pytest.mark.parametrize("urls", [(), ("localhost:8000",), ("http://a:1", "http://a:1/")])
def test_addresses_that_cannot_be(policy, tmp_path, urls):
    with pytest.raises(ConfigError, match=r"compute\.servers\.urls="):
        VLLMSampler(ServersConfig(urls=urls), policy, tmp_path)


def test_weights_of_somebody_else_are_noticed(make, policy, stubs):
    sampler = loaded(make(stubs[:1]), policy)

    def other(body):
        stubs[0].version = "somebody-3"
        return made_up(body)

    stubs[0].complete = other
    with pytest.raises(
        ServerError, match=r"6 completions were not sampled .*holds the weights 'so"
    ):
        sampler.sample(request())


def test_a_version_that_does_not_change_is_noticed(make, policy, stubs):
    stubs[0].forgets = True
    with pytest.raises(ServerError, match="weight_version='default' after it was given"):
        loaded(make(stubs[:1]), policy)


def test_raw_log_probs_are_refused(make, policy, stubs):
    stubs[0].processed = False
    with pytest.raises(ServerError, match=r"token_logprobs=\[-3.2\] of a token that is certain"):
        loaded(make(stubs[:1]), policy)


@pytest.mark.parametrize(
    ("vocab", "said"),
    [(29, "out-of-vocab token ids.*must serve the policy's model"), (31, "knows a token 30, but")],
)
def test_another_vocabulary_is_refused(make, policy, stubs, vocab, said):
    stubs[0].vocab = vocab
    with pytest.raises(ServerError, match=said):
        loaded(make(stubs[:1]), policy)
    assert "/update_weights" not in stubs[0].asked


def test_a_server_that_takes_no_weights_is_refused(make, policy, stubs):
    stubs[0].told["/weight_info"] = (404, {"detail": "Not Found"})
    with pytest.raises(ServerError, match=r"/weight_info refused .* 404.*VLLM_SERVER_DEV_MODE=1"):
        loaded(make(stubs[:1]), policy)


def test_a_server_without_the_file_engine_is_refused(make, policy, stubs):
    stubs[0].told["/init_weight_transfer_engine"] = (500, {"error": {"message": "not configured"}})
    with pytest.raises(ServerError, match=r"takes no weights from files .*vllm_file_weights"):
        loaded(make(stubs[:1]), policy)


def test_weights_that_the_server_cannot_read_are_told_with_its_words(make, policy, stubs):
    sampler = make(stubs[:1])
    sampler.files.write = lambda weights, name: {"path": "/nowhere"}
    with pytest.raises(ServerError, match="no weights in /nowhere; trainer and server must share"):
        loaded(sampler, policy)


def test_rows_longer_than_a_server_takes_are_refused(make, policy, stubs):
    sampler = loaded(make(stubs[:1]), policy)
    long = SamplingConfig(max_new_tokens=511)
    with pytest.raises(ServerError, match=r"max_model_len=512 tokens, but .* make 513; raise"):
        sampler.sample(request([[9, 5]], long))


def test_a_full_disk_is_one_line_and_leaves_no_half(make, policy, stubs, tmp_path, monkeypatch):
    def full(shard, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tether.scale.weight_files.save_file", full)
    with pytest.raises(ServerError, match=r"compute.servers.folder=.* no room on the disk"):
        loaded(make(stubs), policy)
    assert list((tmp_path / "rollout-weights").iterdir()) == []


def test_a_key_is_sent_where_there_is_one(make, policy, stubs, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "s3cret")
    loaded(make(stubs[:1]), policy)
    assert {head.get("authorization") for head in stubs[0].headers} == {"Bearer s3cret"}
