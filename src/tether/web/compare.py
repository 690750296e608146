"""The compare page: two models answer, nobody is told which is which, and somebody chooses.

A choice is a judgment in compare.db beside the runs. Who stands on the left is drawn from the
project's seed and the round's own name, which is stored as the judgment's submission.
"""

import json
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from tether.errors import DataError, TetherError
from tether.feedback.judgments import Ranks
from tether.feedback.live import Written, judge
from tether.feedback.ratings import Ratings, ratings
from tether.records import Message, Text
from tether.web.judging import FILES, project, sampling, text
from tether.web.visit import Visit, entrance
from tether.web.voices import Event, Job

SIDES = ("a", "b")
CHOICES: dict[str, tuple[Ranks, int]] = {  # ranks of A and B, and how clear the choice is
    "a": ([1.0, 2.0], 2),
    "b": ([2.0, 1.0], 2),
    "tie": ([1.0, 1.0], 0),
    "fail": ([None, None], 0),
}
PROMPT_FILES = ("*prompts.jsonl", "samples.jsonl", "completions.jsonl")
MOST_LINES = 500  # read of a file of prompts
MOST_BYTES = 1 << 20


def page(visit: Visit) -> Response:
    """The page before a question."""
    return _page(visit)


def _page(visit: Visit, status: int = 200, **values: Any) -> Response:
    names = list(visit.site.voices.found())
    fields = visit.fields or visit.request.query_params
    chosen = [name for name in names if _asked(fields, name)] or names[-2:]
    shown: dict[str, Any] = {
        "here": "/compare",
        "models": names,
        "chosen": chosen,
        "typed": fields.get("prompt", ""),
        "temperature": fields.get("temperature", "1"),
        "max_new_tokens": fields.get("max_new_tokens", "256"),
        "stored": len(stored_prompts(visit.site.runs, chosen)),
        "rated": _rows(_rated(visit)),
        "round": None,
        "verdict": None,
        "error": "",
    }
    return visit.page("compare.html", status, **{**shown, **values})


def _asked(fields: Mapping[str, Any], name: str) -> bool:
    listed = fields.get("models")
    return f"model:{name}" in fields or (isinstance(listed, list) and name in listed)


# --- a round --------------------------------------------------------------------------------------


def draw(seed: int, name: str, models: Sequence[str]) -> tuple[str, str]:
    """The models on the left and on the right of a round, by the seed and the round's name."""
    left, right = random.Random(f"sides/{seed}/{name}").sample(sorted(models), 2)
    return left, right


def _begin(visit: Visit) -> Job:
    """Ask two of the chosen models; what the job tells names neither.

    Raises:
        HTTPException: 400 where there is nothing to compare, or no prompt.
    """
    voices, fields = visit.site.voices, visit.fields
    chosen = [name for name in voices.found() if _asked(fields, name)]
    if len(chosen) < 2:
        raise HTTPException(400, "Choose at least two models.")
    prompt, settings = _prompt(visit, chosen), sampling(fields)
    with project(visit, "pair") as (store, _):
        seed = store.project.seed
    name = secrets.token_urlsafe(16)
    models = draw(seed, name, chosen)

    def work(job: Job) -> None:
        both = [voices.voice(model) for model in models]
        asked = _as_messages(prompt) if all(voice.chats for voice in both) else prompt
        job.tell(start=job.id, prompt=readable(asked))
        texts = ["", ""]
        streams = [
            voice.answer(_for(voice, asked), **{**settings, "seed": settings["seed"] + side})
            for side, voice in enumerate(both)
        ]
        for pieces in zip_longest(*streams):
            if job.stop.is_set():
                return
            for side, piece in enumerate(pieces):
                if piece is not None and piece.text:
                    texts[side] += piece.text
                    job.tell(side=SIDES[side], text=piece.text)
        job.told = {"prompt": asked, "texts": texts, "models": models, "name": name}
        job.tell(end=True, same=texts[0] == texts[1])

    return voices.ask(work)


def _prompt(visit: Visit, models: Sequence[str]) -> Text:
    if typed := text(visit.fields, "prompt"):
        return typed
    stored = stored_prompts(visit.site.runs, models)
    if not stored:
        raise HTTPException(400, "Write a prompt; the runs hold none to draw from.")
    return secrets.choice(stored)


def _as_messages(prompt: Text) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _for(voice: Any, prompt: Text) -> Text:
    """The prompt as a model takes it: messages with a chat template, a text without."""
    return _as_messages(prompt) if voice.chats else readable(prompt)


