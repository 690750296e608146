"""Tic-tac-toe, learned with the functions that tune a language model.

    python examples/tic_tac_toe.py [--seed 1] [--steps 150] [--play]

A game is a row and its nine turns are the columns. The agent's turns are its tokens, where the
mask is True; its rival's turns are gaps. The result is the score, given on the agent's last move.
That is the shape of RLHF, so rewards, advantages and losses are tether's own.
docs/rl-and-language-models.md puts the words of the two worlds side by side.
"""

from contextlib import suppress
from itertools import cycle
from typing import NamedTuple

import torch
import tyro
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tether.core import logprobs, masked
from tether.core.advantages import gae, token_rewards
from tether.core.policy_losses import PolicyLoss, clipped_policy_loss, entropy, value_loss
from tether.progress import Steps, console, results

GAMES = 1024  # a step: the rollout batch
SELF_PLAY = 0.5  # share of them against the agent itself; the others are against a random player
EPOCHS, MINIBATCHES = 2, 8
LEARNING_RATE = 6e-3  # at the start; it falls to 0 in a line
ENTROPY_COEFFICIENT = 0.02  # what a nat of entropy is worth, so that other moves are still tried
TEST_GAMES, STEPS_BETWEEN_TESTS = 2000, 15

Boards = Float[Tensor, "B 9"]  # a square is 1 where it is mine, -1 my rival's, 0 empty
Grid = Float[Tensor, "B 9"]  # a number for each turn
ROWS = torch.arange(9).view(3, 3)
LINES = torch.cat([ROWS, ROWS.T, ROWS.diag()[None], ROWS.fliplr().diag()[None]])


def legal_moves(boards: Boards) -> Bool[Tensor, "B 9"]:
    """True on empty squares."""
    return boards == 0


def has_line(boards: Boards) -> Bool[Tensor, " B"]:
    """True where I have three in a row."""
    return (boards[:, LINES] == 1).all(dim=-1).any(dim=-1)


