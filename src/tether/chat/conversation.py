"""What was said so far, by the person and by the model, as prompts and as records."""

import secrets
from dataclasses import dataclass, field
from typing import Any

from tether.chat.voice import Voice
from tether.engine.pieces import Piece
from tether.errors import ConfigError
from tether.feedback.live import Written, judge
from tether.feedback.store import Store
from tether.records import Demonstration, Message, Text, to_dict


@dataclass
class Turn:
    """A prompt and what the model made of it; `differences` belong to the pieces."""

    prompt: Text
    pieces: list[Piece] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)

    @property
    def answer(self) -> str:
        """What the model said."""
        return "".join(piece.text for piece in self.pieces)


class Conversation:
    """The turns of one session. Without a chat template every prompt stands alone."""

    def __init__(self, voice: Voice, system: str = "") -> None:
        self.voice, self.turns, self.system = voice, list[Turn](), ""
        if system:
            self.set_system(system)

    def set_system(self, text: str) -> None:
        """Say in a system message how the model is to answer; "" takes it back.

        Raises:
            ConfigError: The model has no place for one.
        """
        if text and not self.voice.takes_system:
            raise ConfigError(
                f"system={text!r} has no place in the chat template of {self.voice.name!r}"
                if self.voice.chats
                else f"system={text!r} needs a chat template, which {self.voice.name!r} has not"
            )
        self.system = text

    def prompt(self, said: str) -> Text:
        """What the model is given: everything so far and the new message, or the text alone."""
        if not self.voice.chats:
            return said
        messages: list[Message] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for turn in self.turns:
            assert not isinstance(turn.prompt, str)
            messages.append(turn.prompt[-1])
            messages.append({"role": "assistant", "content": turn.answer})
        return [*messages, {"role": "user", "content": said}]

    def last(self) -> Turn:
        """The newest turn.

        Raises:
            ConfigError: Nothing was said yet.
        """
        if not self.turns:
            raise ConfigError("there is no answer yet; write something first")
        return self.turns[-1]

    def records(self) -> list[dict[str, Any]]:
        """Every answer as a demonstration."""
        return [
            to_dict(Demonstration(prompt=turn.prompt, completion=turn.answer))
            for turn in self.turns
        ]


def thumb(store: Store, labeler: int, voice: Voice, turn: Turn, *, up: bool) -> None:
    """Store a thumb on an answer; another one on the same answer takes its place.

    Raises:
        ConfigError: The answer is empty.
    """
    if not turn.answer.strip():
        raise ConfigError("an empty answer cannot be judged; /regenerate makes another")
    ranks: list[float | None] = [1.0 if up else None]
    written = [Written(turn.answer, voice.name)]
    judge(store, labeler, turn.prompt, written, ranks, submission=secrets.token_urlsafe(16))
