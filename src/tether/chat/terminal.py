"""`tether chat`: a conversation with a model in the terminal."""

import contextlib
import getpass
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.live import Live
from rich.style import Style
from rich.table import Table
from rich.text import Text as Shown
from tyro.conf import Positional, arg

from tether.chat.conversation import Conversation, Turn, thumb
from tether.chat.voice import SHADES, harmless, load_voice, shade
from tether.engine.pieces import Piece
from tether.errors import ConfigError, DataError, TetherError
from tether.feedback.live import open_project
from tether.feedback.people import local_person
from tether.records import Text, write_jsonl
from tether.sections import SamplingConfig

HELP = """\
  /regenerate       another answer to the last message
  /up, /down        thumbs up or down on the last answer, into --project
  /temperature T    1 is the model as it is; lower is surer
  /system TEXT      how the model is to answer; nothing after it takes that back
  /tokens           the last answer's tokens with their differences from the reference
  /new              forget what was said
  /save FILE.jsonl  the answers as demonstrations
  /quit             leave (Ctrl-D too)
Ctrl-C stops an answer. A line that ends in \\ goes on in the next; // starts a message with /."""

COLOURS = {  # behind a token: more likely than under the reference, or less
    3: "#7cc4a8",
    2: "#a9d9c6",
    1: "#d3ece2",
    -1: "#fbe3cd",
    -2: "#f6c597",
    -3: "#efa35c",
}
END = "⏹"  # stands for the token that ends an answer


