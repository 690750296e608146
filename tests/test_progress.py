import sys
from io import StringIO
from types import ModuleType

import pytest
from rich.console import Console

from tether import progress
from tether.progress import Steps


class Terminal:
    """A made-up console and clock."""

    def __init__(self, monkeypatch, *, live):
        self.now = 100.0
        self.console = Console(file=StringIO(), force_terminal=live, width=120, highlight=False)
        monkeypatch.setattr(progress, "console", self.console)
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)

    @property
    def lines(self):
        return self.console.file.getvalue().splitlines()


@pytest.fixture
def log(monkeypatch):
    return Terminal(monkeypatch, live=False)


def test_a_log_gets_a_line_now_and_then_with_figures_and_time_left(log):
    # 6 of 10 steps to go: 3 done after 18 s, so 6 s a step and 3 · 6 = 18 s left
    with Steps("ppo", total=10, start=4) as steps:
        for step in range(3):
            log.now += 6.0
            steps.advance(reward=0.5 + step, approx_kl=0.12345)
    assert log.lines[0] == "ppo 7/10  18 s, 18 s left  reward 2.5  approx kl 0.1235"
    assert log.lines[1:] == ["ppo 7/10  18 s, 18 s left  done"]


def test_many_steps_do_not_flood_a_log(log):
    with Steps("sft", total=1000) as steps:
        for _ in range(1000):
            log.now += 0.1
            steps.advance(loss=1.0)
    # 100 s in all: a line once more than 15 s have passed, six times, and the last
    assert len(log.lines) == 7
    assert log.lines[-1] == "sft 1000/1000  100 s, 0 s left  done"


def test_several_rows_at_once(log):
    with Steps("generate", total=8) as steps:
        log.now += 20.0
        steps.advance(4)
    assert log.lines[0].startswith("generate 4/8  20 s, 20 s left")


def test_a_stage_that_fails_is_not_done(log):
    with pytest.raises(RuntimeError), Steps("sft", total=3):
        raise RuntimeError
    assert log.lines == []


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = Terminal(monkeypatch, live=True)
    with Steps("ppo", total=2) as steps:
        steps.advance(reward=0.25)
        steps.advance(reward=0.75)
    text = "\n".join(terminal.lines)
    assert "2/2" in text
    assert "reward 0.75" in text
    assert "done" not in text


# --- in a notebook --------------------------------------------------------------------------------


class Cell:
    """What a notebook shows under a cell: outputs, each of which can be changed later."""

    def __init__(self, monkeypatch):
        self.outputs = []
        self.now = 100.0
        console = Console(file=StringIO(), force_jupyter=True, width=120)
        monkeypatch.setattr(progress, "console", console)
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)
        for name in ("IPython", "IPython.display"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["IPython.display"].display = self.display

    def display(self, data, *, raw, display_id):
        assert raw
        assert display_id
        self.outputs.append([data["text/plain"]])
        return Output(self.outputs[-1])


class Output:
    def __init__(self, lines):
        self.lines = lines

    def update(self, data, *, raw):
        assert raw
        self.lines.append(data["text/plain"])


def test_a_notebook_gets_one_line_that_changes_in_place(monkeypatch):
    # 0.6 s a step, so that each is shown; a faster one is not
    cell = Cell(monkeypatch)
    with Steps("sft", total=4) as steps:
        for seconds in (0.6, 0.6, 0.1, 0.6):
            cell.now += seconds
            steps.advance(loss=2.0)
    with Steps("dpo", total=1):
        pass
    assert cell.outputs == [
        [
            "sft 1/4  1 s, 2 s left  loss 2",
            "sft 2/4  1 s, 1 s left  loss 2",
            "sft 4/4  2 s, 0 s left  loss 2",
            "sft 4/4  2 s, 0 s left  done",
        ],
        ["dpo 0/1  0 s, 0 s left  done"],
    ]
