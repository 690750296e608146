"""The tic-tac-toe example: rules against brute force, what training sees, that it learns."""

import importlib
import itertools
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "examples"))
game = importlib.import_module("tic_tac_toe")


# --- the rules ------------------------------------------------------------------------------------


def three_in_a_row(board: tuple[int, ...]) -> bool:
    """A line by geometry: three steps of one kind from a square of 1s that stay on the board."""
    marks = {(i // 3, i % 3) for i, square in enumerate(board) if square == 1}
    steps = [(0, 1), (1, 0), (1, 1), (1, -1)]
    return any(
        all((row + k * down, column + k * right) in marks for k in range(3))
        for row, column in marks
        for down, right in steps
    )


def test_lines_on_every_board():
    boards = list(itertools.product((-1, 0, 1), repeat=9))
    found = game.has_line(torch.tensor(boards).float())
    assert found.tolist() == [three_in_a_row(board) for board in boards]
    assert sum(three_in_a_row(board) and sum(map(abs, board)) == 3 for board in boards) == 8


def test_all_games_and_positions():
    # Known numbers: 255,168 games, of which the first wins 131,184, the second 77,904 and nobody
    # 46,080; 5,478 positions.
    boards, first_won, second_won, positions = torch.zeros(1, 9), 0, 0, 1
    for turn in range(9):
        row, square = game.legal_moves(boards).nonzero(as_tuple=True)
        side = 1.0 if turn % 2 == 0 else -1.0
        boards = boards[row].scatter(1, square.unsqueeze(1), side)
        positions += len(set(codes(boards)))
        won = game.has_line(boards * side)
        first_won += int(won.sum()) if side == 1 else 0
        second_won += int(won.sum()) if side == -1 else 0
        boards = boards[~won]
    assert (first_won, second_won, len(boards)) == (131_184, 77_904, 46_080)
    assert first_won + second_won + len(boards) == 255_168
    assert positions == 5_478


def codes(boards):
    """Each board as a number with three digits for a square."""
    return ((boards + 1) @ 3.0 ** torch.arange(9)).tolist()


# --- games ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("self_play", [0.0, 0.5, 1.0])
def test_games_are_legal_and_scored(self_play):
    games = game.play_games(game.Agent(), 64, self_play)
    for row in range(64):
        agents = {i for i in range(9) if i % 2 == row % 2}  # the agent begins the even games
        board, score, length = [0] * 9, 0.0, 9
        for turn in range(9):
            side = 1 if turn in agents else -1
            assert games.boards[row, turn].tolist() == [side * square for square in board]
            move = int(games.moves[row, turn])
            assert board[move] == 0
            board[move] = side
            if three_in_a_row(tuple(side * square for square in board)):
                score, length = float(side), turn + 1
                break
        assert float(games.scores[row]) == score
        assert games.mask[row].tolist() == [i in agents and i < length for i in range(9)]


def test_illegal_moves_have_no_probability_and_a_random_rival_plays_all_legal_ones():
    board = torch.tensor([[1.0, -1, 0, 0, 1, 0, 0, 0, -1]])
    probabilities = game.Agent()(board)[0].softmax(-1)
    assert (probabilities[0] == 0).tolist() == [True, True, False, False, True] + [False] * 3 + [
        True
    ]
    games = game.play_games(game.Agent(), 4000, 0.0)
    first = torch.bincount(games.moves[1::2, 0], minlength=9) / 2000  # the rival's opening
    # 1/9 each; a share of 2,000 has a standard error of sqrt(1/9 · 8/9 / 2000) = 0.007
    assert (first - 1 / 9).abs().max() < 5 * 0.007


# --- training -------------------------------------------------------------------------------------


def test_ratio_is_one_on_the_first_minibatch():
    agent = game.Agent()
    games = game.play_games(agent, 256, 0.5)
    total, policy = game.loss(agent, games, *game.aim(games))
    assert float(policy.ratio_max) == pytest.approx(1, abs=1e-5)
    assert float(policy.ratio_mean) == pytest.approx(1, abs=1e-6)
    assert float(policy.clip_fraction) == 0
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in agent.parameters())


def test_the_result_is_the_reward_of_the_agents_last_move():
    # The agent moves second, at turns 1 and 3, and its rival wins at turn 4. With values 0.5 at
    # turn 1 and 0.2 at turn 3: R₃ = -1, A₃ = -1 - 0.2 = -1.2;
    # A₁ = 0.2 - 0.5 + 0.95 · -1.2 = -1.44, R₁ = 0.5 - 1.44 = -0.94. What stands in the gaps, 9,
    # counts for nothing.
    mask = torch.tensor([[False, True, False, True] + [False] * 5])
    values = torch.tensor([[9.0, 0.5, 9.0, 0.2, 9.0, 9.0, 9.0, 9.0, 9.0]])
    nothing = torch.zeros(1, 9)
    games = game.Games(
        torch.zeros(1, 9, 9), nothing.long(), nothing, values, mask, torch.tensor([-1.0])
    )
    advantages, returns = game.aim(games)
    expected = torch.tensor([[0, -0.94, 0, -1.0, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(returns, expected)
    # Standardized: mean -1.32, standard deviation 0.12
    expected = torch.tensor([[0, -1.0, 0, 1.0, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=0)


def test_it_learns():
    # 40 of the 150 steps, to keep it short; the whole run loses less than 1 % (see the docs).
    curve = game.train(seed=0, steps=40).curve
    assert list(curve) == [0, 15, 30, 40]
    for point in curve.values():
        assert sum(point) == pytest.approx(1)
    assert curve[0].lost > 0.3
    assert curve[40].won > 0.88
    assert curve[40].lost < 0.03


def test_the_seed_decides_everything():
    one, same, other = (game.train(seed, steps=2) for seed in (3, 3, 4))
    assert one.curve == same.curve
    for mine, its in zip(one.agent.parameters(), same.agent.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert one.curve != other.curve


# --- against a human ------------------------------------------------------------------------------


class Ordered(torch.nn.Module):
    """An agent that takes the first empty square."""

    def forward(self, boards):
        order = -torch.arange(9.0).expand_as(boards)
        return order.masked_fill(boards != 0, -torch.inf), torch.zeros(len(boards))


@pytest.mark.parametrize(
    ("begins", "answers", "end"),
    [
        # O takes 1, 2, 4; "1" and "x" are asked again
        (True, ["5", "1", "x", "3", "7"], "O O X\n4 X 6\nX 8 9\nYou win."),
        # O takes 1, 2, 3
        (False, ["5", "9"], "O O O\n4 X 6\n7 8 X\nThe agent wins."),
        # O takes 1, 3, 6, 8
        (True, ["2", "4", "5", "7", "9"], "O X O\nX X O\nX O X\nA draw."),
    ],
)
def test_a_game_against_a_human(monkeypatch, begins, answers, end):
    left = iter(answers)
    monkeypatch.setattr("builtins.input", lambda prompt: next(left))
    assert game.play_a_human(Ordered(), begins) == end
    assert list(left) == []


def test_main_tells_what_came_out(monkeypatch, capsys):
    monkeypatch.setattr(game, "train", lambda seed, steps: game.Result(game.Agent(), {}))
    game.main(steps=0)
    said = capsys.readouterr().out
    assert "beginning  won" in said
    assert "--play" in said