class Agent(nn.Module):
    """The policy, and the value model on the same body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(18, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.policy, self.value = nn.Linear(128, 9), nn.Linear(128, 1)

    def forward(self, boards: Boards) -> tuple[Float[Tensor, "B 9"], Float[Tensor, " B"]]:
        """Logits of the nine moves and the value, for the player whose squares are 1."""
        hidden = self.body(torch.cat([boards == 1, boards == -1], dim=-1).float())
        # In playing and training alike: otherwise π_old would not be the policy.
        logits = self.policy(hidden).masked_fill(~legal_moves(boards), -torch.inf)
        return logits, self.value(hidden).squeeze(-1)


class Games(NamedTuple):
    boards: Float[Tensor, "B 9 9"]  # before each turn, as the player whose turn it is sees it
    moves: Int[Tensor, "B 9"]
    logprobs: Grid  # of the moves, in nats, under the policy that played
    values: Grid
    mask: Bool[Tensor, "B 9"]  # True on the agent's turns, up to the end of the game
    scores: Float[Tensor, " B"]  # 1 where the agent won, 0 where nobody did, -1 where it lost


@torch.no_grad()
def play_games(agent: Agent, count: int, self_play: float) -> Games:
    """Play `count` games, a share `self_play` against itself; the agent begins every other one."""
    boards, scores, over = torch.zeros(count, 9), torch.zeros(count), torch.zeros(count).bool()
    agent_begins = torch.arange(count) % 2 == 0
    rival_is_random = torch.rand(count) >= self_play
    turns: list[tuple[Tensor, ...]] = []
    for turn in range(9):
        agents_turn = agent_begins if turn % 2 == 0 else ~agent_begins
        side = torch.where(agents_turn, 1.0, -1.0).unsqueeze(1)
        seen = boards * side
        logits, values = agent(seen)
        at_random = (rival_is_random & ~agents_turn).unsqueeze(1) & legal_moves(seen)
        moves = logits.masked_fill(at_random, 0.0).softmax(dim=-1).multinomial(1)
        chosen = logprobs.gather(logits, moves.squeeze(1))
        turns.append((seen, moves.squeeze(1), chosen, values, agents_turn & ~over))
        boards = torch.where(over.unsqueeze(1), boards, boards.scatter(1, moves, side))
        won = has_line(boards * side) & ~over
        scores = torch.where(won, side.squeeze(1), scores)
        over = over | won
    return Games(*(torch.stack(column, dim=1) for column in zip(*turns, strict=True)), scores)


def aim(games: Games) -> tuple[Grid, Grid]:
    """Standardized advantages, and returns. No reference to stay near, so no KL penalty."""
    no_penalty = torch.zeros_like(games.values)
    rewards = token_rewards(games.scores, no_penalty, games.mask)
    advantages, returns = gae(rewards, games.values, games.mask)
    return masked.standardize(advantages, games.mask), returns


def loss(agent: Agent, games: Games, advantages: Grid, returns: Grid) -> tuple[Tensor, PolicyLoss]:
    """L = L_policy + L_value - c·H, and its first part with statistics."""
    logits, values = agent(games.boards.flatten(0, 1))
    logits, values = logits.view_as(games.boards), values.view_as(games.values)
    chosen = logprobs.gather(logits, games.moves)
    policy = clipped_policy_loss(chosen, games.logprobs, advantages, games.mask)
    value = value_loss(values, games.values, returns, games.mask)
    bonus = ENTROPY_COEFFICIENT * masked.mean(entropy(logits), games.mask)
    return policy.loss + value.loss - bonus, policy


def improve(agent: Agent, optimizer: torch.optim.Optimizer, games: Games) -> PolicyLoss:
    """Epochs of minibatches over one batch of games; returns the last policy loss."""
    advantages, returns = aim(games)
    for rows in [r for _ in range(EPOCHS) for r in torch.randperm(GAMES).chunk(MINIBATCHES)]:
        minibatch = Games(*(column[rows] for column in games))
        total, policy = loss(agent, minibatch, advantages[rows], returns[rows])
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 1.0)
        optimizer.step()
    return policy


class Point(NamedTuple):
    """Shares of games against a random player."""

    won: float
    drawn: float
    lost: float

    def __str__(self) -> str:
        bar = "█" * round(24 * self.won) + "▒" * round(24 * self.drawn)
        return f"won {self.won:6.2%}  drawn {self.drawn:6.2%}  lost {self.lost:6.2%}  {bar}"


def measure(scores: Float[Tensor, " B"]) -> Point:
    return Point(*(float((scores == score).double().mean()) for score in (1, 0, -1)))


class Result(NamedTuple):
    agent: Agent
    curve: dict[int, Point]  # by the steps done


def train(seed: int = 0, steps: int = 150) -> Result:
    """Collect, aim, improve; again. The seed decides everything that is drawn."""
    torch.manual_seed(seed)
    agent, curve = Agent(), {}
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE, eps=1e-5)
    with Steps("play", steps) as bar:
        for step in range(steps + 1):
            if step % STEPS_BETWEEN_TESTS == 0 or step == steps:
                curve[step] = measure(play_games(agent, TEST_GAMES, self_play=0.0).scores)
                console.print(f"{step:10}  {curve[step]}")
            if step < steps:
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
                games = play_games(agent, GAMES, SELF_PLAY)
                policy = improve(agent, optimizer, games)
                bar.advance(score=float(games.scores.mean()), approx_kl=float(policy.approx_kl))
    return Result(agent, curve)


def play_a_human(agent: Agent, human_begins: bool) -> str:
    """One game on the terminal: the human is X, the agent is O and plays its likeliest moves."""
    board, side, drawn = torch.zeros(1, 9), -1 if human_begins else 1, "1 2 3\n4 5 6\n7 8 9"
    while legal_moves(board).any():
        square = str(int(agent(board)[0].argmax()) + 1)
        if side == -1:
            while (square := input(f"{drawn}\nYour square: ")) not in set(drawn) & set("123456789"):
                print("Type the number of an empty square.")
        board[0, int(square) - 1] = side
        drawn = drawn.replace(square, "O" if side == 1 else "X")
        if has_line(board * side).any():
            return f"{drawn}\n{'The agent wins' if side == 1 else 'You win'}."
        side = -side
    return f"{drawn}\nA draw."


def main(seed: int = 0, steps: int = 150, play: bool = False) -> None:
    """Learn tic-tac-toe with PPO, for so many steps; then, with --play, play against a human."""
    torch.set_num_threads(1)
    agent = train(seed, steps).agent
    results.print("Against a random player, 5,000 games beginning and 5,000 second:")
    scores = play_games(agent, 10_000, self_play=0.0).scores
    results.print(f" beginning  {measure(scores[::2])}\n    second  {measure(scores[1::2])}")
    results.print("You are X; Ctrl-D ends." if play else "Next, play against it: add --play")
    with suppress(EOFError, KeyboardInterrupt):
        for human_begins in cycle((True, False) if play else ()):
            print(play_a_human(agent, human_begins))


if __name__ == "__main__":
    tyro.cli(main)
