import pytest
import torch
from tests.tiny import save_tiny

from tether.engine.decoders import LlamaDecoder, decoder_for
from tether.engine.graphs import REACH, GraphedStep
from tether.models import llama
from tether.models.language_model import load
from tether.sections import ComputeConfig

# A CUDA graph is a recording over fixed tensors. Here the recording is a function that is run
# again on the same tensors, which is what a replay does; only the launch itself needs a GPU.


class Recorder:
    def __init__(self):
        self.captures = 0

    def __call__(self, run):
        self.captures += 1
        hidden = run()

        def replay():
            hidden.copy_(run())

        return replay, hidden


@pytest.fixture
def language_model(tmp_path):
    return load(str(save_tiny(tmp_path, kind="llama")), ComputeConfig(device="cpu"))


def test_a_graphed_step_is_the_step(language_model):
    slots, room = 4, 24
    plain = decoder_for(language_model, slots, room)
    assert isinstance(plain, LlamaDecoder)
    graphed = LlamaDecoder(language_model, llama.lean(language_model.model), slots, room)
    recorder = Recorder()
    graphed.graphed = GraphedStep(graphed._step, slots, room, torch.device("cpu"), capture=recorder)
    prompts, own = [[5, 9, 4], [7, 6], [12]], [[2], [0], [3]]
    with torch.no_grad():
        for decoder in (plain, graphed):
            decoder.prefill(prompts, own)
        # Slots 0, 2, 3 run; then 0 has ended; then slot 1 is filled late.
        steps = [([8, 6, 7], [0, 2, 3], [2, 3, 1]), ([5, 4], [2, 3], [4, 2])]
        for token, slot, position in (map(torch.tensor, step) for step in steps):
            torch.testing.assert_close(
                graphed.step(token, slot, position), plain.step(token, slot, position)
            )
        for decoder in (plain, graphed):
            decoder.prefill([[9, 9, 8, 7]], [[1]])
        late = [torch.tensor(x) for x in ([3, 5], [1, 3], [4, 3])]
        torch.testing.assert_close(graphed.step(*late), plain.step(*late))
    assert recorder.captures == 1


def test_one_graph_for_each_reach_of_positions():
    reaches = []

    def step(token, slot, position, seen):
        reaches.append(seen)
        return torch.zeros(len(slot), 2)

    graphed = GraphedStep(step, 2, 600, torch.device("cpu"), capture=(recorder := Recorder()))
    for position in (0, REACH - 1, REACH, 599, 3):
        graphed(torch.tensor([1]), torch.tensor([0]), torch.tensor([position]))
    # positions 0 … 255 reach 256, 256 … 511 reach 512, more reach the room of 600
    assert sorted(set(reaches)) == [256, 512, 600]
    assert recorder.captures == 3


def test_one_graph_where_the_step_does_not_look_at_the_reach():
    reaches = []

    def step(token, slot, position, seen):
        reaches.append(seen)
        return torch.zeros(len(slot), 2)

    device, recorder = torch.device("cpu"), Recorder()
    graphed = GraphedStep(step, 2, 600, device, reach=600, capture=recorder)
    for position in (0, 599, 3):
        graphed(torch.tensor([1]), torch.tensor([0]), torch.tensor([position]))
    assert set(reaches) == {600}
    assert recorder.captures == 1


def test_resting_slots_read_a_harmless_token():
    seen = []

    def step(token, slot, position, reach):
        seen.append((token.tolist(), position.tolist()))
        return torch.zeros(len(slot), 2)

    graphed = GraphedStep(step, 3, 9, torch.device("cpu"), capture=Recorder())
    graphed(torch.tensor([7, 8]), torch.tensor([0, 2]), torch.tensor([4, 5]))
    graphed(torch.tensor([6]), torch.tensor([1]), torch.tensor([2]))
    assert seen[-1] == ([0, 6, 0], [0, 2, 0])