def chat(
    model: Annotated[Positional[str], arg(metavar="DIR")],
    *,
    reference: str = "",
    project: str = "",
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    system: str = "",
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Talk to a model. A model without a chat template continues each text by itself.

    Args:
        model: Hugging Face directory or hub id, or an adapter.
        reference: The model it was trained from; its differences are shown behind the text.
        project: Feedback project NAME.db that /up and /down write into; made where there is none.
        temperature: Logits are divided by it.
        max_new_tokens: Longest answer, in tokens.
        system: System message, where the chat template has a place for one.
        seed: Of the sampling.
        device: "auto" (a GPU where there is one), "cpu", "cuda", …
    """
    SamplingConfig(temperature=temperature, max_new_tokens=max_new_tokens)
    store = open_project(project, "thumbs") if project else None
    name = str(Path(model)).removesuffix("/model")
    voice = load_voice(name, model, reference, device)
    talk = Talk(Conversation(voice, system), Console(highlight=False))
    talk.temperature, talk.max_new_tokens, talk.seed = temperature, max_new_tokens, seed
    if store is not None:
        labeler = local_person(store, getpass.getuser()).id
        talk.thumb = lambda turn, up: thumb(store, labeler, voice, turn, up=up)
    talk.run()


class Talk:
    """The session: reads lines, answers them or does what they command."""

    def __init__(self, conversation: Conversation, console: Console) -> None:
        self.conversation, self.console = conversation, console
        self.temperature, self.max_new_tokens, self.seed = 1.0, 256, 0
        self.thumb: Callable[[Turn, bool], None] = _no_project

    def run(self) -> None:
        """Until /quit or the end of the input."""
        self._introduce()
        while True:
            try:
                said = self._read()
            except KeyboardInterrupt:
                self.console.print("\n/quit or Ctrl-D leaves", style="dim")
                continue
            except EOFError:
                return
            if said.strip() == "/quit":
                return
            try:
                self._take(said)
            except TetherError as error:
                self.console.print(Shown(str(error), style="red"))
            except KeyboardInterrupt:
                self.console.print("stopped", style="dim")

    def _introduce(self) -> None:
        voice = self.conversation.voice
        self.console.print(Shown(voice.name, style="bold"), end="  ")
        how = "" if voice.chats else "no chat template: it continues each text by itself · "
        self.console.print(f"{how}/help", style="dim")
        if voice.compares:
            self.console.print(legend())

    def _read(self) -> str:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # arrows and history in what is typed
        lines = [input("\n> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input("… "))
        return "\n".join(lines)

    def _take(self, said: str) -> None:
        if said.startswith("/") and not said.startswith("//"):
            name, _, rest = said[1:].strip().partition(" ")
            self._command(name, rest.strip())
        elif said.strip():
            self._answer(self.conversation.prompt(said.removeprefix("/")))

    def _command(self, name: str, rest: str) -> None:
        conversation = self.conversation
        match name:
            case "regenerate":
                prompt = conversation.last().prompt
                conversation.turns.pop()
                self._answer(prompt)
            case "up" | "down":
                self.thumb(conversation.last(), name == "up")
                self.console.print(f"thumbs {name}, saved", style="dim")
            case "temperature":
                self.temperature = _temperature(rest)
            case "system":
                conversation.set_system(rest)
            case "tokens":
                self.console.print(table(conversation.last()))
            case "new":
                conversation.turns.clear()
            case "save":
                self._save(rest)
            case "help":
                self.console.print(HELP, markup=False)
            case _:
                raise ConfigError(f"/{name} is not a command; /help lists them")

    def _save(self, path: str) -> None:
        if not path.endswith(".jsonl") or Path(path).exists():
            raise DataError(f"/save {path!r} must name a new file that ends in .jsonl")
        records = self.conversation.records()
        write_jsonl(path, records)
        self.console.print(f"{len(records)} answers in {path}", style="dim", markup=False)

    def _answer(self, prompt: Text) -> None:
        """Stream an answer; Ctrl-C keeps what there is of it."""
        voice, turn = self.conversation.voice, Turn(prompt)
        self.seed += 1
        found = voice.answer(
            turn.prompt,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )
        try:
            self._stream(found, turn)
            stopped = ""
        except KeyboardInterrupt:
            stopped = "stopped"
        self.conversation.turns.append(turn)
        with contextlib.suppress(KeyboardInterrupt):
            turn.differences = voice.differences(turn.prompt, turn.pieces)
        self.console.print(coloured(turn), soft_wrap=not self.console.is_terminal)
        if stopped:
            self.console.print(stopped, style="dim")

    def _stream(self, found: Iterator[Piece], turn: Turn) -> None:
        live = Live(console=self.console, transient=True, refresh_per_second=12)
        with live if self.console.is_terminal else contextlib.nullcontext():
            for piece in found:
                turn.pieces.append(piece)
                live.update(_last_lines(harmless(turn.answer), self.console))


def coloured(turn: Turn) -> Shown:
    """An answer, with its differences from the reference as colours behind the text."""
    shown = Shown()
    if not turn.differences:
        return shown.append(harmless(turn.answer))
    for piece, difference in zip(turn.pieces, turn.differences, strict=True):
        shown.append(harmless(piece.text) or END, style=_style(shade(difference)))
    return shown


def legend() -> Shown:
    """What the colours mean."""
    shown = Shown("log π − log π_ref: less likely than under the reference ", style="dim")
    for level in sorted(COLOURS):
        limit = SHADES[abs(level) - 1]
        shown.append(f" {limit if level > 0 else -limit:+g} ", style=_style(level))
    return shown.append(" more likely, in nats", style="dim")


def table(turn: Turn) -> Table:
    """The pieces of an answer with their log-probs and differences, as numbers.

    Raises:
        ConfigError: There is no reference.
    """
    if not turn.differences:
        raise ConfigError("there is no reference to compare with; start with --reference DIR")
    shown = Table(box=None, pad_edge=False)
    shown.add_column("text")
    shown.add_column("log π − log π_ref", justify="right")
    for piece, difference in zip(turn.pieces, turn.differences, strict=True):
        shown.add_row(Shown(repr(piece.text) if piece.text else "end"), f"{difference:+.2f}")
    return shown


def _style(level: int) -> Style:
    return Style(color="#101414", bgcolor=COLOURS[level]) if level else Style.null()


def _last_lines(text: str, console: Console) -> Shown:
    """As much of the end of a text as the screen holds."""
    lines = Shown(text).wrap(console, console.width)
    return Shown("\n").join(lines[-max(console.height - 2, 1) :])


def _temperature(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise ConfigError(f"/temperature {word!r} must be a number above 0") from None
    return SamplingConfig(temperature=value).temperature


def _no_project(turn: Turn, up: bool) -> None:
    raise ConfigError("thumbs have no project to go to; start with --project CHAT.db")
