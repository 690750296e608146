"""Transcripts of critique and revision: what a model is shown before it writes the next part.

A prompt that is a string goes on as a string, in the constitution's `[format]`; messages go on as
turns of the conversation. The completion in question is always the newest one: earlier critiques
are not shown.
"""

from collections.abc import Sequence

from tether.constitution.principles import Constitution, Example, Principle
from tether.records import Message, Text


def critique_prompt(
    constitution: Constitution,
    prompt: Text,
    completion: str,
    principle: Principle,
    examples: Sequence[Example] = (),
) -> Text:
    """What a critique by the principle continues."""
    if isinstance(prompt, str):
        request = constitution.format.critique.format(request=principle.critique)
        return _before(constitution, examples) + prompt + completion + request
    return _with_turns(constitution, prompt, examples, (completion, principle.critique))


def revision_prompt(
    constitution: Constitution,
    prompt: Text,
    completion: str,
    principle: Principle,
    critique: str = "",
    examples: Sequence[Example] = (),
) -> Text:
    """What a revision continues, behind a critique or, with `critique=""`, without one."""
    if isinstance(prompt, str):
        text = prompt + completion
        if critique:
            text += constitution.format.critique.format(request=principle.critique) + critique
        request = constitution.format.revision.format(request=principle.revision)
        return _before(constitution, examples) + text + request
    turns = (completion, principle.critique, critique) if critique else (completion,)
    return _with_turns(constitution, prompt, examples, (*turns, principle.revision))


def _before(constitution: Constitution, examples: Sequence[Example]) -> str:
    """Whole transcripts of the examples, each with its critique, one after the other."""
    words = constitution.format
    texts: list[str] = []
    for example in examples:
        principle = constitution.by_id(example.principle)
        text = words.prompt.format(prompt=example.prompt) + f" {example.completion}"
        if principle.critique:
            text += words.critique.format(request=principle.critique) + f" {example.critique}"
        text += words.revision.format(request=principle.revision) + f" {example.revision}"
        texts.append(text + words.between)
    return "".join(texts)


def _with_turns(
    constitution: Constitution,
    prompt: list[Message],
    examples: Sequence[Example],
    turns: Sequence[str],
) -> list[Message]:
    """System messages, the examples, the prompt, and turns that begin with the assistant's."""
    system = [message for message in prompt if message["role"] == "system"]
    messages = list(system)
    for example in examples:
        principle = constitution.by_id(example.principle)
        messages.append({"role": "user", "content": example.prompt})
        asked = (principle.critique, example.critique) if principle.critique else ()
        messages += alternate((example.completion, *asked, principle.revision, example.revision))
    return [*messages, *prompt[len(system) :], *alternate(turns)]


def alternate(turns: Sequence[str]) -> list[Message]:
    """Turns as messages, the assistant's first."""
    return [
        {"role": ("assistant", "user")[i % 2], "content": text.strip()}
        for i, text in enumerate(turns)
    ]
