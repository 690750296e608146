"""Decode steps as CUDA graphs: one launch for what would be hundreds of small ones."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

REACH = 256  # positions by which the attended part of the cache grows from graph to graph

Step = Callable[[Tensor, Tensor, Tensor, int], Tensor]


class GraphedStep:
    """A decode step captured once for each reach of positions, over all slots.

    A graph has fixed shapes, so every slot takes part. One that has nothing to read reads token 0
    at position 0 of itself, which nothing looks at: a prompt that moves in later overwrites it.
    """

    def __init__(
        self,
        step: Step,
        slots: int,
        room: int,
        device: torch.device,
        reach: int = REACH,
        capture: Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]] | None = None,
    ) -> None:
        """Take the step to capture.

        Args:
            step: (token, slot, position, seen) -> last hidden states; without synchronization.
            slots: Sequences in the cache.
            room: Positions of each.
            device: A CUDA device.
            reach: Positions by which `seen` grows from graph to graph; `room` or more where the
                step does not look at it, for one graph.
            capture: Turns a function without arguments into its replay and its fixed result;
                None = `capture`, as a CUDA graph.
        """
        self.step, self.room, self.reach = step, room, reach
        self.capture = capture or capture_graph
        self.slot = torch.arange(slots, device=device)
        self.token, self.position = torch.zeros_like(self.slot), torch.zeros_like(self.slot)
        self.graphs: dict[int, tuple[Callable[[], None], Tensor]] = {}

    def __call__(
        self, token: Int[Tensor, " B"], slot: Int[Tensor, " B"], position: Int[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        """Read one token a slot; returns the last hidden states."""
        reach = self.room
        if self.reach < self.room:
            reach = min(-(-(int(position.max()) + 1) // self.reach) * self.reach, self.room)
        self.token.zero_()
        self.position.zero_()
        self.token[slot], self.position[slot] = token, position
        if reach not in self.graphs:
            self.graphs[reach] = self.capture(
                lambda: self.step(self.token, self.slot, self.position, reach)
            )
        replay, hidden = self.graphs[reach]
        replay()
        return hidden[slot]


def capture_graph(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Capture a function of fixed tensors; returns its replay and the tensor that it fills."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # once before: libraries allocate on their first call
        run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hidden = run()
    graph.replay()  # capturing computes nothing
    return graph.replay, hidden