def readable(prompt: Text) -> str:
    """A prompt as one text."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{one['role']}: {one['content']}" for one in prompt)


def stream(visit: Visit) -> Response:
    """Both answers as lines of JSON: `start`, `side` with `text`, `end`, or an `error`."""
    job = _begin(visit)
    return StreamingResponse(job.lines(visit.site.stopping), media_type="application/x-ndjson")


def ask(visit: Visit) -> Response:
    """Both answers at once, as a page."""
    try:
        job = _begin(visit)
    except HTTPException as error:
        return _page(visit, error.status_code, error=error.detail)
    events: list[Event] = [e for e in job.events(visit.site.stopping) if e is not None]
    if errors := [event["error"] for event in events if "error" in event]:
        return _page(visit, 400, error=errors[0])
    return _page(visit, round=job.id, **_shown(job))


def _shown(job: Job) -> dict[str, Any]:
    told = job.told
    if not told:
        raise HTTPException(404, "This round has no answers to judge; ask again.")
    return {"prompt": readable(told["prompt"]), "texts": told["texts"]}


# --- the choice -----------------------------------------------------------------------------------


def _choose(visit: Visit) -> dict[str, str]:
    """Store the choice of a round; returns which model was which.

    Raises:
        HTTPException: 400 for what is no choice, 404 for an unknown round.
    """
    job = visit.site.voices.job(visit.fields.get("round"))
    told, choice = job.told, text(visit.fields, "choice")
    _shown(job)
    if choice not in CHOICES:
        raise HTTPException(400, "Choose A, B, a tie, or that both are bad.")
    if told["texts"][0] == told["texts"][1] and choice in SIDES:
        raise HTTPException(400, "Both wrote the same, so neither is better: a tie, or both bad.")
    choice = told.setdefault("choice", choice)  # the first one, which is stored, stands
    ranks, strength = CHOICES[choice]
    written = [Written(*both) for both in zip(told["texts"], told["models"], strict=True)]
    with project(visit, "pair") as (store, labeler):
        judge(
            store,
            labeler,
            told["prompt"],
            written,
            list(ranks),
            submission=told["name"],
            strength=strength,
        )
    return dict(zip(SIDES, told["models"], strict=True))


def choose(visit: Visit) -> Response:
    """Store a choice and show the names, as a page."""
    try:
        names = _choose(visit)
    except (HTTPException, TetherError) as error:
        job = visit.site.voices.job(visit.fields.get("round"))
        detail = error.detail if isinstance(error, HTTPException) else str(error)
        return _page(visit, 400, error=detail, round=job.id, **_shown(job))
    job = visit.site.voices.job(visit.fields.get("round"))
    verdict = {"choice": job.told["choice"], "names": names}
    return _page(visit, round=job.id, verdict=verdict, **_shown(job))


def choose_api(visit: Visit) -> Response:
    """Store a choice and tell the names."""
    return JSONResponse({"names": _choose(visit), "ratings": _rows(_rated(visit))})


# --- ratings, prompts -----------------------------------------------------------------------------


def _rated(visit: Visit) -> Ratings | None:
    """How strong the models are by all choices so far; None before the first."""
    if not (visit.site.runs / FILES["pair"]).exists():
        return None
    with project(visit, "pair") as (store, _):
        try:
            return ratings(store.items(), store.judgments())
        except DataError:
            return None


def _rows(rated: Ratings | None) -> list[dict[str, Any]]:
    if rated is None:
        return []
    return [
        {
            "model": one.model,
            "strength": f"{one.strength:+.2f}",
            "interval": f"{one.low:+.2f} … {one.high:+.2f}",
            "record": [f"{round(n, 1):g}" for n in (one.wins, one.ties, one.losses)],
        }
        for one in rated.models
    ]


def stored_prompts(runs: Path, models: Sequence[str]) -> list[Text]:
    """Different prompts in the records of the models' runs, as far as they are quickly read."""
    found: dict[str, Text] = {}
    for run in dict.fromkeys(model.split("/")[0] for model in models):
        for pattern in (f"{run}/{deeper}{name}" for name in PROMPT_FILES for deeper in ("", "*/")):
            for file in sorted(runs.glob(pattern)):
                if file.resolve().is_relative_to(runs):
                    found |= {json.dumps(prompt): prompt for prompt in _prompts_of(file)}
    return list(found.values())


def _prompts_of(file: Path) -> Iterator[Text]:
    try:
        with open(file, encoding="utf-8") as lines:
            rows = lines.read(MOST_BYTES).splitlines()[:MOST_LINES]
    except (OSError, UnicodeDecodeError):
        return
    for row in rows:
        try:
            prompt = json.loads(row).get("prompt")
        except (ValueError, AttributeError):  # the last line may be cut
            continue
        if _is_prompt(prompt):
            yield prompt


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, str):
        return bool(prompt.strip())
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(
            isinstance(one, dict)
            and isinstance(one.get("role"), str)
            and isinstance(one.get("content"), str)
            for one in prompt
        )
    )


ROUTES = [
    entrance("/compare", page),
    entrance("/compare", ask, post=True),
    entrance("/compare/choose", choose, post=True),
    entrance("/api/compare", stream, post=True),
    entrance("/api/compare/choose", choose_api, post=True),
]
